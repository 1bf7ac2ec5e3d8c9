//! `serve` and `saga` as commands: a server that is killed in mid-saga goes on, and people can see and
//! steer its sagas. Real processes, a real participant that is never killed and keeps its own record.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rallypoint");

/// Requests by path, with their keys; some paths are slow, and some are told to refuse.
#[derive(Clone)]
struct Participant {
    got: Arc<Mutex<Vec<(String, String)>>>,
    /// What a path answers instead of 200.
    refusals: Arc<Mutex<BTreeMap<String, u16>>>,
    url: String,
}

fn answer(
    mut stream: TcpStream,
    got: &Mutex<Vec<(String, String)>>,
    refusals: &Mutex<BTreeMap<String, u16>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let key = headers.get("idempotency-key").cloned().unwrap_or_default();
        got.lock().unwrap().push((path.clone(), key));
        if path == "/slow" {
            // In flight when the server is killed.
            thread::sleep(Duration::from_millis(300));
        }
        let status = refusals.lock().unwrap().get(&path).copied().unwrap_or(200);
        let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 2\r\n\r\n{{}}");
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

impl Participant {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let refusals: Arc<Mutex<BTreeMap<String, u16>>> = Arc::default();
        let shared = (Arc::clone(&got), Arc::clone(&refusals));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (got, refusals) = shared.clone();
                thread::spawn(move || answer(stream, &got, &refusals));
            }
        });
        Self { got, refusals, url }
    }

    fn refuses(&self, path: &str, status: u16) {
        self.refusals.lock().unwrap().insert(path.into(), status);
    }

    fn agrees(&self, path: &str) {
        self.refusals.lock().unwrap().remove(path);
    }

    fn keys(&self, path: &str) -> Vec<String> {
        let got = self.got.lock().unwrap();
        got.iter().filter(|(at, _)| at == path).map(|(_, key)| key.clone()).collect()
    }
}

struct Place {
    folder: tempfile::TempDir,
}

struct Served {
    process: Child,
    url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Place {
    fn new(world: &Participant) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::create_dir(folder.path().join("sagas")).unwrap();
        let url = &world.url;
        let text = format!(
            "saga: order\nversion: 1\nsteps:\n\
             \x20 - {{name: first, call: {{method: POST, url: '{url}/first'}}, undo: {{method: POST, url: '{url}/unfirst'}}}}\n\
             \x20 - {{name: slow, call: {{method: POST, url: '{url}/slow'}}, retry: {{base: 5ms, cap: 10ms}}}}\n\
             \x20 - {{signal: approved}}\n\
             \x20 - {{name: last, call: {{method: POST, url: '{url}/last'}}}}\n"
        );
        std::fs::write(folder.path().join("sagas/order.yaml"), text).unwrap();
        Self { folder }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn mirror(&self) -> PathBuf {
        self.folder.path().join("mirror")
    }

    fn define(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(format!("sagas/{name}.yaml")), text).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--segment-bytes", "8388608", "--json"]);
        command.arg("--allow-unsuitable-file-system").arg("--dir").arg(self.store());
        command.arg("--sagas").arg(self.folder.path().join("sagas"));
        command
    }

    fn serve(&self) -> Served {
        Served::begin(self.command())
    }

    fn serve_mirrored(&self, more: &[&str]) -> Command {
        let mut command = self.command();
        command.arg("--mirror").arg(self.mirror()).args(more);
        command
    }
}

impl Served {
    fn begin(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("one JSON object when ready");
        Self { process, url: ready["address"].as_str().unwrap().to_owned() }
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Gives the exit code.
    fn terminate(mut self) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.process.wait().unwrap().code()
    }
}

/// Runs `rallypoint saga ... --json` and gives its exit code and output.
fn saga(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(PROGRAM).arg("saga").args(arguments).arg("--json").output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), value)
}

fn until(url: &str, id: &str, test: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        let (_, found) = saga(&["show", id, "--server", url]);
        if test(&found) {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("it never came to that: {:#}", saga(&["show", id, "--server", url]).1);
}

#[test]
fn a_killed_server_goes_on_with_every_saga() {
    let world = Participant::new();
    let place = Place::new(&world);
    let mut served = place.serve();
    for id in ["k1", "k2"] {
        let (code, started) = saga(&["start", "order", "{\"n\": 1}", "--key", id, "--server", &served.url]);
        assert_eq!((code, &started["id"]), (0, &json!(id)), "{started}");
    }
    while world.keys("/slow").len() < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL, while both wait for the slow answer.
    served.process.kill().unwrap();
    served.process.wait().unwrap();

    let served = place.serve();
    for id in ["k1", "k2"] {
        let waits = |found: &Value| {
            found["steps"].as_array().is_some_and(|steps| {
                steps.iter().any(|step| step["kind"] == "signal" && step["status"] == "waiting")
            })
        };
        until(&served.url, id, waits);
        let (code, _) = saga(&["signal", id, "approved", "true", "--server", &served.url]);
        assert_eq!(code, 0);
        let (code, ended) = saga(&["watch", id, "--server", &served.url]);
        assert_eq!((code, &ended["status"]), (0, &json!("completed")), "{ended:#}");
        assert_eq!(ended["output"]["approved"], true);
    }
    assert_eq!(world.keys("/first").len(), 2, "what had ended is not done again");
    let slow = world.keys("/slow");
    let distinct: std::collections::BTreeSet<&String> = slow.iter().collect();
    assert!(slow.len() == 4 && distinct.len() == 2, "again under the same keys: {slow:?}");
}

#[test]
fn a_server_that_is_told_to_end_ends_in_order_and_its_directory_can_be_looked_at() {
    let world = Participant::new();
    let place = Place::new(&world);
    let served = place.serve();
    let (code, _) = saga(&["start", "order", "--key", "one", "--server", &served.url]);
    assert_eq!(code, 0);
    until(&served.url, "one", |found| found["steps"].as_array().is_some_and(|steps| steps.len() == 3));
    let (code, list) = saga(&["list", "--server", &served.url]);
    assert_eq!((code, list["sagas"].as_array().unwrap().len()), (0, 1));
    assert_eq!(saga(&["show", "none", "--server", &served.url]).0, 2);
    let (code, problem) = saga(&["resume", "one", "--server", &served.url]);
    assert_eq!((code, &problem["status"]), (2, &json!(409)), "{problem}");

    // Also while it is served, the directory itself; what it shows may be a moment old.
    let dir = place.store().display().to_string();
    let (code, found) = saga(&["show", "one", "--dir", &dir]);
    assert_eq!((code, &found["name"]), (0, &json!("order")), "{found}");
    let (code, list) = saga(&["list", "--dir", &dir, "--status", "completed"]);
    assert_eq!((code, &list["sagas"]), (0, &json!([])));

    let url = served.url.clone();
    assert_eq!(served.terminate(), Some(0), "an orderly end");
    let (code, found) = saga(&["show", "one", "--dir", &dir]);
    assert_eq!((code, &found["status"]), (0, &json!("waiting")), "{found}");
    assert_eq!(found["steps"].as_array().unwrap().len(), 3, "{found}");
    let (code, list) = saga(&["list", "--dir", &dir, "--name", "order"]);
    let rows = list["sagas"].as_array().unwrap();
    assert_eq!(
        (code, rows.len(), &rows[0]["id"], &rows[0]["status"]),
        (0, 1, &json!("one"), &json!("waiting"))
    );
    let (code, none) = saga(&["show", "none", "--dir", &dir]);
    assert!(code == 2 && none["error"].as_str().unwrap().contains("no saga"), "{none}");
    assert_eq!(saga(&["list", "--dir", "/nowhere/at/all"]).0, 2);
    let (code, wrong) = saga(&["list", "--dir", &dir, "--status", "done"]);
    assert!(code == 2 && wrong["error"].as_str().unwrap().contains("completed"), "{wrong}");
    assert_eq!(saga(&["list", "--server", &url]).0, 2, "nobody answers");

    let served = place.serve();
    let (code, accepted) = saga(&["cancel", "one", "--server", &served.url]);
    assert_eq!(code, 0, "{accepted}");
    let (code, ended) = saga(&["watch", "one", "--server", &served.url]);
    assert_eq!((code, &ended["status"]), (1, &json!("compensated")));
    assert_eq!(world.keys("/unfirst").len(), 1);
}

/// Two steps with undos, a signal, and a last step that is not tried again by itself.
fn steered(url: &str) -> String {
    let step = |name: &str| {
        format!(
            "  - {{name: {name}, call: {{method: POST, url: '{url}/{name}'}}, undo: {{method: POST, url: '{url}/un{name}'}}}}\n"
        )
    };
    format!(
        "saga: steered\nversion: 1\nsteps:\n{}{}  - {{signal: approved}}\n  - {{name: last, call: {{method: POST, url: \
         '{url}/last'}}, retry: {{base: 10h, cap: 10h}}}}\n",
        step("one"),
        step("two")
    )
}

fn waits_for_the_signal(found: &Value) -> bool {
    found["steps"]
        .as_array()
        .is_some_and(|steps| steps.iter().any(|step| step["kind"] == "signal" && step["status"] == "waiting"))
}

#[test]
fn every_command_of_saga_does_what_it_says() {
    let world = Participant::new();
    let place = Place::new(&world);
    place.define("steered", &steered(&world.url));
    let served = place.serve();
    let url = served.url.as_str();
    let ask = |arguments: &[&str]| saga(&[arguments, &["--server", url]].concat());
    let begin = |id: &str| {
        assert_eq!(ask(&["start", "steered", "--key", id]).0, 0);
        until(url, id, waits_for_the_signal)
    };
    let step = |saga: &Value, name: &str| -> Value {
        saga["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap().clone()
    };

    // Paused, it takes the signal and begins nothing; resumed, it goes on.
    begin("p");
    let (code, paused) = ask(&["pause", "p"]);
    assert_eq!((code, &paused["status"]), (0, &json!("paused")));
    assert_eq!(ask(&["signal", "p", "approved", "{\"by\": \"me\"}"]).0, 0);
    assert_eq!(ask(&["show", "p"]).1["status"], "paused");
    assert!(world.keys("/last").is_empty());
    assert_eq!(ask(&["resume", "p"]).0, 0);
    let (code, ended) = ask(&["watch", "p"]);
    assert_eq!(
        (code, &ended["status"], &ended["output"]["approved"]["by"]),
        (0, &json!("completed"), &json!("me"))
    );
    assert_eq!(world.keys("/last").len(), 1);

    // Restarted from a step, that step alone is done again, under another key.
    assert_eq!(ask(&["restart", "p", "--from", "last"]).0, 0);
    let again = until(url, "p", |saga| saga["status"] == "completed" && saga["generation"] == 1);
    assert_eq!(step(&again, "last")["status"], "done");
    let keys = world.keys("/last");
    assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
    assert_eq!(world.keys("/two").len(), 1);
    let (code, problem) = ask(&["restart", "p", "--from", "nothing"]);
    assert_eq!((code, &problem["status"]), (2, &json!(404)));

    // What waits for ten hours is tried at once.
    world.refuses("/last", 503);
    begin("r");
    ask(&["signal", "r", "approved"]);
    let waiting = until(url, "r", |saga| step_status(saga, "last") == "backoff");
    assert_eq!(waiting["status"], "waiting");
    world.agrees("/last");
    assert_eq!(ask(&["retry", "r"]).0, 0);
    assert_eq!(ask(&["watch", "r"]).1["status"], "completed");

    // Undos that are refused: one is left, one was done by hand.
    world.refuses("/unone", 422);
    world.refuses("/untwo", 422);
    begin("u");
    assert_eq!(ask(&["cancel", "u"]).0, 0);
    let (code, stuck) = ask(&["watch", "u"]);
    assert_eq!((code, &stuck["status"]), (1, &json!("stuck")));
    assert_eq!(ask(&["show", "u"]).0, 1, "a person must look");
    assert_eq!(ask(&["skip", "u", "one"]).0, 0);
    assert_eq!(ask(&["resolve", "u", "two", "\"by hand\""]).0, 0);
    let (code, ended) = ask(&["watch", "u"]);
    assert_eq!((code, &ended["status"]), (1, &json!("compensated")));
    assert_eq!(step(&ended, "one")["compensation"]["status"], "skipped");
    assert_eq!(step(&ended, "two")["compensation"]["status"], "resolved");
    // A stuck one can also be tried again.
    begin("v");
    ask(&["cancel", "v"]);
    until(url, "v", |saga| saga["status"] == "stuck");
    world.agrees("/unone");
    world.agrees("/untwo");
    assert_eq!(ask(&["retry", "v"]).0, 0);
    let ended = until(url, "v", |saga| saga["status"] == "compensated");
    assert_eq!(step(&ended, "one")["compensation"]["status"], "done");

    // Given up: nothing is done, nothing is undone.
    let undone = world.keys("/unone").len();
    begin("a");
    let (code, given_up) = ask(&["abandon", "a"]);
    assert_eq!((code, &given_up["status"]), (0, &json!("abandoned")));
    let (code, ended) = ask(&["watch", "a"]);
    assert_eq!((code, &step(&ended, "one")["compensation"]["status"]), (1, &json!("none")));
    assert_eq!(world.keys("/unone").len(), undone);
    assert_eq!(ask(&["signal", "a", "approved"]).0, 2, "it has ended");
    for verb in ["pause", "resume", "retry", "abandon", "cancel"] {
        let (code, problem) = ask(&[verb, "none"]);
        assert_eq!((code, &problem["status"]), (2, &json!(404)), "{verb}");
        // A `/` in an id reaches the server as a part of the id.
        let (_, problem) = ask(&[verb, "none/0.0"]);
        assert_eq!(problem["title"], "There is no saga of this id", "{verb}");
    }
}

fn step_status(saga: &Value, name: &str) -> String {
    let steps = saga["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = steps.iter().find(|step| step["name"] == name);
    found.and_then(|step| step["status"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn a_mirrored_server_goes_on_when_a_copy_is_damaged_or_gone() {
    let world = Participant::new();
    let place = Place::new(&world);
    place.define("steered", &steered(&world.url));
    let served = Served::begin(place.serve_mirrored(&[]));
    assert_eq!(saga(&["start", "steered", "--key", "m", "--server", &served.url]).0, 0);
    until(&served.url, "m", waits_for_the_signal);
    served.kill();

    // Rot in the journal of either copy, in what has been acknowledged.
    for copy in [place.store(), place.mirror()] {
        let segment = copy.join("j0/seg-00000001");
        let mut bytes = std::fs::read(&segment).unwrap();
        let block = 4096..8192;
        assert!(bytes[block.clone()].iter().any(|byte| *byte != 0), "a block in use");
        bytes[block].fill(0xA5);
        std::fs::write(&segment, bytes).unwrap();
        let served = Served::begin(place.serve_mirrored(&[]));
        assert!(waits_for_the_signal(&saga(&["show", "m", "--server", &served.url]).1));
        served.kill();
        let mut verify = Command::new(PROGRAM);
        verify.arg("verify").arg(place.store()).arg("--mirror").arg(place.mirror());
        assert_eq!(verify.output().unwrap().status.code(), Some(0), "it was made good");
    }

    // A copy that is gone: refused, until a person says that it is gone for good, or makes it anew.
    std::fs::remove_dir_all(place.mirror()).unwrap();
    let refused = place.serve_mirrored(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("mirror"), "{said}");
    let served = Served::begin(place.serve_mirrored(&["--degraded"]));
    assert!(waits_for_the_signal(&saga(&["show", "m", "--server", &served.url]).1));
    assert_eq!(served.terminate(), Some(0));
    let mut mend = Command::new(PROGRAM);
    mend.arg("mend").arg(place.store()).arg("--mirror").arg(place.mirror());
    assert_eq!(mend.output().unwrap().status.code(), Some(0));

    // The new copy alone has everything.
    let served = Served::begin(place.serve_mirrored(&[]));
    assert_eq!(saga(&["signal", "m", "approved", "--server", &served.url]).0, 0);
    assert_eq!(saga(&["watch", "m", "--server", &served.url]).1["status"], "completed");
    served.kill();
    std::fs::remove_dir_all(place.store()).unwrap();
    let served = Served::begin(place.serve_mirrored(&["--degraded"]));
    assert_eq!(saga(&["show", "m", "--server", &served.url]).1["status"], "completed");
    assert_eq!(served.terminate(), Some(0));
}

#[test]
fn an_orderly_end_loses_no_step_that_is_in_flight() {
    let world = Participant::new();
    let place = Place::new(&world);
    let served = place.serve();
    let ids: Vec<String> = (0..20).map(|n| format!("t{n}")).collect();
    for id in &ids {
        assert_eq!(saga(&["start", "order", "--key", id, "--server", &served.url]).0, 0);
    }
    while world.keys("/slow").is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(served.terminate(), Some(0), "an orderly end");

    let served = place.serve();
    for id in &ids {
        until(&served.url, id, waits_for_the_signal);
        assert_eq!(saga(&["signal", id, "approved", "--server", &served.url]).0, 0);
        assert_eq!(saga(&["watch", id, "--server", &served.url]).1["status"], "completed");
    }
    for path in ["/first", "/slow", "/last"] {
        let keys = world.keys(path);
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{path}: each under its one key: {keys:?}");
    }
    assert_eq!(world.keys("/last").len(), ids.len(), "nothing was in flight there: each once");
}

#[test]
fn connections_do_not_take_the_files_that_the_store_needs() {
    let world = Participant::new();
    let place = Place::new(&world);
    place.define("big", "saga: big\nversion: 1\nsteps:\n  - signal: go\noutput: 1\n");
    // Fewer files than there are clients.
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 128; exec \"$0\" \"$@\"", PROGRAM]).args(place.command().get_args());
    let served = Served::begin(command);
    let address = served.url.strip_prefix("http://").unwrap();
    let mut first = TcpStream::connect(address).unwrap();
    let mut ask = |body: &str| {
        let head = format!(
            "POST /v1/sagas/big HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        first.write_all(head.as_bytes()).unwrap();
        first.write_all(body.as_bytes()).unwrap();
        let mut reader = BufReader::new(first.try_clone().unwrap());
        let (mut status, mut length) = (String::new(), 0);
        reader.read_line(&mut status).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim().split_once(": ") {
                Some(("content-length", text)) => length = text.parse().unwrap(),
                Some(_) => {}
                None => break,
            }
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        status
    };
    assert!(ask("1").contains("201"));
    // Not more than the system keeps for a listener that takes none.
    let idle: Vec<TcpStream> = (0..120).map(|_| TcpStream::connect(address).unwrap()).collect();
    // Enough for several new segments, each a file.
    let body = format!("\"{}\"", "x".repeat(900_000));
    for _ in 0..30 {
        let status = ask(&body);
        assert!(status.contains("201"), "{status}");
    }
    drop(idle);
    assert_eq!(served.terminate(), Some(0));
}

#[test]
fn neither_token_nor_secret_is_printed_or_kept() {
    const TOKEN: &str = "token-0123456789-of-this-test";
    const SECRET: &str = "secret-9876543210-of-this-test";
    let world = Participant::new();
    let place = Place::new(&world);
    let url = &world.url;
    place.define(
        "hidden",
        &format!(
            "saga: hidden\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: '{url}/a', headers: \
             {{Authorization: {{secret: 'env:RALLYPOINT_TEST_SECRET'}}}}}}\n    retry: {{attempts: 1}}\n"
        ),
    );
    let token = place.folder.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let (out, err) = (place.folder.path().join("out"), place.folder.path().join("err"));
    let mut command = place.command();
    command.arg("--token-file").arg(&token).env("RALLYPOINT_TEST_SECRET", SECRET).env("RUST_LOG", "trace");
    command.stderr(std::fs::File::create(&err).unwrap());
    let served = Served::begin(command);
    let token = token.display().to_string();
    let at = ["--server", &served.url, "--token-file", &token];
    let ask = |arguments: &[&str]| saga(&[arguments, &at].concat());
    let mut said = Vec::new();
    said.push(ask(&["start", "hidden", "--key", "good", "--wait", "10s"]));
    world.refuses("/a", 401);
    said.push(ask(&["start", "hidden", "--key", "refused"]));
    for _ in 0..600 {
        if step_status(&ask(&["show", "refused"]).1, "a") == "backoff" {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    said.extend([ask(&["show", "good"]), ask(&["show", "refused"]), ask(&["list"])]);
    assert_eq!(said[0].1["status"], "completed", "{said:?}");
    assert_eq!(step_status(&said[3].1, "a"), "backoff", "{said:?}");
    let (code, _) = saga(&["list", "--server", &served.url]);
    assert_eq!(code, 2, "without the token nothing is told");
    assert_eq!(served.terminate(), Some(0));
    std::fs::write(&out, format!("{said:?}")).unwrap();

    let mut files = vec![out, err];
    let mut folders = vec![place.store()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for word in [TOKEN, SECRET] {
            assert!(!bytes.windows(word.len()).any(|window| window == word.as_bytes()), "{}", file.display());
        }
    }
}

#[test]
fn what_cannot_be_served_is_named() {
    let world = Participant::new();
    let place = Place::new(&world);
    std::fs::write(place.folder.path().join("sagas/wrong.yaml"), "saga: wrong\nversion: 1\nsteps: []\n")
        .unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--segment-bytes", "8388608"]);
    command.arg("--allow-unsuitable-file-system").arg("--dir").arg(place.store());
    let output = command.arg("--sagas").arg(place.folder.path().join("sagas")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("wrong.yaml") && said.contains("steps"), "{said}");

    std::fs::remove_file(place.folder.path().join("sagas/wrong.yaml")).unwrap();
    let refused = |command: &mut Command, says: &str| {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(says), "{says}: {said}");
    };
    let link = place.folder.path().join("sagas/gone.yaml");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    refused(&mut place.command(), "No such file");
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&link, b"saga: \xFF").unwrap();
    refused(&mut place.command(), "gone.yaml");
    std::fs::write(&link, "#".repeat(300 << 10)).unwrap();
    refused(&mut place.command(), "split it");
    std::fs::remove_file(&link).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", &taken.local_addr().unwrap().to_string(), "--dir"]).arg(place.store());
    refused(&mut command, "choose another");
    let token = place.folder.path().join("token");
    refused(place.command().arg("--token-file").arg(&token), "cannot be read");
    for empty in ["", "\n", "short\n"] {
        std::fs::write(&token, empty).unwrap();
        refused(place.command().arg("--token-file").arg(&token), "holds no token");
    }

    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "0.0.0.0:0", "--dir"]).arg(place.store());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--token-file"), "{said}");
}

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

/// Requests by path, with their keys; some paths are slow.
#[derive(Clone)]
struct Participant {
    got: Arc<Mutex<Vec<(String, String)>>>,
    url: String,
}

fn answer(mut stream: TcpStream, got: &Mutex<Vec<(String, String)>>) -> Option<()> {
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
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").ok()?;
    }
}

impl Participant {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let shared = Arc::clone(&got);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let got = Arc::clone(&shared);
                thread::spawn(move || answer(stream, &got));
            }
        });
        Self { got, url }
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

    fn serve(&self) -> Served {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--segment-bytes", "8388608", "--json"]);
        command.arg("--allow-unsuitable-file-system").arg("--dir").arg(self.store());
        command.arg("--sagas").arg(self.folder.path().join("sagas"));
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).expect("one JSON object when ready");
        Served { process, url: ready["address"].as_str().unwrap().to_owned() }
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
    let mut served = place.serve();
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

    let pid = served.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(served.process.wait().unwrap().code(), Some(0), "an orderly end");
    let (code, found) = saga(&["show", "one", "--dir", &dir]);
    assert_eq!((code, &found["status"]), (0, &json!("waiting")), "{found}");
    assert_eq!(found["steps"].as_array().unwrap().len(), 3, "{found}");
    assert_eq!(saga(&["list", "--server", &served.url]).0, 2, "nobody answers");

    let served = place.serve();
    let (code, accepted) = saga(&["cancel", "one", "--server", &served.url]);
    assert_eq!(code, 0, "{accepted}");
    let (code, ended) = saga(&["watch", "one", "--server", &served.url]);
    assert_eq!((code, &ended["status"]), (1, &json!("compensated")));
    assert_eq!(world.keys("/unfirst").len(), 1);
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

    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "0.0.0.0:0", "--dir"]).arg(place.store());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--token-file"), "{said}");
}

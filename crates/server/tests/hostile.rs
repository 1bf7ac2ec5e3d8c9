//! Participants, definitions and clients that mean no good, or cannot do better: the server refuses,
//! gives up or goes on, and serves the next one.

use rallypoint_server::serve::{Running, ServeOptions, start};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A participant that writes what it is told, byte by byte as it stands, and closes.
struct Rude {
    url: String,
    /// Bytes of endless answers that somebody took.
    taken: Arc<AtomicU64>,
}

async fn misbehave(mut stream: TcpStream, elsewhere: String, taken: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut some = [0; 1024];
        let count = stream.read(&mut some).await?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&some[..count]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let simple = |media: &str, body: &[u8]| {
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        answer.extend_from_slice(body);
        answer
    };
    let endless =
        |status: &str| format!("HTTP/1.1 {status}\r\ncontent-length: 1073741824\r\n\r\n").into_bytes();
    let answer = match path.as_str() {
        "/endless" | "/endless-no" => {
            stream.write_all(&endless(if path == "/endless" { "200 OK" } else { "500 No" })).await?;
            let block = vec![b'x'; 1 << 16];
            for _ in 0..(1 << 14) {
                stream.write_all(&block).await?;
                taken.fetch_add(block.len() as u64, Ordering::SeqCst);
            }
            return Ok(());
        }
        "/silent" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{").await?;
            // Holds the connection until the other side has enough.
            let _ = stream.read(&mut [0]).await;
            return Ok(());
        }
        "/elsewhere" => {
            format!("HTTP/1.1 307 Go\r\nlocation: {elsewhere}/stolen\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .into_bytes()
        }
        "/no-text" => simple("application/json", b"{\"a\": \"\xFF\xFE\"}"),
        "/html" => simple("application/json", b"<html>no</html>"),
        "/deep" => simple("application/json", "[".repeat(200_000).as_bytes()),
        "/huge-number" => simple("application/json", b"{\"n\": 1e999}"),
        "/nonsense" => b"I speak no HTTP\r\n\r\n".to_vec(),
        "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}".to_vec(),
        "/huge-head" => {
            let mut answer = b"HTTP/1.1 200 OK\r\nx: ".to_vec();
            answer.resize(4 << 20, b'x');
            answer.extend_from_slice(b"\r\n\r\n");
            answer
        }
        _ => simple("application/json", b"{\"fine\": true}"),
    };
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

impl Rude {
    async fn new(elsewhere: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let taken = Arc::new(AtomicU64::new(0));
        let (counted, elsewhere) = (Arc::clone(&taken), elsewhere.to_owned());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(misbehave(stream, elsewhere.clone(), Arc::clone(&counted)));
            }
        });
        Self { url, taken }
    }
}

struct Api {
    running: Running,
    url: String,
    client: reqwest::Client,
}

impl Api {
    async fn open(dir: &Path) -> Self {
        let options = ServeOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            allow_unsuitable_file_system: true,
            segment_len: Some(8 << 20),
            ..ServeOptions::new(dir.join("store"))
        };
        let running = start(options).await.unwrap();
        let url = format!("http://{}", running.address());
        Self { running, url, client: reqwest::Client::new() }
    }

    async fn define(&self, name: &str, text: impl Into<reqwest::Body>) -> (u16, Value) {
        let request = self.client.put(format!("{}/v1/definitions/{name}", self.url));
        let answer = request.header("content-type", "application/yaml").body(text).send().await.unwrap();
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
    }

    async fn run(&self, name: &str, input: &Value) -> Value {
        let request = self.client.post(format!("{}/v1/sagas/{name}?wait=60s", self.url));
        let answer = request.header("content-type", "application/json").body(input.to_string()).send();
        serde_json::from_str(&answer.await.unwrap().text().await.unwrap()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rude_participant_harms_its_own_saga_alone() {
    let dir = tempfile::tempdir().unwrap();
    let stranger = Rude::new("").await;
    let world = Rude::new(&stranger.url).await;
    let api = Api::open(dir.path()).await;
    let url = &world.url;
    let text = format!(
        "saga: rude\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: '{url}/{{{{ input }}}}', headers: \
         {{Authorization: Bearer of-this-step}}}}\n    timeout: 1s\n    retry: {{attempts: 2, base: 1ms, cap: 1ms}}\n"
    );
    assert_eq!(api.define("rude", text).await.0, 201);
    let run = async |path: &str| api.run("rude", &json!(path)).await;
    let failed = |saga: &Value| (saga["status"].clone(), saga["error"]["kind"].clone());

    // Too much: no more of it is taken than can be kept and what lies in the buffers between.
    let saga = run("endless").await;
    assert_eq!(saga["status"], "stuck", "{saga:#}");
    assert!(saga["error"]["message"].as_str().unwrap().contains("cannot be kept"), "{saga:#}");
    let saga = run("endless-no").await;
    assert_eq!(failed(&saga), (json!("compensated"), json!("transient")));
    assert!(world.taken.load(Ordering::SeqCst) < 64 << 20, "{} bytes", world.taken.load(Ordering::SeqCst));
    assert!(saga.to_string().len() < 100_000, "little of a refusal is kept");

    // Never done: the step's own patience ends it, and it may have acted.
    let saga = run("silent").await;
    assert_eq!(failed(&saga), (json!("compensated"), json!("timed_out")), "{saga:#}");
    assert_eq!(saga["steps"][0]["may_have_acted"], true);

    // Not followed: the headers of the call stay with whom they were meant for.
    let saga = run("elsewhere").await;
    assert_eq!(failed(&saga), (json!("compensated"), json!("transient")), "{saga:#}");
    assert!(saga["error"]["message"].as_str().unwrap().contains("307"), "{saga:#}");

    for broken in ["nonsense", "short", "huge-head"] {
        let saga = run(broken).await;
        assert_eq!(failed(&saga), (json!("compensated"), json!("transient")), "{broken}: {saga:#}");
    }
    // What says that it is JSON and is none is kept as a text.
    for (path, says) in
        [("no-text", "\u{FFFD}"), ("html", "<html>"), ("deep", "[["), ("huge-number", "1e999")]
    {
        let saga = run(path).await;
        assert_eq!(saga["status"], "completed", "{path}");
        assert!(saga["output"]["a"].as_str().unwrap().contains(says), "{path}");
    }
    assert_eq!(run("fine").await["output"]["a"], json!({"fine": true}));
    assert!(api.running.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_is_not_there_has_not_acted() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(dir.path()).await;
    // A port that nobody listens on any more, and a name that is reserved for never being one.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, url) in [("port", format!("http://{gone}/a")), ("name", "http://nobody.invalid/a".to_owned())]
    {
        let text = format!(
            "saga: {name}\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: '{url}'}}\n    undo: {{method: POST, \
             url: '{url}'}}\n    retry: {{attempts: 2, base: 1ms, cap: 1ms}}\n"
        );
        assert_eq!(api.define(name, text).await.0, 201);
        let saga = api.run(name, &Value::Null).await;
        assert_eq!((&saga["status"], &saga["error"]["kind"]), (&json!("compensated"), &json!("transient")));
        let step = &saga["steps"][0];
        assert_eq!((&step["attempts"], &step["may_have_acted"]), (&json!(2), &json!(false)), "{saga:#}");
        assert_eq!(step["compensation"]["status"], "none", "there is nothing to undo");
    }
    assert!(api.running.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_is_a_bomb_is_refused_and_costs_little() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(dir.path()).await;
    let bomb = {
        let mut text = "saga: bomb\nversion: 1\nvars:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = level - 1;
            let all = vec![format!("*a{below}"); 10].join(", ");
            text += &format!("  a{level}: &a{level} [{all}]\n");
        }
        text + "steps:\n  - signal: go\n"
    };
    let with = |json: &str| {
        format!(
            "saga: bomb\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: 'http://h/', json: {json}}}\n"
        )
    };
    for (what, text, status) in [
        ("aliases", bomb, 422),
        ("flow", with(&"[".repeat(50_000)), 422),
        (
            "block",
            format!(
                "saga: bomb\nversion: 1\nvars:\n{}",
                (1..600).map(|n| " ".repeat(n) + "a:\n").collect::<String>()
            ),
            422,
        ),
        ("long", with(&format!("'{}'", "x".repeat(300 << 10))), 409),
        ("too long", "#".repeat((1 << 20) + 1), 413),
        ("brackets", with(&format!("'{{{{ {}1{} }}}}'", "(".repeat(5_000), ")".repeat(5_000))), 422),
        ("nothing", String::new(), 422),
        ("two", "saga: bomb\nversion: 1\nsteps: [{signal: go}]\n---\nsaga: bomb\n".to_owned(), 422),
        ("tabs", "saga: bomb\nversion: 1\nsteps:\n\t- signal: go\n".to_owned(), 422),
        ("steps", format!("saga: bomb\nversion: 1\nsteps:\n{}", "  - sleep: 1ms\n".repeat(1_001)), 422),
    ] {
        let (found, problem) = api.define("bomb", text).await;
        assert_eq!(found, status, "{what}: {:.400}", problem.to_string());
        assert!(problem.to_string().len() < 1 << 20, "{what}: an answer of a size that can be read");
    }
    // What they come to is found when they are put, or when a saga runs: that one stops.
    for (version, text) in [
        "'{{ \"x\" * 99999999999 }}'",
        "'{{ \"x\" * 99999999 }}'",
        "'{{ [0] * 9999999 }}'",
        "'a {{ [0] * 9999999 }}'",
        "'{{ range(99999999999)|list }}'",
        "'{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}'",
    ]
    .iter()
    .enumerate()
    {
        let text = with(text).replace("version: 1", &format!("version: {}", version + 1));
        let (found, problem) = api.define("bomb", text).await;
        if found == 422 {
            assert!(problem["detail"].as_str().unwrap().contains("comes to more than"), "{problem}");
            continue;
        }
        assert_eq!(found, 201, "{problem}");
        let saga = api.run("bomb", &Value::Null).await;
        assert_eq!(saga["status"], "stuck", "{:.400}", saga.to_string());
        assert!(
            saga["error"]["message"].as_str().unwrap().contains("step \"a\""),
            "{:.400}",
            saga.to_string()
        );
    }
    let (found, problem) = api.define("bomb", b"saga: \xFF\n".to_vec()).await;
    assert_eq!(found, 400, "{problem}");
    assert!(api.running.stop().await);
}

/// Sends bytes as they are and gives the first line of the answer.
async fn raw(api: &Api, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.url.strip_prefix("http://").unwrap()).await.unwrap();
    // It may be cut off in the middle.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_none_is_refused_and_the_next_one_served() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(dir.path()).await;
    assert_eq!(api.define("s", "saga: s\nversion: 1\nsteps:\n  - signal: go\n").await.0, 201);
    let post = |length: usize, body: &[u8]| {
        let mut bytes = format!(
            "POST /v1/sagas/s HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: \
             {length}\r\n\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    let head = |more: &str| {
        format!("GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{more}\r\n").into_bytes()
    };
    for (what, bytes, says) in [
        ("no HTTP", b"hello\r\n\r\n".to_vec(), "400"),
        ("another protocol", b"GET /livez FTP/1.1\r\n\r\n".to_vec(), "400"),
        ("a huge header", head(&format!("x: {}\r\n", "x".repeat(1 << 20))), "431"),
        ("many headers", head(&"x: y\r\n".repeat(1_000)), "431"),
        ("no UTF-8", post(4, b"\"\xFF\xFE\""), "400"),
        ("half a character", post(8, b"\"\\ud800\""), "400"),
        ("deep", post(100_000, "[".repeat(100_000).as_bytes()), "400"),
        ("a number that is none", post(5, b"1e999"), "400"),
        ("too long", post((1 << 20) + 1, &vec![b' '; (1 << 20) + 1]), "413"),
        ("said to be too long", post(1 << 40, b""), "413"),
        ("a good one", post(2, b"{}"), "201"),
    ] {
        let said = raw(&api, &bytes).await;
        assert!(said.starts_with(&format!("HTTP/1.1 {says}")), "{what}: {said:?}");
    }
    // An id of a child has a `/`; written %2F it is one part of the path.
    for (verb, path) in [
        ("GET", "c%2F0.0"),
        ("GET", "c%2f0.0?wait=1ms"),
        ("POST", "c%2F0.0/cancel"),
        ("POST", "c%2F0.0/restart?from=a%2Fb"),
        ("POST", "c%2F0.0/signals/go%2F"),
        ("POST", "c%2F0.0/steps/a%2Fb/skip"),
        ("POST", "c%2F0.0/steps/0/resolve"),
    ] {
        let request = api.client.request(verb.parse().unwrap(), format!("{}/v1/sagas/{path}", api.url));
        let answer = request.send().await.unwrap();
        let problem: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(problem["title"], "There is no saga of this id", "{verb} {path}: {problem}");
    }
    let key = api.client.post(format!("{}/v1/sagas/s", api.url)).header("idempotency-key", "a b");
    assert_eq!(key.send().await.unwrap().status().as_u16(), 201);
    let found = api.client.get(format!("{}/v1/sagas/a%3D20b", api.url)).send().await.unwrap();
    assert_eq!(found.status().as_u16(), 200, "an id may be written with more percents than it needs");
    assert!(api.running.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sagas_at_once_are_all_carried_out_or_turned_away() {
    const SAGAS: usize = 3_000;
    let dir = tempfile::tempdir().unwrap();
    let world = Rude::new("").await;
    let api = Api::open(dir.path()).await;
    let url = &world.url;
    let text = format!(
        "saga: many\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: '{url}/fine'}}\n    retry: {{base: 1ms, cap: \
         100ms, attempts: 100}}\n"
    );
    assert_eq!(api.define("many", text).await.0, 201);
    let ask = async |n: usize| {
        let request = api.client.post(format!("{}/v1/sagas/many", api.url));
        request.header("idempotency-key", n.to_string()).send().await.unwrap().status().as_u16()
    };
    let statuses = futures_util::future::join_all((0..SAGAS).map(ask)).await;
    assert!(statuses.iter().all(|status| [201, 503].contains(status)), "{statuses:?}");
    let begun = statuses.iter().filter(|status| **status == 201).count();
    assert!(begun > 0);
    loop {
        let metrics = api.client.get(format!("{}/metrics", api.url)).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        if metrics.contains(&format!("rallypoint_sagas{{name=\"many\",status=\"completed\"}} {begun}\n")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(api.running.stop().await);
}

//! The server in this process, on a real store and a free port, against real participants over HTTP.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rallypoint_server::serve::{Running, ServeError, ServeOptions, start};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// One request that the participant got.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    key: String,
    key_of: Option<String>,
    authorization: Option<String>,
    body: Value,
}

/// What a participant answers next at a path, and what it got so far.
#[derive(Default)]
struct World {
    got: Vec<Got>,
    answers: BTreeMap<String, Vec<(u16, Option<&'static str>)>>,
}

#[derive(Clone)]
struct Participant {
    world: Arc<Mutex<World>>,
    url: String,
}

async fn answer(
    State(world): State<Arc<Mutex<World>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut world = world.lock().unwrap();
    world.got.push(Got {
        path: uri.path().to_owned(),
        key: header("idempotency-key").unwrap_or_default(),
        key_of: header("idempotency-key-of"),
        authorization: header("authorization"),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    });
    let script = world.answers.get_mut(uri.path()).filter(|script| !script.is_empty());
    let (status, wait) = script.map_or((200, None), |script| script.remove(0));
    let answer = json!({ "at": uri.path(), "status": status }).to_string();
    let mut response = (StatusCode::from_u16(status).unwrap(), answer).into_response();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    if let Some(wait) = wait {
        response.headers_mut().insert("retry-after", wait.parse().unwrap());
    }
    response
}

impl Participant {
    async fn new() -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&world));
        tokio::spawn(axum::serve(listener, router).into_future());
        Self { world, url }
    }

    fn answers(&self, path: &str, script: &[(u16, Option<&'static str>)]) {
        self.world.lock().unwrap().answers.insert(path.into(), script.to_vec());
    }

    fn got(&self) -> Vec<Got> {
        self.world.lock().unwrap().got.clone()
    }

    fn paths(&self) -> Vec<String> {
        self.got().into_iter().map(|got| got.path).collect()
    }

    /// Reserve, charge (with undos), then ship behind a signal if `signal`.
    fn definition(&self, name: &str, version: u32, signal: bool) -> String {
        let url = &self.url;
        let wait = if signal { "  - signal: approved\n" } else { "" };
        format!(
            "saga: {name}\nversion: {version}\nvars: {{base: '{url}'}}\nsteps:\n\
             \x20 - name: reserve\n    atomic: true\n\
             \x20   call: {{method: POST, url: '{{{{ vars.base }}}}/reserve', json: {{order: '{{{{ input.order }}}}'}}}}\n\
             \x20   undo: {{method: POST, url: '{{{{ vars.base }}}}/release', json: {{order: '{{{{ input.order }}}}', was: '{{{{ steps.reserve.output.at }}}}'}}}}\n\
             \x20   retry: {{base: 5ms, cap: 10ms}}\n\
             \x20 - parallel:\n\
             \x20     - name: label\n        call: {{method: POST, url: '{url}/label'}}\n        undo: {{method: POST, url: '{url}/unlabel'}}\n\
             \x20     - name: charge\n        call: {{method: POST, url: '{url}/charge', json: {{cents: '{{{{ input.cents }}}}'}}}}\n\
             \x20       undo: {{method: POST, url: '{url}/refund'}}\n        retry: {{base: 5ms, cap: 10ms}}\n\
             {wait}\
             \x20 - sleep: 1ms\n\
             \x20 - name: ship\n    call: {{method: POST, url: '{url}/ship'}}\n    retry: {{attempts: 2, base: 5ms, cap: 10ms}}\n\
             output:\n  from: '{{{{ steps.reserve.output.at }}}}'\n  cents: '{{{{ input.cents }}}}'\n"
        )
    }
}

struct Api {
    running: Option<Running>,
    url: String,
    client: reqwest::Client,
}

fn options(dir: &Path) -> ServeOptions {
    ServeOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        allow_unsuitable_file_system: true,
        segment_len: Some(8 << 20),
        ..ServeOptions::new(dir.join("store"))
    }
}

impl Api {
    async fn open(options: ServeOptions) -> Self {
        let running = start(options).await.unwrap();
        let url = format!("http://{}", running.address());
        Self { running: Some(running), url, client: reqwest::Client::new() }
    }

    async fn stop(mut self) -> bool {
        self.running.take().unwrap().stop().await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let media = response.headers().get("content-type").map(|media| media.to_str().unwrap().to_owned());
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default();
        if status >= 400 {
            assert_eq!(media.as_deref(), Some("application/problem+json"), "{status} {body}");
            assert_eq!(body["status"], status, "{body}");
            for field in ["type", "title", "detail", "fault", "advice"] {
                assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {body}");
            }
        }
        (status, body)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.client.get(format!("{}{path}", self.url))).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = if body.is_null() {
            request
        } else {
            request.header("content-type", "application/json").body(body.to_string())
        };
        self.send(request).await
    }

    async fn start(&self, name: &str, key: &str, wait: &str, input: Value) -> (u16, Value) {
        let request = self.client.post(format!("{}/v1/sagas/{name}{wait}", self.url));
        let request = request.header("idempotency-key", key).header("content-type", "application/json");
        self.send(request.body(input.to_string())).await
    }

    async fn define(&self, name: &str, text: String) -> (u16, Value) {
        let request = self.client.put(format!("{}/v1/definitions/{name}", self.url));
        self.send(request.header("content-type", "application/yaml").body(text)).await
    }

    /// Waits until the saga is as `test` says.
    async fn until(&self, id: &str, test: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..2000 {
            let (_, saga) = self.get(&format!("/v1/sagas/{id}")).await;
            if test(&saga) {
                return saga;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came to that: {:#}", self.get(&format!("/v1/sagas/{id}")).await.1);
    }
}

fn step<'a>(saga: &'a Value, name: &str) -> &'a Value {
    saga["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_saga_runs_and_its_key_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    assert_eq!(api.define("order", world.definition("order", 1, false)).await.0, 201);
    assert_eq!(api.define("order", world.definition("order", 1, false)).await.0, 200);

    let input = json!({"order": "o-1", "cents": 4200});
    let (status, saga) = api.start("order", "o-1", "?wait=20s", input.clone()).await;
    assert_eq!((status, &saga["status"]), (200, &json!("completed")), "{saga:#}");
    assert_eq!(saga["output"], json!({"from": "/reserve", "cents": 4200}));
    assert_eq!(saga["input"], input);
    let got = world.got();
    assert_eq!(got[0].body, json!({"order": "o-1"}));
    assert_eq!(got.last().unwrap().path, "/ship");
    assert!(got[0].key.ends_with(".o-1.0.0.reserve.run"), "{}", got[0].key);
    assert_eq!(step(&saga, "charge")["output"], json!({"at": "/charge", "status": 200}));
    assert_eq!(step(&saga, "ship")["compensation"]["status"], "none");

    // The same key and input is the same saga, in whatever order the fields stand.
    let (status, again) = api.start("order", "o-1", "", json!({"cents": 4200, "order": "o-1"})).await;
    assert_eq!((status, &again["id"]), (200, &json!("o-1")));
    assert_eq!(world.got().len(), got.len(), "nothing ran again");
    let (status, problem) = api.start("order", "o-1", "", json!({"order": "other"})).await;
    assert_eq!((status, &problem["fault"]), (409, &json!("caller")));
    // Any key text will do; without one the id is random.
    let (status, odd) = api.start("order", "a/b ?#%", "?wait=20s", input.clone()).await;
    assert_eq!((status, &odd["id"]), (200, &json!("a=2Fb=20=3F=23=25")));
    let (status, fresh) = api.post("/v1/sagas/order", input.clone()).await;
    assert_eq!(status, 201);
    assert_ne!(fresh["id"], "o-1");
    assert_eq!(api.get("/v1/sagas/a=2Fb=20=3F=23=25").await.0, 200);
    assert!(api.stop().await, "an orderly end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_compensated_with_the_keys_of_what_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, false)).await;
    world.answers("/ship", &[(422, None)]);
    let (status, saga) = api.start("order", "bad", "?wait=20s", json!({"order": 1, "cents": 2})).await;
    assert_eq!((status, &saga["status"]), (200, &json!("compensated")), "{saga:#}");
    assert_eq!(saga["error"]["kind"], "business");
    assert_eq!(saga["error"]["data"]["status"], 422);
    let got = world.got();
    let run = |path: &str| got.iter().find(|got| got.path == path).unwrap();
    for (undo, of) in [("/release", "/reserve"), ("/unlabel", "/label"), ("/refund", "/charge")] {
        assert_eq!(run(undo).key_of.as_ref(), Some(&run(of).key), "{undo}");
        assert!(run(undo).key.ends_with(".undo"));
    }
    assert_eq!(run("/release").body, json!({"order": 1, "was": "/reserve"}));
    assert_eq!(got.last().unwrap().path, "/release", "in reverse order");
    assert_eq!(step(&saga, "reserve")["compensation"]["status"], "done");
    assert_eq!(step(&saga, "ship")["compensation"]["status"], "none", "a refusal did not act");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_tried_again_under_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, false)).await;
    world.answers("/reserve", &[(503, Some("1")), (500, None)]);
    let (_, saga) = api.start("order", "t", "", json!({"order": 1, "cents": 2})).await;
    assert_eq!(saga["id"], "t");
    let waiting = api.until("t", |saga| saga["steps"][0]["status"] == "backoff").await;
    let due = waiting["steps"][0]["due_at"].as_str().unwrap();
    assert!(due > waiting["updated_at"].as_str().unwrap(), "{waiting:#}");
    let saga = api.until("t", |saga| saga["status"] == "completed").await;
    assert_eq!(step(&saga, "reserve")["attempts"], 3);
    let keys: Vec<String> =
        world.got().into_iter().filter(|got| got.path == "/reserve").map(|got| got.key).collect();
    assert!(keys.len() == 3 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_rejects_us_makes_an_alarm_and_a_person_retries() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, false)).await;
    world.answers("/ship", &[(401, None); 1000]);
    api.start("order", "m", "", json!({"order": 1, "cents": 2})).await;
    let saga =
        api.until("m", |saga| saga["steps"].as_array().unwrap().iter().any(|s| s["alarm"] == true)).await;
    assert_eq!(step(&saga, "ship")["error"]["kind"], "misconfigured");
    assert_eq!(step(&saga, "reserve")["compensation"]["status"], "none", "nothing is undone");
    // The alarm is counted, and in the durable stream of events, which can be resumed.
    let mut events = api.client.get(format!("{}/v1/events", api.url)).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("event: alarm") || !text.ends_with("\n\n") {
        text.push_str(std::str::from_utf8(&events.chunk().await.unwrap().unwrap()).unwrap());
    }
    let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    let after = api.client.get(format!("{}/v1/events", api.url)).header("last-event-id", ids[0]);
    let mut later = after.send().await.unwrap();
    let more = later.chunk().await.unwrap().unwrap();
    let more = std::str::from_utf8(&more).unwrap();
    let first = more.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert_eq!(first, ids[1], "{text}\n---\n{more}");
    let mut metrics = String::new();
    for _ in 0..500 {
        metrics = api.client.get(format!("{}/metrics", api.url)).send().await.unwrap().text().await.unwrap();
        if !metrics.contains("rallypoint_alarms_total 0") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!metrics.contains("rallypoint_alarms_total 0"), "{metrics}");
    assert!(metrics.contains("rallypoint_sagas{name=\"order\",status=\"waiting\"}"), "{metrics}");

    world.answers("/ship", &[]);
    // It may be about to try by itself at this instant.
    for _ in 0..2000 {
        let (status, _) = api.post("/v1/sagas/m/retry", Value::Null).await;
        assert!([200, 409].contains(&status), "{status}");
        if api.get("/v1/sagas/m").await.1["status"] == "completed" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    api.until("m", |saga| saga["status"] == "completed").await;
    drop((events, later));
    assert!(api.stop().await, "streams end with the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_signal_pause_cancel_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, true)).await;
    let input = || json!({"order": 1, "cents": 2});
    let signal = |saga: &Value| {
        saga["steps"].as_array().unwrap().iter().any(|s| s["kind"] == "signal" && s["status"] == "waiting")
    };

    api.start("order", "s", "", input()).await;
    api.until("s", signal).await;
    let (status, accepted) = api.post("/v1/sagas/s/pause", Value::Null).await;
    assert_eq!((status, &accepted["status"]), (200, &json!("paused")));
    assert_eq!(api.post("/v1/sagas/s/signals/approved", json!({"by": "me"})).await.0, 200);
    assert_eq!(api.get("/v1/sagas/s").await.1["status"], "paused");
    assert!(!world.paths().contains(&"/ship".to_owned()));
    assert_eq!(api.post("/v1/sagas/s/resume", Value::Null).await.0, 200);
    let saga = api.until("s", |saga| saga["status"] == "completed").await;
    assert_eq!(step(&saga, "approved")["output"], json!({"by": "me"}));
    assert_eq!(api.post("/v1/sagas/s/resume", Value::Null).await.0, 409);

    // Restart from a step: under another generation, so that its keys are new.
    let (status, problem) = api.post("/v1/sagas/s/restart?from=nothing", Value::Null).await;
    assert_eq!((status, &problem["title"]), (404, &json!("The saga has no such step")));
    assert_eq!(api.post("/v1/sagas/s/restart?from=ship", Value::Null).await.0, 200);
    let saga = api.until("s", |saga| saga["status"] == "completed" && saga["generation"] == 1).await;
    assert_eq!(step(&saga, "ship")["status"], "done");
    let ships: Vec<String> =
        world.got().into_iter().filter(|got| got.path == "/ship").map(|got| got.key).collect();
    assert!(ships.len() == 2 && ships[0] != ships[1], "{ships:?}");

    api.start("order", "c", "", input()).await;
    api.until("c", signal).await;
    assert_eq!(api.post("/v1/sagas/c/cancel", Value::Null).await.0, 200);
    let saga = api.until("c", |saga| saga["status"] == "compensated").await;
    assert_eq!(saga["error"]["kind"], "cancelled");
    assert_eq!(api.post("/v1/sagas/c/cancel", Value::Null).await.0, 409);

    // An undo that is refused makes it stuck: skip, resolve or abandon.
    world.answers("/refund", &[(422, None)]);
    world.answers("/unlabel", &[(422, None)]);
    api.start("order", "u", "", input()).await;
    api.until("u", signal).await;
    api.post("/v1/sagas/u/cancel", Value::Null).await;
    let saga = api.until("u", |saga| saga["status"] == "stuck").await;
    assert_eq!(step(&saga, "charge")["compensation"]["status"], "failed");
    assert_eq!(step(&saga, "charge")["alarm"], true);
    assert_eq!(api.post("/v1/sagas/u/steps/charge/skip", Value::Null).await.0, 200);
    assert_eq!(api.post("/v1/sagas/u/steps/label/resolve", json!("by hand")).await.0, 200);
    let saga = api.until("u", |saga| saga["status"] == "compensated").await;
    assert_eq!(step(&saga, "charge")["compensation"]["status"], "skipped");
    assert_eq!(step(&saga, "label")["compensation"]["status"], "resolved");
    assert_eq!(api.post("/v1/sagas/u/steps/label/skip", Value::Null).await.0, 409);

    api.start("order", "a", "", input()).await;
    assert_eq!(api.post("/v1/sagas/a/abandon", Value::Null).await.0, 200);
    assert_eq!(api.get("/v1/sagas/a?wait=5s").await.1["status"], "abandoned");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_have_pages() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, true)).await;
    for n in 0..7 {
        api.start("order", &format!("n{n}"), "", json!({"order": n, "cents": 2})).await;
    }
    api.post("/v1/sagas/n3/abandon", Value::Null).await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = api.get(&format!("/v1/sagas?name=order&limit=3{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        found.extend(page["sagas"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["n6", "n5", "n4", "n3", "n2", "n1", "n0"]);
    let (_, page) = api.get("/v1/sagas?status=abandoned").await;
    assert_eq!(page["sagas"].as_array().unwrap().len(), 1);
    assert_eq!(api.get("/v1/sagas?name=other").await.1, json!({"sagas": [], "next_cursor": null}));
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_error_is_a_problem_document() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    api.define("order", world.definition("order", 1, true)).await;
    for (path, expected) in [
        ("/", 404),
        ("/v1", 404),
        ("/v1/sagas/none", 404),
        ("/v1/sagas/none?wait=1s", 404),
        ("/v1/sagas/%FF", 400),
        ("/v1/sagas/none?wait=soon", 400),
        ("/v1/sagas/none?what=1", 400),
        ("/v1/sagas?limit=0", 400),
        ("/v1/sagas?limit=many", 400),
        ("/v1/sagas?status=unknown", 400),
        ("/v1/sagas?cursor=none", 400),
        ("/v1/sagas/order/cancel", 405),
    ] {
        assert_eq!(api.get(path).await.0, expected, "{path}");
    }
    assert_eq!(api.get(&format!("/v1/sagas/{}", "x".repeat(300))).await.0, 400);
    for path in
        ["cancel", "pause", "resume", "retry", "abandon", "signals/x", "steps/0/skip", "steps/0/resolve"]
    {
        assert_eq!(api.post(&format!("/v1/sagas/none/{path}"), Value::Null).await.0, 404, "{path}");
    }
    let (status, problem) = api.post("/v1/sagas/none/restart", Value::Null).await;
    assert_eq!(status, 400, "{problem}");
    let (status, problem) = api.post("/v1/sagas/unknown", json!({})).await;
    assert_eq!((status, &problem["title"]), (404, &json!("There is no definition of this name")));

    let post = |media: &'static str, body: Vec<u8>| {
        let request = api.client.post(format!("{}/v1/sagas/order", api.url));
        api.send(request.header("content-type", media).body(body))
    };
    assert_eq!(post("application/json", b"{".to_vec()).await.0, 400);
    assert_eq!(post("text/plain", b"{}".to_vec()).await.0, 415);
    assert_eq!(post("application/json", vec![b' '; (1 << 20) + 1]).await.0, 413);
    let request = api.client.post(format!("{}/v1/sagas/order", api.url)).header("idempotency-key", " ");
    assert_eq!(api.send(request).await.0, 400);
    let head = api.client.delete(format!("{}/v1/sagas", api.url)).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["allow"].to_str().unwrap()), (405, "GET,HEAD"));
    let events = api.client.get(format!("{}/v1/events", api.url)).header("last-event-id", "x");
    assert_eq!(api.send(events).await.0, 400);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_one_definition_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let folder = dir.path().join("sagas");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("order.yaml"), world.definition("order", 1, true)).unwrap();
    std::fs::write(folder.join("README.md"), "no definition").unwrap();
    let with_folder = || ServeOptions { sagas: Some(folder.clone()), ..options(dir.path()) };
    let api = Api::open(with_folder()).await;
    api.start("order", "old", "", json!({"order": 1, "cents": 2})).await;
    api.until("old", |saga| saga["steps"].as_array().unwrap().len() == 4).await;
    let (status, problem) = api.define("order", world.definition("order", 1, false)).await;
    assert_eq!((status, &problem["title"]), (409, &json!("This version is another definition")));
    assert_eq!(api.define("order", world.definition("order", 2, false)).await.0, 201);
    let (_, list) = api.get("/v1/definitions").await;
    let versions: Vec<&Value> =
        list["definitions"][0]["versions"].as_array().unwrap().iter().map(|v| &v["version"]).collect();
    assert_eq!(versions, [1, 2]);

    let (status, problem) = api.define("order", world.definition("other", 1, false)).await;
    assert_eq!(status, 422, "{problem}");
    let wrong =
        "saga: order\nversion: 3\nsteps:\n  - name: a\n    call: {method: GET, url: nowhere}\n".to_owned();
    let (status, problem) = api.define("order", wrong).await;
    assert_eq!(status, 422);
    let finding = &problem["findings"][0];
    assert!(
        finding["place"].as_str().unwrap().contains("call.url") && finding["hint"].is_string(),
        "{problem}"
    );
    let (status, problem) = api.define("order", "saga: order\nversion: [\n".to_owned()).await;
    assert_eq!(status, 422);
    assert!(problem["findings"][0]["place"].as_str().unwrap().starts_with("order:"), "{problem}");
    assert!(api.stop().await);

    // Another process: the saga goes on with the version it began with, new ones take the newest.
    let api = Api::open(with_folder()).await;
    api.post("/v1/sagas/old/signals/approved", Value::Null).await;
    let old = api.until("old", |saga| saga["status"] == "completed").await;
    assert_eq!(old["version"], 1);
    let (_, new) = api.start("order", "new", "?wait=20s", json!({"order": 1, "cents": 2})).await;
    assert_eq!((&new["version"], &new["status"]), (&json!(2), &json!("completed")));
    assert!(api.stop().await);

    // A file that changed without its version: the server does not start, and names it.
    std::fs::write(folder.join("order.yaml"), world.definition("order", 1, false)).unwrap();
    let error = start(with_folder()).await.err().expect("it must not start");
    assert!(matches!(error, ServeError::Definition { .. }));
    let text = error.to_string();
    assert!(text.contains("order.yaml") && text.contains("higher version"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_is_needed_and_shown_nowhere() {
    const TOKEN: &str = "a-token-of-this-test-0123456789";
    let dir = tempfile::tempdir().unwrap();
    let everywhere = ServeOptions { listen: "0.0.0.0:0".parse().unwrap(), ..options(dir.path()) };
    let error = start(everywhere.clone()).await.err().expect("it must not listen there without a token");
    assert!(matches!(error, ServeError::Exposed(_)) && error.to_string().contains("--token-file"), "{error}");

    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let running = start(ServeOptions { token_file: Some(file), ..everywhere }).await.unwrap();
    let url = format!("http://127.0.0.1:{}", running.address().port());
    let api = Api { running: Some(running), url, client: reqwest::Client::new() };
    assert_eq!(api.get("/livez").await.0, 200);
    assert_eq!(api.get("/readyz").await.0, 200);
    for path in ["/v1/sagas", "/metrics", "/openapi.json", "/nowhere"] {
        let (status, problem) = api.get(path).await;
        assert_eq!(status, 401, "{path}");
        assert!(!problem.to_string().contains(TOKEN));
        let wrong =
            api.client.get(format!("{}{path}", api.url)).bearer_auth("a-token-of-this-test-012345678");
        assert_eq!(api.send(wrong).await.0, 401, "{path}");
    }
    let right = api.client.get(format!("{}/v1/sagas", api.url)).bearer_auth(TOKEN);
    assert_eq!(api.send(right).await.0, 200);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_reach_the_participant_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    // Any variable that is there: tests cannot set one without a race.
    let secret = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let url = &world.url;
    let text = format!(
        "saga: s\nversion: 1\nsteps:\n  - name: a\n    call:\n      method: GET\n      url: {url}/a\n      \
         headers: {{Authorization: {{secret: 'env:CARGO_MANIFEST_DIR'}}}}\n"
    );
    assert_eq!(api.define("s", text).await.0, 201);
    let (_, saga) = api.start("s", "s", "?wait=20s", Value::Null).await;
    assert_eq!(saga["status"], "completed");
    assert_eq!(world.got()[0].authorization, Some(secret.clone()));
    assert!(!saga.to_string().contains(&secret));
    api.stop().await;
    for entry in walk(&dir.path().join("store")) {
        let bytes = std::fs::read(entry).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

/// A saga of two steps, `more` added to the second.
fn two_steps(url: &str, more: &str) -> String {
    format!(
        "saga: two\nversion: 1\nsteps:\n  - name: first\n    call: {{method: POST, url: '{url}/first'}}\n    \
         undo: {{method: DELETE, url: '{url}/first/{{{{ input.id }}}}'}}\n  - name: second\n    {more}\n    retry: \
         {{base: 5ms, cap: 10ms}}\n    undo_attempts: 2\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_filled_in_stops_the_saga_and_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    let url = &world.url;
    let text = two_steps(url, &format!("call: {{method: POST, url: '{url}/second/{{{{ input.sku }}}}'}}"));
    assert_eq!(api.define("two", text).await.0, 201);
    for (id, sku) in [("none", Value::Null), ("dots", json!("..")), ("list", json!([1]))] {
        api.start("two", id, "", json!({"id": "a/b", "sku": sku})).await;
        let saga = api.until(id, |saga| saga["status"] == "stuck").await;
        let why = saga["error"]["message"].as_str().unwrap();
        assert!(why.contains("step \"second\"") && why.contains("input.sku"), "{why}");
    }
    assert_eq!(world.paths(), ["/first", "/first", "/first"]);
    // A person decides; what is inserted is one segment.
    assert_eq!(api.post("/v1/sagas/dots/cancel", Value::Null).await.0, 200);
    api.until("dots", |saga| saga["status"] == "compensated").await;
    assert_eq!(world.paths().last().unwrap(), "/first/a%2Fb");
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_answer_means_what_the_table_says_unless_the_definition_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let world = Participant::new().await;
    let api = Api::open(options(dir.path())).await;
    let url = &world.url;
    let call = format!("call: {{method: POST, url: '{url}/second'}}");
    let step = format!(
        "{call}\n    undo: {{method: POST, url: '{url}/unsecond', status: {{business: [404], done: [418]}}}}\n    \
         status: {{done: [404], business: [503], misconfigured: [422], transient: [402]}}"
    );
    let third = format!("  - name: third\n    call: {{method: POST, url: '{url}/third'}}\n");
    let two = two_steps(url, &step) + &third;
    assert_eq!(api.define("two", two.clone()).await.0, 201);
    let run = async |id: &str, second: &[(u16, Option<&'static str>)], until: &str| {
        world.answers("/second", second);
        let (status, saga) = api.start("two", id, "", json!({"id": id})).await;
        assert!(status == 201 || status == 200, "{saga}");
        api.until(id, |saga| saga["status"] == until).await
    };
    // Transient, all of them; 3xx leads nowhere else.
    let transient = [408, 409, 425, 302, 308].map(|status| (status, None));
    for status in transient.chunks(4) {
        run(&format!("t{}", status[0].0), status, "completed").await;
    }
    run("o402", &[(402, None)], "completed").await;
    let saga = run("o404", &[(404, None)], "completed").await;
    assert_eq!(step_of(&saga, "second")["attempts"], 1);
    let saga = run("o503", &[(503, None)], "compensated").await;
    assert_eq!(saga["error"]["kind"], "business");
    // Misconfigured: it waits with an alarm, nothing is undone.
    let before = world.paths().iter().filter(|path| path.starts_with("/first/")).count();
    // It would also try again by itself; here not before a person asks for it.
    let patient = two.replace("saga: two", "saga: patient");
    let patient = patient.replace("base: 5ms, cap: 10ms", "base: 10h, cap: 10h");
    assert_eq!(api.define("patient", patient).await.0, 201);
    for (id, status) in [("m401", 401), ("m403", 403), ("m405", 405), ("m407", 407), ("o422", 422)] {
        world.answers("/second", &[(status, None)]);
        api.start("patient", id, "", json!({"id": id})).await;
        let saga = api.until(id, |saga| saga["steps"][1]["alarm"] == true).await;
        assert!(saga["status"] != "compensating" && saga["status"] != "compensated", "{saga:#}");
        let (status, answer) = api.post(&format!("/v1/sagas/{id}/retry"), Value::Null).await;
        assert_eq!(status, 200, "{answer}");
        api.until(id, |saga| saga["status"] == "completed").await;
    }
    assert_eq!(world.paths().iter().filter(|path| path.starts_with("/first/")).count(), before);
    // Undos: what is not there is undone, unless the definition says otherwise.
    world.answers("/first/u", &[(410, None)]);
    world.answers("/third", &[(400, None)]);
    world.answers("/unsecond", &[(418, None)]);
    run("u", &[], "compensated").await;
    world.answers("/third", &[(400, None)]);
    world.answers("/unsecond", &[(404, None)]);
    let saga = run("v", &[], "stuck").await;
    assert_eq!(step_of(&saga, "second")["compensation"]["status"], "failed");
    assert_eq!(step_of(&saga, "first")["compensation"]["status"], "done");
    api.stop().await;
}

use step as step_of;

/// Answers by the path: a text, a JSON text, a large one, or what it was sent.
async fn speak(uri: Uri, headers: HeaderMap) -> Response {
    let answer = |media: &'static str, text: String| ([("content-type", media)], text).into_response();
    match uri.path() {
        "/text" => answer("text/plain", "17".into()),
        "/json" => answer("application/json", "{\"n\": 17}".into()),
        "/large" => answer("text/plain", "x".repeat(1 << 20)),
        "/larger" => answer("text/plain", "x".repeat((1 << 20) + 1)),
        "/echo" => answer("text/plain", format!("you are {}", headers["authorization"].to_str().unwrap())),
        "/moved" => (StatusCode::FOUND, [("location", "/json")]).into_response(),
        _ => ().into_response(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_are_json_or_text_up_to_a_mebibyte_and_show_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(axum::serve(listener, Router::new().fallback(speak)).into_future());
    let api = Api::open(options(dir.path())).await;
    let text = format!(
        "saga: say\nversion: 1\nsteps:\n  - name: a\n    call:\n      method: GET\n      url: \
         '{url}/{{{{ input }}}}'\n      headers: {{Authorization: {{secret: 'env:CARGO_MANIFEST_DIR'}}}}\n    retry: \
         {{attempts: 2, base: 5ms, cap: 5ms}}\n"
    );
    assert_eq!(api.define("say", text).await.0, 201);
    let said = async |what: &str| {
        let (_, saga) = api.start("say", what, "?wait=20s", json!(what)).await;
        assert_eq!(saga["status"], "completed", "{what}: {:.500}", saga.to_string());
        saga["output"]["a"].clone()
    };
    assert_eq!(said("text").await, "17");
    assert_eq!(said("json").await, json!({"n": 17}));
    assert_eq!(said("nothing").await, Value::Null);
    assert_eq!(said("echo").await, "you are (secret)");
    api.start("say", "larger", "", json!("larger")).await;
    let saga = api.until("larger", |saga| saga["status"] == "stuck").await;
    assert!(saga.to_string().contains("cannot be kept"), "{saga}");
    let (_, saga) = api.start("say", "moved", "?wait=20s", json!("moved")).await;
    assert_eq!((&saga["status"], &saga["error"]["kind"]), (&json!("compensated"), &json!("transient")));
    assert_eq!(said("large").await.as_str().map(str::len), Some(1 << 20));

    // Several of them are kept, and read again by the next process; too many stop that saga alone.
    let get = |name: &str| format!("  - {{name: {name}, call: {{method: GET, url: '{url}/large'}}}}\n");
    let end = "output: '{{ saga.id }}'\n";
    let text = format!("saga: much\nversion: 1\nsteps:\n{}{}  - signal: go\n{end}", get("a"), get("b"));
    assert_eq!(api.define("much", text).await.0, 201);
    let text = format!("saga: more\nversion: 1\nsteps:\n{}{}{}{end}", get("a"), get("b"), get("c"));
    assert_eq!(api.define("more", text).await.0, 201);
    api.start("much", "much", "", json!(1)).await;
    api.until("much", |saga| saga["status"] == "waiting").await;
    api.start("more", "more", "", json!(1)).await;
    let saga = api.until("more", |saga| saga["status"] == "stuck").await;
    assert!(step_of(&saga, "c")["error"]["message"].as_str().unwrap().contains("references"));
    assert!(api.stop().await);
    let api = Api::open(options(dir.path())).await;
    assert_eq!(api.post("/v1/sagas/much/signals/go", Value::Null).await.0, 200);
    let saga = api.until("much", |saga| saga["status"] == "completed").await;
    assert_eq!(saga["output"], "much");
    assert_eq!(api.post("/v1/sagas/more/cancel", Value::Null).await.0, 200);
    api.until("more", |saga| saga["status"] == "compensated").await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_finishes_does_not_keep_the_server_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let api = Api::open(ServeOptions { drain: Duration::from_millis(50), ..options(dir.path()) }).await;
    let address = api.url.strip_prefix("http://").unwrap();
    let mut half = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        "POST /v1/sagas/none HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n";
    half.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    half.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100", "the body is being waited for");
    assert!(!api.stop().await, "somebody was not answered");
    // It was cut off, and its connection holds nothing: the store is closed and can be opened again.
    let api = Api::open(options(dir.path())).await;
    assert!(api.stop().await);
    drop(half);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_in_order_whatever_connections_are_open() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let api = Api::open(options(dir.path())).await;
        let address = api.url.strip_prefix("http://").unwrap().to_owned();
        // Connections that said nothing yet, and such that are kept for another request.
        let mut open = Vec::new();
        for _ in 0..8 {
            open.push(tokio::net::TcpStream::connect(&address).await.unwrap());
        }
        let asked = (0..8).map(|_| api.get("/livez"));
        assert!(futures_util::future::join_all(asked).await.iter().all(|(status, _)| *status == 200));
        assert!(api.stop().await, "nobody was waited for, and the store was closed");
    }
}

#[test]
fn the_description_names_every_path() {
    let api = serde_json::to_value(rallypoint_server::description()).unwrap();
    assert_eq!(api["openapi"], "3.1.0");
    let paths = api["paths"].as_object().unwrap();
    for path in
        ["/v1/definitions", "/v1/sagas/{saga}", "/v1/sagas/{saga}/signals/{signal}", "/v1/events", "/readyz"]
    {
        assert!(paths.contains_key(path), "{path}: {:?}", paths.keys());
    }
    assert!(api["components"]["schemas"]["SagaView"].is_object());
    // Each request about one saga can be reached from the answer to its start, by an id that exists.
    let ids: Vec<&Value> = paths
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| &operation["operationId"])
        .collect();
    let links = paths["/v1/sagas/{saga}"]["post"]["responses"]["201"]["links"].as_object().unwrap();
    let about_one = paths.keys().filter(|path| path.starts_with("/v1/sagas/{saga}")).count();
    assert_eq!(links.len(), about_one);
    assert!(links.values().all(|link| ids.contains(&&link["operationId"])), "{links:?}");
}

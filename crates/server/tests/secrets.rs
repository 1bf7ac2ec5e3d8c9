//! Whatever is logged at the finest level, by us and by what we are made of, shows no secret. A process
//! of its own: who listens to logs listens to all of them.

use axum::Router;
use rallypoint_server::serve::{ServeOptions, start};
use serde_json::Value;
use std::fmt::{Debug, Write as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Everything that was logged.
static LOGGED: Mutex<String> = Mutex::new(String::new());

struct Everything;

fn note(text: &str) {
    let mut logged = LOGGED.lock().unwrap();
    logged.push_str(text);
    logged.push('\n');
}

#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut fields = Fields::default();
        span.record(&mut fields);
        note(&format!("span {}{}", span.metadata().name(), fields.0));
        Id::from_u64(NEXT.fetch_add(1, Ordering::Relaxed))
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        note(&fields.0);
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        note(&format!("event {}{}", event.metadata().name(), fields.0));
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl log::Log for Everything {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        note(&format!("log {} {}", record.target(), record.args()));
    }
    fn flush(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_log_shows_a_secret_or_the_token() {
    const TOKEN: &str = "a-token-of-this-test-0123456789";
    tracing::subscriber::set_global_default(Everything).unwrap();
    log::set_logger(&Everything).unwrap();
    log::set_max_level(log::LevelFilter::Trace);

    let dir = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = format!("http://{}", listener.local_addr().unwrap());
    // A participant that repeats what it was sent.
    let echo = async |headers: axum::http::HeaderMap| format!("{headers:?}");
    tokio::spawn(axum::serve(listener, Router::new().fallback(echo)).into_future());
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, TOKEN).unwrap();
    let options = ServeOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        allow_unsuitable_file_system: true,
        segment_len: Some(8 << 20),
        token_file: Some(token_file),
        tell: note,
        ..ServeOptions::new(dir.path().join("store"))
    };
    let running = start(options).await.unwrap();
    let url = format!("http://{}", running.address());
    // Any variable that is there: tests cannot set one without a race.
    let secret = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let text = format!(
        "saga: hidden\nversion: 1\nsteps:\n  - name: a\n    call: {{method: POST, url: '{world}/a', headers: \
         {{X-Key: {{secret: 'env:CARGO_MANIFEST_DIR'}}}}}}\n  - name: b\n    call: {{method: POST, url: 'http://127.0.0.1:1/b', \
         headers: {{X-Key: {{secret: 'env:CARGO_MANIFEST_DIR'}}}}}}\n    retry: {{attempts: 2, base: 1ms, cap: 1ms}}\n"
    );
    let client = reqwest::Client::new();
    let put = client.put(format!("{url}/v1/definitions/hidden")).bearer_auth(TOKEN);
    let put = put.header("content-type", "application/yaml").body(text).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 201);
    let begin = client.post(format!("{url}/v1/sagas/hidden?wait=60s")).bearer_auth(TOKEN);
    let begin = begin.header("idempotency-key", "the-saga").send().await.unwrap();
    let saga: Value = serde_json::from_str(&begin.text().await.unwrap()).unwrap();
    assert_eq!(saga["status"], "compensated", "{saga:#}");
    assert!(saga["steps"][0]["output"].as_str().unwrap().contains("(secret)"), "{saga:#}");
    assert!(!saga.to_string().contains(&secret));
    let wrong = client.get(format!("{url}/v1/sagas")).bearer_auth("wrong").send().await.unwrap();
    assert_eq!(wrong.status().as_u16(), 401);
    running.stop().await;

    let logged = LOGGED.lock().unwrap();
    // It is really listened to: our span of a step, and the words of the HTTP client.
    assert!(logged.contains("span saga step") && logged.contains("the-saga"), "{logged}");
    assert!(logged.lines().any(|line| line.starts_with("log ")), "{logged}");
    for word in [TOKEN, secret.as_str()] {
        let found = logged.lines().find(|line| line.contains(word));
        assert!(found.is_none(), "{found:?}");
    }
}

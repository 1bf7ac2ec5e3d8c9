//! The served part of `rallypoint bench sagas`: declared sagas whose three steps call a service that
//! does nothing.
//!
//! Decides the load: so many clients, each on one kept connection, each with one saga at a time, that
//! it starts and waits for in one request. Only a saga that completed is counted.
//! The limit is what is left without sagas: the same clients on the same connections ask a server that
//! makes the same three calls in the same way and then answers. Both take turns in short slices, on the
//! same threads: one runtime serves, another one has the clients and the service.
//! Never leaves a file behind.

use crate::serve::{Running, ServeOptions, start};
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rallypoint_host::bench::report::{Must, Row, median, quantile};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// How to run it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it there is one copy.
    pub mirror: Option<PathBuf>,
    /// Time for all slices together.
    pub time: Duration,
    /// Clients at once.
    pub clients: usize,
}

impl Settings {
    /// The default: 64 clients, a quarter of a minute.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), mirror: None, time: Duration::from_secs(16), clients: 64 }
    }
}

/// What must be reached, in sagas per second.
const MUST: f64 = 4_000.0;
/// Slices of the sagas, and as many of the limit.
const TURNS: u32 = 8;
/// Calls of a saga, beside the client's.
const STEPS: usize = 3;

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// A directory that is removed in the end.
struct Removed(PathBuf);

impl Removed {
    fn new(inside: &Path, name: &str) -> io::Result<Self> {
        let path = inside.join(format!("rallypoint-bench-served{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        // What cannot be removed here could not be removed better elsewhere.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Measures the rows.
///
/// # Errors
/// What the operating system, the store or the server says; a saga that ended otherwise.
pub fn run(settings: &Settings) -> io::Result<Vec<Row>> {
    let place = Removed::new(&settings.directory, "")?;
    let mirror = settings.mirror.as_deref().map(|mirror| Removed::new(mirror, "-mirror")).transpose()?;
    let runtime = |name: &str| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.enable_all().thread_name(name).build()
    };
    // As `rallypoint serve` makes its own; and one for the rest of the world.
    let (ours, world) = (runtime("serve")?, runtime("world")?);
    let service = world.block_on(listen(Router::new().fallback(nothing)))?;
    let definition = place.0.join("nothing.yaml");
    fs::write(&definition, three_steps(service))?;
    let options = ServeOptions {
        mirror: mirror.as_ref().map(|mirror| mirror.0.join("store")),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        sagas: Some(place.0.clone()),
        ..ServeOptions::new(place.0.join("store"))
    };
    let running = ours.block_on(start(options)).map_err(other)?;
    let limit = ours.block_on(listen(bare(service)?))?;
    let measured = measure(settings, &world, &running, limit);
    let ended = ours.block_on(running.stop());
    let rows = measured?;
    if ended { Ok(rows) } else { Err(io::Error::other("the server did not end in order")) }
}

fn three_steps(service: SocketAddr) -> String {
    let mut text = format!("saga: nothing\nversion: 1\nvars: {{ service: 'http://{service}' }}\nsteps:\n");
    for step in ["one", "two", "three"].iter().take(STEPS) {
        text += &format!(
            "  - name: {step}\n    call: {{ method: POST, url: '{{{{ vars.service }}}}/{step}', json: \
             {{ order: '{{{{ input.order }}}}' }} }}\n"
        );
    }
    text
}

/// Serves on a port that is free.
async fn listen(router: Router) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(address)
}

/// The service: it reads what it is told, and says that it is done.
async fn nothing(body: Body) -> Result<Json<Value>, StatusCode> {
    to_bytes(body, 1 << 16).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    Ok(Json(json!({ "done": true })))
}

/// The calls of a saga, without a saga.
fn bare(service: SocketAddr) -> io::Result<Router> {
    let client = crate::call::client().map_err(io::Error::other)?;
    let calls = async move |State((client, service)): State<(reqwest::Client, SocketAddr)>, body: Body| {
        let order = to_bytes(body, 1 << 16).await.map_err(|_| StatusCode::BAD_REQUEST)?;
        for _ in 0..STEPS {
            let call = client.post(format!("http://{service}/step")).header(CONTENT_TYPE, "application/json");
            let answer = call.body(order.clone()).send().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
            answer.bytes().await.map_err(|_| StatusCode::BAD_GATEWAY)?;
        }
        Ok::<_, StatusCode>(Json(json!({ "status": "completed" })))
    };
    Ok(Router::new().route("/bare", post(calls)).with_state((client, service)))
}

/// What a client reads of an answer.
#[derive(Deserialize)]
struct Ended {
    status: String,
}

/// One kept connection.
struct Client {
    sender: SendRequest<Body>,
    host: String,
    path: &'static str,
    number: usize,
    asked: u64,
}

impl Client {
    async fn new(address: SocketAddr, path: &'static str, number: usize) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(other)?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string(), path, number, asked: 0 })
    }

    /// One saga after the other until `end`; gives how long each took, in microseconds.
    async fn work(mut self, end: Instant) -> io::Result<(Self, Vec<f64>)> {
        let mut times = Vec::new();
        while Instant::now() < end {
            let (number, asked) = (self.number, self.asked);
            self.asked += 1;
            let request = Request::post(self.path)
                .header(HOST, &self.host)
                .header(CONTENT_TYPE, "application/json")
                .header("idempotency-key", format!("{number}-{asked}"))
                .body(Body::from(format!("{{\"order\":\"order-{number}-{asked}\"}}")));
            let request = request.map_err(other)?;
            let before = Instant::now();
            let answer = self.sender.send_request(request).await.map_err(other)?;
            let status = answer.status();
            let body = to_bytes(Body::new(answer.into_body()), 1 << 20).await.map_err(other)?;
            let ended: Ended = serde_json::from_slice(&body).map_err(other)?;
            if !status.is_success() || ended.status != "completed" {
                return Err(io::Error::other(format!("{status}: {}", String::from_utf8_lossy(&body))));
            }
            times.push(before.elapsed().as_secs_f64() * 1e6);
        }
        Ok((self, times))
    }
}

/// The clients of one server.
struct Clients {
    clients: Vec<Client>,
    rates: Vec<f64>,
    times: Vec<f64>,
}

impl Clients {
    async fn new(address: SocketAddr, path: &'static str, count: usize) -> io::Result<Self> {
        let mut clients = Vec::new();
        for number in 0..count {
            clients.push(Client::new(address, path, number).await?);
        }
        Ok(Self { clients, rates: Vec::new(), times: Vec::new() })
    }

    async fn slice(&mut self, time: Duration) -> io::Result<()> {
        let started = Instant::now();
        let tasks: Vec<_> =
            self.clients.drain(..).map(|client| tokio::spawn(client.work(started + time))).collect();
        let mut done = 0;
        for task in tasks {
            let (client, times) = task.await.map_err(other)??;
            self.clients.push(client);
            done += times.len();
            self.times.extend(times);
        }
        self.rates.push(done as f64 / started.elapsed().as_secs_f64());
        Ok(())
    }
}

fn measure(
    settings: &Settings,
    world: &Runtime,
    running: &Running,
    limit: SocketAddr,
) -> io::Result<Vec<Row>> {
    let slice = settings.time / TURNS / 2;
    world.block_on(async {
        let mut bare = Clients::new(limit, "/bare", settings.clients).await?;
        let mut sagas =
            Clients::new(running.address(), "/v1/sagas/nothing?wait=10s", settings.clients).await?;
        // Connections are made and buffers grown before anything counts.
        for clients in [&mut bare, &mut sagas] {
            clients.slice(slice / 4).await?;
            (clients.rates, clients.times) = (Vec::new(), Vec::new());
        }
        let mut commits = 0;
        for _ in 0..TURNS {
            bare.slice(slice).await?;
            let before = running.commits();
            sagas.slice(slice).await?;
            commits += running.commits() - before;
        }
        let ratios: Vec<f64> = sagas.rates.iter().zip(&bare.rates).map(|(ours, bare)| ours / bare).collect();
        let case = |what: &str| format!("served, declared saga, {} clients{what}", settings.clients);
        let rate = Row::judged(case(""), median(&sagas.rates), "/s", Must::ValueAtLeast(MUST));
        Ok(vec![
            // The limit: the same four calls without a saga.
            Row { limit: Some(median(&bare.rates)), ratio: Some(median(&ratios)), ..rate },
            Row::plain(case(", p50"), median(&sagas.times) / 1e3, "ms"),
            Row::plain(case(", p99"), quantile(&sagas.times, 0.99) / 1e3, "ms"),
            Row::plain(case(", syncs per saga"), commits as f64 / sagas.times.len() as f64, ""),
        ])
    })
}

//! Whether the server lives, is ready, and what it counts.

use super::Server;
use super::problem::{Kind, Problem, Problems};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use rallypoint::Status;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

/// Says that everything but the two questions of life needs the token, where the server has one.
pub(super) fn secure(api: &mut utoipa::openapi::OpenApi) {
    let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let components = api.components.get_or_insert_default();
    components.add_security_scheme("token", scheme);
    // A server on loopback may have none.
    let none = SecurityRequirement::default();
    api.security = Some(vec![none, SecurityRequirement::new("token", Vec::<String>::new())]);
}

/// Does the process answer?
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operations",
    security(()),
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain"), Problems)
)]
pub(super) async fn live() -> &'static str {
    "alive\n"
}

/// Does the server take requests? Not while its store has failed or the server ends
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operations",
    security(()),
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain"), Problems)
)]
pub(super) async fn ready(State(server): State<Arc<Server>>) -> Result<&'static str, Problem> {
    match server.runtime.failure() {
        Some(_) => Err(Problem::new(Kind::Unavailable, "the store has failed: see the server's log")),
        None if server.is_draining() => Err(Problem::new(Kind::Unavailable, "the server is ending")),
        None => Ok("ready\n"),
    }
}

/// A label's value as Prometheus reads it.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Counts, in the text format of Prometheus
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses(
        (status = 200, description = "The counts.", body = String, content_type = "text/plain"),
        Problems
    )
)]
pub(super) async fn metrics(State(server): State<Arc<Server>>) -> Result<impl IntoResponse, Problem> {
    let counts = server.sagas.count().await?;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, u64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    // Every status of a name, so that a count that falls to zero is seen to.
    let mut rows = BTreeMap::new();
    for (name, _) in counts.keys() {
        for status in Status::ALL {
            rows.insert((name.clone(), status), 0);
        }
    }
    rows.extend(counts);
    let sagas: Vec<(String, u64)> = rows
        .into_iter()
        .map(|((name, status), count)| (format!("{{name=\"{}\",status=\"{status}\"}}", label(&name)), count))
        .collect();
    let one = |value: u64| vec![(String::new(), value)];
    let definitions: usize = server.catalog.all().values().map(Vec::len).sum();
    family("rallypoint_sagas", "gauge", "Sagas by name and status.", &sagas);
    family("rallypoint_definition_versions", "gauge", "Versions of definitions.", &one(definitions as u64));
    family(
        "rallypoint_alarms_total",
        "counter",
        "Alarms since the server was started: something needs a person.",
        &one(server.alarms.load(Ordering::Relaxed)),
    );
    family(
        "rallypoint_set_aside_total",
        "counter",
        "Inputs set aside since the server was started.",
        &one(server.set_aside.load(Ordering::Relaxed)),
    );
    family(
        "rallypoint_checkpoints_total",
        "counter",
        "Checkpoints written since the server was started.",
        &one(server.runtime.checkpoints_written()),
    );
    family(
        "rallypoint_store_failed",
        "gauge",
        "1 once the store acknowledges nothing any more.",
        &one(u64::from(server.runtime.failure().is_some())),
    );
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

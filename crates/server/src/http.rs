//! The API: HTTP and JSON, described by itself at `/openapi.json`.
//!
//! Decides paths, status codes and what a request may hold. Every answer about a saga or a definition
//! is given once what it says is durable: the handles see to that. Every error is a problem document.

pub(crate) mod auth;
mod definitions;
mod events;
mod extract;
mod health;
mod key;
mod problem;
#[expect(unused_qualifications, reason = "utoipa writes the paths of query types into its own code")]
mod sagas;
pub(crate) mod view;

use crate::catalog::Catalog;
use auth::Token;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use problem::{Kind, Problem};
use rallypoint::{Client, Runtime, Sagas};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use tokio::sync::watch;
use utoipa::OpenApi;
use utoipa::openapi::link::Link;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Longest body of a request.
const BODY_BYTES: usize = 1 << 20;

/// What the handlers work with.
pub(crate) struct Server {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) sagas: Sagas,
    pub(crate) client: Arc<Client>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) token: Option<Token>,
    pub(crate) dir: PathBuf,
    pub(crate) mirror: Option<PathBuf>,
    /// True once the server is to end: waits and streams end then.
    pub(crate) draining: watch::Receiver<bool>,
    /// Alarms raised since the start.
    pub(crate) alarms: AtomicU64,
    /// Inputs set aside since the start.
    pub(crate) set_aside: AtomicU64,
    /// Streams of events that are open.
    pub(crate) streams: AtomicUsize,
}

impl Server {
    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "rallypoint",
        description = "Durable sagas over HTTP. Every answer is durable before it is given. Errors are \
                       problem documents (RFC 9457) that say who is at fault and what to do."
    ),
    components(schemas(Problem)),
    tags(
        (name = "definitions", description = "What sagas consist of"),
        (name = "sagas", description = "Starting sagas, looking at them and stepping in"),
        (name = "operations", description = "The server itself")
    )
)]
struct Description;

/// The description of the API, as `/openapi.json` gives it.
#[must_use]
pub fn description() -> utoipa::openapi::OpenApi {
    parts().1
}

fn parts() -> (Router<Arc<Server>>, utoipa::openapi::OpenApi) {
    let (router, mut api) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(definitions::put))
        .routes(routes!(definitions::list))
        .routes(routes!(sagas::list))
        .routes(routes!(sagas::start, sagas::show))
        .routes(routes!(sagas::cancel))
        .routes(routes!(sagas::pause))
        .routes(routes!(sagas::resume))
        .routes(routes!(sagas::retry))
        .routes(routes!(sagas::abandon))
        .routes(routes!(sagas::restart))
        .routes(routes!(sagas::signal))
        .routes(routes!(sagas::skip))
        .routes(routes!(sagas::resolve))
        .routes(routes!(events::stream))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
        .split_for_parts();
    health::secure(&mut api);
    link(&mut api);
    // An absent input, value or output is `null`; only a definition must be there.
    for path in api.paths.paths.values_mut() {
        let body = path.post.as_mut().and_then(|post| post.request_body.as_mut());
        if let Some(utoipa::openapi::RefOr::T(body)) = body {
            body.required = Some(utoipa::openapi::Required::False);
        }
    }
    (router, api)
}

/// Says which requests the answer to a start gives the id for.
fn link(api: &mut utoipa::openapi::OpenApi) {
    const ABOUT_ONE: [&str; 10] =
        ["show", "cancel", "pause", "resume", "retry", "abandon", "restart", "signal", "skip", "resolve"];
    let start = api.paths.paths.get_mut("/v1/sagas/{saga}").and_then(|path| path.post.as_mut());
    for response in start.into_iter().flat_map(|start| start.responses.responses.iter_mut()) {
        if let (status, utoipa::openapi::RefOr::T(response)) = response
            && status.starts_with('2')
        {
            for operation in ABOUT_ONE {
                let link = Link::builder().operation_id(operation).parameter("saga", "$response.body#/id");
                response.links.insert(operation.to_owned(), link.build().into());
            }
        }
    }
}

/// Everything that is served.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let (router, api) = parts();
    // Nothing in a description can fail to be written.
    let description = api.to_json().unwrap_or_default();
    let describe = move || async move { ([(header::CONTENT_TYPE, "application/json")], description) };
    let router = router
        .route("/openapi.json", get(describe))
        .fallback(nothing_here)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES));
    // Who needs no token is not stopped to look for one.
    let router = match &server.token {
        Some(_) => router.layer(middleware::from_fn_with_state(Arc::clone(&server), admit)),
        None => router,
    };
    router.with_state(server)
}

async fn nothing_here(uri: Uri) -> Problem {
    Problem::new(Kind::NoSuchPlace, format!("nothing is served at {:?}", uri.path()))
}

async fn other_method(method: Method, uri: Uri) -> Problem {
    Problem::new(Kind::Method, format!("{:?} does not take {method}", uri.path()))
}

/// Lets in who carries the token; everybody asks whether the server lives.
async fn admit(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let open = matches!(request.uri().path(), "/livez" | "/readyz");
    if let Some(token) = server.token.as_ref().filter(|_| !open) {
        let given = request.headers().get(header::AUTHORIZATION);
        match given {
            Some(given) if token.admits(given.as_bytes()) => {}
            Some(_) => return Problem::new(Kind::Unauthorized, "the token is wrong").into_response(),
            None => return Problem::new(Kind::Unauthorized, "the request carries no token").into_response(),
        }
    }
    next.run(request).await
}

//! `/v1/sagas`.

use super::Server;
use super::extract::{JsonBody, Path, Query};
use super::key::{fresh_id, id_of};
use super::problem::{Problem, Problems};
use super::view::{self, SagaView, StatusView, SummaryView};
use crate::moment::patience;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use rallypoint::saga::Blob;
use rallypoint::{SagaHandle, SagaRequestError, Status, Time};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// Names the request, so that it is carried out once however often it is sent.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Most sagas of one page.
const PAGE: usize = 500;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Answer when the saga has ended or is stuck, or after this long: `250ms`, `10s`, `2m`, at most `5m`
    #[param(pattern = "^([0-9]{1,5}ms|[0-9]{1,2}s|[0-5]m)$", example = "10s")]
    wait: Option<String>,
}

impl Wait {
    fn patience(&self) -> Result<Option<Duration>, Problem> {
        let wait = self.wait.as_deref().map(patience).transpose();
        wait.map_err(|why| Problem::malformed(format!("wait: {why}")))
    }
}

/// Waits until a saga has ended or is stuck, or the server is to end.
async fn wait_for(server: &Server, handle: &SagaHandle, patience: Duration) -> Result<(), SagaRequestError> {
    let mut draining = server.draining.clone();
    tokio::select! {
        ended = handle.wait_end() => ended.map(drop),
        () = tokio::time::sleep(patience) => Ok(()),
        _ = draining.wait_for(|draining| *draining) => Ok(()),
    }
}

async fn shown(handle: &SagaHandle) -> Result<SagaView, Problem> {
    Ok(view::saga(handle.id(), &handle.show().await?))
}

/// Start a saga
///
/// When this answers, the saga is durable and will end, whatever crashes. With `Idempotency-Key` the
/// same request may be sent again: it is the same saga.
#[utoipa::path(
    post,
    path = "/v1/sagas/{saga}",
    tag = "sagas",
    params(
        ("saga" = String, Path, description = "Name of its definition"),
        ("Idempotency-Key" = Option<String>, Header, description = "Names the saga: its id is made of it. \
          Without it the id is random", min_length = 1),
        Wait
    ),
    request_body(
        content((serde_json::Value = "application/json")),
        description = "The saga's input; an absent body is `null`"
    ),
    responses(
        (status = 201, description = "It is new, and durable.", body = SagaView),
        (status = 200, description = "It was there already, or has ended within the wait.", body = SagaView),
        Problems
    )
)]
pub(super) async fn start(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
    headers: HeaderMap,
    JsonBody(input): JsonBody,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<SagaView>), Problem> {
    let patience = wait.patience()?;
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let id = match (keys.next(), keys.next()) {
        (Some(key), None) if !key.as_bytes().trim_ascii().is_empty() => id_of(key.as_bytes().trim_ascii()),
        (None, _) => fresh_id(),
        _ => return Err(Problem::malformed("Idempotency-Key is empty or there are several")),
    };
    let input = Blob::of(&input).map_err(|error| Problem::malformed(error.to_string()))?;
    let (handle, is_new) = server.sagas.start_blob(&name, &id, input).await?;
    let mut status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    if let Some(patience) = patience {
        wait_for(&server, &handle, patience).await?;
    }
    let machine = handle.show().await?;
    if patience.is_some() && machine.status().is_ended() {
        status = StatusCode::OK;
    }
    let place = format!("/v1/sagas/{id}");
    Ok((status, [(header::LOCATION, place)], Json(view::saga(&id, &machine))))
}

/// Look at a saga
#[utoipa::path(
    get,
    path = "/v1/sagas/{saga}",
    tag = "sagas",
    params(("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F"), Wait),
    responses((status = 200, description = "Everything about it.", body = SagaView), Problems)
)]
pub(super) async fn show(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Json<SagaView>, Problem> {
    let handle = handle(&server, &id)?;
    if let Some(patience) = wait.patience()? {
        wait_for(&server, &handle, patience).await?;
    }
    Ok(Json(shown(&handle).await?))
}

/// An id that no saga can have is no input for the store.
fn handle(server: &Server, id: &str) -> Result<SagaHandle, Problem> {
    if id.is_empty() || id.len() > rallypoint_base::limits::KEY_BYTES {
        let text = format!("an id has 1 to {} bytes, not {}", rallypoint_base::limits::KEY_BYTES, id.len());
        return Err(Problem::malformed(text));
    }
    Ok(server.sagas.get(id))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only sagas of this name
    name: Option<String>,
    /// Only sagas with this status
    #[param(inline)]
    status: Option<StatusView>,
    /// Most sagas of this page (default 50)
    #[param(minimum = 1, maximum = 500)]
    limit: Option<usize>,
    /// `next_cursor` of the page before
    #[param(pattern = "^[0-9a-f]{1,16}~.+$")]
    cursor: Option<String>,
}

/// A page of sagas.
#[derive(Serialize, ToSchema)]
pub(super) struct Page {
    /// The newest first.
    sagas: Vec<SummaryView>,
    /// Where the next page begins; `null` when this is the last.
    next_cursor: Option<String>,
}

fn read_cursor(text: &str) -> Option<(Time, String)> {
    let (time, id) = text.split_once('~')?;
    let plain = (1..=16).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_hexdigit());
    let time = plain.then(|| u64::from_str_radix(time, 16).ok())??;
    (!id.is_empty()).then(|| (Time(time), id.to_owned()))
}

/// List sagas
#[utoipa::path(
    get,
    path = "/v1/sagas",
    tag = "sagas",
    params(Filter),
    responses((status = 200, description = "A page, the newest first.", body = Page), Problems)
)]
pub(super) async fn list(
    State(server): State<Arc<Server>>,
    Query(filter): Query<Filter>,
) -> Result<Json<Page>, Problem> {
    let limit = filter.limit.unwrap_or(50);
    if !(1..=PAGE).contains(&limit) {
        return Err(Problem::malformed(format!("limit is 1 to {PAGE}, not {limit}")));
    }
    let cursor = match &filter.cursor {
        None => None,
        Some(text) => Some(read_cursor(text).ok_or_else(|| {
            Problem::malformed("cursor is none that a page of this list gave: begin without one")
        })?),
    };
    let status: Option<Status> = filter.status.map(Into::into);
    let (sagas, next) = server.sagas.list(filter.name.as_deref(), status, limit, cursor.as_ref()).await?;
    Ok(Json(Page {
        sagas: sagas.iter().map(view::summary).collect(),
        next_cursor: next.map(|(time, id)| format!("{:x}~{id}", time.0)),
    }))
}

/// How a saga stands after a request.
#[derive(Serialize, ToSchema)]
pub(super) struct Accepted {
    id: String,
    status: StatusView,
}

fn accepted(id: String, status: Result<Status, SagaRequestError>) -> Result<Json<Accepted>, Problem> {
    Ok(Json(Accepted { id, status: status?.into() }))
}

macro_rules! command {
    ($(#[$doc:meta])* $name:ident, $path:literal) => {
        $(#[$doc])*
        #[utoipa::path(
            post,
            path = $path,
            tag = "sagas",
            params(("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F")),
            responses((status = 200, description = "Accepted, durably.", body = Accepted), Problems)
        )]
        pub(super) async fn $name(
            State(server): State<Arc<Server>>,
            Path(id): Path<String>,
        ) -> Result<Json<Accepted>, Problem> {
            let status = handle(&server, &id)?.$name().await;
            accepted(id, status)
        }
    };
}

command!(
    /// Stop a saga and compensate what acted or may have acted
    cancel,
    "/v1/sagas/{saga}/cancel"
);
command!(
    /// Begin nothing new; what is in flight is answered and journaled
    pause,
    "/v1/sagas/{saga}/pause"
);
command!(
    /// Go on after a pause
    resume,
    "/v1/sagas/{saga}/resume"
);
command!(
    /// Try now what is stuck, or waits for another attempt
    retry,
    "/v1/sagas/{saga}/retry"
);
command!(
    /// Give a saga up: nothing more is done, nothing is undone
    abandon,
    "/v1/sagas/{saga}/abandon"
);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct From {
    /// Name or number of the step
    from: String,
}

/// Undo a step and all later ones, then run them anew under new keys
#[utoipa::path(
    post,
    path = "/v1/sagas/{saga}/restart",
    tag = "sagas",
    params(("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F"), From),
    responses((status = 200, description = "Accepted, durably.", body = Accepted), Problems)
)]
pub(super) async fn restart(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    Query(from): Query<From>,
) -> Result<Json<Accepted>, Problem> {
    let status = handle(&server, &id)?.restart(&from.from).await;
    accepted(id, status)
}

/// Send a saga a signal; one that comes before it is asked for is kept
#[utoipa::path(
    post,
    path = "/v1/sagas/{saga}/signals/{signal}",
    tag = "sagas",
    params(
        ("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F"),
        ("signal" = String, Path, description = "Name of the signal")
    ),
    request_body(
        content((serde_json::Value = "application/json")),
        description = "The signal's value; an absent body is `null`"
    ),
    responses((status = 200, description = "Accepted, durably.", body = Accepted), Problems)
)]
pub(super) async fn signal(
    State(server): State<Arc<Server>>,
    Path((id, signal)): Path<(String, String)>,
    JsonBody(value): JsonBody,
) -> Result<Json<Accepted>, Problem> {
    let status = handle(&server, &id)?.signal(&signal, &value).await;
    accepted(id, status)
}

/// Leave the exhausted undo of a step undone
#[utoipa::path(
    post,
    path = "/v1/sagas/{saga}/steps/{step}/skip",
    tag = "sagas",
    params(
        ("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F"),
        ("step" = String, Path, description = "Name or number of the step")
    ),
    responses((status = 200, description = "Accepted, durably.", body = Accepted), Problems)
)]
pub(super) async fn skip(
    State(server): State<Arc<Server>>,
    Path((id, step)): Path<(String, String)>,
) -> Result<Json<Accepted>, Problem> {
    let status = handle(&server, &id)?.skip(&step).await;
    accepted(id, status)
}

/// Say that a step was done by hand, with this output, or that its undo was
#[utoipa::path(
    post,
    path = "/v1/sagas/{saga}/steps/{step}/resolve",
    tag = "sagas",
    params(
        ("saga" = String, Path, description = "Its id; a `/` (of a child) is written %2F"),
        ("step" = String, Path, description = "Name or number of the step")
    ),
    request_body(
        content((serde_json::Value = "application/json")),
        description = "The step's output; an absent body is `null`"
    ),
    responses((status = 200, description = "Accepted, durably.", body = Accepted), Problems)
)]
pub(super) async fn resolve(
    State(server): State<Arc<Server>>,
    Path((id, step)): Path<(String, String)>,
    JsonBody(output): JsonBody,
) -> Result<Json<Accepted>, Problem> {
    let status = handle(&server, &id)?.resolve(&step, &output).await;
    accepted(id, status)
}

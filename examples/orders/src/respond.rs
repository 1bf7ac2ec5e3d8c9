//! From a request's headers to the barrier, and from its reply to an answer.
//!
//! Every handler is one transaction of one database, on a thread that may block. Never decides what
//! a service does.

use crate::chaos::{Dice, Fault};
use axum::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rallypoint_barrier::answer::{Answer, Reply};
use rallypoint_barrier::guard::{self, Error, Stop};
use rallypoint_barrier::{KEY_HEADER, KEY_OF_HEADER};
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

/// What a handler of the business says.
pub(crate) type Said = Result<Answer, Stop<Failed>>;

/// Why a handler failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
    #[error("a recorded answer cannot be read: {0}")]
    Recorded(#[from] serde_json::Error),
}

/// The one row that a step wrote, as its answer says: an undo takes back that and nothing else.
#[derive(Deserialize)]
struct Written {
    row: i64,
}

/// A database and its faults, shared by all requests.
#[derive(Clone)]
pub(crate) struct Books {
    connection: Arc<Mutex<Connection>>,
    dice: Arc<Dice>,
}

impl Books {
    pub(crate) fn new(connection: Connection, dice: Dice) -> Self {
        Self { connection: Arc::new(Mutex::new(connection)), dice: Arc::new(dice) }
    }

    /// Performs a step once per key.
    pub(crate) async fn step(
        &self,
        headers: &HeaderMap,
        handler: impl FnOnce(&Connection) -> Said + Send + 'static,
    ) -> Response {
        let key = match key(headers, KEY_HEADER) {
            Ok(key) => key,
            Err(missing) => return answer(missing),
        };
        self.perform(move |connection| guard::step(connection, &key, handler)).await
    }

    /// Undoes a step once: runs `statement` with the row that the step wrote and the order.
    pub(crate) async fn undo(&self, headers: &HeaderMap, order: String, statement: &'static str) -> Response {
        let (key, of) = match (key(headers, KEY_HEADER), key(headers, KEY_OF_HEADER)) {
            (Ok(key), Ok(of)) => (key, of),
            (Err(missing), _) | (_, Err(missing)) => return answer(missing),
        };
        let handler = move |connection: &Connection, first: &Answer| {
            let written: Written = serde_json::from_slice(&first.body).map_err(Failed::from)?;
            match connection.execute(statement, (written.row, &order)).map_err(Failed::from)? {
                1 => Ok(Answer::new(200, json!({ "undone": order }).to_string())),
                _ => Err(Stop::Refuse(refusal(404, "the step with that key was not for this order"))),
            }
        };
        self.perform(move |connection| guard::undo(connection, &key, &of, handler)).await
    }

    async fn perform(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<Reply, Error<Failed>> + Send + 'static,
    ) -> Response {
        let fault = self.dice.throw();
        if fault == Some(Fault::Before) {
            return unavailable("a fault on purpose; nothing was done");
        }
        let connection = Arc::clone(&self.connection);
        // A handler that panicked left no transaction open: the guard has rolled it back.
        let work = move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner));
        let result = tokio::task::spawn_blocking(work).await;
        match fault {
            // Ends the connection's task: the client sees the connection close.
            Some(Fault::ConnectionLost) => std::panic::resume_unwind(Box::new("a fault on purpose")),
            Some(_) => return unavailable("a fault on purpose; it may have been done"),
            None => {}
        }
        match result {
            Ok(Ok(reply)) => answer(reply.answer),
            Ok(Err(Error::Misuse(misuse))) => answer(refusal(400, &misuse.to_string())),
            Ok(Err(error)) => unavailable(&error.to_string()),
            Err(panicked) => unavailable(&panicked.to_string()),
        }
    }
}

/// A refusal of the business.
pub(crate) fn refusal(status: u16, why: &str) -> Answer {
    Answer::new(status, json!({ "error": why }).to_string())
}

fn key(headers: &HeaderMap, name: &str) -> Result<String, Answer> {
    match headers.get(name).map(|value| value.to_str()) {
        Some(Ok(key)) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(refusal(400, &format!("the header {name} is missing, empty or not ASCII"))),
    }
}

fn unavailable(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": why }))).into_response()
}

fn answer(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], answer.body).into_response()
}

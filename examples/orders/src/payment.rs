//! Payment: charges a card for an order, and pays it back.

use crate::respond::{Books, Failed, refusal};
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{delete, post};
use axum::{Json, Router};
use rallypoint_barrier::answer::Answer;
use rallypoint_barrier::guard::Stop;
use rusqlite::Connection;
use serde::Deserialize;
use serde_json::json;

/// The card that is declined.
pub(crate) const DECLINED: &str = "declined";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS charges (
        id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, cents INTEGER NOT NULL, card TEXT NOT NULL,
        undone INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS charges_of_order ON charges (order_id);";

pub(crate) fn create_tables(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(TABLES)
}

pub(crate) fn router(books: Books) -> Router {
    Router::new().route("/charges", post(charge)).route("/charges/{order}", delete(refund)).with_state(books)
}

#[derive(Deserialize)]
struct Charge {
    order: String,
    cents: u32,
    card: String,
}

async fn charge(State(books): State<Books>, headers: HeaderMap, Json(wish): Json<Charge>) -> Response {
    let handler = move |tx: &Connection| {
        if wish.card == DECLINED {
            return Err(Stop::Refuse(refusal(402, "the card was declined")));
        }
        let insert = "INSERT INTO charges (order_id, cents, card) VALUES (?1, ?2, ?3)";
        tx.execute(insert, (&wish.order, wish.cents, &wish.card)).map_err(Failed::from)?;
        Ok(Answer::new(201, json!({ "row": tx.last_insert_rowid(), "order": wish.order }).to_string()))
    };
    books.step(&headers, handler).await
}

async fn refund(State(books): State<Books>, headers: HeaderMap, Path(order): Path<String>) -> Response {
    let refund = "UPDATE charges SET undone = 1 WHERE id = ?1 AND order_id = ?2 AND undone = 0";
    books.undo(&headers, order, refund).await
}

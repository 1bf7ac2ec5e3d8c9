//! Shipping: prints a label for an order, voids it, and sends the parcel. What was sent stays sent.

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

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS labels (
        id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, undone INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS labels_of_order ON labels (order_id);
    CREATE TABLE IF NOT EXISTS shipments (id INTEGER PRIMARY KEY, order_id TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS shipments_of_order ON shipments (order_id);";

pub(crate) fn create_tables(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(TABLES)
}

pub(crate) fn router(books: Books) -> Router {
    Router::new()
        .route("/labels", post(print))
        .route("/labels/{order}", delete(void))
        .route("/shipments", post(ship))
        .with_state(books)
}

#[derive(Deserialize)]
struct Wish {
    order: String,
}

async fn print(State(books): State<Books>, headers: HeaderMap, Json(wish): Json<Wish>) -> Response {
    let handler = move |tx: &Connection| {
        tx.execute("INSERT INTO labels (order_id) VALUES (?1)", [&wish.order]).map_err(Failed::from)?;
        Ok(Answer::new(201, json!({ "row": tx.last_insert_rowid(), "order": wish.order }).to_string()))
    };
    books.step(&headers, handler).await
}

async fn void(State(books): State<Books>, headers: HeaderMap, Path(order): Path<String>) -> Response {
    let void = "UPDATE labels SET undone = 1 WHERE id = ?1 AND order_id = ?2 AND undone = 0";
    books.undo(&headers, order, void).await
}

async fn ship(State(books): State<Books>, headers: HeaderMap, Json(wish): Json<Wish>) -> Response {
    let handler = move |tx: &Connection| {
        let labels = "SELECT count(*) FROM labels WHERE order_id = ?1 AND undone = 0";
        let labels: i64 = tx.query_row(labels, [&wish.order], |row| row.get(0)).map_err(Failed::from)?;
        if labels == 0 {
            return Err(Stop::Refuse(refusal(422, "the order has no label")));
        }
        tx.execute("INSERT INTO shipments (order_id) VALUES (?1)", [&wish.order]).map_err(Failed::from)?;
        let tracking = format!("RP{:010}", tx.last_insert_rowid());
        Ok(Answer::new(201, json!({ "tracking": tracking }).to_string()))
    };
    books.step(&headers, handler).await
}

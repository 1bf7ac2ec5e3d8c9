//! Inventory: reserves goods for an order, and releases them.

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

/// What is in stock.
pub(crate) const SKUS: [&str; 5] = ["anchor", "compass", "lantern", "rope", "sextant"];
/// What is never in stock.
pub(crate) const SOLD_OUT: &str = "unicorn";
const IN_STOCK: i64 = 1_000_000_000;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, initial INTEGER NOT NULL, left INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS reservations (
        id INTEGER PRIMARY KEY, order_id TEXT NOT NULL, sku TEXT NOT NULL, quantity INTEGER NOT NULL,
        undone INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS reservations_of_order ON reservations (order_id);
    CREATE TRIGGER IF NOT EXISTS release AFTER UPDATE OF undone ON reservations
    WHEN new.undone = 1 AND old.undone = 0 BEGIN
        UPDATE stock SET left = left + new.quantity WHERE sku = new.sku;
    END;";

pub(crate) fn create_tables(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute_batch(TABLES)?;
    let stock = SKUS.iter().map(|sku| (*sku, IN_STOCK)).chain([(SOLD_OUT, 0)]);
    for (sku, quantity) in stock {
        connection.execute("INSERT OR IGNORE INTO stock VALUES (?1, ?2, ?2)", (sku, quantity))?;
    }
    Ok(())
}

pub(crate) fn router(books: Books) -> Router {
    Router::new()
        .route("/reservations", post(reserve))
        .route("/reservations/{order}", delete(release))
        .with_state(books)
}

#[derive(Deserialize)]
struct Reserve {
    order: String,
    sku: String,
    quantity: u32,
}

async fn reserve(State(books): State<Books>, headers: HeaderMap, Json(wish): Json<Reserve>) -> Response {
    let handler = move |tx: &Connection| {
        let take = "UPDATE stock SET left = left - ?2 WHERE sku = ?1 AND left >= ?2";
        if tx.execute(take, (&wish.sku, wish.quantity)).map_err(Failed::from)? == 0 {
            return Err(Stop::Refuse(refusal(422, "out of stock")));
        }
        let insert = "INSERT INTO reservations (order_id, sku, quantity) VALUES (?1, ?2, ?3)";
        tx.execute(insert, (&wish.order, &wish.sku, wish.quantity)).map_err(Failed::from)?;
        Ok(Answer::new(201, json!({ "row": tx.last_insert_rowid(), "order": wish.order }).to_string()))
    };
    books.step(&headers, handler).await
}

async fn release(State(books): State<Books>, headers: HeaderMap, Path(order): Path<String>) -> Response {
    let release = "UPDATE reservations SET undone = 1 WHERE id = ?1 AND order_id = ?2 AND undone = 0";
    books.undo(&headers, order, release).await
}

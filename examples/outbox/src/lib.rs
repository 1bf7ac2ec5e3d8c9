//! A saga that begins with a row of your own database, and a step that writes to it.
//!
//! Two things that must not come apart:
//! - a row is committed *if and only if* its saga will run: the row and the wish to start the saga
//!   (the *outbox*) are one SQLite transaction, the row's id is the saga's id, and [`drain`] may be
//!   killed anywhere and run again, since the same id is the same saga;
//! - a step's write and the *receipt* that it was made are one transaction, so that a step performed
//!   twice writes once.
//!
//! Decides nothing about recovery: that is SQLite's on one side, rallypoint's on the other, and the
//! ids between them.

use rallypoint::{
    App, Registry, Saga, SagaError, Sagas, StartError, Step, StepCx, StepError, StepOutcome, UndoError,
};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Called before each statement: a test ends the process there.
pub type Between<'a> = &'a (dyn Fn(&str) + Sync);

/// Nobody is interested.
pub fn nobody(_statement: &str) {}

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, status TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS outbox (order_id INTEGER PRIMARY KEY);
    CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, pieces INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS receipts (key TEXT PRIMARY KEY, undone INTEGER NOT NULL);
";

/// Opens the user's database.
///
/// # Errors
/// What SQLite says.
pub fn database(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(TABLES)?;
    Ok(connection)
}

/// Takes an order in: the row and the wish to start its saga are one transaction.
///
/// # Errors
/// What SQLite says; nothing was written then.
pub fn place(connection: &mut Connection, id: i64, item: &str, between: Between<'_>) -> rusqlite::Result<()> {
    between("begin");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    between("insert the order");
    transaction.execute("INSERT OR IGNORE INTO orders VALUES (?1, ?2, 'placed')", params![id, item])?;
    between("insert into the outbox");
    transaction.execute(
        "INSERT OR IGNORE INTO outbox SELECT id FROM orders WHERE id = ?1 AND status = 'placed'",
        [id],
    )?;
    between("commit");
    transaction.commit()?;
    between("done");
    Ok(())
}

/// Why the outbox could not be drained; it is drained again later.
#[derive(Debug, Error)]
pub enum DrainError {
    /// The user's database.
    #[error("the database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The saga could not be started.
    #[error("order {0}: {1}")]
    Start(i64, StartError),
}

/// Starts the saga of each row in the outbox, then forgets the row. Killed between the two, it finds
/// the row again and starts the same saga, which is no second one.
///
/// # Errors
/// [`DrainError`]; what was started stays started.
pub async fn drain(path: &Path, sagas: &Sagas, between: Between<'_>) -> Result<usize, DrainError> {
    let connection = database(path)?;
    let rows: Vec<(i64, String)> = {
        let mut select = connection.prepare(
            "SELECT id, item FROM outbox JOIN orders ON orders.id = outbox.order_id ORDER BY id LIMIT 100",
        )?;
        select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?
    };
    let count = rows.len();
    for (id, item) in rows {
        between("start the saga");
        let order = Order { id, item };
        sagas.start("order", &id.to_string(), &order).await.map_err(|error| DrainError::Start(id, error))?;
        between("delete from the outbox");
        connection.execute("DELETE FROM outbox WHERE order_id = ?1", [id])?;
        between("drained");
    }
    Ok(count)
}

/// What the steps need: the way to the database.
pub struct Shop {
    /// The user's database.
    pub path: PathBuf,
    /// Called before each statement of a step.
    pub between: fn(&str),
}

/// An order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its row, and its saga.
    pub id: i64,
    /// What is ordered.
    pub item: String,
}

/// Takes a piece out of the stock. The write and its receipt commit together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakeOne {
    /// Of what.
    pub item: String,
}

impl Step<Shop> for TakeOne {
    const NAME: &'static str = "take_one";
    type Output = ();
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
        let between = cx.app().between;
        let mut connection = database(&cx.app().path)?;
        between("begin the step");
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let undone = transaction
            .query_row("SELECT undone FROM receipts WHERE key = ?1", [cx.key()], |row| row.get::<_, bool>(0));
        match undone.optional()? {
            Some(false) => return Ok(()), // it was made before
            Some(true) => return Err(StepError::business("it was undone before it came".to_owned())),
            None => {}
        }
        between("write");
        let taken = transaction
            .execute("UPDATE stock SET pieces = pieces - 1 WHERE item = ?1 AND pieces > 0", [&self.item])?;
        if taken == 0 {
            return Err(StepError::business(format!("no {} is left", self.item)));
        }
        between("receipt");
        transaction.execute("INSERT INTO receipts VALUES (?1, 0)", [cx.key()])?;
        between("commit the step");
        transaction.commit()?;
        between("the step is done");
        Ok(())
    }
    async fn undo(&self, cx: StepCx<'_, Shop>, _: StepOutcome<()>) -> Result<(), UndoError> {
        let between = cx.app().between;
        let mut connection = database(&cx.app().path)?;
        let key_of = cx.key_of().unwrap_or_default();
        between("begin the undo");
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let moved =
            transaction.execute("UPDATE receipts SET undone = 1 WHERE key = ?1 AND undone = 0", [key_of])?;
        between("write the undo");
        if moved == 1 {
            transaction.execute("UPDATE stock SET pieces = pieces + 1 WHERE item = ?1", [&self.item])?;
        } else {
            // It comes before its step, or again: the mark refuses the step.
            transaction.execute("INSERT OR IGNORE INTO receipts VALUES (?1, 1)", [key_of])?;
        }
        between("commit the undo");
        transaction.commit()?;
        between("the undo is done");
        Ok(())
    }
}

/// Says in the row how its saga went: setting it twice is setting it once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settle {
    /// The row.
    pub id: i64,
}

impl Step<Shop> for Settle {
    const NAME: &'static str = "settle";
    type Output = ();
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
        let connection = database(&cx.app().path)?;
        if self.id % 7 == 0 {
            return Err(StepError::business("orders whose number divides by seven are refused".to_owned()));
        }
        (cx.app().between)("settle");
        connection.execute("UPDATE orders SET status = 'sold' WHERE id = ?1", [self.id])?;
        Ok(())
    }
    async fn undo(&self, cx: StepCx<'_, Shop>, _: StepOutcome<()>) -> Result<(), UndoError> {
        let connection = database(&cx.app().path)?;
        connection.execute("UPDATE orders SET status = 'placed' WHERE id = ?1", [self.id])?;
        Ok(())
    }
}

/// Takes a piece, then settles the order.
///
/// # Errors
/// [`SagaError`]: nothing is left, or the order is refused; the piece goes back.
pub async fn order(s: Saga<Shop>, order: Order) -> Result<(), SagaError> {
    s.step(TakeOne { item: order.item }).await?;
    s.step(Settle { id: order.id }).await?;
    Ok(())
}

/// The application.
#[must_use]
pub fn application(path: &Path, between: fn(&str)) -> App {
    let shop = Shop { path: path.to_owned(), between };
    App::define().sagas(Registry::new(shop).step::<TakeOne>().step::<Settle>().saga("order", 1, order))
}

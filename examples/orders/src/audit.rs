//! What the three services were left with: each order is whole or absent, in all of them.
//!
//! Reads only. Orders under way are found as violations: audit when nothing is.

use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The databases of the three services.
#[derive(Debug, Clone)]
pub struct Databases {
    /// Of the inventory.
    pub inventory: PathBuf,
    /// Of the payment.
    pub payment: PathBuf,
    /// Of the shipping.
    pub shipping: PathBuf,
}

/// How many orders of which kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// That any of the three acted for.
    pub orders: u64,
    /// Reserved, charged, labelled and shipped, once each.
    pub complete: u64,
    /// All that was done is undone.
    pub undone: u64,
    /// Neither.
    pub violations: u64,
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How many orders of which kind.
    pub counts: Counts,
    /// What is wrong, a sentence each. Besides orders, these are goods that do not add up.
    pub violations: Vec<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}; it must be the database of that service", db.display())]
pub struct AuditError {
    db: PathBuf,
    source: rusqlite::Error,
}

/// What is in force for one order.
#[derive(Debug, Default, Clone, Copy)]
struct InForce {
    reserved: i64,
    charged: i64,
    labelled: i64,
    shipped: i64,
}

type Orders = BTreeMap<String, InForce>;

/// Looks at every order that any of the three acted for.
pub fn audit(databases: &Databases) -> Result<Report, AuditError> {
    let mut orders = Orders::new();
    let mut violations = Vec::new();
    read(&databases.inventory, |db| {
        count(db, "reservations", "undone = 0", &mut orders, |order| &mut order.reserved)?;
        violations = stock(db)?;
        Ok(())
    })?;
    read(&databases.payment, |db| {
        count(db, "charges", "undone = 0", &mut orders, |order| &mut order.charged)
    })?;
    read(&databases.shipping, |db| {
        count(db, "labels", "undone = 0", &mut orders, |order| &mut order.labelled)?;
        count(db, "shipments", "1", &mut orders, |order| &mut order.shipped)
    })?;
    let mut counts = Counts { orders: orders.len() as u64, ..Counts::default() };
    for (id, InForce { reserved, charged, labelled, shipped }) in orders {
        match [reserved, charged, labelled, shipped] {
            [1, 1, 1, 1] => counts.complete += 1,
            [0, 0, 0, 0] => counts.undone += 1,
            _ => {
                counts.violations += 1;
                violations.push(format!(
                    "{id}: reserved {reserved}, charged {charged}, labelled {labelled} and shipped {shipped} \
                     times; must be once each, or never"
                ));
            }
        }
    }
    Ok(Report { counts, violations })
}

fn read(db: &Path, look: impl FnOnce(&Connection) -> Result<(), rusqlite::Error>) -> Result<(), AuditError> {
    // Not read-only: what a killed service left in the write-ahead log has to be recovered first.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(db, flags)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        look(&connection)
    };
    open().map_err(|source| AuditError { db: db.to_owned(), source })
}

/// Adds up the rows of a table that are in force, by order; orders without any are seen too.
fn count(
    db: &Connection,
    table: &str,
    in_force: &str,
    orders: &mut Orders,
    field: impl Fn(&mut InForce) -> &mut i64,
) -> Result<(), rusqlite::Error> {
    let sum = format!("SELECT order_id, sum({in_force}) FROM {table} GROUP BY order_id");
    let mut statement = db.prepare(&sum)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        *field(orders.entry(row.get(0)?).or_default()) = row.get(1)?;
    }
    Ok(())
}

/// What is left and what is reserved is what there was.
fn stock(db: &Connection) -> Result<Vec<String>, rusqlite::Error> {
    let wrong = "SELECT sku, initial, left, taken FROM (
            SELECT sku, initial, left, (SELECT coalesce(sum(quantity), 0) FROM reservations
                WHERE reservations.sku = stock.sku AND undone = 0) AS taken
            FROM stock)
        WHERE left + taken <> initial ORDER BY sku";
    let mut statement = db.prepare(wrong)?;
    let rows = statement.query_map([], |row| {
        let (sku, [initial, left, taken]): (String, [i64; 3]) =
            (row.get(0)?, [row.get(1)?, row.get(2)?, row.get(3)?]);
        Ok(format!("{sku}: {left} left and {taken} reserved of {initial}; must add up"))
    })?;
    rows.collect()
}

//! An account in a SQLite file, charged by a step and paid back by its undo.
#![allow(dead_code, reason = "each test file uses its part of it")]

use rallypoint_barrier::answer::{Answer, Reply};
use rallypoint_barrier::guard::{self, Error, Stop};
use rusqlite::Connection;
use std::path::Path;
use std::time::Duration;

pub(crate) const CENTS: i64 = 30;

pub(crate) fn open(file: &Path, journal: &str) -> Connection {
    let connection = Connection::open(file).unwrap();
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection.pragma_update(None, "journal_mode", journal).unwrap();
    // No power is cut here; what a crash of the process leaves is in the files.
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    guard::create_table(&connection).unwrap();
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, cents INTEGER NOT NULL)")
        .unwrap();
    connection
}

pub(crate) fn balance(connection: &Connection, name: &str) -> i64 {
    let found = connection.query_row("SELECT cents FROM account WHERE name = ?1", [name], |row| row.get(0));
    match found {
        Ok(cents) => cents,
        Err(rusqlite::Error::QueryReturnedNoRows) => 0,
        Err(error) => panic!("{error}"),
    }
}

fn add(connection: &Connection, name: &str, cents: i64) -> Result<(), rusqlite::Error> {
    let upsert = "INSERT INTO account VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET cents = cents + ?2";
    connection.execute(upsert, (name, cents)).map(|_| ())
}

/// Takes the money; `body` tells one run of the handler from another.
pub(crate) fn charge(
    connection: &mut Connection,
    name: &str,
    body: &str,
) -> Result<Reply, Error<rusqlite::Error>> {
    guard::step(connection, &format!("{name}/charge"), |tx| {
        add(tx, name, -CENTS)?;
        Ok(Answer::new(201, body))
    })
}

/// Takes the money and then finds a reason to refuse.
pub(crate) fn refuse(
    connection: &mut Connection,
    name: &str,
    body: &str,
) -> Result<Reply, Error<rusqlite::Error>> {
    guard::step(connection, &format!("{name}/charge"), |tx| {
        add(tx, name, -CENTS)?;
        Err(Stop::Refuse(Answer::new(422, body)))
    })
}

/// Pays the money back. `undo` tells one undo of the same step from another.
pub(crate) fn refund(
    connection: &mut Connection,
    name: &str,
    undo: &str,
) -> Result<Reply, Error<rusqlite::Error>> {
    guard::undo(connection, &format!("{name}/{undo}"), &format!("{name}/charge"), |tx, first| {
        add(tx, name, CENTS)?;
        let mut body = b"undid ".to_vec();
        body.extend_from_slice(&first.body);
        Ok(Answer::new(200, body))
    })
}

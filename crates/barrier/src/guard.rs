//! The guard for SQLite: it owns the transaction, from `BEGIN IMMEDIATE` to its commit or rollback.
//!
//! A handler gets a connection to write with and says what came of it; it never commits. Whatever
//! ends without an answer (an error, a panic, the process) leaves neither business writes nor a
//! record, and the next attempt runs as if it were the first.

use crate::answer::{Answer, Reply, Source};
use crate::decide::{self, Misuse, OnStep, OnUndo, Row, State};
use crate::key::Key;
use crate::sql;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why a handler did not act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop<E> {
    /// The business says no: the handler's writes are rolled back and this is the answer. A step's
    /// refusal is recorded: each repeat gets it, and an undo has nothing to undo. An undo's is not
    /// recorded: the next attempt runs the handler again.
    Refuse(Answer),
    /// Something failed that may work later. Everything is rolled back, nothing is recorded.
    Fail(E),
}

impl<E> From<E> for Stop<E> {
    /// An error through `?` is a failure, never a refusal.
    fn from(error: E) -> Self {
        Self::Fail(error)
    }
}

/// Why there is no answer. Nothing was changed, unless `Database` came from the commit itself, whose
/// outcome is then unknown: the same request again finds out.
#[derive(Debug, thiserror::Error)]
pub enum Error<E> {
    /// The database failed; try again.
    #[error("the barrier's database failed: {0}")]
    Database(#[source] rusqlite::Error),
    /// The handler failed, with this.
    #[error("the handler failed: {0}")]
    Handler(E),
    /// The caller misused a key; trying again does not help.
    #[error(transparent)]
    Misuse(Misuse),
    /// The handler ended the guard's transaction with a statement of its own: a bug in the handler.
    /// What it committed itself stays.
    #[error("the handler ended the transaction that the barrier owns; it must not commit or roll back")]
    Ended,
}

/// Creates the table if it is missing.
pub fn create_table(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.execute(sql::CREATE_TABLE, []).map(|_| ())
}

/// Performs a step once: the first time runs `handler`, each repeat gets the first answer.
///
/// `handler` writes through the connection that it is given, and must not end its transaction.
///
/// ```
/// use rallypoint_barrier::answer::{Answer, Source};
/// use rallypoint_barrier::guard::{self, Stop};
///
/// let mut connection = rusqlite::Connection::open_in_memory()?;
/// guard::create_table(&connection)?;
/// connection.execute_batch("CREATE TABLE stock (sku TEXT, left INTEGER)")?;
/// let reply = guard::step::<rusqlite::Error>(&mut connection, "order-17/reserve", |tx| {
///     if tx.execute("UPDATE stock SET left = left - 1 WHERE sku = 'tea' AND left > 0", [])? == 0 {
///         return Err(Stop::Refuse(Answer::new(422, "out of stock")));
///     }
///     Ok(Answer::new(201, "reserved"))
/// })?;
/// assert_eq!((reply.source, reply.answer.status), (Source::Refused, 422));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn step<'k, E>(
    connection: &mut Connection,
    key: impl Into<Key<'k>>,
    handler: impl FnOnce(&Connection) -> Result<Answer, Stop<E>>,
) -> Result<Reply, Error<E>> {
    let key = key.into();
    let transaction = begin(connection)?;
    let found = claim_or_find(&transaction, key).map_err(Error::Database)?;
    match decide::step(key, found).map_err(Error::Misuse)? {
        OnStep::Answer(reply) => Ok(reply),
        OnStep::Run => {
            let reply = run(&transaction, handler)?;
            let state = if reply.source == Source::Fresh { State::Acted } else { State::Refused };
            record(&transaction, key.text, state, None, &reply.answer).map_err(Error::Database)?;
            transaction.commit().map_err(Error::Database)?;
            Ok(reply)
        }
    }
}

/// Undoes the step with key `of` once, with the step's first answer in hand. If the step has not
/// acted, nothing runs, and from now on it cannot.
///
/// ```
/// use rallypoint_barrier::answer::{Answer, Source};
/// use rallypoint_barrier::guard;
/// use rusqlite::Error;
///
/// let mut connection = rusqlite::Connection::open_in_memory()?;
/// guard::create_table(&connection)?;
/// let undo = guard::undo::<Error>(&mut connection, "order-17/refund", "order-17/charge", |_, _| {
///     Ok(Answer::new(200, "refunded"))
/// })?;
/// assert_eq!(undo.source, Source::NothingToUndo);
/// let step = guard::step::<Error>(&mut connection, "order-17/charge", |_| Ok(Answer::new(201, "charged")))?;
/// assert_eq!(step.source, Source::TooLate);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn undo<'k, E>(
    connection: &mut Connection,
    key: impl Into<Key<'k>>,
    of: &str,
    handler: impl FnOnce(&Connection, &Answer) -> Result<Answer, Stop<E>>,
) -> Result<Reply, Error<E>> {
    let key = key.into();
    let transaction = begin(connection)?;
    let found = claim_or_find(&transaction, key).map_err(Error::Database)?;
    let step = claim_or_find(&transaction, Key::new(of)).map_err(Error::Database)?;
    let (reply, step_answer) = match decide::undo(key, of, found, step).map_err(Error::Misuse)? {
        OnUndo::Answer(reply) => return Ok(reply),
        OnUndo::Run(first) => {
            let reply = run(&transaction, |connection| handler(connection, &first))?;
            if reply.source == Source::Refused {
                // Dropping the transaction rolls it back: an undo is tried until it succeeds.
                return Ok(reply);
            }
            (reply, first)
        }
        OnUndo::RecordNothing => {
            let answer = Answer::nothing_to_undo();
            (Reply { answer: answer.clone(), source: Source::NothingToUndo }, answer)
        }
    };
    record(&transaction, of, State::Undone, None, &step_answer).map_err(Error::Database)?;
    record(&transaction, key.text, State::Undo, Some(of), &reply.answer).map_err(Error::Database)?;
    transaction.commit().map_err(Error::Database)?;
    Ok(reply)
}

/// Forgets keys that were last written longer than `age` ago; says how many. Choose an age beyond
/// that of the longest saga, with its retries and the time a person takes to resolve a stuck one:
/// a forgotten step would act again, and its undo would find nothing to undo.
pub fn forget(connection: &Connection, age: Duration) -> Result<usize, rusqlite::Error> {
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    connection.execute(sql::FORGET, [now_ms().saturating_sub(age_ms)])
}

/// `IMMEDIATE`: the write lock comes first. A transaction that reads and then writes could find the
/// key unused and fail at its first write, with the handler run for nothing.
fn begin<E>(connection: &mut Connection) -> Result<Transaction<'_>, Error<E>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(Error::Database)
}

/// `None`: the key is new, and this transaction's.
fn claim_or_find(connection: &Connection, key: Key<'_>) -> Result<Option<Row>, rusqlite::Error> {
    if connection.execute(sql::CLAIM, params![key.text, key.fingerprint, now_ms()])? == 1 {
        return Ok(None);
    }
    let found = connection.query_row(sql::FIND, [key.text], |row| {
        let word: String = row.get(0)?;
        let state = State::parse(&word).ok_or_else(|| {
            let why = format!("`{word}` is no state that this version of the barrier knows");
            rusqlite::Error::FromSqlConversionFailure(0, Type::Text, why.into())
        })?;
        let answer = Answer { status: row.get(3)?, body: row.get_ref(4)?.as_bytes()?.to_vec() };
        Ok(Row { state, undo_of: row.get(1)?, fingerprint: row.get(2)?, answer })
    });
    found.optional()
}

/// Runs the handler between savepoints: what it wrote stays only if it acted.
fn run<E>(
    transaction: &Transaction<'_>,
    handler: impl FnOnce(&Connection) -> Result<Answer, Stop<E>>,
) -> Result<Reply, Error<E>> {
    let execute = |statement| transaction.execute(statement, []).map_err(Error::Database);
    execute(sql::SAVEPOINT)?;
    let reply = match handler(transaction) {
        Err(Stop::Fail(error)) => return Err(Error::Handler(error)),
        _ if transaction.is_autocommit() => return Err(Error::Ended),
        Ok(answer) => Reply { answer, source: Source::Fresh },
        Err(Stop::Refuse(answer)) => {
            execute(sql::ROLLBACK_TO)?;
            Reply { answer, source: Source::Refused }
        }
    };
    execute(sql::RELEASE)?;
    Ok(reply)
}

fn record(
    connection: &Connection,
    key: &str,
    state: State,
    undo_of: Option<&str>,
    answer: &Answer,
) -> Result<(), rusqlite::Error> {
    let row = params![state.as_str(), undo_of, answer.status, answer.body, now_ms(), key];
    connection.execute(sql::RECORD, row).map(|_| ())
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

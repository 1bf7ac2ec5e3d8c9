//! For the services that a saga calls: each step and each undo takes effect once, and never in the
//! wrong order, however often and however late their requests arrive.
//!
//! One table, written in the *same transaction* as the business change. [`decide`] holds the rules
//! and [`sql`] the statements, for any driver; [`guard`] is both of them for SQLite. The table, the
//! rules and the same in Python: `docs/barrier.md`.
//!
//! The idea is that of the sub-transaction barrier of [dtm](https://en.dtm.pub/practice/barrier.html):
//! a row per step and per undo, inserted by whoever comes first. This one also keeps the first
//! answer, and owns commit and rollback, so that a refusal is never recorded as if it had acted.
//!
//! ```
//! use rallypoint_barrier::answer::{Answer, Source};
//! use rallypoint_barrier::guard;
//!
//! let mut connection = rusqlite::Connection::open_in_memory()?;
//! guard::create_table(&connection)?;
//! connection.execute_batch("CREATE TABLE account (cents INTEGER); INSERT INTO account VALUES (100)")?;
//!
//! let mut charge = || {
//!     guard::step(&mut connection, "order-17/charge", |tx| {
//!         tx.execute("UPDATE account SET cents = cents - 30", [])?;
//!         Ok(Answer::new(201, "charged"))
//!     })
//! };
//! assert_eq!(charge()?.source, Source::Fresh);
//! assert_eq!(charge()?.source, Source::Repeated);
//! let cents: i64 = connection.query_row("SELECT cents FROM account", [], |row| row.get(0))?;
//! assert_eq!(cents, 70);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod answer;
pub mod decide;
#[cfg(feature = "rusqlite")]
pub mod guard;
pub mod key;
pub mod sql;

/// The header with the key of this request: the same at each attempt.
pub const KEY_HEADER: &str = "Idempotency-Key";
/// The header of an undo with the key of the step that it undoes.
pub const KEY_OF_HEADER: &str = "Idempotency-Key-Of";

//! The statements, alike for SQLite and PostgreSQL but for the table's types and the row lock.
//!
//! Parameters are `$1`, `$2`... in order of first appearance. Each request is one transaction:
//!
//! 1. `BEGIN IMMEDIATE` (PostgreSQL: `BEGIN` at its default level, read committed; above that, a
//!    serialization failure is a failure like any other: roll back and try again).
//! 2. [`CLAIM`] the key. One row written: nobody has used it. None: [`FIND`] it. On PostgreSQL the
//!    claim waits for a transaction that has claimed the same key and not ended yet; that is why the
//!    claim comes first. An undo claims its own key, then its step's. Looking first would lose:
//!
//!    ```text
//!    A: find K -> nothing                      A: act, insert K, commit
//!    B:              find K -> nothing   act, insert K -> fails, after the handler ran
//!    ```
//! 3. [`decide`](crate::decide), with `None` for what was claimed.
//! 4. The handler, between [`SAVEPOINT`] and [`RELEASE`]. A refusal: [`ROLLBACK_TO`], then
//!    [`RELEASE`]. Any other error: roll everything back.
//! 5. [`RECORD`] what was decided, and commit. An answer without a record: roll back.

/// Creates the table, on SQLite.
pub const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS rallypoint_barrier (
    key TEXT PRIMARY KEY NOT NULL,
    state TEXT NOT NULL,
    undo_of TEXT,
    fingerprint BLOB,
    status INTEGER NOT NULL,
    body BLOB NOT NULL,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID";

/// Creates the table, on PostgreSQL.
pub const CREATE_TABLE_POSTGRES: &str = "CREATE TABLE IF NOT EXISTS rallypoint_barrier (
    key TEXT PRIMARY KEY NOT NULL,
    state TEXT NOT NULL,
    undo_of TEXT,
    fingerprint BYTEA,
    status INTEGER NOT NULL,
    body BYTEA NOT NULL,
    at_ms BIGINT NOT NULL
)";

/// Claims a key: `$1` key, `$2` fingerprint of the request or NULL (for the step of an undo: NULL),
/// `$3` milliseconds since 1970. Writes one row, or none if the key is taken.
pub const CLAIM: &str = "INSERT INTO rallypoint_barrier \
    (key, state, undo_of, fingerprint, status, body, at_ms) \
    VALUES ($1, 'claimed', NULL, $2, 0, '', $3) ON CONFLICT (key) DO NOTHING";

/// Reads a key: `$1` key. Columns: state, undo_of, fingerprint, status, body. On SQLite.
pub const FIND: &str =
    "SELECT state, undo_of, fingerprint, status, body FROM rallypoint_barrier WHERE key = $1";

/// The same on PostgreSQL, where the row has to be locked against a second undo of the same step.
pub const FIND_POSTGRES: &str = "SELECT state, undo_of, fingerprint, status, body \
    FROM rallypoint_barrier WHERE key = $1 FOR UPDATE";

/// Writes what became of a key, and leaves the fingerprint that it was claimed with: `$1` state, `$2` step of an undo, `$3` status, `$4` body,
/// `$5` milliseconds since 1970, `$6` key.
pub const RECORD: &str = "UPDATE rallypoint_barrier \
    SET state = $1, undo_of = $2, status = $3, body = $4, at_ms = $5 WHERE key = $6";

/// Before the handler.
pub const SAVEPOINT: &str = "SAVEPOINT rallypoint_handler";
/// After a handler that refused: its writes go, the claim stays.
pub const ROLLBACK_TO: &str = "ROLLBACK TO SAVEPOINT rallypoint_handler";
/// After the handler.
pub const RELEASE: &str = "RELEASE SAVEPOINT rallypoint_handler";

/// Forgets old keys: `$1` milliseconds since 1970; what was last written before that goes. Only
/// longer ago than the longest saga: the undo of a forgotten step is a recorded no-op, and a
/// forgotten step acts again when its request is repeated.
pub const FORGET: &str = "DELETE FROM rallypoint_barrier WHERE at_ms < $1";

//! A crash at each statement: the files are copied before and after every statement that SQLite
//! runs, and whoever opens such a copy finds all of the request or nothing of it. Then the caller
//! tries again, and the end is the same.

mod bank;

use bank::CENTS;
use rallypoint_barrier::answer::{Answer, Reply, Source};
use rallypoint_barrier::guard::{self, Error, Stop};
use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use std::cell::RefCell;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const NAME: &str = "alice";
const FILES: [&str; 3] = ["bank.db", "bank.db-wal", "bank.db-journal"];

type Operation = fn(&mut Connection) -> Result<Reply, Error<rusqlite::Error>>;

/// The copies, with what was about to run or had run.
type Copies = Vec<(PathBuf, String)>;

thread_local! {
    /// The folder whose files are copied, and the copies: SQLite's trace takes a bare function.
    static COPIES: RefCell<(PathBuf, Copies)> = RefCell::default();
}

fn copy(event: TraceEvent<'_>) {
    let moment = match event {
        TraceEvent::Stmt(_, statement) => format!("before {statement}"),
        TraceEvent::Profile(statement, _) => format!("after {}", statement.sql()),
        _ => return,
    };
    COPIES.with_borrow_mut(|(folder, copies)| {
        let target = folder.join(format!("crash-{}", copies.len()));
        fs::create_dir(&target).unwrap();
        for file in FILES.iter().filter(|file| folder.join(file).exists()) {
            fs::copy(folder.join(file), target.join(file)).unwrap();
        }
        copies.push((target, moment));
    });
}

fn charge(connection: &mut Connection) -> Result<Reply, Error<rusqlite::Error>> {
    bank::charge(connection, NAME, "charged")
}

fn refuse(connection: &mut Connection) -> Result<Reply, Error<rusqlite::Error>> {
    bank::refuse(connection, NAME, "no")
}

fn refund(connection: &mut Connection) -> Result<Reply, Error<rusqlite::Error>> {
    bank::refund(connection, NAME, "undo")
}

/// Does `before`, then crashes at each statement of `operation` and repeats it. Says how many of the
/// crashes came before and after the commit.
fn crash_at_each_statement(journal: &str, before: &[Operation], operation: Operation) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let file = |folder: &Path| folder.join(FILES[0]);
    let mut connection = bank::open(&file(folder.path()), journal);
    for operation in before {
        operation(&mut connection).unwrap();
    }
    let balance_before = bank::balance(&connection, NAME);
    COPIES.set((folder.path().to_owned(), Copies::new()));
    let statements = TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_PROFILE;
    connection.trace_v2(statements, Some(copy));
    let first = operation(&mut connection).unwrap();
    connection.trace_v2(statements, None);
    let balance_after = bank::balance(&connection, NAME);

    let (mut nothing, mut all) = (0, 0);
    let (_, copies) = COPIES.take();
    for (copy, moment) in copies {
        let mut connection = bank::open(&file(&copy), journal);
        let found = bank::balance(&connection, NAME);
        let again = operation(&mut connection).unwrap();
        assert_eq!(again.answer, first.answer, "{moment}");
        if again.source == Source::Repeated {
            assert_eq!(found, balance_after, "{moment}");
            all += 1;
        } else {
            assert_eq!((found, again.source), (balance_before, first.source), "{moment}");
            nothing += 1;
        }
        assert_eq!(bank::balance(&connection, NAME), balance_after, "{moment}");
        assert_eq!(operation(&mut connection).unwrap().source, Source::Repeated, "{moment}");
        assert_eq!(bank::balance(&connection, NAME), balance_after, "{moment}");
    }
    (nothing, all)
}

#[test]
fn a_crash_at_any_statement_leaves_all_or_nothing() {
    let cases: [(&[Operation], Operation); 5] =
        [(&[], charge), (&[], refuse), (&[], refund), (&[charge], refund), (&[refuse], refund)];
    for journal in ["WAL", "DELETE"] {
        for (before, operation) in cases {
            let (nothing, all) = crash_at_each_statement(journal, before, operation);
            // At least BEGIN, claim, record and COMMIT, each before and after.
            assert!(nothing >= 7 && all >= 1, "{journal}: {nothing} crashes before, {all} after the commit");
        }
    }
}

#[test]
fn a_handler_that_panics_or_fails_records_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join(FILES[0]), "WAL");
    let take = |tx: &Connection| tx.execute("INSERT INTO account VALUES (?1, -1)", [NAME]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        guard::step::<rusqlite::Error>(&mut connection, "alice/charge", |tx| {
            take(tx)?;
            std::panic::resume_unwind(Box::new("the handler"));
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(bank::balance(&connection, NAME), 0);
    let failed = guard::step(&mut connection, "alice/charge", |tx| {
        take(tx).map_err(|_| "take")?;
        Err(Stop::Fail("the network"))
    });
    assert!(matches!(failed, Err(Error::Handler("the network"))), "{failed:?}");
    assert_eq!(bank::balance(&connection, NAME), 0);
    assert_eq!(charge(&mut connection).unwrap().source, Source::Fresh);

    let failed = guard::undo(&mut connection, "alice/undo", "alice/charge", |tx, _| {
        tx.execute("DELETE FROM account", []).map_err(|_| "delete")?;
        Err(Stop::Fail("the network"))
    });
    assert!(matches!(failed, Err(Error::Handler("the network"))), "{failed:?}");
    assert_eq!(bank::balance(&connection, NAME), -CENTS);
    assert_eq!(refund(&mut connection).unwrap().source, Source::Fresh);
    assert_eq!(bank::balance(&connection, NAME), 0);
}

#[test]
fn a_refused_undo_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join(FILES[0]), "WAL");
    charge(&mut connection).unwrap();
    let refused = guard::undo::<rusqlite::Error>(&mut connection, "alice/undo", "alice/charge", |tx, _| {
        tx.execute("DELETE FROM account", [])?;
        Err(Stop::Refuse(Answer::new(409, "the account is frozen")))
    });
    let refused = refused.unwrap();
    assert_eq!((refused.source, refused.answer.status), (Source::Refused, 409));
    assert_eq!(bank::balance(&connection, NAME), -CENTS);
    assert_eq!(charge(&mut connection).unwrap().source, Source::Repeated);
    assert_eq!(refund(&mut connection).unwrap().source, Source::Fresh);
    assert_eq!(bank::balance(&connection, NAME), 0);
}

#[test]
fn a_handler_that_commits_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join(FILES[0]), "WAL");
    let ended = guard::step::<rusqlite::Error>(&mut connection, "K", |tx| {
        tx.execute_batch("COMMIT")?;
        Ok(Answer::new(200, "done"))
    });
    assert!(matches!(ended, Err(Error::Ended)), "{ended:?}");
}

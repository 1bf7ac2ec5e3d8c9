//! Two connections with one key at the same time, and forgetting.

mod bank;

use bank::CENTS;
use rallypoint_barrier::answer::{Answer, Reply, Source};
use rallypoint_barrier::decide::Misuse;
use rallypoint_barrier::guard::{self, Error};
use rallypoint_barrier::key::{Key, fingerprint};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

const ROUNDS: usize = 100;

/// Two connections, each with one request per round, started together.
fn race(
    file: &Path,
    first: impl Fn(&mut Connection, &str) -> Reply + Sync,
    second: impl Fn(&mut Connection, &str) -> Reply + Sync,
) -> Vec<(Reply, Reply)> {
    bank::open(file, "WAL");
    let start = Barrier::new(2);
    let run = |request: &(dyn Fn(&mut Connection, &str) -> Reply + Sync)| {
        let mut connection = bank::open(file, "WAL");
        let round = |round| {
            start.wait();
            request(&mut connection, &format!("account-{round}"))
        };
        (0..ROUNDS).map(round).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| run(&first));
        let second = run(&second);
        first.join().unwrap().into_iter().zip(second).collect()
    })
}

#[test]
fn of_two_equal_steps_one_acts_and_both_get_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bank.db");
    let replies = race(
        &file,
        |connection, name| bank::charge(connection, name, "first").unwrap(),
        |connection, name| bank::charge(connection, name, "second").unwrap(),
    );
    let connection = bank::open(&file, "WAL");
    for (round, (first, second)) in replies.iter().enumerate() {
        assert_eq!(first.answer, second.answer);
        assert_ne!(first.source, second.source);
        assert_eq!(bank::balance(&connection, &format!("account-{round}")), -CENTS);
    }
}

#[test]
fn a_step_that_races_its_undo_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bank.db");
    let replies = race(
        &file,
        |connection, name| bank::charge(connection, name, "charged").unwrap(),
        |connection, name| bank::refund(connection, name, "undo").unwrap(),
    );
    let connection = bank::open(&file, "WAL");
    for (round, (step, undo)) in replies.iter().enumerate() {
        let sources = (step.source, undo.source);
        let either =
            [(Source::Fresh, Source::Fresh), (Source::TooLate, Source::NothingToUndo)].contains(&sources);
        assert!(either, "{sources:?}");
        assert_eq!(bank::balance(&connection, &format!("account-{round}")), 0);
    }
}

#[test]
fn only_what_is_old_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join("bank.db"), "WAL");
    bank::charge(&mut connection, "old", "charged").unwrap();
    bank::charge(&mut connection, "new", "charged").unwrap();
    let day_ms: u32 = 24 * 60 * 60 * 1000;
    let aged = "UPDATE rallypoint_barrier SET at_ms = at_ms - ?1 WHERE key = 'old/charge'";
    connection.execute(aged, [2 * day_ms]).unwrap();
    assert_eq!(guard::forget(&connection, Duration::from_millis(day_ms.into())).unwrap(), 1);
    assert_eq!(guard::forget(&connection, Duration::MAX).unwrap(), 0);
    assert_eq!(bank::charge(&mut connection, "new", "charged").unwrap().source, Source::Repeated);
    assert_eq!(bank::charge(&mut connection, "old", "charged").unwrap().source, Source::Fresh);
}

#[test]
fn a_misused_key_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join("bank.db"), "WAL");
    bank::charge(&mut connection, "alice", "charged").unwrap();
    let mut undo = |key: &str, of: &str| {
        let result = guard::undo::<rusqlite::Error>(&mut connection, key, of, |_, _| panic!("it ran"));
        match result {
            Err(Error::Misuse(misuse)) => misuse,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(undo("alice/charge", "bob/charge"), Misuse::StepAndUndo);
    assert_eq!(undo("same", "same"), Misuse::StepAndUndo);
    assert_eq!(undo("", "alice/charge"), Misuse::EmptyKey);
    assert_eq!(undo("alice/undo", ""), Misuse::EmptyKey);
    let keys: i64 =
        connection.query_row("SELECT count(*) FROM rallypoint_barrier", [], |row| row.get(0)).unwrap();
    assert_eq!(keys, 1);
    bank::refund(&mut connection, "alice", "undo").unwrap();
    let reused =
        guard::undo::<rusqlite::Error>(&mut connection, "alice/undo", "bob", |_, _| panic!("it ran"));
    assert!(matches!(reused, Err(Error::Misuse(Misuse::UndoOfAnother))), "{reused:?}");
    let reused = guard::step::<rusqlite::Error>(&mut connection, "alice/undo", |_| panic!("it ran"));
    assert!(matches!(reused, Err(Error::Misuse(Misuse::StepAndUndo))), "{reused:?}");
}

#[test]
fn a_key_with_another_request_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = bank::open(&folder.path().join("bank.db"), "WAL");
    let (thirty, forty) = (fingerprint([b"30".as_slice()]), fingerprint([b"40".as_slice()]));
    let mut step = |key: Key<'_>| {
        let done = guard::step::<rusqlite::Error>(&mut connection, key, |_| Ok(Answer::new(201, "charged")));
        done.map(|reply| reply.source)
    };
    let key = Key::new("K");
    assert!(matches!(step(key.of_request(&thirty)), Ok(Source::Fresh)));
    assert!(matches!(step(key.of_request(&thirty)), Ok(Source::Repeated)));
    assert!(matches!(step(key.of_request(&forty)), Err(Error::Misuse(Misuse::OtherRequest))));
    assert!(matches!(step(key), Ok(Source::Repeated)));
    let mut undo = |key: Key<'_>| {
        let done = guard::undo::<rusqlite::Error>(&mut connection, key, "K", |_, _| {
            Ok(Answer::new(200, "refunded"))
        });
        done.map(|reply| reply.source)
    };
    let key = Key::new("U");
    assert!(matches!(undo(key.of_request(&forty)), Ok(Source::Fresh)));
    assert!(matches!(undo(key.of_request(&forty)), Ok(Source::Repeated)));
    assert!(matches!(undo(key.of_request(&thirty)), Err(Error::Misuse(Misuse::OtherRequest))));
    // The undo leaves the step's fingerprint in its place.
    let mut step = |print: &[u8]| {
        let key = Key::new("K").of_request(print);
        guard::step::<rusqlite::Error>(&mut connection, key, |_| panic!("it ran")).map(|reply| reply.source)
    };
    assert!(matches!(step(&thirty), Ok(Source::TooLate)));
    assert!(matches!(step(&forty), Err(Error::Misuse(Misuse::OtherRequest))));
}

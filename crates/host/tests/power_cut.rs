//! The journal on a real disk, with the power cut at many instants: nothing that was said to be
//! durable is missing, on one copy and on two.

use rallypoint_base::id::{LogId, Position};
use rallypoint_host::os::file_disk::{FileDisk, FileDiskOptions};
use rallypoint_recorder::preload::{Preload, library};
use rallypoint_recorder::recording::Recording;
use rallypoint_store::record::Record;
use rallypoint_store::store::{OpenOptions, Store};
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// How many instants are tried; all of them and more seeds in the long setting.
fn instants() -> usize {
    if std::env::var_os("RALLYPOINT_LONG").is_some_and(|value| value == "1") { 2000 } else { 80 }
}

/// What the ledger promises: whether the store exists, the last durable position, and below which
/// one records may be gone.
#[derive(Debug, Default)]
struct Promise {
    created: bool,
    durable: u64,
    cut: u64,
}

fn promise(recording: &Recording, instant: u64) -> Promise {
    let ledger = String::from_utf8(recording.ledger_by(instant)).expect("text");
    let mut promise = Promise::default();
    for line in ledger.lines() {
        let (what, number) = line.split_once(' ').expect("two words");
        let number = number.parse().expect("a number");
        match what {
            "created" => promise.created = true,
            "durable" => promise.durable = number,
            "cut" => promise.cut = number,
            other => panic!("{other}"),
        }
    }
    promise
}

/// Opens what is left and gives the positions of all records, each checked.
fn recover(directories: &[PathBuf]) -> Result<Vec<u64>, String> {
    let open = |directory: &PathBuf| FileDisk::open(directory, FileDiskOptions::default());
    let disks: Vec<FileDisk> =
        directories.iter().map(open).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mounted = Store::mount(disks, OpenOptions::default()).map_err(|error| error.to_string())?;
    let mut positions = Vec::new();
    let mut sink = |record: &Record<'_>| -> Result<(), Infallible> {
        if record.log == LogId(1) {
            assert_eq!(record.payload, record.position.0.to_le_bytes().repeat(25));
            positions.push(record.position.0);
        }
        Ok(())
    };
    let (store, report) = mounted.recover(&mut sink).map_err(|error| format!("{error:?}"))?;
    if !report.lost.is_empty() {
        return Err(format!("damage is reported: {:?}", report.lost));
    }
    assert_eq!(
        store.last_position(LogId(1)).unwrap_or(Position(0)).0,
        positions.last().copied().unwrap_or(0)
    );
    Ok(positions)
}

/// Records a writer and cuts the power at many instants. The error tells the first broken promise.
fn audit(writer: &str, copies: usize) -> Result<(), String> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
    let path = |name: &str| folder.path().join(name);
    let preload = Preload::new(&path("data"))
        .and_then(|preload| preload.record(&path("out")))
        .expect("the library is built")
        .ledger(&path("ledger"));
    let names = &["one", "two"][..copies];
    let mut command = Command::new(library().expect("built").with_file_name("journal_writer"));
    command.args([writer.into(), path("ledger"), "150".into()]);
    command.args(names.iter().map(|name| path("data").join(name)));
    assert!(preload.apply(&mut command).status().expect("runs").success());
    let recording = preload.recording().expect("sound records");
    let (mut unsure, mut opened, mut refused) = (0, 0, 0);
    for instant in recording.instants(instants(), 1) {
        let left = path("left");
        let _ = fs::remove_dir_all(&left);
        recording.rebuild(instant, instant, &left).expect("rebuilt");
        let promise = promise(&recording, instant);
        let directories: Vec<PathBuf> = names.iter().map(|name| left.join(name)).collect();
        // Twice, since the first opening repairs and may itself be what breaks.
        for opening in ["first", "second"] {
            let when = |what: String| format!("{what}; {opening} opening, instant {instant}, {promise:?}");
            match recover(&directories) {
                Ok(positions) => {
                    opened += 1;
                    check(&positions, &promise).map_err(when)?;
                }
                // A store whose creation was never reported may be there or not.
                Err(_) if !promise.created => refused += 1,
                Err(error) => return Err(when(error)),
            }
        }
        unsure += usize::from(is_unsure(&recording, instant));
    }
    println!(
        "{copies} copies: {opened} openings, {refused} without a store, {unsure} cuts during an operation"
    );
    assert!(unsure > 0 && opened > refused, "the instants met nothing");
    Ok(())
}

fn check(positions: &[u64], promise: &Promise) -> Result<(), String> {
    if positions.windows(2).any(|pair| pair[1] != pair[0] + 1) {
        return Err("there is a hole".into());
    }
    let (first, last) = (positions.first().copied(), positions.last().copied().unwrap_or(0));
    if last < promise.durable {
        return Err(format!("the last record is {last}"));
    }
    match first {
        Some(first) if first > promise.cut.max(1) => Err(format!("the first record is {first}")),
        _ => Ok(()),
    }
}

fn is_unsure(recording: &Recording, instant: u64) -> bool {
    let in_flight = |begin: u64, end: Option<u64>| begin <= instant && end.is_none_or(|end| end > instant);
    recording.operations().iter().any(|operation| in_flight(operation.begin, operation.end))
}

#[test]
fn nothing_durable_is_lost_on_one_copy() {
    audit("honest", 1).unwrap();
}

#[test]
fn nothing_durable_is_lost_on_two_copies() {
    audit("honest", 2).unwrap();
}

#[test]
fn a_disk_that_says_durable_too_early_is_found_out() {
    audit("lying", 1).expect_err("promises must be broken");
}

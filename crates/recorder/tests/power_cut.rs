//! A program that writes in a known way is recorded, and the power is cut at many instants.

use rallypoint_recorder::preload::{Preload, library};
use rallypoint_recorder::recording::{Recording, What};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

struct Rig {
    folder: TempDir,
    preload: Preload,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let preload = Preload::new(&folder.path().join("data"))
            .and_then(|preload| preload.record(&folder.path().join("out")))
            .expect("the library is built")
            .ledger(&folder.path().join("ledger"));
        Self { folder, preload }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, mode: &str) -> Command {
        // The test program lies beside the library.
        let program = library().expect("built").with_file_name("known_writes");
        let mut command = Command::new(program);
        command.arg(mode).arg(self.path("data")).arg(self.path("ledger"));
        self.preload.apply(&mut command);
        command
    }

    fn recording(&self) -> Recording {
        self.preload.recording().expect("sound records")
    }

    /// Cuts the power and checks what the ledger promises. Gives what was left.
    fn cut(&self, recording: &Recording, instant: u64, seed: u64) -> BTreeSet<(String, Vec<u8>)> {
        let into = self.path("rebuilt");
        let _ = fs::remove_dir_all(&into);
        recording.rebuild(instant, seed, &into).expect("rebuilt");
        let ledger = String::from_utf8(recording.ledger_by(instant)).expect("text");
        for line in ledger.lines() {
            check(&into, line, &format!("instant {instant}, seed {seed}"));
        }
        let files = fs::read_dir(&into).expect("a directory").map(|entry| entry.expect("readable"));
        let files = files.filter(|entry| entry.path().is_file());
        files
            .map(|entry| {
                let name = entry.file_name().into_string().expect("text");
                (name, fs::read(entry.path()).expect("readable"))
            })
            .collect()
    }
}

fn check(directory: &Path, promise: &str, when: &str) {
    let (file, block) = promise.split_once(' ').expect("two words");
    if file == "name" {
        // `new` is removed again later, without a sync of its directory: it may be there or not.
        assert!(block == "new" || directory.join(block).exists(), "{block} is missing, {when}");
        return;
    }
    let block: usize = block.parse().expect("a number");
    let bytes = fs::read(directory.join(file)).unwrap_or_default();
    let found = bytes.get(block * 4096..(block + 1) * 4096);
    let expected = [(block % 250) as u8 + 1; 4096];
    assert_eq!(found, Some(&expected[..]), "block {block} of {file} is lost, {when}");
}

#[test]
fn what_was_synced_never_vanishes_and_what_was_not_may() {
    let rig = Rig::new();
    assert!(rig.command("short").status().expect("runs").success());
    let recording = rig.recording();
    for instant in recording.instants(300, 1) {
        rig.cut(&recording, instant, instant);
    }
    let mut ends = BTreeSet::new();
    let (mut new, mut no_name, mut loose) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for seed in 0..40 {
        let left = rig.cut(&recording, recording.last(), seed);
        new.insert(left.iter().any(|(name, _)| name == "new"));
        no_name.insert(left.iter().any(|(name, _)| name == "no-name"));
        for (_, bytes) in left.iter().filter(|(name, _)| name == "loose") {
            loose.extend((0..40).map(|block| bytes.get(block * 4096).is_some_and(|byte| *byte != 0)));
        }
        ends.insert(left);
    }
    assert!(ends.len() > 30, "seeds differ");
    let both = BTreeSet::from([false, true]);
    assert_eq!([new, no_name, loose], [both.clone(), both.clone(), both], "unsynced: there and not there");
    let again = rig.cut(&recording, recording.last(), 39);
    assert!(ends.contains(&again), "the same seed gives the same directory");
}

#[test]
fn what_leaves_through_a_socket_has_its_place_in_the_order() {
    let rig = Rig::new();
    assert!(rig.command("short").status().expect("runs").success());
    let recording = rig.recording();
    let sent = recording.sent_by(recording.last());
    let done = sent.iter().find(|sent| sent.head == b"it is done").expect("the send was seen");
    assert_eq!(done.len, 10);
    assert!(recording.sent_by(done.at - 1).iter().all(|sent| sent.head != b"it is done"));
    let renamed = |what: &What| matches!(what, What::Rename { to, .. } if to.ends_with("new"));
    let rename = recording.operations().iter().find(|operation| renamed(&operation.what)).expect("seen");
    assert!(rename.end.expect("ended") < done.at);
}

#[test]
fn a_copy_inside_the_kernel_is_seen_as_writes() {
    let rig = Rig::new();
    assert!(rig.command("short").status().expect("runs").success());
    let recording = rig.recording();
    let mut copied = BTreeSet::new();
    for seed in 0..64 {
        rig.cut(&recording, recording.last(), seed);
        copied.insert(fs::read(rig.path("rebuilt/folder/copy")).unwrap_or_default());
    }
    assert!(copied.contains(&vec![7; 100]), "{} contents", copied.len());
}

#[test]
fn a_program_killed_in_the_middle_leaves_a_sound_recording() {
    let rig = Rig::new();
    let mut child = rig.command("endless").stdout(Stdio::null()).spawn().expect("runs");
    let enough = || fs::read_to_string(rig.path("ledger")).is_ok_and(|text| text.lines().count() > 50);
    while !enough() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let recording = rig.recording();
    assert!(recording.ledger_by(recording.last()).len() > 400);
    for instant in recording.instants(60, 2) {
        rig.cut(&recording, instant, 3);
    }
}

#[test]
fn processes_started_by_the_program_share_one_order() {
    let rig = Rig::new();
    assert!(rig.command("workers").status().expect("runs").success());
    let recording = rig.recording();
    let processes: BTreeSet<u32> = recording.operations().iter().map(|operation| operation.pid).collect();
    assert!(processes.len() >= 2, "{processes:?}");
    let ledger = String::from_utf8(recording.ledger_by(recording.last())).expect("text");
    assert_eq!(ledger.lines().count(), 40);
    assert_eq!(recording.instants(100, 4).len(), 100);
    for instant in recording.instants(100, 4) {
        rig.cut(&recording, instant, 5);
    }
}

#[test]
fn one_write_or_sync_fails_on_request() {
    for (fail, expected) in [(5, 4), (1, 0)] {
        let rig = Rig::new();
        let preload = rig.preload.clone().fail_sync(fail, libc::EIO).fail_name("synced");
        let mut command = rig.command("short");
        preload.apply(&mut command);
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("Input/output error"), "{text}");
        let ledger = fs::read_to_string(rig.path("ledger")).expect("text");
        assert_eq!(ledger.lines().count(), expected);
    }
    let rig = Rig::new();
    let preload = rig.preload.clone().fail_write(3, libc::ENOSPC);
    let mut command = rig.command("short");
    let text = preload.apply(&mut command).stderr(Stdio::piped()).output().expect("runs").stderr;
    let lines: Vec<String> = BufReader::new(&text[..]).lines().map_while(Result::ok).collect();
    assert!(lines.iter().any(|line| line.contains("No space left")), "{lines:?}");
    assert_eq!(fs::read_to_string(rig.path("ledger")).expect("text").lines().count(), 2);
}

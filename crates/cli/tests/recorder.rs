//! The demo under a power cut at 200 instants: what it wrote and synced is recorded, its directory is
//! rebuilt with only what was durable by then and a random part of the rest, and what the client had
//! been told by then must be there, exactly once. `kill -9` alone proves nothing about syncs.

use rallypoint_recorder::preload::Preload;
use rallypoint_recorder::recording::Recording;
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rallypoint");
/// What the auditor wants to hear from a supervisor; there is none.
const NO_FIGURES: &str =
    r#"{"kills":0,"recoveries_ms":[],"acknowledged":0,"busy_s":0,"elapsed_s":0,"kinds":[]}"#;

/// An audit takes a tenth of a second, unless it waits for a message that never comes.
const REST: Duration = Duration::from_secs(20);

/// How many instants; more in the long setting.
fn instants() -> usize {
    if std::env::var_os("RALLYPOINT_LONG").is_some_and(|value| value == "1") { 4000 } else { 200 }
}

struct Recorded {
    folder: tempfile::TempDir,
    recording: Recording,
}

impl Recorded {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Runs a short demo under the recorder.
fn record(transfers: u32, kill_every: &str) -> Recorded {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
    let root = fs::canonicalize(folder.path()).expect("it is there");
    let (dir, out) = (root.join("demo"), root.join("out"));
    let preload = Preload::new(&dir)
        .and_then(|preload| preload.record(&out))
        .expect("the library is built")
        .ledger(&dir.join("ledger.txt"));
    let mut command = Command::new(PROGRAM);
    command.args(["demo", "--workers", "2", "--accounts", "60", "--json", "--segment-bytes", "262144"]);
    command.arg("--transfers").arg(transfers.to_string()).arg("--kill-every").arg(kill_every);
    command.arg("--dir").arg(&dir);
    let output = preload.apply(&mut command).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{} {text}", output.status);
    println!("{}", String::from_utf8_lossy(&output.stdout).trim());
    let recording = preload.recording().expect("sound records");
    println!("{} operations recorded", recording.operations().len());
    Recorded { folder, recording }
}

/// How the audit of what was left at one instant ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing had been acknowledged yet.
    Early,
    /// All is there.
    Sound,
    /// What is wrong.
    Broken(String),
}

/// Cuts the power at `instant` and has what is left judged by a fresh process.
fn audit(recording: &Recording, recorded: &Recorded, instant: u64, name: &str) -> Verdict {
    let (left, ledger) = (recorded.path(&format!("left-{name}")), recorded.path(&format!("ledger-{name}")));
    let _ = fs::remove_dir_all(&left);
    let rebuilt = recording.rebuild(instant, instant, &left).expect("rebuilt");
    let acknowledged = recording.ledger_by(instant);
    // Its first line was written before the store was there, and moved into place.
    let whole = fs::read_to_string(recorded.path("demo/ledger.txt")).expect("the ledger");
    let head = whole.lines().next().expect("a first line");
    fs::write(&ledger, [head.as_bytes(), b"\n", &acknowledged].concat()).expect("written");
    let lines = acknowledged.iter().filter(|byte| **byte == b'\n').count();
    // A recovery may itself be what breaks: now and then a second one follows.
    for opening in 0..if instant.is_multiple_of(8) { 2 } else { 1 } {
        let (code, text) = judge(&left, &recorded.path("demo/input.csv"), &ledger);
        // Exit code 1 is also that of a run that is not finished; the figures tell.
        let report: Value = serde_json::from_str(&text).unwrap_or_default();
        let sound = report["conserved"] == true && report["lost"] == 0 && report["doubled"] == 0;
        match code {
            Some(0 | 1) if sound && lines > 0 => {}
            Some(1) if sound => return Verdict::Early,
            // Perhaps there is no store yet.
            Some(0 | 2) if lines == 0 => return Verdict::Early,
            _ => {
                let what = format!("opening {opening} ended with {code:?}: {text}");
                return Verdict::Broken(format!("instant {instant}, {lines} lines, {rebuilt:?}: {what}"));
            }
        }
    }
    Verdict::Sound
}

fn judge(dir: &Path, input: &Path, ledger: &Path) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.arg("demo-audit").arg("--dir").arg(dir).arg("--input").arg(input);
    command.arg("--ledger").arg(ledger).arg("--json");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    let written = child.stdin.take().expect("piped").write_all(NO_FIGURES.as_bytes());
    // Messages that never come to rest are a finding as well.
    let deadline = Instant::now() + REST;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() >= deadline {
            child.kill().expect("killed");
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("ends");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    written.unwrap_or_else(|error| panic!("{error}: {text}"));
    (output.status.code(), text)
}

/// Audits all instants on two threads; gives how many were early and sound, and what is broken.
/// With `one`, the first that is broken ends it.
fn audit_all(
    recording: &Recording,
    recorded: &Recorded,
    instants: &[u64],
    one: bool,
) -> (usize, usize, Vec<String>) {
    let (early, sound, next) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let broken = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for name in ["a", "b"] {
            let (early, sound, next, broken) = (&early, &sound, &next, &broken);
            scope.spawn(move || {
                while let Some(&instant) = instants.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match audit(recording, recorded, instant, name) {
                        Verdict::Early => drop(early.fetch_add(1, Ordering::SeqCst)),
                        Verdict::Sound => drop(sound.fetch_add(1, Ordering::SeqCst)),
                        Verdict::Broken(what) => {
                            println!("broken: {what}");
                            broken.lock().expect("no panic").push(what);
                            next.fetch_add(if one { instants.len() } else { 0 }, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    (early.into_inner(), sound.into_inner(), broken.into_inner().expect("no panic"))
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_instant() {
    let recorded = record(3_000, "15ms");
    let chosen = recorded.recording.instants(instants(), 1);
    let (early, sound, broken) = audit_all(&recorded.recording, &recorded, &chosen, false);
    println!("{} instants: {early} before the first acknowledgement, {sound} sound", chosen.len());
    assert!(broken.is_empty(), "{} broken, first:\n{}", broken.len(), broken[0]);
    // A short recording has fewer instants than the long setting asks for: then it is all of them.
    assert!(chosen.len() >= 200, "{} instants", chosen.len());
    assert!(sound > chosen.len() / 4, "the instants met too little: {sound}");
}

/// The test of the test: the same kind of run, had the journals never been synced.
#[test]
fn a_store_that_does_not_sync_is_found_out() {
    let recorded = record(600, "0");
    let unsynced = recorded.recording.clone().without_syncs_of("/seg-");
    let mut chosen = recorded.recording.instants(400, 2);
    // Where much was acknowledged, much can be lost.
    let told = |instant: &u64| recorded.recording.ledger_by(*instant).len();
    let all = told(&recorded.recording.last());
    chosen.retain(|instant| told(instant) > all / 3);
    chosen.truncate(8);
    let (_, _, broken) = audit_all(&unsynced, &recorded, &chosen, true);
    assert!(!broken.is_empty(), "promises must be broken at some of {chosen:?}");
    let (_, sound, broken) = audit_all(&recorded.recording, &recorded, &chosen, false);
    assert!(broken.is_empty() && sound == chosen.len(), "{broken:?}");
}

//! The admin commands on real stores: damage, loss, repair, copies, and their exit codes.
//!
//! Each test makes a store with the library, does something bad to its files, and asks the shipped
//! binary.

use rallypoint::{Actor, App, Cx, Limits, Runtime, UnitNotice};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Adds, passes on, or panics.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Counter {
    total: u64,
}

#[derive(Clone, Serialize, Deserialize)]
enum Order {
    Add(u64),
    Pass { to: String, amount: u64 },
    Panic,
}

impl Actor for Counter {
    const KIND: &'static str = "counter";
    type Message = Order;
    type Reply = u64;
    type Error = String;

    fn handle(&mut self, order: Order, cx: &mut Cx<'_>) -> Result<u64, String> {
        match order {
            Order::Add(amount) => self.total += amount,
            Order::Pass { to, amount } => cx.send::<Self>(&to, &Order::Add(amount)),
            Order::Panic => panic!("as ordered"),
        }
        Ok(self.total)
    }
}

struct Place {
    _folder: tempfile::TempDir,
    dir: PathBuf,
    mirror: Option<PathBuf>,
    directories: usize,
}

impl Place {
    fn new(mirrored: bool, directories: usize) -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let dir = folder.path().join("store");
        let mirror = mirrored.then(|| folder.path().join("mirror"));
        Self { _folder: folder, dir, mirror, directories }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.with_file_name(name)
    }

    fn app(&self) -> App {
        let app = App::define().actor::<Counter>().layout(4, self.directories).segment_len(1 << 20);
        let app = app.limits(Limits { checkpoint_runs: 1_000_000, ..Limits::default() });
        let app = app.allow_unsuitable_file_system(true);
        match &self.mirror {
            Some(mirror) => app.mirror(mirror),
            None => app,
        }
    }

    fn open(&self) -> Runtime {
        self.app().open(&self.dir).expect("the store opens")
    }

    /// The command with `--mirror` where there is one and `--json`.
    fn run(&self, command: &[&str], more: &[&str]) -> (i32, Value) {
        let dir = self.dir.display().to_string();
        let mut arguments: Vec<&str> = command.to_vec();
        arguments.push(&dir);
        arguments.extend(more);
        let mirror = self.mirror.as_ref().map(|mirror| mirror.display().to_string());
        if let Some(mirror) = &mirror {
            arguments.extend(["--mirror", mirror]);
        }
        rallypoint(&arguments)
    }

    fn journal(&self, copy: usize, directory: usize) -> PathBuf {
        let root = if copy == 0 { &self.dir } else { self.mirror.as_ref().expect("mirrored") };
        root.join(format!("j{directory}"))
    }
}

fn rallypoint(arguments: &[&str]) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_rallypoint"))
        .args(arguments)
        .arg("--json")
        .output()
        .expect("the command starts");
    let text = String::from_utf8(output.stdout).expect("JSON is text");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(text.lines().count() <= 1, "one object: {text}");
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    let code = output.status.code().unwrap_or(-1);
    println!("rallypoint {} -> {code}\n{text}{said}", arguments.join(" "));
    (code, value)
}

/// Inputs over many keys, and messages between them, all durable when it returns.
fn work(runtime: &Runtime, from: u64, count: u64) {
    let client = runtime.client();
    let orders = (from..from + count).map(|number| {
        let (key, to) = (format!("k{}", number % 50), format!("k{}", (number + 1) % 50));
        client.ask::<Counter>(&key, &Order::Pass { to, amount: 1 })
    });
    for order in orders.collect::<Vec<_>>() {
        order.wait().expect("applied");
    }
    assert!(runtime.drain(Duration::from_secs(20)), "messages arrive");
}

fn total(runtime: &Runtime) -> u64 {
    let client = runtime.client();
    let keys = (0..50).map(|number| client.ask::<Counter>(&format!("k{number}"), &Order::Add(0)));
    keys.collect::<Vec<_>>().into_iter().map(|answer| answer.wait().expect("answered")).sum()
}

fn close(runtime: Runtime) {
    assert!(runtime.close(Duration::from_secs(20)), "an orderly stop");
}

/// Flips a bit of a file in the middle of a block.
fn flip(path: &Path, block: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the file is there");
    let mut byte = [0];
    let at = block * 4096 + 1000;
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    file.sync_all().expect("synced");
}

fn first(place: &Path, prefix: &str, suffix: &str) -> PathBuf {
    let names = fs::read_dir(place).expect("listed").map(|entry| entry.expect("entry").path());
    let mut found: Vec<PathBuf> = names
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(prefix) && name.ends_with(suffix)
        })
        .collect();
    found.sort();
    found.into_iter().next().expect("there is such a file")
}

fn kinds(value: &Value) -> Vec<&str> {
    let findings = value["findings"].as_array().expect("findings");
    findings.iter().map(|finding| finding["kind"].as_str().expect("kind")).collect()
}

/// Every file with its bytes.
fn everything(place: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(place).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            all.extend(everything(&path));
        } else {
            let bytes = fs::read(&path).expect("read");
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name");
        if path.is_dir() {
            copy_tree(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

#[test]
fn a_sound_store_is_sound_and_verify_writes_nothing() {
    let place = Place::new(true, 2);
    let runtime = place.open();
    work(&runtime, 0, 300);
    close(runtime);
    let before = everything(&place.dir);
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!((code, found["sound"].as_bool()), (0, Some(true)));
    assert_eq!(found["directories"].as_array().map(Vec::len), Some(2));
    let channels = found["channels"].as_array().expect("channels");
    assert!(!channels.is_empty());
    assert!(channels.iter().all(|channel| channel["received"] == channel["sent"]), "all arrived");
    assert!(before == everything(&place.dir), "not a byte is written");
    // A kill is no damage.
    let runtime = place.open();
    work(&runtime, 0, 10);
    drop(runtime);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
}

#[test]
fn rot_in_a_mirrored_journal_is_named_mended_and_gone() {
    let place = Place::new(true, 1);
    let runtime = place.open();
    work(&runtime, 0, 200);
    drop(runtime);
    let segment = first(&place.journal(1, 0), "seg-", "");
    flip(&segment, 2);
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!(code, 1);
    let finding = &found["findings"][0];
    assert_eq!((finding["kind"].as_str(), finding["block"].as_u64()), (Some("journal"), Some(2)));
    assert_eq!(finding["file"].as_str(), segment.to_str());
    assert_eq!(finding["repairable"], true);
    let (code, mended) = place.run(&["mend"], &[]);
    assert_eq!((code, mended["beyond_repair"].as_bool()), (0, Some(false)));
    assert!(mended["repaired"].as_u64() >= Some(1));
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    let (code, list) = place.run(&["events"], &["--kind", "repair"]);
    assert_eq!(code, 0);
    assert!(!list["events"].as_array().expect("events").is_empty(), "the repair is on record");
    let runtime = place.open();
    assert_eq!(total(&runtime), 200);
}

#[test]
fn rot_without_a_mirror_is_beyond_repair_and_is_said_so() {
    let place = Place::new(false, 1);
    let runtime = place.open();
    work(&runtime, 0, 200);
    drop(runtime);
    flip(&first(&place.journal(0, 0), "seg-", ""), 1);
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!(code, 1);
    assert!(kinds(&found).contains(&"lost"));
    let (code, mended) = place.run(&["mend"], &[]);
    assert_eq!((code, mended["beyond_repair"].as_bool()), (1, Some(true)));
    assert_eq!(place.run(&["verify"], &[]).0, 1, "nothing was thrown away");
}

#[test]
fn a_lost_mirror_is_missed_and_made_anew() {
    let place = Place::new(true, 2);
    let runtime = place.open();
    work(&runtime, 0, 100);
    close(runtime);
    fs::remove_dir_all(place.mirror.as_ref().expect("mirrored")).expect("removed");
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!(code, 1);
    assert!(kinds(&found).contains(&"absent"));
    let (code, said) = place.run(&["mend"], &[]);
    assert_eq!(code, 2, "another copy may hold more");
    assert!(said["error"].as_str().is_some_and(|error| error.contains("--degraded")));
    assert!(!place.mirror.as_ref().expect("mirrored").exists(), "nothing was begun");
    let (code, mended) = place.run(&["mend"], &["--degraded"]);
    assert_eq!(code, 0);
    assert_eq!(mended["returned"].as_array().map(Vec::len), Some(2));
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    // The new copy is a whole one: the first disk may go now.
    fs::remove_dir_all(&place.dir).expect("removed");
    assert_eq!(place.run(&["mend"], &["--degraded"]).0, 0);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    assert_eq!(total(&place.open()), 100);
}

#[test]
fn damaged_markers_and_superblocks_are_written_anew() {
    let place = Place::new(true, 1);
    close(place.open());
    fs::write(place.dir.join("rallypoint.store"), "rubbish").expect("written");
    fs::remove_file(place.mirror.as_ref().expect("mirrored").join("rallypoint.store")).expect("removed");
    flip(&place.journal(0, 0).join("superblock"), 4);
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!(code, 1);
    assert_eq!(kinds(&found), ["marker", "marker", "superblock"]);
    assert_eq!(found["findings"][2]["block"], 4);
    assert_eq!(place.run(&["mend"], &[]).0, 0);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    close(place.open());
}

#[test]
fn a_store_in_use_is_left_alone_and_what_is_no_store_is_told() {
    let place = Place::new(false, 1);
    let runtime = place.open();
    work(&runtime, 0, 50);
    assert!(runtime.checkpoint(Duration::from_secs(20)));
    for command in ["verify", "mend", "scrub"] {
        let (code, said) = place.run(&[command], &[]);
        assert_eq!((code, said["in_use"].as_bool()), (2, Some(true)), "{command}");
    }
    let (code, said) = place.run(&["quarantine", "drop"], &["p0", "@1"]);
    assert_eq!((code, said["in_use"].as_bool()), (2, Some(true)));
    // Looking is allowed.
    assert_eq!(place.run(&["checkpoint", "list"], &[]).0, 0);
    assert_eq!(place.run(&["quarantine", "list"], &[]).0, 0);
    let (code, list) = place.run(&["events"], &["--since", "1h", "--kind", "opened"]);
    assert_eq!((code, list["events"][0]["kind"].as_str()), (0, Some("opened")));
    drop(runtime);
    let empty = place.beside("empty");
    fs::create_dir(&empty).expect("made");
    let empty = empty.display().to_string();
    for command in ["verify", "mend", "scrub", "events"] {
        assert_eq!(rallypoint(&[command, &empty]).0, 2, "{command}");
    }
    assert_eq!(place.run(&["events"], &["--kind", "no_such"]).0, 2);
    assert_eq!(place.run(&["checkpoint", "show"], &["p0", "v999"]).0, 2);
}

#[test]
fn rot_in_a_checkpoint_is_found_and_scrubbed_away() {
    let place = Place::new(true, 1);
    let runtime = place.open();
    work(&runtime, 0, 100);
    close(runtime);
    let (code, list) = place.run(&["checkpoint", "list"], &[]);
    let line =
        list["checkpoints"].as_array().expect("list").iter().find(|line| line["bytes"].as_u64() > Some(0));
    let line = line.expect("a checkpoint with actors").clone();
    assert_eq!(code, 0);
    let (partition, version) = (line["partition"].to_string(), line["version"].to_string());
    let (code, shown) = place.run(&["checkpoint", "show"], &[&partition, &version]);
    assert_eq!((code, shown["newest"].as_bool()), (0, Some(true)));
    assert!(shown["sent"].as_array().is_some_and(|sent| !sent.is_empty()));
    let name = format!(
        "cp-{:05}-{:012}.part",
        line["partition"].as_u64().unwrap(),
        line["version"].as_u64().unwrap()
    );
    let part = place.journal(1, 0).join(name);
    let file = fs::OpenOptions::new().write(true).open(&part).expect("there");
    file.write_all_at(b"rot", 5).expect("written");
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!((code, found["findings"][0]["file"].as_str()), (1, part.to_str()));
    let (code, done) = place.run(&["scrub"], &["--rate", "0"]);
    assert_eq!(code, 0);
    assert_eq!(done["directories"][0]["repaired"], 1);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
}

#[test]
fn a_served_store_scrubs_itself() {
    let place = Place::new(true, 1);
    let runtime = place.open();
    work(&runtime, 0, 200);
    flip(&first(&place.journal(0, 0), "seg-", ""), 3);
    runtime.request_scrub(1 << 30);
    let start = Instant::now();
    let scrubbed = loop {
        let done = runtime.notices().into_iter().find_map(|notice| match notice {
            UnitNotice::Scrubbed { repaired, bad, .. } => Some((repaired, bad)),
            _ => None,
        });
        match done {
            Some(done) => break done,
            None => assert!(start.elapsed() < Duration::from_secs(20), "the pass ends"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(scrubbed, (1, 0));
    work(&runtime, 200, 10);
    drop(runtime);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    let (_, list) = place.run(&["events"], &["--kind", "scrubbed", "--kind", "repair"]);
    assert_eq!(list["events"].as_array().map(Vec::len), Some(2));
}

#[test]
fn what_was_set_aside_is_listed_and_dropped_for_good() {
    let place = Place::new(false, 1);
    let runtime = place.open();
    let client = runtime.client();
    for number in 0..3 {
        client.ask::<Counter>("poison", &Order::Add(1)).wait().expect("applied");
        assert!(client.ask::<Counter>("poison", &Order::Panic).wait().is_err(), "{number} is set aside");
        if number == 0 {
            assert!(runtime.checkpoint(Duration::from_secs(20)));
        }
    }
    let (partition, last) = runtime.set_aside().last().cloned().expect("set aside");
    assert!(runtime.drop_set_aside(partition, last.position), "in the running program");
    drop(runtime);
    let (code, list) = place.run(&["quarantine", "list"], &[]);
    let entries = list["set_aside"].as_array().expect("list");
    assert_eq!((code, entries.len()), (1, 2), "one in a checkpoint, one in the log, one dropped");
    assert_eq!(entries[0]["key"], "poison");
    assert!(entries[0]["evidence"].as_str().is_some_and(|text| text.contains("as ordered")));
    for entry in entries {
        let (partition, position) = (entry["partition"].to_string(), entry["position"].to_string());
        assert_eq!(place.run(&["quarantine", "drop"], &[&partition, &position]).0, 0);
        assert_eq!(place.run(&["quarantine", "drop"], &[&partition, &position]).0, 2, "only once");
    }
    assert_eq!(place.run(&["quarantine", "list"], &[]).0, 0);
    assert_eq!(place.run(&["verify"], &[]).0, 0);
    for _ in 0..2 {
        let runtime = place.open();
        assert!(runtime.set_aside().is_empty(), "dropped, by replay and by checkpoint");
        runtime.client().ask::<Counter>("poison", &Order::Add(1)).wait().expect("it goes on");
        close(runtime);
    }
}

#[test]
fn a_running_store_is_backed_up_and_restored_to_one_consistent_cut() {
    let place = Place::new(true, 2);
    let (to, back, back_mirror) = (place.beside("backup"), place.beside("back"), place.beside("back-mirror"));
    let (to, back) = (to.display().to_string(), back.display().to_string());
    let runtime = place.open();
    work(&runtime, 0, 200);
    assert!(runtime.checkpoint(Duration::from_secs(20)));
    assert_eq!(place.run(&["backup"], &[&to]).0, 0);
    work(&runtime, 200, 100);
    // The second one is taken under load.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let code = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 300;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                work(&runtime, number, 20);
                number += 20;
            }
        });
        let code = place.run(&["backup"], &[&to]).0;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        code
    });
    assert_eq!(code, 0);
    close(runtime);
    let mirror = back_mirror.display().to_string();
    let (code, done) = rallypoint(&["restore", &to, &back, "--mirror", &mirror]);
    assert_eq!(code, 0);
    assert_ne!(done["lineage"], done["from_lineage"]);
    assert_eq!(rallypoint(&["restore", &to, &back]).0, 2, "never over a store");
    let (code, found) = rallypoint(&["verify", &back, "--mirror", &mirror]);
    assert_eq!((code, found["sound"].as_bool()), (0, Some(true)));
    let runtime = place.app().mirror(&back_mirror).open(&back).expect("the restored store opens");
    assert!(runtime.drain(Duration::from_secs(20)));
    let restored = total(&runtime);
    assert!(restored >= 300, "{restored}: everything acknowledged before the backup");
    close(runtime);
    // The old store is another lineage: the two are not mixed.
    let dir = place.dir.display().to_string();
    assert_ne!(rallypoint(&["verify", &dir, "--mirror", &mirror]).0, 0);
    assert_eq!(rallypoint(&["backup", &back, &to]).0, 2, "backups of another lineage");
}

#[test]
fn a_received_message_that_was_never_sent_is_found() {
    let place = Place::new(false, 2);
    let runtime = place.open();
    work(&runtime, 0, 50);
    close(runtime);
    let old = place.beside("old-j0");
    copy_tree(&place.journal(0, 0), &old);
    let runtime = place.open();
    work(&runtime, 50, 100);
    close(runtime);
    // The disk of j0 is replaced by an old image of itself.
    fs::remove_dir_all(place.journal(0, 0)).expect("removed");
    fs::rename(&old, place.journal(0, 0)).expect("renamed");
    let (code, found) = place.run(&["verify"], &[]);
    assert_eq!(code, 1);
    assert!(kinds(&found).iter().all(|kind| *kind == "channel"), "{found}");
    assert!(!kinds(&found).is_empty());
}

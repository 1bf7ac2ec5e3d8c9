//! The demo as a command: what it prints and writes, what it refuses, and that it finishes what was
//! killed. Real workers, real kills; the expectations come from a program of a few lines that knows
//! nothing of ours.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rallypoint");
/// So large that nothing is ever refused.
const PLENTY: u64 = 1 << 60;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        fs::write(self.path(name), text).expect("written");
        self.path(name)
    }

    /// The demo in `demo`, with small segments.
    fn demo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["demo", "--workers", "2", "--segment-bytes", "1048576", "--dir"]);
        command.arg(self.path("demo")).args(arguments).current_dir(self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.demo(arguments).output().expect("runs")
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", complaint(&output));
        serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
    }

    /// The run ends with exit code 2 and a sentence that holds each of `words`.
    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
        assert!(said.contains("rallypoint: "), "{said}");
    }
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

/// So many transfers between accounts with awkward names, some named for the first time late.
fn transfers(count: u64) -> String {
    let mut lines = String::from("id,from,to,amount\n");
    for id in 0..count {
        let name = |number: u64| match number % 5 {
            0 => format!("\"a,{number}\""),
            1 => format!("\"say \"\"{number}\"\"\""),
            2 => format!("Größe {number}"),
            _ => format!("n{number}"),
        };
        let (from, to) = (id * 7919 % 97, (id * 104_729 + 1) % (97 + id / 50));
        let to = if to == from { to + 1 } else { to };
        writeln!(lines, "{},{},{},{}", id * 3, name(from), name(to), id % 1000 + 1).expect("to memory");
    }
    lines
}

/// What a sequential program over the same lines would write as balances.
fn balances(lines: &str, opening: u64) -> String {
    let mut accounts: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut reader = csv::Reader::from_reader(lines.as_bytes());
    for record in reader.records() {
        let record = record.expect("well formed");
        let (from, to) = (record[1].to_owned(), record[2].to_owned());
        let amount: u64 = record[3].parse().expect("a number");
        for name in [&from, &to] {
            accounts.entry(name.clone()).or_insert(opening);
        }
        if seen.insert(record[0].to_owned()) {
            *accounts.get_mut(&from).expect("opened") -= amount;
            *accounts.get_mut(&to).expect("opened") += amount;
        }
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["account", "balance"]).expect("to memory");
    for (account, balance) in accounts {
        writer.write_record([account, balance.to_string()]).expect("to memory");
    }
    String::from_utf8(writer.into_inner().expect("to memory")).expect("UTF-8")
}

#[test]
fn the_json_object_has_these_keys_and_balances_equal_a_sequential_program() {
    let folder = Folder::new();
    let mut lines = transfers(20_000);
    // Two ids again: they open accounts and move nothing.
    lines += "0,late,later,5\n3,n3,n4,17\n";
    let input = folder.write("input.csv", &lines);
    let opening = PLENTY.to_string();
    let arguments = ["--input", text(&input), "--opening", &opening, "--balances", "balances.csv"];
    let report = folder.json(&[&arguments[..], &["--kill-every", "40ms", "--seed", "7"]].concat());
    let keys: Vec<&str> = report.as_object().expect("an object").keys().map(String::as_str).collect();
    let mut expected = vec![
        "inputs",
        "acknowledged",
        "applied",
        "refused",
        "duplicates",
        "rejected",
        "kills",
        "recovery_ms",
        "transfers_per_s",
        "conserved",
        "lost",
        "doubled",
        "elapsed_s",
    ];
    expected.sort_unstable();
    let mut found = keys;
    found.sort_unstable();
    assert_eq!(found, expected);
    let figures =
        ["inputs", "acknowledged", "applied", "refused", "duplicates", "rejected", "lost", "doubled"];
    let figures = figures.map(|key| report[key].as_u64().expect("a number"));
    assert_eq!(figures, [20_002, 20_002, 20_000, 0, 2, 0, 0, 0]);
    assert_eq!(report["conserved"], true);
    for key in ["count", "p50", "max"] {
        assert!(report["recovery_ms"].get(key).is_some(), "{report}");
    }
    assert!(report["kills"].as_u64() >= Some(1), "{report}");
    let written = fs::read_to_string(folder.path("balances.csv")).expect("written");
    assert!(written == balances(&lines, PLENTY), "the balances differ");
    let verify = Command::new(PROGRAM).arg("verify").arg(folder.path("demo")).output().expect("runs");
    assert!(verify.status.success(), "{}", complaint(&verify));
}

#[test]
fn what_is_no_transfer_is_rejected_with_line_and_reason_and_the_run_goes_on() {
    let folder = Folder::new();
    let long = "x".repeat(65);
    let lines = [
        "id,from,to,amount",
        "1,a,b,10",
        "x,a,b,10",
        "2,a,a,10",
        "3,a,,10",
        "4,a,b,0",
        "5,a,b,9007199254740993",
        "6,a,b",
        &format!("7,{long},b,1"),
        "1,c,d,10",
        "8,b,a,9007199254740992",
        "9,\"q\"\"\",\"a,b\",1",
    ];
    let input = folder.write("input.csv", &(lines.join("\n") + "\n"));
    let arguments = ["--input", text(&input), "--kill-every", "0", "--rejects", "rejects.csv"];
    let report = folder.json(&[&arguments[..], &["--balances", "b.csv", "--opening", "100"]].concat());
    let figures = ["inputs", "acknowledged", "applied", "refused", "duplicates", "rejected"];
    assert_eq!(figures.map(|key| report[key].as_u64().expect("a number")), [11, 4, 2, 1, 1, 7], "{report}");
    let rejects = fs::read_to_string(folder.path("rejects.csv")).expect("written");
    let numbers: Vec<&str> = rejects.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    assert_eq!(numbers, ["3", "4", "5", "6", "7", "8", "9"], "{rejects}");
    assert!(rejects.lines().skip(1).all(|line| line.len() > 4), "each has its reason: {rejects}");
    let written = fs::read_to_string(folder.path("b.csv")).expect("written");
    assert_eq!(written, "account,balance\na,90\n\"a,b\",101\nb,110\nc,100\nd,100\n\"q\"\"\",99\n");
}

#[test]
fn what_cannot_be_run_is_refused_with_a_sentence_and_harms_nothing() {
    let folder = Folder::new();
    folder.refused(&["--input", "missing.csv"], &["missing.csv"]);
    assert!(!folder.path("demo").exists(), "nothing is made");
    let header = folder.write("header.csv", "number,from,to,amount\n1,a,b,1\n");
    folder.refused(&["--input", text(&header)], &["header", "id,from,to,amount"]);
    let empty = folder.write("empty.csv", "");
    folder.refused(&["--input", text(&empty)], &["empty.csv"]);
    folder.refused(&["--input", text(folder.0.path())], &[]);

    // Somebody else's directory.
    fs::create_dir(folder.path("demo")).expect("made");
    let thesis = folder.write("demo/thesis.txt", "42");
    folder.refused(&[], &["thesis.txt", "--dir"]);
    assert_eq!(fs::read_to_string(&thesis).expect("there"), "42");
    assert_eq!(fs::read_dir(folder.path("demo")).expect("there").count(), 1);
    fs::remove_dir_all(folder.path("demo")).expect("removed");

    // A finished run, and one with another input.
    let input = folder.write("input.csv", "id,from,to,amount\n1,a,b,1\n2,b,a,1\n");
    folder.json(&["--input", text(&input), "--kill-every", "0"]);
    folder.refused(&["--input", text(&input)], &["finished", "--dir"]);
    let other = folder.write("other.csv", "id,from,to,amount\n1,a,b,1\n2,b,a,2\n");
    folder.refused(&["--input", text(&other), "--resume"], &["other"]);
    let report = folder.json(&["--input", text(&input), "--resume"]);
    assert_eq!(report["applied"], 2, "nothing was harmed: {report}");
    // Unreadable arguments are the shell's affair, with the same exit code.
    for wrong in [&["--kill-every", "soon"][..], &["--workers", "0"], &["--transfers", "x"], &["--no-such"]] {
        assert_eq!(folder.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_directory_in_use_is_left_alone_and_what_was_killed_whole_is_finished() {
    let folder = Folder::new();
    let input = folder.write("input.csv", &transfers(60_000));
    let opening = PLENTY.to_string();
    let arguments = ["--input", text(&input), "--opening", &opening, "--kill-every", "60ms"];
    let mut first = folder.demo(&arguments).spawn().expect("starts");
    let ledger = folder.path("demo/ledger.txt");
    let lines = || fs::read(&ledger).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count());
    let deadline = Instant::now() + Duration::from_secs(60);
    let wait_for = |many: usize| {
        while lines() < many {
            assert!(Instant::now() < deadline, "no progress");
            thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for(2);
    // Another demo, and an administrator, leave a directory in use alone.
    folder.refused(&[&arguments[..], &["--resume"]].concat(), &["in use"]);
    let verify = Command::new(PROGRAM).arg("verify").arg(folder.path("demo")).output().expect("runs");
    assert_eq!(verify.status.code(), Some(2), "{}", complaint(&verify));
    wait_for(6_000);
    // Its client and its workers end with it.
    first.kill().expect("killed");
    first.wait().expect("ended");
    let acknowledged = lines() - 1;
    assert!(acknowledged < 60_000, "too late to be a test");
    let arguments = [&arguments[..], &["--resume", "--balances", "balances.csv"]].concat();
    let report = retried(&folder, &arguments);
    assert_eq!(
        (&report["lost"], &report["doubled"], &report["conserved"]),
        (&0.into(), &0.into(), &true.into())
    );
    assert_eq!(report["acknowledged"], 60_000);
    let written = fs::read_to_string(folder.path("balances.csv")).expect("written");
    let expected = balances(&fs::read_to_string(&input).expect("there"), PLENTY);
    assert!(written == expected, "the balances differ");
}

/// The killed run's processes are told to end with it, and take a moment.
fn retried(folder: &Folder, arguments: &[&str]) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = folder.run(&[arguments, &["--json"]].concat());
        let said = complaint(&output);
        if output.status.code() == Some(2) && said.contains("in use") && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        assert!(output.status.success(), "{said}");
        return serde_json::from_slice(&output.stdout).expect("JSON");
    }
}

#[test]
fn each_kind_of_kill_falls_among_transfers_in_flight() {
    let folder = Folder::new();
    let output = folder.run(&[
        "--transfers",
        "120000",
        "--accounts",
        "300",
        "--mirror",
        "mirror",
        "--kill-every",
        "40ms",
    ]);
    let said = complaint(&output);
    assert!(output.status.success(), "{said}");
    for kind in ["while serving", "during a recovery", "during a checkpoint", "all at once"] {
        assert!(said.contains(kind), "no kill {kind}: {said}");
    }
    assert!(said.contains("one disk: the mirror does not survive its loss"), "{said}");
    assert!(said.contains("lost") && said.contains("doubled"), "{said}");
}

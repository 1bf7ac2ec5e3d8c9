//! Pure crates know no clock, no thread, no file, no socket and no random order; neither does the
//! simulator, or a seed would not reproduce a run.

use super::Finding;
use crate::lex::{Path, lex, paths};
use crate::tree::Tree;

const PURE: &[&str] = &["base", "rollback", "saga", "advisor", "store", "engine"];
const SIMULATOR: &str = "sim";

/// Where a saga's function lives: a user's own futures are polled there, with a waker that does
/// nothing. That is still a function of what they were told (docs/DECISIONS/0007-sagas.md).
const USERS_FUTURES: &[&str] = &[
    "crates/saga/src/compensations.rs",
    "crates/saga/src/function.rs",
    "crates/saga/src/registry.rs",
    "crates/saga/src/step.rs",
];

/// Something that a pure crate may not mention.
struct Rule {
    what: &'static str,
    forbids: fn(&Path<'_>) -> bool,
    /// Tests may: they read golden files and settings, and start threads, without a promise broken.
    tests_may: bool,
    /// The simulator may: it stays deterministic all the same.
    simulator_may: bool,
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        what: "a clock",
        forbids: |path| std_module(path, "time", &["Instant", "SystemTime", "UNIX_EPOCH"]),
        tests_may: false,
        simulator_may: false,
        why: "time is an argument: a run that reads a clock cannot be replayed",
    },
    Rule {
        what: "a thread",
        forbids: |path| std_module(path, "thread", &[]),
        tests_may: true,
        simulator_may: false,
        why: "threads live in the host: two of them give a machine two histories",
    },
    Rule {
        what: "a file",
        forbids: |path| std_module(path, "fs", &[]),
        tests_may: true,
        simulator_may: false,
        why: "bytes reach a disk only through the disk port, where the simulator can lose them",
    },
    Rule {
        what: "a socket",
        forbids: |path| std_module(path, "net", &[]),
        tests_may: false,
        simulator_may: false,
        why: "frames are commands and events; only the host knows sockets",
    },
    Rule {
        what: "a process",
        forbids: |path| std_module(path, "process", &[]),
        tests_may: false,
        simulator_may: false,
        why: "a machine reports and stops; only the host ends or starts processes",
    },
    Rule {
        what: "the operating system",
        forbids: |path| std_module(path, "os", &[]),
        tests_may: false,
        simulator_may: false,
        why: "operating-system specifics sit in one module of the host",
    },
    Rule {
        what: "the environment",
        forbids: |path| std_module(path, "env", &[]),
        tests_may: true,
        simulator_may: true,
        why: "a setting is an argument: a run that reads the environment cannot be replayed elsewhere",
    },
    Rule {
        what: "a map with random order",
        forbids: |path| path.segments.iter().any(|word| ["HashMap", "HashSet", "RandomState"].contains(word)),
        tests_may: false,
        simulator_may: false,
        why: "order that can be seen must be fixed: use BTreeMap, or hashbrown::HashTable with our own hash",
    },
    Rule {
        what: "randomness",
        forbids: |path| crate_named(path, &["rand", "fastrand", "getrandom"]),
        tests_may: false,
        simulator_may: false,
        why: "randomness is a function of a seed (rallypoint_base::random)",
    },
    Rule {
        what: "an async runtime",
        forbids: |path| path.segments == ["async"] || crate_named(path, &["tokio", "futures"]),
        tests_may: false,
        simulator_may: false,
        why: "a pure machine takes events and gives commands; what is pending is a field, not a future",
    },
    Rule {
        what: "`unsafe`",
        forbids: |path| path.segments == ["unsafe"],
        tests_may: true,
        simulator_may: true,
        why: "nothing here is close enough to the machine to need it",
    },
];

/// Whether `path` names `module` of the standard library, or one of `items` from anywhere.
fn std_module(path: &Path<'_>, module: &str, items: &[&str]) -> bool {
    let path = path.segments.as_slice();
    let of_std = matches!(path, [root, second, ..] if *root == "std" && *second == module);
    // Durations are values and read no clock.
    let only_durations = module == "time" && matches!(path, [_, _, third, ..] if *third == "Duration");
    (of_std && !only_durations) || path.iter().any(|word| items.contains(word))
}

/// Whether `path` begins with one of these crates; a local variable may have such a name.
fn crate_named(path: &Path<'_>, crates: &[&str]) -> bool {
    crates.contains(&path.segments[0]) && (path.imported || path.segments.len() > 1)
}

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for package in &tree.packages {
        let name = package.short_name();
        let simulator = name == SIMULATOR;
        if !simulator && !PURE.contains(&name) {
            continue;
        }
        for (file, text) in tree.sources(&package.folder) {
            let test_file = !file[package.folder.len()..].starts_with("/src/");
            check_file(file, text, test_file, simulator, findings);
        }
        check_lints(tree, &package.folder, findings);
    }
}

fn check_file(file: &str, text: &str, test_file: bool, simulator: bool, findings: &mut Vec<Finding>) {
    let lexed = lex(text);
    for path in paths(&lexed) {
        for rule in RULES {
            let tolerated =
                (rule.tests_may && (path.in_test || test_file)) || (rule.simulator_may && simulator);
            let users = path.segments == ["async"]
                && (USERS_FUTURES.contains(&file) || file.starts_with("crates/saga/tests/"));
            if !tolerated && !users && (rule.forbids)(&path) {
                let owner = if simulator { "the simulator" } else { "a pure crate" };
                let what = format!("{} in {owner}: `{}`", rule.what, path.segments.join("::"));
                findings.push(Finding { file: file.to_owned(), line: path.line, what, why: rule.why });
            }
        }
    }
}

/// clippy reads the `clippy.toml` beside a manifest and no other: each pure crate has its own, alike.
fn check_lints(tree: &Tree, folder: &str, findings: &mut Vec<Finding>) {
    let expected = tree.files.get("crates/base/clippy.toml");
    let file = format!("{folder}/clippy.toml");
    if tree.files.get(&file) != expected || expected.is_none() {
        let what = "missing, or different from crates/base/clippy.toml".to_owned();
        let why = "the editor should object to a clock before this check does";
        findings.push(Finding { file, line: 1, what, why });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn each_forbidden_thing_is_found() {
        let cases = [
            ("use std::time::Instant;", "a clock"),
            ("use std::time::{Duration, SystemTime};", "a clock"),
            ("fn f() { let t = std::time::Instant::now(); }", "a clock"),
            ("use std::{time};", "a clock"),
            ("fn f() { std::thread::sleep(d); }", "a thread"),
            ("use std::{fs, fmt};", "a file"),
            ("use std::net::TcpStream;", "a socket"),
            ("fn f() { ::std::process::abort(); }", "a process"),
            ("use std::os::fd::AsRawFd;", "the operating system"),
            ("fn f() { std::env::var(\"A\"); }", "the environment"),
            ("use std::collections::HashMap;", "a map with random order"),
            ("use hashbrown::{HashTable, HashSet};", "a map with random order"),
            ("use rand::Rng;", "randomness"),
            ("fn f() { tokio::spawn(g()); }", "an async runtime"),
            ("async fn f() {}", "an async runtime"),
            ("fn f() { unsafe { g() } }", "`unsafe`"),
        ];
        for (line, what) in cases {
            for folder in ["base", "rollback", "store", "engine"] {
                let file = format!("crates/{folder}/src/a.rs");
                let found = with(&file, &format!("//! A.\n\n{line}\n"));
                assert_eq!(found.len(), 1, "{line}: {found:?}");
                assert!(found[0].starts_with(&format!("{file}:3: {what} in a pure crate")), "{found:?}");
            }
            assert!(with("crates/host/src/a.rs", &format!("//! A.\n\n{line}\n")).is_empty());
        }
    }

    #[test]
    fn the_simulator_is_held_to_it_too() {
        for line in
            ["use std::fs;", "use std::thread;", "use std::time::Instant;", "use std::collections::HashMap;"]
        {
            let found = with("crates/sim/src/a.rs", &format!("//! A.\n{line}\n"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains("in the simulator"), "{found:?}");
        }
    }

    #[test]
    fn what_is_harmless_passes() {
        let text = "//! A: no std::fs, no HashMap.\n#![forbid(unsafe_code)]\nuse std::time::Duration;\n\
                    use std::collections::BTreeMap; use hashbrown::HashTable;\n\
                    /* std::thread */ const A: &str = \"std::net\"; fn random(rand: u8) -> u8 { self.process(rand) }\n";
        assert_eq!(with("crates/engine/src/a.rs", text), Vec::<String>::new());
    }

    #[test]
    fn tests_may_start_threads_and_read_files_but_no_clock() {
        let module =
            "//! A.\n#[cfg(test)]\nmod tests { use std::{thread, fs, env}; fn f() { unsafe { g() } } }\n";
        assert_eq!(with("crates/store/src/a.rs", module), Vec::<String>::new());
        assert_eq!(with("crates/store/tests/a.rs", "use std::thread;\n"), Vec::<String>::new());
        assert_eq!(with("crates/store/tests/a.rs", "use std::time::Instant;\n").len(), 1);
        let clock = "//! A.\n#[cfg(test)]\nmod tests { use std::time::Instant; }\n";
        assert_eq!(with("crates/store/src/a.rs", clock).len(), 1);
    }

    #[test]
    fn pure_crates_share_their_lints() {
        let expected = ["crates/store/clippy.toml:1: missing, or different from crates/base/clippy.toml"];
        assert_eq!(with("crates/store/clippy.toml", "same = false\n"), expected);
    }
}

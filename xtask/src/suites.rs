//! Running every test, and adding up what the suites say.

use crate::{Outcome, cargo, tidy};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Packages that some test runs or loads and that `cargo test` does not build for it.
const NEEDED_FIRST: &[&str] = &["rallypoint-recorder"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    suites: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; other lines count nothing.
    fn add_line(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        let count = |what: &str| {
            let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
            words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
        };
        self.suites += 1;
        self.passed += count("passed");
        self.failed += count("failed");
        self.ignored += count("ignored");
    }
}

pub(crate) fn test(root: &Path, arguments: &[String]) -> Outcome {
    let release = match arguments {
        [] => false,
        [flag] if flag == "--release" => true,
        _ => return Outcome::Misused("test takes no argument but --release".to_owned()),
    };
    let started = Instant::now();
    let Some(built) = build(root, release) else {
        println!("\nthe workspace does not build\n0 passed, 1 failed");
        return Outcome::Failed;
    };
    let tests_started = Instant::now();
    let mut command = cargo(root);
    command.args(["test", "--workspace", "--no-fail-fast"]).args(release.then_some("--release"));
    let mut tally = run_counted(&mut command);
    let tested = tests_started.elapsed();

    println!("\n== tidy");
    let tidy_failed = tidy::run(root) != Ok(0);
    // Tidy also runs as a test and is counted there; a breach only seen here must not look green.
    if tidy_failed && tally.failed == 0 {
        tally.failed += 1;
    }
    println!(
        "\n{} suites, {} ignored; build {}, tests {}, all {}; {} setting",
        tally.suites,
        tally.ignored,
        seconds(built),
        seconds(tested),
        seconds(started.elapsed()),
        if long_setting() { "long" } else { "short" },
    );
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 { Outcome::Passed } else { Outcome::Failed }
}

pub(crate) fn long(root: &Path, arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Outcome::Misused(format!("long takes no argument, not `{argument}`"));
    }
    let started = Instant::now();
    if build(root, true).is_none() {
        println!("\nthe workspace does not build\n0 passed, 1 failed");
        return Outcome::Failed;
    }
    let mut command = cargo(root);
    // What the suites print (seeds, counts of faults and recovery paths) is the result here.
    command.args(["test", "--workspace", "--no-fail-fast", "--release", "--", "--nocapture"]);
    command.env("RALLYPOINT_LONG", "1");
    let tally = run_counted(&mut command);
    println!("\nTo be reported, with the commit and the machine:");
    println!(
        "  - the tables printed above: seeds run, and each fault kind and recovery path with its count;"
    );
    println!("  - each seed that failed, word for word: with the commit it reproduces the run;");
    println!(
        "  - long setting, {} suites, {} ignored, {}.",
        tally.suites,
        tally.ignored,
        seconds(started.elapsed())
    );
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 { Outcome::Passed } else { Outcome::Failed }
}

fn long_setting() -> bool {
    std::env::var_os("RALLYPOINT_LONG").is_some_and(|value| value == "1")
}

/// Builds the command and whatever else the tests start or load. `None` if something does not build.
fn build(root: &Path, release: bool) -> Option<Duration> {
    let started = Instant::now();
    let release = release.then_some("--release");
    let mut steps = vec![vec!["build", "--workspace", "--bins"]];
    let needed = NEEDED_FIRST.iter().filter(|name| has_package(root, name));
    steps.extend(needed.map(|name| vec!["build", "--package", name]));
    for step in steps {
        println!("== cargo {}", step.join(" "));
        let status = cargo(root).args(step).args(release).status();
        if !status.is_ok_and(|status| status.success()) {
            return None;
        }
    }
    Some(started.elapsed())
}

fn has_package(root: &Path, name: &str) -> bool {
    crate::tree::Tree::read(root).is_ok_and(|tree| tree.packages.iter().any(|package| package.name == name))
}

/// Runs `cargo test …`, shows its output as it comes, and adds up its suites.
fn run_counted(command: &mut Command) -> Tally {
    let mut tally = Tally::default();
    println!("== cargo test");
    let child = command.stdout(Stdio::piped()).spawn();
    let ended_well = child.and_then(|mut child| {
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                tally.add_line(&line);
                println!("{line}");
            }
        }
        child.wait()
    });
    // A suite that does not compile, aborts or is killed prints no result.
    if !ended_well.is_ok_and(|status| status.success()) && tally.failed == 0 {
        println!("a suite did not build or ended without a result");
        tally.failed += 1;
    }
    tally
}

fn seconds(duration: Duration) -> String {
    format!("{:.0} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "noise test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out",
        ] {
            tally.add_line(line);
        }
        assert_eq!(tally, Tally { suites: 2, passed: 13, failed: 2, ignored: 1 });
    }
}

//! Damage, failing writes and a full disk under the shipped binary, on a real file system.
//!
//! Run by hand: it needs root, loop devices and FUSE. A scenario is one entry of [`SCENARIOS`]; as
//! long as there is none, the command is not offered.

use crate::Outcome;
use std::path::Path;

/// One way to make a real disk fail, and what the shipped binary must do about it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Runs it; the error says what was expected and what happened.
    pub(crate) run: fn(&Path) -> Result<(), String>,
}

/// In the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[];

pub(crate) fn command(root: &Path, arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Outcome::Misused(format!("faults takes no argument, not `{argument}`"));
    }
    if SCENARIOS.is_empty() {
        return Outcome::Misused("no fault scenario is in this release".to_owned());
    }
    let missing = missing_prerequisites();
    if !missing.is_empty() {
        return Outcome::Misused(format!(
            "the faults need root and loop devices; missing: {}",
            missing.join(", ")
        ));
    }
    let mut failed = 0;
    for scenario in SCENARIOS {
        match (scenario.run)(root) {
            Ok(()) => println!("{}: as promised", scenario.name),
            Err(message) => {
                println!("{}: FAILED: {message}", scenario.name);
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed", SCENARIOS.len() - failed);
    if failed == 0 { Outcome::Passed } else { Outcome::Failed }
}

/// What this machine lacks. Looks only; changes nothing.
fn missing_prerequisites() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status
        .lines()
        .any(|line| line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")));
    let mut missing = Vec::new();
    for (present, what) in [
        (root, "root"),
        (Path::new("/dev/loop-control").exists(), "/dev/loop-control"),
        (Path::new("/dev/fuse").exists(), "/dev/fuse"),
    ] {
        if !present {
            missing.push(what);
        }
    }
    missing
}

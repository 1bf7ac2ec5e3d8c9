//! Everything the build checks apart from the tests. Read-only: it never changes a file.

use crate::{Outcome, cargo, links};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

pub(crate) fn command(root: &Path, arguments: &[String]) -> Outcome {
    let known = |name: &String| STEPS.iter().any(|(step, _)| step == name);
    if let Some(unknown) = arguments.iter().find(|name| !known(name)) {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        return Outcome::Misused(format!("ci knows {}, not `{unknown}`", names.join(", ")));
    }
    let mut failed = Vec::new();
    // All of them, so that one run shows everything there is to mend.
    for (name, step) in STEPS {
        if !arguments.is_empty() && !arguments.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("== {name}");
        let started = Instant::now();
        let passed = step(root);
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("-- {name}: {verdict} in {:.1} s", started.elapsed().as_secs_f64());
        if !passed {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        println!("ci: all passed");
        return Outcome::Passed;
    }
    println!("ci: failed: {}", failed.join(", "));
    Outcome::Failed
}

type Step = fn(&Path) -> bool;

const STEPS: &[(&str, Step)] = &[
    ("format", |root| succeeds(cargo(root).args(["fmt", "--all", "--check"]))),
    ("clippy", |root| {
        succeeds(cargo(root).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    }),
    ("doc", |root| {
        succeeds(cargo(root).args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    }),
    ("licences", licences),
    ("links", links::check),
];

fn succeeds(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("{}: {error}", command.get_program().to_string_lossy());
            false
        }
    }
}

/// `cargo deny` is an extra tool; where it is missing, the check says so and passes. Advisories are
/// left out: their list comes over the network, and a build should not turn red without a change.
fn licences(root: &Path) -> bool {
    let mut version = cargo(root);
    version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !version.status().is_ok_and(|status| status.success()) {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
        return true;
    }
    succeeds(cargo(root).args(["deny", "--workspace", "check", "licenses", "bans", "sources"]))
}

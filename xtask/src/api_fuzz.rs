//! The server's API against its own description, by schemathesis.
//!
//! Starts the shipped binary on a temporary directory and port, with one definition, and lets
//! schemathesis send what the description allows and what it forbids. Fails on any finding: an answer
//! that is not described, a server error, a malformed request that is accepted.

use crate::{Outcome, cargo};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Tells schemathesis what a description cannot say; checks only what it names otherwise.
const SETTINGS: &str = r#"
# A definition or a state that the description cannot exclude is refused with these.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "409", "422"]
# A text that is no text in JSON is no less a text in YAML, which a definition may be written in.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "404", "405", "409", "413", "415", "422"]
"#;

/// Ended by no signal from here; waits for signals, so that sagas stay for a while.
const DEFINITION: &str =
    "name: fuzzed\nversion: 1\nsteps:\n  - signal: go\n    within: 1s\n  - sleep: 10ms\n";

/// A server that is killed in the end.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn command(root: &Path, arguments: &[String]) -> Outcome {
    let examples = match arguments {
        [] => "50",
        [count] if count.parse::<u32>().is_ok() => count,
        _ => {
            return Outcome::Misused("api-fuzz takes the number of examples per operation, or nothing".into());
        }
    };
    let tool = std::env::var_os("SCHEMATHESIS").map_or_else(|| PathBuf::from("schemathesis"), PathBuf::from);
    let found = Command::new(&tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Outcome::Misused(
            "schemathesis is not there: `python3 -m venv v && v/bin/pip install schemathesis`, then set \
             SCHEMATHESIS=v/bin/schemathesis"
                .into(),
        );
    }
    if !cargo(root).args(["build", "-p", "rallypoint-cli"]).status().is_ok_and(|status| status.success()) {
        return Outcome::Failed;
    }
    let place = root.join("target/api-fuzz");
    // What an earlier run left there.
    let _ = std::fs::remove_dir_all(&place);
    let made = std::fs::create_dir_all(place.join("sagas"))
        .and_then(|()| std::fs::write(place.join("sagas/fuzzed.yaml"), DEFINITION))
        .and_then(|()| std::fs::write(place.join("schemathesis.toml"), SETTINGS));
    if let Err(error) = made {
        return Outcome::Misused(format!("cannot write to {}: {error}", place.display()));
    }
    let (served, url) = match serve(root, &place) {
        Ok(served) => served,
        Err(why) => return Outcome::Misused(why),
    };
    let description = format!("{url}/openapi.json");
    let status = Command::new(&tool)
        .current_dir(&place)
        .args(["run", &description, "--max-examples", examples, "--seed", "1"])
        // The stream of events does not end by itself.
        .args(["--exclude-path", "/v1/events", "--phases", "examples,coverage,fuzzing", "--no-color"])
        .status();
    drop(served);
    match status {
        Ok(status) if status.success() => Outcome::Passed,
        Ok(_) => Outcome::Failed,
        Err(error) => Outcome::Misused(format!("{}: {error}", tool.display())),
    }
}

/// The shipped binary on a directory of its own, and its address.
fn serve(root: &Path, place: &Path) -> Result<(Served, String), String> {
    let mut command = Command::new(root.join("target/debug/rallypoint"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--segment-bytes", "16777216"]);
    command.arg("--allow-unsuitable-file-system").arg("--dir").arg(place.join("store"));
    command.arg("--sagas").arg(place.join("sagas")).stdout(Stdio::piped());
    let process = command.spawn().map_err(|error| format!("the server cannot be started: {error}"))?;
    let mut served = Served(process);
    let mut line = String::new();
    let stdout = served.0.stdout.as_mut().ok_or("the server has no output")?;
    BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
    let url = line.trim().strip_prefix("serving on ").ok_or("the server did not start: see above")?;
    Ok((served, url.to_owned()))
}

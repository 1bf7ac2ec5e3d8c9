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
# As the default, but a server error is never right, and a wrong media type or a conflict is a no too.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "404", "405", "409", "413", "415", "422"]
"#;

/// Names what is there, which no text made up by chance does.
const KNOWN: &str = "[parameters]\nsaga = \"fuzzed\"\nname = \"fuzzed\"\nsignal = \"go\"\nstep = \"go\"\n";

/// Waits for a signal, so that its sagas stay for a while.
const DEFINITION: &str =
    "saga: fuzzed\nversion: 1\nsteps:\n  - signal: go\n    within: 2s\n  - sleep: 10ms\n";

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
            return Outcome::Misused(
                "api-fuzz takes the number of examples per operation, or nothing".into(),
            );
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
        .and_then(|()| std::fs::write(place.join("sagas/fuzzed.yaml"), DEFINITION));
    if let Err(error) = made {
        return Outcome::Misused(format!("cannot write to {}: {error}", place.display()));
    }
    let (served, url) = match serve(root, &place) {
        Ok(served) => served,
        Err(why) => return Outcome::Misused(why),
    };
    let known = ["saga", "start", "fuzzed", "--key", "fuzzed", "--server", &url];
    if !Command::new(program(root)).args(known).status().is_ok_and(|status| status.success()) {
        return Outcome::Misused("the saga to be fuzzed could not be started: see above".into());
    }
    let description = format!("{url}/openapi.json");
    let mut outcome = Outcome::Passed;
    // Any path, and then the ones of what is there.
    for settings in [SETTINGS.to_owned(), format!("{KNOWN}{SETTINGS}")] {
        if let Err(error) = std::fs::write(place.join("schemathesis.toml"), settings) {
            return Outcome::Misused(format!("cannot write to {}: {error}", place.display()));
        }
        let status = Command::new(&tool)
            .current_dir(&place)
            .args(["run", &description, "--max-examples", examples, "--seed", "1"])
            // The stream of events does not end by itself.
            .args([
                "--exclude-path",
                "/v1/events",
                "--phases",
                "examples,coverage,fuzzing,stateful",
                "--no-color",
            ])
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(_) => outcome = Outcome::Failed,
            Err(error) => return Outcome::Misused(format!("{}: {error}", tool.display())),
        }
    }
    drop(served);
    outcome
}

fn program(root: &Path) -> PathBuf {
    root.join("target/debug/rallypoint")
}

/// The shipped binary on a directory of its own, and its address.
fn serve(root: &Path, place: &Path) -> Result<(Served, String), String> {
    let mut command = Command::new(program(root));
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

//! The program of the tutorial, killed and started again: no number is lost, none comes twice.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the program in `dir` until it has printed `lines` numbers, kills it with SIGKILL, and gives
/// everything that it had printed. Its error text where it printed nothing.
fn run_and_kill(dir: &Path, lines: usize) -> Result<Vec<u64>, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_counter-example"));
    command.current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut numbers = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // What was cut off in the middle was never printed.
        let Ok(Ok(number)) = line.map(|line| line.parse()) else { break };
        numbers.push(number);
        if numbers.len() == lines {
            child.kill().unwrap(); // SIGKILL; what is in the pipe is still read
        }
    }
    let output = child.wait_with_output().unwrap();
    if numbers.is_empty() { Err(String::from_utf8_lossy(&output.stderr).into_owned()) } else { Ok(numbers) }
}

/// A directory on a file system that a store accepts: a container's own is refused.
fn suitable() -> (tempfile::TempDir, Vec<u64>) {
    let mut refusals = Vec::new();
    for place in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        let Ok(dir) = tempfile::tempdir_in(place) else { continue };
        match run_and_kill(dir.path(), 20) {
            Ok(numbers) => return (dir, numbers),
            Err(refusal) => refusals.push(refusal),
        }
    }
    panic!("no file system here keeps a store: {refusals:?}");
}

#[test]
fn the_count_goes_on_after_every_kill() {
    let (dir, mut numbers) = suitable();
    assert_eq!(numbers[0], 1);
    for lines in [1, 50, 7] {
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
        let last = *numbers.last().unwrap();
        numbers = run_and_kill(dir.path(), lines).unwrap();
        // What was printed is never lost. The last visit may have been counted and its line not printed.
        let first = numbers[0];
        assert!(first == last + 1 || first == last + 2, "{last} was printed, and then {first}");
    }
}

//! The project's own commands, run as `cargo xtask <command>`.
//!
//! `test` and `ci` are what a contributor and the build run; `tidy` is the architecture as a check.
//! Nothing here is shipped, and nothing here needs more than cargo.
#![forbid(unsafe_code)]

mod api_fuzz;
mod ci;
mod faults;
mod lex;
mod links;
mod suites;
mod tidy;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

struct Subcommand {
    name: &'static str,
    help: &'static str,
    run: fn(&Path, &[String]) -> Outcome,
}

/// How a command ended. `Misused` is a mistake of the caller (exit code 2), `Failed` a finding (1).
enum Outcome {
    Passed,
    Failed,
    Misused(String),
}

const COMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "test",
        help: "build what the tests need, run every test of the workspace, then tidy [--release]",
        run: suites::test,
    },
    Subcommand {
        name: "tidy",
        help: "fail on an upward import, on a clock or file in a pure crate, and the like",
        run: tidy::command,
    },
    Subcommand {
        name: "ci",
        help: "[format clippy doc licences links] all of them or those named; changes nothing",
        run: ci::command,
    },
    Subcommand {
        name: "faults",
        help: "damage, failing writes and a full disk under the shipped binary (root, by hand)",
        run: faults::command,
    },
    Subcommand {
        name: "api-fuzz",
        help: "schemathesis against the server's own description (needs `pip install schemathesis`)",
        run: api_fuzz::command,
    },
    Subcommand {
        name: "long",
        help: "every test in its long setting, optimised, and what to report of it",
        run: suites::long,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = workspace_root();
    let Some((name, rest)) = arguments.split_first() else {
        return usage(2);
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        return usage(0);
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("error: no such command: {name}");
        return usage(2);
    };
    match (command.run)(&root, rest) {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::from(1),
        Outcome::Misused(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn usage(code: u8) -> ExitCode {
    println!("usage: cargo xtask <command>\n");
    for command in COMMANDS {
        // A command that can do nothing yet is not offered.
        if command.name != "faults" || !faults::SCENARIOS.is_empty() {
            println!("  {:<10}{}", command.name, command.help);
        }
    }
    println!("\nRALLYPOINT_LONG=1 makes any test run use its long setting (hours, not minutes).");
    ExitCode::from(code)
}

/// The folder that holds the workspace: the parent of this package.
fn workspace_root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The cargo that runs us, so that the toolchain does not change on the way.
fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

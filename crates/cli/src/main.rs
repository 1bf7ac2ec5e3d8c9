//! The `rallypoint` command: what needs only bytes, the demo, and the server.
//!
//! Exit codes: 0 all is well; 1 the command ran and found something wrong (damage, a failed audit);
//! 2 the command could not run (wrong arguments, not a store, in use, full disk).

mod admin;
mod bench;
mod demo;
mod output;
mod saga;
mod serve;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Durable sagas and actors for Rust, and every recovery technique under one roof.
///
/// This command does what needs only a store's bytes. What needs your own actors' code (retrying a
/// quarantined input, replay) is in `app.admin()`, mounted in your own binary.
#[derive(Parser)]
#[command(name = "rallypoint", version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 all is well; 1 something is wrong with what was looked at; \
2 the command could not run.";

#[derive(Subcommand)]
enum Command {
    /// A bank on worker processes that are killed again and again, and an audit.
    Demo(demo::Arguments),
    #[command(flatten)]
    Admin(admin::Command),
    /// Serve declared sagas over HTTP.
    ///
    /// Prints the address once requests are answered. SIGTERM or SIGINT ends it in order; after a kill
    /// the next start goes on with every saga. Exit codes: 0 ended in order; 1 ended, but without a last
    /// checkpoint; 2 not started.
    Serve(serve::Arguments),
    /// Start, look at and step into the sagas of a server.
    Saga {
        #[command(subcommand)]
        command: Box<saga::Command>,
    },
    /// Measure this machine: each figure beside its physical limit of the same run.
    Bench(bench::Arguments),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// The demo's client process.
    #[command(hide = true)]
    DemoClient(demo::client::Arguments),
    /// A service of the demo with orders.
    #[command(hide = true)]
    DemoService(demo::orders::ServiceArguments),
    /// The demo's auditing process.
    #[command(hide = true)]
    DemoAudit(demo::auditor::Arguments),
}

/// Sagas are made of many small values that one thread makes and another drops: what the system's
/// allocator is slowest at (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A worker process of the demo or of a benchmark: same binary, same application.
    if rallypoint_host::worker::is_worker() {
        return ExitCode::from(rallypoint_host::worker::run(demo::application()));
    }
    let code = match Cli::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Admin(command) => admin::run(command),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Saga { command } => saga::run(*command),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "rallypoint", &mut std::io::stdout());
            0
        }
        Command::DemoClient(arguments) => demo::client::run(&arguments),
        Command::DemoService(arguments) => demo::orders::run_service(arguments),
        Command::DemoAudit(arguments) => demo::auditor::run(&arguments),
    };
    ExitCode::from(code)
}

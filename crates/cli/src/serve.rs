//! `serve`: declared sagas over HTTP, in this process.
//!
//! Decides what is printed and how the command ends. Never prints the token.

use crate::output::{Exit, print_json};
use clap::Args;
use rallypoint_server::serve::{ServeOptions, serve};
use serde::Serialize;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What to serve, and where.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The store's directory; one is made where there is none.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Keep a second copy here, meant to be on another disk.
    #[arg(long, value_name = "DIR")]
    mirror: Option<PathBuf>,
    /// Go on with one copy although the other one is missing: the decision to live with what this one has.
    #[arg(long)]
    degraded: bool,
    /// Where to listen; port 0 = any that is free. Beyond loopback only with --token-file.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Definitions to put at start: all `.yaml`, `.yml` and `.json` files of this folder.
    #[arg(long, value_name = "FOLDER")]
    sagas: Option<PathBuf>,
    /// A file with the token that requests must carry as `Authorization: Bearer`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Delete sagas this long after they ended (30d, 12h); without it none is deleted.
    #[arg(long, value_name = "TIME", value_parser = retention)]
    retention: Option<Duration>,
    /// Accept a file system for the store that may lose a synced write.
    #[arg(long)]
    allow_unsuitable_file_system: bool,
    /// Bytes of a log segment in a store that is made.
    #[arg(long, value_name = "BYTES", hide = true)]
    segment_bytes: Option<u64>,
    /// Print one JSON object when ready.
    #[arg(long)]
    json: bool,
}

fn retention(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: u64 = digits.parse().map_err(|_| format!("{text:?} is no time: write 30d or 12h"))?;
    let unit = match &text[digits.len()..] {
        "h" => 3600,
        "d" => 24 * 3600,
        unit => return Err(format!("{unit:?} is no unit here: write h or d")),
    };
    match value.checked_mul(unit) {
        // Some 290 years: what nanoseconds since 1970 have room for.
        Some(seconds) if (1..=9_000_000_000).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is out of range: 1h to 104166d")),
    }
}

#[derive(Serialize)]
struct Ready {
    address: String,
    pid: u32,
}

#[derive(Serialize)]
struct Failed {
    error: String,
}

/// Serves until a SIGTERM or SIGINT, and gives the exit code.
pub(crate) fn run(arguments: &Arguments) -> u8 {
    let options = ServeOptions {
        mirror: arguments.mirror.clone(),
        degraded: arguments.degraded,
        listen: arguments.listen,
        sagas: arguments.sagas.clone(),
        token_file: arguments.token_file.clone(),
        allow_unsuitable_file_system: arguments.allow_unsuitable_file_system,
        segment_len: arguments.segment_bytes,
        retention: arguments.retention,
        tell: |text| eprintln!("{text}"),
        ..ServeOptions::new(&arguments.dir)
    };
    let json = arguments.json;
    let ended = serve(options, |address| {
        let ready = Ready { address: format!("http://{address}"), pid: std::process::id() };
        if json {
            // Whoever closed the pipe does not want to know.
            let _ = print_json(&ready);
        } else {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "serving on {}", ready.address).and_then(|()| out.flush());
        }
    });
    let exit = match ended {
        Ok(true) => Exit::Done,
        Ok(false) => {
            eprintln!(
                "ended without a last checkpoint, or with requests unanswered; nothing acknowledged is lost"
            );
            Exit::Look
        }
        Err(error) => {
            eprintln!("error: {error}");
            if json {
                let _ = print_json(&Failed { error: error.to_string() });
            }
            Exit::NotDone
        }
    };
    exit as u8
}

//! Runs a bench of actors: `bench_actors messages|checkpoint|recovery [DIRECTORY [MIRROR]] [--json]`.

use rallypoint_host::app::App;
use rallypoint_host::bench::{checkpoint, messages, recovery, register};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    if rallypoint_host::worker::is_worker() {
        std::process::exit(rallypoint_host::worker::run(register(App::define())).into());
    }
    let (flags, rest): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let mut rest = rest.into_iter();
    let bench = rest.next().unwrap_or_default();
    let directory = rest.next().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mirror = rest.next().map(PathBuf::from);
    let report = match bench.as_str() {
        "messages" => messages::run(&messages::Settings { mirror, ..messages::Settings::new(directory) })?,
        "checkpoint" => {
            checkpoint::run(&checkpoint::Settings { mirror, ..checkpoint::Settings::new(directory) })?
        }
        "recovery" => recovery::run(&recovery::Settings { mirror, ..recovery::Settings::new(directory) })?,
        other => return Err(std::io::Error::other(format!("no bench {other:?}"))),
    };
    if flags.iter().any(|flag| flag == "--json") {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(())
}

//! Runs the journal bench in a directory: `bench_journal [DIRECTORY [MIRROR]] [--json]`.

use rallypoint_host::bench::journal::{Settings, run};
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let (flags, places): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let mut places = places.into_iter().map(PathBuf::from);
    let mut settings = Settings::new(places.next().unwrap_or_else(|| PathBuf::from(".")));
    settings.mirror = places.next();
    let report = run(&settings)?;
    if flags.iter().any(|flag| flag == "--json") {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(())
}

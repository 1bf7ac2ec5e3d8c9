//! `rallypoint bench`: this machine's figures, each beside its physical limit of the same run.
//!
//! Decides where is measured and how the report is printed. Never leaves a file behind, and never
//! fails because a figure is poor: what is missed is said in the report.

use clap::{Args, ValueEnum};
use rallypoint_host::bench::report::Report;
use rallypoint_host::bench::{checkpoint, journal, messages, recovery, sagas};
use rallypoint_server::bench as served;
use std::io;
use std::path::{Path, PathBuf};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Commits and replay of the journal beside the bare disk.
    Journal,
    /// Latency and rate of durable messages and transfers, with threads and workers; memory.
    Messages,
    /// What a checkpoint of 1 GiB costs the messages beside it, and how long it takes.
    Checkpoint,
    /// Replay of a log, and the silence of a killed worker's partitions.
    Recovery,
    /// Sagas of three steps that do nothing: latency, rate, disk, memory, restart; and served ones.
    Sagas,
}

/// Measure this machine.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// What to measure; each takes at most two minutes.
    which: Which,
    /// Where: a directory on the disk to measure. What is made in it is removed again.
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
    /// Measure with a second copy, on this disk.
    #[arg(long, value_name = "DIR")]
    mirror: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
    /// The process that another one kills: a store with so many ended sagas, in --dir itself.
    #[arg(long, hide = true, value_name = "SAGAS")]
    hold: Option<u64>,
}

/// Measures and prints. Gives the exit code: 0 when it was measured, whatever the figures say; 2
/// when it could not be.
pub(crate) fn run(arguments: &Arguments) -> u8 {
    if let Some(ended) = arguments.hold {
        let Err(error) = sagas::hold(&arguments.dir, arguments.mirror.as_deref(), ended);
        eprintln!("rallypoint bench: {error}");
        return 2;
    }
    match measure(arguments.which, &arguments.dir, arguments.mirror.clone()) {
        Ok(report) if arguments.json => {
            println!("{}", report.json());
            0
        }
        Ok(report) => {
            print!("{report}");
            0
        }
        Err(error) => {
            eprintln!("rallypoint bench: cannot measure in {}: {error}", arguments.dir.display());
            2
        }
    }
}

fn measure(which: Which, dir: &Path, mirror: Option<PathBuf>) -> io::Result<Report> {
    match which {
        Which::Journal => journal::run(&journal::Settings { mirror, ..journal::Settings::new(dir) }),
        Which::Messages => messages::run(&messages::Settings { mirror, ..messages::Settings::new(dir) }),
        Which::Checkpoint => {
            checkpoint::run(&checkpoint::Settings { mirror, ..checkpoint::Settings::new(dir) })
        }
        Which::Sagas => {
            let mut report =
                sagas::run(&sagas::Settings { mirror: mirror.clone(), ..sagas::Settings::new(dir) })?;
            report.rows.extend(served::run(&served::Settings { mirror, ..served::Settings::new(dir) })?);
            Ok(report)
        }
        Which::Recovery => recovery::run(&recovery::Settings { mirror, ..recovery::Settings::new(dir) }),
    }
}

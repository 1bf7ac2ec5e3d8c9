//! The commands that need only a store's bytes: verify, scrub, mend, backup, restore, checkpoint,
//! events, quarantine.
//!
//! Decides what they are called, what they take and how they end. Never decides anything about bytes:
//! that is `rallypoint_host::store_tools`.
//!
//! Invariants: exit code 0 means that what was looked at is sound (or was made so), 1 that something is
//! wrong that a person must see to, 2 that nothing was judged: not a store, in use, wrong arguments, a
//! disk that refuses. With `--json` exactly one object is printed, also for an error.

pub(crate) mod progress;
mod show;
mod when;

use crate::output::{Exit, print_json};
use clap::{Args, Subcommand};
use progress::Bar;
use rallypoint_base::id::{PartitionId, Position, Version};
use rallypoint_host::store_tools::{self as tools, ToolError};
use rallypoint_store::event_log::EventKind;
use rallypoint_store::mend::MendOptions;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use when::Since;

/// Which store.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The store's directory.
    dir: PathBuf,
    /// Its second copy, if it has one.
    #[arg(long, value_name = "DIR")]
    mirror: Option<PathBuf>,
}

impl Place {
    fn mirror(&self) -> Option<&Path> {
        self.mirror.as_deref()
    }
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Read everything of a store on all copies and say what is wrong with it. Writes nothing.
    ///
    /// Every checksum, both copies, every checkpoint, and that no partition has received what its
    /// sender's log does not hold. Traces of a kill are notes, not damage. Exit codes: 0 sound; 1
    /// damaged, each finding named; 2 not a store, in use, or of another release.
    Verify {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Compare everything with its checksums and between the copies, and repair what one copy has
    /// wrong.
    ///
    /// A store that worker processes serve is scrubbed by them, while they serve. One that your own
    /// process serves scrubs itself, a pass a day. Exit codes: 0 all is right now; 1 something is bad
    /// on every copy; 2 not a store, or in use by a process that cannot be asked.
    Scrub {
        #[command(flatten)]
        place: Place,
        /// Read at most so many MiB per second (0 = as fast as the disks are).
        #[arg(long, value_name = "MIB", default_value_t = 50)]
        rate: u64,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Repair a store that nobody serves: crosswise between the copies, and copies that were left
    /// behind, replaced or lost.
    ///
    /// Directories of a copy that are missing are made. Exit codes: 0 all is right now; 1 something is
    /// beyond repair; 2 not a store, in use, or a copy is missing and --degraded was not given.
    Mend {
        #[command(flatten)]
        place: Place,
        /// Go on although a copy is missing that may hold acknowledged records that the others lack.
        #[arg(long)]
        degraded: bool,
        /// After a split brain: the number (0 or 1) of the copy whose history counts. The other one is
        /// overwritten.
        #[arg(long, value_name = "N")]
        keep: Option<u8>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Back a store up, also while it is served. Builds on earlier backups in the same directory.
    ///
    /// Everything written is read back, and the image is opened as a store before it counts. Exit
    /// codes: 0 there is a new backup; 2 there is none (earlier ones are whole).
    Backup {
        /// The store's directory.
        dir: PathBuf,
        /// Where the backups are: a directory of its own.
        to: PathBuf,
        /// The store's second copy, if it has one.
        #[arg(long, value_name = "DIR")]
        mirror: Option<PathBuf>,
        /// Accept a file system for the backup that may lose a synced write.
        #[arg(long)]
        allow_unsuitable_file_system: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make a store out of the newest backup, in a new directory and under a new lineage.
    ///
    /// Says after which moment and positions acknowledged inputs are missing. Exit codes: 0 restored;
    /// 2 not restored, and nothing stands under the new name.
    Restore {
        /// Where the backups are.
        from: PathBuf,
        /// The new store's directory: absent or empty.
        dir: PathBuf,
        /// The new store's second copy: absent or empty.
        #[arg(long, value_name = "DIR")]
        mirror: Option<PathBuf>,
        /// Accept a file system for the store that may lose a synced write.
        #[arg(long)]
        allow_unsuitable_file_system: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Look at checkpoints, also while the store is served.
    Checkpoint {
        #[command(subcommand)]
        command: CheckpointCommand,
    },
    /// Show what happened to a store: openings, repairs, cuts, lost copies, inputs set aside.
    ///
    /// Also while the store is served. Exit codes: 0 shown; 1 some events are damaged; 2 not a store.
    Events {
        #[command(flatten)]
        place: Place,
        /// Only events after this: `90s`, `15m`, `2h`, `7d` ago, or `2026-01-31` or
        /// `2026-01-31T12:00:00` (UTC).
        #[arg(long, value_name = "WHEN")]
        since: Option<Since>,
        /// Only events of this kind (may be given several times).
        #[arg(long, value_name = "KIND", value_parser = parse_kind)]
        kind: Vec<EventKind>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Inputs that were set aside, because they panicked or ended their worker twice.
    ///
    /// To run one again needs your actors' code: `app.admin()`.
    Quarantine {
        #[command(subcommand)]
        command: QuarantineCommand,
    },
}

/// What can be done with checkpoints.
#[derive(Subcommand, Debug)]
pub(crate) enum CheckpointCommand {
    /// All of them. Exit codes: 0 listed; 2 not a store.
    List {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// One of them, with what its header says. Exit codes: 0 shown; 2 not a store, or none such.
    Show {
        /// The store's directory.
        dir: PathBuf,
        /// The partition, as `list` shows it.
        #[arg(value_parser = parse_partition)]
        partition: PartitionId,
        /// The version, as `list` shows it.
        #[arg(value_parser = parse_version)]
        version: Version,
        /// The store's second copy, if it has one.
        #[arg(long, value_name = "DIR")]
        mirror: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// What can be done with inputs that were set aside.
#[derive(Subcommand, Debug)]
pub(crate) enum QuarantineCommand {
    /// All of them. Exit codes: 0 there is none; 1 there are some; 2 not a store.
    List {
        #[command(flatten)]
        place: Place,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Drop one for good, in a store that nobody serves. Exit codes: 0 dropped; 2 none such, in use.
    Drop {
        /// The store's directory.
        dir: PathBuf,
        /// The partition, as `list` shows it.
        #[arg(value_parser = parse_partition)]
        partition: PartitionId,
        /// The position, as `list` shows it.
        #[arg(value_parser = parse_position)]
        position: Position,
        /// The store's second copy, if it has one.
        #[arg(long, value_name = "DIR")]
        mirror: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

fn number(text: &str, prefix: char) -> Result<u64, String> {
    let digits = text.strip_prefix(prefix).unwrap_or(text);
    digits.parse().map_err(|_| format!("{text:?} is not a number (with or without {prefix:?} before it)"))
}

fn parse_partition(text: &str) -> Result<PartitionId, String> {
    let number = number(text, 'p')?;
    u16::try_from(number).map(PartitionId).map_err(|_| format!("there is no partition {number}"))
}

fn parse_version(text: &str) -> Result<Version, String> {
    number(text, 'v').map(Version)
}

fn parse_position(text: &str) -> Result<Position, String> {
    number(text, '@').map(Position)
}

fn parse_kind(text: &str) -> Result<EventKind, String> {
    let found = EventKind::ALL.iter().find(|kind| kind.name() == text);
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        format!("there is no such kind; the kinds are {}", names.join(", "))
    })
}

/// Carries a command out and gives the exit code.
pub(crate) fn run(command: Command) -> u8 {
    let exit = match command {
        Command::Verify { place, json } => {
            let mut bar = Bar::new();
            let done = tools::verify(&place.dir, place.mirror(), &mut bar);
            bar.end();
            end(json, done, |found| look_if(!found.sound), |found| show::verification(found, &place.dir))
        }
        Command::Scrub { place, rate, json } => {
            let mut bar = Bar::new();
            let rate = rate.saturating_mul(1 << 20);
            let done = tools::scrub(&place.dir, place.mirror(), rate, &mut bar);
            bar.end();
            end(json, done, |done| look_if(done.is_beyond_repair()), show::scrubbing)
        }
        Command::Mend { place, degraded, keep, json } => {
            let mut bar = Bar::new();
            let options = MendOptions { degraded, keep };
            let done = tools::mend(&place.dir, place.mirror(), options, &mut bar);
            bar.end();
            end(json, done, |done| look_if(done.beyond_repair), show::mended)
        }
        Command::Backup { dir, to, mirror, allow_unsuitable_file_system, json } => {
            let mut bar = Bar::new();
            let done = tools::backup(&dir, mirror.as_deref(), &to, allow_unsuitable_file_system, &mut bar);
            bar.end();
            end(json, done, |_| Exit::Done, |done| show::backed_up(done, &to))
        }
        Command::Restore { from, dir, mirror, allow_unsuitable_file_system, json } => {
            let mut bar = Bar::new();
            let done = tools::restore(&from, &dir, mirror.as_deref(), allow_unsuitable_file_system, &mut bar);
            bar.end();
            end(json, done, |_| Exit::Done, |done| show::restored(done, &dir))
        }
        Command::Checkpoint { command: CheckpointCommand::List { place, json } } => {
            let done = tools::checkpoints(&place.dir, place.mirror());
            let done = done.map(|checkpoints| Checkpoints { checkpoints });
            end(json, done, |_| Exit::Done, |done| show::checkpoints(&done.checkpoints))
        }
        Command::Checkpoint {
            command: CheckpointCommand::Show { dir, partition, version, mirror, json },
        } => {
            let done = tools::checkpoint(&dir, mirror.as_deref(), partition, version);
            end(json, done, |_| Exit::Done, show::checkpoint)
        }
        Command::Events { place, since, kind, json } => {
            let done = tools::events(&place.dir, place.mirror()).map(|mut list| {
                let from = since.map_or(0, |since| since.nanos());
                list.events.retain(|event| {
                    event.time >= from
                        && (kind.is_empty() || kind.iter().any(|kind| kind.name() == event.kind))
                });
                list
            });
            end(json, done, |list| look_if(list.lost_batches > 0), show::events)
        }
        Command::Quarantine { command: QuarantineCommand::List { place, json } } => {
            let mut bar = Bar::new();
            let done = tools::quarantined(&place.dir, place.mirror(), &mut bar);
            bar.end();
            let done = done.map(|set_aside| Quarantine { set_aside });
            end(
                json,
                done,
                |done| look_if(!done.set_aside.is_empty()),
                |done| show::quarantine(&done.set_aside),
            )
        }
        Command::Quarantine {
            command: QuarantineCommand::Drop { dir, partition, position, mirror, json },
        } => {
            let mut bar = Bar::new();
            let done = tools::drop_quarantined(&dir, mirror.as_deref(), partition, position, &mut bar);
            bar.end();
            end(
                json,
                done.map(|dropped| Dropped { dropped }),
                |_| Exit::Done,
                |done| show::dropped(&done.dropped),
            )
        }
    };
    exit as u8
}

#[derive(Serialize)]
struct Checkpoints {
    checkpoints: Vec<tools::CheckpointLine>,
}

#[derive(Serialize)]
struct Quarantine {
    set_aside: Vec<tools::Quarantined>,
}

#[derive(Serialize)]
struct Dropped {
    dropped: tools::Quarantined,
}

#[derive(Serialize)]
struct Failed {
    error: String,
    in_use: bool,
}

fn look_if(wrong: bool) -> Exit {
    if wrong { Exit::Look } else { Exit::Done }
}

/// Prints what a command did, or why it could not.
fn end<T: Serialize>(
    json: bool,
    done: Result<T, ToolError>,
    judge: impl FnOnce(&T) -> Exit,
    text: impl FnOnce(&T) -> String,
) -> Exit {
    let (exit, printed) = match &done {
        Ok(done) if json => (judge(done), print_json(done)),
        Ok(done) => {
            let mut out = std::io::stdout().lock();
            // Whoever closed the pipe has seen enough.
            let _ = out.write_all(text(done).as_bytes()).and_then(|()| out.flush());
            (judge(done), Ok(()))
        }
        Err(error) => {
            eprintln!("error: {error}");
            let failed = Failed { error: error.to_string(), in_use: error.is_in_use() };
            (Exit::NotDone, if json { print_json(&failed) } else { Ok(()) })
        }
    };
    if let Err(error) = printed {
        eprintln!("error: {error}");
        return Exit::NotDone;
    }
    exit
}

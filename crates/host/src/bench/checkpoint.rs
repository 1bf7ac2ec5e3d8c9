//! `rallypoint bench checkpoint`: what a checkpoint costs the messages beside it, and how long it
//! takes beside writing its bytes bare.
//!
//! Decides the state (1 Mi actors of 1 KiB), what part of it changes between checkpoints, and the
//! load beside them: few inputs in flight for latencies, many for rates. The same load runs alone
//! for as long right after each checkpoint, so that a drift of the machine hits both.

use super::load::{Area, Page, Window, keys, micros};
use super::messages::root_error;
use super::raw;
use super::report::{Must, Report, Row, median, quantile};
use crate::app::Runtime;
use crate::client::Client;
use crate::os::machine::Machine;
use rallypoint_engine::partition::Limits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How to run the bench.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it there is one copy.
    pub mirror: Option<PathBuf>,
    /// Actors, each with 1 KiB of state.
    pub actors: usize,
    /// Checkpoints of each case and load.
    pub rounds: usize,
}

impl Settings {
    /// The default: 1 GiB of state, below two minutes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), mirror: None, actors: 1 << 20, rounds: 8 }
    }
}

/// Inputs in flight for latencies, and for rates.
const FEW: usize = 16;
const MANY: usize = 256;

/// Runs everything.
///
/// # Errors
/// What the operating system or the store says.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut area = Area::new("checkpoint", &settings.directory, settings.mirror.as_deref())?;
    let bare = area.bare()?.swap_remove(0);
    let (app, dir) = area.store();
    // Checkpoints come when the bench asks for them; what changes little goes into increments.
    let limits = Limits {
        checkpoint_runs: u64::MAX,
        checkpoint_bytes: u64::MAX,
        chain_length: u32::MAX,
        ..Limits::default()
    };
    let runtime = app.limits(limits).layout(2, 1).open(&dir).map_err(root_error)?;
    let mut load = Load { client: runtime.client(), keys: keys(runtime.map(), settings.actors), at: 0 };
    load.change(settings.actors)?;
    let bench = Bench { runtime, dir, bare };
    let mut rows = vec![bench.whole(settings.actors)?];
    for percent in [1, 10] {
        rows.extend(bench.case(&mut load, percent, settings.rounds)?);
    }
    drop(bench);
    let machine = Machine::of(&settings.directory);
    Ok(Report { bench: "checkpoint".to_owned(), machine, rows })
}

/// Who asks, and what.
struct Load {
    client: Arc<Client>,
    keys: Vec<String>,
    at: usize,
}

impl Load {
    /// Changes so many actors, spread over all.
    fn change(&mut self, count: usize) -> io::Result<()> {
        let mut window = Window::<Page>::new(&self.client, 1024);
        let step = (self.keys.len() / count.max(1)).max(1);
        for number in 0..count {
            self.at += 1;
            window.ask(&self.keys[number * step % self.keys.len()], &(self.at as u64))?;
            window.times.clear();
        }
        window.finish()
    }

    /// Asks for as long as `on`; gives the times of the answers in microseconds, and their rate.
    fn run(&mut self, in_flight: usize, on: &dyn Fn() -> bool) -> io::Result<(Vec<f64>, f64)> {
        let mut window = Window::<Page>::new(&self.client, in_flight);
        // Few actors, so that the load changes little beyond what the case changes.
        let few = (self.keys.len() / 400).max(1);
        let started = Instant::now();
        while on() {
            self.at += 1;
            window.ask(&self.keys[self.at * 7919 % few], &(self.at as u64))?;
        }
        let rate = window.answered as f64 / started.elapsed().as_secs_f64();
        window.finish()?;
        Ok((micros(&window.times), rate))
    }
}

struct Bench {
    runtime: Runtime,
    dir: PathBuf,
    bare: PathBuf,
}

impl Bench {
    fn take(&self) -> io::Result<()> {
        if self.runtime.checkpoint(Duration::from_secs(120)) {
            return Ok(());
        }
        let why = self.runtime.failure().unwrap_or_else(|| "no checkpoint within two minutes".into());
        Err(io::Error::other(why))
    }

    /// The first checkpoint: everything, with nothing beside it.
    fn whole(&self, actors: usize) -> io::Result<Row> {
        let before = checkpoint_bytes(&self.dir)?;
        let started = Instant::now();
        self.take()?;
        let took = started.elapsed().as_secs_f64();
        let bytes = checkpoint_bytes(&self.dir)?.saturating_sub(before);
        let raw = raw::sequential_write(&self.bare, bytes)?.as_secs_f64();
        let case = format!("all of {actors} actors, {} MiB, nothing beside: durable", bytes >> 20);
        Ok(Row::beside(case, took, "s", raw, took / raw, None))
    }

    /// The load while a checkpoint is taken: its times and rate, and how long the checkpoint took.
    fn beside(&self, load: &mut Load, in_flight: usize) -> io::Result<(Vec<f64>, f64, Duration)> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| {
                let started = Instant::now();
                let taken = self.take();
                let took = started.elapsed();
                done.store(true, Ordering::Relaxed);
                taken.map(|()| took)
            });
            let seen = load.run(in_flight, &|| !done.load(Ordering::Relaxed));
            let took = checkpoint.join().map_err(|_| io::Error::other("the checkpoint panicked"))??;
            let (times, rate) = seen?;
            Ok((times, rate, took))
        })
    }

    fn case(&self, load: &mut Load, percent: usize, rounds: usize) -> io::Result<Vec<Row>> {
        let count = load.keys.len() * percent / 100;
        let (mut with, mut without, mut more) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rates, mut alone_rates, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut durable, mut raws, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            for in_flight in [FEW, MANY] {
                load.change(count)?;
                let before = checkpoint_bytes(&self.dir)?;
                let (times, rate, took) = self.beside(load, in_flight)?;
                let bytes = checkpoint_bytes(&self.dir)?.saturating_sub(before);
                let started = Instant::now();
                let (alone_times, alone) = load.run(in_flight, &|| started.elapsed() < took)?;
                if in_flight == FEW {
                    more.push((quantile(&times, 0.999) - quantile(&alone_times, 0.999)) / 1e3);
                    with.extend(times);
                    without.extend(alone_times);
                } else {
                    rates.push(rate);
                    alone_rates.push(alone);
                    parts.push(rate / alone);
                }
                let raw = raw::sequential_write(&self.bare, bytes)?;
                durable.push(took.as_secs_f64() * 1e3);
                raws.push(raw.as_secs_f64() * 1e3);
                ratios.push(took.as_secs_f64() / raw.as_secs_f64());
            }
        }
        let name = |what: &str| format!("{percent} % changed: {what}");
        let (p, alone_p) = (quantile(&with, 0.999) / 1e3, quantile(&without, 0.999) / 1e3);
        let max = |times: &[f64]| times.iter().copied().fold(0.0, f64::max) / 1e3;
        let more = Row::judged(
            name("p99.9 of messages, more than alone"),
            median(&more),
            "ms",
            Must::ValueAtMost(1.0),
        );
        Ok(vec![
            Row::beside(name("p99.9 of messages beside it"), p, "ms", alone_p, p / alone_p, None),
            more,
            Row::beside(
                name("slowest message beside it"),
                max(&with),
                "ms",
                max(&without),
                max(&with) / max(&without),
                None,
            ),
            Row::beside(
                name("messages beside it"),
                median(&rates),
                "messages/s",
                median(&alone_rates),
                median(&parts),
                Some(Must::AtLeast(0.7)),
            ),
            Row::beside(
                name("durable, with messages beside it"),
                median(&durable),
                "ms",
                median(&raws),
                median(&ratios),
                Some(Must::AtMost(3.0)),
            ),
        ])
    }
}

/// Bytes of all parts of checkpoints of a store.
fn checkpoint_bytes(store: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for directory in fs::read_dir(store)? {
        let directory = directory?;
        if !directory.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(directory.path())? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("cp-") && name.ends_with(".part") {
                sum += file.metadata()?.len();
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_fills_every_row() {
        let directory = tempfile::tempdir().expect("made");
        let settings = Settings { actors: 2000, rounds: 1, ..Settings::new(directory.path()) };
        let report = run(&settings).expect("runs");
        assert_eq!(report.rows.len(), 11, "{report}");
        assert_eq!(report.rows.iter().filter(|row| row.must.is_some()).count(), 6, "{report}");
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left");
    }
}

//! `rallypoint bench messages`: durable messages beside bare durable writes, transfers, memory.
//!
//! Decides which loads: one client that waits for each answer, 1,024 inputs in flight, transfers
//! between partitions with threads and with worker processes; and what an idle worker and an idle
//! actor take. Every answer counted is a durable acknowledgement.

use super::load::{Add, Area, Idle, Purse, Tally, Window, failed, keys, micros, transfer};
use super::raw::BareLoop;
use super::report::{Must, Report, Row, median, quantile};
use crate::app::{App, Runtime};
use crate::client::Client;
use crate::os::machine::Machine;
use crate::remote::RemoteClient;
use crate::root::RootError;
use crate::supervisor::Supervisor;
use rallypoint_base::limits::BLOCK;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Inputs in flight in the loads that look for the highest rate.
const IN_FLIGHT: usize = 1024;
/// Actors of the loads.
const ACTORS: usize = 10_000;

/// How to run the bench.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it there is one copy.
    pub mirror: Option<PathBuf>,
    /// Time for each case.
    pub time: Duration,
    /// Idle actors whose memory is measured; 0 leaves it out.
    pub idle_actors: u64,
    /// Measure worker processes: this binary must hand [`super::register`]'s application to
    /// [`crate::worker::run`].
    pub workers: bool,
}

impl Settings {
    /// The default: below two minutes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        let time = Duration::from_secs(8);
        Self { directory, mirror: None, time, idle_actors: 1 << 20, workers: true }
    }
}

/// Runs everything.
///
/// # Errors
/// What the operating system or the store says.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut area = Area::new("messages", &settings.directory, settings.mirror.as_deref())?;
    let mut rows = one_client(&mut area, settings.time)?;
    rows.extend(in_flight(&mut area, settings.time)?);
    rows.push(transfers_by_threads(&mut area, settings.time)?);
    if settings.workers {
        rows.extend(transfers_by_workers(&mut area, settings.time)?);
        rows.extend(memory(&mut area, settings.idle_actors)?);
    }
    let machine = Machine::of(&settings.directory);
    Ok(Report { bench: "messages".to_owned(), machine, rows })
}

pub(super) fn root_error(error: RootError) -> io::Error {
    io::Error::other(error)
}

fn open(area: &mut Area) -> io::Result<Runtime> {
    let (app, dir) = area.store();
    app.layout(2, 1).open(dir).map_err(root_error)
}

/// One client that waits for each answer before it asks again, in turns with bare durable writes.
fn one_client(area: &mut Area, time: Duration) -> io::Result<Vec<Row>> {
    const TURNS: u32 = 24;
    let mut bare = BareLoop::new(&area.bare()?, BLOCK, 16 << 20)?;
    let runtime = open(area)?;
    let client = runtime.client();
    let (keys, message) = (keys(runtime.map(), ACTORS), Add::new());
    let slice = time / TURNS / 2;
    let (mut times, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at, mut inline) = (0, 0);
    for _ in 0..TURNS {
        let here = bare.times(slice)?;
        let (started, drives, mut ours) = (Instant::now(), runtime.inline_drives(), Vec::new());
        while started.elapsed() < slice {
            let before = Instant::now();
            client.ask::<Tally>(&keys[at % keys.len()], &message).wait().map_err(failed)?;
            ours.push(before.elapsed().as_secs_f64() * 1e6);
            at += 7919;
        }
        inline += runtime.inline_drives() - drives;
        ratios.push(median(&ours) / median(&here));
        times.extend(ours);
        limits.extend(here);
    }
    // There and back for each answer that the standing thread gave.
    let hops = 2.0 * (times.len() as f64 - inline as f64).max(0.0) / times.len() as f64;
    let must = Some(Must::AtMost(2.2));
    Ok(vec![
        Row::beside("1 client, p50", median(&times), "us", median(&limits), median(&ratios), must),
        Row::beside(
            "1 client, p99",
            quantile(&times, 0.99),
            "us",
            quantile(&limits, 0.99),
            quantile(&times, 0.99) / quantile(&limits, 0.99),
            None,
        ),
        Row::plain("1 client, thread hops per message", hops, "hops"),
    ])
}

/// What the journals of a runtime have written: commits and bytes.
fn written(runtime: &Runtime) -> (u64, u64) {
    let mut sum = (0, 0);
    runtime.each_store(&mut |commit, bytes| {
        sum.0 += commit;
        sum.1 += bytes;
    });
    sum
}

/// 1,024 in flight, in turns with bare durable writes of commits of the same size.
fn in_flight(area: &mut Area, time: Duration) -> io::Result<Vec<Row>> {
    const TURNS: u32 = 16;
    let runtime = open(area)?;
    let client = runtime.client();
    let (keys, message) = (keys(runtime.map(), ACTORS), Add::new());
    let mut window = Window::<Tally>::new(&client, IN_FLIGHT);
    let fill = |window: &mut Window<'_, Tally>, count: u64| -> io::Result<()> {
        for at in 0..count {
            window.ask(&keys[(at * 7919) as usize % keys.len()], &message)?;
        }
        window.finish()
    };
    fill(&mut window, 10_000)?;
    // How many commits of which size: before the first checkpoint cuts anything.
    let before = written(&runtime);
    const PROBE: u64 = 20_000;
    fill(&mut window, PROBE)?;
    let after = written(&runtime);
    let commits = (after.0 - before.0).max(1);
    let each = PROBE as f64 / commits as f64;
    let bytes = (after.1 - before.1) as f64 / PROBE as f64;
    let mut bare = BareLoop::new(&area.bare()?, ((after.1 - before.1) / commits) as usize, 64 << 20)?;
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut at = 0_usize;
    window.times.clear();
    for _ in 0..TURNS {
        let limit = bare.slice(time / TURNS / 4)? * each;
        let started = Instant::now();
        let first = window.answered;
        while started.elapsed() < time / TURNS * 3 / 4 {
            at += 7919;
            window.ask(&keys[at % keys.len()], &message)?;
        }
        window.finish()?;
        let rate = (window.answered - first) as f64 / started.elapsed().as_secs_f64();
        rates.push(rate);
        limits.push(limit);
        ratios.push(rate / limit);
    }
    let times = micros(&window.times);
    let mut rate =
        Row::judged("1,024 in flight", median(&rates), "messages/s", Must::ValueAtLeast(500_000.0));
    rate.limit = Some(median(&limits));
    rate.ratio = Some(median(&ratios));
    Ok(vec![
        rate,
        Row::plain("1,024 in flight, p50", median(&times), "us"),
        Row::plain("1,024 in flight, p99", quantile(&times, 0.99), "us"),
        Row::plain("1,024 in flight, messages per sync", each, "messages"),
        Row::plain("1,024 in flight, journal bytes per message", bytes, "B"),
    ])
}

/// Transfers for about this long; the median rate of some slices.
fn transfers(client: &Arc<Client>, keys: &[String], time: Duration) -> io::Result<f64> {
    const TURNS: u32 = 8;
    let mut window = Window::<Purse>::new(client, IN_FLIGHT);
    let mut at = 0;
    let mut next = || {
        at += 1;
        transfer(keys, at)
    };
    window.slice(time / TURNS, &mut next)?;
    let mut rates = Vec::new();
    for _ in 0..TURNS {
        rates.push(window.slice(time / TURNS, &mut next)?);
        window.times.clear();
    }
    Ok(median(&rates))
}

fn transfers_by_threads(area: &mut Area, time: Duration) -> io::Result<Row> {
    let runtime = open(area)?;
    let keys = keys(runtime.map(), ACTORS);
    let rate = transfers(&runtime.client(), &keys, time)?;
    let case = "transfers across partitions, threads";
    Ok(Row::judged(case, rate, "transfers/s", Must::ValueAtLeast(150_000.0)))
}

fn supervise(app: App, dir: &PathBuf, workers: usize) -> io::Result<(Supervisor, RemoteClient)> {
    let supervisor = app.supervise(dir, workers).map_err(root_error)?;
    let remote = RemoteClient::connect(dir, None).map_err(root_error)?;
    Ok((supervisor, remote))
}

fn transfers_by_workers(area: &mut Area, time: Duration) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (workers, must) in [(4, true), (2, false)] {
        let (app, dir) = area.store();
        let (supervisor, remote) = supervise(app.layout(2 * workers, workers), &dir, workers)?;
        let keys = keys(&supervisor.root().map, ACTORS);
        let rate = transfers(remote.client(), &keys, time)?;
        let case = format!("transfers across partitions, {workers} worker processes");
        rows.push(if must {
            Row::judged(case, rate, "transfers/s", Must::ValueAtLeast(60_000.0))
        } else {
            Row::plain(case, rate, "transfers/s")
        });
        let _ = supervisor.stop(Duration::from_secs(10));
    }
    Ok(rows)
}

/// Resident bytes of a process.
pub(super) fn resident(pid: u32) -> io::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let row = status.lines().find_map(|row| row.strip_prefix("VmRSS:"));
    let kib = row.and_then(|row| row.trim().split(' ').next()?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| io::Error::other("the process is gone"))
}

/// An idle worker, and what each actor adds to it beyond its state (key included).
fn memory(area: &mut Area, actors: u64) -> io::Result<Vec<Row>> {
    let (app, dir) = area.store();
    let (supervisor, remote) = supervise(app.layout(2, 1), &dir, 1)?;
    let settle = || {
        remote.request_checkpoints();
        std::thread::sleep(Duration::from_secs(2));
    };
    settle();
    let idle = resident(supervisor.pid(0))?;
    let mut rows = vec![Row::judged("idle worker, resident", idle / 1e6, "MB", Must::ValueAtMost(25.0))];
    if actors > 0 {
        let mut window = Window::<Idle>::new(remote.client(), IN_FLIGHT);
        let mut key = String::new();
        let mut fill = |window: &mut Window<'_, Idle>, count: u64, distinct: u64| -> io::Result<()> {
            for at in 0..count {
                key.clear();
                key.push_str(&(at % distinct).to_string());
                window.ask(&key, &at)?;
                window.times.clear();
            }
            window.finish()
        };
        // First the same load on few actors, so that buffers have the size that they keep.
        fill(&mut window, actors / 4, 1000)?;
        settle();
        let before = resident(supervisor.pid(0))?;
        fill(&mut window, actors, actors)?;
        settle();
        let after = resident(supervisor.pid(0))?;
        let each = (after - before) / (actors - 1000) as f64;
        rows.push(Row::plain("worker after load, resident", before / 1e6, "MB"));
        let case = format!("idle actor beyond its {} bytes of state, of {actors}", Idle::LEN);
        rows.push(Row::judged(case, each - Idle::LEN as f64, "B", Must::ValueAtMost(64.0)));
    }
    let _ = supervisor.stop(Duration::from_secs(10));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_fills_every_row() {
        let directory = tempfile::tempdir().expect("made");
        let time = Duration::from_millis(100);
        let settings = Settings { time, workers: false, ..Settings::new(directory.path()) };
        let report = run(&settings).expect("runs");
        assert_eq!(report.rows.len(), 9, "{report}");
        assert_eq!(report.rows.iter().filter(|row| row.must.is_some()).count(), 3, "{report}");
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left");
    }

    #[test]
    fn a_message_of_the_bench_has_100_bytes() {
        let mut bytes = Vec::new();
        use rallypoint_engine::codec::{Codec, encode};
        encode(Codec::Named, 1, &Add::new(), &mut bytes).expect("encoded");
        assert_eq!(bytes.len() - 3, 100);
    }
}

//! `rallypoint bench recovery`: how fast a log is replayed, and how long the partitions of a killed
//! worker are silent.
//!
//! Decides the load (at the limit for the log that is replayed, 60 % of it around the kills), whom to
//! kill and when. A recovery is over with the first durable acknowledgement that comes over a new
//! connection to the killed partitions: answers that were under way do not count. How long it takes
//! until an input that was asked after the SIGKILL is acknowledged is said as well.

use super::load::{Add, Area, Move, Purse, Tally, Window, failed, keys, keys_in, transfer};
use super::messages::root_error;
use super::report::{Must, Report, Row, median, quantile};
use crate::client::{AskError, Client};
use crate::os::machine::Machine;
use crate::remote::RemoteClient;
use crate::supervisor::{Phase, Supervisor};
use rallypoint_engine::command::Turned;
use rallypoint_engine::partition::Limits;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How to run the bench.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it there is one copy.
    pub mirror: Option<PathBuf>,
    /// Records of the log that is replayed.
    pub records: u64,
    /// Kills of a worker; 0 leaves them out. This binary must hand [`super::register`]'s application
    /// to [`crate::worker::run`].
    pub kills: usize,
    /// Actors on the workers.
    pub actors: usize,
}

impl Settings {
    /// The default: below two minutes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), mirror: None, records: 2_000_000, kills: 24, actors: 100_000 }
    }
}

/// Runs everything.
///
/// # Errors
/// What the operating system or the store says.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut area = Area::new("recovery", &settings.directory, settings.mirror.as_deref())?;
    let mut rows = replay(&mut area, settings.records)?;
    if settings.kills > 0 {
        rows.extend(kills(&mut area, settings)?);
    }
    let machine = Machine::of(&settings.directory);
    Ok(Report { bench: "recovery".to_owned(), machine, rows })
}

/// Replay of everything after a stop that is like a crash: nothing was checkpointed.
fn replay(area: &mut Area, records: u64) -> io::Result<Vec<Row>> {
    /// A slow disk gets a shorter log.
    const LIVE: Duration = Duration::from_secs(12);
    let (app, dir) = area.store();
    let limits = Limits { checkpoint_runs: u64::MAX, checkpoint_bytes: u64::MAX, ..Limits::default() };
    let runtime = app.limits(limits.clone()).layout(2, 1).open(&dir).map_err(root_error)?;
    let (keys, message) = (keys(runtime.map(), 10_000), Add::new());
    let client = runtime.client();
    let mut window = Window::<Tally>::new(&client, 1024);
    let started = Instant::now();
    let mut asked = 0;
    while asked < records && started.elapsed() < LIVE {
        for _ in 0..1000 {
            window.ask(&keys[(asked * 7919) as usize % keys.len()], &message)?;
            asked += 1;
        }
        window.times.clear();
    }
    window.finish()?;
    let records = asked;
    let live = records as f64 / started.elapsed().as_secs_f64();
    drop(window);
    drop(client);
    drop(runtime);
    let mut rates = Vec::new();
    for _ in 0..3 {
        let app = super::load::register(crate::app::App::define()).limits(limits.clone());
        let app = area.mirrored(app, &dir);
        let started = Instant::now();
        let runtime = app.open(&dir).map_err(root_error)?;
        let took = started.elapsed().as_secs_f64();
        let replayed: u64 = runtime.reports().iter().map(|report| report.replayed).sum();
        if replayed < records {
            return Err(io::Error::other(format!("{replayed} of {records} records came back")));
        }
        rates.push(replayed as f64 / took);
    }
    let rate = median(&rates);
    let case = format!("replay of {records} records after a crash, opening included");
    Ok(vec![
        Row::judged(case, rate, "records/s", Must::ValueAtLeast(1_000_000.0)),
        Row::beside(
            "the same beside the live rate",
            rate,
            "records/s",
            live,
            rate / live,
            Some(Must::AtLeast(2.0)),
        ),
    ])
}

const WORKERS: usize = 4;

/// What a load of one worker's partitions has seen.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    /// When the worker was killed, in nanoseconds since the start; 0 once an input that was asked
    /// later is answered.
    killed_at: AtomicU64,
    recovered: Mutex<Option<Duration>>,
}

/// The load of one worker: transfers from its actors to others', so many a second (or as many as go).
fn load(
    client: &Arc<Client>,
    mine: &[String],
    all: &[String],
    seen: &Seen,
    rate: &AtomicU64,
    start: Instant,
    stop: &AtomicBool,
) -> io::Result<()> {
    /// Answers that may be missing: enough for what comes during half a second.
    const MISSING: usize = 16 << 10;
    const CLOSED: usize = 256;
    /// Inputs that come together.
    const BURST: u64 = 8;
    let mut pending = std::collections::VecDeque::new();
    let mut at = 0_u64;
    let mut due = start.elapsed();
    while !stop.load(Ordering::Relaxed) {
        let rate = rate.load(Ordering::Relaxed);
        let most = if rate == 0 { CLOSED } else { MISSING };
        if rate > 0 {
            due += Duration::from_secs_f64(BURST as f64 / rate as f64);
            let now = start.elapsed();
            if due > now {
                std::thread::sleep(due - now);
            } else if now - due > Duration::from_secs(1) {
                due = now; // what could not be asked in time is not asked later
            }
        }
        for _ in 0..BURST {
            at += 1;
            let (_, message) = transfer(all, at);
            let asked = start.elapsed().as_nanos() as u64;
            pending
                .push_back((asked, client.ask::<Purse>(&mine[(at * 7919) as usize % mine.len()], &message)));
        }
        while let Some((_, first)) = pending.front()
            && (pending.len() > most || first.is_ready())
        {
            let Some((asked, first)) = pending.pop_front() else { break };
            match first.wait() {
                Ok(_) => {}
                // More waits at the door than it lets in: not done, and not acknowledged.
                Err(AskError::Turned(Turned::Overloaded)) => continue,
                Err(error) => return Err(failed(error)),
            }
            seen.answered.fetch_add(1, Ordering::Relaxed);
            let killed = seen.killed_at.load(Ordering::Acquire);
            if killed > 0 && asked > killed {
                seen.killed_at.store(0, Ordering::Relaxed);
                let took = start.elapsed() - Duration::from_nanos(killed);
                *seen.recovered.lock().unwrap_or_else(PoisonError::into_inner) = Some(took);
            }
        }
    }
    // Nobody wants the last answers.
    Ok(())
}

fn kills(area: &mut Area, settings: &Settings) -> io::Result<Vec<Row>> {
    let (app, dir) = area.store();
    let supervisor = app.layout(2 * WORKERS, WORKERS).supervise(&dir, WORKERS).map_err(root_error)?;
    let remote = RemoteClient::connect(&dir, None).map_err(root_error)?;
    let map = Arc::clone(&supervisor.root().map);
    let all = keys(&map, settings.actors);
    let mut window = Window::<Purse>::new(remote.client(), 1024);
    for key in &all {
        window.ask(key, &Move::Receive { cents: 100 })?;
    }
    window.finish()?;
    let start = Instant::now();
    let (rate, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let loads: Vec<(Vec<String>, Seen)> = (0..WORKERS)
        .map(|worker| {
            let of = |partition| {
                map.directory_of(partition).is_some_and(|d| crate::sockets::worker_of(d, WORKERS) == worker)
            };
            (keys_in(&map, &all, of), Seen::default())
        })
        .collect();
    let result = std::thread::scope(|scope| {
        let threads: Vec<_> = loads
            .iter()
            .map(|(mine, seen)| {
                let (all, rate, stop, client) = (&all, &rate, &stop, remote.client());
                scope.spawn(move || load(client, mine, all, seen, rate, start, stop))
            })
            .collect();
        let result = kill_some(&supervisor, &remote, &loads, &rate, start, settings.kills);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| io::Error::other("a load panicked"))??;
        }
        result
    });
    let (max, times, fresh) = result?;
    let _ = supervisor.stop(Duration::from_secs(10));
    let slowest = times.iter().copied().fold(0.0, f64::max);
    Ok(vec![
        Row::plain("load at its limit, 4 workers", max, "transfers/s"),
        Row::plain("killed workers at 60 % of it", times.len() as f64, "kills"),
        Row::judged(
            "silence of a killed worker's partitions, p50",
            median(&times),
            "ms",
            Must::ValueAtMost(100.0),
        ),
        Row::plain("silence of a killed worker's partitions, p90", quantile(&times, 0.9), "ms"),
        Row::plain("until an input asked after the kill is acknowledged, p50", median(&fresh), "ms"),
        Row::judged("silence of a killed worker's partitions, max", slowest, "ms", Must::ValueAtMost(500.0)),
    ])
}

/// Finds the highest rate, then kills at 60 % of it; gives that rate, and in milliseconds each
/// recovery and each time until an input asked after the kill was acknowledged.
fn kill_some(
    supervisor: &Supervisor,
    remote: &RemoteClient,
    loads: &[(Vec<String>, Seen)],
    rate: &AtomicU64,
    start: Instant,
    kills: usize,
) -> io::Result<(f64, Vec<f64>, Vec<f64>)> {
    let answered = || loads.iter().map(|(_, seen)| seen.answered.load(Ordering::Relaxed)).sum::<u64>();
    std::thread::sleep(Duration::from_secs(1));
    let (before, at) = (answered(), Instant::now());
    std::thread::sleep(Duration::from_secs(4));
    let max = (answered() - before) as f64 / at.elapsed().as_secs_f64();
    rate.store((max * 0.6 / WORKERS as f64).max(1.0) as u64, Ordering::Relaxed);
    let (mut times, mut fresh) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        // Not in step with anything.
        std::thread::sleep(Duration::from_millis(600 + 37 * (kill as u64 % 11)));
        let worker = kill % WORKERS;
        let seen = &loads[worker].1;
        if !supervisor.wait_for(worker, Duration::from_secs(20), |phase, _| phase != Phase::Starting) {
            return Err(io::Error::other(format!("worker {worker} did not come back")));
        }
        *seen.recovered.lock().unwrap_or_else(PoisonError::into_inner) = None;
        drop(remote.first_answers());
        let killed = Instant::now();
        let at = killed.duration_since(start).as_nanos() as u64;
        if supervisor.kill(worker).is_none() {
            continue;
        }
        seen.killed_at.store(at, Ordering::Release);
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut first = None;
        let newer = loop {
            let answers = remote.first_answers().into_iter();
            let ours = answers.filter(|&(from, at)| from == worker && at > killed);
            first = first.or(ours.map(|(_, at)| at.duration_since(killed)).next());
            if let (Some(_), Some(newer)) =
                (first, *seen.recovered.lock().unwrap_or_else(PoisonError::into_inner))
            {
                break newer;
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("worker {worker} acknowledged nothing for 30 s")));
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let took = first.unwrap_or(newer);
        fresh.push(newer.as_secs_f64() * 1e3);
        times.push(took.as_secs_f64() * 1e3);
    }
    Ok((max, times, fresh))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_fills_every_row() {
        let directory = tempfile::tempdir().expect("made");
        let settings = Settings { records: 2000, kills: 0, ..Settings::new(directory.path()) };
        let report = run(&settings).expect("runs");
        assert_eq!(report.rows.iter().filter(|row| row.must.is_some()).count(), 2, "{report}");
        assert_eq!(std::fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left");
    }
}

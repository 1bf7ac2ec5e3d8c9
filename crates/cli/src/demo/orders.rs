//! `rallypoint demo orders`: orders over three services while all four processes are killed, and the
//! audit of their three databases.
//!
//! Decides the directory, when which process is killed, and when it is over. Never judges: what the
//! services were left with is read from their own databases by the example's audit, after every
//! process has ended.
//!
//! What lies in the directory: `orders-demo.json` (whose it is), `orders.jsonl`, `order.yaml` (the
//! example's definition with this run's ports), `store`, one database and one log a process.

mod processes;
mod starts;

use crate::demo::run::duration;
use crate::output::{Exit, grouped, print_json};
use indicatif::{ProgressBar, ProgressStyle};
use orders_example::{Databases, Order, audit, make_orders};
use processes::Processes;
use rallypoint_host::os::lock::DirectoryLock;
use serde::Serialize;
use starts::{End, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEFAULT_DIR: &str = "rallypoint-demo-orders";
const MARKER: &str = "orders-demo.json";
const LOCK: &str = "demo.lock";
/// Without a start or an end for this long, it is over.
const PATIENCE: Duration = Duration::from_secs(120);

/// Orders over three services, each with its own database; all four processes are killed in turn.
///
/// Exit codes: 0 every order is complete in all three databases or undone in all three; 1 one is not,
/// or has not ended; 2 the demo could not run.
#[derive(clap::Args, Clone)]
pub(crate) struct Arguments {
    /// Orders, one JSON object a line (id, sku, quantity, cents, card); without it they are made.
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,
    /// Orders that are made.
    #[arg(long, value_name = "N", default_value_t = 2_000, conflicts_with = "orders",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Kill one of the four this often (for example 500ms or 2s; 0 = never).
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = duration)]
    kill_every: Duration,
    /// Share of the requests, 0 to 1, whose answer a service loses or refuses.
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = share)]
    chaos: f64,
    /// Seed of the orders and the services' faults.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where store, databases and logs lie [default: ./rallypoint-demo-orders].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no share: write a number from 0 to 1"))
}

/// What is said at the end.
#[derive(Serialize)]
struct Report {
    orders: usize,
    completed: u64,
    compensated: u64,
    /// Sagas that have not ended, and how they stand.
    unfinished: BTreeMap<String, String>,
    kills: BTreeMap<&'static str, u64>,
    audit: orders_example::Report,
    violations: Vec<String>,
    seed: u64,
    dir: PathBuf,
    seconds: f64,
}

impl Report {
    fn print(&self) {
        for violation in &self.violations {
            println!("violation: {violation}");
        }
        for (id, status) in &self.unfinished {
            println!("unfinished: {id} is {status}");
        }
        let kills: Vec<String> = self.kills.iter().map(|(name, kills)| format!("{name} {kills}")).collect();
        let counts = self.audit.counts;
        println!(
            "{} orders in {:.1} s; killed: {}",
            grouped(self.orders as u64),
            self.seconds,
            kills.join(", ")
        );
        println!(
            "sagas:     {} completed, {} compensated",
            grouped(self.completed),
            grouped(self.compensated)
        );
        println!(
            "databases: {} complete in all three, {} undone in all three",
            grouped(counts.complete),
            grouped(counts.undone)
        );
        println!("           {} were refused before anything was done", self.refused());
        println!(
            "{}",
            if self.exit() == Exit::Done {
                "every order is whole or absent: nothing lost, nothing done twice, nothing half done"
            } else {
                "NOT every order is whole or absent"
            }
        );
        println!("kept in {}", self.dir.display());
    }

    /// Compensated, and no service knows of them.
    fn refused(&self) -> u64 {
        self.compensated.saturating_sub(self.audit.counts.undone)
    }

    fn exit(&self) -> Exit {
        if self.violations.is_empty() && self.unfinished.is_empty() { Exit::Done } else { Exit::Look }
    }
}

pub(crate) use processes::{ServiceArguments, run_service};

/// Runs the demo and gives the exit code.
pub(crate) fn run(arguments: &Arguments) -> u8 {
    let exit = try_run(arguments).and_then(|report| {
        if arguments.json {
            print_json(&report).map_err(|error| error.to_string())?;
        } else {
            report.print();
        }
        Ok(report.exit())
    });
    exit.unwrap_or_else(|error| {
        eprintln!("rallypoint: {error}");
        Exit::NotDone
    }) as u8
}

fn try_run(arguments: &Arguments) -> Result<Report, String> {
    let begun = Instant::now();
    // Orders that cannot be are found out before anything is made.
    let given = arguments.orders.as_deref().map(read_orders).transpose()?;
    let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let (dir, _lock) = claim(&dir)?;
    let orders = match given {
        Some(orders) => orders,
        None => {
            let file = dir.join("orders.jsonl");
            make_orders(arguments.count, arguments.seed, &file).map_err(|error| error.to_string())?;
            read_orders(&file)?
        }
    };
    let mut processes = Processes::start(&dir, arguments.chaos, arguments.seed)?;
    let progress = Arc::new(Progress::default());
    let client = starts::begin(processes.server(), &orders, &progress);
    let bar = bar(orders.len() as u64, arguments.json);
    let (mut last, mut moved, mut killed) = (0, Instant::now(), Instant::now());
    while !client.iter().all(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_millis(20));
        if let Err(error) = processes.check() {
            progress.stop();
            return Err(error);
        }
        if !arguments.kill_every.is_zero() && killed.elapsed() >= arguments.kill_every {
            processes.kill_next()?;
            killed = Instant::now();
        }
        let (started, ended) = progress.counts();
        bar.set_position(ended);
        bar.set_message(format!("ended, {started} started, {} kills", processes.total_kills()));
        if started + ended > last {
            (last, moved) = (started + ended, Instant::now());
        } else if moved.elapsed() > PATIENCE {
            progress.stop();
        }
    }
    bar.finish_and_clear();
    for thread in client {
        thread.join().map_err(|_| "a thread of the client panicked")?;
    }
    let kills = processes.end();
    if let Some(failed) = progress.failure() {
        return Err(failed);
    }
    let database = |name: &str| dir.join(name).with_extension("db");
    let databases = Databases {
        inventory: database("inventory"),
        payment: database("payment"),
        shipping: database("shipping"),
    };
    let audit = audit(&databases).map_err(|error| error.to_string())?;
    let ends = progress.ends();
    let of = |wanted: End| ends.values().filter(|end| **end == wanted).count() as u64;
    let (completed, compensated) = (of(End::Completed), of(End::Compensated));
    let mut violations = audit.violations.clone();
    if audit.counts.complete != completed {
        violations.push(format!(
            "{completed} sagas completed, and {} orders are complete in the databases",
            audit.counts.complete
        ));
    }
    let unfinished = orders.iter().filter_map(|order| match ends.get(&order.id) {
        Some(End::Completed | End::Compensated) => None,
        Some(End::Other(status)) => Some((order.id.clone(), status.clone())),
        None => Some((order.id.clone(), "not started".to_owned())),
    });
    Ok(Report {
        orders: orders.len(),
        completed,
        compensated,
        unfinished: unfinished.collect(),
        kills,
        audit,
        violations,
        seed: arguments.seed,
        dir: dir.clone(),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

fn bar(orders: u64, hidden: bool) -> ProgressBar {
    let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new(orders) };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Reads the whole file: a line that is no order is an error with its number, before anything begins.
fn read_orders(file: &Path) -> Result<Vec<Order>, String> {
    let at = file.display();
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read the orders {at}: {error}"))?;
    let mut seen = BTreeSet::new();
    let mut orders = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = number + 1;
        let order: Order = serde_json::from_str(line).map_err(|error| {
            format!("{at}:{number}: no order: {error}; one has id, sku, quantity, cents and card")
        })?;
        if order.id.is_empty() || order.id.len() > 200 {
            return Err(format!("{at}:{number}: the id has {} bytes: give it 1 to 200", order.id.len()));
        }
        if !seen.insert(order.id.clone()) {
            return Err(format!("{at}:{number}: order {:?} is there twice: give each its own id", order.id));
        }
        orders.push(order);
    }
    match orders.is_empty() {
        true => Err(format!("{at} holds no order")),
        false => Ok(orders),
    }
}

/// Takes the directory: a new or empty one, or one of an earlier run of this demo, which is cleared.
fn claim(dir: &Path) -> Result<(PathBuf, DirectoryLock), String> {
    let at = dir.display();
    let failed = |error: std::io::Error| format!("cannot use {at}: {error}");
    let is_ours = dir.join(MARKER).exists();
    let is_free = fs::read_dir(dir).map_or(true, |mut found| found.next().is_none());
    if !is_ours && !is_free {
        return Err(format!("{at} is not empty and holds no orders demo: name another directory"));
    }
    let lock_at = dir.join(LOCK);
    fs::create_dir_all(&lock_at).map_err(failed)?;
    let lock = DirectoryLock::acquire(&lock_at).map_err(|error| error.to_string())?;
    for found in fs::read_dir(dir).map_err(failed)? {
        let path = found.map_err(failed)?.path();
        // The marker goes last: a demo that is killed here still owns what is left.
        if path == lock_at || path == dir.join(MARKER) {
            continue;
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed)?;
    }
    fs::write(dir.join(MARKER), "{\"format\":1}\n").map_err(failed)?;
    Ok((dir.canonicalize().map_err(failed)?, lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_that_cannot_be_are_refused_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orders.jsonl");
        let good = r#"{"id":"a","sku":"pen","quantity":1,"cents":5,"card":"c"}"#;
        for (text, says) in [
            (String::new(), "holds no order"),
            (format!("{good}\nrubbish\n"), ":2: no order"),
            (format!("{good}\n\n{good}\n"), ":3: order \"a\" is there twice"),
            (good.replace("\"a\"", "\"\""), ":1: the id has 0 bytes"),
        ] {
            fs::write(&file, text).unwrap();
            let error = read_orders(&file).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        fs::write(&file, format!("{good}\n")).unwrap();
        assert_eq!(read_orders(&file).unwrap().len(), 1);
    }

    #[test]
    fn only_a_directory_of_this_demo_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("d");
        let (claimed, lock) = claim(&dir).unwrap();
        fs::write(claimed.join("store"), "x").unwrap();
        assert!(claim(&dir).is_err(), "in use");
        drop(lock);
        let again = claim(&dir).unwrap();
        assert!(!claimed.join("store").exists());
        drop(again);
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("mine"), "x").unwrap();
        assert!(claim(&other).unwrap_err().contains("name another directory"));
        assert!(other.join("mine").exists());
    }
}

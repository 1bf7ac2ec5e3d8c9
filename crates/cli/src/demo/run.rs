//! The demo itself: directory, workers, kills, progress.
//!
//! Decides whose directory it is, when which worker is killed, and when it is over. Never judges: the
//! auditor is another process, and the client's ledger is out of its reach.
//!
//! What lies in the directory: the store itself (`rallypoint.store`, `j0`, ..), `demo.json` (how the
//! run was begun), `ledger.txt` (the client's), `input.csv` (when the demo makes its own).

use crate::demo::auditor::Figures;
use crate::demo::generate::{Plan, generate};
use crate::demo::input::Input;
use crate::demo::ledger::{self, Header, Ledger};
use crate::demo::orders;
use crate::output::{Exit, grouped, write_file};
use bank::Account;
use indicatif::{ProgressBar, ProgressStyle};
use rallypoint::{App, Phase, RemoteClient, Supervisor};
use rallypoint_base::random::Random;
use rallypoint_host::os::lock::DirectoryLock;
use rallypoint_host::os::process::{die_with_parent, monotonic_nanos};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where the demo lives when nobody says.
const DEFAULT_DIR: &str = "rallypoint-demo";
const PARAMETERS: &str = "demo.json";
const LEDGER: &str = "ledger.txt";
const INPUT: &str = "input.csv";
const LOCK: &str = "demo.lock";
/// The store's own sign that it is being made: nothing in it was ever acknowledged.
const CREATING: &str = "rallypoint.creating";
/// A kill counts as special only with this many transfers in flight.
const IN_FLIGHT: u64 = 100;

/// A bank on worker processes that are killed again and again, and an audit.
#[derive(clap::Args, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// Another demo.
    #[command(subcommand)]
    which: Option<Which>,
    /// CSV with the header id,from,to,amount; without it one is made.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Transfers in the file that is made.
    #[arg(long, value_name = "N", default_value_t = 200_000, conflicts_with = "input")]
    transfers: u64,
    /// Accounts in the file that is made.
    #[arg(long, value_name = "N", default_value_t = 1_000, conflicts_with = "input")]
    accounts: u64,
    /// Cents that every account opens with.
    #[arg(long, value_name = "CENTS", default_value_t = 100_000)]
    opening: u64,
    /// Worker processes.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Kill a worker this often (for example 400ms or 2s; 0 = never).
    #[arg(long, value_name = "DURATION", default_value = "400ms", value_parser = duration)]
    kill_every: Duration,
    /// Seed of the made file and of the kills.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where store and ledger lie [default: ./rallypoint-demo].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Second copy of the store, meant for another disk.
    #[arg(long, value_name = "DIR")]
    mirror: Option<PathBuf>,
    /// Go on with a run of which everything was killed.
    #[arg(long)]
    resume: bool,
    /// Write account,balance of every account, sorted.
    #[arg(long, value_name = "FILE")]
    balances: Option<PathBuf>,
    /// Write line,reason of every rejected line.
    #[arg(long, value_name = "FILE")]
    rejects: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Bytes of a log segment: small ones make a small store quickly, which the recorder's test needs.
    #[arg(long, hide = true, value_name = "BYTES")]
    segment_bytes: Option<u64>,
}

/// The other demos.
#[derive(clap::Subcommand, Clone)]
enum Which {
    Orders(orders::Arguments),
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: f64 = digits.parse().map_err(|_| format!("{text:?} is no duration: write 400ms or 2s"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => value / 1e3,
        "s" => value,
        "m" => value * 60.0,
        "" if value == 0.0 => 0.0,
        unit => return Err(format!("{unit:?} is no unit of time: write ms, s or m")),
    };
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(format!("{text:?} is out of range: 0 to 24 hours"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// The application that workers and auditor run.
pub(crate) fn application() -> App {
    rallypoint_host::bench::register(App::define().actor::<Account>())
}

/// How a run was begun: what `--resume` goes on with.
#[derive(Serialize, Deserialize)]
struct Parameters {
    format: u32,
    input: PathBuf,
    opening: u64,
    finished: bool,
}

pub(crate) fn run(arguments: &Arguments) -> u8 {
    if let Some(Which::Orders(arguments)) = &arguments.which {
        return orders::run(arguments);
    }
    match try_run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rallypoint: {error}");
            Exit::NotDone as u8
        }
    }
}

struct Place {
    dir: PathBuf,
    input: PathBuf,
    ledger: PathBuf,
    opening: u64,
    _lock: DirectoryLock,
}

fn try_run(arguments: &Arguments) -> Result<u8, String> {
    let start = Instant::now();
    // An input that cannot be is found out before anything is made.
    if let Some(input) = &arguments.input {
        Input::open(input).and_then(|input| input.lines().map(drop)).map_err(|e| e.to_string())?;
    }
    let dir = arguments.dir.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let begun = find(arguments, &dir)?;
    let place = begin(arguments, &dir, begun)?;
    let mut app = application().layout(2 * usize::from(arguments.workers), usize::from(arguments.workers));
    if let Some(bytes) = arguments.segment_bytes {
        app = app.segment_len(bytes);
    }
    if let Some(mirror) = &arguments.mirror {
        app = app.mirror(mirror);
    }
    let workers = usize::from(arguments.workers);
    let supervisor =
        app.supervise_as(&dir, workers, vec!["demo".into()], true).map_err(|error| error.to_string())?;
    for warning in supervisor.root().warnings() {
        eprintln!("note: {warning}");
    }
    let (figures, failure) = drive(arguments, &place, &supervisor)?;
    let stopped = supervisor.stop(Duration::from_secs(60));
    if let Some(failure) = failure {
        return Err(format!(
            "{failure}\nnothing acknowledged is lost; when the cause is gone, finish with: rallypoint demo --dir {} --resume",
            place.dir.display()
        ));
    }
    if !stopped {
        eprintln!("rallypoint: the workers did not stop in an orderly way; the audit replays what they left");
    }
    let figures = Figures { elapsed_s: start.elapsed().as_secs_f64(), ..figures };
    let code = judge(arguments, &place, &figures)?;
    if code == Exit::Done as u8 {
        let input = place.input.clone();
        save(&place.dir, &Parameters { format: 1, input, opening: place.opening, finished: true })?;
    }
    Ok(code)
}

/// Looks at the directory: `None` = a new run, else the one that is to be resumed.
fn find(arguments: &Arguments, dir: &Path) -> Result<Option<Parameters>, String> {
    let path = dir.join(PARAMETERS);
    let parameters: Option<Parameters> = match fs::read(&path) {
        Ok(bytes) => {
            let parsed = serde_json::from_slice(&bytes);
            Some(parsed.map_err(|error| format!("{} is not of this demo: {error}", path.display()))?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    match parameters {
        Some(found) if arguments.resume => Ok(Some(found)),
        Some(found) if found.finished && arguments.dir.is_none() => {
            // Our own default place, and the run in it is over: begin anew.
            let lock = DirectoryLock::acquire(&dir.join(LOCK)).map_err(|error| error.to_string())?;
            drop(lock);
            fs::remove_dir_all(dir).map_err(|error| format!("cannot clear {}: {error}", dir.display()))?;
            claim(dir)?;
            Ok(None)
        }
        Some(found) => Err(format!(
            "{} holds {} demo: {}",
            dir.display(),
            if found.finished { "a finished" } else { "an unfinished" },
            if found.finished {
                "name another --dir"
            } else {
                "finish it with --resume, or name another --dir"
            }
        )),
        None => {
            claim(dir)?;
            Ok(None)
        }
    }
}

/// Makes sure that the directory is empty (or was claimed by a demo that was killed at once), and
/// says that a store is being made in it: from here on everything in it is ours.
fn claim(dir: &Path) -> Result<(), String> {
    let trouble = |error: std::io::Error| format!("cannot use {}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(trouble)?;
    for entry in fs::read_dir(dir).map_err(trouble)? {
        let name = entry.map_err(trouble)?.file_name();
        if name == CREATING || name == LOCK || name == INPUT {
            continue;
        }
        let what = if name == "rallypoint.store" { "a store that is no demo's" } else { "something else" };
        let name = name.to_string_lossy().into_owned();
        return Err(format!("{} holds {what} ({name}): name another --dir", dir.display()));
    }
    fs::write(dir.join(CREATING), "a demo begins here\n").map_err(trouble)
}

fn save(dir: &Path, parameters: &Parameters) -> Result<(), String> {
    let text = serde_json::to_string_pretty(parameters).map_err(|error| error.to_string())?;
    write_file(&dir.join(PARAMETERS), |out| out.write_all(text.as_bytes())).map_err(|error| error.to_string())
}

/// Makes (or finds again) input and ledger beside the store.
fn begin(arguments: &Arguments, dir: &Path, begun: Option<Parameters>) -> Result<Place, String> {
    let lock_at = dir.join(LOCK);
    fs::create_dir_all(&lock_at).map_err(|error| format!("cannot create {}: {error}", lock_at.display()))?;
    let lock = DirectoryLock::acquire(&lock_at).map_err(|error| error.to_string())?;
    let ledger_path = dir.join(LEDGER);
    let (input_path, opening) = match &begun {
        Some(found) => (arguments.input.clone().unwrap_or_else(|| found.input.clone()), found.opening),
        None => match &arguments.input {
            Some(input) => (std::path::absolute(input).unwrap_or_else(|_| input.clone()), arguments.opening),
            None => {
                let made = std::path::absolute(dir.join(INPUT)).unwrap_or_else(|_| dir.join(INPUT));
                let plan = Plan {
                    transfers: arguments.transfers,
                    accounts: arguments.accounts,
                    seed: arguments.seed,
                };
                generate(&made, &plan).map_err(|error| error.to_string())?;
                eprintln!("made {} ({} transfers)", made.display(), grouped(arguments.transfers));
                (made, arguments.opening)
            }
        },
    };
    let input = Input::open(&input_path).map_err(|error| error.to_string())?;
    if ledger_path.exists() {
        Ledger::resume(&ledger_path, input.hash(), opening).map_err(|error| error.to_string())?;
    } else {
        let session = rallypoint::new_session().0;
        let header = Header { input: input.hash(), opening, session };
        Ledger::create(&ledger_path, &header).map_err(|error| error.to_string())?;
    }
    save(dir, &Parameters { format: 1, input: input_path.clone(), opening, finished: false })?;
    Ok(Place { dir: dir.to_owned(), input: input_path, ledger: ledger_path, opening, _lock: lock })
}

#[derive(Default)]
struct ClientState {
    acknowledged: u64,
    in_flight: u64,
    /// (worker, monotonic nanoseconds) of first answers after a reconnection.
    answers: Vec<(usize, u64)>,
    done: Option<(u64, u64)>,
    failed: Option<String>,
    ended: bool,
}

#[derive(Default)]
struct ClientWatch {
    state: Mutex<ClientState>,
    changed: Condvar,
}

impl ClientWatch {
    fn lock(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_client(place: &Place) -> Result<(Child, Arc<ClientWatch>), String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut command = Command::new(program);
    command
        .arg("demo-client")
        .arg("--dir")
        .arg(&place.dir)
        .arg("--input")
        .arg(&place.input)
        .arg("--ledger")
        .arg(&place.ledger)
        .arg("--opening")
        .arg(place.opening.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(|error| format!("the client cannot be started: {error}"))?;
    let watch = Arc::new(ClientWatch::default());
    let (heard, stdout) = (Arc::clone(&watch), child.stdout.take());
    std::thread::spawn(move || {
        for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines()) {
            let Ok(line) = line else { break };
            let mut words = line.splitn(2, ' ');
            let (word, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let mut numbers = rest.split(' ').map(|number| number.parse::<u64>().unwrap_or(0));
            let mut state = heard.lock();
            match word {
                "progress" => {
                    state.acknowledged = numbers.next().unwrap_or(0);
                    state.in_flight = numbers.next().unwrap_or(0);
                }
                "answer" => {
                    let (worker, at) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                    state.answers.push((worker as usize, at));
                }
                "done" => {
                    let (count, busy) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                    state.acknowledged = count;
                    state.done = Some((count, busy));
                }
                _ => state.failed = Some(rest.to_owned()),
            }
            heard.changed.notify_all();
        }
        heard.lock().ended = true;
        heard.changed.notify_all();
    });
    Ok((child, watch))
}

/// How a kill fell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Serving,
    Recovering,
    Checkpointing,
    AllAtOnce,
}

impl Kind {
    fn text(self) -> &'static str {
        match self {
            Self::Serving => "while serving",
            Self::Recovering => "during a recovery",
            Self::Checkpointing => "during a checkpoint",
            Self::AllAtOnce => "all at once",
        }
    }
}

struct Killer<'a> {
    supervisor: &'a Supervisor,
    watch: &'a ClientWatch,
    requests: RemoteClient,
    random: Random,
    /// Kills whose partitions have not answered again: (worker, monotonic nanoseconds).
    open: Vec<(usize, u64)>,
    recoveries_ms: Vec<f64>,
    kinds: BTreeMap<Kind, u64>,
    kills: u64,
}

impl Killer<'_> {
    fn busy_enough(&self) -> bool {
        self.watch.lock().in_flight >= IN_FLIGHT
    }

    fn kill(&mut self, worker: usize) -> Option<Phase> {
        let at = monotonic_nanos();
        let phase = self.supervisor.kill(worker)?;
        self.kills += 1;
        self.open.push((worker, at));
        Some(phase)
    }

    fn count(&mut self, kind: Kind) {
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn lacking(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_none_or(|&count| count == 0)
    }

    /// One step of the plan: first each special kind once, then whatever the seed says.
    fn step(&mut self) {
        let worker = self.random.below(self.supervisor.workers() as u64) as usize;
        let special = [Kind::Recovering, Kind::Checkpointing, Kind::AllAtOnce];
        let kind = special.into_iter().find(|&kind| self.lacking(kind)).unwrap_or_else(|| {
            let dice = self.random.below(10);
            match dice {
                0 => Kind::Recovering,
                1 => Kind::Checkpointing,
                2 => Kind::AllAtOnce,
                _ => Kind::Serving,
            }
        });
        if !self.busy_enough() {
            return;
        }
        match kind {
            Kind::Serving => {
                if self.kill(worker).is_some() {
                    self.count(Kind::Serving);
                }
            }
            Kind::Recovering => {
                let (_, starts) = self.supervisor.phase(worker);
                if self.kill(worker).is_none() {
                    return;
                }
                self.count(Kind::Serving);
                let patience = Duration::from_secs(2);
                let successor = |phase, now| phase == Phase::Starting && now > starts;
                if self.supervisor.wait_for(worker, patience, successor) {
                    // Somewhere in the first milliseconds of its recovery.
                    std::thread::sleep(Duration::from_micros(1_000 + self.random.below(9_000)));
                    let busy = self.busy_enough();
                    if let Some(phase) = self.kill(worker) {
                        let fell = phase == Phase::Starting && busy;
                        self.count(if fell { Kind::Recovering } else { Kind::Serving });
                    }
                }
            }
            Kind::Checkpointing => {
                self.requests.request_checkpoints();
                let writing = |phase, _| phase == Phase::Checkpointing;
                let fell = self.supervisor.wait_for(worker, Duration::from_millis(300), writing);
                let busy = self.busy_enough();
                if let Some(phase) = self.kill(worker) {
                    let fell = fell && phase == Phase::Checkpointing && busy;
                    self.count(if fell { Kind::Checkpointing } else { Kind::Serving });
                }
            }
            Kind::AllAtOnce => {
                let serving =
                    (0..self.supervisor.workers()).all(|w| self.supervisor.phase(w).0 != Phase::Starting);
                if !serving {
                    return;
                }
                let killed = (0..self.supervisor.workers()).filter(|&w| self.kill(w).is_some()).count();
                if killed == self.supervisor.workers() {
                    self.count(Kind::AllAtOnce);
                }
            }
        }
    }

    /// Matches first answers with the kills they end.
    fn take_answers(&mut self) {
        let answers = std::mem::take(&mut self.watch.lock().answers);
        for (worker, at) in answers {
            let recoveries = &mut self.recoveries_ms;
            self.open.retain(|&(killed, since)| {
                let over = killed == worker && at > since;
                if over {
                    recoveries.push((at - since) as f64 / 1e6);
                }
                !over
            });
        }
    }
}

/// Lets the client work, and kills.
fn drive(
    arguments: &Arguments,
    place: &Place,
    supervisor: &Supervisor,
) -> Result<(Figures, Option<String>), String> {
    let reading = ledger::read(&place.ledger).map_err(|error| error.to_string())?;
    let before = reading.outcomes.count();
    let input = Input::open(&place.input).map_err(|error| error.to_string())?;
    let total = input.lines().map_err(|error| error.to_string())?.count() as u64;
    drop((reading, input));
    let bar = ProgressBar::new(total);
    let style = "{wide_bar} {pos}/{len} {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let (mut child, watch) = start_client(place)?;
    let requests = RemoteClient::connect(&place.dir, None).map_err(|error| error.to_string())?;
    let mut killer = Killer {
        supervisor,
        watch: &watch,
        requests,
        random: Random::new(arguments.seed),
        open: Vec::new(),
        recoveries_ms: Vec::new(),
        kinds: BTreeMap::new(),
        kills: 0,
    };
    let begun = Instant::now();
    let mut next_kill = begun + arguments.kill_every;
    let mut failure = None;
    loop {
        {
            let state = watch.lock();
            if state.done.is_some() || state.ended || state.failed.is_some() {
                break;
            }
            let until_kill = next_kill.saturating_duration_since(Instant::now());
            let patience = Duration::from_millis(50).min(until_kill).max(Duration::from_millis(1));
            drop(watch.changed.wait_timeout(state, patience));
        }
        killer.take_answers();
        if let Some(why) = supervisor.failure() {
            failure = Some(why);
            break;
        }
        let acknowledged = watch.lock().acknowledged;
        bar.set_position(before + acknowledged);
        let rate = acknowledged as f64 / begun.elapsed().as_secs_f64().max(1e-3);
        bar.set_message(format!(
            "{rate:.0}/s, {} kills, {} recoveries",
            killer.kills,
            killer.recoveries_ms.len()
        ));
        if !arguments.kill_every.is_zero() && Instant::now() >= next_kill {
            killer.step();
            next_kill = Instant::now() + arguments.kill_every;
        }
    }
    killer.take_answers();
    bar.finish_and_clear();
    let state = watch.lock();
    let done = state.done;
    if failure.is_none() && done.is_none() {
        let why = state.failed.clone().or_else(|| supervisor.failure());
        failure = Some(why.unwrap_or_else(|| "the client ended before it was done".into()));
    }
    drop(state);
    if failure.is_some() {
        let _ = child.kill();
    }
    let _ = child.wait();
    for notice in supervisor.notices() {
        if !notice.starts_with("Space") {
            eprintln!("worker notice: {notice}");
        }
    }
    let (acknowledged, busy) = done.unwrap_or_default();
    let figures = Figures {
        kills: killer.kills,
        recoveries_ms: killer.recoveries_ms,
        acknowledged,
        busy_s: busy as f64 / 1e9,
        elapsed_s: 0.0,
        kinds: killer.kinds.iter().map(|(kind, &count)| (kind.text().to_owned(), count)).collect(),
    };
    Ok((figures, failure))
}

/// Has the run judged by a fresh process.
fn judge(arguments: &Arguments, place: &Place, figures: &Figures) -> Result<u8, String> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program cannot be found: {error}"))?;
    let mut command = Command::new(program);
    command.arg("demo-audit").arg("--dir").arg(&place.dir).arg("--input").arg(&place.input);
    command.arg("--ledger").arg(&place.ledger);
    for (flag, path) in [
        ("--mirror", &arguments.mirror),
        ("--balances", &arguments.balances),
        ("--rejects", &arguments.rejects),
    ] {
        if let Some(path) = path {
            command.arg(flag).arg(path);
        }
    }
    if arguments.json {
        command.arg("--json");
    }
    command.stdin(Stdio::piped());
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(|error| format!("the auditor cannot be started: {error}"))?;
    let text = serde_json::to_string(figures).map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(text.as_bytes());
        written.map_err(|error| format!("the auditor does not listen: {error}"))?;
    }
    let status = child.wait().map_err(|error| format!("the auditor was lost: {error}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(Exit::NotDone as u8))
}

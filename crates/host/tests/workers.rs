//! Worker processes against what happens to processes: SIGKILL, SIGSTOP, handlers that end them,
//! a supervisor that is killed. This program is its own worker, so it has no test harness; it
//! prints what one would.

use rallypoint_base::id::DirectoryId;
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_engine::codec::Encoded;
use rallypoint_host::app::{App, Runtime};
use rallypoint_host::client::AskError;
use rallypoint_host::remote::RemoteClient;
use rallypoint_host::supervisor::{Phase, Supervisor};
use rallypoint_host::worker;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: usize = 4;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Account {
    cents: i64,
    moves: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Poison {
    Panic,
    Abort,
    Recurse,
    Loop,
}

#[derive(Serialize, Deserialize)]
enum Message {
    Transfer {
        to: String,
        cents: i64,
    },
    Credit {
        cents: i64,
    },
    Drink(Poison),
    /// Sends it on.
    Pass {
        to: String,
        poison: Poison,
    },
    Read,
}

impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Message;
    type Reply = (i64, u64);
    type Error = ();

    fn handle(&mut self, message: Message, cx: &mut Cx<'_>) -> Result<(i64, u64), ()> {
        match message {
            Message::Transfer { to, cents } => {
                self.moves += 1;
                self.cents -= cents;
                cx.send::<Self>(&to, &Message::Credit { cents });
            }
            Message::Credit { cents } => {
                self.moves += 1;
                self.cents += cents;
            }
            Message::Drink(poison) => {
                self.cents += 1_000_000; // nobody must ever see this
                drink(poison);
            }
            Message::Pass { to, poison } => cx.send::<Self>(&to, &Message::Drink(poison)),
            Message::Read => {}
        }
        Ok((self.cents, self.moves))
    }
}

fn drink(poison: Poison) {
    match poison {
        Poison::Panic => panic!("this is poison"),
        Poison::Abort => std::process::abort(),
        Poison::Recurse => {
            std::hint::black_box(recurse(1));
        }
        // Endless, but kind to those that share the machine.
        Poison::Loop => loop {
            thread::park_timeout(Duration::from_millis(100));
        },
    }
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn recurse(depth: u64) -> u64 {
    let deeper = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + deeper[63]
}

fn app() -> App {
    App::define().actor::<Account>().layout(2 * WORKERS, WORKERS).segment_len(4 << 20)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if worker::is_worker() {
        if arguments.iter().any(|argument| argument == "broken") {
            eprintln!("this worker never starts");
            return ExitCode::from(3);
        }
        return ExitCode::from(worker::run(app()));
    }
    if let [role, dir] = &arguments[..]
        && role == "--supervise"
    {
        return supervise_until_the_end(Path::new(dir));
    }
    run_tests(&arguments)
}

/// A name, and what is done in a directory of its own.
type Scenario = (&'static str, fn(&Path));

const SCENARIOS: [Scenario; 11] = [
    ("transfers_are_made_exactly_once_while_workers_are_killed", transfers),
    ("poison_is_set_aside_after_two_ends_and_everything_else_goes_on", poison),
    ("poison_that_an_actor_sends_is_set_aside_too", poison_between_actors),
    ("a_stopped_worker_is_killed_before_its_successor_starts", stopped),
    ("a_worker_that_never_starts_is_given_up_with_its_reason", never_starts),
    ("workers_that_find_their_store_in_use_say_so", in_use),
    ("workers_end_with_their_killed_supervisor", killed_supervisor),
    ("an_orderly_stop_leaves_nothing_to_replay", orderly),
    ("an_orderly_stop_under_load_leaves_nothing_to_replay", orderly_under_load),
    ("a_stop_in_which_a_worker_was_killed_is_not_orderly", killed_while_stopping),
    ("a_stop_between_two_lives_of_a_worker_waits_for_nobody", stopped_between_lives),
];

/// What a harness would do: a filter, a line for each, a sum.
fn run_tests(arguments: &[String]) -> ExitCode {
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let (begun, mut failed) = (Instant::now(), 0);
    for (name, scenario) in &chosen {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| scenario(folder.path())));
        let how = if ended.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {how} <{:.3}s>", start.elapsed().as_secs_f64());
        failed += u32::from(ended.is_err());
    }
    let how = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {how}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        chosen.len() as u32 - failed,
        SCENARIOS.len() - chosen.len(),
        begun.elapsed().as_secs_f64()
    );
    ExitCode::from(if failed == 0 { 0 } else { 101 })
}

// -------------------------------------------------------------------------- tools

fn supervise(dir: &Path) -> Supervisor {
    app().supervise(dir.join("store"), WORKERS).expect("the workers start")
}

fn connect(dir: &Path) -> RemoteClient {
    RemoteClient::connect(&dir.join("store"), None).expect("the store is served")
}

/// A name of an account that this worker serves.
fn account_at(supervisor: &Supervisor, worker: usize, salt: &str) -> String {
    let map = &supervisor.root().map;
    let lives_there = |key: &String| {
        let directory: Option<DirectoryId> = map.directory_of(map.partition_of(key));
        directory.is_some_and(|directory| usize::from(directory.0) % WORKERS == worker)
    };
    (0..).map(|number| format!("{salt}-{number}")).find(lives_there).expect("some account lives there")
}

/// (cents, moves) of all accounts together, in a store that nobody serves.
fn sum(runtime: &Runtime) -> (i64, u64) {
    assert!(runtime.drain(PATIENCE));
    let (mut cents, mut moves) = (0, 0);
    runtime.each_actor(&mut |_, _, bytes| {
        let account: Account = Encoded::split(bytes).expect("codec").decode().expect("state");
        cents += account.cents;
        moves += account.moves;
    });
    (cents, moves)
}

/// Is any thread of this process there? (One that nobody has waited for is not; the first thread may
/// be gone before the others, which still hold the locks.)
fn lives(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let Ok(stat) = std::fs::read_to_string(thread.path().join("stat")) else { return false };
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
        !matches!(state, Some('Z' | 'X') | None)
    })
}

/// The result of kill(2).
fn signal(pid: u32, signal: i32) -> std::io::Result<()> {
    // SAFETY: a system call on numbers.
    match unsafe { libc::kill(pid as i32, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn until(what: &str, patience: Duration, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !ask() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Transfers until told to end (and at least one for each account); counts those acknowledged.
fn traffic(dir: &Path, done: &AtomicBool, acknowledged: &AtomicU64) {
    let remote = connect(dir);
    let client = remote.client();
    let mut window = VecDeque::new();
    let wait = |pending: rallypoint_host::client::Pending<Account>| {
        pending.wait_for(PATIENCE).expect("a transfer is acknowledged");
        acknowledged.fetch_add(1, Ordering::SeqCst);
    };
    for number in 0_u64.. {
        if done.load(Ordering::SeqCst) && number >= 200 {
            break;
        }
        let (from, to) =
            (format!("a{}", (number * 7919) % 200), format!("a{}", (number * 104_729 + 1) % 200));
        window.push_back(client.ask::<Account>(&from, &Message::Transfer { to, cents: 1 }));
        if window.len() == 256
            && let Some(first) = window.pop_front()
        {
            wait(first);
        }
    }
    window.into_iter().for_each(wait);
}

// -------------------------------------------------------------------------- scenarios

fn transfers(dir: &Path) {
    let supervisor = supervise(dir);
    let (done, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut kills = 0;
    thread::scope(|scope| {
        scope.spawn(|| traffic(dir, &done, &acknowledged));
        for round in 0..12 {
            // Each kill meets traffic that went on since the last one.
            let target = acknowledged.load(Ordering::SeqCst) + 300;
            until("transfers go on", PATIENCE, || acknowledged.load(Ordering::SeqCst) >= target);
            if round % 4 == 3 {
                kills += (0..WORKERS).filter(|&worker| supervisor.kill(worker).is_some()).count();
            } else {
                kills += usize::from(supervisor.kill(round % WORKERS).is_some());
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(kills >= 12, "{kills}");
    drop(supervisor); // killed once more, all of them
    let runtime = app().open(dir.join("store")).expect("opens");
    let transfers = acknowledged.load(Ordering::SeqCst);
    assert_eq!(sum(&runtime), (0, 2 * transfers), "{kills} kills");
    assert!(runtime.set_aside().is_empty(), "{:?}", runtime.set_aside());
}

fn poison(dir: &Path) {
    let supervisor = supervise(dir);
    let (done, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let kinds = [Poison::Panic, Poison::Abort, Poison::Recurse, Poison::Loop];
    thread::scope(|scope| {
        scope.spawn(|| traffic(dir, &done, &acknowledged));
        until("transfers go on", PATIENCE, || acknowledged.load(Ordering::SeqCst) >= 1_000);
        let before: Vec<u32> = (0..WORKERS).map(|worker| supervisor.phase(worker).1).collect();
        let drinkers: Vec<_> = kinds
            .into_iter()
            .enumerate()
            .map(|(worker, kind)| {
                let key = account_at(&supervisor, worker, "drinker");
                scope.spawn(move || {
                    let remote = connect(dir);
                    let answer =
                        remote.client().ask::<Account>(&key, &Message::Drink(kind)).wait_for(PATIENCE);
                    match answer {
                        Err(AskError::SetAside(evidence)) => evidence,
                        other => panic!("{kind:?} ended in {other:?}"),
                    }
                })
            })
            .collect();
        let evidence: Vec<String> =
            drinkers.into_iter().map(|drinker| drinker.join().expect("set aside")).collect();
        assert!(evidence[0].contains("this is poison"), "{evidence:?}");
        assert!(evidence[1..].iter().all(|text| text.contains("2 times")), "{evidence:?}");
        let ends: Vec<u32> = (0..WORKERS).map(|worker| supervisor.phase(worker).1 - before[worker]).collect();
        assert_eq!(ends, [0, 2, 2, 2], "ends of workers by panic, abort, recursion, endless loop");
        let now = acknowledged.load(Ordering::SeqCst);
        until("transfers go on", PATIENCE, || acknowledged.load(Ordering::SeqCst) >= now + 1_000);
        // The drinkers themselves are none the worse.
        let remote = connect(dir);
        for worker in 0..WORKERS {
            let key = account_at(&supervisor, worker, "drinker");
            let read = remote.client().ask::<Account>(&key, &Message::Read).wait_for(PATIENCE);
            assert_eq!(read, Ok((0, 0)));
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(supervisor.stop(PATIENCE), "an orderly stop");
    let runtime = app().open(dir.join("store")).expect("opens");
    assert_eq!(sum(&runtime), (0, 2 * acknowledged.load(Ordering::SeqCst)));
    let aside = runtime.set_aside();
    assert_eq!(aside.len(), 4, "{aside:?}");
    assert_eq!(aside.iter().filter(|(_, entry)| entry.evidence.contains("2 times")).count(), 3);
}

fn poison_between_actors(dir: &Path) {
    let supervisor = supervise(dir);
    let remote = connect(dir);
    let client = remote.client();
    let (from, to) = (account_at(&supervisor, 0, "from"), account_at(&supervisor, 1, "to"));
    let starts = [0, 1].map(|worker| supervisor.phase(worker).1);
    // What the poisoned message is in front of must arrive as well.
    client
        .ask::<Account>(&from, &Message::Pass { to: to.clone(), poison: Poison::Abort })
        .wait_for(PATIENCE)
        .expect("passed on");
    for _ in 0..100 {
        let transfer = Message::Transfer { to: to.clone(), cents: 1 };
        client.ask::<Account>(&from, &transfer).wait_for(PATIENCE).expect("made");
    }
    until("all credits arrive", PATIENCE, || {
        client.ask::<Account>(&to, &Message::Read).wait_for(PATIENCE) == Ok((100, 100))
    });
    let ends = [0, 1].map(|worker| supervisor.phase(worker).1 - starts[worker]);
    assert_eq!(ends, [0, 2], "who sends poison does not suffer, who gets it twice");
    assert!(supervisor.stop(PATIENCE));
    let aside = app().open(dir.join("store")).expect("opens").set_aside();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(aside[0].1.evidence.contains("2 times"), "{aside:?}");
}

fn stopped(dir: &Path) {
    let supervisor = supervise(dir);
    let (done, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| traffic(dir, &done, &acknowledged));
        until("transfers go on", PATIENCE, || acknowledged.load(Ordering::SeqCst) >= 500);
        let (zombie, starts) = (supervisor.pid(1), supervisor.phase(1).1);
        signal(zombie, libc::SIGSTOP).expect("stopped");
        let begun = Instant::now();
        // It cannot answer, and yet nobody gets past its lock.
        let refused = match app().open(dir.join("store")) {
            Ok(_) => panic!("two processes serve one directory"),
            Err(error) => error.to_string(),
        };
        assert!(refused.contains("in use"), "{refused}");
        // The very first moment of the successor: the zombie is gone by then.
        assert!(supervisor.wait_for(1, PATIENCE, |_, now| now > starts));
        let gone = signal(zombie, libc::SIGCONT);
        let noticed = begun.elapsed();
        assert_eq!(
            gone.expect_err("killed and waited for").raw_os_error(),
            Some(libc::ESRCH),
            "the successor was started while the zombie was there"
        );
        // Five seconds, and what a loaded machine adds.
        assert!(noticed > Duration::from_secs(4) && noticed < Duration::from_secs(9), "{noticed:?}");
        assert!(supervisor.wait_for(1, PATIENCE, |phase, _| phase == Phase::Serving));
        assert!(!lives(zombie) && supervisor.pid(1) != zombie);
        let now = acknowledged.load(Ordering::SeqCst);
        until("transfers go on", PATIENCE, || acknowledged.load(Ordering::SeqCst) >= now + 500);
        assert_eq!(supervisor.phase(1).1, starts + 1, "one stop, one successor");
        assert!(supervisor.notices().iter().any(|notice| notice.contains("no progress")));
        done.store(true, Ordering::SeqCst);
    });
    assert!(supervisor.stop(PATIENCE));
    let events = rallypoint_host::store_tools::events(&dir.join("store"), None).expect("readable").events;
    let hung: Vec<_> = events.iter().filter(|event| event.kind == "watchdog").collect();
    assert_eq!(hung.len(), 1, "one directory, one watchdog: {events:?}");
    let runtime = app().open(dir.join("store")).expect("opens");
    assert_eq!(sum(&runtime), (0, 2 * acknowledged.load(Ordering::SeqCst)));
}

fn never_starts(dir: &Path) {
    let begun = Instant::now();
    let why = match app().supervise_as(dir.join("store"), WORKERS, vec!["broken".into()], false) {
        Ok(_) => panic!("a worker that never starts cannot be ready"),
        Err(error) => error.to_string(),
    };
    assert!(why.contains("worker 0") && why.contains("5 times") && why.contains("exit status: 3"), "{why}");
    assert!(begun.elapsed() < PATIENCE);
    // The store is none the worse.
    drop(supervise(dir));
}

fn in_use(dir: &Path) {
    let runtime = app().open(dir.join("store")).expect("opens");
    let why = match app().supervise(dir.join("store"), WORKERS) {
        Ok(_) => panic!("the store is in use"),
        Err(error) => error.to_string(),
    };
    assert!(why.contains("in use") && why.contains(&std::process::id().to_string()), "{why}");
    drop(runtime);
}

/// The role of the process that [`killed_supervisor`] kills.
fn supervise_until_the_end(dir: &Path) -> ExitCode {
    let supervisor = supervise(dir);
    let pids: Vec<String> = (0..WORKERS).map(|worker| supervisor.pid(worker).to_string()).collect();
    println!("PIDS {}", pids.join(" "));
    let _ = std::io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

fn killed_supervisor(dir: &Path) {
    for round in 0..2 {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.arg("--supervise").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut parent = command.spawn().expect("this program starts again");
        let mut line = String::new();
        let mut out = BufReader::new(parent.stdout.take().expect("piped"));
        out.read_line(&mut line).expect("a line");
        let pids: Vec<u32> =
            line.trim().split(' ').skip(1).map(|pid| pid.parse().expect("a number")).collect();
        assert_eq!(pids.len(), WORKERS, "{line}");
        let remote = connect(dir);
        let client = remote.client();
        for number in 0..100 {
            let (from, to) = (format!("b{number}"), format!("b{}", number + 1));
            client
                .ask::<Account>(&from, &Message::Transfer { to, cents: 1 })
                .wait_for(PATIENCE)
                .expect("made");
        }
        // Not even one that is stopped survives.
        signal(pids[2], libc::SIGSTOP).expect("stopped");
        parent.kill().expect("killed");
        let begun = Instant::now();
        parent.wait().expect("ended");
        until("the workers end", PATIENCE, || !pids.iter().any(|&pid| lives(pid)));
        // A second, and what a loaded machine adds.
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        let runtime = app().open(dir.join("store")).expect("opens at once");
        assert_eq!(sum(&runtime), (0, 200 * (round + 1)));
    }
}

fn orderly(dir: &Path) {
    let supervisor = supervise(dir);
    let acknowledged = AtomicU64::new(0);
    traffic(dir, &AtomicBool::new(true), &acknowledged);
    assert!(supervisor.stop(PATIENCE), "an orderly stop");
    let runtime = app().open(dir.join("store")).expect("opens");
    assert!(replayed(&runtime) <= 2 * WORKERS as u64, "only the record of the stop of each partition");
    assert_eq!(sum(&runtime), (0, 2 * acknowledged.load(Ordering::SeqCst)));
    assert!(runtime.close(PATIENCE));
    // And again by workers, over what the threads left.
    let supervisor = supervise(dir);
    let starts: BTreeSet<u32> = (0..WORKERS).map(|worker| supervisor.phase(worker).1).collect();
    assert_eq!(starts, BTreeSet::from([1]));
    assert!(supervisor.stop(PATIENCE));
}

fn replayed(runtime: &Runtime) -> u64 {
    runtime.reports().iter().map(|report| report.replayed).sum()
}

fn orderly_under_load(dir: &Path) {
    let supervisor = supervise(dir);
    let remote = connect(dir);
    let client = remote.client();
    let transfer = |number: u64| {
        let (from, to) = (format!("a{}", number % 97), format!("a{}", (number * 31 + 1) % 101));
        client.ask::<Account>(&from, &Message::Transfer { to, cents: 1 })
    };
    let pending: Vec<_> = (0..30_000).map(transfer).collect();
    assert!(pending[500].wait_ready(PATIENCE));
    assert!(supervisor.stop(PATIENCE), "an orderly stop");
    let acknowledged = pending.iter().filter(|pending| pending.is_ready()).count() as u64;
    assert!(acknowledged < 30_000, "it stopped in the middle");
    let runtime = app().open(dir.join("store")).expect("opens");
    assert!(replayed(&runtime) <= 2 * WORKERS as u64, "{} records replayed", replayed(&runtime));
    let (cents, moves) = sum(&runtime);
    assert_eq!((cents, moves % 2), (0, 0));
    assert!(moves / 2 >= acknowledged, "{moves} {acknowledged}");
}

fn killed_while_stopping(dir: &Path) {
    let supervisor = supervise(dir);
    traffic(dir, &AtomicBool::new(true), &AtomicU64::new(0));
    let pid = supervisor.pid(3);
    signal(pid, libc::SIGSTOP).expect("stopped");
    // The others end; this one is asked to, and never hears it.
    let others: PathBuf = dir.join("store");
    let pids: Vec<u32> = (0..WORKERS - 1).map(|worker| supervisor.pid(worker)).collect();
    let stopping = thread::spawn(move || supervisor.stop(PATIENCE));
    until("the others end", PATIENCE, || !pids.iter().any(|&pid| lives(pid)));
    signal(pid, libc::SIGKILL).expect("killed");
    assert!(!stopping.join().expect("no panic"), "a worker that was killed did not stop in order");
    assert_eq!(sum(&app().open(others).expect("opens")).0, 0);
}

fn stopped_between_lives(dir: &Path) {
    for round in 0..12 {
        let supervisor = supervise(dir);
        supervisor.kill(1).expect("it ran");
        // From before the kill is noticed until the successor listens.
        thread::sleep(Duration::from_micros(400 * round));
        let begun = Instant::now();
        let _ = supervisor.stop(PATIENCE);
        assert!(begun.elapsed() < PATIENCE / 2, "round {round}: {:?}", begun.elapsed());
    }
}

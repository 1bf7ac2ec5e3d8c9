//! The supervisor: worker processes of the user's own binary, and their successors.
//!
//! Decides when a worker has failed (its line to us closed, or five seconds without progress) and
//! whether it is started again. Kills **and waits** before it starts a successor: two holders of one
//! directory never live at the same time, whatever a zombie does.
//!
//! Never touches a store, and never judges an input: evidence lies in the running page.
//!
//! Invariant: a worker that fails [`START_FAILURES`] times in a row before it is ready is given up,
//! with its reason.

use crate::app::App;
use crate::os::process::die_with_parent;
use crate::root::{Root, RootError};
use crate::sockets;
use crate::worker::{DIR_ENV, FLAGS_ENV, HUNG, INNOCENT, MIRROR_ENV, WORKER_ENV};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Without a sign of progress for this long a worker is killed.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// This many ends in a row before `ready`, and a worker is given up.
pub const START_FAILURES: u32 = 5;
/// A worker that gives up within this time after it was ready has not outlived its trouble.
const SOON: Duration = Duration::from_secs(10);
/// More ends than this within [`INTENSITY_WINDOW`], and a worker is given up.
pub const INTENSITY: usize = 600;
/// See [`INTENSITY`].
pub const INTENSITY_WINDOW: Duration = Duration::from_secs(60);

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was started and is recovering.
    Starting,
    /// It serves.
    Serving,
    /// It serves and writes a checkpoint.
    Checkpointing,
    /// It ended, and is not started again.
    Ended,
}

struct WorkerState {
    child: Option<Child>,
    input: Option<ChildStdin>,
    pid: u32,
    phase: Phase,
    last_sign: Instant,
    starts: u32,
    failures_in_a_row: u32,
    ready_at: Option<Instant>,
    /// It said itself that it cannot go on.
    gave_up: bool,
    /// Its end was wished for ([`Supervisor::kill`]).
    wished: bool,
    /// The watchdog killed it.
    hung: bool,
    ends: VecDeque<Instant>,
    reason: Option<String>,
    /// Its last life ended with exit code 0: in order.
    ended_well: bool,
    notices: Vec<String>,
}

struct Worker {
    number: usize,
    state: Mutex<WorkerState>,
    changed: Condvar,
}

impl Worker {
    fn lock(&self) -> MutexGuard<'_, WorkerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Plan {
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    dir: PathBuf,
    mirror: Option<PathBuf>,
    flags: String,
    count: usize,
}

/// Worker processes and the threads that watch them.
pub struct Supervisor {
    root: Root,
    workers: Vec<Arc<Worker>>,
    monitors: Vec<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl App {
    /// Serves the store in `dir` (made if there is none) with `workers` processes of this same
    /// binary, which must hand its application to [`crate::worker::run`] when
    /// [`crate::worker::is_worker`]. Waits until all of them serve.
    ///
    /// # Errors
    /// [`RootError`] when the store or the workers cannot be started.
    pub fn supervise(self, dir: impl Into<PathBuf>, workers: usize) -> Result<Supervisor, RootError> {
        self.supervise_as(dir, workers, Vec::new(), false)
    }

    /// [`App::supervise`] with arguments for the workers' command line (so that a program with
    /// several modes finds its way), and reports of every change of phase.
    ///
    /// # Errors
    /// As [`App::supervise`].
    pub fn supervise_as(
        self,
        dir: impl Into<PathBuf>,
        workers: usize,
        arguments: Vec<std::ffi::OsString>,
        fine: bool,
    ) -> Result<Supervisor, RootError> {
        let dir = dir.into();
        let (options, mirror) = self.options();
        let root = self.root(&dir, true)?;
        if root.is_new {
            // Created here, once; workers only ever open.
            let node = crate::node::Node::open(&root, self.into_inner(), &options)?;
            root.finish_creation()?;
            drop(node);
        }
        if workers == 0 || workers > root.map.directory_count() {
            return Err(RootError::Workers(format!(
                "{workers} workers for {} journal directories: give 1 to {}",
                root.map.directory_count(),
                root.map.directory_count()
            )));
        }
        root.warnings().iter().for_each(|warning| tracing::warn!(%warning, "disks"));
        let place = sockets::directory(&root);
        sockets::announce(&place, workers)?;
        let program = std::env::current_exe()
            .map_err(|error| RootError::Workers(format!("this program cannot be found: {error}")))?;
        let mut flags = Vec::new();
        for (flag, on) in
            [("degraded", options.degraded), ("unsuitable", options.allow_unsuitable), ("fine", fine)]
        {
            flags.extend(on.then_some(flag));
        }
        let plan = Arc::new(Plan { program, arguments, dir, mirror, flags: flags.join(","), count: workers });
        let stopping = Arc::new(AtomicBool::new(false));
        let mut supervisor =
            Supervisor { root, workers: Vec::new(), monitors: Vec::new(), stopping: Arc::clone(&stopping) };
        for number in 0..workers {
            let worker = Arc::new(Worker {
                number,
                state: Mutex::new(WorkerState {
                    child: None,
                    input: None,
                    pid: 0,
                    phase: Phase::Starting,
                    last_sign: Instant::now(),
                    starts: 0,
                    failures_in_a_row: 0,
                    ready_at: None,
                    gave_up: false,
                    wished: false,
                    hung: false,
                    ends: VecDeque::new(),
                    reason: None,
                    ended_well: false,
                    notices: Vec::new(),
                }),
                changed: Condvar::new(),
            });
            supervisor.workers.push(Arc::clone(&worker));
            let (plan, stopping) = (Arc::clone(&plan), Arc::clone(&stopping));
            // The child is told to die with the *thread* that starts it: this one lives as long.
            let monitor = move || monitor(&worker, &plan, &stopping);
            let thread = std::thread::Builder::new().name(format!("monitor-{number}")).spawn(monitor);
            supervisor.monitors.push(thread.map_err(RootError::Thread)?);
        }
        let (watched, stopping) = (supervisor.workers.clone(), Arc::clone(&stopping));
        let watchdog = move || watch(&watched, &stopping);
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(watchdog);
        supervisor.monitors.push(thread.map_err(RootError::Thread)?);
        supervisor.wait_ready(Duration::from_secs(120))?;
        Ok(supervisor)
    }
}

/// Starts one worker, listens to it until it ends, makes sure that it is dead, starts it again.
fn monitor(worker: &Worker, plan: &Plan, stopping: &AtomicBool) {
    let (mut wished, mut hung) = (false, false);
    loop {
        let flag = if hung { HUNG } else { INNOCENT };
        let flags = if wished || hung { format!("{},{flag}", plan.flags) } else { plan.flags.clone() };
        if let Err(reason) = start(worker, plan, &flags, stopping) {
            let mut state = worker.lock();
            state.phase = Phase::Ended;
            state.reason = Some(reason);
            worker.changed.notify_all();
            return;
        }
        let stdout = worker.lock().child.as_mut().and_then(|child| child.stdout.take());
        if let Some(stdout) = stdout {
            for line in BufReader::new(stdout).lines() {
                // Its line closed: the end of the process, or of its ability to speak.
                let Ok(line) = line else { break };
                hear(worker, &line);
            }
        }
        let mut state = worker.lock();
        let mut status = None;
        if let Some(mut child) = state.child.take() {
            // One that is about to end by itself keeps its exit code.
            let _ = child.kill();
            status = child.wait().ok();
        }
        state.ended_well = status.is_some_and(|status| status.success());
        state.input = None;
        state.pid = 0;
        let now = Instant::now();
        // A store that fails again soon after each start (a full disk) is no crash to be outlived.
        let soon = state.ready_at.is_none_or(|ready| now.duration_since(ready) < SOON);
        let failed = state.phase == Phase::Starting || (state.gave_up && soon);
        // An end that somebody wished for tells nothing about the worker.
        wished = std::mem::take(&mut state.wished);
        hung = std::mem::take(&mut state.hung);
        state.failures_in_a_row = match (wished, failed) {
            (_, false) => 0,
            (true, true) => state.failures_in_a_row,
            (false, true) => state.failures_in_a_row + 1,
        };
        if !state.gave_up {
            state.reason = None;
        }
        state.gave_up = false;
        state.ready_at = None;
        state.ends.extend((!wished).then_some(now));
        while state.ends.front().is_some_and(|end| now.duration_since(*end) > INTENSITY_WINDOW) {
            state.ends.pop_front();
        }
        let too_often = state.failures_in_a_row >= START_FAILURES || state.ends.len() > INTENSITY;
        if stopping.load(Ordering::SeqCst) || too_often {
            state.phase = Phase::Ended;
            if too_often {
                let ends = state.ends.len();
                let last = status.map_or_else(String::new, |status| format!(", at last with {status}"));
                state.reason.get_or_insert_with(|| format!("it ended {ends} times within a minute{last}"));
            }
            worker.changed.notify_all();
            return;
        }
        state.phase = Phase::Starting;
        worker.changed.notify_all();
    }
}

/// Starts a process, which learns from the flags how its predecessor ended.
fn start(worker: &Worker, plan: &Plan, flags: &str, stopping: &AtomicBool) -> Result<(), String> {
    let mut command = Command::new(&plan.program);
    command
        .args(&plan.arguments)
        .env(WORKER_ENV, format!("{}/{}", worker.number, plan.count))
        .env(DIR_ENV, &plan.dir)
        .env(FLAGS_ENV, flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    match &plan.mirror {
        Some(mirror) => command.env(MIRROR_ENV, mirror),
        None => command.env_remove(MIRROR_ENV),
    };
    die_with_parent(&mut command);
    let mut child =
        command.spawn().map_err(|error| format!("{} cannot be started: {error}", plan.program.display()))?;
    let mut state = worker.lock();
    state.input = child.stdin.take();
    // Whoever asked all workers to stop while this one was between two lives found nobody to ask.
    if stopping.load(Ordering::SeqCst) {
        ask_to_stop(&mut state);
    }
    state.pid = child.id();
    state.child = Some(child);
    state.phase = Phase::Starting;
    state.last_sign = Instant::now();
    state.starts += 1;
    worker.changed.notify_all();
    Ok(())
}

/// One that does not listen has ended, which its monitor sees.
fn ask_to_stop(state: &mut WorkerState) {
    if let Some(input) = &mut state.input {
        let _ = input.write_all(b"stop\n").and_then(|()| input.flush());
    }
}

fn hear(worker: &Worker, line: &str) {
    let mut state = worker.lock();
    let mut words = line.splitn(2, ' ');
    match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
        ("ready", _) => {
            state.phase = Phase::Serving;
            state.last_sign = Instant::now();
            state.ready_at = Some(Instant::now());
        }
        ("beat", rest) => {
            let mut numbers = rest.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
            let stalled = Duration::from_millis(numbers.next().unwrap_or(0));
            let now = Instant::now();
            state.last_sign = now.checked_sub(stalled).unwrap_or(now);
            if state.phase != Phase::Starting {
                let writes = numbers.next() == Some(1);
                state.phase = if writes { Phase::Checkpointing } else { Phase::Serving };
            }
        }
        ("failed", why) => {
            state.reason = Some(why.to_owned());
            state.gave_up = true;
        }
        ("notice", text) => {
            /// Old ones make room; all of them are in the worker's event log.
            const KEPT: usize = 256;
            if state.notices.len() == KEPT {
                state.notices.remove(0);
            }
            state.notices.push(text.to_owned());
        }
        // Whatever the user's own code prints is passed on.
        _ => eprintln!("{line}"),
    }
    worker.changed.notify_all();
}

/// Kills workers that show no progress. Starting ones too: a recovery reports when it is done, and
/// takes seconds only with a log far beyond its limit, so it has ten times the patience.
fn watch(workers: &[Arc<Worker>], stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        for worker in workers {
            let mut state = worker.lock();
            let patience = if state.phase == Phase::Starting { PATIENCE * 12 } else { PATIENCE };
            if state.last_sign.elapsed() > patience && state.phase != Phase::Ended {
                state.last_sign = Instant::now();
                state.notices.push(format!("no progress for {patience:?}: killed"));
                if let Some(child) = &mut state.child {
                    let _ = child.kill();
                }
                state.hung = true;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Supervisor {
    /// Waits until every worker serves.
    ///
    /// # Errors
    /// [`RootError::Workers`] when one was given up, or `patience` is over.
    pub fn wait_ready(&self, patience: Duration) -> Result<(), RootError> {
        let deadline = Instant::now() + patience;
        for worker in &self.workers {
            let mut state = worker.lock();
            loop {
                match state.phase {
                    Phase::Serving | Phase::Checkpointing => break,
                    Phase::Ended => {
                        let why = state.reason.clone().unwrap_or_else(|| "it ended".into());
                        return Err(RootError::Workers(format!("worker {}: {why}", worker.number)));
                    }
                    Phase::Starting => {}
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(RootError::Workers(format!("worker {} is not ready", worker.number)));
                }
                (state, _) = worker.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
        }
        Ok(())
    }

    /// The store.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Process id of a worker, 0 between two lives.
    #[must_use]
    pub fn pid(&self, worker: usize) -> u32 {
        self.workers[worker].lock().pid
    }

    /// What a worker is doing, and how often it was started.
    #[must_use]
    pub fn phase(&self, worker: usize) -> (Phase, u32) {
        let state = self.workers[worker].lock();
        (state.phase, state.starts)
    }

    /// Waits until `what` is true of a worker's (phase, starts), at most `patience`.
    pub fn wait_for(&self, worker: usize, patience: Duration, what: impl Fn(Phase, u32) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let worker = &self.workers[worker];
        let mut state = worker.lock();
        while !what(state.phase, state.starts) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) = worker.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Ends a worker with SIGKILL, as a crash would; its successor is started at once, and the end is
    /// not held against the worker ([`START_FAILURES`], [`INTENSITY`]) or what it ran. Gives the phase it was in, or
    /// `None` when it was not running.
    pub fn kill(&self, worker: usize) -> Option<Phase> {
        let mut state = self.workers[worker].lock();
        let phase = state.phase;
        state.child.as_mut()?.kill().ok()?;
        state.wished = true;
        Some(phase)
    }

    /// Why a worker was given up, if one was.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.workers.iter().find_map(|worker| {
            let state = worker.lock();
            let why = state.reason.clone().unwrap_or_else(|| "it ended".into());
            (state.phase == Phase::Ended).then(|| format!("worker {}: {why}", worker.number))
        })
    }

    /// What workers noticed since the last call.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        self.workers.iter().flat_map(|worker| std::mem::take(&mut worker.lock().notices)).collect()
    }

    /// An orderly stop of all workers: each checkpoints and ends. True when all of them did within
    /// `patience`; those that did not are killed, which loses nothing.
    #[must_use]
    pub fn stop(mut self, patience: Duration) -> bool {
        self.end(patience)
    }

    fn end(&mut self, patience: Duration) -> bool {
        self.stopping.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            ask_to_stop(&mut worker.lock());
        }
        let deadline = Instant::now() + patience;
        let mut orderly = true;
        for worker in &self.workers {
            let mut state = worker.lock();
            while state.phase != Phase::Ended {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    orderly = false;
                    if let Some(child) = &mut state.child {
                        let _ = child.kill();
                    }
                    break;
                }
                (state, _) = worker.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            }
            orderly &= state.reason.is_none() && state.ended_well;
        }
        for monitor in self.monitors.drain(..) {
            let _ = monitor.join();
        }
        orderly
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if !self.monitors.is_empty() {
            self.end(Duration::from_secs(0));
        }
    }
}

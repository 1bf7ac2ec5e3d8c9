//! A worker process: the directories it has leased, a socket, and a line to its supervisor.
//!
//! Decides nothing about the other workers. It ends when its supervisor ends (its standard input
//! closes), on request (`stop`), or when its store fails; it never outlives the one who would start
//! its successor.
//!
//! Lines on standard output: `ready`, `beat STALLED_MS CHECKPOINTING`, `notice TEXT`,
//! `failed TEXT`. No line for five seconds, or a stall of five, is a failure.

use crate::app::App;
use crate::link::{LinkOwner, SocketLink, read_messages};
use crate::message::Message;
use crate::node::{Node, ReplySink, Shared};
use crate::root::RootError;
use crate::sockets;
use rallypoint_base::id::{DirectoryId, PartitionId, SessionId};
use std::collections::BTreeSet;
use std::io::{BufRead, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Set in a worker's environment by its supervisor: `NUMBER/COUNT`.
pub(crate) const WORKER_ENV: &str = "RALLYPOINT_WORKER";
pub(crate) const DIR_ENV: &str = "RALLYPOINT_WORKER_DIR";
pub(crate) const MIRROR_ENV: &str = "RALLYPOINT_WORKER_MIRROR";
pub(crate) const FLAGS_ENV: &str = "RALLYPOINT_WORKER_FLAGS";

/// The flag of a process whose predecessor was ended on purpose: nothing that it ran is suspect.
pub(crate) const INNOCENT: &str = "innocent";
/// The flag of a process whose predecessor made no progress and was killed for it.
pub(crate) const HUNG: &str = "hung";

const STACK: usize = 128 << 10;
/// How often the supervisor hears of a worker at least.
const BEAT: Duration = Duration::from_millis(200);

/// True in a process that a supervisor started: hand the application to [`run`].
#[must_use]
pub fn is_worker() -> bool {
    std::env::var_os(WORKER_ENV).is_some()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A supervisor that does not listen has ended, and standard input tells.
    let _ = writeln!(out, "{}", line.replace('\n', " "));
    let _ = out.flush();
}

/// Runs this process as the worker its environment names, until it is told to stop. Gives the exit
/// code.
pub fn run(app: App) -> u8 {
    match try_run(app) {
        Ok(()) => 0,
        Err(error) => {
            say(&format!("failed {error}"));
            2
        }
    }
}

fn try_run(app: App) -> Result<(), RootError> {
    let bad = || RootError::Workers(format!("{WORKER_ENV} and {DIR_ENV} are not as a supervisor sets them"));
    let role = std::env::var(WORKER_ENV).map_err(|_| bad())?;
    let (number, count) = role.split_once('/').ok_or_else(bad)?;
    let (number, count): (usize, usize) =
        (number.parse().map_err(|_| bad())?, count.parse().map_err(|_| bad())?);
    let dir = PathBuf::from(std::env::var_os(DIR_ENV).ok_or_else(bad)?);
    let flags = std::env::var(FLAGS_ENV).unwrap_or_default();
    let mut app =
        app.degraded(flags.contains("degraded")).allow_unsuitable_file_system(flags.contains("unsuitable"));
    if let Some(mirror) = std::env::var_os(MIRROR_ENV) {
        app = app.mirror(PathBuf::from(mirror));
    }
    let stopped = Arc::new((Mutex::new(false), Condvar::new()));
    watch_supervisor(Arc::clone(&stopped))?;

    let root = app.root(&dir, false)?;
    let (mut options, _) = app.options();
    let mine: Vec<DirectoryId> = (0..root.map.directory_count())
        .map(|directory| DirectoryId(directory as u16))
        .filter(|&directory| sockets::worker_of(directory, count) == number)
        .collect();
    options.directories = Some(mine);
    options.innocent = flags.contains(INNOCENT);
    options.hung = flags.contains(HUNG);
    let node = Node::open(&root, app.into_inner(), &options)?;
    let place = sockets::directory(&root);
    let incarnation = crate::client::new_session().0;
    let peers = Peers { links: Mutex::new(Vec::new()) };
    let peers = Arc::new(peers);
    // Listening comes before connecting: whoever hears our Hello may connect at once.
    let socket = sockets::worker(&place, number);
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(|error| RootError::Io {
        what: "listening on",
        place: socket.clone(),
        error,
    })?;
    accept(listener, &node, &peers, root.store.0)?;
    for peer in (0..count).filter(|&peer| peer != number) {
        let partitions: Vec<PartitionId> = root
            .map
            .partitions()
            .filter(|&partition| {
                root.map.directory_of(partition).is_some_and(|d| sockets::worker_of(d, count) == peer)
            })
            .collect();
        let owner = PeerOwner { shared: Arc::clone(&node.shared), partitions };
        let hello = Message::Hello { store: root.store.0, worker: number as u32, incarnation };
        let link = SocketLink::start(sockets::worker(&place, peer), &hello, Arc::new(owner));
        let link = link.map_err(RootError::Thread)?;
        for directory in 0..root.map.directory_count() {
            let directory = DirectoryId(directory as u16);
            if sockets::worker_of(directory, count) == peer {
                node.shared.set_link(directory, Some(Arc::clone(&link) as Arc<dyn crate::node::Link>));
            }
        }
        let known = Peer { number: peer, link, incarnation: None };
        peers.lock().push(known);
    }
    for (directory, report) in &node.reports {
        for stopped in &report.stopped {
            say(&format!("notice {directory}: {stopped}"));
        }
    }
    say("ready");
    let result = beat(&node, &stopped, flags.contains("fine"));
    for peer in peers.lock().iter() {
        peer.link.close();
    }
    result?;
    let orderly = node.close(Duration::from_secs(30));
    if orderly { Ok(()) } else { Err(RootError::Workers("the stop was not orderly".into())) }
}

/// Standard input: `stop` asks for an orderly end; its end means that the supervisor is gone.
fn watch_supervisor(stopped: Arc<(Mutex<bool>, Condvar)>) -> Result<(), RootError> {
    let thread = std::thread::Builder::new().name("supervisor".into()).stack_size(STACK);
    let watch = move || {
        let mut line = String::new();
        let mut input = std::io::stdin().lock();
        loop {
            line.clear();
            match input.read_line(&mut line) {
                Ok(0) | Err(_) => std::process::exit(0),
                Ok(_) if line.trim() == "stop" => {
                    *stopped.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
                    stopped.1.notify_all();
                }
                Ok(_) => {}
            }
        }
    };
    thread.spawn(watch).map(drop).map_err(RootError::Thread)
}

/// Tells the supervisor how things are until the stop is asked for.
fn beat(node: &Node, stopped: &(Mutex<bool>, Condvar), fine: bool) -> Result<(), RootError> {
    let step = if fine { Duration::from_millis(2) } else { BEAT };
    let mut seen: Vec<(u64, Instant)> = node.homes().iter().map(|_| (0, Instant::now())).collect();
    let (mut said, mut was_checkpointing) = (Instant::now() - BEAT, false);
    loop {
        let now = Instant::now();
        let mut stalled = Duration::ZERO;
        let mut checkpointing = false;
        for (home, seen) in node.homes().iter().zip(&mut seen) {
            let (turns, waits) = home.progress();
            if !waits || turns != seen.0 {
                *seen = (turns, now);
            }
            stalled = stalled.max(now.duration_since(seen.1));
            checkpointing |= home.is_checkpointing();
        }
        if now.duration_since(said) >= BEAT || checkpointing != was_checkpointing {
            said = now;
            was_checkpointing = checkpointing;
            say(&format!("beat {} {}", stalled.as_millis(), u8::from(checkpointing)));
        }
        for notice in node.notices() {
            use rallypoint_engine::unit::UnitNotice;
            if !matches!(notice, UnitNotice::CheckpointWritten { .. }) {
                say(&format!("notice {notice:?}"));
            }
        }
        if let Some(why) = node.shared.failure() {
            return Err(RootError::Workers(why));
        }
        let guard = stopped.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (guard, _) = stopped.1.wait_timeout(guard, step).unwrap_or_else(PoisonError::into_inner);
        if *guard {
            return Ok(());
        }
    }
}

/// Another worker.
struct Peer {
    number: usize,
    link: Arc<SocketLink>,
    /// Which process it was when it last connected.
    incarnation: Option<u64>,
}

struct Peers {
    links: Mutex<Vec<Peer>>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has connected. When it is a new process, our way to it must be new as well; when it
    /// is the same one, ours is as good as it was: were it begun anew, the other end would begin
    /// its own anew, and so on for ever.
    fn heard(&self, number: usize, incarnation: u64) {
        for peer in self.lock().iter_mut().filter(|peer| peer.number == number) {
            match peer.incarnation.replace(incarnation) {
                Some(before) if before != incarnation => peer.link.reset(),
                _ => peer.link.hurry(),
            }
        }
    }
}

/// The owner of a link to another worker: nothing but Hello ever comes back over it.
struct PeerOwner {
    shared: Arc<Shared>,
    partitions: Vec<PartitionId>,
}

impl LinkOwner for PeerOwner {
    fn connected(&self, _first: &mut Vec<u8>) {
        let mut bytes = Vec::new();
        for &peer in &self.partitions {
            Message::Connected { peer }.encode(&mut bytes);
        }
        for home in self.shared.homes() {
            home.push(&bytes, true);
        }
    }

    fn received(&self, bytes: &[u8]) -> Option<usize> {
        Some(bytes.len())
    }
}

fn accept(listener: UnixListener, node: &Node, peers: &Arc<Peers>, store: u64) -> Result<(), RootError> {
    let (shared, peers) = (Arc::downgrade(&node.shared), Arc::clone(peers));
    let thread = std::thread::Builder::new().name("accept".into()).stack_size(STACK);
    let accept = move || {
        for stream in listener.incoming() {
            let (Ok(stream), Some(shared)) = (stream, shared.upgrade()) else { return };
            let peers = Arc::clone(&peers);
            let thread = std::thread::Builder::new().name("connection".into()).stack_size(STACK);
            // Without a thread the connection is dropped; the other end tries again.
            let _ = thread.spawn(move || converse(stream, &shared, &peers, store));
        }
    };
    thread.spawn(accept).map(drop).map_err(RootError::Thread)
}

/// Serves one incoming connection until it ends.
fn converse(stream: UnixStream, shared: &Arc<Shared>, peers: &Peers, store: u64) {
    let Ok(writing) = stream.try_clone() else { return };
    let sink: Arc<ConnectionSink> =
        Arc::new(ConnectionSink { state: Mutex::new(SinkState::default()), ready: Condvar::new() });
    let as_sink: Arc<dyn ReplySink> = Arc::clone(&sink) as Arc<dyn ReplySink>;
    let mut sessions: BTreeSet<SessionId> = BTreeSet::new();
    let (mut greeted, mut writer) = (false, None);
    let (mut pending, mut to): (Vec<u8>, Option<DirectoryId>) = (Vec::new(), None);
    let mut writing = Some(writing);
    read_messages(stream, &mut |bytes| {
        let mut taken = 0;
        while let Some((message, len)) = Message::split(&bytes[taken..]).ok()? {
            let raw = &bytes[taken..taken + len];
            taken += len;
            if let Message::Hello { store: theirs, worker, incarnation } = message {
                if theirs != store {
                    return None;
                }
                greeted = true;
                if worker == u32::MAX {
                    let (sink, stream) = (Arc::clone(&sink), writing.take()?);
                    let thread = std::thread::Builder::new().name("replies".into()).stack_size(STACK);
                    writer = Some(thread.spawn(move || sink.write(stream)).ok()?);
                } else {
                    peers.heard(worker as usize, incarnation);
                }
                continue;
            }
            if !greeted {
                return None;
            }
            if let Message::Checkpoint | Message::Scrub { .. } = message {
                shared.homes().for_each(|home| home.push(raw, true));
                continue;
            }
            if let Message::Input { session, .. } = message
                && sessions.insert(session)
            {
                shared.register(session, Arc::clone(&as_sink));
            }
            let directory = message.to().and_then(|partition| shared.map.directory_of(partition))?;
            if to != Some(directory) {
                if let Some(to) = to {
                    shared.send_here(to, &pending);
                }
                pending.clear();
                to = Some(directory);
            }
            pending.extend_from_slice(raw);
        }
        if let Some(directory) = to.take() {
            shared.send_here(directory, &pending);
            pending.clear();
        }
        Some(taken)
    });
    sink.close();
    for session in sessions {
        shared.unregister(session, &as_sink);
    }
    drop(writer);
}

#[derive(Default)]
struct SinkState {
    queue: Vec<u8>,
    closed: bool,
    /// The writer sleeps.
    sleeping: bool,
}

/// Replies on their way to a client of another process.
struct ConnectionSink {
    state: Mutex<SinkState>,
    ready: Condvar,
}

impl ConnectionSink {
    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.ready.notify_all();
    }

    fn write(&self, mut stream: UnixStream) {
        let mut out = Vec::new();
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while state.queue.is_empty() && !state.closed {
                state.sleeping = true;
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping = false;
            }
            if state.closed {
                return;
            }
            std::mem::swap(&mut state.queue, &mut out);
            drop(state);
            if stream.write_all(&out).is_err() {
                let _ = stream.shutdown(std::net::Shutdown::Both);
                self.close();
                return;
            }
            out.clear();
        }
    }
}

impl ReplySink for ConnectionSink {
    fn deliver(&self, bytes: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return false;
        }
        let wake = state.queue.is_empty() && state.sleeping;
        state.queue.extend_from_slice(bytes);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
        true
    }
}

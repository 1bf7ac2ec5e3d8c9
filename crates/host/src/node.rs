//! A node: the journal directories that this process serves, and what they share.
//!
//! Decides nothing about recovery: it opens directories (locks first), starts their standing
//! threads, routes what leaves one to where it belongs, and performs effects.
//!
//! Invariant: a directory is locked before anything in it is read, and stays locked for the life of
//! the process (or until an orderly close).

use crate::app::AppInner;
use crate::client::{Client, Door, new_session};
use crate::home::Home;
use crate::message::Message;
use crate::os::file_disk::{FileDisk, FileDiskOptions};
use crate::os::lock::DirectoryLock;
use crate::os::running_page::RunningPage;
use crate::root::{Root, RootError};
use rallypoint_base::id::{DirectoryId, InputSeq, PartitionId, Position, SessionId, Version};
use rallypoint_base::time::Time;
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::partition::{Ending, Witness};
use rallypoint_engine::unit::{OpenReport, Unit, UnitNotice, WitnessFactory};
use rallypoint_store::store::{Identity, OpenOptions, Options};
#[cfg(feature = "saga")]
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The host's clock: the wall clock at the start, and monotonic time since. A wall clock that jumps
/// changes nothing until the next start.
pub(crate) struct Clock {
    base: Time,
    start: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { base: Time(u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)), start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        self.base + self.start.elapsed()
    }
}

/// Where answers for a session go.
pub(crate) trait ReplySink: Send + Sync {
    /// Takes encoded replies; false when the other end is gone.
    fn deliver(&self, bytes: &[u8]) -> bool;
}

/// The way to a directory that another process serves.
pub(crate) trait Link: Send + Sync {
    /// Queues messages; they may be lost with the connection (the engine sends them again).
    fn send(&self, bytes: &[u8]);
}

struct EffectJob {
    to: PartitionId,
    key: EffectKey,
    name: String,
    payload: Vec<u8>,
}

#[derive(Default)]
struct EffectQueue {
    jobs: VecDeque<EffectJob>,
    threads: usize,
    idle: usize,
    /// Keys being performed or waiting: a repetition within one process is not performed twice.
    known: BTreeMap<EffectKey, ()>,
}

/// Most threads that perform effects at once.
const EFFECT_THREADS: usize = 64;

/// What the homes of a process share.
pub(crate) struct Shared {
    pub(crate) map: Arc<Map>,
    pub(crate) clock: Clock,
    pub(crate) app: Arc<AppInner>,
    homes: OnceLock<Vec<Option<Weak<Home>>>>,
    links: RwLock<Vec<Option<Arc<dyn Link>>>>,
    sinks: RwLock<BTreeMap<SessionId, Arc<dyn ReplySink>>>,
    effects: Mutex<EffectQueue>,
    effect_ready: Condvar,
    pub(crate) checkpoints_written: AtomicU64,
    notices: Mutex<VecDeque<UnitNotice>>,
    failed: Mutex<Option<String>>,
    closed: AtomicBool,
    /// Per partition, the last run when it was opened: what that or an earlier one caused may have been
    /// performed by a process before this one.
    #[cfg(feature = "saga")]
    opened_at: Vec<AtomicU64>,
}

/// Where the result of an effect goes that is performed in its own time.
#[cfg(feature = "saga")]
pub(crate) struct Completion {
    shared: Arc<Shared>,
    to: PartitionId,
    key: EffectKey,
    /// The effect may have been performed before, by a process that ended.
    pub(crate) earlier: bool,
}

/// True on a thread of a runtime whose other threads go on while this one waits for a synced write.
#[cfg(feature = "saga")]
pub(crate) fn may_lend_thread() -> bool {
    use tokio::runtime::{Handle, RuntimeFlavor};
    Handle::try_current().is_ok_and(|handle| {
        handle.runtime_flavor() == RuntimeFlavor::MultiThread && handle.metrics().num_workers() > 1
    })
}

#[cfg(feature = "saga")]
impl Completion {
    /// It ended: 0 = well, with this value, 1 = not, with this text.
    pub(crate) fn finish(self, outcome: u8, value: &[u8]) {
        let mut bytes = Vec::with_capacity(value.len() + 64);
        Message::Effect { to: self.to, key: self.key, outcome, value }.encode(&mut bytes);
        let mut queue = self.shared.effects.lock().unwrap_or_else(PoisonError::into_inner);
        queue.known.remove(&self.key);
        let alone = queue.known.is_empty();
        drop(queue);
        let Some(directory) = self.shared.map.directory_of(self.to) else { return };
        match self.shared.home(directory) {
            // Nothing else is under way, so this thread makes the commit: two hops less. What it asks
            // for next is performed on this thread too, when it has come back.
            Some(home) if alone && may_lend_thread() => {
                home.push(&bytes, false);
                // Asked after the turn that takes the result in, and again after its commit.
                let asked = Cell::new(0);
                let done = || asked.replace(asked.get() + 1) > 0;
                if !home.drive(&done) {
                    home.wake();
                }
            }
            _ => self.shared.send(directory, &bytes),
        }
    }
}

impl Shared {
    fn home(&self, directory: DirectoryId) -> Option<Arc<Home>> {
        self.homes.get()?.get(usize::from(directory.0))?.as_ref()?.upgrade()
    }

    /// Hands messages to a home of this process; drops them when there is none (the sender has
    /// another map in mind).
    pub(crate) fn send_here(&self, directory: DirectoryId, bytes: &[u8]) {
        if let Some(home) = self.home(directory) {
            home.push(bytes, true);
        }
    }

    /// True when no effect is under way.
    #[cfg(feature = "saga")]
    pub(crate) fn is_effectless(&self) -> bool {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner).known.is_empty()
    }

    pub(crate) fn homes(&self) -> impl Iterator<Item = Arc<Home>> + '_ {
        self.homes.get().into_iter().flatten().flatten().filter_map(Weak::upgrade)
    }

    /// Hands messages to whoever serves the directory.
    pub(crate) fn send(&self, directory: DirectoryId, bytes: &[u8]) {
        if let Some(home) = self.home(directory) {
            home.push(bytes, true);
            return;
        }
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(link)) = links.get(usize::from(directory.0)) {
            link.send(bytes);
        }
    }

    pub(crate) fn set_link(&self, directory: DirectoryId, link: Option<Arc<dyn Link>>) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let at = usize::from(directory.0);
        if links.len() <= at {
            links.resize_with(at + 1, || None);
        }
        links[at] = link;
    }

    pub(crate) fn reply(&self, session: SessionId, bytes: &[u8]) {
        let sink = {
            let sinks = self.sinks.read().unwrap_or_else(PoisonError::into_inner);
            sinks.get(&session).cloned()
        };
        // Nobody listens any more: the client asks again when it is back.
        if let Some(sink) = sink
            && !sink.deliver(bytes)
        {
            self.unregister(session, &sink);
        }
    }

    pub(crate) fn register(&self, session: SessionId, sink: Arc<dyn ReplySink>) {
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).insert(session, sink);
    }

    pub(crate) fn unregister(&self, session: SessionId, sink: &Arc<dyn ReplySink>) {
        let mut sinks = self.sinks.write().unwrap_or_else(PoisonError::into_inner);
        if sinks.get(&session).is_some_and(|known| Arc::ptr_eq(known, sink)) {
            sinks.remove(&session);
        }
    }

    pub(crate) fn notice(&self, notice: UnitNotice) {
        match &notice {
            UnitNotice::StoreFailed(why) => {
                tracing::error!(%why, "the store failed: nothing is acknowledged any more");
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert_with(|| why.clone());
            }
            UnitNotice::CheckpointWritten { partition, version } => {
                self.checkpoints_written.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%partition, %version, "checkpoint written");
            }
            UnitNotice::Scrubbed { blocks, chunks, repaired, bad, .. } => {
                tracing::info!(blocks, chunks, repaired, bad, "everything was compared once");
            }
            other => tracing::warn!(notice = ?other, "notice"),
        }
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        /// The newest are kept for `Runtime::notices`; all of them went to `tracing`.
        const KEPT: usize = 1024;
        if notices.len() == KEPT {
            notices.pop_front();
        }
        notices.push_back(notice);
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Performs an effect on a thread of its own; its end comes back through the partition's inbox.
    pub(crate) fn perform(
        self: Arc<Self>,
        to: PartitionId,
        key: EffectKey,
        name: &str,
        payload: &[u8],
        _timeout: Duration,
    ) {
        let job = EffectJob { to, key, name: name.to_owned(), payload: payload.to_vec() };
        let mut queue = self.effects.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.known.insert(key, ()).is_some() {
            return;
        }
        #[cfg(feature = "saga")]
        if name == rallypoint_engine::saga::EFFECT
            && let Some(sagas) = &self.app.sagas
        {
            drop(queue);
            let opened =
                self.opened_at.get(usize::from(to.0)).map_or(u64::MAX, |at| at.load(Ordering::SeqCst));
            let earlier = key.position.0 <= opened;
            let completion = Completion { shared: Arc::clone(&self), to, key, earlier };
            Arc::clone(sagas).perform(job.payload, completion);
            return;
        }
        queue.jobs.push_back(job);
        // Each thread that has nothing to do takes one of the jobs that wait, and may be long about it.
        if queue.idle >= queue.jobs.len() || queue.threads >= EFFECT_THREADS {
            drop(queue);
            self.effect_ready.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self);
        let spawned =
            std::thread::Builder::new().name("effect".into()).spawn(move || shared.perform_effects());
        if spawned.is_err() {
            self.effects.lock().unwrap_or_else(PoisonError::into_inner).threads -= 1;
        }
    }

    fn perform_effects(&self) {
        loop {
            let mut queue = self.effects.lock().unwrap_or_else(PoisonError::into_inner);
            let job = loop {
                if self.closed.load(Ordering::SeqCst) {
                    queue.threads -= 1;
                    return;
                }
                if let Some(job) = queue.jobs.pop_front() {
                    break job;
                }
                queue.idle += 1;
                let patience = Duration::from_secs(1);
                (queue, _) =
                    self.effect_ready.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            };
            drop(queue);
            let (outcome, value) = self.app.perform(&job.name, &job.key, &job.payload);
            let mut bytes = Vec::with_capacity(value.len() + 64);
            Message::Effect { to: job.to, key: job.key, outcome, value: &value }.encode(&mut bytes);
            self.effects.lock().unwrap_or_else(PoisonError::into_inner).known.remove(&job.key);
            if let Some(directory) = self.map.directory_of(job.to) {
                self.send(directory, &bytes);
            }
        }
    }
}

struct PageWitness {
    page: Arc<RunningPage>,
    slot: usize,
}

impl Witness for PageWitness {
    fn running(&mut self, identity: u64) {
        self.page.set(self.slot, identity);
    }
    fn idle(&mut self) {
        self.page.clear(self.slot);
    }
    fn restoring(&mut self, version: Version) {
        self.page.set_restoring(self.slot, version.0);
    }
    fn restored(&mut self) {
        self.page.set_restoring(0, 0);
    }
}

/// The journal directories served by this process.
pub(crate) struct Node {
    pub(crate) shared: Arc<Shared>,
    homes: Vec<Arc<Home>>,
    threads: Vec<JoinHandle<()>>,
    locks: Vec<DirectoryLock>,
    pub(crate) reports: Vec<(DirectoryId, OpenReport)>,
}

/// How to open the directories of a node.
pub(crate) struct NodeOptions {
    pub(crate) degraded: bool,
    pub(crate) allow_unsuitable: bool,
    /// Of a store that is created.
    pub(crate) segment_len: u64,
    /// The last holder was ended on purpose: what it was running is not suspect.
    pub(crate) innocent: bool,
    /// The last holder made no progress and was killed for it.
    pub(crate) hung: bool,
    /// The directories this process serves; `None` = all.
    pub(crate) directories: Option<Vec<DirectoryId>>,
    /// End the process when a home makes no progress for this long.
    pub(crate) watchdog: Option<Duration>,
}

impl Node {
    /// Opens (or, where the root was just made, creates) the directories and starts serving them.
    pub(crate) fn open(root: &Root, app: Arc<AppInner>, options: &NodeOptions) -> Result<Self, RootError> {
        let map = Arc::clone(&root.map);
        let wanted: Vec<DirectoryId> = match &options.directories {
            Some(directories) => directories.clone(),
            None => (0..map.directory_count()).map(|d| DirectoryId(d as u16)).collect(),
        };
        let shared = Arc::new(Shared {
            map: Arc::clone(&map),
            clock: Clock::new(),
            app: Arc::clone(&app),
            homes: OnceLock::new(),
            links: RwLock::new(Vec::new()),
            sinks: RwLock::new(BTreeMap::new()),
            effects: Mutex::new(EffectQueue::default()),
            effect_ready: Condvar::new(),
            checkpoints_written: AtomicU64::new(0),
            notices: Mutex::new(VecDeque::new()),
            failed: Mutex::new(None),
            closed: AtomicBool::new(false),
            #[cfg(feature = "saga")]
            opened_at: map.partitions().map(|_| AtomicU64::new(u64::MAX)).collect(),
        });
        #[cfg(feature = "saga")]
        if let Some(sagas) = &app.sagas {
            let door = Arc::new(LocalDoor { shared: Arc::clone(&shared) });
            let client = Client::new(new_session(), InputSeq(1), Arc::clone(&map), door);
            shared.register(client.session(), Arc::new(LocalSink(Arc::downgrade(&client))));
            sagas.attach(client);
        }
        let mut locks = Vec::new();
        for &directory in &wanted {
            root.check_copies(directory, options.degraded)?;
            for path in root.copies_of(directory) {
                if path.exists() {
                    locks.push(DirectoryLock::acquire(&path).map_err(RootError::Lock)?);
                }
            }
        }
        let mut node = Self { shared, homes: Vec::new(), threads: Vec::new(), locks, reports: Vec::new() };
        let mut all: Vec<Option<Weak<Home>>> = (0..map.directory_count()).map(|_| None).collect();
        for &directory in &wanted {
            let home = Home::new(directory, Arc::clone(&node.shared));
            all[usize::from(directory.0)] = Some(Arc::downgrade(&home));
            node.homes.push(home);
        }
        // Set before the first unit opens: what its recovery sends to another home waits in that inbox.
        let _ = node.shared.homes.set(all);
        // Directories recover at the same time: their replays are independent.
        let opened: Vec<Result<OpenReport, RootError>> = std::thread::scope(|scope| {
            let handles: Vec<_> = node
                .homes
                .iter()
                .map(|home| scope.spawn(|| Self::open_home(root, &app, options, home)))
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap_or(Err(RootError::Panicked))).collect()
        });
        for (home, report) in node.homes.iter().zip(opened) {
            node.reports.push((home.directory, report?));
        }
        for home in &node.homes {
            let name = format!("rallypoint-{}", home.directory);
            let served = Arc::clone(home);
            let thread = std::thread::Builder::new().name(name).spawn(move || served.serve());
            node.threads.push(thread.map_err(RootError::Thread)?);
        }
        if let Some(patience) = options.watchdog {
            let homes: Vec<Weak<Home>> = node.homes.iter().map(Arc::downgrade).collect();
            let thread = std::thread::Builder::new().name("watchdog".into());
            thread.spawn(move || watch(&homes, patience)).map_err(RootError::Thread)?;
        }
        Ok(node)
    }

    fn open_home(
        root: &Root,
        app: &Arc<AppInner>,
        options: &NodeOptions,
        home: &Arc<Home>,
    ) -> Result<OpenReport, RootError> {
        let directory = home.directory;
        let shared = &home.outlet_shared();
        let woken = Arc::downgrade(home);
        let waker: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let Some(home) = woken.upgrade() {
                home.wake();
            }
        });
        let disk_options = FileDiskOptions {
            allow_unsuitable: options.allow_unsuitable,
            waker: Some(waker),
            ..FileDiskOptions::default()
        };
        let mut disks = Vec::new();
        for path in root.copies_of(directory) {
            if !path.exists() && options.degraded {
                continue;
            }
            disks.push(
                FileDisk::open(path, disk_options.clone()).map_err(|e| RootError::Disk(e.to_string()))?,
            );
        }
        let page = RunningPage::open(&root.running_page(directory)).map_err(RootError::RunningPage)?;
        let (previous, restoring) = (page.read_previous(), page.was_restoring());
        let page = Arc::new(page);
        let seen = Arc::clone(&page);
        let witness: WitnessFactory = Arc::new(move |partition: PartitionId| {
            Box::new(PageWitness { page: Arc::clone(&seen), slot: usize::from(partition.0) })
        });
        let ending = |partition: PartitionId| Ending {
            running: Some(
                previous
                    .iter()
                    .filter(|(slot, _)| *slot == usize::from(partition.0) && !options.innocent)
                    .map(|(_, identity)| *identity)
                    .collect(),
            ),
            restoring: restoring
                .filter(|(slot, _)| *slot == usize::from(partition.0) && !options.innocent)
                .map(|(_, version)| Version(version)),
        };
        let now = shared.clock.now();
        let mut outlet = home.outlet();
        let mut application = app.application();
        // The partitions of a directory are replayed one after the other: together they must not take
        // longer than one may.
        let partitions = root.map.partitions_in(directory).count().max(1) as u64;
        application.limits.checkpoint_runs = (application.limits.checkpoint_runs / partitions).max(1);
        let (mut unit, report) = if root.is_new {
            let identity = Identity {
                store: root.store,
                lineage: root.lineage,
                directory,
                copies: root.copies_of(directory).count() as u8,
                meta: root.map.encode(),
            };
            let map = Arc::clone(&root.map);
            let options = Options { segment_len: options.segment_len, ..Options::default() };
            let unit = Unit::create(disks, identity, options, map, application, &witness, now, &mut outlet)?;
            (unit, OpenReport::default())
        } else {
            let open = OpenOptions { read_only: false, degraded: options.degraded, ..OpenOptions::default() };
            Unit::open(disks, open, application, &witness, &ending, now, &mut outlet)?
        };
        unit.open_event_log(shared.clock.now(), &report, options.hung || page.was_hung());
        if !previous.is_empty() {
            // Who was running is written down now; only then may the page forget it, or a second
            // end before the first run would count one evidence twice.
            let clock = &shared.clock;
            while unit.failure().is_none() && (!unit.is_flushed() || unit.is_committing()) {
                unit.pump_waiting(&mut || clock.now(), &mut outlet);
            }
            // One that stopped has written nothing down: who was running there is still suspect.
            let stopped: Vec<usize> =
                report.stopped.iter().map(|error| usize::from(error.partition().0)).collect();
            for (slot, _) in previous.iter().filter(|(slot, _)| !stopped.contains(slot)) {
                page.clear(*slot);
            }
        }
        #[cfg(feature = "saga")]
        for partition in unit.partitions() {
            if let Some(at) = shared.opened_at.get(usize::from(partition.id().0)) {
                at.store(partition.position().0, Ordering::SeqCst);
            }
        }
        home.set_page(Arc::clone(&page));
        outlet.flush(shared);
        home.install(unit, outlet);
        Ok(report)
    }

    pub(crate) fn homes(&self) -> &[Arc<Home>] {
        &self.homes
    }

    /// A client in this process.
    pub(crate) fn client(&self, session: Option<(SessionId, InputSeq)>) -> Arc<Client> {
        let (session, next) = session.unwrap_or_else(|| (new_session(), InputSeq(1)));
        let door = Arc::new(LocalDoor { shared: Arc::clone(&self.shared) });
        let client = Client::new(session, next, Arc::clone(&self.shared.map), door);
        self.shared.register(session, Arc::new(LocalSink(Arc::downgrade(&client))));
        client
    }

    /// Asks every partition for a checkpoint and waits until it is durable.
    pub(crate) fn checkpoint(&self, patience: Duration) -> bool {
        for home in &self.homes {
            home.with_unit(|unit, outside, now| unit.request_checkpoints(now, true, outside));
        }
        self.wait_until(patience, |unit| !unit.is_checkpointing())
    }

    /// Waits until nothing waits anywhere: gates, channels, commits, checkpoints.
    pub(crate) fn drain(&self, patience: Duration) -> bool {
        self.wait_until(patience, |unit| unit.is_quiet())
    }

    fn wait_until(&self, patience: Duration, done: impl Fn(&Unit<FileDisk>) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let all = self.homes.iter().all(|home| {
                home.with_unit(|unit, _, _| done(unit) || unit.failure().is_some()).unwrap_or(true)
            });
            if all || Instant::now() >= deadline {
                return all && self.shared.failure().is_none();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// An orderly stop: checkpoints, stop records, the watermark over them; then the locks go.
    pub(crate) fn close(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.homes.iter().for_each(|home| home.close_door());
        // More than once, since one that was being written did not hold all, and since what travels
        // inside a directory still arrives.
        let mut orderly = false;
        for _ in 0..10 {
            orderly = self.checkpoint(deadline.saturating_duration_since(Instant::now()));
            if !orderly || self.runs_since_cut() == 0 {
                break;
            }
        }
        for home in &self.homes {
            home.with_unit(|unit, outside, now| unit.append_stops(now, outside));
        }
        orderly &= self.wait_until(patience, |unit| !unit.is_committing() && unit.is_flushed());
        self.end();
        orderly
    }

    /// Runs that no checkpoint holds.
    fn runs_since_cut(&self) -> u64 {
        let runs = |unit: &mut Unit<FileDisk>| unit.partitions().map(|p| p.runs_since_cut()).sum::<u64>();
        self.homes.iter().filter_map(|home| home.with_unit(|unit, _, _| runs(unit))).sum()
    }

    fn end(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.effect_ready.notify_all();
        for home in &self.homes {
            home.stop();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for home in &self.homes {
            if let Some(mut unit) = home.uninstall() {
                // The last commit is covered at once, so that a later rot in it is told from a tear.
                let clock = &self.shared.clock;
                let mut outlet = home.outlet();
                while unit.idle() || unit.is_committing() {
                    unit.pump_waiting(&mut || clock.now(), &mut outlet);
                    if unit.failure().is_some() {
                        break;
                    }
                }
            }
        }
        let sinks = std::mem::take(&mut *self.shared.sinks.write().unwrap_or_else(PoisonError::into_inner));
        for sink in sinks.values() {
            sink.deliver(&[]);
        }
        self.locks.clear();
    }

    /// What was noticed since the last call, oldest first (the newest 1,024).
    pub(crate) fn notices(&self) -> Vec<UnitNotice> {
        self.shared.notices.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Drops what was set aside, and waits until that is durable.
    pub(crate) fn drop_set_aside(&self, partition: PartitionId, position: Position) -> bool {
        let directory = self.shared.map.directory_of(partition);
        let home = directory.and_then(|directory| self.shared.home(directory));
        let dropped = home.and_then(|home| {
            home.with_unit(|unit, outside, now| unit.drop_set_aside(now, partition, position, outside))
        });
        let patience = Duration::from_secs(30);
        dropped.unwrap_or(false)
            && self.wait_until(patience, |unit| !unit.is_committing() && unit.is_flushed())
    }

    /// Asks every directory for a pass over all its blocks and chunks.
    pub(crate) fn request_scrub(&self, bytes_per_second: u64) {
        let mut bytes = Vec::new();
        Message::Scrub { bytes_per_second }.encode(&mut bytes);
        self.homes.iter().for_each(|home| home.push(&bytes, true));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.shared.closed.load(Ordering::SeqCst) {
            self.end();
        }
    }
}

/// Ends the process when a handler does not come back: its input stands in the running page, and is
/// set aside when that happens twice.
fn watch(homes: &[Weak<Home>], patience: Duration) {
    let mut seen = vec![(0, Instant::now()); homes.len()];
    loop {
        std::thread::sleep(patience.min(Duration::from_millis(200)));
        let now = Instant::now();
        for (home, seen) in homes.iter().zip(&mut seen) {
            let Some(home) = home.upgrade() else { return };
            let (turns, waits) = home.progress();
            if !waits || turns != seen.0 {
                *seen = (turns, now);
            } else if now.duration_since(seen.1) >= patience {
                tracing::error!(directory = %home.directory, ?patience, "no progress: ending the process");
                home.note_hung();
                std::process::abort();
            }
        }
    }
}

struct LocalDoor {
    shared: Arc<Shared>,
}

impl Door for LocalDoor {
    fn submit(&self, to: PartitionId, message: &[u8], urgent: bool) {
        if let Some(directory) = self.shared.map.directory_of(to)
            && let Some(home) = self.shared.home(directory)
        {
            home.push(message, urgent);
        }
    }

    fn drive(&self, to: PartitionId, done: &dyn Fn() -> bool) -> bool {
        let directory = self.shared.map.directory_of(to);
        directory.and_then(|d| self.shared.home(d)).is_some_and(|home| home.drive(done))
    }

    fn wake(&self, to: PartitionId) {
        if let Some(directory) = self.shared.map.directory_of(to)
            && let Some(home) = self.shared.home(directory)
        {
            home.wake();
        }
    }

    fn closed(&self) -> Option<String> {
        if self.shared.closed.load(Ordering::SeqCst) {
            return Some("the runtime was closed".into());
        }
        self.shared.failure()
    }

    fn may_lose(&self) -> bool {
        false
    }
}

struct LocalSink(Weak<Client>);

impl ReplySink for LocalSink {
    fn deliver(&self, bytes: &[u8]) -> bool {
        let Some(client) = self.0.upgrade() else { return false };
        if bytes.is_empty() {
            client.wake_all();
            return true;
        }
        client.deliver(bytes).is_ok()
    }
}

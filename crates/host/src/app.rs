//! The application: actor kinds, effects, options; and the runtime it opens into.
//!
//! Decides what a program consists of. The same definition runs as threads of one process
//! ([`App::open`]) and as worker processes of the same binary ([`App::supervise`]).

use crate::client::Client;
use crate::node::{Node, NodeOptions};
use crate::root::{Root, RootError};
use rallypoint_base::id::{InputSeq, PartitionId, Position, SessionId};
#[cfg(feature = "saga")]
use rallypoint_base::limits::SAGA_SEGMENT_BYTES;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::codec::{Codec, Encoded, encode};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::partition::Limits;
use rallypoint_engine::registry::{KindClash, Registry};
use rallypoint_engine::snapshot::SetAside;
use rallypoint_engine::unit::{Application, OpenReport, UnitNotice};
use rallypoint_rollback::pessimistic::Pessimistic;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

type Performer = Box<dyn Fn(&EffectKey, &[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// A definition that cannot run.
pub(crate) struct AppInner {
    registry: Arc<Registry>,
    effects: BTreeMap<String, Performer>,
    limits: Limits,
    program: String,
    scrub: ScrubPlan,
    /// Performs the effects of this name in its own time, instead of a thread of the runtime.
    #[cfg(feature = "saga")]
    pub(crate) sagas: Option<Arc<dyn crate::saga::driver::Drives>>,
}

/// How often, and how fast at most, a store that is served compares everything with its checksums and
/// between its copies, when it has nothing else to do. Rot is repaired while the other copy is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPlan {
    /// Bytes per second and journal directory; 0 = never.
    pub bytes_per_second: u64,
    /// From the end of a pass to the beginning of the next.
    pub every: Duration,
}

impl Default for ScrubPlan {
    fn default() -> Self {
        Self { bytes_per_second: 8 << 20, every: Duration::from_secs(24 * 3600) }
    }
}

impl AppInner {
    pub(crate) fn scrub(&self) -> &ScrubPlan {
        &self.scrub
    }

    pub(crate) fn application(&self) -> Application {
        Application {
            registry: Arc::clone(&self.registry),
            protocol: Arc::new(|_| Box::new(Pessimistic::default())),
            limits: self.limits.clone(),
            program: self.program.clone(),
        }
    }

    /// Outcome and value as they stand in a record: 0 done, 1 failed.
    pub(crate) fn perform(&self, name: &str, key: &EffectKey, payload: &[u8]) -> (u8, Vec<u8>) {
        let Some(performer) = self.effects.get(name) else {
            return (1, format!("no effect is registered as {name:?}").into_bytes());
        };
        match catch_unwind(AssertUnwindSafe(|| performer(key, payload))) {
            Ok(Ok(value)) => (0, value),
            Ok(Err(text)) => (1, text.into_bytes()),
            Err(_) => (1, format!("the performer of {name:?} panicked").into_bytes()),
        }
    }
}

/// What a program consists of.
pub struct App {
    registry: Registry,
    clash: Option<KindClash>,
    effects: BTreeMap<String, Performer>,
    limits: Limits,
    program: String,
    partitions: usize,
    directories: usize,
    mirror: Option<PathBuf>,
    degraded: bool,
    allow_unsuitable: bool,
    scrub: ScrubPlan,
    watchdog: Option<Duration>,
    segment_len: u64,
    #[cfg(feature = "saga")]
    sagas: Option<Arc<dyn crate::saga::driver::Drives>>,
    saga_clash: Option<String>,
}

impl Default for App {
    fn default() -> Self {
        Self::define()
    }
}

impl App {
    /// Begins a definition.
    #[must_use]
    pub fn define() -> Self {
        let program = std::env::current_exe().ok();
        let program = program.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Self {
            registry: Registry::default(),
            clash: None,
            effects: BTreeMap::new(),
            limits: Limits::default(),
            program: program.unwrap_or_default(),
            partitions: 4,
            directories: 1,
            mirror: None,
            degraded: false,
            allow_unsuitable: false,
            scrub: ScrubPlan::default(),
            watchdog: None,
            segment_len: 64 << 20,
            #[cfg(feature = "saga")]
            sagas: None,
            saga_clash: None,
        }
    }

    /// Ends the process (`abort`) when a handler does not come back within `patience`; whoever starts
    /// it again finds the input set aside the second time. Worker processes need none: their
    /// supervisor does that after five seconds.
    #[must_use]
    pub fn watchdog(mut self, patience: Duration) -> Self {
        self.watchdog = Some(patience);
        self
    }

    /// Adds an actor kind. Two kinds of one name are an error when the application is opened.
    #[must_use]
    pub fn actor<A: Actor>(mut self) -> Self {
        if let Err(clash) = self.registry.actor::<A>() {
            self.clash.get_or_insert(clash);
        }
        self
    }

    /// Adds sagas: their steps and functions. Steps run on the tokio runtime that the application is
    /// opened in, or on one of its own where there is none.
    #[cfg(feature = "saga")]
    #[must_use]
    pub fn sagas<C: Send + Sync + 'static>(
        mut self,
        registry: rallypoint_saga::registry::Registry<C>,
    ) -> Self {
        if let Some(clash) = registry.clash() {
            self.saga_clash.get_or_insert(clash.to_owned());
        }
        self.sagas = Some(crate::saga::driver::Driver::new(registry));
        self.actor::<rallypoint_engine::saga::SagaActor>().actor::<rallypoint_engine::saga::LimitActor>()
    }

    /// Registers what performs the effect `name`. It is called at least once per cause, always with
    /// the same key for the same cause: hand the key on, so that the other side can recognise a
    /// repetition. Runs on a thread of its own; `Err` is a failed effect, a panic too.
    #[must_use]
    pub fn effect<Q, R, F>(mut self, name: &str, perform: F) -> Self
    where
        Q: DeserializeOwned,
        R: Serialize,
        F: Fn(&EffectKey, Q) -> Result<R, String> + Send + Sync + 'static,
    {
        let performer = move |key: &EffectKey, payload: &[u8]| -> Result<Vec<u8>, String> {
            let request = Encoded::split(payload).ok_or("the request has no codec and schema")?;
            let request = request.decode::<Q>().map_err(|error| error.to_string())?;
            let result = perform(key, request)?;
            let mut out = Vec::new();
            encode(Codec::Named, 0, &result, &mut out).map_err(|error| error.to_string())?;
            Ok(out)
        };
        self.effects.insert(name.to_owned(), Box::new(performer));
        self
    }

    /// Changes the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Deletes sagas this long after they ended. Without it they stay in the archive for good. A day at
    /// most may pass before what is old enough is gone; a deleted saga's id is refused for 30 days more.
    ///
    /// ```
    /// # use rallypoint_host::app::App;
    /// # use std::time::Duration;
    /// let app = App::define().saga_retention(Duration::from_secs(30 * 24 * 3600));
    /// ```
    #[cfg(feature = "saga")]
    #[must_use]
    pub fn saga_retention(mut self, retention: Duration) -> Self {
        self.limits.saga_retention = Some(retention);
        self
    }

    /// Partitions and journal directories of a store that is created (default 4 and 1). An existing
    /// store keeps what it was created with.
    #[must_use]
    pub fn layout(mut self, partitions: usize, directories: usize) -> Self {
        self.partitions = partitions;
        self.directories = directories;
        self
    }

    /// Bytes of a log segment in a store that is created (default 64 MiB; a multiple of 4 KiB). Each
    /// journal directory has at least two, which are filled with zeroes when they are made: small
    /// ones make a small store quickly, large ones a log with fewer roll-overs. A record, so a message
    /// with what it brings about, fits into half a segment: with sagas a segment has at least 8 MiB.
    /// An existing store keeps what it was created with.
    #[must_use]
    pub fn segment_len(mut self, bytes: u64) -> Self {
        self.segment_len = bytes;
        self
    }

    /// Keeps a second copy of everything in this directory, meant to be on another disk.
    #[must_use]
    pub fn mirror(mut self, mirror: impl Into<PathBuf>) -> Self {
        self.mirror = Some(mirror.into());
        self
    }

    /// Opens although a copy of the in-sync set is absent and may hold more.
    #[must_use]
    pub fn degraded(mut self, degraded: bool) -> Self {
        self.degraded = degraded;
        self
    }

    /// Changes how the store is scrubbed while it is served.
    #[must_use]
    pub fn scrub(mut self, plan: ScrubPlan) -> Self {
        self.scrub = plan;
        self
    }

    /// Uses a file system that is known not to keep what it acknowledges (for tests).
    #[must_use]
    pub fn allow_unsuitable_file_system(mut self, allow: bool) -> Self {
        self.allow_unsuitable = allow;
        self
    }

    pub(crate) fn root(&self, dir: &Path, create: bool) -> Result<Root, RootError> {
        if let Some(clash) = &self.clash {
            return Err(RootError::Workers(clash.to_string()));
        }
        if let Some(clash) = &self.saga_clash {
            return Err(RootError::Workers(clash.clone()));
        }
        let layout = create.then_some((self.partitions, self.directories));
        Root::find(dir, self.mirror.as_deref(), layout)
    }

    pub(crate) fn options(&self) -> (NodeOptions, Option<PathBuf>) {
        let options = NodeOptions {
            degraded: self.degraded,
            allow_unsuitable: self.allow_unsuitable,
            segment_len: self.segment_len,
            innocent: false,
            hung: false,
            directories: None,
            watchdog: self.watchdog,
        };
        (options, self.mirror.clone())
    }

    pub(crate) fn into_inner(self) -> Arc<AppInner> {
        Arc::new(AppInner {
            registry: Arc::new(self.registry),
            effects: self.effects,
            limits: self.limits,
            program: self.program,
            scrub: self.scrub,
            #[cfg(feature = "saga")]
            sagas: self.sagas,
        })
    }

    /// Opens the store in `dir` (makes one in an empty or absent directory) and serves it with
    /// threads of this process.
    ///
    /// # Errors
    /// [`RootError`]: not a store, in use, damaged beyond what can be repaired, written by another
    /// program.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<Runtime, RootError> {
        self.open_or_make(dir.as_ref(), true)
    }

    /// [`App::open`]; unless `make`, a directory without a store is an error.
    pub(crate) fn open_or_make(self, dir: &Path, make: bool) -> Result<Runtime, RootError> {
        let root = self.root(dir, make)?;
        let (options, _) = self.options();
        #[cfg(feature = "saga")]
        if root.is_new && self.sagas.is_some() && options.segment_len < SAGA_SEGMENT_BYTES {
            return Err(RootError::SmallSegments(options.segment_len));
        }
        let node = Node::open(&root, self.into_inner(), &options)?;
        if root.is_new {
            root.finish_creation()?;
        }
        root.warnings().iter().for_each(|warning| tracing::warn!(%warning, "disks"));
        Ok(Runtime { node, root })
    }
}

/// An open store, served by threads of this process.
pub struct Runtime {
    node: Node,
    root: Root,
}

impl Runtime {
    pub(crate) fn registry(&self) -> &Registry {
        &self.node.shared.app.registry
    }

    /// A client with a session of its own.
    #[must_use]
    pub fn client(&self) -> Arc<Client> {
        self.node.client(None)
    }

    /// A client that goes on with an earlier session: inputs repeated under their old numbers get
    /// their original answers.
    #[must_use]
    pub fn resume_client(&self, session: SessionId, next: InputSeq) -> Arc<Client> {
        self.node.client(Some((session, next)))
    }

    /// The application's sagas; `None` when it was defined without.
    #[cfg(feature = "saga")]
    #[must_use]
    pub fn sagas(&self) -> Option<crate::saga::handle::Sagas> {
        let driver = Arc::clone(self.node.shared.app.sagas.as_ref()?);
        Some(crate::saga::handle::Sagas::new(driver, self.client(), Arc::clone(&self.node.shared)))
    }

    /// What was found at opening, per journal directory.
    #[must_use]
    pub fn reports(&self) -> Vec<&OpenReport> {
        self.node.reports.iter().map(|(_, report)| report).collect()
    }

    /// The map of the store.
    #[must_use]
    pub fn map(&self) -> &Arc<Map> {
        &self.root.map
    }

    /// Takes a checkpoint of everything that ran since the last one and waits for it.
    #[must_use]
    pub fn checkpoint(&self, patience: Duration) -> bool {
        self.node.checkpoint(patience)
    }

    /// Checkpoints written since the store was opened.
    #[must_use]
    pub fn checkpoints_written(&self) -> u64 {
        self.node.shared.checkpoints_written.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits until nothing is on its way any more: every message between actors has arrived and is
    /// durable. True when that was so within `patience`.
    #[must_use]
    pub fn drain(&self, patience: Duration) -> bool {
        self.node.drain(patience)
    }

    /// Visits every actor: kind, key, state in MessagePack (codec, schema, bytes).
    pub fn each_actor(&self, visit: &mut dyn FnMut(&'static str, &str, &[u8])) {
        for home in self.node.homes() {
            home.with_unit(|unit, _, _| {
                unit.partitions().for_each(|partition| partition.each_actor(visit));
            });
        }
    }

    /// Visits every saga in the archive that is not in memory too.
    ///
    /// # Errors
    /// What could not be read.
    #[cfg(feature = "saga")]
    pub fn each_archived_saga(
        &self,
        visit: &mut dyn FnMut(&str, &rallypoint_saga::machine::Machine),
    ) -> Result<(), String> {
        for home in self.node.homes() {
            let mut parts = Vec::new();
            home.with_unit(|unit, _, _| {
                parts.extend(unit.archive_parts().map(|(partition, part)| (partition, part.version)));
            });
            for (partition, version) in parts {
                let rows = home.with_unit(|unit, _, _| unit.archived_rows(partition, version));
                for row in rows.unwrap_or(Ok(Vec::new()))? {
                    let found = home.with_unit(|unit, _, _| unit.archived(partition, &row.id));
                    if let Some(actor) = found.unwrap_or(Ok(None))? {
                        visit(&row.id, actor.machine());
                    }
                }
            }
        }
        Ok(())
    }

    /// Inputs that were set aside.
    #[must_use]
    pub fn set_aside(&self) -> Vec<(PartitionId, SetAside)> {
        let mut all = Vec::new();
        for home in self.node.homes() {
            home.with_unit(|unit, _, _| {
                for partition in unit.partitions() {
                    all.extend(partition.set_aside().iter().map(|entry| (partition.id(), entry.clone())));
                }
            });
        }
        all
    }

    /// Asks for a pass over everything now, at this rate; a [`UnitNotice::Scrubbed`] per journal
    /// directory tells its end, in `rallypoint events` too.
    pub fn request_scrub(&self, bytes_per_second: u64) {
        self.node.request_scrub(bytes_per_second);
    }

    /// Drops an input that was set aside, durably. False when there is none at that place.
    pub fn drop_set_aside(&self, partition: PartitionId, position: Position) -> bool {
        self.node.drop_set_aside(partition, position)
    }

    /// What was noticed since the last call, oldest first.
    #[must_use]
    pub fn notices(&self) -> Vec<UnitNotice> {
        self.node.notices()
    }

    /// Why nothing is acknowledged any more, if so.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.node.shared.failure()
    }

    /// Runs of the calling thread that carried commits (hops saved), over all directories.
    #[must_use]
    pub fn inline_drives(&self) -> u64 {
        let homes = self.node.homes().iter();
        homes.map(|home| home.inline_drives.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    /// Commits that were made on the thread of a caller, or of a saga that ran alone.
    #[must_use]
    pub fn inline_commits(&self) -> u64 {
        let homes = self.node.homes().iter();
        homes.map(|home| home.inline_commits.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    /// Durable commits of all journals since the store was made; each was one synced write per copy.
    #[must_use]
    pub fn commits(&self) -> u64 {
        let mut commits = 0;
        self.each_store(&mut |durable, _| commits += durable);
        commits
    }

    /// Visits every journal: number of its last durable commit, and bytes of journal in use.
    pub(crate) fn each_store(&self, visit: &mut dyn FnMut(u64, u64)) {
        for home in self.node.homes() {
            home.with_unit(|unit, _, _| {
                let store = unit.store();
                visit(store.durable().0, store.status().bytes);
            });
        }
    }

    /// An orderly stop: everything is checkpointed, so that the next start replays nothing. True
    /// when that was possible within `patience`; dropping a runtime instead is a stop that loses
    /// nothing either.
    #[must_use]
    pub fn close(self, patience: Duration) -> bool {
        self.node.close(patience)
    }
}

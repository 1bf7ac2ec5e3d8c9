//! What a world is made of. Decides nothing; [`crate::WorldBuilder`] fills it in.

use crate::message::Message;
use rallypoint_engine::partition::Limits;
use rallypoint_engine::registry::{KindClash, Registry};
use rallypoint_engine::unit::{Application, ProtocolFactory};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_store::disk::Disk;
use rallypoint_store::sim_disk::SimDrive;
use rallypoint_store::store::Options;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Which kinds of faults a world may have. Within them each world draws its own selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// `kill -9`, one worker or all.
    pub kills: bool,
    /// Power loss, also in the middle of a disk operation, of a recovery, of a creation.
    pub power: bool,
    /// SIGSTOP, with and without the supervisor losing its patience.
    pub hangs: bool,
    /// Clocks jump ahead and back.
    pub clocks: bool,
    /// Messages are delayed, dropped, duplicated, overtaken; nodes are cut apart.
    pub network: bool,
    /// One copy of each mirrored pair rots, lies, fails or disappears.
    pub disks: bool,
    /// Once per directory, the newest checkpoint rots: on every copy, or on one when the protocol
    /// keeps no log.
    pub checkpoints: bool,
    /// Effects fail, hang, or end twice.
    pub effects: bool,
}

impl Faults {
    /// Everything.
    pub const ALL: Self = Self {
        kills: true,
        power: true,
        hangs: true,
        clocks: true,
        network: true,
        disks: true,
        checkpoints: true,
        effects: true,
    };
    /// Nothing: a world in which only time passes.
    pub const NONE: Self = Self {
        kills: false,
        power: false,
        hangs: false,
        clocks: false,
        network: false,
        disks: false,
        checkpoints: false,
        effects: false,
    };
}

/// Wraps each disk that a worker opens.
pub type DiskWrapper = Arc<dyn Fn(Box<dyn Disk>) -> Box<dyn Disk> + Send + Sync>;
/// Sees, and may change, each message before it travels.
pub type WireWrapper = Arc<Mutex<dyn FnMut(&mut Message) + Send>>;
/// Sees, and may change, the drives of a directory before it is opened again.
pub type RestoreWrapper = Arc<Mutex<dyn FnMut(usize, &[SimDrive]) + Send>>;

/// Adds one actor kind to a registry.
pub(crate) type AddKind = fn(&mut Registry) -> Result<(), KindClash>;

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// Print each fault and opening as it happens.
    pub(crate) trace: bool,
    pub(crate) workers: usize,
    /// Per worker.
    pub(crate) directories: usize,
    /// Per directory.
    pub(crate) partitions: usize,
    /// Percent of the directories with two copies.
    pub(crate) mirrored: u64,
    pub(crate) clients: usize,
    /// Inputs that a client has under way.
    pub(crate) window: usize,
    pub(crate) kinds: Vec<AddKind>,
    pub(crate) protocol: ProtocolFactory,
    pub(crate) rolls_back: bool,
    pub(crate) limits: Limits,
    pub(crate) options: Options,
    pub(crate) faults: Faults,
    /// Faults in the phase of chaos.
    pub(crate) strikes: u64,
    /// Compare everything that leaves with the disks.
    pub(crate) ledger: bool,
    /// How often the durable state is audited.
    pub(crate) audits: u32,
    /// The supervisor kills a worker that hangs for longer.
    pub(crate) patience: Duration,
    /// How long a disk takes for an operation.
    pub(crate) latency: (Duration, Duration),
    pub(crate) disk: Option<DiskWrapper>,
    pub(crate) wire: Option<WireWrapper>,
    pub(crate) restore: Option<RestoreWrapper>,
}

impl Settings {
    pub(crate) fn application(&self) -> Application {
        let mut registry = Registry::default();
        for add in &self.kinds {
            add(&mut registry).unwrap_or_else(|clash| panic!("{clash}"));
        }
        Application {
            registry: Arc::new(registry),
            protocol: self.protocol.clone(),
            limits: self.limits.clone(),
            program: "simulated".into(),
        }
    }
}

impl Default for Settings {
    /// Small enough that thousands of worlds fit into a minute.
    fn default() -> Self {
        Self {
            seed: 0,
            trace: std::env::var("RALLYPOINT_TRACE").is_ok(),
            workers: 3,
            directories: 1,
            partitions: 1,
            mirrored: 60,
            clients: 2,
            window: 3,
            kinds: Vec::new(),
            protocol: Arc::new(|_| Box::new(Pessimistic::default())),
            rolls_back: false,
            limits: Limits {
                door_credits: 64,
                unacknowledged_bytes: 64 << 10,
                checkpoint_runs: 12,
                checkpoint_bytes: 1 << 20,
                chain_length: 2,
                // The worlds' states are small, and increments are to be met too.
                small_image_bytes: 0,
                retransmit_after: Duration::from_millis(25),
                careful_deliveries: 6,
                ..Limits::default()
            },
            options: Options { segment_len: 16 * 4096, commit_max: 16 << 10, spare_segments: 1 },
            faults: Faults::ALL,
            strikes: 10,
            ledger: false,
            audits: 1,
            patience: Duration::from_millis(60),
            latency: (Duration::from_micros(40), Duration::from_micros(250)),
            disk: None,
            wire: None,
            restore: None,
        }
    }
}

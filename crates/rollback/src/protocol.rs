//! The one interface between a partition's engine and the rollback protocol it follows.
//!
//! Decides: nothing itself. It names every event that a protocol may hear of and everything it may
//! ask for. The engine owns the *substrate* that all protocols need (runs, channels with ssn,
//! deduplication and retransmission, fencing by epoch, the input table, snapshots); the protocol
//! owns the *rules*: what is recorded, when which output may leave, when a checkpoint is taken, what
//! travels with a message, and what happens after a failure.
//!
//! Never: a protocol never sees an actor's state, never does IO, never reads a clock.
//!
//! Invariants the engine keeps for every protocol:
//! - events of one partition come one at a time, and the commands of one event are carried out, in
//!   order, before the next event comes;
//! - nothing leaves the partition above the horizons of [`Command::Release`];
//! - positions grow by one with each run, within one epoch.
//!
//! Source: Elnozahy, Alvisi, Wang and Johnson, "A Survey of Rollback-Recovery Protocols in
//! Message-Passing Systems", ACM Computing Surveys 34(3), 2002, section 2 (system model); the shape
//! (events in, commands out, persist-before-send as data) follows sans-IO consensus libraries.

use rallypoint_base::id::{Epoch, PartitionId, Position, Ssn, Version};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Malformed;

/// The other end of a control message.
///
/// ```
/// use rallypoint_base::id::PartitionId;
/// use rallypoint_rollback::protocol::{Command, Peer};
/// let to_all = [0, 1].map(|id| Command::Control { to: Peer::Partition(PartitionId(id)), bytes: vec![7] });
/// assert_ne!(to_all[0], to_all[1]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Another partition's protocol machine.
    Partition(PartitionId),
    /// The coordinator of the protocol (one per store; see each protocol for what it does).
    Coordinator,
}

/// Channel counters of one partition with one other, at one instant.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Ssn};
/// use rallypoint_rollback::protocol::{Channel, Channels};
/// let channels = Channels::from([(PartitionId(1), Channel { sent: Ssn(3), ..Channel::default() })]);
/// assert_eq!(channels[&PartitionId(1)].received, Ssn(0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Channel {
    /// Last ssn sent to the other partition.
    pub sent: Ssn,
    /// Last ssn delivered from the other partition.
    pub received: Ssn,
}

/// All channel counters of one partition, ordered by the other partition's id; one that never
/// spoke or was never spoken to is absent (both counters 0).
pub type Channels = std::collections::BTreeMap<PartitionId, Channel>;

/// What happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A frame is next in order on its channel and about to be delivered. Answer
    /// [`Command::TakeCheckpoint`] to force a checkpoint *before* the delivery, [`Command::Hold`]
    /// to leave it (and everything behind it on this channel) undelivered until
    /// [`Command::Unhold`].
    Arriving {
        /// The sender.
        from: PartitionId,
        /// Its number on the channel.
        ssn: Ssn,
        /// What the sender's protocol attached.
        piggyback: &'a [u8],
    },
    /// A run ended: one input was consumed, its consequences are known, nothing of them has left.
    /// Answer [`Command::Log`] to have the input recorded.
    Ran {
        /// The run's position.
        position: Position,
        /// The frame that caused it, if a frame did.
        cause: Option<(PartitionId, Ssn)>,
        /// How many frames it sent to other partitions.
        sent: usize,
    },
    /// Every record through `position` is on stable storage.
    Durable {
        /// Highest stable position.
        position: Position,
    },
    /// The engine's policy (estimated replay time, log length) or a person asks for a checkpoint.
    CheckpointDue,
    /// The state was cut. Channel counters are those of the cut.
    CheckpointTaken {
        /// The new version.
        version: Version,
        /// The last run it contains.
        position: Position,
        /// Counters at the cut.
        channels: &'a Channels,
    },
    /// A checkpoint that was taken is on stable storage, re-read and verified.
    CheckpointDurable {
        /// Which version.
        version: Version,
    },
    /// A message of the protocol itself.
    Control {
        /// From whom.
        from: Peer,
        /// Its bytes, as the sender's protocol encoded them.
        bytes: &'a [u8],
    },
    /// A record of the protocol itself ([`Command::Persist`]) is on stable storage.
    Persisted {
        /// The token given with it.
        token: u64,
    },
    /// State was restored from `version` (or is the initial one) and whatever the log holds after
    /// it was replayed through `position`; the partition is about to go live.
    Restarted {
        /// The version restored, 0 for the initial state.
        version: Version,
        /// The last run the state contains.
        position: Position,
        /// Counters now.
        channels: &'a Channels,
    },
    /// A [`Command::RollBack`] is done *and durable*: a crash from here on restores no checkpoint
    /// that it undid. Where it restored a version (other than 0), [`Protocol::load`] was called
    /// with what was saved in it; the machine is the same one that asked, and
    /// [`Event::Restarted`] does not follow. It also comes, unasked, when a person rolled the
    /// partition back. A pause stays a pause.
    RolledBack {
        /// The version restored; `None` where the state was kept.
        version: Option<Version>,
        /// The epoch the partition lives in now.
        epoch: Epoch,
        /// The last run the state contains.
        position: Position,
        /// Counters now.
        channels: &'a Channels,
    },
    /// The host gave up on a peer (its connection closed, or no progress).
    PeerFailed {
        /// Which one.
        peer: PartitionId,
    },
    /// The deadline set with [`Command::SetTimer`] has come, or time simply passed.
    Tick {
        /// The host's time.
        now: Time,
    },
}

/// What a protocol asks its engine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Answer to [`Event::Ran`]: append the input's record (payload, time, verdict, channel
    /// counters, hash of what it caused) to the partition's log.
    Log,
    /// Everything caused by runs at or before these positions may happen. Horizons never move
    /// back within an epoch.
    Release {
        /// Frames to other partitions.
        frames: Position,
        /// Replies, effects, observations: what the outside world sees and nobody can undo.
        outputs: Position,
        /// Receipts: senders may forget frames that were delivered by runs at or before this.
        receipts: Position,
    },
    /// Cut the state now: before the frame of [`Event::Arriving`] is delivered, else at once.
    TakeCheckpoint,
    /// Answer to [`Event::Arriving`]: do not deliver it now.
    Hold,
    /// Deliver again from the channels that were held.
    Unhold,
    /// Deliver nothing at all (frames, inputs, timers wait) until [`Command::Resume`].
    Pause,
    /// End of [`Command::Pause`].
    Resume,
    /// Send a message of the protocol.
    Control {
        /// To whom.
        to: Peer,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Append a record of the protocol to the partition's log; [`Event::Persisted`] follows.
    Persist {
        /// Comes back with the event.
        token: u64,
        /// The record.
        bytes: Vec<u8>,
    },
    /// Restore `version` (0 = the initial state) and continue under `epoch`; where the version is
    /// `None` the current state stays and only the epoch changes. Frames of older epochs are
    /// dropped from then on, frames of newer ones wait. [`Event::RolledBack`] follows.
    RollBack {
        /// The version to go back to.
        version: Option<Version>,
        /// The new epoch, greater than every one before.
        epoch: Epoch,
    },
    /// Checkpoints below `version` will not be needed again by this protocol.
    Forget {
        /// The oldest version that is still needed.
        version: Version,
    },
    /// Wake this protocol with [`Event::Tick`] at `at`.
    SetTimer {
        /// When.
        at: Time,
    },
}

/// A rollback protocol for one partition: a pure state machine.
///
/// The order of calls: [`Protocol::load`] (after a restore), [`Protocol::handle`] with
/// [`Event::Restarted`] once, then any events; [`Protocol::piggyback`] once per frame sent, at the
/// end of the run that sent it and before its [`Event::Ran`]; [`Protocol::save`] at each cut, before
/// its [`Event::CheckpointTaken`].
///
/// ```
/// use rallypoint_rollback::protocol::{Command, Event, Protocol};
///
/// /// Remembers nothing and lets everything out: safe only where nothing ever fails.
/// struct Hope;
///
/// impl Protocol for Hope {
///     fn name(&self) -> &'static str {
///         "hope"
///     }
///     fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
///         if let Event::Ran { position, .. } = event {
///             out.push(Command::Release { frames: position, outputs: position, receipts: position });
///         }
///     }
/// }
/// assert_eq!(Hope.name(), "hope");
/// ```
pub trait Protocol: Send {
    /// The protocol's name as the glossary has it.
    fn name(&self) -> &'static str;

    /// Tells the machine what happened; what it wants is pushed to `out`, in order.
    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>);

    /// Appends what is to travel with the next frame to `to`. Most protocols attach nothing.
    fn piggyback(&mut self, to: PartitionId, out: &mut Vec<u8>) {
        let _ = (to, out);
    }

    /// Appends the machine's own state, which becomes part of the checkpoint being taken.
    fn save(&self, out: &mut Vec<u8>) {
        let _ = out;
    }

    /// Takes back what [`Protocol::save`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not this protocol's.
    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let _ = bytes;
        Ok(())
    }
}

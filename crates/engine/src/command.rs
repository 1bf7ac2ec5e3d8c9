//! Everything a partition can ask of its host, as data.
//!
//! Decides nothing. The bytes of commands lie in one buffer beside them ([`Outbox::bytes`]), so that
//! a turn allocates nothing per message. Order is meaning: a host carries commands out in order.

use crate::effect::EffectKey;
use rallypoint_base::id::{Epoch, InputSeq, PartitionId, Position, SessionId, Ssn, Version};
use rallypoint_rollback::protocol::Peer;
use std::ops::Range;
use std::time::Duration;

/// Where a command's bytes lie in [`Outbox::bytes`].
pub type Span = Range<usize>;

/// What a client is told about its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It ran; the bytes are the encoded reply.
    Applied = 0,
    /// The handler refused it; the bytes are the encoded refusal. Nothing changed.
    Refused = 1,
    /// It could not be run (undecodable, over a limit); the bytes are text. Nothing changed.
    Failed = 2,
    /// It was set aside (it panicked or ended its worker); the bytes are text. Nothing changed.
    SetAside = 3,
}

impl Outcome {
    /// Reads the number that stands in frames and tables.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Applied, Self::Refused, Self::Failed, Self::SetAside].get(usize::from(value)).copied()
    }
}

/// Why the door did not let an input in. Nothing was logged, nothing changed; all but `TooOld` and
/// `NoSuchKind` may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[repr(u8)]
pub enum Turned {
    /// Too many inputs wait for durability, or too many frames for a peer that is down.
    #[error("the partition is overloaded: try again later")]
    Overloaded = 0,
    /// The client has said that it has the answer, or the session expired.
    #[error("this input is older than its session's window: its answer was acknowledged before")]
    TooOld = 1,
    /// The application has no such actor kind.
    #[error("no actor kind of this name is registered in the serving program")]
    NoSuchKind = 2,
    /// The bytes are no parcel, or over a limit.
    #[error("the input is malformed or over a limit")]
    Malformed = 3,
    /// The partition is stopped (divergence, or the store failed).
    #[error("the partition is stopped: see `rallypoint events`")]
    Stopped = 4,
}

impl Turned {
    /// Reads the number that stands in frames.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Overloaded, Self::TooOld, Self::NoSuchKind, Self::Malformed, Self::Stopped]
            .get(usize::from(value))
            .copied()
    }
}

/// Something a person may want to know. Each kind is one kind of the durable event log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// An input was set aside.
    SetAside {
        /// The input's identity.
        identity: u64,
        /// Why.
        evidence: String,
    },
    /// A result came for an effect that had one.
    LateEffect {
        /// Which effect.
        key: EffectKey,
    },
    /// An actor refused what it had asked for itself (a timer, an effect's end, an answer), or an
    /// inner message was refused and nobody asked.
    RefusedInside {
        /// Kind and key of the actor, and why.
        detail: String,
    },
    /// Something goes on failing and needs a person: a saga that is stuck, a step that may not be given up.
    Alarm {
        /// Which, and why.
        detail: String,
    },
    /// Replay caused something else than the original run.
    Diverged {
        /// Where, which actor, both hashes.
        detail: String,
    },
    /// A peer claims to hold frames that were never sent.
    ImpossibleReceipt {
        /// The peer.
        from: PartitionId,
    },
    /// Idle sessions were forgotten.
    SessionsExpired {
        /// How many.
        count: usize,
    },
    /// A checkpoint holds actors beyond [`rallypoint_base::limits::ACTOR_BYTES`].
    ActorTooLarge {
        /// Kind and key of the largest.
        actor: String,
        /// Its bytes, encoded.
        bytes: usize,
        /// How many are too large.
        count: u64,
    },
    /// A checkpoint was given up; the next one is full.
    CheckpointFailed {
        /// Why.
        detail: String,
    },
}

/// What a receiver of frames tells their sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The receiver's epoch.
    pub epoch: Epoch,
    /// The highest number that its log holds.
    pub through: Ssn,
    /// Above 0, the receiver keeps more frames for others than it should, or has heard so from those it
    /// sends to: one less with each partition on the way, so that a circle forgets it. Whoever hears
    /// it closes its door for a while; frames are taken all the same.
    pub pressure: u8,
}

/// What a partition asks of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Append a record to this partition's log. The host reports durability with
    /// `Partition::handle_durable`.
    Append {
        /// One of [`crate::record::kind`].
        kind: u8,
        /// Position in the log, one above the last.
        position: Position,
        /// Epoch of the partition's history.
        epoch: Epoch,
        /// The record.
        payload: Span,
    },
    /// Send frames to another partition. They are durable here.
    Transmit {
        /// The receiver.
        to: PartitionId,
        /// The sender's epoch.
        epoch: Epoch,
        /// Number of the first frame; the others follow without gaps.
        first: Ssn,
        /// How many.
        count: u32,
        /// Their bytes, one after the other.
        frames: Span,
    },
    /// Tell a sender what the log holds of its frames.
    Receipt {
        /// The sender.
        to: PartitionId,
        /// What to tell.
        receipt: Receipt,
    },
    /// Answer a client. The cause is durable.
    Reply {
        /// Session of the input.
        session: SessionId,
        /// Its number.
        seq: InputSeq,
        /// What became of it.
        outcome: Outcome,
        /// The reply, refusal or text.
        bytes: Span,
    },
    /// Turn an input away at the door.
    Turn {
        /// Session of the input.
        session: SessionId,
        /// Its number.
        seq: InputSeq,
        /// Why.
        why: Turned,
    },
    /// Perform an effect. The cause is durable.
    Perform {
        /// Idempotency key.
        key: EffectKey,
        /// Name it is registered under.
        name: Span,
        /// The request: codec, schema, bytes.
        payload: Span,
        /// Give up after this long.
        timeout: Duration,
    },
    /// The state was cut: write a checkpoint, pulling its content with `Partition::write_snapshot`.
    BeginCheckpoint {
        /// The new version.
        version: Version,
        /// Log position of the cut.
        position: Position,
        /// Epoch of the partition's history.
        epoch: Epoch,
        /// A full image, or what changed since `version - 1` was cut.
        full: bool,
        /// Everything but the actors.
        header: Span,
    },
    /// Restore the version, replay nothing, and tell the protocol.
    Restore {
        /// 0 = the initial state; `None` = keep the state, change only the epoch.
        version: Option<Version>,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Checkpoints below `version` are not needed by the protocol any more.
    Forget {
        /// The oldest version still needed.
        version: Version,
    },
    /// Deliver a control message of the protocol.
    Control {
        /// To whom.
        to: Peer,
        /// Its bytes.
        bytes: Span,
    },
    /// Tell people.
    Notice(Notice),
}

/// The commands of one turn and their bytes.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    /// What to do, in order.
    pub commands: Vec<Command>,
    /// The bytes the spans point into.
    pub bytes: Vec<u8>,
}

impl Outbox {
    /// Forgets everything and keeps the allocations.
    pub fn clear(&mut self) {
        self.commands.clear();
        self.bytes.clear();
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}

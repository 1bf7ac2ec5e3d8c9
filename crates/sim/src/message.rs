//! What travels between clients, workers and the coordinator.
//!
//! Decides: nothing. A message knows its two ends, so that the network can cut them apart.

use rallypoint_base::id::{Epoch, InputSeq, PartitionId, SessionId, Ssn};
use rallypoint_engine::command::{Outcome, Receipt, Turned};
use rallypoint_rollback::protocol::Peer;

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// A worker process, by number.
    Worker(usize),
    /// A client, by number.
    Client(usize),
    /// The coordinator of a protocol that has one.
    Coordinator,
}

/// A message on its way. A test's wrapper around the network may change any of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A client's input.
    Input {
        /// Where the key lives.
        partition: PartitionId,
        /// The client's session.
        session: SessionId,
        /// Its number.
        seq: InputSeq,
        /// The client has the answers to everything below.
        acknowledged_below: InputSeq,
        /// It only reads.
        read_only: bool,
        /// The message to the actor.
        parcel: Vec<u8>,
        /// 0 for the first time, then one more with each repetition.
        attempt: u32,
    },
    /// An answer to a client.
    Reply {
        /// Session of the input.
        session: SessionId,
        /// Its number.
        seq: InputSeq,
        /// What became of it.
        outcome: Outcome,
        /// The encoded answer.
        bytes: Vec<u8>,
    },
    /// An input was turned away.
    Turn {
        /// Session of the input.
        session: SessionId,
        /// Its number.
        seq: InputSeq,
        /// Why.
        why: Turned,
    },
    /// Frames between partitions.
    Frames {
        /// The sender.
        from: PartitionId,
        /// The receiver.
        to: PartitionId,
        /// The sender's epoch.
        epoch: Epoch,
        /// Number of the first.
        first: Ssn,
        /// How many.
        count: u32,
        /// Their bytes.
        bytes: Vec<u8>,
    },
    /// A receipt between partitions.
    Receipt {
        /// Who has received.
        from: PartitionId,
        /// Who had sent.
        to: PartitionId,
        /// What is held.
        receipt: Receipt,
    },
    /// A message of the protocol.
    Control {
        /// From whom.
        from: Peer,
        /// To whom.
        to: Peer,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

//! What leaves a unit, collected.
//!
//! Decides: nothing. Everything that a unit lets out in one call is looked at by the invariants
//! before any of it travels, and is forgotten when the process died in that call.

use crate::message::Message;
use rallypoint_base::id::{Epoch, InputSeq, PartitionId, SessionId, Ssn};
use rallypoint_engine::command::{Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::unit::{Outside, UnitNotice};
use rallypoint_rollback::protocol::Peer;
use std::time::Duration;

/// Something that has left a unit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Leaving {
    /// A message to a client, another partition or the coordinator.
    Message(Message),
    /// An effect to perform.
    Perform {
        /// Who asks.
        from: PartitionId,
        /// Its key.
        key: EffectKey,
        /// Its name.
        name: String,
        /// The request.
        payload: Vec<u8>,
        /// Give up after this long.
        timeout: Duration,
    },
}

#[derive(Default)]
pub(crate) struct Exit {
    pub(crate) left: Vec<Leaving>,
    pub(crate) notices: Vec<UnitNotice>,
}

impl Outside for Exit {
    fn reply(&mut self, session: SessionId, seq: InputSeq, outcome: Outcome, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.left.push(Leaving::Message(Message::Reply { session, seq, outcome, bytes }));
    }

    fn turn(&mut self, session: SessionId, seq: InputSeq, why: Turned) {
        self.left.push(Leaving::Message(Message::Turn { session, seq, why }));
    }

    fn transmit(
        &mut self,
        from: PartitionId,
        to: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &[u8],
    ) {
        let bytes = frames.to_vec();
        self.left.push(Leaving::Message(Message::Frames { from, to, epoch, first, count, bytes }));
    }

    fn receipt(&mut self, from: PartitionId, to: PartitionId, receipt: Receipt) {
        self.left.push(Leaving::Message(Message::Receipt { from, to, receipt }));
    }

    fn perform(&mut self, from: PartitionId, key: EffectKey, name: &str, payload: &[u8], timeout: Duration) {
        let (name, payload) = (name.to_owned(), payload.to_vec());
        self.left.push(Leaving::Perform { from, key, name, payload, timeout });
    }

    fn control(&mut self, from: PartitionId, to: Peer, bytes: &[u8]) {
        let (from, bytes) = (Peer::Partition(from), bytes.to_vec());
        self.left.push(Leaving::Message(Message::Control { from, to, bytes }));
    }

    fn notice(&mut self, notice: UnitNotice) {
        self.notices.push(notice);
    }
}

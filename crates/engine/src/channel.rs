//! The two ends of a channel between partitions: FIFO, numbered, deduplicated, retransmitted.
//!
//! Decides which frame is next, which is a repetition, and what must be sent again. A frame is kept
//! by its sender until the receiver's *log* holds it (a receipt), and counts as delivered once, by
//! its number.
//!
//! Invariants: `acknowledged <= transmitted <= sent`; the kept frames are exactly those with numbers
//! in (acknowledged, sent]; a receiver delivers number n+1 only right after n.
//!
//! Source: the substrate of docs/protocols.md 1; go-back-N retransmission.

use rallypoint_base::id::{Position, Ssn};
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::VecDeque;

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The run that sent it.
    pub(crate) position: Position,
    /// As it travels: parcel (len, bytes), piggyback (len, bytes).
    pub(crate) bytes: Box<[u8]>,
}

/// The sending end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) sent: Ssn,
    pub(crate) acknowledged: Ssn,
    pub(crate) transmitted: Ssn,
    pub(crate) kept: VecDeque<Frame>,
    pub(crate) kept_bytes: usize,
    pub(crate) last_progress: Time,
    /// What the receiver last said of its own load, and until when that counts.
    pub(crate) pressure: (u8, Time),
}

impl Outgoing {
    pub(crate) fn push(&mut self, frame: Frame) -> Ssn {
        self.sent = self.sent.next();
        self.kept_bytes += frame.bytes.len();
        self.kept.push_back(frame);
        self.sent
    }

    /// The receiver's log holds everything through `through`. False when it claims more than was
    /// ever sent, which only a foreign or rolled-back peer does.
    pub(crate) fn acknowledge(&mut self, now: Time, through: Ssn) -> bool {
        if through > self.sent {
            return false;
        }
        while self.acknowledged < through {
            self.acknowledged = self.acknowledged.next();
            if let Some(frame) = self.kept.pop_front() {
                self.kept_bytes -= frame.bytes.len();
            }
            self.last_progress = now;
        }
        self.transmitted = self.transmitted.max(self.acknowledged);
        true
    }

    /// The next frame to transmit, if its cause is at or before `horizon`.
    pub(crate) fn next(&self, horizon: Position) -> Option<&Frame> {
        let at = (self.transmitted.0 - self.acknowledged.0) as usize;
        self.kept.get(at).filter(|frame| frame.position <= horizon)
    }

    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        put_varint(out, self.sent.0);
        put_varint(out, self.acknowledged.0);
        for frame in &self.kept {
            put_varint(out, frame.position.0);
            put_bytes(out, &frame.bytes);
        }
    }

    pub(crate) fn load(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let sent = Ssn(reader.varint("sent")?);
        let acknowledged = Ssn(reader.varint("acknowledged")?);
        let count = sent.0.checked_sub(acknowledged.0);
        let count = count.ok_or(Malformed { field: "acknowledged beyond sent", offset: reader.offset() })?;
        let mut outgoing = Self { sent, acknowledged, transmitted: acknowledged, ..Self::default() };
        for _ in 0..count {
            let position = Position(reader.varint("frame position")?);
            let bytes: Box<[u8]> = reader.bytes("frame")?.into();
            outgoing.kept_bytes += bytes.len();
            outgoing.kept.push_back(Frame { position, bytes });
        }
        Ok(outgoing)
    }
}

/// The receiving end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Incoming {
    /// Last number delivered: what a snapshot says.
    pub(crate) received: Ssn,
    /// Last number taken in, delivered or waiting.
    pub(crate) arrived: Ssn,
    /// Last number the sender was told that the log holds.
    pub(crate) receipted: Ssn,
    /// Highest number that the log holds.
    pub(crate) stable: Ssn,
    /// A receipt is due although nothing new is stable (the sender repeats itself).
    pub(crate) repeat_receipt: bool,
}

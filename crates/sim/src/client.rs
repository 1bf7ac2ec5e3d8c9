//! A client: it never crashes, repeats what is not answered, and keeps its own ledger.
//!
//! Decides: when an input is repeated, and up to where the partitions may forget answers. Never:
//! believes that something unanswered did not happen.

use crate::invariants::Request;
use crate::invariants::durability_ledger::READS;
use rallypoint_base::id::{InputSeq, PartitionId, SessionId};
use rallypoint_base::time::Time;
use rallypoint_engine::command::Outcome;
use std::collections::{BTreeMap, VecDeque};

/// An input that has no answer yet.
pub(crate) struct Outstanding {
    pub(crate) request: Request,
    pub(crate) partition: PartitionId,
    pub(crate) attempt: u32,
}

/// An answer in the ledger.
pub(crate) struct Answer {
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Client {
    session: SessionId,
    last: InputSeq,
    window: usize,
    /// What waits for a place in the window, with the number it was given.
    waiting: VecDeque<(InputSeq, PartitionId, bool, Vec<u8>)>,
    pub(crate) outstanding: BTreeMap<InputSeq, Outstanding>,
    pub(crate) ledger: BTreeMap<InputSeq, Answer>,
}

impl Client {
    /// The session's id carries the second it began in.
    pub(crate) fn new(number: usize, now: Time, window: usize) -> Self {
        let session = SessionId((now.0 / 1_000_000_000) << 32 | number as u64);
        let (waiting, outstanding, ledger) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Self { session, last: InputSeq(0), window, waiting, outstanding, ledger }
    }

    /// Which client a session belongs to.
    pub(crate) fn of(session: SessionId) -> usize {
        ((session.0 & 0xFFFF_FFFF) & !READS) as usize
    }

    pub(crate) fn submit(&mut self, partition: PartitionId, read_only: bool, parcel: Vec<u8>) -> InputSeq {
        self.last = self.last.next();
        self.waiting.push_back((self.last, partition, read_only, parcel));
        self.last
    }

    /// The next input to send for the first time, if the window has a place.
    pub(crate) fn next(&mut self, now: Time) -> Option<InputSeq> {
        if self.outstanding.len() >= self.window {
            return None;
        }
        let (seq, partition, read_only, parcel) = self.waiting.pop_front()?;
        // Reads have a session of their own: they leave no record and are never too old.
        let session = if read_only { SessionId(self.session.0 | READS) } else { self.session };
        let request = Request { session, seq, read_only, sent: now, parcel };
        self.outstanding.insert(seq, Outstanding { request, partition, attempt: 0 });
        Some(seq)
    }

    pub(crate) fn acknowledged_below(&self) -> InputSeq {
        let writes = self.outstanding.values().filter(|waiting| !waiting.request.read_only);
        let oldest = writes.map(|waiting| waiting.request.seq).min();
        oldest.unwrap_or_else(|| self.waiting.front().map_or(self.last.next(), |next| next.0))
    }

    pub(crate) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.outstanding.is_empty()
    }

    pub(crate) fn left(&self) -> usize {
        self.waiting.len() + self.outstanding.len()
    }
}

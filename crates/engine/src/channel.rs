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
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// The run that sent it.
    pub(crate) position: Position,
    /// As it travels: parcel (len, bytes), piggyback (len, bytes).
    pub(crate) bytes: Arc<[u8]>,
}

/// Frames in a chunk: the first change after a cut copies one chunk.
const CHUNK: usize = 64;

/// Frames in order, in chunks that a snapshot shares until they change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    chunks: VecDeque<Arc<Vec<Frame>>>,
    /// Frames of the first chunk that are gone.
    gone: usize,
    len: usize,
}

impl Frames {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, frame: Frame) {
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK => Arc::make_mut(last).push(frame),
            _ => self.chunks.push_back(Arc::new(vec![frame])),
        }
        self.len += 1;
    }

    /// Takes the first one away; gives its bytes' number.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        let first = self.chunks.front_mut()?;
        let bytes = first.get(self.gone)?.bytes.len();
        // Not only when the whole chunk goes, unless a snapshot still wants it.
        if let Some(own) = Arc::get_mut(first) {
            own[self.gone].bytes = Arc::default();
        }
        self.gone += 1;
        self.len -= 1;
        if self.gone == first.len() {
            self.chunks.pop_front();
            self.gone = 0;
        }
        Some(bytes)
    }

    /// The frame at this place behind the first.
    pub(crate) fn get(&self, at: usize) -> Option<&Frame> {
        let at = at + self.gone;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    /// Takes frames away and writes position and bytes of each until `out` is `limit` long.
    pub(crate) fn save(&mut self, out: &mut Vec<u8>, limit: usize) {
        while out.len() < limit
            && let Some(frame) = self.get(0)
        {
            put_varint(out, frame.position.0);
            put_bytes(out, &frame.bytes);
            self.pop();
        }
    }
}

/// The sending end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) sent: Ssn,
    pub(crate) acknowledged: Ssn,
    pub(crate) transmitted: Ssn,
    pub(crate) kept: Frames,
    pub(crate) kept_bytes: usize,
    pub(crate) last_progress: Time,
    /// What the receiver last said of its own load, and until when that counts.
    pub(crate) pressure: (u8, Time),
}

impl Outgoing {
    pub(crate) fn push(&mut self, frame: Frame) -> Ssn {
        self.sent = self.sent.next();
        self.kept_bytes += frame.bytes.len();
        self.kept.push(frame);
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
            self.kept_bytes -= self.kept.pop().unwrap_or(0);
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

    /// The counters; the frames follow by themselves.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        put_varint(out, self.sent.0);
        put_varint(out, self.acknowledged.0);
        put_varint(out, self.kept_bytes as u64);
    }

    pub(crate) fn load(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let sent = Ssn(reader.varint("sent")?);
        let acknowledged = Ssn(reader.varint("acknowledged")?);
        if acknowledged > sent {
            return Err(Malformed { field: "acknowledged beyond sent", offset: reader.offset() });
        }
        let kept_bytes = reader.varint("bytes of frames")? as usize;
        Ok(Self { sent, acknowledged, transmitted: acknowledged, kept_bytes, ..Self::default() })
    }

    /// Reads what [`Frames::save`] wrote, behind what was read before.
    pub(crate) fn load_frames(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let position = Position(reader.varint("frame position")?);
            let bytes: Arc<[u8]> = reader.bytes("frame")?.into();
            self.kept.push(Frame { position, bytes });
        }
        Ok(())
    }

    /// True when the frames are all there that the header spoke of.
    pub(crate) fn is_whole(&self) -> bool {
        let bytes: usize =
            (0..self.kept.len()).filter_map(|at| self.kept.get(at)).map(|f| f.bytes.len()).sum();
        self.kept.len() as u64 == self.sent.0 - self.acknowledged.0 && bytes == self.kept_bytes
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

//! Input sessions: a retry gets the original answer, never a second run.
//!
//! Decides whether an input of (session, sequence) is new, known or too old. A reply is kept until
//! the client says that it has it (`acknowledged below`) or the session has been idle for
//! [`SESSION_TTL`]. Never runs anything and never drops a reply early.
//!
//! Invariant: for each (session, seq) at most one verdict exists; `seq < acknowledged_below` is
//! "too old" for ever, which is right, since the client had the answer.
//!
//! A session's id carries the second it was opened in (upper 32 bits), so that a retry which comes
//! after its session was forgotten is recognised without remembering anything.

use crate::shards::{Shards, Spread};
use crate::short::ShortBytes;
use rallypoint_base::id::{InputSeq, Position, SessionId};
use rallypoint_base::limits::SESSION_TTL;
use rallypoint_base::random::mix;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::VecDeque;

/// A reply that a client may ask for again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) seq: InputSeq,
    /// Run that produced it: it may leave once that is released.
    pub(crate) position: Position,
    /// [`crate::command::Outcome`] as a number.
    pub(crate) outcome: u8,
    pub(crate) bytes: ShortBytes,
}

#[derive(Clone, Debug)]
pub(crate) struct Session {
    acknowledged_below: InputSeq,
    seen: Time,
    /// By seq, ascending.
    kept: VecDeque<Kept>,
}

/// What the table knows of an input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known<'a> {
    New,
    Answered(&'a Kept),
    /// The client has said that it has the answer, or the session is forgotten.
    TooOld,
}

impl Spread for SessionId {
    fn spread(&self) -> u64 {
        mix(self.0)
    }
}

/// The sessions of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sessions {
    sessions: Shards<SessionId, Session>,
    /// Sessions were forgotten at this time: one that may have been among them is not new.
    forgotten_at: Time,
}

impl Sessions {
    pub(crate) fn look_up(&self, session: SessionId, seq: InputSeq) -> Known<'_> {
        match self.sessions.get(&session) {
            Some(known) if seq < known.acknowledged_below => Known::TooOld,
            Some(known) => match known.find(seq) {
                Ok(at) => Known::Answered(&known.kept[at]),
                Err(_) => Known::New,
            },
            None if Time((session.0 >> 32) * 1_000_000_000) + SESSION_TTL < self.forgotten_at => {
                Known::TooOld
            }
            None => Known::New,
        }
    }

    pub(crate) fn kept(&self, session: SessionId, seq: InputSeq) -> Option<&Kept> {
        let session = self.sessions.get(&session)?;
        session.find(seq).ok().map(|at| &session.kept[at])
    }

    pub(crate) fn keep(&mut self, now: Time, session: SessionId, below: InputSeq, kept: Kept) {
        let session = self.sessions.get_or_insert_with(session, || Session {
            acknowledged_below: InputSeq(0),
            seen: now,
            kept: VecDeque::new(),
        });
        session.seen = now;
        session.acknowledge(below);
        // Inputs of a session usually come in order; a reordered one finds its place.
        if session.kept.back().is_none_or(|last| last.seq < kept.seq) {
            session.kept.push_back(kept);
        } else if let Err(at) = session.find(kept.seq) {
            session.kept.insert(at, kept);
        }
    }

    pub(crate) fn acknowledge(&mut self, session: SessionId, below: InputSeq) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.acknowledge(below);
        }
    }

    /// Forgets sessions that were idle for too long; gives their number.
    pub(crate) fn expire(&mut self, now: Time) -> usize {
        let count = self.sessions.retain(|_, session| session.seen + SESSION_TTL >= now);
        if count > 0 {
            self.forgotten_at = self.forgotten_at.max(now);
        }
        count
    }

    pub(crate) fn restored(forgotten_at: Time) -> Self {
        Self { forgotten_at, ..Self::default() }
    }

    pub(crate) fn forgotten_at(&self) -> Time {
        self.forgotten_at
    }

    /// The table as it is now, for a snapshot.
    pub(crate) fn share(&self) -> Shards<SessionId, Session> {
        self.sessions.clone()
    }

    /// Writes a session from the reply at `from` on until `out` is `limit` long; gives the reply to go
    /// on from, if some are left. What follows of a session begins like the session.
    pub(crate) fn save(
        id: SessionId,
        session: &Session,
        from: usize,
        out: &mut Vec<u8>,
        limit: usize,
    ) -> Option<usize> {
        let mut end = from;
        let mut bytes = 0;
        while end < session.kept.len() && (end == from || out.len() + bytes < limit) {
            bytes += session.kept[end].bytes.len();
            end += 1;
        }
        out.extend_from_slice(&id.0.to_le_bytes());
        put_varint(out, session.acknowledged_below.0);
        put_varint(out, session.seen.0);
        put_varint(out, (end - from) as u64);
        for kept in session.kept.range(from..end) {
            put_varint(out, kept.seq.0);
            put_varint(out, kept.position.0);
            out.push(kept.outcome);
            put_bytes(out, &kept.bytes);
        }
        (end < session.kept.len()).then_some(end)
    }

    pub(crate) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let id = SessionId(reader.u64("session")?);
            let acknowledged_below = InputSeq(reader.varint("acknowledged below")?);
            let seen = Time(reader.varint("session seen")?);
            let make = || Session { acknowledged_below, seen, kept: VecDeque::new() };
            let session = self.sessions.get_or_insert_with(id, make);
            for _ in 0..reader.varint("kept replies")? {
                session.kept.push_back(Kept {
                    seq: InputSeq(reader.varint("reply seq")?),
                    position: Position(reader.varint("reply position")?),
                    outcome: reader.u8("reply outcome")?,
                    bytes: reader.bytes("reply")?.into(),
                });
            }
        }
        Ok(())
    }
}

impl Session {
    fn find(&self, seq: InputSeq) -> Result<usize, usize> {
        // Inputs of a session usually come in order and without gaps.
        let (Some(first), Some(last)) = (self.kept.front(), self.kept.back()) else { return Err(0) };
        if seq > last.seq {
            return Err(self.kept.len());
        }
        let at = seq.0.saturating_sub(first.seq.0) as usize;
        if self.kept.get(at).is_some_and(|kept| kept.seq == seq) {
            return Ok(at);
        }
        self.kept.binary_search_by_key(&seq, |kept| kept.seq)
    }

    fn acknowledge(&mut self, below: InputSeq) {
        if below > self.acknowledged_below {
            self.acknowledged_below = below;
            while self.kept.front().is_some_and(|kept| kept.seq < below) {
                self.kept.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(seq: u64) -> Kept {
        Kept {
            seq: InputSeq(seq),
            position: Position(seq),
            outcome: 0,
            bytes: ShortBytes::from(&[seq as u8; 30][..seq as usize % 30]),
        }
    }

    #[test]
    fn a_retry_is_known_until_acknowledged_and_too_old_for_ever_after() {
        let (now, id) = (Time(5_000_000_000), SessionId(5 << 32));
        let mut sessions = Sessions::default();
        for seq in [2, 5, 3] {
            assert_eq!(sessions.look_up(id, InputSeq(seq)), Known::New);
            sessions.keep(now, id, InputSeq(1), kept(seq));
        }
        assert_eq!(sessions.look_up(id, InputSeq(3)), Known::Answered(&kept(3)));
        sessions.acknowledge(id, InputSeq(4));
        assert_eq!(sessions.look_up(id, InputSeq(3)), Known::TooOld);
        assert_eq!(sessions.look_up(id, InputSeq(5)), Known::Answered(&kept(5)));
        let late = now + SESSION_TTL + SESSION_TTL;
        assert_eq!(sessions.expire(late), 1);
        assert_eq!(sessions.look_up(id, InputSeq(5)), Known::TooOld, "the id carries its age");
        let young = SessionId((late.0 / 1_000_000_000) << 32);
        assert_eq!(sessions.look_up(young, InputSeq(1)), Known::New);
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let mut sessions = Sessions::default();
        sessions.keep(Time(9), SessionId(7), InputSeq(1), kept(1));
        let mut loaded = Sessions::restored(sessions.forgotten_at());
        for seq in 2..=100 {
            sessions.keep(Time(9), SessionId(7), InputSeq(1), kept(seq));
        }
        let shared = sessions.share();
        let (mut pieces, mut from) = (0, Some(0));
        while let Some(at) = from {
            let mut bytes = Vec::new();
            let session = shared.get(&SessionId(7)).unwrap();
            from = Sessions::save(SessionId(7), session, at, &mut bytes, 100);
            assert!(bytes.len() < 300, "{}", bytes.len());
            loaded.load(&mut Reader::new(&bytes)).unwrap();
            pieces += 1;
        }
        assert!(pieces > 10);
        for seq in 1..=100 {
            assert_eq!(loaded.kept(SessionId(7), InputSeq(seq)), Some(&kept(seq)));
        }
        assert_eq!(loaded.kept(SessionId(7), InputSeq(1)), Some(&kept(1)));
    }
}

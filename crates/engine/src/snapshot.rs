//! What a checkpoint holds beside the actors, and how its content is cut into entries.
//!
//! Decides the bytes of a checkpoint's header and the framing of its entries. A snapshot at position
//! r holds actors, channel counters, every unacknowledged frame, effects with their keys, timers,
//! the input table, marks and what was set aside. Replies that were gated at the cut are in the
//! input table; effects that were gated are outstanding; frames that were gated are unacknowledged:
//! so every gated output arrives after a restore, since the manifest is written only once the log is
//! durable through r.
//!
//! Entry of an actor: `kind u32 | key (len, bytes) | state length u32 | codec u8, schema u16, bytes`; in
//! an increment a state without any bytes says that the actor is no more.
//! Entries follow each other without padding and may cross the borders of chunks. Behind the actors
//! come the engine's own tables, as entries of kind 0 in pieces: frames, sessions, timers, effects.
//! Each link of a chain holds them whole, and those of the newest count.

use crate::channel::{Frames, Outgoing};
use crate::codec::Encoded;
use crate::effect::{EffectId, Effects, Outstanding};
use crate::session::{Session, Sessions};
use crate::shards::{SHARDS, Shards};
use crate::timer::{TimerId, Timers};
use rallypoint_base::id::{Epoch, PartitionId, Position, SessionId, Ssn};
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// First byte of a header; another one is of a newer release.
pub(crate) const HEADER_FORMAT: u8 = 2;

/// Kind of the entries that are no actor's.
pub(crate) const ENGINE: u32 = 0;

/// The engine's tables as they were at a cut, until they are written.
#[derive(Debug)]
pub(crate) struct Frozen {
    frames: VecDeque<(PartitionId, Frames)>,
    sessions: Shards<SessionId, Session>,
    timers: Shards<TimerId, (Time, u64)>,
    effects: Shards<EffectId, Outstanding>,
    /// The next table and its next shard.
    at: (usize, usize),
    /// In that shard, the last row written; of a session, the reply to go on from.
    session: Option<(SessionId, Option<usize>)>,
    timer: Option<TimerId>,
    effect: Option<EffectId>,
}

/// Bytes of an entry, but for its last row.
const PIECE: usize = 64 << 10;

impl Frozen {
    pub(crate) fn new<'a>(
        frames: impl Iterator<Item = (PartitionId, &'a Frames)>,
        sessions: &Sessions,
        timers: &Timers,
        effects: &Effects,
    ) -> Self {
        let frames = frames.filter(|(_, frames)| !frames.is_empty());
        Self {
            frames: frames.map(|(to, frames)| (to, frames.clone())).collect(),
            sessions: sessions.share(),
            timers: timers.share(),
            effects: effects.share(),
            at: (0, 0),
            session: None,
            timer: None,
            effect: None,
        }
    }

    /// Writes entries until `out` is `limit` bytes long; false when none is left.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, limit: usize) -> bool {
        while out.len() < limit {
            if let Some((to, frames)) = self.frames.front_mut() {
                let to = *to;
                put_entry(out, "frames", |out, end| {
                    put_varint(out, u64::from(to.0));
                    frames.save(out, end);
                });
                if frames.is_empty() {
                    self.frames.pop_front();
                }
                continue;
            }
            let (table, shard) = self.at;
            let more = match table {
                0 => self.write_sessions(out, shard),
                1 => put_rows(out, "timers", self.timers.shard(shard), &mut self.timer, Timers::save),
                2 => put_rows(out, "effects", self.effects.shard(shard), &mut self.effect, Effects::save),
                _ => return false,
            };
            if !more {
                self.at = if shard + 1 < SHARDS { (table, shard + 1) } else { (table + 1, 0) };
                (self.session, self.timer, self.effect) = (None, None, None);
            }
        }
        true
    }

    /// One entry of a shard; false when the shard had none left.
    fn write_sessions(&mut self, out: &mut Vec<u8>, shard: usize) -> bool {
        let shard = self.sessions.shard(shard);
        let begin = match self.session {
            None => Bound::Unbounded,
            Some((id, Some(_))) => Bound::Included(id),
            Some((id, None)) => Bound::Excluded(id),
        };
        let mut rows = shard.range((begin, Bound::Unbounded)).peekable();
        if rows.peek().is_none() {
            return false;
        }
        put_entry(out, "sessions", |out, end| {
            for (&id, session) in rows {
                let from = self.session.filter(|(last, _)| *last == id).and_then(|(_, from)| from);
                let rest = Sessions::save(id, session, from.unwrap_or(0), out, end);
                self.session = Some((id, rest));
                if rest.is_some() || out.len() >= end {
                    break;
                }
            }
        });
        true
    }
}

/// One entry of a shard with the rows behind `last`; false when there were none.
fn put_rows<K: Ord + Clone, V>(
    out: &mut Vec<u8>,
    table: &str,
    shard: &BTreeMap<K, V>,
    last: &mut Option<K>,
    save: fn(&K, &V, &mut Vec<u8>),
) -> bool {
    let begin = last.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let mut rows = shard.range((begin, Bound::Unbounded)).peekable();
    if rows.peek().is_none() {
        return false;
    }
    put_entry(out, table, |out, end| {
        for (key, value) in rows {
            save(key, value, out);
            if out.len() >= end {
                *last = Some(key.clone());
                return;
            }
        }
        *last = shard.last_key_value().map(|(key, _)| key.clone());
    });
    true
}

/// `fill` gets the buffer and the length at which the entry is long enough.
fn put_entry(out: &mut Vec<u8>, table: &str, fill: impl FnOnce(&mut Vec<u8>, usize)) {
    out.extend_from_slice(&ENGINE.to_le_bytes());
    put_bytes(out, table.as_bytes());
    let at = out.len();
    // Length, then codec and schema, which mean nothing here.
    out.extend_from_slice(&[0; 7]);
    let end = at + PIECE;
    fill(out, end);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

/// An input that was set aside, with its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Position of the record that says so.
    pub position: Position,
    /// Identity of the input.
    pub identity: u64,
    /// Why.
    pub evidence: String,
    /// The input itself.
    pub parcel: Vec<u8>,
}

impl SetAside {
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        put_varint(out, self.position.0);
        out.extend_from_slice(&self.identity.to_le_bytes());
        put_bytes(out, self.evidence.as_bytes());
        put_bytes(out, &self.parcel);
    }

    pub(crate) fn load(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            position: Position(reader.varint("set-aside position")?),
            identity: reader.u64("set-aside identity")?,
            evidence: reader.text("set-aside evidence")?.to_owned(),
            parcel: reader.bytes("set-aside parcel")?.to_vec(),
        })
    }
}

/// What a checkpoint's header says to people and tools that have no actors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderSummary {
    /// The last run in it.
    pub run: Position,
    /// The last record in it.
    pub log: Position,
    /// The partition's epoch.
    pub epoch: Epoch,
    /// The partition's time.
    pub time: Time,
    /// For each channel to a partition: the number of the last frame sent, and the bytes of the frames
    /// that no receipt has come for.
    pub sent: Vec<(PartitionId, Ssn, usize)>,
    /// For each channel from a partition: the number of the last frame received.
    pub received: Vec<(PartitionId, Ssn)>,
    /// Effects that have not ended.
    pub effects: usize,
    /// Inputs that were set aside.
    pub set_aside: Vec<SetAside>,
}

/// Reads the header that a partition wrote, without a partition. (The order of its fields stands in
/// `Partition::save_header`; a test holds the two together.)
///
/// # Errors
/// [`Malformed`] when the bytes are no header of this release.
pub fn inspect_header(header: &[u8]) -> Result<HeaderSummary, Malformed> {
    let reader = &mut Reader::new(header);
    if reader.u8("header format")? != HEADER_FORMAT {
        return Err(Malformed { field: "header format of a newer release", offset: 0 });
    }
    let mut summary = HeaderSummary {
        run: Position(reader.varint("run position")?),
        log: Position(reader.varint("log position")?),
        epoch: Epoch(reader.varint("epoch")? as u32),
        time: Time(reader.varint("time")?),
        ..HeaderSummary::default()
    };
    reader.varint("increments")?;
    for _ in 0..reader.varint("outgoing channels")? {
        let to = PartitionId(reader.varint("outgoing channel")? as u16);
        let channel = Outgoing::load(reader)?;
        summary.sent.push((to, channel.sent, channel.kept_bytes));
    }
    for _ in 0..reader.varint("incoming channels")? {
        let from = PartitionId(reader.varint("incoming channel")? as u16);
        summary.received.push((from, Ssn(reader.varint("received")?)));
    }
    reader.varint("sessions forgotten at")?;
    reader.varint("timer count")?;
    summary.effects = reader.varint("effects")? as usize;
    for _ in 0..reader.varint("marks")? {
        reader.u64("mark")?;
        reader.varint("mark count")?;
    }
    for _ in 0..reader.varint("set aside")? {
        summary.set_aside.push(SetAside::load(reader)?);
    }
    Ok(summary)
}

/// One actor of a checkpoint.
pub(crate) struct Entry<'a> {
    pub(crate) kind: u32,
    pub(crate) key: &'a str,
    /// `None`: it is no more.
    pub(crate) state: Option<Encoded<'a>>,
}

/// Takes the first entry off `bytes`: the entry and its length, `None` when it is not all there.
pub(crate) fn split_entry(bytes: &[u8]) -> Result<Option<(Entry<'_>, usize)>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut read = || -> Result<(u32, &[u8], &[u8]), Malformed> {
        let kind = reader.u32("entry kind")?;
        let key = reader.bytes("entry key")?;
        let len = reader.u32("entry length")? as usize;
        Ok((kind, key, reader.take(len, "entry state")?))
    };
    // Nothing here can fail but for want of bytes.
    let Ok((kind, key, state)) = read() else { return Ok(None) };
    let malformed = |field| Malformed { field, offset: 0 };
    let key = std::str::from_utf8(key).map_err(|_| malformed("entry key is not UTF-8"))?;
    let state = match state.is_empty() {
        true => None,
        false => Some(Encoded::split(state).ok_or(malformed("entry state without codec"))?),
    };
    Ok(Some((Entry { kind, key, state }, reader.offset())))
}

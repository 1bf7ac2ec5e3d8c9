//! The record of an input: everything needed to run it again and to notice that it ran differently.
//!
//! Decides the bytes of the records in a partition's log. Hand-written layout, never serde.
//!
//! ```text
//! verdict u8 | source u8 | time u64 | run position | hash u64
//! source client: session u64, seq, acknowledged-below     frame: from u16, ssn     timer, effect: -
//! channels: count, (partition, ssn reached)*              only channels this run sent on
//! evidence (len, text)                                    only when set aside
//! parcel (rest)
//! ```

use crate::parcel::{Body, Parcel};
use rallypoint_base::hash::xxh3_seeded;
use rallypoint_base::id::{InputSeq, PartitionId, Position, SessionId, Ssn, Version};
use rallypoint_base::random::mix;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};

/// Kinds of records in a partition's log.
pub mod kind {
    /// An input with its verdict ([`super::InputRecord`]).
    pub const INPUT: u8 = 1;
    /// Careful mode: an input is about to be delivered ([`super::encode_mark`]).
    pub const MARK: u8 = 2;
    /// A record of the protocol itself.
    pub const PROTOCOL: u8 = 3;
    /// A new epoch after a rollback.
    pub const EPOCH: u8 = 4;
    /// An orderly stop: everything before it is in the newest checkpoint.
    pub const STOP: u8 = 5;
    /// A person dropped an input that was set aside ([`super::encode_drop`]). No run.
    pub const DROP: u8 = 6;
    /// Sagas lie in the archive from here on ([`super::encode_archived`]). No run.
    pub const ARCHIVED: u8 = 7;
    /// A saga was taken out of the archive again ([`super::encode_revived`]). No run.
    pub const REVIVED: u8 = 8;
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ran and changed state.
    Applied,
    /// The handler refused it; nothing changed.
    Refused,
    /// It was not run, or its run was undone, because it panicked or ended its worker.
    SetAside,
}

/// Where an input came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A client's input.
    Client {
        /// Session.
        session: SessionId,
        /// Number in the session.
        seq: InputSeq,
        /// The client has the answers to everything below this.
        acknowledged_below: InputSeq,
    },
    /// A frame of another partition.
    Frame {
        /// The sender.
        from: PartitionId,
        /// Its number on the channel.
        ssn: Ssn,
    },
    /// A timer of an actor here (which one stands in the parcel).
    Timer,
    /// The end of an effect (which one stands in the parcel).
    Effect,
}

impl Source {
    /// A number that is the same each time this input is delivered, and that no other input of the
    /// partition has (up to 2^-64): names an input in marks and in the running page.
    #[must_use]
    pub fn identity(&self, parcel: &[u8]) -> u64 {
        let identity = match *self {
            Self::Client { session, seq, .. } => mix(mix(session.0 ^ 0xC1) ^ seq.0),
            Self::Frame { from, ssn } => mix(mix(u64::from(from.0) ^ 0xF2) ^ ssn.0),
            Self::Timer => xxh3_seeded(parcel, 0x71),
            // What it returned may differ each time it is performed: it is one suspect all the same.
            Self::Effect => match Parcel::decode(parcel) {
                Ok(Parcel { body: Body::Effect { id: (epoch, position, index), .. }, .. }) => {
                    mix(mix(position.0 ^ 0xEF) ^ u64::from(epoch.0) ^ u64::from(index) << 32)
                }
                _ => xxh3_seeded(parcel, 0x71),
            },
        };
        identity | 1 // never 0, which means "nothing" in the running page
    }
}

/// The record of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRecord<'a> {
    /// What became of it.
    pub verdict: Verdict,
    /// Where it came from.
    pub source: Source,
    /// Its time.
    pub time: Time,
    /// The run's position (the record's own position in the log may differ under protocols that do
    /// not log every run).
    pub run: Position,
    /// Hash over frames, timers, effects and the reply of the run.
    pub hash: u64,
    /// For each channel that the run sent on, the ssn it reached.
    pub channels: Vec<(PartitionId, Ssn)>,
    /// Why it was set aside; empty otherwise.
    pub evidence: &'a str,
    /// The input itself.
    pub parcel: &'a [u8],
}

impl<'a> InputRecord<'a> {
    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.verdict {
            Verdict::Applied => 1,
            Verdict::Refused => 2,
            Verdict::SetAside => 3,
        });
        out.push(match self.source {
            Source::Client { .. } => 1,
            Source::Frame { .. } => 2,
            Source::Timer => 3,
            Source::Effect => 4,
        });
        out.extend_from_slice(&self.time.0.to_le_bytes());
        put_varint(out, self.run.0);
        out.extend_from_slice(&self.hash.to_le_bytes());
        match self.source {
            Source::Client { session, seq, acknowledged_below } => {
                out.extend_from_slice(&session.0.to_le_bytes());
                put_varint(out, seq.0);
                put_varint(out, acknowledged_below.0);
            }
            Source::Frame { from, ssn } => {
                out.extend_from_slice(&from.0.to_le_bytes());
                put_varint(out, ssn.0);
            }
            Source::Timer | Source::Effect => {}
        }
        put_varint(out, self.channels.len() as u64);
        for (partition, ssn) in &self.channels {
            put_varint(out, u64::from(partition.0));
            put_varint(out, ssn.0);
        }
        if self.verdict == Verdict::SetAside {
            put_bytes(out, self.evidence.as_bytes());
        }
        out.extend_from_slice(self.parcel);
    }

    /// Takes bytes apart.
    ///
    /// # Errors
    /// [`Malformed`] for anything that [`InputRecord::encode`] did not write.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let verdict = match reader.u8("verdict")? {
            1 => Verdict::Applied,
            2 => Verdict::Refused,
            3 => Verdict::SetAside,
            _ => return Err(Malformed { field: "verdict", offset: 0 }),
        };
        let source = reader.u8("source")?;
        let time = Time(reader.u64("time")?);
        let run = Position(reader.varint("run position")?);
        let hash = reader.u64("hash")?;
        let source = match source {
            1 => Source::Client {
                session: SessionId(reader.u64("session")?),
                seq: InputSeq(reader.varint("seq")?),
                acknowledged_below: InputSeq(reader.varint("acknowledged below")?),
            },
            2 => Source::Frame { from: PartitionId(reader.u16("sender")?), ssn: Ssn(reader.varint("ssn")?) },
            3 => Source::Timer,
            4 => Source::Effect,
            _ => return Err(Malformed { field: "source", offset: 1 }),
        };
        let mut channels = Vec::new();
        for _ in 0..reader.varint("channels")? {
            let partition = PartitionId(reader.varint("channel")? as u16);
            channels.push((partition, Ssn(reader.varint("channel ssn")?)));
        }
        let evidence = if verdict == Verdict::SetAside { reader.text("evidence")? } else { "" };
        Ok(Self { verdict, source, time, run, hash, channels, evidence, parcel: reader.rest() })
    }
}

/// A mark: the input with this identity is about to be delivered for the `count`-th time after it
/// was running when a worker ended.
#[must_use]
pub fn encode_mark(identity: u64, count: u32) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&identity.to_le_bytes());
    out[8..].copy_from_slice(&count.to_le_bytes());
    out
}

/// Reads what [`encode_mark`] wrote.
///
/// # Errors
/// [`Malformed`] when the bytes are no mark.
pub fn decode_mark(bytes: &[u8]) -> Result<(u64, u32), Malformed> {
    let mut reader = Reader::new(bytes);
    Ok((reader.u64("mark identity")?, reader.u32("mark count")?))
}

/// The record that drops the input that was set aside by the run at `run`.
#[must_use]
pub fn encode_drop(run: Position) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, run.0);
    out
}

/// Reads what [`encode_drop`] wrote.
///
/// # Errors
/// [`Malformed`] when the bytes are no such record.
pub fn decode_drop(bytes: &[u8]) -> Result<Position, Malformed> {
    Reader::new(bytes).varint("dropped run").map(Position)
}

/// Writes the payload of an ARCHIVED record: the part that holds the sagas, and their ids.
pub fn encode_archived(part: Version, ids: &[String], out: &mut Vec<u8>) {
    put_varint(out, part.0);
    put_varint(out, ids.len() as u64);
    ids.iter().for_each(|id| put_bytes(out, id.as_bytes()));
}

/// Reads it.
///
/// # Errors
/// [`Malformed`].
pub fn decode_archived(payload: &[u8]) -> Result<(Version, Vec<&str>), Malformed> {
    let mut reader = Reader::new(payload);
    let part = Version(reader.varint("part of the archive")?);
    let mut ids = Vec::new();
    for _ in 0..reader.varint("archived sagas")? {
        ids.push(reader.text("id of an archived saga")?);
    }
    Ok((part, ids))
}

/// Writes the payload of a REVIVED record: the saga's id and its state.
pub fn encode_revived(id: &str, state: &[u8], out: &mut Vec<u8>) {
    put_bytes(out, id.as_bytes());
    put_bytes(out, state);
}

/// Reads it.
///
/// # Errors
/// [`Malformed`].
pub fn decode_revived(payload: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let mut reader = Reader::new(payload);
    Ok((reader.text("id of a revived saga")?, reader.bytes("state of a revived saga")?))
}

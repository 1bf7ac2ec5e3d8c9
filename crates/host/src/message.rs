//! What travels to and from a journal directory's inbox, inside a process and over sockets alike.
//!
//! Decides the bytes: `length u32 | tag u8 | fields`. Never trusts them: a reader that meets
//! anything else gets [`Malformed`], and its connection is closed.

use rallypoint_base::id::{Epoch, InputSeq, Lineage, LogId, PartitionId, Position, SessionId, Ssn};
use rallypoint_base::limits::MESSAGE_BYTES;
use rallypoint_base::wire::{Malformed, Reader};
use rallypoint_engine::command::{Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;

/// Longest message; frames come in batches of a few hundred kilobytes, one of them may be 1 MiB.
pub(crate) const MESSAGE_MAX: usize = 4 * MESSAGE_BYTES;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// The first on every connection: who speaks, and about which store.
    Hello {
        store: u64,
        worker: u32,
        incarnation: u64,
    },
    Input {
        to: PartitionId,
        session: SessionId,
        seq: InputSeq,
        acknowledged_below: InputSeq,
        read_only: bool,
        parcel: &'a [u8],
    },
    Frames {
        from: PartitionId,
        to: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &'a [u8],
    },
    Receipt {
        from: PartitionId,
        to: PartitionId,
        receipt: Receipt,
    },
    /// The way to the directory that holds this partition is new.
    Connected {
        peer: PartitionId,
    },
    Effect {
        to: PartitionId,
        key: EffectKey,
        outcome: u8,
        value: &'a [u8],
    },
    Reply {
        session: SessionId,
        seq: InputSeq,
        outcome: Outcome,
        bytes: &'a [u8],
    },
    Turn {
        session: SessionId,
        seq: InputSeq,
        why: Turned,
    },
    /// Please take a checkpoint of every partition that ran since its last one.
    Checkpoint,
    /// Please compare everything with its checksums and between the copies, at this rate.
    Scrub {
        bytes_per_second: u64,
    },
}

impl<'a> Message<'a> {
    /// Appends length and bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        match *self {
            Message::Hello { store, worker, incarnation } => {
                out.push(1);
                out.extend_from_slice(&store.to_le_bytes());
                out.extend_from_slice(&worker.to_le_bytes());
                out.extend_from_slice(&incarnation.to_le_bytes());
            }
            Message::Input { to, session, seq, acknowledged_below, read_only, parcel } => {
                out.push(2);
                out.extend_from_slice(&to.0.to_le_bytes());
                out.extend_from_slice(&session.0.to_le_bytes());
                out.extend_from_slice(&seq.0.to_le_bytes());
                out.extend_from_slice(&acknowledged_below.0.to_le_bytes());
                out.push(u8::from(read_only));
                out.extend_from_slice(parcel);
            }
            Message::Frames { from, to, epoch, first, count, frames } => {
                out.push(3);
                out.extend_from_slice(&from.0.to_le_bytes());
                out.extend_from_slice(&to.0.to_le_bytes());
                out.extend_from_slice(&epoch.0.to_le_bytes());
                out.extend_from_slice(&first.0.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(frames);
            }
            Message::Receipt { from, to, receipt } => {
                out.push(4);
                out.extend_from_slice(&from.0.to_le_bytes());
                out.extend_from_slice(&to.0.to_le_bytes());
                out.extend_from_slice(&receipt.epoch.0.to_le_bytes());
                out.extend_from_slice(&receipt.through.0.to_le_bytes());
                out.push(receipt.pressure);
            }
            Message::Connected { peer } => {
                out.push(5);
                out.extend_from_slice(&peer.0.to_le_bytes());
            }
            Message::Effect { to, key, outcome, value } => {
                out.push(6);
                out.extend_from_slice(&to.0.to_le_bytes());
                out.extend_from_slice(&key.lineage.0.to_le_bytes());
                out.extend_from_slice(&key.epoch.0.to_le_bytes());
                out.extend_from_slice(&key.log.0.to_le_bytes());
                out.extend_from_slice(&key.position.0.to_le_bytes());
                out.extend_from_slice(&key.index.to_le_bytes());
                out.push(outcome);
                out.extend_from_slice(value);
            }
            Message::Reply { session, seq, outcome, bytes } => {
                out.push(7);
                out.extend_from_slice(&session.0.to_le_bytes());
                out.extend_from_slice(&seq.0.to_le_bytes());
                out.push(outcome as u8);
                out.extend_from_slice(bytes);
            }
            Message::Turn { session, seq, why } => {
                out.push(8);
                out.extend_from_slice(&session.0.to_le_bytes());
                out.extend_from_slice(&seq.0.to_le_bytes());
                out.push(why as u8);
            }
            Message::Checkpoint => out.push(9),
            Message::Scrub { bytes_per_second } => {
                out.push(10);
                out.extend_from_slice(&bytes_per_second.to_le_bytes());
            }
        }
        let len = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Takes the first message off `bytes`: the message and its whole length. `None` when it is not
    /// all there yet.
    pub(crate) fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let Some(len) = bytes.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 || len > MESSAGE_MAX {
            return Err(Malformed { field: "message length", offset: 0 });
        }
        let Some(body) = bytes.get(4..4 + len) else { return Ok(None) };
        Ok(Some((Self::decode(body)?, 4 + len)))
    }

    fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let partition = |r: &mut Reader<'a>| r.u16("partition").map(PartitionId);
        Ok(match r.u8("tag")? {
            1 => Message::Hello {
                store: r.u64("store")?,
                worker: r.u32("worker")?,
                incarnation: r.u64("incarnation")?,
            },
            2 => Message::Input {
                to: partition(&mut r)?,
                session: SessionId(r.u64("session")?),
                seq: InputSeq(r.u64("seq")?),
                acknowledged_below: InputSeq(r.u64("acknowledged below")?),
                read_only: r.u8("read only")? == 1,
                parcel: r.rest(),
            },
            3 => Message::Frames {
                from: partition(&mut r)?,
                to: partition(&mut r)?,
                epoch: Epoch(r.u32("epoch")?),
                first: Ssn(r.u64("first")?),
                count: r.u32("count")?,
                frames: r.rest(),
            },
            4 => Message::Receipt {
                from: partition(&mut r)?,
                to: partition(&mut r)?,
                receipt: Receipt {
                    epoch: Epoch(r.u32("epoch")?),
                    through: Ssn(r.u64("through")?),
                    pressure: r.u8("pressure")?,
                },
            },
            5 => Message::Connected { peer: partition(&mut r)? },
            6 => Message::Effect {
                to: partition(&mut r)?,
                key: EffectKey {
                    lineage: Lineage(r.u64("lineage")?),
                    epoch: Epoch(r.u32("epoch")?),
                    log: LogId(r.u16("log")?),
                    position: Position(r.u64("position")?),
                    index: r.u32("index")?,
                },
                outcome: r.u8("outcome")?,
                value: r.rest(),
            },
            7 => Message::Reply {
                session: SessionId(r.u64("session")?),
                seq: InputSeq(r.u64("seq")?),
                outcome: Outcome::from_u8(r.u8("outcome")?)
                    .ok_or(Malformed { field: "outcome", offset: r.offset() })?,
                bytes: r.rest(),
            },
            8 => Message::Turn {
                session: SessionId(r.u64("session")?),
                seq: InputSeq(r.u64("seq")?),
                why: Turned::from_u8(r.u8("why")?)
                    .ok_or(Malformed { field: "turned", offset: r.offset() })?,
            },
            9 => Message::Checkpoint,
            10 => Message::Scrub { bytes_per_second: r.u64("rate")? },
            _ => return Err(Malformed { field: "tag", offset: 0 }),
        })
    }

    /// The partition it is for, if it is for one.
    pub(crate) fn to(&self) -> Option<PartitionId> {
        match *self {
            Message::Input { to, .. }
            | Message::Frames { to, .. }
            | Message::Receipt { to, .. }
            | Message::Effect { to, .. } => Some(to),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_and_no_prefix_is_taken_for_one() {
        let key = EffectKey {
            lineage: Lineage(1),
            epoch: Epoch(2),
            log: LogId(3),
            position: Position(4),
            index: 5,
        };
        let (p, q) = (PartitionId(7), PartitionId(8));
        let (session, seq) = (SessionId(9), InputSeq(10));
        let messages = [
            Message::Hello { store: 1, worker: 2, incarnation: 3 },
            Message::Input {
                to: p,
                session,
                seq,
                acknowledged_below: InputSeq(1),
                read_only: true,
                parcel: b"x",
            },
            Message::Frames { from: p, to: q, epoch: Epoch(1), first: Ssn(2), count: 3, frames: b"abc" },
            Message::Receipt {
                from: p,
                to: q,
                receipt: Receipt { epoch: Epoch(1), through: Ssn(2), pressure: 3 },
            },
            Message::Connected { peer: p },
            Message::Effect { to: p, key, outcome: 1, value: b"v" },
            Message::Reply { session, seq, outcome: Outcome::Refused, bytes: b"r" },
            Message::Turn { session, seq, why: Turned::TooOld },
            Message::Checkpoint,
            Message::Scrub { bytes_per_second: 1 << 20 },
        ];
        for message in messages {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(Message::split(&bytes), Ok(Some((message, bytes.len()))));
            for cut in 0..bytes.len() {
                assert_eq!(Message::split(&bytes[..cut]), Ok(None));
            }
        }
        assert!(Message::split(&[1, 0, 0, 0, 99]).is_err());
        assert!(Message::split(&[255; 8]).is_err());
    }
}

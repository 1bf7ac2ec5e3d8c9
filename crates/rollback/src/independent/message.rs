//! The messages between a partition and the coordinator, and the coordinator's one record.
//!
//! Decides: their bytes. Never: what they cause.
//!
//! Invariants: decoding foreign bytes never panics; a history in which a counter falls is refused.

use crate::cut::{self, Cut, History, Point};
use rallypoint_base::id::{Epoch, Version};
use rallypoint_base::wire::{Malformed, Reader, put_varint};

/// A control message of the independent protocol.
///
/// ```
/// use rallypoint_base::id::Epoch;
/// use rallypoint_rollback::independent::Message;
/// let query = Message::Query { round: Epoch(3) };
/// assert_eq!(Message::decode(&query.encode()), Ok(query));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To the coordinator: these checkpoints of mine are stable.
    Announce {
        /// The epoch the sender lives in; an announcement from before a rollback is void.
        epoch: Epoch,
        /// Everything not yet forgotten.
        history: History,
    },
    /// To the coordinator: I lost my memory, was restored, and wait.
    Restarted,
    /// To the coordinator, the answer to [`Message::Query`]: I do nothing until told; this is what
    /// I could go back to, and my state in memory unless I lost it.
    Report {
        /// The round of the query.
        round: Epoch,
        /// All that is known of the sender.
        history: History,
    },
    /// To the coordinator: my rollback of this round is durable.
    RolledBack {
        /// The round.
        round: Epoch,
    },
    /// To a partition: pause and report.
    Query {
        /// The round, which becomes the new epoch if a line is found.
        round: Epoch,
    },
    /// To a partition: go back to `point` and wait.
    RollBack {
        /// The round.
        round: Epoch,
        /// The partition's point in the recovery line.
        point: Point,
    },
    /// To a partition: everybody has gone back.
    Resume {
        /// The round.
        round: Epoch,
    },
    /// To a partition: nothing at or below `version` will ever be undone.
    Stable {
        /// The partition's version in the line with all failed.
        version: Version,
        /// The newest version that the coordinator has heard of.
        seen: Version,
    },
}

impl Message {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let tag_and_round = |out: &mut Vec<u8>, tag, round: &Epoch| {
            out.push(tag);
            put_varint(out, u64::from(round.0));
        };
        match self {
            Self::Announce { epoch, history } => {
                tag_and_round(&mut out, 1, epoch);
                history.encode(&mut out);
            }
            Self::Restarted => out.push(2),
            Self::Report { round, history } => {
                tag_and_round(&mut out, 3, round);
                history.encode(&mut out);
            }
            Self::RolledBack { round } => tag_and_round(&mut out, 4, round),
            Self::Query { round } => tag_and_round(&mut out, 5, round),
            Self::RollBack { round, point } => {
                tag_and_round(&mut out, 6, round);
                cut::encode_point(*point, &mut out);
            }
            Self::Resume { round } => tag_and_round(&mut out, 7, round),
            Self::Stable { version, seen } => {
                out.push(8);
                put_varint(&mut out, version.0);
                put_varint(&mut out, seen.0);
            }
        }
        out
    }

    /// Reads what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let message = match reader.u8("message")? {
            1 => Self::Announce { epoch: epoch(&mut reader)?, history: History::decode(&mut reader)? },
            2 => Self::Restarted,
            3 => Self::Report { round: epoch(&mut reader)?, history: History::decode(&mut reader)? },
            4 => Self::RolledBack { round: epoch(&mut reader)? },
            5 => Self::Query { round: epoch(&mut reader)? },
            6 => Self::RollBack { round: epoch(&mut reader)?, point: cut::decode_point(&mut reader)? },
            7 => Self::Resume { round: epoch(&mut reader)? },
            8 => Self::Stable {
                version: Version(reader.varint("version")?),
                seen: Version(reader.varint("seen")?),
            },
            _ => return Err(Malformed { field: "message", offset: 0 }),
        };
        finished(&reader, message)
    }
}

/// RECOVERY(E, line): the coordinator's decision. It is made when this is stable, not before.
///
/// ```
/// use rallypoint_base::id::{Epoch, PartitionId};
/// use rallypoint_rollback::cut::{Cut, Point};
/// use rallypoint_rollback::independent::Recovery;
/// let line = Cut::from([(PartitionId(0), Point::Current)]);
/// let record = Recovery { epoch: Epoch(2), line };
/// assert_eq!(Recovery::decode(&record.encode()), Ok(record));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The epoch everybody lives in afterwards.
    pub epoch: Epoch,
    /// Where everybody goes back to.
    pub line: Cut,
}

/// First byte of a [`Recovery`], so that a record of another protocol is not taken for one.
const RECOVERY: u8 = 0x52;

impl Recovery {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECOVERY];
        put_varint(&mut out, u64::from(self.epoch.0));
        cut::encode_cut(&self.line, &mut out);
        out
    }

    /// Reads what [`Recovery::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not exactly one record.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.u8("recovery record")? != RECOVERY {
            return Err(Malformed { field: "recovery record", offset: 0 });
        }
        let record = Self { epoch: epoch(&mut reader)?, line: cut::decode_cut(&mut reader)? };
        finished(&reader, record)
    }
}

fn epoch(reader: &mut Reader<'_>) -> Result<Epoch, Malformed> {
    let offset = reader.offset();
    let number = reader.varint("epoch")?;
    u32::try_from(number).map(Epoch).map_err(|_| Malformed { field: "epoch", offset })
}

fn finished<T>(reader: &Reader<'_>, value: T) -> Result<T, Malformed> {
    if reader.is_empty() { Ok(value) } else { Err(Malformed { field: "end", offset: reader.offset() }) }
}

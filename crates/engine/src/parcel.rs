//! A parcel: one message to one actor, as it stands in inputs, frames and records.
//!
//! Decides the bytes. Never interprets a payload.
//!
//! ```text
//! flags u8 | kind u32 | key (len, bytes) | [asker: kind u32, key, token]  if flags & ASK | body
//! body of a message: codec u8, schema u16, bytes
//! body of an answer: token, applied u8, [codec u8, schema u16, bytes]
//! body of a timer:   set-number, name (rest)
//! body of an effect: epoch, position, index, outcome u8, value (rest)
//! ```

use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{Epoch, Position};
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};

const MESSAGE: u8 = 0;
const ANSWER: u8 = 1;
const TIMER: u8 = 2;
const EFFECT: u8 = 3;
const WHAT: u8 = 3;
const ASK: u8 = 4;

/// The number that stands for a kind's name in every parcel: the low 32 bits of its xxh3-64.
/// Two names with one number are refused when the application is defined.
#[must_use]
pub fn kind_tag(name: &str) -> u32 {
    xxh3(name.as_bytes()) as u32
}

/// Who wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker<'a> {
    /// Kind of the asking actor.
    pub kind: u32,
    /// Its key.
    pub key: &'a str,
    /// The token that comes back.
    pub token: u64,
}

/// What a parcel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// A message: codec, schema, bytes.
    Message(&'a [u8]),
    /// An answer to an earlier question.
    Answer {
        /// The question's token.
        token: u64,
        /// True for a reply, false for a refusal or failure.
        applied: bool,
        /// Codec, schema, bytes; empty when the handler failed.
        value: &'a [u8],
    },
    /// A timer fired.
    Timer {
        /// Set-number.
        set: u64,
        /// Name.
        name: &'a str,
    },
    /// An effect ended.
    Effect {
        /// Its cause and place.
        id: (Epoch, Position, u32),
        /// 0 done, 1 failed, 2 timed out.
        outcome: u8,
        /// What the performer returned.
        value: &'a [u8],
    },
}

/// A parcel, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parcel<'a> {
    /// Kind of the addressee.
    pub kind: u32,
    /// Key of the addressee.
    pub key: &'a str,
    /// Who wants the answer, if anybody.
    pub asker: Option<Asker<'a>>,
    /// What it carries.
    pub body: Body<'a>,
}

impl<'a> Parcel<'a> {
    /// Takes bytes apart.
    ///
    /// # Errors
    /// [`Malformed`] for anything that [`Parcel::encode`] did not write.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let flags = reader.u8("parcel flags")?;
        if flags & !(WHAT | ASK) != 0 {
            return Err(Malformed { field: "parcel flags of a newer release", offset: 0 });
        }
        let kind = reader.u32("parcel kind")?;
        let key = reader.text("parcel key")?;
        let asker = if flags & ASK == 0 {
            None
        } else {
            let kind = reader.u32("asker kind")?;
            let key = reader.text("asker key")?;
            Some(Asker { kind, key, token: reader.varint("asker token")? })
        };
        let body = match flags & WHAT {
            MESSAGE => Body::Message(reader.rest()),
            ANSWER => {
                let token = reader.varint("answer token")?;
                let applied = reader.u8("answer verdict")? == 1;
                Body::Answer { token, applied, value: reader.rest() }
            }
            TIMER => {
                let set = reader.varint("timer set")?;
                let at = reader.offset();
                let name = std::str::from_utf8(reader.rest())
                    .map_err(|_| Malformed { field: "timer name", offset: at })?;
                Body::Timer { set, name }
            }
            _ => {
                let epoch = Epoch(reader.varint("effect epoch")? as u32);
                let position = Position(reader.varint("effect position")?);
                let index = reader.varint("effect index")? as u32;
                let outcome = reader.u8("effect outcome")?;
                Body::Effect { id: (epoch, position, index), outcome, value: reader.rest() }
            }
        };
        Ok(Self { kind, key, asker, body })
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let what = match self.body {
            Body::Message(_) => MESSAGE,
            Body::Answer { .. } => ANSWER,
            Body::Timer { .. } => TIMER,
            Body::Effect { .. } => EFFECT,
        };
        out.push(what | if self.asker.is_some() { ASK } else { 0 });
        out.extend_from_slice(&self.kind.to_le_bytes());
        put_bytes(out, self.key.as_bytes());
        if let Some(asker) = self.asker {
            out.extend_from_slice(&asker.kind.to_le_bytes());
            put_bytes(out, asker.key.as_bytes());
            put_varint(out, asker.token);
        }
        match self.body {
            Body::Message(bytes) => out.extend_from_slice(bytes),
            Body::Answer { token, applied, value } => {
                put_varint(out, token);
                out.push(u8::from(applied));
                out.extend_from_slice(value);
            }
            Body::Timer { set, name } => {
                put_varint(out, set);
                out.extend_from_slice(name.as_bytes());
            }
            Body::Effect { id: (epoch, position, index), outcome, value } => {
                put_varint(out, u64::from(epoch.0));
                put_varint(out, position.0);
                put_varint(out, u64::from(index));
                out.push(outcome);
                out.extend_from_slice(value);
            }
        }
    }
}

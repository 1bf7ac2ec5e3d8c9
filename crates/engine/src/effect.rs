//! Effects: outputs that return.
//!
//! Decides: which effects are outstanding and which result counts (the first one logged). Never
//! performs anything: performing is the host's, after output commit.
//!
//! Invariant: an effect's key is (lineage, epoch of the cause, log, position, index) and therefore
//! the same for every repetition of one cause and never the same for two causes; it changes on
//! rollback and restore, never on a crash.

use crate::codec::{CodecError, Encoded};
use crate::shards::{Shards, Spread};
use rallypoint_base::id::{Epoch, Lineage, LogId, Position};
use rallypoint_base::random::mix;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt;

/// The idempotency key of an effect. Its text form is what goes to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EffectKey {
    /// History since the store was created or restored.
    pub lineage: Lineage,
    /// Epoch of the cause.
    pub epoch: Epoch,
    /// The partition's log.
    pub log: LogId,
    /// Position of the run that asked for it.
    pub position: Position,
    /// Which effect of that run, from 0.
    pub index: u32,
}

impl fmt::Display for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}-{}", self.lineage, self.epoch.0, self.log.0, self.position.0, self.index)
    }
}

/// How an effect ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum EffectOutcome<'a> {
    /// It was performed; the value is what the performer returned.
    Done(EffectValue<'a>),
    /// The performer says that it was not performed and why.
    Failed(&'a str),
    /// No result came in time: it may or may not have happened.
    TimedOut,
}

/// What a performer returned.
#[derive(Clone, Copy, Debug)]
pub struct EffectValue<'a>(pub(crate) &'a [u8]);

impl EffectValue<'_> {
    /// Reads the value.
    ///
    /// # Errors
    /// [`CodecError`] when the performer returned another type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        match Encoded::split(self.0) {
            Some(encoded) => encoded.decode(),
            None => Encoded { codec: 0, schema: 0, bytes: self.0 }.decode(),
        }
    }

    /// The bytes as the performer gave them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0
    }
}

/// An effect whose result is not logged yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outstanding {
    pub(crate) kind: u32,
    pub(crate) key: String,
    pub(crate) token: u64,
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) deadline: Time,
}

/// (epoch, position, index) of the cause.
pub(crate) type EffectId = (Epoch, Position, u32);

impl Spread for EffectId {
    fn spread(&self) -> u64 {
        mix(self.1.0 ^ u64::from(self.2) << 48)
    }
}

/// The outstanding effects of one partition, by (epoch, position, index) of their cause.
#[derive(Clone, Debug, Default)]
pub(crate) struct Effects {
    outstanding: Shards<EffectId, Outstanding>,
    due: BTreeSet<(Time, EffectId)>,
}

impl Effects {
    pub(crate) fn insert(&mut self, id: (Epoch, Position, u32), effect: Outstanding) {
        self.due.insert((effect.deadline, id));
        self.outstanding.insert(id, effect);
    }

    pub(crate) fn take(&mut self, id: (Epoch, Position, u32)) -> Option<Outstanding> {
        let effect = self.outstanding.remove(&id)?;
        self.due.remove(&(effect.deadline, id));
        Some(effect)
    }

    pub(crate) fn get(&self, id: (Epoch, Position, u32)) -> Option<&Outstanding> {
        self.outstanding.get(&id)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.outstanding.len()
    }

    /// Whose they are, in the order of their causes.
    pub(crate) fn ids(&self) -> Vec<EffectId> {
        let mut ids: Vec<EffectId> = self.outstanding.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The earliest deadline and whose it is.
    pub(crate) fn earliest(&self) -> Option<(Time, EffectId)> {
        self.due.first().copied()
    }

    /// The table as it is now, for a snapshot.
    pub(crate) fn share(&self) -> Shards<EffectId, Outstanding> {
        self.outstanding.clone()
    }

    pub(crate) fn save((epoch, position, index): &EffectId, effect: &Outstanding, out: &mut Vec<u8>) {
        put_varint(out, u64::from(epoch.0));
        put_varint(out, position.0);
        put_varint(out, u64::from(*index));
        out.extend_from_slice(&effect.kind.to_le_bytes());
        put_bytes(out, effect.key.as_bytes());
        put_varint(out, effect.token);
        put_bytes(out, effect.name.as_bytes());
        put_bytes(out, &effect.payload);
        put_varint(out, effect.deadline.0);
    }

    pub(crate) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let epoch = Epoch(reader.varint("effect epoch")? as u32);
            let position = Position(reader.varint("effect position")?);
            let index = reader.varint("effect index")? as u32;
            let effect = Outstanding {
                kind: reader.u32("effect kind")?,
                key: reader.text("effect key")?.to_owned(),
                token: reader.varint("effect token")?,
                name: reader.text("effect name")?.to_owned(),
                payload: reader.bytes("effect payload")?.to_vec(),
                deadline: Time(reader.varint("effect deadline")?),
            };
            self.insert((epoch, position, index), effect);
        }
        Ok(())
    }
}

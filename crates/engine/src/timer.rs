//! Timers: (actor, name, set-number).
//!
//! Decides: which timer is due. Never reads a clock. Firing is a logged input: a timer leaves this
//! table in the run that consumes it, so that one reset or cancelled before it in the log is void
//! by construction.

use crate::shards::{Shards, Spread};
use rallypoint_base::hash::xxh3;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use std::collections::BTreeMap;

/// Whose timer, and which.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerId {
    pub(crate) kind: u32,
    pub(crate) key: String,
    pub(crate) name: String,
}

impl Spread for TimerId {
    fn spread(&self) -> u64 {
        xxh3(self.key.as_bytes()) ^ xxh3(self.name.as_bytes()).rotate_left(7) ^ u64::from(self.kind)
    }
}

/// The timers of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    by_id: Shards<TimerId, (Time, u64)>,
    due: BTreeMap<(Time, u64), TimerId>,
    last_set: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, id: TimerId, at: Option<Time>) {
        if let Some(old) = self.by_id.remove(&id) {
            self.due.remove(&old);
        }
        if let Some(at) = at {
            self.last_set += 1;
            self.due.insert((at, self.last_set), id.clone());
            self.by_id.insert(id, (at, self.last_set));
        }
    }

    /// The set-number given last.
    pub(crate) fn last_set(&self) -> u64 {
        self.last_set
    }

    /// The earliest timer: when, its set-number, and whose it is.
    pub(crate) fn earliest(&self) -> Option<(Time, u64, &TimerId)> {
        self.due.first_key_value().map(|((at, set), id)| (*at, *set, id))
    }

    /// Takes the timer with this set-number, if it still stands.
    pub(crate) fn take(&mut self, id: &TimerId, set: u64) -> bool {
        match self.by_id.get(id) {
            Some(&(at, current)) if current == set => {
                self.by_id.remove(id);
                self.due.remove(&(at, set));
                true
            }
            _ => false,
        }
    }

    /// The table as it is now, for a snapshot.
    pub(crate) fn share(&self) -> Shards<TimerId, (Time, u64)> {
        self.by_id.clone()
    }

    pub(crate) fn restored(last_set: u64) -> Self {
        Self { last_set, ..Self::default() }
    }

    pub(crate) fn save(id: &TimerId, (at, set): &(Time, u64), out: &mut Vec<u8>) {
        out.extend_from_slice(&id.kind.to_le_bytes());
        put_bytes(out, id.key.as_bytes());
        put_bytes(out, id.name.as_bytes());
        put_varint(out, at.0);
        put_varint(out, *set);
    }

    pub(crate) fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let id = TimerId {
                kind: reader.u32("timer kind")?,
                key: reader.text("timer key")?.to_owned(),
                name: reader.text("timer name")?.to_owned(),
            };
            let at = Time(reader.varint("timer time")?);
            let set = reader.varint("timer set")?;
            self.due.insert((at, set), id.clone());
            self.by_id.insert(id, (at, set));
        }
        Ok(())
    }
}

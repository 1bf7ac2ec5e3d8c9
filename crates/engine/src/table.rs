//! The actors of one kind in one partition.
//!
//! Decides where an actor's state lies, what a run can undo, and what a checkpoint writes.
//! Never sees a log, a channel or another kind.
//!
//! Invariants:
//! - between runs the undo list is empty;
//! - a slot whose stamp equals the current cut is in the dirty list exactly once;
//! - while a checkpoint is being written, every actor it still has to write either has not changed
//!   since the cut, or its value at the cut is in `saved` (copy on update: the pause of a checkpoint
//!   does not depend on the size of the state);
//! - while a checkpoint is being written, no actor is removed and no vacant slot is used again: what
//!   lies in a slot at the cut lies there until it is written.
//!
//! Source: copy-on-update of Cao et al., "Fast Checkpoint Recovery Algorithms for Frequently
//! Consistent Applications", SIGMOD 2011.

use crate::actor::{Actor, Cx, Signal};
use crate::codec::{self, Codec, CodecError, Encoded};
use crate::partition::panic_text;
use crate::run::{Run, RunError};
use crate::short::ShortBytes;
use hashbrown::HashTable;
use rallypoint_base::hash::xxh3;
use rallypoint_base::limits::{ACTOR_BYTES, MESSAGE_BYTES, VIEW_BYTES};
use rallypoint_base::wire::put_bytes;
use std::any::{Any, type_name};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is delivered to an actor.
pub(crate) enum Incoming<'a> {
    /// A message: codec, schema, bytes.
    Message(Encoded<'a>),
    /// Something it asked for.
    Signal(Signal<'a>),
}

/// How a delivery ended.
pub(crate) enum Delivered {
    /// `reply` holds the encoded reply.
    Applied,
    /// The handler refused; `reply` holds the encoded error; its changes are undone.
    Refused,
    /// The call could not be made or went over a limit; its changes are undone.
    Failed(RunError),
}

/// The actors beyond [`ACTOR_BYTES`] that a checkpoint met.
#[derive(Debug, Default)]
pub(crate) struct Large {
    pub(crate) count: u64,
    /// Of the largest.
    pub(crate) bytes: usize,
    pub(crate) actor: String,
}

/// Actors of one kind, whatever the kind.
pub(crate) trait Table: Send {
    fn deliver(&mut self, key: &str, what: Incoming<'_>, run: &mut Run, reply: &mut Vec<u8>) -> Delivered;
    /// Runs a read-only message on a copy; `None` when the message is not read-only.
    fn query(
        &mut self,
        key: &str,
        message: Encoded<'_>,
        run: &mut Run,
        reply: &mut Vec<u8>,
    ) -> Option<Delivered>;
    fn commit_run(&mut self);
    fn abort_run(&mut self);
    fn cut(&mut self, full: bool);
    /// Writes actors until `out` is `limit` long; false when none is left.
    fn write(&mut self, out: &mut Vec<u8>, limit: usize, large: &mut Large) -> Result<bool, CodecError>;
    /// Ends the checkpoint being written, complete or not.
    fn end_cut(&mut self, complete: bool);
    fn load(&mut self, key: &str, state: Encoded<'_>) -> Result<(), CodecError>;
    fn has(&self, key: &str) -> bool;
    /// Takes an actor out, between runs and while no checkpoint is being written; false when there is
    /// none.
    fn remove(&mut self, key: &str) -> bool;
    /// [`Table::load`] of an actor that was taken out: the next checkpoint holds it.
    fn put_back(&mut self, key: &str, state: Encoded<'_>) -> Result<(), CodecError>;
    fn len(&self) -> usize;
    /// Hash of all keys and states, independent of their order in memory.
    fn digest(&self) -> u64;
    /// Every actor, encoded, for inspection.
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));
    /// For whoever knows the kind.
    fn as_any(&self) -> &dyn Any;
}

/// The entry of an actor that is no more: a state without bytes.
fn put_removed(kind: u32, key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&kind.to_le_bytes());
    put_bytes(out, key);
    out.extend_from_slice(&[0; 4]);
}

struct Slot<A> {
    key: ShortBytes,
    state: A,
    stamp: u32,
    /// Its actor was taken out.
    vacant: bool,
}

/// Slots lie in chunks, so that growing neither copies nor doubles.
const CHUNK: usize = 512;

enum Work {
    None,
    /// All slots below `len`; `at` is next.
    Full {
        at: u32,
        len: u32,
    },
    /// The keys that were taken out before the cut, then the slots that changed; `at` is the next index
    /// into them.
    Changed {
        removed: Vec<ShortBytes>,
        slots: Vec<u32>,
        at: usize,
    },
}

pub(crate) struct TypedTable<A: Actor> {
    kind: u32,
    chunks: Vec<Vec<Slot<A>>>,
    len: u32,
    index: HashTable<u32>,
    /// (slot, its state before the call; `None` = it was created by the call).
    undo: Vec<(u32, Option<A>)>,
    cut: u32,
    dirty: Vec<u32>,
    work: Work,
    saved: BTreeMap<u32, A>,
    vacant: Vec<u32>,
    /// Taken out since the last cut.
    removed: Vec<ShortBytes>,
}

impl<A: Actor> TypedTable<A> {
    pub(crate) fn new(kind: u32) -> Self {
        Self {
            kind,
            chunks: Vec::new(),
            len: 0,
            index: HashTable::new(),
            undo: Vec::new(),
            cut: 1,
            dirty: Vec::new(),
            work: Work::None,
            saved: BTreeMap::new(),
            vacant: Vec::new(),
            removed: Vec::new(),
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Slot<A>> {
        self.chunks.iter().flatten().filter(|entry| !entry.vacant)
    }

    /// One actor as it is.
    pub(crate) fn get(&self, key: &str) -> Option<&A> {
        self.find(key).map(|slot| &self.slot(slot).state)
    }

    fn slot(&self, slot: u32) -> &Slot<A> {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Slot<A> {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    /// Every actor as it is.
    pub(crate) fn each_typed(&self, visit: &mut dyn FnMut(&str, &A)) {
        for entry in self.entries() {
            visit(std::str::from_utf8(&entry.key).unwrap_or_default(), &entry.state);
        }
    }

    fn find(&self, key: &str) -> Option<u32> {
        self.index.find(xxh3(key.as_bytes()), |&slot| *self.slot(slot).key == *key.as_bytes()).copied()
    }

    fn create(&mut self, key: &str) -> u32 {
        let free = if matches!(self.work, Work::None) { self.vacant.pop() } else { None };
        let slot = if let Some(slot) = free {
            // Its stamp stays: it may be in the dirty list already.
            let entry = self.slot_mut(slot);
            entry.key = key.as_bytes().into();
            entry.vacant = false;
            slot
        } else {
            let slot = self.len;
            if slot as usize / CHUNK == self.chunks.len() {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            if let Some(chunk) = self.chunks.last_mut() {
                let state = A::default();
                chunk.push(Slot { key: key.as_bytes().into(), state, stamp: 0, vacant: false });
            }
            self.len += 1;
            slot
        };
        let chunks = &self.chunks;
        let hash_of = |slot: &u32| xxh3(&chunks[*slot as usize / CHUNK][*slot as usize % CHUNK].key);
        self.index.insert_unique(xxh3(key.as_bytes()), slot, hash_of);
        slot
    }

    fn forget(&mut self, slot: u32) {
        let hash = xxh3(&self.slot(slot).key);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
    }

    fn vacate(&mut self, slot: u32) {
        self.forget(slot);
        let entry = self.slot_mut(slot);
        entry.key = [].as_slice().into();
        entry.state = A::default();
        entry.vacant = true;
        self.vacant.push(slot);
    }

    /// Takes back the creation of the newest slot, or of one that was vacant.
    fn uncreate(&mut self, slot: u32) {
        // Only a new slot has never been in a cut.
        if self.slot(slot).stamp > 0 {
            return self.vacate(slot);
        }
        debug_assert_eq!(slot + 1, self.len, "undo runs from the newest to the oldest");
        self.forget(slot);
        self.len -= 1;
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.pop();
            if chunk.is_empty() {
                self.chunks.pop();
            }
        }
    }

    fn undo_one(&mut self) {
        match self.undo.pop() {
            Some((slot, Some(old))) => self.slot_mut(slot).state = old,
            Some((slot, None)) => self.uncreate(slot),
            None => {}
        }
    }

    /// A state, of whatever schema.
    pub(crate) fn state(encoded: Encoded<'_>) -> Result<A, CodecError> {
        if encoded.schema == A::SCHEMA { encoded.decode() } else { A::migrate(encoded) }
    }

    /// A message, of whatever schema.
    pub(crate) fn message(encoded: Encoded<'_>) -> Result<A::Message, CodecError> {
        if encoded.schema == A::SCHEMA { encoded.decode() } else { A::migrate_message(encoded) }
    }

    fn encode_entry(key: &[u8], state: &A, kind: u32, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(&kind.to_le_bytes());
        put_bytes(out, key);
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        codec::encode(A::CODEC, A::SCHEMA, state, out)?;
        let len = (out.len() - at - 4) as u32;
        out[at..at + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// The outcome of a call, as `reply` and verdict.
    fn answer<T: serde::Serialize, E: serde::Serialize>(
        result: &Result<T, E>,
        run: &mut Run,
        reply: &mut Vec<u8>,
        longest: usize,
    ) -> Delivered {
        if let Some(error) = run.error.take() {
            return Delivered::Failed(error);
        }
        let written = match result {
            Ok(value) => codec::encode(A::CODEC, A::SCHEMA, value, reply),
            Err(error) => codec::encode(A::CODEC, A::SCHEMA, error, reply),
        };
        match (written, result) {
            (Err(error), _) => Delivered::Failed(RunError::Codec(error)),
            (Ok(()), _) if reply.len() > longest => Delivered::Failed(RunError::MessageTooLarge(reply.len())),
            (Ok(()), Ok(_)) => Delivered::Applied,
            (Ok(()), Err(_)) => Delivered::Refused,
        }
    }
}

impl<A: Actor> TypedTable<A> {
    /// What the actor would answer. Nothing that it asks for counts.
    pub(crate) fn try_on(
        mut copy: A,
        kind: u32,
        key: &str,
        message: A::Message,
        run: &mut Run,
        reply: &mut Vec<u8>,
    ) -> Delivered {
        let savepoint = run.savepoint();
        let mut cx = Cx { run, kind, key };
        let result = copy.handle(message, &mut cx);
        let delivered = Self::answer(&result, run, reply, VIEW_BYTES);
        run.undo_to(savepoint);
        delivered
    }
}

impl<A: Actor> Table for TypedTable<A> {
    fn deliver(&mut self, key: &str, what: Incoming<'_>, run: &mut Run, reply: &mut Vec<u8>) -> Delivered {
        // Decoded before anything is touched: what cannot be read changes nothing.
        enum Call<'a, M> {
            Message(M),
            Signal(Signal<'a>),
        }
        let call = match what {
            Incoming::Message(encoded) => match Self::message(encoded) {
                Ok(message) => Call::Message(message),
                Err(error) => return Delivered::Failed(RunError::Codec(error)),
            },
            Incoming::Signal(signal) => Call::Signal(signal),
        };
        let slot = match self.find(key) {
            Some(slot) => {
                let old = self.slot(slot).state.clone();
                self.undo.push((slot, Some(old)));
                slot
            }
            None => {
                let slot = self.create(key);
                self.undo.push((slot, None));
                slot
            }
        };
        let savepoint = run.savepoint();
        let kind = self.kind;
        let state = &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK].state;
        let mut cx = Cx { run, kind, key };
        let delivered = match call {
            Call::Message(message) => {
                let result = state.handle(message, &mut cx);
                Self::answer(&result, run, reply, MESSAGE_BYTES)
            }
            Call::Signal(signal) => {
                let result = state.signal(signal, &mut cx);
                Self::answer(&result, run, reply, MESSAGE_BYTES)
            }
        };
        if !matches!(delivered, Delivered::Applied) {
            run.undo_to(savepoint);
            self.undo_one();
        }
        delivered
    }

    fn query(
        &mut self,
        key: &str,
        message: Encoded<'_>,
        run: &mut Run,
        reply: &mut Vec<u8>,
    ) -> Option<Delivered> {
        let message = match Self::message(message) {
            Ok(message) => message,
            Err(error) => return Some(Delivered::Failed(RunError::Codec(error))),
        };
        if !A::read_only(&message) {
            return None;
        }
        let found = self.find(key);
        if let Some(seen) = found.and_then(|slot| self.slot(slot).state.look(&message)) {
            return Some(Self::answer(&seen, run, reply, VIEW_BYTES));
        }
        let copy = found.map(|slot| self.slot(slot).state.clone()).unwrap_or_default();
        Some(Self::try_on(copy, self.kind, key, message, run, reply))
    }

    fn commit_run(&mut self) {
        let mut undo = std::mem::take(&mut self.undo);
        for (slot, old) in undo.drain(..) {
            let cut = self.cut;
            let entry = self.slot_mut(slot);
            if entry.stamp == cut {
                continue;
            }
            let before = std::mem::replace(&mut entry.stamp, cut);
            self.dirty.push(slot);
            let wanted = match &self.work {
                Work::None => false,
                Work::Full { at, len } => slot >= *at && slot < *len,
                Work::Changed { .. } => before + 1 == cut,
            };
            if let (true, Some(old)) = (wanted, old) {
                self.saved.insert(slot, old);
            }
        }
        self.undo = undo; // keeps its allocation
    }

    fn abort_run(&mut self) {
        while !self.undo.is_empty() {
            self.undo_one();
        }
    }

    fn cut(&mut self, full: bool) {
        debug_assert!(self.undo.is_empty(), "a cut lies between runs");
        let changed = std::mem::take(&mut self.dirty);
        self.cut += 1;
        self.saved.clear();
        let removed = std::mem::take(&mut self.removed);
        self.work = match full {
            true => Work::Full { at: 0, len: self.len },
            false => Work::Changed { removed, slots: changed, at: 0 },
        };
    }

    fn write(&mut self, out: &mut Vec<u8>, limit: usize, large: &mut Large) -> Result<bool, CodecError> {
        while out.len() < limit {
            let slot = match &mut self.work {
                Work::None => return Ok(false),
                Work::Changed { removed, .. } if !removed.is_empty() => {
                    let keys = removed.len().min(256);
                    removed.drain(..keys).for_each(|key| put_removed(self.kind, &key, out));
                    continue;
                }
                Work::Full { at, len } if *at < *len => {
                    *at += 1;
                    *at - 1
                }
                Work::Changed { slots, at, .. } if *at < slots.len() => {
                    *at += 1;
                    slots[*at - 1]
                }
                Work::Full { .. } | Work::Changed { .. } => return Ok(false),
            };
            let saved = self.saved.remove(&slot);
            let entry = self.slot(slot);
            if entry.vacant {
                continue;
            }
            let before = out.len();
            Self::encode_entry(&entry.key, saved.as_ref().unwrap_or(&entry.state), self.kind, out)?;
            let bytes = out.len() - before;
            if bytes > ACTOR_BYTES {
                large.count += 1;
                if bytes > large.bytes {
                    large.bytes = bytes;
                    large.actor = format!("{} {}", A::KIND, String::from_utf8_lossy(&entry.key));
                }
            }
        }
        Ok(true)
    }

    fn end_cut(&mut self, complete: bool) {
        if let (false, Work::Changed { slots, .. }) =
            (complete, std::mem::replace(&mut self.work, Work::None))
        {
            // What this checkpoint would have held belongs to the next one.
            for slot in slots {
                let cut = self.cut;
                let entry = self.slot_mut(slot);
                if entry.stamp != cut {
                    entry.stamp = cut;
                    self.dirty.push(slot);
                }
            }
        }
        self.saved.clear();
    }

    fn load(&mut self, key: &str, state: Encoded<'_>) -> Result<(), CodecError> {
        // It is the application's own code, and must not take the whole directory with it.
        let state = catch_unwind(AssertUnwindSafe(|| Self::state(state))).unwrap_or_else(|panic| {
            let Encoded { codec, schema, bytes } = state;
            let detail = format!("panicked: {}", panic_text(&*panic));
            Err(CodecError::Decode { what: type_name::<A>(), codec, schema, len: bytes.len(), detail })
        })?;
        let slot = self.find(key).unwrap_or_else(|| self.create(key));
        self.slot_mut(slot).state = state;
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn remove(&mut self, key: &str) -> bool {
        debug_assert!(self.undo.is_empty(), "an actor is taken out between runs");
        debug_assert!(matches!(self.work, Work::None), "nothing is taken out under a checkpoint");
        let Some(slot) = self.find(key) else { return false };
        let cut = self.cut;
        self.removed.push(self.slot(slot).key.clone());
        let entry = self.slot_mut(slot);
        if entry.stamp != cut {
            entry.stamp = cut;
            self.dirty.push(slot);
        }
        self.vacate(slot);
        true
    }

    fn put_back(&mut self, key: &str, state: Encoded<'_>) -> Result<(), CodecError> {
        self.load(key, state)?;
        if let Some(slot) = self.find(key) {
            self.undo.push((slot, None));
            self.commit_run();
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.len as usize - self.vacant.len()
    }

    fn digest(&self) -> u64 {
        let mut sum = 0u64;
        let mut bytes = Vec::new();
        for entry in self.entries() {
            bytes.clear();
            if Self::encode_entry(&entry.key, &entry.state, self.kind, &mut bytes).is_ok() {
                sum = sum.wrapping_add(xxh3(&bytes));
            }
        }
        sum
    }

    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        let mut bytes = Vec::new();
        for entry in self.entries() {
            bytes.clear();
            if codec::encode(Codec::Named, A::SCHEMA, &entry.state, &mut bytes).is_ok() {
                // It was a str when it was put there.
                visit(std::str::from_utf8(&entry.key).unwrap_or_default(), &bytes);
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

//! One run in the making: what the handlers of one input asked for so far.
//!
//! Decides nothing; collects. A handler's asks can be taken back to a savepoint, so that an `Err`
//! undoes exactly that call's. Nothing here has left anything.

use crate::actor::Actor;
use crate::codec::{self, CodecError};
use crate::map::Map;
use crate::parcel::{Asker, Body, Parcel, kind_tag};
use crate::timer::TimerId;
use rallypoint_base::id::PartitionId;
use rallypoint_base::limits::{FAN_OUT, KEY_BYTES, MESSAGE_BYTES, NAME_BYTES, VIEW_BYTES};
use rallypoint_base::time::Time;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// A run went over a limit or met something it cannot encode; the call is undone, and this is the
/// answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Key longer than [`KEY_BYTES`].
    #[error("a key of {0} bytes: keys have at most {KEY_BYTES}")]
    KeyTooLong(usize),
    /// Name of a timer or effect longer than [`NAME_BYTES`].
    #[error("a name of {0} bytes: names of timers and effects have at most {NAME_BYTES}")]
    NameTooLong(usize),
    /// Message or reply longer than [`MESSAGE_BYTES`].
    #[error("a message of {0} bytes: messages and replies have at most {MESSAGE_BYTES}")]
    MessageTooLarge(usize),
    /// More than [`FAN_OUT`] messages, timers and effects.
    #[error(
        "more than {FAN_OUT} messages, timers and effects in one run: split the work over several inputs"
    )]
    FanOutTooLarge,
    /// A value could not be written or read.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

pub(crate) struct EffectRequest {
    pub(crate) kind: u32,
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) timeout: Duration,
    pub(crate) token: u64,
}

/// What the handlers of one input asked for so far. Users meet it only through `Cx`.
pub struct Run {
    pub(crate) now: Time,
    pub(crate) replaying: bool,
    /// (partition, position) mixed: the root of this run's randomness.
    pub(crate) seed: u64,
    pub(crate) random_counter: u64,
    pub(crate) map: Arc<Map>,
    pub(crate) arena: Vec<u8>,
    pub(crate) sends: Vec<(PartitionId, Range<usize>)>,
    pub(crate) timers: Vec<(TimerId, Option<Time>)>,
    pub(crate) effects: Vec<EffectRequest>,
    pub(crate) error: Option<RunError>,
    /// For a person to look at.
    pub(crate) alarms: Vec<String>,
    /// Keys of sagas that have ended.
    pub(crate) ended: Vec<String>,
}

/// How far a run had come.
#[derive(Clone, Copy)]
pub(crate) struct Savepoint {
    arena: usize,
    sends: usize,
    timers: usize,
    effects: usize,
    alarms: usize,
    ended: usize,
    random_counter: u64,
}

impl Run {
    pub(crate) fn new(map: Arc<Map>) -> Self {
        Self {
            now: Time(0),
            replaying: false,
            seed: 0,
            random_counter: 0,
            map,
            arena: Vec::new(),
            sends: Vec::new(),
            timers: Vec::new(),
            effects: Vec::new(),
            error: None,
            alarms: Vec::new(),
            ended: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, now: Time, seed: u64, replaying: bool) {
        self.now = now;
        self.seed = seed;
        self.replaying = replaying;
        self.random_counter = 0;
        self.clear();
    }

    pub(crate) fn clear(&mut self) {
        self.arena.clear();
        self.sends.clear();
        self.timers.clear();
        self.effects.clear();
        self.alarms.clear();
        self.ended.clear();
        self.error = None;
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        Savepoint {
            arena: self.arena.len(),
            sends: self.sends.len(),
            timers: self.timers.len(),
            effects: self.effects.len(),
            alarms: self.alarms.len(),
            ended: self.ended.len(),
            random_counter: self.random_counter,
        }
    }

    pub(crate) fn undo_to(&mut self, savepoint: Savepoint) {
        self.arena.truncate(savepoint.arena);
        self.sends.truncate(savepoint.sends);
        self.timers.truncate(savepoint.timers);
        self.effects.truncate(savepoint.effects);
        self.alarms.truncate(savepoint.alarms);
        self.ended.truncate(savepoint.ended);
        self.random_counter = savepoint.random_counter;
        self.error = None;
    }

    /// The first failure of a call counts; the call goes on, but will be undone.
    pub(crate) fn fail(&mut self, error: RunError) {
        self.error.get_or_insert(error);
    }

    fn fan_out(&mut self) -> bool {
        let full = self.sends.len() + self.timers.len() + self.effects.len() >= FAN_OUT;
        if full {
            self.fail(RunError::FanOutTooLarge);
        }
        !full
    }

    pub(crate) fn send<B: Actor>(
        &mut self,
        key: &str,
        message: &B::Message,
        asker: Option<(u32, String, u64)>,
    ) {
        if key.len() > KEY_BYTES {
            return self.fail(RunError::KeyTooLong(key.len()));
        }
        if !self.fan_out() {
            return;
        }
        let start = self.arena.len();
        let asker = asker.as_ref().map(|(kind, key, token)| Asker { kind: *kind, key, token: *token });
        let body = Body::Message(&[]);
        Parcel { kind: kind_tag(B::KIND), key, asker, body }.encode(&mut self.arena);
        if let Err(error) = codec::encode(B::CODEC, B::SCHEMA, message, &mut self.arena) {
            self.arena.truncate(start);
            return self.fail(RunError::Codec(error));
        }
        let len = self.arena.len() - start;
        if len > MESSAGE_BYTES {
            self.arena.truncate(start);
            return self.fail(RunError::MessageTooLarge(len));
        }
        self.sends.push((self.map.partition_of(key), start..self.arena.len()));
    }

    pub(crate) fn answer(&mut self, asker: Asker<'_>, applied: bool, value: &[u8]) {
        let start = self.arena.len();
        let body = Body::Answer { token: asker.token, applied, value };
        Parcel { kind: asker.kind, key: asker.key, asker: None, body }.encode(&mut self.arena);
        // No limit stands between an asker and its answer: the value has passed its own.
        self.sends.push((self.map.partition_of(asker.key), start..self.arena.len()));
    }

    pub(crate) fn set_timer(&mut self, kind: u32, key: &str, name: &str, at: Option<Time>) {
        if name.len() > NAME_BYTES {
            return self.fail(RunError::NameTooLong(name.len()));
        }
        if self.fan_out() {
            let id = TimerId { kind, key: key.to_owned(), name: name.to_owned() };
            self.timers.push((id, at));
        }
    }

    pub(crate) fn effect(
        &mut self,
        kind: u32,
        key: &str,
        name: &str,
        payload: Vec<u8>,
        timeout: Duration,
        token: u64,
    ) {
        if name.len() > NAME_BYTES {
            return self.fail(RunError::NameTooLong(name.len()));
        }
        // It may hold a message and more: the request of an undo has the step and its output.
        if payload.len() > VIEW_BYTES {
            return self.fail(RunError::MessageTooLarge(payload.len()));
        }
        if self.fan_out() {
            let (key, name) = (key.to_owned(), name.to_owned());
            self.effects.push(EffectRequest { kind, key, name, payload, timeout, token });
        }
    }
}

//! What a user writes: an [`Actor`], and the context it runs in.
//!
//! An actor is a keyed, single-threaded, deterministic state machine. It is called with one message
//! at a time, changes its own state, and says through [`Cx`] what else is to happen. It must not
//! read clocks, files, sockets, random numbers or shared memory: [`Cx::now`] and [`Cx::random`] give
//! time and randomness that replay the same, [`Cx::effect`] asks the outside world.

use crate::codec::{self, Codec, CodecError, Encoded};
use crate::effect::EffectOutcome;
use crate::run::{Run, RunError};
use rallypoint_base::random::{Random, mix};
use rallypoint_base::time::Time;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A keyed, single-threaded, deterministic state machine whose state survives.
///
/// ```
/// use rallypoint_engine::actor::{Actor, Cx};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Clone, Default, Serialize, Deserialize)]
/// struct Counter { total: u64 }
///
/// impl Actor for Counter {
///     const KIND: &'static str = "counter";
///     type Message = u64;
///     type Reply = u64;
///     type Error = String;
///     fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, String> {
///         self.total = self.total.checked_add(add).ok_or("the counter is full")?;
///         Ok(self.total)
///     }
/// }
/// ```
///
/// The state before a call is kept (`Clone`) until the run has ended, so that an `Err` or a panic
/// can undo it; keep large parts behind `Arc`s that you replace.
pub trait Actor: Clone + Default + Serialize + DeserializeOwned + Send + 'static {
    /// The kind's stable name: part of every stored message and checkpoint.
    const KIND: &'static str;
    /// Schema version of state and messages. Adding an optional field needs no new one.
    const SCHEMA: u16 = 1;
    /// How state and messages are written.
    const CODEC: Codec = Codec::Named;
    /// What the actor understands.
    type Message: Serialize + DeserializeOwned;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned;
    /// Why it refuses.
    type Error: Serialize + DeserializeOwned;

    /// Handles one message. `Err` undoes every change and every send of this call and is the answer.
    ///
    /// # Errors
    /// The user's own: a refusal, not a failure of the system.
    fn handle(&mut self, message: Self::Message, cx: &mut Cx<'_>) -> Result<Self::Reply, Self::Error>;

    /// Something this actor asked for came back: a timer, an effect, an answer. `Err` undoes the
    /// call's changes and is reported as an event.
    ///
    /// # Errors
    /// The user's own.
    fn signal(&mut self, signal: Signal<'_>, cx: &mut Cx<'_>) -> Result<(), Self::Error> {
        let _ = (signal, cx);
        Ok(())
    }

    /// True for a message that only reads: it runs on a copy of the state, writes no record, and its
    /// answer is held until everything it may have seen is durable.
    fn read_only(message: &Self::Message) -> bool {
        let _ = message;
        false
    }

    /// Answers a read-only message without a copy of the state. `None` leaves it to
    /// [`Actor::handle`], which gets a copy: worth overriding for what is asked often.
    fn look(&self, message: &Self::Message) -> Option<Result<Self::Reply, Self::Error>> {
        let _ = message;
        None
    }

    /// Turns state of another schema version into this one.
    ///
    /// # Errors
    /// [`CodecError::Schema`] unless overridden.
    fn migrate(old: Encoded<'_>) -> Result<Self, CodecError> {
        Err(CodecError::Schema { what: Self::KIND, expected: Self::SCHEMA, found: old.schema })
    }

    /// Turns a message of another schema version into this one.
    ///
    /// # Errors
    /// [`CodecError::Schema`] unless overridden.
    fn migrate_message(old: Encoded<'_>) -> Result<Self::Message, CodecError> {
        Err(CodecError::Schema { what: Self::KIND, expected: Self::SCHEMA, found: old.schema })
    }
}

/// Something an actor asked for came back.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Signal<'a> {
    /// A timer set with [`Cx::set_timer`] fired.
    Timer {
        /// Its name.
        name: &'a str,
    },
    /// An effect asked for with [`Cx::effect`] ended.
    Effect {
        /// The token given with the request.
        token: u64,
        /// How it ended.
        outcome: EffectOutcome<'a>,
    },
    /// A message sent with [`Cx::ask`] was answered.
    Answer {
        /// The token given with the question.
        token: u64,
        /// The reply, or the refusal; decode with [`Answer::reply`] and [`Answer::refusal`].
        answer: Answer<'a>,
    },
}

/// The answer to a [`Cx::ask`].
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub(crate) applied: bool,
    pub(crate) value: Option<Encoded<'a>>,
}

impl Answer<'_> {
    /// The reply of `B`, or `None` when it refused, failed, or replied something else.
    #[must_use]
    pub fn reply<B: Actor>(&self) -> Option<B::Reply> {
        self.value.filter(|_| self.applied)?.decode().ok()
    }

    /// The refusal of `B`, or `None` when it replied, or the handler failed.
    #[must_use]
    pub fn refusal<B: Actor>(&self) -> Option<B::Error> {
        self.value.filter(|_| !self.applied)?.decode().ok()
    }
}

/// What an actor may do besides changing its state. Everything here is undone with the call when it
/// ends in `Err` or panics, and leaves the partition only once its cause is durable.
pub struct Cx<'a> {
    pub(crate) run: &'a mut Run,
    pub(crate) kind: u32,
    pub(crate) key: &'a str,
}

impl Cx<'_> {
    /// The key of the running actor.
    #[must_use]
    pub fn key(&self) -> &str {
        self.key
    }

    /// The time of the input that caused this run: the same in every replay, never decreasing
    /// within a partition.
    #[must_use]
    pub fn now(&self) -> Time {
        self.run.now
    }

    /// Tells people, once the cause is durable: something goes on failing and needs them.
    pub fn alarm(&mut self, detail: String) {
        self.run.alarms.push(detail);
    }

    /// The running saga has ended and may be put away.
    pub(crate) fn ended(&mut self) {
        self.run.ended.push(self.key.to_owned());
    }

    /// 64 random bits, the same in every replay. Not for secrets.
    pub fn random(&mut self) -> u64 {
        self.run.random_counter += 1;
        let seed =
            mix(self.run.seed ^ mix(u64::from(self.kind))) ^ rallypoint_base::hash::xxh3(self.key.as_bytes());
        Random::new(seed.wrapping_add(self.run.random_counter)).next_u64()
    }

    /// True while the log is replayed after a crash: keep quiet then, the line was logged before.
    #[must_use]
    pub fn is_replaying(&self) -> bool {
        self.run.replaying
    }

    /// Sends `message` to actor `key` of kind `B`. It arrives exactly once, in order per pair of
    /// partitions, at some later time.
    pub fn send<B: Actor>(&mut self, key: &str, message: &B::Message) {
        self.run.send::<B>(key, message, None);
    }

    /// Sends `message` and gets the answer back as [`Signal::Answer`] with `token`.
    pub fn ask<B: Actor>(&mut self, key: &str, message: &B::Message, token: u64) {
        let asker = (self.kind, self.key.to_owned(), token);
        self.run.send::<B>(key, message, Some(asker));
    }

    /// Sets (or resets) this actor's timer `name`; it comes back as [`Signal::Timer`].
    pub fn set_timer(&mut self, name: &str, after: Duration) {
        let at = self.run.now + after;
        self.run.set_timer(self.kind, self.key, name, Some(at));
    }

    /// Cancels this actor's timer `name`; a timer that is not set is no error.
    pub fn cancel_timer(&mut self, name: &str) {
        self.run.set_timer(self.kind, self.key, name, None);
    }

    /// Asks the outside world: performs the effect registered as `name` at least once, always with
    /// the same idempotency key, after this run is durable. Its first result comes back as
    /// [`Signal::Effect`] with `token`; without one after `timeout`, `TimedOut` does.
    pub fn effect<T: Serialize>(&mut self, name: &str, request: &T, timeout: Duration, token: u64) {
        self.effect_with(Codec::Named, name, request, timeout, token);
    }

    pub(crate) fn effect_with<T: Serialize>(
        &mut self,
        codec: Codec,
        name: &str,
        request: &T,
        timeout: Duration,
        token: u64,
    ) {
        let mut payload = Vec::with_capacity(256);
        match codec::encode(codec, 0, request, &mut payload) {
            Ok(()) => self.run.effect(self.kind, self.key, name, payload, timeout, token),
            Err(error) => self.run.fail(RunError::Codec(error)),
        }
    }
}

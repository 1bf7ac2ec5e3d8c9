//! The client's side of an input session: numbers, windows, retries, answers.
//!
//! Decides which inputs are answered, what is sent again, and up to where the door may forget.
//! Never reports an answer that was not given, and never turns silence into "not done": an input
//! without an answer stays *unknown* until its original answer comes, however often it is repeated.
//!
//! Invariant: `acknowledged_below` never passes an input whose answer the caller has not taken.

use crate::message::Message;
use rallypoint_base::id::{InputSeq, PartitionId, SessionId};
use rallypoint_base::random::Random;
use rallypoint_base::wire::Malformed;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::codec::{self, Encoded};
use rallypoint_engine::command::{Outcome, Turned};
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// The way from a client to the directories, in the same process or over sockets.
pub(crate) trait Door: Send + Sync {
    /// Takes one encoded [`Message::Input`] for `to`. `urgent`: nobody will drive it, wake somebody.
    fn submit(&self, to: PartitionId, message: &[u8], urgent: bool);
    /// The caller is about to wait for an answer from `to`: lend its thread. `done` says when it
    /// has what it wants. Gives false when another thread is at it.
    fn drive(&self, to: PartitionId, done: &dyn Fn() -> bool) -> bool;
    /// Wakes whoever serves `to`.
    fn wake(&self, to: PartitionId);
    /// Why no answer will ever come over this door, if so.
    fn closed(&self) -> Option<String>;
    /// True when inputs must be kept for sending again (the way may lose them).
    fn may_lose(&self) -> bool;
}

/// Why an input has no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AskError<E> {
    /// The handler refused it; nothing changed.
    #[error("refused by the actor")]
    Refused(E),
    /// It could not be run (undecodable, over a limit); nothing changed.
    #[error("the input could not be run: {0}")]
    Failed(String),
    /// It was set aside: it panicked, or ended its worker. Nothing changed; see `quarantine list`.
    #[error("the input was set aside: {0}")]
    SetAside(String),
    /// The door did not let it in; nothing changed, and nothing will under this number. Ask anew, or
    /// keep the number with [`Pending::turned`] and [`Pending::again`].
    #[error(transparent)]
    Turned(#[from] Turned),
    /// The reply is no value of the expected type: client and server are different programs.
    #[error("the reply cannot be read: {0}")]
    Codec(String),
    /// The runtime was closed before the answer came: it is unknown whether the input ran. Ask again
    /// with the same session after reopening.
    #[error("closed before the answer came, so it is unknown whether the input ran: {0}")]
    Closed(String),
    /// No answer in time: it is unknown whether the input ran. Wait on.
    #[error("no answer in time: it is unknown whether the input ran")]
    TimedOut,
}

/// The answer to one input, undecoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawAnswer {
    /// The verdict and its bytes.
    Answered(Outcome, Vec<u8>),
    /// Turned away at the door.
    Turned(Turned),
}

/// Why an input has no answer: it is unknown whether it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    Closed(String),
    TimedOut,
}

enum Slot {
    /// Not answered. The message is kept where the way may lose it.
    Waiting {
        to: PartitionId,
        message: Vec<u8>,
        waker: Option<Waker>,
        sent: Instant,
        tries: u32,
        /// Sent more than once: what one copy is told at the door says nothing about the others.
        copied: bool,
        /// False once the [`Pending`] was dropped.
        wanted: bool,
        /// A thread sleeps until this one is answered.
        slept_for: bool,
    },
    Answered(RawAnswer),
    /// The caller has the answer, or does not want it.
    Taken,
}

struct Window {
    /// Number of the slot at the front.
    base: u64,
    slots: VecDeque<Slot>,
    unanswered: usize,
    random: Random,
    /// An answer came that a thread sleeps for.
    rouse: bool,
}

/// A client's session.
pub struct Client {
    session: SessionId,
    map: Arc<Map>,
    door: Arc<dyn Door>,
    state: Mutex<Window>,
    answered: Condvar,
}

/// In-flight inputs of one session above which a serving thread is woken at once instead of leaving
/// the work to the caller's own thread.
const BUSY: usize = 4;

fn lock(mutex: &Mutex<Window>) -> MutexGuard<'_, Window> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fresh session: the second it was opened in, and 32 random bits.
#[must_use]
pub fn new_session() -> SessionId {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let salt = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), now);
    SessionId(now.as_secs() << 32 | salt & 0xFFFF_FFFF)
}

impl Client {
    pub(crate) fn new(session: SessionId, next: InputSeq, map: Arc<Map>, door: Arc<dyn Door>) -> Arc<Self> {
        let window = Window {
            base: next.0.max(1),
            slots: VecDeque::new(),
            unanswered: 0,
            random: Random::new(session.0),
            rouse: false,
        };
        Arc::new(Self { session, map, door, state: Mutex::new(window), answered: Condvar::new() })
    }

    /// The session's id: with it and the next number another process can go on with this session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Inputs that have no answer yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        lock(&self.state).unanswered
    }

    /// Sends a message to an actor and gives the pending answer: once it is there, the input is
    /// durable and has changed state exactly once.
    pub fn ask<A: Actor>(self: &Arc<Self>, key: &str, message: &A::Message) -> Pending<A> {
        let to = self.map.partition_of(key);
        let seq = match parcel::<A>(key, message) {
            Ok(parcel) => self.submit(to, A::read_only(message), false, &parcel),
            Err(answer) => {
                let mut state = lock(&self.state);
                state.slots.push_back(Slot::Answered(answer));
                state.base + state.slots.len() as u64 - 1
            }
        };
        Pending { client: Arc::clone(self), to, seq, taken: false, actor: PhantomData }
    }

    /// Like [`Client::ask`] for an input whose number is given: the way to repeat, in a new process,
    /// what an earlier one sent in the same session. Numbers must ascend.
    pub fn ask_as<A: Actor>(self: &Arc<Self>, seq: InputSeq, key: &str, message: &A::Message) -> Pending<A> {
        {
            let mut state = lock(&self.state);
            let next = state.base + state.slots.len() as u64;
            for _ in next..seq.0 {
                state.slots.push_back(Slot::Taken);
            }
            state.compact();
        }
        self.ask(key, message)
    }

    fn submit(&self, to: PartitionId, read_only: bool, forget: bool, parcel: &[u8]) -> u64 {
        let mut state = lock(&self.state);
        let seq = state.base + state.slots.len() as u64;
        state.slots.push_back(Slot::Taken);
        self.send(&mut state, seq, to, read_only, forget, parcel);
        seq
    }

    /// Sends the input of a slot that is there.
    fn send(
        &self,
        state: &mut Window,
        seq: u64,
        to: PartitionId,
        read_only: bool,
        forget: bool,
        parcel: &[u8],
    ) {
        let message = Message::Input {
            to,
            session: self.session,
            seq: InputSeq(seq),
            acknowledged_below: InputSeq(if forget { seq + 1 } else { state.base }),
            read_only,
            parcel,
        };
        let mut bytes = Vec::with_capacity(parcel.len() + 40);
        message.encode(&mut bytes);
        state.unanswered += 1;
        let busy = state.unanswered > BUSY;
        let kept = if self.door.may_lose() { bytes.clone() } else { Vec::new() };
        let waiting = Slot::Waiting {
            to,
            message: kept,
            waker: None,
            sent: Instant::now(),
            tries: 0,
            copied: false,
            wanted: true,
            slept_for: false,
        };
        if let Some(slot) = state.slot_mut(seq) {
            *slot = waiting;
        }
        // Under the lock, so that numbers reach the door in order.
        self.door.submit(to, &bytes, busy);
    }

    /// Takes answers in: a run of encoded [`Message::Reply`] and [`Message::Turn`].
    pub(crate) fn deliver(&self, mut bytes: &[u8]) -> Result<(), Malformed> {
        let mut state = lock(&self.state);
        let mut wakers = Vec::new();
        while let Some((message, len)) = Message::split(bytes)? {
            bytes = &bytes[len..];
            match message {
                Message::Reply { seq, outcome, bytes, .. } => {
                    state.answer(seq, RawAnswer::Answered(outcome, bytes.to_vec()), &mut wakers);
                }
                Message::Turn { seq, why, .. } => {
                    // Of an input that was sent again another copy may still run: that one's answer
                    // is waited for, or a third copy's.
                    if matches!(why, Turned::Overloaded | Turned::Stopped) && state.is_copied(seq) {
                        continue;
                    }
                    state.answer(seq, RawAnswer::Turned(why), &mut wakers);
                }
                _ => {}
            }
        }
        let wake = std::mem::take(&mut state.rouse);
        drop(state);
        if wake {
            self.answered.notify_all();
        }
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Everything unanswered that goes to partitions of which `which` is true, in order: what a new
    /// connection must carry again.
    pub(crate) fn unanswered(&self, which: &dyn Fn(PartitionId) -> bool, out: &mut Vec<u8>) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        for slot in &mut state.slots {
            if let Slot::Waiting { to, message, sent, copied, .. } = slot
                && which(*to)
            {
                out.extend_from_slice(message);
                *sent = now;
                *copied = true;
            }
        }
    }

    /// Sends again what has had no answer for longer than a growing, jittered time.
    pub(crate) fn retry(&self) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let mut random = state.random.clone();
        for slot in &mut state.slots {
            if let Slot::Waiting { to, message, sent, tries, copied, .. } = slot
                && !message.is_empty()
            {
                let patience = Duration::from_secs(2).saturating_mul(1 << (*tries).min(4));
                let jitter = Duration::from_millis(random.below(500));
                if now.duration_since(*sent) > patience + jitter {
                    *sent = now;
                    *copied = true;
                    *tries += 1;
                    self.door.submit(*to, message, true);
                }
            }
        }
        state.random = random;
    }

    /// No answer will come any more: everybody who waits is told.
    pub(crate) fn wake_all(&self) {
        let mut state = lock(&self.state);
        let mut wakers = Vec::new();
        for slot in &mut state.slots {
            if let Slot::Waiting { waker, .. } = slot {
                wakers.extend(waker.take());
            }
        }
        drop(state);
        self.answered.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Sends an encoded message as an input and waits for its answer, undecoded. `forget`: this is a
    /// repetition whose answer is had already, so that the door need not keep it.
    pub(crate) fn put(
        &self,
        to: PartitionId,
        parcel: &[u8],
        forget: bool,
        patience: Duration,
    ) -> Result<RawAnswer, Unanswered> {
        let seq = self.submit(to, false, forget, parcel);
        self.wait_raw(to, seq, Some(Instant::now() + patience))
    }

    fn wait_raw(
        &self,
        to: PartitionId,
        seq: u64,
        deadline: Option<Instant>,
    ) -> Result<RawAnswer, Unanswered> {
        loop {
            if let Some(answer) = self.take(seq) {
                return Ok(answer);
            }
            if let Some(why) = self.door.closed() {
                return Err(Unanswered::Closed(why));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Unanswered::TimedOut);
            }
            // With much in flight this thread has better things to do during a commit: it takes the
            // answers of the last one and asks again.
            if lock(&self.state).unanswered > BUSY {
                self.door.wake(to);
            } else if self.door.drive(to, &|| self.is_answered(seq)) {
                continue;
            }
            let mut state = lock(&self.state);
            let Some(Slot::Waiting { slept_for, .. }) = state.slot_mut(seq) else { continue };
            *slept_for = true;
            // A bound, not a poll: whoever holds the unit now may leave it just before our input is
            // seen, and the standing thread then takes over within this time.
            let mut patience = Duration::from_millis(50);
            if let Some(deadline) = deadline {
                patience = patience.min(deadline.saturating_duration_since(Instant::now()));
            }
            drop(self.answered.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn take(&self, seq: u64) -> Option<RawAnswer> {
        lock(&self.state).take(seq)
    }

    fn is_answered(&self, seq: u64) -> bool {
        let state = lock(&self.state);
        !matches!(state.slot(seq), Some(Slot::Waiting { .. }))
    }
}

impl Window {
    fn slot(&self, seq: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(seq.checked_sub(self.base)?).ok()?)
    }

    fn slot_mut(&mut self, seq: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(seq.checked_sub(self.base)?).ok()?)
    }

    fn is_copied(&self, seq: InputSeq) -> bool {
        matches!(self.slot(seq.0), Some(Slot::Waiting { copied: true, .. }))
    }

    fn answer(&mut self, seq: InputSeq, answer: RawAnswer, wakers: &mut Vec<Waker>) {
        if let Some(slot) = self.slot_mut(seq.0)
            && let Slot::Waiting { waker, wanted, slept_for, .. } = slot
        {
            wakers.extend(waker.take());
            let rouse = *slept_for;
            *slot = if *wanted { Slot::Answered(answer) } else { Slot::Taken };
            self.rouse |= rouse;
            self.unanswered -= 1;
            self.compact();
        }
    }

    fn take(&mut self, seq: u64) -> Option<RawAnswer> {
        let slot = self.slot_mut(seq)?;
        if !matches!(slot, Slot::Answered(_)) {
            return None;
        }
        let Slot::Answered(answer) = std::mem::replace(slot, Slot::Taken) else { return None };
        self.compact();
        Some(answer)
    }

    fn compact(&mut self) {
        while matches!(self.slots.front(), Some(Slot::Taken)) {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

/// An answer that is on its way. Await it, or [`Pending::wait`] for it. Dropping it cancels nothing.
#[must_use = "an input is acknowledged only by its answer"]
pub struct Pending<A: Actor> {
    client: Arc<Client>,
    to: PartitionId,
    seq: u64,
    taken: bool,
    actor: PhantomData<fn() -> A>,
}

impl<A: Actor> Pending<A> {
    /// Number of the input in its session.
    #[must_use]
    pub fn seq(&self) -> InputSeq {
        InputSeq(self.seq)
    }

    /// True once the answer is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.client.is_answered(self.seq)
    }

    /// Why the door turned the input away, if it did. The answer is not taken, so that the input can
    /// be sent again under the same number: see [`Pending::again`].
    #[must_use]
    pub fn turned(&self) -> Option<Turned> {
        match lock(&self.client.state).slot(self.seq) {
            Some(Slot::Answered(RawAnswer::Turned(why))) => Some(*why),
            _ => None,
        }
    }

    /// Sends an input that was turned away once more, under its own number: whoever repeats the whole
    /// session in another process (see [`Client::ask_as`]) then repeats this one too, and it runs once.
    /// An input that was not turned away is left as it is. The message must be the same.
    pub fn again(self, key: &str, message: &A::Message) -> Self {
        if self.turned().is_none() {
            return self;
        }
        let client = Arc::clone(&self.client);
        let mut state = lock(&client.state);
        match parcel::<A>(key, message) {
            Ok(parcel) => {
                client.send(&mut state, self.seq, self.to, A::read_only(message), false, &parcel);
            }
            Err(answer) => {
                if let Some(slot) = state.slot_mut(self.seq) {
                    *slot = Slot::Answered(answer);
                }
            }
        }
        drop(state);
        self
    }

    /// Waits at most this long for the answer to be there, without taking it.
    #[must_use]
    pub fn wait_ready(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.client.state);
        while let Some(Slot::Waiting { slept_for, .. }) = state.slot_mut(self.seq) {
            *slept_for = true;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (state, _) =
                self.client.answered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Waits for the answer, lending this thread to the work where that is the shortest way.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn wait(self) -> Result<A::Reply, AskError<A::Error>> {
        self.wait_until(None)
    }

    /// Waits at most this long. After [`AskError::TimedOut`] it is unknown whether the input ran.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn wait_for(self, patience: Duration) -> Result<A::Reply, AskError<A::Error>> {
        self.wait_until(Some(Instant::now() + patience))
    }

    fn wait_until(mut self, deadline: Option<Instant>) -> Result<A::Reply, AskError<A::Error>> {
        match self.client.wait_raw(self.to, self.seq, deadline) {
            Ok(answer) => {
                self.taken = true;
                decode::<A>(answer)
            }
            Err(Unanswered::Closed(why)) => Err(AskError::Closed(why)),
            Err(Unanswered::TimedOut) => Err(AskError::TimedOut),
        }
    }
}

#[cfg(feature = "saga")]
impl<A: Actor> Pending<A> {
    /// Lends this thread, once, to whoever answers; it may wait for a synced write.
    pub(crate) fn lend_thread(&self) {
        self.client.door.drive(self.to, &|| self.client.is_answered(self.seq));
    }
}

impl<A: Actor> Future for Pending<A> {
    type Output = Result<A::Reply, AskError<A::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let client = Arc::clone(&self.client);
        let mut state = lock(&client.state);
        if let Some(answer) = state.take(self.seq) {
            self.taken = true;
            return Poll::Ready(decode::<A>(answer));
        }
        if let Some(why) = client.door.closed() {
            return Poll::Ready(Err(AskError::Closed(why)));
        }
        let first = match state.slot_mut(self.seq) {
            Some(Slot::Waiting { waker, .. }) => waker.replace(cx.waker().clone()).is_none(),
            _ => false,
        };
        drop(state);
        if first {
            client.door.wake(self.to);
        }
        Poll::Pending
    }
}

impl<A: Actor> Drop for Pending<A> {
    fn drop(&mut self) {
        if !self.taken {
            let mut state = lock(&self.client.state);
            // The input goes on; its answer is not wanted, so the door may forget it once given.
            match state.slot_mut(self.seq) {
                Some(slot @ Slot::Answered(_)) => *slot = Slot::Taken,
                Some(Slot::Waiting { wanted, .. }) => *wanted = false,
                _ => {}
            }
            state.compact();
            drop(state);
            self.client.door.wake(self.to);
        }
    }
}

impl<A: Actor> std::fmt::Debug for Pending<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({} of {})", self.seq, A::KIND)
    }
}

/// The message for an actor as it goes to its partition, or the answer when it cannot be encoded.
fn parcel<A: Actor>(key: &str, message: &A::Message) -> Result<Vec<u8>, RawAnswer> {
    let mut parcel = Vec::with_capacity(64);
    let header = Parcel { kind: kind_tag(A::KIND), key, asker: None, body: Body::Message(&[]) };
    header.encode(&mut parcel);
    let encoded = codec::encode(A::CODEC, A::SCHEMA, message, &mut parcel);
    encoded.map_err(|error| RawAnswer::Answered(Outcome::Failed, error.to_string().into_bytes()))?;
    Ok(parcel)
}

fn decode<A: Actor>(answer: RawAnswer) -> Result<A::Reply, AskError<A::Error>> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    match answer {
        RawAnswer::Turned(why) => Err(AskError::Turned(why)),
        RawAnswer::Answered(Outcome::Failed, bytes) => Err(AskError::Failed(text(bytes))),
        RawAnswer::Answered(Outcome::SetAside, bytes) => Err(AskError::SetAside(text(bytes))),
        RawAnswer::Answered(outcome, bytes) => {
            let encoded = Encoded::split(&bytes)
                .ok_or_else(|| AskError::Codec("the reply has no codec and schema".into()))?;
            if outcome == Outcome::Applied {
                encoded.decode().map_err(|error| AskError::Codec(error.to_string()))
            } else {
                let refusal = encoded.decode().map_err(|error| AskError::Codec(error.to_string()))?;
                Err(AskError::Refused(refusal))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallypoint_engine::actor::Cx;

    #[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
    struct Counter(u64);

    impl Actor for Counter {
        const KIND: &'static str = "counter";
        type Message = u64;
        type Reply = u64;
        type Error = ();
        fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, ()> {
            self.0 += add;
            Ok(self.0)
        }
    }

    /// A way that keeps what goes over it and answers nothing by itself.
    #[derive(Default)]
    struct Way(Mutex<Vec<(InputSeq, InputSeq)>>);

    impl Door for Way {
        fn submit(&self, _: PartitionId, message: &[u8], _: bool) {
            if let Ok(Some((Message::Input { seq, acknowledged_below, .. }, _))) = Message::split(message) {
                self.0.lock().expect("no panic").push((seq, acknowledged_below));
            }
        }
        fn drive(&self, _: PartitionId, _: &dyn Fn() -> bool) -> bool {
            false
        }
        fn wake(&self, _: PartitionId) {}
        fn closed(&self) -> Option<String> {
            None
        }
        fn may_lose(&self) -> bool {
            true
        }
    }

    fn client() -> (Arc<Client>, Arc<Way>) {
        let (map, way) = (Arc::new(Map::even(1, 1, 7).expect("a map")), Arc::new(Way::default()));
        (Client::new(SessionId(1 << 32), InputSeq(1), map, Arc::clone(&way) as Arc<dyn Door>), way)
    }

    fn turn(client: &Client, seq: u64, why: Turned) {
        let mut bytes = Vec::new();
        Message::Turn { session: client.session(), seq: InputSeq(seq), why }.encode(&mut bytes);
        client.deliver(&bytes).expect("well formed");
    }

    #[test]
    fn what_was_turned_away_goes_again_under_its_own_number() {
        let (client, way) = client();
        let first = client.ask_as::<Counter>(InputSeq(5), "a", &1);
        let second = client.ask_as::<Counter>(InputSeq(6), "a", &1);
        turn(&client, 5, Turned::Overloaded);
        assert_eq!((first.turned(), second.turned()), (Some(Turned::Overloaded), None));
        let first = first.again("a", &1);
        assert!(!first.is_ready());
        // What is still wanted is never told to be forgotten.
        let third = client.ask::<Counter>("a", &1);
        let sent = [(5, 5), (6, 5), (5, 5), (7, 5)].map(|(seq, below)| (InputSeq(seq), InputSeq(below)));
        assert_eq!(*way.0.lock().expect("no panic"), sent);
        drop((second, third));
    }

    #[test]
    fn a_copy_that_is_turned_away_says_nothing_about_the_others() {
        let (client, _way) = client();
        let pending = client.ask::<Counter>("a", &1);
        let mut again = Vec::new();
        client.unanswered(&|_| true, &mut again);
        assert!(!again.is_empty());
        turn(&client, 1, Turned::Overloaded);
        assert!(!pending.is_ready(), "the other copy may have run");
        // What no copy can change is an answer.
        turn(&client, 1, Turned::TooOld);
        assert_eq!(pending.wait(), Err(AskError::Turned(Turned::TooOld)));
    }
}

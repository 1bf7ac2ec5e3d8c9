//! The saga's function: ordinary async code that awaits only what is given here.
//!
//! Decides: what a poll of the function asked for ([`Turn`]), and whether it still matches its
//! journal. Never runs a step: it is told results. Never wakes by itself: a function that is pending
//! with nothing of ours outstanding awaits something foreign, and is broken off.
//!
//! Invariants: an operation's number is given when it is created, in program order; it is asked for
//! when it is first polled; the same results in the same order give the same turns, or the function
//! is not deterministic.

use crate::event::{Attempt, Direction, End, Turn};
use crate::machine::Machine;
use crate::op::{Failure, FailureKind, NewOp, OpNumber, OpState, Policy, What};
use crate::step::{SagaError, Step, StepError, StepFailure, business};
use crate::value::Blob;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What an operation came to.
pub type Resolution = Result<Blob, Failure>;

/// A boxed future.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The body of a [`Saga::run`]: may be called for each attempt.
pub type Body = Arc<dyn Fn() -> BoxFuture<Attempt> + Send + Sync>;

#[derive(Default)]
struct Shared {
    id: String,
    next: OpNumber,
    resolved: BTreeMap<OpNumber, Resolution>,
    asked: Vec<NewOp>,
    forgotten: Vec<OpNumber>,
    bodies: BTreeMap<OpNumber, Body>,
    /// Operations asked for, without a result, not forgotten.
    outstanding: BTreeMap<OpNumber, String>,
    /// Those of them that will have a result soon.
    soon: BTreeSet<OpNumber>,
    last: Option<String>,
    cancelled: Option<Failure>,
    broken: Option<Failure>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a saga's function works with. Cloning gives another handle to the same saga.
pub struct Saga<C> {
    shared: Arc<Mutex<Shared>>,
    context: PhantomData<fn() -> C>,
}

impl<C> Clone for Saga<C> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), context: PhantomData }
    }
}

impl<C: 'static> Saga<C> {
    /// The saga's id.
    #[must_use]
    pub fn id(&self) -> String {
        lock(&self.shared).id.clone()
    }

    fn create<T>(&self, name: &str, what: What, read: fn(Resolution) -> T) -> Operation<T> {
        let mut shared = lock(&self.shared);
        let number = shared.next;
        shared.next += 1;
        drop(shared);
        let new = Some(NewOp { number, name: name.to_owned(), what });
        Operation { shared: Arc::clone(&self.shared), number, new, read, taken: false }
    }

    /// Runs a step: journaled before its first attempt, undone when the saga fails.
    pub fn step<S: Step<C>>(&self, step: S) -> Operation<Result<S::Output, StepFailure<S::Error>>> {
        let value = self.journaled(S::NAME, &step);
        self.create(S::NAME, What::Step { value, policy: None }, read_step)
    }

    /// A step whose type is not known here: a value that the step registered as `name` reads, or the
    /// registry's fallback step where none of this name is registered.
    pub fn step_as(&self, name: &str, value: Blob, policy: Policy) -> Operation<Resolution> {
        let what = What::Step { value, policy: Some(policy) };
        self.create(name, what, |resolution| resolution)
    }

    fn journaled<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Blob {
        Blob::of(value).unwrap_or_else(|error| {
            let text = format!("the value of {name:?} cannot be journaled: {error}");
            lock(&self.shared).broken.get_or_insert(Failure::new(FailureKind::Fatal, text));
            Blob::default()
        })
    }

    /// Runs a closure that needs no undo. It is called for each attempt, also after a restart: it
    /// must capture nothing that does not follow from the saga's input and journaled results.
    pub fn run<T, E, F, Fut>(&self, name: &str, body: F) -> Operation<Result<T, StepFailure<E>>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Serialize + DeserializeOwned + Display + Send + 'static,
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError<E>>> + Send + 'static,
    {
        let operation = self.create(name, What::Run { policy: None }, read_step);
        let body: Body = Arc::new(move || {
            let attempt = body();
            Box::pin(async move { crate::registry::attempt(attempt.await) })
        });
        lock(&self.shared).bodies.insert(operation.number, body);
        operation
    }

    /// Waits. Ends early, with an error, only when the saga is cancelled.
    pub fn sleep(&self, length: Duration) -> Operation<Result<(), SagaError>> {
        self.create("sleep", What::Sleep { length }, |r| r.map(|_| ()).map_err(SagaError))
    }

    /// [`Saga::sleep`] under a name.
    pub fn sleep_as(&self, name: &str, length: Duration) -> Operation<Result<(), SagaError>> {
        self.create(name, What::Sleep { length }, |r| r.map(|_| ()).map_err(SagaError))
    }

    /// Waits for a signal. One that came before it is asked for is kept.
    pub fn signal<T: DeserializeOwned>(&self, name: &str) -> Operation<Result<T, SagaError>> {
        self.create(name, What::Signal { within: None }, read_value)
    }

    /// Runs another saga as a child: its id is this saga's with the operation's number. A child that
    /// completed is compensated when this saga fails.
    pub fn child<I: Serialize, O: DeserializeOwned>(
        &self,
        saga: &str,
        input: &I,
    ) -> Operation<Result<O, SagaError>> {
        let input = self.journaled(saga, input);
        self.create(saga, What::Child { saga: saga.to_owned(), input }, read_value)
    }

    /// Awaits both, side by side. The first error ends the wait; the other's outcome is still
    /// journaled, and undone if it acted.
    pub fn join<A, B, T, U>(&self, a: A, b: B) -> Join<A, B, T, U>
    where
        A: Future + Unpin,
        B: Future + Unpin,
        A::Output: IntoSagaResult<T>,
        B::Output: IntoSagaResult<U>,
    {
        Join { a, b, out: (None, None) }
    }

    /// Awaits all, side by side, in the form of [`Saga::join`].
    pub fn join_all<A, T>(&self, all: Vec<A>) -> JoinAll<A, T>
    where
        A: Future + Unpin,
        A::Output: IntoSagaResult<T>,
    {
        let out = all.iter().map(|_| None).collect();
        JoinAll { all, out }
    }

    /// Awaits whichever is first. A timer, signal or child wait that loses is forgotten; a step that
    /// loses goes on, and is undone if the saga fails.
    pub fn select<A: Future + Unpin, B: Future + Unpin>(&self, a: A, b: B) -> Select<A, B> {
        Select { a, b }
    }
}

/// A sleep of at least this long is worth building the function anew afterwards.
const LONG: Duration = Duration::from_secs(10);

fn is_soon(what: &What) -> bool {
    match what {
        What::Signal { .. } => false,
        What::Sleep { length } => *length < LONG,
        What::Step { .. } | What::Run { .. } | What::Child { .. } => true,
    }
}

fn read_value<T: DeserializeOwned>(resolution: Resolution) -> Result<T, SagaError> {
    let unread = |error: crate::value::ValueError| Failure::new(FailureKind::Mismatch, error.to_string());
    resolution.and_then(|blob| blob.read().map_err(unread)).map_err(SagaError)
}

fn read_step<T: DeserializeOwned, E: DeserializeOwned>(resolution: Resolution) -> Result<T, StepFailure<E>> {
    match resolution {
        Ok(blob) => blob
            .read()
            .map_err(|error| StepFailure::Failed(Failure::new(FailureKind::Mismatch, error.to_string()))),
        Err(failure) => {
            let typed = match (failure.kind, &failure.data) {
                (FailureKind::Business, Some(data)) => data.read().ok(),
                _ => None,
            };
            Err(typed.map_or(StepFailure::Failed(failure), StepFailure::Business))
        }
    }
}

/// An operation that the function awaits. Asked for when it is first polled.
#[must_use = "an operation that is never awaited is never asked for"]
pub struct Operation<T> {
    shared: Arc<Mutex<Shared>>,
    number: OpNumber,
    new: Option<NewOp>,
    read: fn(Resolution) -> T,
    taken: bool,
}

impl<T> Operation<T> {
    fn change(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        if let Some(NewOp { what: What::Step { policy, .. } | What::Run { policy }, .. }) = &mut self.new {
            change(policy.get_or_insert_default());
        }
        self
    }

    /// Calls it so in the journal (a step's registered name stays what it is).
    pub fn named(mut self, name: &str) -> Self {
        if let Some(new) = &mut self.new
            && !matches!(new.what, What::Step { .. })
        {
            new.name = name.to_owned();
        }
        self
    }

    /// An attempt without an answer after this long has an unknown outcome (default 30 s).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.change(|policy| policy.timeout = timeout)
    }

    /// Attempts in all (default 5), the first wait (1 s, doubling, full jitter) and the longest (30 s).
    pub fn retry(self, attempts: u32, base: Duration, cap: Duration) -> Self {
        self.change(|policy| {
            policy.attempts = attempts.max(1);
            (policy.base, policy.cap) = (base, cap);
        })
    }

    /// Attempts of the undo before it is exhausted and the saga stuck (default 10).
    pub fn undo_attempts(self, attempts: u32) -> Self {
        self.change(|policy| policy.undo_attempts = attempts.max(1))
    }

    /// After this step there is only forward: once it acted, or may have, nothing is undone and
    /// nothing is given up.
    pub fn pivot(self) -> Self {
        self.change(|policy| policy.pivot = true)
    }

    /// An attempt without a good answer has left nothing behind: only a known outcome is undone.
    pub fn atomic(self) -> Self {
        self.change(|policy| policy.atomic = true)
    }

    /// Waits at most this long for a signal.
    pub fn within(mut self, longest: Duration) -> Self {
        if let Some(NewOp { what: What::Signal { within }, .. }) = &mut self.new {
            *within = Some(longest);
        }
        self
    }
}

impl<T> Future for Operation<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        let mut shared = lock(&this.shared);
        if let Some(failure) = &shared.cancelled {
            let failure = failure.clone();
            this.taken = true;
            drop(shared);
            return Poll::Ready((this.read)(Err(failure)));
        }
        if let Some(new) = this.new.take() {
            shared.last = Some(new.name.clone());
            if !shared.resolved.contains_key(&this.number) {
                shared.outstanding.insert(this.number, new.name.clone());
                if is_soon(&new.what) {
                    shared.soon.insert(this.number);
                }
            }
            shared.asked.push(new);
        }
        // Taken out: a result is read once, and a body is not needed after it.
        match shared.resolved.remove(&this.number) {
            Some(resolution) => {
                shared.bodies.remove(&this.number);
                this.taken = true;
                drop(shared);
                Poll::Ready((this.read)(resolution))
            }
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut shared = lock(&self.shared);
        if self.new.is_some() {
            shared.bodies.remove(&self.number);
        } else if shared.resolved.remove(&self.number).is_none() {
            shared.forgotten.push(self.number);
        }
    }
}

/// What [`Saga::join`] accepts.
pub trait IntoSagaResult<T> {
    /// The value, or why the saga fails.
    ///
    /// # Errors
    /// [`SagaError`].
    fn into_saga_result(self) -> Result<T, SagaError>;
}

impl<T, E: Into<SagaError>> IntoSagaResult<T> for Result<T, E> {
    fn into_saga_result(self) -> Result<T, SagaError> {
        self.map_err(Into::into)
    }
}

/// See [`Saga::join`].
#[must_use]
pub struct Join<A, B, T, U> {
    a: A,
    b: B,
    out: (Option<T>, Option<U>),
}

impl<A, B, T: Unpin, U: Unpin> Future for Join<A, B, T, U>
where
    A: Future + Unpin,
    B: Future + Unpin,
    A::Output: IntoSagaResult<T>,
    B::Output: IntoSagaResult<U>,
{
    type Output = Result<(T, U), SagaError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.out.0.is_none()
            && let Poll::Ready(a) = Pin::new(&mut this.a).poll(cx)
        {
            this.out.0 = Some(a.into_saga_result()?);
        }
        if this.out.1.is_none()
            && let Poll::Ready(b) = Pin::new(&mut this.b).poll(cx)
        {
            this.out.1 = Some(b.into_saga_result()?);
        }
        match (this.out.0.take(), this.out.1.take()) {
            (Some(a), Some(b)) => Poll::Ready(Ok((a, b))),
            out => {
                this.out = out;
                Poll::Pending
            }
        }
    }
}

/// See [`Saga::join_all`].
#[must_use]
pub struct JoinAll<A, T> {
    all: Vec<A>,
    out: Vec<Option<T>>,
}

impl<A, T: Unpin> Future for JoinAll<A, T>
where
    A: Future + Unpin,
    A::Output: IntoSagaResult<T>,
{
    type Output = Result<Vec<T>, SagaError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        for (future, out) in this.all.iter_mut().zip(&mut this.out) {
            if out.is_none()
                && let Poll::Ready(value) = Pin::new(future).poll(cx)
            {
                *out = Some(value.into_saga_result()?);
            }
        }
        if this.out.iter().any(Option::is_none) {
            return Poll::Pending;
        }
        Poll::Ready(Ok(std::mem::take(&mut this.out).into_iter().flatten().collect()))
    }
}

/// Which of two was first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

/// See [`Saga::select`].
#[must_use]
pub struct Select<A, B> {
    a: A,
    b: B,
}

impl<A: Future + Unpin, B: Future + Unpin> Future for Select<A, B> {
    type Output = Either<A::Output, B::Output>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(a) = Pin::new(&mut this.a).poll(cx) {
            return Poll::Ready(Either::First(a));
        }
        Pin::new(&mut this.b).poll(cx).map(Either::Second)
    }
}

/// A saga function with its types taken away.
pub(crate) type Function<C> =
    Arc<dyn Fn(Saga<C>, &Blob) -> Result<BoxFuture<Result<Blob, SagaError>>, Failure> + Send + Sync>;

pub(crate) fn function<C, I, O, F, Fut>(f: F) -> Function<C>
where
    C: 'static,
    I: DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    F: Fn(Saga<C>, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, SagaError>> + Send + 'static,
{
    Arc::new(move |saga, input| {
        let input = input.read::<I>().map_err(|error| {
            Failure::new(FailureKind::Mismatch, format!("the saga's input cannot be read: {error}"))
        })?;
        let future = f(saga, input);
        Ok(Box::pin(async move {
            let output = future.await?;
            Blob::of(&output)
                .map_err(|e| SagaError(Failure::new(FailureKind::Fatal, format!("the output: {e}"))))
        }))
    })
}

/// A live copy of a saga's function.
pub struct Runner {
    future: Option<BoxFuture<Result<Blob, SagaError>>>,
    shared: Arc<Mutex<Shared>>,
    turns: u32,
    generation: u32,
}

impl Runner {
    pub(crate) fn begin<C: 'static>(function: &Function<C>, id: &str, input: &Blob) -> Result<Self, Failure> {
        let shared = Arc::new(Mutex::new(Shared { id: id.to_owned(), ..Shared::default() }));
        let saga = Saga { shared: Arc::clone(&shared), context: PhantomData };
        let made = catch_unwind(AssertUnwindSafe(|| function(saga, input)));
        let future = made.unwrap_or_else(|panic| Err(panicked(&*panic)))?;
        Ok(Self { future: Some(future), shared, turns: 0, generation: 0 })
    }

    /// Turns it has made.
    #[must_use]
    pub fn turns(&self) -> u32 {
        self.turns
    }

    /// Results can still be told to it: it has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.future.is_some()
    }

    /// It waits only for what may take long: a signal, or a long sleep. Whoever keeps it may drop it,
    /// and build it anew when there is something to tell.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let shared = lock(&self.shared);
        !shared.outstanding.is_empty() && shared.soon.is_empty()
    }

    /// The closure of a [`Saga::run`] that has no result yet.
    #[must_use]
    pub fn body(&self, number: OpNumber) -> Option<Body> {
        lock(&self.shared).bodies.get(&number).cloned()
    }

    /// Tells it results and polls it: what it asks for is the turn.
    pub fn turn(&mut self, results: Vec<(OpNumber, Resolution)>) -> Turn {
        let mut turn = Turn { index: self.turns, generation: self.generation, ..Turn::default() };
        {
            let mut shared = lock(&self.shared);
            for (number, resolution) in results {
                shared.outstanding.remove(&number);
                shared.soon.remove(&number);
                shared.resolved.insert(number, resolution);
                turn.fed.push(number);
            }
        }
        self.turns += 1;
        turn.end = self.poll();
        let mut shared = lock(&self.shared);
        turn.ops = std::mem::take(&mut shared.asked);
        turn.forgotten = std::mem::take(&mut shared.forgotten);
        let forgotten = |shared: &mut Shared, number: &OpNumber| {
            shared.outstanding.remove(number);
        };
        for op in &turn.forgotten {
            // A step goes on; what merely waits is not waited for any more.
            forgotten(&mut shared, op);
        }
        if let Some(failure) = shared.broken.take() {
            turn.end = Some(End::Broken(failure));
        } else if turn.end.is_none() && shared.outstanding.is_empty() {
            let after = shared
                .last
                .as_deref()
                .map_or("before its first operation".to_owned(), |last| format!("after {last:?}"));
            let text = format!(
                "the saga's function awaits something foreign {after}: only rallypoint's futures may be \
                 awaited there; put other work into a step"
            );
            turn.end = Some(End::Broken(Failure::new(FailureKind::ForeignAwait, text)));
        }
        if turn.end.is_some() {
            drop(shared);
            self.future = None;
        }
        turn
    }

    fn poll(&mut self) -> Option<End> {
        let future = self.future.as_mut()?;
        let polled =
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match polled {
            Err(panic) => Some(End::Broken(panicked(&*panic))),
            Ok(Poll::Pending) => None,
            Ok(Poll::Ready(Ok(output))) => Some(End::Completed(output)),
            // What no step can have said: a person looks before anything is undone.
            Ok(Poll::Ready(Err(SagaError(failure))))
                if matches!(failure.kind, FailureKind::Mismatch | FailureKind::Stopped) =>
            {
                Some(End::Broken(failure))
            }
            Ok(Poll::Ready(Err(SagaError(failure)))) => Some(End::Failed(failure)),
        }
    }

    /// The saga was cancelled: whatever it awaits resolves to that, and what it says then counts for
    /// nothing.
    pub fn cancel(mut self, failure: Failure) {
        lock(&self.shared).cancelled = Some(failure);
        let _ = self.poll();
    }

    /// Tells a fresh copy what the journal says, turn by turn, and compares what it asks for.
    ///
    /// # Errors
    /// The first difference, as a [`FailureKind::Mismatch`].
    pub(crate) fn replay(&mut self, machine: &Machine) -> Result<(), Failure> {
        self.generation = machine.generation();
        let mut known = 0;
        for (index, journaled) in machine.turns().iter().enumerate() {
            let results = journaled.fed.iter().filter_map(|&n| Some((n, resolution(machine, n)?))).collect();
            let turn = self.turn(results);
            if let Some(End::Broken(failure)) = turn.end {
                return Err(failure);
            }
            let expected = &machine.ops()[known..journaled.ops as usize];
            known = journaled.ops as usize;
            compare(index, expected, &turn.ops)?;
            if turn.end.is_some() && index + 1 < machine.turns().len() {
                let text = format!("the function ends in turn {index}, its journal goes on");
                return Err(Failure::new(FailureKind::Mismatch, text));
            }
        }
        Ok(())
    }
}

/// What the journal says an operation came to.
#[must_use]
pub fn resolution(machine: &Machine, number: OpNumber) -> Option<Resolution> {
    let op = machine.op(number)?;
    match op.state {
        OpState::Done => Some(Ok(op.output.clone().unwrap_or_default())),
        OpState::Failed => {
            let unsaid = || Failure::new(FailureKind::Transient, "it failed");
            Some(Err(op.error.clone().unwrap_or_else(unsaid)))
        }
        _ => None,
    }
}

/// What the function may be told of an attempt at once, because no other attempt can change it.
/// `may_fail` is what [`Machine::may_fail`] said when the attempt was asked for.
#[must_use]
pub fn told(attempt: &Attempt, direction: Direction, may_fail: bool) -> Option<Resolution> {
    match (attempt, direction) {
        (Attempt::Done(output), Direction::Run) => Some(Ok(output.clone())),
        (Attempt::Failed { failure, may_have_acted: false, .. }, Direction::Run)
            if failure.kind == FailureKind::Business && may_fail =>
        {
            Some(Err(failure.clone()))
        }
        _ => None,
    }
}

fn compare(turn: usize, expected: &[crate::op::Op], found: &[NewOp]) -> Result<(), Failure> {
    let mismatch = |text: String| Err(Failure::new(FailureKind::Mismatch, text));
    for at in 0..expected.len().max(found.len()) {
        match (expected.get(at), found.get(at)) {
            (Some(old), Some(new))
                if old.number == new.number && old.name == new.name && old.what == new.what => {}
            (Some(old), Some(new)) if old.number == new.number && old.name == new.name => {
                return mismatch(format!(
                    "turn {turn}: operation {} {:?} has another value or policy than in the journal",
                    old.number, old.name
                ));
            }
            (Some(old), Some(new)) => {
                return mismatch(format!(
                    "turn {turn}: the journal has operation {} {:?}, the function asks for {} {:?}",
                    old.number, old.name, new.number, new.name
                ));
            }
            (Some(old), None) => {
                return mismatch(format!(
                    "turn {turn}: the journal has operation {} {:?}, the function asks for nothing",
                    old.number, old.name
                ));
            }
            (None, Some(new)) => {
                return mismatch(format!(
                    "turn {turn}: the function asks for operation {} {:?}, the journal has none",
                    new.number, new.name
                ));
            }
            (None, None) => {}
        }
    }
    Ok(())
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = format!("the saga's function panicked: {}", panic_text(panic));
    Failure::new(FailureKind::BodyPanicked, text)
}

/// The text of a panic.
#[must_use]
pub fn panic_text(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "a panic without text".to_owned(),
    }
}

/// The failure of a business refusal, as it is journaled.
pub(crate) fn business_failure<E: Serialize + Display>(error: &E) -> Failure {
    business(error)
}

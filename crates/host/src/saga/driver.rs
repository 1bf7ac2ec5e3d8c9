//! The driver: runs the steps of sagas on a tokio runtime and polls their functions.
//!
//! Decides when a live copy of a saga's function is polled and when it is built anew from the journal.
//! Never decides what a result means for the saga: the machine does, from the record.
//!
//! Invariants:
//! - a step's body runs only after the record that asked for it is durable (the engine's gate);
//! - results and what the function said to them leave in the order the function was told them: both
//!   happen under the lock of its live copy;
//! - a live copy is a cache: losing it costs a rebuild from the journal, never a wrong turn.

use crate::client::{Client, new_session};
use crate::node::Completion;
use rallypoint_base::hash::xxh3_seeded;
use rallypoint_base::limits::SAGA_BYTES;
use rallypoint_engine::codec::{Codec, Encoded, encode};
use rallypoint_engine::saga::{AttemptWork, SagaActor, SagaMessage, SagaReply, Work};
use rallypoint_saga::event::{Attempt, Direction, End, Event, Parent, Start, Turn};
use rallypoint_saga::function::{BoxFuture, Resolution, Runner, panic_text, resolution, told};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Failure, FailureKind, OpNumber};
use rallypoint_saga::registry::{Registry, SagaOptions};
use rallypoint_saga::step::{StepInfo, Trace};
use rallypoint_saga::value::Blob;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::sync::Notify;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver, whatever the application's context is.
pub(crate) trait Drives: Send + Sync {
    /// The runtime is being opened: this client asks sagas for their journals.
    fn attach(&self, client: Arc<Client>);
    /// Performs one effect in its own time.
    fn perform(self: Arc<Self>, payload: Vec<u8>, completion: Completion);
    /// Options of a saga's name.
    fn options(&self, name: &str) -> Option<SagaOptions>;
    /// Makes a live copy for a saga that is about to start, and its first turn.
    fn begin(&self, name: &str, version: u32, id: &str, input: &Blob) -> Option<Turn>;
    /// Forgets the live copy of a saga that was there already.
    fn forget(&self, id: &str);
    /// Who waits for a saga.
    fn watch(&self, id: &str) -> Arc<Watch>;
    /// One who waited waits no more.
    fn unwatch(&self, id: &str, watch: &Arc<Watch>);
    /// Where bodies run.
    fn handle(&self) -> Handle;
    /// What the keys of a saga begin with that is started now: never the same twice.
    fn history(&self) -> String;
}

/// Something may have changed in a saga.
#[derive(Default)]
pub(crate) struct Watch {
    hints: AtomicU64,
    notify: Notify,
}

impl Watch {
    pub(crate) fn hints(&self) -> u64 {
        self.hints.load(Ordering::SeqCst)
    }

    /// Waits until there are more hints than `seen`.
    pub(crate) async fn after(&self, seen: u64) {
        loop {
            let notified = self.notify.notified();
            if self.hints() > seen {
                return;
            }
            notified.await;
        }
    }

    fn hint(&self) {
        self.hints.fetch_add(1, Ordering::SeqCst);
        self.notify.notify_waiters();
    }
}

/// The live copy of one saga's function; `None` while it is being built.
type Live = Arc<Mutex<Option<Runner>>>;

#[derive(Default)]
struct Shard {
    live: HashMap<String, Live>,
    watches: HashMap<String, Arc<Watch>>,
}

/// Live copies are found under one of these locks, by the hash of the id.
const SHARDS: usize = 64;

pub(crate) struct Driver<C> {
    registry: Registry<C>,
    shards: Vec<Mutex<Shard>>,
    client: Mutex<Option<Arc<Client>>>,
    runtime: OnceLock<(Handle, Option<tokio::runtime::Runtime>)>,
    /// This process among all, and the sagas that it has started.
    process: u64,
    started: AtomicU64,
    /// Effects that no task has taken up. One task is on its way whenever this is not empty.
    asked: Mutex<Vec<(Vec<u8>, Completion)>>,
}

impl<C: Send + Sync + 'static> Driver<C> {
    pub(crate) fn new(registry: Registry<C>) -> Arc<Self> {
        Arc::new(Self {
            registry,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            client: Mutex::new(None),
            runtime: OnceLock::new(),
            process: new_session().0,
            started: AtomicU64::new(0),
            asked: Mutex::default(),
        })
    }

    fn shard(&self, id: &str) -> MutexGuard<'_, Shard> {
        lock(&self.shards[xxh3_seeded(id.as_bytes(), 0x5A) as usize % SHARDS])
    }

    fn live(&self, id: &str) -> Option<Live> {
        self.shard(id).live.get(id).cloned()
    }

    fn client(&self) -> Option<Arc<Client>> {
        lock(&self.client).clone()
    }

    fn hint(&self, id: &str) {
        let watch = self.shard(id).watches.get(id).cloned();
        if let Some(watch) = watch {
            watch.hint();
        }
    }

    /// The whole journal of a saga, once what it holds is durable.
    async fn journal(&self, id: &str) -> Result<Machine, String> {
        let client = self.client().ok_or("the runtime is being closed")?;
        match client.ask::<SagaActor>(id, &SagaMessage::Show).await {
            Ok(SagaReply::Shown(machine)) => Ok(*machine),
            Ok(_) => Err("the saga gave no journal".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Tells a live copy results, and sends what comes of it under its lock. `send` says whether the
    /// turn went with it; otherwise the copy is ahead of its journal, and built anew for the next.
    fn turn(
        &self,
        id: &str,
        live: &Live,
        results: Vec<(OpNumber, Resolution)>,
        send: impl FnOnce(Option<Turn>) -> bool,
    ) {
        let mut guard = lock(live);
        let Some(runner) = guard.as_mut().filter(|runner| runner.is_live()) else {
            send(None);
            return;
        };
        let mut turn = runner.turn(results);
        self.registry.check(&mut turn);
        // One that waits for a signal for days is built anew then, and takes no memory meanwhile.
        let ended = turn.end.is_some() || runner.is_at_rest();
        if ended {
            *guard = None;
        }
        let sent = send(Some(turn));
        if !sent {
            *guard = None;
        }
        drop(guard);
        if ended || !sent {
            self.drop_live(id, live);
        }
    }

    fn drop_live(&self, id: &str, live: &Live) {
        let mut shard = self.shard(id);
        if shard.live.get(id).is_some_and(|found| Arc::ptr_eq(found, live)) {
            shard.live.remove(id);
        }
    }

    async fn attempt(&self, work: AttemptWork, completion: Completion) {
        let key = work.key(work.direction);
        let info = StepInfo {
            saga: work.id.clone(),
            step: work.step.clone(),
            key_of: (work.direction == Direction::Undo).then(|| work.key(Direction::Run)),
            attempt: work.attempt,
            trace: trace_of(&work, &key),
            key,
        };
        let span = tracing::debug_span!(
            "saga step",
            saga = %work.id, step = %work.step, attempt = work.attempt,
            undo = work.direction == Direction::Undo, traceparent = %info.trace
        );
        let body = match (&work.value, work.direction) {
            (Some(value), Direction::Run) => self.registry.attempt(&work.step, info, value.clone(), None),
            (Some(value), Direction::Undo) => {
                self.registry.attempt(&work.step, info, value.clone(), Some(work.output.clone()))
            }
            (None, _) => self.closure(&work).await,
        };
        let attempt = match body {
            Ok(body) => match tokio::time::timeout(work.timeout, Guarded { body, span }).await {
                Ok(attempt) => attempt,
                Err(_) => {
                    let text = format!("no answer within {:?}", work.timeout);
                    failed(Failure::new(FailureKind::TimedOut, text), true)
                }
            },
            Err(failure) => failed(failure, false),
        };
        // The function is told at once what it would be told in any case.
        let told = told(&attempt, work.direction, work.may_fail);
        let (op, generation, direction) = (work.op, work.generation, work.direction);
        let earlier = completion.earlier;
        let mut may_have_ended = direction == Direction::Undo;
        let send = |turn: Option<Turn>, ended: &mut bool| {
            *ended |= turn.as_ref().is_none_or(|turn| turn.end.is_some());
            answer(completion, Event::Attempted { op, generation, direction, earlier, attempt, turn })
        };
        match (told, self.live(&work.id)) {
            (Some(result), Some(live)) => {
                self.turn(&work.id, &live, vec![(op, result)], |turn| send(turn, &mut may_have_ended));
            }
            _ => drop(send(None, &mut may_have_ended)),
        }
        if may_have_ended {
            self.hint(&work.id);
        }
    }

    async fn carry_out(&self, payload: &[u8], completion: Completion) {
        let work = Encoded::split(payload).map(|encoded| encoded.decode::<Work>());
        match work {
            Some(Ok(Work::Attempt(work))) => self.attempt(*work, completion).await,
            Some(Ok(Work::Drive { id, turns, rebuild, feed, .. })) => {
                self.drive(id, turns, rebuild, feed, completion).await;
            }
            Some(Ok(Work::StartChild { child, name, input, parent })) => {
                self.start_child(child, name, input, parent, completion).await;
            }
            Some(Err(error)) => completion.finish(1, error.to_string().as_bytes()),
            None => completion.finish(1, b"the request has no codec and schema"),
        }
    }

    /// The closure of a `run`: it lives in a live copy only.
    async fn closure(&self, work: &AttemptWork) -> Result<BoxFuture<Attempt>, Failure> {
        let body = |live: Live| lock(&live).as_ref().and_then(|runner| runner.body(work.op));
        if let Some(body) = self.live(&work.id).and_then(body) {
            return Ok(body());
        }
        let machine =
            self.journal(&work.id).await.map_err(|why| Failure::new(FailureKind::Transient, why))?;
        let runner = self.registry.rebuild(&work.id, &machine)?;
        let body = runner.body(work.op);
        self.shard(&work.id)
            .live
            .entry(work.id.clone())
            .or_insert_with(|| Arc::new(Mutex::new(Some(runner))));
        let gone =
            || Failure::new(FailureKind::Mismatch, format!("the function has no closure {:?}", work.step));
        body.map(|body| body()).ok_or_else(gone)
    }

    async fn drive(
        &self,
        id: String,
        turns: u32,
        rebuild: bool,
        feed: Vec<(OpNumber, Resolution)>,
        completion: Completion,
    ) {
        if !rebuild && let Some(live) = self.live(&id) {
            let current =
                lock(&live).as_ref().is_some_and(|runner| runner.turns() >= turns && runner.is_live());
            if current {
                self.turn(&id, &live, feed, |turn| match turn {
                    Some(turn) => answer(completion, Event::Driven(turn)),
                    // Gone meanwhile: the machine sees that nothing came of it and asks again.
                    None => answer(completion, Event::Driven(Turn { index: u32::MAX, ..Turn::default() })),
                });
                self.hint(&id);
                return;
            }
        }
        // Results that come meanwhile go without a turn; the machine asks to be driven again for them.
        let live: Live = Arc::new(Mutex::new(None));
        self.shard(&id).live.insert(id.clone(), Arc::clone(&live));
        let machine = match self.journal(&id).await {
            Ok(machine) => machine,
            Err(why) => {
                self.drop_live(&id, &live);
                // The runtime is closing: the effect is performed again when it is opened.
                tracing::debug!(saga = %id, %why, "no journal");
                return;
            }
        };
        match self.registry.rebuild(&id, &machine) {
            Ok(runner) => {
                *lock(&live) = Some(runner);
                let unfed = machine.unfed().into_iter();
                let feed =
                    unfed.filter_map(|op| Some((op.number, resolution(&machine, op.number)?))).collect();
                self.turn(&id, &live, feed, |turn| {
                    answer(completion, Event::Driven(turn.unwrap_or_default()))
                });
            }
            Err(failure) => {
                self.drop_live(&id, &live);
                let index = machine.turns().len() as u32;
                let end = Some(End::Broken(failure));
                answer(completion, Event::Driven(Turn { index, end, ..Turn::default() }));
            }
        }
        self.hint(&id);
    }

    async fn start_child(
        &self,
        child: String,
        name: String,
        input: Blob,
        parent: Parent,
        completion: Completion,
    ) {
        let (op, generation) = (parent.op, parent.generation);
        let Some(options) = self.registry.options(&name) else {
            let text = format!("no saga is registered as {name:?} in this program");
            let result = Err(Failure::new(FailureKind::Unregistered, text));
            answer(completion, Event::ChildEnded { op, generation, result });
            return;
        };
        let Some(client) = self.client() else { return };
        let turn = self.begin(&name, options.version, &child, &input);
        let began = turn.is_some();
        let start = Start {
            turn,
            name,
            version: options.version,
            digest: options.digest,
            input,
            concurrency: options.concurrency,
            deadline: options.deadline,
            parent: Some(parent),
            history: self.next_history(),
        };
        match client.ask::<SagaActor>(&child, &SagaMessage::Start(Box::new(start))).await {
            Ok(SagaReply::Started(is_new)) => {
                if !is_new && began {
                    self.forget(&child);
                }
                completion.finish(0, &[]);
            }
            Ok(_) => completion.finish(0, &[]),
            Err(error) => {
                if began {
                    self.forget(&child);
                }
                let result = Err(Failure::new(FailureKind::Child, format!("child {child:?}: {error}")));
                answer(completion, Event::ChildEnded { op, generation, result });
            }
        }
    }
}

impl<C: Send + Sync + 'static> Drives for Driver<C> {
    fn attach(&self, client: Arc<Client>) {
        *lock(&self.client) = Some(client);
        // Made here, in the caller's thread: it is their runtime that bodies run on.
        self.handle();
    }

    fn perform(self: Arc<Self>, payload: Vec<u8>, completion: Completion) {
        // One commit may set off hundreds: the partition's thread wakes the runtime for the first, and
        // the others are taken up and decoded there.
        let mut asked = lock(&self.asked);
        asked.push((payload, completion));
        if asked.len() > 1 {
            return;
        }
        drop(asked);
        let driver = Arc::clone(&self);
        self.handle().spawn(async move {
            let asked = std::mem::take(&mut *lock(&driver.asked));
            for (payload, completion) in asked {
                let driver = Arc::clone(&driver);
                // A task each: a body that computes for long must not hold up the others.
                tokio::spawn(async move { driver.carry_out(&payload, completion).await });
            }
        });
    }

    fn options(&self, name: &str) -> Option<SagaOptions> {
        self.registry.options(name)
    }

    fn begin(&self, name: &str, version: u32, id: &str, input: &Blob) -> Option<Turn> {
        if self.shard(id).live.contains_key(id) {
            return None;
        }
        let mut runner = self.registry.begin(name, version, id, input).ok()?;
        let mut turn = runner.turn(Vec::new());
        self.registry.check(&mut turn);
        if turn.end.is_none() && !runner.is_at_rest() {
            let mut shard = self.shard(id);
            if shard.live.contains_key(id) {
                return None;
            }
            shard.live.insert(id.to_owned(), Arc::new(Mutex::new(Some(runner))));
        }
        Some(turn)
    }

    fn forget(&self, id: &str) {
        self.shard(id).live.remove(id);
    }

    fn watch(&self, id: &str) -> Arc<Watch> {
        Arc::clone(self.shard(id).watches.entry(id.to_owned()).or_default())
    }

    fn unwatch(&self, id: &str, watch: &Arc<Watch>) {
        let mut shard = self.shard(id);
        // The table's and the one that is being dropped.
        if Arc::strong_count(watch) == 2
            && shard.watches.get(id).is_some_and(|found| Arc::ptr_eq(found, watch))
        {
            shard.watches.remove(id);
        }
    }

    fn history(&self) -> String {
        self.next_history()
    }

    fn handle(&self) -> Handle {
        let (handle, _) = self.runtime.get_or_init(|| match Handle::try_current() {
            Ok(handle) => (handle, None),
            Err(_) => {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                builder.enable_all().thread_name("saga");
                #[expect(clippy::expect_used, reason = "no thread can be made: nothing of sagas can work")]
                let runtime = builder.build().expect("a runtime for the steps of sagas");
                (runtime.handle().clone(), Some(runtime))
            }
        });
        handle.clone()
    }
}

impl<C> Driver<C> {
    fn next_history(&self) -> String {
        format!("{:016x}-{:x}", self.process, self.started.fetch_add(1, Ordering::Relaxed))
    }
}

impl<C> Drop for Driver<C> {
    fn drop(&mut self) {
        // May be dropped inside a runtime, where waiting for another one is not allowed.
        if let Some((_, Some(own))) = self.runtime.take() {
            own.shutdown_background();
        }
    }
}

fn failed(failure: Failure, may_have_acted: bool) -> Attempt {
    Attempt::Failed { failure, may_have_acted, retry_after: None }
}

/// False when the result went without its turn: together they are too large, and the machine will ask
/// for the turn again.
fn answer(completion: Completion, mut event: Event) -> bool {
    let mut bytes = Vec::with_capacity(256);
    let mut whole = true;
    loop {
        bytes.clear();
        match encode(Codec::Compact, 0, &event, &mut bytes) {
            Ok(()) if bytes.len() <= SAGA_BYTES => completion.finish(0, &bytes),
            Ok(()) => {
                if let Event::Attempted { turn: turn @ Some(_), .. } = &mut event {
                    (*turn, whole) = (None, false);
                    continue;
                }
                let text =
                    format!("the answer has {} bytes: at most {SAGA_BYTES} are journaled", bytes.len());
                completion.finish(1, text.as_bytes());
            }
            Err(error) => completion.finish(1, error.to_string().as_bytes()),
        }
        return whole;
    }
}

/// One trace per saga, one span per attempt.
fn trace_of(work: &AttemptWork, key: &str) -> Trace {
    let half = |seed| u128::from(xxh3_seeded(work.id.as_bytes(), work.started ^ seed));
    let span = xxh3_seeded(key.as_bytes(), u64::from(work.attempt)) | 1;
    Trace { trace: half(1) << 64 | half(2) | 2, span }
}

/// A step's body whose panic is a failed attempt, inside its span.
struct Guarded {
    body: BoxFuture<Attempt>,
    span: tracing::Span,
}

impl Future for Guarded {
    type Output = Attempt;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Attempt> {
        let this = &mut *self;
        let _inside = this.span.enter();
        catch_unwind(AssertUnwindSafe(|| this.body.as_mut().poll(cx))).unwrap_or_else(|panic| {
            let text = format!("the step panicked: {}", panic_text(&*panic));
            Poll::Ready(failed(Failure::new(FailureKind::Panicked, text), true))
        })
    }
}

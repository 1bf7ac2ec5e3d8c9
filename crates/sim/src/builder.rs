//! How a test describes a world, and what it can do in it.
//!
//! Decides: nothing that happens in the world. Never: waits in real time; `ask` and `wait` run the
//! world until the answer is there.

use crate::bank::Account;
use crate::invariants::{Request, decode};
use crate::report::Report;
use crate::settings::{DiskWrapper, Faults, RestoreWrapper, Settings, WireWrapper};
use crate::world::{Violation, World};
use rallypoint_base::id::InputSeq;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::codec;
use rallypoint_engine::command::Outcome;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::Limits;
use rallypoint_engine::unit::ProtocolFactory;
use rallypoint_rollback::independent::Independent;
use rallypoint_store::store::Options;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Describes a world. Everything has a default but the actors.
#[derive(Clone, Default)]
pub struct WorldBuilder {
    settings: Settings,
}

macro_rules! setter {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        }
    };
}

impl WorldBuilder {
    setter! {
        /// Everything that happens is a function of this number.
        seed: u64
    }
    setter! {
        /// Worker processes (3).
        workers: usize
    }
    setter! {
        /// Journal directories of each worker (1).
        directories: usize
    }
    setter! {
        /// Partitions of each directory (1).
        partitions: usize
    }
    setter! {
        /// Percent of the directories that have two copies (60). Only those suffer disk faults.
        mirrored: u64
    }
    setter! {
        /// Clients with a session each (2).
        clients: usize
    }
    setter! {
        /// Inputs that a client has under way at once (3).
        window: usize
    }
    setter! {
        /// Limits of each partition.
        limits: Limits
    }
    setter! {
        /// How the journals are written.
        options: Options
    }
    setter! {
        /// Which kinds of faults may strike (all).
        faults: Faults
    }
    setter! {
        /// How many faults strike before the world calms down (10).
        strikes: u64
    }
    setter! {
        /// Compare everything that leaves a unit with what is durable on its disks (off: it is dear).
        ledger: bool
    }
    setter! {
        /// How often all directories are rebuilt as if the power went at that instant (1).
        audits: u32
    }

    /// How long a disk takes for an operation, at least and at most (40 to 250 microseconds).
    #[must_use]
    pub fn latency(mut self, least: Duration, most: Duration) -> Self {
        self.settings.latency = (least, most);
        self
    }

    /// Adds an actor kind.
    #[must_use]
    pub fn actor<A: Actor>(mut self) -> Self {
        self.settings.kinds.push(|registry| registry.actor::<A>());
        self
    }

    /// Adds the bank, which the invariants know how to audit.
    #[must_use]
    pub fn bank(self) -> Self {
        self.actor::<Account>()
    }

    /// Runs every partition under another protocol, which logs its inputs.
    #[must_use]
    pub fn protocol(mut self, protocol: ProtocolFactory) -> Self {
        self.settings.protocol = protocol;
        self
    }

    /// Runs every partition under independent checkpointing, with a coordinator that has a disk.
    #[must_use]
    pub fn independent(self) -> Self {
        self.rolling_back(Arc::new(|_| Box::new(Independent::default())))
    }

    /// Runs every partition under another protocol of that kind, with the same coordinator.
    #[must_use]
    pub fn rolling_back(mut self, protocol: ProtocolFactory) -> Self {
        self.settings.protocol = protocol;
        self.settings.rolls_back = true;
        self
    }

    /// Puts a wrapper around each disk that a worker opens.
    #[must_use]
    pub fn wrap_disks(mut self, wrapper: DiskWrapper) -> Self {
        self.settings.disk = Some(wrapper);
        self
    }

    /// Lets a wrapper change each message before it travels.
    #[must_use]
    pub fn wrap_network(mut self, wrapper: WireWrapper) -> Self {
        self.settings.wire = Some(wrapper);
        self
    }

    /// Lets a wrapper change the drives of a directory before it is opened again.
    #[must_use]
    pub fn wrap_restore(mut self, wrapper: RestoreWrapper) -> Self {
        self.settings.restore = Some(wrapper);
        self
    }

    /// Makes the world; its workers have been started.
    #[must_use]
    pub fn build(self) -> World {
        World::new(self.settings)
    }

    /// Runs `act` in the world, heals it, and demands that every invariant held.
    ///
    /// # Panics
    /// When `act` does, or an invariant was violated; the message says how to run it again.
    pub fn run(self, act: impl FnOnce(&mut TestClient<'_>)) -> Report {
        let seed = self.settings.seed;
        match self.try_run(act) {
            (report, violations) if violations.is_empty() => report,
            (_, violations) => {
                let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
                panic!("{}\n{}", lines.join("\n"), again(seed));
            }
        }
    }

    /// Like [`WorldBuilder::run`], but gives the violations back.
    ///
    /// # Panics
    /// When `act` does; the message before it says how to run it again.
    pub fn try_run(self, act: impl FnOnce(&mut TestClient<'_>)) -> (Report, Vec<Violation>) {
        let seed = self.settings.seed;
        let mut world = self.build();
        let mut client = TestClient { world: &mut world, client: 0, healed: false };
        let acted = catch_unwind(AssertUnwindSafe(|| {
            act(&mut client);
            client.heal();
        }));
        if let Err(panic) = acted {
            eprintln!("{}", again(seed));
            resume_unwind(panic);
        }
        (world.report(), world.violations().to_vec())
    }
}

fn again(seed: u64) -> String {
    format!("in the world of seed {seed}; the same again: RALLYPOINT_SEED={seed}")
}

/// An input that was sent and may not be answered yet.
pub struct Sent<A> {
    client: usize,
    seq: InputSeq,
    actor: PhantomData<fn() -> A>,
}

impl<A> Clone for Sent<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Sent<A> {}

/// Why an input was answered by something else than a reply. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AskError<E: fmt::Debug> {
    /// The actor refused.
    #[error("the actor refused: {0:?}")]
    Refused(E),
    /// It could not be run.
    #[error("it could not be run: {0}")]
    Failed(String),
    /// It panicked, or ended its worker twice.
    #[error("it was set aside: {0}")]
    SetAside(String),
}

/// A client in a simulated world, and the test's hand on that world.
///
/// The client never crashes; it repeats what is not answered, and what it was told stays true.
pub struct TestClient<'w> {
    world: &'w mut World,
    client: usize,
    healed: bool,
}

impl TestClient<'_> {
    /// Sends `message` to actor `key`; nothing is waited for.
    pub fn send<A: Actor>(&mut self, key: &str, message: &A::Message) -> Sent<A> {
        self.send_as(self.client, key, message)
    }

    /// Sends as another client of this world, with a session of its own.
    ///
    /// # Panics
    /// When the message cannot be encoded or there is no such client.
    pub fn send_as<A: Actor>(&mut self, client: usize, key: &str, message: &A::Message) -> Sent<A> {
        let mut bytes = Vec::new();
        codec::encode(A::CODEC, A::SCHEMA, message, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
        let mut parcel = Vec::new();
        let body = Body::Message(&bytes);
        Parcel { kind: kind_tag(A::KIND), key, asker: None, body }.encode(&mut parcel);
        self.healed = false;
        let seq = self.world.submit(client, key, A::read_only(message), parcel);
        Sent { client, seq, actor: PhantomData }
    }

    /// Sends and waits for the answer, while the world goes on around it.
    ///
    /// # Errors
    /// [`AskError`]: an answer that is no reply.
    pub fn ask<A: Actor>(&mut self, key: &str, message: &A::Message) -> Result<A::Reply, AskError<A::Error>>
    where
        A::Error: fmt::Debug,
    {
        let sent = self.send::<A>(key, message);
        self.wait(sent)
    }

    /// Waits for the answer to what was sent.
    ///
    /// # Errors
    /// [`AskError`]: an answer that is no reply.
    ///
    /// # Panics
    /// When there is no answer within ten simulated minutes.
    pub fn wait<A: Actor>(&mut self, sent: Sent<A>) -> Result<A::Reply, AskError<A::Error>>
    where
        A::Error: fmt::Debug,
    {
        let Sent { client, seq, .. } = sent;
        let answered = |world: &World| world.clients[client].ledger.contains_key(&seq);
        let came = self.world.until(Duration::from_secs(600), answered);
        let Some(answer) = self.world.clients[client].ledger.get(&seq).filter(|_| came) else {
            panic!("no answer to {seq} of client {client} within ten simulated minutes");
        };
        let text = || String::from_utf8_lossy(&answer.bytes).into_owned();
        let undecodable = || AskError::Failed("the answer is of another type".into());
        match answer.outcome {
            Outcome::Applied => decode(&answer.bytes).ok_or_else(undecodable),
            Outcome::Refused => Err(decode(&answer.bytes).map_or_else(undecodable, AskError::Refused)),
            Outcome::Failed => Err(AskError::Failed(text())),
            Outcome::SetAside => Err(AskError::SetAside(text())),
        }
    }

    /// Everything that was sent, with what became of it (`None`: not answered yet).
    #[must_use]
    pub fn ledger(&self) -> Vec<(Request, Outcome)> {
        let answers = self.world.clients.iter().flat_map(|client| client.ledger.values());
        answers.map(|answer| (answer.request.clone(), answer.outcome)).collect()
    }

    /// Lets virtual time pass.
    pub fn pass(&mut self, duration: Duration) {
        self.world.pass(duration);
    }

    /// Lets time pass until everything sent is answered and the last fault has struck (or a minute
    /// has passed). Faults go on meanwhile.
    pub fn weather(&mut self) {
        let done =
            |world: &World| world.nemesis.is_over() && world.clients.iter().all(|client| client.is_done());
        self.world.until(Duration::from_secs(60), done);
    }

    /// Switches all faults off and waits until everything is answered and quiet, twice: the second
    /// time after every worker was started anew.
    pub fn heal(&mut self) {
        if !self.healed {
            self.world.heal();
            self.healed = true;
        }
    }

    /// The state of actor `key`, if there is one.
    #[must_use]
    pub fn state<A: Actor>(&self, key: &str) -> Option<A> {
        self.states::<A>().remove(key)
    }

    /// The states of all actors of a kind, by key.
    #[must_use]
    pub fn states<A: Actor>(&self) -> BTreeMap<String, A> {
        let states = self.world.states();
        states.of::<A>().into_iter().map(|(key, state)| (key.to_owned(), state)).collect()
    }

    /// The world.
    pub fn world(&mut self) -> &mut World {
        self.world
    }
}

/// Runs `act` in `seeds` worlds of this description, seed after seed.
///
/// `RALLYPOINT_SEED=n` runs the one world of seed n, `RALLYPOINT_SEEDS=n` that many worlds,
/// `RALLYPOINT_LONG=1` twenty times as many.
///
/// # Panics
/// When a world fails; the message says its seed and how to run it again.
pub fn storm(builder: &WorldBuilder, seeds: u64, act: impl Fn(&mut TestClient<'_>)) -> Report {
    let mut report = Report::default();
    for seed in seeds_to_run(seeds) {
        report.add(&builder.clone().seed(seed).run(&act));
    }
    report
}

/// The seeds that the environment asks for, or `0..count`.
#[must_use]
pub fn seeds_to_run(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("RALLYPOINT_SEED") {
        return seed..seed + 1;
    }
    let times = if number("RALLYPOINT_LONG").is_some_and(|long| long > 0) { 20 } else { 1 };
    0..number("RALLYPOINT_SEEDS").unwrap_or(count * times)
}

//! The storm test of a user's own saga, shown as [`rallypoint::test::saga`](crate::test::saga).
//!
//! Decides nothing about sagas: it runs the machine, the function's runner and the registry of
//! production over a journal in memory, in virtual time, and lets go wrong what may go wrong.
//!
//! It is here, on the top floor, because it needs what only the host has otherwise: a tokio runtime
//! for the code of the steps. The feature `test` brings it, and with it tokio's clock that can be
//! paused; a program in production has neither.
//!
//! Invariants:
//! - a crash forgets everything but the journals; the context stands for the outside, and survives;
//! - the same seed gives the same report, byte for byte.

mod act;
mod attempt;
mod case;
mod course;
mod flight;
mod report;
mod retrace;
mod rules;
mod timeline;
mod world;

pub use report::{StormEnd, StormFailure, StormLine, StormReport, StormRule};

use rallypoint_saga::function::Saga;
use rallypoint_saga::registry::Registry;
use rallypoint_saga::step::SagaError;
use rallypoint_saga::value::Blob;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Name and id of the saga that is tested.
const NAME: &str = "storm";
const ID: &str = "storm-1";
/// Random mixtures, unless the environment says otherwise.
const SEEDS: u64 = 100;

type Make<C> = Box<dyn Fn() -> Registry<C> + Send + Sync>;
type Parts<C> = Box<dyn Fn(&C) -> Vec<(String, bool)> + Send + Sync>;
type Books<C, B> = Box<dyn Fn(&C) -> B + Send + Sync>;
type Holds<C> = Box<dyn Fn(&C, &StormEnd) -> Result<(), String> + Send + Sync>;

/// What is tested, and what must hold.
struct Setup<C, B> {
    make: Make<C>,
    input: Blob,
    /// Why the input or a signal cannot be journaled.
    unwritten: Option<String>,
    signals: Vec<(String, Blob)>,
    parts: Option<Parts<C>>,
    books: Option<Books<C, B>>,
    holds: Vec<(String, Holds<C>)>,
    deadline: Option<Duration>,
    long: bool,
}

impl<C: Send + Sync + 'static, B> Setup<C, B> {
    fn registry(&self) -> Result<Registry<C>, String> {
        let mut registry = (self.make)();
        if let Some(deadline) = self.deadline {
            // Of the saga registered last: the one that is tested.
            registry = registry.deadline(deadline);
        }
        match (&self.unwritten, registry.clash()) {
            (Some(why), _) => Err(why.clone()),
            (None, Some(clash)) => Err(clash.to_owned()),
            (None, None) => Ok(registry),
        }
    }

    fn written<T: Serialize>(&mut self, what: &str, value: &T) -> Blob {
        Blob::of(value).unwrap_or_else(|error| {
            self.unwritten.get_or_insert(format!("{what} cannot be journaled: {error}"));
            Blob::default()
        })
    }
}

/// The storm test of a saga: one line, and every step and undo has failed, timed out, been executed
/// twice, and crashed after every record; the original request has come after its undo; and the
/// function has been built anew from every prefix of its journal.
///
/// `app` makes the steps and child sagas over a *fresh* context: fake participants in memory, which
/// do what real ones must do (recognise a repetition by its key, take an undo before its step,
/// refuse a step after its undo). `function` and `input` are the saga. Time is virtual: the waits
/// of years take none, and code of a step may use tokio's time. It must not use real sockets or
/// threads, whose time is another.
///
/// The test is a `#[test]`. Needs the feature `test`:
/// `[dev-dependencies] rallypoint = { features = ["test"] }`.
///
/// ```
/// use rallypoint::{Registry, Saga, SagaError, Step, StepCx, StepError, StepOutcome, UndoError};
/// use serde::{Deserialize, Serialize};
/// use std::collections::BTreeMap;
/// use std::sync::Mutex;
///
/// /// Stands for the payment service: what became of each key.
/// #[derive(Default)]
/// struct Shop { charges: Mutex<BTreeMap<String, bool>> }
///
/// #[derive(Serialize, Deserialize)]
/// struct Charge;
///
/// impl Step<Shop> for Charge {
///     const NAME: &'static str = "charge";
///     type Output = ();
///     type Error = String;
///     async fn run(&self, cx: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
///         match cx.app().charges.lock().unwrap().entry(cx.key().into()).or_insert(true) {
///             true => Ok(()), // now, or before
///             false => Err(StepError::business("it was undone before it came".into())),
///         }
///     }
///     async fn undo(&self, cx: StepCx<'_, Shop>, _: StepOutcome<()>) -> Result<(), UndoError> {
///         let key_of = cx.key_of().unwrap_or_default();
///         cx.app().charges.lock().unwrap().insert(key_of.into(), false); // also if it never came
///         Ok(())
///     }
/// }
///
/// async fn order(s: Saga<Shop>, _order: u64) -> Result<(), SagaError> {
///     Ok(s.step(Charge).await?)
/// }
///
/// rallypoint::test::saga(|| Registry::new(Shop::default()).step::<Charge>(), order, 17)
///     .all_or_nothing(|shop| [("charge", shop.charges.lock().unwrap().values().any(|&done| done))])
///     .storm();
/// ```
pub fn saga<C, I, O, F, Fut>(
    app: impl Fn() -> Registry<C> + Send + Sync + 'static,
    function: F,
    input: I,
) -> SagaStorm<C>
where
    C: Send + Sync + 'static,
    I: Serialize + DeserializeOwned + Send + 'static,
    O: Serialize + Send + 'static,
    F: Fn(Saga<C>, I) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<O, SagaError>> + Send + 'static,
{
    let function = Arc::new(function);
    let make: Make<C> = Box::new(move || {
        let function = Arc::clone(&function);
        app().saga(NAME, 1, move |saga, input| function(saga, input))
    });
    let mut setup = Setup {
        make,
        input: Blob::default(),
        unwritten: None,
        signals: Vec::new(),
        parts: None,
        books: None,
        holds: Vec::new(),
        deadline: None,
        long: std::env::var("RALLYPOINT_LONG").is_ok_and(|long| long != "0"),
    };
    setup.input = setup.written("the input", &input);
    SagaStorm { setup, seeds: rallypoint_sim::seeds_to_run(SEEDS) }
}

/// A storm that is being prepared: see [`saga`].
#[must_use = "nothing is tested before .storm()"]
pub struct SagaStorm<C, B = ()> {
    setup: Setup<C, B>,
    seeds: Range<u64>,
}

impl<C: Send + Sync + 'static, B: PartialEq + Debug + Send + 'static> SagaStorm<C, B> {
    /// The parts of what the saga does, as the outside has them: all are there when it completed,
    /// none when it was compensated. `parts` looks at the context after each case.
    pub fn all_or_nothing<N: Into<String>, P: IntoIterator<Item = (N, bool)>>(
        mut self,
        parts: impl Fn(&C) -> P + Send + Sync + 'static,
    ) -> Self {
        self.setup.parts = Some(Box::new(move |context| {
            parts(context).into_iter().map(|(name, is_done)| (name.into(), is_done)).collect()
        }));
        self
    }

    /// What the outside holds (balances, stock, numbers of mails): after each case in which the saga
    /// completed the same as after a run in which nothing went wrong, after each compensated one the
    /// same as before it began.
    ///
    /// ```
    /// # use rallypoint::{Registry, Saga, SagaError};
    /// # use std::sync::atomic::{AtomicU64, Ordering};
    /// # async fn order(_: Saga<AtomicU64>, _: u64) -> Result<(), SagaError> { Ok(()) }
    /// rallypoint::test::saga(|| Registry::new(AtomicU64::new(100)), order, 17)
    ///     .exactly_once(|stock| stock.load(Ordering::SeqCst))
    ///     .storm();
    /// ```
    pub fn exactly_once<T>(self, books: impl Fn(&C) -> T + Send + Sync + 'static) -> SagaStorm<C, T> {
        let Setup { make, input, unwritten, signals, parts, holds, deadline, long, .. } = self.setup;
        let books: Option<Books<C, T>> = Some(Box::new(books));
        let setup = Setup { make, input, unwritten, signals, parts, books, holds, deadline, long };
        SagaStorm { setup, seeds: self.seeds }
    }

    /// Whatever else must hold after each case. The text says what does not; see [`StormEnd`] for an
    /// example.
    pub fn holds(
        mut self,
        name: &str,
        holds: impl Fn(&C, &StormEnd) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.setup.holds.push((name.to_owned(), Box::new(holds)));
        self
    }

    /// A signal that comes when the saga waits for it; also before that; and never, if that wait has
    /// an end.
    ///
    /// ```
    /// # use rallypoint::{Registry, Saga, SagaError};
    /// async fn order(s: Saga<()>, _: u64) -> Result<bool, SagaError> {
    ///     s.signal::<bool>("manager").within(std::time::Duration::from_secs(24 * 3600)).await
    /// }
    /// rallypoint::test::saga(|| Registry::new(()), order, 17).signal("manager", &true).storm();
    /// ```
    pub fn signal<T: Serialize>(mut self, name: &str, value: &T) -> Self {
        let value = self.setup.written("the value of a signal", value);
        self.setup.signals.push((name.to_owned(), value));
        self
    }

    /// The saga is cancelled this long after its start, unless it is past its pivot: what
    /// [`Registry::deadline`] says of one that is registered under its name.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.setup.deadline = Some(deadline);
        self
    }

    /// The seeds of the random mixtures that follow the enumerated cases: a hundred, unless
    /// `RALLYPOINT_SEEDS=n`, `RALLYPOINT_LONG=1` (twenty times as many, and all pairs of crashes) or
    /// `RALLYPOINT_SEED=n` (the one of seed n) say otherwise, which this overrides.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.seeds = seeds;
        self
    }

    /// Runs the storm and prints what was tried.
    ///
    /// # Panics
    /// When the saga does not come through: the message names the rule, the case, the seed, and the
    /// timeline of the run that broke it.
    pub fn storm(self) -> StormReport {
        match self.try_storm() {
            Ok(report) => {
                println!("{report}");
                report
            }
            Err(failure) => panic!("{failure}"),
        }
    }

    /// [`SagaStorm::storm`] that returns what [`SagaStorm::storm`] panics with.
    ///
    /// # Errors
    /// [`StormFailure`].
    pub fn try_storm(self) -> Result<StormReport, StormFailure> {
        let Self { setup, seeds } = self;
        let storm = || course::Course::new(&setup, seeds.start).run(seeds.clone());
        if tokio::runtime::Handle::try_current().is_err() {
            return storm();
        }
        // Inside another runtime no other can be waited for: not in this thread.
        std::thread::scope(|scope| match scope.spawn(storm).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

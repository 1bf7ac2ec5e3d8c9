//! What is registered: steps and saga functions by their names.
//!
//! Decides which code a journaled name means. Undo needs only this and the journal.

use crate::event::{Attempt, End, Turn};
use crate::function::{BoxFuture, Function, Runner, Saga, business_failure, function};
use crate::machine::Machine;
use crate::op::{Failure, FailureKind, What};
use crate::step::{Outcome, SagaError, Step, StepCx, StepError, StepInfo, UndoError};
use crate::value::Blob;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

type RunStep<C> = fn(Arc<C>, StepInfo, Blob) -> BoxFuture<Attempt>;
type UndoStep<C> = fn(Arc<C>, StepInfo, Blob, Option<Blob>) -> BoxFuture<Attempt>;

struct StepEntry<C> {
    run: RunStep<C>,
    undo: UndoStep<C>,
}

/// What is fixed for every saga of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SagaOptions {
    /// Declared version of the function.
    pub version: u32,
    /// Digest of a declared definition; 0 for code.
    pub digest: u64,
    /// Sagas of this name that run at once; others wait for their turn.
    pub concurrency: Option<u32>,
    /// A saga is cancelled this long after its start, unless it is past its pivot.
    pub deadline: Option<Duration>,
}

struct SagaEntry<C> {
    options: SagaOptions,
    function: Function<C>,
}

/// Finds the function and options of a name that is not registered (with this version, if given).
pub type Fallback<C> =
    Arc<dyn Fn(&str, Option<u32>) -> Option<(SagaOptions, DynamicFunction<C>)> + Send + Sync>;

/// A function found by a [`Fallback`]: works on journaled values.
pub type DynamicFunction<C> = Arc<dyn Fn(Saga<C>, Blob) -> BoxFuture<Result<Blob, SagaError>> + Send + Sync>;

/// The steps and sagas of an application, whose context is `C`.
///
/// ```
/// # use rallypoint_saga::{function::Saga, registry::Registry, step::*};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Charge;
/// # impl Step<()> for Charge { const NAME: &'static str = "charge"; type Output = (); type Error = String;
/// #   async fn run(&self, _: StepCx<'_, ()>) -> Result<(), StepError<String>> { Ok(()) } }
/// async fn order(s: Saga<()>, _order: u64) -> Result<(), SagaError> {
///     Ok(s.step(Charge).await?)
/// }
/// let registry = Registry::new(()).step::<Charge>().saga("order", 1, order);
/// assert!(registry.options("order").is_some());
/// ```
pub struct Registry<C> {
    context: Arc<C>,
    steps: BTreeMap<&'static str, StepEntry<C>>,
    sagas: BTreeMap<String, SagaEntry<C>>,
    fallback: Option<Fallback<C>>,
    fallback_step: Option<StepEntry<C>>,
    clash: Option<String>,
    last: Option<String>,
}

impl<C: Send + Sync + 'static> Registry<C> {
    /// An empty registry over an application's context: its clients, pools, configuration.
    #[must_use]
    pub fn new(context: C) -> Self {
        Self {
            context: Arc::new(context),
            steps: BTreeMap::new(),
            sagas: BTreeMap::new(),
            fallback: None,
            fallback_step: None,
            clash: None,
            last: None,
        }
    }

    /// Registers a step. Two of one name are an error when the application is opened.
    #[must_use]
    pub fn step<S: Step<C>>(mut self) -> Self {
        let entry = StepEntry { run: run_step::<C, S>, undo: undo_step::<C, S> };
        if self.steps.insert(S::NAME, entry).is_some() {
            self.clash
                .get_or_insert(format!("two steps are registered as {:?}: rename one of them", S::NAME));
        }
        self
    }

    /// Registers a saga's function under a name and version. A saga goes on only with the version it
    /// began with: raise it whenever the function asks for other operations.
    #[must_use]
    pub fn saga<I, O, F, Fut>(mut self, name: &str, version: u32, f: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        F: Fn(Saga<C>, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, SagaError>> + Send + 'static,
    {
        let options = SagaOptions { version, ..SagaOptions::default() };
        let entry = SagaEntry { options, function: function(f) };
        if self.sagas.insert(name.to_owned(), entry).is_some() {
            self.clash.get_or_insert(format!("two sagas are registered as {name:?}: rename one of them"));
        }
        self.last = Some(name.to_owned());
        self
    }

    fn change(mut self, change: impl FnOnce(&mut SagaOptions)) -> Self {
        match self.last.as_ref().and_then(|last| self.sagas.get_mut(last)) {
            Some(entry) => change(&mut entry.options),
            None => {
                self.clash.get_or_insert("a limit or deadline stands before the first saga".into());
            }
        }
        self
    }

    /// Of the saga registered last, at most `limit` run at once (at least 1); others wait.
    #[must_use]
    pub fn concurrency(self, limit: u32) -> Self {
        self.change(|options| options.concurrency = Some(limit.max(1)))
    }

    /// A saga of the name registered last is cancelled this long after its start.
    #[must_use]
    pub fn deadline(self, deadline: Duration) -> Self {
        self.change(|options| options.deadline = Some(deadline))
    }

    /// Finds functions of other names: declared sagas.
    #[must_use]
    pub fn fallback(mut self, fallback: Fallback<C>) -> Self {
        self.fallback = Some(fallback);
        self
    }

    /// Reads the values of all steps that are not registered by name: a declared step keeps its own
    /// name in the journal, and one type performs them all.
    #[must_use]
    pub fn fallback_step<S: Step<C>>(mut self) -> Self {
        self.fallback_step = Some(StepEntry { run: run_step::<C, S>, undo: undo_step::<C, S> });
        self
    }

    /// The application's context.
    #[must_use]
    pub fn context(&self) -> &Arc<C> {
        &self.context
    }

    /// A definition that cannot run.
    #[must_use]
    pub fn clash(&self) -> Option<&str> {
        self.clash.as_deref()
    }

    fn entry(&self, name: &str) -> Option<&StepEntry<C>> {
        self.steps.get(name).or(self.fallback_step.as_ref())
    }

    /// Something performs steps of this name.
    #[must_use]
    pub fn has_step(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The options of a saga's name.
    #[must_use]
    pub fn options(&self, name: &str) -> Option<SagaOptions> {
        match self.sagas.get(name) {
            Some(entry) => Some(entry.options.clone()),
            None => self.fallback.as_ref().and_then(|find| find(name, None)).map(|(options, _)| options),
        }
    }

    /// What a turn asks for that is not registered here breaks it off, before anything of it is
    /// journaled: once the missing part is registered, a retry says it again.
    pub fn check(&self, turn: &mut Turn) {
        let missing = turn.ops.iter().find_map(|op| match &op.what {
            What::Step { .. } if !self.has_step(&op.name) => Some(("step", &op.name)),
            What::Child { saga, .. } if self.options(saga).is_none() => Some(("saga", saga)),
            _ => None,
        });
        if let Some((what, name)) = missing {
            turn.end = Some(End::Broken(unregistered(what, name)));
        }
    }

    fn find(&self, name: &str, version: Option<u32>) -> Option<(SagaOptions, Function<C>)> {
        if let Some(entry) = self.sagas.get(name) {
            return Some((entry.options.clone(), Arc::clone(&entry.function)));
        }
        let (options, found) = self.fallback.as_ref()?(name, version)?;
        let function: Function<C> = Arc::new(move |saga, input| Ok(found(saga, input.clone())));
        Some((options, function))
    }

    /// A fresh copy of a saga's function, not polled yet. The version is the one that
    /// [`Registry::options`] gave: a newer one may have been defined since.
    ///
    /// # Errors
    /// [`Failure`] when there is none, or its input cannot be read.
    pub fn begin(&self, name: &str, version: u32, id: &str, input: &Blob) -> Result<Runner, Failure> {
        let (_, function) = self.find(name, Some(version)).ok_or_else(|| unregistered("saga", name))?;
        Runner::begin(&function, id, input)
    }

    /// A copy of a saga's function that has been told everything its journal says.
    ///
    /// # Errors
    /// [`Failure`]: not registered, another version, or the first difference to the journal.
    pub fn rebuild(&self, id: &str, machine: &Machine) -> Result<Runner, Failure> {
        let name = machine.name();
        let (options, function) =
            self.find(name, Some(machine.version())).ok_or_else(|| unregistered("saga", name))?;
        if options.version != machine.version() {
            let text = format!(
                "saga {name:?} began with version {}, this program has version {}: serve the old version \
                 until it has ended, or cancel it",
                machine.version(),
                options.version
            );
            return Err(Failure::new(FailureKind::Mismatch, text));
        }
        if options.digest != machine.digest() {
            let text = format!(
                "definition {name:?} version {} is not the one the saga began with: give the changed one a new version",
                options.version
            );
            return Err(Failure::new(FailureKind::Mismatch, text));
        }
        let mut runner = Runner::begin(&function, id, machine.input())?;
        runner.replay(machine)?;
        Ok(runner)
    }

    /// The attempt of a registered step, or of its undo (`output` = what is known of the step).
    ///
    /// # Errors
    /// [`Failure`] when no step of this name is registered.
    pub fn attempt(
        &self,
        registered: &str,
        info: StepInfo,
        value: Blob,
        undo: Option<Option<Blob>>,
    ) -> Result<BoxFuture<Attempt>, Failure> {
        let entry = self.entry(registered).ok_or_else(|| unregistered("step", registered))?;
        let app = Arc::clone(&self.context);
        Ok(match undo {
            None => (entry.run)(app, info, value),
            Some(output) => (entry.undo)(app, info, value, output),
        })
    }
}

fn unregistered(what: &str, name: &str) -> Failure {
    let text = format!("no {what} is registered as {name:?} in this program: register it and retry the saga");
    Failure::new(FailureKind::Unregistered, text)
}

fn failed(
    kind: FailureKind,
    message: String,
    may_have_acted: bool,
    retry_after: Option<Duration>,
) -> Attempt {
    Attempt::Failed { failure: Failure::new(kind, message), may_have_acted, retry_after }
}

/// What an attempt's result is in the journal.
pub(crate) fn attempt<T: Serialize, E: Serialize + Display>(result: Result<T, StepError<E>>) -> Attempt {
    match result {
        Ok(output) => match Blob::of(&output) {
            Ok(blob) => Attempt::Done(blob),
            Err(error) => {
                failed(FailureKind::Fatal, format!("the output cannot be journaled: {error}"), true, None)
            }
        },
        Err(StepError::Business(error)) => {
            Attempt::Failed { failure: business_failure(&error), may_have_acted: false, retry_after: None }
        }
        Err(StepError::Transient { message, retry_after, may_have_acted }) => {
            failed(FailureKind::Transient, message, may_have_acted, retry_after)
        }
        Err(StepError::Fatal(message)) => failed(FailureKind::Fatal, message, true, None),
        Err(StepError::Misconfigured(message)) => failed(FailureKind::Misconfigured, message, false, None),
    }
}

fn unreadable(error: &crate::value::ValueError) -> Attempt {
    failed(
        FailureKind::Fatal,
        format!("the journaled step cannot be read by this program: {error}"),
        false,
        None,
    )
}

fn run_step<C: Send + Sync + 'static, S: Step<C>>(
    app: Arc<C>,
    info: StepInfo,
    value: Blob,
) -> BoxFuture<Attempt> {
    Box::pin(async move {
        match value.read::<S>() {
            Ok(step) => attempt(step.run(StepCx::new(&*app, &info)).await),
            Err(error) => unreadable(&error),
        }
    })
}

fn undo_step<C: Send + Sync + 'static, S: Step<C>>(
    app: Arc<C>,
    info: StepInfo,
    value: Blob,
    output: Option<Blob>,
) -> BoxFuture<Attempt> {
    Box::pin(async move {
        let step = match value.read::<S>() {
            Ok(step) => step,
            Err(error) => return unreadable(&error),
        };
        let outcome = match output.map(|output| output.read::<S::Output>()) {
            None => Outcome::Unknown,
            Some(Ok(output)) => Outcome::Known(output),
            Some(Err(error)) => return unreadable(&error),
        };
        match step.undo(StepCx::new(&*app, &info), outcome).await {
            Ok(()) => Attempt::Done(Blob::default()),
            Err(UndoError::NotDefined) => Attempt::NotDefined,
            Err(UndoError::Transient { message, retry_after }) => {
                failed(FailureKind::Transient, message, true, retry_after)
            }
            Err(UndoError::Fatal(message)) => failed(FailureKind::Fatal, message, true, None),
        }
    })
}

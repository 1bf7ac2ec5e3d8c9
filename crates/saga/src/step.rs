//! What a saga consists of: steps as values.
//!
//! A step is a serialisable value with a stable name. It is journaled before its first attempt, so
//! that every compensation can be run from the journal and the registry alone.

use crate::op::{Failure, FailureKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error;
use std::fmt::{self, Display};
use std::future::Future;
use std::time::Duration;

/// A step of a saga, for an application whose context is `C`.
///
/// ```
/// use rallypoint_saga::step::{Outcome, Step, StepCx, StepError, UndoError};
/// use serde::{Deserialize, Serialize};
///
/// struct Bank; // clients, pools, configuration: never captured by the step
///
/// #[derive(Serialize, Deserialize)]
/// struct Charge { order: u64, cents: u64 }
///
/// impl Step<Bank> for Charge {
///     const NAME: &'static str = "charge";
///     type Output = String;
///     type Error = String;
///     async fn run(&self, cx: StepCx<'_, Bank>) -> Result<String, StepError<String>> {
///         if self.cents > 100_000 {
///             return Err(StepError::business("over the limit".to_owned()));
///         }
///         Ok(format!("receipt for {} under {}", self.order, cx.key()))
///     }
///     async fn undo(&self, _: StepCx<'_, Bank>, done: Outcome<String>) -> Result<(), UndoError> {
///         match done {
///             Outcome::Known(receipt) => println!("give back {receipt}"),
///             Outcome::Unknown => println!("give back order {}, if it was charged", self.order),
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Step<C>: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Stable name: what the journal calls it.
    const NAME: &'static str;
    /// What it gives.
    type Output: Serialize + DeserializeOwned + Send;
    /// Why the business does not allow it.
    type Error: Serialize + DeserializeOwned + Display + Send;

    /// Does it. Called at least once, always with the same [`StepCx::key`]: hand the key on, so that
    /// the other side can recognise a repetition.
    ///
    /// # Errors
    /// [`StepError`] says whether it is worth another attempt, and whether it may have acted.
    fn run(
        &self,
        cx: StepCx<'_, C>,
    ) -> impl Future<Output = Result<Self::Output, StepError<Self::Error>>> + Send;

    /// Reverses it: after a known outcome, or when it may have acted. Must be fit to be called twice,
    /// and before a late arrival of the original.
    ///
    /// # Errors
    /// [`UndoError`]; unless overridden, that there is nothing to undo.
    fn undo(
        &self,
        cx: StepCx<'_, C>,
        done: Outcome<Self::Output>,
    ) -> impl Future<Output = Result<(), UndoError>> + Send {
        let _ = (cx, done);
        async { Err(UndoError::NotDefined) }
    }
}

/// What an undo knows of its step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It acted, and gave this.
    Known(T),
    /// It may have acted.
    Unknown,
}

/// What identifies an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInfo {
    /// The saga's id.
    pub saga: String,
    /// The step's name.
    pub step: String,
    /// Idempotency key of this step and direction: the same for each attempt.
    pub key: String,
    /// Idempotency key of the step that is undone.
    pub key_of: Option<String>,
    /// From 1.
    pub attempt: u32,
    /// W3C trace context of this attempt.
    pub trace: Trace,
}

/// W3C trace context: one trace per saga, one span per attempt. Its text is the header `traceparent`.
///
/// ```
/// use rallypoint_saga::step::Trace;
/// let text = Trace { trace: 0x0af7, span: 0x31 }.to_string();
/// assert_eq!(text, "00-00000000000000000000000000000af7-0000000000000031-01");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Of the saga; not 0.
    pub trace: u128,
    /// Of the attempt; not 0.
    pub span: u64,
}

impl Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

/// The context of one attempt.
pub struct StepCx<'a, C> {
    app: &'a C,
    info: &'a StepInfo,
}

impl<'a, C> StepCx<'a, C> {
    pub(crate) fn new(app: &'a C, info: &'a StepInfo) -> Self {
        Self { app, info }
    }

    /// The application's context: clients, pools, configuration.
    #[must_use]
    pub fn app(&self) -> &'a C {
        self.app
    }

    /// Idempotency key of this step and direction: the same for each attempt, never the same for
    /// another step, generation or saga.
    #[must_use]
    pub fn key(&self) -> &'a str {
        &self.info.key
    }

    /// In an undo: the key that the step itself carried, so that a receiver can refuse its late
    /// arrival.
    #[must_use]
    pub fn key_of(&self) -> Option<&'a str> {
        self.info.key_of.as_deref()
    }

    /// Id of the saga.
    #[must_use]
    pub fn saga(&self) -> &'a str {
        &self.info.saga
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.info.attempt
    }

    /// W3C trace context of this attempt, for the header `traceparent`.
    #[must_use]
    pub fn traceparent(&self) -> Trace {
        self.info.trace
    }
}

/// Why an attempt of a step did not end well. A foreign error becomes [`StepError::Transient`]
/// through `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError<E> {
    /// The business does not allow it; nothing was done. No further attempt; typed for the function.
    Business(E),
    /// It may pass: another attempt. It may have acted.
    Transient {
        /// For people.
        message: String,
        /// Not before this long.
        retry_after: Option<Duration>,
        /// False only when it is certain that nothing was done.
        may_have_acted: bool,
    },
    /// A bug: stop this saga and compensate nothing until a person has looked.
    Fatal(String),
    /// The other side refuses us as such: wait with an alarm, compensate nothing.
    Misconfigured(String),
}

impl<E> StepError<E> {
    /// The business does not allow it; nothing was done.
    pub fn business(error: E) -> Self {
        Self::Business(error)
    }

    /// It may pass; it may have acted.
    pub fn transient(message: impl Display) -> Self {
        Self::Transient { message: message.to_string(), retry_after: None, may_have_acted: true }
    }

    /// It may pass, and it is certain that nothing was done (no connection, say).
    pub fn not_acted(message: impl Display) -> Self {
        Self::Transient { message: message.to_string(), retry_after: None, may_have_acted: false }
    }

    /// The other side asks for another attempt after `wait`.
    pub fn retry_after(wait: Duration, message: impl Display) -> Self {
        Self::Transient { message: message.to_string(), retry_after: Some(wait), may_have_acted: true }
    }

    /// A bug: stop this saga, do not compensate.
    pub fn fatal(message: impl Display) -> Self {
        Self::Fatal(message.to_string())
    }
}

impl<E, X: Error> From<X> for StepError<E> {
    fn from(error: X) -> Self {
        Self::transient(chain(&error))
    }
}

/// Why an undo did not end well. A foreign error becomes [`UndoError::Transient`] through `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UndoError {
    /// The step has none.
    NotDefined,
    /// It may pass: another attempt.
    Transient {
        /// For people.
        message: String,
        /// Not before this long.
        retry_after: Option<Duration>,
    },
    /// No further attempt helps: a person decides; the other undos go on.
    Fatal(String),
}

impl UndoError {
    /// It may pass.
    pub fn transient(message: impl Display) -> Self {
        Self::Transient { message: message.to_string(), retry_after: None }
    }

    /// No further attempt helps.
    pub fn fatal(message: impl Display) -> Self {
        Self::Fatal(message.to_string())
    }
}

impl<X: Error> From<X> for UndoError {
    fn from(error: X) -> Self {
        Self::transient(chain(&error))
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// How a step failed, as its saga's function is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepFailure<E> {
    /// The business does not allow it.
    Business(E),
    /// All attempts failed, or the saga was cancelled.
    Failed(Failure),
}

impl<E: Display> Display for StepFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Business(error) => error.fmt(f),
            Self::Failed(failure) => f.write_str(&failure.message),
        }
    }
}

/// Why a saga's function ends in failure: its compensation begins.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.message)]
pub struct SagaError(pub Failure);

impl From<Failure> for SagaError {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl SagaError {
    /// The business does not allow it.
    pub fn business(message: impl Display) -> Self {
        Self(Failure::new(FailureKind::Business, message.to_string()))
    }
}

impl<E: Serialize + Display> From<StepFailure<E>> for SagaError {
    fn from(failure: StepFailure<E>) -> Self {
        match failure {
            StepFailure::Business(error) => Self(business(&error)),
            StepFailure::Failed(failure) => Self(failure),
        }
    }
}

pub(crate) fn business<E: Serialize + Display>(error: &E) -> Failure {
    let data = crate::value::Blob::of(error).ok();
    Failure { kind: FailureKind::Business, message: error.to_string(), data }
}

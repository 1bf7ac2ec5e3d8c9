//! The one function of all declared sagas, and the one step of all their calls.
//!
//! Decides how a definition's nodes become operations of a saga. The journaled value of a step is its
//! whole plan: run and undo need the journal alone, whatever became of the definition.

use crate::call::{CallOutcome, Caller, Keys};
use crate::catalog::Catalog;
use crate::definition::{Call, CallPlan, Definition, Node, Scope, StepNode};
use rallypoint::saga::{Blob, DynamicFunction, Failure, FailureKind, Fallback, Policy, Resolution};
use rallypoint::{
    Operation, Registry, Saga, SagaError, SagaOptions, Step, StepCx, StepError, StepOutcome, UndoError,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// What steps work with.
pub(crate) struct ServerContext {
    caller: Caller,
}

/// A call of a declared saga. In the journal it has the name that its definition gives it.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct HttpStep(CallPlan);

/// The participant says no.
#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    status: u16,
    body: Value,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body: String = match &self.body {
            Value::String(text) => text.chars().take(200).collect(),
            body => body.to_string().chars().take(200).collect(),
        };
        write!(f, "refused with {}: {body}", self.status)
    }
}

async fn call(cx: &StepCx<'_, ServerContext>, call: &Call) -> CallOutcome {
    let keys = Keys { key: cx.key(), key_of: cx.key_of(), traceparent: &cx.traceparent().to_string() };
    cx.app().caller.perform(call, keys).await
}

impl Step<ServerContext> for HttpStep {
    const NAME: &'static str = "rallypoint.http";
    type Output = Value;
    type Error = Refused;

    async fn run(&self, cx: StepCx<'_, ServerContext>) -> Result<Value, StepError<Refused>> {
        match call(&cx, &self.0.call).await {
            CallOutcome::Done(answer) => Ok(answer),
            CallOutcome::Business { status, body } => Err(StepError::Business(Refused { status, body })),
            CallOutcome::Transient { message, retry_after, may_have_acted } => {
                Err(StepError::Transient { message, retry_after, may_have_acted })
            }
            CallOutcome::Misconfigured(message) => Err(StepError::Misconfigured(message)),
            CallOutcome::Fatal(message) => Err(StepError::Fatal(message)),
        }
    }

    async fn undo(&self, cx: StepCx<'_, ServerContext>, done: StepOutcome<Value>) -> Result<(), UndoError> {
        let output = match &done {
            StepOutcome::Known(output) => Some(output),
            StepOutcome::Unknown => None,
        };
        let Some(undo) = self.0.undo(output) else { return Err(UndoError::NotDefined) };
        let undo = undo.map_err(UndoError::Fatal)?;
        match call(&cx, &undo).await {
            CallOutcome::Done(_) => Ok(()),
            CallOutcome::Business { status, body } => {
                Err(UndoError::Fatal(format!("the undo was {}", Refused { status, body })))
            }
            CallOutcome::Transient { message, retry_after, .. } => {
                Err(UndoError::Transient { message, retry_after })
            }
            // Credentials may be set right meanwhile; when they are not, the saga is stuck in the end.
            CallOutcome::Misconfigured(message) => Err(UndoError::Transient { message, retry_after: None }),
            CallOutcome::Fatal(message) => Err(UndoError::Fatal(message)),
        }
    }
}

/// The steps and sagas of a server: all of them are found in its catalog. It makes so many `calls` at
/// once.
pub(crate) fn registry(catalog: Arc<Catalog>, calls: usize) -> Result<Registry<ServerContext>, String> {
    let context = ServerContext { caller: Caller::new(calls)? };
    let find: Fallback<ServerContext> = Arc::new(move |name, version| {
        let definition = catalog.find(name, version)?;
        let options = SagaOptions {
            version: definition.version(),
            digest: definition.digest(),
            concurrency: definition.concurrency(),
            deadline: definition.deadline(),
        };
        let function: DynamicFunction<ServerContext> =
            Arc::new(move |saga, input| Box::pin(run(Arc::clone(&definition), saga, input)));
        Some((options, function))
    });
    Ok(Registry::new(context).fallback_step::<HttpStep>().fallback(find))
}

/// The definition asks for something that cannot be: the saga stops for a person, who may cancel it.
/// Nothing says that what it did so far is wrong, so nothing is undone for it.
fn stop(message: String) -> SagaError {
    SagaError(Failure::new(FailureKind::Stopped, message))
}

fn read(name: &str, blob: &Blob) -> Result<Value, SagaError> {
    blob.read().map_err(|error| stop(format!("the output of {name:?}: {error}")))
}

fn ask(
    saga: &Saga<ServerContext>,
    step: &StepNode,
    scope: &Scope,
) -> Result<Operation<Resolution>, SagaError> {
    let plan = step.plan(scope).map_err(|why| stop(format!("step {:?}: {why}", step.name())))?;
    let value = Blob::of(&HttpStep(plan)).map_err(|error| stop(error.to_string()))?;
    let attempts = step.attempts();
    let policy = Policy {
        timeout: attempts.timeout,
        attempts: attempts.attempts,
        base: attempts.base,
        cap: attempts.cap,
        undo_attempts: attempts.undo_attempts,
        pivot: attempts.pivot,
        atomic: attempts.atomic,
    };
    Ok(saga.step_as(step.name(), value, policy))
}

async fn run(definition: Arc<Definition>, saga: Saga<ServerContext>, input: Blob) -> Result<Blob, SagaError> {
    let mut scope = definition.scope(&saga.id(), &read("input", &input)?);
    for node in definition.nodes() {
        match node {
            Node::Step(step) => {
                let output = ask(&saga, step, &scope)?.await?;
                scope.done(step.name(), read(step.name(), &output)?);
            }
            Node::Parallel(steps) => {
                let asked: Result<Vec<_>, _> = steps.iter().map(|step| ask(&saga, step, &scope)).collect();
                let outputs: Vec<Blob> = saga.join_all(asked?).await?;
                for (step, output) in steps.iter().zip(outputs) {
                    scope.done(step.name(), read(step.name(), &output)?);
                }
            }
            Node::Signal { name, within } => {
                let mut wait = saga.signal::<Value>(name);
                if let Some(within) = within {
                    wait = wait.within(*within);
                }
                scope.done(name, wait.await?);
            }
            Node::Sleep(length) => saga.sleep(*length).await?,
        }
    }
    let output = definition.output(&scope).map_err(|why| stop(format!("output: {why}")))?;
    Blob::of(&output).map_err(|error| stop(error.to_string()))
}

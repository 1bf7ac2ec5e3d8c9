//! Sagas as JSON.
//!
//! Decides what people and programs are shown of a saga's journal. Never shows more than the journal
//! holds: secrets are put into a call when it is made and stand in no journal.

use crate::moment::moment;
use rallypoint::saga::{Blob, Failure, Machine, Op, OpState, UndoState, What, child_id};
use rallypoint::{SagaSummary, Status};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// Where a saga stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StatusView {
    Running,
    Waiting,
    Paused,
    Compensating,
    Completed,
    Compensated,
    Stuck,
    Abandoned,
}

impl From<Status> for StatusView {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => Self::Running,
            Status::Waiting => Self::Waiting,
            Status::Paused => Self::Paused,
            Status::Compensating => Self::Compensating,
            Status::Completed => Self::Completed,
            Status::Compensated => Self::Compensated,
            Status::Stuck => Self::Stuck,
            Status::Abandoned => Self::Abandoned,
        }
    }
}

impl From<StatusView> for Status {
    fn from(status: StatusView) -> Self {
        match status {
            StatusView::Running => Self::Running,
            StatusView::Waiting => Self::Waiting,
            StatusView::Paused => Self::Paused,
            StatusView::Compensating => Self::Compensating,
            StatusView::Completed => Self::Completed,
            StatusView::Compensated => Self::Compensated,
            StatusView::Stuck => Self::Stuck,
            StatusView::Abandoned => Self::Abandoned,
        }
    }
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct FailureView {
    /// `business`, `transient`, `timed_out`, `misconfigured`, `cancelled`, …
    kind: String,
    /// For people.
    message: String,
    /// What the participant answered, if it is kept.
    data: Option<Value>,
}

/// The undo of a step.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct CompensationView {
    /// `none`, `pending`, `running`, `backoff`, `done`, `not_defined`, `failed`, `skipped`, `resolved`
    status: &'static str,
    attempts: u32,
    error: Option<FailureView>,
}

/// One operation of a saga.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct StepView {
    name: String,
    /// Its number, from 0, in the order in which they were asked for. Names it where names are shared.
    number: u32,
    /// `step`, `run`, `sleep`, `signal` or `child`
    kind: &'static str,
    /// `held`, `running`, `backoff`, `waiting`, `done`, `failed` or `forgotten`
    status: &'static str,
    attempts: u32,
    /// Its next attempt, or the end of its wait.
    #[schema(format = DateTime)]
    due_at: Option<String>,
    output: Option<Value>,
    error: Option<FailureView>,
    /// It may have acted although no answer says so.
    may_have_acted: bool,
    /// It keeps failing and may not be given up: a person should look.
    alarm: bool,
    /// Id of the child saga, if it is one.
    child: Option<String>,
    compensation: CompensationView,
}

/// A saga.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct SagaView {
    id: String,
    name: String,
    version: u32,
    status: StatusView,
    input: Value,
    output: Option<Value>,
    error: Option<FailureView>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
    /// How often it was restarted from a step.
    generation: u32,
    /// Id of the saga whose child it is.
    parent: Option<String>,
    steps: Vec<StepView>,
}

/// A saga in one line of a list.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct SummaryView {
    id: String,
    name: String,
    version: u32,
    status: StatusView,
    error: Option<FailureView>,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

/// A journaled value. One that is no JSON (bytes of a saga in code) is described.
fn value(blob: &Blob) -> Value {
    blob.read().unwrap_or_else(|_| Value::String(format!("{} bytes that are no JSON", blob.bytes().len())))
}

fn failure(failure: &Failure) -> FailureView {
    let kind = serde_json::to_value(failure.kind).ok();
    FailureView {
        kind: kind.and_then(|kind| Some(kind.as_str()?.to_owned())).unwrap_or_default(),
        message: failure.message.clone(),
        data: failure.data.as_ref().map(value),
    }
}

fn step(id: &str, op: &Op) -> StepView {
    let (status, due) = match op.state {
        OpState::Held => ("held", None),
        OpState::InFlight => ("running", None),
        OpState::Backoff { at } => ("backoff", Some(at.0)),
        OpState::Waiting { at } => ("waiting", at),
        OpState::Done => ("done", None),
        OpState::Failed => ("failed", None),
        OpState::Forgotten => ("forgotten", None),
    };
    let (undo, undo_due) = match op.undo {
        UndoState::None => ("none", None),
        UndoState::Pending => ("pending", None),
        UndoState::InFlight => ("running", None),
        UndoState::Backoff { at } => ("backoff", Some(at.0)),
        UndoState::Done => ("done", None),
        UndoState::NotDefined => ("not_defined", None),
        UndoState::Failed => ("failed", None),
        UndoState::Skipped => ("skipped", None),
        UndoState::Resolved => ("resolved", None),
    };
    let kind = match op.what {
        What::Step { .. } => "step",
        What::Run { .. } => "run",
        What::Sleep { .. } => "sleep",
        What::Signal { .. } => "signal",
        What::Child { .. } => "child",
    };
    StepView {
        name: op.name.clone(),
        number: op.number,
        kind,
        status,
        attempts: op.attempts,
        due_at: undo_due.or(due).map(moment),
        output: op.output.as_ref().map(value),
        error: op.error.as_ref().map(failure),
        may_have_acted: op.may_have_acted(),
        alarm: op.alarm || op.undo == UndoState::Failed,
        child: (kind == "child").then(|| child_id(id, op.number, op.generation)),
        compensation: CompensationView {
            status: undo,
            attempts: op.undo_attempts,
            error: op.undo_error.as_ref().map(failure),
        },
    }
}

/// Everything about a saga.
pub(crate) fn saga(id: &str, machine: &Machine) -> SagaView {
    SagaView {
        id: id.to_owned(),
        name: machine.name().to_owned(),
        version: machine.version(),
        status: machine.status().into(),
        input: value(machine.input()),
        output: machine.output().map(value),
        error: machine.error().map(failure),
        created_at: moment(machine.created().0),
        updated_at: moment(machine.updated().0),
        generation: machine.generation(),
        parent: machine.parent().map(|parent| parent.id.clone()),
        steps: machine.ops().iter().map(|op| step(id, op)).collect(),
    }
}

/// A saga in one line.
pub(crate) fn summary(summary: &SagaSummary) -> SummaryView {
    SummaryView {
        id: summary.id.clone(),
        name: summary.name.clone(),
        version: summary.version,
        status: summary.status.into(),
        error: summary.error.as_ref().map(failure),
        created_at: moment(summary.created.0),
        updated_at: moment(summary.updated.0),
    }
}

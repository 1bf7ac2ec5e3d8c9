//! What a storm says when it is over.

use rallypoint_saga::op::Failure;
use rallypoint_saga::status::Status;
use rallypoint_saga::value::{Blob, ValueError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How a saga ended in one case of a storm: what [`SagaStorm::holds`](super::SagaStorm::holds) is
/// given to judge.
///
/// ```
/// # use rallypoint::{Registry, Saga, SagaError, Status};
/// # async fn order(_: Saga<()>, order: u64) -> Result<u64, SagaError> { Ok(order) }
/// rallypoint::test::saga(|| Registry::new(()), order, 17)
///     .holds("the order comes back", |_, end| match end.output::<u64>() {
///         Some(Ok(17)) => Ok(()),
///         _ => Err(format!("it ended {}", end.status())),
///     })
///     .storm();
/// ```
#[derive(Clone, Debug)]
pub struct StormEnd {
    pub(super) status: Status,
    pub(super) output: Option<Blob>,
    pub(super) error: Option<Failure>,
    pub(super) case: Vec<String>,
}

impl StormEnd {
    /// [`Status::Completed`] or [`Status::Compensated`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The output of the function, if the saga completed. The inner error says that it is no `T`.
    #[must_use]
    pub fn output<T: DeserializeOwned>(&self) -> Option<Result<T, ValueError>> {
        self.output.as_ref().map(Blob::read)
    }

    /// Why it was compensated.
    #[must_use]
    pub fn error(&self) -> Option<&Failure> {
        self.error.as_ref()
    }

    /// What went wrong in this case, a line each.
    #[must_use]
    pub fn case(&self) -> &[String] {
        &self.case
    }
}

/// A rule that a saga broke in a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StormRule {
    /// The storm cannot begin: something is registered twice, or the input cannot be journaled.
    Setup,
    /// A saga ends once nothing goes wrong any more.
    Ends,
    /// A saga needs a person only where the case forces it: an undo that always fails, a bug.
    NeedsNobody,
    /// A signal that is waited for without end has to come.
    Signal,
    /// The function says the same when it is told the same.
    Deterministic,
    /// A step that acted under a key accepts its repetition under the same key.
    Repeatable,
    /// What acted or may have acted is undone before the saga is compensated.
    Undone,
    /// Undos wait for what is under way; unknown outcomes first, then in reverse order.
    Order,
    /// Nothing is undone once a pivot acted.
    Pivot,
    /// A key is never used for another cause.
    Key,
    /// A journal gives the same state each time it is read.
    Journal,
    /// [`SagaStorm::all_or_nothing`](super::SagaStorm::all_or_nothing).
    AllOrNothing,
    /// [`SagaStorm::exactly_once`](super::SagaStorm::exactly_once).
    ExactlyOnce,
    /// [`SagaStorm::holds`](super::SagaStorm::holds).
    Holds,
}

impl fmt::Display for StormRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Ends => "every saga ends",
            Self::NeedsNobody => "needs nobody",
            Self::Signal => "signal",
            Self::Deterministic => "deterministic",
            Self::Repeatable => "repeatable",
            Self::Undone => "what acted is undone",
            Self::Order => "order of the undos",
            Self::Pivot => "nothing is undone after a pivot",
            Self::Key => "a key has one cause",
            Self::Journal => "journal",
            Self::AllOrNothing => "all or nothing",
            Self::ExactlyOnce => "exactly once",
            Self::Holds => "holds",
        })
    }
}

/// A storm that the saga came through: what was tried, and how it ended. The same seed, the same
/// report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StormReport {
    /// The seed of the waits.
    pub seed: u64,
    /// Runs of the saga.
    pub cases: u64,
    /// Runs by what went wrong in them.
    pub kinds: BTreeMap<String, u64>,
    /// Runs by how they ended.
    pub ends: BTreeMap<Status, u64>,
    /// Steps and closures that were attempted in any of them.
    pub steps: Vec<String>,
    /// Steps that were undone in any of them.
    pub undone: Vec<String>,
    /// Steps that acted, should have been undone, and define no undo: is there nothing to undo?
    pub without_undo: Vec<String>,
    /// Records journaled.
    pub records: u64,
    /// Crashes.
    pub crashes: u64,
    /// Original requests that came after their undo, or after the end.
    pub late: u64,
    /// Times the function was built anew from a journal and compared with what it had said.
    pub compared: u64,
    /// Runs in which a person had to help, because the case forced it.
    pub helped: u64,
    /// Crashes and cancellations left out because there were too many: each n-th was taken.
    pub left_out: u64,
}

impl fmt::Display for StormReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: Vec<String>| counts.join(", ");
        let kinds = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let ends = self.ends.iter().map(|(end, count)| format!("{count} {end}")).collect();
        writeln!(f, "the saga came through {} cases (seed {}): {}", self.cases, self.seed, list(kinds))?;
        writeln!(
            f,
            "ended: {}; {} records, {} crashes, {} late requests, {} comparisons of the function, {} times \
             a person helped",
            list(ends),
            self.records,
            self.crashes,
            self.late,
            self.compared,
            self.helped
        )?;
        write!(f, "steps: {}; undone: {}", self.steps.join(", "), self.undone.join(", "))?;
        if !self.without_undo.is_empty() {
            write!(f, "; without undo: {}", self.without_undo.join(", "))?;
        }
        if self.left_out > 0 {
            write!(f, "; {} crashes and cancellations were left out", self.left_out)?;
        }
        Ok(())
    }
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StormLine {
    /// From 1.
    pub number: u64,
    /// Virtual time since the saga began.
    pub millis: u64,
    /// What happened.
    pub text: String,
}

impl fmt::Display for StormLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.millis / 1_000, self.millis % 1_000);
        write!(f, "{:>5}  {seconds:>6}.{millis:03} s  {}", self.number, self.text)
    }
}

/// A storm that the saga did not come through: the rule it broke, the case, and what happened in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StormFailure {
    /// Runs the same storm again: `RALLYPOINT_SEED`.
    pub seed: u64,
    /// The rule.
    pub rule: StormRule,
    /// How it was broken.
    pub why: String,
    /// What went wrong in this case, a line each.
    pub case: Vec<String>,
    /// Which case of the storm it was, from 1.
    pub number: u64,
    /// What happened.
    pub timeline: Vec<StormLine>,
}

impl fmt::Display for StormFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the saga broke the rule \"{}\": {}", self.rule, self.why)?;
        writeln!(f, "case {}: {}", self.number, self.case.join("; "))?;
        writeln!(f, "seed {seed}; the same again: RALLYPOINT_SEED={seed}", seed = self.seed)?;
        if !self.timeline.is_empty() {
            writeln!(f, "timeline (virtual time):")?;
        }
        for line in &self.timeline {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StormFailure {}

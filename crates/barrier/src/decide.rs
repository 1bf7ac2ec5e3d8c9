//! The rules: from what the table holds to what is done. Pure; knows no database.
//!
//! Invariants, for each key K of a step:
//! - the step's handler is committed at most once, and never after an undo of K was recorded;
//! - the undo's handler is committed at most once, and only after the step's handler was;
//! - a step that acted is answered the same bytes until it is undone. From then on it is refused:
//!   its first answer would claim something that no longer holds;
//! - a key is answered only to the request that it was recorded for, as far as fingerprints tell.
//!
//! Source: the sub-transaction barrier of dtm (empty compensation, hanging, idempotence), with the
//! first answer and the refusal added.

use crate::answer::{Answer, Reply, Source};
use crate::key::Key;

/// The word in the column `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Inserted by the transaction that is still running; never committed.
    Claimed,
    /// A step that acted.
    Acted,
    /// A step whose handler refused: it did not act.
    Refused,
    /// A step that was undone, or that may no longer act because its undo came first.
    Undone,
    /// The undo of another key, with its answer.
    Undo,
}

impl State {
    /// As it is written into the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Acted => "acted",
            Self::Refused => "refused",
            Self::Undone => "undone",
            Self::Undo => "undo",
        }
    }

    /// From the table; `None` for a word that no version has written.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Claimed, Self::Acted, Self::Refused, Self::Undone, Self::Undo]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// A row that an earlier transaction committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What became of the key.
    pub state: State,
    /// For [`State::Undo`], the key of its step.
    pub undo_of: Option<String>,
    /// What the first request gave as its fingerprint.
    pub fingerprint: Option<Vec<u8>>,
    /// The first answer.
    pub answer: Answer,
}

/// What to do with a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnStep {
    /// Run the handler; then write [`State::Acted`] or [`State::Refused`] with its answer.
    Run,
    /// Answer this; write nothing.
    Answer(Reply),
}

/// What to do with an undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnUndo {
    /// Run the handler with the step's first answer; then write [`State::Undone`] for the step and
    /// [`State::Undo`] with the handler's answer for the undo.
    Run(Answer),
    /// Run nothing; write [`State::Undone`] for the step and [`State::Undo`] for the undo, both with
    /// [`Answer::nothing_to_undo`], and answer that.
    RecordNothing,
    /// Answer this; write nothing.
    Answer(Reply),
}

/// A caller used one key for two causes. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// A key is empty.
    #[error("the idempotency key is empty; the caller must send the same key at each attempt of one request")]
    EmptyKey,
    /// The key of a step was that of an undo, or the other way round.
    #[error("one idempotency key was used for a step and for an undo; the caller must use two")]
    StepAndUndo,
    /// The same undo named another step before.
    #[error("this undo named another step before; the caller must use one key per undo")]
    UndoOfAnother,
    /// The same key came with another request before.
    #[error("this idempotency key came with another request before; the caller must use one key per request")]
    OtherRequest,
}

/// Decides a step with key K. `found` is the row of K, or `None` if this transaction has claimed it.
///
/// ```
/// use rallypoint_barrier::answer::{Answer, Source};
/// use rallypoint_barrier::decide::{self, OnStep, Row, State};
///
/// assert_eq!(decide::step("K".into(), None), Ok(OnStep::Run));
/// let row =
///     Row { state: State::Undone, undo_of: None, fingerprint: None, answer: Answer::nothing_to_undo() };
/// let Ok(OnStep::Answer(reply)) = decide::step("K".into(), Some(row)) else { panic!("it acts") };
/// assert_eq!(reply.source, Source::TooLate);
/// ```
pub fn step(key: Key<'_>, found: Option<Row>) -> Result<OnStep, Misuse> {
    if key.text.is_empty() {
        return Err(Misuse::EmptyKey);
    }
    let Some(row) = found else {
        return Ok(OnStep::Run);
    };
    if row.state != State::Undo && key.is_of_another_than(row.fingerprint.as_deref()) {
        return Err(Misuse::OtherRequest);
    }
    match row.state {
        State::Claimed => Ok(OnStep::Run),
        State::Acted | State::Refused => {
            Ok(OnStep::Answer(Reply { answer: row.answer, source: Source::Repeated }))
        }
        State::Undone => Ok(OnStep::Answer(Reply { answer: Answer::too_late(), source: Source::TooLate })),
        State::Undo => Err(Misuse::StepAndUndo),
    }
}

/// Decides an undo with key U of the step with key K. `found` is the row of U and `step` that of K,
/// or `None` for what this transaction has claimed.
///
/// ```
/// use rallypoint_barrier::answer::Answer;
/// use rallypoint_barrier::decide::{self, OnUndo, Row, State};
///
/// assert_eq!(decide::undo("U".into(), "K", None, None), Ok(OnUndo::RecordNothing));
/// let answer = Answer::new(201, "charged");
/// let row = Row { state: State::Acted, undo_of: None, fingerprint: None, answer: answer.clone() };
/// assert_eq!(decide::undo("U".into(), "K", None, Some(row)), Ok(OnUndo::Run(answer)));
/// ```
pub fn undo(key: Key<'_>, of: &str, found: Option<Row>, step: Option<Row>) -> Result<OnUndo, Misuse> {
    if key.text.is_empty() || of.is_empty() {
        return Err(Misuse::EmptyKey);
    }
    if key.text == of {
        return Err(Misuse::StepAndUndo);
    }
    match found {
        None | Some(Row { state: State::Claimed, .. }) => {}
        Some(Row { state: State::Undo, undo_of, fingerprint, answer }) => {
            return if undo_of.as_deref() != Some(of) {
                Err(Misuse::UndoOfAnother)
            } else if key.is_of_another_than(fingerprint.as_deref()) {
                Err(Misuse::OtherRequest)
            } else {
                Ok(OnUndo::Answer(Reply { answer, source: Source::Repeated }))
            };
        }
        Some(_) => return Err(Misuse::StepAndUndo),
    }
    match step {
        Some(Row { state: State::Acted, answer, .. }) => Ok(OnUndo::Run(answer)),
        Some(Row { state: State::Undo, .. }) => Err(Misuse::StepAndUndo),
        // `Undone` is another undo of the same step: one of them is enough.
        None | Some(Row { state: State::Claimed | State::Refused | State::Undone, .. }) => {
            Ok(OnUndo::RecordNothing)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Misuse, OnStep, OnUndo, Row, State};
    use crate::answer::{Answer, Reply, Source};
    use crate::key::Key;

    fn row(state: State) -> Option<Row> {
        let undo_of = (state == State::Undo).then(|| "K".to_owned());
        let fingerprint = Some(b"first".to_vec());
        Some(Row { state, undo_of, fingerprint, answer: Answer::new(201, "first") })
    }

    fn step(key: &str, found: Option<Row>) -> Result<OnStep, Misuse> {
        super::step(key.into(), found)
    }

    fn undo(key: &str, of: &str, found: Option<Row>, step: Option<Row>) -> Result<OnUndo, Misuse> {
        super::undo(key.into(), of, found, step)
    }

    fn repeated() -> Reply {
        Reply { answer: Answer::new(201, "first"), source: Source::Repeated }
    }

    #[test]
    fn every_word_is_read_back() {
        for state in [State::Claimed, State::Acted, State::Refused, State::Undone, State::Undo] {
            assert_eq!(State::parse(state.as_str()), Some(state));
        }
        assert_eq!(State::parse("done"), None);
    }

    #[test]
    fn every_case_of_a_step() {
        let too_late = Reply { answer: Answer::too_late(), source: Source::TooLate };
        assert_eq!(step("K", None), Ok(OnStep::Run));
        assert_eq!(step("K", row(State::Claimed)), Ok(OnStep::Run));
        assert_eq!(step("K", row(State::Acted)), Ok(OnStep::Answer(repeated())));
        assert_eq!(step("K", row(State::Refused)), Ok(OnStep::Answer(repeated())));
        assert_eq!(step("K", row(State::Undone)), Ok(OnStep::Answer(too_late)));
        assert_eq!(step("K", row(State::Undo)), Err(Misuse::StepAndUndo));
        assert_eq!(step("", None), Err(Misuse::EmptyKey));
    }

    #[test]
    fn another_request_with_the_same_key_is_refused() {
        let (same, other) = (Key::new("K").of_request(b"first"), Key::new("K").of_request(b"other"));
        for state in [State::Acted, State::Refused, State::Undone] {
            assert!(super::step(same, row(state)).is_ok());
            assert_eq!(super::step(other, row(state)), Err(Misuse::OtherRequest));
        }
        assert_eq!(super::step(other, row(State::Undo)), Err(Misuse::StepAndUndo));
        assert_eq!(super::step(other, None), Ok(OnStep::Run));
        let (same, other) = (Key::new("U").of_request(b"first"), Key::new("U").of_request(b"other"));
        let acted = || row(State::Acted);
        assert_eq!(super::undo(same, "K", row(State::Undo), acted()), Ok(OnUndo::Answer(repeated())));
        assert_eq!(super::undo(other, "K", row(State::Undo), acted()), Err(Misuse::OtherRequest));
        // The fingerprint of the step is the step's own; an undo has another.
        assert!(matches!(super::undo(other, "K", None, acted()), Ok(OnUndo::Run(_))));
    }

    #[test]
    fn every_case_of_an_undo() {
        for claimed in [None, row(State::Claimed)] {
            let decide = |step| undo("U", "K", claimed.clone(), step);
            assert_eq!(decide(None), Ok(OnUndo::RecordNothing));
            assert_eq!(decide(row(State::Claimed)), Ok(OnUndo::RecordNothing));
            assert_eq!(decide(row(State::Refused)), Ok(OnUndo::RecordNothing));
            assert_eq!(decide(row(State::Undone)), Ok(OnUndo::RecordNothing));
            assert_eq!(decide(row(State::Acted)), Ok(OnUndo::Run(Answer::new(201, "first"))));
            assert_eq!(decide(row(State::Undo)), Err(Misuse::StepAndUndo));
        }
        for step in [None, row(State::Acted), row(State::Refused), row(State::Undone)] {
            assert_eq!(undo("U", "K", row(State::Undo), step.clone()), Ok(OnUndo::Answer(repeated())));
            assert_eq!(undo("U", "L", row(State::Undo), step.clone()), Err(Misuse::UndoOfAnother));
            for state in [State::Acted, State::Refused, State::Undone] {
                assert_eq!(undo("U", "K", row(state), step.clone()), Err(Misuse::StepAndUndo));
            }
        }
        assert_eq!(undo("K", "K", None, None), Err(Misuse::StepAndUndo));
        assert_eq!(undo("", "K", None, None), Err(Misuse::EmptyKey));
        assert_eq!(undo("U", "", None, None), Err(Misuse::EmptyKey));
    }
}

//! How much a saga's journal holds, and what is journaled in the place of what does not fit.
//!
//! Decides: how many bytes an event adds at most. Never refuses what a saga needs in order to end: a
//! timer, a cancel, an undo.
//!
//! Invariant: [`of_event`] is at least what [`of_machine`] grows by when the machine takes the event.

use crate::codec::{self, Codec};
use rallypoint_base::limits::SAGA_BYTES;
use rallypoint_saga::event::{Attempt, Direction, End, Event, Turn};
use rallypoint_saga::machine::{Machine, Refusal};
use rallypoint_saga::op::{Failure, FailureKind, What};
use rallypoint_saga::value::Blob;

/// Numbers, flags and lengths of an operation, a turn or an event: more than they take.
const FRAME: usize = 128;
/// Of the text of an undo's error, once the journal is full.
const SHORT: usize = 64;

/// At most this much more is in the machine after it took the event.
pub(super) fn of_event(event: &Event) -> usize {
    FRAME
        + match event {
            Event::Start(start) => {
                let parent = start.parent.as_ref().map_or(0, |parent| parent.id.len());
                let turn = start.turn.as_ref().map_or(0, of_turn);
                start.name.len() + start.history.len() + of_blob(&start.input) + parent + turn
            }
            Event::Attempted { attempt, direction, turn, .. } => {
                let attempt = match (attempt, direction) {
                    (Attempt::Done(output), Direction::Run) => of_blob(output),
                    (Attempt::Failed { failure, .. }, _) => of_failure(failure),
                    (Attempt::Done(_), Direction::Undo) | (Attempt::NotDefined, _) => 0,
                };
                attempt + turn.as_ref().map_or(0, of_turn)
            }
            Event::Driven(turn) => of_turn(turn),
            Event::Signal { name, value } => name.len() + of_blob(value),
            Event::ChildEnded { result, .. } => match result {
                Ok(output) => of_blob(output),
                Err(failure) => of_failure(failure),
            },
            Event::ChildUndone { failure, .. } => failure.as_ref().map_or(0, of_failure),
            Event::Resolve(_, output) => of_blob(output),
            Event::Timer(_)
            | Event::Granted
            | Event::Cancel
            | Event::Compensate
            | Event::Pause
            | Event::Resume
            | Event::Retry
            | Event::Skip(_)
            | Event::Restart(_)
            | Event::Abandon => 0,
        }
}

/// What the machine holds.
pub(super) fn of_machine(machine: &Machine) -> usize {
    let mut bytes = Vec::new();
    // Its parts were all decoded once: they can be encoded.
    let _ = codec::encode(Codec::Compact, 0, machine, &mut bytes);
    bytes.len()
}

fn of_blob(value: &Blob) -> usize {
    value.bytes().len() + FRAME / 8
}

/// It may stand at its operation and as the saga's own.
fn of_failure(failure: &Failure) -> usize {
    2 * (failure.message.len() + failure.data.as_ref().map_or(0, of_blob) + FRAME / 8)
}

fn of_turn(turn: &Turn) -> usize {
    let ops = turn.ops.iter().map(|op| {
        let what = match &op.what {
            What::Step { value, .. } => of_blob(value),
            What::Child { saga, input } => saga.len() + of_blob(input),
            What::Run { .. } | What::Sleep { .. } | What::Signal { .. } => 0,
        };
        FRAME + op.name.len() + what
    });
    let end = match &turn.end {
        Some(End::Completed(output)) => of_blob(output),
        Some(End::Failed(failure) | End::Broken(failure)) => of_failure(failure),
        None => 0,
    };
    FRAME + ops.sum::<usize>() + 8 * (turn.fed.len() + turn.forgotten.len()) + end
}

/// What is journaled in its place: it acted, and a person has to look.
///
/// # Errors
/// What nobody waits for is refused.
pub(super) fn too_much(event: Event) -> Result<Event, Refusal> {
    let text = format!(
        "the values and outputs of this saga come to more than {SAGA_BYTES} bytes: let its steps answer with \
         references, then cancel it or restart it"
    );
    let fatal = Failure::new(FailureKind::Fatal, text);
    Ok(match event {
        Event::Attempted { op, generation, direction: Direction::Run, earlier, .. } => {
            let attempt = Attempt::Failed { failure: fatal, may_have_acted: true, retry_after: None };
            Event::Attempted { op, generation, direction: Direction::Run, earlier, attempt, turn: None }
        }
        Event::Attempted { op, generation, direction, earlier, mut attempt, .. } => {
            if let Attempt::Failed { failure, .. } = &mut attempt {
                shorten(failure);
            }
            Event::Attempted { op, generation, direction, earlier, attempt, turn: None }
        }
        Event::Driven(turn) => {
            let end = Some(End::Broken(fatal));
            Event::Driven(Turn { index: turn.index, generation: turn.generation, end, ..Turn::default() })
        }
        Event::ChildEnded { op, generation, result: Ok(_) } => {
            Event::ChildEnded { op, generation, result: Err(fatal) }
        }
        Event::ChildEnded { op, generation, result: Err(mut failure) } => {
            shorten(&mut failure);
            Event::ChildEnded { op, generation, result: Err(failure) }
        }
        Event::Signal { .. } | Event::Resolve(..) => return Err(Refusal::TooLarge),
        other => other,
    })
}

fn shorten(failure: &mut Failure) {
    failure.data = None;
    let end = (0..=SHORT).rev().find(|at| failure.message.is_char_boundary(*at));
    failure.message.truncate(end.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallypoint_base::random::Random;
    use rallypoint_base::time::Time;
    use rallypoint_saga::event::Start;
    use rallypoint_saga::op::NewOp;

    fn text(length: usize) -> Blob {
        Blob::of(&"x".repeat(length)).unwrap()
    }

    fn attempted(op: u32, direction: Direction, attempt: Attempt, turn: Option<Turn>) -> Event {
        Event::Attempted { op, generation: 0, direction, earlier: false, attempt, turn }
    }

    fn failed(length: usize) -> Attempt {
        let failure =
            Failure { data: Some(text(length)), ..Failure::new(FailureKind::Transient, "y".repeat(length)) };
        Attempt::Failed { failure, may_have_acted: true, retry_after: None }
    }

    fn asks(index: u32, fed: Vec<u32>, number: u32, length: usize) -> Turn {
        let what = What::Step { value: text(length), policy: None };
        let ops = vec![NewOp { number, name: "s".repeat(length % 40), what }];
        Turn { index, fed, ops, ..Turn::default() }
    }

    #[test]
    fn an_event_weighs_at_least_what_the_machine_grows_by() {
        let mut machine = Machine::default();
        let mut random = Random::new(7);
        let mut tell = |event: Event| {
            let before = of_machine(&machine);
            let most = of_event(&event);
            let shown = format!("{event:?}");
            machine.handle(Time(1 << 60), &mut random, event, &mut Vec::new()).unwrap();
            let grown = of_machine(&machine).saturating_sub(before);
            assert!(grown <= most, "grew by {grown}, weighed {most}: {shown}");
        };
        let start = Start { input: text(3000), name: "fills".into(), ..Start::default() };
        tell(Event::Start(Box::new(Start { turn: Some(asks(0, vec![], 0, 200)), ..start })));
        for op in 0..300 {
            let length = op as usize * 37 % 900;
            tell(attempted(op, Direction::Run, failed(length), None));
            tell(Event::Timer(rallypoint_saga::event::TimerKey::Retry(op)));
            tell(Event::Signal { name: "n".into(), value: text(length) });
            let turn = asks(op + 1, vec![op], op + 1, length);
            tell(attempted(op, Direction::Run, Attempt::Done(text(length)), Some(turn)));
        }
        let failure = Failure::new(FailureKind::Business, "z".repeat(500));
        let end = Some(End::Failed(failure));
        let turn = Turn { index: 301, fed: vec![300], end, ..Turn::default() };
        tell(attempted(300, Direction::Run, Attempt::Done(text(1)), Some(turn)));
        for op in (0..=300).rev() {
            tell(attempted(op, Direction::Undo, failed(100), None));
            tell(Event::Timer(rallypoint_saga::event::TimerKey::UndoRetry(op)));
            tell(attempted(op, Direction::Undo, Attempt::Done(text(5000)), None));
        }
        assert_eq!(machine.status(), rallypoint_saga::status::Status::Compensated);
    }

    #[test]
    fn a_full_journal_still_lets_a_saga_be_undone() {
        let done = attempted(0, Direction::Undo, Attempt::Done(text(10)), None);
        assert_eq!(too_much(done.clone()), Ok(done));
        let Ok(Event::Attempted { attempt: Attempt::Failed { failure, .. }, .. }) =
            too_much(attempted(0, Direction::Undo, failed(1000), None))
        else {
            panic!("still an attempt that failed");
        };
        assert_eq!(
            (failure.kind, failure.message.len(), failure.data),
            (FailureKind::Transient, SHORT, None)
        );
        for event in [Event::Cancel, Event::Timer(rallypoint_saga::event::TimerKey::Deadline)] {
            assert_eq!(too_much(event.clone()), Ok(event));
        }
    }
}

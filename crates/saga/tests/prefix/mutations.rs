//! For each rule a fault that breaks it, made here: a check that cannot fail proves nothing.

use crate::world::{AlterCommands, Tamper};
use crate::{every_prefix, live};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_saga::event::{Attempt, Command, Direction, Event, Start, TimerKey};
use rallypoint_saga::machine::Machine;
use rallypoint_saga::op::{Op, OpState, UndoState};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::Blob;

/// With this fault some saga breaks this rule.
fn breaks(rule: &str, tamper: Tamper) {
    let mut others: Vec<&str> = Vec::new();
    for seed in 1..4_000 {
        let verdict = live(seed, tamper).and_then(|world| {
            if tamper.outstanding.is_some() || tamper.state.is_some() {
                return every_prefix(seed, &world.log, &world.states, tamper);
            }
            Ok(())
        });
        match verdict {
            Err(broken) if broken.rule == rule => return,
            Err(broken) => others.push(broken.rule),
            Ok(()) => {}
        }
    }
    others.sort_unstable();
    others.dedup();
    panic!("no saga broke the rule {rule:?}; broken were {others:?}");
}

fn event(alter: fn(&mut Event)) -> Tamper {
    Tamper { event: Some(alter), ..Tamper::default() }
}

fn commands(alter: AlterCommands) -> Tamper {
    Tamper { commands: Some(alter), ..Tamper::default() }
}

fn state(alter: fn(&Machine, &Event, &mut Machine)) -> Tamper {
    Tamper { state: Some(alter), ..Tamper::default() }
}

fn outstanding(alter: fn(&mut Vec<Command>)) -> Tamper {
    Tamper { outstanding: Some(alter), ..Tamper::default() }
}

fn undo(op: &Op) -> Command {
    Command::Perform { op: op.number, direction: Direction::Undo }
}

fn nothing() -> Event {
    Event::Signal { name: "nobody waits for this".into(), value: Blob::default() }
}

/// The stored state with `from` in it read as `to`.
fn rewritten(machine: &Machine, from: &[u8], to: &[u8]) -> Option<Machine> {
    let bytes = rmp_serde::to_vec_named(machine).ok()?;
    let at = bytes.windows(from.len()).position(|window| window == from)?;
    let bytes = [&bytes[..at], to, &bytes[at + from.len()..]].concat();
    rmp_serde::from_slice(&bytes).ok()
}

#[test]
fn a_refusal_that_changes_something_is_seen() {
    breaks(
        "refusal",
        state(|before, event, machine| {
            if before == machine && matches!(event, Event::Skip(_)) {
                *machine = Machine::default();
            }
        }),
    );
}

#[test]
fn a_saga_that_comes_back_from_its_end_is_seen() {
    breaks(
        "status",
        state(|before, _, machine| {
            if before.status() == Status::Abandoned {
                *machine = Machine::default();
                let start = Event::Start(Box::<Start>::default());
                let _ = machine.handle(Time(1), &mut Random::new(1), start, &mut Vec::new());
            }
        }),
    );
}

#[test]
fn a_generation_without_a_restart_is_seen() {
    breaks(
        "generation",
        event(|event| {
            if *event == Event::Retry {
                *event = Event::Restart(0);
            }
        }),
    );
}

#[test]
fn a_late_answer_that_does_something_is_seen() {
    breaks(
        "late",
        commands(|before, _, _, out| {
            if before.status().is_ended() {
                out.push(Command::Alarm("too late".into()));
            }
        }),
    );
}

#[test]
fn an_attempt_made_twice_at_once_is_seen() {
    breaks(
        "one attempt",
        commands(|_, _, _, out| {
            if let Some(Command::Perform { .. }) = out.first() {
                out.push(out[0].clone());
            }
        }),
    );
}

#[test]
fn an_attempt_of_a_paused_saga_is_seen() {
    breaks(
        "begin",
        event(|event| {
            if *event == Event::Pause {
                *event = nothing();
            }
        }),
    );
}

#[test]
fn an_attempt_without_a_place_is_seen() {
    breaks(
        "begin",
        event(|event| {
            if let Event::Start(start) = event {
                start.concurrency = None;
            }
        }),
    );
}

#[test]
fn an_undo_before_a_running_sibling_answered_is_seen() {
    breaks(
        "undo waits",
        commands(|_, _, after, out| {
            if matches!(out.first(), Some(Command::Perform { direction: Direction::Run, .. }))
                && let Some(op) = after.ops().iter().find(|op| op.state == OpState::Done && op.acts())
            {
                out.push(undo(op));
            }
        }),
    );
}

#[test]
fn a_known_outcome_undone_before_an_unknown_one_is_seen() {
    breaks(
        "unknown first",
        commands(|_, _, after, out| {
            let unknown = |op: &Op| op.undo == UndoState::InFlight && op.state == OpState::Failed;
            let known = |op: &&Op| op.undo == UndoState::Pending && op.state == OpState::Done;
            if after.ops().iter().any(unknown)
                && let Some(op) = after.ops().iter().find(known)
            {
                out.push(undo(op));
            }
        }),
    );
}

#[test]
fn an_undo_out_of_order_is_seen() {
    breaks(
        "reverse order",
        commands(|_, _, after, out| {
            let known = |op: &&Op| op.undo == UndoState::Pending && op.state == OpState::Done;
            if out.iter().any(|c| matches!(c, Command::Perform { direction: Direction::Undo, .. }))
                && let Some(op) = after.ops().iter().find(known)
            {
                out.push(undo(op));
            }
        }),
    );
}

fn certain(event: &mut Event) {
    if let Event::Attempted { earlier, attempt: Attempt::Failed { may_have_acted, .. }, .. } = event {
        (*earlier, *may_have_acted) = (false, false);
    }
}

#[test]
fn an_unknown_outcome_taken_for_a_certain_one_is_seen() {
    breaks("undone", event(certain));
}

#[test]
fn an_undo_past_a_pivot_that_may_have_acted_is_seen() {
    breaks("pivot", event(certain));
}

#[test]
fn an_undo_of_what_never_acted_is_seen() {
    breaks(
        "only what acted",
        commands(|_, _, after, out| {
            let clean = |op: &&Op| op.state == OpState::Failed && !op.unknown && op.acts();
            if after.status() == Status::Compensating
                && let Some(op) = after.ops().iter().find(clean)
            {
                out.insert(0, undo(op));
            }
        }),
    );
}

#[test]
fn an_exhausted_undo_that_stops_the_others_is_seen() {
    breaks(
        "others still run",
        state(|_, _, machine| {
            let failed = machine.ops().iter().any(|op| op.undo == UndoState::Failed);
            let open = machine.ops().iter().any(|op| op.undo.is_open());
            if failed
                && open
                && let Some(stuck) =
                    rewritten(machine, b"\xA5phase\xACCompensating", b"\xA5phase\xAAStuckUndos")
            {
                *machine = stuck;
            }
        }),
    );
}

#[test]
fn a_timer_that_recovery_does_not_know_is_seen() {
    breaks(
        "outstanding",
        commands(|_, _, _, out| {
            out.retain(|command| !matches!(command, Command::CancelTimer(TimerKey::Retry(_))));
        }),
    );
}

#[test]
fn a_saga_that_nothing_will_wake_is_seen() {
    breaks(
        "never lost",
        state(|_, _, machine| {
            if let Some(lost) = rewritten(machine, b"\xA7driving\xC3", b"\xA7driving\xC2") {
                *machine = lost;
            }
        }),
    );
}

#[test]
fn a_timer_left_behind_is_seen() {
    breaks(
        "ended",
        commands(|_, _, after, out| {
            if after.status().is_ended() {
                out.retain(|command| !matches!(command, Command::CancelTimer(_)));
            }
        }),
    );
}

#[test]
fn a_completed_saga_without_output_is_seen() {
    breaks(
        "output",
        state(|_, event, machine| {
            if matches!(event, Event::Signal { .. })
                && let Some(done) = rewritten(machine, b"\xA5phase\xA7Running", b"\xA5phase\xA9Completed")
            {
                *machine = done;
            }
        }),
    );
}

#[test]
fn a_parent_told_twice_is_seen() {
    breaks(
        "parent",
        commands(|_, _, _, out| {
            if let Some(told) = out.iter().find(|c| matches!(c, Command::TellParent(_))).cloned() {
                out.push(told);
            }
        }),
    );
}

#[test]
fn a_parent_not_told_is_seen() {
    breaks(
        "parent",
        commands(|_, _, _, out| out.retain(|command| !matches!(command, Command::TellParent(_)))),
    );
}

#[test]
fn a_place_kept_is_seen() {
    breaks("place", commands(|_, _, _, out| out.retain(|command| *command != Command::Release)));
}

#[test]
fn a_place_given_back_twice_is_seen() {
    breaks(
        "place",
        commands(|_, _, _, out| {
            if out.contains(&Command::Release) {
                out.push(Command::Release);
            }
        }),
    );
}

#[test]
fn a_turn_never_asked_for_is_seen() {
    breaks("ends", commands(|_, _, _, out| out.retain(|command| !matches!(command, Command::Drive { .. }))));
}

#[test]
fn an_attempt_that_recovery_forgets_is_seen() {
    breaks("recovery", outstanding(|out| out.retain(|c| !matches!(c, Command::Perform { .. }))));
}

#[test]
fn a_timer_that_recovery_forgets_is_seen() {
    breaks("ends", outstanding(|out| out.retain(|c| !matches!(c, Command::SetTimer(..)))));
}

#[test]
fn a_cancelled_child_that_recovery_forgets_is_seen() {
    breaks("ends", outstanding(|out| out.retain(|c| !matches!(c, Command::CancelChild(_)))));
}

#[test]
fn a_place_that_recovery_does_not_ask_for_is_seen() {
    breaks("ends", outstanding(|out| out.retain(|c| !matches!(c, Command::Acquire(_)))));
}

#[test]
fn a_function_that_says_something_else_is_seen() {
    breaks(
        "journal",
        event(|event| {
            if let Event::Driven(turn) = event
                && let Some(op) = turn.ops.first_mut()
            {
                op.name.push('x');
            }
        }),
    );
}

#[test]
fn a_state_that_its_log_does_not_give_is_seen() {
    breaks(
        "fold",
        state(|_, event, machine| {
            if matches!(event, Event::Signal { .. })
                && let Some(other) = rewritten(machine, b"\xA7driving\xC2", b"\xA7driving\xC3")
            {
                *machine = other;
            }
        }),
    );
}

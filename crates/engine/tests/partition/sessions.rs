//! An input's retry gets the original answer, never a second run.

use crate::common::actors::Counter;
use crate::common::{World, decode, message, session};
use rallypoint_base::limits::SESSION_TTL;
use rallypoint_engine::command::{Outcome, Turned};
use rallypoint_engine::partition::{Ending, Limits};
use std::time::Duration;

fn total(world: &World) -> u64 {
    world.state::<Counter>("c").map_or(0, |counter| counter.total)
}

#[test]
fn a_retry_before_and_after_durability_and_after_a_crash_runs_once() {
    let mut world = World::new(1, 1);
    world.input::<Counter>(session(1), 1, "c", &5);
    world.input::<Counter>(session(1), 1, "c", &5);
    assert!(!world.answered(session(1), 1), "the retry opens no side door");
    world.sync(0);
    assert_eq!(world.replies.values().map(Vec::len).sum::<usize>(), 1, "it leaves once, from the gate");
    world.input::<Counter>(session(1), 1, "c", &5);
    assert_eq!(world.replies.values().map(Vec::len).sum::<usize>(), 2, "at once, from the table");
    world.bounce(0);
    world.input::<Counter>(session(1), 1, "c", &5);
    assert_eq!(world.replies.values().map(Vec::len).sum::<usize>(), 3);
    world.checkpoint(0);
    world.bounce(0);
    world.input::<Counter>(session(1), 1, "c", &5);
    assert_eq!(world.replies.values().map(Vec::len).sum::<usize>(), 4);
    assert_eq!((total(&world), world.nodes[0].log.len()), (5, 1));
    world.assert_right();
}

#[test]
fn below_the_window_is_too_old_and_reordered_numbers_all_run() {
    let mut world = World::new(1, 1);
    for seq in [3, 1, 4, 2] {
        world.raw_input(0, session(1), seq, 0, false, &message::<Counter>("c", &(1 << seq)));
    }
    world.sync(0);
    assert_eq!(total(&world), 30);
    world.raw_input(0, session(1), 5, 4, false, &message::<Counter>("c", &(1 << 5)));
    world.sync(0);
    for crash in [false, true] {
        if crash {
            world.bounce(0);
        }
        world.turns.clear();
        for seq in [1, 3, 4] {
            world.raw_input(0, session(1), seq, 0, false, &message::<Counter>("c", &(1 << seq)));
        }
        let turned: Vec<_> = world.turns.iter().map(|(_, seq, why)| (seq.0, *why)).collect();
        assert_eq!(turned, [(1, Turned::TooOld), (3, Turned::TooOld)]);
    }
    assert_eq!(total(&world), 62);
    world.assert_right();
}

#[test]
fn a_session_that_expired_is_too_old_not_new() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(1), 1, "c", &5);
    world.wait(SESSION_TTL + Duration::from_secs(1));
    world.call(0, |partition, now, out| partition.expire_sessions(now, out));
    world.input::<Counter>(session(1), 1, "c", &5);
    assert_eq!(world.turns.pop().unwrap().2, Turned::TooOld);
    assert_eq!(total(&world), 5);
}

#[test]
fn a_retry_while_the_first_waits_in_careful_mode_runs_once_and_leaves_no_mark() {
    let mut world = World::with(1, 1, Limits::default(), crate::common::pessimistic);
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![12345]), ..Ending::default() });
    for _ in 0..3 {
        world.input::<Counter>(session(1), 1, "c", &5);
        world.input::<Counter>(session(1), 2, "c", &7);
    }
    assert_eq!(total(&world), 0, "the marks are not durable");
    world.sync(0);
    assert_eq!(total(&world), 12);
    assert_eq!(world.answer(session(1), 1).0, Outcome::Applied);
    assert_eq!(decode::<u64>(&world.answer(session(1), 2).1), 12);
    // Power is lost: no witness. Nothing was being delivered, so nothing may be suspected.
    world.crash(0);
    world.restart(0, &Ending::default());
    world.sync(0);
    let marks = world.nodes[0].log.iter().filter(|rec| rec.kind == rallypoint_engine::record::kind::MARK);
    assert_eq!(marks.count(), 3, "one suspicion, two deliveries");
    world.assert_right();
}

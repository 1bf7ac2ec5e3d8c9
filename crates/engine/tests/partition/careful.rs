//! A poisonous input ends a worker at most twice; then it is set aside and everything else goes on.

use crate::common::actors::{Account, Ask, Asker, Bank, Call, Caller, Clock, Counter, Tick, Trouble};
use crate::common::{World, message, parcel, session};
use rallypoint_base::id::{InputSeq, PartitionId, Ssn};
use rallypoint_engine::command::{Notice, Outcome};
use rallypoint_engine::parcel::{Body, kind_tag};
use rallypoint_engine::partition::{Ending, Limits};
use rallypoint_engine::record::{Source, kind};
use std::time::Duration;

fn identity(session_number: u64, seq: u64) -> u64 {
    let (session, seq) = (session(session_number), InputSeq(seq));
    Source::Client { session, seq, acknowledged_below: InputSeq(0) }.identity(&[])
}

/// Lets a partition live until it would run this input, and ends it there. False when it was never
/// about to run.
fn poison(world: &mut World, index: usize, identity: u64, feed: impl Fn(&mut World)) -> bool {
    feed(world);
    // In careful mode the mark must be durable before the delivery: the mark is what is synced last.
    let tail = world.nodes[index].log.len();
    world.nodes[index].durable = tail;
    let ran_by_now = world.nodes[index].log.iter().any(|rec| {
        rec.kind == kind::INPUT
            && rallypoint_engine::record::InputRecord::decode(&rec.payload)
                .is_ok_and(|record| record.source.identity(record.parcel) == identity)
    });
    if ran_by_now {
        // It ran here without harm, because the test's poison is not real: forget the record.
        world.nodes[index].log.retain(|rec| {
            rec.kind != kind::INPUT
                || rallypoint_engine::record::InputRecord::decode(&rec.payload)
                    .map_or(true, |record| record.source.identity(record.parcel) != identity)
        });
        let len = world.nodes[index].log.len();
        world.nodes[index].durable = len;
    }
    let ending = world.kill_during(index, identity);
    world.restart(index, &ending);
    ran_by_now
}

#[test]
fn an_input_that_ends_its_worker_twice_is_set_aside_and_the_rest_goes_on() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(2), 1, "c", &1);
    let feed = |world: &mut World| {
        world.input::<Counter>(session(1), 1, "poison", &1);
    };
    assert!(poison(&mut world, 0, identity(1, 1), feed), "first end: nothing was known");
    assert_eq!(world.state::<Counter>("poison"), None);
    // Second: its mark must be durable before it runs.
    feed(&mut world);
    assert_eq!(world.state::<Counter>("poison"), None, "it waits for its mark");
    let ending = {
        let tail = world.nodes[0].log.len();
        world.nodes[0].durable = tail;
        world.kill_during(0, identity(1, 1))
    };
    world.restart(0, &ending);
    // Third: set aside, with its evidence, and others run.
    feed(&mut world);
    world.input::<Counter>(session(2), 2, "c", &1);
    world.sync(0);
    let (outcome, text) = world.answer(session(1), 1);
    assert_eq!(outcome, Outcome::SetAside);
    assert!(String::from_utf8(text).unwrap().contains("2 times"));
    assert_eq!(world.state::<Counter>("poison"), None);
    assert_eq!(world.state::<Counter>("c").unwrap().total, 2);
    assert!(world.notices.iter().any(|(_, notice)| matches!(notice, Notice::SetAside { .. })));
    // For good: after a crash and a checkpoint a retry is still answered so.
    world.checkpoint(0);
    world.bounce(0);
    world.replies.clear();
    feed(&mut world);
    assert_eq!(world.answer(session(1), 1).0, Outcome::SetAside);
    assert_eq!(world.partition(0).set_aside().len(), 1);
    world.assert_right();
}

#[test]
fn a_kill_that_hits_nothing_acquits() {
    let mut world = World::new(1, 1);
    for _ in 0..5 {
        // It waits, marked, when the worker is killed; but nothing was running.
        world.input::<Counter>(session(1), 1, "c", &1);
        let tail = world.nodes[0].log.len();
        world.nodes[0].durable =
            if world.nodes[0].log.last().is_some_and(|rec| rec.kind == kind::MARK) { tail } else { 0 };
        let ending = world.crash(0);
        assert_eq!(ending.running, Some(vec![]));
        world.restart(0, &ending);
    }
    assert_eq!(world.ask::<Counter>(session(1), 1, "c", &1), Outcome::Applied);
    assert_eq!(world.partition(0).set_aside().len(), 0);
    world.assert_right();
}

#[test]
fn a_mark_survives_a_checkpoint_and_many_harmless_crashes() {
    let mut world = World::new(1, 1);
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![identity(1, 1)]), ..Ending::default() });
    world.sync(0);
    world.checkpoint(0);
    for _ in 0..4 {
        world.bounce(0);
        world.ask::<Counter>(session(2), 1, "c", &1);
        world.sync(0);
    }
    // The second end.
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![identity(1, 1)]), ..Ending::default() });
    assert_eq!(world.ask::<Counter>(session(1), 1, "poison", &1), Outcome::SetAside);
}

#[test]
fn without_a_witness_a_durable_mark_without_verdict_counts() {
    let mut world = World::new(1, 1);
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![identity(1, 1)]), ..Ending::default() }); // one end
    world.input::<Counter>(session(1), 1, "poison", &1);
    world.input::<Counter>(session(2), 1, "c", &1);
    let tail = world.nodes[0].log.len();
    world.nodes[0].durable = tail; // the mark, not the run
    world.crash(0);
    world.restart(0, &Ending::default()); // the power was lost
    world.input::<Counter>(session(2), 1, "c", &1);
    assert_eq!(world.ask::<Counter>(session(1), 1, "poison", &1), Outcome::SetAside);
    assert_eq!(world.state::<Counter>("c").unwrap().total, 1);
    world.assert_right();
}

#[test]
fn careful_mode_ends_and_delivers_what_waited_in_order() {
    let limits = Limits { careful_deliveries: 3, ..Limits::default() };
    let mut world = World::with(1, 1, limits, crate::common::pessimistic);
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![5]), ..Ending::default() });
    for seq in 1..=8 {
        world.input::<Counter>(session(1), seq, "c", &(1 << seq));
    }
    world.sync(0);
    assert_eq!(world.replies.len(), 8);
    let marks = world.nodes[0].log.iter().filter(|rec| rec.kind == kind::MARK).count();
    assert_eq!(marks, 1 + 3);
    let order: Vec<_> = world.inputs(0).iter().map(|record| record.source).collect();
    let expected =
        |seq| Source::Client { session: session(1), seq: InputSeq(seq), acknowledged_below: InputSeq(0) };
    assert_eq!(order, (1..=8).map(expected).collect::<Vec<_>>());
    world.input::<Counter>(session(1), 9, "c", &1);
    assert_eq!(world.nodes[0].log.last().unwrap().kind, kind::INPUT, "no mark any more");
}

/// Two ends during this identity, then everything settles.
fn end_twice(world: &mut World, index: usize, identity: u64) {
    for _ in 0..2 {
        world.crash(index);
        world.restart(index, &Ending { running: Some(vec![identity]), ..Ending::default() });
        world.sync(index);
        if world.inputs(index).iter().any(|record| record.source.identity(record.parcel) == identity) {
            panic!("it ran, and this poison is not real");
        }
    }
}

#[test]
fn a_poisonous_timer_is_set_aside_and_the_others_fire() {
    let mut world = World::new(1, 1);
    for (seq, name) in [(1, "poison"), (2, "good")] {
        let after = Duration::from_secs(10 * seq);
        world.ask::<Clock>(session(1), seq, "clock", &Tick::Set { name: name.into(), after });
    }
    let fired = parcel(kind_tag("clock"), "clock", Body::Timer { set: 1, name: "poison" });
    end_twice(&mut world, 0, Source::Timer.identity(&fired));
    for _ in 0..4 {
        world.wait(Duration::from_secs(30));
        world.sync(0);
    }
    let clock = world.state::<Clock>("clock").unwrap();
    assert_eq!(clock.fired.len(), 1);
    assert_eq!(clock.fired[0].0, "good");
    assert_eq!(world.partition(0).set_aside().len(), 1);
    world.bounce(0);
    world.wait(Duration::from_secs(30));
    world.sync(0);
    assert_eq!(world.state::<Clock>("clock").unwrap(), clock);
    assert_eq!(world.partition(0).set_aside().len(), 1);
}

#[test]
fn a_poisonous_frame_is_set_aside_and_the_channel_goes_on() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    for seq in 1..=3 {
        world.ask::<Account>(session(1), seq, &here, &Bank::Transfer { to: there.clone(), amount: 20 });
    }
    world.network.clear();
    end_twice(&mut world, 1, Source::Frame { from: PartitionId(0), ssn: Ssn(2) }.identity(&[]));
    world.wait(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.state::<Account>(&there).unwrap().balance, 40);
    assert_eq!(world.partition(1).set_aside().len(), 1);
    assert!(world.partition(0).is_quiet());
    world.assert_right();
}

#[test]
fn the_asker_of_a_poisonous_question_gets_an_answer() {
    let mut world = World::new(2, 1);
    let (me, far) = (world.key_on(0, "me"), world.key_on(1, "far"));
    world.ask::<Asker>(session(1), 1, &me, &Ask::Trouble { key: far, trouble: Trouble::Bump, token: 3 });
    world.network.clear();
    end_twice(&mut world, 1, Source::Frame { from: PartitionId(0), ssn: Ssn(1) }.identity(&[]));
    world.wait(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.state::<Asker>(&me).unwrap().answers, [(3, "failure".into())]);
    world.bounce(1);
    world.settle();
    world.assert_right();
}

#[test]
fn the_result_of_an_effect_that_differs_each_time_is_still_one_suspect() {
    let mut world = World::new(1, 1);
    world.ask::<Caller>(session(1), 1, "c", &Call { count: 1, timeout: Duration::from_secs(3600) });
    let key = world.performed[0].1;
    for (end, value) in [b"at 10:00", b"at 10:01"].into_iter().enumerate() {
        // What the page would say at the instant of the run.
        let id = (key.epoch, key.position, key.index);
        let body = Body::Effect { id, outcome: 0, value };
        let running = Source::Effect.identity(&parcel(kind_tag("caller"), "c", body));
        world.call(0, |partition, now, out| partition.handle_effect(now, key, 0, value, out));
        if end == 1 {
            assert_eq!(world.nodes[0].log.last().unwrap().kind, kind::MARK);
        }
        world.kill_during(0, running);
        world.restart(0, &Ending { running: Some(vec![running]), ..Ending::default() });
        world.sync(0);
    }
    world.call(0, |partition, now, out| partition.handle_effect(now, key, 0, b"at 10:02", out));
    world.sync(0);
    assert_eq!(world.partition(0).set_aside().len(), 1);
    assert_eq!(world.state::<Caller>("c").unwrap().ended, []);
    world.performed.clear();
    world.bounce(0);
    assert!(world.performed.is_empty(), "what was set aside is consumed");
}

#[test]
fn a_question_that_ends_its_worker_twice_is_not_asked_again() {
    let mut world = World::new(1, 1);
    world.readers.push(session(9));
    world.ask::<Counter>(session(1), 1, "c", &5);
    let ask = |world: &mut World| world.raw_input(0, session(9), 1, 0, true, &message::<Counter>("c", &0));
    let id = identity(9, 1);
    end_twice(&mut world, 0, id);
    ask(&mut world);
    world.sync(0);
    assert_eq!(world.answer(session(9), 1).0, Outcome::SetAside);
    // Another question is.
    world.raw_input(0, session(9), 2, 0, true, &message::<Counter>("c", &0));
    assert_eq!(world.answer(session(9), 2).0, Outcome::Applied);
}

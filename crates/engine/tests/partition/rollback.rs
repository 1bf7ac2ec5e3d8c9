//! A new epoch: what is under way from another history is not delivered, the rest exactly once.

use crate::common::actors::{Account, Bank, Clock, Counter, Tick};
use crate::common::{MakeProtocol, World, pessimistic, session};
use rallypoint_base::id::Epoch;
use rallypoint_engine::partition::{Ending, Limits};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::{Command, Event, Peer, Protocol};
use std::time::Duration;

fn new_epoch(world: &mut World, index: usize, epoch: u32) {
    world.call(index, |partition, _, out| partition.append_epoch(Epoch(epoch), out));
    world.sync(index);
    world.call(index, |partition, now, out| partition.rolled_back(now, None, out));
}

/// As a coordinated protocol does: everything waits after a rollback until all have rolled back.
struct ResumesWhenTold(Pessimistic);

impl Protocol for ResumesWhenTold {
    fn name(&self) -> &'static str {
        "resumes when told"
    }
    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        match event {
            Event::RolledBack { .. } => out.push(Command::Pause),
            Event::Control { .. } => out.push(Command::Resume),
            _ => {}
        }
        self.0.handle(event, out);
    }
}

#[test]
fn a_frame_that_waited_for_its_epoch_is_delivered_once() {
    let protocols: [MakeProtocol; 2] = [pessimistic, || Box::new(ResumesWhenTold(Pessimistic::default()))];
    for protocol in protocols {
        let mut world = World::with(2, 1, Limits::default(), protocol);
        let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
        let resume = |world: &mut World, index| {
            world.call(index, |partition, now, out| {
                partition.handle_control(now, Peer::Coordinator, &[], out);
            });
        };
        new_epoch(&mut world, 0, 1);
        resume(&mut world, 0);
        world.ask::<Account>(session(1), 1, &here, &Bank::Transfer { to: there.clone(), amount: 20 });
        world.settle();
        assert_eq!(world.state::<Account>(&there), None, "of an epoch that has not come here");
        new_epoch(&mut world, 1, 1);
        // It comes again, and again, before and after the rest goes on.
        for _ in 0..2 {
            world.wait(Duration::from_secs(2));
            world.settle();
        }
        resume(&mut world, 1);
        world.wait(Duration::from_secs(2));
        world.settle();
        assert_eq!(world.state::<Account>(&there), Some(Account { balance: 20 }));
        assert!((0..2).all(|index| world.partition(index).is_quiet()));
        world.assert_right();
    }
}

#[test]
fn a_frame_of_an_undone_history_is_dropped() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    world.ask::<Account>(session(1), 1, &here, &Bank::Transfer { to: there.clone(), amount: 20 });
    new_epoch(&mut world, 1, 1);
    world.settle();
    assert_eq!(world.state::<Account>(&there), None);
}

#[test]
fn what_waited_in_careful_mode_does_not_outlive_its_history_except_inputs() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(1), 1, "c", &1);
    world.checkpoint(0);
    let header = world.nodes[0].images[0].header.clone();
    let content = world.nodes[0].images[0].content.clone();
    world.ask::<Clock>(
        session(1),
        2,
        "clock",
        &Tick::Set { name: "a".into(), after: Duration::from_secs(1) },
    );
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![7]), ..Ending::default() });
    world.wait(Duration::from_secs(2)); // it waits for its mark
    world.input::<Counter>(session(1), 3, "c", &1);
    world.call(0, |partition, _, out| {
        partition.begin_rollback();
        partition.restore(rallypoint_base::id::Version(1), &header).unwrap();
        partition.load_content(&content).unwrap();
        partition.append_epoch(Epoch(1), out);
    });
    let tail = world.nodes[0].log.len();
    world.nodes[0].durable = tail;
    world.call(0, |partition, now, out| {
        partition.rolled_back(now, Some(rallypoint_base::id::Version(1)), out)
    });
    world.sync(0);
    assert_eq!(world.state::<Clock>("clock"), None, "its timer was never set");
    assert_eq!(world.state::<Counter>("c"), Some(Counter { total: 2 }));
    assert!(world.partition(0).is_quiet());
}

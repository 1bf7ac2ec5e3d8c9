//! Nothing leaves before the record of its cause is durable.

use crate::common::actors::{Account, Bank, Call, Caller, Counter, Player};
use crate::common::{Client, World, chaos_step, heal, message, session};
use rallypoint_base::id::Position;
use rallypoint_base::wire::Malformed;
use rallypoint_engine::partition::Limits;
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::{Command, Event, Protocol};
use std::time::Duration;

/// Inputs that cause frames, replies, effects and receipts.
fn clients(count: u64, inputs: u64) -> Vec<Client> {
    let one = |client: u64| {
        let of = |n: u64| {
            let (from, to) = (format!("a{}", (client + n) % 7), format!("a{}", (client * 3 + n * 5) % 7));
            match n % 3 {
                0 => {
                    let call = Call { count: 1, timeout: Duration::from_secs(3600) };
                    (from.clone(), message::<Caller>(&from, &call))
                }
                1 => (from.clone(), message::<Counter>(&from, &(n + 1))),
                _ => {
                    let transfer = Bank::Transfer { to, amount: n as i64 + 20 };
                    (from.clone(), message::<Account>(&from, &transfer))
                }
            }
        };
        Client { session: session(client), inputs: (0..inputs).map(of).collect(), window: 4 }
    };
    (0..count).map(one).collect()
}

#[test]
fn nothing_leaves_before_its_record_is_durable_for_every_crash_point() {
    // One schedule; the world is cut off after each of its steps in turn.
    let clients = clients(2, 9);
    let schedule = |until: usize| {
        let mut world = World::new(3, 42);
        for _ in 0..until {
            chaos_step(&mut world, &clients, false);
            world.assert_right();
        }
        world
    };
    for until in 0..160 {
        let mut world = schedule(until);
        for index in 0..3 {
            world.bounce(index);
        }
        for (at, answered) in world.replies.clone() {
            assert!(!answered.is_empty(), "{at:?}");
        }
        // Effects are performed until a result is logged; none comes here, so they end the wait.
        heal_with_effects(&mut world, &clients);
        world.assert_right();
    }
}

fn heal_with_effects(world: &mut World, clients: &[Client]) {
    for _ in 0..30 {
        for client in clients {
            for at in 0..client.inputs.len() {
                client.send(world, at, 0);
            }
        }
        world.settle();
        for (partition, key, _) in std::mem::take(&mut world.performed) {
            world.call(partition.0.into(), |partition, now, out| {
                partition.handle_effect(now, key, 0, b"ok", out);
            });
        }
        world.settle();
        world.wait(Duration::from_secs(2));
    }
    heal(world, clients);
}

#[test]
fn a_frame_waits_for_its_cause_and_a_receipt_for_its_record() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    world.input::<Account>(session(1), 1, &here, &Bank::Transfer { to: there.clone(), amount: 20 });
    assert!(world.network.is_empty() && world.replies.is_empty(), "the record is not durable");
    world.sync(0);
    assert_eq!(world.network.len(), 1);
    assert!(world.answered(session(1), 1));
    world.deliver_all();
    assert_eq!(world.state::<Account>(&there), Some(Account { balance: 20 }), "delivery is speculative");
    assert!(world.network.is_empty(), "but its receipt waits");
    world.bounce(1);
    assert_eq!(world.state::<Account>(&there), None, "and so the frame must come again");
    world.wait(Duration::from_secs(2));
    world.settle();
    assert_eq!(world.state::<Account>(&there), Some(Account { balance: 20 }));
    assert!(world.partition(0).is_quiet());
    world.assert_right();
}

#[test]
fn a_read_only_answer_waits_for_everything_it_may_have_seen() {
    let mut world = World::new(1, 1);
    world.readers.push(session(9));
    world.input::<Counter>(session(1), 1, "c", &5);
    world.raw_input(0, session(9), 1, 0, true, &message::<Counter>("c", &0));
    assert!(!world.answered(session(9), 1), "it saw 5, and 5 may still be lost");
    let records = world.nodes[0].log.len();
    world.sync(0);
    assert_eq!(crate::common::decode::<u64>(&world.answer(session(9), 1).1), 5);
    assert_eq!(world.nodes[0].log.len(), records, "a question writes nothing");
    world.assert_right();
}

#[test]
fn a_stopped_partition_lets_nothing_out_and_runs_nothing() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "p"), world.key_on(1, "p"));
    let ball = crate::common::actors::Ball { back_to: there.clone(), left: 1 };
    world.input::<Player>(session(1), 1, &here, &ball);
    world.input::<Caller>(session(1), 2, &here, &Call { count: 1, timeout: Duration::from_secs(1) });
    world.sync(0);
    let key = world.performed[0].1;
    world.network.clear();
    world.input::<Counter>(session(1), 3, &here, &1);
    let (records, replies) = (world.nodes[0].log.len(), world.replies.len());
    world.call(0, |partition, _, _| partition.stop());
    world.call(0, |partition, now, out| {
        partition.handle_connected(now, rallypoint_base::id::PartitionId(1), out)
    });
    world.call(0, |partition, now, out| partition.handle_effect(now, key, 0, b"", out));
    world.sync(0);
    world.wait(Duration::from_secs(60));
    assert_eq!(world.nodes[0].log.len(), records, "nothing runs");
    assert_eq!((world.replies.len(), world.network.len()), (replies, 0), "nothing leaves");
    assert_eq!(world.partition(0).next_deadline(), rallypoint_base::time::Time::NEVER, "nothing is due");
}

#[test]
fn a_partition_that_was_stopped_before_it_went_live_performs_nothing() {
    let mut world = World::new(1, 1);
    world.input::<Caller>(session(1), 1, "c", &Call { count: 1, timeout: Duration::from_secs(10) });
    world.sync(0);
    world.crash(0);
    world.performed.clear();
    let mut partition = world.recover(0, 1).unwrap();
    partition.stop();
    world.nodes[0].partition = Some(partition);
    world.call(0, |partition, now, out| partition.go_live(now, &Default::default(), out));
    assert!(world.performed.is_empty(), "as after a divergence");
}

// ---------------------------------------------------------------- mutations

/// Releases everything at once.
struct Hasty(Pessimistic);

impl Protocol for Hasty {
    fn name(&self) -> &'static str {
        "hasty"
    }
    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        let ran = match &event {
            Event::Ran { position, .. } => Some(*position),
            _ => None,
        };
        self.0.handle(event, out);
        if let Some(at) = ran {
            out.push(Command::Release { frames: at, outputs: at, receipts: at });
        }
    }
    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.0.load(bytes)
    }
}

/// Releases one run more than is durable, of one kind of output only.
struct OneTooMany(Pessimistic, fn(Position) -> Command);

impl Protocol for OneTooMany {
    fn name(&self) -> &'static str {
        "one too many"
    }
    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        let before = out.len();
        self.0.handle(event, out);
        for command in &mut out[before..] {
            if let Command::Release { outputs, .. } = *command {
                *command = (self.1)(outputs);
            }
        }
    }
}

#[test]
fn mutation_a_protocol_that_releases_early_is_caught() {
    let clients = clients(2, 9);
    let caught = |protocol: crate::common::MakeProtocol| {
        (0..10).any(|seed| {
            let mut world = World::with(3, seed, Limits::default(), protocol);
            for _ in 0..400 {
                chaos_step(&mut world, &clients, false);
            }
            !world.wrongs.is_empty()
        })
    };
    assert!(!caught(crate::common::pessimistic));
    assert!(caught(|| Box::new(Hasty(Pessimistic::default()))));
    assert!(caught(|| {
        let release = |at: Position| Command::Release { frames: at.next(), outputs: at, receipts: at };
        Box::new(OneTooMany(Pessimistic::default(), release))
    }));
    assert!(caught(|| {
        let release = |at: Position| Command::Release { frames: at, outputs: at.next(), receipts: at };
        Box::new(OneTooMany(Pessimistic::default(), release))
    }));
    assert!(caught(|| {
        let release = |at: Position| Command::Release { frames: at, outputs: at, receipts: at.next() };
        Box::new(OneTooMany(Pessimistic::default(), release))
    }));
}

//! Replay gives back what was, from every prefix, and notices when it does not.

use crate::common::actors::{
    Account, Bank, Call, Caller, Clock, Counter, Dice, Tick, Trouble, Troublemaker, Unsteady,
};
use crate::common::{Client, World, chaos_step, decode, every_actor, heal, message, session};
use rallypoint_base::id::{PartitionId, Position};
use rallypoint_base::time::Time;
use rallypoint_engine::command::{Command, Outbox, Outcome};
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::{Ending, Partition, ReplayError};
use rallypoint_engine::record::{InputRecord, Verdict, kind};
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything at once: transfers, refusals, panics, timers, effects, randomness.
pub(crate) fn mixed(client: u64, inputs: u64) -> Client {
    let of = |n: u64| {
        let key = format!("k{}", (client * 5 + n * 3) % 11);
        let to = format!("k{}", (client + n * 7) % 11);
        let content = match n % 9 {
            0 => message::<Counter>(&key, &(n + 1)),
            1 | 2 => message::<Account>(&key, &Bank::Transfer { to, amount: 10 + (n % 5) as i64 }),
            3 => message::<Dice>(&key, &0),
            4 => {
                message::<Clock>(&key, &Tick::Set { name: "t".into(), after: Duration::from_millis(n * 20) })
            }
            5 => message::<Caller>(&key, &Call { count: 2, timeout: Duration::from_secs(1) }),
            6 => message::<Troublemaker>(&key, &Trouble::RefuseAfterEverything),
            7 => message::<Troublemaker>(&key, &Trouble::RefuseInside { other: to, victim: key.clone() }),
            _ => message::<Troublemaker>(&key, &Trouble::PanicInside { other: to.clone(), victim: to }),
        };
        (key, content)
    };
    Client { session: session(client), inputs: (0..inputs).map(of).collect(), window: 5 }
}

/// Frames that a partition would send if nothing had been received: (channel, ssn) with their bytes.
fn regenerated(mut partition: Partition) -> BTreeMap<(PartitionId, u64), Vec<u8>> {
    let mut out = Outbox::default();
    partition.go_live(Time(0), &Ending::default(), &mut out);
    let mut frames = BTreeMap::new();
    for command in out.commands {
        if let Command::Transmit { to, first, count, frames: span, .. } = command {
            let mut reader = rallypoint_base::wire::Reader::new(&out.bytes[span]);
            for ssn in first.0..first.0 + u64::from(count) {
                frames.insert((to, ssn), reader.bytes("parcel").unwrap().to_vec());
                reader.bytes("piggyback").unwrap();
            }
        }
    }
    frames
}

#[test]
fn replay_of_every_prefix_twice_is_the_uncrashed_run_at_that_position() {
    let mut looked = 0;
    for seed in 0..6 {
        println!("seed {seed}");
        let clients = [mixed(1, 40), mixed(2, 40)];
        let mut world = World::new(3, seed);
        world.limits.checkpoint_runs = u64::MAX;
        for _ in 0..900 {
            chaos_step(&mut world, &clients, false);
        }
        world.sync_all();
        world.assert_right();
        for index in 0..3 {
            world.nodes[index].images.clear(); // from the beginning
            for tail in 0..=world.nodes[index].log.len() {
                let once = world.recover(index, tail).unwrap();
                let twice = world.recover(index, tail).unwrap();
                assert_eq!(once.digest(), twice.digest());
                assert_eq!(once.channels(), twice.channels());
                if let Some(digest) = tail.checked_sub(1).and_then(|last| world.nodes[index].log[last].digest)
                {
                    assert_eq!(once.digest(), digest, "p{index} after record {tail}");
                    looked += 1;
                }
                let frames = regenerated(once);
                assert_eq!(frames, regenerated(twice));
                for ((to, ssn), bytes) in frames {
                    let known =
                        world.frames.get(&(PartitionId(index as u16), to, rallypoint_base::id::Ssn(ssn)));
                    if let Some(known) = known {
                        assert_eq!(*known, bytes, "frame {ssn} to {to} of p{index}");
                    }
                }
            }
        }
    }
    assert!(looked > 300, "only {looked} positions could be compared");
}

#[test]
fn the_recovered_state_is_the_model_of_exactly_the_logged_inputs() {
    for seed in 0..6 {
        println!("seed {seed}");
        let clients = [mixed(1, 50), mixed(2, 50)];
        let mut world = World::new(2, seed);
        for _ in 0..1500 {
            chaos_step(&mut world, &clients, true);
        }
        for index in 0..2 {
            world.crash(index);
            let tail = world.nodes[index].log.len();
            let partition = world.recover(index, tail).unwrap();
            let model = Model::of(&world, index);
            for (key, balance) in &model.balances {
                let account: Option<Account> = crate::common::state_in(&partition, key);
                assert_eq!(account.map(|account| account.balance), Some(*balance), "{key} on p{index}");
            }
            for (key, total) in &model.totals {
                let counter: Option<Counter> = crate::common::state_in(&partition, key);
                assert_eq!(counter.map(|counter| counter.total), Some(*total), "{key} on p{index}");
            }
            let known = every_actor(&partition).into_keys().filter(|(kind, _)| kind == "account").count();
            assert_eq!(known, model.balances.len(), "no account that the log does not know");
        }
        world.assert_right();
    }
}

/// What the log says, by hand: balances and totals of one partition.
#[derive(Default)]
struct Model {
    balances: BTreeMap<String, i64>,
    totals: BTreeMap<String, u64>,
}

impl Model {
    fn of(world: &World, index: usize) -> Self {
        let mut model = Self::default();
        for record in world.inputs(index) {
            if record.verdict != Verdict::Applied {
                continue;
            }
            let Ok(parcel) = Parcel::decode(record.parcel) else { continue };
            let Body::Message(content) = parcel.body else { continue };
            if parcel.kind == kind_tag("account") {
                match decode::<Bank>(content) {
                    Bank::Transfer { to, amount } => {
                        *model.balances.entry(parcel.key.into()).or_default() -= amount;
                        if world.index_of(&to) == index {
                            *model.balances.entry(to).or_default() += amount;
                        }
                    }
                    Bank::Credit(amount) => *model.balances.entry(parcel.key.into()).or_default() += amount,
                }
            } else if parcel.kind == kind_tag("counter") {
                *model.totals.entry(parcel.key.into()).or_default() += decode::<u64>(content);
            }
        }
        model
    }
}

#[test]
fn time_and_randomness_are_the_same_in_replay_and_time_never_goes_back() {
    let mut world = World::new(1, 1);
    for n in 0..10u64 {
        // The host's clock jumps about.
        world.now = Time(crate::common::START.0 + (n * 7919 % 5) * crate::common::SECOND);
        assert_eq!(world.ask::<Dice>(session(1), n + 1, "d", &0), Outcome::Applied);
    }
    let before: Dice = world.state("d").unwrap();
    assert!(before.seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{:?}", before.seen);
    let mut throws: Vec<_> = before.seen.iter().map(|seen| seen.1).collect();
    throws.sort_unstable();
    throws.dedup();
    assert_eq!(throws.len(), 10, "every run throws anew");
    world.now = Time(1);
    world.bounce(0);
    assert_eq!(world.state::<Dice>("d").unwrap(), before);
    world.ask::<Dice>(session(1), 11, "d", &0);
    let after: Dice = world.state("d").unwrap();
    assert!(after.seen[10].0 >= before.seen[9].0, "not even across a crash");
}

#[test]
fn a_handler_that_is_not_deterministic_is_found_out_and_named() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(1), 1, "c", &1);
    world.ask::<Unsteady>(session(1), 2, "wobbly", &());
    let ending = world.crash(0);
    let error = world.try_restart(0, &ending).unwrap_err();
    let ReplayError::Diverged { position, actor, now, recorded, .. } = &error else { panic!("{error}") };
    assert_eq!(*position, Position(2));
    assert_eq!(actor, "unsteady \"wobbly\"");
    assert_ne!(now, recorded);
}

#[test]
fn mutation_a_changed_record_does_not_replay() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    world.ask::<Account>(session(1), 1, &here, &Bank::Transfer { to: there, amount: 20 });
    let payload = world.nodes[0].log[0].payload.clone();
    let record = InputRecord::decode(&payload).unwrap();
    let replay = |world: &mut World, record: &InputRecord<'_>| {
        let mut partition = world.fresh(0);
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        partition.replay(Position(1), partition.epoch(), kind::INPUT, &bytes).map(drop)
    };
    assert_eq!(replay(&mut world, &record), Ok(()));
    let other = InputRecord { verdict: Verdict::Refused, ..record.clone() };
    assert!(replay(&mut world, &other).is_err(), "another verdict");
    let other = InputRecord { hash: record.hash ^ 1, ..record.clone() };
    assert!(replay(&mut world, &other).is_err(), "another hash");
    let other = InputRecord { channels: Vec::new(), ..record.clone() };
    assert!(replay(&mut world, &other).is_err(), "other frames");
}

#[test]
fn a_failure_text_may_change_with_the_program() {
    // Texts name Rust types and what a codec says; neither is stable across releases.
    let mut world = World::new(1, 1);
    let undecodable = crate::common::parcel(kind_tag("counter"), "c", Body::Message(&[1, 1, 0, 0xC1]));
    world.raw_input(0, session(1), 1, 0, false, &undecodable);
    world.sync(0);
    let (outcome, text) = world.answer(session(1), 1);
    assert_eq!(outcome, Outcome::Failed);
    let payload = world.nodes[0].log[0].payload.clone();
    let record = InputRecord::decode(&payload).unwrap();
    let with_text = rallypoint_base::hash::xxh3(&text);
    assert_ne!(record.hash, with_text ^ rallypoint_base::random::mix(Outcome::Failed as u64));
}

#[test]
fn the_position_after_replay_is_the_position_before_the_crash() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(1), 1, "c", &1);
    let epoch = world.partition(0).epoch().next();
    world.call(0, |partition, _, out| partition.append_epoch(epoch, out));
    let position = world.partition(0).position();
    world.sync(0);
    world.bounce(0);
    assert_eq!(world.partition(0).position(), position);
    assert_eq!(world.partition(0).epoch(), epoch);
}

#[test]
fn the_counted_chaos_heals() {
    let clients = [mixed(1, 60), mixed(2, 60), mixed(3, 60)];
    let mut world = World::new(3, 99);
    for _ in 0..3000 {
        chaos_step(&mut world, &clients, true);
    }
    heal(&mut world, &clients);
    world.assert_right();
}

//! Only the door answers `Overloaded`; memory stays bounded and nothing deadlocks.

use crate::common::actors::{Account, Ball, Bank, Counter, Player, Relay};
use crate::common::{World, message, session};
use rallypoint_engine::command::Turned;
use rallypoint_engine::partition::{Ending, Limits};
use std::time::Duration;

#[test]
fn two_partitions_with_one_credit_each_play_to_the_end() {
    let limits = Limits { door_credits: 1, unacknowledged_bytes: 1, ..Limits::default() };
    let mut world = World::with(2, 1, limits, crate::common::pessimistic);
    let (here, there) = (world.key_on(0, "p"), world.key_on(1, "p"));
    for game in 0..5 {
        world.input::<Player>(session(1 + game), 1, &here, &Ball { back_to: there.clone(), left: 99 });
        world.input::<Player>(session(10 + game), 1, &there, &Ball { back_to: here.clone(), left: 99 });
        world.settle();
    }
    let hits = world.state::<Player>(&here).unwrap().hits + world.state::<Player>(&there).unwrap().hits;
    assert_eq!(hits, 1000);
    assert!((0..2).all(|index| world.partition(index).is_quiet()));
    world.assert_right();
}

#[test]
fn a_peer_that_is_down_fills_the_door_not_the_memory_and_gets_everything_when_it_returns() {
    let limits = Limits { unacknowledged_bytes: 4000, ..Limits::default() };
    let mut world = World::with(2, 1, limits, crate::common::pessimistic);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    world.crash(1);
    let mut taken = 0;
    for seq in 1..=1000 {
        let transfer = Bank::Transfer { to: there.clone(), amount: 20 };
        world.input::<Account>(session(1), seq, &here, &transfer);
        world.sync(0);
        taken += u64::from(world.answered(session(1), seq));
    }
    world.network.clear();
    assert!(taken > 20 && taken < 400, "{taken} were taken");
    assert!(world.turns.iter().all(|(_, _, why)| *why == Turned::Overloaded));
    assert_eq!(world.turns.len() as u64, 1000 - taken);
    assert!(world.nodes[0].max_kept < 4200, "{}", world.nodes[0].max_kept);
    world.restart(1, &Ending::default());
    world.call(0, |partition, now, out| {
        partition.handle_connected(now, rallypoint_base::id::PartitionId(1), out)
    });
    world.settle();
    assert_eq!(world.state::<Account>(&there).unwrap().balance, 20 * taken as i64);
    world.ask::<Account>(session(1), 2000, &here, &Bank::Transfer { to: there, amount: 20 });
    world.settle();
    assert!(world.partition(0).is_quiet());
    world.assert_right();
}

#[test]
fn a_log_that_hangs_fills_the_door_with_inputs_and_with_questions() {
    let limits = Limits { door_credits: 10, ..Limits::default() };
    let mut world = World::with(1, 1, limits, crate::common::pessimistic);
    world.readers.push(session(9));
    for seq in 1..=100 {
        world.input::<Counter>(session(1), seq, "c", &1);
        world.raw_input(0, session(9), seq, 0, true, &message::<Counter>("c", &0));
    }
    assert!(world.partition(0).gated() <= 10, "{} wait", world.partition(0).gated());
    assert_eq!(world.turns.len(), 190);
    // A retry of what was taken is no new load.
    world.turns.clear();
    world.input::<Counter>(session(1), 1, "c", &1);
    assert!(world.turns.is_empty());
    world.sync(0);
    assert_eq!(world.replies.len(), 10);
    world.assert_right();
}

#[test]
fn a_peer_that_falls_silent_is_asked_again_at_the_pace_of_the_limit() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    world.ask::<Account>(session(1), 1, &here, &Bank::Transfer { to: there, amount: 20 });
    world.network.clear();
    for _ in 0..100 {
        world.wait(Duration::from_millis(100));
    }
    assert!((9..=10).contains(&world.network.len()), "{} in ten seconds", world.network.len());
}

/// Inputs at the first of a row, and one step of a tenth of a second after each; how many were taken.
fn send_along(world: &mut World, way: &[String], seqs: std::ops::RangeInclusive<u64>) -> u64 {
    let mut taken = 0;
    for seq in seqs {
        world.input::<Relay>(session(1), seq, &way[0], &way[1..].to_vec());
        world.wait(Duration::from_millis(100));
        world.settle();
        taken += u64::from(world.answered(session(1), seq));
    }
    taken
}

#[test]
fn a_peer_that_is_down_behind_others_closes_the_door_of_the_first_and_nobodys_memory_grows() {
    let limits = Limits { unacknowledged_bytes: 4000, ..Limits::default() };
    let mut world = World::with(4, 1, limits, crate::common::pessimistic);
    let way: Vec<String> = (0..4).map(|index| world.key_on(index, "r")).collect();
    assert_eq!(send_along(&mut world, &way, 1..=10), 10);
    world.crash(3);
    // Ten minutes.
    let taken = 10 + send_along(&mut world, &way, 11..=6000);
    assert!((50..500).contains(&taken), "{taken} were taken");
    assert!(world.turns.iter().all(|(_, _, why)| *why == Turned::Overloaded));
    for node in &world.nodes {
        assert!(node.max_kept < 4500, "{}", node.max_kept);
    }
    world.restart(3, &Ending::default());
    for index in 0..3 {
        let peer = rallypoint_base::id::PartitionId(3);
        world.call(index, |partition, now, out| partition.handle_connected(now, peer, out));
    }
    world.settle();
    world.turns.clear();
    for _ in 0..60 {
        world.wait(Duration::from_millis(100));
        world.settle();
    }
    let after = send_along(&mut world, &way, 6001..=6100);
    assert_eq!((after, world.turns.len()), (100, 0), "the doors are open again");
    assert_eq!(world.state::<Relay>(&way[3]).unwrap().0, taken + after);
    assert!((0..4).all(|index| world.partition(index).is_quiet()));
    world.assert_right();
}

#[test]
fn a_circle_of_full_partitions_forgets_that_it_was_full() {
    let limits = Limits { unacknowledged_bytes: 1000, ..Limits::default() };
    let mut world = World::with(2, 1, limits, crate::common::pessimistic);
    let (here, there) = (world.key_on(0, "r"), world.key_on(1, "r"));
    let way: Vec<String> = (0..40).map(|at| if at % 2 == 0 { &here } else { &there }.clone()).collect();
    // Both keep too much at once, and tell each other.
    for seq in 1..=60 {
        world.input::<Relay>(session(1), seq, &way[0], &way[1..].to_vec());
        world.input::<Relay>(session(2), seq, &way[1], &way[2..].to_vec());
    }
    world.settle();
    for _ in 0..200 {
        world.wait(Duration::from_millis(100));
        world.settle();
    }
    assert!(!world.turns.is_empty(), "nobody was ever full");
    world.turns.clear();
    world.input::<Relay>(session(1), 1000, &way[0], &Vec::new());
    world.input::<Relay>(session(2), 1000, &way[1], &Vec::new());
    assert!(world.turns.is_empty(), "{:?}", world.turns);
    world.settle();
    world.assert_right();
}

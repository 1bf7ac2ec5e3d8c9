//! A checkpoint is the state at its cut, and loses nothing that was gated there.

use crate::common::actors::{
    Account, Bank, Call, Caller, Clock, Counter, Relay, Tick, Trouble, Troublemaker,
};
use crate::common::{Client, World, chaos_step, every_actor, heal, message, session};
use rallypoint_base::id::Version;
use rallypoint_base::time::Time;
use rallypoint_base::wire::Reader;
use rallypoint_engine::command::Outbox;
use rallypoint_engine::partition::{Ending, Limits, Partition};
use rallypoint_engine::snapshot::inspect_header;
use std::collections::BTreeMap;
use std::time::Duration;

/// 1,000 gated outputs: 400 replies, 300 of them with an effect or a frame besides.
fn gated_outputs(world: &mut World) {
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    for seq in 1..=200 {
        world.input::<Counter>(session(1), seq, &here, &1);
    }
    for seq in 201..=500 {
        world.input::<Account>(session(1), seq, &here, &Bank::Transfer { to: there.clone(), amount: 20 });
    }
    for seq in 501..=600 {
        world.input::<Caller>(session(1), seq, &here, &Call { count: 1, timeout: Duration::from_secs(3600) });
    }
}

#[test]
fn a_thousand_gated_outputs_survive_a_crash_just_before_and_just_after_the_manifest() {
    for manifest in [false, true] {
        let mut world = World::new(2, 3);
        gated_outputs(&mut world);
        world.request_checkpoint(0);
        while world.write_piece(0, 300) {}
        assert!(world.nodes[0].images.is_empty(), "the log is not durable through the cut");
        assert!(world.replies.is_empty() && world.network.is_empty() && world.performed.is_empty());
        // Everything is durable on disk, but the partition dies before it hears of it.
        let node = &mut world.nodes[0];
        node.durable = node.log.len();
        if manifest {
            let image = node.writing.take().unwrap();
            node.images.push(image);
        }
        world.bounce(0);
        for seq in 1..=600 {
            // Replies come for the asking.
            world.raw_input(0, session(1), seq, 0, false, &message::<Counter>("never run", &1));
        }
        world.settle();
        assert_eq!(world.replies.len(), 600);
        assert_eq!(world.performed.len(), 100);
        let there = world.key_on(1, "a");
        assert_eq!(world.state::<Account>(&there).unwrap().balance, 6000);
        assert_eq!(world.nodes[0].log.len(), 600, "nothing ran again");
        world.assert_right();
    }
}

#[test]
fn a_header_is_read_without_a_partition() {
    let mut world = World::new(2, 3);
    gated_outputs(&mut world);
    let panic = Trouble::Panic;
    let here = world.key_on(0, "trouble");
    world.input::<Troublemaker>(session(1), 601, &here, &panic);
    world.checkpoint(0);
    let partition = world.partition(0);
    let summary = inspect_header(&world.nodes[0].images[0].header).unwrap();
    assert_eq!((summary.run, summary.log), (partition.position(), partition.log_tail()));
    assert_eq!(summary.epoch, partition.epoch());
    for (to, sent, _) in summary.sent {
        assert_eq!(partition.channels()[&to].sent, sent);
    }
    assert_eq!(summary.effects, 100);
    assert_eq!(summary.set_aside, partition.set_aside());
    assert_eq!(summary.set_aside.len(), 1);
}

#[test]
fn what_was_dropped_stays_dropped_after_replay_and_after_a_checkpoint() {
    let mut world = World::new(1, 3);
    for seq in 1..=2 {
        world.input::<Troublemaker>(session(1), seq, "t", &Trouble::Panic);
    }
    world.sync(0);
    let first = world.partition(0).set_aside()[0].position;
    let drop_first = |partition: &mut Partition, _, out: &mut Outbox| partition.drop_set_aside(first, out);
    assert!(world.call(0, drop_first));
    assert!(!world.call(0, drop_first), "only once");
    world.sync(0);
    for checkpoint in [false, true] {
        if checkpoint {
            world.checkpoint(0);
        }
        world.bounce(0);
        assert_eq!(world.partition(0).set_aside().len(), 1);
        assert!(world.partition(0).set_aside()[0].position > first);
    }
    world.input::<Counter>(session(1), 3, "c", &1);
    world.sync(0);
    world.assert_right();
}

#[test]
fn an_output_gated_at_the_cut_leaves_when_the_partition_lives_on() {
    let mut world = World::new(2, 3);
    gated_outputs(&mut world);
    world.checkpoint(0);
    world.settle();
    assert_eq!((world.replies.len(), world.performed.len()), (600, 100));
    world.assert_right();
}

/// Actors change and appear while each checkpoint is written in small pieces; each is compared with
/// the log replayed to its cut.
fn write_while_changing(seed: u64, fail: bool) -> (u64, u64) {
    let limits = Limits { chain_length: 4, ..Limits::default() };
    let mut world = World::with(1, seed, limits, crate::common::pessimistic);
    let (mut seq, mut full, mut increments) = (0, 0, 0);
    let mut add = |world: &mut World| {
        seq += 1;
        let fresh = world.random.chance(1, 8);
        let number = if fresh { 1000 + seq } else { world.random.below(60) };
        world.input::<Counter>(session(1), seq, &format!("k{number}"), &seq);
    };
    for _ in 0..40 {
        for _ in 0..world.random.below(50) {
            add(&mut world);
        }
        world.request_checkpoint(0);
        let cut = world.partition(0).log_tail();
        let base = world.nodes[0].writing.as_ref().unwrap().base;
        let doomed = fail && world.random.chance(1, 4);
        while world.write_piece(0, 40) {
            for _ in 0..world.random.below(4) {
                add(&mut world);
            }
            if doomed && world.random.chance(1, 10) {
                break;
            }
        }
        if doomed {
            world.nodes[0].writing = None;
            world.call(0, |partition, _, out| partition.checkpoint_failed("no space".into(), out));
            continue;
        }
        world.sync(0);
        assert!(world.nodes[0].writing.is_none());
        *(if base.is_none() { &mut full } else { &mut increments }) += 1;
        // The checkpoint alone, against the log replayed from the beginning to the cut.
        let loaded = world.recover(0, 0).unwrap();
        let images = std::mem::take(&mut world.nodes[0].images);
        let replayed = world.recover(0, cut.0 as usize).unwrap();
        world.nodes[0].images = images;
        assert_eq!(every_actor(&loaded), every_actor(&replayed), "seed {seed}, cut at {cut}");
        assert_eq!(loaded.digest(), replayed.digest());
        assert_eq!(loaded.channels(), replayed.channels());
        assert_eq!((loaded.position(), loaded.log_tail()), (replayed.position(), replayed.log_tail()));
        // A small image is written full each time, but for the first one after a restart.
        if base.is_none() || world.random.chance(1, 5) {
            world.bounce(0);
        }
    }
    world.assert_right();
    (full, increments)
}

#[test]
fn a_checkpoint_written_in_pieces_while_actors_change_is_the_state_at_its_cut() {
    let (mut full, mut increments) = (0, 0);
    for seed in 0..6 {
        println!("seed {seed}");
        let (f, i) = write_while_changing(seed, false);
        (full, increments) = (full + f, increments + i);
    }
    assert!(full > 30 && increments > 80, "{full} full, {increments} increments");
}

/// What a partition would write of the engine's tables now: table, then each entry of it.
fn tables(mut partition: Partition, now: Time) -> BTreeMap<String, Vec<u8>> {
    let (mut out, mut content) = (Outbox::default(), Vec::new());
    partition.go_live(now, &Ending::default(), &mut out);
    partition.request_checkpoint(now, &mut out);
    assert!(partition.is_checkpointing());
    while partition.write_snapshot(&mut content, usize::MAX).unwrap() {}
    let (mut reader, mut tables) = (Reader::new(&content), BTreeMap::<String, Vec<u8>>::new());
    while !reader.is_empty() {
        let kind = reader.u32("kind").unwrap();
        let key = String::from_utf8(reader.bytes("key").unwrap().to_vec()).unwrap();
        let len = reader.u32("length").unwrap();
        let state = reader.take(len as usize, "state").unwrap();
        if kind != 0 {
            continue;
        }
        let table = tables.entry(key.clone()).or_default();
        if key == "frames" {
            // However they are cut into pieces.
            let mut frames = Reader::new(&state[3..]);
            frames.varint("to").unwrap();
            table.extend_from_slice(frames.rest());
        } else {
            table.extend_from_slice(state);
        }
    }
    tables
}

#[test]
fn the_tables_of_a_checkpoint_written_in_pieces_are_those_at_its_cut() {
    let mut checkpoints = 0;
    for seed in 0..8 {
        println!("seed {seed}");
        let limits = Limits { chain_length: 3, small_image_bytes: 0, ..Limits::default() };
        let mut world = World::with(2, seed, limits, crate::common::pessimistic);
        // Frames to it stay.
        world.crash(1);
        let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
        let mut seq = 0;
        let mut add = |world: &mut World| {
            seq += 1;
            let from = session(world.random.below(40));
            match world.random.below(4) {
                0 => {
                    world.input::<Account>(from, seq, &here, &Bank::Transfer { to: there.clone(), amount: 1 })
                }
                1 => {
                    let timeout = Duration::from_secs(3600);
                    world.input::<Caller>(from, seq, &here, &Call { count: 3, timeout });
                }
                2 => {
                    let name = format!("t{}", world.random.below(300));
                    let after = Duration::from_secs(9999);
                    world.input::<Clock>(from, seq, &here, &Tick::Set { name, after });
                }
                _ => {
                    let name = format!("t{}", world.random.below(300));
                    world.input::<Clock>(from, seq, &here, &Tick::Cancel { name });
                }
            }
        };
        for _ in 0..20 {
            for _ in 0..world.random.below(60) {
                add(&mut world);
            }
            world.request_checkpoint(0);
            let cut = world.partition(0).log_tail();
            while world.write_piece(0, 200) {
                for _ in 0..world.random.below(3) {
                    add(&mut world);
                }
            }
            world.sync(0);
            assert!(world.nodes[0].writing.is_none());
            // Whatever the tables hold, they are in the content, which has no limit.
            assert!(world.nodes[0].images.last().unwrap().header.len() < 100);
            let loaded = world.recover(0, 0).unwrap();
            let images = std::mem::take(&mut world.nodes[0].images);
            let replayed = world.recover(0, cut.0 as usize).unwrap();
            world.nodes[0].images = images;
            assert_eq!(loaded.unacknowledged_bytes(), replayed.unacknowledged_bytes());
            let (loaded, replayed) = (tables(loaded, world.now), tables(replayed, world.now));
            assert_eq!(loaded.keys().collect::<Vec<_>>(), replayed.keys().collect::<Vec<_>>());
            for (table, bytes) in &loaded {
                assert!(*bytes == replayed[table], "seed {seed}, cut at {cut}: {table} differs");
            }
            checkpoints += u32::from(loaded.len() == 4);
            if world.random.chance(1, 5) {
                world.bounce(0);
            }
        }
    }
    assert!(checkpoints > 100, "{checkpoints} had all four tables");
}

#[test]
fn large_rows_are_written_and_read_in_pieces_of_a_chunk() {
    let limits = Limits { unacknowledged_bytes: 64 << 20, ..Limits::default() };
    let mut world = World::with(2, 1, limits, crate::common::pessimistic);
    world.crash(1);
    let (here, there) = (world.key_on(0, "r"), world.key_on(1, "r"));
    // Frames of 200 KB each, and replies that nobody has acknowledged.
    let large = vec![there.clone(), "x".repeat(200_000)];
    for seq in 1..=30 {
        world.input::<Relay>(session(1), seq, &here, &large);
        world.input::<Troublemaker>(session(2), seq, &here, &Trouble::Reply(300_000));
    }
    world.sync(0);
    let mut partition = world.recover(0, 60).unwrap();
    let (now, mut out, mut carry, mut longest, mut content) =
        (world.now, Outbox::default(), Vec::new(), 0, Vec::new());
    partition.go_live(now, &Ending::default(), &mut out);
    out.clear();
    partition.request_checkpoint(now, &mut out);
    while partition.write_snapshot(&mut carry, 256 << 10).unwrap() {
        longest = longest.max(carry.len());
        content.append(&mut carry);
    }
    content.append(&mut carry);
    assert!(content.len() > 14_000_000, "{}", content.len());
    assert!(longest < (256 << 10) + (64 << 10) + 310_000, "{longest}");
}

#[test]
fn a_failed_checkpoint_is_followed_by_a_full_one_and_nothing_is_missing() {
    for seed in 100..106 {
        println!("seed {seed}");
        write_while_changing(seed, true);
    }
}

#[test]
fn a_chain_is_never_longer_than_its_limit_also_across_crashes() {
    let limits = Limits { chain_length: 3, ..Limits::default() };
    let mut world = World::with(1, 1, limits, crate::common::pessimistic);
    for seq in 1..30 {
        world.ask::<Counter>(session(1), seq, "c", &1);
        world.checkpoint(0);
        world.bounce(0);
        assert!(world.chain(0).len() <= 4, "after {seq} checkpoints: {}", world.chain(0).len());
    }
}

#[test]
fn a_version_is_never_used_twice() {
    let mut world = World::new(1, 1);
    world.ask::<Counter>(session(1), 1, "c", &1);
    world.checkpoint(0);
    let ending = world.crash(0);
    world.nodes[0].images[0].version = Version(9);
    world.restart(0, &ending);
    world.checkpoint(0);
    assert_eq!(world.nodes[0].images[1].version, Version(10));
}

#[test]
fn a_crash_while_a_checkpoint_is_written_leaves_the_one_before() {
    let client = |n: u64| {
        let of =
            |i: u64| (format!("k{}", (i * n) % 17), message::<Counter>(&format!("k{}", (i * n) % 17), &i));
        Client { session: session(n), inputs: (0..60).map(of).collect(), window: 8 }
    };
    for seed in 0..20 {
        println!("seed {seed}");
        let clients = [client(3), client(5)];
        let limits = Limits { checkpoint_runs: 5, chain_length: 2, ..Limits::default() };
        let mut world = World::with(2, seed, limits, crate::common::pessimistic);
        for _ in 0..1500 {
            chaos_step(&mut world, &clients, true);
        }
        heal(&mut world, &clients);
        world.assert_right();
        assert!(world.nodes.iter().all(|node| node.images.len() > 2), "seed {seed}");
        let total: u64 = (0..2)
            .flat_map(|index| every_actor(world.partition(index)))
            .map(|(_, state)| crate::common::decode::<Counter>(&state).total)
            .sum();
        assert_eq!(total, 2 * (0..60).sum::<u64>());
    }
}

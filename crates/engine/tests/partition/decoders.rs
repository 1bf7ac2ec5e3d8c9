//! Foreign bytes never panic, and what is written is read back.

use crate::common::actors::Counter;
use crate::common::{World, message, session};
use proptest::prelude::*;
use rallypoint_base::id::{Epoch, InputSeq, PartitionId, Position, SessionId, Ssn, Version};
use rallypoint_base::time::Time;
use rallypoint_engine::command::Outbox;
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Asker, Body, Parcel};
use rallypoint_engine::record::{InputRecord, Source, Verdict, decode_mark, kind};

/// A header with something of everything in it.
fn world_with_a_checkpoint() -> World {
    let clients = [crate::replay::mixed(1, 27)];
    let mut world = World::new(2, 5);
    for at in 0..27 {
        clients[0].send(&mut world, at, 0);
    }
    for index in 0..2 {
        world.checkpoint(index);
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_taken_apart_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Parcel::decode(&bytes);
        let _ = InputRecord::decode(&bytes);
        let _ = decode_mark(&bytes);
        let _ = Map::decode(&bytes);
    }

    #[test]
    fn a_parcel_survives(
        kind in any::<u32>(), key in ".{0,40}", asker in proptest::option::of((any::<u32>(), ".{0,9}", any::<u64>())),
        what in 0..4, number in any::<u64>(), flag in any::<bool>(), name in ".{0,9}",
        value in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let body = match what {
            0 => Body::Message(&value),
            1 => Body::Answer { token: number, applied: flag, value: &value },
            2 => Body::Timer { set: number, name: &name },
            _ => Body::Effect { id: (Epoch(7), Position(number), 3), outcome: 2, value: &value },
        };
        let asker = asker.as_ref().map(|(kind, key, token)| Asker { kind: *kind, key, token: *token });
        let parcel = Parcel { kind, key: &key, asker, body };
        let mut bytes = Vec::new();
        parcel.encode(&mut bytes);
        prop_assert_eq!(Parcel::decode(&bytes), Ok(parcel));
    }

    #[test]
    fn a_record_survives(
        verdict in 0usize..3, source in 0..4, numbers in any::<[u64; 4]>(), from in any::<u16>(),
        channels in proptest::collection::vec((any::<u16>(), any::<u64>()), 0..4), evidence in ".{0,20}",
        parcel in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let record = InputRecord {
            verdict: [Verdict::Applied, Verdict::Refused, Verdict::SetAside][verdict],
            source: match source {
                0 => Source::Client {
                    session: SessionId(numbers[0]), seq: InputSeq(numbers[1]), acknowledged_below: InputSeq(numbers[2]),
                },
                1 => Source::Frame { from: PartitionId(from), ssn: Ssn(numbers[1]) },
                2 => Source::Timer,
                _ => Source::Effect,
            },
            time: Time(numbers[3]),
            run: Position(numbers[0]),
            hash: numbers[1],
            channels: channels.into_iter().map(|(to, ssn)| (PartitionId(to), Ssn(ssn))).collect(),
            evidence: if verdict == 2 { &evidence } else { "" },
            parcel: &parcel,
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        prop_assert_eq!(InputRecord::decode(&bytes), Ok(record));
    }

    #[test]
    fn a_partition_takes_any_frames_and_any_input(
        bytes in proptest::collection::vec(any::<u8>(), 0..100), first in any::<u64>(), count in 0u32..5,
    ) {
        let mut world = World::new(1, 1);
        world.call(0, |partition, now, out| {
            let _ = partition.handle_frames(now, PartitionId(3), Epoch(0), Ssn(first), count, &bytes, out);
            let _ = partition.handle_frames(now, PartitionId(3), Epoch(0), Ssn(1), count, &bytes, out);
            partition.handle_input(now, session(1), InputSeq(first), InputSeq(1), first % 2 == 0, &bytes, out);
        });
    }

    #[test]
    fn a_damaged_record_is_refused_or_diverges(at in any::<prop::sample::Index>(), flip in 1u8.., kind in 0u8..7) {
        let mut world = World::new(1, 1);
        world.ask::<Counter>(session(1), 1, "c", &5);
        let mut payload = world.nodes[0].log[0].payload.clone();
        let at = at.index(payload.len());
        payload[at] ^= flip;
        let _ = world.fresh(0).replay(Position(1), Epoch(0), kind, &payload);
        let _ = world.fresh(0).replay(Position(1), Epoch(0), kind::INPUT, &payload[..at]);
    }
}

#[test]
fn a_damaged_checkpoint_never_panics() {
    let mut world = world_with_a_checkpoint();
    for index in 0..2 {
        let image = world.nodes[index].images[0].clone();
        assert!(image.header.len() > 20 && image.content.len() > 250);
        for at in 0..image.header.len() {
            let _ = world.fresh(index).restore(Version(1), &image.header[..at]);
            for flip in [1, 0x80, 0xFF] {
                let mut header = image.header.clone();
                header[at] ^= flip;
                let _ = world.fresh(index).restore(Version(1), &header);
            }
        }
        for at in 0..image.content.len() {
            let mut content = image.content.clone();
            content[at] ^= 0xFF;
            let _ = world.fresh(index).load_content(&content);
            // Also behind the header that knows of the channels, as a restore does it.
            let mut partition = world.fresh(index);
            partition.restore(Version(1), &image.header).unwrap();
            partition.begin_content(true).unwrap();
            let _ = partition.load_content(&content);
            let _ = partition.content_is_whole();
        }
        assert!(world.fresh(index).restore(Version(1), &image.header).is_ok());
    }
    world.settle();
}

#[test]
fn a_truncated_content_is_not_taken_for_a_whole_one() {
    let mut world = world_with_a_checkpoint();
    let image = world.nodes[0].images[0].clone();
    let mut partition = world.fresh(0);
    partition.restore(Version(1), &image.header).unwrap();
    partition.load_content(&image.content[..image.content.len() - 1]).unwrap();
    let mut out = Outbox::default();
    partition.go_live(world.now, &Default::default(), &mut out);
    let parcel = message::<Counter>("c", &1);
    out.clear();
    partition.handle_input(world.now, session(9), InputSeq(1), InputSeq(0), false, &parcel, &mut out);
    assert!(
        matches!(
            out.commands[..],
            [rallypoint_engine::command::Command::Turn {
                why: rallypoint_engine::command::Turned::Stopped,
                ..
            }]
        ),
        "an actor is missing: {:?}",
        out.commands
    );
    world.settle();
}

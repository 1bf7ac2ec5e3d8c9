//! What is refused, undone, set aside or over a limit.

use crate::common::actors::{Ask, Asker, Blob, Call, Caller, Clock, Counter, Tick, Trouble, Troublemaker};
use crate::common::{World, decode, message, parcel, session};
use rallypoint_base::limits::{ACTOR_BYTES, FAN_OUT, KEY_BYTES, MESSAGE_BYTES, NAME_BYTES};
use rallypoint_engine::command::{Notice, Outcome, Turned};
use rallypoint_engine::parcel::{Asker as From, Body, Parcel, kind_tag};
use std::time::Duration;

fn bumps(world: &World, key: &str) -> u64 {
    world.state::<Troublemaker>(key).map_or(0, |actor| actor.bumps)
}

#[test]
fn err_undoes_the_call_and_is_the_answer_also_after_a_crash() {
    let mut world = World::new(3, 1);
    world.ask::<Troublemaker>(session(1), 1, "t", &Trouble::Bump);
    assert_eq!(
        world.ask::<Troublemaker>(session(1), 2, "t", &Trouble::RefuseAfterEverything),
        Outcome::Refused
    );
    let check = |world: &mut World| {
        assert_eq!(decode::<String>(&world.answer(session(1), 2).1), "no");
        assert_eq!(bumps(world, "t"), 1);
        assert_eq!(world.partition(world.index_of("t")).actor_count(), 1, "no counter came to be");
        assert!(world.network.is_empty() && world.performed.is_empty());
    };
    check(&mut world);
    let index = world.index_of("t");
    world.bounce(index);
    world.replies.clear();
    world.input::<Troublemaker>(session(1), 2, "t", &Trouble::RefuseAfterEverything);
    check(&mut world);
    world.wait(Duration::from_secs(1));
    assert_eq!(bumps(&world, "t"), 1, "no timer");
    // An actor that refuses its first message never was.
    world.ask::<Troublemaker>(session(1), 3, "new", &Trouble::RefuseAfterEverything);
    assert_eq!(world.state::<Troublemaker>("new"), None);
    world.assert_right();
}

#[test]
fn a_panic_undoes_the_whole_run_and_the_evidence_names_the_inner_actor() {
    let mut world = World::new(1, 1);
    world.ask::<Troublemaker>(session(1), 1, "outer", &Trouble::Bump);
    world.ask::<Troublemaker>(session(1), 2, "other", &Trouble::Bump);
    let seq = 3;
    world.ask::<Troublemaker>(
        session(1),
        seq,
        "outer",
        &Trouble::PanicInside { other: "other".into(), victim: "victim".into() },
    );
    let (outcome, text) = world.answer(session(1), seq);
    assert_eq!(outcome, Outcome::SetAside);
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("troublemaker victim") && text.contains("as asked"), "{text}");
    for crash in [false, true] {
        if crash {
            world.bounce(0);
        }
        assert_eq!((bumps(&world, "outer"), bumps(&world, "other")), (1, 1));
        assert_eq!(world.state::<Troublemaker>("victim"), None);
        assert_eq!(world.partition(0).set_aside().len(), 1);
        assert!(world.partition(0).set_aside()[0].evidence.contains("victim"));
    }
    world.assert_right();
}

#[test]
fn an_inner_err_undoes_only_that_call_and_is_noticed() {
    let mut world = World::new(1, 1);
    let trouble = Trouble::RefuseInside { other: "other".into(), victim: "victim".into() };
    assert_eq!(world.ask::<Troublemaker>(session(1), 1, "outer", &trouble), Outcome::Applied);
    assert_eq!((bumps(&world, "outer"), bumps(&world, "other"), bumps(&world, "victim")), (1, 1, 0));
    assert!(world.notices.iter().any(|(_, notice)| matches!(notice, Notice::RefusedInside { .. })));
}

#[test]
fn a_refused_message_is_noticed_wherever_the_receiver_lives() {
    let mut world = World::new(2, 1);
    let (outer, other, victim) = (world.key_on(0, "o"), world.key_on(0, "p"), world.key_on(1, "v"));
    world.ask::<Troublemaker>(session(1), 1, &outer, &Trouble::RefuseInside { other, victim });
    world.settle();
    assert_eq!(world.notices.len(), 1, "{:?}", world.notices);
    // A client is told, nobody else need be.
    world.ask::<Troublemaker>(session(1), 2, &outer, &Trouble::RefuseAfterEverything);
    assert_eq!(world.notices.len(), 1);
}

#[test]
fn an_asker_gets_an_answer_whatever_happens() {
    for partitions in [1, 2] {
        let mut world = World::new(partitions, 1);
        let me = world.key_on(0, "me");
        let far = world.key_on(partitions - 1, "far");
        let trouble = |trouble, token| Ask::Trouble { key: far.clone(), trouble, token };
        let asks = [
            Ask::Count { key: far.clone(), token: 1 },
            trouble(Trouble::RefuseAfterEverything, 2),
            Ask::Blob { key: far.clone(), token: 3 },
            trouble(Trouble::Spray(FAN_OUT as u32 + 1), 4),
            trouble(Trouble::Reply(MESSAGE_BYTES as u32), 5),
            trouble(Trouble::Reply(MESSAGE_BYTES as u32 - 20), 6),
        ];
        for (at, ask) in asks.iter().enumerate() {
            world.ask::<Asker>(session(1), at as u64 + 1, &me, ask);
            world.settle();
        }
        let answers = world.state::<Asker>(&me).unwrap().answers;
        let texts: Vec<_> = answers.iter().map(|(token, text)| format!("{token} {text}")).collect();
        let last = format!("6 {} bytes", MESSAGE_BYTES - 20);
        assert_eq!(texts, ["1 reply 1", "2 refusal no", "3 failure", "4 failure", "5 failure", &last]);
        for index in 0..partitions {
            world.bounce(index);
        }
        world.settle();
        assert_eq!(world.state::<Asker>(&me).unwrap().answers, answers);
        world.assert_right();
    }
}

#[test]
fn the_asker_of_another_partition_hears_of_a_panic() {
    let mut world = World::new(2, 1);
    let (me, far) = (world.key_on(0, "me"), world.key_on(1, "far"));
    world.ask::<Asker>(session(1), 1, &me, &Ask::Trouble { key: far, trouble: Trouble::Panic, token: 7 });
    world.sync(0);
    world.deliver_all();
    // Not even a crash after the record and before the frame keeps it back.
    world.sync(1);
    world.network.clear();
    world.bounce(1);
    world.settle();
    assert_eq!(world.state::<Asker>(&me).unwrap().answers, [(7, "failure".into())]);
    world.assert_right();
}

#[test]
fn limits_are_refused_with_their_names_and_change_nothing() {
    let mut world = World::new(1, 1);
    let cases = [
        (Trouble::Spray(FAN_OUT as u32), None),
        (Trouble::Spray(FAN_OUT as u32 + 1), Some("more than 10000")),
        (Trouble::Key(KEY_BYTES as u32), None),
        (Trouble::Key(KEY_BYTES as u32 + 1), Some("a key of 257 bytes")),
        (Trouble::Timer(NAME_BYTES as u32), None),
        (Trouble::Timer(NAME_BYTES as u32 + 1), Some("a name of 257 bytes")),
        (Trouble::Effect(NAME_BYTES as u32), None),
        (Trouble::Effect(NAME_BYTES as u32 + 1), Some("a name of 257 bytes")),
        (Trouble::Send(1000), None),
        (Trouble::Send(MESSAGE_BYTES as u32), Some("a message of 10")),
        (Trouble::Reply(1000), None),
        (Trouble::Reply(MESSAGE_BYTES as u32), Some("a message of 10")),
    ];
    let mut applied = 0;
    for (at, (trouble, error)) in cases.into_iter().enumerate() {
        let seq = at as u64 + 1;
        let outcome = world.ask::<Troublemaker>(session(1), seq, "t", &trouble);
        let text = String::from_utf8_lossy(&world.answer(session(1), seq).1).into_owned();
        match error {
            None => {
                applied += 1;
                assert_eq!(outcome, Outcome::Applied, "{trouble:?}: {text}");
            }
            Some(error) => {
                assert_eq!(outcome, Outcome::Failed, "{trouble:?}");
                assert!(text.contains(error), "{text}");
            }
        }
        assert_eq!(bumps(&world, "t"), applied);
    }
    world.bounce(0);
    assert_eq!(bumps(&world, "t"), applied);
    world.assert_right();
}

#[test]
fn the_door_refuses_what_is_no_input() {
    let mut world = World::new(1, 1);
    let tag = kind_tag("counter");
    let mut forged = Vec::new();
    let asker = Some(From { kind: tag, key: "other", token: 1 });
    Parcel { kind: tag, key: "c", asker, body: Body::Message(&[1, 1, 0, 5]) }.encode(&mut forged);
    let inputs = [
        (message::<Blob>("b", &"?".into()), Turned::NoSuchKind),
        (parcel(tag, &"k".repeat(KEY_BYTES + 1), Body::Message(&[1, 1, 0, 5])), Turned::Malformed),
        (parcel(tag, "c", Body::Message(&vec![1; MESSAGE_BYTES])), Turned::Malformed),
        (parcel(tag, "c", Body::Timer { set: 1, name: "t" }), Turned::Malformed),
        (parcel(tag, "c", Body::Answer { token: 1, applied: true, value: &[] }), Turned::Malformed),
        (
            parcel(kind_tag("caller"), "c", Body::Effect { id: Default::default(), outcome: 0, value: &[] }),
            Turned::Malformed,
        ),
        (forged, Turned::Malformed),
        (Vec::new(), Turned::Malformed),
        (vec![0xFF; 9], Turned::Malformed),
    ];
    for (at, (parcel, why)) in inputs.iter().enumerate() {
        world.raw_input(0, session(1), at as u64 + 1, 0, false, parcel);
        assert_eq!(world.turns.pop().map(|turn| turn.2), Some(*why), "input {at}");
    }
    assert!(world.nodes[0].log.is_empty());
}

#[test]
fn a_signal_that_refuses_or_panics_is_consumed() {
    let mut world = World::new(1, 1);
    for (seq, name) in [(1, "refuse"), (2, "panic")] {
        let after = Duration::from_millis(5);
        world.ask::<Clock>(session(1), seq, "clock", &Tick::Set { name: name.into(), after });
    }
    world.wait(Duration::from_secs(1));
    world.sync(0);
    for crash in [false, true] {
        if crash {
            world.bounce(0);
        }
        world.wait(Duration::from_secs(1));
        assert_eq!(world.nodes[0].log.len(), 4);
        assert_eq!(world.state::<Clock>("clock").unwrap().fired, []);
        assert_eq!(world.partition(0).set_aside().len(), 1);
    }
    assert_eq!(world.notices.len(), 2, "{:?}", world.notices);
}

#[test]
fn a_set_aside_input_leaves_nothing_of_an_earlier_run_behind() {
    let mut world = World::new(1, 1);
    world.ask::<Caller>(session(1), 1, "c", &Call { count: 1, timeout: Duration::from_secs(1) });
    world.ask::<Troublemaker>(session(1), 2, "t", &Trouble::Panic);
    world.ask::<Counter>(session(1), 3, "c", &1);
    assert_eq!(world.state::<Counter>("c").unwrap().total, 1);
    assert_eq!(world.performed.len(), 1);
    world.assert_right();
}

#[test]
fn a_checkpoint_says_which_actor_is_too_large_and_holds_it_all_the_same() {
    let mut world = World::new(1, 1);
    let half = Trouble::Grow(ACTOR_BYTES as u32 / 2);
    world.ask::<Troublemaker>(session(1), 1, "small", &half);
    for seq in 2..=4 {
        world.ask::<Troublemaker>(session(1), seq, "large", &half);
    }
    world.checkpoint(0);
    world.settle();
    let [(_, Notice::ActorTooLarge { actor, bytes, count: 1 })] = &world.notices[..] else {
        panic!("{:?}", world.notices);
    };
    assert_eq!(actor, "troublemaker large");
    assert!((ACTOR_BYTES * 3 / 2..ACTOR_BYTES * 2).contains(bytes), "{bytes}");
    world.bounce(0);
    assert_eq!(world.state::<Troublemaker>("large").unwrap().kept.len(), ACTOR_BYTES / 2 * 3);
}

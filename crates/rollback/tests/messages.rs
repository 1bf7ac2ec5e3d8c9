//! Control messages and records on the wire, and the orders of calls that no schedule should decide.

use proptest::prelude::*;
use rallypoint_base::id::{Epoch, PartitionId, Position, Ssn, Version};
use rallypoint_base::time::Time;
use rallypoint_rollback::cut::{Cut, History, LocalState, Point};
use rallypoint_rollback::independent::{Coordinator, Independent, Message, Recovery};
use rallypoint_rollback::protocol::{Channels, Command, Event, Peer, Protocol};

fn states() -> impl Strategy<Value = Vec<(u64, u64, u16, u64, u64)>> {
    proptest::collection::vec((1..5u64, 0..9u64, any::<u16>(), 0..1000u64, 0..1000u64), 0..6)
}

/// Builds a history by adding to what came before, so that no counter falls.
fn history(steps: Vec<(u64, u64, u16, u64, u64)>) -> History {
    let mut history = History::empty();
    let (mut version, mut state) = (0, LocalState::default());
    let mut last = None;
    for (newer, runs, peer, sent, received) in steps {
        version += newer;
        state.position = Position(state.position.0 + runs);
        let channel = state.channels.entry(PartitionId(peer)).or_default();
        channel.sent = Ssn(channel.sent.0 + sent);
        channel.received = Ssn(channel.received.0 + received);
        history.push(Version(version), state.clone()).unwrap();
        last = Some(state.clone());
    }
    history.set_current(last.filter(|_| version % 2 == 0));
    history
}

fn messages() -> impl Strategy<Value = Message> {
    let epochs = || any::<u32>().prop_map(Epoch);
    let points = prop_oneof![Just(Point::Current), any::<u64>().prop_map(|v| Point::Stable(Version(v)))];
    prop_oneof![
        (epochs(), states()).prop_map(|(epoch, s)| Message::Announce { epoch, history: history(s) }),
        Just(Message::Restarted),
        (epochs(), states()).prop_map(|(round, s)| Message::Report { round, history: history(s) }),
        epochs().prop_map(|round| Message::RolledBack { round }),
        epochs().prop_map(|round| Message::Query { round }),
        (epochs(), points).prop_map(|(round, point)| Message::RollBack { round, point }),
        epochs().prop_map(|round| Message::Resume { round }),
        (any::<u64>(), any::<u64>())
            .prop_map(|(version, seen)| Message::Stable { version: Version(version), seen: Version(seen) }),
    ]
}

proptest! {
    #[test]
    fn every_message_survives_and_every_prefix_is_refused(message in messages()) {
        let bytes = message.encode();
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
        for cut in 0..bytes.len() {
            prop_assert!(Message::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn foreign_bytes_are_refused_or_read_but_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..80), tag in 0..10u8,
    ) {
        let mut bytes = bytes;
        let _ = Message::decode(&bytes);
        let _ = Recovery::decode(&bytes);
        let _ = Independent::default().load(&bytes);
        bytes.insert(0, tag);
        // Machines must bear them too.
        let mut out = Vec::new();
        Independent::default().handle(Event::Control { from: Peer::Coordinator, bytes: &bytes }, &mut out);
        let from = Peer::Partition(PartitionId(0));
        Coordinator::new([PartitionId(0)]).handle(Event::Control { from, bytes: &bytes }, &mut out);
    }
}

/// The messages among the commands, with where they go.
fn told(commands: &[Command]) -> Vec<(Peer, Message)> {
    let message = |command: &Command| match command {
        Command::Control { to, bytes } => Some((*to, Message::decode(bytes).unwrap())),
        _ => None,
    };
    commands.iter().filter_map(message).collect()
}

fn order(machine: &mut Independent, message: &Message) -> Vec<Command> {
    let mut out = Vec::new();
    machine.handle(Event::Control { from: Peer::Coordinator, bytes: &message.encode() }, &mut out);
    out
}

fn to_coordinator(machine: &mut Coordinator, from: u16, message: &Message) -> Vec<Command> {
    let mut out = Vec::new();
    let from = Peer::Partition(PartitionId(from));
    machine.handle(Event::Control { from, bytes: &message.encode() }, &mut out);
    out
}

const ROUND: Epoch = Epoch(4);

/// A partition that has gone back in [`ROUND`] and waits.
fn gone_back() -> Independent {
    let mut machine = Independent::default();
    let (version, position, channels) = (Version(0), Position(0), &Channels::new());
    machine.handle(Event::Restarted { version, position, channels }, &mut Vec::new());
    order(&mut machine, &Message::Query { round: ROUND });
    let point = Point::Stable(version);
    // It stands there already: nothing is restored, only the epoch is new.
    let commands = order(&mut machine, &Message::RollBack { round: ROUND, point });
    assert_eq!(commands, [Command::RollBack { version: None, epoch: ROUND }]);
    let mut out = Vec::new();
    machine.handle(Event::RolledBack { version: None, epoch: ROUND, position, channels }, &mut out);
    assert_eq!(told(&out), [(Peer::Coordinator, Message::RolledBack { round: ROUND })]);
    machine
}

#[test]
fn a_rollback_is_obeyed_once_per_epoch_and_always_acknowledged() {
    let mut machine = gone_back();
    let again = Message::RollBack { round: ROUND, point: Point::Stable(Version(0)) };
    let acknowledgement = [(Peer::Coordinator, Message::RolledBack { round: ROUND })];
    let commands = order(&mut machine, &again);
    assert!(!commands.iter().any(|command| matches!(command, Command::RollBack { .. })));
    assert_eq!(told(&commands), acknowledgement);

    let commands = order(&mut machine, &Message::Resume { round: ROUND });
    assert_eq!(commands[0], Command::Resume);
    // Also from a coordinator that was restarted long after.
    let mut out = Vec::new();
    machine.handle(Event::Ran { position: Position(1), cause: None, sent: 0 }, &mut out);
    assert_eq!(told(&order(&mut machine, &again)), acknowledgement);
    assert!(order(&mut machine, &Message::Resume { round: ROUND }).is_empty());
    // An older round is nothing.
    let old = Epoch(ROUND.0 - 1);
    assert!(order(&mut machine, &Message::Query { round: old }).is_empty());
    assert!(order(&mut machine, &Message::RollBack { round: old, point: Point::Current }).is_empty());
}

#[test]
fn an_incarnation_that_was_not_asked_obeys_no_line() {
    let mut machine = Independent::default();
    let (position, channels) = (Position(0), &Channels::new());
    machine.handle(Event::Restarted { version: Version(0), position, channels }, &mut Vec::new());
    let commands = order(&mut machine, &Message::RollBack { round: ROUND, point: Point::Current });
    assert_eq!(told(&commands), [(Peer::Coordinator, Message::Restarted)]);
}

#[test]
fn a_rollback_that_somebody_else_ordered_is_a_failure_to_the_others() {
    let mut machine = gone_back();
    order(&mut machine, &Message::Resume { round: ROUND });
    let mut out = Vec::new();
    let (version, position, channels) = (Some(Version(0)), Position(0), &Channels::new());
    machine.handle(Event::RolledBack { version, epoch: Epoch(9), position, channels }, &mut out);
    assert!(out.contains(&Command::Pause));
    assert_eq!(told(&out), [(Peer::Coordinator, Message::Restarted)]);
}

#[test]
fn a_coordinator_without_a_stable_record_has_decided_nothing() {
    let ids = [PartitionId(0), PartitionId(1)];
    let mut first = Coordinator::new(ids);
    first.handle(Event::PeerFailed { peer: ids[0] }, &mut Vec::new());
    to_coordinator(&mut first, 0, &Message::Report { round: Epoch(1), history: History::initial() });
    let commands =
        to_coordinator(&mut first, 1, &Message::Report { round: Epoch(1), history: History::initial() });
    let [Command::Persist { token, bytes }] = &commands[..] else { panic!("{commands:?}") };

    // It ends before the record is stable: the next one orders nothing, and begins above it.
    let mut out = Vec::new();
    let mut second = Coordinator::new(ids);
    second.recover([], &mut out).unwrap();
    assert!(out.is_empty() && second.is_idle());
    let asked = told(&to_coordinator(
        &mut second,
        1,
        &Message::Report { round: Epoch(1), history: History::initial() },
    ));
    assert_eq!(asked[0].1, Message::Query { round: Epoch(2) });

    // It ends after: the next one repeats the same order, as often as it is started.
    first.handle(Event::Persisted { token: *token }, &mut out);
    let ordered = told(&out);
    for _ in 0..2 {
        let mut out = Vec::new();
        let mut third = Coordinator::new(ids);
        third.recover([bytes.as_slice()], &mut out).unwrap();
        assert_eq!(told(&out), ordered);
        let mut saved = Vec::new();
        third.save(&mut saved);
        let mut fourth = Coordinator::new(ids);
        fourth.load(&saved).unwrap();
        let mut out = Vec::new();
        fourth.recover([], &mut out).unwrap();
        assert_eq!(told(&out), ordered, "what was saved stands for the records");
    }
}

#[test]
fn a_coordinator_that_was_restarted_asks_until_everyone_has_told_what_it_has() {
    let ids = [PartitionId(0), PartitionId(1)];
    let record = Recovery { epoch: Epoch(1), line: ids.map(|id| (id, Point::Stable(Version(0)))).into() };
    let mut coordinator = Coordinator::new(ids);
    coordinator.recover([&record.encode()[..]], &mut Vec::new()).unwrap();
    for id in [0, 1] {
        to_coordinator(&mut coordinator, id, &Message::RolledBack { round: Epoch(1) });
    }
    assert!(coordinator.is_idle());
    // What it said then was lost. Partition 1 has nothing new: by itself it says nothing.
    let first = history(vec![(1, 1, 0, 0, 0)]);
    to_coordinator(&mut coordinator, 0, &Message::Announce { epoch: Epoch(1), history: first.clone() });
    let tick = |coordinator: &mut Coordinator, seconds: u64| {
        let mut out = Vec::new();
        coordinator.handle(Event::Tick { now: Time(seconds * 1_000_000_000) }, &mut out);
        assert!(out.is_empty() || out.iter().any(|command| matches!(command, Command::SetTimer { .. })));
        told(&out).into_iter().map(|(to, _)| to).collect::<Vec<_>>()
    };
    assert_eq!(tick(&mut coordinator, 1), [Peer::Partition(ids[1])]);
    assert_eq!(tick(&mut coordinator, 2), [Peer::Partition(ids[1])]);
    to_coordinator(&mut coordinator, 1, &Message::Announce { epoch: Epoch(1), history: first });
    assert_eq!(tick(&mut coordinator, 3), []);
    assert_eq!(coordinator.stable()[&ids[1]], Version(1));
}

#[test]
fn no_line_lies_below_what_was_called_stable() {
    let id = PartitionId(0);
    let mut coordinator = Coordinator::new([id]);
    coordinator.recover([], &mut Vec::new()).unwrap();
    to_coordinator(&mut coordinator, 0, &Message::Restarted);
    let report = |coordinator: &mut Coordinator, round, history| {
        to_coordinator(coordinator, 0, &Message::Report { round: Epoch(round), history })
    };
    let commands = report(&mut coordinator, 1, History::initial());
    assert!(matches!(commands[..], [Command::Persist { .. }]), "{commands:?}");
    coordinator.handle(Event::Persisted { token: 1 }, &mut Vec::new());
    to_coordinator(&mut coordinator, 0, &Message::RolledBack { round: Epoch(1) });
    let first = history(vec![(1, 1, 0, 0, 0)]);
    to_coordinator(&mut coordinator, 0, &Message::Announce { epoch: Epoch(1), history: first.clone() });
    assert_eq!(coordinator.stable()[&id], Version(1));

    // The stored version went bad on every copy, and the partition comes back at the one before.
    to_coordinator(&mut coordinator, 0, &Message::Restarted);
    let commands = report(&mut coordinator, 2, History::initial());
    assert!(commands.is_empty(), "{commands:?}");
    assert_eq!(coordinator.no_line().map(|none| none.partition), Some(id));

    // A person puts the file back: the next restart finds a line again.
    to_coordinator(&mut coordinator, 0, &Message::Restarted);
    let commands = report(&mut coordinator, 3, first);
    assert!(matches!(commands[..], [Command::Persist { .. }]), "{commands:?}");
    assert_eq!(coordinator.no_line(), None);
}

#[test]
fn the_newest_record_counts_and_a_foreign_one_is_refused() {
    let line = |version| Cut::from([(PartitionId(0), Point::Stable(Version(version)))]);
    let old = Recovery { epoch: Epoch(3), line: line(1) }.encode();
    let new = Recovery { epoch: Epoch(5), line: line(2) }.encode();
    let mut coordinator = Coordinator::new([PartitionId(0)]);
    let mut out = Vec::new();
    coordinator.recover([new.as_slice(), old.as_slice()], &mut out).unwrap();
    assert_eq!(told(&out)[0].1, Message::RollBack { round: Epoch(5), point: Point::Stable(Version(2)) });
    assert!(coordinator.recover([b"not a record".as_slice()], &mut out).is_err());
}

#[test]
fn a_round_is_above_every_epoch_that_others_opened() {
    let mut coordinator = Coordinator::new([PartitionId(0)]);
    coordinator.raise_epoch(Epoch(41));
    let asked = told(&to_coordinator(&mut coordinator, 0, &Message::Restarted));
    assert_eq!(asked[0].1, Message::Query { round: Epoch(42) });
}

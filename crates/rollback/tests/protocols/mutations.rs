//! Negative controls: each breaks one command of one machine, and must be caught.
//!
//! Every mutation is tried twice: with the durability ledger, and without it, when only what an
//! observer sees counts (money, orphans, undone outputs, lines, rest).

use crate::{Coordinator, INDEPENDENT, Independent, Mutant, Setup, coordinator, first_violation};
use rallypoint_base::id::{Epoch, Version};
use rallypoint_rollback::cut::{History, LocalState, Point};
use rallypoint_rollback::independent::{Message, Recovery};
use rallypoint_rollback::protocol::{Command, Event, Peer, Protocol};

/// Handles an event in the machine's stead.
/// The number is the mutant's own memory.
pub(crate) type Change = fn(&mut dyn Protocol, &mut u64, Event<'_>, &mut Vec<Command>);

fn mutant(inner: impl Protocol + 'static, handle: Change) -> Box<dyn Protocol> {
    Box::new(Mutant { inner: Box::new(inner), memory: 0, handle })
}

/// A setup whose partitions are changed.
macro_rules! partitions {
    ($change:expr) => {
        Setup { partition: || mutant(Independent::default(), $change), ..INDEPENDENT }
    };
}

/// A setup whose coordinator is changed, the start included.
macro_rules! coordinators {
    ($change:expr) => {
        Setup {
            coordinator: |partitions, records, out| {
                let inner: Coordinator = coordinator(partitions, records, out);
                Some(mutant(inner, $change))
            },
            ..INDEPENDENT
        }
    };
}

/// Lets the machine handle the event and passes each of its commands through `change`.
fn each(
    inner: &mut dyn Protocol,
    event: Event<'_>,
    out: &mut Vec<Command>,
    mut change: impl FnMut(Command, &mut Vec<Command>),
) {
    let mut commands = Vec::new();
    inner.handle(event, &mut commands);
    for command in commands {
        change(command, out);
    }
}

fn message(command: &Command) -> Option<Message> {
    match command {
        Command::Control { bytes, .. } => Message::decode(bytes).ok(),
        _ => None,
    }
}

fn caught(name: &str, setup: Setup, worlds: u64) {
    match first_violation(setup, worlds) {
        Some((seed, violation)) => println!("{name} (ledger: {}): world {seed}: {violation}", setup.ledger),
        None => panic!("{name} (ledger: {}) was not caught in {worlds} worlds", setup.ledger),
    }
}

fn caught_both_ways(name: &str, setup: Setup) {
    caught(name, setup, 300);
    caught(name, Setup { ledger: false, ..setup }, 600);
}

#[test]
fn outputs_released_with_the_frames() {
    caught_both_ways(
        "outputs early",
        partitions!(|inner, _, event, out| each(inner, event, out, |command, out| out.push(match command {
            Command::Release { frames, receipts, .. } =>
                Command::Release { frames, outputs: frames, receipts },
            other => other,
        }))),
    );
}

#[test]
fn receipts_given_with_the_frames() {
    caught_both_ways(
        "receipts early",
        partitions!(|inner, _, event, out| each(inner, event, out, |command, out| out.push(match command {
            Command::Release { frames, outputs, .. } =>
                Command::Release { frames, outputs, receipts: frames },
            other => other,
        }))),
    );
}

#[test]
fn a_report_without_a_pause() {
    // No row of the table: what is violated is that a reported state stays what it is.
    let setup = partitions!(|inner, _, event, out| each(inner, event, out, |command, out| {
        if command != Command::Pause {
            out.push(command);
        }
    }));
    caught("no pause", setup, 300);
    caught("no pause", Setup { ledger: false, ..setup }, 300);
}

#[test]
fn a_rollback_that_opens_no_epoch() {
    // The engine is told the first epoch again, the machine hears the one it asked for.
    let setup = partitions!(|inner, asked, event, out| {
        let event = match event {
            Event::RolledBack { version, position, channels, .. } => {
                Event::RolledBack { version, epoch: Epoch(*asked as u32), position, channels }
            }
            other => other,
        };
        each(inner, event, out, |command, out| {
            out.push(match command {
                Command::RollBack { version, epoch } => {
                    *asked = u64::from(epoch.0);
                    Command::RollBack { version, epoch: Epoch(1) }
                }
                other => other,
            });
        });
    });
    caught("no epoch", Setup { ledger: false, ..setup }, 600);
}

#[test]
fn a_rollback_that_keeps_the_state() {
    caught_both_ways(
        "state kept",
        partitions!(|inner, _, event, out| each(inner, event, out, |command, out| out.push(match command {
            Command::RollBack { epoch, .. } => Command::RollBack { version: None, epoch },
            other => other,
        }))),
    );
}

#[test]
fn a_rollback_acknowledged_before_it_is_durable() {
    caught_both_ways(
        "ack early",
        partitions!(|inner, _, event, out| each(inner, event, out, |command, out| {
            let early = match command {
                Command::RollBack { epoch, .. } => Some(Message::RolledBack { round: epoch }),
                _ => None,
            };
            out.push(command);
            out.extend(early.map(|ack| Command::Control { to: Peer::Coordinator, bytes: ack.encode() }));
        })),
    );
}

#[test]
fn a_checkpoint_announced_when_it_is_cut() {
    caught_both_ways(
        "announced early",
        partitions!(|inner, _, event, out| {
            let version = match event {
                Event::CheckpointTaken { version, .. } => Some(version),
                _ => None,
            };
            inner.handle(event, out);
            if let Some(version) = version {
                inner.handle(Event::CheckpointDurable { version }, out);
            }
        }),
    );
}

#[test]
fn everything_below_the_newest_checkpoint_forgotten() {
    caught_both_ways(
        "forgets early",
        partitions!(|inner, _, event, out| {
            let newest = match event {
                Event::CheckpointDurable { version } => Some(version),
                _ => None,
            };
            inner.handle(event, out);
            out.extend(newest.map(|version| Command::Forget { version }));
        }),
    );
}

#[test]
fn a_rollback_to_the_version_before() {
    caught_both_ways(
        "too far",
        coordinators!(|inner, _, event, out| each(inner, event, out, |command, out| {
            let changed = match message(&command) {
                Some(Message::RollBack { round, point: Point::Stable(Version(version)) }) if version > 0 => {
                    let point = Point::Stable(Version(version - 1));
                    Some(Message::RollBack { round, point }.encode())
                }
                _ => None,
            };
            out.push(match (command, changed) {
                (Command::Control { to, .. }, Some(bytes)) => Command::Control { to, bytes },
                (command, _) => command,
            });
        })),
    );
}

#[test]
fn a_line_that_is_everybodys_newest_point() {
    // The naive recovery: only the failed partition goes back.
    caught_both_ways(
        "no line",
        coordinators!(|inner, _, event, out| {
            let report = match &event {
                Event::Control { from: Peer::Partition(from), bytes } => {
                    Message::decode(bytes).ok().map(|message| (*from, message))
                }
                _ => None,
            };
            let forged = match report {
                Some((from, Message::Report { round, history })) => {
                    Some((from, Message::Report { round, history: without_receipts(&history) }))
                }
                _ => None,
            };
            match forged {
                Some((from, message)) => {
                    let from = Peer::Partition(from);
                    inner.handle(Event::Control { from, bytes: &message.encode() }, out);
                }
                None => inner.handle(event, out),
            }
        }),
    );
}

/// The same history as if nothing had ever been received.
fn without_receipts(history: &History) -> History {
    let blind = |state: &LocalState| {
        let mut state = state.clone();
        state.channels.values_mut().for_each(|channel| channel.received = Default::default());
        state
    };
    let mut changed = History::empty();
    for (version, state) in history.stable() {
        changed.push(*version, blind(state)).expect("counters still do not fall");
    }
    changed.set_current(history.current().map(blind));
    changed
}

#[test]
fn a_resumption_before_all_have_gone_back() {
    caught_both_ways(
        "resume early",
        coordinators!(|inner, _, event, out| {
            let first = match &event {
                Event::Control { from: Peer::Partition(from), bytes } => match Message::decode(bytes) {
                    Ok(Message::RolledBack { round }) => Some((*from, round)),
                    _ => None,
                },
                _ => None,
            };
            inner.handle(event, out);
            out.extend(first.map(|(partition, round)| Command::Control {
                to: Peer::Partition(partition),
                bytes: Message::Resume { round }.encode(),
            }));
        }),
    );
}

#[test]
fn an_order_before_the_decision_is_durable() {
    // Only the ledger sees this one. An observer does not: an undecided round that somebody obeyed
    // is made good by the next one, since nobody has run in between.
    caught(
        "order early",
        coordinators!(|inner, _, event, out| each(inner, event, out, |command, out| {
            let orders = match &command {
                Command::Persist { bytes, .. } => Recovery::decode(bytes).ok(),
                _ => None,
            };
            out.push(command);
            for (partition, point) in orders.iter().flat_map(|record| &record.line) {
                let round = orders.as_ref().map_or(Epoch(0), |record| record.epoch);
                let bytes = Message::RollBack { round, point: *point }.encode();
                out.push(Command::Control { to: Peer::Partition(*partition), bytes });
            }
        })),
        300,
    );
}

#[test]
fn a_stable_line_of_everybodys_newest_checkpoint() {
    caught_both_ways(
        "stable early",
        coordinators!(|inner, _, event, out| each(inner, event, out, |command, out| {
            let changed = match message(&command) {
                Some(Message::Stable { seen, .. }) => Some(Message::Stable { version: seen, seen }.encode()),
                _ => None,
            };
            out.push(match (command, changed) {
                (Command::Control { to, .. }, Some(bytes)) => Command::Control { to, bytes },
                (command, _) => command,
            });
        })),
    );
}

#[test]
fn a_restart_that_is_not_reported() {
    // The restored partition says what it has as if it had never lost anything.
    caught_both_ways(
        "crash hidden",
        partitions!(|inner, _, event, out| {
            let is_restart = matches!(event, Event::Restarted { .. });
            each(inner, event, out, |command, out| {
                let hidden = is_restart
                    && (command == Command::Pause || matches!(message(&command), Some(Message::Restarted)));
                if !hidden {
                    out.push(command);
                }
            });
        }),
    );
}

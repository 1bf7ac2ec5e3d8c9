//! Negative controls: each invariant fails, alone, when exactly what it is about is broken.
//!
//! Every mutation is a wrapper made here; nothing in shipped code knows of it.

use crate::{Load, send};
use rallypoint_base::id::{InputSeq, PartitionId, Position, SessionId, Ssn};
use rallypoint_base::wire::Malformed;
use rallypoint_engine::unit::ProtocolFactory;
use rallypoint_rollback::independent::Independent;
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::{Command, Event, Protocol};
use rallypoint_sim::{Faults, Message, World, WorldBuilder};
use rallypoint_store::disk::{Completion, Disk, Lane, Op, Ticket};
use rallypoint_store::sim_disk::SimDrive;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const KILLS: Faults = Faults { kills: true, ..Faults::NONE };
const POWER: Faults = Faults { kills: true, power: true, ..Faults::NONE };

fn quiet_load() -> Load {
    Load { looks: 0, poison: 0, ..Load::default() }
}

/// Some world violates exactly `invariant`, and the same worlds without the mutation nothing.
fn breaks_only(
    invariant: &str,
    load: Load,
    sound: WorldBuilder,
    mutate: impl Fn(WorldBuilder) -> WorldBuilder,
) {
    let mut seen = Vec::new();
    for seed in 0..60 {
        let run = |builder: WorldBuilder| {
            let (_, violations) = builder.seed(seed).try_run(|client| {
                send(client, seed, load);
                client.weather();
            });
            violations
        };
        let violations = run(mutate(sound.clone()));
        let names: Vec<&str> = violations.iter().map(|violation| violation.invariant).collect();
        if names == [invariant] {
            println!("seed {seed}: {}", violations[0]);
            assert_eq!(run(sound.clone()), [], "without the mutation all is well");
            return;
        }
        seen.extend(violations.into_iter().map(|violation| format!("seed {seed}: {violation}")));
    }
    panic!("no world violated only {invariant}:\n{}", seen.join("\n"));
}

#[test]
fn exactly_once_fails_when_a_client_repeats_under_a_new_number() {
    let faults = Faults { network: true, ..Faults::NONE };
    let sound = World::builder().bank().faults(faults).audits(0);
    breaks_only("exactly_once", quiet_load(), sound, |builder| {
        let wrapper = |message: &mut Message| match message {
            Message::Input { seq, attempt, .. } if *attempt > 0 => {
                *seq = InputSeq(seq.0 + 1_000_000 * u64::from(*attempt));
            }
            Message::Reply { seq, .. } => *seq = InputSeq(seq.0 % 1_000_000),
            _ => {}
        };
        builder.wrap_network(Arc::new(Mutex::new(wrapper)))
    });
}

#[test]
fn conservation_fails_when_the_network_gives_a_number_to_another_frame() {
    let sound = World::builder().bank().faults(Faults::NONE).audits(0);
    let load = Load { clients: 1, ..quiet_load() };
    breaks_only("conservation", load, sound.clients(1).window(1), |builder| {
        let mut last: BTreeMap<(PartitionId, PartitionId), Vec<u8>> = BTreeMap::new();
        let mut done = false;
        let wrapper = move |message: &mut Message| {
            if let Message::Frames { from, to, first, count: 1, bytes, .. } = message {
                if let Some(before) = last.get(&(*from, *to))
                    && !done
                    && *first > Ssn(2)
                {
                    bytes.clone_from(before);
                    done = true;
                }
                last.insert((*from, *to), bytes.clone());
            }
        };
        builder.wrap_network(Arc::new(Mutex::new(wrapper)))
    });
}

/// Message logging that lets something out before the log is durable.
struct Early {
    inner: Pessimistic,
    frames: bool,
    outputs: bool,
    durable: Position,
}

impl Protocol for Early {
    fn name(&self) -> &'static str {
        "early"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        if let Event::Durable { position } | Event::Restarted { position, .. } = &event {
            self.durable = *position;
        }
        let ran = if let Event::Ran { position, .. } = &event { Some(*position) } else { None };
        self.inner.handle(event, out);
        if let Some(position) = ran {
            let frames = if self.frames { position } else { self.durable };
            let outputs = if self.outputs { position } else { self.durable };
            out.push(Command::Release { frames, outputs, receipts: self.durable });
        }
    }
}

fn early(frames: bool, outputs: bool) -> ProtocolFactory {
    Arc::new(move |_| {
        Box::new(Early { inner: Pessimistic::default(), frames, outputs, durable: Position(0) })
    })
}

#[test]
fn no_orphan_fails_when_frames_leave_before_their_cause_is_durable() {
    let sound = World::builder().bank().faults(KILLS).strikes(6).audits(20);
    breaks_only("no_orphan", quiet_load(), sound, |builder| builder.protocol(early(true, false)));
}

#[test]
fn output_never_undone_fails_when_answers_leave_before_their_cause_is_durable() {
    let sound = World::builder().bank().faults(POWER).audits(0);
    breaks_only("output_never_undone", quiet_load(), sound, |builder| builder.protocol(early(false, true)));
}

/// Independent checkpointing that lets outputs out with the frames.
struct EarlyOutputs(Independent);

impl Protocol for EarlyOutputs {
    fn name(&self) -> &'static str {
        "early outputs"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        let from = out.len();
        self.0.handle(event, out);
        for command in &mut out[from..] {
            if let Command::Release { frames, outputs, .. } = command {
                *outputs = *frames;
            }
        }
    }

    fn piggyback(&mut self, to: PartitionId, out: &mut Vec<u8>) {
        self.0.piggyback(to, out);
    }

    fn save(&self, out: &mut Vec<u8>) {
        self.0.save(out);
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        self.0.load(bytes)
    }
}

#[test]
fn output_never_undone_fails_when_outputs_leave_above_the_stable_line() {
    let sound = World::builder().bank().faults(KILLS).independent();
    breaks_only("output_never_undone", quiet_load(), sound, |builder| {
        builder.rolling_back(Arc::new(|_| Box::new(EarlyOutputs(Independent::default()))))
    });
}

#[test]
fn output_never_undone_fails_when_an_older_disk_is_slipped_in() {
    let sound = World::builder().bank().faults(KILLS).mirrored(0).audits(0).workers(2);
    let mut caught = 0;
    for seed in 0..10 {
        let mut old: BTreeMap<usize, SimDrive> = BTreeMap::new();
        let mut done = false;
        let wrapper = move |directory: usize, drives: &[SimDrive]| {
            if let Some(old) = old.get(&directory)
                && !done
            {
                drives[0].replace_by(old);
                done = true;
            }
            old.entry(directory).or_insert_with(|| drives[0].fork(1));
        };
        let mutated = sound.clone().seed(seed).wrap_restore(Arc::new(Mutex::new(wrapper)));
        let (_, violations) = mutated.try_run(|client| {
            send(client, seed, quiet_load());
            client.weather();
        });
        caught += u32::from(violations.iter().any(|violation| violation.invariant == "output_never_undone"));
    }
    assert!(caught > 0, "an older disk went unnoticed");
}

/// A disk that takes `durable` for a wish.
struct Forgetful(Box<dyn Disk>);

impl Disk for Forgetful {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        let op = match op {
            Op::Write { file, offset, data, .. } if lane == Lane::Commit => {
                Op::Write { file, offset, data, durable: false }
            }
            other => other,
        };
        self.0.submit(lane, op)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.0.poll()
    }

    fn wait(&mut self) -> Option<Completion> {
        self.0.wait()
    }

    fn name(&self) -> &str {
        self.0.name()
    }
}

#[test]
fn durability_ledger_fails_when_a_disk_drops_durable() {
    let sound = World::builder().bank().faults(Faults::NONE).audits(0).ledger(true);
    breaks_only("durability_ledger", quiet_load(), sound, |builder| {
        builder.wrap_disks(Arc::new(|disk| Box::new(Forgetful(disk))))
    });
}

#[test]
fn observations_fail_when_a_reader_gets_an_older_answer() {
    let sound = World::builder().bank().faults(Faults::NONE).audits(0);
    let load = Load { looks: 100, accounts: 2, ..quiet_load() };
    breaks_only("observations", load, sound, |builder| {
        // Which account a read was about is known from the input that asked.
        let mut asked: BTreeMap<(SessionId, InputSeq), Vec<u8>> = BTreeMap::new();
        let mut first: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let wrapper = move |message: &mut Message| match message {
            Message::Input { session, seq, read_only: true, parcel, .. } => {
                asked.insert((*session, *seq), parcel.clone());
            }
            Message::Reply { session, seq, bytes, .. } => {
                if let Some(parcel) = asked.get(&(*session, *seq)) {
                    let older = first.entry(parcel.clone()).or_insert_with(|| bytes.clone());
                    // Now and then, or nobody would ever see it go back.
                    if seq.0 % 5 == 0 {
                        bytes.clone_from(older);
                    }
                }
            }
            _ => {}
        };
        builder.wrap_network(Arc::new(Mutex::new(wrapper)))
    });
}

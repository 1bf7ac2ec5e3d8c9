//! A toy world for rollback protocols: n partitions of a bank, FIFO channels, a coordinator, clients.
//!
//! Fault model: any partition and the coordinator crash at any instant (memory lost, stable storage
//! kept; a write in flight becomes durable or not; what was under way to a dead end is lost);
//! control messages and frames are lost, doubled and delayed, but stay in order; frames of an undone
//! past turn up late; news of a failure come early, late or twice. Storage does not fail here.
//!
//! What is right is judged by *identities*, not by the counters the protocols work with: every run
//! has a number of its own that is never used again, so a state is the list of runs that made it.

use crate::ledger;
use rallypoint_base::id::{Epoch, PartitionId, Position, Ssn, Version};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_rollback::cut::{Cut, History, LocalState};
use rallypoint_rollback::independent::{Message, Recovery};
use rallypoint_rollback::protocol::{Command, Event, Peer, Protocol};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Something a protocol must never let happen.
pub(crate) type Verdict = Result<(), String>;

/// What each account holds at first.
pub(crate) const PURSE: i64 = 1000;

/// Name of a run, never used twice, whatever is undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunId(u64);

/// Money under way.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    epoch: Epoch,
    ssn: Ssn,
    sender: RunId,
    amount: i64,
    hops: u8,
    piggyback: Vec<u8>,
}

/// A client's order; repeated until it is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    pub(crate) id: usize,
    pub(crate) at: PartitionId,
    pub(crate) to: PartitionId,
    pub(crate) amount: i64,
    pub(crate) hops: u8,
}

#[derive(Clone, Debug)]
enum Cause {
    Input(Input),
    Frame { from: PartitionId, frame: Frame },
}

/// A run, as stable storage would have it under a logging protocol.
#[derive(Clone, Debug)]
struct Record {
    run: RunId,
    cause: Cause,
}

/// One partition's memory, all of it part of a checkpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) balance: i64,
    /// The runs that made this state; the run at position p is at p - 1.
    pub(crate) runs: Vec<RunId>,
    pub(crate) counters: LocalState,
    /// What was received and in which run, by the run that sent it.
    pub(crate) received: BTreeMap<(PartitionId, Ssn), (RunId, Position)>,
    pub(crate) sent: BTreeMap<(PartitionId, Ssn), RunId>,
    /// Inputs applied, by id, and the run that did.
    pub(crate) applied: BTreeMap<usize, RunId>,
    /// Frames that the receiver may need again, and the position of their run.
    unacknowledged: BTreeMap<(PartitionId, Ssn), (Frame, Position)>,
}

impl State {
    pub(crate) fn knows(&self, run: RunId) -> bool {
        self.runs.contains(&run)
    }

    /// Does what the run does; returns to whom it sent.
    fn apply(&mut self, record: &Record, partitions: u16) -> Vec<(PartitionId, Frame)> {
        let position = self.counters.position.next();
        let (forward, hops) = match &record.cause {
            Cause::Input(input) => {
                self.applied.insert(input.id, record.run);
                (Some((input.to, input.amount)), input.hops)
            }
            Cause::Frame { from, frame } => {
                self.balance += frame.amount;
                self.received.insert((*from, frame.ssn), (frame.sender, position));
                let next = PartitionId((from.0 + frame.ssn.0 as u16) % partitions);
                (frame.hops.checked_sub(1).map(|_| (next, frame.amount / 2)), frame.hops.saturating_sub(1))
            }
        };
        let cause = match &record.cause {
            Cause::Input(_) => None,
            Cause::Frame { from, frame } => Some((*from, frame.ssn)),
        };
        self.counters.ran(position, cause);
        self.runs.push(record.run);
        let me = record_partition(record);
        let Some((to, amount)) = forward.filter(|(to, amount)| Some(*to) != me && *amount != 0) else {
            return Vec::new();
        };
        self.balance -= amount;
        self.counters.sent_one(to);
        let ssn = self.counters.sent(to);
        self.sent.insert((to, ssn), record.run);
        let frame = Frame { epoch: Epoch(0), ssn, sender: record.run, amount, hops, piggyback: Vec::new() };
        self.unacknowledged.insert((to, ssn), (frame.clone(), position));
        vec![(to, frame)]
    }
}

fn record_partition(record: &Record) -> Option<PartitionId> {
    match &record.cause {
        Cause::Input(input) => Some(input.at),
        Cause::Frame { .. } => None,
    }
}

/// A checkpoint on disk or on its way there.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) version: Version,
    pub(crate) state: State,
    protocol: Vec<u8>,
    /// When it became durable.
    since: u64,
}

/// What survives a crash.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Of the branch that is alive, oldest first; the initial state is version 0.
    pub(crate) checkpoints: Vec<Snapshot>,
    log: Vec<Record>,
    next_version: Version,
    pub(crate) epoch: Epoch,
}

pub(crate) struct Node {
    pub(crate) id: PartitionId,
    machine: Box<dyn Protocol>,
    pub(crate) memory: Option<State>,
    pub(crate) disk: Disk,
    checkpoint_under_way: Option<Snapshot>,
    log_under_way: VecDeque<Record>,
    roll_back_under_way: Option<(Option<Version>, Epoch)>,
    /// Came back from a crash and has not been in a recovery since.
    is_restored: bool,
    pub(crate) paused: bool,
    /// When it was last told to pause.
    paused_since: u64,
    frames: Position,
    outputs: Position,
    receipts: Position,
    last: Option<Record>,
}

/// Starts a coordinator of so many partitions with these stable records.
pub(crate) type StartCoordinator = fn(u16, &[Vec<u8>], &mut Vec<Command>) -> Option<Box<dyn Protocol>>;

/// How a world is set up; the wrappers of the mutations come in through here.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) partition: fn() -> Box<dyn Protocol>,
    pub(crate) coordinator: StartCoordinator,
    /// Whether the table of what must be durable before what is held against every step.
    pub(crate) ledger: bool,
}

/// What happened how often; a zero means that a path was never walked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) crashes: usize,
    pub(crate) coordinator_crashes: usize,
    pub(crate) recoveries: usize,
    pub(crate) repeated_recoveries: usize,
    pub(crate) restored_versions: usize,
    pub(crate) kept_states: usize,
    pub(crate) undone_runs: usize,
    pub(crate) stable_moves: usize,
    pub(crate) removed_checkpoints: usize,
    pub(crate) outputs: usize,
    pub(crate) stale_frames: usize,
    pub(crate) lost_control: usize,
    pub(crate) lines_tried: usize,
}

impl Counts {
    pub(crate) fn rows(&self) -> [(&'static str, usize); 13] {
        [
            ("crashes", self.crashes),
            ("coordinator crashes", self.coordinator_crashes),
            ("recoveries decided", self.recoveries),
            ("recoveries repeated by a new coordinator", self.repeated_recoveries),
            ("partitions rolled back to a version", self.restored_versions),
            ("partitions that kept their state", self.kept_states),
            ("runs undone", self.undone_runs),
            ("moves of the stable line", self.stable_moves),
            ("checkpoints removed", self.removed_checkpoints),
            ("outputs", self.outputs),
            ("frames of an undone epoch dropped", self.stale_frames),
            ("control messages lost", self.lost_control),
            ("lines compared with every cut", self.lines_tried),
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.coordinator_crashes += other.coordinator_crashes;
        self.recoveries += other.recoveries;
        self.repeated_recoveries += other.repeated_recoveries;
        self.restored_versions += other.restored_versions;
        self.kept_states += other.kept_states;
        self.undone_runs += other.undone_runs;
        self.stable_moves += other.stable_moves;
        self.removed_checkpoints += other.removed_checkpoints;
        self.outputs += other.outputs;
        self.stale_frames += other.stale_frames;
        self.lost_control += other.lost_control;
        self.lines_tried += other.lines_tried;
    }
}

/// What one partition could go back to when it reported.
#[derive(Clone, Debug)]
struct Report {
    history: History,
    states: Vec<State>,
}

pub(crate) struct World {
    random: Random,
    setup: Setup,
    pub(crate) nodes: Vec<Node>,
    coordinator: Option<Box<dyn Protocol>>,
    pub(crate) coordinator_log: Vec<Vec<u8>>,
    coordinator_writes: VecDeque<(u64, Vec<u8>)>,
    frames: BTreeMap<(PartitionId, PartitionId), VecDeque<Frame>>,
    receipts: BTreeMap<(PartitionId, PartitionId), VecDeque<Ssn>>,
    to_coordinator: BTreeMap<PartitionId, VecDeque<Vec<u8>>>,
    to_partition: BTreeMap<PartitionId, VecDeque<Vec<u8>>>,
    failure_news: VecDeque<PartitionId>,
    inputs: Vec<Input>,
    /// Runs whose outputs the outside has seen, and where.
    performed: BTreeMap<RunId, PartitionId>,
    /// Which run answered an input.
    answered: BTreeMap<usize, RunId>,
    reports: BTreeMap<(PartitionId, Epoch), Vec<Report>>,
    next_run: u64,
    now: Time,
    step: u64,
    pub(crate) counts: Counts,
}

impl World {
    pub(crate) fn new(seed: u64, partitions: u16, setup: Setup) -> Result<Self, String> {
        let mut world = Self {
            random: Random::new(seed),
            setup,
            nodes: (0..partitions).map(|id| Node::new(PartitionId(id), setup)).collect(),
            coordinator: None,
            coordinator_log: Vec::new(),
            coordinator_writes: VecDeque::new(),
            frames: BTreeMap::new(),
            receipts: BTreeMap::new(),
            to_coordinator: BTreeMap::new(),
            to_partition: BTreeMap::new(),
            failure_news: VecDeque::new(),
            inputs: Vec::new(),
            performed: BTreeMap::new(),
            answered: BTreeMap::new(),
            reports: BTreeMap::new(),
            next_run: 1,
            now: Time(0),
            step: 0,
            counts: Counts::default(),
        };
        world.start_coordinator()?;
        for index in 0..world.nodes.len() {
            world.restart(index)?;
        }
        Ok(world)
    }

    fn partitions(&self) -> u16 {
        self.nodes.len() as u16
    }

    // ---- what the engine does ----

    fn tell(&mut self, index: usize, event: Event<'_>) -> Verdict {
        let mut commands = Vec::new();
        self.nodes[index].machine.handle(event, &mut commands);
        self.execute(index, commands)
    }

    fn execute(&mut self, index: usize, commands: Vec<Command>) -> Verdict {
        for command in commands {
            self.execute_one(index, command)?;
        }
        Ok(())
    }

    fn execute_one(&mut self, index: usize, command: Command) -> Verdict {
        let step = self.step;
        let node = &mut self.nodes[index];
        match command {
            Command::Log => node.log_under_way.extend(node.last.take()),
            Command::Release { frames, outputs, receipts } => {
                if self.setup.ledger {
                    ledger::release(self, index, outputs, receipts)?;
                }
                self.release(index, frames, outputs, receipts)?;
            }
            Command::TakeCheckpoint => self.take_checkpoint(index)?,
            Command::Pause => {
                node.paused = true;
                node.paused_since = step;
            }
            Command::Resume => {
                node.paused = false;
                if self.setup.ledger {
                    ledger::resume(self, index)?;
                }
                self.check_orphans()?;
            }
            Command::Control { to: Peer::Coordinator, bytes } => self.control_to_coordinator(index, bytes)?,
            Command::RollBack { version, epoch } => node.roll_back_under_way = Some((version, epoch)),
            Command::Forget { version } => {
                if self.setup.ledger {
                    ledger::forget(self, index, version)?;
                }
                let checkpoints = &mut self.nodes[index].disk.checkpoints;
                let before = checkpoints.len();
                checkpoints.retain(|kept| kept.version >= version);
                self.counts.removed_checkpoints += before - checkpoints.len();
            }
            Command::SetTimer { .. } => {}
            other => return Err(format!("the harness has no {other:?}")),
        }
        Ok(())
    }

    fn release(&mut self, index: usize, frames: Position, outputs: Position, receipts: Position) -> Verdict {
        let node = &mut self.nodes[index];
        let from_before = node.frames;
        node.frames = node.frames.max(frames);
        node.outputs = node.outputs.max(outputs);
        node.receipts = node.receipts.max(receipts);
        self.send_frames(index, from_before);
        self.perform(index)?;
        self.send_receipts(index);
        Ok(())
    }

    /// Sends what is unacknowledged of runs after `after` and at or before the horizon.
    fn send_frames(&mut self, index: usize, after: Position) {
        let node = &self.nodes[index];
        let Some(memory) = &node.memory else { return };
        for ((to, _), (frame, position)) in &memory.unacknowledged {
            if *position > after && *position <= node.frames {
                let frame = Frame { epoch: node.disk.epoch, ..frame.clone() };
                self.frames.entry((node.id, *to)).or_default().push_back(frame);
            }
        }
    }

    fn perform(&mut self, index: usize) -> Verdict {
        let node = &self.nodes[index];
        let Some(memory) = &node.memory else { return Ok(()) };
        let visible = memory.runs.iter().take(node.outputs.0 as usize);
        for run in visible {
            if self.performed.insert(*run, node.id).is_none() {
                self.counts.outputs += 1;
            }
        }
        for (input, run) in &memory.applied {
            if self.performed.contains_key(run) {
                let answer = *self.answered.entry(*input).or_insert(*run);
                if answer != *run {
                    return Err(format!("input {input} was answered by {answer:?} and by {run:?}"));
                }
            }
        }
        Ok(())
    }

    fn send_receipts(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(memory) = &node.memory else { return };
        let mut upto: BTreeMap<PartitionId, Ssn> = BTreeMap::new();
        for ((from, ssn), (_, position)) in &memory.received {
            if *position <= node.receipts {
                let highest = upto.entry(*from).or_default();
                *highest = (*highest).max(*ssn);
            }
        }
        for (from, ssn) in upto {
            self.receipts.entry((node.id, from)).or_default().push_back(ssn);
        }
    }

    fn take_checkpoint(&mut self, index: usize) -> Verdict {
        let since = self.step;
        let node = &mut self.nodes[index];
        let Some(state) = node.memory.clone() else { return Ok(()) };
        if node.checkpoint_under_way.is_some() {
            return Ok(()); // One at a time; the engine asks again.
        }
        let version = node.disk.next_version;
        node.disk.next_version = version.next();
        let mut protocol = Vec::new();
        node.machine.save(&mut protocol);
        let LocalState { position, channels } = state.counters.clone();
        node.checkpoint_under_way = Some(Snapshot { version, state, protocol, since });
        self.tell(index, Event::CheckpointTaken { version, position, channels: &channels })
    }

    fn control_to_coordinator(&mut self, index: usize, bytes: Vec<u8>) -> Verdict {
        let id = self.nodes[index].id;
        let message = Message::decode(&bytes).map_err(|error| error.to_string())?;
        if self.setup.ledger {
            ledger::to_coordinator(self, index, &message)?;
        }
        if let Message::Report { round, history } = message {
            let node = &self.nodes[index];
            let durable = node.disk.checkpoints.iter().filter(|kept| kept.since <= node.paused_since);
            let mut states: Vec<State> = durable.map(|kept| kept.state.clone()).collect();
            states.extend(node.memory.clone().filter(|_| history.current().is_some()));
            let reports = self.reports.entry((id, round)).or_default();
            if reports.last().is_none_or(|last| last.history != history) {
                reports.push(Report { history, states });
            }
        }
        if self.coordinator.is_some() {
            self.to_coordinator.entry(id).or_default().push_back(bytes);
        }
        Ok(())
    }

    fn run(&mut self, index: usize, cause: Cause) -> Verdict {
        let record = Record { run: RunId(self.next_run), cause };
        self.next_run += 1;
        let partitions = self.partitions();
        let node = &mut self.nodes[index];
        let Some(memory) = node.memory.as_mut() else { return Ok(()) };
        let sent = memory.apply(&record, partitions);
        for (to, frame) in &sent {
            let mut piggyback = Vec::new();
            node.machine.piggyback(*to, &mut piggyback);
            if let Some((kept, _)) = memory.unacknowledged.get_mut(&(*to, frame.ssn)) {
                kept.piggyback = piggyback;
            }
        }
        let position = memory.counters.position;
        let cause = match &record.cause {
            Cause::Input(_) => None,
            Cause::Frame { from, frame } => Some((*from, frame.ssn)),
        };
        node.last = Some(record);
        self.tell(index, Event::Ran { position, cause, sent: sent.len() })
    }

    // ---- what can happen next ----

    pub(crate) fn submit(&mut self, index: usize, input: Input) -> Verdict {
        let node = &self.nodes[index];
        let is_new = node.memory.as_ref().is_some_and(|memory| !memory.applied.contains_key(&input.id));
        if is_new && !node.paused {
            self.run(index, Cause::Input(input))?;
        }
        Ok(())
    }

    pub(crate) fn new_input(&mut self, at: u16, to: u16, amount: i64, hops: u8) -> Input {
        let input = Input { id: self.inputs.len(), at: PartitionId(at), to: PartitionId(to), amount, hops };
        self.inputs.push(input);
        input
    }

    /// Delivers the next frame of a channel if it may be.
    pub(crate) fn deliver_frame(&mut self, from: PartitionId, to: PartitionId) -> Result<bool, String> {
        let index = usize::from(to.0);
        let node = &self.nodes[index];
        let Some(queue) = self.frames.get_mut(&(from, to)) else { return Ok(false) };
        let Some(head) = queue.front() else { return Ok(false) };
        let Some(memory) = &node.memory else {
            queue.pop_front(); // Nobody is there.
            return Ok(true);
        };
        if head.epoch > node.disk.epoch {
            return Ok(false); // It waits.
        }
        let is_stale = head.epoch < node.disk.epoch;
        let expected = memory.counters.received(from).next();
        if is_stale || head.ssn != expected {
            self.counts.stale_frames += usize::from(is_stale);
            queue.pop_front();
            return Ok(true);
        }
        if node.paused {
            return Ok(false);
        }
        let frame = queue.pop_front().expect("there is a head");
        let mut commands = Vec::new();
        let arriving = Event::Arriving { from, ssn: frame.ssn, piggyback: &frame.piggyback };
        self.nodes[index].machine.handle(arriving, &mut commands);
        self.execute(index, commands)?;
        self.run(index, Cause::Frame { from, frame })?;
        Ok(true)
    }

    fn deliver_receipt(&mut self, from: PartitionId, to: PartitionId) -> bool {
        let Some(ssn) = self.receipts.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return false;
        };
        if let Some(memory) = &mut self.nodes[usize::from(to.0)].memory {
            memory.unacknowledged.retain(|(receiver, kept), _| *receiver != from || *kept > ssn);
        }
        true
    }

    fn deliver_to_partition(&mut self, id: PartitionId) -> Result<bool, String> {
        let Some(bytes) = self.to_partition.get_mut(&id).and_then(VecDeque::pop_front) else {
            return Ok(false);
        };
        let index = usize::from(id.0);
        if self.nodes[index].memory.is_some() {
            self.tell(index, Event::Control { from: Peer::Coordinator, bytes: &bytes })?;
        }
        Ok(true)
    }

    fn deliver_to_coordinator(&mut self, id: PartitionId) -> Result<bool, String> {
        let Some(bytes) = self.to_coordinator.get_mut(&id).and_then(VecDeque::pop_front) else {
            return Ok(false);
        };
        self.tell_coordinator(Event::Control { from: Peer::Partition(id), bytes: &bytes })?;
        Ok(true)
    }

    pub(crate) fn tell_coordinator(&mut self, event: Event<'_>) -> Verdict {
        let mut commands = Vec::new();
        let Some(coordinator) = &mut self.coordinator else { return Ok(()) };
        coordinator.handle(event, &mut commands);
        self.execute_coordinator(commands)
    }

    fn execute_coordinator(&mut self, commands: Vec<Command>) -> Verdict {
        for command in commands {
            match command {
                Command::Control { to: Peer::Partition(id), bytes } => {
                    let message = Message::decode(&bytes).map_err(|error| error.to_string())?;
                    if self.setup.ledger {
                        ledger::to_partition(self, usize::from(id.0), &message)?;
                    }
                    if let Message::Stable { version, .. } = message {
                        self.counts.stable_moves += usize::from(version > Version(0));
                    }
                    self.to_partition.entry(id).or_default().push_back(bytes);
                }
                Command::Persist { token, bytes } => {
                    let record = Recovery::decode(&bytes).map_err(|error| error.to_string())?;
                    self.counts.recoveries += 1;
                    self.check_maximal(&record)?;
                    self.coordinator_writes.push_back((token, bytes));
                }
                Command::SetTimer { .. } => {}
                other => return Err(format!("a coordinator cannot ask for {other:?}")),
            }
        }
        Ok(())
    }

    fn coordinator_write_done(&mut self) -> Result<bool, String> {
        let Some((token, bytes)) = self.coordinator_writes.pop_front() else { return Ok(false) };
        self.coordinator_log.push(bytes);
        self.tell_coordinator(Event::Persisted { token })?;
        Ok(true)
    }

    pub(crate) fn log_durable(&mut self, index: usize) -> Result<bool, String> {
        let node = &mut self.nodes[index];
        if node.log_under_way.is_empty() {
            return Ok(false);
        }
        node.disk.log.extend(node.log_under_way.drain(..));
        let position = Position(node.disk.log.len() as u64);
        self.tell(index, Event::Durable { position })?;
        Ok(true)
    }

    pub(crate) fn checkpoint_durable(&mut self, index: usize) -> Result<bool, String> {
        let step = self.step;
        let node = &mut self.nodes[index];
        // The engine's rule for all protocols: the log through the cut comes first.
        if !node.log_under_way.is_empty() {
            return Ok(false);
        }
        let Some(mut snapshot) = node.checkpoint_under_way.take() else { return Ok(false) };
        snapshot.since = step;
        let version = snapshot.version;
        node.disk.checkpoints.push(snapshot);
        self.tell(index, Event::CheckpointDurable { version })?;
        Ok(true)
    }

    pub(crate) fn checkpoint_due(&mut self, index: usize) -> Verdict {
        let node = &self.nodes[index];
        if node.memory.is_some() && node.checkpoint_under_way.is_none() {
            self.tell(index, Event::CheckpointDue)?;
        }
        Ok(())
    }

    /// Finishes a rollback: durable first, then memory, then the event.
    fn roll_back_done(&mut self, index: usize) -> Result<bool, String> {
        let Some((version, epoch)) = self.nodes[index].roll_back_under_way.take() else { return Ok(false) };
        self.make_rollback_durable(index, version, epoch)?;
        let node = &mut self.nodes[index];
        match version {
            None => self.counts.kept_states += 1,
            Some(_) => {
                let snapshot = node.disk.checkpoints.last().expect("it was just made the newest").clone();
                let before = node.memory.as_ref().map_or(0, |memory| memory.runs.len());
                self.counts.undone_runs += before - snapshot.state.runs.len();
                self.counts.restored_versions += 1;
                node.checkpoint_under_way = None;
                node.log_under_way.clear();
                node.load(&snapshot)?;
                node.memory = Some(snapshot.state);
            }
        }
        let node = &mut self.nodes[index];
        node.is_restored = false;
        (node.frames, node.outputs, node.receipts) = (Position(0), Position(0), Position(0));
        self.check_outputs(index)?;
        let counters = self.nodes[index].memory.as_ref().map(|memory| memory.counters.clone());
        let LocalState { position, channels } = counters.unwrap_or_default();
        self.tell(index, Event::RolledBack { version, epoch, position, channels: &channels })?;
        Ok(true)
    }

    fn make_rollback_durable(&mut self, index: usize, version: Option<Version>, epoch: Epoch) -> Verdict {
        let node = &mut self.nodes[index];
        if let Some(version) = version {
            if !node.disk.checkpoints.iter().any(|kept| kept.version == version) {
                return Err(format!("{} is to go back to {version}, which is gone", node.id));
            }
            node.disk.checkpoints.retain(|kept| kept.version <= version);
        }
        node.disk.epoch = epoch;
        Ok(())
    }

    pub(crate) fn crash(&mut self, index: usize) -> Verdict {
        if self.nodes[index].memory.is_none() {
            return Ok(());
        }
        self.counts.crashes += 1;
        // A write in flight may have made it; nobody was told.
        let roll_back = self.nodes[index].roll_back_under_way.take();
        if let Some((version, epoch)) = roll_back
            && self.random.chance(1, 2)
        {
            self.make_rollback_durable(index, version, epoch)?;
            self.nodes[index].checkpoint_under_way.take_if(|_| version.is_some());
        }
        let (keeps_log, keeps_checkpoint) = (self.random.chance(1, 2), self.random.chance(1, 2));
        let step = self.step;
        let node = &mut self.nodes[index];
        if keeps_log {
            node.disk.log.extend(node.log_under_way.drain(..));
        }
        if keeps_checkpoint && node.log_under_way.is_empty() {
            let survivor = node.checkpoint_under_way.take();
            node.disk.checkpoints.extend(survivor.map(|snapshot| Snapshot { since: step, ..snapshot }));
        }
        node.checkpoint_under_way = None;
        node.log_under_way.clear();
        node.memory = None;
        let id = node.id;
        self.to_partition.remove(&id);
        for times in 0..2 {
            if self.random.chance(2 - times, 3) {
                self.failure_news.push_back(id);
            }
        }
        Ok(())
    }

    pub(crate) fn restart(&mut self, index: usize) -> Verdict {
        let partitions = self.partitions();
        let setup = self.setup;
        let node = &mut self.nodes[index];
        if node.memory.is_some() {
            return Ok(());
        }
        node.machine = (setup.partition)();
        node.paused = false;
        node.is_restored = true;
        node.last = None;
        (node.frames, node.outputs, node.receipts) = (Position(0), Position(0), Position(0));
        let snapshot = node.disk.checkpoints.last().expect("the initial state is always there").clone();
        let mut state = snapshot.state.clone();
        for record in node.disk.log.iter().skip(state.runs.len()) {
            let _ = state.apply(record, partitions);
        }
        node.load(&snapshot)?;
        let LocalState { position, channels } = state.counters.clone();
        node.memory = Some(state);
        self.check_outputs(index)?;
        self.tell(index, Event::Restarted { version: snapshot.version, position, channels: &channels })
    }

    fn start_coordinator(&mut self) -> Verdict {
        if self.coordinator.is_some() {
            return Ok(());
        }
        let mut commands = Vec::new();
        self.coordinator = (self.setup.coordinator)(self.partitions(), &self.coordinator_log, &mut commands);
        self.counts.repeated_recoveries += usize::from(!commands.is_empty());
        self.execute_coordinator(commands)
    }

    fn crash_coordinator(&mut self) {
        if self.coordinator.take().is_none() {
            return;
        }
        self.counts.coordinator_crashes += 1;
        while let Some((_, bytes)) = self.coordinator_writes.pop_front() {
            if self.random.chance(1, 2) {
                self.coordinator_log.push(bytes);
            } else {
                self.coordinator_writes.clear();
            }
        }
        self.to_coordinator.clear();
        self.failure_news.clear();
    }

    fn tick(&mut self, index: usize) -> Verdict {
        if self.nodes[index].memory.is_some() {
            self.tell(index, Event::Tick { now: self.now })?;
        }
        Ok(())
    }

    fn retransmit(&mut self, index: usize) {
        let id = self.nodes[index].id;
        let is_clogged = self.frames.iter().any(|((from, _), queue)| *from == id && queue.len() > 30);
        if !is_clogged {
            self.send_frames(index, Position(0));
            self.send_receipts(index);
        }
    }

    // ---- the schedule ----

    /// One random thing happens.
    pub(crate) fn chaos(&mut self) -> Verdict {
        self.step += 1;
        let count = self.nodes.len();
        let one = self.random.below(count as u64) as usize;
        let other = (one + 1 + self.random.below(count as u64 - 1) as usize) % count;
        let (a, b) = (PartitionId(one as u16), PartitionId(other as u16));
        // A recovery is short beside the time between failures, or nothing but recoveries is tested.
        let hurry = self.nodes.iter().any(|node| node.paused) && self.random.chance(2, 3);
        match if hurry { self.random.range(300, 1000) } else { self.random.below(1000) } {
            930..950 if hurry => self.restart(one)?,
            0..200 => drop(self.deliver_frame(a, b)?),
            200..320 => {
                let amount = self.random.range(1, 50) as i64;
                let hops = self.random.below(4) as u8;
                let input = self.new_input(a.0, b.0, amount, hops);
                self.submit(one, input)?;
            }
            320..360 => self.retry(one)?,
            360..400 => drop(self.deliver_receipt(a, b)),
            400..560 => drop(self.deliver_to_partition(a)?),
            560..700 => drop(self.deliver_to_coordinator(a)?),
            700..780 => drop(self.roll_back_done(one)?),
            780..820 => self.checkpoint_due(one)?,
            820..870 => drop(self.checkpoint_durable(one)?),
            870..890 => drop(self.log_durable(one)?),
            890..920 => drop(self.coordinator_write_done()?),
            920..935 => self.retransmit(one),
            935..950 => {
                self.now = self.now + Duration::from_millis(self.random.below(200));
                self.tick(one)?;
                self.tell_coordinator(Event::Tick { now: self.now })?;
            }
            950..954 => self.crash(one)?,
            954..974 => self.restart(one)?,
            974..975 => self.crash_coordinator(),
            975..985 => self.start_coordinator()?,
            985..992 => {
                if let Some(peer) = self.failure_news.pop_front() {
                    self.tell_coordinator(Event::PeerFailed { peer })?;
                }
            }
            _ => self.disturb_control(a),
        }
        self.check_if_calm()
    }

    fn disturb_control(&mut self, id: PartitionId) {
        let queues = if self.random.chance(1, 2) { &mut self.to_partition } else { &mut self.to_coordinator };
        let Some(queue) = queues.get_mut(&id) else { return };
        if self.random.chance(1, 2) {
            self.counts.lost_control += usize::from(queue.pop_front().is_some());
        } else {
            let doubled = queue.front().cloned();
            queue.extend(doubled);
        }
    }

    fn retry(&mut self, index: usize) -> Verdict {
        let id = self.nodes[index].id;
        let open = |input: &&Input| input.at == id && !self.answered.contains_key(&input.id);
        let waiting: Vec<Input> = self.inputs.iter().filter(open).copied().collect();
        for input in waiting {
            self.submit(index, input)?;
        }
        Ok(())
    }

    /// All faults off: everything must come to rest, every input be answered, no money be missing.
    pub(crate) fn heal(&mut self) -> Verdict {
        for _ in 0..60 {
            self.step += 1;
            self.start_coordinator()?;
            self.now = self.now + Duration::from_millis(150);
            for index in 0..self.nodes.len() {
                self.restart(index)?;
                self.tick(index)?;
                self.retransmit(index);
                self.drain()?;
                self.retry(index)?;
            }
            self.tell_coordinator(Event::Tick { now: self.now })?;
            self.drain()?;
            for index in 0..self.nodes.len() {
                self.checkpoint_due(index)?;
            }
            self.drain()?;
            if self.nodes.iter().all(|node| !node.paused) && self.answered.len() == self.inputs.len() {
                return self.check_end();
            }
        }
        let paused: Vec<PartitionId> =
            self.nodes.iter().filter(|node| node.paused).map(|node| node.id).collect();
        Err(format!(
            "no rest: {paused:?} paused, {} of {} inputs answered",
            self.answered.len(),
            self.inputs.len()
        ))
    }

    /// Lets everything that is under way arrive.
    pub(crate) fn drain(&mut self) -> Verdict {
        let ids: Vec<PartitionId> = self.nodes.iter().map(|node| node.id).collect();
        for _ in 0..100_000 {
            let mut moved = self.coordinator_write_done()?;
            while let Some(peer) = self.failure_news.pop_front() {
                self.tell_coordinator(Event::PeerFailed { peer })?;
            }
            for &id in &ids {
                let index = usize::from(id.0);
                moved |= self.deliver_to_coordinator(id)?;
                moved |= self.deliver_to_partition(id)?;
                moved |= self.roll_back_done(index)?;
                moved |= self.log_durable(index)?;
                moved |= self.checkpoint_durable(index)?;
                for &other in ids.iter().filter(|&&other| other != id) {
                    moved |= self.deliver_frame(id, other)?;
                    moved |= self.deliver_receipt(id, other);
                }
            }
            if !moved {
                return Ok(());
            }
        }
        Err("messages without end".into())
    }

    // ---- what must hold ----

    /// What the outside saw is part of the state that was just restored.
    fn check_outputs(&self, index: usize) -> Verdict {
        let node = &self.nodes[index];
        let Some(memory) = &node.memory else { return Ok(()) };
        match self.performed.iter().find(|(run, at)| **at == node.id && !memory.knows(**run)) {
            Some((run, at)) => Err(format!("the output of {run:?} at {at} was seen and is undone")),
            None => Ok(()),
        }
    }

    /// Nobody alive has received what its sender does not know. One who just came back and waits for
    /// the next recovery is left out: what it lost is an orphan until then.
    fn check_orphans(&self) -> Verdict {
        for receiver in &self.nodes {
            let Some(received) = receiver.memory.as_ref() else { continue };
            for ((from, ssn), (run, _)) in &received.received {
                let node = &self.nodes[usize::from(from.0)];
                let Some(sender) = node.memory.as_ref().filter(|_| !(node.is_restored && node.paused)) else {
                    continue;
                };
                if sender.sent.get(&(receiver.id, *ssn)) != Some(run) {
                    return Err(format!("{} holds {ssn} of {from} from {run:?}: an orphan", receiver.id));
                }
            }
        }
        Ok(())
    }

    /// While nothing has failed, memories at one instant are a consistent cut: no orphans, no loss.
    fn check_if_calm(&self) -> Verdict {
        let calm = self
            .nodes
            .iter()
            .all(|node| node.memory.is_some() && !node.paused && node.disk.epoch == self.nodes[0].disk.epoch);
        if calm { self.check_money() } else { Ok(()) }
    }

    fn check_money(&self) -> Verdict {
        self.check_orphans()?;
        let mut sum = 0;
        for node in &self.nodes {
            let memory = node.memory.as_ref().ok_or("a partition is down")?;
            sum += memory.balance;
            for (to, ssn) in memory.sent.keys() {
                let receiver = self.nodes[usize::from(to.0)].memory.as_ref().ok_or("a partition is down")?;
                if receiver.received.contains_key(&(node.id, *ssn)) {
                    continue;
                }
                let Some((frame, _)) = memory.unacknowledged.get(&(*to, *ssn)) else {
                    return Err(format!("{ssn} from {} to {to} is lost", node.id));
                };
                sum += frame.amount;
            }
        }
        let all = PURSE * self.nodes.len() as i64;
        if sum == all { Ok(()) } else { Err(format!("{sum} in the world instead of {all}")) }
    }

    fn check_end(&self) -> Verdict {
        self.check_money()?;
        for index in 0..self.nodes.len() {
            self.check_outputs(index)?;
        }
        for input in &self.inputs {
            let memory = self.nodes[usize::from(input.at.0)].memory.as_ref().ok_or("a partition is down")?;
            if memory.applied.get(&input.id) != self.answered.get(&input.id) {
                return Err(format!("input {} was answered and is not part of the state", input.id));
            }
        }
        Ok(())
    }

    /// The line is the join of all consistent choices among what the partitions had when they
    /// reported, where consistent is meant as by the definition: nothing received that was not sent.
    fn check_maximal(&mut self, record: &Recovery) -> Verdict {
        let mut choices: Vec<(PartitionId, &Report)> = Vec::new();
        for node in &self.nodes {
            match self.reports.get(&(node.id, record.epoch)).map(Vec::as_slice) {
                Some([report]) => choices.push((node.id, report)),
                // Two incarnations answered: which one was heard is the network's affair.
                Some(_) => return Ok(()),
                None => return Err(format!("a line of {} without a report of {}", record.epoch, node.id)),
            }
        }
        let cuts: usize = choices.iter().map(|(_, report)| report.states.len()).product();
        if cuts > 5_000 {
            return Ok(());
        }
        self.counts.lines_tried += 1;
        let mut best: Option<Vec<usize>> = None;
        for number in 0..cuts {
            let mut rest = number;
            let chosen: Vec<usize> = choices
                .iter()
                .map(|(_, report)| {
                    let index = rest % report.states.len();
                    rest /= report.states.len();
                    index
                })
                .collect();
            let state = |at: usize| &choices[at].1.states[chosen[at]];
            let consistent = (0..chosen.len()).all(|at| {
                state(at)
                    .received
                    .values()
                    .zip(state(at).received.keys())
                    .all(|((run, _), (from, _))| state(usize::from(from.0)).knows(*run))
            });
            if consistent {
                let best = best.get_or_insert_with(|| chosen.clone());
                for (highest, index) in best.iter_mut().zip(&chosen) {
                    *highest = (*highest).max(*index);
                }
            }
        }
        let best = best.ok_or("not even the oldest states are consistent")?;
        let expected: Vec<usize> =
            choices.iter().zip(&best).map(|((_, report), index)| report.states[*index].runs.len()).collect();
        let found: Vec<usize> =
            choices.iter().map(|(id, report)| runs_at(report, &record.line, *id)).collect();
        if found == expected {
            Ok(())
        } else {
            Err(format!(
                "{}: the line holds {found:?} runs, the greatest consistent cut {expected:?}",
                record.epoch
            ))
        }
    }
}

fn runs_at(report: &Report, line: &Cut, id: PartitionId) -> usize {
    let state = line.get(&id).and_then(|point| report.history.state(*point));
    state.map_or(usize::MAX, |state| state.position.0 as usize)
}

impl Node {
    fn new(id: PartitionId, setup: Setup) -> Self {
        let state = State { balance: PURSE, ..State::default() };
        let initial = Snapshot { version: Version(0), state, protocol: Vec::new(), since: 0 };
        let disk = Disk { checkpoints: vec![initial], next_version: Version(1), ..Disk::default() };
        Self {
            id,
            machine: (setup.partition)(),
            memory: None,
            disk,
            checkpoint_under_way: None,
            log_under_way: VecDeque::new(),
            roll_back_under_way: None,
            is_restored: false,
            paused: false,
            paused_since: 0,
            frames: Position(0),
            outputs: Position(0),
            receipts: Position(0),
            last: None,
        }
    }

    fn load(&mut self, snapshot: &Snapshot) -> Verdict {
        if snapshot.version > Version(0) {
            self.machine.load(&snapshot.protocol).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The checkpoints of the living branch, as counters.
    pub(crate) fn history(&self) -> Result<History, String> {
        let mut history = History::empty();
        for kept in &self.disk.checkpoints {
            history.push(kept.version, kept.state.counters.clone()).map_err(|error| error.to_string())?;
        }
        Ok(history)
    }
}

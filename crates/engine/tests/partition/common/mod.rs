//! A miniature world: partitions, each with a log and checkpoints in memory, and a network that
//! loses, doubles and reorders. A crash drops the partition and everything that was not durable.
//!
//! What the world judges by itself, all the time: nothing leaves before the record of its cause is
//! durable; a frame has the same bytes however often it is sent; an answer is the same each time;
//! a partition that came back is what it was after the last record.

pub(crate) mod actors;

use rallypoint_base::id::{Epoch, InputSeq, Lineage, PartitionId, Position, SessionId, Ssn, Version};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::codec::{self, Encoded};
use rallypoint_engine::command::{Command, Notice, Outbox, Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::map::Map;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_engine::partition::{Ending, Limits, Partition, ReplayError, Setup, Witness};
use rallypoint_engine::record::{InputRecord, Source, kind};
use rallypoint_rollback::pessimistic::Pessimistic;
use rallypoint_rollback::protocol::Protocol;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(crate) const SECOND: u64 = 1_000_000_000;
/// Sessions of the tests are as old as their world.
pub(crate) const START: Time = Time(1_000 * SECOND);

pub(crate) fn session(number: u64) -> SessionId {
    SessionId((START.0 / SECOND) << 32 | number)
}

/// A message to an actor, as a client writes it.
pub(crate) fn message<A: Actor>(key: &str, message: &A::Message) -> Vec<u8> {
    let mut body = Vec::new();
    codec::encode(A::CODEC, A::SCHEMA, message, &mut body).unwrap();
    parcel(kind_tag(A::KIND), key, Body::Message(&body))
}

pub(crate) fn parcel(kind: u32, key: &str, body: Body<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    Parcel { kind, key, asker: None, body }.encode(&mut out);
    out
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    Encoded::split(bytes).unwrap().decode().unwrap()
}

/// A record in a log. `digest` is that of the partition right after it, where the world could look.
#[derive(Clone)]
pub(crate) struct Rec {
    pub position: Position,
    pub epoch: Epoch,
    pub kind: u8,
    pub payload: Vec<u8>,
    pub digest: Option<u64>,
}

/// A complete checkpoint, or one in the making.
#[derive(Clone)]
pub(crate) struct Image {
    pub version: Version,
    pub base: Option<Version>,
    pub position: Position,
    pub header: Vec<u8>,
    pub content: Vec<u8>,
    pub drained: bool,
}

/// The running page: outlives the partition.
#[derive(Clone, Default)]
pub(crate) struct Page(pub Arc<AtomicU64>);

impl Witness for Page {
    fn running(&mut self, identity: u64) {
        self.0.store(identity, Ordering::SeqCst);
    }
    fn idle(&mut self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

pub(crate) struct Node {
    pub partition: Option<Partition>,
    pub log: Vec<Rec>,
    pub durable: usize,
    pub images: Vec<Image>,
    pub writing: Option<Image>,
    pub page: Page,
    pub max_kept: usize,
    /// How the last holder ended.
    pub ending: Ending,
}

impl Node {
    /// The identity of the last input, when its record is not durable.
    fn last_run_lost(&self) -> Option<u64> {
        let rec = self.log[self.durable..].iter().rev().find(|rec| rec.kind == kind::INPUT)?;
        let record = InputRecord::decode(&rec.payload).unwrap();
        Some(record.source.identity(record.parcel))
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Packet {
    Frames { from: PartitionId, to: PartitionId, epoch: Epoch, first: Ssn, count: u32, frames: Vec<u8> },
    Receipt { from: PartitionId, to: PartitionId, receipt: Receipt },
}

/// As it reached the client.
pub(crate) type Reply = (Outcome, Vec<u8>);
pub(crate) type MakeProtocol = fn() -> Box<dyn Protocol>;

pub(crate) struct World {
    pub random: Random,
    pub now: Time,
    pub map: Arc<Map>,
    pub registry: Arc<rallypoint_engine::registry::Registry>,
    pub limits: Limits,
    pub protocol: MakeProtocol,
    pub nodes: Vec<Node>,
    pub network: Vec<Packet>,
    pub replies: BTreeMap<(SessionId, InputSeq), Vec<Reply>>,
    pub turns: Vec<(SessionId, InputSeq, Turned)>,
    pub frames: BTreeMap<(PartitionId, PartitionId, Ssn), Vec<u8>>,
    pub performed: Vec<(PartitionId, EffectKey, String)>,
    pub notices: Vec<(PartitionId, Notice)>,
    /// What left too early, or twice and differently. Empty, or the engine is wrong.
    pub wrongs: Vec<String>,
    /// How often each fault and each way back was taken.
    pub counts: BTreeMap<&'static str, u64>,
    /// Inputs that were running at a crash: chaos ends no worker twice during one input.
    killed: BTreeSet<u64>,
    /// Answers of these sessions are of read-only questions and have no record.
    pub readers: Vec<SessionId>,
}

pub(crate) fn pessimistic() -> Box<dyn Protocol> {
    Box::new(Pessimistic::default())
}

impl World {
    pub(crate) fn new(partitions: usize, seed: u64) -> Self {
        Self::with(partitions, seed, Limits::default(), pessimistic)
    }

    pub(crate) fn with(partitions: usize, seed: u64, limits: Limits, protocol: MakeProtocol) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            now: START,
            map: Arc::new(Map::even(partitions, 1, 7).unwrap()),
            registry: Arc::new(actors::registry()),
            limits,
            protocol,
            nodes: Vec::new(),
            network: Vec::new(),
            replies: BTreeMap::new(),
            turns: Vec::new(),
            frames: BTreeMap::new(),
            performed: Vec::new(),
            notices: Vec::new(),
            wrongs: Vec::new(),
            counts: BTreeMap::new(),
            killed: BTreeSet::new(),
            readers: Vec::new(),
        };
        for index in 0..partitions {
            world.nodes.push(Node {
                partition: None,
                log: Vec::new(),
                durable: 0,
                images: Vec::new(),
                writing: None,
                page: Page::default(),
                max_kept: 0,
                ending: Ending::default(),
            });
            world.restart(index, &Ending::default());
        }
        world
    }

    /// A key that lives on this partition.
    pub(crate) fn key_on(&self, index: usize, prefix: &str) -> String {
        (0..).map(|n| format!("{prefix}{n}")).find(|key| self.index_of(key) == index).unwrap()
    }

    pub(crate) fn index_of(&self, key: &str) -> usize {
        usize::from(self.map.partition_of(key).0)
    }

    pub(crate) fn setup(&self, index: usize) -> Setup {
        Setup {
            id: PartitionId(index as u16),
            lineage: Lineage(0xBEEF),
            map: self.map.clone(),
            registry: self.registry.clone(),
            limits: self.limits.clone(),
        }
    }

    pub(crate) fn fresh(&self, index: usize) -> Partition {
        let page = self.nodes.get(index).map(|node| node.page.clone()).unwrap_or_default();
        Partition::new(self.setup(index), (self.protocol)(), Box::new(page))
    }

    pub(crate) fn partition(&self, index: usize) -> &Partition {
        self.nodes[index].partition.as_ref().unwrap()
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.nodes[index].partition.is_some()
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    // ------------------------------------------------------------ crash and return

    /// Ends the worker: what was not durable is gone. Gives what the witness saw.
    pub(crate) fn crash(&mut self, index: usize) -> Ending {
        self.count("crash");
        let node = &mut self.nodes[index];
        node.partition = None;
        if node.writing.take().is_some() {
            *self.counts.entry("crash while a checkpoint is written").or_default() += 1;
        }
        if node.log.len() > node.durable {
            *self.counts.entry("records lost").or_default() += 1;
        }
        node.log.truncate(node.durable);
        let running = node.page.0.swap(0, Ordering::SeqCst);
        let running = Some(if running == 0 { Vec::new() } else { vec![running] });
        node.ending = Ending { running, ..Ending::default() };
        node.ending.clone()
    }

    /// Ends the worker in the middle of this run, which leaves no trace but on the page.
    pub(crate) fn kill_during(&mut self, index: usize, identity: u64) -> Ending {
        self.nodes[index].page.0.store(identity, Ordering::SeqCst);
        self.crash(index)
    }

    /// The newest checkpoint and those it builds on, oldest first.
    pub(crate) fn chain(&self, index: usize) -> Vec<&Image> {
        let images = &self.nodes[index].images;
        let mut chain = Vec::new();
        let mut next = images.last();
        while let Some(image) = next {
            chain.push(image);
            next = image.base.and_then(|base| images.iter().find(|image| image.version == base));
            assert_eq!(next.is_none(), image.base.is_none(), "a chain ends at a full image");
        }
        chain.reverse();
        chain
    }

    /// Restores a partition as far as `tail` records, without going live.
    pub(crate) fn recover(&mut self, index: usize, tail: usize) -> Result<Partition, ReplayError> {
        let mut partition = self.fresh(index);
        let mut pieces = self.random.fork(index as u64);
        let chain = self.chain(index);
        if let Some(newest) = chain.last() {
            partition.restore(newest.version, &newest.header)?;
        }
        let newest = chain.last().map_or(Version(0), |newest| newest.version);
        for image in chain {
            partition.begin_content(image.version == newest)?;
            let mut rest = &image.content[..];
            while !rest.is_empty() {
                let (piece, next) = rest.split_at(pieces.range(1, 400).min(rest.len() as u64) as usize);
                partition.load_content(piece)?;
                rest = next;
            }
        }
        for rec in &self.nodes[index].log[..tail] {
            partition.replay(rec.position, rec.epoch, rec.kind, &rec.payload)?;
        }
        Ok(partition)
    }

    pub(crate) fn restart(&mut self, index: usize, ending: &Ending) {
        if let Err(error) = self.try_restart(index, ending) {
            panic!("{error}");
        }
    }

    pub(crate) fn try_restart(&mut self, index: usize, ending: &Ending) -> Result<(), ReplayError> {
        let tail = self.nodes[index].log.len();
        let mut partition = self.recover(index, tail)?;
        partition.set_last_version(self.nodes[index].images.last().map_or(Version(0), |image| image.version));
        if let Some(digest) = self.nodes[index].log.last().and_then(|rec| rec.digest)
            && partition.digest() != digest
        {
            self.wrongs.push(format!("p{index} came back as another one at {}", partition.log_tail()));
        }
        match self.chain(index).len() {
            0 => self.count("replay from the beginning"),
            1 => self.count("restore of a full image"),
            _ => self.count("restore of a chain"),
        }
        self.nodes[index].partition = Some(partition);
        let ending = ending.clone();
        self.call(index, |partition, now, out| partition.go_live(now, &ending, out));
        Ok(())
    }

    pub(crate) fn bounce(&mut self, index: usize) {
        let ending = self.crash(index);
        self.restart(index, &ending);
    }

    // ------------------------------------------------------------ events

    /// Calls a partition and carries out what it asks for.
    pub(crate) fn call<T>(
        &mut self,
        index: usize,
        f: impl FnOnce(&mut Partition, Time, &mut Outbox) -> T,
    ) -> T {
        let mut out = Outbox::default();
        let now = self.now;
        let node = &mut self.nodes[index];
        let partition = node.partition.as_mut().expect("the partition is up");
        let result = f(partition, now, &mut out);
        node.max_kept = node.max_kept.max(partition.unacknowledged_bytes());
        self.carry_out(index, out);
        let node = &mut self.nodes[index];
        if let (Some(partition), Some(rec)) = (&node.partition, node.log.last_mut()) {
            rec.digest = Some(partition.digest());
        }
        result
    }

    fn carry_out(&mut self, index: usize, out: Outbox) {
        let from = PartitionId(index as u16);
        let bytes = out.bytes;
        for command in out.commands {
            match command {
                Command::Append { kind, position, epoch, payload } => {
                    let log = &mut self.nodes[index].log;
                    assert_eq!(position.0, log.len() as u64 + 1, "records follow each other without gaps");
                    let payload = bytes[payload].to_vec();
                    log.push(Rec { position, epoch, kind, payload, digest: None });
                }
                Command::Transmit { to, epoch, first, count, frames } => {
                    let frames = &bytes[frames];
                    self.judge_frames(index, to, first, count, frames);
                    let frames = frames.to_vec();
                    self.network.push(Packet::Frames { from, to, epoch, first, count, frames });
                }
                Command::Receipt { to, receipt } => {
                    let through = receipt.through;
                    let held = self.durable_inputs(index, |record| {
                        matches!(record.source, Source::Frame { from, ssn } if from == to && ssn == through)
                    });
                    if !held {
                        self.wrongs.push(format!("p{index} receipts {through} of {to}, not in its log"));
                    }
                    self.network.push(Packet::Receipt { from, to, receipt });
                }
                Command::Reply { session, seq, outcome, bytes: span } => {
                    let known = self.durable_inputs(index, |record| {
                        matches!(record.source,
                            Source::Client { session: s, seq: n, .. } if s == session && n == seq)
                    });
                    if !known && !self.readers.contains(&session) {
                        self.wrongs.push(format!("p{index} answers {session} {seq}, not in its log"));
                    }
                    let answers = self.replies.entry((session, seq)).or_default();
                    let answer = (outcome, bytes[span].to_vec());
                    if answers.first().is_some_and(|first| *first != answer) {
                        self.wrongs.push(format!("{session} {seq} was answered differently"));
                    }
                    answers.push(answer);
                    if answers.len() > 1 {
                        self.count("answered from the table");
                    }
                }
                Command::Turn { session, seq, why } => self.turns.push((session, seq, why)),
                Command::Perform { key, name, payload, .. } => {
                    if !self.durable_inputs(index, |record| record.run == key.position) {
                        self.wrongs.push(format!("p{index} performs {key}, whose cause is not in its log"));
                    }
                    let name = String::from_utf8(bytes[name].to_vec()).unwrap();
                    let payload: String = decode(&bytes[payload]);
                    self.performed.push((from, key, format!("{name} {payload}")));
                }
                Command::BeginCheckpoint { version, position, full, header, .. } => {
                    let header = bytes[header].to_vec();
                    let base = self.partition(index).checkpoint_base();
                    assert_eq!(full, base.is_none());
                    let (content, drained) = (Vec::new(), false);
                    let image = Image { version, base, position, header, content, drained };
                    self.nodes[index].writing = Some(image);
                }
                Command::Notice(notice) => self.notices.push((from, notice)),
                Command::Restore { .. } | Command::Forget { .. } | Command::Control { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn durable_inputs(&self, index: usize, wanted: impl Fn(&InputRecord<'_>) -> bool) -> bool {
        let node = &self.nodes[index];
        node.log[..node.durable]
            .iter()
            .rev()
            .any(|rec| rec.kind == kind::INPUT && wanted(&InputRecord::decode(&rec.payload).unwrap()))
    }

    fn judge_frames(&mut self, index: usize, to: PartitionId, first: Ssn, count: u32, frames: &[u8]) {
        let mut reader = rallypoint_base::wire::Reader::new(frames);
        let reached = |record: &InputRecord<'_>, ssn| {
            record.channels.iter().any(|(channel, reached)| *channel == to && *reached >= ssn)
        };
        for ssn in (first.0..first.0 + u64::from(count)).map(Ssn) {
            let parcel = reader.bytes("parcel").unwrap().to_vec();
            reader.bytes("piggyback").unwrap();
            if !self.durable_inputs(index, |record| reached(record, ssn)) {
                self.wrongs.push(format!("p{index} sends {ssn} to {to}, whose cause is not in its log"));
            }
            let key = (PartitionId(index as u16), to, ssn);
            if self.frames.contains_key(&key) {
                self.count("frame sent again");
            }
            let ledger = self.frames.entry(key).or_insert_with(|| parcel.clone());
            if *ledger != parcel {
                self.wrongs.push(format!("p{index} sends {ssn} to {to} again, with other bytes"));
            }
        }
        assert!(reader.is_empty(), "count and bytes of a batch agree");
    }

    /// Everything in the log through `tail` is durable now.
    pub(crate) fn sync_to(&mut self, index: usize, tail: usize) {
        let node = &mut self.nodes[index];
        node.durable = node.durable.max(tail.min(node.log.len()));
        if node.partition.is_none() {
            return;
        }
        let durable = Position(node.durable as u64);
        self.call(index, |partition, now, out| partition.handle_durable(now, durable, out));
        self.finish_checkpoint(index);
    }

    pub(crate) fn sync(&mut self, index: usize) {
        // What becomes durable may append (a marked delivery): until nothing new comes.
        loop {
            let tail = self.nodes[index].log.len();
            self.sync_to(index, tail);
            if self.nodes[index].log.len() == tail {
                break;
            }
        }
    }

    pub(crate) fn sync_all(&mut self) {
        for index in 0..self.nodes.len() {
            if self.is_up(index) {
                self.sync(index);
            }
        }
    }

    /// Sends an input to whoever holds the key.
    pub(crate) fn input<A: Actor>(&mut self, session: SessionId, seq: u64, key: &str, content: &A::Message) {
        let parcel = message::<A>(key, content);
        self.raw_input(self.index_of(key), session, seq, 0, false, &parcel);
    }

    pub(crate) fn raw_input(
        &mut self,
        index: usize,
        session: SessionId,
        seq: u64,
        below: u64,
        read_only: bool,
        parcel: &[u8],
    ) {
        self.call(index, |partition, now, out| {
            partition.handle_input(now, session, InputSeq(seq), InputSeq(below), read_only, parcel, out);
        });
    }

    /// Sends an input and waits until it is answered.
    pub(crate) fn ask<A: Actor>(
        &mut self,
        session: SessionId,
        seq: u64,
        key: &str,
        content: &A::Message,
    ) -> Outcome {
        self.input::<A>(session, seq, key, content);
        let index = self.index_of(key);
        self.sync(index);
        self.answer(session, seq).0
    }

    pub(crate) fn answer(&self, session: SessionId, seq: u64) -> Reply {
        self.replies.get(&(session, InputSeq(seq))).expect("it was answered")[0].clone()
    }

    pub(crate) fn answered(&self, session: SessionId, seq: u64) -> bool {
        self.replies.contains_key(&(session, InputSeq(seq)))
    }

    pub(crate) fn time(&mut self, index: usize) {
        self.call(index, |partition, now, out| partition.handle_time(now, out));
    }

    pub(crate) fn wait(&mut self, duration: Duration) {
        self.now = self.now + duration;
        for index in 0..self.nodes.len() {
            if self.is_up(index) {
                self.time(index);
            }
        }
    }

    pub(crate) fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Frames { from, to, epoch, first, count, frames } => {
                let to = usize::from(to.0);
                if self.is_up(to) {
                    self.call(to, |partition, now, out| {
                        partition.handle_frames(now, from, epoch, first, count, &frames, out).unwrap();
                    });
                }
            }
            Packet::Receipt { from, to, receipt } => {
                let to = usize::from(to.0);
                if self.is_up(to) {
                    self.call(to, |partition, now, out| {
                        partition.handle_receipt(now, from, receipt, out);
                    });
                }
            }
        }
    }

    /// Delivers everything that is under way, in order.
    pub(crate) fn deliver_all(&mut self) {
        for packet in std::mem::take(&mut self.network) {
            self.deliver(packet);
        }
    }

    /// No faults: syncs and delivers until nothing moves any more.
    pub(crate) fn settle(&mut self) {
        loop {
            self.sync_all();
            if self.network.is_empty() {
                break;
            }
            self.deliver_all();
        }
    }

    // ------------------------------------------------------------ checkpoints

    pub(crate) fn request_checkpoint(&mut self, index: usize) {
        self.call(index, |partition, now, out| partition.request_checkpoint(now, out));
    }

    /// Writes about this much of the checkpoint; true while there is more.
    pub(crate) fn write_piece(&mut self, index: usize, len: usize) -> bool {
        let node = &mut self.nodes[index];
        let (Some(partition), Some(image)) = (&mut node.partition, &mut node.writing) else { return false };
        if !image.drained {
            let limit = image.content.len() + len;
            image.drained = !partition.write_snapshot(&mut image.content, limit).unwrap();
        }
        let more = !image.drained;
        self.finish_checkpoint(index);
        more
    }

    /// The manifest: only when the log is durable through the cut.
    pub(crate) fn finish_checkpoint(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let durable = Position(node.durable as u64);
        if let Some(image) = node.writing.take_if(|image| image.drained && image.position <= durable) {
            let version = image.version;
            node.images.push(image);
            self.call(index, |partition, now, out| partition.checkpoint_durable(now, version, out));
        }
    }

    pub(crate) fn checkpoint(&mut self, index: usize) {
        self.request_checkpoint(index);
        while self.write_piece(index, 4096) {}
        self.sync(index);
        assert!(self.nodes[index].writing.is_none(), "the checkpoint is complete");
    }

    // ------------------------------------------------------------ inspection

    /// The state of one actor.
    pub(crate) fn state<A: Actor>(&self, key: &str) -> Option<A> {
        state_in(self.partition(self.index_of(key)), key)
    }

    /// The records of one log.
    pub(crate) fn inputs(&self, index: usize) -> Vec<InputRecord<'_>> {
        let inputs = self.nodes[index].log.iter().filter(|rec| rec.kind == kind::INPUT);
        inputs.map(|rec| InputRecord::decode(&rec.payload).unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn assert_right(&self) {
        assert!(self.wrongs.is_empty(), "{:#?}", self.wrongs);
    }
}

pub(crate) fn state_in<A: Actor>(partition: &Partition, key: &str) -> Option<A> {
    let mut found = None;
    partition.each_actor(&mut |kind, actor, state| {
        if kind == A::KIND && actor == key {
            found = Some(decode(state));
        }
    });
    found
}

/// What an uninterrupted partition would be after these records.
pub(crate) fn every_actor(partition: &Partition) -> BTreeMap<(String, String), Vec<u8>> {
    let mut all = BTreeMap::new();
    partition.each_actor(&mut |kind, key, state| {
        all.insert((kind.to_owned(), key.to_owned()), state.to_vec());
    });
    all
}

/// A client that repeats itself until it is answered, and keeps a ledger of its own.
pub(crate) struct Client {
    pub session: SessionId,
    pub inputs: Vec<(String, Vec<u8>)>,
    pub window: usize,
}

impl Client {
    fn is_answered(&self, world: &World, at: usize) -> bool {
        world.answered(self.session, at as u64 + 1)
    }

    pub(crate) fn is_done(&self, world: &World) -> bool {
        (0..self.inputs.len()).all(|at| self.is_answered(world, at))
    }

    /// Sends one of the inputs in its window, for the first time or again.
    pub(crate) fn step(&self, world: &mut World) {
        let first = (0..self.inputs.len()).find(|&at| !self.is_answered(world, at));
        let Some(first) = first else { return };
        let end = (first + self.window).min(self.inputs.len());
        let at = world.random.range(first as u64, end as u64) as usize;
        self.send(world, at, first as u64 + 1);
    }

    pub(crate) fn send(&self, world: &mut World, at: usize, below: u64) {
        let (key, parcel) = &self.inputs[at];
        let index = world.index_of(key);
        if world.is_up(index) {
            world.raw_input(index, self.session, at as u64 + 1, below, false, parcel);
        }
    }
}

/// One step of everything that can happen. `faults`: loss, doubling and crashes too.
pub(crate) fn chaos_step(world: &mut World, clients: &[Client], faults: bool) {
    let count = world.nodes.len() as u64;
    let index = world.random.below(count) as usize;
    match world.random.below(100) {
        0..25 => {
            let client = world.random.below(clients.len() as u64) as usize;
            clients[client].step(world);
        }
        25..55 if !world.network.is_empty() => {
            let at = world.random.below(world.network.len() as u64) as usize;
            let packet = world.network.swap_remove(at);
            if at > 0 {
                world.count("packet overtook");
            }
            if faults && world.random.chance(1, 10) {
                world.count("packet lost");
                return;
            }
            if faults && world.random.chance(1, 5) {
                world.count("packet doubled");
                world.network.push(packet.clone());
            }
            world.deliver(packet);
        }
        55..75 => {
            let node = &world.nodes[index];
            let (durable, len) = (node.durable as u64, node.log.len() as u64);
            let tail = world.random.range(durable, len + 1) as usize;
            world.sync_to(index, tail);
        }
        75..82 => {
            let step = world.random.below(300);
            world.now = world.now + Duration::from_millis(step);
            if world.is_up(index) {
                world.time(index);
            }
        }
        82..90 => {
            world.write_piece(index, 200);
        }
        90..93 if world.is_up(index) => world.request_checkpoint(index),
        93..96 if faults && world.is_up(index) => {
            // Now and then it dies in the middle of an input that will come again.
            let running = world.nodes[index].last_run_lost().filter(|id| !world.killed.contains(id));
            let ending = match running {
                Some(identity) if world.random.chance(1, 3) => {
                    world.count("crash in the middle of a run");
                    world.killed.insert(identity);
                    world.kill_during(index, identity)
                }
                _ => world.crash(index),
            };
            if world.random.chance(1, 2) {
                world.restart(index, &ending);
            }
        }
        96..98 if !world.is_up(index) => {
            let ending = world.nodes[index].ending.clone();
            world.restart(index, &ending);
        }
        _ => {}
    }
}

/// All faults off; everything must end.
pub(crate) fn heal(world: &mut World, clients: &[Client]) {
    for index in 0..world.nodes.len() {
        if !world.is_up(index) {
            let ending = world.nodes[index].ending.clone();
            world.restart(index, &ending);
        }
    }
    for _ in 0..200 {
        for client in clients {
            let first = (0..client.inputs.len()).find(|&at| !client.is_answered(world, at));
            if let Some(first) = first {
                for at in first..(first + client.window).min(client.inputs.len()) {
                    if !client.is_answered(world, at) {
                        client.send(world, at, first as u64 + 1);
                    }
                }
            }
        }
        world.settle();
        world.wait(Duration::from_secs(2));
        world.settle();
        let quiet = world.nodes.iter().all(|node| node.partition.as_ref().is_some_and(Partition::is_quiet));
        if quiet && clients.iter().all(|client| client.is_done(world)) {
            return;
        }
    }
    panic!("it does not come to rest");
}

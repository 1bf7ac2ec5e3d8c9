//! The host of a protocol's coordinator: its log on a disk of its own, its crashes.
//!
//! Decides: when a record of the coordinator is durable. A record is one block, written durably at
//! the next place of one file; after a crash, the sound records before the first unsound one are
//! what there is. Never: interprets a record.

use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::PartitionId;
use rallypoint_base::limits::BLOCK;
use rallypoint_base::time::Time;
use rallypoint_rollback::independent::Coordinator;
use rallypoint_rollback::protocol::{Command, Event, Peer, Protocol};
use rallypoint_store::disk::{Disk, Done, FileId, Lane, Op, Ticket};
use rallypoint_store::sim_disk::{Completions, SimDisk, SimDrive};

const LOG: &str = "coordinator.log";

/// What the coordinator's host wants done.
#[derive(Default)]
pub(crate) struct Wants {
    pub(crate) messages: Vec<(PartitionId, Vec<u8>)>,
    pub(crate) timer: Option<Time>,
}

struct Running {
    machine: Coordinator,
    disk: SimDisk,
    file: FileId,
    records: u64,
    writing: Vec<(Ticket, u64)>,
}

pub(crate) struct CoordinatorHost {
    partitions: Vec<PartitionId>,
    pub(crate) drive: SimDrive,
    running: Option<Running>,
}

impl CoordinatorHost {
    pub(crate) fn new(partitions: Vec<PartitionId>, seed: u64) -> Self {
        let drive = SimDrive::new(seed, "coordinator");
        drive.set_completions(Completions::Manual);
        Self { partitions, drive, running: None }
    }

    pub(crate) fn machine(&self) -> Option<&Coordinator> {
        self.running.as_ref().map(|running| &running.machine)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.machine.is_idle() && running.writing.is_empty())
    }

    /// The process or its machine ends.
    pub(crate) fn crash(&mut self, power: bool) {
        if power {
            self.drive.crash()
        } else {
            self.drive.kill()
        }
        self.running = None;
    }

    /// Reads the log and goes on.
    pub(crate) fn start(&mut self, now: Time) -> Result<Wants, String> {
        let mut disk = SimDisk::open(&self.drive);
        let mut run = |op| {
            disk.submit(Lane::Commit, op);
            disk.wait()
                .ok_or("the coordinator's disk gave no answer")?
                .result
                .map_err(|error| error.to_string())
        };
        let exists = self.drive.files().iter().any(|(name, _)| name == LOG);
        let name = LOG.to_owned();
        let opened = run(if exists { Op::Open { name } } else { Op::Create { name, len: 0 } })?;
        let Done::Opened { file, len } = opened else { return Err("no file".into()) };
        run(Op::SyncNames)?;
        let mut records = Vec::new();
        for at in 0..len / BLOCK as u64 {
            let Done::Read(block) = run(Op::Read { file, offset: at * BLOCK as u64, len: BLOCK })? else {
                break;
            };
            let size = usize::from(u16::from_le_bytes([block[0], block[1]]));
            let Some(record) = block.get(10..10 + size) else { break };
            if size == 0 || block[2..10] != xxh3(record).to_le_bytes() {
                break;
            }
            records.push(record.to_vec());
        }
        let mut machine = Coordinator::new(self.partitions.iter().copied());
        let mut commands = Vec::new();
        machine.handle(Event::Tick { now }, &mut commands);
        machine
            .recover(records.iter().map(Vec::as_slice), &mut commands)
            .map_err(|error| format!("the coordinator's log: {error}"))?;
        let records = records.len() as u64;
        self.running = Some(Running { machine, disk, file, records, writing: Vec::new() });
        Ok(self.obey(commands))
    }

    pub(crate) fn handle(&mut self, event: Event<'_>) -> Wants {
        let Some(running) = &mut self.running else { return Wants::default() };
        let mut commands = Vec::new();
        running.machine.handle(event, &mut commands);
        self.obey(commands)
    }

    /// Takes what the disk has done.
    pub(crate) fn poll(&mut self) -> Wants {
        let mut wants = Wants::default();
        while let Some(running) = &mut self.running
            && let Some(done) = running.disk.poll()
        {
            let Some(at) = running.writing.iter().position(|(ticket, _)| *ticket == done.ticket) else {
                continue;
            };
            let (_, token) = running.writing.remove(at);
            if done.result.is_ok() {
                let more = self.handle(Event::Persisted { token });
                wants.messages.extend(more.messages);
                wants.timer = more.timer.or(wants.timer);
            }
        }
        wants
    }

    fn obey(&mut self, commands: Vec<Command>) -> Wants {
        let mut wants = Wants::default();
        let Some(running) = &mut self.running else { return wants };
        for command in commands {
            match command {
                Command::Control { to: Peer::Partition(to), bytes } => wants.messages.push((to, bytes)),
                Command::Persist { token, bytes } => {
                    let mut data = AlignedBuffer::zeroed(BLOCK);
                    data[..2].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
                    data[2..10].copy_from_slice(&xxh3(&bytes).to_le_bytes());
                    data[10..10 + bytes.len()].copy_from_slice(&bytes);
                    let offset = running.records * BLOCK as u64;
                    running.records += 1;
                    let op = Op::Write { file: running.file, offset, data, durable: true };
                    let ticket = running.disk.submit(Lane::Commit, op);
                    running.writing.push((ticket, token));
                }
                Command::SetTimer { at } => wants.timer = Some(at),
                _ => {}
            }
        }
        wants
    }
}

//! A machine with two drives, and content that can be told from a manifest alone.

use rallypoint_base::id::{Epoch, Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::random::Random;
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::{
    Begin, CheckpointEvent, CheckpointStore, FailReason, Finding, Identity, ReadError, ScanError, ScanMode,
};
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::{Completion, Disk, Done, Lane, Op, Ticket};
use rallypoint_store::sim_disk::{SimDisk, SimDrive, SimPower};
use std::collections::{BTreeMap, VecDeque};

pub(crate) const LOG: LogId = LogId(3);
pub(crate) const IDENTITY: Identity = Identity { store: StoreId(11), lineage: Lineage(22) };

/// Seeds per case: few by default, many with RALLYPOINT_LONG=1.
pub(crate) fn seeds(short: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("RALLYPOINT_LONG").is_some() { short * 20 } else { short }
}

pub(crate) struct Machine {
    pub(crate) power: SimPower,
    pub(crate) drives: Vec<SimDrive>,
}

impl Machine {
    pub(crate) fn new(copies: u64, seed: u64) -> Self {
        let power = SimPower::new();
        let drives =
            (0..copies).map(|copy| SimDrive::on(&power, seed * 10 + copy, &format!("copy{copy}"))).collect();
        Self { power, drives }
    }

    pub(crate) fn copies(&self) -> Copies<SimDisk> {
        Copies::new(self.drives.iter().map(SimDisk::open).collect())
    }

    pub(crate) fn open(&self) -> (Copies<SimDisk>, CheckpointStore, Vec<Finding>) {
        let mut copies = self.copies();
        let (store, findings) = scan(&mut copies).expect("the drives can be read");
        (copies, store, findings)
    }
}

pub(crate) fn scan<D: Disk>(copies: &mut Copies<D>) -> Result<(CheckpointStore, Vec<Finding>), ScanError> {
    CheckpointStore::scan(copies, IDENTITY, ScanMode::Repair)
}

/// Chunk `index` of the content of a version of so many chunks.
pub(crate) fn chunk(version: Version, index: u32) -> Vec<u8> {
    let mut random = Random::new(version.0 * 1000 + u64::from(index));
    let len = [9000, 4096, 1, 12_345][(index % 4) as usize];
    let mut bytes = vec![0; len];
    for piece in bytes.chunks_mut(8) {
        piece.copy_from_slice(&random.next_u64().to_le_bytes()[..piece.len()]);
    }
    bytes
}

pub(crate) fn header(version: Version) -> Vec<u8> {
    format!("header of {version}").into_bytes()
}

/// What is written next. The schema field says how many chunks there are.
pub(crate) fn begin(base: Option<u64>, position: u64, chunks: u32) -> Begin {
    Begin {
        log: LOG,
        position: Position(position),
        epoch: Epoch(1),
        base: base.map(Version),
        schema: chunks,
        created: Time(position),
        program: "test".into(),
        not_below: Version(0),
    }
}

/// Runs the event loop until an event ends it, taking failed copies out as the mirror does.
pub(crate) fn run_until<D: Disk>(
    copies: &mut Copies<D>,
    store: &mut CheckpointStore,
    mut end: impl FnMut(&CheckpointEvent) -> bool,
) -> Option<CheckpointEvent> {
    loop {
        let mut event = store.poll(copies);
        if event.is_none() {
            let routed = copies.wait()?;
            event = store.handle(copies, routed);
        }
        let Some(event) = event else { continue };
        if let CheckpointEvent::CopyFailed { copy, .. } = event {
            copies.take_out(copy);
        }
        if end(&event) {
            return Some(event);
        }
    }
}

pub(crate) fn write<D: Disk>(
    copies: &mut Copies<D>,
    store: &mut CheckpointStore,
    begin: Begin,
) -> Result<Version, FailReason> {
    let (log, chunks) = (begin.log, begin.schema);
    let version = store.begin(copies, begin).expect("begin is called rightly");
    let mut index = 0;
    let mut failed = None;
    while index < chunks && failed.is_none() {
        if store.is_ready(log) {
            store.write_chunk(copies, log, &chunk(version, index)).expect("the store is ready");
            index += 1;
        } else if let Some(routed) = copies.wait() {
            match store.handle(copies, routed) {
                Some(CheckpointEvent::CopyFailed { copy, .. }) => copies.take_out(copy),
                Some(CheckpointEvent::Failed { reason, .. }) => failed = Some(reason),
                _ => {}
            }
        } else if let Some(CheckpointEvent::Failed { reason, .. }) = store.poll(copies) {
            failed = Some(reason);
        }
    }
    if let Some(reason) = failed {
        return Err(reason);
    }
    // A failure may have come with the last chunk.
    let _ = store.finish(copies, log, &header(version));
    let ends = |event: &CheckpointEvent| {
        matches!(event, CheckpointEvent::Written { .. } | CheckpointEvent::Failed { .. })
    };
    match run_until(copies, store, ends) {
        Some(CheckpointEvent::Written { .. }) => Ok(version),
        Some(CheckpointEvent::Failed { reason, .. }) => Err(reason),
        other => panic!("the checkpoint never ended: {other:?}"),
    }
}

pub(crate) fn collect<D: Disk>(copies: &mut Copies<D>, store: &mut CheckpointStore) -> bool {
    store.collect(copies);
    if !store.is_collecting() {
        return true;
    }
    let ended = run_until(copies, store, |event| matches!(event, CheckpointEvent::Collected { .. }));
    ended.is_some() && copies.live().count() > 0
}

pub(crate) fn read<D: Disk>(
    copies: &mut Copies<D>,
    store: &mut CheckpointStore,
    version: Version,
) -> Result<Vec<u8>, ReadError> {
    let mut bytes = store.read_header(copies, LOG, version)?;
    store.read(copies, LOG, version, &mut |chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(bytes)
}

pub(crate) fn expected(store: &CheckpointStore, version: Version) -> Vec<u8> {
    let chunks = store.version(LOG, version).expect("the version is listed").manifest.schema;
    let content = (0..chunks).flat_map(|index| chunk(version, index));
    header(version).into_iter().chain(content).collect()
}

/// Every version there is can be read and is what was written.
pub(crate) fn check_all<D: Disk>(copies: &mut Copies<D>, store: &mut CheckpointStore) -> Result<(), String> {
    let versions: Vec<Version> = store.versions(LOG).iter().map(|info| info.manifest.version).collect();
    for version in versions {
        match read(copies, store, version) {
            Ok(bytes) if bytes == expected(store, version) => {}
            Ok(_) => return Err(format!("{version} has other bytes than were written")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// What a broken store would do to its disk. Each kind must make a crash test fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// Syncs of files do nothing.
    DropSync,
    /// Syncs of names do nothing.
    DropSyncNames,
    /// The manifest gets its name before the part is synced: the part's sync comes after it.
    RenameBeforeSync,
    /// Collection removes the part before the manifest.
    RemovePartFirst,
}

/// A disk that changes what the store asks for.
pub(crate) struct Mutant<D> {
    inner: D,
    mutation: Mutation,
    next: u64,
    tickets: BTreeMap<Ticket, Ticket>,
    made_up: VecDeque<Completion>,
    held: Vec<Op>,
}

impl<D: Disk> Mutant<D> {
    pub(crate) fn new(inner: D, mutation: Mutation) -> Self {
        let (tickets, made_up) = (BTreeMap::new(), VecDeque::new());
        Self { inner, mutation, next: 0, tickets, made_up, held: Vec::new() }
    }

    fn translate(&mut self, completion: Completion) -> Option<Completion> {
        let ticket = self.tickets.remove(&completion.ticket)?;
        Some(Completion { ticket, ..completion })
    }

    /// Does it for real, unknown to the store.
    fn silently(&mut self, lane: Lane, op: Op) {
        self.inner.submit(lane, op);
    }
}

impl<D: Disk> Disk for Mutant<D> {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        let done = |ticket| Completion { ticket, result: Ok(Done::Unit) };
        match (self.mutation, &op) {
            (Mutation::DropSync, Op::Sync { .. }) | (Mutation::DropSyncNames, Op::SyncNames) => {
                self.made_up.push_back(done(ticket));
                return ticket;
            }
            (Mutation::RenameBeforeSync, Op::Sync { .. }) => {
                self.held.push(op);
                self.made_up.push_back(done(ticket));
                return ticket;
            }
            // What is synced later must stay open until then.
            (Mutation::RenameBeforeSync, Op::Close { .. }) => {
                self.made_up.push_back(done(ticket));
                return ticket;
            }
            (Mutation::RemovePartFirst, Op::Remove { name }) => {
                let part = name.replace(".manifest", ".part");
                if part != *name {
                    self.silently(lane, Op::Remove { name: part });
                    self.silently(lane, Op::SyncNames);
                }
            }
            _ => {}
        }
        let renamed = matches!(op, Op::Rename { .. });
        let inner = self.inner.submit(lane, op);
        self.tickets.insert(inner, ticket);
        if renamed {
            self.silently(lane, Op::SyncNames);
            for op in std::mem::take(&mut self.held) {
                self.silently(lane, op);
            }
        }
        ticket
    }

    fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.made_up.pop_front() {
            return Some(completion);
        }
        loop {
            let completion = self.inner.poll()?;
            if let Some(completion) = self.translate(completion) {
                return Some(completion);
            }
        }
    }

    fn wait(&mut self) -> Option<Completion> {
        if let Some(completion) = self.made_up.pop_front() {
            return Some(completion);
        }
        loop {
            let completion = self.inner.wait()?;
            if let Some(completion) = self.translate(completion) {
                return Some(completion);
            }
        }
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}

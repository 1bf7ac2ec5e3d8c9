//! `checkpoint list|show`, `events` and `quarantine list|drop`.
//!
//! Decides what people are shown. Looking takes no lock: it reads what is sound at that instant, also
//! while the store is served. Dropping takes all of them, and writes one record.

use super::repair::open_store;
use super::walk::{LogView, Walk};
use super::{Progress, ToolError, directories, identity_of, lock, note, now, present, read_only};
use crate::root::Root;
use rallypoint_base::id::{DirectoryId, Epoch, LogId, PartitionId, Position, Version};
use rallypoint_engine::parcel::Parcel;
use rallypoint_engine::record::{encode_drop, kind};
use rallypoint_engine::snapshot::{SetAside, inspect_header};
use rallypoint_store::checkpoint::{
    CheckpointStore, Identity as CheckpointIdentity, ScanMode, VersionInfo, VersionState,
};
use rallypoint_store::copies::Copies;
use rallypoint_store::event_log::{Event, EventKind, EventLog};
use rallypoint_store::record::Record;
use rallypoint_store::store::{OpenOptions, Store, StoreEvent};
use rallypoint_store::verify::verify_all;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How often a look at a store that is served begins again because it moved on.
const ATTEMPTS: usize = 5;

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointLine {
    /// Its journal directory.
    pub directory: String,
    /// Its partition.
    pub partition: u16,
    /// It is a part of the partition's archive (sagas that have ended), and no state to restore.
    pub archive: bool,
    /// Its version.
    pub version: u64,
    /// The version that it builds on; none for a full one.
    pub base: Option<u64>,
    /// It holds the log through this position.
    pub position: u64,
    /// The store's epoch when it was taken.
    pub epoch: u32,
    /// When, in nanoseconds since 1970.
    pub created: u64,
    /// The program that took it.
    pub program: String,
    /// Content.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// `good`, `quarantined` or `damaged`.
    pub state: &'static str,
    /// It and everything that it builds on can be used.
    pub usable: bool,
    /// It is the one that the next start restores.
    pub newest: bool,
    /// It is kept until it is unpinned. (A part of an archive is kept until it is deleted.)
    pub pinned: bool,
    /// How often its restore failed.
    pub failed_restores: u32,
}

fn line(directory: DirectoryId, store: &CheckpointStore, info: &VersionInfo) -> CheckpointLine {
    let manifest = &info.manifest;
    CheckpointLine {
        directory: directory.to_string(),
        partition: manifest.log.archived().map_or(manifest.log.0, |partition| partition.0),
        archive: manifest.log.archived().is_some(),
        version: manifest.version.0,
        base: manifest.base.map(|base| base.0),
        position: manifest.position.0,
        epoch: manifest.epoch.0,
        created: manifest.created.0,
        program: manifest.program.clone(),
        bytes: manifest.part_bytes(),
        chunks: manifest.chunks.len() as u64,
        state: match info.state {
            VersionState::Good => "good",
            VersionState::Quarantined => "quarantined",
            VersionState::Damaged => "damaged",
            _ => "other",
        },
        usable: store.is_usable(manifest.log, manifest.version),
        newest: manifest.log.archived().is_none() && store.newest(manifest.log) == Some(manifest.version),
        pinned: info.pinned,
        failed_restores: info.failed_restores,
    }
}

fn scan<T>(
    directory: DirectoryId,
    paths: &[PathBuf],
    look: impl FnOnce(&mut Copies<crate::os::file_disk::FileDisk>, &mut CheckpointStore) -> Result<T, ToolError>,
) -> Result<T, ToolError> {
    let open = OpenOptions { read_only: true, degraded: true, ..OpenOptions::default() };
    let mounted = Store::mount(read_only(paths)?, open);
    let mut mounted = mounted.map_err(|error| ToolError::Store { directory, error })?;
    let identity = mounted.identity();
    let identity = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
    let scanned = CheckpointStore::scan(mounted.copies(), identity, ScanMode::LookOnly);
    let (mut store, _) = scanned.map_err(|error| ToolError::Checkpoints { directory, error })?;
    look(mounted.copies(), &mut store)
}

/// The checkpoints of a store, by directory, partition and version.
///
/// # Errors
/// [`ToolError`] when there is no store or it cannot be read.
pub fn checkpoints(dir: &Path, mirror: Option<&Path>) -> Result<Vec<CheckpointLine>, ToolError> {
    let (root, _) = Root::survey(dir, mirror)?;
    let mut lines = Vec::new();
    for directory in directories(&root) {
        scan(directory, &present(&root, directory), |_, store| {
            for log in store.logs() {
                lines.extend(store.versions(log).iter().map(|info| line(directory, store, info)));
            }
            Ok(())
        })?;
    }
    Ok(lines)
}

/// One checkpoint with what its header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointDetails {
    /// What `list` says.
    #[serde(flatten)]
    pub line: CheckpointLine,
    /// The versions that are read to restore it, oldest first.
    pub chain: Vec<u64>,
    /// The last run in it.
    pub run: u64,
    /// The partition's own epoch: grows with rollbacks.
    pub partition_epoch: u32,
    /// The partition's time, in nanoseconds since 1970.
    pub time: u64,
    /// Channels to other partitions: last frame sent, bytes that no receipt has come for.
    pub sent: Vec<SentChannel>,
    /// Channels from other partitions.
    pub received: Vec<ReceivedChannel>,
    /// Effects that have not ended.
    pub effects: usize,
    /// Inputs that were set aside.
    pub set_aside: usize,
}

/// A channel to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SentChannel {
    /// The receiver.
    pub to: u16,
    /// Number of the last frame.
    pub ssn: u64,
    /// Bytes of the frames that no receipt has come for.
    pub unacknowledged_bytes: usize,
}

/// A channel from a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReceivedChannel {
    /// The sender.
    pub from: u16,
    /// Number of the last frame.
    pub ssn: u64,
}

/// One checkpoint in full.
///
/// # Errors
/// [`ToolError`] when there is none, or its header cannot be read.
pub fn checkpoint(
    dir: &Path,
    mirror: Option<&Path>,
    partition: PartitionId,
    version: Version,
) -> Result<CheckpointDetails, ToolError> {
    let (root, _) = Root::survey(dir, mirror)?;
    let unknown = || ToolError::Unknown {
        what: format!("there is no checkpoint {version} of partition {partition}"),
        command: "checkpoint list",
    };
    let directory = root.map.directory_of(partition).ok_or_else(unknown)?;
    let log = LogId::from(partition);
    scan(directory, &present(&root, directory), |copies, store| {
        let info = store.version(log, version).cloned().ok_or_else(unknown)?;
        let header = store
            .read_header(copies, log, version)
            .map_err(|error| ToolError::Unknown { what: error.to_string(), command: "verify" })?;
        let header = inspect_header(&header).map_err(|error| ToolError::Header { log, version, error })?;
        Ok(CheckpointDetails {
            line: line(directory, store, &info),
            chain: store.chain(log, version).unwrap_or_default().iter().map(|link| link.0).collect(),
            run: header.run.0,
            partition_epoch: header.epoch.0,
            time: header.time.0,
            sent: header
                .sent
                .iter()
                .map(|&(to, ssn, kept)| SentChannel { to: to.0, ssn: ssn.0, unacknowledged_bytes: kept })
                .collect(),
            received: header
                .received
                .iter()
                .map(|&(from, ssn)| ReceivedChannel { from: from.0, ssn: ssn.0 })
                .collect(),
            effects: header.effects,
            set_aside: header.set_aside.len(),
        })
    })
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventLine {
    /// Its journal directory.
    pub directory: String,
    /// Its batch in that directory's event log, and its place in the batch: never given twice, and
    /// ascending within the directory.
    pub position: (u64, u32),
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// What happened.
    pub kind: &'static str,
    /// The particulars.
    pub fields: BTreeMap<String, String>,
}

/// The events of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<EventLine>,
    /// Batches of events that are damaged on every copy.
    pub lost_batches: u64,
}

/// The durable events of all journal directories, oldest first.
///
/// # Errors
/// [`ToolError`] when there is no store or it cannot be read.
pub fn events(dir: &Path, mirror: Option<&Path>) -> Result<EventList, ToolError> {
    let (root, _) = Root::survey(dir, mirror)?;
    let mut list = EventList::default();
    for directory in directories(&root) {
        let paths = present(&root, directory);
        let Some(identity) = identity_of(&paths) else { continue };
        let history = EventLog::read_all(&mut Copies::new(read_only(&paths)?), identity);
        list.lost_batches += history.corrupt;
        let events = history.events.into_iter().zip(history.positions);
        list.events.extend(events.map(|(event, at)| EventLine {
            directory: directory.to_string(),
            position: (at.batch, at.index),
            time: event.time.0,
            kind: event.kind.name(),
            fields: event.fields.into_iter().collect(),
        }));
    }
    list.events.sort_by_key(|event| event.time);
    Ok(list)
}

/// One input that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quarantined {
    /// The partition.
    pub partition: u16,
    /// The run that set it aside: names it.
    pub position: u64,
    /// Names the input in the event log.
    pub input: String,
    /// Tag of the actor kind that it is for (names are the application's).
    pub actor_kind: Option<String>,
    /// Key of the actor.
    pub key: Option<String>,
    /// Why it was set aside.
    pub evidence: String,
    /// Bytes of the input.
    pub bytes: usize,
}

fn shown(partition: PartitionId, entry: &SetAside) -> Quarantined {
    let parcel = Parcel::decode(&entry.parcel).ok();
    Quarantined {
        partition: partition.0,
        position: entry.position.0,
        input: format!("{:016x}", entry.identity),
        actor_kind: parcel.as_ref().map(|parcel| format!("{:08x}", parcel.kind)),
        key: parcel.as_ref().map(|parcel| parcel.key.to_owned()),
        evidence: entry.evidence.clone(),
        bytes: entry.parcel.len(),
    }
}

/// Reads a directory that may be served meanwhile: again when it moved on under the look.
fn walk_directory(
    directory: DirectoryId,
    paths: &[PathBuf],
    progress: &mut dyn Progress,
) -> Result<BTreeMap<LogId, LogView>, ToolError> {
    let mut attempt = 1;
    loop {
        let mut walk = Walk::new(progress, false);
        match verify_all(read_only(paths)?, false, &mut walk) {
            Ok(report) if report.journal.is_whole() || attempt == ATTEMPTS => return Ok(walk.logs),
            Err(error) if attempt == ATTEMPTS => return Err(ToolError::verify(directory, error)),
            _ => attempt += 1,
        }
    }
}

/// The inputs that were set aside.
///
/// # Errors
/// [`ToolError`] when there is no store or it cannot be read.
pub fn quarantined(
    dir: &Path,
    mirror: Option<&Path>,
    progress: &mut dyn Progress,
) -> Result<Vec<Quarantined>, ToolError> {
    let (root, _) = Root::survey(dir, mirror)?;
    let mut all = Vec::new();
    for directory in directories(&root) {
        progress.step("reading", directory, root.map.directory_count());
        let logs = walk_directory(directory, &present(&root, directory), progress)?;
        for (log, view) in logs {
            let entries = view.set_aside.iter();
            all.extend(entries.map(|entry| shown(PartitionId(log.0), entry)));
        }
    }
    all.sort_by_key(|entry| (entry.partition, entry.position));
    Ok(all)
}

/// Drops an input that was set aside: writes that down in its partition's log. The application need
/// not be there; its next start leaves the input out.
///
/// # Errors
/// [`ToolError`] when there is none there, or the store is in use or cannot be written.
pub fn drop_quarantined(
    dir: &Path,
    mirror: Option<&Path>,
    partition: PartitionId,
    position: Position,
    progress: &mut dyn Progress,
) -> Result<Quarantined, ToolError> {
    let root = Root::find(dir, mirror, None)?;
    let _locks = lock(&root)?;
    let unknown = || ToolError::Unknown {
        what: format!("nothing was set aside at {position} of partition {partition}"),
        command: "quarantine list",
    };
    let directory = root.map.directory_of(partition).ok_or_else(unknown)?;
    let paths = present(&root, directory);
    let log = LogId::from(partition);
    let logs = walk_directory(directory, &paths, progress)?;
    let view = logs.get(&log).ok_or_else(unknown)?;
    let entry = view.set_aside.iter().find(|entry| entry.position == position).ok_or_else(unknown)?;
    let (dropped, mut last, epoch): (Quarantined, Position, Epoch) =
        (shown(partition, entry), view.last, view.epoch);

    let failed = |error| ToolError::Store { directory, error };
    let mut store = open_store(directory, &paths, &mut |at, position| {
        if at == log {
            last = last.max(position);
        }
    })?;
    let payload = encode_drop(position);
    let kind = u16::from(kind::DROP);
    let record = Record { log, position: last.next(), epoch, kind, schema: 1, payload: &payload };
    store.append(&record).map_err(failed)?;
    store.commit();
    let drain = |store: &mut Store<_>| {
        while store.in_flight().is_some() {
            match store.wait() {
                Some(StoreEvent::Failed(error) | StoreEvent::Full(error)) => return Err(failed(error)),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    };
    drain(&mut store)?;
    // Covered at once, so that later rot in it is told from a tear.
    store.commit_idle();
    drain(&mut store)?;
    drop(store);
    let event = Event::new(now(), EventKind::Drop).with("what", "an input that was set aside");
    let event = event.with("partition", partition).with("position", position.0).with("by", "quarantine drop");
    note(&paths, vec![event.with("input", &dropped.input)]);
    Ok(dropped)
}

//! Making a store out of a backup, under a new lineage.
//!
//! Decides that every record and checkpoint is written anew, so that not one block of the old lineage
//! is taken for the new one's. Versions and positions stay what they were. Never writes to the backup.

use super::index::{Index, IndexError, View, list};
use super::{BackupError, Entry};
use crate::checkpoint::{
    Begin, CheckpointEvent, CheckpointStore, FailReason, Finding, Identity as CheckpointIdentity, MarkError,
    ReadError, ScanError, ScanMode, VersionInfo, WriteError,
};
use crate::copies::Copies;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::record::Record;
use crate::recovery::RecoverError;
use crate::store::{Identity, OpenOptions, Options, Store, StoreEvent};
use crate::verify::{Visitor, verify_all};
use rallypoint_base::id::{Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::time::Time;
use std::collections::BTreeMap;
use thiserror::Error;

/// Why a backup could not be restored. The new directories hold rubbish then: remove them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// There is no backup, or it cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The backup is damaged.
    #[error("the backup is damaged ({why}): restore an older one")]
    Damaged {
        /// What is wrong.
        why: String,
    },
    /// The new lineage is the old one.
    #[error("a restored store needs a lineage of its own; {lineage} is the backup's")]
    SameLineage {
        /// The lineage.
        lineage: Lineage,
    },
    /// The new store cannot be written.
    #[error("the new store cannot be written: {0}")]
    Store(#[from] StoreError),
    /// A checkpoint cannot be written to the new store.
    #[error("checkpoint {version} of {log} cannot be written to the new store: {why}")]
    Checkpoint {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Why.
        why: String,
    },
}

/// What a restore brought back, and so what it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The store.
    pub store: StoreId,
    /// The lineage it had.
    pub from: Lineage,
    /// The lineage it has now.
    pub lineage: Lineage,
    /// When the backup was taken.
    pub taken: Time,
    /// Last position of each log that is back. Inputs acknowledged *after* these positions, and after
    /// `taken`, are missing: whoever was given such an acknowledgement must be told.
    pub logs: Vec<(LogId, Position)>,
    /// Checkpoints that are back.
    pub checkpoints: Vec<(LogId, Version)>,
    /// How many records are back.
    pub records: u64,
}

/// Restores the newest sound backup (or the one numbered `which`) to new, empty disks.
///
/// # Errors
/// [`RestoreError`].
pub fn restore<B: Disk, D: Disk>(
    backup: B,
    which: Option<u64>,
    disks: Vec<D>,
    lineage: Lineage,
    options: Options,
) -> Result<RestoreReport, RestoreError> {
    restore_until(backup, which, disks, lineage, options, &BTreeMap::new(), &mut |_| Ok(()))
}

/// Like [`restore`], but takes of each log only what stands at or before its position in `until` (and
/// everything of a log that has none there). So directories whose images were taken at different
/// instants are brought to one consistent cut. `adapt` makes the engine's header of a checkpoint fit the
/// new journal, which has other commits in other places; parts of archives stay as they are.
///
/// # Errors
/// [`RestoreError`], also when a log's records begin behind every checkpoint that the cut leaves.
pub fn restore_until<B: Disk, D: Disk>(
    backup: B,
    which: Option<u64>,
    disks: Vec<D>,
    lineage: Lineage,
    options: Options,
    until: &BTreeMap<LogId, Position>,
    adapt: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), String>,
) -> Result<RestoreReport, RestoreError> {
    let (backup, index) = choose(backup, which)?;
    if index.lineage == lineage {
        return Err(RestoreError::SameLineage { lineage });
    }
    let damaged = |why: String| RestoreError::Damaged { why };
    let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut mounted = Store::mount(vec![View::new(backup, &index.entries)], read_only)
        .map_err(|e| damaged(e.to_string()))?;
    let old = CheckpointIdentity { store: index.store, lineage: index.lineage };
    let scan: Result<_, ScanError> = CheckpointStore::scan(mounted.copies(), old, ScanMode::LookOnly);
    let (mut from, findings) = scan.map_err(|error| damaged(error.to_string()))?;
    if let Some(finding) = findings.first() {
        return Err(damaged(describe(finding)));
    }

    let copies = u8::try_from(disks.len()).unwrap_or(u8::MAX);
    let meta = mounted.identity().meta.clone();
    let identity = Identity { store: index.store, lineage, directory: index.directory, copies, meta };
    let mut to = Store::create(disks, identity, Options { segment_len: index.segment_len, ..options })?;
    // A part of an archive shows its partition's log up to its position.
    let is_in = |log: LogId, position| {
        let log = log.archived().map_or(log, LogId::from);
        until.get(&log).is_none_or(|&until| position <= until)
    };
    let mut records = 0;
    let mut firsts: BTreeMap<LogId, Position> = BTreeMap::new();
    let mut write = |record: &Record<'_>| -> Result<(), StoreError> {
        firsts.entry(record.log).or_insert(record.position);
        if !is_in(record.log, record.position) {
            return Ok(());
        }
        records += 1;
        to.append(record)?;
        if to.pending_bytes() >= options.commit_max { drain(&mut to) } else { Ok(()) }
    };
    let (mut source, report) = mounted.recover(&mut write).map_err(|error| match error {
        RecoverError::Store(error) => damaged(error.to_string()),
        RecoverError::Sink(error) => RestoreError::Store(error),
    })?;
    if !report.lost.is_empty() || report.last_commit != index.watermark {
        return Err(damaged(format!("its journal ends at {}, not {}", report.last_commit, index.watermark)));
    }
    drain(&mut to)?;

    let mut target = CheckpointStore::empty(CheckpointIdentity { store: index.store, lineage });
    let mut versions: Vec<VersionInfo> = from.logs().flat_map(|log| from.versions(log).to_vec()).collect();
    // An increment is newer than what it builds on, so no chain is broken in its middle.
    versions.retain(|info| is_in(info.manifest.log, info.manifest.position));
    for (&log, &first) in &firsts {
        let covered = versions.iter().filter(|info| info.manifest.log == log);
        let covered = covered.map(|info| info.manifest.position).max().unwrap_or_default();
        if first > covered.next() {
            let why = format!("{log}: no checkpoint at or before {:?} reaches {first}", until.get(&log));
            return Err(damaged(why));
        }
    }
    for info in &versions {
        copy_version(&mut source, &mut from, &mut to, &mut target, info, adapt)?;
    }
    if to.commit_idle().is_some() {
        drain(&mut to)?;
    }
    Ok(RestoreReport {
        store: index.store,
        from: index.lineage,
        lineage,
        taken: index.created,
        logs: index
            .logs
            .into_iter()
            .map(|(log, last)| (log, until.get(&log).map_or(last, |&u| u.min(last))))
            .collect(),
        checkpoints: versions.iter().map(|info| (info.manifest.log, info.manifest.version)).collect(),
        records,
    })
}

/// Shows what a backup holds, through the recovery of a store, and gives its index. (The visitor's
/// headers are those of all checkpoints in it.)
///
/// # Errors
/// [`RestoreError`] when it is damaged.
pub fn read<B: Disk>(
    backup: B,
    which: Option<u64>,
    visitor: &mut dyn Visitor,
) -> Result<Index, RestoreError> {
    let (backup, index) = choose(backup, which)?;
    let damaged = |why: String| RestoreError::Damaged { why };
    let disks = vec![View::new(backup, &index.entries)];
    let report = verify_all(disks, false, visitor).map_err(|error| damaged(error.to_string()))?;
    if let Some(lost) = report.journal.journal.lost.first() {
        return Err(damaged(lost.to_string()));
    }
    Ok(index)
}

fn choose<B: Disk>(backup: B, which: Option<u64>) -> Result<(B, Index), RestoreError> {
    let mut copies = Copies::new(vec![backup]);
    let (mut indexes, present) = list(&mut copies).map_err(|error| match error {
        BackupError::Target(error) => IndexError::Disk(error),
        BackupError::Index(error) => error,
        other => {
            debug_assert!(false, "listing answered {other}");
            IndexError::Missing
        }
    })?;
    let found = match which {
        Some(which) => indexes.into_iter().find(|(sequence, _)| *sequence == which),
        None => indexes.pop(),
    };
    let Some((_, index)) = found else { return Err(IndexError::Missing.into()) };
    let lacks = |entry: &&Entry| present.get(&entry.stored).is_none_or(|&len| len < entry.len);
    if let Some(entry) = index.entries.iter().find(lacks) {
        return Err(RestoreError::Damaged { why: format!("{} is missing or short", entry.stored) });
    }
    let disk = copies.into_disks().pop().ok_or(IndexError::Missing)?;
    Ok((disk, index))
}

fn describe(finding: &Finding) -> String {
    match finding {
        Finding::PartLost { log, version } | Finding::ManifestLost { log, version, .. } => {
            format!("checkpoint {version} of {log} is lost")
        }
        other => format!("{other:?}"),
    }
}

/// Commits what was appended and waits until it is durable.
fn drain<D: Disk>(store: &mut Store<D>) -> Result<(), StoreError> {
    loop {
        store.commit();
        if store.in_flight().is_none() && store.pending_bytes() == 0 {
            return Ok(());
        }
        match store.wait() {
            Some(StoreEvent::Failed(error) | StoreEvent::Full(error)) => return Err(error),
            Some(StoreEvent::CopyLost { place, error, .. }) => return Err(StoreError::Disk { place, error }),
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

fn copy_version<B: Disk, D: Disk>(
    source: &mut Store<B>,
    from: &mut CheckpointStore,
    to: &mut Store<D>,
    target: &mut CheckpointStore,
    info: &VersionInfo,
    adapt: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), String>,
) -> Result<(), RestoreError> {
    let manifest = &info.manifest;
    let (log, version) = (manifest.log, manifest.version);
    let failed = |why: String| RestoreError::Checkpoint { log, version, why };
    let refused = |error: WriteError| failed(error.to_string());
    let unreadable = |error: ReadError| RestoreError::Damaged { why: error.to_string() };
    let begin = Begin {
        log,
        position: manifest.position,
        epoch: manifest.epoch,
        base: manifest.base,
        schema: manifest.schema,
        created: manifest.created,
        program: manifest.program.clone(),
        not_below: version,
    };
    let begun = target.begin(to.copies(), begin).map_err(refused)?;
    debug_assert_eq!(begun, version, "versions are restored in order");
    let mut trouble = None;
    let read = from.read(source.copies(), log, version, &mut |chunk| {
        let ready = wait_until(to, target, |target| target.is_ready(log));
        let written = ready
            .and_then(|()| target.write_chunk(to.copies(), log, chunk).map_err(|error| error.to_string()));
        written.inspect_err(|why| trouble = Some(why.clone()))
    });
    if let Some(why) = trouble {
        return Err(failed(why));
    }
    read.map_err(unreadable)?;
    let mut header = from.read_header(source.copies(), log, version).map_err(unreadable)?;
    if log.archived().is_none() {
        adapt(&mut header).map_err(|why| RestoreError::Damaged { why })?;
    }
    target.finish(to.copies(), log, &header).map_err(refused)?;
    wait_until(to, target, |target| !target.is_writing(log)).map_err(failed)?;
    if info.pinned {
        let pinned: Result<(), MarkError> = target.pin(to.copies(), log, version);
        pinned.map_err(|error| failed(error.to_string()))?;
    }
    Ok(())
}

/// Drives both stores until the condition holds. A copy that fails ends a restore: the new store must
/// begin whole.
fn wait_until<D: Disk>(
    to: &mut Store<D>,
    target: &mut CheckpointStore,
    mut done: impl FnMut(&CheckpointStore) -> bool,
) -> Result<(), String> {
    let judge = |event: CheckpointEvent| match event {
        CheckpointEvent::Failed { reason, .. } => {
            let reason: FailReason = reason;
            Err(reason.to_string())
        }
        CheckpointEvent::CopyFailed { error, .. } => Err(error.to_string()),
        _ => Ok(()),
    };
    loop {
        while let Some(event) = target.poll(to.copies()) {
            judge(event)?;
        }
        if done(target) {
            return Ok(());
        }
        match to.wait() {
            Some(StoreEvent::Other(routed)) => {
                if let Some(event) = target.handle(to.copies(), routed) {
                    judge(event)?;
                }
            }
            Some(StoreEvent::Failed(error) | StoreEvent::Full(error)) => return Err(error.to_string()),
            Some(_) => {}
            None => return Err("nothing is in flight, and the checkpoint is not there".into()),
        }
    }
}

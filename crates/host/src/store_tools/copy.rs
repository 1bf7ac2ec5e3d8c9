//! `backup` and `restore` of a whole store.
//!
//! Decides what makes the images of several journal directories one backup: each is consistent by
//! itself, and a restore brings all of them to the latest cut in which nothing is received that was
//! not sent. Never takes a lock of the store that is backed up and never writes to it; never gives the
//! restored store its name before everything in it is durable.
//!
//! ```text
//! TO/rallypoint.backup    marker: store and map
//! TO/j0, TO/j1, ..        backups of the journal directories
//! ```

use super::walk::{LogView, Walk, consistent_cut};
use super::{
    LogEnd, Progress, ToolError, directories, log_end, note, now, partition_of, present, program, read_only,
};
use crate::os::file_disk::{FileDisk, FileDiskOptions, create_directory};
use crate::os::lock::DirectoryLock;
use crate::root::{Root, RootError, read_identity, write_identity};
use rallypoint_base::id::{DirectoryId, Lineage, LogId, Position};
use rallypoint_engine::unit::move_to_new_journal;
use rallypoint_store::backup::{Recheck, backup as backup_directory, read as read_backup, restore_until};
use rallypoint_store::event_log::{Event, EventKind};
use rallypoint_store::store::Options;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const MARKER: &str = "rallypoint.backup";
const TITLE: &str = "rallypoint backup format 1";
/// How often the directories are read again because they are too far apart.
const ATTEMPTS: usize = 3;

/// A backup that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackedUp {
    /// The store.
    pub store: String,
    /// Number of the backup, per journal directory.
    pub numbers: Vec<u64>,
    /// Bytes written.
    pub written: u64,
    /// Bytes that an earlier backup had stored already.
    pub skipped: u64,
    /// Checkpoints in it.
    pub checkpoints: u64,
    /// How far a restore will bring each partition.
    pub logs: Vec<LogEnd>,
    /// Records at the ends of logs that a restore will leave out, since what caused them is not in it.
    pub beyond_cut: u64,
}

/// A store that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The store.
    pub store: String,
    /// The lineage that it had.
    pub from_lineage: String,
    /// The lineage that it has now.
    pub lineage: String,
    /// When the backup was begun, in nanoseconds since 1970. Inputs acknowledged after it may be missing.
    pub taken: u64,
    /// How far each partition is back. Acknowledged inputs behind these positions are missing.
    pub logs: Vec<LogEnd>,
    /// Records.
    pub records: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Records that were left out, since what caused them is not in the backup.
    pub beyond_cut: u64,
}

/// Backs a store up, also while it is served. Earlier backups in `to` are built upon.
///
/// # Errors
/// [`ToolError`]; earlier backups are whole.
pub fn backup(
    dir: &Path,
    mirror: Option<&Path>,
    to: &Path,
    allow_unsuitable: bool,
    progress: &mut dyn Progress,
) -> Result<BackedUp, ToolError> {
    let (root, _) = Root::survey(dir, mirror)?;
    create_directory(to).map_err(ToolError::io("creating", to))?;
    let marker = to.join(MARKER);
    let no_backup = |what: String| ToolError::NoBackup { place: to.to_owned(), what };
    match read_identity(&marker, TITLE)? {
        Some((store, _)) if store == root.store => {}
        Some((store, _)) => {
            return Err(no_backup(format!(
                "holds backups of another store ({store}): choose another directory"
            )));
        }
        None => {
            if let Some(Ok(entry)) = fs::read_dir(to).map_err(ToolError::io("listing", to))?.next() {
                let found = entry.file_name().to_string_lossy().into_owned();
                return Err(no_backup(format!(
                    "is not empty and holds no backups (it holds {found}): choose another directory"
                )));
            }
            write_identity(&marker, TITLE, root.store, &root.map)?;
        }
    }
    let _lock = DirectoryLock::acquire(to).map_err(RootError::Lock)?;
    let mut attempt = 1;
    loop {
        let done = take(&root, to, allow_unsuitable, progress)?;
        let apart = done.1;
        if apart.is_none() || attempt == ATTEMPTS {
            return match apart {
                None => Ok(done.0),
                Some(partition) => Err(no_backup(format!(
                    "the journal directories could not be read close enough to each other: {partition} has no \
                     checkpoint before the cut that they have in common; try again when there is less traffic"
                ))),
            };
        }
        attempt += 1;
    }
}

/// One attempt. Also gives a partition that it cannot bring back.
fn take(
    root: &Root,
    to: &Path,
    allow_unsuitable: bool,
    progress: &mut dyn Progress,
) -> Result<(BackedUp, Option<String>), ToolError> {
    let count = root.map.directory_count();
    let mut done = BackedUp {
        store: root.store.to_string(),
        numbers: Vec::new(),
        written: 0,
        skipped: 0,
        checkpoints: 0,
        logs: Vec::new(),
        beyond_cut: 0,
    };
    for directory in directories(root) {
        progress.step("backing up", directory, count);
        let sources = read_only(&present(root, directory))?;
        let target = to.join(directory.to_string());
        let options = FileDiskOptions { create: true, allow_unsuitable, ..FileDiskOptions::default() };
        let target = FileDisk::open(&target, options)?;
        let report = backup_directory(sources, target, now(), &program(), Recheck::New)
            .map_err(|error| ToolError::Backup { directory, error })?;
        progress.more(0, report.written + report.skipped);
        done.numbers.push(report.sequence);
        done.written += report.written;
        done.skipped += report.skipped;
        done.checkpoints += report.checkpoints.len() as u64;
        done.logs.extend(report.logs.iter().filter_map(|&(log, position)| log_end(log, position)));
    }
    if count == 1 {
        return Ok((done, None));
    }
    let (logs, ..) = read_all(root, to, progress)?;
    let cut = consistent_cut(&logs);
    (done.logs, done.beyond_cut) = ends(&logs, &cut);
    let apart = logs.iter().find(|(log, view)| !view.reaches(cut[*log]));
    Ok((done, apart.and_then(|(&log, _)| partition_of(log)).map(|partition| partition.to_string())))
}

fn ends(logs: &BTreeMap<LogId, LogView>, cut: &BTreeMap<LogId, Position>) -> (Vec<LogEnd>, u64) {
    let ends = cut.iter().filter_map(|(&log, &position)| log_end(log, position)).collect();
    let beyond = logs.iter().map(|(log, view)| view.last.0.saturating_sub(cut[log].0)).sum();
    (ends, beyond)
}

type Read = (BTreeMap<LogId, LogView>, u64, Option<Lineage>);

/// What the newest backups hold, when the first of them was begun, and whose they are.
fn read_all(root: &Root, from: &Path, progress: &mut dyn Progress) -> Result<Read, ToolError> {
    let count = root.map.directory_count();
    let mut walk = Walk::new(progress, true);
    let (mut taken, mut lineage) = (u64::MAX, None);
    for directory in directories(root) {
        walk.progress.step("reading the backup", directory, count);
        let index = read_backup(source(from, directory)?, None, &mut walk)
            .map_err(|error| ToolError::Restore { directory, error })?;
        taken = taken.min(index.created.0);
        if lineage.is_some_and(|lineage| lineage != index.lineage) {
            let what = "its journal directories were backed up in different histories: take a new backup";
            return Err(ToolError::NoBackup { place: from.to_owned(), what: what.into() });
        }
        lineage = Some(index.lineage);
    }
    Ok((walk.logs, taken, lineage))
}

fn source(from: &Path, directory: DirectoryId) -> Result<FileDisk, ToolError> {
    let path = from.join(directory.to_string());
    if !path.is_dir() {
        let what = format!("{directory} is missing: the backup was never finished, or is incomplete");
        return Err(ToolError::NoBackup { place: from.to_owned(), what });
    }
    let options = FileDiskOptions { read_only: true, ..FileDiskOptions::default() };
    Ok(FileDisk::open(path, options)?)
}

/// Restores the newest backup in `from` into new directories, under a new lineage.
///
/// # Errors
/// [`ToolError`]; nothing stands under the new names then, and what was begun beside them (in
/// `*.restoring`) is begun anew by the next restore.
pub fn restore(
    from: &Path,
    dir: &Path,
    mirror: Option<&Path>,
    allow_unsuitable: bool,
    progress: &mut dyn Progress,
) -> Result<Restored, ToolError> {
    let Some((store, map)) = read_identity(&from.join(MARKER), TITLE)? else {
        let what = "there is no backup (no file rallypoint.backup)".into();
        return Err(ToolError::NoBackup { place: from.to_owned(), what });
    };
    for place in [Some(dir), mirror].into_iter().flatten() {
        refuse_what_is_there(place)?;
    }
    let beside = beside(dir)?;
    let mirror_beside = mirror.map(self::beside).transpose()?;
    let root = Root::begin(&beside, mirror_beside.as_deref(), store, map)?;
    let paths = |directory| root.copies_of(directory).collect::<Vec<PathBuf>>();
    let mut locks = Vec::new();
    for path in directories(&root).flat_map(paths) {
        locks.push(DirectoryLock::acquire(&path).map_err(RootError::Lock)?);
    }
    let (logs, taken, old) = read_all(&root, from, progress)?;
    let cut = consistent_cut(&logs);
    let (ends, beyond_cut) = ends(&logs, &cut);
    let mut done = Restored {
        store: store.to_string(),
        from_lineage: old.map(|lineage| lineage.to_string()).unwrap_or_default(),
        lineage: root.lineage.to_string(),
        taken,
        logs: ends,
        records: 0,
        checkpoints: 0,
        beyond_cut,
    };
    let mut adapt = |header: &mut Vec<u8>| move_to_new_journal(header).map_err(|error| error.to_string());
    let count = root.map.directory_count();
    for directory in directories(&root) {
        progress.step("restoring", directory, count);
        let options = FileDiskOptions { allow_unsuitable, ..FileDiskOptions::default() };
        let disks: Result<Vec<_>, _> =
            paths(directory).into_iter().map(|path| FileDisk::open(path, options.clone())).collect();
        let report = restore_until(
            source(from, directory)?,
            None,
            disks?,
            root.lineage,
            Options::default(),
            &cut,
            &mut adapt,
        )
        .map_err(|error| ToolError::Restore { directory, error })?;
        progress.more(report.records, 0);
        done.records += report.records;
        done.checkpoints += report.checkpoints.len() as u64;
        let event = Event::new(now(), EventKind::Restored)
            .with("from_lineage", report.from)
            .with("lineage", report.lineage)
            .with("taken", report.taken.0)
            .with("records", report.records);
        note(&paths(directory), vec![event]);
    }
    root.finish_creation()?;
    // The mirror first: where the store has its name, all of it has.
    if let (Some(mirror), Some(beside)) = (mirror, &mirror_beside) {
        give_name(beside, mirror)?;
    }
    give_name(&beside, dir)?;
    Ok(done)
}

fn refuse_what_is_there(place: &Path) -> Result<(), ToolError> {
    match fs::read_dir(place) {
        Ok(mut entries) => match entries.next() {
            Some(entry) => {
                let found = entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
                let found = found.unwrap_or_default();
                Err(RootError::NotOurs { place: place.to_owned(), found }.into())
            }
            None => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ToolError::io("listing", place)(error)),
    }
}

fn beside(place: &Path) -> Result<PathBuf, ToolError> {
    let place = std::path::absolute(place).map_err(ToolError::io("finding", place))?;
    let Some(name) = place.file_name() else {
        let error = std::io::ErrorKind::InvalidInput.into();
        return Err(ToolError::io("restoring to", &place)(error));
    };
    let mut name = name.to_owned();
    name.push(".restoring");
    Ok(place.with_file_name(name))
}

fn give_name(from: &Path, to: &Path) -> Result<(), ToolError> {
    // An empty directory of that name gives way.
    fs::rename(from, to).map_err(ToolError::io("renaming to", to))?;
    let parent = from.parent().unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(ToolError::io("syncing", parent))
}

//! Backup of one journal directory while it runs, and restoring it under a new lineage.
//!
//! Decides what a consistent image is: the usable checkpoints that are kept, listed *first*, and the
//! journal from its oldest needed segment up to the durable watermark W, read *afterwards*. Since a
//! manifest is written only when the log is durable through its position, W is never behind a listed
//! checkpoint. Every commit up to W must be whole in the union of the in-sync copies; where one is
//! not, because the running store recycled its segment meanwhile, the backup begins again.
//!
//! Never writes to the source; never replaces a file of an earlier backup (content is stored under its
//! hash, what is there is not copied again); never calls a backup one before it has been opened, read
//! only, through the same recovery as a store: the index, which makes it exist, is written last.
//!
//! Not decided here: consistency *between* journal directories. Each is consistent by itself; with
//! several, the host must hold the gates of all of them while their watermarks are taken.
//!
//! A restore that is cut short leaves a store that lacks things. The host therefore restores into
//! directories under another name and renames them at the end.

mod index;
mod restore;
mod source;

pub use index::{Entry, Index, IndexError};
pub use restore::{RestoreError, RestoreReport, read, restore, restore_until};

use crate::checkpoint::{FileKind, Manifest, ReadError, ScanError, VersionInfo, file_name};
use crate::copies::Copies;
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op};
use crate::error::StoreError;
use crate::record::Record;
use crate::recovery::RecoverError;
use crate::store::{OpenOptions, Store};
use index::View;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::{Xxh3, xxh3};
use rallypoint_base::id::{CommitSeq, LogId, Position, StoreId, Version};
use rallypoint_base::limits::BLOCK;
use rallypoint_base::time::Time;
use source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use thiserror::Error;

/// Bytes of one write or read of the target.
const PIECE: usize = 256 * 1024;
/// How often a backup begins again because the store moved on under it.
const ATTEMPTS: usize = 5;

/// How much of what earlier backups stored is read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recheck {
    /// What this backup writes, and its whole journal.
    #[default]
    New,
    /// Everything: what has rotted on the target since is written anew.
    All,
}

/// Why there is no new backup. Earlier ones are whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The source cannot be opened.
    #[error("the source cannot be backed up: {0}")]
    Source(#[from] StoreError),
    /// The source's checkpoints cannot be listed.
    #[error("the source cannot be backed up: {0}")]
    Checkpoints(#[from] ScanError),
    /// A checkpoint cannot be read on any copy.
    #[error("the source cannot be backed up: {0}; `rallypoint verify` shows the damage")]
    Checkpoint(ReadError),
    /// A commit that was acknowledged cannot be read on any copy.
    #[error(
        "commit {commit} of the source is on no copy, {attempts} times in a row: it is damaged (`rallypoint \
         verify` shows how), or the store recycles its journal faster than it can be read"
    )]
    Journal {
        /// Which commit.
        commit: CommitSeq,
        /// How often it was tried.
        attempts: usize,
    },
    /// The target failed.
    #[error("the target failed: {0}")]
    Target(DiskError),
    /// The target does not hold backups of this directory.
    #[error("the target holds backups of another store or lineage ({store}): choose an empty directory")]
    Foreign {
        /// Whose.
        store: StoreId,
    },
    /// The target's index is not ours to replace.
    #[error("the target holds backups that cannot be read: {0}")]
    Index(#[from] IndexError),
    /// What was written to the target reads back differently.
    #[error("the target did not keep {file}: it is not fit for backups")]
    NotKept {
        /// Stored name.
        file: String,
    },
    /// The written backup does not open.
    #[error(
        "the new backup does not open ({why}): this is a bug, please report it; earlier backups are whole"
    )]
    NotSound {
        /// What its recovery said.
        why: String,
    },
}

/// What a backup did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupReport {
    /// Number of the backup on this target.
    pub sequence: u64,
    /// Every commit up to this one is in it.
    pub watermark: CommitSeq,
    /// Last position of each log in it.
    pub logs: Vec<(LogId, Position)>,
    /// Checkpoints in it.
    pub checkpoints: Vec<(LogId, Version)>,
    /// Bytes written to the target.
    pub written: u64,
    /// Bytes that were there already.
    pub skipped: u64,
}

/// The target with what it holds.
struct Target<T> {
    copies: Copies<T>,
    /// Files that earlier backups vouch for, by stored name.
    known: BTreeMap<String, Entry>,
    present: BTreeMap<String, u64>,
    written: u64,
    skipped: u64,
}

/// Backs a journal directory up to `target`, which is empty or holds earlier backups of it. `sources`
/// are its copies, opened for reading only; the store may run meanwhile.
///
/// Everything that is written is read again. What earlier backups stored is trusted by name and length
/// unless `recheck` says otherwise (its journal is always read again: the new backup is opened).
///
/// # Errors
/// [`BackupError`]; earlier backups are whole.
pub fn backup<S: Disk, T: Disk>(
    sources: Vec<S>,
    target: T,
    now: Time,
    program: &str,
    recheck: Recheck,
) -> Result<BackupReport, BackupError> {
    let (mut target, indexes) = Target::open(target)?;
    if recheck == Recheck::All {
        for name in target.rotten()? {
            target.known.remove(&name);
        }
    }
    let mut sources = sources;
    for attempt in 1.. {
        let mut source = Source::open(sources)?;
        let state = source.state().clone();
        if let Some((_, last)) = indexes.last()
            && (last.store, last.lineage, last.directory) != (state.store, state.lineage, state.directory)
        {
            return Err(BackupError::Foreign { store: last.store });
        }
        match fill(&mut source, &mut target) {
            Ok((entries, checkpoints, watermark)) => {
                let sequence = indexes.last().map_or(1, |(sequence, _)| sequence + 1);
                let mut index = Index {
                    store: state.store,
                    lineage: state.lineage,
                    directory: state.directory,
                    segment_len: state.segment_len,
                    watermark,
                    created: now,
                    program: program.into(),
                    logs: Vec::new(),
                    entries,
                };
                target.sync_names()?;
                target = target.prove(&mut index)?;
                target.publish(sequence, &index)?;
                target.clean(sequence, &index, &indexes)?;
                let (written, skipped) = (target.written, target.skipped);
                return Ok(BackupReport {
                    sequence,
                    watermark,
                    logs: index.logs,
                    checkpoints,
                    written,
                    skipped,
                });
            }
            Err(Fill::Fatal(error)) => return Err(error),
            Err(Fill::Moved(error)) if attempt >= ATTEMPTS => return Err(error),
            Err(Fill::Moved(_)) => sources = source.into_disks(),
        }
    }
    Err(BackupError::Journal { commit: CommitSeq(0), attempts: ATTEMPTS })
}

/// Reads everything that the backups on a target name, and answers the stored names of what is missing
/// or has rotted. [`backup()`] with [`Recheck::All`] writes it anew, as long as the source has it.
///
/// # Errors
/// [`BackupError`] when the target cannot be read at all.
pub fn verify<T: Disk>(target: T) -> Result<Vec<String>, BackupError> {
    let (mut target, indexes) = Target::open(target)?;
    let mut bad = target.rotten()?;
    let entries = indexes.iter().flat_map(|(_, index)| &index.entries);
    bad.extend(entries.filter(|e| !target.known.contains_key(&e.stored)).map(|e| e.stored.clone()));
    bad.sort();
    bad.dedup();
    Ok(bad)
}

/// Why the target could not be filled.
enum Fill {
    Fatal(BackupError),
    /// Perhaps because the store went on: worth another try.
    Moved(BackupError),
}

impl<E: Into<BackupError>> From<E> for Fill {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

type Filled = (Vec<Entry>, Vec<(LogId, Version)>, CommitSeq);

/// Copies checkpoints first, then the journal; of archives also what came meanwhile.
fn fill<S: Disk, T: Disk>(source: &mut Source<S>, target: &mut Target<T>) -> Result<Filled, Fill> {
    let mut entries = Vec::new();
    let mut checkpoints = Vec::new();
    let versions = source.checkpoints()?;
    put_versions(source, target, versions, &mut entries, &mut checkpoints)?;
    let watermark = source.watermark();
    // What the log lets go of up to there lies in parts of archives that were durable before it did.
    let archived = |info: &VersionInfo| info.manifest.log.archived().is_some();
    let versions = source.checkpoints()?.into_iter().filter(archived).collect();
    put_versions(source, target, versions, &mut entries, &mut checkpoints)?;
    let mut last = source.state().first;
    source
        .journal(watermark, &mut |generation, name, image| {
            last = generation;
            entries.push(target.put(name, image)?);
            Ok(())
        })
        .map_err(|error| match error {
            error @ BackupError::Journal { .. } => Fill::Moved(error),
            error => Fill::Fatal(error),
        })?;
    let superblock = source.superblock_image(last);
    entries.push(target.put(crate::superblock::FILE, &superblock)?);
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((entries, checkpoints, watermark))
}

/// Copies the versions that were not copied before.
fn put_versions<S: Disk, T: Disk>(
    source: &mut Source<S>,
    target: &mut Target<T>,
    versions: Vec<VersionInfo>,
    entries: &mut Vec<Entry>,
    done: &mut Vec<(LogId, Version)>,
) -> Result<(), Fill> {
    for info in &versions {
        let manifest = &info.manifest;
        let (log, version) = (manifest.log, manifest.version);
        if done.contains(&(log, version)) {
            continue;
        }
        done.push((log, version));
        let header = source.header(log, version).map_err(|e| Fill::Moved(BackupError::Checkpoint(e)))?;
        entries.push(target.put_part(source, manifest)?);
        let name = file_name(log, version, FileKind::Manifest);
        entries.push(target.put(&name, &manifest.encode(&header))?);
        if info.pinned {
            entries.push(target.put(&file_name(log, version, FileKind::Pinned), &[])?);
        }
    }
    Ok(())
}

impl<T: Disk> Target<T> {
    fn open(disk: T) -> Result<(Self, Vec<(u64, Index)>), BackupError> {
        let mut copies = Copies::new(vec![disk]);
        let (indexes, present) = index::list(&mut copies)?;
        let known = indexes
            .iter()
            .flat_map(|(_, index)| &index.entries)
            .filter(|entry| present.get(&entry.stored).is_some_and(|&len| len >= entry.len))
            .map(|entry| (entry.stored.clone(), entry.clone()))
            .collect();
        Ok((Self { copies, known, present, written: 0, skipped: 0 }, indexes))
    }

    fn run(&mut self, op: Op) -> Result<Done, BackupError> {
        self.copies.run(0, Lane::Bulk, op).map_err(BackupError::Target)
    }

    fn sync_names(&mut self) -> Result<(), BackupError> {
        self.run(Op::SyncNames).map(drop)
    }

    /// Stores bytes under their hash, or finds that they are there.
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<Entry, BackupError> {
        let entry = Entry {
            name: name.into(),
            stored: format!("c-{:016x}-{}", xxh3(bytes), bytes.len()),
            len: bytes.len() as u64,
            hash: xxh3(bytes),
        };
        if self.has(&entry) {
            return Ok(entry);
        }
        let file = self.create(&entry.stored)?;
        for (index, piece) in bytes.chunks(PIECE).enumerate() {
            self.write(file, (index * PIECE) as u64, AlignedBuffer::copy_of(piece))?;
        }
        self.finish(file, &entry)?;
        Ok(entry)
    }

    /// Stores a checkpoint's part. Its name holds the hash that the manifest vouches for, so that a
    /// part that is there is not even read at the source.
    fn put_part<S: Disk>(&mut self, source: &mut Source<S>, manifest: &Manifest) -> Result<Entry, Fill> {
        let (log, version) = (manifest.log, manifest.version);
        let stored = format!("p-{:05}-{:012}-{:016x}", log.0, version.0, manifest.part_hash());
        let name = file_name(log, version, FileKind::Part);
        let known = self.known.get(&stored).map(|known| Entry { name: name.clone(), ..known.clone() });
        if let Some(entry) = known.filter(|entry| entry.len == manifest.part_len()) {
            self.skipped += entry.len;
            return Ok(entry);
        }
        let file = self.create(&stored)?;
        let (mut hash, mut offset, mut failed) = (Xxh3::new(), 0, None);
        let read = source.part(log, version, &mut |chunk| {
            let mut data = AlignedBuffer::zeroed(chunk.len().next_multiple_of(BLOCK));
            data[..chunk.len()].copy_from_slice(chunk);
            hash.update(&data);
            let len = data.len() as u64;
            let written = self.write(file, offset, data);
            offset += len;
            written.map_err(|error| {
                failed = Some(error);
                "the target failed".to_string()
            })
        });
        if let Some(error) = failed {
            return Err(Fill::Fatal(error));
        }
        read.map_err(|error| Fill::Moved(BackupError::Checkpoint(error)))?;
        let entry = Entry { name, stored, len: offset, hash: hash.digest() };
        self.finish(file, &entry)?;
        Ok(entry)
    }

    fn has(&mut self, entry: &Entry) -> bool {
        let has = self.known.contains_key(&entry.stored);
        if has {
            self.skipped += entry.len;
        }
        has
    }

    /// What stands under the name without an index that vouches for it was cut short.
    fn create(&mut self, stored: &str) -> Result<FileId, BackupError> {
        if self.present.remove(stored).is_some() {
            self.run(Op::Remove { name: stored.into() })?;
        }
        match self.run(Op::Create { name: stored.into(), len: 0 })? {
            Done::Opened { file, .. } => {
                self.present.insert(stored.into(), 0);
                Ok(file)
            }
            _ => Err(BackupError::Target(crate::mirror::protocol_error(stored))),
        }
    }

    fn write(&mut self, file: FileId, offset: u64, data: AlignedBuffer) -> Result<(), BackupError> {
        self.written += data.len() as u64;
        self.run(Op::Write { file, offset, data, durable: false }).map(drop)
    }

    /// Does the open file hold what the entry says? A sector that cannot be read is a no.
    fn holds(&mut self, file: FileId, entry: &Entry) -> Result<bool, BackupError> {
        let (mut hash, mut at) = (Xxh3::new(), 0);
        while at < entry.len {
            let len = PIECE.min(usize::try_from(entry.len - at).unwrap_or(PIECE));
            match self.run(Op::Read { file, offset: at, len }) {
                Ok(Done::Read(data)) if !data.is_empty() => {
                    hash.update(&data);
                    at += data.len() as u64;
                }
                Err(BackupError::Target(error)) if error.kind != DiskErrorKind::Io => {
                    return Err(BackupError::Target(error));
                }
                _ => return Ok(false),
            }
        }
        Ok(at == entry.len && hash.digest() == entry.hash)
    }

    /// Stored names of files that are there and do not hold what they should.
    fn rotten(&mut self) -> Result<Vec<String>, BackupError> {
        let mut bad = Vec::new();
        for entry in self.known.values().cloned().collect::<Vec<_>>() {
            let Done::Opened { file, .. } = self.run(Op::Open { name: entry.stored.clone() })? else {
                continue;
            };
            if !self.holds(file, &entry)? {
                bad.push(entry.stored);
            }
            self.run(Op::Close { file })?;
        }
        Ok(bad)
    }

    /// Syncs, reads back and compares. From now on the file need not be written again in this backup.
    fn finish(&mut self, file: FileId, entry: &Entry) -> Result<(), BackupError> {
        self.run(Op::Sync { file })?;
        let same = self.holds(file, entry)?;
        self.run(Op::Close { file })?;
        if !same {
            return Err(BackupError::NotKept { file: entry.stored.clone() });
        }
        self.present.insert(entry.stored.clone(), entry.len);
        self.known.insert(entry.stored.clone(), entry.clone());
        Ok(())
    }

    /// Opens what was written as a store, for reading, and notes how far each log goes.
    fn prove(self, index: &mut Index) -> Result<Self, BackupError> {
        let Self { copies, known, present, written, skipped } = self;
        let Some(disk) = copies.into_disks().pop() else {
            return Err(BackupError::Target(crate::mirror::protocol_error("the target")));
        };
        let not_sound = |why: String| BackupError::NotSound { why };
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mounted = Store::mount(vec![View::new(disk, &index.entries)], options)
            .map_err(|error| not_sound(error.to_string()))?;
        let mut logs: BTreeMap<LogId, Position> = BTreeMap::new();
        let mut note = |record: &Record<'_>| -> Result<(), Infallible> {
            logs.insert(record.log, record.position);
            Ok(())
        };
        let (store, report) = mounted.recover(&mut note).map_err(|error| match error {
            RecoverError::Store(error) => not_sound(error.to_string()),
            RecoverError::Sink(never) => match never {},
        })?;
        if !report.lost.is_empty() || report.cut.is_some() || report.last_commit != index.watermark {
            return Err(not_sound(format!(
                "it goes up to {}, not {}, and lacks {} ranges",
                report.last_commit,
                index.watermark,
                report.lost.len()
            )));
        }
        index.logs = logs.into_iter().collect();
        let disks = store.into_disks().into_iter().map(View::into_inner).collect();
        Ok(Self { copies: Copies::new(disks), known, present, written, skipped })
    }

    /// Writes the index under another name, reads it back, and gives it its name: now it exists.
    fn publish(&mut self, sequence: u64, index: &Index) -> Result<(), BackupError> {
        let bytes = index.encode();
        let (temp, name) = (format!("{}.tmp", index::file_name(sequence)), index::file_name(sequence));
        let file = self.create(&temp)?;
        for (at, piece) in bytes.chunks(PIECE).enumerate() {
            self.write(file, (at * PIECE) as u64, AlignedBuffer::copy_of(piece))?;
        }
        let hash = xxh3(&bytes);
        let entry = Entry { name: name.clone(), stored: temp.clone(), len: bytes.len() as u64, hash };
        self.finish(file, &entry)?;
        self.present.remove(&temp);
        self.run(Op::Rename { from: temp, to: name })?;
        self.sync_names()
    }

    /// Keeps this backup and the one before, and removes what neither needs.
    fn clean(&mut self, sequence: u64, index: &Index, older: &[(u64, Index)]) -> Result<(), BackupError> {
        let previous = older.last();
        let entries = index.entries.iter().chain(previous.iter().flat_map(|(_, index)| &index.entries));
        let needed: BTreeSet<&str> = entries.map(|entry| entry.stored.as_str()).collect();
        let kept = [Some(sequence), previous.map(|(sequence, _)| *sequence)];
        let obsolete: Vec<String> = self
            .present
            .keys()
            .filter(|name| match index::parse_file_name(name) {
                Some(sequence) => !kept.contains(&Some(sequence)),
                // Only names that a backup gives; whatever else lies there is not ours.
                None => {
                    let ours = name.starts_with("c-") || name.starts_with("p-") || name.ends_with(".tmp");
                    ours && !needed.contains(name.as_str())
                }
            })
            .cloned()
            .collect();
        // Indexes first: an index must not outlive what it names.
        let (indexes, content): (Vec<_>, Vec<_>) =
            obsolete.into_iter().partition(|name| index::parse_file_name(name).is_some());
        for group in [indexes, content] {
            for name in group {
                match self.run(Op::Remove { name }) {
                    Err(BackupError::Target(error)) if error.kind == DiskErrorKind::NotFound => {}
                    other => drop(other?),
                }
            }
            self.sync_names()?;
        }
        Ok(())
    }
}

//! `scrub` and `mend`: making the copies of a store equal and right again.
//!
//! Decides in which order things are repaired (journals before checkpoints before markers, so that a
//! directory looks like a store only once it is one) and what is beyond repair. Never writes a copy
//! that the store's own rules do not allow to be written.
//!
//! A store that worker processes serve is scrubbed by them: the wish travels over their sockets, and
//! the `scrubbed` event of each journal directory tells the end of its pass.

use super::{
    Fault, Progress, ToolError, directories, identity_of, lock, note, now, present, read_only, writable,
};
use crate::message::Message;
use crate::os::file_disk::{FileDisk, create_directory};
use crate::os::lock::{DirectoryLock, LockError};
use crate::root::{Root, RootError};
use crate::sockets;
use rallypoint_base::id::{DirectoryId, LogId, Position};
use rallypoint_store::checkpoint::{
    CheckpointEvent, CheckpointStore, Finding as CheckpointFinding, Identity as CheckpointIdentity, ScanMode,
    ScrubCursor,
};
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::Disk;
use rallypoint_store::error::StoreError;
use rallypoint_store::event_log::{Event, EventKind, EventLog};
use rallypoint_store::mend::{MendOptions, mend as mend_journal};
use rallypoint_store::recovery::{Finding, RecoverError, RecoveryReport};
use rallypoint_store::store::{OpenOptions, Store, StoreEvent};
use serde::Serialize;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes that one step of scrubbing compares.
const STEP: usize = 1 << 20;

/// One journal directory that was scrubbed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ScrubbedDirectory {
    /// Its name.
    pub directory: String,
    /// Blocks of the journal that were compared.
    pub blocks: u64,
    /// Chunks of checkpoints that were compared.
    pub chunks: u64,
    /// Blocks and chunks that were rewritten on a copy.
    pub repaired: u64,
    /// Blocks and chunks that are bad on every copy.
    pub bad: u64,
}

/// What a scrub did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Scrubbing {
    /// The workers that serve the store did it.
    pub by_workers: bool,
    /// Each journal directory.
    pub directories: Vec<ScrubbedDirectory>,
    /// What was wrong (empty when workers did it: `events` names each).
    pub findings: Vec<Fault>,
}

impl Scrubbing {
    /// Something is bad on every copy.
    #[must_use]
    pub fn is_beyond_repair(&self) -> bool {
        self.directories.iter().any(|directory| directory.bad > 0)
    }
}

/// Compares everything of a store with its checksums and between its copies, at most so many bytes
/// per second, and repairs what is bad on one copy. A store that workers serve is scrubbed by them.
///
/// # Errors
/// [`ToolError`] when there is no store, or a process that cannot be asked serves it.
pub fn scrub(
    dir: &Path,
    mirror: Option<&Path>,
    bytes_per_second: u64,
    progress: &mut dyn Progress,
) -> Result<Scrubbing, ToolError> {
    let root = Root::find(dir, mirror, None)?;
    let _locks = match lock(&root) {
        Ok(locks) => locks,
        Err(ToolError::Root(RootError::Lock(busy @ LockError::InUse { .. }))) => {
            return ask_workers(&root, busy, bytes_per_second, progress);
        }
        Err(error) => return Err(error),
    };
    let mut done = Scrubbing::default();
    let count = root.map.directory_count();
    for directory in directories(&root) {
        progress.step("scrubbing", directory, count);
        let paths = present(&root, directory);
        let figures = scrub_directory(directory, &paths, bytes_per_second, &mut done.findings, progress)?;
        let event = Event::new(now(), EventKind::Scrubbed)
            .with("blocks", figures.blocks)
            .with("chunks", figures.chunks)
            .with("repaired", figures.repaired)
            .with("bad", figures.bad)
            .with("asked", true);
        note(&paths, vec![event]);
        done.directories.push(figures);
    }
    Ok(done)
}

/// Sleeps so that no more than so many bytes per second are read.
struct Pace {
    start: Instant,
    bytes: u64,
    rate: u64,
}

impl Pace {
    fn spent(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.rate > 0 {
            let due = Duration::from_secs_f64(self.bytes as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
    }
}

fn journal_fault(directory: DirectoryId, finding: &Finding, repairable: bool) -> Fault {
    let what = format!("a block of commit {} was {}", finding.commit, finding.kind.name());
    let file = Path::new(&finding.directory).join(&finding.file);
    Fault::of("journal", directory, what).at(&file, u64::from(finding.block)).repairable(repairable)
}

fn journal_faults(directory: DirectoryId, journal: &RecoveryReport, findings: &mut Vec<Fault>) {
    let whole = journal.lost.is_empty();
    findings.extend(journal.findings.iter().map(|finding| journal_fault(directory, finding, whole)));
    for lost in &journal.lost {
        let what = format!("acknowledged records are lost on every copy: {lost}");
        findings.push(Fault::of("lost", directory, what));
    }
    for (copy, error) in &journal.dropped {
        let what = format!("copy {copy} failed and is out: {error}");
        findings.push(Fault::of("copy_out", directory, what));
    }
}

fn scrub_directory(
    directory: DirectoryId,
    paths: &[PathBuf],
    bytes_per_second: u64,
    findings: &mut Vec<Fault>,
    progress: &mut dyn Progress,
) -> Result<ScrubbedDirectory, ToolError> {
    let failed = |error| ToolError::Store { directory, error };
    let mut figures = ScrubbedDirectory { directory: directory.to_string(), ..ScrubbedDirectory::default() };
    let mut mounted = Store::mount(writable(paths)?, OpenOptions::default()).map_err(failed)?;
    let identity = mounted.identity();
    let identity = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
    let (mut checkpoints, found) = CheckpointStore::scan(mounted.copies(), identity, ScanMode::Repair)
        .map_err(|error| ToolError::Checkpoints { directory, error })?;
    for finding in &found {
        checkpoint_finding(directory, finding, &mut figures, findings);
    }
    // The opening itself compares the journal and repairs it.
    let (mut store, journal) =
        mounted.recover::<Infallible>(&mut |_| Ok(())).map_err(|error| match error {
            RecoverError::Store(error) => failed(error),
            RecoverError::Sink(never) => match never {},
        })?;
    journal_faults(directory, &journal, findings);
    figures.repaired += journal.repaired + journal.slots_repaired as u64;
    figures.bad += journal.lost.len() as u64;
    let mut pace = Pace { start: Instant::now(), bytes: 0, rate: bytes_per_second };
    while store.scrub_step(STEP) {
        let step = loop {
            match store.wait() {
                Some(StoreEvent::Scrubbed(step)) => break step,
                Some(StoreEvent::Failed(error)) => return Err(failed(error)),
                Some(_) => {}
                None => return Err(failed(StoreError::Options("a scrub step never ended".into()))),
            }
        };
        figures.blocks += step.blocks;
        figures.repaired += step.repaired;
        figures.bad += step.unrepairable.len() as u64;
        findings.extend(step.findings.iter().map(|finding| journal_fault(directory, finding, true)));
        findings.extend(step.unrepairable.iter().map(|finding| journal_fault(directory, finding, false)));
        progress.more(0, step.blocks * 4096);
        pace.spent(step.blocks * 4096 * paths.len() as u64);
        if step.wrapped {
            break;
        }
    }
    let mut spend = |bytes: u64| {
        progress.more(0, bytes);
        pace.spent(bytes * paths.len() as u64);
    };
    scrub_checkpoints(directory, &mut checkpoints, store.copies(), &mut figures, findings, &mut spend);
    Ok(figures)
}

fn checkpoint_finding(
    directory: DirectoryId,
    finding: &CheckpointFinding,
    figures: &mut ScrubbedDirectory,
    findings: &mut Vec<Fault>,
) {
    let fault = |what: String| Fault::of("checkpoint", directory, what);
    match finding {
        CheckpointFinding::RepairedManifest { copy, log, version } => {
            figures.repaired += 1;
            let what = format!("copy {copy} lacked a sound manifest of checkpoint {version} of {log}");
            findings.push(fault(what).repairable(true));
        }
        CheckpointFinding::RepairedPart { copy, log, version, chunks } => {
            figures.repaired += *chunks as u64;
            let what = format!("copy {copy} lacked {chunks} chunks of checkpoint {version} of {log}");
            findings.push(fault(what).repairable(true));
        }
        CheckpointFinding::NotRepaired { copy, log, version, why } => {
            figures.bad += 1;
            findings.push(fault(format!("copy {copy} lacks checkpoint {version} of {log}: {why}")));
        }
        CheckpointFinding::ManifestLost { log, version, why } => {
            figures.bad += 1;
            findings
                .push(fault(format!("the manifest of checkpoint {version} of {log} is on no copy: {why}")));
        }
        CheckpointFinding::PartLost { log, version } => {
            figures.bad += 1;
            findings.push(fault(format!("the content of checkpoint {version} of {log} is on no copy")));
        }
        CheckpointFinding::ChainBroken { log, version } => {
            figures.bad += 1;
            findings.push(fault(format!("checkpoint {version} of {log} builds on one that cannot be used")));
        }
        CheckpointFinding::CopyFailed { copy, error } => {
            figures.bad += 1;
            findings.push(fault(format!("copy {copy} failed: {error}")));
        }
        _ => {}
    }
}

fn scrub_checkpoints<D: Disk>(
    directory: DirectoryId,
    checkpoints: &mut CheckpointStore,
    copies: &mut Copies<D>,
    figures: &mut ScrubbedDirectory,
    findings: &mut Vec<Fault>,
    spend: &mut dyn FnMut(u64),
) {
    let mut cursor = ScrubCursor::default();
    while checkpoints.scrub(copies, &mut cursor) {
        figures.chunks += 1;
        spend(rallypoint_store::checkpoint::CHUNK_BYTES as u64);
        while let Some(event) = checkpoints.poll(copies) {
            let (what, repaired) = match event {
                CheckpointEvent::Repaired { copy, log, version, chunk } => {
                    (format!("chunk {chunk} of checkpoint {version} of {log} was bad on copy {copy}"), true)
                }
                CheckpointEvent::Damaged { log, version, chunk } => {
                    (format!("chunk {chunk} of checkpoint {version} of {log} is bad on every copy"), false)
                }
                CheckpointEvent::CopyFailed { copy, error } => {
                    copies.take_out(copy);
                    (format!("copy {copy} failed: {error}"), false)
                }
                _ => continue,
            };
            figures.repaired += u64::from(repaired);
            figures.bad += u64::from(!repaired);
            findings.push(Fault::of("checkpoint", directory, what).repairable(repaired));
        }
    }
}

/// The newest pass that somebody asked for, by its place among the events.
fn asked_passes(paths: &[PathBuf]) -> Option<(u64, Option<Event>)> {
    let identity = identity_of(paths)?;
    let history = EventLog::read_all(&mut Copies::new(read_only(paths).ok()?), identity);
    let asked = |event: &&Event| {
        event.kind == EventKind::Scrubbed && event.fields.contains(&("asked".into(), "true".into()))
    };
    let newest = history.events.iter().filter(asked).max_by_key(|event| event.time).cloned();
    Some((newest.as_ref().map_or(0, |event| event.time.0), newest))
}

/// Connections to the workers that serve a store.
struct Workers {
    place: PathBuf,
    store: u64,
    rate: u64,
    streams: Vec<UnixStream>,
}

impl Workers {
    /// Connects to everybody who listens. False when nobody does.
    fn ask(&mut self) -> bool {
        let entries = std::fs::read_dir(&self.place).into_iter().flatten().flatten();
        let sockets =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "sock"));
        self.streams = sockets.filter_map(|path| UnixStream::connect(path).ok()).collect();
        !self.streams.is_empty()
    }

    /// Tells them what is wanted. Whoever does not hear it is found out by [`Workers::lost_one`].
    fn wish(&mut self) {
        let mut bytes = Vec::new();
        Message::Hello { store: self.store, worker: u32::MAX, incarnation: 0 }.encode(&mut bytes);
        Message::Scrub { bytes_per_second: self.rate }.encode(&mut bytes);
        for stream in &mut self.streams {
            // An end of the connection is seen when it is read.
            let _ = stream.write_all(&bytes).and_then(|()| stream.set_nonblocking(true));
        }
    }

    /// True when a connection has ended. (Nobody answers over them, so anything else is patience.)
    fn lost_one(&mut self) -> bool {
        let before = self.streams.len();
        self.streams.retain_mut(|stream| match stream.read(&mut [0; 64]) {
            Ok(count) => count > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        });
        self.streams.len() < before || before == 0
    }
}

fn ask_workers(
    root: &Root,
    busy: LockError,
    bytes_per_second: u64,
    progress: &mut dyn Progress,
) -> Result<Scrubbing, ToolError> {
    let place = sockets::directory(root);
    let mut workers = Workers { place, store: root.store.0, rate: bytes_per_second, streams: Vec::new() };
    if !workers.ask() {
        return Err(ToolError::Served(busy, "`rallypoint events --kind scrubbed` shows them"));
    }
    let count = root.map.directory_count();
    let mut waiting: BTreeMap<DirectoryId, u64> = BTreeMap::new();
    for directory in directories(root) {
        let before = asked_passes(&present(root, directory)).map_or(0, |(at, _)| at);
        waiting.insert(directory, before);
    }
    workers.wish();
    let (start, mut done) = (Instant::now(), Scrubbing { by_workers: true, ..Scrubbing::default() });
    if let Some(&first) = waiting.keys().next() {
        progress.step("scrubbing (by its workers)", first, count);
    }
    let mut alone = Instant::now();
    while !waiting.is_empty() {
        std::thread::sleep(Duration::from_millis(100));
        for directory in waiting.keys().copied().collect::<Vec<_>>() {
            let Some((at, Some(event))) = asked_passes(&present(root, directory)) else { continue };
            if waiting.get(&directory).is_some_and(|&before| at > before) {
                waiting.remove(&directory);
                if let Some(&next) = waiting.keys().next() {
                    progress.step("scrubbing (by its workers)", next, count);
                }
                let figure = |name: &str| {
                    let found = event.fields.iter().find(|(key, _)| key == name);
                    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
                };
                done.directories.push(ScrubbedDirectory {
                    directory: directory.to_string(),
                    blocks: figure("blocks"),
                    chunks: figure("chunks"),
                    repaired: figure("repaired"),
                    bad: figure("bad"),
                });
            }
        }
        // A worker that was started again meanwhile has forgotten the wish.
        if workers.lost_one() && workers.ask() {
            workers.wish();
        }
        if !workers.streams.is_empty() {
            alone = Instant::now();
        } else if alone.elapsed() > Duration::from_secs(10) {
            return Err(ToolError::NoAnswer {
                place: root.dir.clone(),
                waited_s: start.elapsed().as_secs(),
                next: "they ended; run this again",
            });
        }
    }
    done.directories
        .sort_by(|a, b| a.directory.len().cmp(&b.directory.len()).then(a.directory.cmp(&b.directory)));
    Ok(done)
}

/// One journal directory that was mended, and all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mended {
    /// Something cannot be given back, or a copy could not be brought back.
    pub beyond_repair: bool,
    /// Blocks, chunks and manifests that were rewritten from another copy.
    pub repaired: u64,
    /// Directories of copies that were written anew and are in use again.
    pub returned: Vec<String>,
    /// Bytes copied for them.
    pub copied: u64,
    /// What was wrong; what is not repairable is beyond repair.
    pub findings: Vec<Fault>,
}

/// Repairs a store that nobody serves: crosswise between the copies, then the copies that were left
/// behind or are new (missing directories are made), then checkpoints and markers.
///
/// # Errors
/// [`ToolError`] when there is no store to start from, it is in use, or a copy is missing and
/// `degraded` does not say to go on without.
pub fn mend(
    dir: &Path,
    mirror: Option<&Path>,
    options: MendOptions,
    progress: &mut dyn Progress,
) -> Result<Mended, ToolError> {
    let (root, troubles) = Root::survey(dir, mirror)?;
    let mut locks = lock(&root)?;
    let mut made = Vec::new();
    let mut done = Mended::default();
    let count = root.map.directory_count();
    let result = directories(&root).try_for_each(|directory| {
        progress.step("mending", directory, count);
        for path in root.copies_of(directory).filter(|path| !path.is_dir()) {
            create_directory(&path).map_err(ToolError::io("creating", &path))?;
            made.push(path.clone());
            locks.push(DirectoryLock::acquire(&path).map_err(RootError::Lock)?);
        }
        mend_directory(&root, directory, options, &mut done, progress)
    });
    if let Err(error) = result {
        // What was made for a copy that is not to be made must not look like one.
        drop(locks);
        for path in made {
            let _ = std::fs::remove_file(path.join(crate::os::lock::LOCK_NAME));
            // Only if it is empty: what a copy was begun in stays.
            let _ = std::fs::remove_dir(&path);
            let _ = path.parent().map(std::fs::remove_dir);
        }
        return Err(error);
    }
    for trouble in troubles {
        root.write_marker(&trouble.place)?;
        done.repaired += 1;
        let mut fault = Fault::of("marker", DirectoryId(0), trouble.what).repairable(true);
        fault.directory = None;
        done.findings.push(fault.at(&trouble.place.join("rallypoint.store"), None));
    }
    Ok(done)
}

fn mend_directory(
    root: &Root,
    directory: DirectoryId,
    options: MendOptions,
    done: &mut Mended,
    progress: &mut dyn Progress,
) -> Result<(), ToolError> {
    let failed = |error| ToolError::Store { directory, error };
    let paths = present(root, directory);
    let before = done.findings.len();
    let report = mend_journal(writable(&paths)?, options).map_err(failed)?;
    progress.more(report.journal.records, report.copied);
    journal_faults(directory, &report.journal, &mut done.findings);
    let mut repaired = report.journal.repaired + report.journal.slots_repaired as u64;
    done.returned.extend(report.returned.iter().map(|(_, place)| place.clone()));
    done.copied += report.copied;
    for (copy, error) in &report.failed {
        let what = format!("copy {copy} could not be brought back: {error}");
        done.findings.push(Fault::of("copy_out", directory, what));
    }
    let mut beyond = report.is_beyond_repair();

    // Checkpoints, on the copies that are in sync now.
    let open = OpenOptions { degraded: true, ..OpenOptions::default() };
    let mut mounted = Store::mount(writable(&paths)?, open).map_err(failed)?;
    let identity = mounted.identity();
    let identity = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
    let scanned = CheckpointStore::scan(mounted.copies(), identity, ScanMode::Repair);
    let (mut checkpoints, found) = scanned.map_err(|error| ToolError::Checkpoints { directory, error })?;
    let mut figures = ScrubbedDirectory::default();
    for finding in &found {
        checkpoint_finding(directory, finding, &mut figures, &mut done.findings);
    }
    let mut spend = |bytes| progress.more(0, bytes);
    let copies: &mut Copies<FileDisk> = mounted.copies();
    scrub_checkpoints(directory, &mut checkpoints, copies, &mut figures, &mut done.findings, &mut spend);
    repaired += figures.repaired;
    beyond |= figures.bad > 0;
    drop(mounted);

    done.repaired += repaired;
    done.beyond_repair |= beyond;
    let returned = report
        .returned
        .iter()
        .map(|(_, place)| Event::new(now(), EventKind::CopyReturned).with("place", place).with("by", "mend"));
    let faults = done.findings[before..].iter().map(|fault| {
        let kind = if fault.repairable { EventKind::Repair } else { EventKind::Damage };
        let event = Event::new(now(), kind).with("what", &fault.what).with("by", "mend");
        match (&fault.file, fault.block) {
            (Some(file), Some(block)) => event.with("file", file).with("block", block),
            (Some(file), None) => event.with("file", file),
            _ => event,
        }
    });
    note(&paths, returned.chain(faults).collect());
    Ok(())
}

/// A store that nobody serves, opened for appending; `sink` hears of every record in it.
pub(super) fn open_store(
    directory: DirectoryId,
    paths: &[PathBuf],
    sink: &mut dyn FnMut(LogId, Position),
) -> Result<Store<FileDisk>, ToolError> {
    let failed = |error| ToolError::Store { directory, error };
    let mounted = Store::mount(writable(paths)?, OpenOptions::default()).map_err(failed)?;
    let (store, _) = mounted
        .recover::<Infallible>(&mut |record| {
            sink(record.log, record.position);
            Ok(())
        })
        .map_err(|error| match error {
            RecoverError::Store(error) => failed(error),
            RecoverError::Sink(never) => match never {},
        })?;
    match store.refusing() {
        Some(error) => Err(failed(error.clone())),
        None => Ok(store),
    }
}

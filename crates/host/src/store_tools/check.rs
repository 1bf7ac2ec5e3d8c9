//! `verify`: reading everything of a store, on all copies, and comparing what its parts say of each
//! other.
//!
//! Decides what is damage and what is the trace of a kill: a cut of what was never acknowledged, or a
//! last commit that only one copy got, is a note and no fault. Never writes.

use super::walk::Walk;
use super::{Fault, Progress, ToolError, directories, identity_of, observe, present, read_only};
use crate::root::Root;
use rallypoint_base::id::{CommitSeq, DirectoryId, PartitionId, Ssn};
use rallypoint_base::limits::BLOCK;
use rallypoint_store::checkpoint::Finding as CheckpointFinding;
use rallypoint_store::copies::Copies;
use rallypoint_store::error::StoreError;
use rallypoint_store::event_log::EventLog;
use rallypoint_store::mirror::Outsider;
use rallypoint_store::superblock::{self, SLOT_BYTES, SlotError, Superblock};
use rallypoint_store::verify::{FullReport, VerifyError, verify_all};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One journal directory in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DirectoryFigures {
    /// Its name.
    pub directory: String,
    /// Copies that were read.
    pub copies: usize,
    /// Its last epoch.
    pub epoch: u32,
    /// Commits in its journal.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of journal in use.
    pub journal_bytes: u64,
    /// Versions of checkpoints.
    pub checkpoints: u64,
    /// Their content.
    pub checkpoint_bytes: u64,
}

/// One channel between two partitions, as the stored verdicts have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChannelCounters {
    /// The sender.
    pub from: u16,
    /// The receiver.
    pub to: u16,
    /// The highest number that the sender's log holds.
    pub sent: u64,
    /// The highest number that the receiver's log holds.
    pub received: u64,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Nothing is wrong.
    pub sound: bool,
    /// The store.
    pub store: String,
    /// Its journal directories.
    pub directories: Vec<DirectoryFigures>,
    /// The channels between its partitions.
    pub channels: Vec<ChannelCounters>,
    /// What is wrong.
    pub findings: Vec<Fault>,
    /// What is worth knowing and not wrong: traces of a kill, files of somebody else.
    pub notes: Vec<String>,
}

/// Reads and checks everything of a store that nobody serves.
///
/// # Errors
/// [`ToolError`] when there is no store to verify, or it is in use, or needs another release.
pub fn verify(
    dir: &Path,
    mirror: Option<&Path>,
    progress: &mut dyn Progress,
) -> Result<Verification, ToolError> {
    let (root, troubles) = Root::survey(dir, mirror)?;
    let _locks = observe(&root)?;
    let mut found = Verification {
        sound: true,
        store: root.store.to_string(),
        directories: Vec::new(),
        channels: Vec::new(),
        findings: Vec::new(),
        notes: Vec::new(),
    };
    for trouble in troubles {
        found.findings.push(Fault {
            kind: "marker",
            directory: None,
            file: Some(trouble.place.join("rallypoint.store").display().to_string()),
            block: None,
            repairable: true,
            what: format!("{}; `mend` writes it anew", trouble.what),
        });
    }
    let count = root.map.directory_count();
    let mut walk = Walk::new(progress, false);
    let mut blind = Vec::new();
    for directory in directories(&root) {
        walk.progress.step("verifying", directory, count);
        let paths = present(&root, directory);
        for path in root.copies_of(directory).filter(|path| !path.is_dir()) {
            let what =
                "the directory is missing; bring it back, or `mend` writes it anew from its other copy";
            let fault = Fault::of("missing", directory, what).at(&path, None);
            found.findings.push(fault.repairable(!paths.is_empty()));
        }
        if paths.is_empty() {
            blind.push(directory);
            continue;
        }
        for path in &paths {
            superblock_slots(directory, path, &mut found);
        }
        walk.proven = CommitSeq(0);
        match verify_all(read_only(&paths)?, true, &mut walk) {
            Ok(report) => {
                let last = report.journal.journal.last_commit;
                if report.journal.is_whole() && last.next() < walk.proven {
                    let what = format!(
                        "the journal ends at commit {last}, but a checkpoint was completed after commit {} was due: \
                         acknowledged records are lost; bring back a missing copy, or restore a backup",
                        walk.proven
                    );
                    found.findings.push(Fault::of("journal_behind", directory, what));
                }
                if !report.journal.is_whole() {
                    blind.push(directory);
                }
                judge(directory, &paths, &report, &mut found);
            }
            // A newer release's store is not damaged; it is not for this one to judge.
            Err(error @ VerifyError::Store(StoreError::Version { .. } | StoreError::BlockVersion { .. })) => {
                return Err(ToolError::verify(directory, error));
            }
            Err(error) => {
                blind.push(directory);
                found.findings.push(Fault::of("unreadable", directory, error.to_string()));
            }
        }
        event_logs(directory, &paths, &mut found);
    }
    restorable(&root, &walk, &blind, &mut found);
    for (log, what) in std::mem::take(&mut walk.nonsense) {
        let partition = log.archived().unwrap_or(PartitionId(log.0));
        let directory = root.map.directory_of(partition).unwrap_or_default();
        let what = format!("{log}: sound bytes that make no sense to this release: {what}");
        found.findings.push(Fault::of("nonsense", directory, what));
    }
    channels(&root, &walk, &blind, &mut found);
    found.sound = found.findings.is_empty();
    Ok(found)
}

/// A mount makes the slots equal; a look must compare them itself.
fn superblock_slots(directory: DirectoryId, path: &Path, found: &mut Verification) {
    let file = path.join(superblock::FILE);
    // A copy without superblock, or without a sound one, is the mirror's to judge.
    let Ok(bytes) = std::fs::read(&file) else { return };
    let Ok(slots) = superblock::judge(&bytes) else { return };
    if slots.best.is_err() {
        return;
    }
    for slot in slots.differing {
        let bytes = bytes.get(slot * SLOT_BYTES..).unwrap_or_default();
        match Superblock::decode(bytes, slot) {
            Err(error @ SlotError::Damaged(_)) => {
                let block = (slot * SLOT_BYTES / BLOCK) as u64;
                let what = format!("slot {slot} of the superblock: {error}; the others are sound");
                found
                    .findings
                    .push(Fault::of("superblock", directory, what).at(&file, block).repairable(true));
            }
            _ => found
                .notes
                .push(format!("{}: slot {slot} is one update behind, as a kill leaves it", file.display())),
        }
    }
}

fn judge(directory: DirectoryId, paths: &[PathBuf], report: &FullReport, found: &mut Verification) {
    let journal = &report.journal;
    let lost_all = journal.journal.lost.is_empty();
    let path = |copy: usize| paths.get(copy).cloned().unwrap_or_default();
    for finding in &journal.journal.findings {
        let what = format!("a block of commit {} is {}", finding.commit, finding.kind.name());
        let fault = Fault::of("journal", directory, what);
        let file = Path::new(&finding.directory).join(&finding.file);
        found.findings.push(fault.at(&file, u64::from(finding.block)).repairable(lost_all));
    }
    for lost in &journal.journal.lost {
        let what = format!("acknowledged records are lost on every copy: {lost}");
        found.findings.push(Fault::of("lost", directory, what));
    }
    if journal.journal.read_errors > 0 {
        let what = format!("{} reads of the journal failed", journal.journal.read_errors);
        found.findings.push(Fault::of("read_errors", directory, what).repairable(lost_all));
    }
    for (copy, why) in &journal.outsiders {
        let what = match why {
            Outsider::Empty => "the directory is empty: it holds no copy".to_owned(),
            Outsider::Unreadable(why) => format!("the superblock cannot be read: {why}"),
            Outsider::Stale { epoch, .. } => {
                format!("this copy was left behind at {epoch}: `mend` brings it up to date")
            }
        };
        found
            .findings
            .push(Fault::of("copy_out", directory, what).at(&path(*copy), None).repairable(lost_all));
    }
    for number in &journal.absent {
        let what = format!(
            "copy {number} belongs to the store and was not given: name it with --mirror, or `mend` makes it anew"
        );
        found.findings.push(Fault::of("absent", directory, what).repairable(lost_all));
    }
    let known = paths.len() + journal.absent.len();
    if known < usize::from(journal.identity.copies) {
        let what = format!(
            "only {known} of {} copies are in use: `mend --mirror DIR` makes the other one anew",
            journal.identity.copies
        );
        found.findings.push(Fault::of("absent", directory, what).repairable(lost_all));
    }
    if let Some(cut) = journal.journal.cut {
        found.notes.push(format!(
            "{directory}: {} bytes of commit {} were being written at the end; it was never acknowledged, \
             unless the disk lied",
            cut.bytes, cut.commit
        ));
    }
    if journal.journal.completed > 0 {
        let blocks = journal.journal.completed;
        found.notes.push(format!(
            "{directory}: {blocks} blocks of the last commit are on one copy only, as a kill leaves it"
        ));
    }
    for (copy, name) in &journal.journal.unknown_files {
        // The host's own page, and what it leaves beside the journal.
        if name != crate::os::running_page::RUNNING_NAME {
            found.notes.push(format!("{}: not a file of a store", path(*copy).join(name).display()));
        }
    }
    for finding in &report.findings {
        checkpoint_finding(directory, paths, finding, found);
    }
    for rot in &report.rot {
        let what = format!("chunk {} of checkpoint {} of {} is damaged", rot.chunk, rot.version, rot.log);
        let fault = Fault::of("checkpoint", directory, what).at(&path(rot.copy).join(&rot.file), rot.block);
        found.findings.push(fault.repairable(rot.repairable));
    }
    for (log, version, why) in &report.headers {
        let what = format!("checkpoint {version} of {log}: {why}");
        found.findings.push(Fault::of("checkpoint", directory, what));
    }
    let all = || report.checkpoints.logs().flat_map(|log| report.checkpoints.versions(log));
    found.directories.push(DirectoryFigures {
        directory: directory.to_string(),
        copies: paths.len(),
        epoch: journal.epoch.0,
        commits: journal.journal.commits,
        records: journal.journal.records,
        journal_bytes: journal.journal.bytes,
        checkpoints: all().count() as u64,
        checkpoint_bytes: all().map(|info| info.manifest.part_bytes()).sum(),
    });
}

fn checkpoint_finding(
    directory: DirectoryId,
    paths: &[PathBuf],
    finding: &CheckpointFinding,
    found: &mut Verification,
) {
    let path = |copy: usize| paths.get(copy).cloned().unwrap_or_default();
    let fault = |what: String| Fault::of("checkpoint", directory, what);
    found.findings.push(match finding {
        CheckpointFinding::Lacking { copy, log, version } => {
            fault(format!("this copy lacks a sound checkpoint {version} of {log}"))
                .at(&path(*copy), None)
                .repairable(true)
        }
        CheckpointFinding::ManifestLost { log, version, why } => {
            fault(format!("the manifest of checkpoint {version} of {log} is on no copy: {why}"))
        }
        CheckpointFinding::PartLost { log, version } => {
            fault(format!("the content of checkpoint {version} of {log} is on no copy"))
        }
        CheckpointFinding::ChainBroken { log, version } => {
            fault(format!("checkpoint {version} of {log} builds on one that cannot be used"))
        }
        CheckpointFinding::CopyFailed { copy, error } => {
            fault(format!("the copy failed: {error}")).at(&path(*copy), None)
        }
        // Left by a kill, or none of ours: the next opening sees to it.
        other => {
            found.notes.push(format!("{directory}: {other:?}"));
            return;
        }
    });
}

fn event_logs(directory: DirectoryId, paths: &[PathBuf], found: &mut Verification) {
    let Some(identity) = identity_of(paths) else { return };
    for path in paths {
        let Ok(disks) = read_only(std::slice::from_ref(path)) else { continue };
        let history = EventLog::read_all(&mut Copies::new(disks), identity);
        if history.corrupt > 0 {
            let what = format!(
                "{} batches of the event log are damaged (losing them loses no input)",
                history.corrupt
            );
            found.findings.push(Fault::of("events", directory, what).at(&path.join("events-*"), None));
        }
    }
}

/// Can every partition be brought back: is there a checkpoint that the log goes on from?
fn restorable(root: &Root, walk: &Walk<'_>, blind: &[DirectoryId], found: &mut Verification) {
    for (&log, view) in &walk.logs {
        let directory = root.map.directory_of(PartitionId(log.0)).unwrap_or_default();
        if blind.contains(&directory) {
            continue;
        }
        let held = view.newest.as_ref().map(|(_, summary)| summary.log).unwrap_or_default();
        if let Some(first) = view.first
            && first > held.next()
        {
            let what = format!(
                "{log}: the journal begins at {first}, and no usable checkpoint reaches it: restore a backup"
            );
            found.findings.push(Fault::of("unrestorable", directory, what));
        }
    }
}

fn channels(root: &Root, walk: &Walk<'_>, blind: &[DirectoryId], found: &mut Verification) {
    let seen = |partition: PartitionId| {
        root.map.directory_of(partition).is_some_and(|directory| !blind.contains(&directory))
    };
    let mut all: BTreeMap<(PartitionId, PartitionId), (Ssn, Ssn)> = BTreeMap::new();
    for (&log, view) in &walk.logs {
        let here = PartitionId(log.0);
        for (&to, &ssn) in &view.most_sent {
            all.entry((here, to)).or_default().0 = ssn;
        }
        for (&from, &ssn) in &view.most_received {
            all.entry((from, here)).or_default().1 = ssn;
        }
    }
    for ((from, to), (sent, received)) in all {
        found.channels.push(ChannelCounters { from: from.0, to: to.0, sent: sent.0, received: received.0 });
        if !(seen(from) && seen(to)) {
            continue;
        }
        if received > sent {
            let directory = root.map.directory_of(to).unwrap_or_default();
            let what = format!(
                "{to} has received through {received} from {from}, whose log has sent through {sent}: an effect \
                 without its cause; the log of {from} lacks its end"
            );
            found.findings.push(Fault::of("channel", directory, what));
        }
    }
    if !blind.is_empty() && root.map.directory_count() > 1 {
        found.notes.push("channels of directories that cannot be read whole were not compared".into());
    }
}

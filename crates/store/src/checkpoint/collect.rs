//! Removing what nobody needs, without making anybody wait.
//!
//! Decides the order of removals: manifests first, and only when their names are durably gone the
//! parts and marks. The other way round, a power cut could bring a manifest back whose part is gone:
//!
//! ```text
//! remove part, remove manifest, | power | -> the manifest is there again, its part is not: a version
//!                                            that looks usable and is not
//! ```
//!
//! Never removes what a kept version, a pinned one or one in the making builds on; never a file that
//! it does not know. A collection cut short goes on at the next opening.

use super::manifest::{FileKind, file_name, parse_name};
use super::{CheckpointEvent, CheckpointStore, Task};
use crate::copies::{Copies, CopyIndex, Owner};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, Lane, Op};
use rallypoint_base::id::{LogId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Removals in flight per copy: freeing a large file takes the file system a while.
const REMOVALS_IN_FLIGHT: usize = 4;

/// A collection in progress.
#[derive(Debug)]
pub(super) struct Collecting {
    versions: Vec<(LogId, Version)>,
    /// Names whose removal makes versions vanish.
    first: Vec<String>,
    /// Names that only matter while the first ones are there.
    second: Vec<String>,
    copies: BTreeMap<CopyIndex, Progress>,
}

/// Where one copy stands: which of the four steps (remove, sync, remove, sync), how many names of it
/// were submitted, how many operations are in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    step: usize,
    submitted: usize,
    in_flight: usize,
}

impl CheckpointStore {
    /// Begins to remove the versions that are not needed: everything but the two newest usable,
    /// part-disjoint chains, the pinned versions with their chains, what is in the making, and what is
    /// newer than the second chain but cannot be used. Also removes what crashes and failures left.
    /// [`CheckpointEvent::Collected`] tells the end; while a collection is in progress, nothing happens.
    pub fn collect<D: Disk>(&mut self, copies: &mut Copies<D>) {
        if self.collecting.is_some() {
            return;
        }
        let mut collecting = Collecting {
            versions: Vec::new(),
            first: Vec::new(),
            second: Vec::new(),
            copies: BTreeMap::new(),
        };
        let logs: Vec<LogId> = self.logs.keys().copied().collect();
        for log in logs {
            let kept = self.kept(log);
            for info in self.versions(log).iter().filter(|info| !kept.contains(&info.manifest.version)) {
                let version = info.manifest.version;
                collecting.versions.push((log, version));
                collecting.first.push(file_name(log, version, FileKind::Manifest));
                collecting.second.push(file_name(log, version, FileKind::Part));
                let marks = (1..=info.failed_restores).map(FileKind::Failed);
                collecting.second.extend(marks.map(|kind| file_name(log, version, kind)));
            }
            if let Some(versions) = self.logs.get_mut(&log) {
                versions.retain(|info| kept.contains(&info.manifest.version));
            }
            self.given_up.retain(|(of, version)| *of != log || kept.contains(version));
        }
        self.collect_unreadable(&mut collecting);
        for name in std::mem::take(&mut self.garbage) {
            match parse_name(&name) {
                Some((_, _, FileKind::Manifest)) => collecting.first.push(name),
                _ => collecting.second.push(name),
            }
        }
        if collecting.first.is_empty() && collecting.second.is_empty() {
            return;
        }
        collecting.copies = copies.live().map(|copy| (copy, Progress::default())).collect();
        self.collecting = Some(collecting);
        let live = copies.live().collect();
        self.collect_advance(copies, &live);
    }

    /// A version whose manifest is bad everywhere is evidence until two chains are newer than it.
    fn collect_unreadable(&mut self, collecting: &mut Collecting) {
        let obsolete: Vec<(LogId, Version)> = self
            .unreadable
            .iter()
            // (Nothing newer stands for a part of an archive.)
            .filter(|(log, _)| log.archived().is_none())
            .filter(|&&(log, version)| self.tips(log).1.is_some_and(|second| version < second))
            .copied()
            .collect();
        for (log, version) in obsolete {
            self.unreadable.remove(&(log, version));
            collecting.first.push(file_name(log, version, FileKind::Manifest));
            collecting.second.push(file_name(log, version, FileKind::Part));
            collecting.second.push(file_name(log, version, FileKind::Pinned));
        }
    }

    /// True while files are being removed.
    #[must_use]
    pub fn is_collecting(&self) -> bool {
        self.collecting.is_some()
    }

    pub(super) fn collect_done<D: Disk>(
        &mut self,
        copies: &Copies<D>,
        copy: CopyIndex,
        result: Result<Done, DiskError>,
    ) {
        let Some(collecting) = &mut self.collecting else { return };
        let Some(progress) = collecting.copies.get_mut(&copy) else { return };
        progress.in_flight = progress.in_flight.saturating_sub(1);
        if let Err(error) = result
            && error.kind != DiskErrorKind::NotFound
        {
            debug_assert!(copy < copies.len(), "a completion of a copy that does not exist");
            collecting.copies.remove(&copy);
            self.events.push_back(CheckpointEvent::CopyFailed { copy, error });
        }
    }

    pub(super) fn collect_advance<D: Disk>(&mut self, copies: &mut Copies<D>, live: &BTreeSet<CopyIndex>) {
        let Some(mut collecting) = self.collecting.take() else { return };
        collecting.copies.retain(|copy, _| live.contains(copy));
        for (&copy, progress) in &mut collecting.copies {
            loop {
                let names = match progress.step {
                    0 => &collecting.first[..],
                    2 => &collecting.second[..],
                    _ => &[],
                };
                // A sync is one operation; it is submitted when everything before it is done.
                let operations = if progress.step % 2 == 0 { names.len() } else { 1 };
                while progress.step < 4
                    && progress.submitted < operations
                    && progress.in_flight < REMOVALS_IN_FLIGHT
                {
                    let name = names.get(progress.submitted);
                    let op = name.map_or(Op::SyncNames, |name| Op::Remove { name: name.clone() });
                    let ticket = copies.submit(copy, Owner::Checkpoint, Lane::Bulk, op);
                    self.tasks.insert((copy, ticket), Task::Collect);
                    progress.submitted += 1;
                    progress.in_flight += 1;
                }
                if progress.step == 4 || progress.in_flight > 0 || progress.submitted < operations {
                    break;
                }
                progress.step += 1;
                progress.submitted = 0;
                // Without names to remove there is nothing to sync either.
                if progress.step == 1 && collecting.first.is_empty() {
                    progress.step = 2;
                }
                if progress.step == 3 && collecting.second.is_empty() {
                    progress.step = 4;
                }
            }
        }
        if collecting.copies.values().all(|progress| progress.step == 4) {
            self.events.push_back(CheckpointEvent::Collected { versions: collecting.versions });
        } else {
            self.collecting = Some(collecting);
        }
    }
}

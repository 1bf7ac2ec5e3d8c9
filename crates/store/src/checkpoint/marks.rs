//! Durable remarks about a version: pinned, a restore of it failed, dropped by a person.
//!
//! Decides nothing about the use of a version beyond counting. Each remark is an empty file, so that
//! it is atomic and needs no format; it counts when any copy has it. Waits for the disk: a remark that
//! is not durable is none. Where a copy fails meanwhile ([`CheckpointEvent::CopyFailed`] from `poll`),
//! taking a remark back (unpin, drop) holds only once the mirror has recorded the loss of that copy.

use super::manifest::{FileKind, file_name};
use super::versions::VersionState;
use super::{CheckpointEvent, CheckpointStore, RESTORE_ATTEMPTS};
use crate::copies::Copies;
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, Lane, Op};
use rallypoint_base::id::{LogId, Version};
use std::collections::BTreeSet;
use thiserror::Error;

/// Why a remark could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MarkError {
    /// No such version.
    #[error("there is no checkpoint {version} of {log}; `rallypoint checkpoint list` shows those there are")]
    Unknown {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// No copy took it.
    #[error("no copy took the remark on checkpoint {version} of {log}: {error}")]
    Disk {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What the last one said.
        error: DiskError,
    },
}

/// Why a version was not dropped.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DropError {
    /// No such version, or no copy took it.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// Other versions build on it.
    #[error("checkpoint {version} of {log} is needed by {by}: drop that one first")]
    Needed {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Which one builds on it.
        by: Version,
    },
    /// It is pinned.
    #[error("checkpoint {version} of {log} is pinned: unpin it first")]
    Pinned {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// The log is cut up to one of the two newest chains, so that dropping it could cost inputs.
    #[error(
        "checkpoint {version} of {log} is one of the two that recovery rests on: take another checkpoint first"
    )]
    Relied {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
}

impl CheckpointStore {
    /// Keeps a version (with its chain, and the log behind it) until it is unpinned.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn pin<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), MarkError> {
        // What is to stay must be whole on every copy, also where collection was about to take it.
        for link in self.chain(log, version).unwrap_or_default() {
            for finding in self.repair_version(copies, log, link, &BTreeSet::new()) {
                self.events.extend(finding.into_event());
            }
        }
        self.mark(copies, log, version, FileKind::Pinned, true)?;
        if let Some(info) = self.version_mut(log, version) {
            info.pinned = true;
        }
        Ok(())
    }

    /// Lets collection have a pinned version again.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn unpin<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), MarkError> {
        self.mark(copies, log, version, FileKind::Pinned, false)?;
        if let Some(info) = self.version_mut(log, version) {
            info.pinned = false;
        }
        Ok(())
    }

    /// Counts a failed restore, durably. Whoever restores also counts, at the next start, one that took
    /// the process with it, and calls [`CheckpointStore::forgive_restores`] when one went well. After
    /// [`RESTORE_ATTEMPTS`] the version is quarantined and the one before it used.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn record_failed_restore<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<u32, MarkError> {
        let info = self.version(log, version).ok_or(MarkError::Unknown { log, version })?;
        let count = info.failed_restores.saturating_add(1);
        self.mark(copies, log, version, FileKind::Failed(count), true)?;
        if let Some(info) = self.version_mut(log, version) {
            info.failed_restores = count;
            if count >= RESTORE_ATTEMPTS && info.state == VersionState::Good {
                info.state = VersionState::Quarantined;
            }
        }
        Ok(count)
    }

    /// Takes the count of failed restores (and a quarantine) back.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn forgive_restores<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), MarkError> {
        let info = self.version(log, version).ok_or(MarkError::Unknown { log, version })?;
        // From the highest down: a power cut in between leaves a lower count, never a gap.
        for n in (1..=info.failed_restores).rev() {
            self.mark(copies, log, version, FileKind::Failed(n), false)?;
            if let Some(info) = self.version_mut(log, version) {
                info.failed_restores = n - 1;
            }
        }
        if let Some(info) = self.version_mut(log, version)
            && info.state == VersionState::Quarantined
        {
            info.state = VersionState::Good;
        }
        Ok(())
    }

    /// Removes a version on a person's word (a quarantined one, mostly). Durable when it returns.
    ///
    /// # Errors
    /// [`DropError`]; what recovery rests on is never dropped.
    pub fn drop_version<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), DropError> {
        let info = self.version(log, version).ok_or(MarkError::Unknown { log, version })?;
        if info.pinned {
            return Err(DropError::Pinned { log, version });
        }
        let writing = self.writers.get(&log).filter(|w| w.manifest.base == Some(version));
        let needs = |info: &&super::VersionInfo| info.manifest.base == Some(version);
        let by =
            self.versions(log).iter().find(needs).map(|info| &info.manifest).or(writing.map(|w| &w.manifest));
        if let Some(by) = by {
            return Err(DropError::Needed { log, version, by: by.version });
        }
        let (first, second) = self.tips(log);
        if first == Some(version) || second == Some(version) {
            return Err(DropError::Relied { log, version });
        }
        Ok(self.remove_version(copies, log, version)?)
    }

    /// Removes every version above `version`, newest first, because the rollback protocol went back
    /// to it: what they hold never happened. Durable when it returns; a crash on the way leaves an
    /// older newest version. One that is being written is given up.
    ///
    /// # Errors
    /// [`MarkError`].
    pub fn undo_after<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), MarkError> {
        self.abort(copies, log);
        let versions = self.versions(log).iter().map(|info| info.manifest.version);
        let undone: Vec<Version> = versions.filter(|&found| found > version).collect();
        for undone in undone.into_iter().rev() {
            self.remove_version(copies, log, undone)?;
        }
        Ok(())
    }

    fn remove_version<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
    ) -> Result<(), MarkError> {
        let info = self.version(log, version).ok_or(MarkError::Unknown { log, version })?;
        let (failed, pinned) = (info.failed_restores, info.pinned);
        self.mark(copies, log, version, FileKind::Manifest, false)?;
        if let Some(versions) = self.logs.get_mut(&log) {
            versions.retain(|info| info.manifest.version != version);
        }
        self.garbage.insert(file_name(log, version, FileKind::Part));
        self.garbage.extend((1..=failed).map(|n| file_name(log, version, FileKind::Failed(n))));
        self.garbage.extend(pinned.then(|| file_name(log, version, FileKind::Pinned)));
        Ok(())
    }

    /// Makes one name of a version be there, or not, on every copy, durably. A copy that fails is
    /// reported; it is an error only when every copy fails.
    fn mark<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
        kind: FileKind,
        there: bool,
    ) -> Result<(), MarkError> {
        if self.version(log, version).is_none() {
            return Err(MarkError::Unknown { log, version });
        }
        let name = file_name(log, version, kind);
        let (mut done, mut last_error) = (false, None);
        for copy in copies.live() {
            let result = if there {
                match copies.run(copy, Lane::Bulk, Op::Create { name: name.clone(), len: 0 }) {
                    Ok(Done::Opened { file, .. }) => copies.run(copy, Lane::Bulk, Op::Close { file }),
                    other => other,
                }
            } else {
                copies.run(copy, Lane::Bulk, Op::Remove { name: name.clone() })
            };
            // Already so: by an earlier attempt that was cut short.
            let already = if there { DiskErrorKind::Exists } else { DiskErrorKind::NotFound };
            let result = match result {
                Err(error) if error.kind != already => Err(error),
                _ => copies.run(copy, Lane::Bulk, Op::SyncNames),
            };
            match result {
                Ok(_) => done = true,
                Err(error) => {
                    if error.kind != DiskErrorKind::NoSpace {
                        self.events.push_back(CheckpointEvent::CopyFailed { copy, error: error.clone() });
                    }
                    last_error = Some(error);
                }
            }
        }
        match last_error {
            Some(error) if !done => Err(MarkError::Disk { log, version, error }),
            _ => Ok(()),
        }
    }
}

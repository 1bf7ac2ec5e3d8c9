//! Which versions there are, which can be used, which must be kept.
//!
//! Decides, without IO: chains, the newest usable version, what collection keeps and where a log may
//! be cut. Invariant: the log is never cut above a position from which a kept, usable, part-disjoint
//! second chain could still be replayed, so that one bad part never costs an acknowledged input.

use super::manifest::Manifest;
use super::{CheckpointStore, RESTORE_ATTEMPTS};
use rallypoint_base::id::{LogId, Position, Version};
use std::collections::BTreeSet;
use thiserror::Error;

/// Whether a version may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VersionState {
    /// It was verified when it was written and nothing has been found wrong since.
    Good,
    /// Its restore failed [`RESTORE_ATTEMPTS`] times.
    Quarantined,
    /// Part of it is bad on every copy.
    Damaged,
}

/// One version of one log's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionInfo {
    /// What it is.
    pub manifest: Manifest,
    /// Whether it may be used (its chain decides too: [`CheckpointStore::is_usable`]).
    pub state: VersionState,
    /// It is kept until it is unpinned.
    pub pinned: bool,
    /// How often its restore failed.
    pub failed_restores: u32,
}

impl VersionInfo {
    pub(super) fn new(manifest: Manifest, pinned: bool, failed_restores: u32) -> Self {
        let state =
            if failed_restores >= RESTORE_ATTEMPTS { VersionState::Quarantined } else { VersionState::Good };
        Self { manifest, state, pinned, failed_restores }
    }
}

/// Why there is no chain down to a full checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// No such version.
    #[error("there is no checkpoint {version} of {log}; `rallypoint checkpoint list` shows those there are")]
    Unknown {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// A version that it builds on is gone.
    #[error("checkpoint {version} of {log} builds on {missing}, which is gone: use an older version")]
    Broken {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What is missing.
        missing: Version,
    },
}

impl CheckpointStore {
    /// The logs that have any version.
    pub fn logs(&self) -> impl Iterator<Item = LogId> + '_ {
        self.logs.iter().filter(|(_, versions)| !versions.is_empty()).map(|(&log, _)| log)
    }

    /// The versions of a log, oldest first.
    #[must_use]
    pub fn versions(&self, log: LogId) -> &[VersionInfo] {
        self.logs.get(&log).map_or(&[], Vec::as_slice)
    }

    /// One version.
    #[must_use]
    pub fn version(&self, log: LogId, version: Version) -> Option<&VersionInfo> {
        let versions = self.versions(log);
        versions.binary_search_by_key(&version, |info| info.manifest.version).ok().map(|at| &versions[at])
    }

    pub(super) fn version_mut(&mut self, log: LogId, version: Version) -> Option<&mut VersionInfo> {
        let versions = self.logs.get_mut(&log)?;
        let at = versions.binary_search_by_key(&version, |info| info.manifest.version).ok()?;
        versions.get_mut(at)
    }

    pub(super) fn add_version(&mut self, info: VersionInfo) {
        let versions = self.logs.entry(info.manifest.log).or_default();
        match versions.binary_search_by_key(&info.manifest.version, |info| info.manifest.version) {
            Ok(at) => versions[at] = info,
            Err(at) => versions.insert(at, info),
        }
    }

    /// What must be read to restore a version: the full checkpoint first, the version itself last.
    ///
    /// # Errors
    /// [`ChainError`] when a link is missing.
    pub fn chain(&self, log: LogId, version: Version) -> Result<Vec<Version>, ChainError> {
        let mut chain = Vec::new();
        let mut next = Some(version);
        // Ends, since a manifest's base is always older than itself.
        while let Some(link) = next {
            let info = self.version(log, link).ok_or(if chain.is_empty() {
                ChainError::Unknown { log, version }
            } else {
                ChainError::Broken { log, version, missing: link }
            })?;
            chain.push(link);
            next = info.manifest.base;
        }
        chain.reverse();
        Ok(chain)
    }

    /// True when every link of the version's chain is there and good.
    #[must_use]
    pub fn is_usable(&self, log: LogId, version: Version) -> bool {
        self.chain(log, version).is_ok_and(|chain| {
            chain
                .iter()
                .all(|&link| self.version(log, link).is_some_and(|info| info.state == VersionState::Good))
        })
    }

    /// The highest version of the log that a file was ever named after, as far as is known.
    #[must_use]
    pub fn highest(&self, log: LogId) -> Version {
        self.highest.get(&log).copied().unwrap_or_default()
    }

    /// The newest usable version. With more damage than is promised for, it may be older than what
    /// the log was cut to: whoever restores it checks that the log goes on at its position + 1.
    #[must_use]
    pub fn newest(&self, log: LogId) -> Option<Version> {
        self.usable(log).next_back()
    }

    fn usable(&self, log: LogId) -> impl DoubleEndedIterator<Item = Version> + '_ {
        let versions = self.versions(log).iter().map(|info| info.manifest.version);
        versions.filter(move |&version| self.is_usable(log, version))
    }

    /// The newest usable version, and the newest whose chain shares no part with the first one's.
    pub(super) fn tips(&self, log: LogId) -> (Option<Version>, Option<Version>) {
        // Chains with different full checkpoints share nothing: every increment has one base.
        let root = |version| self.chain(log, version).ok().and_then(|chain| chain.first().copied());
        let first = self.newest(log);
        let second = self.usable(log).rev().find(|&version| root(version) != first.and_then(root));
        (first, second)
    }

    /// The log may be cut below this: records at positions up to it are needed by no kept version.
    /// It is the older of [`Self::chains_cut`] and the pinned versions.
    #[must_use]
    pub fn log_cut(&self, log: LogId) -> Position {
        let pinned = self.versions(log).iter().filter(|info| info.pinned).map(|info| info.manifest.position);
        pinned.chain([self.chains_cut(log)]).min().unwrap_or_default()
    }

    /// The older of the tips of the two newest part-disjoint chains; 0 as long as there are not two.
    /// Further checkpoints of the same state do not move it.
    #[must_use]
    pub fn chains_cut(&self, log: LogId) -> Position {
        let (Some(first), Some(second)) = self.tips(log) else { return Position(0) };
        let position = |version| self.version(log, version).map(|info| info.manifest.position);
        [first, second].into_iter().filter_map(position).min().unwrap_or_default()
    }

    /// Says which versions of a log a rollback protocol may still go back to: `floor` and all above
    /// it stay, beside those that recovery rests on. Forgotten when the store is opened anew.
    pub fn keep_from(&mut self, log: LogId, floor: Version) {
        self.floors.insert(log, floor);
    }

    /// Lets the next collection have a part of an archive, which else stays for ever. Forgotten when the
    /// store is opened anew: whoever gives up then says it again.
    ///
    /// ```
    /// use rallypoint_base::id::{LogId, PartitionId, Version};
    /// use rallypoint_store::checkpoint::{CheckpointStore, Identity};
    /// let mut store = CheckpointStore::empty(Identity::default());
    /// store.give_up(LogId::archive(PartitionId(0)), Version(1));
    /// ```
    pub fn give_up(&mut self, log: LogId, version: Version) {
        if log.archived().is_some() {
            self.given_up.insert((log, version));
        }
    }

    /// The versions that collection leaves alone.
    pub(crate) fn kept(&self, log: LogId) -> BTreeSet<Version> {
        let all = self.versions(log).iter().map(|info| info.manifest.version);
        if log.archived().is_some() {
            // No part of an archive replaces another: each stays until it is given up by name.
            return all.filter(|&version| !self.given_up.contains(&(log, version))).collect();
        }
        let (Some(first), Some(second)) = self.tips(log) else { return all.collect() };
        let mut kept = BTreeSet::new();
        let pinned = self.versions(log).iter().filter(|info| info.pinned).map(|info| info.manifest.version);
        // What is being written builds on something; and what is newer than the second chain is
        // evidence (quarantined, damaged) of why that chain may be needed soon.
        let base = self.writers.get(&log).and_then(|writer| writer.manifest.base);
        let recent = all.clone().filter(|&version| version > second && !self.is_usable(log, version));
        let floor = self.floors.get(&log).copied();
        let wanted = all.clone().filter(|&version| floor.is_some_and(|floor| version >= floor));
        for tip in pinned.chain([first, second]).chain(base).chain(recent).chain(wanted) {
            kept.insert(tip);
            kept.extend(self.chain(log, tip).unwrap_or_default());
        }
        kept
    }
}

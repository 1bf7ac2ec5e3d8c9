//! Opening: which versions are there, and making both copies agree on them.
//!
//! Decides, per version, which manifest is the right one (a sound one of this store and lineage; of
//! two different sound ones the newer epoch's) and what is rubbish. Never removes a file (collection
//! does); never repairs a version that collection would remove anyway, so that a collection cut short
//! by a crash goes on instead of being undone; never touches what a newer release or another store
//! wrote.
//!
//! Invariants: running it twice finds nothing the second time; what it found once stays, also when the
//! power goes right after it.

use super::manifest::{FileKind, Identity, Manifest, ManifestError, file_name, parse_name};
use super::read::{check_manifest, load_manifest};
use super::versions::{VersionInfo, VersionState};
use super::{CheckpointEvent, CheckpointStore};
use crate::copies::{Copies, CopyIndex};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, Lane, Op};
use rallypoint_base::id::{LogId, Version};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// May a scan write?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanMode {
    /// Bring back on each copy what another one has.
    Repair,
    /// Only report ([`Finding::Lacking`] instead of repairs).
    LookOnly,
}

/// What a scan found, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A manifest was brought back from another copy.
    RepairedManifest {
        /// On which copy.
        copy: CopyIndex,
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// A part was brought back from another copy.
    RepairedPart {
        /// On which copy.
        copy: CopyIndex,
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// How many chunks.
        chunks: usize,
    },
    /// A copy lacks manifest or part, and the scan only looked.
    Lacking {
        /// Which copy.
        copy: CopyIndex,
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// A copy lacks something that could not be brought back; another copy still has it, or none.
    NotRepaired {
        /// Which copy.
        copy: CopyIndex,
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Why.
        why: String,
    },
    /// No copy has a sound manifest: the version cannot be used.
    ManifestLost {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What is wrong with it.
        why: String,
    },
    /// No copy has the part: the version cannot be used.
    PartLost {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// A version that it builds on is gone or cannot be used, so it cannot either.
    ChainBroken {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
    },
    /// Left by a checkpoint or a collection that was cut short; collected.
    Unfinished {
        /// The file.
        name: String,
    },
    /// Begins like a checkpoint's file but is none; left alone.
    UnknownFile {
        /// The file.
        name: String,
    },
    /// Belongs to another store or lineage; left alone.
    Foreign {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// Store and lineage it says.
        identity: Identity,
    },
    /// A copy failed: the mirror must take it out.
    CopyFailed {
        /// Which copy.
        copy: CopyIndex,
        /// How.
        error: DiskError,
    },
}

impl Finding {
    /// As an event, where one says the same.
    pub(super) fn into_event(self) -> Option<CheckpointEvent> {
        match self {
            Self::RepairedManifest { copy, log, version } => {
                Some(CheckpointEvent::Repaired { copy, log, version, chunk: 0 })
            }
            Self::RepairedPart { copy, log, version, .. } => {
                Some(CheckpointEvent::Repaired { copy, log, version, chunk: 0 })
            }
            Self::CopyFailed { copy, error } => Some(CheckpointEvent::CopyFailed { copy, error }),
            _ => None,
        }
    }
}

/// Why the checkpoints cannot be opened at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ScanError {
    /// No copy could be listed.
    #[error("no copy can be read: {error}")]
    NoCopy {
        /// What the last one said.
        error: DiskError,
    },
    /// A newer release wrote here.
    #[error("checkpoint {version} of {log}: {error}")]
    Newer {
        /// Whose.
        log: LogId,
        /// Which.
        version: Version,
        /// What it needs.
        error: ManifestError,
    },
}

/// What the names say about one version.
#[derive(Debug, Default)]
struct Names {
    manifest: BTreeSet<CopyIndex>,
    /// Length of the part per copy.
    part: BTreeMap<CopyIndex, u64>,
    pinned: bool,
    failed: u32,
    files: BTreeSet<FileKind>,
}

type AllNames = BTreeMap<(LogId, Version), Names>;

impl CheckpointStore {
    /// Opens the checkpoints of a directory: takes the versions there are, compares the copies and
    /// (unless only looking) brings back on each copy what another one has. Call
    /// [`CheckpointStore::collect`] afterwards.
    ///
    /// # Errors
    /// [`ScanError`]; damage to single versions is no error but a [`Finding`].
    pub fn scan<D: Disk>(
        copies: &mut Copies<D>,
        identity: Identity,
        mode: ScanMode,
    ) -> Result<(Self, Vec<Finding>), ScanError> {
        let mut store = Self::empty(identity);
        let mut findings = Vec::new();
        let (names, listed) = store.list(copies, mode, &mut findings)?;
        let mut bad_manifests = BTreeMap::new();
        for (&(log, version), names) in &names {
            let highest = store.highest.entry(log).or_default();
            *highest = version.max(*highest);
            let bad = store.take_version(copies, log, version, names, &listed, &mut findings)?;
            bad_manifests.insert((log, version), bad);
        }
        let mut lacking = BTreeMap::new();
        for (&(log, version), names) in &names {
            let Some(info) = store.version(log, version) else { continue };
            let (len, damaged) = (info.manifest.part_len(), info.state == VersionState::Damaged);
            if !damaged && !store.is_usable(log, version) && info.state == VersionState::Good {
                findings.push(Finding::ChainBroken { log, version });
            }
            if damaged || !store.kept(log).contains(&version) {
                continue;
            }
            let bad = bad_manifests.get(&(log, version));
            let whole = |copy: &CopyIndex| {
                names.manifest.contains(copy)
                    && bad.is_none_or(|bad| !bad.contains(copy))
                    && names.part.get(copy).is_some_and(|&part| part >= len)
            };
            let without: Vec<CopyIndex> = listed.iter().copied().filter(|copy| !whole(copy)).collect();
            if !without.is_empty() {
                lacking.insert((log, version), without);
            }
        }
        for ((log, version), without) in lacking {
            if mode == ScanMode::LookOnly {
                findings.extend(without.into_iter().map(|copy| Finding::Lacking { copy, log, version }));
                continue;
            }
            let failed =
                |f: &Finding| if let Finding::CopyFailed { copy, .. } = f { Some(*copy) } else { None };
            let skip = findings.iter().filter_map(failed).collect();
            findings.extend(store.repair_version(copies, log, version, &skip));
        }
        Ok((store, findings))
    }

    fn list<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        mode: ScanMode,
        findings: &mut Vec<Finding>,
    ) -> Result<(AllNames, Vec<CopyIndex>), ScanError> {
        let mut versions = AllNames::new();
        let (mut listed, mut last_error, mut unknown) = (Vec::new(), None, BTreeSet::new());
        for copy in copies.live() {
            // After `kill -9` a manifest may be visible whose name only the cache has. Whoever used it
            // would cut the log to it, and a power cut would take it away.
            let synced = match mode {
                ScanMode::Repair => copies.run(copy, Lane::Bulk, Op::SyncNames),
                ScanMode::LookOnly => Ok(Done::Unit),
            };
            let files = match synced.and_then(|_| copies.run(copy, Lane::Bulk, Op::List)) {
                Ok(Done::Names(files)) => files,
                Ok(_) => continue,
                Err(error) => {
                    findings.push(Finding::CopyFailed { copy, error: error.clone() });
                    last_error = Some(error);
                    continue;
                }
            };
            listed.push(copy);
            for (name, len) in files.into_iter().filter(|(name, _)| name.starts_with("cp-")) {
                let Some((log, version, kind)) = parse_name(&name) else {
                    unknown.insert(name);
                    continue;
                };
                let names = versions.entry((log, version)).or_default();
                names.files.insert(kind);
                match kind {
                    FileKind::Manifest => drop(names.manifest.insert(copy)),
                    FileKind::Part => drop(names.part.insert(copy, len)),
                    FileKind::Pinned => names.pinned = true,
                    FileKind::Failed(n) => names.failed = names.failed.max(n),
                    FileKind::PartTemp | FileKind::ManifestTemp => {}
                }
            }
        }
        if listed.is_empty() {
            let error = last_error.unwrap_or_else(|| DiskError {
                kind: DiskErrorKind::Gone,
                operation: "listing the checkpoints".into(),
                detail: "there is no copy".into(),
            });
            return Err(ScanError::NoCopy { error });
        }
        findings.extend(unknown.into_iter().map(|name| Finding::UnknownFile { name }));
        Ok((versions, listed))
    }

    /// Takes one version in, if there is one. Answers which copies have a manifest of it that is bad
    /// or not the chosen one.
    fn take_version<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        log: LogId,
        version: Version,
        names: &Names,
        listed: &[CopyIndex],
        findings: &mut Vec<Finding>,
    ) -> Result<BTreeSet<CopyIndex>, ScanError> {
        let (mut sound, mut bad) = (Vec::new(), BTreeSet::new());
        let (mut foreign, mut why) = (None, None);
        for &copy in listed.iter().filter(|copy| names.manifest.contains(copy)) {
            let found = match load_manifest(copies, copy, log, version) {
                Ok(bytes) => check_manifest(&bytes, log, version),
                Err(error) => {
                    // A sector that cannot be read is repaired like one that is wrong.
                    if error.kind != DiskErrorKind::Io {
                        findings.push(Finding::CopyFailed { copy, error: error.clone() });
                    }
                    why = Some(error.to_string());
                    bad.insert(copy);
                    continue;
                }
            };
            match found {
                Ok(manifest) if manifest.identity != self.identity => foreign = Some(manifest.identity),
                Ok(manifest) => sound.push((copy, manifest)),
                Err(error @ ManifestError::Newer { .. }) => {
                    return Err(ScanError::Newer { log, version, error });
                }
                Err(error) => {
                    why = Some(error.to_string());
                    bad.insert(copy);
                }
            }
        }
        // Copies that agree are the rule; else the newer epoch's, else the first written one's.
        let rank = |m: &Manifest| (m.epoch, m.position, m.created);
        let mut best: Option<Manifest> = None;
        for (_, manifest) in &sound {
            if best.as_ref().is_none_or(|best| rank(manifest) > rank(best)) {
                best = Some(manifest.clone());
            }
        }
        bad.extend(
            sound.iter().filter(|(_, manifest)| Some(manifest) != best.as_ref()).map(|(copy, _)| *copy),
        );
        let temps = [FileKind::PartTemp, FileKind::ManifestTemp];
        for &kind in names.files.iter().filter(|kind| temps.contains(kind)) {
            self.unfinished(log, version, kind, findings);
        }
        let Some(manifest) = best else {
            if let Some(identity) = foreign {
                findings.push(Finding::Foreign { log, version, identity });
            } else if let Some(why) = why {
                self.unreadable.insert((log, version));
                findings.push(Finding::ManifestLost { log, version, why });
            } else {
                for &kind in names.files.iter().filter(|kind| !temps.contains(kind)) {
                    self.unfinished(log, version, kind, findings);
                }
            }
            return Ok(bad);
        };
        let len = manifest.part_len();
        let mut info = VersionInfo::new(manifest, names.pinned, names.failed);
        if !names.part.values().any(|&part| part >= len) {
            // A part that every copy has too short is as lost as one that none has.
            info.state = VersionState::Damaged;
            findings.push(Finding::PartLost { log, version });
        }
        self.add_version(info);
        Ok(bad)
    }

    fn unfinished(&mut self, log: LogId, version: Version, kind: FileKind, findings: &mut Vec<Finding>) {
        let name = file_name(log, version, kind);
        self.garbage.insert(name.clone());
        findings.push(Finding::Unfinished { name });
    }
}

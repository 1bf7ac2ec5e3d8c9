//! Reading every block and record of a journal on every in-sync copy, without writing anything.
//!
//! Decides nothing that recovery does not decide; it is recovery with a read-only mount, so that what
//! `verify` says is what an opening would do. (Checkpoints are verified by their own store.)
//!
//! Invariant: not one byte is written, not even a repair.

use crate::checkpoint::{
    CheckpointStore, Finding as CheckpointFinding, Identity as CheckpointIdentity, Rot, ScanError, ScanMode,
};
use crate::copies::CopyIndex;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::mirror::Outsider;
use crate::record::Record;
use crate::recovery::{RecoverError, RecoveryReport};
use crate::store::{Identity, OpenOptions, Store};
use rallypoint_base::id::{Epoch, LogId, Version};
use std::convert::Infallible;
use thiserror::Error;

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// What the directory is.
    pub identity: Identity,
    /// Its last epoch.
    pub epoch: Epoch,
    /// What an opening would do: what it would repair (`findings`), cut, and not give back (`lost`).
    pub journal: RecoveryReport,
    /// Copies that were given and do not take part.
    pub outsiders: Vec<(CopyIndex, Outsider)>,
    /// Numbers of in-sync copies that are absent.
    pub absent: Vec<u8>,
}

impl VerifyReport {
    /// Nothing is wrong and nothing is missing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.journal.findings.is_empty()
            && self.journal.lost.is_empty()
            && self.outsiders.is_empty()
            && self.absent.is_empty()
    }

    /// An opening would lose nothing: whatever is wrong, a good copy exists.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.journal.lost.is_empty()
    }
}

/// Reads and checks everything. An absent copy is reported, not refused.
///
/// # Errors
/// [`StoreError`] when there is no store to verify.
pub fn verify<D: Disk>(disks: Vec<D>) -> Result<VerifyReport, StoreError> {
    let open = OpenOptions { read_only: true, degraded: true, ..OpenOptions::default() };
    let mounted = Store::mount(disks, open)?;
    let identity = mounted.identity().clone();
    let outsiders = mounted.outsiders().to_vec();
    let absent = mounted.absent().to_vec();
    let epoch = mounted.epoch();
    match mounted.recover::<Infallible>(&mut |_| Ok(())) {
        Ok((_, journal)) => Ok(VerifyReport { identity, epoch, journal, outsiders, absent }),
        Err(RecoverError::Store(error)) => Err(error),
        Err(RecoverError::Sink(never)) => match never {},
    }
}

/// Whoever wants to see what a verification reads.
pub trait Visitor {
    /// The engine's header of a checkpoint (`newest`: of the newest usable one of its log). All headers
    /// come before the first record.
    fn header(&mut self, log: LogId, version: Version, newest: bool, header: &[u8]);
    /// A record of the journal, in order.
    fn record(&mut self, record: &Record<'_>);
    /// This many bytes of checkpoints were read.
    fn bytes(&mut self, bytes: u64);
}

/// What a verification of a whole journal directory found.
#[derive(Debug)]
pub struct FullReport {
    /// Superblock and journal.
    pub journal: VerifyReport,
    /// The checkpoints that there are.
    pub checkpoints: CheckpointStore,
    /// Their manifests and names.
    pub findings: Vec<CheckpointFinding>,
    /// Their content.
    pub rot: Vec<Rot>,
    /// Headers that could not be read.
    pub headers: Vec<(LogId, Version, String)>,
}

/// Why there is nothing to verify.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No store, or one that cannot be read at all.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The checkpoints cannot be listed.
    #[error("the checkpoints cannot be listed: {0}")]
    Checkpoints(#[from] ScanError),
}

/// Reads and checks everything of a journal directory: superblock, checkpoints (where `parts` says so
/// with every chunk on every copy), and the journal from its head. An absent copy is reported, not
/// refused.
///
/// # Errors
/// [`VerifyError`] when there is nothing to verify.
pub fn verify_all<D: Disk>(
    disks: Vec<D>,
    parts: bool,
    visitor: &mut dyn Visitor,
) -> Result<FullReport, VerifyError> {
    let open = OpenOptions { read_only: true, degraded: true, ..OpenOptions::default() };
    let mut mounted = Store::mount(disks, open)?;
    let identity = mounted.identity().clone();
    let outsiders = mounted.outsiders().to_vec();
    let absent = mounted.absent().to_vec();
    let epoch = mounted.epoch();
    let whose = CheckpointIdentity { store: identity.store, lineage: identity.lineage };
    let (mut checkpoints, findings) = CheckpointStore::scan(mounted.copies(), whose, ScanMode::LookOnly)?;
    let rot = match parts {
        true => checkpoints.verify(mounted.copies(), &mut |bytes| visitor.bytes(bytes)),
        false => Vec::new(),
    };
    let mut headers = Vec::new();
    for log in checkpoints.logs().collect::<Vec<_>>() {
        let newest = checkpoints.newest(log);
        let versions: Vec<Version> =
            checkpoints.versions(log).iter().map(|info| info.manifest.version).collect();
        for version in versions {
            match checkpoints.read_header(mounted.copies(), log, version) {
                Ok(header) => visitor.header(log, version, newest == Some(version), &header),
                Err(error) => headers.push((log, version, error.to_string())),
            }
        }
    }
    let mut sink = |record: &Record<'_>| -> Result<(), Infallible> {
        visitor.record(record);
        Ok(())
    };
    let journal = match mounted.recover(&mut sink) {
        Ok((_, journal)) => journal,
        Err(RecoverError::Store(error)) => return Err(error.into()),
        Err(RecoverError::Sink(never)) => match never {},
    };
    let journal = VerifyReport { identity, epoch, journal, outsiders, absent };
    Ok(FullReport { journal, checkpoints, findings, rot, headers })
}

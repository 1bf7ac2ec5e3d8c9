//! Reading every block and record of a journal on every in-sync copy, without writing anything.
//!
//! Decides nothing that recovery does not decide; it is recovery with a read-only mount, so that what
//! `verify` says is what an opening would do. (Checkpoints are verified by their own store.)
//!
//! Invariant: not one byte is written, not even a repair.

use crate::copies::CopyIndex;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::mirror::Outsider;
use crate::recovery::{RecoverError, RecoveryReport};
use crate::store::{Identity, OpenOptions, Store};
use rallypoint_base::id::Epoch;
use std::convert::Infallible;

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

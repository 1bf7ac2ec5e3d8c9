//! Reading every part on every copy, without writing anything.
//!
//! Decides which chunk of which copy does not have its manifest's hash. Never repairs and never
//! condemns: that is for a scrub. (Manifests are read and compared by [`CheckpointStore::scan`].)

use super::CheckpointStore;
use super::manifest::{FileKind, file_name};
use super::read::{close_part, open_part, read_chunk};
use crate::copies::{Copies, CopyIndex};
use crate::disk::Disk;
use rallypoint_base::id::{LogId, Version};
use rallypoint_base::limits::BLOCK;

/// One bad chunk of one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rot {
    /// Which copy.
    pub copy: CopyIndex,
    /// Whose checkpoint.
    pub log: LogId,
    /// Which.
    pub version: Version,
    /// File name.
    pub file: String,
    /// Its first block in the file.
    pub block: u64,
    /// Which chunk.
    pub chunk: usize,
    /// Another copy has it right.
    pub repairable: bool,
}

impl CheckpointStore {
    /// Reads every chunk of every version on every copy that has the part. `progress` hears of the
    /// bytes read.
    pub fn verify<D: Disk>(&self, copies: &mut Copies<D>, progress: &mut dyn FnMut(u64)) -> Vec<Rot> {
        let mut all = Vec::new();
        for log in self.logs() {
            for info in self.versions(log) {
                let manifest = &info.manifest;
                let version = manifest.version;
                let files = open_part(copies, log, version);
                for (chunk, offset) in manifest.offsets().into_iter().enumerate() {
                    let (mut good, mut bad) = (false, Vec::new());
                    for (&copy, &file) in &files {
                        match read_chunk(copies, copy, file, manifest, chunk, offset) {
                            Ok(_) => good = true,
                            Err(_) => bad.push(copy),
                        }
                        progress(manifest.chunks[chunk].padded() as u64);
                    }
                    all.extend(bad.into_iter().map(|copy| Rot {
                        copy,
                        log,
                        version,
                        file: file_name(log, version, FileKind::Part),
                        block: offset / BLOCK as u64,
                        chunk,
                        repairable: good,
                    }));
                }
                close_part(copies, &files);
            }
        }
        all
    }
}

//! The running store as a backup sees it: its in-sync copies, read only.
//!
//! Decides which blocks belong to the image. Never waits for the store and never disturbs it beyond
//! the bandwidth of its reads; what it reads may be half written, so a block counts only when it is
//! sound in its place, and a commit only when all its blocks do.

use super::BackupError;
use crate::block::{self, Found, Header, Home, Place};
use crate::checkpoint::{CheckpointStore, Identity, ReadError, ScanError, ScanMode, VersionInfo};
use crate::copies::CopyIndex;
use crate::disk::{Disk, Done, FileId, Lane, Op};
use crate::error::StoreError;
use crate::journal::segment_name;
use crate::mirror::{Mirror, MountRules};
use crate::superblock::{FILE_BYTES, SLOT_BYTES, SLOTS, Superblock};
use rallypoint_base::id::{CommitSeq, Generation, LogId, Version};
use rallypoint_base::limits::BLOCK;

const PIECE: usize = 1 << 20;

pub(super) struct Source<S> {
    mirror: Mirror<S>,
    checkpoints: CheckpointStore,
    home: Home,
}

type Segment<'a> = dyn FnMut(Generation, &str, &[u8]) -> Result<(), BackupError> + 'a;

impl<S: Disk> Source<S> {
    pub(super) fn open(disks: Vec<S>) -> Result<Self, StoreError> {
        let rules = MountRules { read_only: true, degraded: true, keep: None };
        let mirror = Mirror::mount(disks, rules)?;
        let state = &mirror.state;
        let home = Home { store: state.store, lineage: state.lineage, directory: state.directory };
        let identity = Identity { store: state.store, lineage: state.lineage };
        Ok(Self { checkpoints: CheckpointStore::empty(identity), home, mirror })
    }

    pub(super) fn state(&self) -> &Superblock {
        &self.mirror.state
    }

    pub(super) fn into_disks(self) -> Vec<S> {
        self.mirror.copies.into_disks()
    }

    /// The versions that the store keeps and can use, oldest first within each log.
    pub(super) fn checkpoints(&mut self) -> Result<Vec<VersionInfo>, ScanError> {
        let identity = self.checkpoints.identity();
        let (store, _) = CheckpointStore::scan(&mut self.mirror.copies, identity, ScanMode::LookOnly)?;
        let mut versions = Vec::new();
        for log in store.logs() {
            let kept = store.kept(log);
            let wanted = |info: &&VersionInfo| {
                kept.contains(&info.manifest.version) && store.is_usable(log, info.manifest.version)
            };
            versions.extend(store.versions(log).iter().filter(wanted).cloned());
        }
        self.checkpoints = store;
        Ok(versions)
    }

    pub(super) fn header(&mut self, log: LogId, version: Version) -> Result<Vec<u8>, ReadError> {
        self.checkpoints.read_header(&mut self.mirror.copies, log, version)
    }

    pub(super) fn part(
        &mut self,
        log: LogId,
        version: Version,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), ReadError> {
        self.checkpoints.read(&mut self.mirror.copies, log, version, sink)
    }

    /// The highest watermark there is now: everything up to it is durable on all in-sync copies.
    pub(super) fn watermark(&mut self) -> CommitSeq {
        let (first, last) = (self.mirror.state.first, self.mirror.state.last);
        // Watermarks grow with the journal, so the newest segment with any block has the highest.
        for generation in (first.0..=last.0).rev().map(Generation) {
            let mut highest = None;
            self.blocks(generation, &mut |header, _| highest = highest.max(Some(header.watermark)));
            if let Some(highest) = highest {
                return highest;
            }
        }
        CommitSeq(0)
    }

    /// The superblock of a lone copy whose newest segment is `last`.
    pub(super) fn superblock_image(&self, last: Generation) -> Vec<u8> {
        let state = Superblock { copies: 1, copy: 0, in_sync: 1, last, ..self.mirror.state.clone() };
        let mut image = Vec::with_capacity(FILE_BYTES);
        for slot in 0..SLOTS {
            image.extend_from_slice(&state.encode(0, slot)[..SLOT_BYTES]);
        }
        image
    }

    /// Hands out each segment's image up to its last block of a commit up to `watermark`, everything
    /// later left out.
    pub(super) fn journal(
        &mut self,
        watermark: CommitSeq,
        sink: &mut Segment<'_>,
    ) -> Result<(), BackupError> {
        let (first, last) = (self.mirror.state.first, self.mirror.state.last);
        let mut expected = CommitSeq(self.mirror.state.first_commit.0.max(1));
        let mut index = 0;
        for generation in (first.0..=last.0).map(Generation) {
            let mut image = Vec::new();
            // Block by block in order: the next one is the next of its commit, or the first of the next.
            self.blocks(generation, &mut |header, bytes| {
                let at = header.place.number as usize * BLOCK;
                if header.commit > watermark || at != image.len() {
                    return;
                }
                if header.commit == expected && header.index == index {
                    image.extend_from_slice(bytes);
                    index += 1;
                    if index == header.count {
                        expected = expected.next();
                        index = 0;
                    }
                }
            });
            if index != 0 {
                break;
            }
            // Empty beyond the watermark, but a store has at least its first segment.
            if !image.is_empty() || generation == first {
                sink(generation, &segment_name(generation), &image)?;
            }
            if expected > watermark {
                return Ok(());
            }
        }
        if expected > watermark {
            return Ok(());
        }
        Err(BackupError::Journal { commit: expected, attempts: super::ATTEMPTS })
    }

    /// Every place of a segment at which some in-sync copy has a sound block; of two that differ, the
    /// newer epoch's.
    fn blocks(&mut self, generation: Generation, each: &mut dyn FnMut(&Header, &[u8])) {
        let copies = &mut self.mirror.copies;
        let mut files: Vec<(CopyIndex, FileId)> = Vec::new();
        for copy in copies.live() {
            let name = segment_name(generation);
            if let Ok(Done::Opened { file, .. }) = copies.run(copy, Lane::Bulk, Op::Open { name }) {
                files.push((copy, file));
            }
        }
        let len = self.mirror.state.segment_len;
        for offset in (0..len).step_by(PIECE) {
            let piece = PIECE.min(usize::try_from(len - offset).unwrap_or(PIECE));
            let mut pieces = Vec::new();
            for &(copy, file) in &files {
                match copies.run(copy, Lane::Bulk, Op::Read { file, offset, len: piece }) {
                    Ok(Done::Read(data)) => pieces.push(data.to_vec()),
                    // One sector that cannot be read must not hide the blocks around it.
                    _ => {
                        let mut whole = Vec::with_capacity(piece);
                        for at in (0..piece).step_by(BLOCK) {
                            let op = Op::Read { file, offset: offset + at as u64, len: BLOCK };
                            if let Ok(Done::Read(data)) = copies.run(copy, Lane::Bulk, op) {
                                whole.extend_from_slice(&data);
                            }
                            whole.resize(at + BLOCK, 0);
                        }
                        pieces.push(whole);
                    }
                }
            }
            for at in (0..piece).step_by(BLOCK) {
                let number = ((offset + at as u64) / BLOCK as u64) as u32;
                let place = Place { generation, number };
                let mut best: Option<(Header, &[u8])> = None;
                for bytes in pieces.iter().filter_map(|piece| piece.get(at..at + BLOCK)) {
                    if let Found::Sound(header) = block::judge(bytes, &self.home, place)
                        && best.is_none_or(|(best, _)| header.epoch > best.epoch)
                    {
                        best = Some((header, bytes));
                    }
                }
                if let Some((header, bytes)) = best {
                    each(&header, bytes);
                }
            }
        }
        for (copy, file) in files {
            drop(copies.run(copy, Lane::Bulk, Op::Close { file }));
        }
    }
}

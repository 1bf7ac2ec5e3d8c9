//! Comparing the copies of the journal while it is in use, so that rot is found while the other copy
//! is still good.
//!
//! Decides which block of a pair counts and writes it over the bad one. Never touches a block of the
//! commit in flight or of a segment that is being recycled, and never decides how often: the host
//! asks for each step.
//!
//! Invariants:
//! - A step is at most as many bytes as the caller said; its operations run in the bulk lane.
//! - A repair is idempotent, so a crash in it needs no intent: the next scrub or recovery does it.
//!
//! Source: Lampson and Sturgis 1979 (scrub more often than a twin decays); fault matrix rows 3, 4, 13.

use crate::block::{self, Found, Place};
use crate::copies::{CopyIndex, Owner, Routed};
use crate::disk::{Disk, Done, FileId, Lane, Op, Ticket};
use crate::journal::segment_name;
use crate::recovery::{Finding, FindingKind};
use crate::store::Store;
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{CommitSeq, Generation};
use rallypoint_base::limits::BLOCK;

/// What one step found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Blocks compared.
    pub blocks: u64,
    /// Blocks written anew on one copy.
    pub repaired: u64,
    /// Places that are bad, repaired or not.
    pub findings: Vec<Finding>,
    /// Places that are bad on every copy. The records are still in the memory of the running
    /// program: checkpoint now, so that the journal before them can be cut.
    pub unrepairable: Vec<Finding>,
    /// This step reached the end of the journal; the next one begins at its start.
    pub wrapped: bool,
}

#[derive(Debug)]
enum Work {
    Reading {
        place: Place,
        blocks: u32,
        tickets: Vec<(CopyIndex, Ticket)>,
        parts: Vec<(CopyIndex, AlignedBuffer)>,
        wrapped: bool,
    },
    Repairing {
        generation: Generation,
        tickets: Vec<(CopyIndex, Ticket)>,
        step: ScrubStep,
    },
}

/// Where the scrub is.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    next: Option<Place>,
    work: Option<Work>,
    /// Blank blocks at the end of what was looked at of a segment that recovery did not read.
    blank: Vec<Finding>,
}

impl Scrub {
    /// True while a step reads or writes this segment.
    pub(crate) fn is_on(&self, generation: Generation) -> bool {
        match &self.work {
            None => false,
            Some(Work::Reading { place, .. }) => place.generation == generation,
            Some(Work::Repairing { generation: at, .. }) => *at == generation,
        }
    }

    /// A copy is out. Reads are forgotten; writes to other copies are still waited for.
    pub(crate) fn forget(&mut self, copy: CopyIndex) {
        match &mut self.work {
            Some(Work::Repairing { tickets, .. }) => {
                tickets.retain(|&(owner, _)| owner != copy);
                if tickets.is_empty() {
                    self.work = None;
                }
            }
            _ => self.work = None,
        }
    }
}

impl<D: Disk> Store<D> {
    /// Starts comparing the next `bytes` bytes of the journal. [`crate::store::StoreEvent::Scrubbed`]
    /// tells the end. False when a step is under way already, or there is nothing to compare.
    pub fn scrub_step(&mut self, bytes: usize) -> bool {
        if self.scrub.work.is_some() || self.refusing.is_some() {
            return false;
        }
        let from = self.scrub.next.take();
        let start = from.map_or(0, |place| {
            self.segments.iter().position(|s| s.generation >= place.generation).unwrap_or(0)
        });
        let Some(segment) = self.segments.get(start) else { return false };
        let number =
            from.filter(|place| place.generation == segment.generation).map_or(0, |place| place.number);
        let mut limit = segment.used;
        let is_last = start + 1 == self.segments.len();
        if let (Some(flight), true) = (&self.flight, is_last) {
            limit -= flight.blocks.min(limit);
        }
        let blocks = ((bytes / BLOCK).max(1) as u32).min(limit.saturating_sub(number));
        if blocks == 0 {
            // Nothing more in this segment: the next step begins with the next one, or anew.
            self.scrub.next =
                self.segments.get(start + 1).map(|s| Place { generation: s.generation, number: 0 });
            return self.scrub.next.is_some() && self.scrub_step(bytes);
        }
        let place = Place { generation: segment.generation, number };
        let end = number + blocks;
        let wrapped = end == limit && is_last;
        self.scrub.next = (!wrapped).then_some(Place { number: end, ..place });
        let mut tickets = Vec::new();
        for copy in self.mirror.copies.live() {
            let Some(file) = segment.files[copy] else { continue };
            let op =
                Op::Read { file, offset: u64::from(number) * BLOCK as u64, len: blocks as usize * BLOCK };
            tickets.push((copy, self.mirror.copies.submit(copy, Owner::Scrub, Lane::Bulk, op)));
        }
        self.scrub.work = Some(Work::Reading { place, blocks, tickets, parts: Vec::new(), wrapped });
        true
    }

    pub(crate) fn handle_scrub(&mut self, routed: Routed) {
        let (copy, ticket) = (routed.copy, routed.ticket);
        match self.scrub.work.take() {
            Some(Work::Reading { place, blocks, mut tickets, mut parts, wrapped }) => {
                let before = tickets.len();
                tickets.retain(|&t| t != (copy, ticket));
                if tickets.len() < before {
                    let len = blocks as usize * BLOCK;
                    let data = match routed.result {
                        Ok(Done::Read(data)) if data.len() == len => data,
                        _ => self.read_piecewise(copy, place, blocks),
                    };
                    parts.push((copy, data));
                }
                if tickets.is_empty() {
                    self.compare(place, blocks, parts, wrapped);
                } else {
                    self.scrub.work = Some(Work::Reading { place, blocks, tickets, parts, wrapped });
                }
            }
            Some(Work::Repairing { generation, mut tickets, step }) => {
                let before = tickets.len();
                tickets.retain(|&t| t != (copy, ticket));
                let mine = tickets.len() < before;
                let done = tickets.is_empty();
                if !done {
                    self.scrub.work = Some(Work::Repairing { generation, tickets, step: step.clone() });
                }
                if let (true, Err(error)) = (mine, routed.result) {
                    self.lose_copy(copy, error);
                }
                if done {
                    self.scrubbed(step);
                }
            }
            None => {}
        }
    }

    fn scrubbed(&mut self, step: ScrubStep) {
        self.events.push_back(crate::store::StoreEvent::Scrubbed(step));
        // Recycling may have waited for this.
        self.run_upkeep();
    }

    fn file_of(&self, copy: CopyIndex, generation: Generation) -> Option<FileId> {
        self.segments.iter().find(|segment| segment.generation == generation)?.files[copy]
    }

    /// A read failed somewhere: what cannot be read counts as damage.
    fn read_piecewise(&mut self, copy: CopyIndex, place: Place, blocks: u32) -> AlignedBuffer {
        let mut out = AlignedBuffer::zeroed(blocks as usize * BLOCK);
        let Some(file) = self.file_of(copy, place.generation) else { return out };
        for (index, piece) in out.chunks_exact_mut(BLOCK).enumerate() {
            let offset = (u64::from(place.number) + index as u64) * BLOCK as u64;
            match self.mirror.copies.run(copy, Lane::Bulk, Op::Read { file, offset, len: BLOCK }) {
                Ok(Done::Read(data)) if data.len() == BLOCK => piece.copy_from_slice(&data),
                _ => piece.fill(0xBD),
            }
        }
        out
    }

    fn compare(
        &mut self,
        from: Place,
        blocks: u32,
        mut parts: Vec<(CopyIndex, AlignedBuffer)>,
        wrapped: bool,
    ) {
        parts.sort_by_key(|&(copy, _)| copy);
        let mut step = ScrubStep { blocks: u64::from(blocks), wrapped, ..ScrubStep::default() };
        let mut writes: Vec<(CopyIndex, Place, AlignedBuffer)> = Vec::new();
        let skipped = self.segments.iter().any(|s| s.generation == from.generation && s.skipped);
        if from.number == 0 || !skipped {
            self.scrub.blank.clear();
        }
        for index in 0..blocks {
            let place = Place { number: from.number + index, ..from };
            let range = index as usize * BLOCK..(index as usize + 1) * BLOCK;
            let found: Vec<Found> =
                parts.iter().map(|(_, data)| block::judge(&data[range.clone()], &self.home, place)).collect();
            let best = found
                .iter()
                .enumerate()
                .filter_map(|(part, found)| match found {
                    Found::Sound(header) => Some((header.epoch, std::cmp::Reverse(part), header.commit)),
                    _ => None,
                })
                .max();
            let good = best.map(|(_, std::cmp::Reverse(part), _)| part);
            // Where the last commit of a skipped segment ends is not known: what is blank behind it is
            // nothing, and what is blank before a sound block is a loss.
            let blank = skipped && found.iter().all(|found| matches!(found, Found::Blank | Found::Stale));
            if good.is_some() {
                step.unrepairable.append(&mut self.scrub.blank);
            }
            for (part, (copy, data)) in parts.iter().enumerate() {
                let same = good.is_some_and(|good| data[range.clone()] == parts[good].1[range.clone()]);
                if same {
                    continue;
                }
                let finding = Finding {
                    copy: *copy,
                    directory: self.mirror.place(*copy),
                    file: segment_name(place.generation),
                    block: place.number,
                    commit: best.map_or(CommitSeq(0), |(_, _, commit)| commit),
                    kind: match found[part] {
                        Found::Sound(_) => FindingKind::Differs,
                        Found::Blank | Found::Stale => FindingKind::Missing,
                        Found::Misplaced => FindingKind::Misplaced,
                        Found::Damaged | Found::Unsupported { .. } => FindingKind::Damaged,
                    },
                };
                match good {
                    Some(good) => {
                        writes.push((*copy, place, AlignedBuffer::copy_of(&parts[good].1[range.clone()])));
                        step.findings.push(finding);
                    }
                    None if blank => self.scrub.blank.push(finding),
                    None => step.unrepairable.push(finding),
                }
            }
        }
        step.repaired = writes.len() as u64;
        let mut tickets = Vec::new();
        for (copy, place, data) in writes {
            let Some(file) = self.file_of(copy, place.generation) else { continue };
            let op = Op::Write { file, offset: u64::from(place.number) * BLOCK as u64, data, durable: true };
            tickets.push((copy, self.mirror.copies.submit(copy, Owner::Scrub, Lane::Bulk, op)));
        }
        if tickets.is_empty() {
            self.scrubbed(step);
        } else {
            self.scrub.work = Some(Work::Repairing { generation: from.generation, tickets, step });
        }
    }
}

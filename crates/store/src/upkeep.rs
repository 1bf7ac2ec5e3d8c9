//! Work beside the commits: preparing the next segment, un-naming and recycling old ones.
//!
//! Decides the order of the operations that give a segment its file and its name in the superblock.
//! Never has more than one operation in flight, and never stands in the way of a commit unless the
//! commit needs the segment that is being prepared.
//!
//! Invariants:
//! - File, then its name durable, then the superblock that names it on every copy, then the first
//!   block: so a named segment that is absent is damage and never a crash.
//! - The superblock that un-names a segment is durable on every copy before its file gets another
//!   name: so a crash between them leaves a file that nothing names, which is space for the next one.
//! - Recovery needs no space: everything here begins only after it.
//!
//! Source: ALICE (OSDI '14) for what a file system may reorder; fault matrix rows 16, 17, 19.

use crate::copies::{CopyIndex, Owner};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use crate::error::StoreError;
use crate::journal::{Segment, segment_name};
use crate::mirror::protocol_error;
use crate::store::{Store, StoreEvent};
use crate::superblock::SLOTS;
use rallypoint_base::id::Generation;
use std::collections::VecDeque;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Give the copy a file for the segment: a free one under a new name, or a new one.
    Claim {
        copy: CopyIndex,
    },
    Rename {
        copy: CopyIndex,
    },
    Create {
        copy: CopyIndex,
    },
    SyncNames {
        copy: CopyIndex,
    },
    Open {
        copy: CopyIndex,
    },
    /// Name the segment in the superblock.
    Name,
    Slot {
        copy: CopyIndex,
        slot: usize,
    },
    /// The segment may be written to.
    Ready,
    /// Un-name the segments at the front that nothing needs.
    Head,
    Retire {
        count: usize,
    },
    /// `regained`: the file is space that was not there before.
    Close {
        copy: CopyIndex,
        file: FileId,
        name: String,
        regained: bool,
    },
    Remove {
        copy: CopyIndex,
        name: String,
        why: Why,
    },
}

/// Why a file is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It may have been made in part when the space ran out.
    Partial,
    /// There are enough free ones.
    Excess,
    /// It has the name that a new one needs.
    InTheWay,
}

impl Step {
    fn copy(&self) -> Option<CopyIndex> {
        match self {
            Self::Claim { copy }
            | Self::Rename { copy }
            | Self::Create { copy }
            | Self::SyncNames { copy }
            | Self::Open { copy }
            | Self::Slot { copy, .. }
            | Self::Close { copy, .. }
            | Self::Remove { copy, .. } => Some(*copy),
            Self::Name | Self::Ready | Self::Head | Self::Retire { .. } => None,
        }
    }
}

/// State of the work beside the commits.
#[derive(Debug)]
pub(crate) struct Upkeep {
    steps: VecDeque<Step>,
    current: Option<(CopyIndex, Ticket, Step)>,
    preparing: Option<Segment>,
    /// Files that nothing names, by copy.
    free: Vec<Vec<String>>,
    spare: usize,
    /// Why the next segment could not be prepared. Cleared when there is reason to try again.
    pub(crate) space_short: Option<StoreError>,
    /// [`StoreEvent::SpaceBack`] is owed.
    was_short: bool,
    /// Somebody else writes the superblock.
    paused: bool,
}

impl Upkeep {
    pub(crate) fn new(free: Vec<Vec<String>>, spare: usize) -> Self {
        Self {
            steps: VecDeque::new(),
            current: None,
            preparing: None,
            free,
            spare,
            space_short: None,
            was_short: false,
            paused: false,
        }
    }

    /// A copy is out: nothing more is done on it.
    pub(crate) fn forget(&mut self, copy: CopyIndex) {
        self.steps.retain(|step| step.copy() != Some(copy));
        if self.current.as_ref().is_some_and(|(at, _, _)| *at == copy) {
            self.current = None;
        }
        self.free[copy].clear();
    }
}

impl<D: Disk> Store<D> {
    /// Starts the next operation, if none is in flight and there is something to do.
    pub(crate) fn run_upkeep(&mut self) {
        loop {
            if self.upkeep.current.is_some() || self.upkeep.paused || self.is_closed() {
                return;
            }
            if self.upkeep.steps.is_empty() && !self.plan_upkeep() {
                return;
            }
            let Some(step) = self.upkeep.steps.pop_front() else { return };
            let Some(copy) = step.copy() else {
                if !self.take_step(&step) {
                    self.upkeep.steps.push_front(step);
                    return;
                }
                continue;
            };
            let Some((step, op)) = self.operation(copy, step) else { continue };
            let ticket = self.mirror.copies.submit(copy, Owner::Journal, Lane::Bulk, op);
            self.upkeep.current = Some((copy, ticket, step));
        }
    }

    fn is_closed(&self) -> bool {
        // A store that waits for space must be able to make some.
        !matches!(self.refusing, None | Some(StoreError::NoSpace { .. }))
    }

    fn front_segments_not_needed(&self) -> usize {
        let old = self.segments.len().saturating_sub(1);
        self.segments.iter().take(old).take_while(|segment| !segment.is_needed(&self.logs)).count()
    }

    fn plan_upkeep(&mut self) -> bool {
        if self.front_segments_not_needed() > 0 {
            self.upkeep.steps.push_back(Step::Head);
            return true;
        }
        if self.ready.len() < self.upkeep.spare && self.upkeep.space_short.is_none() {
            let files = vec![None; self.mirror.copies.len()];
            self.upkeep.preparing = Some(Segment::new(self.mirror.state.last.next(), files));
            for copy in self.mirror.copies.live() {
                self.upkeep.steps.push_back(Step::Claim { copy });
            }
            for copy in self.mirror.copies.live() {
                self.upkeep.steps.push_back(Step::SyncNames { copy });
            }
            for copy in self.mirror.copies.live() {
                self.upkeep.steps.push_back(Step::Open { copy });
            }
            self.upkeep.steps.push_back(Step::Name);
            return true;
        }
        false
    }

    fn preparing(&self) -> Generation {
        self.upkeep.preparing.as_ref().map_or(Generation(0), |segment| segment.generation)
    }

    /// The operation of a step, or `None` when it needs none.
    fn operation(&mut self, copy: CopyIndex, step: Step) -> Option<(Step, Op)> {
        let generation = self.preparing();
        let name = segment_name(generation);
        let len = self.mirror.state.segment_len;
        match step {
            Step::Claim { .. } => {
                let free = &mut self.upkeep.free[copy];
                if let Some(at) = free.iter().position(|free| *free == name) {
                    // Left over from an attempt that the other copy had no space for.
                    free.remove(at);
                    return None;
                }
                match free.pop() {
                    Some(from) => Some((Step::Rename { copy }, Op::Rename { from, to: name })),
                    None => Some((Step::Create { copy }, Op::Create { name, len })),
                }
            }
            Step::SyncNames { .. } => Some((step, Op::SyncNames)),
            Step::Open { .. } => {
                let open =
                    self.upkeep.preparing.as_ref().is_some_and(|segment| segment.files[copy].is_some());
                (!open).then_some((step, Op::Open { name }))
            }
            Step::Slot { slot, .. } => {
                let op = self.mirror.slot_write(copy, slot)?;
                Some((step, op))
            }
            Step::Close { file, .. } => Some((step, Op::Close { file })),
            Step::Remove { ref name, .. } => {
                let op = Op::Remove { name: name.clone() };
                Some((step, op))
            }
            Step::Rename { .. }
            | Step::Create { .. }
            | Step::Name
            | Step::Ready
            | Step::Head
            | Step::Retire { .. } => None,
        }
    }

    fn push_slots(&mut self) {
        self.mirror.state.sequence += 1;
        for copy in self.mirror.copies.live() {
            for slot in 0..SLOTS {
                self.upkeep.steps.push_back(Step::Slot { copy, slot });
            }
        }
    }

    /// A step that is no operation. False when it has to wait.
    fn take_step(&mut self, step: &Step) -> bool {
        match *step {
            Step::Name => {
                self.mirror.state.last = self.preparing();
                self.push_slots();
                self.upkeep.steps.push_back(Step::Ready);
            }
            Step::Ready => {
                if let Some(segment) = self.upkeep.preparing.take() {
                    self.ready.push_back(segment);
                }
                if std::mem::take(&mut self.upkeep.was_short) {
                    self.events.push_back(StoreEvent::SpaceBack);
                }
                self.take_off();
            }
            Step::Head => {
                let count = self.front_segments_not_needed();
                let Some(head) = self.segments.get(count) else { return true };
                self.mirror.state.first = head.generation;
                self.mirror.state.first_commit = head.first_commit;
                self.mirror.state.first_hash = head.first_hash;
                self.push_slots();
                self.upkeep.steps.push_back(Step::Retire { count });
            }
            Step::Retire { count } => {
                if self.segments.iter().take(count).any(|segment| self.scrub.is_on(segment.generation)) {
                    return false;
                }
                for segment in self.segments.drain(..count) {
                    for copy in self.mirror.copies.live() {
                        if let Some(file) = segment.files[copy] {
                            let name = segment_name(segment.generation);
                            self.upkeep.steps.push_back(Step::Close { copy, file, name, regained: true });
                        }
                    }
                }
            }
            _ => {}
        }
        true
    }

    /// An operation of the upkeep ended.
    pub(crate) fn handle_upkeep(&mut self, copy: CopyIndex, ticket: Ticket, result: Result<Done, DiskError>) {
        if self.upkeep.current.as_ref().is_none_or(|(c, t, _)| (*c, *t) != (copy, ticket)) {
            return;
        }
        let Some((_, _, step)) = self.upkeep.current.take() else { return };
        match (step, result) {
            (Step::Create { .. } | Step::Open { .. }, Ok(Done::Opened { file, .. })) => {
                if let Some(segment) = self.upkeep.preparing.as_mut() {
                    segment.files[copy] = Some(file);
                }
            }
            (Step::Create { .. }, Err(error)) if error.kind == DiskErrorKind::NoSpace => {
                self.out_of_space(copy, error);
            }
            // A leftover of an attempt whose removal did not survive.
            (Step::Create { .. }, Err(error)) if error.kind == DiskErrorKind::Exists => {
                let name = segment_name(self.preparing());
                self.upkeep.steps.push_front(Step::Claim { copy });
                self.upkeep.steps.push_front(Step::Remove { copy, name, why: Why::InTheWay });
            }
            (Step::Close { name, regained, .. }, Ok(_)) => {
                if regained {
                    self.upkeep.space_short = None;
                }
                if self.upkeep.free[copy].len() < self.upkeep.spare {
                    self.upkeep.free[copy].push(name);
                } else {
                    self.upkeep.steps.push_back(Step::Remove { copy, name, why: Why::Excess });
                }
            }
            // What is not removed now is found, and used or removed, at the next opening.
            (Step::Remove { why: Why::Partial | Why::Excess, .. }, _) => {}
            (Step::Create { .. } | Step::Open { .. }, Ok(_)) => {
                self.lose_copy(copy, protocol_error("a segment"));
            }
            (_, Ok(_)) => {}
            (_, Err(error)) => self.lose_copy(copy, error),
        }
        self.run_upkeep();
    }

    /// No space for the segment: what other copies made for it is kept for the next attempt.
    fn out_of_space(&mut self, copy: CopyIndex, error: DiskError) {
        self.upkeep.steps.clear();
        let place = self.mirror.place(copy);
        let error = StoreError::NoSpace { place, error };
        if let Some(segment) = self.upkeep.preparing.take() {
            let name = segment_name(segment.generation);
            // A part of the file may be there.
            self.upkeep.steps.push_back(Step::Remove { copy, name: name.clone(), why: Why::Partial });
            for (copy, file) in segment.files.iter().enumerate() {
                if let Some(file) = *file {
                    let name = name.clone();
                    self.upkeep.steps.push_back(Step::Close { copy, file, name, regained: false });
                }
            }
        }
        self.upkeep.space_short = Some(error.clone());
        self.upkeep.was_short = true;
        self.events.push_back(StoreEvent::SpaceShort(error));
        self.refuse_for_space();
    }

    /// Waits until no operation of the upkeep is in flight, and lets it start none until
    /// [`Store::resume_upkeep`]: two writers of one superblock slot would be one too many.
    pub(crate) fn pause_upkeep(&mut self) {
        self.upkeep.paused = true;
        while let Some((copy, ticket, _)) = self.upkeep.current.clone() {
            let result = self.mirror.copies.finish(copy, ticket);
            self.handle_upkeep(copy, ticket, result);
            self.upkeep.paused = true;
        }
    }

    /// See [`Store::pause_upkeep`].
    pub(crate) fn resume_upkeep(&mut self) {
        self.upkeep.paused = false;
    }
}

//! The one or two copies of a journal directory, and whose operation each completion belongs to.
//!
//! Decides nothing: it numbers the copies (0 is written first wherever order matters), routes
//! completions to the part of the store that submitted them, and remembers which copies are out.
//! It never decides *that* a copy is out (the mirror does, and makes it durable first), and never
//! submits to a copy that is.

use crate::disk::{Completion, Disk, DiskError, DiskErrorKind, Done, Lane, Op, Ticket};
use std::collections::{BTreeMap, VecDeque};

/// Index of a copy: 0 for the first directory, 1 for the mirror.
pub type CopyIndex = usize;

/// The part of the store that submitted an operation and wants its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Commits, segment preparation, superblock.
    Journal,
    /// Checkpoint writing and verification.
    Checkpoint,
    /// Scrubbing.
    Scrub,
    /// The durable event log.
    Events,
    /// [`Copies::run`]: somebody waits for exactly this operation.
    Run,
}

/// A completion with its copy and owner.
#[derive(Debug)]
pub struct Routed {
    /// Which copy.
    pub copy: CopyIndex,
    /// Who submitted it.
    pub owner: Owner,
    /// Which operation.
    pub ticket: Ticket,
    /// How it ended.
    pub result: Result<Done, DiskError>,
}

#[derive(Debug)]
struct Copy<D> {
    disk: D,
    out: bool,
    owners: BTreeMap<Ticket, Owner>,
}

/// The copies of one journal directory. See the module.
#[derive(Debug)]
pub struct Copies<D> {
    copies: Vec<Copy<D>>,
    /// Completions that came while somebody waited for another one.
    stashed: VecDeque<Routed>,
}

impl<D: Disk> Copies<D> {
    /// Takes the disks, in copy order.
    #[must_use]
    pub fn new(disks: Vec<D>) -> Self {
        let copies =
            disks.into_iter().map(|disk| Copy { disk, out: false, owners: BTreeMap::new() }).collect();
        Self { copies, stashed: VecDeque::new() }
    }

    /// How many copies there are, in or out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.copies.len()
    }

    /// True when there is no copy at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// The copies that are in, in order.
    pub fn live(&self) -> impl Iterator<Item = CopyIndex> + use<D> {
        let live: Vec<_> = (0..self.copies.len()).filter(|&copy| !self.copies[copy].out).collect();
        live.into_iter()
    }

    /// Takes a copy out of use for the rest of this opening. What it still completes is dropped.
    pub fn take_out(&mut self, copy: CopyIndex) {
        self.copies[copy].out = true;
        self.stashed.retain(|routed| routed.copy != copy);
    }

    /// Takes a copy back into use: a copy that is being written anew.
    pub(crate) fn bring_in(&mut self, copy: CopyIndex) {
        self.copies[copy].out = false;
    }

    /// The disk of a copy, for its name.
    #[must_use]
    pub fn disk(&self, copy: CopyIndex) -> &D {
        &self.copies[copy].disk
    }

    /// Gives the disks back, in copy order.
    #[must_use]
    pub fn into_disks(self) -> Vec<D> {
        self.copies.into_iter().map(|copy| copy.disk).collect()
    }

    /// Starts an operation on one copy. Its completion comes from [`Copies::poll`] or
    /// [`Copies::wait`] under `owner`.
    pub fn submit(&mut self, copy: CopyIndex, owner: Owner, lane: Lane, op: Op) -> Ticket {
        let copy = &mut self.copies[copy];
        debug_assert!(!copy.out, "an operation was submitted to a copy that is out");
        let ticket = copy.disk.submit(lane, op);
        copy.owners.insert(ticket, owner);
        ticket
    }

    /// True when operations of this owner are outstanding on any live copy.
    #[must_use]
    pub fn busy(&self, owner: Owner) -> bool {
        self.copies.iter().any(|copy| !copy.out && copy.owners.values().any(|&o| o == owner))
    }

    /// The next completion, if there is one now.
    pub fn poll(&mut self) -> Option<Routed> {
        if let Some(routed) = self.stashed.pop_front() {
            return Some(routed);
        }
        for index in 0..self.copies.len() {
            while let Some(completion) = self.copies[index].disk.poll() {
                if let Some(routed) = self.route(index, completion) {
                    return Some(routed);
                }
            }
        }
        None
    }

    /// Waits for the next completion on any copy. `None` when nothing is outstanding.
    pub fn wait(&mut self) -> Option<Routed> {
        // Polling hands queued operations of *all* copies to their threads first, so that the
        // copies work at the same time; a single copy is left to run on this thread.
        if self.live().count() > 1 || !self.stashed.is_empty() {
            if let Some(routed) = self.stashed.pop_front() {
                return Some(routed);
            }
            for index in (1..self.copies.len()).rev() {
                while let Some(completion) = self.copies[index].disk.poll() {
                    if let Some(routed) = self.route(index, completion) {
                        return Some(routed);
                    }
                }
            }
        }
        loop {
            let index = (0..self.copies.len())
                .find(|&index| !self.copies[index].out && !self.copies[index].owners.is_empty())?;
            let completion = self.copies[index].disk.wait()?;
            if let Some(routed) = self.route(index, completion) {
                return Some(routed);
            }
        }
    }

    /// Hands what is queued to the disks' threads, so that it runs while the caller goes on; what
    /// completes is kept for [`Copies::poll`] and [`Copies::finish`].
    pub fn start(&mut self) {
        for index in 0..self.copies.len() {
            while let Some(completion) = self.copies[index].disk.poll() {
                if let Some(routed) = self.route(index, completion) {
                    self.stashed.push_back(routed);
                }
            }
        }
    }

    /// Runs one operation on one copy to its end; what else completes meanwhile is kept for
    /// [`Copies::poll`].
    ///
    /// # Errors
    /// The operation's own error.
    pub fn run(&mut self, copy: CopyIndex, lane: Lane, op: Op) -> Result<Done, DiskError> {
        let ticket = self.submit(copy, Owner::Run, lane, op);
        self.finish(copy, ticket)
    }

    /// Waits for one operation that was submitted under [`Owner::Run`].
    ///
    /// # Errors
    /// The operation's own error.
    pub fn finish(&mut self, copy: CopyIndex, ticket: Ticket) -> Result<Done, DiskError> {
        if let Some(at) = self.stashed.iter().position(|r| r.copy == copy && r.ticket == ticket)
            && let Some(routed) = self.stashed.remove(at)
        {
            return routed.result;
        }
        loop {
            let Some(completion) = self.copies[copy].disk.wait() else {
                return Err(DiskError {
                    kind: DiskErrorKind::Gone,
                    operation: format!("waiting for {}", self.copies[copy].disk.name()),
                    detail: "the disk forgot an operation that was submitted to it".into(),
                });
            };
            let Some(routed) = self.route(copy, completion) else { continue };
            if routed.ticket == ticket {
                return routed.result;
            }
            self.stashed.push_back(routed);
        }
    }

    fn route(&mut self, index: CopyIndex, completion: Completion) -> Option<Routed> {
        let copy = &mut self.copies[index];
        let owner = copy.owners.remove(&completion.ticket)?;
        if copy.out {
            return None;
        }
        Some(Routed { copy: index, owner, ticket: completion.ticket, result: completion.result })
    }
}

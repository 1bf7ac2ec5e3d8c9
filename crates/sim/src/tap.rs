//! The disk as a simulated worker sees it.
//!
//! Decides: nothing; counts what recovery paths can only be told from, and swallows what a process
//! that has just aborted would never have submitted.
//!
//! Never: never alters an operation. What a test alters, it alters in a wrapper of its own.

use crate::abort;
use crate::report::Tally;
use rallypoint_store::disk::{Completion, Disk, Lane, Op, Ticket};
use rallypoint_store::sim_disk::SimDisk;

pub(crate) struct Tap {
    inner: SimDisk,
    tally: Tally,
}

impl Tap {
    pub(crate) fn new(inner: SimDisk, tally: Tally) -> Self {
        Self { inner, tally }
    }
}

impl Disk for Tap {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        if abort::has_ended() {
            // No such ticket exists; the process that waits for it does not either.
            return Ticket(u64::MAX);
        }
        match &op {
            Op::Rename { from, to } if from.starts_with("seg-") && to.starts_with("seg-") => {
                self.tally.hit("segment recycled");
            }
            Op::Remove { name } if name.ends_with(".part") => self.tally.hit("old checkpoint removed"),
            _ => {}
        }
        self.inner.submit(lane, op)
    }

    fn poll(&mut self) -> Option<Completion> {
        self.inner.poll()
    }

    fn wait(&mut self) -> Option<Completion> {
        self.inner.wait()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }
}

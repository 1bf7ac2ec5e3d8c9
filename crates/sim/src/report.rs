//! What really happened in a run: each fault kind and each recovery path with its count.
//!
//! Decides: which rows there are and which of them must not be zero over many seeds. A simulation
//! that ends with a zero has not tested that row, whatever it says about the others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// When a row has to be above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// In every long enough run.
    Always,
    /// Only under the independent protocol.
    Independent,
    /// Never: shown because it is worth knowing.
    Never,
}

use Must::{Always, Independent, Never};

/// Group, row, when it must not be zero, what it counts.
const ROWS: &[(&str, &str, Must, &str)] = &[
    ("process", "kill -9", Always, "a worker ended between any two events; the machine lived"),
    ("process", "power loss", Always, "a worker's machine went dark between any two events"),
    ("process", "power loss in an operation", Always, "the same at a disk operation, which happened in part"),
    ("process", "everything at once", Always, "all workers ended at one instant"),
    ("process", "crash in recovery", Always, "the power went while a directory was being opened"),
    ("process", "crash in creation", Always, "the power went while a directory was being created"),
    ("process", "crash in a checkpoint", Always, "a worker ended while a checkpoint was being written"),
    ("process", "hang", Always, "SIGSTOP and SIGCONT within the supervisor's patience"),
    ("process", "hang and kill", Always, "SIGSTOP for longer: killed, waited for, replaced"),
    ("process", "zombie woken", Always, "the stopped process ran on after its successor had begun"),
    ("process", "clock forward", Always, "a worker's clock jumped ahead"),
    ("process", "clock back", Always, "a worker's clock jumped back"),
    ("handler", "handler panicked", Always, "a panic in a handler"),
    ("handler", "handler aborted", Always, "a handler ended its worker"),
    ("effect", "effect without an answer", Always, "performed, and nobody heard of it"),
    ("effect", "effect failed", Always, "the performer said that it failed"),
    ("effect", "effect repeated", Always, "performed again under its key"),
    ("network", "message delayed", Always, "took twenty times as long as the others"),
    ("network", "message dropped", Always, "never arrived"),
    ("network", "message duplicated", Always, "arrived twice"),
    (
        "network",
        "message overtaken",
        Always,
        "arrived after one that was sent later over the same connection",
    ),
    ("network", "network partition", Always, "two nodes were cut apart"),
    ("network", "message into a partition", Always, "lost because its ends were cut apart"),
    ("disk", "blocks undone", Always, "blocks of writes that no sync covered and a power loss took"),
    ("disk", "writes torn", Always, "of one write a part survived and a part did not"),
    ("disk", "names undone", Always, "a creation, renaming or removal that did not survive"),
    ("disk", "bits flipped", Always, "rot on one copy of a mirrored pair (or in one checkpoint)"),
    ("disk", "blocks replaced", Always, "zeros, or another block's content, on one copy"),
    ("disk", "writes failed", Always, "the disk said so"),
    ("disk", "writes lost", Always, "acknowledged, and the old content stayed"),
    ("disk", "writes misdirected", Always, "acknowledged, and written elsewhere"),
    ("disk", "reads failed", Always, "a latent sector error was met"),
    ("disk", "syncs failed", Always, "a sync failed, and the cache lied from then on"),
    ("disk", "disk lost", Always, "one copy of a mirrored pair was gone with all files"),
    ("recovery", "opened", Always, "a directory was opened"),
    ("recovery", "records replayed", Always, "inputs run again from the log"),
    ("recovery", "tail cut", Always, "the commit that was in flight was cut"),
    ("recovery", "last commit completed", Always, "blocks that one copy got and the other did not"),
    ("recovery", "blocks repaired", Always, "journal blocks taken from the other copy"),
    ("recovery", "opened degraded", Always, "without a copy that was lost for good"),
    ("recovery", "copy dropped", Always, "a copy failed while it served; the smaller membership is durable"),
    ("recovery", "copy left behind", Always, "a copy that had been dropped was there and was not used"),
    ("recovery", "restored from a full checkpoint", Always, "one part"),
    ("recovery", "restored from an increment", Always, "a chain of parts"),
    ("recovery", "restore failed", Always, "a version could not be read; counted durably"),
    ("recovery", "older version used", Always, "a damaged checkpoint was given up, the one before served"),
    ("recovery", "checkpoint repaired or condemned", Always, "at opening, or by reading"),
    ("recovery", "scrubbed", Always, "both copies of a directory compared and made equal while it served"),
    ("recovery", "open refused and tried again", Never, "an opening failed and a later one did not"),
    ("recovery", "careful mode", Always, "a witness named a suspect: a mark before each delivery"),
    ("recovery", "set aside after a panic", Always, "with its evidence, nothing changed"),
    ("recovery", "set aside after two ends", Always, "it was running when its worker ended, twice"),
    ("recovery", "orderly stop", Always, "stopped with checkpoints, and opened with an empty tail"),
    ("running", "frames retransmitted", Always, "sent again: no receipt came, or the way was new"),
    ("running", "repeated frames dropped", Always, "deduplicated by number"),
    ("running", "input repeated", Always, "a client asked again"),
    ("running", "answered from the table", Always, "a repeated input got its first answer, and did not run"),
    ("running", "turned away", Never, "the door answered Overloaded or Stopped"),
    ("running", "late effect dropped", Always, "a second result of an effect"),
    ("running", "checkpoint written", Always, "durable and verified"),
    ("running", "old checkpoint removed", Always, "its part was removed"),
    ("running", "log cut", Always, "the log begins later than it did"),
    ("running", "segment recycled", Always, "a segment file was used again"),
    ("running", "idle watermark", Always, "an empty commit after a millisecond of rest"),
    (
        "audit",
        "durable state audited",
        Always,
        "all directories rebuilt as if the power went at that instant",
    ),
    ("audit", "outputs compared with the disks", Always, "by reading back only what is durable"),
    ("rollback", "recovery line decided", Independent, "everybody went back to it"),
    ("rollback", "coordinator crashed", Independent, "and continued from its log"),
    ("rollback", "versions undone", Independent, "checkpoints that the line went below: the domino effect"),
    ("rollback", "partitions rolled back", Independent, "to an older version than their newest"),
    ("rollback", "domino to the beginning", Never, "a partition whose only safe state was its initial one"),
];

/// Counts of one world or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    counts: BTreeMap<&'static str, u64>,
    /// Worlds that went into it.
    pub worlds: u64,
    /// Simulated nanoseconds.
    pub nanoseconds: u64,
    /// Inputs that clients sent and had answered.
    pub acknowledged: u64,
    /// Deepest rollback in versions, under a protocol that rolls back.
    pub domino_depth: u64,
    /// Most bytes that one worker's partitions kept for peers at any moment.
    pub kept_bytes_max: u64,
}

impl Report {
    /// How often a row happened.
    ///
    /// # Panics
    /// When there is no such row: a typing mistake in a test.
    #[must_use]
    pub fn count(&self, row: &str) -> u64 {
        assert!(ROWS.iter().any(|(_, name, ..)| *name == row), "there is no row `{row}`");
        self.counts.get(row).copied().unwrap_or(0)
    }

    /// Adds another world's counts.
    pub fn add(&mut self, other: &Self) {
        for (row, count) in &other.counts {
            *self.counts.entry(row).or_default() += count;
        }
        self.worlds += other.worlds;
        self.nanoseconds += other.nanoseconds;
        self.acknowledged += other.acknowledged;
        self.domino_depth = self.domino_depth.max(other.domino_depth);
        self.kept_bytes_max = self.kept_bytes_max.max(other.kept_bytes_max);
    }

    /// Rows that must not be zero and are. `rolls_back`: under a protocol that does.
    #[must_use]
    pub fn zeros(&self, rolls_back: bool) -> Vec<&'static str> {
        let must = |must: Must| must == Always || must == Independent && rolls_back;
        let rows = ROWS.iter().filter(|row| must(row.2) && self.counts.get(row.1).is_none_or(|n| *n == 0));
        rows.map(|row| row.1).collect()
    }

    pub(crate) fn hit_by(&mut self, row: &'static str, count: u64) {
        debug_assert!(ROWS.iter().any(|(_, name, ..)| *name == row), "there is no row `{row}`");
        if count > 0 {
            *self.counts.entry(row).or_default() += count;
        }
    }
}

impl fmt::Display for Report {
    /// The table with its legend.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.nanoseconds / 1_000_000_000;
        writeln!(f, "{} worlds, {seconds} simulated seconds, {} inputs", self.worlds, self.acknowledged)?;
        let mut group = "";
        for (of, row, must, legend) in ROWS {
            let count = self.counts.get(row).copied().unwrap_or(0);
            if count == 0 && *must == Independent {
                continue;
            }
            if group != *of {
                group = of;
                writeln!(f, "{group}")?;
            }
            writeln!(f, "  {count:>9}  {row:<34} {legend}")?;
        }
        if self.domino_depth > 0 {
            writeln!(f, "  {:>9}  deepest rollback, in versions", self.domino_depth)?;
        }
        Ok(())
    }
}

/// A report that several parts of one world write to.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<Report>>);

impl Tally {
    pub(crate) fn hit(&self, row: &'static str) {
        self.by(row, 1);
    }

    pub(crate) fn by(&self, row: &'static str, count: u64) {
        self.edit(|report| report.hit_by(row, count));
    }

    pub(crate) fn edit(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

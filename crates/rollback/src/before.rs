//! What must be durable before what may be seen: each protocol's order, as data.
//!
//! Decides: nothing. A protocol states its rows; the tests' durability ledger holds it to them.
//!
//! Never: never consulted at run time; the machines obey because of how they are written.
//!
//! Source: Elnozahy et al. 2002, section 2.4 (output commit); the table form is ours.

/// Something that another party can observe, or that cannot be taken back.
///
/// ```
/// use rallypoint_rollback::{before::Leaves, independent::BEFORE};
/// assert!(BEFORE.iter().any(|row| row.leaves == Leaves::Resumption));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Leaves {
    /// A frame to another partition.
    Frame,
    /// A reply, an effect, an observation.
    Output,
    /// A receipt: the sender may forget the frame.
    Receipt,
    /// Word to the coordinator that a checkpoint exists.
    Announcement,
    /// Word to a partition up to where nothing will ever be undone.
    StableLine,
    /// The order to go back.
    RollBackOrder,
    /// Word that a partition has gone back.
    RollBackAck,
    /// The first run after a recovery.
    Resumption,
    /// The removal of a checkpoint.
    Removal,
}

/// What it waits for.
///
/// ```
/// use rallypoint_rollback::{before::{Durable, Leaves}, independent::BEFORE};
/// // The one thing that the independent protocol never delays is a frame.
/// let at_once: Vec<Leaves> =
///     BEFORE.iter().filter(|row| row.durable == Durable::Nothing).map(|row| row.leaves).collect();
/// assert_eq!(at_once, [Leaves::Frame]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Durable {
    /// Nothing: it may leave at once.
    Nothing,
    /// The partition's log through its cause.
    Log,
    /// The checkpoint it speaks of.
    Checkpoint,
    /// A consistent cut of stable checkpoints, one per partition, at or after its cause.
    StableCut,
    /// The coordinator's record of the recovery.
    RecoveryRecord,
    /// This partition's rollback.
    OwnRollBack,
    /// The rollback of every partition.
    EveryRollBack,
}

/// One row: `leaves` only when `durable` is on stable storage.
///
/// ```
/// use rallypoint_rollback::before::{Durable, Leaves};
/// use rallypoint_rollback::independent;
/// let output = independent::BEFORE.iter().find(|row| row.leaves == Leaves::Output).unwrap();
/// assert_eq!(output.durable, Durable::StableCut);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// What leaves.
    pub leaves: Leaves,
    /// What must be durable first.
    pub durable: Durable,
    /// What goes wrong otherwise.
    pub or_else: &'static str,
}

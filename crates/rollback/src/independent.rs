//! Independent (uncoordinated) checkpointing, with the recovery line found after a failure.
//!
//! Decides: each partition alone, when to cut its state; the coordinator, after a failure, to which
//! checkpoint everyone goes back, and at all times up to where nothing will ever be undone.
//!
//! Never: never logs an input, never delays a frame, never forces a checkpoint, attaches nothing to a
//! frame (the substrate's channel counters are all the dependency tracking that is needed).
//!
//! Invariants: the recovery line is consistent and maximal; the stable line (all failed) never
//! moves back and no rollback goes below it (if its checkpoint is lost on every copy there is no
//! line, and everybody stands still until a person has looked); nothing runs between a partition's report and its
//! resumption; an order of rollback is obeyed at most once per epoch, and only by the incarnation
//! whose report it answers.
//!
//! The price is the domino effect: where checkpoints lie badly, the stable line never moves, and
//! neither outputs nor receipts ever leave. The protocol makes that visible; it does not prevent it.
//!
//! | leaves | before that, durable |
//! |---|---|
//! | frame | nothing |
//! | announcement of version v | checkpoint v |
//! | stable line | one checkpoint per partition, at or above it, together consistent |
//! | output, receipt caused at r | the stable cut at or after r |
//! | removal of versions below v | the stable cut that holds v |
//! | ROLLBACK(E, point) | RECOVERY(E, line) in the coordinator's log |
//! | ack of ROLLBACK(E) | this partition's rollback |
//! | first run in E | the rollback of every partition |
//!
//! One round, from left to right (any step may be repeated after a loss; a second failure starts
//! round E+1 from whatever mixture the first one left):
//!
//! ```text
//! coordinator   Query(E)──┐        ┌─ line, persist RECOVERY(E) ─ RollBack(E,point)─┐         ┌─ Resume(E)
//! partition               └ pause, Report(E)                                        └ RolledBack(E)     └ run
//! ```
//!
//! A mixture is harmless because nobody runs before everybody is in E: until then equal ssn still
//! means equal message, so counters of partitions that have gone back and of those that have not
//! may be compared.
//!
//! Source: `docs/protocols.md` 3.1; Bhargava and Lian 1988; Elnozahy et al. 2002, section 3.1. The
//! recovery decision follows presumed abort: no stable RECOVERY, no recovery.

mod coordinator;
mod message;
mod partition;

pub use coordinator::Coordinator;
pub use message::{Message, Recovery};
pub use partition::Independent;

use crate::before::{Before, Durable, Leaves};
use std::time::Duration;

/// The table of the module's documentation, as data.
pub const BEFORE: &[Before] = &[
    Before {
        leaves: Leaves::Frame,
        durable: Durable::Nothing,
        or_else: "nothing: a receiver of an orphan rolls back",
    },
    Before {
        leaves: Leaves::Announcement,
        durable: Durable::Checkpoint,
        or_else: "outputs leave on the word of a checkpoint that a crash takes away",
    },
    Before {
        leaves: Leaves::StableLine,
        durable: Durable::StableCut,
        or_else: "outputs leave whose cause a second failure undoes",
    },
    Before {
        leaves: Leaves::Output,
        durable: Durable::StableCut,
        or_else: "the outside saw what never happened",
    },
    Before {
        leaves: Leaves::Receipt,
        durable: Durable::StableCut,
        or_else: "the sender forgets a frame that its receiver, gone back, needs again",
    },
    Before {
        leaves: Leaves::Removal,
        durable: Durable::StableCut,
        or_else: "the recovery line names a checkpoint that is gone",
    },
    Before {
        leaves: Leaves::RollBackOrder,
        durable: Durable::RecoveryRecord,
        or_else: "a coordinator that crashes repeats the epoch with another line",
    },
    Before {
        leaves: Leaves::RollBackAck,
        durable: Durable::OwnRollBack,
        or_else: "the others run on, then a crash brings back an undone state with the same message numbers",
    },
    Before {
        leaves: Leaves::Resumption,
        durable: Durable::EveryRollBack,
        or_else: "a message number is used twice before its first use is undone everywhere",
    },
];

/// How long an unanswered control message waits before it is sent again.
const RESEND: Duration = Duration::from_millis(100);

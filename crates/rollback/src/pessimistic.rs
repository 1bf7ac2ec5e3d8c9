//! Pessimistic message logging with group commit.
//!
//! Decides: every input is logged when its run ends; whatever a run caused leaves only once its
//! record is stable; a receipt is given then, too. Recovery is local: nobody else rolls back.
//!
//! Never: never coordinates, never attaches anything to a frame, never rolls a peer back.
//!
//! Invariants: for every output and frame that left, the record of its cause and of everything
//! before it in this partition is on stable storage (*always-no-orphans*: not stable(e) implies
//! |Depend(e)| <= 1, Alvisi and Marzullo 1998). Horizons are equal and never move back.
//!
//! | leaves | before that, durable |
//! |---|---|
//! | frame, reply, effect, observation caused at r | the log through r |
//! | receipt of a frame delivered at r | the log through r |
//! | manifest of a checkpoint at r | the log through r (the engine's rule for all protocols) |
//!
//! Source: receiver-based pessimistic logging (Borg et al. 1983; Elnozahy et al. 2002, section
//! 5.1); the delay of the *sends* instead of the *delivery* is the group-commit variant: to
//! outsiders it is the same, and one synced write covers everything that gathered meanwhile.

use crate::protocol::{Command, Event, Protocol};
use rallypoint_base::id::Position;

/// The default protocol. It has no state beyond what the engine keeps.
///
/// ```
/// use rallypoint_base::id::Position;
/// use rallypoint_rollback::pessimistic::Pessimistic;
/// use rallypoint_rollback::protocol::{Command, Event, Protocol};
///
/// let mut protocol = Pessimistic::default();
/// let mut commands = Vec::new();
/// protocol.handle(Event::Ran { position: Position(1), cause: None, sent: 1 }, &mut commands);
/// assert_eq!(commands, [Command::Log]);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Pessimistic {
    durable: Position,
}

impl Protocol for Pessimistic {
    fn name(&self) -> &'static str {
        "pessimistic"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        match event {
            Event::Ran { .. } => out.push(Command::Log),
            Event::Durable { position } => self.release(position, out),
            // Everything the log gave back is stable by definition.
            Event::Restarted { position, .. } => self.release(position, out),
            // Under a new epoch the horizons begin anew, at what the kept history holds.
            Event::RolledBack { position, .. } => {
                self.durable = Position(0);
                self.release(position, out);
            }
            Event::CheckpointDue => out.push(Command::TakeCheckpoint),
            Event::CheckpointDurable { version } => out.push(Command::Forget { version }),
            Event::Arriving { .. }
            | Event::CheckpointTaken { .. }
            | Event::Control { .. }
            | Event::Persisted { .. }
            | Event::PeerFailed { .. }
            | Event::Tick { .. } => {}
        }
    }
}

impl Pessimistic {
    fn release(&mut self, position: Position, out: &mut Vec<Command>) {
        if position > self.durable {
            self.durable = position;
            out.push(Command::Release { frames: position, outputs: position, receipts: position });
        }
    }
}

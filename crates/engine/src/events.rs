//! What a unit tells people: at once through [`Outside::notice`], and durably in its event log.
//!
//! Decides which notices are worth a place in the durable log, and under which kind. Never waits for
//! the disk and never stops the unit: an event that cannot be written is lost and counted.
//!
//! Invariants: every notice leaves through [`Events::notice`]; what comes before the log is open waits
//! (at most [`EARLY`] events).

use crate::command::Notice;
use crate::unit::{Outside, UnitNotice};
use rallypoint_base::id::PartitionId;
use rallypoint_base::limits;
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::Identity;
use rallypoint_store::copies::{Copies, CopyIndex, Routed};
use rallypoint_store::disk::{Disk, DiskError};
use rallypoint_store::event_log::{Event, EventKind, EventLog, EventLogEvent, History};
use std::time::Duration;

/// Events that wait for a log that is not open yet.
const EARLY: usize = 256;
/// Refusals (inside, at the door) are daily bread: one event in this time counts them.
const DAMPED: Duration = Duration::from_secs(10);

/// Something frequent: until when it is only counted, and how often it was.
#[derive(Debug, Default)]
struct Damped {
    until: Time,
    more: u64,
}

impl Damped {
    /// Counts one; when an event is due, how many others there were since the last one.
    fn due(&mut self, now: Time) -> Option<u64> {
        if now < self.until {
            self.more += 1;
            return None;
        }
        self.until = now + DAMPED;
        Some(std::mem::take(&mut self.more))
    }
}

/// The notices of a unit on their way. See the module.
#[derive(Debug, Default)]
pub(crate) struct Events {
    log: Option<EventLog>,
    early: Vec<Event>,
    /// Refusals inside.
    inside: Damped,
    /// Refusals at the door.
    door: Damped,
}

impl Events {
    /// Opens the durable log. Gives what it held before.
    pub(crate) fn open<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        identity: Identity,
    ) -> Result<History, (CopyIndex, DiskError)> {
        let (log, history) = EventLog::open(copies, identity)?;
        self.log = Some(log);
        Ok(history)
    }

    /// What waited for the log goes into it.
    pub(crate) fn begin(&mut self) {
        for event in std::mem::take(&mut self.early) {
            self.add(event);
        }
    }

    /// Tells people now, and durably where it is worth it.
    pub(crate) fn notice(&mut self, now: Time, notice: UnitNotice, outside: &mut dyn Outside) {
        if let Some(event) = self.event(now, &notice) {
            self.add(event);
        }
        outside.notice(notice);
    }

    /// Adds an event that is no notice.
    pub(crate) fn add(&mut self, event: Event) {
        match &mut self.log {
            Some(log) => log.append(event),
            None if self.early.len() < EARLY => self.early.push(event),
            None => {}
        }
    }

    /// The door of a partition turned an input away because it has too much to do.
    pub(crate) fn overloaded(&mut self, now: Time, partition: PartitionId) {
        if let Some(more) = self.door.due(now) {
            let event = Event::new(now, EventKind::Overloaded).with("partition", partition);
            self.add(event.with("more_before", more));
        }
    }

    /// Begins to write what waits.
    pub(crate) fn flush<D: Disk>(&mut self, copies: &mut Copies<D>) {
        if let Some(log) = &mut self.log
            && !log.is_idle()
        {
            log.flush(copies);
        }
    }

    /// Takes a completion. Gives the copy that failed, if one did.
    pub(crate) fn handle<D: Disk>(
        &mut self,
        copies: &mut Copies<D>,
        routed: Routed,
    ) -> Option<(CopyIndex, DiskError)> {
        let log = self.log.as_mut()?;
        let mut failed = None;
        let mut event = log.handle(copies, routed);
        while let Some(next) = event {
            if let EventLogEvent::CopyFailed { copy, error } = next {
                failed = Some((copy, error));
            }
            event = log.poll();
        }
        failed
    }

    /// True when no event waits to be durable.
    pub(crate) fn is_idle(&self) -> bool {
        self.log.as_ref().is_none_or(EventLog::is_idle)
    }

    fn event(&mut self, now: Time, notice: &UnitNotice) -> Option<Event> {
        let event = |kind| Event::new(now, kind);
        Some(match notice {
            UnitNotice::Partition(partition, notice) => {
                let event = |kind| event(kind).with("partition", partition);
                match notice {
                    Notice::SetAside { identity, evidence } => event(EventKind::SetAside)
                        .with("input", format!("{identity:016x}"))
                        .with("why", evidence),
                    Notice::LateEffect { key } => {
                        event(EventKind::Drop).with("what", "the late result of an effect").with("key", key)
                    }
                    Notice::RefusedInside { detail } => {
                        let more = self.inside.due(now)?;
                        event(EventKind::Drop)
                            .with("what", "a message that its receiver refused")
                            .with("detail", detail)
                            .with("more_before", more)
                    }
                    Notice::Alarm { detail } => event(EventKind::Alarm).with("why", detail),
                    Notice::Diverged { detail } => event(EventKind::Divergence).with("detail", detail),
                    Notice::ImpossibleReceipt { from } => event(EventKind::Drop)
                        .with("what", "a receipt for frames that were never sent")
                        .with("from", from),
                    Notice::SessionsExpired { count } => {
                        event(EventKind::Drop).with("what", "idle sessions").with("count", count)
                    }
                    Notice::ActorTooLarge { actor, bytes, count } => event(EventKind::TooLarge)
                        .with("actor", actor)
                        .with("bytes", bytes)
                        .with("limit", limits::ACTOR_BYTES)
                        .with("count", count),
                    Notice::CheckpointFailed { detail } => {
                        event(EventKind::CheckpointFailed).with("why", detail)
                    }
                }
            }
            UnitNotice::CopyLost { copy, detail } => {
                event(EventKind::CopyLost).with("copy", copy).with("why", detail)
            }
            UnitNotice::Space(detail) => event(EventKind::NoSpace).with("detail", detail),
            UnitNotice::StoreFailed(why) => event(EventKind::StoreFailed).with("why", why),
            // As frequent as traffic makes them; `checkpoint list` shows them.
            UnitNotice::CheckpointWritten { .. } => return None,
            UnitNotice::CheckpointDamage(what) | UnitNotice::Damaged(what) => {
                event(EventKind::Damage).with("what", what)
            }
            UnitNotice::Repaired(what) => event(EventKind::Repair).with("what", what),
            UnitNotice::Scrubbed { blocks, chunks, repaired, bad, asked } => event(EventKind::Scrubbed)
                .with("blocks", blocks)
                .with("chunks", chunks)
                .with("repaired", repaired)
                .with("bad", bad)
                .with("asked", asked),
            UnitNotice::RestoreFailed { partition, version, detail } => event(EventKind::Damage)
                .with("what", "a checkpoint could not be restored")
                .with("partition", partition)
                .with("version", version)
                .with("why", detail),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_door_is_one_event_in_ten_seconds_that_counts_the_others() {
        let mut events = Events::default();
        for second in 0..=10 {
            events.overloaded(Time(second * 1_000_000_000), PartitionId(4));
        }
        let told: Vec<_> = events.early.iter().map(|event| (event.kind, event.fields.clone())).collect();
        let event = |more: &str| {
            let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            (EventKind::Overloaded, vec![field("partition", "p4"), field("more_before", more)])
        };
        assert_eq!(told, [event("0"), event("9")]);
    }
}

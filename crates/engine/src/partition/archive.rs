//! What a partition does for the archive: says which sagas have ended, lets go of those that lie in a
//! part of it, and takes one back.
//!
//! Never decides when. Each step is a record of the log without a run, so that a replay lets go of the
//! same sagas at the same place. Whoever calls sees to it that the part is durable first.
//!
//! Invariant: a saga is let go of only as it stands in the part; one that went on since stays.

use super::{Known, Outbox, Partition, ReplayError};
use crate::actor::Actor;
use crate::codec::{Encoded, encode};
use crate::command::Outcome;
use crate::parcel::kind_tag;
use crate::record::{self, kind};
use crate::saga::{SagaActor, SagaMessage};
use crate::table::{Delivered, Table, TypedTable};
use rallypoint_base::id::{InputSeq, SessionId, Version};
use rallypoint_base::random::mix;
use rallypoint_base::time::Time;
use std::panic::{AssertUnwindSafe, catch_unwind};

impl Partition {
    fn sagas(&self) -> Option<&TypedTable<SagaActor>> {
        let tag = kind_tag(SagaActor::KIND);
        let (_, table) = self.tables.iter().find(|(found, _)| *found == tag)?;
        table.as_any().downcast_ref()
    }

    fn saga_table(&mut self) -> Option<&mut Box<dyn Table>> {
        let tag = kind_tag(SagaActor::KIND);
        self.tables.iter_mut().find(|(found, _)| *found == tag).map(|(_, table)| table)
    }

    /// A saga as it is now, durable or not.
    pub(crate) fn saga(&self, id: &str) -> Option<&SagaActor> {
        self.sagas().and_then(|sagas| sagas.get(id))
    }

    /// After a restore nobody has said which sagas have ended.
    pub(super) fn find_ended(&mut self) {
        let mut ended: Vec<(Time, String)> = Vec::new();
        if let Some(sagas) = self.sagas() {
            sagas.each_typed(&mut |id, actor| {
                if actor.is_archivable() {
                    ended.push((actor.machine().updated(), id.to_owned()));
                }
            });
        }
        ended.sort();
        self.ended = ended.into_iter().map(|(_, id)| id).collect();
    }

    /// About how many sagas wait to be put away.
    pub(crate) fn ended(&self) -> usize {
        self.ended.len()
    }

    /// When the one that waits longest has ended.
    pub(crate) fn ended_since(&self) -> Option<Time> {
        self.ended.iter().find_map(|id| self.saga(id)).map(|saga| saga.machine().updated())
    }

    /// Takes up to `count` of them off the queue, with their states as a checkpoint writes them.
    pub(crate) fn gather_ended(&mut self, count: usize, give: &mut dyn FnMut(String, &SagaActor, &[u8])) {
        let mut queue = std::mem::take(&mut self.ended);
        let mut state = Vec::new();
        for id in queue.drain(..count.min(queue.len())) {
            let Some(actor) = self.saga(&id).filter(|actor| actor.is_archivable()) else { continue };
            state.clear();
            // One that cannot be written cannot be checkpointed either, and is reported there.
            if encode(SagaActor::CODEC, SagaActor::SCHEMA, actor, &mut state).is_ok() {
                give(id, actor, &state);
            }
        }
        self.ended = queue;
    }

    /// Those could not be put away: they wait again.
    pub(crate) fn wait_again(&mut self, ids: impl DoubleEndedIterator<Item = String>) {
        ids.rev().for_each(|id| self.ended.push_front(id));
    }

    /// True when sagas may be let go of: no checkpoint is being written, and no input waits that may
    /// have come to one of them.
    pub(crate) fn may_archive(&self) -> bool {
        let queued = self.careful.as_ref().is_some_and(|careful| !careful.queue.is_empty());
        let holding = self.holding.values().any(|channel| !channel.is_empty());
        self.live && !self.stopped && !self.is_checkpointing() && self.held.is_empty() && !queued && !holding
    }

    /// Lets go of the sagas that lie in a part as they are now: id and how many events each had.
    pub(crate) fn archive(&mut self, part: Version, sagas: &[(String, u32)], out: &mut Outbox) {
        debug_assert!(self.may_archive(), "ask first");
        let mut gone = Vec::with_capacity(sagas.len());
        for (id, events) in sagas {
            let same = |actor: &&SagaActor| actor.is_archivable() && actor.machine().events() == *events;
            if self.saga(id).filter(same).is_some() && self.take_out(id) {
                gone.push(id.clone());
            }
        }
        if !gone.is_empty() {
            self.append_no_run(kind::ARCHIVED, out, |bytes| record::encode_archived(part, &gone, bytes));
        }
    }

    pub(super) fn take_out(&mut self, id: &str) -> bool {
        self.saga_table().is_some_and(|table| table.remove(id))
    }

    /// Takes a saga back as the archive holds it.
    pub(crate) fn revive(&mut self, id: &str, state: &[u8], out: &mut Outbox) -> Result<(), ReplayError> {
        self.put_back(id, state)?;
        self.append_no_run(kind::REVIVED, out, |bytes| record::encode_revived(id, state, bytes));
        Ok(())
    }

    pub(super) fn put_back(&mut self, id: &str, state: &[u8]) -> Result<(), ReplayError> {
        let partition = self.setup.id;
        let wrong = |detail: String| ReplayError::State {
            partition,
            kind: SagaActor::KIND.to_owned(),
            key: id.to_owned(),
            detail,
        };
        let Some(encoded) = Encoded::split(state) else { return Err(wrong("no state".into())) };
        let Some(table) = self.saga_table() else {
            return Err(wrong("this program has no sagas: add them back".into()));
        };
        table.put_back(id, encoded).map_err(|error| wrong(error.to_string()))
    }

    /// True for an input that is not to be run: it has been, it is too old, or nothing runs here.
    pub(crate) fn knows_input(&self, session: SessionId, seq: InputSeq) -> bool {
        self.stopped || !self.live || self.sessions.look_up(session, seq) != Known::New
    }

    /// What an archived saga would answer, without changing anything.
    pub(crate) fn try_archived(
        &mut self,
        actor: SagaActor,
        id: &str,
        message: SagaMessage,
    ) -> (Outcome, Vec<u8>) {
        self.run.begin(self.now, mix(self.position.0), false);
        let mut reply = Vec::new();
        let (kind, run) = (kind_tag(SagaActor::KIND), &mut self.run);
        let answered =
            catch_unwind(AssertUnwindSafe(|| TypedTable::try_on(actor, kind, id, message, run, &mut reply)));
        match answered {
            Ok(Delivered::Applied) => (Outcome::Applied, reply),
            Ok(Delivered::Refused) => (Outcome::Refused, reply),
            Ok(Delivered::Failed(error)) => (Outcome::Failed, error.to_string().into_bytes()),
            Err(panic) => (Outcome::Failed, super::panic_text(&*panic).into_bytes()),
        }
    }
}

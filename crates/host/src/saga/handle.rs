//! What people hold of sagas: start, wait, look, and step in.
//!
//! Decides nothing about a saga. Every answer is an observation: it is given once what it says is
//! durable. Dropping any of these cancels nothing.

use super::driver::{Drives, Watch};
use crate::client::{AskError, Client};
use crate::node::{Shared, may_lend_thread};
use rallypoint_base::hash::xxh3;
use rallypoint_base::limits::KEY_BYTES;
use rallypoint_base::time::Time;
use rallypoint_engine::archive::Part;
pub use rallypoint_engine::archive::SagaSummary;
use rallypoint_engine::command::Turned;
use rallypoint_engine::saga::{Peeked, SagaActor, SagaMessage, SagaReply};
use rallypoint_saga::event::{Event, Start};
use rallypoint_saga::machine::{Machine, Refusal};
use rallypoint_saga::op::{Failure, OpNumber, UndoState};
use rallypoint_saga::status::Status;
use rallypoint_saga::value::{Blob, ValueError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Why a saga could not be started. Nothing began, unless it says that this is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StartError {
    /// No saga of this name is registered.
    #[error("no saga is registered as {0:?}: register it, or correct the name")]
    Unregistered(String),
    /// The id is empty, too long, or has a `/`, which is for children.
    #[error("{0:?} is no id of a saga: it has 1 to 200 bytes and no '/'")]
    Id(String),
    /// The input cannot be written.
    #[error("the input cannot be journaled: {0}")]
    Input(#[from] ValueError),
    /// The id is taken by a saga with another name or input.
    #[error("a saga with id {0:?} exists with another name or input: choose another id")]
    OtherInput(String),
    /// A saga of this id has ended and was deleted: for 30 days its id is not used again.
    #[error("a saga with id {0:?} has ended and was deleted: choose another id")]
    Deleted(String),
    /// The store could not take it now.
    #[error(transparent)]
    Store(#[from] SagaStoreError),
}

/// Why the store gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SagaStoreError {
    /// Turned away at the door; nothing changed.
    #[error(transparent)]
    Turned(Turned),
    /// The input itself could not be run.
    #[error("{0}")]
    Failed(String),
    /// The runtime was closed: whether it happened is unknown. Starting again under the same id is safe.
    #[error("closed before the answer came, so it is unknown whether it happened: {0}")]
    Closed(String),
}

/// Why a saga was not changed or could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SagaRequestError {
    /// The saga's state does not allow it, or there is none; nothing changed.
    #[error("saga {id:?}: {refusal}")]
    Refused {
        /// Its id.
        id: String,
        /// Why.
        refusal: Refusal,
    },
    /// A value cannot be written or read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The store could not answer now.
    #[error(transparent)]
    Store(#[from] SagaStoreError),
}

/// Why a wait ended without an output.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It failed or was cancelled, and everything is undone.
    #[error("the saga was compensated: {}", .0.message)]
    Compensated(Failure),
    /// It needs a person; it may still go on after that.
    #[error("the saga is stuck: {}", .0.message)]
    Stuck(Failure),
    /// A person gave it up.
    #[error("the saga was abandoned")]
    Abandoned,
    /// There is no such saga, or its output is no value of this type.
    #[error(transparent)]
    Request(#[from] SagaRequestError),
}

/// The sagas of a runtime. Cheap to clone.
#[derive(Clone)]
pub struct Sagas {
    driver: Arc<dyn Drives>,
    client: Arc<Client>,
    shared: Arc<Shared>,
}

impl Sagas {
    pub(crate) fn new(driver: Arc<dyn Drives>, client: Arc<Client>, shared: Arc<Shared>) -> Self {
        Self { driver, client, shared }
    }

    /// Starts a saga, durably: when this returns it will end, whatever crashes. The same id with the
    /// same name and input is the same saga.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start<I: Serialize + ?Sized>(
        &self,
        name: &str,
        id: &str,
        input: &I,
    ) -> Result<SagaHandle, StartError> {
        self.start_blob(name, id, Blob::of(input)?).await.map(|(handle, _)| handle)
    }

    /// [`Sagas::start`] with an encoded input; says also whether the saga is new.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_blob(
        &self,
        name: &str,
        id: &str,
        input: Blob,
    ) -> Result<(SagaHandle, bool), StartError> {
        // Room for the numbers of children below it.
        if id.is_empty() || id.len() > KEY_BYTES - 56 || id.contains('/') {
            return Err(StartError::Id(id.to_owned()));
        }
        let options = self.driver.options(name).ok_or_else(|| StartError::Unregistered(name.to_owned()))?;
        // Made first, so that no hint is missed, and let go of in every case.
        let mut handle = self.get(id);
        let seen = handle.watch.hints();
        let turn = self.driver.begin(name, options.version, id, &input);
        let began = turn.is_some();
        // One that ends with its first turn ends with its start, and no hint will tell.
        let has_ended = turn.as_ref().is_some_and(|turn| turn.end.is_some());
        let start = Start {
            name: name.to_owned(),
            version: options.version,
            digest: options.digest,
            input,
            concurrency: options.concurrency,
            deadline: options.deadline,
            parent: None,
            turn,
            history: self.driver.history(),
        };
        let reply = self.ask(id, &SagaMessage::Start(Box::new(start))).await;
        if began && !matches!(reply, Ok(SagaReply::Started(true))) {
            self.driver.forget(id);
        }
        match reply {
            Ok(SagaReply::Started(is_new)) => {
                handle.fresh = (is_new && !has_ended).then_some(seen);
                Ok((handle, is_new))
            }
            Ok(_) => Err(SagaStoreError::Failed("an answer of another kind".into()).into()),
            Err(AskError::Refused(Refusal::Deleted)) => Err(StartError::Deleted(id.to_owned())),
            Err(AskError::Refused(_)) => Err(StartError::OtherInput(id.to_owned())),
            Err(error) => Err(store_error(error).into()),
        }
    }

    /// Asks a saga. When nothing else is under way the caller's thread does the work, as it does for a
    /// caller that waits.
    async fn ask(&self, id: &str, message: &SagaMessage) -> Result<SagaReply, AskError<Refusal>> {
        let pending = self.client.ask::<SagaActor>(id, message);
        if self.client.in_flight() <= 1 && self.shared.is_effectless() && may_lend_thread() {
            pending.lend_thread();
        }
        pending.await
    }

    /// A handle on a saga, whether there is one or not.
    #[must_use]
    pub fn get(&self, id: &str) -> SagaHandle {
        SagaHandle { sagas: self.clone(), id: id.to_owned(), watch: self.driver.watch(id), fresh: None }
    }

    /// Up to `limit` sagas after `cursor` in the order of (start, id), the newest first; of a name
    /// and a status, if given. Gives the cursor of the next page, if there is one.
    ///
    /// # Errors
    /// [`SagaStoreError`].
    pub async fn list(
        &self,
        name: Option<&str>,
        status: Option<Status>,
        limit: usize,
        cursor: Option<&(Time, String)>,
    ) -> Result<(Vec<SagaSummary>, Option<(Time, String)>), SagaStoreError> {
        let mut page = Page { name, status, limit, cursor, found: BTreeMap::new(), more: false };
        self.visit(&mut |id, machine| {
            if !machine.is_new() {
                page.offer(machine.created(), id, machine.name(), machine.status(), || summary(id, machine));
            }
        });
        self.settled().await?;
        self.list_archive(&mut page)?;
        let Page { found, more, .. } = page;
        let next = more.then(|| found.last_key_value().map(|((at, id), _)| (at.0, id.clone()))).flatten();
        Ok((found.into_values().collect(), next))
    }

    /// The archive's part of a page: the parts whose sagas began last come first, and those that can
    /// have nothing for it are not read.
    fn list_archive(&self, page: &mut Page<'_>) -> Result<(), SagaStoreError> {
        let mut parts = Vec::new();
        for (at, home) in self.shared.homes().enumerate() {
            home.with_unit(|unit, _, _| {
                let wanted = unit.archive_parts().filter(|(_, part)| page.may_have(part));
                parts
                    .extend(wanted.map(|(partition, part)| (part.newest_start, at, partition, part.version)));
            });
        }
        parts.sort_unstable_by(|a, b| b.cmp(a));
        for (newest, at, partition, version) in parts {
            if page.is_full_before(newest) {
                page.more = true;
                break;
            }
            let Some(home) = self.shared.homes().nth(at) else { continue };
            let rows = home.with_unit(|unit, _, _| unit.archived_rows(partition, version));
            for row in rows.unwrap_or(Ok(Vec::new())).map_err(SagaStoreError::Failed)? {
                page.offer(row.created, &row.id, &row.name, row.status, || row.clone());
            }
        }
        Ok(())
    }

    /// How many sagas there are, by name and status. One that was restarted out of the archive counts
    /// there too.
    ///
    /// # Errors
    /// [`SagaStoreError`].
    pub async fn count(&self) -> Result<BTreeMap<(String, Status), u64>, SagaStoreError> {
        let mut counts = BTreeMap::new();
        self.visit(&mut |_, machine| {
            if !machine.is_new() {
                *counts.entry((machine.name().to_owned(), machine.status())).or_insert(0) += 1;
            }
        });
        for home in self.shared.homes() {
            home.with_unit(|unit, _, _| {
                for (key, count) in unit.archive_parts().flat_map(|(_, part)| &part.counts) {
                    *counts.entry(key.clone()).or_insert(0) += count;
                }
            });
        }
        self.settled().await?;
        Ok(counts)
    }

    fn visit(&self, visit: &mut dyn FnMut(&str, &Machine)) {
        for home in self.shared.homes() {
            home.with_unit(|unit, _, _| {
                for partition in unit.partitions() {
                    partition.each_of::<SagaActor>(&mut |id, actor| visit(id, actor.machine()));
                }
            });
        }
    }

    /// Waits until everything that a look just saw is durable: a read-only ask of each partition is
    /// held until then.
    async fn settled(&self) -> Result<(), SagaStoreError> {
        let mut asks = Vec::new();
        for partition in self.shared.map.partitions() {
            let mut keys = (0u64..).map(|n| format!("/{:x}", xxh3(&n.to_le_bytes())));
            let key = keys.find(|key| self.shared.map.partition_of(key) == partition);
            asks.extend(key.map(|key| self.client.ask::<SagaActor>(&key, &SagaMessage::Peek)));
        }
        for ask in asks {
            match ask.await {
                Ok(_) | Err(AskError::Refused(_)) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        Ok(())
    }
}

/// A page of a list in the making.
struct Page<'a> {
    name: Option<&'a str>,
    status: Option<Status>,
    limit: usize,
    cursor: Option<&'a (Time, String)>,
    found: BTreeMap<(Reverse<Time>, String), SagaSummary>,
    /// Something fits that has no place on it.
    more: bool,
}

impl Page<'_> {
    fn offer(
        &mut self,
        created: Time,
        id: &str,
        name: &str,
        status: Status,
        summary: impl FnOnce() -> SagaSummary,
    ) {
        if self.name.is_some_and(|wanted| wanted != name)
            || self.status.is_some_and(|wanted| wanted != status)
        {
            return;
        }
        let key = (Reverse(created), id.to_owned());
        if self.cursor.is_some_and(|(at, id)| key <= (Reverse(*at), id.clone())) {
            return;
        }
        if self.found.len() == self.limit && self.found.last_key_value().is_some_and(|(last, _)| key > *last)
        {
            self.more = true;
            return;
        }
        // What was put away while the list was made is met twice.
        self.found.entry(key).or_insert_with(summary);
        if self.found.len() > self.limit {
            self.found.pop_last();
            self.more = true;
        }
    }

    /// True when a part may hold something for this page.
    fn may_have(&self, part: &Part) -> bool {
        let fits = |(name, status): &(String, Status)| {
            self.name.is_none_or(|wanted| wanted == name)
                && self.status.is_none_or(|wanted| wanted == *status)
        };
        part.counts.keys().any(fits) && self.cursor.is_none_or(|(at, _)| part.oldest_start <= *at)
    }

    /// True when nothing that began at `newest` or before can still find a place.
    fn is_full_before(&self, newest: Time) -> bool {
        self.found.len() >= self.limit
            && self.found.last_key_value().is_some_and(|((Reverse(last), _), _)| newest < *last)
    }
}

fn summary(id: &str, machine: &Machine) -> SagaSummary {
    SagaSummary {
        id: id.to_owned(),
        name: machine.name().to_owned(),
        version: machine.version(),
        status: machine.status(),
        created: machine.created(),
        updated: machine.updated(),
        error: machine.error().cloned(),
    }
}

fn store_error<E>(error: AskError<E>) -> SagaStoreError {
    match error {
        AskError::Turned(turned) => SagaStoreError::Turned(turned),
        AskError::Closed(why) => SagaStoreError::Closed(why),
        AskError::Failed(why) | AskError::SetAside(why) | AskError::Codec(why) => SagaStoreError::Failed(why),
        AskError::Refused(_) => SagaStoreError::Failed("refused".into()),
        AskError::TimedOut => SagaStoreError::Closed("no answer in time".into()),
    }
}

/// One saga. Dropping it cancels nothing.
pub struct SagaHandle {
    sagas: Sagas,
    id: String,
    watch: Arc<Watch>,
    /// It began with this handle, which has seen so many hints.
    fresh: Option<u64>,
}

impl Drop for SagaHandle {
    fn drop(&mut self) {
        self.sagas.driver.unwatch(&self.id, &self.watch);
    }
}

impl SagaHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    async fn ask(&self, message: SagaMessage) -> Result<SagaReply, SagaRequestError> {
        self.sagas.ask(&self.id, &message).await.map_err(|error| match error {
            AskError::Refused(refusal) => SagaRequestError::Refused { id: self.id.clone(), refusal },
            error => store_error(error).into(),
        })
    }

    async fn event(&self, event: Event) -> Result<Status, SagaRequestError> {
        match self.ask(SagaMessage::Event(event)).await? {
            SagaReply::Accepted(status) => Ok(status),
            _ => Err(SagaStoreError::Failed("an answer of another kind".into()).into()),
        }
    }

    /// How it stands.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn status(&self) -> Result<Status, SagaRequestError> {
        self.peek().await.map(|peeked| peeked.status)
    }

    /// How it stands, with output or error.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn peek(&self) -> Result<Peeked, SagaRequestError> {
        match self.ask(SagaMessage::Peek).await? {
            SagaReply::Peeked(peeked) => Ok(peeked),
            _ => Err(SagaStoreError::Failed("an answer of another kind".into()).into()),
        }
    }

    /// Everything about it.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn show(&self) -> Result<Machine, SagaRequestError> {
        match self.ask(SagaMessage::Show).await? {
            SagaReply::Shown(machine) => Ok(*machine),
            _ => Err(SagaStoreError::Failed("an answer of another kind".into()).into()),
        }
    }

    /// Waits for its end and gives its output.
    ///
    /// # Errors
    /// [`WaitError`]; also when it is stuck.
    pub async fn wait<O: DeserializeOwned>(&self) -> Result<O, WaitError> {
        let peeked = self.wait_end().await?;
        let error = |peeked: Peeked| {
            peeked
                .error
                .unwrap_or_else(|| Failure::new(rallypoint_saga::op::FailureKind::Fatal, "it gave no reason"))
        };
        match peeked.status {
            Status::Completed => {
                let output = peeked.output.unwrap_or_default();
                Ok(output.read::<O>().map_err(SagaRequestError::from)?)
            }
            Status::Compensated => Err(WaitError::Compensated(error(peeked))),
            Status::Abandoned => Err(WaitError::Abandoned),
            _ => Err(WaitError::Stuck(error(peeked))),
        }
    }

    /// Waits until it has ended or is stuck.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn wait_end(&self) -> Result<Peeked, SagaRequestError> {
        /// Ends that no hint tells of (another process cancelled it, say) are noticed this late.
        const UNHINTED: Duration = Duration::from_secs(1);
        let mut seen = self.fresh.unwrap_or_else(|| self.watch.hints());
        if self.fresh.is_some() {
            let _ = tokio::time::timeout(UNHINTED, self.watch.after(seen)).await;
        }
        loop {
            let hints = self.watch.hints();
            let peeked = self.peek().await?;
            if peeked.status.is_ended() || peeked.status == Status::Stuck {
                return Ok(peeked);
            }
            seen = seen.max(hints);
            let _ = tokio::time::timeout(UNHINTED, self.watch.after(seen)).await;
        }
    }

    /// Stops it and compensates what acted or may have acted.
    ///
    /// # Errors
    /// [`SagaRequestError`]: past its pivot, ended, or compensating already.
    pub async fn cancel(&self) -> Result<Status, SagaRequestError> {
        self.event(Event::Cancel).await
    }

    /// Begins nothing new; what is in flight is answered and journaled.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn pause(&self) -> Result<Status, SagaRequestError> {
        self.event(Event::Pause).await
    }

    /// Goes on after a pause.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn resume(&self) -> Result<Status, SagaRequestError> {
        self.event(Event::Resume).await
    }

    /// Tries again now: what is stuck, or waits for another attempt.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn retry(&self) -> Result<Status, SagaRequestError> {
        self.event(Event::Retry).await
    }

    /// Gives it up: nothing more is done, nothing is undone.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn abandon(&self) -> Result<Status, SagaRequestError> {
        self.event(Event::Abandon).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn signal<T: Serialize + ?Sized>(
        &self,
        name: &str,
        value: &T,
    ) -> Result<Status, SagaRequestError> {
        self.event(Event::Signal { name: name.to_owned(), value: Blob::of(value)? }).await
    }

    /// Leaves the exhausted undo of a step undone.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn skip(&self, step: &str) -> Result<Status, SagaRequestError> {
        let op = self.find(step).await?;
        self.event(Event::Skip(op)).await
    }

    /// Says that a step was done by hand, with this output, or that its undo was.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn resolve<T: Serialize + ?Sized>(
        &self,
        step: &str,
        output: &T,
    ) -> Result<Status, SagaRequestError> {
        let op = self.find(step).await?;
        self.event(Event::Resolve(op, Blob::of(output)?)).await
    }

    /// Undoes this step and all later ones, then runs them anew under new keys.
    ///
    /// # Errors
    /// [`SagaRequestError`].
    pub async fn restart(&self, step: &str) -> Result<Status, SagaRequestError> {
        let op = self.find(step).await?;
        self.event(Event::Restart(op)).await
    }

    /// The operation of a step's name (the last that needs a person, else the last), or number.
    async fn find(&self, step: &str) -> Result<OpNumber, SagaRequestError> {
        let machine = self.show().await?;
        let named = || machine.ops().iter().rev().filter(|op| op.name == step);
        let needy = named().find(|op| {
            op.undo == UndoState::Failed || op.alarm || (op.error.is_some() && op.output.is_none())
        });
        let number = || step.parse().ok().and_then(|number| machine.op(number));
        let found = needy.or_else(|| named().next()).or_else(number);
        found.map(|op| op.number).ok_or_else(|| SagaRequestError::Refused {
            id: self.id.clone(),
            refusal: Refusal::NoSuchStep(step.to_owned()),
        })
    }
}

//! A client in another process: the same session, over sockets to every worker.
//!
//! Decides nothing but routing. An input stays in the client's window until its answer comes, and
//! every new connection carries the unanswered ones again: a worker that dies and comes back gives
//! them their original answers.

use crate::client::{Client, Door, new_session};
use crate::link::{LinkOwner, SocketLink};
use crate::message::Message;
use crate::root::{Root, RootError};
use crate::sockets;
use rallypoint_base::id::{InputSeq, PartitionId, SessionId};
use rallypoint_engine::map::Map;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

struct RemoteDoor {
    map: Arc<Map>,
    workers: usize,
    links: OnceLock<Vec<Arc<SocketLink>>>,
}

impl RemoteDoor {
    fn worker_of(&self, partition: PartitionId) -> Option<usize> {
        self.map.directory_of(partition).map(|directory| sockets::worker_of(directory, self.workers))
    }
}

impl Door for RemoteDoor {
    fn submit(&self, to: PartitionId, message: &[u8], _urgent: bool) {
        if let (Some(worker), Some(links)) = (self.worker_of(to), self.links.get()) {
            links[worker].send(message);
        }
    }
    fn drive(&self, _to: PartitionId, _done: &dyn Fn() -> bool) -> bool {
        false
    }
    fn wake(&self, _to: PartitionId) {}
    fn closed(&self) -> Option<String> {
        None
    }
    fn may_lose(&self) -> bool {
        true
    }
}

struct Worker {
    number: usize,
    door: Arc<RemoteDoor>,
    client: OnceLock<Weak<Client>>,
    /// Connected, and nothing has come back yet.
    fresh: AtomicBool,
    first_answers: FirstAnswers,
}

/// Which worker gave its first answer over a new connection, and when.
type FirstAnswers = Arc<Mutex<Vec<(usize, Instant)>>>;

impl LinkOwner for Worker {
    fn connected(&self, first: &mut Vec<u8>) {
        self.fresh.store(true, Ordering::SeqCst);
        if let Some(client) = self.client.get().and_then(Weak::upgrade) {
            client.unanswered(&|to| self.door.worker_of(to) == Some(self.number), first);
        }
    }

    fn received(&self, bytes: &[u8]) -> Option<usize> {
        let client = self.client.get()?.upgrade()?;
        let mut whole = 0;
        while let Some((message, len)) = Message::split(&bytes[whole..]).ok()? {
            whole += len;
            if matches!(message, Message::Reply { .. }) && self.fresh.swap(false, Ordering::SeqCst) {
                let mut answers = self.first_answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.push((self.number, Instant::now()));
            }
        }
        client.deliver(&bytes[..whole]).ok()?;
        Some(whole)
    }
}

/// A client of a store that workers of this machine serve.
pub struct RemoteClient {
    client: Arc<Client>,
    links: Vec<Arc<SocketLink>>,
    first_answers: FirstAnswers,
}

impl RemoteClient {
    /// Connects to the workers of the store in `dir`; they may be down now and come back.
    ///
    /// # Errors
    /// [`RootError`] when there is no store, or it was never served by workers.
    pub fn connect(dir: &Path, session: Option<(SessionId, InputSeq)>) -> Result<Self, RootError> {
        let root = Root::find(dir, None, None)?;
        let place = sockets::directory(&root);
        let workers = sockets::announced(&place)?.max(1);
        let door = Arc::new(RemoteDoor { map: Arc::clone(&root.map), workers, links: OnceLock::new() });
        let (session, next) = session.unwrap_or_else(|| (new_session(), InputSeq(1)));
        let client = Client::new(session, next, Arc::clone(&root.map), Arc::clone(&door) as Arc<dyn Door>);
        let hello = Message::Hello { store: root.store.0, worker: u32::MAX, incarnation: session.0 };
        let first_answers = FirstAnswers::default();
        let mut links = Vec::new();
        for number in 0..workers {
            let owner = Worker {
                number,
                door: Arc::clone(&door),
                client: OnceLock::new(),
                fresh: AtomicBool::new(true),
                first_answers: Arc::clone(&first_answers),
            };
            let _ = owner.client.set(Arc::downgrade(&client));
            let link = SocketLink::start(sockets::worker(&place, number), &hello, Arc::new(owner));
            links.push(link.map_err(RootError::Thread)?);
        }
        let _ = door.links.set(links.clone());
        let retried = Arc::downgrade(&client);
        std::thread::Builder::new()
            .name("client-retry".into())
            .spawn(move || {
                while let Some(client) = retried.upgrade() {
                    client.retry();
                    drop(client);
                    std::thread::sleep(Duration::from_millis(500));
                }
            })
            .map_err(RootError::Thread)?;
        Ok(Self { client, links, first_answers })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Which workers gave their first answer over a new connection since the last call, and when:
    /// the end of a recovery as a client sees it.
    #[must_use]
    pub fn first_answers(&self) -> Vec<(usize, Instant)> {
        std::mem::take(&mut *self.first_answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks every worker for checkpoints.
    pub fn request_checkpoints(&self) {
        let mut bytes = Vec::new();
        Message::Checkpoint.encode(&mut bytes);
        self.links.iter().for_each(|link| link.send(&bytes));
    }

    /// Asks every worker to compare all it has with its checksums and between the copies. Each
    /// directory writes a `scrubbed` event at the end.
    pub fn request_scrub(&self, bytes_per_second: u64) {
        let mut bytes = Vec::new();
        Message::Scrub { bytes_per_second }.encode(&mut bytes);
        self.links.iter().for_each(|link| link.send(&bytes));
    }
}

impl Drop for RemoteClient {
    fn drop(&mut self) {
        self.links.iter().for_each(|link| link.close());
    }
}

//! A connection that comes back: queue, writer thread, reconnection.
//!
//! Decides when to connect again and what a new connection says first. Never promises delivery:
//! what was queued or under way when a connection ended is gone, and both users of links know how to
//! send again (the engine from its kept frames, a client from its window).

use crate::message::Message;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Queued bytes above which a link drops what comes (the other end has stopped reading).
const QUEUE_MAX: usize = 32 << 20;
const STACK: usize = 128 << 10;

#[derive(Default)]
struct State {
    queue: Vec<u8>,
    connected: bool,
    reset: bool,
    closed: bool,
    /// The writer sleeps: a notification that nobody waits for is a wasted call.
    sleeping: bool,
    stream: Option<UnixStream>,
}

/// What a link does on behalf of its owner.
pub(crate) trait LinkOwner: Send + Sync {
    /// A new connection: what it says right after Hello, before anything queued.
    fn connected(&self, first: &mut Vec<u8>);
    /// Bytes came back: take whole messages off the front, say how many bytes they had. `None`
    /// closes the connection.
    fn received(&self, bytes: &[u8]) -> Option<usize>;
}

pub(crate) struct SocketLink {
    path: PathBuf,
    hello: Vec<u8>,
    state: Mutex<State>,
    ready: Condvar,
}

impl SocketLink {
    pub(crate) fn start(
        path: PathBuf,
        hello: &Message<'_>,
        owner: Arc<dyn LinkOwner>,
    ) -> std::io::Result<Arc<Self>> {
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        let link =
            Arc::new(Self { path, hello: bytes, state: Mutex::new(State::default()), ready: Condvar::new() });
        let writer = Arc::clone(&link);
        std::thread::Builder::new()
            .name("link".into())
            .stack_size(STACK)
            .spawn(move || writer.run(&owner))?;
        Ok(link)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn send(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.connected || state.queue.len() > QUEUE_MAX {
            return;
        }
        let wake = state.queue.is_empty() && state.sleeping;
        state.queue.extend_from_slice(bytes);
        drop(state);
        if wake {
            self.ready.notify_one();
        }
    }

    /// The other end is a new process: connect again.
    pub(crate) fn reset(&self) {
        let mut state = self.lock();
        if state.connected {
            state.reset = true;
            if let Some(stream) = &state.stream {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
        drop(state);
        self.ready.notify_one();
    }

    /// The other end listens now: do not wait longer before the next try.
    pub(crate) fn hurry(&self) {
        if !self.lock().connected {
            self.ready.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        if let Some(stream) = &state.stream {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(state);
        self.ready.notify_one();
    }

    fn run(self: Arc<Self>, owner: &Arc<dyn LinkOwner>) {
        let mut pause = Duration::from_millis(1);
        loop {
            if self.lock().closed {
                return;
            }
            if let Ok(stream) = UnixStream::connect(&self.path) {
                pause = Duration::from_millis(1);
                // Its end, however it comes, is handled alike: connect again.
                let _ = self.speak(stream, owner);
                let mut state = self.lock();
                state.connected = false;
                state.reset = false;
                state.queue.clear();
                state.stream = None;
            } else {
                let state = self.lock();
                drop(self.ready.wait_timeout(state, pause));
                pause = (pause * 2).min(Duration::from_millis(5));
            }
        }
    }

    fn speak(self: &Arc<Self>, mut stream: UnixStream, owner: &Arc<dyn LinkOwner>) -> std::io::Result<()> {
        stream.write_all(&self.hello)?;
        let mut out = Vec::new();
        {
            let mut state = self.lock();
            state.connected = true;
            state.queue.clear();
            state.stream = Some(stream.try_clone()?);
        }
        let (reading, reader_link, reader_owner) = (stream.try_clone()?, Arc::clone(self), Arc::clone(owner));
        let reader =
            std::thread::Builder::new().name("link-read".into()).stack_size(STACK).spawn(move || {
                read_messages(reading, &mut |bytes| reader_owner.received(bytes));
                reader_link.reset();
            })?;
        owner.connected(&mut out);
        let mut result = stream.write_all(&out);
        out.clear();
        while result.is_ok() {
            let mut state = self.lock();
            while state.queue.is_empty() && !state.reset && !state.closed {
                state.sleeping = true;
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.sleeping = false;
            }
            if state.reset || state.closed {
                break;
            }
            std::mem::swap(&mut state.queue, &mut out);
            drop(state);
            result = stream.write_all(&out);
            out.clear();
            // One large burst must not keep its memory for ever.
            out.shrink_to(1 << 20);
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        let _ = reader.join();
        result
    }
}

impl crate::node::Link for SocketLink {
    fn send(&self, bytes: &[u8]) {
        Self::send(self, bytes);
    }
}

/// Reads until the connection ends; `take` is given everything unread and says how much of it were
/// whole messages (`None`: close).
pub(crate) fn read_messages(mut stream: UnixStream, take: &mut dyn FnMut(&[u8]) -> Option<usize>) {
    let mut buffer = vec![0u8; 64 << 10];
    let mut len = 0;
    loop {
        if len == buffer.len() {
            buffer.resize(buffer.len() * 2, 0);
        }
        match stream.read(&mut buffer[len..]) {
            Ok(0) => return,
            Ok(read) => len += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        let Some(taken) = take(&buffer[..len]) else {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        };
        buffer.copy_within(taken..len, 0);
        len -= taken;
        if len == 0 && buffer.len() > 1 << 20 {
            buffer.truncate(64 << 10);
            buffer.shrink_to_fit();
        }
    }
}

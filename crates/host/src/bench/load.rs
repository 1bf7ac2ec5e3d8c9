//! What the benches of actors share: the actors, the ways to load them, a place on the disk.
//!
//! Decides the shape of the load (keys, messages, how many are in flight). Never judges a figure and
//! never leaves a file behind.

use crate::app::App;
use crate::client::{AskError, Client, Pending};
use rallypoint_base::id::PartitionId;
use rallypoint_engine::actor::{Actor, Cx};
use rallypoint_engine::map::Map;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Adds the actors of the benches.
pub(super) fn register(app: App) -> App {
    app.actor::<Tally>().actor::<Purse>().actor::<Page>().actor::<Idle>()
}

/// Adds up.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Tally {
    total: u64,
}

/// 100 bytes when encoded.
#[derive(Serialize, Deserialize)]
pub(super) struct Add {
    amount: u64,
    text: String,
}

impl Add {
    pub(super) fn new() -> Self {
        Self { amount: 1, text: "x".repeat(84) }
    }
}

impl Actor for Tally {
    const KIND: &'static str = "bench.tally";
    type Message = Add;
    type Reply = u64;
    type Error = ();
    fn handle(&mut self, add: Add, _: &mut Cx<'_>) -> Result<u64, ()> {
        self.total += add.amount;
        Ok(self.total)
    }
}

/// Pays another one.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Purse {
    cents: i64,
    moves: u64,
}

/// One half of a transfer.
#[derive(Serialize, Deserialize)]
pub(super) enum Move {
    Pay { to: String, cents: i64 },
    Receive { cents: i64 },
}

impl Actor for Purse {
    const KIND: &'static str = "bench.purse";
    type Message = Move;
    type Reply = i64;
    type Error = ();
    fn handle(&mut self, message: Move, cx: &mut Cx<'_>) -> Result<i64, ()> {
        self.moves += 1;
        match message {
            Move::Pay { to, cents } => {
                self.cents -= cents;
                cx.send::<Self>(&to, &Move::Receive { cents });
            }
            Move::Receive { cents } => self.cents += cents,
        }
        Ok(self.cents)
    }
}

/// 1 KiB of state.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Page {
    text: String,
}

impl Page {
    const LEN: usize = 1024;
}

impl Actor for Page {
    const KIND: &'static str = "bench.page";
    type Message = u64;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, seed: u64, _: &mut Cx<'_>) -> Result<(), ()> {
        let line = format!("{:016x}", rallypoint_base::random::mix(seed));
        if self.text.is_empty() {
            self.text = line.repeat(Self::LEN / line.len());
        } else {
            self.text.replace_range(..line.len(), &line);
        }
        Ok(())
    }
}

/// 32 bytes of state.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Idle {
    words: [u64; 4],
}

impl Idle {
    pub(super) const LEN: usize = size_of::<Self>();
}

impl Actor for Idle {
    const KIND: &'static str = "bench.idle";
    type Message = u64;
    type Reply = ();
    type Error = ();
    fn handle(&mut self, word: u64, _: &mut Cx<'_>) -> Result<(), ()> {
        self.words[0] = word;
        Ok(())
    }
}

/// A transfer between neighbours of the list, which are in different partitions.
pub(super) fn transfer(keys: &[String], at: u64) -> (&str, Move) {
    let from = (at.wrapping_mul(7919) % keys.len() as u64) as usize;
    let to = keys[(from + 1) % keys.len()].clone();
    (&keys[from], Move::Pay { to, cents: 1 })
}

/// `count` keys, one of each partition in turns.
pub(super) fn keys(map: &Map, count: usize) -> Vec<String> {
    let partitions = map.partitions().count();
    let mut of: Vec<Vec<String>> = vec![Vec::new(); partitions];
    let each = count.div_ceil(partitions);
    let mut number = 0_u64;
    while of.iter().any(|keys| keys.len() < each) {
        let key = format!("key-{number}");
        number += 1;
        let keys = &mut of[usize::from(map.partition_of(&key).0)];
        if keys.len() < each {
            keys.push(key);
        }
    }
    let mut all = Vec::with_capacity(each * partitions);
    for at in 0..each {
        all.extend(of.iter_mut().map(|keys| std::mem::take(&mut keys[at])));
    }
    all.truncate(count);
    all
}

/// The keys of some partitions.
pub(super) fn keys_in(map: &Map, keys: &[String], which: impl Fn(PartitionId) -> bool) -> Vec<String> {
    keys.iter().filter(|key| which(map.partition_of(key))).cloned().collect()
}

pub(super) fn failed<E: std::fmt::Debug>(error: AskError<E>) -> io::Error {
    io::Error::other(format!("an input was not acknowledged: {error:?}"))
}

/// Inputs in flight, answers taken in order.
pub(super) struct Window<'a, A: Actor> {
    client: &'a Arc<Client>,
    in_flight: usize,
    pending: VecDeque<(Instant, Pending<A>)>,
    /// Answered so far.
    pub(super) answered: u64,
    /// When asked, and how long the answer took.
    pub(super) times: Vec<(Instant, Duration)>,
}

impl<'a, A: Actor<Error = ()>> Window<'a, A> {
    pub(super) fn new(client: &'a Arc<Client>, in_flight: usize) -> Self {
        Self { client, in_flight, pending: VecDeque::new(), answered: 0, times: Vec::new() }
    }

    /// Asks, after taking answers until there is room.
    pub(super) fn ask(&mut self, key: &str, message: &A::Message) -> io::Result<()> {
        while self.pending.len() >= self.in_flight {
            self.take_one()?;
        }
        let now = Instant::now();
        self.pending.push_back((now, self.client.ask::<A>(key, message)));
        Ok(())
    }

    fn take_one(&mut self) -> io::Result<()> {
        if let Some((asked, pending)) = self.pending.pop_front() {
            pending.wait().map_err(failed)?;
            self.answered += 1;
            self.times.push((asked, asked.elapsed()));
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            self.take_one()?;
        }
        Ok(())
    }

    /// Asks for about this long and takes every answer; gives inputs per second.
    pub(super) fn slice<'k>(
        &mut self,
        time: Duration,
        next: &mut dyn FnMut() -> (&'k str, A::Message),
    ) -> io::Result<f64> {
        let (started, before) = (Instant::now(), self.answered);
        while started.elapsed() < time {
            let (key, message) = next();
            self.ask(key, &message)?;
        }
        self.finish()?;
        Ok((self.answered - before) as f64 / started.elapsed().as_secs_f64())
    }
}

/// Directories of a bench: removed at the end, and not before (see the bench of the journal).
pub(super) struct Area {
    directory: PathBuf,
    mirror: Option<PathBuf>,
    places: u32,
}

impl Area {
    pub(super) fn new(bench: &str, directory: &Path, mirror: Option<&Path>) -> io::Result<Self> {
        let name = format!("rallypoint-bench-{bench}-{}", std::process::id());
        let area = Self {
            directory: directory.join(&name),
            mirror: mirror.map(|mirror| mirror.join(name + "-mirror")),
            places: 0,
        };
        for directory in [Some(&area.directory), area.mirror.as_ref()].into_iter().flatten() {
            fs::create_dir_all(directory)?;
        }
        Ok(area)
    }

    /// A definition with the bench's actors, and the directory of a new store for it.
    pub(super) fn store(&mut self) -> (App, PathBuf) {
        self.places += 1;
        let name = format!("store-{}", self.places);
        let dir = self.directory.join(name);
        (self.mirrored(register(App::define()), &dir), dir)
    }

    /// The definition with the second copy of the store in `dir`, if there are to be two.
    pub(super) fn mirrored(&self, app: App, dir: &Path) -> App {
        match self.mirror_of(dir) {
            Some(mirror) => app.mirror(mirror),
            None => app,
        }
    }

    /// Where the second copy of the store in `dir` lies, if there is to be one.
    pub(super) fn mirror_of(&self, dir: &Path) -> Option<PathBuf> {
        Some(self.mirror.as_ref()?.join(dir.file_name()?))
    }

    /// New directories for bare files, as many as there are copies.
    pub(super) fn bare(&mut self) -> io::Result<Vec<PathBuf>> {
        self.places += 1;
        let name = format!("bare-{}", self.places);
        let mut places = Vec::new();
        for directory in [Some(&self.directory), self.mirror.as_ref()].into_iter().flatten() {
            let place = directory.join(&name);
            fs::create_dir(&place)?;
            places.push(place);
        }
        Ok(places)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        for directory in [Some(&self.directory), self.mirror.as_ref()].into_iter().flatten() {
            // What cannot be removed here could not be removed better elsewhere.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

pub(super) fn micros(times: &[(Instant, Duration)]) -> Vec<f64> {
    times.iter().map(|(_, time)| time.as_secs_f64() * 1e6).collect()
}

//! A home: one journal directory being served in this process.
//!
//! Decides whose thread runs the unit. When all is quiet the caller that waits for an answer runs
//! partition, commit and reply itself (a thread hop costs tens of microseconds, a synced write a
//! hundred); under load the home's standing thread does, and everything that gathers while a commit
//! is in flight is the next commit.
//!
//! Never holds the inbox's lock while the unit runs, and never runs a unit from two threads.
//!
//! It also decides when the next bytes are scrubbed: when nothing else is to be done, and at a bounded
//! rate; or, when somebody asked for a pass, at the rate that was asked for.
//!
//! Invariants: whoever leaves the unit with work still to do wakes the standing thread; after about
//! [`IDLE`] without work the watermark covers the last commit.

use crate::message::Message;
use crate::node::Shared;
use crate::os::file_disk::FileDisk;
use crate::os::running_page::RunningPage;
use rallypoint_base::id::{DirectoryId, Epoch, InputSeq, PartitionId, SessionId, Ssn};
use rallypoint_base::time::Time;
use rallypoint_engine::command::{Outcome, Receipt, Turned};
use rallypoint_engine::effect::EffectKey;
use rallypoint_engine::unit::{Outside, Unit, UnitNotice};
use rallypoint_rollback::protocol::Peer;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// After this long without work an empty commit carries the watermark over the last one.
pub(crate) const IDLE: Duration = Duration::from_millis(1);
/// A batch of inbox bytes after which the unit gets a chance to commit.
const SLICE: usize = 64 << 10;
/// Bytes that one step of scrubbing compares.
const SCRUB: usize = 256 << 10;
/// The first pass begins this long after the opening: a process that is often started again scrubs
/// too, and one that has just been started has better things to do.
const SCRUB_AFTER: Duration = Duration::from_secs(60);

pub(crate) struct Home {
    pub(crate) directory: DirectoryId,
    shared: Arc<Shared>,
    inbox: Mutex<Vec<u8>>,
    serving: Mutex<Option<Serving>>,
    /// Held by whoever waits for `serving`: the standing thread, which may be at it without end, stands
    /// in line like everybody else.
    line: Mutex<()>,
    /// How many stand in line besides the standing thread.
    waiting: AtomicUsize,
    signal: Mutex<Signal>,
    wakeup: Condvar,
    /// Counts turns: what a watchdog looks at.
    turns: AtomicU64,
    /// True while something waits to be done.
    busy: AtomicBool,
    stopping: AtomicBool,
    /// Nothing new runs any more: what comes is dropped, and comes again after the next start.
    closing: AtomicBool,
    checkpointing: AtomicBool,
    page: OnceLock<Arc<RunningPage>>,
    /// Commits that went from sealing to reply on a caller's thread, and on the standing one.
    pub(crate) inline_drives: AtomicU64,
    /// Commits that a caller's thread made.
    pub(crate) inline_commits: AtomicU64,
}

#[derive(Default)]
struct Signal {
    /// Work came in.
    awake: bool,
    /// The standing thread sleeps until it is woken (else it looks again within [`IDLE`]).
    deep: bool,
    /// The standing thread sleeps at all: a notification that nobody waits for is a wasted call.
    sleeping: bool,
}

pub(crate) struct Serving {
    pub(crate) unit: Unit<FileDisk>,
    outlet: Outlet,
    spare: Vec<u8>,
    worked: bool,
    /// When it last had something to do.
    worked_at: Instant,
    scrubbing: Scrubbing,
}

/// When to scrub.
struct Scrubbing {
    /// The next pass that nobody asked for.
    pass: Time,
    /// The next step of any pass.
    step: Time,
    /// Bytes per second of a pass that somebody asked for.
    asked: u64,
}

impl Serving {
    /// True while a commit is on its way and will arrive: one that waits for space on a full disk does
    /// not, and nobody may lend a thread to wait for it.
    fn is_committing(&self) -> bool {
        self.unit.is_committing() && self.unit.failure().is_none()
    }
}

impl Home {
    pub(crate) fn new(directory: DirectoryId, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            directory,
            shared,
            inbox: Mutex::new(Vec::new()),
            serving: Mutex::new(None),
            line: Mutex::new(()),
            waiting: AtomicUsize::new(0),
            signal: Mutex::new(Signal::default()),
            wakeup: Condvar::new(),
            turns: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            checkpointing: AtomicBool::new(false),
            page: OnceLock::new(),
            inline_drives: AtomicU64::new(0),
            inline_commits: AtomicU64::new(0),
        })
    }

    /// An outlet for the opening of the unit; give it to [`Home::install`].
    pub(crate) fn outlet(&self) -> Outlet {
        Outlet::new(Arc::clone(&self.shared))
    }

    pub(crate) fn outlet_shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(crate) fn install(&self, unit: Unit<FileDisk>, outlet: Outlet) {
        let pass = self.shared.clock.now() + SCRUB_AFTER;
        let scrubbing = Scrubbing { pass, step: Time(0), asked: 0 };
        *self.lock_serving() = Some(Serving {
            unit,
            outlet,
            spare: Vec::new(),
            worked: true,
            worked_at: Instant::now(),
            scrubbing,
        });
    }

    /// Takes the unit out: nothing is served any more.
    pub(crate) fn uninstall(&self) -> Option<Unit<FileDisk>> {
        self.lock_serving().take().map(|serving| serving.unit)
    }

    fn lock_serving(&self) -> MutexGuard<'_, Option<Serving>> {
        // A panic of ours while the unit ran leaves it in an unknown state; it is not used again.
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_in_line(&self) -> MutexGuard<'_, Option<Serving>> {
        let _line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        self.lock_serving()
    }

    /// Runs `act` on the unit between two turns.
    pub(crate) fn with_unit<T>(
        &self,
        act: impl FnOnce(&mut Unit<FileDisk>, &mut dyn Outside, Time) -> T,
    ) -> Option<T> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock_in_line();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let serving = guard.as_mut()?;
        let now = self.shared.clock.now();
        let result = act(&mut serving.unit, &mut serving.outlet, now);
        serving.outlet.flush(&self.shared);
        drop(guard);
        self.wake();
        Some(result)
    }

    /// Puts messages into the inbox.
    pub(crate) fn push(&self, bytes: &[u8], wake: bool) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        if wake {
            self.wake();
        }
    }

    pub(crate) fn wake(&self) {
        let mut signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        if !signal.awake {
            signal.awake = true;
            let sleeping = signal.sleeping;
            drop(signal);
            if sleeping {
                self.wakeup.notify_one();
            }
        }
    }

    pub(crate) fn set_page(&self, page: Arc<RunningPage>) {
        let _ = self.page.set(page);
    }

    /// Leaves word for the successor that a watchdog ends this process.
    pub(crate) fn note_hung(&self) {
        if let Some(page) = self.page.get() {
            page.note_hung();
        }
    }

    /// (turns so far, whether something waits): without progress in the first while the second is
    /// true, the home hangs.
    pub(crate) fn progress(&self) -> (u64, bool) {
        let waits = !self.inbox.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        (self.turns.load(Ordering::Relaxed), waits || self.busy.load(Ordering::Relaxed))
    }

    pub(crate) fn is_checkpointing(&self) -> bool {
        self.checkpointing.load(Ordering::Relaxed)
    }

    /// Lets nothing new run, so that a checkpoint can hold everything that did. Frames and effects
    /// come again after the next start, and no client was told that its input was taken.
    pub(crate) fn close_door(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// One turn: everything in the inbox, then the store. True when anything happened.
    fn turn(&self, serving: &mut Serving) -> bool {
        let mut inbox = std::mem::take(&mut serving.spare);
        inbox.clear();
        std::mem::swap(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner), &mut inbox);
        self.busy.store(true, Ordering::Relaxed);
        let closing = self.closing.load(Ordering::SeqCst);
        let now = self.shared.clock.now();
        let (unit, outlet) = (&mut serving.unit, &mut serving.outlet);
        let mut any = !inbox.is_empty();
        let mut rest = &inbox[..];
        let mut slice = 0;
        while !rest.is_empty() {
            // What is in the inbox was checked when it came in.
            let Ok(Some((message, len))) = Message::split(rest) else { break };
            if let Message::Scrub { bytes_per_second } = message {
                serving.scrubbing.asked = bytes_per_second;
                unit.want_scrub();
            }
            if !(closing && runs_something(&message)) {
                dispatch(unit, outlet, now, &message);
            }
            rest = &rest[len..];
            slice += len;
            if slice >= SLICE {
                slice = 0;
                unit.pump(now, outlet);
                outlet.flush(&self.shared);
                while unit.is_full() && unit.failure().is_none() {
                    let clock = &self.shared.clock;
                    unit.pump_waiting(&mut || clock.now(), outlet);
                }
            }
        }
        if !closing && unit.next_deadline() <= now {
            any = true;
            unit.tick(now, outlet);
        }
        any |= unit.pump(now, outlet);
        outlet.flush(&self.shared);
        serving.spare = inbox;
        serving.worked |= any;
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.checkpointing.store(unit.is_checkpointing(), Ordering::Relaxed);
        if unit.is_scrub_wanted() {
            self.scrub(serving);
        }
        self.busy.store(false, Ordering::Relaxed);
        any
    }

    /// When [`Home::scrub`] has something to do.
    fn scrub_due(&self, serving: &Serving) -> Time {
        let Scrubbing { pass, step, .. } = serving.scrubbing;
        let rate = self.shared.app.scrub().bytes_per_second;
        match serving.unit.is_scrub_wanted() {
            true => step,
            false if rate == 0 || serving.unit.failure().is_some() => Time::NEVER,
            false => pass.max(step),
        }
    }

    /// The next step of scrubbing, if it is due.
    fn scrub(&self, serving: &mut Serving) {
        let now = self.shared.clock.now();
        if self.scrub_due(serving) > now {
            return;
        }
        let plan = self.shared.app.scrub();
        let asked = serving.unit.is_scrub_wanted();
        let rate = if asked { serving.scrubbing.asked } else { plan.bytes_per_second };
        // Somebody who asks for no bound gets none.
        let pause = if rate == 0 { 0.0 } else { SCRUB as f64 / rate as f64 };
        serving.scrubbing.step = now + Duration::from_secs_f64(pause);
        if serving.unit.scrub(SCRUB, now, &mut serving.outlet) {
            serving.scrubbing.pass = now + plan.every;
        }
        // What was submitted is handed to the disk's threads, and its end is looked for.
        serving.unit.pump(now, &mut serving.outlet);
        serving.outlet.flush(&self.shared);
        serving.worked = true;
    }

    fn inbox_is_empty(&self) -> bool {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Lends the calling thread until `done` or until there is nothing to do. False when another
    /// thread is at it, or nothing was to be done.
    pub(crate) fn drive(&self, done: &dyn Fn() -> bool) -> bool {
        let Ok(mut guard) = self.serving.try_lock() else { return false };
        let Some(serving) = guard.as_mut() else { return false };
        let mut any = false;
        loop {
            any |= self.turn(serving);
            if done() {
                break;
            }
            if serving.is_committing() {
                self.pump_waiting(serving);
                self.inline_commits.fetch_add(1, Ordering::Relaxed);
                any = true;
            } else if self.inbox_is_empty() {
                break;
            }
            if done() {
                break;
            }
        }
        self.inline_drives.fetch_add(1, Ordering::Relaxed);
        let idle_only = !serving.is_committing() && !serving.unit.is_checkpointing();
        drop(guard);
        let signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = signal.deep || !idle_only || !self.inbox_is_empty();
        drop(signal);
        if wake {
            self.wake();
        }
        any
    }

    fn pump_waiting(&self, serving: &mut Serving) {
        let clock = &self.shared.clock;
        serving.unit.pump_waiting(&mut || clock.now(), &mut serving.outlet);
        serving.outlet.flush(&self.shared);
        serving.worked = true;
    }

    /// The standing thread.
    pub(crate) fn serve(self: Arc<Self>) {
        while !self.stopping.load(Ordering::SeqCst) {
            let mut guard = self.lock_in_line();
            let Some(serving) = guard.as_mut() else { break };
            // True until a whole turn finds nothing.
            let mut asked = false;
            while self.turn(serving) || serving.is_committing() {
                asked = self.waiting.load(Ordering::SeqCst) > 0;
                if asked || self.stopping.load(Ordering::SeqCst) {
                    break;
                }
                // With nothing else to do this thread makes the write itself, which saves two hops.
                if serving.is_committing() && self.inbox_is_empty() {
                    self.pump_waiting(serving);
                }
            }
            if asked {
                continue;
            }
            // Woken for nothing is not idle: a watermark then would cost the next commit a write.
            if std::mem::take(&mut serving.worked) {
                serving.worked_at = Instant::now();
            }
            let rest = serving.worked_at.elapsed() < IDLE;
            if !rest && serving.unit.idle() {
                self.pump_waiting(serving);
                serving.worked = false;
            }
            if !rest {
                self.scrub(serving);
            }
            let deadline = serving.unit.next_deadline().min(self.scrub_due(serving));
            drop(guard);
            // Whoever found the unit taken until just now sleeps, and trusts that its input was seen.
            if !self.inbox_is_empty() {
                continue;
            }
            let until_deadline = deadline.since(self.shared.clock.now());
            self.park(rest, until_deadline.max(Duration::from_micros(50)));
        }
    }

    /// Sleeps until woken, at most [`IDLE`] after work, else until the deadline.
    fn park(&self, worked: bool, until_deadline: Duration) {
        let mut signal = self.signal.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = if worked { IDLE.min(until_deadline) } else { until_deadline };
        // Bounded, since a wall clock deadline of centuries overflows some platforms' timers.
        let patience = patience.min(Duration::from_secs(3600));
        signal.deep = !worked;
        if !signal.awake {
            signal.sleeping = true;
            (signal, _) = self.wakeup.wait_timeout(signal, patience).unwrap_or_else(PoisonError::into_inner);
            signal.sleeping = false;
        }
        signal.awake = false;
        signal.deep = false;
    }
}

/// True for what a partition would write a record of.
fn runs_something(message: &Message<'_>) -> bool {
    matches!(message, Message::Input { .. } | Message::Frames { .. } | Message::Effect { .. })
}

fn dispatch(unit: &mut Unit<FileDisk>, outlet: &mut Outlet, now: Time, message: &Message<'_>) {
    match *message {
        Message::Input { to, session, seq, acknowledged_below, read_only, parcel } => {
            unit.input(now, to, session, seq, acknowledged_below, read_only, parcel, outlet);
        }
        Message::Frames { from, to, epoch, first, count, frames } => {
            if unit.frames(now, from, to, epoch, first, count, frames, outlet).is_err() {
                tracing::error!(%from, %to, "frames that are no frames were dropped; they come again");
            }
        }
        Message::Receipt { from, to, receipt } => unit.receipt(now, from, to, receipt, outlet),
        Message::Connected { peer } => unit.connected(now, peer, outlet),
        Message::Effect { to, key, outcome, value } => {
            unit.effect(now, to, key, outcome, value, outlet);
        }
        Message::Checkpoint => unit.request_checkpoints(now, true, outlet),
        Message::Hello { .. } | Message::Reply { .. } | Message::Turn { .. } | Message::Scrub { .. } => {}
    }
}

/// Collects what leaves a unit during a turn and hands it on in batches.
pub(crate) struct Outlet {
    shared: Arc<Shared>,
    replies: Vec<(SessionId, Vec<u8>)>,
    used_replies: usize,
    by_directory: Vec<Vec<u8>>,
}

impl Outlet {
    fn new(shared: Arc<Shared>) -> Self {
        let by_directory = (0..shared.map.directory_count()).map(|_| Vec::new()).collect();
        Self { shared, replies: Vec::new(), used_replies: 0, by_directory }
    }

    fn replies_of(&mut self, session: SessionId) -> &mut Vec<u8> {
        // Answers of one commit are mostly of one session, in runs.
        let found = self.replies[..self.used_replies].iter().rposition(|(id, _)| *id == session);
        let at = found.unwrap_or_else(|| {
            if self.used_replies == self.replies.len() {
                self.replies.push((session, Vec::new()));
            }
            self.replies[self.used_replies].0 = session;
            self.used_replies += 1;
            self.used_replies - 1
        });
        &mut self.replies[at].1
    }

    fn to(&mut self, partition: PartitionId) -> Option<&mut Vec<u8>> {
        let directory = self.shared.map.directory_of(partition)?;
        self.by_directory.get_mut(usize::from(directory.0))
    }

    pub(crate) fn flush(&mut self, shared: &Shared) {
        for (session, bytes) in &mut self.replies[..self.used_replies] {
            shared.reply(*session, bytes);
            bytes.clear();
        }
        self.used_replies = 0;
        for (directory, bytes) in self.by_directory.iter_mut().enumerate() {
            if !bytes.is_empty() {
                shared.send(DirectoryId(directory as u16), bytes);
                bytes.clear();
            }
        }
    }
}

impl Outside for Outlet {
    fn reply(&mut self, session: SessionId, seq: InputSeq, outcome: Outcome, bytes: &[u8]) {
        Message::Reply { session, seq, outcome, bytes }.encode(self.replies_of(session));
    }

    fn turn(&mut self, session: SessionId, seq: InputSeq, why: Turned) {
        Message::Turn { session, seq, why }.encode(self.replies_of(session));
    }

    fn transmit(
        &mut self,
        from: PartitionId,
        to: PartitionId,
        epoch: Epoch,
        first: Ssn,
        count: u32,
        frames: &[u8],
    ) {
        if let Some(out) = self.to(to) {
            Message::Frames { from, to, epoch, first, count, frames }.encode(out);
        }
    }

    fn receipt(&mut self, from: PartitionId, to: PartitionId, receipt: Receipt) {
        if let Some(out) = self.to(to) {
            Message::Receipt { from, to, receipt }.encode(out);
        }
    }

    fn perform(&mut self, from: PartitionId, key: EffectKey, name: &str, payload: &[u8], timeout: Duration) {
        Arc::clone(&self.shared).perform(from, key, name, payload, timeout);
    }

    fn control(&mut self, from: PartitionId, _to: Peer, _bytes: &[u8]) {
        // The hosts run the pessimistic protocol, which has no control messages.
        debug_assert!(false, "{from} sent a control message that no host carries");
    }

    fn notice(&mut self, notice: UnitNotice) {
        self.shared.notice(notice);
    }
}

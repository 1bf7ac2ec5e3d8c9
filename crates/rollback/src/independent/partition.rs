//! The partition's half of the independent protocol.
//!
//! Decides: what to tell the coordinator, and which of its orders still apply.
//! Never: computes a line. Invariants, source: see the parent module.

use super::RESEND;
use super::message::Message;
use crate::cut::{History, LocalState, Point};
use crate::protocol::{Command, Event, Peer, Protocol};
use rallypoint_base::id::{Epoch, PartitionId, Position, Version};
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_varint};

/// Independent checkpointing for one partition.
///
/// ```
/// use rallypoint_base::id::Position;
/// use rallypoint_rollback::independent::Independent;
/// use rallypoint_rollback::protocol::{Command, Event, Protocol};
///
/// let mut protocol = Independent::default();
/// let mut commands = Vec::new();
/// protocol.handle(Event::Ran { position: Position(1), cause: None, sent: 1 }, &mut commands);
/// // The frame leaves at once, the reply only with a recovery line.
/// let (frames, outputs) = (Position(1), Position(0));
/// assert_eq!(commands, [Command::Release { frames, outputs, receipts: outputs }]);
/// ```
#[derive(Clone, Debug)]
pub struct Independent {
    /// Stable checkpoints of the branch that is alive, none below `stable`.
    history: History,
    /// Cut and not yet durable. Only the newest counts: of an older one that becomes durable later
    /// the newer one's saved state would know nothing, and what we announce must survive a crash.
    pending: Option<(Version, LocalState)>,
    /// The state in memory.
    here: LocalState,
    /// False from a crash until the next line: what is in memory then is only a copy of a checkpoint.
    has_memory: bool,
    /// Our version in the last stable line we heard of.
    stable: Version,
    /// The newest of our versions that the coordinator knows.
    seen: Version,
    /// The newest round this incarnation answered; our epoch while running.
    round: Epoch,
    phase: Phase,
    now: Time,
    resend_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Restored after a crash; waits for a query.
    Restored,
    /// Answered the query of `round`; waits for its rollback.
    Reported,
    /// The engine is rolling back.
    RollingBack,
    /// Gone back; waits until all have.
    RolledBack,
    Running,
}

impl Default for Independent {
    fn default() -> Self {
        Self {
            history: History::initial(),
            pending: None,
            here: LocalState::default(),
            has_memory: false,
            stable: Version(0),
            seen: Version(0),
            round: Epoch(0),
            phase: Phase::Restored,
            now: Time::default(),
            resend_at: Time::default(),
        }
    }
}

impl Protocol for Independent {
    fn name(&self) -> &'static str {
        "independent"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        match event {
            Event::Ran { position, cause, .. } => {
                self.here.ran(position, cause);
                out.push(self.release());
            }
            Event::CheckpointDue => {
                if self.phase == Phase::Running {
                    out.push(Command::TakeCheckpoint);
                }
            }
            Event::CheckpointTaken { version, position, channels } => {
                self.here = LocalState { position, channels: channels.clone() };
                self.pending = Some((version, self.here.clone()));
            }
            Event::CheckpointDurable { version } => self.checkpoint_durable(version, out),
            Event::Restarted { version, position, channels } => {
                self.pending = None;
                self.stand_at(Some(version), LocalState { position, channels: channels.clone() });
                self.lose_memory(out);
            }
            Event::RolledBack { version, epoch, position, channels } => {
                self.stand_at(version, LocalState { position, channels: channels.clone() });
                self.rolled_back(epoch, out);
            }
            Event::Control { from: Peer::Coordinator, bytes } => {
                // Foreign bytes are the host's to report; a message that is dropped is sent again.
                if let Ok(message) = Message::decode(bytes) {
                    self.order(message, out);
                }
            }
            Event::Tick { now } => self.tick(now, out),
            // The coordinator hears of failures itself.
            Event::PeerFailed { .. }
            | Event::Control { .. }
            | Event::Arriving { .. }
            | Event::Durable { .. }
            | Event::Persisted { .. } => {}
        }
    }

    fn piggyback(&mut self, to: PartitionId, _out: &mut Vec<u8>) {
        self.here.sent_one(to);
    }

    fn save(&self, out: &mut Vec<u8>) {
        put_varint(out, self.stable.0);
        self.history.encode(out);
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        let stable = Version(reader.varint("stable")?);
        // It may list versions that were removed since the cut. No line goes there: all of them lie
        // below the stable line, and no line does.
        self.history = History::decode(&mut reader)?;
        // What an older checkpoint says of the stable line is true but may be old news.
        self.stable = self.stable.max(stable);
        self.history.forget_below(self.stable);
        Ok(())
    }
}

impl Independent {
    /// The version up to which nothing will ever be undone.
    #[must_use]
    pub fn stable(&self) -> Version {
        self.stable
    }

    fn checkpoint_durable(&mut self, version: Version, out: &mut Vec<Command>) {
        let Some((_, state)) = self.pending.take_if(|(pending, _)| *pending == version) else { return };
        if self.history.push(version, state).is_ok() && self.phase == Phase::Running {
            self.announce(out);
        }
    }

    /// The state in memory is now `here`, restored from `version` or kept.
    fn stand_at(&mut self, version: Option<Version>, here: LocalState) {
        if let Some(version) = version {
            self.pending = None;
            self.history.undo_after(version);
            if self.history.newest() != Some(version) && self.history.push(version, here.clone()).is_err() {
                // The saved list contradicts the counters: trust what was restored, offer nothing older.
                self.history = History::empty();
                let _ = self.history.push(version, here.clone());
            }
        }
        self.here = here;
    }

    fn lose_memory(&mut self, out: &mut Vec<Command>) {
        self.has_memory = false;
        self.phase = Phase::Restored;
        out.push(Command::Pause);
        self.tell(&Message::Restarted, out);
    }

    fn rolled_back(&mut self, epoch: Epoch, out: &mut Vec<Command>) {
        if epoch > self.round || self.phase != Phase::RollingBack {
            // Somebody else rolled this partition back: to the others that is a failure.
            return self.lose_memory(out);
        }
        self.has_memory = true;
        if epoch == self.round {
            self.phase = Phase::RolledBack;
            self.tell(&Message::RolledBack { round: epoch }, out);
        } else {
            // A newer round asked while the engine was busy.
            self.report(out);
        }
    }

    fn order(&mut self, message: Message, out: &mut Vec<Command>) {
        match message {
            Message::Query { round } => self.query(round, out),
            Message::RollBack { round, point } => self.roll_back(round, point, out),
            Message::Resume { round } => {
                if round == self.round && self.phase == Phase::RolledBack {
                    self.phase = Phase::Running;
                    out.extend([Command::Resume, self.release()]);
                }
            }
            Message::Stable { version, seen } => self.stable_line(version, seen, out),
            // Those go the other way.
            Message::Announce { .. }
            | Message::Restarted
            | Message::Report { .. }
            | Message::RolledBack { .. } => {}
        }
    }

    fn query(&mut self, round: Epoch, out: &mut Vec<Command>) {
        let is_repeated = round == self.round && self.phase == Phase::Reported;
        if round <= self.round && !is_repeated {
            return;
        }
        self.round = round;
        // While the engine rolls back, the state to report is still to come.
        if self.phase != Phase::RollingBack {
            self.report(out);
        }
    }

    fn report(&mut self, out: &mut Vec<Command>) {
        self.phase = Phase::Reported;
        self.seen = self.history.newest().unwrap_or_default();
        let mut history = self.history.clone();
        history.set_current(self.has_memory.then(|| self.here.clone()));
        out.push(Command::Pause);
        self.tell(&Message::Report { round: self.round, history }, out);
    }

    fn roll_back(&mut self, round: Epoch, point: Point, out: &mut Vec<Command>) {
        match self.phase {
            Phase::Reported if round == self.round => {
                let version = match point {
                    Point::Current if self.has_memory => None,
                    Point::Stable(version) if self.is_at(version) => None,
                    Point::Stable(version) if self.history.state(point).is_some() => Some(version),
                    // The line rests on a report of an earlier incarnation: ask for another round.
                    _ => return self.lose_memory(out),
                };
                self.phase = Phase::RollingBack;
                out.push(Command::RollBack { version, epoch: round });
            }
            Phase::RolledBack | Phase::Running if round == self.round => {
                self.tell(&Message::RolledBack { round }, out);
            }
            // This incarnation was never asked: it may not be where the line believes it is.
            Phase::Restored if round >= self.round => self.tell(&Message::Restarted, out),
            _ => {}
        }
    }

    /// True when memory holds exactly `version`, as after a crash that lost nothing else.
    fn is_at(&self, version: Version) -> bool {
        !self.has_memory
            && self.history.newest() == Some(version)
            && self.history.state(Point::Stable(version)) == Some(&self.here)
    }

    fn stable_line(&mut self, version: Version, seen: Version, out: &mut Vec<Command>) {
        self.seen = seen;
        if version > self.stable && self.history.state(Point::Stable(version)).is_some() {
            self.stable = version;
            self.history.forget_below(version);
            if self.phase == Phase::Running {
                out.push(self.release());
            }
            out.push(Command::Forget { version });
        }
        if self.phase == Phase::Running && self.is_unheard() {
            self.announce(out);
        }
    }

    fn release(&self) -> Command {
        let safe = self.history.state(Point::Stable(self.stable)).map_or(Position(0), |state| state.position);
        Command::Release { frames: self.here.position, outputs: safe, receipts: safe }
    }

    fn is_unheard(&self) -> bool {
        self.history.newest() > Some(self.seen)
    }

    fn announce(&mut self, out: &mut Vec<Command>) {
        let announcement = Message::Announce { epoch: self.round, history: self.history.clone() };
        self.tell(&announcement, out);
    }

    fn tell(&mut self, message: &Message, out: &mut Vec<Command>) {
        self.resend_at = self.now + RESEND;
        out.push(Command::Control { to: Peer::Coordinator, bytes: message.encode() });
        out.push(Command::SetTimer { at: self.resend_at });
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Command>) {
        self.now = now;
        if now < self.resend_at {
            return;
        }
        match self.phase {
            Phase::Restored => self.tell(&Message::Restarted, out),
            Phase::Reported => self.report(out),
            Phase::RolledBack => self.tell(&Message::RolledBack { round: self.round }, out),
            // The line may have moved and the word of it been lost.
            Phase::Running if self.is_unheard() || self.history.newest() > Some(self.stable) => {
                self.announce(out);
            }
            Phase::RollingBack | Phase::Running => {}
        }
    }
}

//! The coordinator's half of the independent protocol: one per store.
//!
//! Decides: when a round begins, where its line is, when all may go on, and the stable line.
//! Never: stands between two partitions while nothing has failed. Invariants, source: see the
//! parent module.

use super::RESEND;
use super::message::{Message, Recovery};
use crate::cut::{Cut, Histories, History, Point};
use crate::line::{NoLine, recovery_line, stable_line};
use crate::protocol::{Command, Event, Peer, Protocol};
use rallypoint_base::id::{Epoch, PartitionId, Version};
use rallypoint_base::time::Time;
use rallypoint_base::wire::Malformed;
use std::collections::{BTreeMap, BTreeSet};

/// The coordinator of the independent protocol.
///
/// It speaks the same events and commands as a partition's protocol: it hears of
/// [`Event::Control`], [`Event::PeerFailed`], [`Event::Persisted`] and [`Event::Tick`], and asks for
/// [`Command::Control`], [`Command::Persist`] (into the system log; the token is the epoch) and
/// [`Command::SetTimer`]. The order of calls after a start: [`Protocol::load`] if anything was saved,
/// [`Coordinator::recover`] once, then any events.
///
/// ```
/// use rallypoint_base::id::{Epoch, PartitionId};
/// use rallypoint_rollback::independent::{Coordinator, Message};
/// use rallypoint_rollback::protocol::{Command, Event, Peer, Protocol};
///
/// let mut coordinator = Coordinator::new([PartitionId(0), PartitionId(1)]);
/// let mut commands = Vec::new();
/// coordinator.recover([], &mut commands).unwrap();
/// coordinator.handle(Event::PeerFailed { peer: PartitionId(1) }, &mut commands);
/// let bytes = Message::Query { round: Epoch(1) }.encode();
/// assert!(commands.contains(&Command::Control { to: Peer::Partition(PartitionId(0)), bytes }));
/// ```
#[derive(Clone, Debug)]
pub struct Coordinator {
    partitions: BTreeSet<PartitionId>,
    /// Of the newest round begun.
    epoch: Epoch,
    /// The newest epoch that somebody else opened.
    floor: Epoch,
    /// While gathering: the reports of this round. While idle: what was announced since.
    histories: Histories,
    stable: BTreeMap<PartitionId, Version>,
    /// Those that have told nothing since a restart: what is known of them is only their beginning.
    untold: BTreeSet<PartitionId>,
    phase: Phase,
    /// The newest recovery that is stable.
    decided: Option<Recovery>,
    /// Why the gathered reports give no line.
    no_line: Option<NoLine>,
    now: Time,
    resend_at: Time,
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    Gathering,
    Persisting(Recovery),
    RollingBack { line: Cut, waiting: BTreeSet<PartitionId> },
}

impl Protocol for Coordinator {
    fn name(&self) -> &'static str {
        "independent"
    }

    fn handle(&mut self, event: Event<'_>, out: &mut Vec<Command>) {
        match event {
            Event::Control { from: Peer::Partition(from), bytes } if self.partitions.contains(&from) => {
                if let Ok(message) = Message::decode(bytes) {
                    self.message(from, message, out);
                }
            }
            Event::PeerFailed { peer } if self.partitions.contains(&peer) => {
                // One that has not reported to this round has nothing that could be void.
                let unheard = matches!(self.phase, Phase::Gathering) && !self.histories.contains_key(&peer);
                if !unheard {
                    self.begin(out);
                }
            }
            Event::Persisted { token } => self.persisted(token, out),
            Event::Tick { now } => self.tick(now, out),
            _ => {}
        }
    }

    fn save(&self, out: &mut Vec<u8>) {
        if let Some(decided) = &self.decided {
            out.extend(decided.encode());
        }
    }

    fn load(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        if !bytes.is_empty() {
            self.adopt(Recovery::decode(bytes)?);
        }
        Ok(())
    }
}

impl Coordinator {
    /// The coordinator of these partitions, before anything happened.
    #[must_use]
    pub fn new(partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        Self {
            partitions: partitions.into_iter().collect(),
            epoch: Epoch(0),
            floor: Epoch(0),
            histories: Histories::new(),
            stable: BTreeMap::new(),
            untold: BTreeSet::new(),
            phase: Phase::Idle,
            decided: None,
            no_line: None,
            now: Time::default(),
            resend_at: Time::default(),
        }
    }

    /// Continues after a start, with every stable record that [`Command::Persist`] ever wrote. The
    /// newest recovery is ordered again, since nobody knows how far it came; those who have done it
    /// only say so. Without a record nothing was decided: partitions that wait will ask.
    ///
    /// # Errors
    /// [`Malformed`] when a record is not one of ours.
    pub fn recover<'a>(
        &mut self,
        records: impl IntoIterator<Item = &'a [u8]>,
        out: &mut Vec<Command>,
    ) -> Result<(), Malformed> {
        for record in records {
            self.adopt(Recovery::decode(record)?);
        }
        if let Some(decided) = self.decided.clone() {
            self.roll_back(decided.line, out);
        }
        Ok(())
    }

    /// Tells of an epoch that was opened for another reason; the next round's will be above it.
    pub fn raise_epoch(&mut self, epoch: Epoch) {
        self.floor = self.floor.max(epoch);
    }

    /// The newest recovery that is stable.
    #[must_use]
    pub fn decided(&self) -> Option<&Recovery> {
        self.decided.as_ref()
    }

    /// Up to where nothing will ever be undone, as far as it is known.
    #[must_use]
    pub fn stable(&self) -> &BTreeMap<PartitionId, Version> {
        &self.stable
    }

    /// True while nobody is being asked, waited for or rolled back.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Why a recovery stands still: metadata was lost, and a person must look.
    #[must_use]
    pub fn no_line(&self) -> Option<NoLine> {
        self.no_line
    }

    fn adopt(&mut self, record: Recovery) {
        if record.epoch > self.epoch || self.decided.is_none() {
            self.epoch = self.epoch.max(record.epoch);
            self.decided = Some(record);
        }
    }

    fn message(&mut self, from: PartitionId, message: Message, out: &mut Vec<Command>) {
        match message {
            Message::Announce { epoch, history } => {
                if epoch == self.epoch && self.is_idle() {
                    self.untold.remove(&from);
                    self.histories.insert(from, history);
                    self.advance(Some(from), out);
                }
            }
            Message::Restarted => {
                if matches!(self.phase, Phase::Gathering) && !self.histories.contains_key(&from) {
                    self.send(from, &Message::Query { round: self.epoch }, out);
                } else {
                    self.begin(out);
                }
            }
            // Only a coordinator that lost its undecided rounds hears of rounds it never began.
            Message::Report { round, .. } | Message::RolledBack { round } if round > self.epoch => {
                self.epoch = round;
                self.begin(out);
            }
            Message::Report { round, history } if round == self.epoch => self.report(from, history, out),
            Message::RolledBack { round } if round == self.epoch => self.rolled_back(from, out),
            Message::Report { .. }
            | Message::RolledBack { .. }
            | Message::Query { .. }
            | Message::RollBack { .. }
            | Message::Resume { .. }
            | Message::Stable { .. } => {}
        }
    }

    /// Whatever was going on is void: its epoch will not be used, or is repeated under this one.
    fn begin(&mut self, out: &mut Vec<Command>) {
        self.epoch = self.epoch.max(self.floor).next();
        self.histories.clear();
        self.untold.clear();
        self.no_line = None;
        self.phase = Phase::Gathering;
        self.send_round(out);
    }

    fn report(&mut self, from: PartitionId, history: History, out: &mut Vec<Command>) {
        match &self.phase {
            Phase::Gathering => match self.histories.get(&from) {
                // Two incarnations answered one query; only a new round tells which one lives.
                Some(known) if *known != history => self.begin(out),
                _ => {
                    self.histories.insert(from, history);
                    self.decide(out);
                }
            },
            Phase::RollingBack { line, waiting } if waiting.contains(&from) => {
                if let Some(&point) = line.get(&from) {
                    self.send(from, &Message::RollBack { round: self.epoch, point }, out);
                }
            }
            Phase::RollingBack { .. } | Phase::Persisting(_) | Phase::Idle => {}
        }
    }

    fn decide(&mut self, out: &mut Vec<Command>) {
        if self.histories.len() < self.partitions.len() {
            return;
        }
        match recovery_line(&self.histories, &BTreeSet::new()).and_then(|line| self.not_below_stable(line)) {
            Ok(line) => {
                let record = Recovery { epoch: self.epoch, line };
                out.push(Command::Persist { token: u64::from(self.epoch.0), bytes: record.encode() });
                self.phase = Phase::Persisting(record);
            }
            Err(no_line) => self.no_line = Some(no_line),
        }
    }

    /// The line as it is, unless it would undo what has been called stable. Then a checkpoint was lost
    /// that outputs rest on, and there is no log to stand in for it: better no line than a false one.
    fn not_below_stable(&self, line: Cut) -> Result<Cut, NoLine> {
        let below = line.iter().find(|(partition, point)| {
            matches!(point, Point::Stable(version) if Some(version) < self.stable.get(partition))
        });
        match below {
            Some((&partition, _)) => Err(NoLine { partition }),
            None => Ok(line),
        }
    }

    fn persisted(&mut self, token: u64, out: &mut Vec<Command>) {
        if let Phase::Persisting(record) = &self.phase
            && token == u64::from(record.epoch.0)
        {
            let record = record.clone();
            self.decided = Some(record.clone());
            self.roll_back(record.line, out);
        }
    }

    fn roll_back(&mut self, line: Cut, out: &mut Vec<Command>) {
        let waiting = line.keys().copied().collect();
        self.phase = Phase::RollingBack { line, waiting };
        self.send_round(out);
    }

    fn rolled_back(&mut self, from: PartitionId, out: &mut Vec<Command>) {
        match &mut self.phase {
            Phase::RollingBack { waiting, line } => {
                waiting.remove(&from);
                if waiting.is_empty() {
                    let line = std::mem::take(line);
                    self.resume(&line, out);
                }
            }
            // It did not hear the end of the round.
            Phase::Idle => self.send(from, &Message::Resume { round: self.epoch }, out),
            Phase::Gathering | Phase::Persisting(_) => {}
        }
    }

    fn resume(&mut self, line: &Cut, out: &mut Vec<Command>) {
        self.phase = Phase::Idle;
        for (partition, history) in &mut self.histories {
            if let Some(Point::Stable(version)) = line.get(partition) {
                history.undo_after(*version);
            }
            history.set_current(None);
        }
        for &partition in &self.partitions {
            // After a restart nothing is known. One that has no checkpoint will not announce any, so
            // its initial state must count: with it the line is at worst too low.
            self.histories.entry(partition).or_insert_with(|| {
                self.untold.insert(partition);
                History::initial()
            });
            self.send(partition, &Message::Resume { round: self.epoch }, out);
        }
        self.advance(None, out);
        // Also those whose line did not move must hear what we know of them: a coordinator that
        // was restarted knows nothing, and they will announce again. (Who has nothing new does so
        // only when asked, so it is asked until it does.)
        for &partition in &self.partitions {
            self.send_stable(partition, out);
        }
        if !self.untold.is_empty() {
            self.resend_at = self.now + RESEND;
            out.push(Command::SetTimer { at: self.resend_at });
        }
    }

    /// Looks whether the stable line moved, and tells those it moved for, and `answer` in any case.
    fn advance(&mut self, answer: Option<PartitionId>, out: &mut Vec<Command>) {
        let mut moved: BTreeSet<PartitionId> = answer.into_iter().collect();
        if self.histories.len() == self.partitions.len()
            && let Ok(line) = stable_line(&self.histories)
        {
            for (partition, version) in line {
                let known = self.stable.entry(partition).or_default();
                if version > *known {
                    *known = version;
                    moved.insert(partition);
                    if let Some(history) = self.histories.get_mut(&partition) {
                        history.forget_below(version);
                    }
                }
            }
        }
        for partition in moved {
            self.send_stable(partition, out);
        }
    }

    fn send_stable(&self, partition: PartitionId, out: &mut Vec<Command>) {
        let version = self.stable.get(&partition).copied().unwrap_or_default();
        let seen = self.histories.get(&partition).and_then(|history| history.newest()).unwrap_or_default();
        self.send(partition, &Message::Stable { version, seen }, out);
    }

    /// Sends what the phase is waiting to have answered, to all who have not.
    fn send_round(&mut self, out: &mut Vec<Command>) {
        let round = self.epoch;
        match &self.phase {
            Phase::Gathering => {
                for &partition in self.partitions.iter().filter(|id| !self.histories.contains_key(id)) {
                    self.send(partition, &Message::Query { round }, out);
                }
            }
            Phase::RollingBack { line, waiting } => {
                for (&partition, &point) in line.iter().filter(|(id, _)| waiting.contains(id)) {
                    self.send(partition, &Message::RollBack { round, point }, out);
                }
            }
            Phase::Idle if self.untold.is_empty() => return,
            Phase::Idle => self.untold.iter().for_each(|&partition| self.send_stable(partition, out)),
            Phase::Persisting(_) => return,
        }
        self.resend_at = self.now + RESEND;
        out.push(Command::SetTimer { at: self.resend_at });
    }

    fn send(&self, to: PartitionId, message: &Message, out: &mut Vec<Command>) {
        out.push(Command::Control { to: Peer::Partition(to), bytes: message.encode() });
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Command>) {
        self.now = now;
        if now >= self.resend_at {
            self.send_round(out);
        }
    }
}

//! Cuts: what is known about each partition's checkpoints, and whether a choice of them is consistent.
//!
//! Decides: whether a cut has orphans, and which messages are in transit across it.
//!
//! Never: never looks at a state; counters are all that consistency needs.
//!
//! Invariants: along one history versions grow and no counter ever falls (a history that breaks
//! this is refused when it is built), so that every search in it may be binary.
//!
//! Source: Chandy and Lamport 1985, section 2; Elnozahy et al. 2002, section 2.2. The counter form
//! (`received > sent` = orphan) is equal to the definition because channels are FIFO and deduplicated.

use crate::protocol::{Channel, Channels};
use rallypoint_base::id::{PartitionId, Position, Ssn, Version};
use rallypoint_base::wire::{Malformed, Reader, put_varint};
use std::collections::BTreeMap;
use thiserror::Error;

/// One partition at one instant, as far as consistency is concerned.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Ssn};
/// use rallypoint_rollback::cut::LocalState;
/// let mut now = LocalState::default();
/// now.sent_one(PartitionId(1));
/// now.sent_one(PartitionId(1));
/// assert_eq!(now.sent(PartitionId(1)), Ssn(2));
/// assert_eq!(now.received(PartitionId(1)), Ssn(0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalState {
    /// The last run it contains.
    pub position: Position,
    /// Counters of every channel that was ever used.
    pub channels: Channels,
}

impl LocalState {
    /// Last ssn sent to `to`.
    #[must_use]
    pub fn sent(&self, to: PartitionId) -> Ssn {
        self.channels.get(&to).map_or(Ssn(0), |channel| channel.sent)
    }

    /// Last ssn delivered from `from`.
    #[must_use]
    pub fn received(&self, from: PartitionId) -> Ssn {
        self.channels.get(&from).map_or(Ssn(0), |channel| channel.received)
    }

    /// Follows one frame sent: a protocol that needs its counters between two cuts calls this from
    /// [`Protocol::piggyback`](crate::protocol::Protocol::piggyback).
    pub fn sent_one(&mut self, to: PartitionId) {
        let channel = self.channels.entry(to).or_default();
        channel.sent = channel.sent.next();
    }

    /// Follows one run ([`Event::Ran`](crate::protocol::Event::Ran)).
    pub fn ran(&mut self, position: Position, cause: Option<(PartitionId, Ssn)>) {
        self.position = position;
        if let Some((from, ssn)) = cause {
            self.channels.entry(from).or_default().received = ssn;
        }
    }

    fn is_at_or_after(&self, earlier: &Self) -> bool {
        self.position >= earlier.position
            && earlier.channels.iter().all(|(&peer, before)| {
                self.sent(peer) >= before.sent && self.received(peer) >= before.received
            })
    }

    /// Appends the bytes of this state.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.position.0);
        put_varint(out, self.channels.len() as u64);
        for (peer, channel) in &self.channels {
            put_varint(out, u64::from(peer.0));
            put_varint(out, channel.sent.0);
            put_varint(out, channel.received.0);
        }
    }

    /// Reads what [`LocalState::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not such a state.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let position = Position(reader.varint("position")?);
        let mut channels = Channels::new();
        for _ in 0..reader.varint("channels")? {
            let peer = decode_partition(reader)?;
            let sent = Ssn(reader.varint("sent")?);
            let received = Ssn(reader.varint("received")?);
            channels.insert(peer, Channel { sent, received });
        }
        Ok(Self { position, channels })
    }
}

/// Reads a partition's id.
pub(crate) fn decode_partition(reader: &mut Reader<'_>) -> Result<PartitionId, Malformed> {
    let offset = reader.offset();
    let id = reader.varint("partition")?;
    u16::try_from(id).map(PartitionId).map_err(|_| Malformed { field: "partition", offset })
}

/// One partition's place in a cut.
///
/// ```
/// use rallypoint_base::id::Version;
/// use rallypoint_rollback::cut::Point;
/// assert!(Point::Stable(Version(9)) < Point::Current);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// A checkpoint on stable storage; version 0 is the initial state.
    Stable(Version),
    /// The state in memory (the *virtual checkpoint* of the literature).
    Current,
}

/// One point for each partition.
pub type Cut = BTreeMap<PartitionId, Point>;

/// What is known of every partition.
pub type Histories = BTreeMap<PartitionId, History>;

/// A checkpoint that does not continue its history.
///
/// ```
/// use rallypoint_base::id::Version;
/// use rallypoint_rollback::cut::{History, LocalState, NotLater};
/// let refused = History::initial().push(Version(0), LocalState::default());
/// assert_eq!(refused, Err(NotLater { version: Version(0) }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "checkpoint {version} does not continue the history: its version or one of its counters is not above the one before"
)]
pub struct NotLater {
    /// The refused version.
    pub version: Version,
}

/// What is known of one partition: its stable checkpoints, oldest first, and its state in memory
/// unless it failed.
///
/// ```
/// use rallypoint_base::id::{Position, Version};
/// use rallypoint_rollback::cut::{History, LocalState, Point};
/// let mut history = History::initial();
/// history.push(Version(3), LocalState { position: Position(8), ..LocalState::default() }).unwrap();
/// assert_eq!(history.newest(), Some(Version(3)));
/// assert_eq!(history.state(Point::Current), None);
/// assert!(history.push(Version(2), LocalState::default()).is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    stable: Vec<(Version, LocalState)>,
    current: Option<LocalState>,
}

impl History {
    /// A history that knows no state at all.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The history of a partition that has only its initial state, version 0.
    #[must_use]
    pub fn initial() -> Self {
        Self { stable: vec![(Version(0), LocalState::default())], current: None }
    }

    /// Appends a stable checkpoint.
    ///
    /// # Errors
    /// [`NotLater`] when its version is not above the newest or a counter falls.
    pub fn push(&mut self, version: Version, state: LocalState) -> Result<(), NotLater> {
        if let Some((newest, before)) = self.stable.last()
            && (version <= *newest || !state.is_at_or_after(before))
        {
            return Err(NotLater { version });
        }
        self.stable.push((version, state));
        Ok(())
    }

    /// Says what the state in memory is; `None` when the partition failed.
    pub fn set_current(&mut self, state: Option<LocalState>) {
        self.current = state;
    }

    /// The newest stable version.
    #[must_use]
    pub fn newest(&self) -> Option<Version> {
        self.stable.last().map(|(version, _)| *version)
    }

    /// All stable checkpoints, oldest first.
    #[must_use]
    pub fn stable(&self) -> &[(Version, LocalState)] {
        &self.stable
    }

    /// The state in memory.
    #[must_use]
    pub fn current(&self) -> Option<&LocalState> {
        self.current.as_ref()
    }

    /// The state at `point`, where it is known.
    #[must_use]
    pub fn state(&self, point: Point) -> Option<&LocalState> {
        match point {
            Point::Current => self.current.as_ref(),
            Point::Stable(version) => {
                let index = self.stable.binary_search_by_key(&version, |(version, _)| *version).ok()?;
                Some(&self.stable[index].1)
            }
        }
    }

    /// Drops everything after `version`, the state in memory included: a rollback undid it.
    pub fn undo_after(&mut self, version: Version) {
        self.stable.retain(|(kept, _)| *kept <= version);
        self.current = None;
    }

    /// Drops everything before `version`: no recovery line will need it.
    pub fn forget_below(&mut self, version: Version) {
        self.stable.retain(|(kept, _)| *kept >= version);
    }

    /// The points from oldest to newest; the state in memory only when `with_current`.
    #[must_use]
    pub fn points(&self, with_current: bool) -> Vec<Point> {
        let stable = self.stable.iter().map(|(version, _)| Point::Stable(*version));
        stable.chain(self.current.as_ref().filter(|_| with_current).map(|_| Point::Current)).collect()
    }

    /// The states that belong to [`History::points`], in the same order.
    #[must_use]
    pub fn states(&self, with_current: bool) -> Vec<&LocalState> {
        let stable = self.stable.iter().map(|(_, state)| state);
        stable.chain(self.current.as_ref().filter(|_| with_current)).collect()
    }

    /// Appends the bytes of this history.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.stable.len() as u64);
        for (version, state) in &self.stable {
            put_varint(out, version.0);
            state.encode(out);
        }
        out.push(u8::from(self.current.is_some()));
        if let Some(current) = &self.current {
            current.encode(out);
        }
    }

    /// Reads what [`History::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not a history, or one in which a counter falls.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut history = Self::empty();
        for _ in 0..reader.varint("checkpoints")? {
            let offset = reader.offset();
            let version = Version(reader.varint("version")?);
            let state = LocalState::decode(reader)?;
            history.push(version, state).map_err(|NotLater { .. }| Malformed { field: "version", offset })?;
        }
        let offset = reader.offset();
        history.current = match reader.u8("current")? {
            0 => None,
            1 => Some(LocalState::decode(reader)?),
            _ => return Err(Malformed { field: "current", offset }),
        };
        Ok(history)
    }
}

/// Consecutive messages of one channel.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Ssn};
/// use rallypoint_rollback::cut::Messages;
/// let two = Messages { from: PartitionId(0), to: PartitionId(1), first: Ssn(4), last: Ssn(5) };
/// assert_eq!(two.to_string(), "p0 -> p1: ssn4..=ssn5");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Messages {
    /// The sender.
    pub from: PartitionId,
    /// The receiver.
    pub to: PartitionId,
    /// First number.
    pub first: Ssn,
    /// Last number.
    pub last: Ssn,
}

impl std::fmt::Display for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}: {}..={}", self.from, self.to, self.first, self.last)
    }
}

/// Messages received inside `cut` and not sent inside it; `cut` is consistent where there are none.
/// A point that the histories do not know counts as a state that neither sent nor received.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Position, Ssn};
/// use rallypoint_rollback::cut::{self, Cut, Histories, History, LocalState, Point};
/// // p0 sent one message after its checkpoint, p1 received it, p0 failed.
/// let (p0, p1) = (PartitionId(0), PartitionId(1));
/// let mut state = LocalState::default();
/// state.ran(Position(1), Some((p0, Ssn(1))));
/// let mut receiver = History::initial();
/// receiver.set_current(Some(state));
/// let histories = Histories::from([(p0, History::initial()), (p1, receiver)]);
/// let cut = Cut::from([(p0, Point::Stable(Default::default())), (p1, Point::Current)]);
/// assert_eq!(cut::orphans(&histories, &cut).len(), 1);
/// ```
#[must_use]
pub fn orphans(histories: &Histories, cut: &Cut) -> Vec<Messages> {
    crossing(histories, cut, |sent, received| (sent, received))
}

/// Messages sent inside `cut` and not received inside it. They are no inconsistency, but whoever
/// restores the cut must deliver them again, or the cut is consistent and wrong.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Ssn};
/// use rallypoint_rollback::cut::{self, Cut, Histories, History, LocalState, Point};
/// let (p0, p1) = (PartitionId(0), PartitionId(1));
/// let mut state = LocalState::default();
/// state.sent_one(p1);
/// let mut sender = History::initial();
/// sender.set_current(Some(state));
/// let histories = Histories::from([(p0, sender), (p1, History::initial())]);
/// let cut = Cut::from([(p0, Point::Current), (p1, Point::Stable(Default::default()))]);
/// let again = cut::in_transit(&histories, &cut);
/// assert_eq!((again[0].first, again[0].last), (Ssn(1), Ssn(1)));
/// ```
#[must_use]
pub fn in_transit(histories: &Histories, cut: &Cut) -> Vec<Messages> {
    crossing(histories, cut, |sent, received| (received, sent))
}

/// True where no message is received and not sent.
#[must_use]
pub fn is_consistent(histories: &Histories, cut: &Cut) -> bool {
    orphans(histories, cut).is_empty()
}

/// The messages in `(low, high]` of `bounds(sent, received)`, for every channel either end knows.
fn crossing(histories: &Histories, cut: &Cut, bounds: impl Fn(Ssn, Ssn) -> (Ssn, Ssn)) -> Vec<Messages> {
    let state = |partition| histories.get(&partition)?.state(*cut.get(&partition)?);
    let mut found = Vec::new();
    for &from in cut.keys() {
        for &to in cut.keys().filter(|&&to| to != from) {
            let sent = state(from).map_or(Ssn(0), |state| state.sent(to));
            let received = state(to).map_or(Ssn(0), |state| state.received(from));
            let (low, high) = bounds(sent, received);
            if low < high {
                found.push(Messages { from, to, first: low.next(), last: high });
            }
        }
    }
    found
}

/// Appends the bytes of a cut.
pub fn encode_cut(cut: &Cut, out: &mut Vec<u8>) {
    put_varint(out, cut.len() as u64);
    for (partition, point) in cut {
        put_varint(out, u64::from(partition.0));
        encode_point(*point, out);
    }
}

/// Reads what [`encode_cut`] wrote.
///
/// # Errors
/// [`Malformed`] when the bytes are not a cut.
pub fn decode_cut(reader: &mut Reader<'_>) -> Result<Cut, Malformed> {
    let mut cut = Cut::new();
    for _ in 0..reader.varint("cut")? {
        let partition = decode_partition(reader)?;
        cut.insert(partition, decode_point(reader)?);
    }
    Ok(cut)
}

pub(crate) fn encode_point(point: Point, out: &mut Vec<u8>) {
    match point {
        Point::Current => out.push(0),
        Point::Stable(version) => {
            out.push(1);
            put_varint(out, version.0);
        }
    }
}

pub(crate) fn decode_point(reader: &mut Reader<'_>) -> Result<Point, Malformed> {
    let offset = reader.offset();
    match reader.u8("point")? {
        0 => Ok(Point::Current),
        1 => Ok(Point::Stable(Version(reader.varint("version")?))),
        _ => Err(Malformed { field: "point", offset }),
    }
}

//! The recovery line: the newest consistent cut below a failure, and what nobody will need again.
//!
//! Decides: to which point each partition goes back after a failure; which checkpoints and messages
//! are garbage.
//!
//! Never: never restores or deletes anything.
//!
//! Invariants: the line is consistent and the greatest consistent cut below its start (consistent
//! cuts are a lattice, so there is exactly one); with fewer failures it is nowhere lower.
//!
//! Source: the worklist form of the rollback propagation algorithm (Bhargava and Lian 1988; Wang,
//! Chung, Lin and Fuchs 1995, section 3); `graph` has the same line by reachability. Garbage: Wang
//! et al. 1995: the union of the lines over all failures is what must be kept, at most n(n+1)/2.

use crate::cut::{Cut, Histories, History, LocalState, Point};
use rallypoint_base::id::{PartitionId, Ssn, Version};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// No known checkpoint of a partition fits under the failure.
///
/// Cannot happen while every history reaches down to the last line with all failed. Else metadata
/// was lost, somebody collected too much, or the checkpoint of a stable line can be read no more.
///
/// ```
/// use rallypoint_base::id::PartitionId;
/// use rallypoint_rollback::cut::{Histories, History};
/// use rallypoint_rollback::line::{NoLine, recovery_line};
/// let partition = PartitionId(3);
/// let histories = Histories::from([(partition, History::empty())]);
/// assert_eq!(recovery_line(&histories, &Default::default()), Err(NoLine { partition }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "no known checkpoint of {partition} is consistent with the others and with what was let out: checkpoints of it are lost or were collected too early"
)]
pub struct NoLine {
    /// The partition that has no point to go back to.
    pub partition: PartitionId,
}

/// The greatest consistent cut when `failed` lost their memory. A partition whose history has no
/// state in memory counts as failed.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Position, Ssn, Version};
/// use rallypoint_rollback::cut::{Histories, History, LocalState, Point};
/// use rallypoint_rollback::line::recovery_line;
///
/// // p0 sent message 1 after its last checkpoint and failed: whoever received it must go back too.
/// let (p0, p1) = (PartitionId(0), PartitionId(1));
/// let mut received = LocalState::default();
/// received.ran(Position(1), Some((p0, Ssn(1))));
/// let mut receiver = History::initial();
/// receiver.set_current(Some(received));
/// let histories = Histories::from([(p0, History::initial()), (p1, receiver)]);
/// let line = recovery_line(&histories, &[p0].into()).unwrap();
/// assert_eq!(line[&p1], Point::Stable(Version(0)));
/// ```
///
/// # Errors
/// [`NoLine`] when some history does not reach back far enough.
pub fn recovery_line(histories: &Histories, failed: &BTreeSet<PartitionId>) -> Result<Cut, NoLine> {
    let mut search = Search::new(histories, failed)?;
    let mut work: Vec<PartitionId> = histories.keys().copied().collect();
    while let Some(from) = work.pop() {
        for to in search.receivers.get(&from).cloned().unwrap_or_default() {
            if search.lower(from, to)? {
                work.push(to);
            }
        }
    }
    Ok(search.rows.into_iter().map(|(partition, row)| (partition, row.points[row.at])).collect())
}

/// The line if *every* partition failed now: nothing at or below it will ever be undone. Outputs
/// caused below it may leave; checkpoints strictly below it are garbage.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Version};
/// use rallypoint_rollback::cut::{Histories, History};
/// use rallypoint_rollback::line::stable_line;
/// let histories = Histories::from([(PartitionId(0), History::initial())]);
/// assert_eq!(stable_line(&histories).unwrap()[&PartitionId(0)], Version(0));
/// ```
///
/// # Errors
/// [`NoLine`] as for [`recovery_line`].
pub fn stable_line(histories: &Histories) -> Result<BTreeMap<PartitionId, Version>, NoLine> {
    let everybody = histories.keys().copied().collect();
    let line = recovery_line(histories, &everybody)?;
    line.into_iter()
        .map(|(partition, point)| match point {
            Point::Stable(version) => Ok((partition, version)),
            Point::Current => Err(NoLine { partition }),
        })
        .collect()
}

/// The checkpoints that some failure would go back to: the union of the lines over the failures of
/// one partition each, which is as large as the union over all sets of failures. At most n(n+1)/2.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Version};
/// use rallypoint_rollback::cut::{Histories, History, LocalState};
/// use rallypoint_rollback::line::needed;
/// let mut history = History::initial();
/// history.push(Version(1), LocalState::default()).unwrap();
/// let histories = Histories::from([(PartitionId(0), history)]);
/// assert_eq!(needed(&histories).unwrap(), [(PartitionId(0), Version(1))].into());
/// ```
///
/// # Errors
/// [`NoLine`] as for [`recovery_line`].
pub fn needed(histories: &Histories) -> Result<BTreeSet<(PartitionId, Version)>, NoLine> {
    let mut kept = BTreeSet::new();
    for &failed in histories.keys() {
        for (partition, point) in recovery_line(histories, &[failed].into())? {
            if let Point::Stable(version) = point {
                kept.insert((partition, version));
            }
        }
    }
    Ok(kept)
}

/// The points a partition may be at, and where the search is.
struct Row<'a> {
    points: Vec<Point>,
    states: Vec<&'a LocalState>,
    at: usize,
}

struct Search<'a> {
    rows: BTreeMap<PartitionId, Row<'a>>,
    /// Who ever received anything from a partition; nobody else can hold an orphan of it.
    receivers: BTreeMap<PartitionId, Vec<PartitionId>>,
}

impl<'a> Search<'a> {
    fn new(histories: &'a Histories, failed: &BTreeSet<PartitionId>) -> Result<Self, NoLine> {
        let mut search = Self { rows: BTreeMap::new(), receivers: BTreeMap::new() };
        for (&partition, history) in histories {
            let row = Row::new(history, !failed.contains(&partition));
            let row = row.ok_or(NoLine { partition })?;
            for (&from, channel) in &row.states[row.at].channels {
                if channel.received > Ssn(0) && histories.contains_key(&from) {
                    search.receivers.entry(from).or_default().push(partition);
                }
            }
            search.rows.insert(partition, row);
        }
        Ok(search)
    }

    /// Moves `to` down to its greatest point that received nothing which `from` has not sent at its
    /// own point; true when it moved.
    fn lower(&mut self, from: PartitionId, to: PartitionId) -> Result<bool, NoLine> {
        let sender = &self.rows[&from];
        let sent = sender.states[sender.at].sent(to);
        let Some(row) = self.rows.get_mut(&to) else { return Ok(false) };
        // Counters never fall along a history, so the fitting points are a prefix.
        let fitting = row.states[..=row.at].partition_point(|state| state.received(from) <= sent);
        let Some(at) = fitting.checked_sub(1) else { return Err(NoLine { partition: to }) };
        let moved = at < row.at;
        row.at = at;
        Ok(moved)
    }
}

impl<'a> Row<'a> {
    fn new(history: &'a History, with_current: bool) -> Option<Self> {
        let (points, states) = (history.points(with_current), history.states(with_current));
        let at = points.len().checked_sub(1)?;
        Some(Self { points, states, at })
    }
}

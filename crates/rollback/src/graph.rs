//! The same theory as a graph: slow, obvious, and the judge of the fast code.
//!
//! Decides: which intervals an undone interval undoes; which checkpoints are useless; which
//! dependencies a protocol's vectors do not show.
//!
//! Never: never used on a recovery path; the command `line` and the tests are its readers.
//!
//! Invariants: its line equals [`line::recovery_line`](crate::line::recovery_line) and
//! [`brute_force_line`] (a test compares all three).
//!
//! Source: the R-graph (rollback-dependency graph) of Wang 1997, section 3; Z-paths and useless
//! checkpoints: Netzer and Xu 1995, theorem 1 and corollary 1. Reachability in the R-graph between
//! intervals *is* the Z-path relation between the checkpoints that begin and end them.

use crate::cut::{self, Cut, Histories, Point};
use crate::line::NoLine;
use rallypoint_base::id::{PartitionId, Ssn};
use std::collections::{BTreeMap, BTreeSet};

/// The interval that begins at point number `index` of a partition (0 = its oldest known point) and
/// ends at the next one, or never.
///
/// ```
/// use rallypoint_base::id::PartitionId;
/// use rallypoint_rollback::graph::Interval;
/// let first = Interval { partition: PartitionId(2), index: 0 };
/// assert!(first < Interval { index: 1, ..first });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// Whose interval.
    pub partition: PartitionId,
    /// Number of the point it begins with.
    pub index: usize,
}

/// The R-graph of some histories, closed under reachability.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Version};
/// use rallypoint_rollback::cut::{Histories, History, Point};
/// use rallypoint_rollback::graph::Graph;
/// let histories = Histories::from([(PartitionId(0), History::initial())]);
/// let graph = Graph::new(&histories);
/// assert_eq!(graph.line(&Default::default()).unwrap()[&PartitionId(0)], Point::Stable(Version(0)));
/// assert!(graph.useless().is_empty());
/// ```
#[derive(Clone, Debug)]
pub struct Graph {
    points: BTreeMap<PartitionId, Vec<Point>>,
    nodes: Vec<Interval>,
    /// `reach[a][b]`: undoing a undoes b, through at least one edge.
    reach: Vec<Vec<bool>>,
}

impl Graph {
    /// Builds the graph from the channel counters alone: message k was sent in the interval whose
    /// ends enclose k in their `sent` counters, and received likewise.
    #[must_use]
    pub fn new(histories: &Histories) -> Self {
        let mut graph = Self { points: BTreeMap::new(), nodes: Vec::new(), reach: Vec::new() };
        for (&partition, history) in histories {
            let points = history.points(true);
            graph.nodes.extend((0..points.len()).map(|index| Interval { partition, index }));
            graph.points.insert(partition, points);
        }
        let ends = |interval: Interval, count: &dyn Fn(&cut::LocalState) -> Ssn| {
            let states = histories[&interval.partition].states(true);
            let low = count(states[interval.index]);
            // What is after the last point is open: whatever was received beyond it was sent there.
            (low, states.get(interval.index + 1).map_or(Ssn(u64::MAX), |state| count(state)))
        };
        graph.reach = vec![vec![false; graph.nodes.len()]; graph.nodes.len()];
        for (a, &from) in graph.nodes.iter().enumerate() {
            for (b, &to) in graph.nodes.iter().enumerate() {
                graph.reach[a][b] = if from.partition == to.partition {
                    to.index == from.index + 1
                } else if to.index + 1 == graph.points[&to.partition].len() {
                    false // Nothing is known of what the open interval received.
                } else {
                    let sent = ends(from, &|state| state.sent(to.partition));
                    let received = ends(to, &|state| state.received(from.partition));
                    sent.0.max(received.0) < sent.1.min(received.1)
                };
            }
        }
        graph.close();
        graph
    }

    /// Warshall 1962.
    fn close(&mut self) {
        for via in 0..self.nodes.len() {
            let through = self.reach[via].clone();
            for row in self.reach.iter_mut().filter(|row| row[via]) {
                for (cell, more) in row.iter_mut().zip(&through) {
                    *cell |= more;
                }
            }
        }
    }

    /// All intervals, by partition and number.
    #[must_use]
    pub fn intervals(&self) -> &[Interval] {
        &self.nodes
    }

    /// True when undoing `from` undoes `to`, directly or not: a Z-path leads from the checkpoint
    /// that begins `from` to the one that ends `to`.
    #[must_use]
    pub fn undoes(&self, from: Interval, to: Interval) -> bool {
        match (self.nodes.binary_search(&from), self.nodes.binary_search(&to)) {
            (Ok(from), Ok(to)) => self.reach[from][to],
            _ => false,
        }
    }

    /// The checkpoints that are in no consistent cut at all: a Z-path leads from each to itself.
    #[must_use]
    pub fn useless(&self) -> Vec<(PartitionId, Point)> {
        let on_cycle = |at: &&Interval| {
            (0..at.index).any(|index| self.undoes(**at, Interval { partition: at.partition, index }))
        };
        self.nodes
            .iter()
            .filter(on_cycle)
            .map(|at| (at.partition, self.points[&at.partition][at.index]))
            .collect()
    }

    /// Z-paths that a protocol's dependency vectors do not show (none: *rollback-dependency
    /// trackability*). `depends(q, y, p)` is the highest interval number of p, from 1 and 0 for none,
    /// that the vector at point number `y` of q names.
    #[must_use]
    pub fn untracked(
        &self,
        depends: impl Fn(PartitionId, usize, PartitionId) -> usize,
    ) -> Vec<(Interval, Interval)> {
        let mut found = Vec::new();
        for &from in &self.nodes {
            for &to in self.nodes.iter().filter(|to| to.partition != from.partition) {
                if self.undoes(from, to)
                    && depends(to.partition, to.index + 1, from.partition) < from.index + 1
                {
                    found.push((from, to));
                }
            }
        }
        found
    }

    /// The recovery line when `failed` lost their memory: the newest points before anything that is
    /// reachable from a lost interval.
    ///
    /// # Errors
    /// [`NoLine`] when a history is empty.
    pub fn line(&self, failed: &BTreeSet<PartitionId>) -> Result<Cut, NoLine> {
        let mut line = Cut::new();
        for (&partition, points) in &self.points {
            let undone =
                (0..points.len()).find(|&index| self.is_undone(Interval { partition, index }, failed));
            // The interval after the last point is lost by definition, so one is always found.
            let point = undone.and_then(|index| points.get(index)).ok_or(NoLine { partition })?;
            line.insert(partition, *point);
        }
        Ok(line)
    }

    fn is_undone(&self, interval: Interval, failed: &BTreeSet<PartitionId>) -> bool {
        self.points.iter().any(|(&partition, points)| {
            let last = points.len().saturating_sub(1);
            // The state in memory of a failed partition is lost, and so is the interval that led to it.
            let lost = failed.contains(&partition) && points.last() == Some(&Point::Current) && last > 0;
            let root = Interval { partition, index: last - usize::from(lost) };
            root == interval || self.undoes(root, interval)
        })
    }
}

/// The recovery line by trying every cut: the join of all consistent ones. For tests; the number
/// of cuts is the product of the numbers of points.
///
/// ```
/// use rallypoint_base::id::{PartitionId, Version};
/// use rallypoint_rollback::cut::{Histories, History, Point};
/// use rallypoint_rollback::graph::brute_force_line;
/// let histories = Histories::from([(PartitionId(0), History::initial())]);
/// let line = brute_force_line(&histories, &Default::default()).unwrap();
/// assert_eq!(line[&PartitionId(0)], Point::Stable(Version(0)));
/// ```
#[must_use]
pub fn brute_force_line(histories: &Histories, failed: &BTreeSet<PartitionId>) -> Option<Cut> {
    let choices: Vec<(PartitionId, Vec<Point>)> =
        histories.iter().map(|(&id, history)| (id, history.points(!failed.contains(&id)))).collect();
    let mut best: Option<Cut> = None;
    for_each_cut(&choices, &mut Cut::new(), &mut |cut| {
        if cut::is_consistent(histories, cut) {
            let so_far = best.get_or_insert_with(|| cut.clone());
            for (partition, point) in cut {
                let highest = so_far.entry(*partition).or_insert(*point);
                *highest = (*highest).max(*point);
            }
        }
    });
    best
}

/// Calls `visit` with every cut that takes one point of each choice.
pub fn for_each_cut(choices: &[(PartitionId, Vec<Point>)], chosen: &mut Cut, visit: &mut impl FnMut(&Cut)) {
    let Some(((partition, points), rest)) = choices.split_first() else { return visit(chosen) };
    for point in points {
        chosen.insert(*partition, *point);
        for_each_cut(rest, chosen, visit);
    }
}

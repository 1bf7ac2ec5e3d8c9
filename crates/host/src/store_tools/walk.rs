//! What the logs and checkpoint headers of a store say about its channels and its inputs.
//!
//! Decides nothing about bytes: it is handed records and headers that are proven sound. Keeps, for
//! each partition, what its newest usable checkpoint says, and adds the records behind it.

use rallypoint_base::id::{CommitSeq, Epoch, LogId, PartitionId, Position, Ssn, Version};
use rallypoint_base::wire::Malformed;
use rallypoint_engine::archive::Part;
use rallypoint_engine::record::{InputRecord, Source, Verdict, decode_drop, kind};
use rallypoint_engine::snapshot::{HeaderSummary, SetAside, inspect_header};
use rallypoint_engine::unit::proven_commit;
use rallypoint_store::record::Record;
use rallypoint_store::verify::Visitor;
use std::collections::BTreeMap;

/// One end of a channel moved: at this record (0: in the checkpoint) it reached this number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Move {
    pub(super) position: Position,
    pub(super) peer: PartitionId,
    pub(super) ssn: Ssn,
}

/// What is known of one log.
#[derive(Debug, Default)]
pub(super) struct LogView {
    /// The newest usable checkpoint.
    pub(super) newest: Option<(Version, HeaderSummary)>,
    /// Every checkpoint; only where the walk keeps them.
    pub(super) headers: Vec<HeaderSummary>,
    pub(super) first: Option<Position>,
    pub(super) last: Position,
    pub(super) epoch: Epoch,
    pub(super) records: u64,
    /// In the order of the log; only where the walk keeps them.
    pub(super) sent: Vec<Move>,
    pub(super) received: Vec<Move>,
    /// The highest number of each channel.
    pub(super) most_sent: BTreeMap<PartitionId, Ssn>,
    pub(super) most_received: BTreeMap<PartitionId, Ssn>,
    pub(super) set_aside: Vec<SetAside>,
}

/// Collects what a verification reads.
pub(super) struct Walk<'a> {
    pub(super) logs: BTreeMap<LogId, LogView>,
    /// Records and headers that are sound and make no sense.
    pub(super) nonsense: Vec<(LogId, String)>,
    /// The highest commit that a checkpoint proves to have been due; whoever walks resets it.
    pub(super) proven: CommitSeq,
    keep_moves: bool,
    pub(super) progress: &'a mut dyn super::Progress,
    counted: u64,
}

impl<'a> Walk<'a> {
    pub(super) fn new(progress: &'a mut dyn super::Progress, keep_moves: bool) -> Self {
        Self {
            logs: BTreeMap::new(),
            nonsense: Vec::new(),
            proven: CommitSeq(0),
            keep_moves,
            progress,
            counted: 0,
        }
    }

    fn take(&mut self, record: &Record<'_>) -> Result<(), Malformed> {
        let view = self.logs.entry(record.log).or_default();
        view.first.get_or_insert(record.position);
        view.last = view.last.max(record.position);
        view.epoch = view.epoch.max(record.epoch);
        view.records += 1;
        let covered = view.newest.as_ref().is_some_and(|(_, newest)| record.position <= newest.log);
        let position = record.position;
        if record.kind == u16::from(kind::DROP) && !covered {
            let run = decode_drop(record.payload)?;
            view.set_aside.retain(|entry| entry.position != run);
        }
        if record.kind != u16::from(kind::INPUT) {
            return Ok(());
        }
        let input = InputRecord::decode(record.payload)?;
        if let Source::Frame { from, ssn } = input.source {
            let most = view.most_received.entry(from).or_default();
            *most = ssn.max(*most);
            if self.keep_moves {
                view.received.push(Move { position, peer: from, ssn });
            }
        }
        for &(to, ssn) in &input.channels {
            let most = view.most_sent.entry(to).or_default();
            *most = ssn.max(*most);
            if self.keep_moves {
                view.sent.push(Move { position, peer: to, ssn });
            }
        }
        if input.verdict == Verdict::SetAside && !covered {
            view.set_aside.push(SetAside {
                position: input.run,
                identity: input.source.identity(input.parcel),
                evidence: input.evidence.to_owned(),
                parcel: input.parcel.to_vec(),
            });
        }
        Ok(())
    }
}

impl Visitor for Walk<'_> {
    fn header(&mut self, log: LogId, version: Version, newest: bool, header: &[u8]) {
        if log.archived().is_some() {
            if let Err(error) = Part::load(version, header) {
                self.nonsense.push((log, format!("the header of part {version}: {error}")));
            }
            return;
        }
        let summary = match inspect_header(header) {
            Ok(summary) => summary,
            Err(error) => {
                self.nonsense.push((log, format!("the header of checkpoint {version}: {error}")));
                return;
            }
        };
        if newest && let Ok(proven) = proven_commit(header) {
            self.proven = self.proven.max(proven);
        }
        let view = self.logs.entry(log).or_default();
        view.epoch = view.epoch.max(summary.epoch);
        for &(to, ssn, _) in &summary.sent {
            let most = view.most_sent.entry(to).or_default();
            *most = ssn.max(*most);
        }
        for &(from, ssn) in &summary.received {
            let most = view.most_received.entry(from).or_default();
            *most = ssn.max(*most);
        }
        if self.keep_moves {
            view.headers.push(summary.clone());
        }
        if newest {
            view.set_aside.clone_from(&summary.set_aside);
            view.last = view.last.max(summary.log);
            view.newest = Some((version, summary));
        }
    }

    fn record(&mut self, record: &Record<'_>) {
        self.counted += 1;
        if self.counted.is_multiple_of(4096) {
            self.progress.more(4096, 0);
        }
        if let Err(error) = self.take(record) {
            self.nonsense.push((record.log, format!("record {}: {error}", record.position)));
        }
    }

    fn bytes(&mut self, bytes: u64) {
        self.progress.more(0, bytes);
    }
}

impl LogView {
    /// The highest number sent on a channel by what stands at or before `until`.
    fn sent_by(&self, to: PartitionId, until: Position) -> Ssn {
        let records = self.sent.iter().filter(|at| at.peer == to && at.position <= until);
        let headers = self.headers.iter().filter(|header| header.log <= until);
        let sent = headers.flat_map(|header| &header.sent).filter(|(peer, ..)| *peer == to);
        records.map(|at| at.ssn).chain(sent.map(|&(_, ssn, _)| ssn)).max().unwrap_or_default()
    }

    /// Where this log must end so that it holds nothing beyond `limit` of a channel.
    fn end_before(&self, from: PartitionId, limit: Ssn, until: Position) -> Position {
        let over = |peer: PartitionId, ssn: Ssn| peer == from && ssn > limit;
        let records = self.received.iter().filter(|at| over(at.peer, at.ssn)).map(|at| at.position);
        let headers = self.headers.iter().filter(|header| header.received.iter().any(|&(p, s)| over(p, s)));
        let first = records.chain(headers.map(|header| header.log)).min();
        first.map_or(until, |first| until.min(Position(first.0.saturating_sub(1))))
    }

    /// True when some checkpoint, or the empty state, and the records behind it reach `until`.
    pub(super) fn reaches(&self, until: Position) -> bool {
        let held = self.headers.iter().map(|header| header.log).filter(|&log| log <= until).max();
        self.first.is_none_or(|first| first <= held.unwrap_or_default().next())
            && (held.is_some() || self.headers.is_empty() || self.first == Some(Position(1)))
    }
}

/// The latest consistent cut: ends of all logs such that nothing is received that was not sent. (The
/// images of several journal directories are taken at different instants, so a receiver's may hold
/// what its sender's does not.)
pub(super) fn consistent_cut(logs: &BTreeMap<LogId, LogView>) -> BTreeMap<LogId, Position> {
    let mut cut: BTreeMap<LogId, Position> = logs.iter().map(|(&log, view)| (log, view.last)).collect();
    loop {
        let mut next = cut.clone();
        for (&log, view) in logs {
            let here = PartitionId(log.0);
            for &from in view.most_received.keys() {
                let sender = LogId::from(from);
                let (Some(theirs), Some(&until)) = (logs.get(&sender), cut.get(&sender)) else { continue };
                let limit = theirs.sent_by(here, until);
                let end = view.end_before(from, limit, cut[&log]);
                next.entry(log).and_modify(|at| *at = end.min(*at));
            }
        }
        // Ends only ever move back, so this ends.
        if next == cut {
            return cut;
        }
        cut = next;
    }
}

//! Nothing leaves a unit before the record of its cause is durable on its disks.
//!
//! Source: design 5 (gated outputs); Elnozahy et al. 2002, section 5.1. Checked mechanically: the
//! disks are forked at the instant of leaving, everything that no sync covers is thrown away, what
//! is left is mounted for reading, and the record that caused the output must be in it. Only for
//! protocols that log their inputs.
//!
//! | leaves | the record that must be there |
//! |---|---|
//! | answer to (session, seq) | the input (session, seq) |
//! | frames through n | a run that reached n on that channel |
//! | receipt through n | the input that is frame n |
//! | effect of run r | the input that was run r |

use super::{Fact, Invariant};
use crate::exit::Leaving;
use crate::message::Message;
use rallypoint_base::id::{InputSeq, LogId, PartitionId, Position, SessionId, Ssn};
use rallypoint_engine::record::{InputRecord, Source, kind};
use rallypoint_store::record::Record;
use rallypoint_store::sim_disk::{SimDisk, SimDrive};
use rallypoint_store::store::{OpenOptions, Store};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Default)]
pub struct DurabilityLedger {
    inputs: BTreeSet<(SessionId, InputSeq)>,
    sent: BTreeMap<(PartitionId, PartitionId), Ssn>,
    received: BTreeMap<(PartitionId, PartitionId), Ssn>,
    runs: BTreeSet<(LogId, Position)>,
    compared: u64,
}

/// The session bit that marks reads: they have no record.
pub(crate) const READS: u64 = 1 << 31;

impl Invariant for DurabilityLedger {
    fn name(&self) -> &'static str {
        "durability_ledger"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            // What is in the log now may be cut from it before its answer leaves.
            Fact::Opened { drives, .. } => self.read(drives),
            Fact::Left { leaving, drives, .. } => {
                if !self.holds(leaving) {
                    self.compared += 1;
                    self.read(drives)?;
                    if !self.holds(leaving) {
                        return Err(format!("left before its cause was durable: {leaving:?}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl DurabilityLedger {
    fn holds(&self, leaving: &Leaving) -> bool {
        match leaving {
            Leaving::Message(Message::Reply { session, seq, .. }) => {
                session.0 & READS != 0 || self.inputs.contains(&(*session, *seq))
            }
            Leaving::Message(Message::Frames { from, to, first, count, .. }) => {
                let through = Ssn(first.0 + u64::from(*count) - 1);
                self.sent.get(&(*from, *to)).is_some_and(|reached| *reached >= through)
            }
            Leaving::Message(Message::Receipt { from, to, receipt }) => {
                self.received.get(&(*from, *to)).is_some_and(|reached| *reached >= receipt.through)
            }
            Leaving::Perform { key, .. } => self.runs.contains(&(key.log, key.position)),
            Leaving::Message(_) => true,
        }
    }

    /// Takes in what a power cut at this instant would leave in the worst case.
    fn read(&mut self, drives: &[SimDrive]) -> Result<(), String> {
        let forks: Vec<SimDrive> = drives.iter().map(|drive| drive.fork(1)).collect();
        forks.iter().for_each(|fork| fork.crash_with(|_| false));
        let disks = forks.iter().map(SimDisk::open_read_only).collect();
        let options = OpenOptions { read_only: true, degraded: true, ..OpenOptions::default() };
        let mounted = Store::mount(disks, options).map_err(|error| format!("not to be mounted: {error}"))?;
        let mut sink = |record: &Record<'_>| -> Result<(), String> {
            if record.kind == u16::from(kind::INPUT) {
                let input = InputRecord::decode(record.payload).map_err(|error| error.to_string())?;
                self.take_in(record.log, &input);
            }
            Ok(())
        };
        mounted.recover(&mut sink).map_err(|error| format!("not to be recovered: {error}"))?;
        Ok(())
    }

    fn take_in(&mut self, log: LogId, input: &InputRecord<'_>) {
        let here = PartitionId(log.0);
        match input.source {
            Source::Client { session, seq, .. } => {
                self.inputs.insert((session, seq));
            }
            Source::Frame { from, ssn } => {
                let reached = self.received.entry((here, from)).or_default();
                *reached = (*reached).max(ssn);
            }
            _ => {}
        }
        for &(to, ssn) in &input.channels {
            let reached = self.sent.entry((here, to)).or_default();
            *reached = (*reached).max(ssn);
        }
        self.runs.insert((log, input.run));
    }
}

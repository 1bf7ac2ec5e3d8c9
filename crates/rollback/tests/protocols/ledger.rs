//! The durability ledger: holds each row of [`independent::BEFORE`] against what leaves.
//!
//! One check per row. What is durable is read from the toy disks, never from the machines.

use crate::harness::{Verdict, World};
use rallypoint_base::id::{PartitionId, Position, Version};
use rallypoint_rollback::before::Leaves;
use rallypoint_rollback::cut::{Histories, Point};
use rallypoint_rollback::independent::{BEFORE, Message, Recovery};
use rallypoint_rollback::line::stable_line;

/// What the ledger knows how to check; a test compares it with the table.
pub(crate) const CHECKED: &[Leaves] = &[
    Leaves::Frame,
    Leaves::Announcement,
    Leaves::StableLine,
    Leaves::Output,
    Leaves::Receipt,
    Leaves::Removal,
    Leaves::RollBackOrder,
    Leaves::RollBackAck,
    Leaves::Resumption,
];

fn demand(holds: bool, leaves: Leaves, what: impl FnOnce() -> String) -> Verdict {
    if holds {
        return Ok(());
    }
    let or_else = BEFORE.iter().find(|row| row.leaves == leaves).map_or("", |row| row.or_else);
    Err(format!("ledger: {leaves:?} too early: {}: {or_else}", what()))
}

/// The partition's version in the line if all failed now.
fn stable(world: &World, index: usize) -> Result<(Version, Position), String> {
    let mut histories = Histories::new();
    for node in &world.nodes {
        histories.insert(node.id, node.history()?);
    }
    let id = PartitionId(index as u16);
    let version = stable_line(&histories).map_err(|error| error.to_string())?[&id];
    let state = histories[&id].state(Point::Stable(version));
    Ok((version, state.map_or(Position(0), |state| state.position)))
}

pub(crate) fn release(world: &World, index: usize, outputs: Position, receipts: Position) -> Verdict {
    if outputs.max(receipts) == Position(0) {
        return Ok(());
    }
    let (_, safe) = stable(world, index)?;
    demand(outputs <= safe, Leaves::Output, || format!("p{index} through {outputs}, stable is {safe}"))?;
    demand(receipts <= safe, Leaves::Receipt, || format!("p{index} through {receipts}, stable is {safe}"))
}

pub(crate) fn forget(world: &World, index: usize, below: Version) -> Verdict {
    let (version, _) = stable(world, index)?;
    demand(below <= version, Leaves::Removal, || format!("p{index} below {below}, stable is {version}"))
}

pub(crate) fn resume(world: &World, index: usize) -> Verdict {
    let epoch = world.nodes[index].disk.epoch;
    let late = world.nodes.iter().find(|node| node.disk.epoch < epoch);
    demand(late.is_none(), Leaves::Resumption, || {
        format!("p{index} runs in {epoch}, {:?} has not gone back", late.map(|node| node.id))
    })
}

pub(crate) fn to_coordinator(world: &World, index: usize, message: &Message) -> Verdict {
    let disk = &world.nodes[index].disk;
    match message {
        Message::Announce { history, .. } | Message::Report { history, .. } => {
            // A restored machine still lists what was removed since its cut: no line goes there.
            let oldest = disk.checkpoints.first().map(|kept| kept.version);
            let missing = history.stable().iter().find(|(version, _)| {
                Some(*version) >= oldest && !disk.checkpoints.iter().any(|kept| kept.version == *version)
            });
            demand(missing.is_none(), Leaves::Announcement, || {
                format!("p{index}, {:?}", missing.map(|(version, _)| version))
            })
        }
        Message::RolledBack { round } => demand(disk.epoch >= *round, Leaves::RollBackAck, || {
            format!("p{index} says {round}, is in {}", disk.epoch)
        }),
        _ => Ok(()),
    }
}

pub(crate) fn to_partition(world: &World, index: usize, message: &Message) -> Verdict {
    match message {
        Message::Stable { version, .. } => {
            let (safe, _) = stable(world, index)?;
            demand(*version <= safe, Leaves::StableLine, || format!("p{index} {version}, stable is {safe}"))
        }
        Message::RollBack { round, point } => {
            let mut records = world.coordinator_log.iter().filter_map(|bytes| Recovery::decode(bytes).ok());
            let id = PartitionId(index as u16);
            let decided = records.any(|record| record.epoch == *round && record.line.get(&id) == Some(point));
            demand(decided, Leaves::RollBackOrder, || format!("p{index} to {point:?} in {round}"))
        }
        _ => Ok(()),
    }
}

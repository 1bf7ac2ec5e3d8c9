//! The domino witness: one trace under two protocols.
//!
//! ```text
//! P  ─a1─────────────r b1─[1]─a2──────────────r b2─[2]─a3──────────x
//! Q  ──────r a1─[1]─b1──────────────r a2─[2]─b2────────────r a3
//! ```
//! Each checkpoint lies between a receipt and the next send, so each lies on a Z-cycle: none but
//! the initial states is part of a consistent cut (Randell 1975; Elnozahy et al. 2002, figure 5).

use crate::harness::{Setup, Verdict, World};
use crate::{INDEPENDENT, PESSIMISTIC};
use rallypoint_base::id::PartitionId;
use rallypoint_rollback::cut::{Cut, Histories, Point};
use rallypoint_rollback::graph::Graph;

const P: u16 = 0;
const Q: u16 = 1;
const ROUNDS: u64 = 5;

fn send(world: &mut World, from: u16, to: u16) -> Verdict {
    let input = world.new_input(from, to, 1, 0);
    world.submit(usize::from(from), input)?;
    world.log_durable(usize::from(from))?;
    world.deliver_frame(PartitionId(from), PartitionId(to))?;
    world.log_durable(usize::from(to))?;
    Ok(())
}

fn checkpoint(world: &mut World, at: u16) -> Verdict {
    world.checkpoint_due(usize::from(at))?;
    world.checkpoint_durable(usize::from(at))?;
    Ok(())
}

/// Ping-pong, then P is lost and comes back.
fn ping_pong(setup: Setup) -> Result<World, String> {
    let mut world = World::new(1, 2, setup)?;
    world.drain()?;
    for _ in 0..ROUNDS {
        send(&mut world, P, Q)?;
        checkpoint(&mut world, Q)?;
        send(&mut world, Q, P)?;
        checkpoint(&mut world, P)?;
    }
    send(&mut world, P, Q)?;
    Ok(world)
}

fn runs(world: &World) -> Vec<usize> {
    world.nodes.iter().map(|node| node.memory.as_ref().map_or(0, |memory| memory.runs.len())).collect()
}

#[test]
fn independent_falls_back_to_the_start() {
    let mut world = ping_pong(INDEPENDENT).unwrap();
    let before = runs(&world);
    let mut histories = Histories::new();
    for node in &world.nodes {
        let mut history = node.history().unwrap();
        assert_eq!(history.stable().len() as u64, ROUNDS + 1, "nothing could be forgotten");
        history.set_current(node.memory.as_ref().map(|memory| memory.counters.clone()));
        histories.insert(node.id, history);
    }
    // Made visible: every checkpoint but the first ones is useless.
    assert_eq!(Graph::new(&histories).useless().len() as u64, 2 * ROUNDS);
    assert_eq!(world.counts.outputs, 0, "no output could leave");

    world.crash(usize::from(P)).unwrap();
    world.restart(usize::from(P)).unwrap();
    world.drain().unwrap();
    assert_eq!((runs(&world), before), (vec![0, 0], vec![11, 11]));
    let record =
        rallypoint_rollback::independent::Recovery::decode(world.coordinator_log.last().unwrap()).unwrap();
    let start = Point::Stable(Default::default());
    assert_eq!(record.line, Cut::from([(PartitionId(P), start), (PartitionId(Q), start)]));
    world.heal().unwrap();
}

#[test]
fn pessimistic_loses_nothing_on_the_same_trace() {
    let mut world = ping_pong(PESSIMISTIC).unwrap();
    let before = runs(&world);
    assert!(world.counts.outputs > 0 && world.counts.removed_checkpoints > 0);
    world.crash(usize::from(P)).unwrap();
    world.restart(usize::from(P)).unwrap();
    world.drain().unwrap();
    assert_eq!(runs(&world), before);
    assert_eq!(world.counts.undone_runs, 0);
    world.heal().unwrap();
}

//! Effects are performed until a result is logged, always under one key.

use crate::common::actors::{Call, Caller};
use crate::common::{World, session};
use rallypoint_base::id::{Lineage, LogId};
use rallypoint_engine::command::Notice;
use rallypoint_engine::effect::EffectKey;
use std::collections::BTreeSet;
use std::time::Duration;

fn call(world: &mut World, seq: u64, count: u32) {
    world.ask::<Caller>(session(1), seq, "c", &Call { count, timeout: Duration::from_secs(30) });
}

fn end(world: &mut World, key: EffectKey, value: &[u8]) {
    world.call(0, |partition, now, out| partition.handle_effect(now, key, 0, value, out));
}

fn ended(world: &World) -> Vec<(u64, String)> {
    world.state::<Caller>("c").unwrap().ended
}

fn keys(world: &World) -> Vec<EffectKey> {
    world.performed.iter().map(|(_, key, _)| *key).collect()
}

#[test]
fn an_effect_has_one_key_before_and_after_a_crash_and_no_two_have_the_same() {
    let mut world = World::new(1, 1);
    call(&mut world, 1, 3);
    call(&mut world, 2, 2);
    let before = keys(&world);
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 5);
    world.performed.clear();
    world.bounce(0);
    assert_eq!(keys(&world), before, "performed again, under the same keys");
    world.checkpoint(0);
    world.performed.clear();
    world.bounce(0);
    assert_eq!(keys(&world), before, "from a checkpoint too");
    // A cause that was lost never let its effect out, so its key may belong to another one.
    world.performed.clear();
    world.input::<Caller>(session(1), 3, "c", &Call { count: 1, timeout: Duration::from_secs(30) });
    world.crash(0);
    assert!(world.performed.is_empty());
    world.assert_right();
}

#[test]
fn an_effect_is_performed_again_until_a_result_is_durable_and_the_first_logged_one_counts() {
    let mut world = World::new(1, 1);
    call(&mut world, 1, 1);
    let key = keys(&world)[0];
    end(&mut world, key, b"first");
    world.bounce(0); // the result was not durable
    assert_eq!(keys(&world), [key, key]);
    end(&mut world, key, b"second");
    end(&mut world, key, b"third");
    assert!(matches!(world.notices[..], [(_, Notice::LateEffect { .. })]));
    world.sync(0);
    world.bounce(0);
    assert_eq!(keys(&world).len(), 2, "not again");
    assert_eq!(ended(&world), [(0, format!("done {:?}", b"second"))]);
    end(&mut world, key, b"fourth");
    assert_eq!(world.notices.len(), 2);
    assert_eq!(ended(&world).len(), 1);
    assert_eq!(world.nodes[0].log.len(), 2);
}

#[test]
fn a_timeout_is_a_logged_input() {
    let mut world = World::new(1, 1);
    call(&mut world, 1, 1);
    world.wait(Duration::from_secs(29));
    assert_eq!(ended(&world), []);
    world.wait(Duration::from_secs(2));
    assert_eq!(ended(&world), [(0, "timed out".into())]);
    world.sync(0);
    world.bounce(0);
    world.wait(Duration::from_secs(100));
    assert_eq!(ended(&world), [(0, "timed out".into())]);
    assert_eq!(world.nodes[0].log.len(), 2);
    let key = keys(&world)[0];
    end(&mut world, key, b"late");
    assert!(matches!(world.notices[..], [(_, Notice::LateEffect { .. })]));
}

#[test]
fn the_result_of_another_store_or_log_is_late_not_ours() {
    let mut world = World::new(1, 1);
    call(&mut world, 1, 1);
    let key = keys(&world)[0];
    end(&mut world, EffectKey { lineage: Lineage(1), ..key }, b"of another lineage");
    end(&mut world, EffectKey { log: LogId(5), ..key }, b"of another partition");
    assert_eq!(ended(&world), []);
    assert_eq!(world.notices.len(), 2);
}

#[test]
fn a_partition_with_an_outstanding_effect_is_not_quiet() {
    let mut world = World::new(1, 1);
    call(&mut world, 1, 1);
    assert!(!world.partition(0).is_quiet());
    let key = keys(&world)[0];
    end(&mut world, key, b"");
    assert!(!world.partition(0).is_quiet(), "its result is not durable");
    world.sync(0);
    assert!(world.partition(0).is_quiet());
}

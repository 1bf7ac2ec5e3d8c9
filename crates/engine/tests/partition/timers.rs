//! Timers fire once, unless reset or cancelled before it in the log.

use crate::common::actors::{Clock, Tick};
use crate::common::{START, World, session};
use rallypoint_base::time::Time;
use rallypoint_engine::partition::Ending;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);

fn set(world: &mut World, seq: u64, name: &str, after: Duration) {
    world.ask::<Clock>(session(1), seq, "clock", &Tick::Set { name: name.into(), after });
}

fn fired(world: &World) -> Vec<String> {
    let clock = world.state::<Clock>("clock").unwrap_or_default();
    clock.fired.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_timer_fires_once_in_order_and_not_early() {
    let mut world = World::new(1, 1);
    set(&mut world, 1, "late", 20 * MS);
    set(&mut world, 2, "early", 10 * MS);
    assert_eq!(world.partition(0).next_deadline(), START + 10 * MS);
    world.wait(10 * MS - Duration::from_nanos(1));
    assert_eq!(fired(&world), [""; 0]);
    world.wait(100 * MS);
    assert_eq!(fired(&world), ["early", "late"]);
    world.wait(100 * MS);
    assert_eq!(fired(&world).len(), 2);
    assert_eq!(world.partition(0).next_deadline(), Time::NEVER);
}

#[test]
fn a_reset_timer_fires_at_its_new_time_and_a_cancelled_one_never() {
    let mut world = World::new(1, 1);
    set(&mut world, 1, "a", 10 * MS);
    set(&mut world, 2, "a", 50 * MS);
    set(&mut world, 3, "b", 10 * MS);
    world.ask::<Clock>(session(1), 4, "clock", &Tick::Cancel { name: "b".into() });
    world.ask::<Clock>(session(1), 5, "clock", &Tick::Cancel { name: "never set".into() });
    world.wait(20 * MS);
    assert_eq!(fired(&world), [""; 0]);
    world.wait(40 * MS);
    assert_eq!(fired(&world), ["a"]);
}

#[test]
fn a_timer_fires_exactly_once_across_a_crash_at_every_point() {
    for (durable, checkpoint) in [(false, false), (true, false), (true, true), (false, true)] {
        let mut world = World::new(1, 1);
        set(&mut world, 1, "a", 10 * MS);
        if checkpoint {
            world.checkpoint(0);
        }
        world.wait(20 * MS);
        assert_eq!(fired(&world), ["a"]);
        if durable {
            world.sync(0);
        }
        world.bounce(0);
        world.wait(20 * MS);
        world.sync(0);
        world.bounce(0);
        world.wait(20 * MS);
        assert_eq!(fired(&world), ["a"], "durable {durable}, checkpoint {checkpoint}");
        world.assert_right();
    }
}

#[test]
fn a_timer_that_waits_for_its_mark_and_is_cancelled_before_it_is_void() {
    let mut world = World::new(1, 1);
    set(&mut world, 1, "a", 10 * MS);
    world.crash(0);
    world.restart(0, &Ending { running: Some(vec![99]), ..Ending::default() });
    world.input::<Clock>(session(1), 2, "clock", &Tick::Cancel { name: "a".into() });
    world.wait(20 * MS); // due, but the cancel is before it
    world.sync(0);
    world.wait(20 * MS);
    world.sync(0);
    assert_eq!(fired(&world), [""; 0]);
}

#[test]
fn a_timer_that_sets_itself_at_once_does_not_hold_the_partition_for_ever() {
    let mut world = World::new(1, 1);
    set(&mut world, 1, "again", Duration::ZERO);
    world.wait(MS);
    assert_eq!(fired(&world).len(), 1);
    world.wait(MS);
    assert_eq!(fired(&world).len(), 2);
}

#[test]
fn a_clock_that_jumped_ahead_once_stops_no_timer_for_ever() {
    let year = Duration::from_secs(365 * 24 * 3600);
    for crash in [false, true] {
        let mut world = World::new(1, 1);
        let right = world.now;
        world.now = right + year;
        set(&mut world, 1, "a", 10 * MS);
        world.now = right; // the clock was put right
        if crash {
            world.bounce(0);
        }
        world.time(0);
        let deadline = world.partition(0).next_deadline();
        assert!(deadline <= right + 10 * MS, "in the host's time: {deadline}");
        world.wait(20 * MS);
        assert_eq!(fired(&world), ["a"]);
        assert!(
            world.state::<Clock>("clock").unwrap().fired[0].1 >= (right + year).0,
            "time did not go back"
        );
    }
}

#[test]
fn a_clock_that_goes_back_stops_no_retransmission() {
    let mut world = World::new(2, 1);
    let (here, there) = (world.key_on(0, "a"), world.key_on(1, "a"));
    use crate::common::actors::{Account, Bank};
    world.ask::<Account>(session(1), 1, &here, &Bank::Transfer { to: there, amount: 20 });
    world.network.clear(); // lost
    world.now = world.now - Duration::from_secs(500);
    world.time(0);
    world.wait(Duration::from_secs(3));
    assert_eq!(world.network.len(), 1);
}

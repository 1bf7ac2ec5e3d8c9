//! The event log keeps what was flushed, in order, and counts what it lost.

use proptest::prelude::*;
use rallypoint_base::id::{Lineage, StoreId};
use rallypoint_base::time::Time;
use rallypoint_store::checkpoint::Identity;
use rallypoint_store::copies::Copies;
use rallypoint_store::disk::DiskErrorKind;
use rallypoint_store::event_log::{Event, EventKind, EventLog, EventLogEvent, FILE_BYTES, FILES, History};
use rallypoint_store::sim_disk::{SimDisk, SimDrive, SimPower};

const IDENTITY: Identity = Identity { store: StoreId(1), lineage: Lineage(2) };

fn machine(seed: u64) -> (SimPower, Vec<SimDrive>) {
    let power = SimPower::new();
    let drives = (0..2).map(|copy| SimDrive::on(&power, seed * 2 + copy, "copy")).collect();
    (power, drives)
}

fn copies(drives: &[SimDrive]) -> Copies<SimDisk> {
    Copies::new(drives.iter().map(SimDisk::open).collect())
}

fn open(drives: &[SimDrive]) -> (Copies<SimDisk>, EventLog, History) {
    let mut copies = copies(drives);
    let (log, history) = EventLog::open(&mut copies, IDENTITY).unwrap();
    (copies, log, history)
}

fn event(n: u64) -> Event {
    let kinds = EventKind::ALL;
    Event::new(Time(n), kinds[n as usize % kinds.len()])
        .with("n", n)
        .with("text", "x".repeat(n as usize % 300))
}

/// Flushes and waits; true when it became durable.
fn flush(copies: &mut Copies<SimDisk>, log: &mut EventLog) -> bool {
    log.flush(copies);
    while let Some(routed) = copies.wait() {
        match log.handle(copies, routed) {
            Some(EventLogEvent::Flushed) => return true,
            Some(EventLogEvent::CopyFailed { copy, .. }) => copies.take_out(copy),
            _ => {}
        }
    }
    matches!(log.poll(), Some(EventLogEvent::Flushed)) && copies.live().count() > 0
}

fn times(history: &History) -> Vec<u64> {
    history.events.iter().map(|event| event.time.0).collect()
}

#[test]
fn events_come_back_in_order_after_a_power_cut() {
    let (power, drives) = machine(1);
    let mut n = 0;
    for round in 0..20 {
        let (mut copies, mut log, history) = open(&drives);
        assert_eq!(times(&history), (0..n).collect::<Vec<_>>());
        for _ in 0..round {
            log.append(event(n));
            n += 1;
        }
        if round > 0 {
            assert!(flush(&mut copies, &mut log) && log.is_idle());
        }
        power.crash();
    }
    let history = EventLog::read_all(&mut copies(&drives), IDENTITY);
    assert_eq!(history.events, (0..n).map(event).collect::<Vec<_>>());
    assert_eq!((history.corrupt, history.torn), (0, 0));
}

#[test]
fn a_crash_at_every_operation_keeps_what_was_flushed() {
    let mut torn = 0;
    for seed in 0..400 {
        let (power, drives) = machine(seed);
        drives.iter().for_each(|drive| drive.set_torn_sectors(true));
        power.crash_after(1 + seed % 130);
        let mut flushed = 0;
        let mut copies = copies(&drives);
        if let Ok((mut log, _)) = EventLog::open(&mut copies, IDENTITY) {
            for batch in 1..20 {
                (0..batch).for_each(|n| log.append(event(batch * 100 + n)));
                if !flush(&mut copies, &mut log) {
                    break;
                }
                flushed = batch;
            }
        }
        power.crash();
        drop(copies);
        let (mut copies, mut log, history) = open(&drives);
        torn += history.torn;
        let expected: Vec<u64> =
            (1..=flushed).flat_map(|batch| (0..batch).map(move |n| batch * 100 + n)).collect();
        let found = times(&history);
        assert_eq!(found[..expected.len()], expected, "seed {seed}");
        assert_eq!(history.corrupt, 0, "seed {seed}");
        // Writing goes on over the torn end.
        log.append(event(9999));
        assert!(flush(&mut copies, &mut log));
        let (_, _, again) = open(&drives);
        assert_eq!(times(&again), found.into_iter().chain([9999]).collect::<Vec<_>>(), "seed {seed}");
    }
    assert!(torn > 0, "no torn end in any seed");
}

#[test]
fn the_log_is_bounded_and_forgets_the_oldest_file() {
    let (_, drives) = machine(1);
    let mut n = 0;
    for _ in 0..3 {
        let (mut copies, mut log, _) = open(&drives);
        for _ in 0..300 {
            log.append(event(n));
            n += 1;
            assert!(flush(&mut copies, &mut log));
        }
    }
    let history = EventLog::read_all(&mut copies(&drives), IDENTITY);
    let times = times(&history);
    assert_eq!(*times.last().unwrap(), n - 1);
    assert!(times.windows(2).all(|pair| pair[0] + 1 == pair[1]), "no gap");
    assert!((256..=512).contains(&times.len()), "{}", times.len());
    assert_eq!(history.corrupt, 0);
    for name in FILES {
        assert_eq!(drives[0].file(name).unwrap().len() as u64, FILE_BYTES);
    }
}

#[test]
fn rot_on_one_copy_is_covered_by_the_other_and_rot_on_both_is_counted() {
    let (_, drives) = machine(1);
    let (mut copies_, mut log, _) = open(&drives);
    for n in 0..10 {
        log.append(event(n));
        assert!(flush(&mut copies_, &mut log));
    }
    drives[0].flip_bit(FILES[0], 3 * 4096 + 70, 0);
    drives[1].fail_read(FILES[0], 0..4096);
    let history = EventLog::read_all(&mut copies(&drives), IDENTITY);
    assert_eq!((times(&history).len(), history.corrupt), (9, 1), "the unreadable piece spans that batch");
    drives[1].zero_block(FILES[0], 5);
    drives[0].zero_block(FILES[0], 5);
    let (_, _, history) = open(&drives);
    assert_eq!(times(&history), [0, 1, 2, 4, 6, 7, 8, 9]);
    assert_eq!(history.corrupt, 2);
    let foreign = Identity { store: StoreId(9), ..IDENTITY };
    assert!(EventLog::read_all(&mut copies(&drives), foreign).events.is_empty());
}

#[test]
fn a_flood_is_cut_and_says_so_and_a_failed_copy_is_reported() {
    let (_, drives) = machine(1);
    let (mut copies, mut log, _) = open(&drives);
    (0..5000).for_each(|n| log.append(event(n)));
    drives[1].fail_write(2, DiskErrorKind::Io);
    while !flush(&mut copies, &mut log) {}
    assert_eq!(copies.live().count(), 1);
    let (_, _, history) = open(&drives[..1]);
    assert!(history.events.iter().any(|event| event.kind == EventKind::EventsDropped));
    let long = Event::new(Time(1), EventKind::Repair).with("k", "ä".repeat(5000));
    log.append(long);
    assert!(flush(&mut copies, &mut log));
    let history = EventLog::read_all(&mut copies, IDENTITY);
    assert_eq!(history.events.last().unwrap().fields[0].1.len(), 1024);
}

#[test]
fn codes_and_names_are_unique_and_come_back() {
    for (index, &kind) in EventKind::ALL.iter().enumerate() {
        assert_eq!(EventKind::from_code(kind.code()), kind);
        assert!(EventKind::ALL[..index].iter().all(|other| other.name() != kind.name()));
    }
    assert_eq!(EventKind::from_code(60_000), EventKind::Other(60_000));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..9000),
        flips in proptest::collection::vec((0u64..40_000, 0u8..8), 0..30),
    ) {
        let drive = SimDrive::new(1, "copy");
        let drives = [drive.clone()];
        let (mut copies, mut log, _) = open(&drives);
        for n in 0..6 {
            (0..20).for_each(|i| log.append(event(n * 20 + i)));
            flush(&mut copies, &mut log);
        }
        for (offset, bit) in flips {
            drive.flip_bit(FILES[0], offset, bit);
        }
        drive.put_file(FILES[1], &bytes);
        let (_, _, history) = open(&drives);
        prop_assert!(history.events.len() <= 120);
    }
}

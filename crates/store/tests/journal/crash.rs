//! The power goes at every single operation of generated workloads, and at every operation of the
//! recovery after it. What was acknowledged is there, what is there was appended, in that order.

use crate::rig::*;
use rallypoint_base::id::{CommitSeq, LogId, Position};
use rallypoint_base::random::Random;
use rallypoint_store::disk::Disk;
use rallypoint_store::error::StoreError;
use rallypoint_store::sim_disk::{SimDisk, SimDrive, SimPower, Undecided};
use rallypoint_store::store::{Store, StoreEvent};

/// What was promised to whoever appended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// Everything appended, in order, with the commit that holds it.
    pub(crate) appended: Vec<(CommitSeq, Entry)>,
    /// How many of those are durable.
    pub(crate) acknowledged: usize,
    /// Records before this index may be gone.
    pub(crate) needed_from: usize,
    pub(crate) created: bool,
    /// Nothing from this index on is checkpointed.
    pub(crate) cut_limit: Option<usize>,
    positions: [u64; 5],
}

impl Ledger {
    pub(crate) fn note(&mut self, event: &StoreEvent) {
        if let StoreEvent::Durable { commit } = event {
            self.acknowledged = self.appended.partition_point(|(of, _)| of <= commit);
        }
    }

    /// Whether `found` is what a recovery may give.
    pub(crate) fn check(&self, found: &[Entry]) -> Result<(), String> {
        let Some(first) = found.first() else {
            return if self.acknowledged == 0 || self.needed_from >= self.acknowledged {
                Ok(())
            } else {
                Err(format!("nothing came back of {} acknowledged records", self.acknowledged))
            };
        };
        let start = self.appended.iter().position(|(_, entry)| entry == first);
        let Some(start) = start else { return Err(format!("{} {} was never appended", first.0, first.1)) };
        if start > self.needed_from {
            return Err(format!("records from {} are needed, the first found is {start}", self.needed_from));
        }
        let end = start + found.len();
        if end < self.acknowledged {
            return Err(format!("{end} records came back of {} acknowledged ones", self.acknowledged));
        }
        for (at, entry) in found.iter().enumerate() {
            match self.appended.get(start + at) {
                Some((_, appended)) if appended == entry => {}
                other => return Err(format!("found {} {} instead of {other:?}", entry.0, entry.1)),
            }
        }
        Ok(())
    }

    /// What was found is now promised; what was not never happened.
    pub(crate) fn restart(&mut self, found: &[Entry]) {
        self.appended = found.iter().map(|entry| (CommitSeq(0), entry.clone())).collect();
        self.needed_from = 0;
        self.acknowledged = self.appended.len();
        for (log, position) in self.positions.iter_mut().enumerate() {
            let last = found.iter().rev().find(|(l, _, _)| usize::from(l.0) == log).map(|(_, p, _)| p.0);
            if let Some(last) = last {
                *position = last;
            }
        }
    }
}

/// Does `steps` random things with a store. Stops when the store fails.
pub(crate) fn work<D: Disk>(store: &mut Store<D>, ledger: &mut Ledger, random: &mut Random, steps: usize) {
    for _ in 0..steps {
        match random.below(10) {
            0..=4 => {
                let log = random.below(4) as usize;
                let len = *random.pick(&[0, 30, 100, 100, 700, 3000, 9000]).unwrap_or(&0);
                let position = ledger.positions[log] + 1;
                if let Ok((commit, entry)) = append(store, log as u16, position, len) {
                    ledger.positions[log] = position;
                    ledger.appended.push((commit, entry));
                }
            }
            5 | 6 => {
                store.commit();
            }
            7 => {
                store.commit_idle();
            }
            8 => {
                if let Some(event) = store.poll() {
                    ledger.note(&event);
                }
            }
            _ => {
                if let Some(event) = store.wait() {
                    ledger.note(&event);
                }
                if random.chance(1, 4) {
                    // Everything but the last few acknowledged records is checkpointed.
                    let keep = ledger.acknowledged.saturating_sub(random.below(8) as usize);
                    let keep = keep.min(ledger.cut_limit.unwrap_or(keep));
                    ledger.needed_from = ledger.needed_from.max(keep);
                    for log in 0..4u16 {
                        let below = ledger.appended[ledger.needed_from..]
                            .iter()
                            .find(|(_, (l, _, _))| l.0 == log)
                            .map_or(ledger.positions[usize::from(log)] + 1, |(_, (_, p, _))| p.0);
                        store.cut(LogId(log), Position(below));
                    }
                }
            }
        }
        if matches!(store.refusing(), Some(StoreError::NoCopyLeft { .. })) {
            break;
        }
    }
    while let Some(event) = store.poll() {
        ledger.note(&event);
    }
}

fn first_life<D: Disk>(
    open: impl Fn(&SimDrive) -> D,
    drives: &[SimDrive],
    seed: u64,
    steps: usize,
) -> Ledger {
    let mut ledger = Ledger::default();
    let disks = drives.iter().map(open).collect();
    if let Ok(mut store) = Store::create(disks, identity(drives.len() as u8), SMALL) {
        ledger.created = true;
        work(&mut store, &mut ledger, &mut Random::new(seed ^ 0x1111), steps);
    }
    ledger
}

fn forked(drives: &[SimDrive], seed: u64) -> (SimPower, Vec<SimDrive>) {
    let power = SimPower::new();
    let drives = drives.iter().zip(0..).map(|(drive, n)| drive.fork_on(&power, seed * 2 + n)).collect();
    (power, drives)
}

/// Crashes the first life at operation `nth` and judges what a recovery gives. None: it never came so far.
fn crash_at<D: Disk>(
    open: &impl Fn(&SimDrive) -> D,
    seed: u64,
    copies: usize,
    steps: usize,
    nth: u64,
) -> Result<Option<(Ledger, Vec<SimDrive>)>, String> {
    let (power, drives) = drives(seed, copies);
    for drive in &drives {
        drive.set_reordering(seed % 2 == 1);
        drive.set_torn_sectors(seed % 3 == 1);
    }
    power.crash_after(nth);
    let ledger = first_life(open, &drives, seed, steps);
    if power.ops() < nth {
        return Ok(None);
    }
    // What survives of what was not synced is settled once, for all that follows.
    for drive in &drives {
        drive.crash();
    }
    let found = match reopen(&drives) {
        Ok((_, report, found)) => {
            if report.lost.is_empty() {
                found
            } else {
                return Err(format!("lost {:?}", report.lost));
            }
        }
        Err(StoreError::Missing { .. } | StoreError::Unfinished { .. }) if !ledger.created => {
            return match Store::create(disks(&drives), identity(copies as u8), SMALL) {
                Ok(_) => Ok(Some((ledger, drives))),
                Err(error) => Err(format!("creating again: {error}")),
            };
        }
        Err(error) => return Err(error.to_string()),
    };
    ledger.check(&found)?;
    let (mut store, report, again) = reopen(&drives).map_err(|error| format!("second opening: {error}"))?;
    if again != found || report.cut.is_some() {
        return Err("the second recovery differs from the first".into());
    }
    // A second life on top, so that what was cut cannot come back.
    let mut second = ledger.clone();
    second.restart(&found);
    work(&mut store, &mut second, &mut Random::new(seed ^ 0x2222), 40);
    drop(store);
    for drive in &drives {
        drive.crash();
    }
    let (_, report, found) = reopen(&drives).map_err(|error| format!("after the second life: {error}"))?;
    second.check(&found).map_err(|why| format!("after the second life: {why}"))?;
    if report.lost.is_empty() { Ok(Some((ledger, drives))) } else { Err(format!("lost {:?}", report.lost)) }
}

fn every_crash<D: Disk>(
    open: impl Fn(&SimDrive) -> D,
    seed: u64,
    copies: usize,
    steps: usize,
    stride: u64,
) -> Result<u64, String> {
    let mut nth = 1 + seed % stride;
    while crash_at(&open, seed, copies, steps, nth)
        .map_err(|why| format!("seed {seed}, {copies} copies, power cut at operation {nth}: {why}"))?
        .is_some()
    {
        nth += stride;
    }
    Ok(nth)
}

#[test]
fn row_22_a_power_cut_at_every_operation_keeps_what_was_acknowledged() {
    let (seeds, steps) = if long() { (40, 1000) } else { (6, 400) };
    for copies in [1, 2] {
        for seed in 0..seeds {
            let ops =
                every_crash(SimDisk::open, seed, copies, steps, 1).unwrap_or_else(|why| panic!("{why}"));
            assert!(ops > 100, "seed {seed}: only {ops} operations");
        }
    }
}

#[test]
fn row_22_a_power_cut_at_every_operation_of_the_recovery_changes_nothing_that_was_returned() {
    let (seeds, stride) = if long() { (20, 1) } else { (4, 13) };
    for seed in 100..100 + seeds {
        let copies = 1 + seed as usize % 2;
        let mut nth = 30 + seed % stride;
        loop {
            let (power, drives) = drives(seed, copies);
            power.crash_after(nth);
            let ledger = first_life(SimDisk::open, &drives, seed, 400);
            if power.ops() < nth {
                break;
            }
            for drive in &drives {
                drive.crash();
            }
            for inner in 1.. {
                let (power, drives) = forked(&drives, seed + inner);
                power.crash_after(inner);
                let mut returned = Vec::new();
                let ended = Store::mount(disks(&drives), open_small()).is_ok_and(|mounted| {
                    mounted
                        .recover::<std::convert::Infallible>(&mut |record| {
                            returned.push((record.log, record.position, record.payload.to_vec()));
                            Ok(())
                        })
                        .is_ok()
                });
                if power.ops() < inner {
                    assert!(ended || !ledger.created, "seed {seed}, crash at {nth}: the recovery failed");
                    break;
                }
                for drive in &drives {
                    drive.crash();
                }
                let context = format!("seed {seed}, crash at {nth}, recovery crash at {inner}");
                match reopen(&drives) {
                    Ok((_, _, found)) => {
                        ledger.check(&found).unwrap_or_else(|why| panic!("{context}: {why}"));
                        assert!(found.starts_with(&returned), "{context}: what was returned vanished");
                    }
                    Err(StoreError::Missing { .. } | StoreError::Unfinished { .. }) if !ledger.created => {}
                    Err(error) => panic!("{context}: {error}"),
                }
            }
            nth += stride;
        }
    }
}

/// Kills, recovers on disks that `open` gives, cuts the power the moment the last record is out, and
/// recovers again. How often it came so far, or what vanished.
fn kill_then_power_cut<D: Disk>(open: impl Fn(&SimDrive) -> D) -> Result<u64, String> {
    let mut tails = 0;
    for seed in 0..if long() { 2000 } else { 200 } {
        let copies = 1 + seed as usize % 2;
        let (_, drives) = drives(seed, copies);
        let mut ledger = Ledger::default();
        let mut store = create(&drives, SMALL);
        work(&mut store, &mut ledger, &mut Random::new(seed), 40 + seed as usize % 60);
        append(&mut store, 4, 1, 9000).unwrap();
        store.commit();
        for drive in &drives {
            drive.kill();
        }
        drop(store);
        let mut returned = Vec::new();
        let mounted = Store::mount(drives.iter().map(&open).collect(), open_small()).unwrap();
        let recovered = mounted.recover::<()>(&mut |record| {
            returned.push((record.log, record.position, record.payload.to_vec()));
            // The last record is out: now the power goes, before anything else is written.
            if record.log == LogId(4) { Err(()) } else { Ok(()) }
        });
        tails += u64::from(recovered.is_err());
        for drive in &drives {
            drive.crash();
        }
        let (_, _, found) = reopen(&drives).unwrap();
        if !found.starts_with(&returned) {
            return Err(format!("seed {seed}: {} returned, {} found", returned.len(), found.len()));
        }
    }
    Ok(tails)
}

#[test]
fn row_22_what_was_returned_after_a_kill_survives_the_power_cut_after_it() {
    let tails = kill_then_power_cut(SimDisk::open).unwrap_or_else(|why| panic!("{why}"));
    assert!(tails > 10, "the case came up {tails} times");
}

/// Mutations: the same test on a disk that breaks its promise has to fail.
mod mutations {
    use super::*;
    use rallypoint_store::disk::{Completion, Lane, Op, Ticket};
    use rallypoint_store::superblock::SLOT_BYTES;

    #[derive(Clone, Copy)]
    enum Mutation {
        /// Durable writes of commits are not.
        NotDurable,
        /// After creation, names are never made durable.
        NamesNotSynced,
        /// Recovery does not make durable what the page cache shows.
        NoSync,
        /// Blanking the cut commit is forgotten.
        NoBlanking,
    }

    struct Mutant {
        disk: SimDisk,
        mutation: Mutation,
        names_synced: bool,
    }

    impl Disk for Mutant {
        fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
            let op = match (self.mutation, op) {
                (Mutation::NotDurable, Op::Write { file, offset, data, .. }) if data.len() != SLOT_BYTES => {
                    Op::Write { file, offset, data, durable: false }
                }
                (Mutation::NamesNotSynced, Op::SyncNames) if self.names_synced => Op::List,
                (_, Op::SyncNames) => {
                    self.names_synced = true;
                    Op::SyncNames
                }
                (Mutation::NoSync, Op::Sync { .. }) => Op::List,
                (Mutation::NoBlanking, Op::Write { data, .. }) if data.iter().all(|&b| b == 0) => Op::List,
                (_, op) => op,
            };
            self.disk.submit(lane, op)
        }
        fn poll(&mut self) -> Option<Completion> {
            self.disk.poll()
        }
        fn wait(&mut self) -> Option<Completion> {
            self.disk.wait()
        }
        fn name(&self) -> &str {
            self.disk.name()
        }
    }

    fn found_out(mutation: Mutation) -> String {
        for seed in 0..6 {
            for copies in [1, 2] {
                let open =
                    |drive: &SimDrive| Mutant { disk: SimDisk::open(drive), mutation, names_synced: false };
                if let Err(why) = every_crash(open, seed, copies, 400, 7) {
                    return why;
                }
            }
        }
        panic!("nobody noticed");
    }

    #[test]
    fn mutation_a_durable_write_that_is_not_is_found_out() {
        println!("{}", found_out(Mutation::NotDurable));
    }

    #[test]
    fn mutation_a_recovery_that_trusts_the_page_cache_is_found_out() {
        let open = |drive: &SimDrive| Mutant {
            disk: SimDisk::open(drive),
            mutation: Mutation::NoSync,
            names_synced: false,
        };
        println!("{}", kill_then_power_cut(open).expect_err("nobody noticed"));
    }

    #[test]
    fn mutation_names_that_are_not_synced_are_found_out() {
        println!("{}", found_out(Mutation::NamesNotSynced));
    }

    #[test]
    fn mutation_a_cut_that_is_not_blanked_is_fenced_by_the_epoch_all_the_same() {
        // A commit of eight blocks of which only the seventh survived.
        let (_, drives) = drives(77, 1);
        let mut store = create(&drives, SMALL);
        let entries = fill(&mut store, 0, 3, 1, 100);
        append(&mut store, 1, 4, 28_000).unwrap();
        store.commit();
        drives[0].crash_with(|question| match question {
            Undecided::Block { block, .. } => *block == 9,
            _ => true,
        });
        drop(store);
        for mutation in [None, Some(Mutation::NoBlanking)] {
            let fork = drives[0].fork(1);
            let disk: Box<dyn Disk> = match mutation {
                None => Box::new(SimDisk::open(&fork)),
                Some(mutation) => {
                    Box::new(Mutant { disk: SimDisk::open(&fork), mutation, names_synced: false })
                }
            };
            let (store, report, _) = reopen_with(vec![disk], open_small()).unwrap();
            assert_eq!(report.cut.map(|cut| (cut.commit, cut.bytes)), Some((CommitSeq(4), 4096)));
            drop(store);
            let segment = fork.file("seg-00000001").unwrap();
            let blank = segment[9 * 4096..10 * 4096].iter().all(|&byte| byte == 0);
            assert_eq!(blank, mutation.is_none(), "the check sees what the mutant does");
            let (_, report, found) = reopen(std::slice::from_ref(&fork)).unwrap();
            assert_eq!((report.cut, found), (None, entries.clone()));
        }
    }
}

//! Recovery from where the newest checkpoints end: it gives what a recovery from the head gives, and
//! what is not read is neither lost nor forgotten.

use crate::crash::{Ledger, work};
use crate::rig::*;
use rallypoint_base::id::{CommitSeq, Generation, LogId, Position};
use rallypoint_base::random::Random;
use rallypoint_store::error::StoreError;
use rallypoint_store::recovery::{RecoverError, RecoveryReport};
use rallypoint_store::resume::ResumePoint;
use rallypoint_store::sim_disk::{SimDisk, SimDrive, SimPower};
use rallypoint_store::store::{OpenOptions, Store, StoreEvent};
use rallypoint_store::verify::verify;
use std::convert::Infallible;

type Known = Vec<(LogId, Position)>;

fn resume_with(
    drives: &[SimDrive],
    open: OpenOptions,
    point: Option<ResumePoint>,
    known: &[(LogId, Position)],
) -> Result<Opened<SimDisk>, StoreError> {
    let mounted = Store::mount(disks(drives), open)?;
    let mut records = Vec::new();
    let recovered = mounted.recover_from::<Infallible>(point, known, &mut |record| {
        records.push((record.log, record.position, record.payload.to_vec()));
        Ok(())
    });
    match recovered {
        Ok((store, report)) => Ok((store, report, records)),
        Err(RecoverError::Store(error)) => Err(error),
        Err(RecoverError::Sink(never)) => match never {},
    }
}

fn resume(
    drives: &[SimDrive],
    point: ResumePoint,
    known: &[(LogId, Position)],
) -> Result<Opened<SimDisk>, StoreError> {
    resume_with(drives, open_small(), Some(point), known)
}

fn read_from(report: &RecoveryReport) -> Option<CommitSeq> {
    report.resumed
}

fn drain(store: &mut Store<SimDisk>) {
    while store.poll().is_some() || store.wait().is_some() {}
}

/// Commits of log 1, a point after `before` of them, and `after` more; one record each.
fn written(seed: u64, copies: usize, before: u64, after: u64) -> (Vec<SimDrive>, ResumePoint, Vec<Entry>) {
    let (_, drives) = drives(seed, copies);
    let mut store = create(&drives, SMALL);
    let mut entries = fill(&mut store, 0, before, 1, 100);
    let point = store.resume_point();
    entries.extend(fill(&mut store, before, after, 1, 100));
    drop(store);
    (drives, point, entries)
}

const LOG: LogId = LogId(1);

fn known(position: u64) -> Known {
    vec![(LOG, Position(position))]
}

fn seg(point: &ResumePoint) -> String {
    format!("seg-{:08}", point.generation.0)
}

#[test]
fn what_lies_before_the_point_is_neither_read_nor_lost() {
    for copies in [1, 2] {
        let (drives, point, entries) = written(1, copies, 100, 20);
        let forks: Vec<_> = drives.iter().map(|drive| drive.fork(1)).collect();
        let head = reopen(&forks).unwrap();
        let (mut store, report, found) = resume(&drives, point, &known(100)).unwrap();
        assert_eq!(read_from(&report), Some(point.commit), "{copies} copies");
        // The commit at the point holds record 100.
        assert_eq!(found, entries[99..]);
        assert_eq!((report.commits, report.last_commit), (21, head.1.last_commit));
        assert_eq!(report.lost, vec![]);
        assert_eq!(store.resume_point(), head.0.resume_point(), "the last commit, however it was found");
        assert_eq!(store.last_position(LOG), Some(Position(120)));
        let more = fill(&mut store, 120, 30, 1, 100);
        drop(store);
        let (_, report, found) = reopen(&drives).unwrap();
        assert_eq!(read_from(&report), None);
        assert!(found.iter().eq(entries.iter().chain(&more)), "the whole journal is still there");
    }
}

#[test]
fn a_point_is_taken_while_a_commit_is_in_flight_and_on_an_empty_store() {
    let (_, drives) = drives(2, 1);
    let mut store = create(&drives, SMALL);
    let empty = store.resume_point();
    assert_eq!(empty.commit, CommitSeq(1));
    let mut entries = vec![append(&mut store, 1, 1, 100).unwrap().1];
    store.commit();
    assert_eq!(store.resume_point(), empty, "commit 1 is in flight");
    settle(&mut store);
    assert_eq!(store.resume_point(), empty, "commit 1 is the last durable one");
    entries.push(append(&mut store, 1, 2, 100).unwrap().1);
    store.commit();
    assert_eq!(store.resume_point(), empty, "what is in flight may be cut");
    settle(&mut store);
    let point = store.resume_point();
    assert_eq!((point.commit, point.number), (CommitSeq(2), 1));
    drop(store);
    let (store, report, found) = resume(&drives, empty, &[]).unwrap();
    assert_eq!((read_from(&report), found), (Some(CommitSeq(1)), entries.clone()));
    assert_eq!(store.resume_point(), point);
    drop(store);
    let (_, report, found) = resume(&drives, point, &known(1)).unwrap();
    assert_eq!((read_from(&report), &found[..]), (Some(CommitSeq(2)), &entries[1..]));
}

#[test]
fn a_point_whose_segment_was_recycled_falls_back_to_the_head() {
    let (_, drives) = drives(3, 2);
    let mut store = create(&drives, SMALL);
    fill(&mut store, 0, 10, 1, 100);
    let point = store.resume_point();
    for round in 0..6 {
        fill(&mut store, 10 + round * 16, 16, 1, 100);
        store.cut(LOG, Position(10 + round * 16));
        drain(&mut store);
    }
    drop(store);
    assert_eq!(drives[0].file(&seg(&point)), None, "the file has another name now");
    let (store, report, found) = resume(&drives, point, &known(100)).unwrap();
    assert_eq!(read_from(&report), None);
    assert_eq!((report.lost, found.last().map(|entry| entry.1)), (vec![], Some(Position(106))));
    drop(store);
    // A file of that number whose content is another commit's is no better.
    let place = reopen(&drives).unwrap().0.resume_point();
    for wrong in [
        ResumePoint { previous: place.previous ^ 1, ..place },
        ResumePoint { commit: place.commit.next(), ..place },
        ResumePoint { number: place.number - 1, ..place },
        ResumePoint { number: u32::MAX, ..place },
        ResumePoint { generation: Generation(u64::MAX), ..place },
    ] {
        let (_, report, again) = resume(&drives, wrong, &known(100)).unwrap();
        assert_eq!((read_from(&report), again), (None, found.clone()), "{wrong:?}");
    }
    let (_, report, again) = resume(&drives, place, &known(105)).unwrap();
    assert_eq!((read_from(&report), again.as_slice()), (Some(place.commit), &found[found.len() - 1..]));
}

#[test]
fn a_point_that_is_rotten_on_one_copy_is_repaired_and_on_both_the_head_decides() {
    for copy in [0, 1] {
        let (drives, point, entries) = written(4, 2, 40, 20);
        assert!(drives[copy].flip_bit(&seg(&point), u64::from(point.number) * 4096 + 77, 1));
        // So is the block that says how its segment begins.
        assert!(drives[1 - copy].zero_block(&seg(&point), 0));
        let (_, report, found) = resume(&drives, point, &known(40)).unwrap();
        assert_eq!((read_from(&report), &found[..]), (Some(point.commit), &entries[39..]));
        assert_eq!((report.repaired, report.findings[0].block), (1, point.number));
        assert!(!verify(disks(&drives)).unwrap().is_clean(), "what was not read is not repaired yet");
    }
    let (drives, point, entries) = written(4, 2, 40, 20);
    for drive in &drives {
        drive.flip_bit(&seg(&point), u64::from(point.number) * 4096 + 77, 1);
    }
    let (store, report, found) = resume(&drives, point, &known(40)).unwrap();
    assert_eq!(read_from(&report), None);
    assert_eq!((report.lost[0].log, report.lost[0].from), (Some(LOG), Position(40)), "as from the head");
    assert_eq!(found, entries[..39]);
    assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })));
    // The first block of its segment is the head's affair too.
    let (drives, point, _) = written(4, 2, 40, 20);
    for drive in &drives {
        drive.zero_block(&seg(&point), 0);
    }
    let (_, report, _) = resume(&drives, point, &known(40)).unwrap();
    assert_eq!((read_from(&report), report.lost[0].from), (None, Position(33)));
}

#[test]
fn a_hole_behind_the_point_is_damage_and_a_torn_tail_is_cut() {
    let (drives, point, entries) = written(5, 1, 40, 20);
    drives[0].flip_bit(&seg(&point), u64::from(point.number + 3) * 4096 + 77, 1);
    let (_, report, found) = resume(&drives, point, &known(40)).unwrap();
    assert_eq!((read_from(&report), &found[..]), (Some(point.commit), &entries[39..42]));
    let lost = &report.lost[0];
    assert_eq!((lost.log, lost.from, lost.to), (Some(LOG), Position(43), Some(Position(43))));
    let (drives, point, mut entries) = written(5, 1, 40, 20);
    let (mut store, _, _) = resume(&drives, point, &known(40)).unwrap();
    append(&mut store, 1, 61, 9000).unwrap();
    store.commit();
    drives[0].crash_with(|question| {
        !matches!(question, rallypoint_store::sim_disk::Undecided::Block { block, .. } if block % 2 == 0)
    });
    drop(store);
    let (mut store, report, found) = resume(&drives, point, &known(40)).unwrap();
    assert_eq!(report.cut.map(|cut| cut.commit), Some(CommitSeq(61)));
    assert_eq!(found, entries[39..]);
    entries.extend(fill(&mut store, 60, 3, 1, 100));
    drop(store);
    assert_eq!(reopen(&drives).unwrap().2, entries);
}

#[test]
fn a_log_goes_on_after_its_checkpoint_when_nothing_of_it_was_read() {
    for copies in [1, 2] {
        let (_, drives) = drives(6, copies);
        let mut store = create(&drives, SMALL);
        for position in 1..=7 {
            append(&mut store, 2, position, 50).unwrap();
        }
        commit_all(&mut store);
        fill(&mut store, 0, 60, 1, 100);
        let point = store.resume_point();
        fill(&mut store, 60, 5, 1, 100);
        drop(store);
        let known = vec![(LogId(1), Position(60)), (LogId(2), Position(7))];
        let (mut store, report, found) = resume(&drives, point, &known).unwrap();
        assert_eq!((report.lost.len(), found.len()), (0, 6));
        assert_eq!(store.last_position(LogId(2)), Some(Position(7)));
        let wrong = append(&mut store, 2, 7, 10).unwrap_err();
        assert!(matches!(wrong, StoreError::OutOfOrder { expected: Position(8), .. }), "{wrong}");
        append(&mut store, 2, 8, 10).unwrap();
        commit_all(&mut store);
        drop(store);
        let (store, report, found) = reopen(&drives).unwrap();
        assert_eq!((report.lost.len(), found.len()), (0, 73));
        assert_eq!(store.last_position(LogId(2)), Some(Position(8)));
    }
}

#[test]
fn a_gap_between_checkpoint_and_log_is_a_loss_that_is_named() {
    let (drives, point, _) = written(7, 1, 40, 20);
    let (store, report, found) = resume(&drives, point, &known(30)).unwrap();
    let lost = &report.lost[0];
    assert_eq!((lost.log, lost.from, lost.to), (Some(LOG), Position(31), Some(Position(39))));
    assert!(lost.proven && found.is_empty());
    assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })));
    drop(store);
    // The point may be older than the checkpoint of one log.
    let (_, report, found) = resume(&drives, point, &known(45)).unwrap();
    assert_eq!((report.lost.len(), found.len()), (0, 21));
    // A log that ends before its checkpoint was durable once, and lies: nothing is cut.
    let (store, report, _) = resume(&drives, point, &known(70)).unwrap();
    let lost = &report.lost[0];
    assert_eq!((lost.from, lost.to, lost.proven), (Position(61), Some(Position(70)), true));
    assert!(matches!(store.refusing(), Some(StoreError::Damaged { .. })));
}

#[test]
fn skipped_segments_stay_until_a_cut_and_the_head_is_right_after_it() {
    for copies in [1, 2] {
        let (drives, point, entries) = written(8, copies, 100, 20);
        let (mut store, _, _) = resume(&drives, point, &known(100)).unwrap();
        let before = store.status().segments;
        assert!(before >= 8, "{before} segments");
        for below in [50, 100] {
            store.cut(LOG, Position(below));
            drain(&mut store);
            assert_eq!(store.status().segments, before, "record {below} may be in any of them");
        }
        store.cut(LOG, Position(101));
        drain(&mut store);
        // Segment 7 holds the commits 97 to 112, the point at block 3 among them.
        assert_eq!(store.status().segments, 2);
        let more = fill(&mut store, 120, 10, 1, 100);
        drop(store);
        let all: Vec<_> = entries[96..].iter().chain(&more).cloned().collect();
        let forks: Vec<_> = drives.iter().map(|drive| drive.fork(1)).collect();
        let (_, report, found) = reopen(&forks).unwrap();
        assert_eq!((report.lost, found), (vec![], all.clone()), "from the head that the cut wrote");
        let (_, report, found) = resume(&drives, point, &known(100)).unwrap();
        assert_eq!((read_from(&report), &found[..]), (Some(point.commit), &all[3..]));
    }
}

#[test]
fn a_scrub_after_a_resume_repairs_what_was_not_read_and_takes_no_blank_end_for_a_loss() {
    let (_, drives) = drives(9, 2);
    let mut store = create(&drives, SMALL);
    // Commits of three blocks: the last block of each segment stays blank.
    fill(&mut store, 0, 40, 1, 9000);
    let point = store.resume_point();
    fill(&mut store, 40, 3, 1, 9000);
    drop(store);
    drives[0].flip_bit("seg-00000002", 5 * 4096 + 9, 0);
    let scrub = |store: &mut Store<SimDisk>, bytes: usize| {
        let (mut repaired, mut lost) = (0, Vec::new());
        loop {
            assert!(store.scrub_step(bytes));
            let step = loop {
                if let Some(StoreEvent::Scrubbed(step)) = store.wait() {
                    break step;
                }
            };
            repaired += step.repaired;
            lost.extend(step.unrepairable.iter().map(|finding| (finding.file.clone(), finding.block)));
            if step.wrapped {
                return (repaired, lost);
            }
        }
    };
    for bytes in [4096, 3 * 4096, 1 << 20] {
        let forks: Vec<_> = drives.iter().map(|drive| drive.fork(1)).collect();
        let (mut store, report, _) = resume(&forks, point, &known(40)).unwrap();
        assert_eq!(read_from(&report), Some(point.commit));
        assert_eq!(scrub(&mut store, bytes), (1, vec![]));
        assert!(verify(disks(&forks)).unwrap().is_clean());
        // A block that both copies lack is a loss, however it lies to the steps.
        for drive in &forks {
            drive.zero_block("seg-00000003", 4);
        }
        assert_eq!(scrub(&mut store, bytes), (0, vec![("seg-00000003".to_string(), 4); 2]));
    }
}

#[test]
fn a_read_only_opening_may_resume_and_writes_nothing() {
    let (drives, point, entries) = written(10, 2, 40, 20);
    let writes = drives[0].writes() + drives[1].writes();
    let open = OpenOptions { read_only: true, ..open_small() };
    let (_, report, found) = resume_with(&drives, open, Some(point), &known(40)).unwrap();
    assert_eq!((read_from(&report), &found[..]), (Some(point.commit), &entries[39..]));
    assert_eq!(drives[0].writes() + drives[1].writes(), writes);
}

/// Works, takes a point as a checkpoint would (everything appended so far is in it, and it becomes
/// valid when that is durable), and works on. The power goes at operation `nth`.
struct Life {
    ledger: Ledger,
    /// The newest checkpoint that became valid.
    checkpoint: Option<(ResumePoint, Known)>,
}

fn live(drives: &[SimDrive], seed: u64) -> Life {
    let mut life = Life { ledger: Ledger::default(), checkpoint: None };
    let Ok(mut store) = Store::create(disks(drives), identity(drives.len() as u8), SMALL) else {
        return life;
    };
    life.ledger.created = true;
    life.ledger.cut_limit = Some(0);
    let mut random = Random::new(seed);
    for _ in 0..6 {
        work(&mut store, &mut life.ledger, &mut random, 60);
        let (point, appended) = (store.resume_point(), life.ledger.appended.len());
        let known: Known =
            (0..4).filter_map(|log| store.last_position(LogId(log)).map(|last| (LogId(log), last))).collect();
        work(&mut store, &mut life.ledger, &mut random, 20);
        if life.ledger.acknowledged >= appended {
            life.checkpoint = Some((point, known));
            life.ledger.cut_limit = Some(appended);
        }
    }
    life
}

/// Records that a recovery from the head gives, without those that the checkpoint holds.
fn behind(found: &[Entry], known: &[(LogId, Position)]) -> Vec<Entry> {
    let holds = |entry: &Entry| known.iter().any(|&(log, last)| log == entry.0 && entry.1 <= last);
    found.iter().filter(|entry| !holds(entry)).cloned().collect()
}

fn forked(drives: &[SimDrive], seed: u64) -> (SimPower, Vec<SimDrive>) {
    let power = SimPower::new();
    let drives = drives.iter().zip(0..).map(|(drive, n)| drive.fork_on(&power, seed * 2 + n)).collect();
    (power, drives)
}

#[test]
fn after_a_power_cut_at_every_operation_a_resumed_recovery_gives_what_the_head_gives() {
    let (seeds, mut resumed, mut fell_back) = (if long() { 40 } else { 6 }, 0, 0);
    for seed in 0..seeds {
        for copies in [1, 2] {
            for nth in 1.. {
                let (power, drives) = drives(seed, copies);
                power.crash_after(nth);
                let life = live(&drives, seed);
                if power.ops() < nth {
                    break;
                }
                for drive in &drives {
                    drive.crash();
                }
                let context = format!("seed {seed}, {copies} copies, power cut at {nth}");
                let Some((point, known)) = life.checkpoint else { continue };
                let (_, heads) = forked(&drives, seed);
                let (head, head_report, all) = reopen(&heads).unwrap_or_else(|e| panic!("{context}: {e}"));
                let (store, report, found) =
                    resume(&drives, point, &known).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(report.lost, vec![], "{context}");
                assert_eq!(behind(&found, &known), behind(&all, &known), "{context}");
                assert_eq!(report.last_commit, head_report.last_commit, "{context}");
                assert_eq!(report.cut, head_report.cut, "{context}");
                assert_eq!(store.resume_point(), head.resume_point(), "{context}");
                for log in 0..4 {
                    let last = head
                        .last_position(LogId(log))
                        .max(known.iter().find(|(known, _)| known.0 == log).map(|&(_, position)| position));
                    assert_eq!(store.last_position(LogId(log)), last, "{context}, log {log}");
                }
                resumed += u64::from(report.resumed.is_some());
                fell_back += u64::from(report.resumed.is_none());
                // A second life on top, with cuts, and all of it from the head.
                let mut second = life.ledger.clone();
                second.restart(&all);
                second.cut_limit = None;
                let mut store = store;
                work(&mut store, &mut second, &mut Random::new(seed ^ 0x2222), 60);
                drop(store);
                for drive in &drives {
                    drive.crash();
                }
                let (_, report, found) = reopen(&drives).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(report.lost, vec![], "{context}");
                second.check(&found).unwrap_or_else(|why| panic!("{context}: {why}"));
            }
        }
    }
    println!("{resumed} resumed, {fell_back} read from the head");
    assert!(resumed > 300, "{resumed} resumed, {fell_back} read from the head");
}

#[test]
fn a_power_cut_at_every_operation_of_a_resumed_recovery_changes_nothing_that_was_returned() {
    let (seeds, stride) = if long() { (20, 1) } else { (4, 29) };
    for seed in 200..200 + seeds {
        let copies = 1 + seed as usize % 2;
        let mut nth = 300 + seed % stride;
        loop {
            let (power, drives) = drives(seed, copies);
            power.crash_after(nth);
            let life = live(&drives, seed);
            if power.ops() < nth {
                break;
            }
            nth += stride;
            let Some((point, known)) = life.checkpoint else { continue };
            for drive in &drives {
                drive.crash();
            }
            for inner in 1.. {
                let (power, drives) = forked(&drives, seed + inner);
                power.crash_after(inner);
                let mut returned = Vec::new();
                let ended = Store::mount(disks(&drives), open_small()).is_ok_and(|mounted| {
                    let mut sink = |record: &rallypoint_store::record::Record<'_>| {
                        returned.push((record.log, record.position, record.payload.to_vec()));
                        Ok::<(), Infallible>(())
                    };
                    mounted.recover_from(Some(point), &known, &mut sink).is_ok()
                });
                if power.ops() < inner {
                    assert!(ended, "seed {seed}, crash at {nth}: the recovery failed");
                    break;
                }
                for drive in &drives {
                    drive.crash();
                }
                let context = format!("seed {seed}, crash at {nth}, recovery crash at {inner}");
                let (_, report, found) = reopen(&drives).unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(report.lost, vec![], "{context}");
                let from = returned.first().and_then(|first| found.iter().position(|entry| entry == first));
                assert!(
                    returned.is_empty() || found[from.unwrap_or(0)..].starts_with(&returned),
                    "{context}: what was returned vanished"
                );
                life.ledger.check(&found).unwrap_or_else(|why| panic!("{context}: {why}"));
            }
        }
    }
}

//! The simulated disk keeps its own contract: what it may take at a power cut and what it may not.

use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_store::disk::{Disk, DiskErrorKind, Done, FileId, Lane, Op};
use rallypoint_store::sim_disk::{Completions, SimDisk, SimDrive, SimPower, Undecided};
use std::collections::BTreeSet;

fn run(disk: &mut SimDisk, op: Op) -> Result<Done, DiskErrorKind> {
    let ticket = disk.submit(Lane::Bulk, op);
    loop {
        let completion = disk.wait().expect("an operation is outstanding");
        if completion.ticket == ticket {
            return completion.result.map_err(|error| error.kind);
        }
    }
}

fn create(disk: &mut SimDisk, name: &str, len: u64) -> FileId {
    match run(disk, Op::Create { name: name.into(), len }) {
        Ok(Done::Opened { file, .. }) => file,
        other => panic!("create {name}: {other:?}"),
    }
}

fn open(disk: &mut SimDisk, name: &str) -> (FileId, u64) {
    match run(disk, Op::Open { name: name.into() }) {
        Ok(Done::Opened { file, len }) => (file, len),
        other => panic!("open {name}: {other:?}"),
    }
}

fn write(
    disk: &mut SimDisk,
    file: FileId,
    offset: u64,
    bytes: &[u8],
    durable: bool,
) -> Result<(), DiskErrorKind> {
    let data = AlignedBuffer::copy_of(bytes);
    run(disk, Op::Write { file, offset, data, durable }).map(|_| ())
}

fn read(disk: &mut SimDisk, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, DiskErrorKind> {
    match run(disk, Op::Read { file, offset, len })? {
        Done::Read(data) => Ok(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

/// A drive with the durable file `f` of `blocks` blocks of ones.
fn prepared(seed: u64, blocks: usize) -> (SimDrive, SimDisk, FileId) {
    let drive = SimDrive::new(seed, "a");
    let mut disk = SimDisk::open(&drive);
    let file = create(&mut disk, "f", 4096 * blocks as u64);
    write(&mut disk, file, 0, &vec![1; 4096 * blocks], true).unwrap();
    run(&mut disk, Op::SyncNames).unwrap();
    (drive, disk, file)
}

#[test]
fn what_is_durable_survives_every_seed() {
    for seed in 0..64 {
        let (drive, mut disk, file) = prepared(seed, 4);
        write(&mut disk, file, 4096, &[2; 8192], false).unwrap();
        run(&mut disk, Op::Sync { file }).unwrap();
        drive.crash();
        assert_eq!(run(&mut disk, Op::List).unwrap_err(), DiskErrorKind::Gone);
        let bytes = drive.file("f").unwrap();
        assert_eq!(bytes[..4096], [1; 4096], "seed {seed}");
        assert_eq!(bytes[4096..12288], [2; 8192], "seed {seed}");
    }
}

#[test]
fn every_subset_of_the_blocks_of_a_write_in_flight_can_be_chosen() {
    let (drive, mut disk, file) = prepared(1, 3);
    drive.crash_after(1);
    assert_eq!(write(&mut disk, file, 0, &[2; 3 * 4096], true), Err(DiskErrorKind::Gone));
    assert!(drive.is_crashed());
    let questions = drive.undecided();
    assert_eq!(questions.len(), 3, "{questions:?}");
    let mut seen = BTreeSet::new();
    for subset in 0..8u32 {
        let fork = drive.fork(9);
        let mut at = 0;
        fork.crash_with(|question| {
            assert!(matches!(question, Undecided::Block { in_flight: true, sector: None, .. }));
            at += 1;
            subset & (1 << (at - 1)) != 0
        });
        let bytes = fork.file("f").unwrap();
        for block in 0..3 {
            let expected = if subset & (1 << block) != 0 { 2 } else { 1 };
            assert_eq!(bytes[block * 4096..(block + 1) * 4096], vec![expected; 4096]);
        }
        seen.insert(bytes);
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn a_crash_takes_unsynced_blocks_and_names_in_some_seed_and_keeps_them_in_another() {
    let (mut kept, mut taken, mut torn, mut names) = (0, 0, 0, BTreeSet::new());
    for seed in 0..200 {
        let (drive, mut disk, file) = prepared(seed, 2);
        write(&mut disk, file, 0, &[2; 8192], false).unwrap();
        create(&mut disk, "g", 0);
        run(&mut disk, Op::Rename { from: "f".into(), to: "h".into() }).unwrap();
        drive.crash();
        let list: Vec<String> = drive.files().into_iter().map(|(name, _)| name).collect();
        assert!(list.contains(&"f".into()) != list.contains(&"h".into()), "a rename is atomic: {list:?}");
        let bytes = drive.file("f").or_else(|| drive.file("h")).unwrap();
        match (bytes[0], bytes[4096]) {
            (1, 1) => taken += 1,
            (2, 2) => kept += 1,
            _ => torn += 1,
        }
        names.insert(list);
    }
    assert!(kept > 0 && taken > 0 && torn > 0, "{kept} {taken} {torn}");
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn sectors_tear_only_when_asked() {
    let mixed = |torn: bool| {
        (0..50).any(|seed| {
            let (drive, mut disk, file) = prepared(seed, 1);
            drive.set_torn_sectors(torn);
            write(&mut disk, file, 0, &[2; 4096], false).unwrap();
            drive.crash();
            let bytes = drive.file("f").unwrap();
            bytes.contains(&1) && bytes.contains(&2)
        })
    };
    assert!(!mixed(false));
    assert!(mixed(true));
}

#[test]
fn a_sync_does_not_cover_a_write_that_was_in_flight_when_it_was_submitted() {
    let (drive, mut disk, file) = prepared(3, 1);
    let data = AlignedBuffer::copy_of(&[2; 4096]);
    disk.submit(Lane::Bulk, Op::Write { file, offset: 0, data, durable: false });
    run(&mut disk, Op::Sync { file }).unwrap();
    drive.crash_with(|_| false);
    assert_eq!(drive.file("f").unwrap()[0], 1);
}

#[test]
fn a_failed_sync_is_never_made_good_by_the_next_one() {
    let (drive, mut disk, file) = prepared(3, 1);
    write(&mut disk, file, 0, &[2; 4096], false).unwrap();
    drive.fail_sync(1, DiskErrorKind::Io);
    assert_eq!(run(&mut disk, Op::Sync { file }).unwrap_err(), DiskErrorKind::Io);
    run(&mut disk, Op::Sync { file }).unwrap();
    assert_eq!(read(&mut disk, file, 0, 4096).unwrap()[0], 2, "the cache lies");
    drive.crash_with(|_| true);
    assert_eq!(drive.file("f").unwrap()[0], 1);
}

#[test]
fn injected_faults_do_what_they_say_and_are_counted() {
    let (drive, mut disk, file) = prepared(3, 4);
    drive.lose_write(1);
    write(&mut disk, file, 0, &[2; 4096], true).unwrap();
    assert_eq!(read(&mut disk, file, 0, 1).unwrap(), [1]);
    drive.misdirect_write(1, 8192);
    write(&mut disk, file, 0, &[3; 4096], true).unwrap();
    assert_eq!(read(&mut disk, file, 0, 1).unwrap(), [1]);
    assert_eq!(read(&mut disk, file, 8192, 1).unwrap(), [3]);
    drive.fail_write(2, DiskErrorKind::Io);
    write(&mut disk, file, 0, &[4; 4096], true).unwrap();
    assert_eq!(write(&mut disk, file, 0, &[5; 4096], true), Err(DiskErrorKind::Io));
    assert!(drive.fail_read("f", 4096..4097));
    assert_eq!(read(&mut disk, file, 0, 16384), Err(DiskErrorKind::Io));
    assert!(read(&mut disk, file, 8192, 8192).is_ok());
    write(&mut disk, file, 4096, &[6; 4096], true).unwrap();
    assert!(read(&mut disk, file, 0, 16384).is_ok());
    assert!(drive.flip_bit("f", 9000, 3));
    assert_eq!(read(&mut disk, file, 9000, 1).unwrap(), [3 ^ 8]);
    assert!(drive.copy_block("f", 1, 0));
    assert_eq!(read(&mut disk, file, 0, 1).unwrap(), [6]);
    drive.set_capacity(Some(drive.used() + 4096));
    assert_eq!(
        run(&mut disk, Op::Create { name: "g".into(), len: 8192 }).unwrap_err(),
        DiskErrorKind::NoSpace
    );
    assert_eq!(write(&mut disk, file, 16384, &[7; 8192], true), Err(DiskErrorKind::NoSpace));
    drive.fail_op(1, DiskErrorKind::Io);
    assert_eq!(run(&mut disk, Op::List).unwrap_err(), DiskErrorKind::Io);
    drive.set_lying(true);
    write(&mut disk, file, 0, &[8; 4096], true).unwrap();
    drive.crash_with(|_| false);
    assert_eq!(drive.file("f").unwrap()[0], 6);
    drive.wipe();
    assert!(drive.files().is_empty());
    let counts = drive.counts();
    for (name, count) in counts.rows() {
        let untouched = ["syncs_failed", "writes_torn", "names_undone"];
        assert_eq!(count == 0, untouched.contains(&name), "{name}: {count}");
    }
}

#[test]
fn in_manual_mode_the_caller_decides_what_completes() {
    let (drive, mut disk, file) = prepared(3, 1);
    drive.set_completions(Completions::Manual);
    let first = disk.submit(Lane::Commit, Op::Read { file, offset: 0, len: 4096 });
    let second = disk.submit(Lane::Bulk, Op::Sync { file });
    assert!(disk.poll().is_none());
    assert_eq!(drive.pending().len(), 2);
    assert!(drive.complete(second));
    assert!(!drive.complete(second));
    assert_eq!(disk.poll().unwrap().ticket, second);
    assert!(disk.poll().is_none());
    assert_eq!(disk.wait().unwrap().ticket, first);
    assert!(disk.wait().is_none());
}

#[test]
fn reordering_happens_and_is_the_same_for_the_same_seed() {
    let order = |seed| {
        let (drive, mut disk, file) = prepared(seed, 1);
        drive.set_reordering(true);
        let first = disk.submit(Lane::Bulk, Op::Sync { file });
        for _ in 0..7 {
            disk.submit(Lane::Bulk, Op::Sync { file });
        }
        std::iter::from_fn(|| disk.poll()).map(|done| done.ticket.0 - first.0).collect::<Vec<_>>()
    };
    assert_eq!(order(5), order(5));
    assert!((0..8).any(|seed| order(seed) != (0..8).collect::<Vec<_>>()));
}

#[test]
fn one_power_line_counts_and_cuts_all_its_drives() {
    let power = SimPower::new();
    let (a, b) = (SimDrive::on(&power, 1, "a"), SimDrive::on(&power, 2, "b"));
    let (mut on_a, mut on_b) = (SimDisk::open(&a), SimDisk::open(&b));
    power.crash_after(3);
    run(&mut on_a, Op::List).unwrap();
    run(&mut on_b, Op::List).unwrap();
    assert_eq!(run(&mut on_a, Op::List).unwrap_err(), DiskErrorKind::Gone);
    assert_eq!(run(&mut on_b, Op::List).unwrap_err(), DiskErrorKind::Gone);
    assert!(a.is_crashed() && b.is_crashed());
    assert!(run(&mut SimDisk::open(&b), Op::List).is_ok());
}

#[test]
fn a_killed_process_keeps_what_completed() {
    for seed in 0..32 {
        let (drive, mut disk, file) = prepared(seed, 2);
        write(&mut disk, file, 0, &[2; 4096], false).unwrap();
        drive.crash_after(1);
        write(&mut disk, file, 4096, &[3; 4096], false).unwrap_err();
        drive.kill();
        let bytes = drive.file("f").unwrap();
        assert_eq!(bytes[0], 2);
        assert!([1, 3].contains(&bytes[4096]));
    }
}

#[test]
fn a_drive_may_be_used_from_another_thread() {
    let (drive, disk, _) = prepared(1, 1);
    std::thread::spawn(move || (disk, drive)).join().map_or_else(|_| panic!(), drop);
}

#[test]
#[should_panic(expected = "unaligned write")]
fn an_unaligned_write_to_a_segment_is_a_bug() {
    let drive = SimDrive::new(1, "a");
    let mut disk = SimDisk::open(&drive);
    let file = create(&mut disk, "seg-00000001", 8192);
    let _ = write(&mut disk, file, 100, &[0; 4096], true);
}

#[test]
fn reading_only_refuses_changes() {
    let (drive, disk, _) = prepared(1, 1);
    drop(disk);
    let mut disk = SimDisk::open_read_only(&drive);
    let (file, len) = open(&mut disk, "f");
    assert_eq!(len, 4096);
    assert_eq!(read(&mut disk, file, 0, 9999).unwrap().len(), 4096);
    assert_eq!(write(&mut disk, file, 0, &[1], false), Err(DiskErrorKind::ReadOnly));
    assert_eq!(run(&mut disk, Op::Remove { name: "f".into() }).unwrap_err(), DiskErrorKind::ReadOnly);
}

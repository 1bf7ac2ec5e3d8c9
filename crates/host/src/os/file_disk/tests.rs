//! The contract of the disk port, held against a real directory.

use super::*;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// How a test lets its operations be run.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `wait` at once: the calling thread runs what it may.
    Inline,
    /// `poll` until something comes: the standing threads run everything.
    Threads,
}

fn disk_in(directory: &Path) -> FileDisk {
    disk_with(directory, true)
}

fn disk_with(directory: &Path, direct: bool) -> FileDisk {
    let options = FileDiskOptions { direct, ..FileDiskOptions::default() };
    FileDisk::open(directory, options).expect("a usable directory")
}

fn on_disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory")
}

fn next(disk: &mut FileDisk, way: Way) -> Completion {
    loop {
        let completion = match way {
            Way::Inline => disk.wait(),
            Way::Threads => disk.poll(),
        };
        if let Some(completion) = completion {
            return completion;
        }
        thread::yield_now();
    }
}

fn run_in(disk: &mut FileDisk, way: Way, lane: Lane, op: Op) -> Result<Done, DiskError> {
    let ticket = disk.submit(lane, op);
    let completion = next(disk, way);
    assert_eq!(completion.ticket, ticket);
    completion.result
}

fn unit(result: Result<Done, DiskError>) {
    assert!(matches!(result, Ok(Done::Unit)), "{result:?}");
}

fn opened(result: Result<Done, DiskError>) -> (FileId, u64) {
    match result {
        Ok(Done::Opened { file, len }) => (file, len),
        other => panic!("{other:?}"),
    }
}

fn kind(result: Result<Done, DiskError>) -> DiskErrorKind {
    result.expect_err("must fail").kind
}

fn filled(len: usize, byte: u8) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(len);
    buffer.fill(byte);
    buffer
}

/// Every operation, on a direct and on a buffered file, on every lane.
fn contract(mut disk: FileDisk, way: Way, lane: Lane) {
    let mut run = |op| run_in(&mut disk, way, lane, op);
    let name = |name: &str| name.to_owned();
    for file_name in ["seg-00000001", "superblock", "cp-00001-000000000001.part", "events-0"] {
        assert_eq!(kind(run(Op::Open { name: name(file_name) })), DiskErrorKind::NotFound);
        let len = (2 << 20) + 4096;
        let (file, length) = opened(run(Op::Create { name: name(file_name), len }));
        assert_eq!(length, len);
        assert_eq!(kind(run(Op::Create { name: name(file_name), len })), DiskErrorKind::Exists);
        for (durable, byte) in [(true, 1), (false, 2)] {
            let data = filled(8192, byte);
            let address = data.as_ptr();
            let offset = u64::from(byte) * 8192;
            match run(Op::Write { file, offset, data, durable }) {
                Ok(Done::Wrote(data)) => assert_eq!(data.as_ptr(), address, "moved, not copied"),
                other => panic!("{other:?}"),
            }
            unit(run(Op::Sync { file }));
        }
        match run(Op::Read { file, offset: 4096, len: 24576 }) {
            Ok(Done::Read(data)) => {
                assert_eq!(data.len(), 24576);
                assert!(data[..4096].iter().all(|&byte| byte == 0), "created full of zeroes");
                assert!(data[4096..12288].iter().all(|&byte| byte == 1));
                assert!(data[12288..20480].iter().all(|&byte| byte == 2));
                assert!(data[20480..].iter().all(|&byte| byte == 0));
            }
            other => panic!("{other:?}"),
        }
        match run(Op::Read { file, offset: len - 4096, len: 16384 }) {
            Ok(Done::Read(data)) => assert_eq!(data.len(), 4096, "short at the end"),
            other => panic!("{other:?}"),
        }
        match run(Op::Write { file, offset: len, data: filled(4096, 9), durable: true }) {
            Ok(Done::Wrote(_)) => {}
            other => panic!("{other:?}"),
        }
        unit(run(Op::Close { file }));
        assert_eq!(kind(run(Op::Sync { file })), DiskErrorKind::Io);
        assert_eq!(opened(run(Op::Open { name: name(file_name) })).1, len + 4096, "grown");
    }
    unit(run(Op::Rename { from: name("events-0"), to: name("superblock") }));
    unit(run(Op::Remove { name: name("seg-00000001") }));
    assert_eq!(kind(run(Op::Remove { name: name("seg-00000001") })), DiskErrorKind::NotFound);
    unit(run(Op::SyncNames));
    match run(Op::List) {
        Ok(Done::Names(names)) => {
            let names: Vec<_> = names.iter().map(|(name, len)| (name.as_str(), *len)).collect();
            let len = (2 << 20) + 8192;
            assert_eq!(names, [("cp-00001-000000000001.part", len), ("superblock", len)]);
        }
        other => panic!("{other:?}"),
    }
    for name in ["", "..", "a/b", "lock", "running"] {
        assert_eq!(kind(run(Op::Create { name: name.into(), len: 0 })), DiskErrorKind::Io);
    }
    assert!(disk.wait().is_none(), "nothing is outstanding");
}

fn contract_everywhere(directory: impl Fn() -> TempDir) {
    for direct in [true, false] {
        for way in [Way::Inline, Way::Threads] {
            for lane in [Lane::Commit, Lane::Bulk] {
                let directory = directory();
                contract(disk_with(directory.path(), direct), way, lane);
            }
        }
    }
}

#[test]
fn the_contract_holds_on_the_disk_of_the_checkout() {
    contract_everywhere(on_disk);
}

#[test]
fn the_contract_holds_in_memory() {
    contract_everywhere(|| tempfile::tempdir_in("/dev/shm").expect("temporary directory"));
    let directory = tempfile::tempdir_in("/dev/shm").expect("temporary directory");
    let warning = place_warning(directory.path()).expect("examined");
    assert!(matches!(warning, Some(DiskWarning::Memory { .. })), "{warning:?}");
}

/// With `TMPDIR` on a file system that refuses `O_DIRECT` (ramfs, tmpfs before Linux 6.6) this
/// shows the fallback.
#[test]
fn the_contract_holds_where_temporary_files_are() {
    contract_everywhere(|| tempfile::tempdir().expect("temporary directory"));
}

#[test]
fn direct_files_are_open_twice_and_others_once() {
    let directory = on_disk();
    for (direct, name, twice) in [(true, "seg-1", true), (true, "events-0", false), (false, "seg-2", false)] {
        let disk = disk_with(directory.path(), direct);
        let (file, _) = open(&disk.place, name, true).expect("created");
        assert!(file.direct == twice || direct, "nothing is direct that should not be");
        assert_eq!(file.direct, file.durable.is_some(), "a descriptor for durable writes");
        assert!(twice || file.durable.is_none());
    }
}

#[test]
fn a_waiting_caller_runs_a_lone_commit_itself_and_polling_starts_a_thread() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut disk = disk_in(directory.path());
    let (file, _) = opened(run_in(
        &mut disk,
        Way::Inline,
        Lane::Commit,
        Op::Create { name: "seg-1".into(), len: 1 << 20 },
    ));
    for block in 0..20 {
        disk.submit(
            Lane::Commit,
            Op::Write { file, offset: block * 4096, data: filled(4096, 1), durable: true },
        );
        assert!(disk.wait().expect("outstanding").result.is_ok());
    }
    assert!(disk.threads.iter().all(Vec::is_empty), "no thread was needed");
    disk.submit(Lane::Commit, Op::Sync { file });
    disk.submit(Lane::Bulk, Op::Sync { file });
    for _ in 0..2 {
        next(&mut disk, Way::Threads);
    }
    assert_eq!(disk.threads.each_ref().map(Vec::len), [1, 1]);
}

#[test]
fn many_reads_use_the_pool_and_conflicting_operations_keep_their_order() {
    let directory = on_disk();
    let mut disk = disk_in(directory.path());
    let (file, _) =
        opened(run_in(&mut disk, Way::Inline, Lane::Bulk, Op::Create { name: "seg-1".into(), len: 1 << 20 }));
    for round in 0..50_u8 {
        let mut reads = BTreeMap::new();
        for block in 0..8_u64 {
            let offset = block * 4096;
            disk.submit(Lane::Bulk, Op::Write { file, offset, data: filled(4096, round), durable: false });
            reads.insert(disk.submit(Lane::Bulk, Op::Read { file, offset, len: 4096 }), round);
        }
        let sync = disk.submit(Lane::Bulk, Op::Sync { file });
        let mut seen = 0;
        while let Some(completion) = disk.wait() {
            seen += 1;
            match completion.result.expect("works") {
                Done::Read(data) => assert!(data.iter().all(|byte| *byte == reads[&completion.ticket])),
                Done::Unit => assert_eq!((completion.ticket, seen), (sync, 17), "the sync ends last"),
                _ => {}
            }
        }
        assert_eq!(seen, 17);
    }
    assert_eq!(disk.threads[Lane::Bulk as usize].len(), 4);
}

#[test]
fn the_waker_is_called_for_each_completion_of_a_thread() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&woken);
    let waker: Waker = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let options = FileDiskOptions { waker: Some(waker), ..FileDiskOptions::default() };
    let mut disk = FileDisk::open(directory.path(), options).expect("usable");
    for _ in 0..5 {
        disk.submit(Lane::Bulk, Op::List);
    }
    disk.kick();
    while disk.wait().is_some() {}
    drop(disk); // joins the threads, so the last call has been made
    assert_eq!(woken.load(Ordering::SeqCst), 5);
}

#[test]
fn dropping_does_what_was_submitted() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut disk = disk_in(directory.path());
    for number in 0..8 {
        disk.submit(Lane::Bulk, Op::Create { name: format!("seg-{number}"), len: 4096 });
    }
    drop(disk);
    assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 8);
}

#[test]
fn a_read_only_disk_reads_and_refuses_the_rest() {
    let directory = tempfile::tempdir().expect("temporary directory");
    fs::write(directory.path().join("seg-1"), [7; 4096]).expect("written");
    let options = FileDiskOptions { read_only: true, create: true, ..FileDiskOptions::default() };
    let mut disk = FileDisk::open(directory.path(), options.clone()).expect("usable");
    let mut run = |op| run_in(&mut disk, Way::Inline, Lane::Bulk, op);
    let (file, _) = opened(run(Op::Open { name: "seg-1".into() }));
    assert!(matches!(run(Op::Read { file, offset: 0, len: 4096 }), Ok(Done::Read(data)) if data[0] == 7));
    let write = Op::Write { file, offset: 0, data: filled(4096, 1), durable: true };
    for op in [write, Op::Sync { file }, Op::SyncNames, Op::Remove { name: "seg-1".into() }] {
        assert_eq!(kind(run(op)), DiskErrorKind::ReadOnly);
    }
    let missing = FileDisk::open(directory.path().join("missing"), options);
    assert!(matches!(missing, Err(OpenDiskError::Unusable { .. })), "nothing is created");
}

#[test]
fn directories_are_made_on_request() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let deep = directory.path().join("a/b/c");
    assert!(FileDisk::open(&deep, FileDiskOptions::default()).is_err());
    FileDisk::open(&deep, FileDiskOptions { create: true, ..FileDiskOptions::default() }).expect("made");
    assert!(deep.is_dir());
}

#[test]
fn misaligned_direct_operations_name_the_rule() {
    let directory = on_disk();
    let mut disk = disk_in(directory.path());
    let mut run = |op| run_in(&mut disk, Way::Inline, Lane::Bulk, op);
    let (file, _) = opened(run(Op::Create { name: "seg-1".into(), len: 8192 }));
    let error = run(Op::Read { file, offset: 100, len: 4096 }).expect_err("misaligned");
    assert!(error.detail.contains("whole blocks"), "{error}");
}

#[test]
fn two_directories_of_one_disk_are_worth_a_warning() {
    let (one, other) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
    let warning = mirror_warning(one.path(), other.path()).expect("both exist").expect("one disk");
    assert!(warning.to_string().contains("one disk"), "{warning}");
}

const FULL: &str = "RALLYPOINT_TEST_FULL_DISK";

/// Not a test of its own: the process of the test below, in which no file may exceed 1 MiB.
#[test]
fn child_meets_a_full_disk() {
    let Some(directory) = std::env::var_os(FULL) else { return };
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: plain calls without memory; this process runs nothing else.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
    }
    let mut disk = disk_in(Path::new(&directory));
    let mut run = |op| run_in(&mut disk, Way::Inline, Lane::Commit, op);
    let create = |name: &str, len| Op::Create { name: name.into(), len };
    assert_eq!(kind(run(create("seg-big", 2 << 20))), DiskErrorKind::NoSpace);
    assert!(matches!(run(Op::List), Ok(Done::Names(names)) if names.is_empty()), "nothing is left behind");
    for name in ["seg-1", "events-0"] {
        let (file, _) = opened(run(create(name, 1 << 20)));
        let write = |offset| Op::Write { file, offset, data: filled(4096, 1), durable: true };
        assert!(run(write(0)).is_ok());
        assert_eq!(kind(run(write(1 << 20))), DiskErrorKind::NoSpace);
        let error = run(write(0)).expect_err("sticky");
        assert!(error.kind == DiskErrorKind::NoSpace && error.detail.contains("earlier"), "{error}");
        assert_eq!(kind(run(Op::Sync { file })), DiskErrorKind::NoSpace);
        unit(run(Op::Close { file }));
        let (file, _) = opened(run(Op::Open { name: name.into() }));
        assert_eq!(kind(run(Op::Sync { file })), DiskErrorKind::NoSpace, "opening again heals nothing");
        assert!(matches!(run(Op::Read { file, offset: 0, len: 4096 }), Ok(Done::Read(data)) if data[0] == 1));
        unit(run(Op::Close { file }));
        unit(run(Op::Remove { name: name.into() }));
        let (file, _) = opened(run(create(name, 4096)));
        unit(run(Op::Sync { file }));
    }
    println!("\nfull disk met");
}

#[test]
fn a_full_disk_is_told_as_such_and_the_file_stays_failed() {
    let directory = on_disk();
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "os::file_disk::tests::child_meets_a_full_disk", "--nocapture"])
        .env(FULL, directory.path())
        .output()
        .expect("the test program starts again");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("full disk met"), "{text}");
}

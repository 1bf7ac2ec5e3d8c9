//! The bare disk: what this machine can do at most, by the same calls as the journal makes.
//!
//! Decides nothing; each yardstick is a loop around one system call on buffers that were made
//! before. Never goes through [`FileDisk`], whose cost is part of
//! what is judged (except where the two ways of that disk are compared).

use super::report::{Row, median, quantile};
use crate::os::file_disk::{FileDisk, FileDiskOptions};
use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::limits::BLOCK;
use rallypoint_store::disk::{Disk, Done, FileId, Lane, Op};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// A file whose every byte was written before, open for durable direct writes.
#[derive(Debug)]
pub struct BareFile {
    file: File,
    len: u64,
    at: u64,
}

impl BareFile {
    /// Makes the file (replacing one of that name), `len` bytes rounded down to whole MiB, at
    /// least one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        let mut fill = open_direct(path, 0, true)?;
        let len = (len / MIB as u64).max(1) * MIB as u64;
        fill_file(&mut fill, len, MIB)?;
        Ok(Self { file: open_direct(path, libc::O_DSYNC, false)?, len, at: 0 })
    }

    /// One durable write of whole blocks behind the last one; at the end of the file from the start.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn commit(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.at + bytes.len() as u64 > self.len {
            self.at = 0;
        }
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Opens for reading and writing, `O_DIRECT` where the file system allows it.
fn open_direct(path: &Path, flags: i32, create: bool) -> io::Result<File> {
    let with = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(create)
            .custom_flags(flags)
            .open(path)
    };
    match with(flags | libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => with(flags),
        result => result,
    }
}

fn fill_file(file: &mut File, len: u64, piece: usize) -> io::Result<()> {
    let bytes = pattern(piece);
    let mut at = 0;
    while at < len {
        let now = bytes.len().min((len - at) as usize);
        file.write_all_at(&bytes[..now], at)?;
        at += now as u64;
    }
    file.sync_data()
}

/// Bytes that no disk can shorten to nothing.
#[must_use]
pub fn pattern(len: usize) -> AlignedBuffer {
    let mut random = rallypoint_base::random::Random::new(len as u64);
    let mut buffer = AlignedBuffer::zeroed(len);
    for chunk in buffer.chunks_mut(8) {
        chunk.copy_from_slice(&random.next_u64().to_le_bytes()[..chunk.len()]);
    }
    buffer
}

/// The bare commit loop over one file, or over two at once: one by the calling thread, the other
/// by a standing thread, as the mirrored journal does.
#[derive(Debug)]
pub struct BareLoop {
    here: BareFile,
    there: Option<Partner>,
    bytes: AlignedBuffer,
}

#[derive(Debug)]
struct Partner {
    start: Option<Sender<()>>,
    done: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl BareLoop {
    /// A loop that writes commits of `padded` bytes (whole blocks) to one file in each directory
    /// (one or two).
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(directories: &[PathBuf], padded: usize, file_len: u64) -> io::Result<Self> {
        let bytes = pattern(padded.next_multiple_of(BLOCK));
        let mut files = Vec::new();
        for directory in directories {
            files.push(BareFile::create(&directory.join("bare"), file_len.max(4 * bytes.len() as u64))?);
        }
        let mut files = files.into_iter();
        let here = files.next().ok_or_else(|| io::Error::other("no directory to measure in"))?;
        let there = files.next().map(|file| Partner::start(file, bytes.clone()));
        Ok(Self { here, there, bytes })
    }

    /// One commit, durable in every file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn commit(&mut self) -> io::Result<()> {
        let Some(partner) = &self.there else { return self.here.commit(&self.bytes) };
        if let Some(start) = &partner.start {
            start.send(()).map_err(io::Error::other)?;
        }
        self.here.commit(&self.bytes)?;
        partner.done.recv().map_err(io::Error::other)?
    }

    /// Commits for about this long; gives what each took, in microseconds.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn times(&mut self, time: Duration) -> io::Result<Vec<f64>> {
        let (started, mut times) = (Instant::now(), Vec::new());
        while started.elapsed() < time {
            let before = Instant::now();
            self.commit()?;
            times.push(before.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    /// Commits for about this long; gives commits per second.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn slice(&mut self, time: Duration) -> io::Result<f64> {
        let started = Instant::now();
        let mut commits = 0_u32;
        while started.elapsed() < time {
            self.commit()?;
            commits += 1;
        }
        Ok(f64::from(commits) / started.elapsed().as_secs_f64())
    }
}

impl Partner {
    fn start(mut file: BareFile, bytes: AlignedBuffer) -> Self {
        let (start, started) = channel();
        let (ended, done) = channel();
        let thread = thread::spawn(move || {
            while started.recv().is_ok() {
                if ended.send(file.commit(&bytes)).is_err() {
                    return;
                }
            }
        });
        Self { start: Some(start), done, thread: Some(thread) }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.start = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One durable overwrite of 4 KiB through a [`FileDisk`]: run by the calling thread (`wait` at
/// once), or by the standing thread.
#[derive(Debug)]
pub struct DiskLoop {
    disk: FileDisk,
    file: FileId,
    at: u64,
    buffer: Option<AlignedBuffer>,
}

impl DiskLoop {
    const LEN: u64 = 16 << 20;

    /// Makes a file in this directory, which must not have one of that name.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let mut disk = FileDisk::open(directory, FileDiskOptions::default()).map_err(io::Error::other)?;
        disk.submit(Lane::Commit, Op::Create { name: "seg-latency".into(), len: Self::LEN });
        match next(&mut disk)? {
            Done::Opened { file, .. } => Ok(Self { disk, file, at: 0, buffer: Some(pattern(BLOCK)) }),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// One write.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn commit(&mut self, by_thread: bool) -> io::Result<()> {
        self.at = (self.at + BLOCK as u64) % Self::LEN;
        let data = self.buffer.take().unwrap_or_default();
        self.disk.submit(Lane::Commit, Op::Write { file: self.file, offset: self.at, data, durable: true });
        if by_thread {
            self.disk.kick();
        }
        match next(&mut self.disk)? {
            Done::Wrote(buffer) => self.buffer = Some(buffer),
            other => return Err(io::Error::other(format!("{other:?}"))),
        }
        Ok(())
    }
}

fn next(disk: &mut FileDisk) -> io::Result<Done> {
    let completion = disk.wait().ok_or_else(|| io::Error::other("nothing was outstanding"))?;
    completion.result.map_err(io::Error::other)
}

/// Repeats a step for about this long; the time of each in microseconds.
fn timed(time: Duration, mut step: impl FnMut() -> io::Result<()>) -> io::Result<Vec<f64>> {
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < time {
        let before = Instant::now();
        step()?;
        times.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

/// Reads whole files `O_DIRECT`, eight pieces of 1 MiB at a time; gives bytes and time.
///
/// # Errors
/// What the operating system says.
pub fn parallel_read(files: &[PathBuf]) -> io::Result<(u64, Duration)> {
    const DEPTH: usize = 8;
    let mut pieces = Vec::new();
    for path in files {
        let file = std::sync::Arc::new(open_reading(path)?);
        let len = file.metadata()?.len();
        pieces.extend(
            (0..len.div_ceil(MIB as u64)).map(|piece| (std::sync::Arc::clone(&file), piece * MIB as u64)),
        );
    }
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let read = || -> io::Result<u64> {
        let mut buffer = AlignedBuffer::zeroed(MIB);
        let mut bytes = 0;
        while let Some((file, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            bytes += file.read_at(&mut buffer, *at)? as u64;
        }
        Ok(bytes)
    };
    let total: io::Result<u64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..DEPTH).map(|_| scope.spawn(read)).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|read| read.unwrap_or_else(|_| Err(io::Error::other("a reading thread panicked")))).sum()
    });
    Ok((total?, started.elapsed()))
}

fn open_reading(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => File::open(path),
        result => result,
    }
}

/// Writes a new file of `len` bytes in pieces of 256 KiB and syncs it, as a checkpoint is written.
/// The file stays, and each call makes another: freeing its space would slow down what is measured
/// next (on ext4 mounted with `discard`, by 10 ms and more per 64 MiB).
///
/// # Errors
/// What the operating system says.
pub fn sequential_write(directory: &Path, len: u64) -> io::Result<Duration> {
    let mut number = 0;
    let path = loop {
        let path = directory.join(format!("bare-sequential-{number}"));
        if !path.exists() {
            break path;
        }
        number += 1;
    };
    let mut file = open_direct(&path, 0, true)?;
    let started = Instant::now();
    fill_file(&mut file, len, MIB / 4)?;
    Ok(started.elapsed())
}

/// What fio says about durable direct overwrites of 4 KiB: median in microseconds and writes per
/// second. `None` when there is no fio, or an old one that does not know the options.
#[must_use]
pub fn fio(directory: &Path, time: Duration) -> Option<(f64, f64)> {
    let path = directory.join("bare-fio");
    BareFile::create(&path, 64 << 20).ok()?;
    let output = Command::new("fio")
        .args(["--name=overwrite", "--rw=write", "--bs=4k", "--direct=1", "--sync=dsync"])
        .args(["--ioengine=psync", "--overwrite=1", "--size=64m", "--time_based", "--output-format=json"])
        .arg(format!("--runtime={}", time.as_secs().max(1)))
        .arg(format!("--filename={}", path.display()))
        .output();
    let value: serde_json::Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
    let write = &value["jobs"][0]["write"];
    let median = write["clat_ns"]["percentile"]["50.000000"].as_f64()?;
    Some((median / 1000.0, write["iops"].as_f64()?))
}

/// The yardsticks as rows: latency of one durable write by each way and by fio (when there is time
/// for it), and writing `len` bytes.
///
/// # Errors
/// What the operating system says.
pub fn rows(directory: &Path, time: Duration, len: u64) -> io::Result<Vec<Row>> {
    // In turns, so that all ways meet the same machine.
    const TURNS: u32 = 16;
    let slice = time / TURNS / 3;
    let mut bare_loop = BareLoop::new(&[directory.to_owned()], BLOCK, DiskLoop::LEN)?;
    let mut disk = DiskLoop::new(directory)?;
    let (mut bare, mut inline, mut thread) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.extend(timed(slice, || bare_loop.commit())?);
        inline.extend(timed(slice, || disk.commit(false))?);
        thread.extend(timed(slice, || disk.commit(true))?);
    }
    let limit = median(&bare);
    let beside = |case: &str, times: &[f64]| {
        Row::beside(case, median(times), "us", limit, median(times) / limit, None)
    };
    let mut rows = vec![
        Row::plain("bare durable write of 4 KiB, p50", limit, "us"),
        Row::plain("bare durable write of 4 KiB, p99", quantile(&bare, 0.99), "us"),
        beside("the same by the calling thread of the disk, p50", &inline),
        beside("the same by the standing thread of the disk, p50", &thread),
    ];
    // fio measures no less than a second.
    if time > Duration::from_secs(1)
        && let Some((median, _)) = fio(directory, Duration::from_secs(2))
    {
        rows.push(Row::beside("bare write of 4 KiB by fio, p50", median, "us", limit, median / limit, None));
    }
    let seconds = sequential_write(directory, len)?.as_secs_f64();
    rows.push(Row::plain("bare sequential write in 256 KiB", len as f64 / 1e6 / seconds, "MB/s"));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn the_yardsticks_measure_something() {
        let one = tempfile::tempdir().expect("made");
        let other = tempfile::tempdir().expect("made");
        let directories = [one.path().to_owned(), other.path().to_owned()];
        for count in [1, 2] {
            let mut bare = BareLoop::new(&directories[..count], 5000, 1 << 20).expect("opened");
            assert!(bare.slice(SHORT).expect("written") > 0.0);
        }
        let (bytes, _) = parallel_read(&directories.map(|directory| directory.join("bare"))).expect("read");
        assert_eq!(bytes, 2 << 20);
        sequential_write(one.path(), 1 << 20).expect("written");
        let mut disk = DiskLoop::new(one.path()).expect("opened");
        for by_thread in [false, true] {
            disk.commit(by_thread).expect("written");
        }
    }

    #[test]
    fn a_bare_file_is_written_round_and_round() {
        let directory = tempfile::tempdir().expect("made");
        let mut file = BareFile::create(&directory.path().join("f"), 0).expect("made");
        let bytes = pattern(3 * BLOCK);
        for _ in 0..200 {
            file.commit(&bytes).expect("written");
        }
        assert_eq!(file.file.metadata().expect("there").len(), 1 << 20);
    }
}

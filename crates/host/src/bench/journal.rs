//! `rallypoint bench journal`: the journal beside the bare disk.
//!
//! Decides which cases: small, middle and large commits, one copy and two; and opening with a full
//! replay beside reading the same bytes bare. Never keeps a file it made.
//!
//! How the journal is driven is how a loaded host drives it: a small commit is run by the calling
//! thread, since the next one could not be filled in less time than a hop to another thread takes;
//! a large one is handed over, and the next one is filled meanwhile ([`OVERLAP`]). Records are given
//! up as checkpoints would give them up, so that segments are used again instead of made.

use super::raw::{self, BareLoop};
use super::report::{Must, Report, Row, median};
use crate::os::file_disk::{FileDisk, FileDiskOptions};
use crate::os::machine::Machine;
use rallypoint_base::id::{DirectoryId, Epoch, Lineage, LogId, Position, StoreId};
use rallypoint_store::record::Record;
use rallypoint_store::store::{Identity, OpenOptions, Options, Store, StoreEvent};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// From this size on a commit is handed to the disk's thread and the next one filled meanwhile.
pub const OVERLAP: usize = 256 << 10;

/// Bytes of records after which those before are given up.
const KEPT: u64 = 16 << 20;

/// What part of the bare rate the journal must reach.
const RATE: Must = Must::AtLeast(0.85);
/// How much longer than reading the bytes an opening with replay may take.
const REPLAY: Must = Must::AtMost(1.2);

/// How to run the bench.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it a second one beside the first is used.
    pub mirror: Option<PathBuf>,
    /// Time for each case.
    pub time: Duration,
    /// Bytes of records to replay; 0 leaves it out.
    pub replay: u64,
    /// Bytes of a journal segment; the bare files are measured by it too.
    pub segment_len: u64,
}

impl Settings {
    /// The default: well below two minutes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self { directory, mirror: None, time: Duration::from_secs(6), replay: 1 << 30, segment_len: 64 << 20 }
    }
}

/// A commit of the bench: so many records of so many bytes.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    records: usize,
    len: usize,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "100 B x 64", records: 64, len: 100 },
    Shape { name: "1 KiB x 64", records: 64, len: 1024 },
    Shape { name: "1 KiB x 1024", records: 1024, len: 1024 },
];

/// Runs everything.
///
/// # Errors
/// What the operating system or the store says.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut area = Area::new(settings)?;
    let mut rows = raw::rows(&area.place(1)?[0], settings.time, 4 * settings.segment_len)?;
    for copies in [1, 2] {
        for shape in SHAPES {
            rows.push(rate(&area.place(copies)?, shape, settings)?);
        }
    }
    if settings.replay > 0 {
        for copies in [1, 2] {
            rows.push(replay(&area.place(copies)?, settings)?);
        }
    }
    let machine = Machine::of(&settings.directory);
    Ok(Report { bench: "journal".to_owned(), machine, rows })
}

/// The directories that the bench makes. Each case gets new ones, and all are removed at the end
/// and not before: on a file system mounted with `discard` the disk is busy for seconds after a
/// removal, and the next case would measure that.
struct Area {
    copies: [PathBuf; 2],
    places: u32,
}

impl Area {
    fn new(settings: &Settings) -> io::Result<Self> {
        let name = format!("rallypoint-bench-{}", std::process::id());
        let first = settings.directory.join(&name);
        let second = settings.mirror.as_ref().unwrap_or(&settings.directory).join(name + "-mirror");
        let area = Self { copies: [first, second], places: 0 };
        for directory in &area.copies {
            fs::create_dir_all(directory)?;
        }
        Ok(area)
    }

    /// New directories for one case, as many as it has copies.
    fn place(&mut self, copies: usize) -> io::Result<Vec<PathBuf>> {
        self.places += 1;
        let places = self.copies[..copies].iter().map(|copy| copy.join(format!("case-{}", self.places)));
        let places: Vec<PathBuf> = places.collect();
        for place in &places {
            fs::create_dir(place)?;
        }
        Ok(places)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        for directory in &self.copies {
            // What cannot be removed here could not be removed better elsewhere.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

fn disks(directories: &[PathBuf]) -> io::Result<Vec<FileDisk>> {
    let open = |directory: &PathBuf| {
        FileDisk::open(
            directory.join("store"),
            FileDiskOptions { create: true, ..FileDiskOptions::default() },
        )
        .map_err(io::Error::other)
    };
    directories.iter().map(open).collect()
}

fn create(directories: &[PathBuf], segment_len: u64) -> io::Result<Store<FileDisk>> {
    let identity = Identity {
        store: StoreId(7),
        lineage: Lineage(1),
        directory: DirectoryId(0),
        copies: directories.len() as u8,
        meta: Vec::new(),
    };
    let options = Options { spare_segments: 2, segment_len, ..Options::default() };
    Store::create(disks(directories)?, identity, options).map_err(io::Error::other)
}

/// A store that is written to as fast as it can.
struct Writer {
    store: Store<FileDisk>,
    shape: Shape,
    payload: Vec<u8>,
    position: Position,
    /// Records below are given up; none when everything is kept.
    low: Option<Position>,
}

impl Writer {
    fn new(directories: &[PathBuf], shape: Shape, recycle: bool, segment_len: u64) -> io::Result<Self> {
        let payload = raw::pattern(shape.len).to_vec();
        let low = recycle.then_some(Position(0));
        Ok(Self { store: create(directories, segment_len)?, shape, payload, position: Position(0), low })
    }

    fn fill(&mut self) -> io::Result<()> {
        for _ in 0..self.shape.records {
            self.position = self.position.next();
            let record = Record {
                log: LogId(1),
                position: self.position,
                epoch: Epoch(1),
                kind: 1,
                schema: 1,
                payload: &self.payload,
            };
            self.store.append(&record).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn until_durable(&mut self) -> io::Result<()> {
        while self.store.in_flight().is_some() {
            match self.store.wait() {
                Some(StoreEvent::Failed(error) | StoreEvent::Full(error)) => {
                    return Err(io::Error::other(error));
                }
                Some(_) => {}
                None => return Err(io::Error::other("the store waits for nothing")),
            }
        }
        Ok(())
    }

    /// Writes commits until the time is over; gives commits per second.
    fn slice(&mut self, time: Duration) -> io::Result<f64> {
        let started = Instant::now();
        let mut commits = 0_u32;
        while started.elapsed() < time {
            self.commit()?;
            commits += 1;
        }
        self.until_durable()?;
        Ok(f64::from(commits) / started.elapsed().as_secs_f64())
    }

    fn commit(&mut self) -> io::Result<()> {
        self.fill()?;
        self.until_durable()?;
        if let Some(low) = &mut self.low
            && (self.position.0 - low.0) * self.shape.len as u64 > KEPT
        {
            *low = self.position;
            self.store.cut(LogId(1), *low);
        }
        let bytes = self.store.pending_bytes();
        self.store.commit();
        if bytes >= OVERLAP {
            // Hands it over; what happened is taken by the next wait.
            self.store.copies().start();
            Ok(())
        } else {
            self.until_durable()
        }
    }

    /// How many bytes one commit writes, framing and padding included.
    fn padded(&mut self) -> io::Result<usize> {
        // The second one, which also says what the first one held.
        let mut before = 0;
        for _ in 0..2 {
            before = self.store.status().bytes;
            self.commit()?;
            self.until_durable()?;
        }
        Ok((self.store.status().bytes - before) as usize)
    }
}

/// The journal's rate beside that of the bare loop with commits of the same size, in turns.
fn rate(directories: &[PathBuf], shape: Shape, settings: &Settings) -> io::Result<Row> {
    const TURNS: u32 = 24;
    let mut writer = Writer::new(directories, shape, true, settings.segment_len)?;
    let padded = writer.padded()?;
    let mut bare = BareLoop::new(directories, padded, 2 * settings.segment_len)?;
    let slice = settings.time / TURNS / 2;
    let (mut rates, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        // Who goes first changes, so that neither always follows the other's burst.
        let (rate, limit) = if turn % 2 == 0 {
            let rate = writer.slice(slice)?;
            (rate, bare.slice(slice)?)
        } else {
            let limit = bare.slice(slice)?;
            (writer.slice(slice)?, limit)
        };
        rates.push(rate);
        limits.push(limit);
        ratios.push(rate / limit);
    }
    let thousand = shape.records as f64 / 1000.0;
    let case = format!("{}, {}, {} KiB written", shape.name, copies(directories), padded / 1024);
    let (value, limit) = (median(&rates) * thousand, median(&limits) * thousand);
    Ok(Row::beside(case, value, "thousand records/s", limit, median(&ratios), Some(RATE)))
}

fn copies(directories: &[PathBuf]) -> &'static str {
    if directories.len() == 1 { "one copy" } else { "two copies" }
}

/// Opening with a replay of every record beside reading the same segments bare, in turns.
fn replay(directories: &[PathBuf], settings: &Settings) -> io::Result<Row> {
    const TURNS: usize = 5;
    let shape = SHAPES[2];
    let mut writer = Writer::new(directories, shape, false, settings.segment_len)?;
    let records = settings.replay / shape.len as u64;
    while writer.position.0 < records {
        writer.commit()?;
    }
    writer.until_durable()?;
    let written = writer.position.0;
    drop(writer); // left as a crash leaves it: nothing is said to the store
    let files: Vec<PathBuf> = directories
        .iter()
        .map(|directory| segments(&directory.join("store")))
        .collect::<io::Result<Vec<_>>>()?
        .concat();
    let (mut times, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let (_, limit) = raw::parallel_read(&files)?;
        let time = open(directories, written)?;
        times.push(time.as_secs_f64());
        limits.push(limit.as_secs_f64());
        ratios.push(time.as_secs_f64() / limit.as_secs_f64());
    }
    let case = format!("open and replay {} MiB, {}", settings.replay >> 20, copies(directories));
    Ok(Row::beside(case, median(&times), "s", median(&limits), median(&ratios), Some(REPLAY)))
}

fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("seg-") {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Opens, and looks at every record.
fn open(directories: &[PathBuf], written: u64) -> io::Result<Duration> {
    let started = Instant::now();
    let disks = disks(directories)?;
    let mounted = Store::mount(disks, OpenOptions::default()).map_err(io::Error::other)?;
    let mut seen = 0_u64;
    let mut sink = |record: &Record<'_>| -> Result<(), Infallible> {
        seen += u64::from(!record.payload.is_empty());
        Ok(())
    };
    let (store, report) =
        mounted.recover(&mut sink).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let time = started.elapsed();
    drop(store);
    if seen < written || !report.lost.is_empty() {
        return Err(io::Error::other(format!("{seen} of {written} records came back")));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_run_fills_every_row() {
        let directory = tempfile::tempdir().expect("made");
        let time = Duration::from_millis(200);
        let settings =
            Settings { time, replay: 4 << 20, segment_len: 4 << 20, ..Settings::new(directory.path()) };
        let report = run(&settings).expect("runs");
        let judged: Vec<_> = report.rows.iter().filter(|row| row.must.is_some()).collect();
        assert_eq!(judged.len(), 8, "{report}");
        assert!(
            judged.iter().all(|row| row.value > 0.0 && row.limit.is_some_and(|limit| limit > 0.0)),
            "{report}"
        );
        assert_eq!(fs::read_dir(directory.path()).expect("there").count(), 0, "nothing is left");
    }
}

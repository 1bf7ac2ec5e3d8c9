//! What a record costs in CPU: append and seal on a disk that completes at once, and recovery from
//! files in memory.
//! `cargo run --release -p rallypoint-host --example encode`

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "it measures time")]

use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::id::{DirectoryId, Epoch, Lineage, LogId, Position, StoreId};
use rallypoint_store::disk::{Completion, Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op, Ticket};
use rallypoint_store::record::Record;
use rallypoint_store::store::{Identity, OpenOptions, Options, Store};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Instant;

/// Gives every buffer back at once and remembers nothing.
#[derive(Default)]
struct Nowhere {
    next: u64,
    done: VecDeque<Completion>,
}

impl Disk for Nowhere {
    fn submit(&mut self, _: Lane, op: Op) -> Ticket {
        self.next += 1;
        let result = Ok(match op {
            Op::List => Done::Names(Vec::new()),
            Op::Open { .. } => Done::Opened { file: FileId(self.next as u32), len: 64 << 20 },
            Op::Create { len, .. } => Done::Opened { file: FileId(self.next as u32), len },
            Op::Read { len, .. } => Done::Read(AlignedBuffer::zeroed(len)),
            Op::Write { data, .. } => Done::Wrote(data),
            _ => Done::Unit,
        });
        self.done.push_back(Completion { ticket: Ticket(self.next), result });
        Ticket(self.next)
    }
    fn poll(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
    fn wait(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
    fn name(&self) -> &str {
        "nowhere"
    }
}

fn main() {
    appending();
    recovering();
}

fn appending() {
    let identity = Identity {
        store: StoreId(1),
        lineage: Lineage(1),
        directory: DirectoryId(0),
        copies: 1,
        meta: vec![],
    };
    println!(
        "{:>8} {:>8} {:>6} {:>6} {:>12} {:>12} {:>14}",
        "bytes", "records", "logs", "copies", "ns/record", "MB/s", "us to submit"
    );
    for copies in [1u8, 2] {
        for (bytes, per, logs) in
            [(100, 1, 1), (100, 64, 1), (100, 64, 16), (100, 1024, 16), (1024, 64, 1), (1024, 1024, 1)]
        {
            let disks = (0..copies).map(|_| Nowhere::default()).collect();
            let mut store = Store::create(disks, Identity { copies, ..identity.clone() }, Options::default())
                .expect("create");
            let payload = vec![7; bytes];
            let mut positions = vec![0u64; logs];
            let (mut best, mut submit) = (f64::MAX, f64::MAX);
            let rounds = 400_000 / per / (bytes / 100);
            for _ in 0..7 {
                let start = Instant::now();
                for _ in 0..rounds {
                    for n in 0..per {
                        let log = n % logs;
                        positions[log] += 1;
                        let record = Record {
                            log: LogId(log as u16),
                            position: Position(positions[log]),
                            epoch: Epoch(1),
                            kind: 1,
                            schema: 1,
                            payload: &payload,
                        };
                        store.append(&record).expect("append");
                    }
                    // What nobody can overlap: sealing, up to the submitted write.
                    let sealing = Instant::now();
                    store.commit().expect("commit");
                    submit = submit.min(sealing.elapsed().as_nanos() as f64 / 1000.0);
                    while store.in_flight().is_some() {
                        store.wait();
                    }
                }
                best = best.min(start.elapsed().as_nanos() as f64 / (rounds * per) as f64);
                for (log, position) in positions.iter().enumerate() {
                    store.cut(LogId(log as u16), Position(*position));
                }
            }
            println!(
                "{bytes:>8} {per:>8} {logs:>6} {copies:>6} {best:>12.1} {:>12.0} {submit:>14.2}",
                bytes as f64 * 1000.0 / best
            );
        }
    }
}

/// Files in memory.
#[derive(Default)]
struct Memory {
    next: u64,
    files: Vec<(String, Vec<u8>)>,
    done: VecDeque<Completion>,
}

impl Memory {
    fn find(&self, name: &str) -> Option<usize> {
        self.files.iter().position(|(n, _)| n == name)
    }
}

impl Disk for Memory {
    fn submit(&mut self, _: Lane, op: Op) -> Ticket {
        self.next += 1;
        let missing = |name: &str| DiskError {
            kind: DiskErrorKind::NotFound,
            operation: name.into(),
            detail: "no such file".into(),
        };
        let result = match op {
            Op::List => {
                Ok(Done::Names(self.files.iter().map(|(n, b)| (n.clone(), b.len() as u64)).collect()))
            }
            Op::Open { name } => match self.find(&name) {
                Some(at) => Ok(Done::Opened { file: FileId(at as u32), len: self.files[at].1.len() as u64 }),
                None => Err(missing(&name)),
            },
            Op::Create { name, len } => {
                self.files.push((name, vec![0; len as usize]));
                Ok(Done::Opened { file: FileId(self.files.len() as u32 - 1), len })
            }
            Op::Read { file, offset, len } => {
                let bytes = &self.files[file.0 as usize].1;
                let from = (offset as usize).min(bytes.len());
                Ok(Done::Read(AlignedBuffer::copy_of(&bytes[from..(from + len).min(bytes.len())])))
            }
            Op::Write { file, offset, data, .. } => {
                self.files[file.0 as usize].1[offset as usize..offset as usize + data.len()]
                    .copy_from_slice(&data);
                Ok(Done::Wrote(data))
            }
            _ => Ok(Done::Unit),
        };
        self.done.push_back(Completion { ticket: Ticket(self.next), result });
        Ticket(self.next)
    }
    fn poll(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
    fn wait(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
    fn name(&self) -> &str {
        "memory"
    }
}

/// Recovery of 256 MiB of records: CPU with the copying of the memory disk in it.
fn recovering() {
    for (copies, bytes) in [(1u8, 100usize), (1, 1024), (2, 1024)] {
        let disks = (0..copies).map(|_| Memory::default()).collect();
        let identity = Identity {
            store: StoreId(1),
            lineage: Lineage(1),
            directory: DirectoryId(0),
            copies,
            meta: vec![],
        };
        let mut store = Store::create(disks, identity, Options::default()).expect("create");
        let payload = vec![7; bytes];
        let count = (256 << 20) / bytes as u64;
        for n in 1..=count {
            let record = Record {
                log: LogId(1),
                position: Position(n),
                epoch: Epoch(1),
                kind: 1,
                schema: 1,
                payload: &payload,
            };
            store.append(&record).expect("append");
            if n % 1024 == 0 || n == count {
                store.commit();
                while store.in_flight().is_some() {
                    store.wait();
                }
            }
        }
        let disks = store.into_disks();
        let start = Instant::now();
        let mounted = Store::mount(disks, OpenOptions::default()).expect("mount");
        let mut records = 0u64;
        let recovered = mounted.recover::<Infallible>(&mut |_| {
            records += 1;
            Ok(())
        });
        assert!(recovered.is_ok() && records == count);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "recovery, {copies} copies, {bytes} bytes: {:.0} ns/record, {:.0} MB/s of payload",
            seconds * 1e9 / count as f64,
            (count * bytes as u64) as f64 / seconds / 1e6
        );
    }
}

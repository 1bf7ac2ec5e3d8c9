//! Writes to a journal and tells a ledger what is durable, for the power-cut test:
//! `journal_writer honest|lying LEDGER COMMITS DIRECTORY [MIRROR]`. The lying one says "durable"
//! before it is true, so that the test can show that it would be found out.

use rallypoint_base::id::{DirectoryId, Epoch, Lineage, LogId, Position, StoreId};
use rallypoint_host::os::file_disk::{FileDisk, FileDiskOptions, OpenDiskError};
use rallypoint_store::disk::{Completion, Disk, Lane, Op, Ticket};
use rallypoint_store::record::Record;
use rallypoint_store::store::{Identity, Options, Store};
use std::fs::File;
use std::io::{self, Write};

/// A disk that may take a durable write for one that need not be.
struct MaybeLying {
    disk: FileDisk,
    lies: bool,
}

impl Disk for MaybeLying {
    fn submit(&mut self, lane: Lane, op: Op) -> Ticket {
        let op = match op {
            Op::Write { file, offset, data, durable } if lane == Lane::Commit => {
                Op::Write { file, offset, data, durable: durable && !self.lies }
            }
            op => op,
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

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [honesty, ledger, commits, directories @ ..] = &arguments[..] else {
        return Err(io::Error::other("usage: journal_writer honest|lying LEDGER COMMITS DIRECTORY [MIRROR]"));
    };
    let mut ledger = File::options().create(true).append(true).open(ledger)?;
    let commits: u64 = commits.parse().map_err(io::Error::other)?;
    let options = FileDiskOptions { create: true, ..FileDiskOptions::default() };
    let lies = honesty == "lying";
    let open = |directory| Ok(MaybeLying { disk: FileDisk::open(directory, options.clone())?, lies });
    let disks = directories.iter().map(open);
    let disks: Vec<MaybeLying> = disks.collect::<Result<_, OpenDiskError>>().map_err(io::Error::other)?;
    let identity = Identity {
        store: StoreId(7),
        lineage: Lineage(1),
        directory: DirectoryId(0),
        copies: disks.len() as u8,
        meta: Vec::new(),
    };
    let options = Options { segment_len: 128 << 10, ..Options::default() };
    let mut store = Store::create(disks, identity, options).map_err(io::Error::other)?;
    say(&mut ledger, "created 0")?;
    let mut position = Position(0);
    for commit in 0..commits {
        // Commits of one to several blocks.
        for _ in 0..=commit % 40 {
            position = position.next();
            let payload = position.0.to_le_bytes().repeat(25);
            let (log, epoch) = (LogId(1), Epoch(1));
            let record = Record { log, position, epoch, kind: 1, schema: 1, payload: &payload };
            store.append(&record).map_err(io::Error::other)?;
        }
        store.commit();
        while store.in_flight().is_some() && store.wait().is_some() {}
        say(&mut ledger, &format!("durable {}", position.0))?;
        if commit % 30 == 29 {
            let low = Position(position.0 - 20);
            // Said before it is done: from here on the records below may be gone.
            say(&mut ledger, &format!("cut {}", low.0))?;
            store.cut(LogId(1), low);
        }
    }
    Ok(())
}

/// One line, one write.
fn say(ledger: &mut File, line: &str) -> io::Result<()> {
    ledger.write_all(format!("{line}\n").as_bytes())
}

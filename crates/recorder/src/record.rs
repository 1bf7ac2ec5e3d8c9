//! The layout of one record in a record file: a fixed head, a path or two, data.
//!
//! Decides only the bytes. Encoding allocates nothing, since it runs inside the program under test.
//! Invariant: a record is written with one call to a file opened for appending, so only the last
//! one of a process that was killed can be incomplete.

/// Length of the fixed part.
pub const HEAD: usize = 72;
const MAGIC: u32 = u32::from_le_bytes(*b"RREC");

/// Environment: the directory whose files are recorded.
pub const ENV_DIR: &str = "RALLYPOINT_RECORD_DIR";
/// Environment: the directory that takes the record files.
pub const ENV_OUT: &str = "RALLYPOINT_RECORD_OUT";
/// Environment: a file outside of the recorded directory whose writes are recorded as a ledger.
pub const ENV_LEDGER: &str = "RALLYPOINT_RECORD_LEDGER";
/// Environment: `nth,errno`: the nth write below the directory fails (counted over all processes
/// that share [`ENV_OUT`]).
pub const ENV_FAIL_WRITE: &str = "RALLYPOINT_FAIL_WRITE";
/// Environment: `nth` or `nth,errno`: the nth sync below the directory fails.
pub const ENV_FAIL_SYNC: &str = "RALLYPOINT_FAIL_SYNC";
/// Environment: only files whose path contains this text are counted and fail.
pub const ENV_FAIL_NAME: &str = "RALLYPOINT_FAIL_NAME";
/// Name of the file with the shared counters, in [`ENV_OUT`].
pub const ORDER_NAME: &str = "order";
/// How the names of record files end.
pub const RECORD_SUFFIX: &str = ".record";

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An open file and its path: which inode is what.
    Known = 1,
    /// Begin of an open that may create or cut: path.
    Create,
    /// Begin of a write: inode, offset, length, data (none when all zeroes).
    Write,
    /// Begin of a change of length: inode, length.
    Truncate,
    /// Begin of an allocation: inode, offset, length; the mode stands in `result`.
    Allocate,
    /// Begin of a sync: inode; with the path for a directory.
    Sync,
    /// Begin of a renaming: inode, both paths separated by a zero byte.
    Rename,
    /// Begin of a removal: path.
    Remove,
    /// Begin of making a directory: path.
    MakeDirectory,
    /// Begin of removing a directory: path.
    RemoveDirectory,
    /// Begin of a send to a socket or pipe: length and the first bytes.
    Send,
    /// Begin of a write to the ledger: data.
    Ledger,
    /// End of the operation that began at `of`: result (negative: the error number), inode, offset.
    End,
    /// What a process found in a file when it opened it, the note of which is `of`: inode, offset,
    /// length, data (none when all zeroes).
    Seen,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 14] = [
            Kind::Known,
            Kind::Create,
            Kind::Write,
            Kind::Truncate,
            Kind::Allocate,
            Kind::Sync,
            Kind::Rename,
            Kind::Remove,
            Kind::MakeDirectory,
            Kind::RemoveDirectory,
            Kind::Send,
            Kind::Ledger,
            Kind::End,
            Kind::Seen,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// The file is opened so that a completed write is durable.
pub const DURABLE: u8 = 1;
/// The data is all zeroes and left out.
pub const ZEROES: u8 = 2;
/// The inode is a directory.
pub const DIRECTORY: u8 = 4;
/// The open made the file.
pub const CREATED: u8 = 8;
/// The open cuts an existing file.
pub const CUTS: u8 = 16;

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the record tells.
    pub kind: Kind,
    /// [`DURABLE`] and the others.
    pub flags: u8,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Place in the global order, from 1.
    pub order: u64,
    /// For [`Kind::End`]: the order of the begin.
    pub of: u64,
    /// Which file.
    pub inode: u64,
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// What the call returned, or the negated error number.
    pub result: i64,
    /// Bytes of path that follow the head.
    pub path: u16,
    /// Bytes of data that follow the path.
    pub data: u32,
}

impl Head {
    /// A head of this kind with everything else zero.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            flags: 0,
            pid: 0,
            tid: 0,
            order: 0,
            of: 0,
            inode: 0,
            offset: 0,
            len: 0,
            result: 0,
            path: 0,
            data: 0,
        }
    }

    /// The bytes of the head.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[self.kind as u8, self.flags]);
        put(&self.path.to_le_bytes());
        put(&self.data.to_le_bytes());
        put(&self.pid.to_le_bytes());
        put(&self.tid.to_le_bytes());
        put(&[0; 4]);
        for field in [self.order, self.of, self.inode, self.offset, self.len] {
            put(&field.to_le_bytes());
        }
        put(&self.result.to_le_bytes());
        bytes
    }

    /// Reads a head; `None` when these bytes are none.
    #[must_use]
    pub fn decode(bytes: &[u8; HEAD]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if word(0) != MAGIC {
            return None;
        }
        Some(Self {
            kind: Kind::from_byte(bytes[4])?,
            flags: bytes[5],
            path: u16::from_le_bytes([bytes[6], bytes[7]]),
            data: word(8),
            pid: word(12),
            tid: word(16),
            order: long(24),
            of: long(32),
            inode: long(40),
            offset: long(48),
            len: long(56),
            result: long(64).cast_signed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_the_trip() {
        for byte in 0..=20 {
            let Some(kind) = Kind::from_byte(byte) else { continue };
            let head = Head {
                kind,
                flags: 3,
                pid: 7,
                tid: 8,
                order: 9,
                of: 10,
                inode: 11,
                offset: 12,
                len: 13,
                result: -14,
                path: 15,
                data: 16,
            };
            assert_eq!(Head::decode(&head.encode()), Some(head));
        }
        assert_eq!(Head::decode(&[0; HEAD]), None);
    }
}

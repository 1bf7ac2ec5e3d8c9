//! Ids and epochs as types of their own, so that no two of them can be swapped by accident.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The id after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id! {
    /// A group of actors that is logged, checkpointed and rolled back as one
    /// (the *process* of the literature).
    PartitionId(u16), "p"
}
id! {
    /// One of the journal directories of a store.
    DirectoryId(u16), "j"
}
/// One logical log inside a journal. Logs below [`PARTITIONS`](crate::limits::PARTITIONS) belong to the
/// partition of the same number; [`LogId::archive`] names what is put away of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u16);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.archived() {
            Some(partition) => write!(f, "the archive of {partition}"),
            None => write!(f, "log{}", self.0),
        }
    }
}

id! {
    /// Place of a record in its logical log, from 1, without gaps. 0 means "before the first".
    Position(u64), "@"
}
id! {
    /// Place of a commit in its journal, from 1, without gaps.
    CommitSeq(u64), "c"
}
id! {
    /// Number of a message on its channel, from 1, without gaps (`ssn` of the literature).
    Ssn(u64), "ssn"
}
id! {
    /// Version of a partition's checkpoint, from 1, never reused.
    Version(u64), "v"
}
id! {
    /// History of a journal directory since each rollback or change of membership; every opening
    /// counts as one. Only ever grows.
    Epoch(u32), "e"
}
id! {
    /// Version of the map from key slot to partition and from partition to directory.
    MapEpoch(u32), "m"
}
id! {
    /// Which use of a segment file a block belongs to; grows by one with each segment begun.
    Generation(u64), "g"
}
id! {
    /// A client's session: the unit of input deduplication.
    SessionId(u64), "s"
}
id! {
    /// Number of an input within its session, from 1.
    InputSeq(u64), "#"
}

impl LogId {
    /// The log of the directory itself: rollback epochs, recovery lines, program starts.
    pub const SYSTEM: Self = Self(u16::MAX);

    /// The name under which a partition's archive lies among the checkpoints. It has no records.
    #[must_use]
    pub const fn archive(partition: PartitionId) -> Self {
        Self(ARCHIVE | partition.0)
    }

    /// The partition whose archive this is, if it is one.
    #[must_use]
    pub const fn archived(self) -> Option<PartitionId> {
        if self.0 & !(ARCHIVE - 1) == ARCHIVE { Some(PartitionId(self.0 & (ARCHIVE - 1))) } else { None }
    }
}

/// Above every partition's number, below [`LogId::SYSTEM`].
const ARCHIVE: u16 = 0x4000;

impl From<PartitionId> for LogId {
    fn from(partition: PartitionId) -> Self {
        Self(partition.0)
    }
}

/// Identity of a store, drawn at random when it is created and never changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u64);

/// Identity of a store's history since it was created or restored from a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

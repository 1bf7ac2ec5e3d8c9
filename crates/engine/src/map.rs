//! The map: key -> slot -> partition -> journal directory.
//!
//! Decides where a key lives. Fixed when the store is created and kept in every superblock; every
//! frame carries its epoch, so that two processes with different maps notice.

use rallypoint_base::hash::key_slot;
use rallypoint_base::id::{DirectoryId, MapEpoch, PartitionId};
use rallypoint_base::limits::{DIRECTORIES, KEY_SLOTS, PARTITIONS};
use rallypoint_base::wire::{Malformed, Reader};
use thiserror::Error;

/// Where every key lives.
///
/// ```
/// use rallypoint_engine::map::Map;
/// let map = Map::even(4, 2, 7).unwrap();
/// assert!(map.partition_of("alice").0 < 4);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Changes when slots or partitions move.
    pub epoch: MapEpoch,
    /// Seed of the key hash.
    pub seed: u64,
    slots: Vec<PartitionId>,
    directories: Vec<DirectoryId>,
}

/// A map that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// Too many or no partitions.
    #[error("{0} partitions: a store has 1 to {PARTITIONS}")]
    Partitions(usize),
    /// Too many or no directories.
    #[error("{0} journal directories: a store has 1 to {DIRECTORIES}, and not more than partitions")]
    Directories(usize),
}

impl Map {
    /// Spreads the slots evenly over `partitions`, and these in turn over `directories`.
    ///
    /// # Errors
    /// [`MapError`] when the counts are out of range.
    pub fn even(partitions: usize, directories: usize, seed: u64) -> Result<Self, MapError> {
        if partitions == 0 || partitions > PARTITIONS {
            return Err(MapError::Partitions(partitions));
        }
        if directories == 0 || directories > DIRECTORIES || directories > partitions {
            return Err(MapError::Directories(directories));
        }
        let slots = (0..usize::from(KEY_SLOTS)).map(|slot| PartitionId((slot % partitions) as u16));
        let homes = (0..partitions).map(|partition| DirectoryId((partition % directories) as u16));
        Ok(Self { epoch: MapEpoch(1), seed, slots: slots.collect(), directories: homes.collect() })
    }

    /// Which partition holds actors with this key, of whatever kind.
    #[must_use]
    pub fn partition_of(&self, key: &str) -> PartitionId {
        self.slots[usize::from(key_slot(key.as_bytes(), self.seed))]
    }

    /// Which directory holds this partition; `None` when there is no such partition.
    #[must_use]
    pub fn directory_of(&self, partition: PartitionId) -> Option<DirectoryId> {
        self.directories.get(usize::from(partition.0)).copied()
    }

    /// All partitions, in order.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.directories.len() as u16).map(PartitionId)
    }

    /// How many journal directories there are.
    #[must_use]
    pub fn directory_count(&self) -> usize {
        self.directories.iter().map(|d| usize::from(d.0) + 1).max().unwrap_or(0)
    }

    /// The partitions of one directory, in order.
    pub fn partitions_in(&self, directory: DirectoryId) -> impl Iterator<Item = PartitionId> + '_ {
        self.partitions().filter(move |&p| self.directory_of(p) == Some(directory))
    }

    /// The bytes that stand in every superblock.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 2 * (self.slots.len() + self.directories.len()));
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.seed.to_le_bytes());
        out.extend_from_slice(&(self.directories.len() as u16).to_le_bytes());
        self.directories.iter().for_each(|d| out.extend_from_slice(&d.0.to_le_bytes()));
        self.slots.iter().for_each(|p| out.extend_from_slice(&p.0.to_le_bytes()));
        out
    }

    /// Reads what [`Map::encode`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are no map, or one that names what it does not have.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let epoch = MapEpoch(reader.u32("map epoch")?);
        let seed = reader.u64("map seed")?;
        let partitions = reader.u16("map partitions")?;
        let bad = |field| Malformed { field, offset: 0 };
        let mut directories = Vec::new();
        for _ in 0..partitions {
            directories.push(DirectoryId(reader.u16("map directory")?));
        }
        let mut slots = Vec::new();
        for _ in 0..KEY_SLOTS {
            slots.push(PartitionId(reader.u16("map slot")?));
        }
        if partitions == 0 || slots.iter().any(|p| p.0 >= partitions) {
            return Err(bad("map slot names no partition"));
        }
        if directories.iter().any(|d| usize::from(d.0) >= DIRECTORIES) {
            return Err(bad("map directory out of range"));
        }
        Ok(Self { epoch, seed, slots, directories })
    }
}

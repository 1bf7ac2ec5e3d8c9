//! Which copies are in sync, and how that is made durable.
//!
//! Decides who takes part in an opening, and in which order superblocks are written. Never reads a
//! journal block (recovery does).
//!
//! Invariants:
//! - Copy 0 holds a superblock change in all its slots before copy 1 gets the first one.
//! - A change of the in-sync set is durable on every copy that stays, before anything that rests on
//!   the smaller set is acknowledged. The timeline that this prevents: B's write fails, A alone
//!   acknowledges, A is lost, B opens and looks healthy, and the acknowledged records are gone.
//! - A copy outside the set is never read for records, whatever it holds.
//! - Two copies that exclude each other (both were opened `degraded`) are refused: neither epoch
//!   says which history somebody relies on.
//!
//! Source: Lampson and Sturgis 1979; docs/FORMAT.md 5; docs/FAULTS.md, rows 10, 12, 14, 15.

use crate::copies::{Copies, CopyIndex};
use crate::disk::{Disk, DiskError, DiskErrorKind, Done, FileId, Lane, Op};
use crate::error::StoreError;
use crate::superblock::{self, FILE, FILE_BYTES, SLOT_BYTES, SLOTS, SlotError, Slots, Superblock};
use rallypoint_base::id::Epoch;

/// How a copy that is not in sync came to be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outsider {
    /// It belongs to the store but was left behind.
    Stale {
        /// Its number.
        number: u8,
        /// The epoch it knows.
        epoch: Epoch,
    },
    /// It holds no superblock at all.
    Empty,
    /// Its superblock, or the directory, cannot be read.
    Unreadable(String),
}

/// The copies with what makes them a mirror.
#[derive(Debug)]
pub struct Mirror<D> {
    /// The disks. Outsiders are among them, taken out.
    pub copies: Copies<D>,
    /// The true number of each copy, by index in `copies`; `None` for an empty or unreadable one.
    pub numbers: Vec<Option<u8>>,
    /// The open superblock file of each.
    pub files: Vec<Option<FileId>>,
    /// The superblock as every slot of every in-sync copy holds it, or is about to.
    pub state: Superblock,
    /// Copies that were given but do not take part.
    pub outsiders: Vec<(CopyIndex, Outsider)>,
    /// Numbers of copies that the last membership names and that are absent.
    pub absent: Vec<u8>,
    /// Slots that were made equal at the mount.
    pub slots_repaired: usize,
}

enum Status {
    Empty,
    Bad(SlotError),
    Unreadable(DiskError),
    Sound(Superblock, usize),
}

struct Surveyed<D> {
    disk: D,
    file: Option<FileId>,
    status: Status,
}

fn survey<D: Disk>(disks: Vec<D>) -> Vec<Surveyed<D>> {
    let mut copies = Copies::new(disks);
    let found: Vec<_> = (0..copies.len())
        .map(|copy| match read_slots(&mut copies, copy) {
            Ok(None) => (None, Status::Empty),
            Ok(Some((file, Ok(Slots { best: Ok(best), differing })))) => {
                (Some(file), Status::Sound(best, differing.len()))
            }
            Ok(Some((file, Ok(Slots { best: Err(error), .. }) | Err(error)))) => {
                (Some(file), Status::Bad(error))
            }
            Err(error) => (None, Status::Unreadable(error)),
        })
        .collect();
    copies
        .into_disks()
        .into_iter()
        .zip(found)
        .map(|(disk, (file, status))| Surveyed { disk, file, status })
        .collect()
}

type ReadSlots = Option<(FileId, Result<Slots, SlotError>)>;

fn read_slots<D: Disk>(copies: &mut Copies<D>, copy: CopyIndex) -> Result<ReadSlots, DiskError> {
    let file = match copies.run(copy, Lane::Commit, Op::Open { name: FILE.into() }) {
        Ok(Done::Opened { file, .. }) => file,
        Ok(_) => return Err(protocol_error(FILE)),
        Err(error) if error.kind == DiskErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; FILE_BYTES];
    for slot in 0..SLOTS {
        let offset = slot * SLOT_BYTES;
        let read = Op::Read { file, offset: offset as u64, len: SLOT_BYTES };
        let piece = &mut bytes[offset..offset + SLOT_BYTES];
        match copies.run(copy, Lane::Commit, read) {
            Ok(Done::Read(data)) => {
                let len = data.len().min(SLOT_BYTES);
                piece[..len].copy_from_slice(&data[..len]);
            }
            // An unreadable slot is a torn one: the others decide.
            Ok(_) | Err(_) => piece.fill(0xBD),
        }
    }
    Ok(Some((file, superblock::judge(&bytes))))
}

pub(crate) fn protocol_error(name: &str) -> DiskError {
    DiskError {
        kind: DiskErrorKind::Io,
        operation: format!("operation on {name}"),
        detail: "the disk answered another kind of operation; this is a bug in the disk".into(),
    }
}

fn identity_text(state: &Superblock) -> String {
    format!("store {} lineage {} directory {}", state.store, state.lineage, state.directory)
}

fn names<'a, D: Disk + 'a>(disks: impl Iterator<Item = &'a D>) -> String {
    disks.map(|disk| disk.name().to_string()).collect::<Vec<_>>().join(" and ")
}

/// How to mount.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountRules {
    /// Write nothing at all.
    pub read_only: bool,
    /// Go on although a copy of the in-sync set is absent.
    pub degraded: bool,
    /// After a split brain: the number of the copy whose history counts.
    pub keep: Option<u8>,
}

impl<D: Disk> Mirror<D> {
    /// Reads the superblocks, decides who is in sync, and makes all their slots equal.
    ///
    /// # Errors
    /// [`StoreError`], one variant per reason to refuse.
    pub fn mount(disks: Vec<D>, rules: MountRules) -> Result<Self, StoreError> {
        let mut surveyed = survey(disks);
        let state = Self::choose(&surveyed, rules)?;
        surveyed.sort_by_key(|s| match &s.status {
            Status::Sound(found, _) => usize::from(found.copy),
            _ => usize::MAX,
        });
        let mut members = 0u8;
        let mut outsiders = Vec::new();
        let mut numbers = Vec::new();
        let mut differing = 0;
        for (index, s) in surveyed.iter().enumerate() {
            numbers.push(match &s.status {
                Status::Sound(found, _) => Some(found.copy),
                _ => None,
            });
            match &s.status {
                // A crash inside one update leaves a copy one epoch behind. One that is further
                // behind is an old image of itself, whatever the set says.
                Status::Sound(found, slots)
                    if state.has(found.copy) && found.epoch.0 + 1 >= state.epoch.0 =>
                {
                    members |= 1 << found.copy;
                    let same = Superblock { copy: found.copy, ..state.clone() } == *found;
                    differing += if same { *slots } else { SLOTS };
                }
                Status::Sound(found, _) => {
                    outsiders.push((index, Outsider::Stale { number: found.copy, epoch: found.epoch }));
                }
                Status::Empty => outsiders.push((index, Outsider::Empty)),
                Status::Bad(error) => outsiders.push((index, Outsider::Unreadable(error.to_string()))),
                Status::Unreadable(error) => {
                    outsiders.push((index, Outsider::Unreadable(error.to_string())));
                }
            }
        }
        if members == 0 {
            let stale = surveyed.iter().find_map(|s| match &s.status {
                Status::Sound(found, _) => Some((s.disk.name().to_string(), found.epoch.to_string())),
                _ => None,
            });
            let (place, epoch) = stale.unwrap_or_default();
            return Err(StoreError::Stale { place, epoch });
        }
        let absent: Vec<u8> =
            (0..8).filter(|&number| state.has(number) && members & (1 << number) == 0).collect();
        if let (Some(&absent), false) = (absent.first(), rules.degraded) {
            let present = surveyed.iter().filter(|s| matches!(s.status, Status::Sound(..)));
            return Err(StoreError::NeedsDegraded { absent, present: names(present.map(|s| &s.disk)) });
        }
        let files = surveyed.iter().map(|s| s.file).collect();
        let copies = Copies::new(surveyed.into_iter().map(|s| s.disk).collect());
        let mut mirror = Self { copies, numbers, files, state, outsiders, absent, slots_repaired: 0 };
        for at in 0..mirror.outsiders.len() {
            let index = mirror.outsiders[at].0;
            mirror.copies.take_out(index);
        }
        if differing > 0 && !rules.read_only {
            // Somebody may have seen the highest slot, so it is made to hold everywhere first.
            mirror.slots_repaired = differing;
            mirror.write_slots().map_err(|(copy, error)| mirror.disk_error(copy, error))?;
        }
        Ok(mirror)
    }

    fn choose(surveyed: &[Surveyed<D>], rules: MountRules) -> Result<Superblock, StoreError> {
        let places = || names(surveyed.iter().map(|s| &s.disk));
        let mut sound: Vec<(&D, &Superblock)> = Vec::new();
        for s in surveyed {
            match &s.status {
                Status::Bad(error @ (SlotError::Version { .. } | SlotError::Flags { .. })) => {
                    let place = s.disk.name().to_string();
                    return Err(StoreError::Version { place, error: error.clone() });
                }
                Status::Sound(found, _) => sound.push((&s.disk, found)),
                _ => {}
            }
        }
        let Some(&(first_disk, first)) = sound.first() else {
            let trouble = surveyed.iter().find_map(|s| match &s.status {
                Status::Bad(error @ SlotError::Damaged(_)) => Some(error.to_string()),
                Status::Unreadable(error) => Some(error.to_string()),
                _ => None,
            });
            return Err(match trouble {
                Some(detail) => StoreError::NoSuperblock { places: places(), detail },
                None if surveyed.iter().any(|s| matches!(s.status, Status::Bad(_))) => {
                    StoreError::Unfinished { places: places() }
                }
                None => StoreError::Missing { places: places() },
            });
        };
        for (at, &(disk, found)) in sound.iter().enumerate() {
            let same = (found.store, found.lineage, found.directory);
            if same != (first.store, first.lineage, first.directory) {
                return Err(StoreError::Foreign {
                    place: disk.name().into(),
                    found: identity_text(found),
                    other: first_disk.name().into(),
                    expected: identity_text(first),
                });
            }
            for &(other_disk, other) in &sound[..at] {
                let (place, other_place) = (disk.name().to_string(), other_disk.name().to_string());
                if found.copy == other.copy {
                    return Err(StoreError::SameCopy { place, other: other_place, copy: found.copy });
                }
                if !found.has(other.copy) && !other.has(found.copy) && rules.keep.is_none() {
                    return Err(StoreError::SplitBrain { place: other_place, other: place });
                }
            }
        }
        let best = match rules.keep.and_then(|keep| sound.iter().find(|(_, found)| found.copy == keep)) {
            Some(&(_, kept)) => kept,
            None => sound
                .iter()
                .map(|&(_, found)| found)
                .max_by_key(|found| (found.epoch, found.sequence))
                .unwrap_or(first),
        };
        if best.epoch == Epoch(0) {
            return Err(StoreError::Unfinished { places: places() });
        }
        Ok(best.clone())
    }

    /// Writes the state to every slot of every live copy, each durable before the next.
    ///
    /// # Errors
    /// The copy that failed, and how.
    pub fn write_slots(&mut self) -> Result<(), (CopyIndex, DiskError)> {
        for copy in self.copies.live() {
            for slot in 0..SLOTS {
                let op = self.slot_write(copy, slot).ok_or_else(|| (copy, protocol_error(FILE)))?;
                self.copies.run(copy, Lane::Commit, op).map_err(|error| (copy, error))?;
            }
        }
        Ok(())
    }

    /// The operation that writes one slot.
    pub(crate) fn slot_write(&self, copy: CopyIndex, slot: usize) -> Option<Op> {
        let (file, number) = (self.files[copy]?, self.numbers[copy]?);
        let data = self.state.encode(number, slot);
        Some(Op::Write { file, offset: (slot * SLOT_BYTES) as u64, data, durable: true })
    }

    /// Makes epoch+1 and the set of the live copies durable on each of them. A copy that fails at it
    /// is dropped too, and the rest tries again with the next epoch.
    ///
    /// # Errors
    /// [`StoreError::NoCopyLeft`]. Otherwise the copies that were dropped on the way.
    pub fn publish_membership(&mut self) -> Result<Vec<(CopyIndex, DiskError)>, StoreError> {
        let mut dropped: Vec<(CopyIndex, DiskError)> = Vec::new();
        loop {
            self.state.in_sync =
                self.copies.live().filter_map(|copy| self.numbers[copy]).fold(0, |set, n| set | 1 << n);
            if self.state.in_sync == 0 {
                let (copy, error) = dropped.pop().unwrap_or_else(|| (0, protocol_error(FILE)));
                return Err(StoreError::NoCopyLeft { place: self.place(copy), error });
            }
            self.state.epoch = self.state.epoch.next();
            self.state.sequence += 1;
            match self.write_slots() {
                Ok(()) => return Ok(dropped),
                Err((copy, error)) => {
                    self.copies.take_out(copy);
                    dropped.push((copy, error));
                }
            }
        }
    }

    /// Name of a copy's directory.
    #[must_use]
    pub fn place(&self, copy: CopyIndex) -> String {
        self.copies.disk(copy).name().to_string()
    }

    pub(crate) fn disk_error(&self, copy: CopyIndex, error: DiskError) -> StoreError {
        StoreError::Disk { place: self.place(copy), error }
    }
}

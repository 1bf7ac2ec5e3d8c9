//! The archive of a partition: sagas that have ended, in parts that never change.
//!
//! Decides the bytes of a part and how one saga is found in it. Never does IO (the unit reads and
//! writes parts as checkpoints of the log [`LogId::archive`]), never decides what is put away or deleted.
//!
//! ```text
//! header   format u8 | kind u8 | rows | newest end | oldest start | newest start | bytes of bodies |
//!          counts: n, (name, status u8, sagas)* | replaces: n, version* | filter (len, u64*)
//! content  bodies, as (id, state: len, codec u8, schema u16, bytes)*
//!          index, by hash: (hash u64, offset u64, length u32)*
//!          directory, the newest start first: (length, row)*
//! ```
//!
//! A part of *deleted* sagas has no bodies and no directory, and its index has only hashes: an id is
//! not used again before they are gone too.
//!
//! Invariants: a saga that is in a part is said to be, perhaps, by its filter; of two parts that hold one
//! saga the newer one counts; nothing of a part is believed that its manifest's hashes do not cover.
//!
//! Source: Bloom, "Space/time trade-offs in hash coding with allowable errors", CACM 1970; Kirsch and
//! Mitzenmacher (ESA 2006) for two hashes in place of many.
//!
//! [`LogId::archive`]: rallypoint_base::id::LogId::archive

use crate::codec::{Codec, Encoded, encode};
use crate::saga::SagaActor;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::Version;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use rallypoint_saga::op::Failure;
use rallypoint_saga::status::Status;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// First byte of a part's header; another one is of a newer release.
const FORMAT: u8 = 1;
/// Bits of the filter for each saga: of 70,000 other ids one is taken for one of its own. (A start that
/// a filter does not turn away waits for a read of the disk, and asks the filter of every part.)
const FILTER_BITS: usize = 24;
/// Bits that one saga sets.
const PROBES: u64 = 12;
/// Bytes of a row of the index, with and without a body.
const INDEX_ROW: usize = 20;
const HASH_ROW: usize = 8;

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartKind {
    /// Sagas that have ended.
    Ended,
    /// Hashes of the ids of deleted ones.
    Deleted,
}

/// A saga in one line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SagaSummary {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Declared version of its function.
    pub version: u32,
    /// Its status.
    pub status: Status,
    /// When it began.
    pub created: Time,
    /// When something last happened to it.
    pub updated: Time,
    /// Why it failed or is stuck.
    pub error: Option<Failure>,
}

/// What is known of a part without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its version.
    pub version: Version,
    /// What it holds.
    pub kind: PartKind,
    /// How many sagas.
    pub rows: u64,
    /// When the last of them ended; of a part of deleted ones, when they were deleted.
    pub newest_end: Time,
    /// When the first of them began.
    pub oldest_start: Time,
    /// When the last of them began.
    pub newest_start: Time,
    /// How many of each name and status.
    pub counts: BTreeMap<(String, Status), u64>,
    /// Parts that this one stands for.
    pub replaces: Vec<Version>,
    bodies: u64,
    filter: Vec<u64>,
}

/// A part in the making.
#[derive(Debug, Default)]
pub(crate) struct PartBuilder {
    bodies: Vec<u8>,
    index: Vec<(u64, u64, u32)>,
    /// The newest start first.
    directory: Vec<(Reverse<Time>, String, Vec<u8>)>,
    newest_end: Time,
    oldest_start: Option<Time>,
    newest_start: Time,
    counts: BTreeMap<(String, Status), u64>,
}

fn status_number(status: Status) -> u8 {
    match status {
        Status::Completed => 1,
        Status::Compensated => 2,
        Status::Abandoned => 3,
        _ => 0,
    }
}

fn status_of(number: u8) -> Option<Status> {
    [Status::Completed, Status::Compensated, Status::Abandoned]
        .into_iter()
        .find(|status| status_number(*status) == number)
}

/// The bits that a hash sets.
fn probes(hash: u64, words: usize) -> impl Iterator<Item = (usize, u64)> {
    let bits = words as u64 * 64;
    let step = hash.rotate_left(32) | 1;
    (0..PROBES).map(move |n| {
        let bit = hash.wrapping_add(n.wrapping_mul(step)) % bits.max(1);
        ((bit / 64) as usize, 1 << (bit % 64))
    })
}

fn filter_of(hashes: impl ExactSizeIterator<Item = u64>) -> Vec<u64> {
    let words = (hashes.len() * FILTER_BITS).div_ceil(64).max(1);
    let mut filter = vec![0; words];
    for hash in hashes {
        for (word, bit) in probes(hash, words) {
            filter[word] |= bit;
        }
    }
    filter
}

impl PartBuilder {
    /// Adds a saga that has ended, with its state as a checkpoint holds it.
    pub(crate) fn add(&mut self, id: &str, actor: &SagaActor, state: &[u8]) {
        let machine = actor.machine();
        let (offset, status) = (self.bodies.len(), machine.status());
        put_bytes(&mut self.bodies, id.as_bytes());
        put_bytes(&mut self.bodies, state);
        self.index.push((xxh3(id.as_bytes()), offset as u64, (self.bodies.len() - offset) as u32));
        let mut row = Vec::with_capacity(64);
        put_varint(&mut row, machine.created().0);
        put_varint(&mut row, machine.updated().0);
        row.push(status_number(status));
        put_varint(&mut row, u64::from(machine.version()));
        put_bytes(&mut row, machine.name().as_bytes());
        put_bytes(&mut row, id.as_bytes());
        let mut error = Vec::new();
        if let Some(failure) = machine.error() {
            // A failure that cannot be written is left out of the list; the body has it.
            if encode(Codec::Compact, 1, failure, &mut error).is_err() {
                error.clear();
            }
        }
        put_bytes(&mut row, &error);
        self.directory.push((Reverse(machine.created()), id.to_owned(), row));
        self.newest_end = self.newest_end.max(machine.updated());
        self.newest_start = self.newest_start.max(machine.created());
        self.oldest_start = Some(self.oldest_start.map_or(machine.created(), |at| at.min(machine.created())));
        *self.counts.entry((machine.name().to_owned(), status)).or_insert(0) += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bodies.len()
    }

    /// The part and its content. Its version is not known yet.
    pub(crate) fn finish(mut self) -> (Part, Vec<u8>) {
        self.index.sort_unstable();
        self.directory.sort();
        let filter = filter_of(self.index.iter().map(|row| row.0));
        let mut content = self.bodies;
        let bodies = content.len() as u64;
        for (hash, offset, len) in &self.index {
            content.extend_from_slice(&hash.to_le_bytes());
            content.extend_from_slice(&offset.to_le_bytes());
            content.extend_from_slice(&len.to_le_bytes());
        }
        for (_, _, row) in &self.directory {
            put_bytes(&mut content, row);
        }
        let part = Part {
            version: Version(0),
            kind: PartKind::Ended,
            rows: self.index.len() as u64,
            newest_end: self.newest_end,
            oldest_start: self.oldest_start.unwrap_or_default(),
            newest_start: self.newest_start,
            counts: self.counts,
            replaces: Vec::new(),
            bodies,
            filter,
        };
        (part, content)
    }
}

/// A part of deleted sagas in place of others.
pub(crate) fn deleted(now: Time, replaces: Vec<Version>, mut hashes: Vec<u64>) -> (Part, Vec<u8>) {
    hashes.sort_unstable();
    hashes.dedup();
    let filter = filter_of(hashes.iter().copied());
    let content = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    let part = Part {
        version: Version(0),
        kind: PartKind::Deleted,
        rows: hashes.len() as u64,
        newest_end: now,
        oldest_start: now,
        newest_start: now,
        counts: BTreeMap::new(),
        replaces,
        bodies: 0,
        filter,
    };
    (part, content)
}

impl Part {
    pub(crate) fn save(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.filter.len() * 8);
        out.push(FORMAT);
        out.push(u8::from(self.kind == PartKind::Deleted));
        put_varint(&mut out, self.rows);
        put_varint(&mut out, self.newest_end.0);
        put_varint(&mut out, self.oldest_start.0);
        put_varint(&mut out, self.newest_start.0);
        put_varint(&mut out, self.bodies);
        put_varint(&mut out, self.counts.len() as u64);
        for ((name, status), count) in &self.counts {
            put_bytes(&mut out, name.as_bytes());
            out.push(status_number(*status));
            put_varint(&mut out, *count);
        }
        put_varint(&mut out, self.replaces.len() as u64);
        for version in &self.replaces {
            put_varint(&mut out, version.0);
        }
        put_varint(&mut out, self.filter.len() as u64);
        for word in &self.filter {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads the header of a part.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are no header of this release.
    pub fn load(version: Version, header: &[u8]) -> Result<Self, Malformed> {
        let reader = &mut Reader::new(header);
        if reader.u8("format of an archive")? != FORMAT {
            return Err(Malformed { field: "format of an archive of a newer release", offset: 0 });
        }
        let wrong = |reader: &Reader<'_>, field| Malformed { field, offset: reader.offset() };
        let kind = match reader.u8("kind of an archive's part")? {
            0 => PartKind::Ended,
            1 => PartKind::Deleted,
            _ => return Err(wrong(reader, "kind of an archive's part")),
        };
        let mut part = Self {
            version,
            kind,
            rows: reader.varint("rows")?,
            newest_end: Time(reader.varint("newest end")?),
            oldest_start: Time(reader.varint("oldest start")?),
            newest_start: Time(reader.varint("newest start")?),
            bodies: reader.varint("bytes of bodies")?,
            counts: BTreeMap::new(),
            replaces: Vec::new(),
            filter: Vec::new(),
        };
        for _ in 0..reader.varint("counts")? {
            let name = reader.text("name of a saga")?.to_owned();
            let status = status_of(reader.u8("status")?).ok_or(wrong(reader, "status"))?;
            part.counts.insert((name, status), reader.varint("count")?);
        }
        for _ in 0..reader.varint("replaced parts")? {
            part.replaces.push(Version(reader.varint("replaced part")?));
        }
        let words = reader.varint("words of the filter")?;
        if words == 0 {
            return Err(wrong(reader, "words of the filter"));
        }
        for _ in 0..words {
            part.filter.push(reader.u64("filter")?);
        }
        Ok(part)
    }

    /// False when no saga of this part has an id with this hash.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        probes(hash, self.filter.len()).all(|(word, bit)| self.filter[word] & bit != 0)
    }

    /// Where the index lies in the content.
    pub(crate) fn index(&self) -> Range<u64> {
        let row = if self.kind == PartKind::Ended { INDEX_ROW } else { HASH_ROW };
        self.bodies..self.bodies.saturating_add(self.rows.saturating_mul(row as u64))
    }

    /// Where the directory begins in the content; it goes on to the end.
    pub(crate) fn directory(&self) -> u64 {
        self.index().end
    }

    /// The places of the bodies whose id has this hash, or that there is such a hash.
    pub(crate) fn places(&self, index: &[u8], hash: u64) -> Vec<Range<u64>> {
        let row = if self.kind == PartKind::Ended { INDEX_ROW } else { HASH_ROW };
        let rows = index.len() / row;
        let hash_at = |at: usize| {
            let bytes = index[at * row..].first_chunk::<8>().copied().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        // The first row that is not below.
        let (mut low, mut high) = (0, rows);
        while low < high {
            let middle = low.midpoint(high);
            if hash_at(middle) < hash { low = middle + 1 } else { high = middle }
        }
        let mut places = Vec::new();
        while low < rows && hash_at(low) == hash {
            let mut reader = Reader::new(&index[low * row + HASH_ROW..]);
            let (offset, len) = match self.kind {
                PartKind::Ended => {
                    (reader.u64("offset").unwrap_or(0), reader.u32("length").map_or(0, u64::from))
                }
                PartKind::Deleted => (0, 0),
            };
            places.push(offset..offset + len);
            low += 1;
        }
        places
    }

    /// All hashes of an index.
    pub(crate) fn hashes(&self, index: &[u8]) -> Vec<u64> {
        let row = if self.kind == PartKind::Ended { INDEX_ROW } else { HASH_ROW };
        let hash = |row: &[u8]| u64::from_le_bytes(row.first_chunk::<8>().copied().unwrap_or_default());
        index.chunks_exact(row).map(hash).collect()
    }
}

/// The id and the state of a body.
pub(crate) fn split_body(body: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let mut reader = Reader::new(body);
    Ok((reader.text("id of an archived saga")?, reader.bytes("state of an archived saga")?))
}

/// The rows of a directory, the newest start first.
///
/// # Errors
/// [`Malformed`] when the bytes are none.
pub(crate) fn rows(directory: &[u8]) -> Result<Vec<SagaSummary>, Malformed> {
    let mut reader = Reader::new(directory);
    let mut rows = Vec::new();
    while !reader.is_empty() {
        let mut row = Reader::new(reader.bytes("row of a directory")?);
        let (created, updated) = (Time(row.varint("start")?), Time(row.varint("end")?));
        let offset = row.offset();
        let status = status_of(row.u8("status")?).ok_or(Malformed { field: "status", offset })?;
        let version = row.varint("version")? as u32;
        let name = row.text("name")?.to_owned();
        let id = row.text("id")?.to_owned();
        let error = Encoded::split(row.bytes("error")?).and_then(|encoded| encoded.decode().ok());
        rows.push(SagaSummary { id, name, version, status, created, updated, error });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::{deleted, probes, rows, split_body};
    use crate::archive::Part;
    use rallypoint_base::hash::xxh3;
    use rallypoint_base::id::Version;
    use rallypoint_base::random::Random;
    use rallypoint_base::time::Time;

    #[test]
    fn a_filter_knows_its_own_and_few_others() {
        let hash = |at: u64| xxh3(&at.to_le_bytes());
        let (part, content) = deleted(Time(7), vec![Version(1)], (0..2_000).map(hash).collect());
        let part = Part::load(Version(3), &part.save()).expect("it reads back");
        assert!((0..2_000).all(|at| part.may_hold(hash(at)) && part.places(&content, hash(at)).len() == 1));
        let taken = (2_000..202_000).filter(|&at| part.may_hold(hash(at))).count();
        assert!(taken < 40, "{taken} of 200,000 others are taken for one of its own");
        assert!((2_000..4_000).all(|at| part.places(&content, hash(at)).is_empty()));
        // Both halves of the hash matter, and a filter of one word works.
        assert_eq!(probes(5, 1).map(|(word, _)| word).max(), Some(0));
    }

    #[test]
    fn changed_bytes_are_refused_or_read_and_never_panic() {
        let (part, content) = deleted(Time(7), vec![Version(1), Version(2)], vec![3, 1 << 40, u64::MAX]);
        let header = part.save();
        let look = |bytes: &[u8]| {
            if let Ok(part) = Part::load(Version(3), bytes) {
                part.may_hold(3);
                part.places(&content, 3);
                part.hashes(&content);
                let _ = (part.index(), part.directory());
            }
        };
        for at in 0..header.len() {
            assert!(Part::load(Version(3), &header[..at]).is_err(), "a header of {at} bytes");
            for bit in 0..8 {
                let mut changed = header.clone();
                changed[at] ^= 1 << bit;
                look(&changed);
            }
        }
        let mut random = Random::new(1);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.below(60)).map(|_| random.next_u64() as u8).collect();
            look(&bytes);
            let _ = rows(&bytes);
            let _ = split_body(&bytes);
        }
    }
}

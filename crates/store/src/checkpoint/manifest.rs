//! The manifest of one checkpoint, and the names of a checkpoint's files.
//!
//! Decides the bytes of a manifest (`docs/FORMAT.md`, "Checkpoints") and which file names belong to
//! checkpoints. Never does IO. What is decoded has passed its checksums and its own consistency
//! (chunks add up, an increment builds on an older version); whether it belongs to this store is
//! the caller's question.

use rallypoint_base::buffer::AlignedBuffer;
use rallypoint_base::hash::xxh3;
use rallypoint_base::id::{Epoch, Lineage, LogId, Position, StoreId, Version};
use rallypoint_base::limits::BLOCK;
use rallypoint_base::time::Time;
use rallypoint_base::wire::{Malformed, Reader, put_bytes, put_varint};
use thiserror::Error;

/// Longest chunk of a part, in bytes: longer ones would delay the commits beside them.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Longest header (the engine's small state), in bytes.
pub const HEADER_BYTES: usize = 64 << 20;
/// The format that this release writes and reads.
pub const FORMAT: u16 = 1;

const MAGIC: [u8; 8] = *b"RALLYCPM";
/// Fixed part before the body: magic, format, flags, reserved, two lengths, three hashes.
const HEAD: usize = 56;

/// Which store and which of its histories a file belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The store.
    pub store: StoreId,
    /// Its history since it was created or restored.
    pub lineage: Lineage,
}

/// One chunk of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes, 1 to [`CHUNK_BYTES`].
    pub len: u32,
    /// xxh3-64 of them.
    pub hash: u64,
}

impl Chunk {
    /// True when `bytes` (which may be longer) begin with this chunk.
    #[must_use]
    pub fn matches(&self, bytes: &[u8]) -> bool {
        bytes.get(..self.len as usize).is_some_and(|bytes| xxh3(bytes) == self.hash)
    }

    /// Bytes that the chunk takes in the part: it is padded with zeros to whole blocks.
    #[must_use]
    pub fn padded(&self) -> usize {
        (self.len as usize).next_multiple_of(BLOCK)
    }
}

/// What a checkpoint is; everything but the engine's header and the part itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Store and lineage.
    pub identity: Identity,
    /// Which log's state.
    pub log: LogId,
    /// Which version.
    pub version: Version,
    /// The state holds everything up to this position of the log.
    pub position: Position,
    /// Epoch in which it was taken.
    pub epoch: Epoch,
    /// The version this increment builds on; `None` for a full checkpoint.
    pub base: Option<Version>,
    /// Schema of the content, opaque here.
    pub schema: u32,
    /// When it was taken.
    pub created: Time,
    /// Program that took it, for people.
    pub program: String,
    /// Chunks of the part, in order.
    pub chunks: Vec<Chunk>,
}

/// Why bytes are not a manifest that this release can use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Torn, rotten or something else altogether.
    #[error("not a sound manifest: {0}")]
    Damaged(&'static str),
    /// Checksums hold, content does not: a bug of the program that wrote it.
    #[error("a sound checksum over a manifest that makes no sense: {0}")]
    Nonsense(#[from] Malformed),
    /// Written by a newer release.
    #[error(
        "format {format} with flags {flags:#06x} needs a newer release of rallypoint; this one reads format 1"
    )]
    Newer {
        /// Format number in the file.
        format: u16,
        /// Flags in the file.
        flags: u16,
    },
}

impl Manifest {
    /// True when it stands alone.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.base.is_none()
    }

    /// Bytes of content, without padding.
    #[must_use]
    pub fn part_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.len)).sum()
    }

    /// Length of the part's file.
    #[must_use]
    pub fn part_len(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.padded() as u64).sum()
    }

    /// Hash of the whole part: xxh3-64 over its chunks' lengths and hashes, so that the bytes are
    /// hashed once.
    #[must_use]
    pub fn part_hash(&self) -> u64 {
        let mut bytes = Vec::with_capacity(self.chunks.len() * 12);
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.len.to_le_bytes());
            bytes.extend_from_slice(&chunk.hash.to_le_bytes());
        }
        xxh3(&bytes)
    }

    /// Where each chunk begins in the part's file.
    #[must_use]
    pub fn offsets(&self) -> Vec<u64> {
        let mut at = 0;
        self.chunks
            .iter()
            .map(|chunk| {
                let offset = at;
                at += chunk.padded() as u64;
                offset
            })
            .collect()
    }

    /// The manifest file: head, body, the engine's header, zeros up to whole blocks.
    #[must_use]
    pub fn encode(&self, header: &[u8]) -> AlignedBuffer {
        let mut body = Vec::with_capacity(128 + self.chunks.len() * 12);
        body.extend_from_slice(&self.identity.store.0.to_le_bytes());
        body.extend_from_slice(&self.identity.lineage.0.to_le_bytes());
        body.extend_from_slice(&self.log.0.to_le_bytes());
        body.extend_from_slice(&self.version.0.to_le_bytes());
        body.extend_from_slice(&self.position.0.to_le_bytes());
        body.extend_from_slice(&self.epoch.0.to_le_bytes());
        body.extend_from_slice(&self.base.map_or(0, |base| base.0).to_le_bytes());
        body.extend_from_slice(&self.schema.to_le_bytes());
        body.extend_from_slice(&self.created.0.to_le_bytes());
        body.extend_from_slice(&self.part_hash().to_le_bytes());
        put_bytes(&mut body, self.program.as_bytes());
        put_varint(&mut body, self.chunks.len() as u64);
        for chunk in &self.chunks {
            body.extend_from_slice(&chunk.len.to_le_bytes());
            body.extend_from_slice(&chunk.hash.to_le_bytes());
        }

        let mut head = Vec::with_capacity(HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&FORMAT.to_le_bytes());
        head.extend_from_slice(&0u16.to_le_bytes());
        head.extend_from_slice(&0u32.to_le_bytes());
        head.extend_from_slice(&(body.len() as u64).to_le_bytes());
        head.extend_from_slice(&(header.len() as u64).to_le_bytes());
        head.extend_from_slice(&xxh3(&body).to_le_bytes());
        head.extend_from_slice(&xxh3(header).to_le_bytes());
        head.extend_from_slice(&xxh3(&head).to_le_bytes());

        let used = HEAD + body.len() + header.len();
        let mut file = AlignedBuffer::zeroed(used.next_multiple_of(BLOCK));
        file[..HEAD].copy_from_slice(&head);
        file[HEAD..HEAD + body.len()].copy_from_slice(&body);
        file[HEAD + body.len()..used].copy_from_slice(header);
        file
    }

    /// Reads a manifest file: the manifest and the engine's header.
    ///
    /// # Errors
    /// [`ManifestError`], and which kind decides whether it may be repaired from the other copy
    /// (damage) or must be left alone (a newer release's).
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), ManifestError> {
        let mut reader = Reader::new(bytes);
        if reader.take(8, "magic").is_ok_and(|magic| magic != MAGIC) {
            return Err(ManifestError::Damaged("magic"));
        }
        let short = |_| ManifestError::Damaged("shorter than its head");
        let format = reader.u16("format").map_err(short)?;
        let flags = reader.u16("flags").map_err(short)?;
        reader.u32("reserved").map_err(short)?;
        let body_len = reader.u64("body length").map_err(short)?;
        let header_len = reader.u64("header length").map_err(short)?;
        let body_hash = reader.u64("body hash").map_err(short)?;
        let header_hash = reader.u64("header hash").map_err(short)?;
        let hashed = reader.offset();
        if reader.u64("head hash").map_err(short)? != xxh3(&bytes[..hashed]) {
            return Err(ManifestError::Damaged("checksum of the head"));
        }
        // Only now, since rot must not pass for a newer release.
        if format != FORMAT || flags != 0 {
            return Err(ManifestError::Newer { format, flags });
        }
        let mut section = |len: u64, hash: u64, what: &'static str| {
            let len = usize::try_from(len).map_err(|_| ManifestError::Damaged(what))?;
            let section = reader.take(len, what).map_err(|_| ManifestError::Damaged(what))?;
            if xxh3(section) == hash { Ok(section) } else { Err(ManifestError::Damaged(what)) }
        };
        let body = section(body_len, body_hash, "checksum of the body")?;
        let header = section(header_len, header_hash, "checksum of the header")?;
        Ok((Self::decode_body(body)?, header))
    }

    fn decode_body(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let identity =
            Identity { store: StoreId(reader.u64("store")?), lineage: Lineage(reader.u64("lineage")?) };
        let log = LogId(reader.u16("log")?);
        let version = Version(reader.u64("version")?);
        let position = Position(reader.u64("position")?);
        let epoch = Epoch(reader.u32("epoch")?);
        let base = reader.u64("base")?;
        let nonsense = |reader: &Reader<'_>, field| Malformed { field, offset: reader.offset() };
        if base >= version.0 {
            return Err(nonsense(&reader, "base: not older than the version"));
        }
        let schema = reader.u32("schema")?;
        let created = Time(reader.u64("created")?);
        let part_hash = reader.u64("part hash")?;
        let program = reader.text("program")?.to_owned();
        let count = reader.varint("chunk count")?;
        if count != (reader.rest().len() / 12) as u64 {
            return Err(nonsense(&reader, "chunk count"));
        }
        let mut chunks = Vec::with_capacity(reader.rest().len() / 12);
        for _ in 0..count {
            let chunk = Chunk { len: reader.u32("chunk length")?, hash: reader.u64("chunk hash")? };
            if chunk.len == 0 || chunk.len as usize > CHUNK_BYTES {
                return Err(nonsense(&reader, "chunk length"));
            }
            chunks.push(chunk);
        }
        if !reader.is_empty() {
            return Err(nonsense(&reader, "end of the manifest"));
        }
        let base = (base != 0).then_some(Version(base));
        let manifest =
            Self { identity, log, version, position, epoch, base, schema, created, program, chunks };
        if manifest.part_hash() != part_hash {
            return Err(nonsense(&reader, "part hash"));
        }
        Ok(manifest)
    }
}

/// What a file of a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// The content.
    Part,
    /// A part that is being copied from the other copy.
    PartTemp,
    /// The manifest: its name is what makes a version exist.
    Manifest,
    /// A manifest that is being written.
    ManifestTemp,
    /// The n-th restore of this version failed.
    Failed(u32),
    /// The version is pinned.
    Pinned,
}

/// The name of a checkpoint's file.
#[must_use]
pub fn file_name(log: LogId, version: Version, kind: FileKind) -> String {
    let stem = format!("cp-{:05}-{:012}", log.0, version.0);
    match kind {
        FileKind::Part => format!("{stem}.part"),
        FileKind::PartTemp => format!("{stem}.part.tmp"),
        FileKind::Manifest => format!("{stem}.manifest"),
        FileKind::ManifestTemp => format!("{stem}.manifest.tmp"),
        FileKind::Failed(n) => format!("{stem}.failed-{n}"),
        FileKind::Pinned => format!("{stem}.pinned"),
    }
}

/// What a name that begins with `cp-` says; `None` when it is no name this store gives.
#[must_use]
pub fn parse_name(name: &str) -> Option<(LogId, Version, FileKind)> {
    let (stem, ending) = name.strip_prefix("cp-")?.split_once('.')?;
    let (log, version) = stem.split_once('-')?;
    let kind = match ending {
        "part" => FileKind::Part,
        "part.tmp" => FileKind::PartTemp,
        "manifest" => FileKind::Manifest,
        "manifest.tmp" => FileKind::ManifestTemp,
        "pinned" => FileKind::Pinned,
        _ => FileKind::Failed(ending.strip_prefix("failed-")?.parse().ok()?),
    };
    let (log, version) = (LogId(log.parse().ok()?), Version(version.parse().ok()?));
    (file_name(log, version, kind) == name).then_some((log, version, kind))
}

//! From where on a recovery has to read the journal, as a checkpoint remembers it.
//!
//! Decides the bytes of that memory. Never decides whether it still holds: recovery compares it with
//! what stands there, and reads from the head of the journal when it does not.
//!
//! Invariant: it names a commit that was durable when the point was taken, so that whatever is
//! appended later lies behind it, and no tail rule ever cuts it.

use rallypoint_base::id::{CommitSeq, Generation};
use rallypoint_base::wire::{Malformed, Reader};

/// The place of a commit, and what it must be for the place to still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// The commit.
    pub commit: CommitSeq,
    /// The segment that it lies in.
    pub generation: Generation,
    /// Number of its first block there.
    pub number: u32,
    /// Hash of the commit before it.
    pub previous: u64,
}

impl ResumePoint {
    /// Length of [`ResumePoint::encode`].
    pub const BYTES: usize = 32;

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut raw = [0; Self::BYTES];
        raw[0..8].copy_from_slice(&self.commit.0.to_le_bytes());
        raw[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        raw[16..24].copy_from_slice(&self.previous.to_le_bytes());
        raw[24..28].copy_from_slice(&self.number.to_le_bytes());
        // 28..32 are reserved.
        raw
    }

    /// Reads what [`ResumePoint::encode`] wrote, from the front of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`] when there are too few bytes. (Any others are a point; one that names nothing
    /// costs time and not records.)
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let commit = CommitSeq(reader.u64("resume point: commit")?);
        let generation = Generation(reader.u64("resume point: segment")?);
        let previous = reader.u64("resume point: hash")?;
        let number = reader.u32("resume point: block")?;
        reader.take(4, "resume point: reserved")?;
        Ok(Self { commit, generation, number, previous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_comes_back_from_its_bytes_and_from_no_fewer() {
        let point = ResumePoint {
            commit: CommitSeq(1 << 40),
            generation: Generation(77),
            number: 16_383,
            previous: 0xFEED,
        };
        let mut bytes = point.encode().to_vec();
        assert!(ResumePoint::decode(&bytes[..ResumePoint::BYTES - 1]).is_err());
        bytes.extend_from_slice(b"the header of the checkpoint");
        assert_eq!(ResumePoint::decode(&bytes), Ok(point));
    }
}

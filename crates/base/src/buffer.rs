//! Memory that direct IO accepts: aligned to the block size, a whole number of blocks long.

use crate::limits::BLOCK;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes whose address is a multiple of 4,096. The length need not be; a writer pads it.
///
/// Built without `unsafe` by over-allocating one block and starting at the first aligned byte.
///
/// ```
/// let buffer = rallypoint_base::buffer::AlignedBuffer::zeroed(8192);
/// assert_eq!(buffer.as_ptr() as usize % 4096, 0);
/// ```
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start, len }
    }

    /// A copy of `content`.
    #[must_use]
    pub fn copy_of(content: &[u8]) -> Self {
        let mut buffer = Self::zeroed(content.len());
        buffer.copy_from_slice(content);
        buffer
    }

    /// How many bytes fit without a new allocation.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.bytes.len() - BLOCK
    }

    /// Changes the length. Bytes beyond the old length hold whatever was written there before.
    /// Grows by allocating anew, at least doubling.
    pub fn set_len(&mut self, len: usize) {
        if len > self.capacity() {
            let mut grown = Self::zeroed(len.max(self.capacity() * 2));
            grown[..self.len].copy_from_slice(self);
            *self = grown;
        }
        self.len = len;
    }
}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> Self {
        Self::copy_of(self)
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl PartialEq for AlignedBuffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.len)
    }
}

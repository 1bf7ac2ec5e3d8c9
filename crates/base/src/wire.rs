//! Hand-written encoding of engine records: little-endian, LEB128 lengths, every read checked.
//!
//! Decides the bytes of numbers and byte strings and nothing else. Never panics on foreign bytes:
//! each reader returns [`Malformed`] with the field and the offset.

use thiserror::Error;

/// Bytes that are not what the format says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("malformed bytes: {field} at offset {offset}")]
pub struct Malformed {
    /// What was being read.
    pub field: &'static str,
    /// Where in the bytes, from 0.
    pub offset: usize,
}

/// Appends `value` as LEB128 (at most 10 bytes).
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends the length of `bytes` and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the `put_` functions wrote, front to back.
///
/// ```
/// use rallypoint_base::wire::{put_bytes, Reader};
/// let mut bytes = Vec::new();
/// put_bytes(&mut bytes, b"alice");
/// let mut reader = Reader::new(&bytes);
/// assert_eq!(reader.bytes("key").unwrap(), b"alice");
/// assert!(reader.u8("rest").is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! fixed {
    ($name:ident, $ty:ty) => {
        /// Reads a little-endian number.
        ///
        /// # Errors
        /// [`Malformed`] when the bytes end before it does.
        pub fn $name(&mut self, field: &'static str) -> Result<$ty, Malformed> {
            let raw = self.take(size_of::<$ty>(), field)?;
            Ok(<$ty>::from_le_bytes(raw.try_into().map_err(|_| self.malformed(field))?))
        }
    };
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fixed!(u8, u8);
    fixed!(u16, u16);
    fixed!(u32, u32);
    fixed!(u64, u64);

    /// Offset of the next byte.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The bytes not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// True when every byte was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// [`Malformed`] when there are fewer.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err(self.malformed(field)) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// Reads a LEB128 number.
    ///
    /// # Errors
    /// [`Malformed`] when it does not end, or does not fit 64 bits.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(field)?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(self.malformed(field));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed(field))
    }

    /// Reads a length and that many bytes.
    ///
    /// # Errors
    /// [`Malformed`] when there are fewer.
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.varint(field)?;
        let len = usize::try_from(len).map_err(|_| self.malformed(field))?;
        self.take(len, field)
    }

    /// Reads a length and that many bytes of UTF-8.
    ///
    /// # Errors
    /// [`Malformed`] when there are fewer, or they are not UTF-8.
    pub fn text(&mut self, field: &'static str) -> Result<&'a str, Malformed> {
        let bytes = self.bytes(field)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed(field))
    }

    fn malformed(&self, field: &'static str) -> Malformed {
        Malformed { field, offset: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_and_every_prefix_is_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(Reader::new(&bytes).varint("n"), Ok(value));
            for cut in 0..bytes.len() {
                assert!(Reader::new(&bytes[..cut]).varint("n").is_err());
            }
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        assert!(Reader::new(&[0xFF; 10]).varint("n").is_err());
        assert!(Reader::new(&[0xFF; 11]).varint("n").is_err());
    }
}

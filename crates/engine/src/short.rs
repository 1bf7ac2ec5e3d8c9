//! Short byte strings without an allocation of their own.
//!
//! Decides nothing; saves the cache miss that reading (or, long after, freeing) a small allocation
//! costs. Most keys and most replies fit.

use std::ops::Deref;

/// How many bytes lie in place: as many as leave the enum at 24 bytes.
const SHORT: usize = 22;

/// Bytes that never change, in place when there are few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShortBytes {
    Here(u8, [u8; SHORT]),
    There(Box<[u8]>),
}

impl From<&[u8]> for ShortBytes {
    fn from(bytes: &[u8]) -> Self {
        let mut here = [0; SHORT];
        match here.get_mut(..bytes.len()) {
            Some(front) => {
                front.copy_from_slice(bytes);
                Self::Here(bytes.len() as u8, here)
            }
            None => Self::There(bytes.into()),
        }
    }
}

impl Deref for ShortBytes {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Here(len, bytes) => &bytes[..usize::from(*len)],
            Self::There(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_every_length_are_given_back() {
        let bytes: Vec<u8> = (0..100).collect();
        for len in 0..100 {
            assert_eq!(*ShortBytes::from(&bytes[..len]), bytes[..len]);
        }
        assert_eq!(size_of::<ShortBytes>(), 24);
    }
}

//! A set of transfers in constant size.
//!
//! Decides what an account remembers of the transfers that it has seen: not each of them, which
//! would grow for ever, but how many, how much, and a sum of one hash for each. Two sets of transfers
//! that differ have different digests, but for one chance in 2^64.
//!
//! Never depends on the order. Invariant: the digest of two sets is the sum of their digests; so the
//! difference of two digests is the digest of what is missing.

use serde::{Deserialize, Serialize};

/// Fingerprint of a set of transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many.
    pub count: u64,
    /// How much, together.
    pub cents: u128,
    /// Sum of their hashes, modulo 2^64.
    pub sum: u64,
}

impl Digest {
    /// Adds the transfer of `amount` cents on line `line`.
    pub fn add(&mut self, line: u64, amount: u64) {
        self.count += 1;
        self.cents += u128::from(amount);
        self.sum = self.sum.wrapping_add(Self::hash(line, amount));
    }

    /// The hash of one transfer. Line and amount are not interchangeable.
    #[must_use]
    pub fn hash(line: u64, amount: u64) -> u64 {
        mix(mix(line).wrapping_add(amount))
    }
}

/// Turns 64 bits into 64 others so that each depends on all (SplitMix64, Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Digest;

    fn of(transfers: &[(u64, u64)]) -> Digest {
        let mut digest = Digest::default();
        for &(line, amount) in transfers {
            digest.add(line, amount);
        }
        digest
    }

    #[test]
    fn the_order_does_not_matter_and_everything_else_does() {
        assert_eq!(of(&[(2, 10), (3, 20)]), of(&[(3, 20), (2, 10)]));
        assert_ne!(of(&[(2, 10), (3, 20)]), of(&[(2, 20), (3, 10)]));
        assert_ne!(of(&[(2, 10), (3, 20)]), of(&[(2, 10), (4, 20)]));
        assert_ne!(of(&[(2, 10), (2, 10), (3, 20)]).sum, of(&[(2, 10), (3, 20)]).sum);
    }

    #[test]
    fn no_two_of_a_hundred_thousand_transfers_have_the_same_hash() {
        let mut hashes: Vec<u64> = Vec::new();
        for line in 1..=1_000 {
            hashes.extend((1..=100).map(|amount| Digest::hash(line, amount)));
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 100_000);
    }
}

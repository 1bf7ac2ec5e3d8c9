//! Hashes that are part of the format: xxh3-64 (xxHash specification 0.1.1, section XXH3).

pub use xxhash_rust::xxh3::Xxh3;

/// xxh3-64 of `bytes`.
#[must_use]
pub fn xxh3(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// xxh3-64 of `bytes` under `seed`.
#[must_use]
pub fn xxh3_seeded(bytes: &[u8], seed: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed)
}

/// The key slot (0..1024) of an actor's key under the seed that the store drew when it was created.
/// The kind is not hashed in: actors of different kinds with one key share a partition.
#[must_use]
pub fn key_slot(key: &[u8], seed: u64) -> u16 {
    (xxh3_seeded(key, seed) % u64::from(crate::limits::KEY_SLOTS)) as u16
}

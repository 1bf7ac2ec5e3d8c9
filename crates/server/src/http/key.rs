//! Ids of sagas from idempotency keys: any key text has one, and two keys never share one.

use rallypoint_base::limits::KEY_BYTES;
use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::hash::BuildHasher;
use std::time::{SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::xxh3_128;

/// Longest id of a saga.
const LONGEST: usize = KEY_BYTES - 56;

/// The id of the saga with this key: the key itself where that can stand in a path as it is.
///
/// Other bytes are written `=2F`; a key that becomes too long is `=` with its beginning and its
/// 128-bit hash, which no other key is written like.
pub(crate) fn id_of(key: &[u8]) -> String {
    let mut id = String::with_capacity(key.len());
    for &byte in key {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':') {
            id.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(id, "={byte:02X}");
        }
    }
    // `.` and `..` are taken out of paths by clients.
    if id.bytes().all(|byte| byte == b'.') {
        id = id.replace('.', "=2E");
    }
    if id.len() > LONGEST {
        id = format!("=h{}-{:032x}", &id[..LONGEST / 2], xxh3_128(key));
    }
    id
}

/// An id that nobody has: the time, so that ids sort by it, and 64 random bits.
pub(crate) fn fresh_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    format!("{now:016x}-{:016x}", RandomState::new().hash_one(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_keys_are_ids_and_others_are_written_so_that_they_can_be() {
        assert_eq!(id_of(b"order-17"), "order-17");
        assert_eq!(id_of("a/ü=".as_bytes()), "a=2F=C3=BC=3D");
        assert_eq!(id_of(b".."), "=2E=2E");
        assert_ne!(fresh_id(), fresh_id());
    }

    proptest! {
        #[test]
        fn any_key_has_an_id_of_its_own(
            a in proptest::collection::vec(any::<u8>(), 1..300),
            b in proptest::collection::vec(any::<u8>(), 1..300),
        ) {
            let id = id_of(&a);
            prop_assert!((1..=LONGEST).contains(&id.len()) && !id.contains('/'));
            prop_assert_eq!(a == b, id == id_of(&b));
        }
    }
}

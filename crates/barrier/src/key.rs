//! What names a request: its key and, if the service gives one, a fingerprint of what it asks for.
//! No HTTP library is known here.

/// The key of a request, and what tells it from another request with the same key.
///
/// ```
/// use rallypoint_barrier::key::{Key, fingerprint};
///
/// let plain: Key = "order-17/charge".into();
/// assert_eq!(plain.fingerprint, None);
/// let print = fingerprint([b"POST".as_slice(), b"/charges", br#"{"cents":30}"#]);
/// let key = Key::new("order-17/charge").of_request(&print);
/// assert_eq!(key.fingerprint, Some(print.as_slice()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a> {
    /// What stands in the header.
    pub text: &'a str,
    /// Any bytes that are equal for equal requests. Without them, the key alone is believed.
    pub fingerprint: Option<&'a [u8]>,
}

impl<'a> Key<'a> {
    /// A key without a fingerprint.
    pub fn new(text: &'a str) -> Self {
        Self { text, fingerprint: None }
    }

    /// The same key, for the request with this fingerprint.
    pub fn of_request(self, fingerprint: &'a [u8]) -> Self {
        Self { fingerprint: Some(fingerprint), ..self }
    }

    /// Whether a row with this fingerprint is of another request. Where one of the two was given
    /// none, nobody can say, and the key is believed.
    pub(crate) fn is_of_another_than(self, recorded: Option<&[u8]>) -> bool {
        matches!((self.fingerprint, recorded), (Some(given), Some(recorded)) if given != recorded)
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        Self::new(text)
    }
}

impl<'a> From<&'a String> for Key<'a> {
    fn from(text: &'a String) -> Self {
        Self::new(text)
    }
}

/// A fingerprint of the parts of a request, such as method, path and body (FNV-1a, 128 bits, each
/// part behind its length). It finds mistakes; it is no defence against a caller who wants two
/// requests to look alike.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = OFFSET;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    };
    for part in parts {
        add(&(part.len() as u64).to_le_bytes());
        add(part);
    }
    hash.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::{Key, fingerprint};

    #[test]
    fn parts_do_not_run_into_each_other() {
        let print = |parts: [&'static str; 2]| fingerprint(parts.map(str::as_bytes));
        assert_eq!(print(["ab", "c"]), print(["ab", "c"]));
        assert_ne!(print(["ab", "c"]), print(["a", "bc"]));
        assert_ne!(print(["", "c"]), print(["c", ""]));
        // Recorded by one release, compared by the next: the function may not change.
        let none: [&[u8]; 0] = [];
        assert_eq!(fingerprint(none), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128.to_be_bytes());
    }

    #[test]
    fn only_two_different_fingerprints_differ() {
        let key = Key::new("K");
        assert!(!key.is_of_another_than(None));
        assert!(!key.is_of_another_than(Some(b"a")));
        assert!(!key.of_request(b"a").is_of_another_than(None));
        assert!(!key.of_request(b"a").is_of_another_than(Some(b"a")));
        assert!(key.of_request(b"a").is_of_another_than(Some(b"b")));
    }
}

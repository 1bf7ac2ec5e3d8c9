//! The unit in which a power cut keeps or loses what was written.

/// Bytes that reach the disk together or not at all.
pub(crate) const BLOCK: u64 = 4096;

/// A range cut at the blocks' ends.
pub(crate) fn pieces(offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        let from = at;
        at = ((from / BLOCK + 1) * BLOCK).min(end);
        (from < end).then_some((from, at))
    })
}

//! Exponential backoff with full jitter ("Exponential Backoff And Jitter", AWS 2015), as a function.

use crate::random::Random;
use std::time::Duration;

/// The wait before attempt `attempt` (0 = the first retry): uniformly between zero and
/// `base * 2^attempt`, never above `cap`.
///
/// ```
/// use rallypoint_base::{backoff::full_jitter, random::Random};
/// use std::time::Duration;
/// let wait = full_jitter(Duration::from_millis(10), Duration::from_secs(1), 3, &mut Random::new(1));
/// assert!(wait <= Duration::from_millis(80));
/// ```
#[must_use]
pub fn full_jitter(base: Duration, cap: Duration, attempt: u32, random: &mut Random) -> Duration {
    let ceiling = base.saturating_mul(2u32.saturating_pow(attempt)).min(cap);
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.below(nanos.saturating_add(1)))
}

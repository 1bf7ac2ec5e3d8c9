//! Faults on purpose: work that is done and not told, and work that is not done.
//!
//! Decides by a seed which request meets which fault; never touches what the work does.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often requests meet a fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chaos {
    /// Share of the requests, 0 to 1.
    pub share: f64,
    /// Where the choices come from.
    pub seed: u64,
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503, and nothing was done.
    Before,
    /// The work is done, and the answer is 503.
    AnswerLost,
    /// The work is done, and the connection ends without an answer.
    ConnectionLost,
}

/// The choices for one request after the other.
#[derive(Debug)]
pub(crate) struct Dice {
    chaos: Option<Chaos>,
    requests: AtomicU64,
}

impl Dice {
    pub(crate) fn new(chaos: Option<Chaos>) -> Self {
        Self { chaos, requests: AtomicU64::new(0) }
    }

    pub(crate) fn throw(&self) -> Option<Fault> {
        let Chaos { share, seed } = self.chaos?;
        let random = random(seed, self.requests.fetch_add(1, Ordering::Relaxed));
        if unit(random) >= share {
            return None;
        }
        Some([Fault::Before, Fault::AnswerLost, Fault::ConnectionLost][(random % 3) as usize])
    }
}

/// The number at `index` of the stream of `seed` (splitmix64).
pub(crate) fn random(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// From 0 to below 1.
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::{Chaos, Dice, Fault};

    #[test]
    fn the_share_is_met_and_every_fault_comes() {
        let throws = |share, seed| {
            let dice = Dice::new(Some(Chaos { share, seed }));
            (0..10_000).map(|_| dice.throw()).collect::<Vec<_>>()
        };
        let found = throws(0.3, 7);
        for fault in [Fault::Before, Fault::AnswerLost, Fault::ConnectionLost] {
            let count = found.iter().filter(|found| **found == Some(fault)).count();
            assert!((800..1200).contains(&count), "{fault:?}: {count}");
        }
        assert_eq!(found, throws(0.3, 7));
        assert_ne!(found, throws(0.3, 8));
        assert!(throws(0.0, 7).iter().all(Option::is_none));
        assert!(throws(1.0, 7).iter().all(Option::is_some));
        assert_eq!(Dice::new(None).throw(), None);
    }
}

//! Each input changes state at most once, and so does each timer, effect and answer it asked for.
//!
//! Source: design 4, promise 1. That an acknowledged input is *there* is
//! [`super::output_never_undone`]'s to say; this file says that nothing is there twice.

use super::{Fact, Invariant};
use crate::bank::What;
use std::collections::BTreeSet;

/// See the module.
pub struct ExactlyOnce;

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly_once"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(states) = fact.states() else { return Ok(()) };
        let mut seen = BTreeSet::new();
        for (key, account) in states.accounts() {
            for entry in &account.history {
                // Credits are frames, not inputs: `conservation` counts them.
                if entry.what != What::Credited && !seen.insert((entry.id, entry.what as u8)) {
                    return Err(format!("{:?} of transfer {} twice, last at {key:?}", entry.what, entry.id));
                }
            }
        }
        Ok(())
    }
}

//! A reader never goes back in time, and never sees what later turns out not to have happened.
//!
//! Source: design 5: a read-only answer is an output, held until everything that it may show is
//! durable. A read that was sent after another one was answered shows at least as much of the same
//! account; and everything ever shown is a prefix of the account's history, for ever.

use super::{Fact, Invariant, States, decode};
use crate::bank::{Order, Seen};
use rallypoint_base::time::Time;
use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub struct Observations {
    looks: BTreeMap<String, Vec<(Time, Seen)>>,
}

impl Invariant for Observations {
    fn name(&self) -> &'static str {
        "observations"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Answered { request, bytes, now, .. } if request.read_only => {
                let Some((account, Order::Look)) = request.order() else { return Ok(()) };
                let Some(seen) = decode::<Seen>(bytes) else { return Ok(()) };
                let looks = self.looks.entry(account.to_owned()).or_default();
                let before = looks.iter().filter(|(at, _)| *at < request.sent);
                let newest = before.map(|(_, seen)| seen.entries).max().unwrap_or(0);
                looks.push((*now, seen));
                if seen.entries < newest {
                    let entries = seen.entries;
                    return Err(format!("{account:?} showed {newest} entries, and later {entries}"));
                }
                Ok(())
            }
            Fact::Audited(states) | Fact::Settled(states) => self.still_true(states),
            _ => Ok(()),
        }
    }
}

impl Observations {
    fn still_true(&self, states: &States) -> Result<(), String> {
        let accounts = states.accounts();
        for (key, looks) in &self.looks {
            let account = accounts.get(key.as_str());
            for (_, seen) in looks.iter().filter(|(_, seen)| seen.entries > 0) {
                let now = account.and_then(|account| account.seen_at(seen.entries));
                if now != Some(*seen) {
                    return Err(format!("{key:?} showed {seen:?}, and its history says {now:?}"));
                }
            }
        }
        Ok(())
    }
}

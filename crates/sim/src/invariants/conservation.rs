//! Money is neither made nor lost: what was debited is credited or on its way, by the same amount.
//!
//! Source: design 4, promise 3; Chandy and Lamport (1985) for what "on its way" means. Checked in
//! memory after each recovery, in every audit of the durable state, and exactly at the end.
//!
//! A credit whose debit is unknown is an orphan ([`super::no_orphan`] says so) until all is quiet;
//! then it is money out of nothing. A credit that was set aside (it was about to be delivered at two
//! losses of power) waits for a person; it is neither lost nor on its way.

use super::{Fact, Invariant};
use crate::bank::{OPENING, What};
use std::collections::BTreeMap;

/// See the module.
pub struct Conservation;

impl Invariant for Conservation {
    fn name(&self) -> &'static str {
        "conservation"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        let Some(states) = fact.states() else { return Ok(()) };
        let settled = matches!(fact, Fact::Settled(_));
        let accounts = states.accounts();
        let mut moved: BTreeMap<u64, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
        for account in accounts.values() {
            for entry in &account.history {
                let (debits, credits) = moved.entry(entry.id).or_default();
                match entry.what {
                    What::Debited => debits.push(-entry.change),
                    What::Credited => credits.push(entry.change),
                    _ => {}
                }
            }
        }
        let set_aside = states.credits_set_aside();
        for (id, amount) in &set_aside {
            moved.entry(*id).or_default().1.push(*amount);
        }
        for (id, (debits, credits)) in &moved {
            let may_be_orphan = debits.is_empty() && !settled;
            if credits.len() > debits.len() && !may_be_orphan {
                return Err(format!("transfer {id}: debited {debits:?}, credited {credits:?}"));
            }
            if let (Some(debit), Some(credit)) = (debits.first(), credits.first())
                && debit != credit
            {
                return Err(format!("transfer {id}: debited {debit}, credited {credit}"));
            }
            if settled && credits.len() < debits.len() {
                return Err(format!("transfer {id}: debited {debits:?}, only credited {credits:?}"));
            }
        }
        let in_accounts: i64 = accounts.values().map(|account| account.balance() - OPENING).sum();
        let sum = in_accounts + set_aside.iter().map(|(_, amount)| amount).sum::<i64>();
        if settled && sum != 0 {
            return Err(format!("all is quiet and {sum} are too many"));
        }
        Ok(())
    }
}

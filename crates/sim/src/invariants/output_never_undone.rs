//! What a client was told stays true, and an effect's key means one effect for ever.
//!
//! Source: design 4, promises 1 and 2; output commit (Strom and Yemini 1985). An answer of the bank
//! says how far the account had come with it; the account must still have come that way, in memory
//! after healing and in every audit of the durable state: so an acknowledged input that was lost is
//! found here. The same input is answered the same each time.

use super::{Fact, Invariant, States, decode};
use crate::bank::{Order, Seen, What};
use crate::exit::Leaving;
use rallypoint_base::id::{InputSeq, SessionId};
use rallypoint_engine::command::Outcome;
use rallypoint_engine::effect::EffectKey;
use std::collections::BTreeMap;

/// See the module.
#[derive(Default)]
pub struct OutputNeverUndone {
    answers: BTreeMap<(SessionId, InputSeq), (Outcome, Vec<u8>)>,
    /// Account, transfer, what was seen; `None` when it was refused.
    transfers: Vec<(String, u64, Option<Seen>)>,
    effects: BTreeMap<EffectKey, (String, Vec<u8>)>,
}

impl Invariant for OutputNeverUndone {
    fn name(&self) -> &'static str {
        "output_never_undone"
    }

    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Answered { request, outcome, bytes, .. } if !request.read_only => {
                let key = (request.session, request.seq);
                if let Some((first, text)) = self.answers.get(&key) {
                    if (*first, text.as_slice()) != (*outcome, *bytes) {
                        return Err(format!("{key:?} was answered {first:?}, then {outcome:?}"));
                    }
                    return Ok(());
                }
                self.answers.insert(key, (*outcome, bytes.to_vec()));
                if let Some((account, Order::Transfer { id, .. })) = request.order() {
                    let seen = (*outcome == Outcome::Applied).then(|| decode::<Seen>(bytes)).flatten();
                    self.transfers.push((account.to_owned(), id, seen));
                }
                Ok(())
            }
            Fact::Left { leaving: Leaving::Perform { key, name, payload, .. }, .. } => {
                let effect = (name.clone(), payload.clone());
                match self.effects.get(key) {
                    Some(known) if *known != effect => {
                        Err(format!("effect key {key} was used for {known:?}, now for {effect:?}"))
                    }
                    Some(_) => Ok(()),
                    None => {
                        self.effects.insert(*key, effect);
                        Ok(())
                    }
                }
            }
            Fact::Audited(states) | Fact::Settled(states) => self.still_true(states),
            _ => Ok(()),
        }
    }
}

impl OutputNeverUndone {
    fn still_true(&self, states: &States) -> Result<(), String> {
        let accounts = states.accounts();
        for (key, id, seen) in &self.transfers {
            let account = accounts.get(key.as_str());
            let mut debits = account.iter().flat_map(|account| &account.history);
            match seen {
                Some(seen) => {
                    let now = account.and_then(|account| account.seen_at(seen.entries));
                    if now != Some(*seen) {
                        return Err(format!("transfer {id}: {key:?} was answered {seen:?}, is now {now:?}"));
                    }
                }
                None => {
                    if debits.any(|entry| entry.id == *id && entry.what == What::Debited) {
                        return Err(format!("transfer {id} was refused, and {key:?} was debited"));
                    }
                }
            }
        }
        Ok(())
    }
}

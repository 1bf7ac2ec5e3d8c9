//! The bank: the application that the invariants know how to audit.
//!
//! Decides: what a transfer does. The sender is debited and sends a credit, usually to another
//! partition; on the way it may ask for an effect, set a timer, or want an answer from the receiver.
//! Each account keeps the list of everything that ever happened to it, so that whatever anyone saw
//! of it can later be proven to be a prefix of its history.

use crate::abort::abort;
use rallypoint_base::random::mix;
use rallypoint_engine::actor::{Actor, Cx, Signal};
use rallypoint_engine::effect::EffectOutcome;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What every account holds before anything happens to it.
pub const OPENING: i64 = 1_000;

/// What an account understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Take `amount` from this account and credit `to` with it.
    Transfer {
        /// The number of this transfer, never given twice.
        id: u64,
        /// The receiving account.
        to: String,
        /// How much.
        amount: i64,
        /// What else happens on the way.
        extra: Extra,
    },
    /// The other half of a transfer.
    Credit {
        /// The number of the transfer.
        id: u64,
        /// How much.
        amount: i64,
    },
    /// How far this account has come: changes nothing.
    Look,
    /// Panics.
    Panic,
    /// Ends the worker.
    Abort,
}

/// What a transfer does besides moving money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Extra {
    /// Nothing.
    None,
    /// Asks for an effect.
    Effect,
    /// Sets a timer.
    Timer,
    /// Wants an answer from the receiver.
    Answer,
}

/// What happened to an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// It sent a transfer.
    Debited,
    /// It received one.
    Credited,
    /// An effect ended.
    EffectEnded,
    /// A timer fired.
    TimerFired,
    /// The receiver of a transfer answered.
    Answered,
}

/// One entry of an account's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Of which transfer.
    pub id: u64,
    /// What happened.
    pub what: What,
    /// By how much the balance changed.
    pub change: i64,
}

/// How far an account had come when somebody looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Length of its history.
    pub entries: u64,
    /// Hash of its history.
    pub chain: u64,
    /// Its balance.
    pub balance: i64,
}

/// An account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Everything that ever happened to it.
    pub history: Vec<Entry>,
    timers: Vec<u64>,
}

impl Account {
    /// Balance now.
    #[must_use]
    pub fn balance(&self) -> i64 {
        OPENING + self.history.iter().map(|entry| entry.change).sum::<i64>()
    }

    /// What one would have seen when the history had `entries` entries; `None` when it never had.
    #[must_use]
    pub fn seen_at(&self, entries: u64) -> Option<Seen> {
        let prefix = self.history.get(..usize::try_from(entries).ok()?)?;
        let chain = prefix.iter().fold(1, |chain, entry| {
            mix(chain ^ mix(entry.id ^ (entry.what as u64) << 56) ^ entry.change as u64)
        });
        let balance = OPENING + prefix.iter().map(|entry| entry.change).sum::<i64>();
        Some(Seen { entries, chain, balance })
    }

    fn seen(&self) -> Seen {
        let entries = self.history.len() as u64;
        self.seen_at(entries).unwrap_or(Seen { entries, chain: 0, balance: 0 })
    }

    fn note(&mut self, id: u64, what: What, change: i64) {
        self.history.push(Entry { id, what, change });
    }
}

impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Order;
    type Reply = Seen;
    type Error = String;

    fn handle(&mut self, order: Order, cx: &mut Cx<'_>) -> Result<Seen, String> {
        match order {
            Order::Transfer { id, to, amount, extra } => {
                if self.balance() < amount {
                    return Err("too little money".into());
                }
                self.note(id, What::Debited, -amount);
                let credit = Order::Credit { id, amount };
                match extra {
                    Extra::Answer => cx.ask::<Self>(&to, &credit, id),
                    _ => cx.send::<Self>(&to, &credit),
                }
                if extra == Extra::Effect {
                    cx.effect("notify", &id, Duration::from_millis(200), id);
                }
                if extra == Extra::Timer {
                    self.timers.push(id);
                    cx.set_timer(&id.to_string(), Duration::from_millis(3));
                }
            }
            Order::Credit { id, amount } => self.note(id, What::Credited, amount),
            Order::Look => {}
            Order::Panic => std::panic::resume_unwind(Box::new("a poisonous order")),
            Order::Abort => abort(),
        }
        Ok(self.seen())
    }

    fn signal(&mut self, signal: Signal<'_>, _cx: &mut Cx<'_>) -> Result<(), String> {
        match signal {
            Signal::Timer { name } => {
                let id = name.parse().map_err(|_| format!("a timer called {name}"))?;
                self.timers.retain(|&timer| timer != id);
                self.note(id, What::TimerFired, 0);
            }
            Signal::Effect { token, outcome } => {
                if let EffectOutcome::Failed(text) = outcome {
                    debug_assert!(!text.is_empty());
                }
                self.note(token, What::EffectEnded, 0);
            }
            Signal::Answer { token, .. } => self.note(token, What::Answered, 0),
            _ => {}
        }
        Ok(())
    }

    fn read_only(order: &Order) -> bool {
        *order == Order::Look
    }
}

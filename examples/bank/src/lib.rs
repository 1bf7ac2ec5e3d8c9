//! A bank of durable accounts: the actors of `rallypoint demo`, and an example to read.
//!
//! One [`Account`] per name. A transfer is two messages: the client asks the account that pays, and
//! that account sends a [`Message::Credit`] to the one that is paid, which usually lives in another
//! partition on another worker. Between the two the money is in neither account, only in a message;
//! that it arrives exactly once, whatever dies meanwhile, is what rallypoint is for.
//!
//! Decides when money may leave an account. Never retries, never asks whether a message came twice,
//! never writes a file: none of that is an actor's business.
//!
//! Invariants: an account's balance is its opening, plus its credits, less its debits. A credit is
//! sent if and only if the debit was made.
//!
//! No sum in here can overflow: an opening and an amount are below 2^64 and there are fewer than
//! 2^64 lines, so that every sum of them is below 2^128.
#![forbid(unsafe_code)]

mod digest;
pub mod transfer;

pub use digest::Digest;

use rallypoint::{Actor, Cx};
use serde::{Deserialize, Serialize};

/// One account. Before it is opened it has nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    opened: bool,
    /// Cents that it was opened with.
    opening: u64,
    /// Cents that it has now.
    balance: u128,
    /// What left.
    debits: Digest,
    /// What arrived.
    credits: Digest,
}

/// What an account understands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// From the client, to the account that pays: pay `amount` cents to account `to`.
    Transfer {
        /// Line of the input file: tells one transfer from every other.
        line: u64,
        /// Name of the account that is paid.
        to: String,
        /// Cents, from 1.
        amount: u64,
        /// Cents that a new account opens with.
        opening: u64,
    },
    /// From the client, for a line that names two accounts and moves nothing: open both.
    Open {
        /// Name of the other account.
        to: String,
        /// Cents that a new account opens with.
        opening: u64,
    },
    /// From the account that paid: the money.
    Credit {
        /// Line of the input file.
        line: u64,
        /// Cents.
        amount: u64,
        /// Cents that a new account opens with.
        opening: u64,
    },
    /// From an account that did not pay: you were named.
    Touch {
        /// Cents that a new account opens with.
        opening: u64,
    },
    /// From anybody who wants to know. Changes nothing.
    Read,
}

/// What an account answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The debit was made and the credit is on its way.
    Applied,
    /// There was too little money; nothing was moved, and both accounts are open.
    Refused,
    /// The account is open.
    Opened,
    /// The credit has arrived.
    Credited,
    /// What the account looks like.
    View(View),
}

/// A message that no bank should get: the sender is at fault. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mistake {
    /// The account that pays and the account that is paid are the same.
    ToItself,
    /// A transfer of nothing.
    NoAmount,
}

/// An account as others see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// False: nobody has named this account yet.
    pub opened: bool,
    /// Cents that it was opened with.
    pub opening: u64,
    /// Cents that it has now.
    pub balance: u128,
    /// What left.
    pub debits: Digest,
    /// What arrived.
    pub credits: Digest,
}

impl Actor for Account {
    const KIND: &'static str = "account";
    type Message = Message;
    type Reply = Reply;
    type Error = Mistake;

    fn handle(&mut self, message: Message, cx: &mut Cx<'_>) -> Result<Reply, Mistake> {
        match message {
            Message::Transfer { line, to, amount, opening } => {
                check(cx.key(), &to, amount)?;
                self.open(opening);
                if self.debit(line, amount) {
                    cx.send::<Self>(&to, &Message::Credit { line, amount, opening });
                    Ok(Reply::Applied)
                } else {
                    // A reply and not an `Err`: an `Err` would take back the opening and the touch.
                    cx.send::<Self>(&to, &Message::Touch { opening });
                    Ok(Reply::Refused)
                }
            }
            Message::Open { to, opening } => {
                self.open(opening);
                cx.send::<Self>(&to, &Message::Touch { opening });
                Ok(Reply::Opened)
            }
            Message::Credit { line, amount, opening } => {
                self.open(opening);
                self.credit(line, amount);
                Ok(Reply::Credited)
            }
            Message::Touch { opening } => {
                self.open(opening);
                Ok(Reply::Opened)
            }
            Message::Read => Ok(Reply::View(self.view())),
        }
    }

    fn read_only(message: &Message) -> bool {
        matches!(message, Message::Read)
    }
}

fn check(from: &str, to: &str, amount: u64) -> Result<(), Mistake> {
    if from == to {
        Err(Mistake::ToItself)
    } else if amount == 0 {
        Err(Mistake::NoAmount)
    } else {
        Ok(())
    }
}

/// What the messages do, without the messages: a sequential program can call these as well.
impl Account {
    /// Opens the account with `opening` cents, unless it is open already.
    pub fn open(&mut self, opening: u64) {
        if !self.opened {
            *self = Self { opened: true, opening, balance: u128::from(opening), ..Self::default() };
        }
    }

    /// Takes `amount` cents out, or changes nothing and is false where there is too little.
    #[must_use]
    pub fn debit(&mut self, line: u64, amount: u64) -> bool {
        let Some(rest) = self.balance.checked_sub(u128::from(amount)) else { return false };
        self.balance = rest;
        self.debits.add(line, amount);
        true
    }

    /// Puts `amount` cents in.
    pub fn credit(&mut self, line: u64, amount: u64) {
        self.balance += u128::from(amount);
        self.credits.add(line, amount);
    }

    /// What the account looks like.
    #[must_use]
    pub fn view(&self) -> View {
        let Self { opened, opening, balance, debits, credits } = *self;
        View { opened, opening, balance, debits, credits }
    }
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ToItself => "an account cannot pay itself; name two accounts",
            Self::NoAmount => "a transfer needs an amount; name at least one cent",
        })
    }
}

impl std::error::Error for Mistake {}

#[cfg(test)]
mod tests {
    use super::{Account, Digest, Message, Mistake, Reply, View, check};
    use rallypoint::Actor;
    use serde::{Serialize, de::DeserializeOwned};

    fn opened(opening: u64) -> Account {
        let mut account = Account::default();
        account.open(opening);
        account
    }

    #[test]
    fn an_account_opens_once() {
        let mut account = Account::default();
        assert_eq!(account.view(), View::default());
        account.open(100);
        assert!(account.debit(2, 30));
        account.open(500);
        assert_eq!((account.view().opening, account.view().balance), (100, 70));
    }

    #[test]
    fn too_little_money_changes_nothing() {
        let mut account = opened(100);
        let before = account.clone();
        assert!(!account.debit(2, 101));
        assert_eq!(account, before);
        assert!(account.debit(2, 100));
        assert_eq!(account.view().balance, 0);
    }

    #[test]
    fn the_balance_is_the_opening_and_what_came_less_what_left() {
        let mut account = opened(1_000);
        for line in 2..100 {
            account.credit(line, line * 7);
            let _ = account.debit(line + 100, line * 9);
        }
        let view = account.view();
        assert_eq!(view.balance + view.debits.cents, 1_000 + view.credits.cents);
        assert_eq!(view.credits.count, 98);
    }

    #[test]
    fn the_largest_sums_fit() {
        let mut account = opened(u64::MAX);
        for line in 0..1_000 {
            account.credit(line, u64::MAX);
        }
        assert_eq!(account.view().balance, 1_001 * u128::from(u64::MAX));
    }

    #[test]
    fn mistakes_of_the_sender_are_named() {
        assert_eq!(check("ann", "ann", 1), Err(Mistake::ToItself));
        assert_eq!(check("ann", "bob", 0), Err(Mistake::NoAmount));
        assert_eq!(check("ann", "bob", 1), Ok(()));
    }

    #[test]
    fn only_reading_is_read_only() {
        assert!(Account::read_only(&Message::Read));
        assert!(!Account::read_only(&Message::Touch { opening: 1 }));
        assert!(!Account::read_only(&Message::Open { to: "bob".to_owned(), opening: 1 }));
    }

    fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
        let bytes = rmp_serde::to_vec_named(value).unwrap();
        assert_eq!(rmp_serde::from_slice::<T>(&bytes).unwrap(), *value);
    }

    #[test]
    fn everything_survives_being_written_and_read() {
        let mut account = opened(u64::MAX);
        account.credit(9, u64::MAX);
        assert!(account.debit(u64::MAX, 1));
        survives(&account);
        survives(&Reply::View(account.view()));
        survives(&Message::Transfer { line: 2, to: "büro, \"7\"".to_owned(), amount: 1 << 53, opening: 1 });
        survives(&Message::Read);
        survives(&Digest::default());
        survives(&Err::<Reply, _>(Mistake::ToItself));
    }
}

//! A transfer as a saga: debit, then credit, and the debit given back when the credit is refused.
//!
//! The classical compensation example, with nothing in memory that a crash could lose. The accounts
//! are durable actors of the same runtime; in practice they would be somebody else's service. Each
//! account keeps the keys it has seen, so that a step that comes twice acts once, an undo before its
//! step leaves a mark, and a step after its undo is refused.

use rallypoint::{
    Actor, App, AskError, Client, Cx, Registry, Saga, SagaError, Step, StepCx, StepError, StepOutcome,
    UndoError,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Seen {
    /// It moved so many cents.
    Moved(i64),
    /// It was undone, perhaps before it came.
    Undone,
}

/// An account that knows which moves it has made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ledger {
    cents: i64,
    closed: bool,
    seen: BTreeMap<String, Seen>,
}

/// What it understands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Move {
    /// Move cents (below zero: out of it) under a key.
    Cents {
        /// Idempotency key.
        key: String,
        /// How many.
        cents: i64,
    },
    /// Take back what was moved under a key, now or later.
    Undo {
        /// The key of the move.
        key_of: String,
    },
    /// No money goes in any more.
    Close,
    /// How much is there?
    Read,
}

/// Why a move is refused. Nothing was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// There is too little.
    TooLittle,
    /// The account is closed.
    Closed,
    /// It was undone before it came.
    Undone,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLittle => "there is too little money",
            Self::Closed => "the account is closed",
            Self::Undone => "it was undone before it came",
        })
    }
}

impl Ledger {
    fn take(&mut self, message: Move) -> Result<i64, Refused> {
        match message {
            Move::Cents { key, cents } => match self.seen.get(&key) {
                Some(Seen::Moved(_)) => {}
                Some(Seen::Undone) => return Err(Refused::Undone),
                None if self.closed && cents > 0 => return Err(Refused::Closed),
                None if self.cents + cents < 0 => return Err(Refused::TooLittle),
                None => {
                    self.cents += cents;
                    self.seen.insert(key, Seen::Moved(cents));
                }
            },
            Move::Undo { key_of } => {
                if let Some(Seen::Moved(cents)) = self.seen.insert(key_of, Seen::Undone) {
                    self.cents -= cents;
                }
            }
            Move::Close => self.closed = true,
            Move::Read => {}
        }
        Ok(self.cents)
    }
}

impl Actor for Ledger {
    const KIND: &'static str = "ledger";
    type Message = Move;
    type Reply = i64;
    type Error = Refused;
    fn handle(&mut self, message: Move, _: &mut Cx<'_>) -> Result<i64, Refused> {
        self.take(message)
    }
    fn read_only(message: &Move) -> bool {
        matches!(message, Move::Read)
    }
}

/// The way to the accounts: set once the runtime is open. Or the accounts themselves, in a test.
#[derive(Clone, Default)]
pub struct Bank(Arc<Way>);

#[derive(Default)]
struct Way {
    client: OnceLock<Arc<Client>>,
    memory: Option<Mutex<BTreeMap<String, Ledger>>>,
}

impl Bank {
    /// The same accounts without a store, for a test of the saga: what they had when they were opened.
    #[must_use]
    pub fn in_memory(accounts: &[(&str, i64)]) -> Self {
        let ledger = |cents: i64| Ledger { cents, ..Ledger::default() };
        let ledgers = accounts.iter().map(|&(name, cents)| (name.to_owned(), ledger(cents)));
        let memory = Some(Mutex::new(ledgers.collect()));
        Self(Arc::new(Way { memory, ..Way::default() }))
    }

    /// What an account in memory has.
    #[must_use]
    pub fn cents(&self, account: &str) -> Option<i64> {
        let accounts = self.0.memory.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.get(account).map(|ledger| ledger.cents)
    }

    /// Says through whom the accounts are reached.
    pub fn connect(&self, client: Arc<Client>) {
        let _ = self.0.client.set(client);
    }

    /// Asks an account, as often as it takes: an answer that did not come is unknown, not "no".
    ///
    /// # Errors
    /// The account's refusal, or why there is no answer.
    pub async fn ask(&self, account: &str, message: Move) -> Result<i64, StepError<Refused>> {
        if let Some(accounts) = &self.0.memory {
            let mut accounts = accounts.lock().unwrap_or_else(PoisonError::into_inner);
            return accounts
                .entry(account.to_owned())
                .or_default()
                .take(message)
                .map_err(StepError::business);
        }
        let Some(client) = self.0.client.get() else {
            return Err(StepError::not_acted("the bank is not open"));
        };
        match client.ask::<Ledger>(account, &message).await {
            Ok(cents) => Ok(cents),
            Err(AskError::Refused(refused)) => Err(StepError::business(refused)),
            Err(error) => Err(StepError::transient(error)),
        }
    }
}

/// One half of a transfer: cents into an account, below zero out of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Post {
    /// The account.
    pub account: String,
    /// How many.
    pub cents: i64,
}

impl Step<Bank> for Post {
    const NAME: &'static str = "post";
    type Output = i64;
    type Error = Refused;
    async fn run(&self, cx: StepCx<'_, Bank>) -> Result<i64, StepError<Refused>> {
        let message = Move::Cents { key: cx.key().to_owned(), cents: self.cents };
        cx.app().ask(&self.account, message).await
    }
    async fn undo(&self, cx: StepCx<'_, Bank>, _: StepOutcome<i64>) -> Result<(), UndoError> {
        let key_of = cx.key_of().unwrap_or_default().to_owned();
        match cx.app().ask(&self.account, Move::Undo { key_of }).await {
            Ok(_) => Ok(()),
            Err(error) => Err(UndoError::transient(format!("{error:?}"))),
        }
    }
}

/// A transfer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// Who pays.
    pub from: String,
    /// Who is paid.
    pub to: String,
    /// How much.
    pub cents: i64,
}

/// Debit, then credit. When the credit is refused the debit is given back.
///
/// # Errors
/// [`SagaError`]: one of the accounts refused.
pub async fn transfer(s: Saga<Bank>, t: Transfer) -> Result<(), SagaError> {
    s.step(Post { account: t.from, cents: -t.cents }).await?;
    s.step(Post { account: t.to, cents: t.cents }).await?;
    Ok(())
}

/// The steps of a transfer.
#[must_use]
pub fn steps(bank: &Bank) -> Registry<Bank> {
    Registry::new(bank.clone()).step::<Post>()
}

/// The accounts and the saga.
#[must_use]
pub fn application(bank: &Bank) -> App {
    App::define().actor::<Ledger>().sagas(steps(bank).saga("transfer", 1, transfer))
}

//! An order saga over fake participants that behave as real ones must, and the ways in which they
//! can be made not to.

use rallypoint::test::{SagaStorm, saga};
use rallypoint::{Registry, Saga, SagaError, Step, StepCx, StepError, StepOutcome, UndoError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a participant does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Nothing.
    None,
    /// It acts on each repetition.
    ActsOnRepetition,
    /// It looks whether the key is new, and acts a moment later.
    LooksBeforeItActs,
    /// It refuses a repetition.
    RefusesRepetition,
    /// It takes an original that comes after its undo.
    TakesLateOriginal,
    /// Its undo fails where nothing was there.
    UndoNeedsTheStep,
    /// Its undo looks whether the step was there, and leaves its mark a moment later.
    UndoLooksBeforeItMarks,
    /// Its undo takes the outcome for granted.
    UndoNeedsTheOutcome,
    /// Its first undo is turned away, and the step swallows that.
    UndoSwallowsErrors,
    /// Its undo gives back again with each repetition.
    UndoesOnRepetition,
    /// It loses its way after six repetitions of undos, and acts again.
    LosesItsWay,
    /// It is done in two halves, each idempotent; the undo of an unknown outcome knows only the second.
    UndoForgetsTheFirstHalf,
}

/// What a participant knows of a request's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Done,
    Undone,
}

/// One participant: how often it has acted, less how often that was taken back.
#[derive(Debug, Default)]
pub(crate) struct Participant {
    keys: BTreeMap<String, Known>,
    pub(crate) count: i64,
    pub(crate) half: bool,
    busy: bool,
}

/// The outside.
pub(crate) struct Shop {
    pub(crate) mutant: Mutant,
    pub(crate) participants: Mutex<BTreeMap<String, Participant>>,
    repetitions: AtomicU64,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shop {
    pub(crate) fn new(mutant: Mutant) -> Self {
        Self { mutant, participants: Mutex::default(), repetitions: AtomicU64::new(0) }
    }

    pub(crate) fn count(&self, name: &str) -> i64 {
        lock(&self.participants).get(name).map_or(0, |participant| participant.count)
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, i64> {
        let counts = lock(&self.participants).iter().map(|(name, p)| (name.clone(), p.count)).collect();
        // One that was asked and undone is as one that was never asked.
        let mut counts: BTreeMap<String, i64> = counts;
        counts.retain(|_, count| *count != 0);
        counts
    }

    pub(crate) fn act(&self, name: &str, key: &str) -> Result<(), StepError<String>> {
        let mut participants = lock(&self.participants);
        let this = participants.entry(name.to_owned()).or_default();
        match this.keys.get(key) {
            Some(Known::Done) if self.mutant == Mutant::RefusesRepetition => {
                return Err(StepError::business("this key was used".to_owned()));
            }
            Some(Known::Done) if self.mutant != Mutant::ActsOnRepetition => return Ok(()),
            Some(Known::Undone) if self.mutant != Mutant::TakesLateOriginal => {
                return Err(StepError::business("it was undone before it came".to_owned()));
            }
            _ => {}
        }
        this.keys.insert(key.to_owned(), Known::Done);
        this.count += 1;
        Ok(())
    }

    pub(crate) fn take_back(&self, name: &str, key_of: &str) -> Result<(), UndoError> {
        let mut participants = lock(&self.participants);
        let this = participants.entry(name.to_owned()).or_default();
        if self.mutant == Mutant::UndoSwallowsErrors && !std::mem::replace(&mut this.busy, true) {
            return Err(UndoError::transient("busy"));
        }
        match this.keys.insert(key_of.to_owned(), Known::Undone) {
            Some(Known::Done) => this.count -= 1,
            Some(Known::Undone) if self.mutant == Mutant::UndoesOnRepetition => this.count -= 1,
            Some(Known::Undone)
                if self.mutant == Mutant::LosesItsWay
                    && self.repetitions.fetch_add(1, Ordering::SeqCst) >= 6 =>
            {
                this.count = 1;
            }
            None if self.mutant == Mutant::UndoNeedsTheStep => {
                this.keys.remove(key_of);
                return Err(UndoError::fatal("there is nothing under this key"));
            }
            _ => {}
        }
        Ok(())
    }

    fn is_new(&self, name: &str, key: &str) -> bool {
        lock(&self.participants).get(name).is_none_or(|participant| !participant.keys.contains_key(key))
    }

    /// Acts on what was seen before, whatever came since.
    fn forget(&self, name: &str, key: &str) {
        if let Some(participant) = lock(&self.participants).get_mut(name) {
            participant.keys.remove(key);
        }
    }

    fn half(&self, name: &str, is_there: bool) {
        lock(&self.participants).entry(name.to_owned()).or_default().half = is_there;
    }

    fn is_half(&self, name: &str) -> bool {
        lock(&self.participants).get(name).is_some_and(|participant| participant.half)
    }

    /// It is there, exactly once.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.count(name) == 1 || (self.mutant == Mutant::UndoForgetsTheFirstHalf && self.is_half(name))
    }
}

/// A step that has an undo.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Do {
    pub(crate) what: String,
}

impl Step<Shop> for Do {
    const NAME: &'static str = "do";
    type Output = u64;
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Shop>) -> Result<u64, StepError<String>> {
        // The way there takes its time; a crash may come in the middle of it.
        cx.app().half(&self.what, true);
        let is_new = cx.app().is_new(&self.what, cx.key());
        tokio::time::sleep(Duration::from_millis(3)).await;
        if cx.app().mutant == Mutant::LooksBeforeItActs && is_new {
            cx.app().forget(&self.what, cx.key());
        }
        cx.app().act(&self.what, cx.key())?;
        Ok(17)
    }
    async fn undo(&self, cx: StepCx<'_, Shop>, done: StepOutcome<u64>) -> Result<(), UndoError> {
        let shop = cx.app();
        if shop.mutant == Mutant::UndoNeedsTheOutcome && done == StepOutcome::Unknown {
            return Err(UndoError::fatal("there is no receipt"));
        }
        let is_new = shop.is_new(&self.what, cx.key_of().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(5)).await;
        if shop.mutant == Mutant::UndoLooksBeforeItMarks && is_new {
            shop.forget(&self.what, cx.key_of().unwrap_or_default());
        }
        let undone = shop.take_back(&self.what, cx.key_of().unwrap_or_default());
        let forgets = shop.mutant == Mutant::UndoForgetsTheFirstHalf && done == StepOutcome::Unknown;
        if !forgets {
            shop.half(&self.what, false);
        }
        if shop.mutant == Mutant::UndoSwallowsErrors {
            return Ok(());
        }
        undone
    }
}

/// A step that has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Tell {
    pub(crate) what: String,
}

impl Step<Shop> for Tell {
    const NAME: &'static str = "tell";
    type Output = ();
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Shop>) -> Result<(), StepError<String>> {
        cx.app().act(&self.what, cx.key())
    }
}

pub(crate) fn step(what: &str) -> Do {
    Do { what: what.to_owned() }
}

pub(crate) fn tell(what: &str) -> Tell {
    Tell { what: what.to_owned() }
}

/// The steps, over a fresh outside.
pub(crate) fn shop(mutant: Mutant) -> Registry<Shop> {
    Registry::new(Shop::new(mutant)).step::<Do>().step::<Tell>()
}

/// Reserve; label and charge side by side; ship, after which there is only forward; tell the customer.
pub(crate) async fn order(s: Saga<Shop>, order: u64) -> Result<u64, SagaError> {
    s.step(step("reserve")).await?;
    let charge = s.step(step("charge")).timeout(Duration::from_secs(5));
    let (label, _) = s.join(s.step(step("label")), charge).await?;
    s.step(step("ship")).pivot().await?;
    s.step(tell("mail")).await?;
    Ok(order + label)
}

pub(crate) const PARTS: [&str; 5] = ["reserve", "label", "charge", "ship", "mail"];

/// The storm of the order.
pub(crate) fn ordered(mutant: Mutant) -> SagaStorm<Shop> {
    saga(move || shop(mutant), order, 17).all_or_nothing(|shop| PARTS.map(|part| (part, shop.has(part))))
}

/// The same, with nothing to judge it by but the rules of every saga.
pub(crate) fn unjudged(mutant: Mutant) -> SagaStorm<Shop> {
    saga(move || shop(mutant), order, 17)
}

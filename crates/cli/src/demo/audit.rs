//! The proof: do the accounts hold what the ledger says they must?
//!
//! Decides whether money was conserved, and how many debits and credits are missing or too many. A
//! transfer is two of these, one in each account: a transfer that vanished whole is lost twice.
//!
//! Never sees the store or a log: it gets the books ([`crate::demo::sequential`], from input file and
//! ledger) and what a fresh process found in the accounts after all messages had arrived.
//!
//! How few bytes are enough: the digests of what must be there and of what is there agree if and only
//! if the sets do (but for one chance in 2^64). Where they differ, the difference of the counts is the
//! least number of faults, and the difference of the sums is the hash of the transfer if it is one;
//! a second pass over the file finds it ([`Audit::name_transfers`]).
//!
//! Invariant: an audit without findings is conserved, with nothing lost or doubled, and the other way
//! round.

use crate::demo::input::{Content, InputError, Line};
use crate::demo::ledger::{Outcome, Outcomes};
use crate::demo::sequential::{Book, Books};
use bank::{Digest, View};
use std::collections::BTreeMap;
use std::fmt;

/// Findings that are told one by one; of more there is only the number.
const TOLD: usize = 10;

/// What the audit came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    /// Every account that must be open is, no other is, each holds its opening plus credits less
    /// debits, and together they hold what they opened with.
    pub(crate) conserved: bool,
    /// Acknowledged debits and credits that are missing: at least so many.
    pub(crate) lost: u64,
    /// Debits and credits that are there without an acknowledgement or twice: at least so many.
    pub(crate) doubled: u64,
    /// Accounts that were looked at.
    pub(crate) accounts: u64,
    /// The first findings, in the order of names.
    pub(crate) findings: Vec<Finding>,
    /// Number of findings that are not among the first.
    pub(crate) more: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where, or empty: it concerns all together.
    pub(crate) account: String,
    /// What.
    pub(crate) fault: Fault,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It must be open and is not.
    Missing,
    /// It is open and no line names it.
    Unasked,
    /// It opened with another amount.
    Opening { expected: u64, found: u64 },
    /// Its balance does not follow from what it says has left and arrived.
    Balance { expected: i128, found: u128 },
    /// The balances together.
    Sum { expected: u128, found: u128 },
    /// What left or arrived is not what was acknowledged.
    Postings(Postings),
}

/// The two sides of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// What left.
    Debit,
    /// What arrived.
    Credit,
}

/// How one side of an account differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Postings {
    /// Which side.
    pub(crate) side: Side,
    /// By books.
    pub(crate) expected: Digest,
    /// In the account.
    pub(crate) found: Digest,
    /// Which transfers these are, where it could be told.
    pub(crate) cause: Option<Cause>,
}

/// What explains a difference completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// This line is missing.
    Lost { line: u64 },
    /// This line is there once too often.
    Doubled { line: u64 },
    /// This line was refused, or is a duplicate, or was never acknowledged, or names another account.
    MadeUp { line: u64 },
    /// This line is there with another amount.
    Altered { line: u64, expected: u64, found: u64 },
    /// One line is missing and another is there once too often.
    Swapped { lost: u64, extra: u64 },
}

/// Compares the books with what was found in the accounts.
pub(crate) fn audit(books: &Books, actual: &BTreeMap<String, View>) -> Audit {
    let mut audit = Audit { conserved: true, ..Audit::default() };
    let (mut open, mut sum) = (0_u128, 0_u128);
    for (name, view) in actual.iter().filter(|(_, view)| view.opened) {
        open += 1;
        sum = sum.saturating_add(view.balance);
        if !books.accounts.contains_key(name) {
            audit.broken(name, Fault::Unasked);
            audit.compare_account(name, &Book::default(), view);
        }
    }
    for (name, book) in &books.accounts {
        match actual.get(name).filter(|view| view.opened) {
            Some(view) => {
                audit.accounts += 1;
                if view.opening != books.opening {
                    let fault = Fault::Opening { expected: books.opening, found: view.opening };
                    audit.broken(name, fault);
                }
                audit.compare_account(name, book, view);
            }
            None if book.opened => {
                audit.accounts += 1;
                audit.broken(name, Fault::Missing);
                audit.compare_account(name, book, &View::default());
            }
            // Named only by lines that were not acknowledged.
            None => {}
        }
    }
    let expected = open * u128::from(books.opening);
    if sum != expected {
        audit.broken("", Fault::Sum { expected, found: sum });
    }
    audit
}

impl Audit {
    #[cfg(test)]
    /// True when there is nothing to say.
    pub(crate) fn is_sound(&self) -> bool {
        self.conserved && self.lost == 0 && self.doubled == 0
    }

    /// Looks for the transfers behind the findings told, in one more pass over the input.
    pub(crate) fn name_transfers(
        &mut self,
        lines: impl Iterator<Item = Result<Line, InputError>>,
        outcomes: &Outcomes,
    ) -> Result<(), InputError> {
        let mut searches: Vec<Search<'_>> = Vec::new();
        for Finding { account, fault } in &mut self.findings {
            if let Fault::Postings(postings) = fault {
                searches.push(Search { account, postings, applied: Vec::new() });
            }
        }
        if searches.is_empty() {
            return Ok(());
        }
        for line in lines {
            let Line { number, content } = line?;
            let (Content::Transfer(transfer) | Content::Duplicate(transfer)) = content else { continue };
            let applied = outcomes.get(number) == Some(Outcome::Applied);
            for search in &mut searches {
                let account = match search.postings.side {
                    Side::Debit => &transfer.from,
                    Side::Credit => &transfer.to,
                };
                search.look_at(number, transfer.amount, applied && account == search.account);
            }
        }
        for search in searches {
            search.combine();
        }
        Ok(())
    }

    fn compare_account(&mut self, name: &str, book: &Book, view: &View) {
        let digests = Book { debits: view.debits, credits: view.credits, ..*book };
        let opening = if view.opened { view.opening } else { 0 };
        let expected = digests.balance(opening);
        if u128::try_from(expected) != Ok(view.balance) {
            self.broken(name, Fault::Balance { expected, found: view.balance });
        }
        let open = book.unacknowledged;
        self.compare_side(name, Side::Debit, book.debits, view.debits, open);
        self.compare_side(name, Side::Credit, book.credits, view.credits, open);
    }

    /// `open` postings more than expected may be there, since nobody was told that they are not.
    fn compare_side(&mut self, name: &str, side: Side, expected: Digest, found: Digest, open: u64) {
        let more = found.count.saturating_sub(expected.count);
        if expected == found || (1..=open).contains(&more) {
            return;
        }
        if found.count == expected.count {
            self.lost += 1;
            self.doubled += u64::from(open == 0);
        } else {
            self.lost += expected.count.saturating_sub(found.count);
            self.doubled += more.saturating_sub(open);
        }
        self.tell(name, Fault::Postings(Postings { side, expected, found, cause: None }));
    }

    fn broken(&mut self, name: &str, fault: Fault) {
        self.conserved = false;
        self.tell(name, fault);
    }

    fn tell(&mut self, name: &str, fault: Fault) {
        if self.findings.len() < TOLD {
            self.findings.push(Finding { account: name.to_owned(), fault });
        } else {
            self.more += 1;
        }
    }
}

/// Looks for the cause of one finding.
struct Search<'a> {
    account: &'a str,
    postings: &'a mut Postings,
    /// What must be on this side of this account; kept only where two of them have to be combined.
    applied: Vec<(u64, u64)>,
}

impl Search<'_> {
    fn missing(&self) -> i128 {
        i128::from(self.postings.expected.count) - i128::from(self.postings.found.count)
    }

    /// What the sum must grow by to be right.
    fn difference(&self) -> u64 {
        self.postings.expected.sum.wrapping_sub(self.postings.found.sum)
    }

    fn look_at(&mut self, line: u64, amount: u64, expected: bool) {
        let hash = Digest::hash(line, amount);
        let cause = match self.missing() {
            1 if expected && hash == self.difference() => Cause::Lost { line },
            -1 if hash == self.difference().wrapping_neg() => {
                if expected {
                    Cause::Doubled { line }
                } else {
                    Cause::MadeUp { line }
                }
            }
            0 if expected => {
                self.applied.push((line, amount));
                let more = self.postings.found.cents as i128 - self.postings.expected.cents as i128;
                let Ok(found) = u64::try_from(i128::from(amount) + more) else { return };
                let altered = Digest::hash(line, found);
                if found == amount || hash.wrapping_sub(altered) != self.difference() {
                    return;
                }
                Cause::Altered { line, expected: amount, found }
            }
            _ => return,
        };
        self.postings.cause = Some(cause);
    }

    /// One lost and another one doubled: two whose hashes differ by the difference.
    fn combine(self) {
        if self.missing() != 0 || self.postings.cause.is_some() {
            return;
        }
        let hashes: BTreeMap<u64, u64> =
            self.applied.iter().map(|&(line, amount)| (Digest::hash(line, amount), line)).collect();
        let difference = self.difference();
        self.postings.cause = hashes.iter().find_map(|(hash, &lost)| {
            let extra = *hashes.get(&hash.wrapping_sub(difference))?;
            Some(Cause::Swapped { lost, extra })
        });
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.account.is_empty() {
            write!(f, "{}", self.fault)
        } else {
            write!(f, "account {:?}: {}", self.account, self.fault)
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "acknowledged lines name it, and it is not there"),
            Self::Unasked => write!(f, "it is there, and no line of the input names it"),
            Self::Opening { expected, found } => {
                write!(f, "it opened with {found} cents instead of {expected}")
            }
            Self::Balance { expected, found } => {
                write!(f, "it holds {found} cents; opening, credits and debits make {expected}")
            }
            Self::Sum { expected, found } => {
                write!(f, "all accounts together hold {found} cents; they opened with {expected}")
            }
            Self::Postings(postings) => postings.fmt(f),
        }
    }
}

impl fmt::Display for Postings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Debit => "debits",
            Side::Credit => "credits",
        };
        let Self { expected, found, .. } = self;
        write!(
            f,
            "{} {side} of {} cents were acknowledged, {} of {} cents are there",
            expected.count, expected.cents, found.count, found.cents
        )?;
        match self.cause {
            None => Ok(()),
            Some(Cause::Lost { line }) => write!(f, "; line {line} is lost"),
            Some(Cause::Doubled { line }) => write!(f, "; line {line} is doubled"),
            Some(Cause::MadeUp { line }) => write!(f, "; line {line} has no business here"),
            Some(Cause::Altered { line, expected, found }) => {
                write!(f, "; line {line} is there with {found} cents instead of {expected}")
            }
            Some(Cause::Swapped { lost, extra }) => {
                write!(f, "; line {lost} is lost and line {extra} doubled")
            }
        }
    }
}

#[cfg(test)]
mod tests;

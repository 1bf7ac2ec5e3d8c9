//! What the bank must look like, without a bank.
//!
//! Decides, from the input file alone, what one program that does one line after the other ends
//! with ([`run`]); and, from the file and the client's ledger, what the accounts must hold after a run
//! in which others came first ([`expect`]): with little money, which transfer is refused depends on
//! the order, and the ledger knows which were.
//!
//! Never uses the code of the actors it is compared with, but for the digest. Holds the accounts in
//! memory, never the transfers.

#[cfg(test)]
use crate::demo::input::Transfer;
use crate::demo::input::{Content, InputError, Line};
use crate::demo::ledger::{Outcome, Outcomes};
use bank::Digest;
use std::collections::{BTreeMap, HashMap};
use thiserror::Error;

/// How many lines there are of each sort. `inputs` is the sum of the others and of those that were
/// not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Lines after the header.
    pub(crate) inputs: u64,
    /// Transfers that were made.
    pub(crate) applied: u64,
    /// Transfers for which there was too little money.
    pub(crate) refused: u64,
    /// Lines whose id was seen before.
    pub(crate) duplicates: u64,
    /// Lines that are no transfers.
    pub(crate) rejected: u64,
}

/// One account in the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    /// True once a line that counts has named it.
    pub(crate) opened: bool,
    /// Lines that name it and were not acknowledged: each may have been done, or not.
    pub(crate) unacknowledged: u64,
    /// What left.
    pub(crate) debits: Digest,
    /// What arrived.
    pub(crate) credits: Digest,
}

impl Book {
    /// Cents in an account that opened with `opening`; below 0 only if a ledger is wrong.
    pub(crate) fn balance(&self, opening: u64) -> i128 {
        i128::from(opening) + self.credits.cents as i128 - self.debits.cents as i128
    }
}

/// All accounts, and the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    /// Cents that each account opened with.
    pub(crate) opening: u64,
    /// By name, in the order of bytes.
    pub(crate) accounts: BTreeMap<String, Book>,
    /// Of lines.
    pub(crate) counts: Counts,
    /// Lines, neither rejected nor acknowledged. They are not in the books.
    pub(crate) unacknowledged: u64,
}

/// The books could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum SequentialError {
    /// The file.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The ledger says something that cannot be about this file.
    #[error(
        "the ledger calls line {line} {ledger}, which cannot be: in the input it is {input}; \
         the ledger was changed, or the client has a bug"
    )]
    Disagree { line: u64, ledger: Outcome, input: &'static str },
    /// The ledger has more lines than the file.
    #[error("the ledger has {0} acknowledgements for lines that the input has not; it was changed")]
    Beyond(u64),
}

impl Books {
    #[cfg(test)]
    /// Cents in the account `name`.
    pub(crate) fn balance(&self, name: &str) -> Option<i128> {
        self.accounts.get(name).map(|book| book.balance(self.opening))
    }
}

/// Books in the making: a name is looked up once per line, and sorted only at the end.
#[derive(Default)]
struct Desk {
    places: HashMap<String, usize>,
    books: Vec<Book>,
    counts: Counts,
    unacknowledged: u64,
}

impl Desk {
    /// Where the book of `name` lies; begins it where it is new.
    fn place(&mut self, name: String) -> usize {
        let new = self.books.len();
        let place = *self.places.entry(name).or_insert(new);
        if place == new {
            self.books.push(Book::default());
        }
        place
    }

    fn open(&mut self, names: [String; 2]) -> [usize; 2] {
        let places = names.map(|name| self.place(name));
        places.into_iter().for_each(|place| self.books[place].opened = true);
        places
    }

    fn leave_open(&mut self, names: [String; 2]) {
        self.unacknowledged += 1;
        for name in names {
            let place = self.place(name);
            self.books[place].unacknowledged += 1;
        }
    }

    fn apply(&mut self, [from, to]: [usize; 2], line: u64, amount: u64) {
        self.counts.applied += 1;
        self.books[from].debits.add(line, amount);
        self.books[to].credits.add(line, amount);
    }

    fn close(self, opening: u64) -> Books {
        let Self { places, books, counts, unacknowledged } = self;
        let accounts = places.into_iter().map(|(name, place)| (name, books[place])).collect();
        Books { opening, accounts, counts, unacknowledged }
    }
}

#[cfg(test)]
/// Does one line after the other.
pub(crate) fn run(
    lines: impl Iterator<Item = Result<Line, InputError>>,
    opening: u64,
) -> Result<Books, InputError> {
    let mut desk = Desk::default();
    for line in lines {
        let Line { number, content } = line?;
        desk.counts.inputs += 1;
        match content {
            Content::Rejected(_) => desk.counts.rejected += 1,
            Content::Duplicate(Transfer { from, to, .. }) => {
                desk.open([from, to]);
                desk.counts.duplicates += 1;
            }
            Content::Transfer(Transfer { from, to, amount, .. }) => {
                let places = desk.open([from, to]);
                if desk.books[places[0]].balance(opening) >= i128::from(amount) {
                    desk.apply(places, number, amount);
                } else {
                    desk.counts.refused += 1;
                }
            }
        }
    }
    Ok(desk.close(opening))
}

/// Does exactly what was acknowledged as done.
pub(crate) fn expect(
    lines: impl Iterator<Item = Result<Line, InputError>>,
    outcomes: &Outcomes,
    opening: u64,
) -> Result<Books, SequentialError> {
    let mut desk = Desk::default();
    let mut acknowledged = 0;
    for line in lines {
        let Line { number, content } = line?;
        let outcome = outcomes.get(number);
        acknowledged += u64::from(outcome.is_some());
        desk.counts.inputs += 1;
        let disagree = |input, ledger| Err(SequentialError::Disagree { line: number, ledger, input });
        let (transfer, duplicate) = match content {
            Content::Transfer(transfer) => (transfer, false),
            Content::Duplicate(transfer) => (transfer, true),
            Content::Rejected(_) => match outcome {
                None => {
                    desk.counts.rejected += 1;
                    continue;
                }
                Some(ledger) => return disagree("rejected", ledger),
            },
        };
        let names = [transfer.from, transfer.to];
        match (outcome, duplicate) {
            (None, _) => desk.leave_open(names),
            (Some(Outcome::Applied), false) => {
                let places = desk.open(names);
                desk.apply(places, number, transfer.amount);
            }
            (Some(Outcome::Refused), false) => {
                desk.open(names);
                desk.counts.refused += 1;
            }
            (Some(Outcome::Duplicate), true) => {
                desk.open(names);
                desk.counts.duplicates += 1;
            }
            (Some(ledger), true) => return disagree("a duplicate", ledger),
            (Some(ledger), false) => return disagree("a transfer", ledger),
        }
    }
    match outcomes.count() - acknowledged {
        0 => Ok(desk.close(opening)),
        beyond => Err(SequentialError::Beyond(beyond)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Books, Counts, SequentialError, expect, run};
    use crate::demo::input::{HEADER, Lines};
    use crate::demo::ledger::{Outcome, Outcomes};
    use std::path::Path;

    const BODY: &str = "1,ann,bob,70\n2,ann,cleo,70\nnonsense\n1,dan,eve,5\n3,bob,ann,170\n4,fay,fay,1\n";

    fn lines(text: &str) -> Lines<&[u8]> {
        Lines::new(Path::new("in.csv"), text.as_bytes(), None).unwrap()
    }

    fn text() -> String {
        format!("{HEADER}\n{BODY}")
    }

    fn balances(books: &Books) -> String {
        let said = books.accounts.keys().map(|name| format!("{name}={}", books.balance(name).unwrap()));
        said.collect::<Vec<_>>().join(" ")
    }

    fn ledger(acknowledged: &[(u64, Outcome)]) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for &(line, outcome) in acknowledged {
            outcomes.note(line, outcome);
        }
        outcomes
    }

    #[test]
    fn one_line_after_the_other() {
        let books = run(lines(&text()), 100).unwrap();
        assert_eq!(balances(&books), "ann=200 bob=0 cleo=100 dan=100 eve=100");
        assert_eq!(books.counts, Counts { inputs: 6, applied: 2, refused: 1, duplicates: 1, rejected: 2 });
    }

    #[test]
    fn the_ledger_decides_what_was_refused() {
        use Outcome::{Applied, Duplicate, Refused};
        let outcomes = ledger(&[(2, Refused), (3, Applied), (5, Duplicate), (6, Refused)]);
        let books = expect(lines(&text()), &outcomes, 100).unwrap();
        assert_eq!(balances(&books), "ann=30 bob=100 cleo=170 dan=100 eve=100");
        assert_eq!(books.counts, Counts { inputs: 6, applied: 1, refused: 2, duplicates: 1, rejected: 2 });
        assert_eq!(books.unacknowledged, 0);
    }

    #[test]
    fn what_was_not_acknowledged_is_left_open() {
        let outcomes = ledger(&[(2, Outcome::Applied)]);
        let books = expect(lines(&text()), &outcomes, 100).unwrap();
        assert_eq!((books.unacknowledged, books.counts.applied), (3, 1));
        let book = |name: &str| (books.accounts[name].opened, books.accounts[name].unacknowledged);
        assert_eq!((book("ann"), book("cleo"), book("dan")), ((true, 2), (false, 1), (false, 1)));
    }

    #[test]
    fn a_ledger_that_is_not_about_this_file_is_an_error() {
        use Outcome::{Applied, Duplicate, Refused};
        for (line, wrong) in [(4, Applied), (5, Applied), (5, Refused), (2, Duplicate), (7, Refused)] {
            let said = expect(lines(&text()), &ledger(&[(line, wrong)]), 100).unwrap_err();
            assert!(matches!(said, SequentialError::Disagree { .. }), "{line}: {said}");
        }
        let beyond = expect(lines(&text()), &ledger(&[(2, Applied), (8, Applied), (1, Applied)]), 100);
        assert!(matches!(beyond, Err(SequentialError::Beyond(2))));
    }
}

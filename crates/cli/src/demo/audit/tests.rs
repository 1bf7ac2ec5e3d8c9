//! A toy bank without any engine: the accounts of the example, and a bag of messages that are
//! delivered in any order. Every mutation that a faulty engine could make is made here, and found.

use super::{Audit, Cause, Fault, Finding, Side, audit};
use crate::demo::input::{Content, HEADER, Line, Lines};
use crate::demo::ledger::{Outcome, Outcomes};
use crate::demo::sequential::{Books, expect, run};
use bank::{Account, Digest, View};
use proptest::prelude::*;
use rallypoint_base::random::Random;
use std::collections::BTreeMap;
use std::path::Path;

const OPENING: u64 = 1_000;

/// One step of the bank: what a message does to an account.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Credit { line: u64, amount: u64 },
    Debit { line: u64, amount: u64, to: String },
}

struct Toy {
    text: String,
    opening: u64,
    accounts: BTreeMap<String, Account>,
    bag: Vec<(String, Step)>,
    outcomes: Outcomes,
    random: Random,
}

impl Toy {
    fn new(text: &str, seed: u64) -> Self {
        let mut toy = Self {
            text: text.to_owned(),
            opening: OPENING,
            accounts: BTreeMap::new(),
            bag: Vec::new(),
            outcomes: Outcomes::default(),
            random: Random::new(seed),
        };
        for line in toy.lines().map(Result::unwrap).collect::<Vec<_>>() {
            match line.content {
                Content::Rejected(_) => {}
                Content::Duplicate(transfer) => {
                    toy.bag.push((transfer.from, Step::Open));
                    toy.bag.push((transfer.to, Step::Open));
                    toy.outcomes.note(line.number, Outcome::Duplicate);
                }
                Content::Transfer(transfer) => {
                    let (line, amount) = (line.number, transfer.amount);
                    toy.bag.push((transfer.from, Step::Debit { line, amount, to: transfer.to }));
                }
            }
        }
        toy
    }

    fn lines(&self) -> Lines<&[u8]> {
        Lines::new(Path::new("in.csv"), self.text.as_bytes(), None).unwrap()
    }

    fn deliver(&mut self, to: &str, step: Step) {
        let account = self.accounts.entry(to.to_owned()).or_default();
        account.open(self.opening);
        match step {
            Step::Open => {}
            Step::Credit { line, amount } => account.credit(line, amount),
            Step::Debit { line, amount, to } => {
                let applied = account.debit(line, amount);
                let next = if applied { Step::Credit { line, amount } } else { Step::Open };
                self.bag.push((to, next));
                self.outcomes.note(line, if applied { Outcome::Applied } else { Outcome::Refused });
            }
        }
    }

    /// Delivers everything, in any order; `fault` may change one message in a bag.
    fn drain(&mut self, mut fault: impl FnMut(&str, Step) -> Vec<(String, Step)>) {
        while !self.bag.is_empty() {
            let next = self.random.below(self.bag.len() as u64) as usize;
            let (to, step) = self.bag.swap_remove(next);
            for (to, step) in fault(&to, step) {
                self.deliver(&to, step);
            }
        }
    }

    fn books(&self) -> Books {
        expect(self.lines(), &self.outcomes, self.opening).unwrap()
    }

    fn views(&self) -> BTreeMap<String, View> {
        self.accounts.iter().map(|(name, account)| (name.clone(), account.view())).collect()
    }

    fn judge(&self) -> Audit {
        self.judge_views(&self.views())
    }

    fn judge_views(&self, views: &BTreeMap<String, View>) -> Audit {
        let mut audit = audit(&self.books(), views);
        audit.name_transfers(self.lines(), &self.outcomes).unwrap();
        assert_eq!(audit.is_sound(), audit.findings.is_empty());
        audit
    }
}

fn pass(to: &str, step: Step) -> Vec<(String, Step)> {
    vec![(to.to_owned(), step)]
}

const SMALL: &str =
    "1,ann,bob,5\n2,bob,cleo,7\n3,ann,cleo,11\n3,dan,eve,13\n4,ann,ann,17\n5,fay,ann,9999\n6,ann,bob,19\n";

fn small() -> Toy {
    Toy::new(&format!("{HEADER}\n{SMALL}"), 1)
}

/// The small file with one step, of `line`, changed on its way.
fn mutated(line: u64, change: impl Fn(&str, Step) -> Vec<(String, Step)>) -> Toy {
    let mut toy = small();
    toy.drain(|to, step| match step {
        Step::Credit { line: of, .. } if of == line => change(to, step),
        _ => pass(to, step),
    });
    toy
}

fn causes(audit: &Audit) -> Vec<(&str, Side, Option<Cause>)> {
    let postings = audit.findings.iter().filter_map(|finding| match &finding.fault {
        Fault::Postings(postings) => Some((finding.account.as_str(), postings.side, postings.cause)),
        _ => None,
    });
    postings.collect()
}

fn faults(audit: &Audit) -> String {
    audit.findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn an_honest_run_is_sound() {
    let mut toy = small();
    toy.drain(pass);
    let audit = toy.judge();
    assert_eq!(audit, Audit { conserved: true, accounts: 6, ..Audit::default() });
}

#[test]
fn a_dropped_credit_is_lost_and_named() {
    let toy = mutated(3, |_, _| Vec::new());
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (false, 1, 0));
    assert_eq!(causes(&audit), [("cleo", Side::Credit, Some(Cause::Lost { line: 3 }))]);
    assert_eq!(
        faults(&audit),
        "account \"cleo\": 2 credits of 18 cents were acknowledged, 1 of 11 cents are there; line 3 is lost\n\
         all accounts together hold 5993 cents; they opened with 6000"
    );
}

#[test]
fn a_doubled_credit_is_named() {
    let toy = mutated(3, |to, step| [pass(to, step.clone()), pass(to, step)].concat());
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (false, 0, 1));
    assert_eq!(causes(&audit), [("cleo", Side::Credit, Some(Cause::Doubled { line: 3 }))]);
}

#[test]
fn a_doubled_debit_is_named() {
    let mut toy = small();
    toy.drain(|to, step| match &step {
        Step::Debit { line: 2, .. } => [pass(to, step.clone()), pass(to, step)].concat(),
        _ => pass(to, step),
    });
    let audit = toy.judge();
    // Money is conserved all the same: only the ledger shows that it was moved twice.
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (true, 0, 2));
    let doubled = Some(Cause::Doubled { line: 2 });
    assert_eq!(causes(&audit), [("ann", Side::Debit, doubled), ("bob", Side::Credit, doubled)]);
}

#[test]
fn an_altered_amount_is_named() {
    let toy = mutated(3, |to, _| pass(to, Step::Credit { line: 3, amount: 8 }));
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (false, 1, 1));
    let altered = Cause::Altered { line: 3, expected: 7, found: 8 };
    assert_eq!(causes(&audit), [("cleo", Side::Credit, Some(altered))]);
}

#[test]
fn a_lost_one_is_not_hidden_by_a_doubled_one() {
    let toy = mutated(2, |to, _| pass(to, Step::Credit { line: 8, amount: 19 }));
    let audit = toy.judge();
    assert_eq!((audit.lost, audit.doubled), (1, 1));
    assert_eq!(causes(&audit), [("bob", Side::Credit, Some(Cause::Swapped { lost: 2, extra: 8 }))]);
}

#[test]
fn a_misdirected_credit_is_found_in_both_accounts() {
    let toy = mutated(3, |_, step| pass("eve", step));
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (true, 1, 1));
    let expected = [
        ("cleo", Side::Credit, Some(Cause::Lost { line: 3 })),
        ("eve", Side::Credit, Some(Cause::MadeUp { line: 3 })),
    ];
    assert_eq!(causes(&audit), expected);
}

#[test]
fn a_refused_transfer_that_was_made_is_found() {
    let mut toy = small();
    toy.drain(pass);
    toy.accounts.get_mut("ann").unwrap().credit(7, 9_999);
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (false, 0, 1));
    assert_eq!(causes(&audit), [("ann", Side::Credit, Some(Cause::MadeUp { line: 7 }))]);
}

#[test]
fn an_acknowledged_transfer_that_vanished_whole_is_lost_twice() {
    let mut toy = small();
    toy.drain(
        |to, step| if matches!(step, Step::Debit { line: 2, .. }) { Vec::new() } else { pass(to, step) },
    );
    assert!(toy.judge().is_sound());
    toy.outcomes.note(2, Outcome::Applied);
    let audit = toy.judge();
    assert_eq!((audit.conserved, audit.lost, audit.doubled), (true, 2, 0));
}

#[test]
fn missing_unasked_and_wrong_accounts_are_named() {
    let mut toy = small();
    toy.drain(pass);
    let with = |change: &dyn Fn(&mut BTreeMap<String, View>)| {
        let mut views = toy.views();
        change(&mut views);
        let audit = toy.judge_views(&views);
        assert!(!audit.conserved);
        (audit.lost, audit.doubled, faults(&audit))
    };
    let (lost, doubled, said) = with(&|views| views.retain(|name, _| name != "cleo"));
    assert_eq!((lost, doubled), (2, 0));
    assert!(said.starts_with("account \"cleo\": acknowledged lines name it, and it is not there"), "{said}");
    // Nothing ever moved here, and still it must be there: it was named by a duplicate.
    let (lost, _, said) = with(&|views| views.get_mut("eve").unwrap().opened = false);
    assert!(lost == 0 && said.contains("\"eve\": acknowledged lines name it"), "{said}");
    let (.., said) = with(&|views| views.extend([("zoe".to_owned(), views["eve"])]));
    assert!(said.contains("\"zoe\": it is there, and no line"), "{said}");
    let (.., said) = with(&|views| views.get_mut("ann").unwrap().balance += 1);
    assert!(said.contains("\"ann\": it holds"), "{said}");
    let (.., said) = with(&|views| {
        views.get_mut("ann").unwrap().balance += 1;
        views.get_mut("bob").unwrap().balance -= 1;
    });
    assert!(said.contains("\"ann\": it holds") && said.contains("\"bob\": it holds"), "{said}");
    let (.., said) = with(&|views| {
        let view = views.get_mut("eve").unwrap();
        view.opening -= 1;
        view.balance -= 1;
    });
    assert!(said.contains("\"eve\": it opened with 999 cents instead of 1000"), "{said}");
    let (lost, ..) = with(&BTreeMap::clear);
    assert_eq!(lost, 8);
}

#[test]
fn what_was_not_acknowledged_may_be_there_or_not() {
    let mut toy = small();
    toy.drain(pass);
    // The ledger knows less than the accounts: not a word against them.
    let whole = std::mem::take(&mut toy.outcomes);
    for line in [2, 4, 7] {
        toy.outcomes.note(line, whole.get(line).unwrap());
    }
    assert!(toy.judge().is_sound());
    assert_eq!(toy.books().unacknowledged, 3);
    assert!(audit(&expect(toy.lines(), &Outcomes::default(), OPENING).unwrap(), &BTreeMap::new()).is_sound());
    // But what was acknowledged must be there.
    let mut views = toy.views();
    views.get_mut("bob").unwrap().credits = Digest::default();
    assert!(toy.judge_views(&views).lost > 0);
}

#[test]
fn of_many_findings_the_first_are_told_and_the_others_counted() {
    let body: String = (1..=100).map(|id| format!("{id},a{id},b{id},1\n")).collect();
    let mut toy = Toy::new(&format!("{HEADER}\n{body}"), 1);
    toy.drain(
        |to, step| if matches!(step, Step::Credit { .. }) { pass(to, Step::Open) } else { pass(to, step) },
    );
    let audit = toy.judge();
    assert_eq!((audit.lost, audit.findings.len(), audit.more), (100, 10, 91));
}

/// Files with everything in them.
fn files() -> impl Strategy<Value = String> {
    let line = (0_u64..40, 0_u8..6, 0_u8..6, 0_u64..900);
    prop::collection::vec(line, 1..60).prop_map(|lines| {
        let lines = lines.iter().map(|(id, from, to, amount)| format!("{id},a{from},a{to},{amount}\n"));
        format!("{HEADER}\n{}", lines.collect::<String>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_honest_order_is_sound(text in files(), seed in any::<u64>()) {
        let mut toy = Toy::new(&text, seed);
        toy.drain(pass);
        let audit = toy.judge();
        prop_assert!(audit.is_sound(), "{}", faults(&audit));
        for (name, view) in toy.views() {
            prop_assert_eq!(toy.books().balance(&name), Some(view.balance as i128));
        }
    }

    #[test]
    fn with_enough_money_every_order_is_the_sequential_one(text in files(), seed in any::<u64>()) {
        let mut toy = Toy::new(&text, seed);
        toy.opening = 1_000_000;
        toy.drain(pass);
        let sequential = run(toy.lines(), toy.opening).unwrap();
        prop_assert_eq!(sequential.counts.refused, 0);
        prop_assert_eq!(toy.books(), sequential);
    }

    #[test]
    fn no_single_fault_of_delivery_is_missed(
        text in files(), seed in any::<u64>(), victim in 0_usize..60, fault in 0_u8..4,
    ) {
        let mut toy = Toy::new(&text, seed);
        let (mut credits, mut hit) = (0, false);
        toy.drain(|to, step| {
            let Step::Credit { line, amount } = step else { return pass(to, step) };
            credits += 1;
            if credits != victim + 1 {
                return pass(to, Step::Credit { line, amount });
            }
            hit = true;
            match fault {
                0 => Vec::new(),
                1 => [pass(to, Step::Credit { line, amount }), pass(to, Step::Credit { line, amount })].concat(),
                2 => pass(to, Step::Credit { line, amount: amount + 1 }),
                _ => pass("elsewhere", Step::Credit { line, amount }),
            }
        });
        let audit = toy.judge();
        prop_assert_eq!(audit.is_sound(), !hit);
        prop_assert!(!hit || audit.lost + audit.doubled > 0);
    }
}

#[test]
fn a_line_is_what_the_digest_knows_it_by() {
    let line = Line { number: 2, content: small().lines().next().unwrap().unwrap().content };
    let Content::Transfer(transfer) = line.content else { panic!() };
    let mut digest = Digest::default();
    digest.add(line.number, transfer.amount);
    assert_eq!(digest.sum, Digest::hash(2, 5));
}

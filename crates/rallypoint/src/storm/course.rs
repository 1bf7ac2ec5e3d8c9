//! The course of a storm: which cases are run, in which order.
//!
//! Decides what is enumerated. First nothing goes wrong; then one thing in each step, one in each
//! undo; then a cancellation after every record of those, then crashes; last, random mixtures. The
//! simple cases come first, so that a failure is shown by the simplest case that has it.
//!
//! Invariant: nothing here is random but the mixtures, and those follow from their seeds.

use super::attempt::executions;
use super::case::{ALWAYS, Arrival, Case, Crash, Deed, Fault, Seen, Signals, Target, of_step, of_undo};
use super::report::{StormEnd, StormFailure, StormReport, StormRule};
use super::retrace::retrace;
use super::rules::{Broken, Verdict, broken};
use super::world::{BEGAN, Sight, Undone, World};
use super::{ID, Setup};
use rallypoint_base::random::Random;
use rallypoint_saga::event::Direction;
use rallypoint_saga::registry::Registry;
use rallypoint_saga::status::Status;
use std::collections::{BTreeMap, BTreeSet};

/// More crashes or cancellations than this are thinned out.
const CASES: u64 = 10_000;
/// Records of a saga of no length at all, until it is one without end.
const RECORDS: u64 = 1_000;

/// A storm on its way.
pub(super) struct Course<'a, C, B> {
    setup: &'a Setup<C, B>,
    seed: u64,
    limit: u64,
    report: StormReport,
    /// What the outside looked like before the saga, and after it ended well with nothing wrong.
    before: Option<B>,
    after: Option<B>,
}

/// A case that was run, and what was seen in it.
struct Base {
    case: Case,
    records: u64,
    /// Records before the first thing went wrong.
    calm: u64,
}

impl<'a, C: Send + Sync + 'static, B: PartialEq + std::fmt::Debug> Course<'a, C, B> {
    pub(super) fn new(setup: &'a Setup<C, B>, seed: u64) -> Self {
        let report = StormReport { seed, ..StormReport::default() };
        Self { setup, seed, limit: RECORDS, report, before: None, after: None }
    }

    /// All of it.
    pub(super) fn run(mut self, seeds: std::ops::Range<u64>) -> Result<StormReport, StormFailure> {
        let calm = Case::default();
        let (records, sight) = self.case(&calm)?;
        self.limit = RECORDS + 20 * records;
        let mut bases = vec![Base { case: calm, records, calm: 0 }];
        let mut undos = Undos::default();
        undos.add(&bases[0].case, &sight.undone);
        let mut steps = sight.steps.clone();
        self.others(&sight, &mut bases)?;
        self.steps(sight.steps, &mut steps, &mut undos, &mut bases)?;
        for (case, target, polls) in undos.all() {
            for case in of_undo(&case, &target, polls) {
                bases.push(self.base(case)?.0);
            }
        }
        self.cancellations(&bases)?;
        self.crashes(&bases)?;
        let undone: Vec<Target> = undos.targets();
        for seed in seeds {
            self.seed = seed;
            let case = mixture(seed, &steps, &undone, records);
            if let Err(failure) = self.case(&case) {
                return Err(self.smallest(case, failure));
            }
        }
        Ok(self.report)
    }

    /// Leaves out of a mixture whatever is not needed to break the same rule.
    fn smallest(&mut self, mut case: Case, mut failure: StormFailure) -> StormFailure {
        let number = failure.number;
        while let Some((smaller, fails)) = case.smaller().into_iter().find_map(|smaller| {
            let fails = self.case(&smaller).err().filter(|fails| fails.rule == failure.rule)?;
            Some((smaller, fails))
        }) {
            (case, failure) = (smaller, fails);
        }
        failure.number = number;
        failure
    }

    fn base(&mut self, case: Case) -> Result<(Base, Sight), StormFailure> {
        let (records, sight) = self.case(&case)?;
        Ok((Base { case, records, calm: sight.calm.unwrap_or(records) }, sight))
    }

    /// Signals that come early or never; a function that is built anew each time.
    fn others(&mut self, sight: &Sight, bases: &mut Vec<Base>) -> Result<(), StormFailure> {
        let mut cases = vec![Case { forgetful: true, ..Case::default() }];
        if !self.setup.signals.is_empty() {
            cases.push(Case { signals: Signals::Early, ..Case::default() });
        }
        for name in &sight.may_miss {
            cases.push(Case { signals: Signals::Without(name.clone()), ..Case::default() });
        }
        for case in cases {
            bases.push(self.base(case)?.0);
        }
        Ok(())
    }

    /// One thing goes wrong in each step. A step that is seen only then gets its turn too.
    fn steps(
        &mut self,
        first: Vec<Seen>,
        steps: &mut Vec<Seen>,
        undos: &mut Undos,
        bases: &mut Vec<Base>,
    ) -> Result<(), StormFailure> {
        let mut open: Vec<(Case, Seen)> = first.into_iter().map(|seen| (Case::default(), seen)).collect();
        while !open.is_empty() {
            for (on, seen) in std::mem::take(&mut open) {
                for case in of_step(&on, &seen) {
                    let (base, sight) = self.base(case)?;
                    undos.add(&base.case, &sight.undone);
                    for new in sight.steps {
                        if !steps.iter().any(|known| known.target == new.target) {
                            steps.push(new.clone());
                            open.push((base.case.clone(), new));
                        }
                    }
                    bases.push(base);
                }
            }
        }
        Ok(())
    }

    /// Each n-th is taken, so that there are not too many.
    fn stride(&mut self, all: u64) -> usize {
        let most = if self.setup.long { 20 * CASES } else { CASES };
        let stride = all.div_ceil(most).max(1);
        self.report.left_out += all - all.div_ceil(stride);
        usize::try_from(stride).unwrap_or(usize::MAX)
    }

    /// A person cancels after each record. Before the first thing goes wrong it is the calm case.
    fn cancellations(&mut self, bases: &[Base]) -> Result<(), StormFailure> {
        let cases = bases
            .iter()
            .flat_map(|base| (base.calm.max(1)..=base.records).map(|after| base.case.with_cancel(after)));
        let cases: Vec<Case> = cases.collect();
        let stride = self.stride(cases.len() as u64);
        for case in cases.into_iter().step_by(stride) {
            self.case(&case)?;
        }
        Ok(())
    }

    /// A crash after each record, and another one in the middle of the recovery.
    fn crashes(&mut self, bases: &[Base]) -> Result<(), StormFailure> {
        let (mut cases, mut twice) = (Vec::new(), Vec::new());
        for base in bases {
            for after in base.calm.max(1)..=base.records {
                let crash = |acted| Crash { after, acted };
                cases.push(base.case.with_crashes(&[crash(false)]));
                cases.push(base.case.with_crashes(&[crash(true)]));
                let again = if self.setup.long { base.records - after + 2 } else { 1 };
                for later in 1..=again {
                    let second = Crash { after: after + later, acted: after % 2 == 0 };
                    twice.push(base.case.with_crashes(&[crash(true), second]));
                }
            }
        }
        cases.append(&mut twice);
        let stride = self.stride(cases.len() as u64);
        for case in cases.into_iter().step_by(stride) {
            self.case(&case)?;
        }
        Ok(())
    }

    // ---------------------------------------------------------------- one case

    fn case(&mut self, case: &Case) -> Result<(u64, Sight), StormFailure> {
        let (seed, limit, number) = (self.seed, self.limit, self.report.cases + 1);
        let failed = |rule, why| {
            let words = case.words();
            StormFailure { seed, rule, why, case: words, number, timeline: Vec::new() }
        };
        let registry = match self.setup.registry() {
            Ok(registry) => registry,
            Err(why) => return Err(failed(StormRule::Setup, why)),
        };
        // A runtime of its own: what a case left running ends with it.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = match builder.enable_all().start_paused(true).build() {
            Ok(runtime) => runtime,
            Err(error) => return Err(failed(StormRule::Setup, error.to_string())),
        };
        if self.before.is_none() {
            self.before = self.setup.books.as_ref().map(|books| books(registry.context()));
        }
        let (verdict, world) = runtime.block_on(async {
            let mut world = World::new(&registry, case, seed, &self.setup.signals, limit);
            let verdict = world.run(&self.setup.input).await;
            (verdict, world)
        });
        let judged = verdict.and_then(|()| self.judge(case, &registry, &world));
        if let Err(Broken { rule, why }) = judged {
            let machines = world.sagas.iter().map(|(id, saga)| (id.clone(), saga.machine.clone())).collect();
            let mut failure = failed(rule, why);
            failure.timeline = world.timeline.lines(BEGAN, &machines);
            return Err(failure);
        }
        let World { records, sight, books, .. } = world;
        self.count(case, records, &sight, books.without_undo);
        Ok((records, sight))
    }

    fn judge(&mut self, case: &Case, registry: &Registry<C>, world: &World<'_, C>) -> Verdict {
        // Crashes and cancellations cut short what the function was told; they tell it nothing else.
        if case.crashes.is_empty() && case.cancel.is_none() {
            for (id, saga) in &world.sagas {
                self.report.compared += retrace(registry, self.seed, id, &saga.log)?;
            }
        }
        let Some(saga) = world.sagas.get(ID) else { return Ok(()) };
        let status = saga.machine.status();
        *self.report.ends.entry(status).or_default() += 1;
        let context: &C = registry.context();
        let completed = status == Status::Completed;
        if let Some(parts) = &self.setup.parts {
            for (part, is_done) in parts(context) {
                if is_done != completed {
                    let is = if is_done { "is there" } else { "is missing" };
                    broken(
                        StormRule::AllOrNothing,
                        format!("it ended {status}, and the part {part:?} {is}"),
                    )?;
                }
            }
        }
        if let Some(books) = &self.setup.books {
            let found = books(context);
            let expected = if completed { &mut self.after } else { &mut self.before };
            // The first completed run is the calm one, if that completes at all.
            let expected = expected.get_or_insert_with(|| books(context));
            if found != *expected {
                let as_ = if completed { "after a calm run" } else { "before it began" };
                let text = format!(
                    "it ended {status}, and the outside is not as {as_}: {found:?} instead of {expected:?}"
                );
                broken(StormRule::ExactlyOnce, text)?;
            }
        }
        if self.setup.holds.is_empty() {
            return Ok(());
        }
        let end = StormEnd {
            status,
            output: saga.machine.output().cloned(),
            error: saga.machine.error().cloned(),
            case: case.words(),
        };
        for (name, holds) in &self.setup.holds {
            if let Err(why) = holds(context, &end) {
                broken(StormRule::Holds, format!("{name:?} does not hold, it ended {status}: {why}"))?;
            }
        }
        Ok(())
    }

    fn count(&mut self, case: &Case, records: u64, sight: &Sight, without_undo: BTreeSet<String>) {
        let report = &mut self.report;
        report.cases += 1;
        *report.kinds.entry(case.kind().to_owned()).or_default() += 1;
        report.records += records;
        report.crashes += sight.crashes;
        report.late += sight.late;
        report.helped += sight.helped;
        merge(&mut report.steps, sight.steps.iter().map(|seen| seen.target.name.clone()));
        merge(&mut report.undone, sight.undone.iter().map(|undone| undone.target.name.clone()));
        merge(&mut report.without_undo, without_undo);
    }
}

fn merge(names: &mut Vec<String>, new: impl IntoIterator<Item = String>) {
    for name in new {
        if !names.contains(&name) {
            names.push(name);
        }
    }
}

/// In which cases which undo takes place: once with a known outcome, once with a step that acted
/// unheard, once with one that did not.
#[derive(Default)]
struct Undos(BTreeMap<(Target, Option<Deed>), (Case, u32)>);

impl Undos {
    fn add(&mut self, case: &Case, undone: &[Undone]) {
        for Undone { target, known, polls } in undone {
            let deed = if *known { None } else { case.always(target) };
            if *known || matches!(deed, Some(Deed::Lost | Deed::Silent)) {
                self.0.entry((target.clone(), deed)).or_insert_with(|| (case.clone(), *polls));
            }
        }
    }

    fn all(&self) -> Vec<(Case, Target, u32)> {
        self.0.iter().map(|((target, _), (case, polls))| (case.clone(), target.clone(), *polls)).collect()
    }

    fn targets(&self) -> Vec<Target> {
        let targets: BTreeSet<&Target> = self.0.keys().map(|(target, _)| target).collect();
        targets.into_iter().cloned().collect()
    }
}

/// Several things go wrong at once.
fn mixture(seed: u64, steps: &[Seen], undone: &[Target], records: u64) -> Case {
    let random = &mut Random::new(seed);
    let mut case = Case { weather: Some(random.next_u64()), ..Case::default() };
    for seen in steps {
        if random.chance(2, 5)
            && let Some(made) = random.pick(&of_step(&Case::default(), seen))
        {
            case.faults.extend(made.faults.iter().cloned());
            case.late.extend(made.late.iter().cloned());
        }
    }
    for target in undone {
        if random.chance(1, 3) {
            let deeds = [Deed::Fails, Deed::Lost, Deed::Silent, Deed::Twice, Deed::AtOnce, Deed::Panics];
            let deed = *random.pick(&deeds).unwrap_or(&Deed::Fails);
            let times = [1, 2, 3, ALWAYS][random.below(4) as usize];
            let times = if executions(deed) == 1 || deed == Deed::Fails { times } else { times.min(3) };
            let direction = Direction::Undo;
            case.faults.push(Fault { target: target.clone(), direction, deed, first: 1, times });
        }
        if random.chance(1, 3) {
            let arrivals = [Arrival::DuringUndo, Arrival::AfterUndo, Arrival::AfterEnd];
            let arrival = *random.pick(&arrivals).unwrap_or(&Arrival::AfterUndo);
            case.late.push((target.clone(), arrival));
        }
    }
    if random.chance(1, 4) {
        case.cancel = Some(random.range(1, records + 2));
    }
    let mut after = 0;
    for _ in 0..random.below(4) {
        after += random.range(1, records.max(2));
        case.crashes.push(Crash { after, acted: random.chance(1, 2) });
    }
    case.forgetful = random.chance(1, 5);
    case
}

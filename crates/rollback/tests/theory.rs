//! The checkpointing theory under random traces: the Rust port of `checkpoint_oracle.py`.
//!
//! Checks, from the traces alone: useless checkpoints (Z-cycles) and rollback-dependency trackability
//! of the communication-induced rules (BCS, FDAS, NRAS, CBR, HMNR); the recovery line three ways
//! (worklist, R-graph, every cut); its monotony; the bound of garbage collection. The rules here are
//! at the level of traces; broken variants of them are the negative controls.
//!
//! `RALLYPOINT_LONG=1` runs more traces, `RALLYPOINT_SEED=n` others.

use rallypoint_base::id::{PartitionId, Position, Ssn, Version};
use rallypoint_base::random::Random;
use rallypoint_rollback::cut::{self, Cut, Histories, History, LocalState, Point};
use rallypoint_rollback::graph::{Graph, Interval, brute_force_line};
use rallypoint_rollback::line::{needed, recovery_line, stable_line};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The rule by which a process takes checkpoints it was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// None: independent checkpointing.
    Independent,
    /// Briatico, Ciuffoletti, Simoncini 1984.
    Bcs,
    /// Broken: forces after the delivery.
    BcsLate,
    /// Fixed dependency after send (Wang 1997).
    Fdas,
    /// No receive after send.
    Nras,
    /// Checkpoint before receive.
    Cbr,
    /// Helary, Mostefaoui, Netzer, Raynal 2000.
    Hmnr,
    /// Broken: without the second half of the condition.
    HmnrWithoutC2,
    /// Broken: without the first half.
    HmnrWithoutC1,
}

const RULES: [Rule; 9] = [
    Rule::Independent,
    Rule::Bcs,
    Rule::BcsLate,
    Rule::Fdas,
    Rule::Nras,
    Rule::Cbr,
    Rule::Hmnr,
    Rule::HmnrWithoutC2,
    Rule::HmnrWithoutC1,
];

impl Rule {
    fn is_hmnr(self) -> bool {
        matches!(self, Self::Hmnr | Self::HmnrWithoutC1 | Self::HmnrWithoutC2)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Checkpoint(usize),
    Send(usize, usize),
    Deliver(usize, usize),
}

fn schedule(random: &mut Random, processes: usize, steps: usize) -> Vec<Step> {
    (0..steps)
        .map(|_| {
            let one = random.below(processes as u64) as usize;
            let other = (one + 1 + random.below(processes as u64 - 1) as usize) % processes;
            match random.below(100) {
                0..14 => Step::Checkpoint(one),
                14..57 => Step::Send(one, other),
                _ => Step::Deliver(one, other),
            }
        })
        .collect()
}

/// What travels with a message, for all rules at once.
#[derive(Clone, Debug)]
struct Message {
    ssn: Ssn,
    sent_in: usize,
    depends: Vec<usize>,
    index: u64,
    clock: u64,
    taken_count: Vec<u64>,
    taken: Vec<bool>,
    greater: Vec<bool>,
}

/// Interval numbers count from 1 as in the literature: interval x begins with checkpoint x.
struct Process {
    id: usize,
    interval: usize,
    now: LocalState,
    history: History,
    /// The dependency vector now, and at each point of the history.
    depends: Vec<usize>,
    depends_at: Vec<Vec<usize>>,
    /// BCS.
    index: u64,
    index_at: Vec<u64>,
    /// FDAS, NRAS.
    has_sent: bool,
    /// HMNR, in the paper's words: lc, ckpt, taken, greater, sent_to.
    clock: u64,
    taken_count: Vec<u64>,
    taken: Vec<bool>,
    greater: Vec<bool>,
    sent_to: Vec<bool>,
    forced: usize,
}

impl Process {
    fn new(id: usize, processes: usize) -> Self {
        let others: Vec<bool> = (0..processes).map(|other| other != id).collect();
        let own = |value| (0..processes).map(|other| if other == id { value } else { 0 }).collect();
        let depends: Vec<usize> = own(1);
        Self {
            id,
            interval: 1,
            now: LocalState::default(),
            history: History::initial(),
            depends_at: vec![depends.clone()],
            depends,
            index: 1,
            index_at: vec![1],
            has_sent: false,
            clock: 1,
            taken_count: own(1).into_iter().map(|count| count as u64).collect(),
            taken: others.clone(),
            greater: others,
            sent_to: vec![false; processes],
            forced: 0,
        }
    }

    fn checkpoint(&mut self) {
        self.interval += 1;
        self.depends[self.id] = self.interval;
        self.has_sent = false;
        self.sent_to.fill(false);
        for other in (0..self.taken.len()).filter(|&other| other != self.id) {
            self.taken[other] = true;
            self.greater[other] = true;
        }
        self.clock += 1;
        self.taken_count[self.id] += 1;
        self.history.push(Version(self.interval as u64 - 1), self.now.clone()).expect("a later checkpoint");
        self.depends_at.push(self.depends.clone());
        self.index_at.push(self.index);
    }

    fn send(&mut self, to: usize) -> Message {
        self.now.position = self.now.position.next();
        self.now.sent_one(PartitionId(to as u16));
        self.has_sent = true;
        self.sent_to[to] = true;
        Message {
            ssn: self.now.sent(PartitionId(to as u16)),
            sent_in: self.interval,
            depends: self.depends.clone(),
            index: self.index,
            clock: self.clock,
            taken_count: self.taken_count.clone(),
            taken: self.taken.clone(),
            greater: self.greater.clone(),
        }
    }

    fn must_checkpoint_before(&self, rule: Rule, message: &Message) -> bool {
        let newer_clock = message.clock > self.clock
            && self.sent_to.iter().zip(&message.greater).any(|(sent, greater)| *sent && *greater);
        let comes_back = message.taken_count[self.id] == self.taken_count[self.id] && message.taken[self.id];
        match rule {
            Rule::Independent | Rule::BcsLate => false,
            Rule::Bcs => message.index > self.index,
            Rule::Fdas => {
                self.has_sent && message.depends.iter().zip(&self.depends).any(|(theirs, ours)| theirs > ours)
            }
            Rule::Nras => self.has_sent,
            Rule::Cbr => true,
            Rule::Hmnr => newer_clock || comes_back,
            Rule::HmnrWithoutC2 => newer_clock,
            Rule::HmnrWithoutC1 => comes_back,
        }
    }

    fn deliver(&mut self, rule: Rule, from: usize, message: &Message) -> usize {
        if self.must_checkpoint_before(rule, message) {
            self.forced += 1;
            if rule == Rule::Bcs {
                self.index = message.index;
            }
            self.checkpoint();
        }
        if rule.is_hmnr() {
            self.learn(message);
        }
        self.now.ran(self.now.position.next(), Some((PartitionId(from as u16), message.ssn)));
        for (ours, theirs) in self.depends.iter_mut().zip(&message.depends) {
            *ours = (*ours).max(*theirs);
        }
        self.depends[self.id] = self.interval;
        let received_in = self.interval;
        if rule == Rule::BcsLate && message.index > self.index {
            self.index = message.index;
            self.forced += 1;
            self.checkpoint();
        }
        received_in
    }

    fn learn(&mut self, message: &Message) {
        let me = self.id;
        for other in (0..self.taken.len()).filter(|&other| other != me) {
            match message.clock.cmp(&self.clock) {
                std::cmp::Ordering::Greater => self.greater[other] = message.greater[other],
                std::cmp::Ordering::Equal => self.greater[other] &= message.greater[other],
                std::cmp::Ordering::Less => {}
            }
            match message.taken_count[other].cmp(&self.taken_count[other]) {
                std::cmp::Ordering::Greater => {
                    self.taken_count[other] = message.taken_count[other];
                    self.taken[other] = message.taken[other];
                }
                std::cmp::Ordering::Equal => self.taken[other] |= message.taken[other],
                std::cmp::Ordering::Less => {}
            }
        }
        self.clock = self.clock.max(message.clock);
    }
}

/// (sender, interval it was sent in, receiver, interval it was received in)
type Delivered = (usize, usize, usize, usize);

struct Trace {
    processes: Vec<Process>,
    delivered: Vec<Delivered>,
    histories: Histories,
}

fn run(rule: Rule, count: usize, steps: &[Step]) -> Trace {
    let mut processes: Vec<Process> = (0..count).map(|id| Process::new(id, count)).collect();
    let mut channels: BTreeMap<(usize, usize), VecDeque<Message>> = BTreeMap::new();
    let mut delivered = Vec::new();
    for &step in steps {
        match step {
            Step::Checkpoint(id) => {
                processes[id].index += 1;
                processes[id].checkpoint();
            }
            Step::Send(from, to) => {
                let message = processes[from].send(to);
                channels.entry((from, to)).or_default().push_back(message);
            }
            Step::Deliver(from, to) => {
                let Some(message) = channels.entry((from, to)).or_default().pop_front() else { continue };
                let received_in = processes[to].deliver(rule, from, &message);
                delivered.push((from, message.sent_in, to, received_in));
            }
        }
    }
    let mut histories = Histories::new();
    for process in &mut processes {
        process.history.set_current(Some(process.now.clone()));
        process.depends_at.push(process.depends.clone());
        process.index_at.push(process.index);
        histories.insert(PartitionId(process.id as u16), process.history.clone());
    }
    Trace { processes, delivered, histories }
}

/// The R-graph as the definition has it, from the messages of the trace and not from counters.
fn undone_by(trace: &Trace) -> BTreeMap<(usize, usize), BTreeSet<(usize, usize)>> {
    let mut edges: BTreeMap<(usize, usize), BTreeSet<(usize, usize)>> = BTreeMap::new();
    for process in &trace.processes {
        for interval in 1..=process.interval {
            let next = (process.id, interval + 1);
            edges.insert(
                (process.id, interval),
                [next].into_iter().filter(|n| n.1 <= process.interval).collect(),
            );
        }
    }
    for &(from, sent_in, to, received_in) in &trace.delivered {
        edges.entry((from, sent_in)).or_default().insert((to, received_in));
    }
    let direct = edges.clone();
    for reached in edges.values_mut() {
        let mut work: Vec<(usize, usize)> = reached.iter().copied().collect();
        while let Some(node) = work.pop() {
            work.extend(direct[&node].iter().copied().filter(|next| reached.insert(*next)));
        }
    }
    edges
}

fn interval(process: usize, number: usize) -> Interval {
    Interval { partition: PartitionId(process as u16), index: number - 1 }
}

#[derive(Default, Debug)]
struct Sum {
    useless: usize,
    checkpoints: usize,
    forced: usize,
    traces_with_useless: usize,
    traces_without_tracking: usize,
}

#[derive(Default, Debug)]
struct Lines {
    compared: usize,
    by_every_cut: usize,
    most_needed: BTreeMap<usize, usize>,
}

fn all_failures(processes: usize) -> Vec<BTreeSet<PartitionId>> {
    (1..1usize << processes)
        .map(|bits| {
            (0..processes).filter(|id| bits >> id & 1 == 1).map(|id| PartitionId(id as u16)).collect()
        })
        .collect()
}

/// The graph from counters is the graph of the messages; sums up what the brute force says.
fn judge_rule(trace: &Trace, graph: &Graph, sum: &mut Sum, at: &str) {
    let edges = undone_by(trace);
    let mut useless = 0;
    for (&(process, number), reached) in &edges {
        for &other in edges.keys() {
            assert_eq!(
                graph.undoes(interval(process, number), interval(other.0, other.1)),
                reached.contains(&other),
                "{at}: the graph from counters differs at {process}.{number} -> {other:?}"
            );
        }
        useless += usize::from(number > 1 && (1..number).any(|before| reached.contains(&(process, before))));
    }
    assert_eq!(graph.useless().len(), useless, "{at}: useless checkpoints");
    let untracked = graph.untracked(|partition, point, other| {
        trace.processes[usize::from(partition.0)]
            .depends_at
            .get(point)
            .map_or(usize::MAX, |vector| vector[usize::from(other.0)])
    });
    sum.useless += useless;
    sum.checkpoints += edges.len();
    sum.forced += trace.processes.iter().map(|process| process.forced).sum::<usize>();
    sum.traces_with_useless += usize::from(useless > 0);
    sum.traces_without_tracking += usize::from(!untracked.is_empty());
}

/// Every line of BCS's index: of each process the first point with that index or above.
fn judge_index_lines(trace: &Trace, at: &str) {
    let highest = trace.processes.iter().map(|process| process.index).max().unwrap_or(0);
    for index in 1..=highest {
        let line: Cut = trace
            .processes
            .iter()
            .map(|process| {
                let points = process.history.points(true);
                let first = process.index_at.iter().position(|&at| at >= index).unwrap_or(points.len() - 1);
                (PartitionId(process.id as u16), points[first])
            })
            .collect();
        assert!(cut::is_consistent(&trace.histories, &line), "{at}: index {index} {line:?}");
    }
}

/// Worklist = R-graph = every cut; fewer failures, no lower line; what garbage collection keeps.
fn judge_lines(trace: &Trace, graph: &Graph, lines: &mut Lines, at: &str) {
    let histories = &trace.histories;
    let count = histories.len();
    let mut found: Vec<(BTreeSet<PartitionId>, Cut)> = Vec::new();
    let cuts: usize = histories.values().map(|history| history.points(true).len()).product();
    for failed in all_failures(count) {
        let line = recovery_line(histories, &failed).expect("the initial states are always a line");
        assert!(cut::is_consistent(histories, &line), "{at}: {failed:?} {line:?}");
        assert_eq!(line, graph.line(&failed).unwrap(), "{at}: R-graph, {failed:?}");
        if cuts <= 20_000 {
            assert_eq!(
                Some(&line),
                brute_force_line(histories, &failed).as_ref(),
                "{at}: every cut, {failed:?}"
            );
            lines.by_every_cut += 1;
        }
        lines.compared += 1;
        found.push((failed, line));
    }
    for (fewer, higher) in &found {
        for (more, lower) in found.iter().filter(|(more, _)| fewer.is_subset(more)) {
            assert!(
                higher.iter().all(|(id, point)| *point >= lower[id]),
                "{at}: with {fewer:?} failed the line is lower than with {more:?}"
            );
        }
    }
    let union: BTreeSet<(PartitionId, Version)> = found
        .iter()
        .flat_map(|(_, line)| line)
        .filter_map(|(&id, &point)| match point {
            Point::Stable(version) => Some((id, version)),
            Point::Current => None,
        })
        .collect();
    let kept = needed(histories).unwrap();
    assert_eq!(kept, union, "{at}: failures of one need what failures of any set need");
    assert!(kept.len() <= count * (count + 1) / 2, "{at}: {} checkpoints needed", kept.len());
    let most = lines.most_needed.entry(count).or_default();
    *most = (*most).max(kept.len());
    judge_collection(histories, &found, &kept, at);
}

/// After collecting below the stable line, or all but the needed ones, every line is what it was.
fn judge_collection(
    histories: &Histories,
    found: &[(BTreeSet<PartitionId>, Cut)],
    kept: &BTreeSet<(PartitionId, Version)>,
    at: &str,
) {
    let below = stable_line(histories).unwrap();
    let mut simple = histories.clone();
    let mut optimal = Histories::new();
    for (&id, history) in histories {
        simple.entry(id).and_modify(|history| history.forget_below(below[&id]));
        let mut thin = History::empty();
        for (version, state) in history.stable().iter().filter(|(version, _)| kept.contains(&(id, *version)))
        {
            thin.push(*version, state.clone()).unwrap();
        }
        thin.set_current(history.current().cloned());
        optimal.insert(id, thin);
    }
    for (failed, line) in found {
        assert_eq!(recovery_line(&simple, failed).as_ref(), Ok(line), "{at}: simple rule, {failed:?}");
        // An optimal collector may have left a failed partition nothing but its line.
        assert_eq!(recovery_line(&optimal, failed).as_ref(), Ok(line), "{at}: optimal rule, {failed:?}");
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn the_theory_holds_on_random_traces() {
    let traces = if setting("RALLYPOINT_LONG").is_some() { 6000 } else { 400 };
    let seed = setting("RALLYPOINT_SEED").unwrap_or(1);
    println!("seed {seed}, {traces} traces");
    let mut sums: BTreeMap<Rule, Sum> = BTreeMap::new();
    let mut lines = Lines::default();
    let (mut hmnr_above_bcs, mut nras_below_fdas) = (0, 0);
    for trace_number in 0..traces {
        let mut random = Random::new(seed).fork(trace_number);
        let processes = random.range(2, 5) as usize;
        let steps = *random.pick(&[30, 60, 120]).unwrap();
        let steps = schedule(&mut random, processes, steps);
        let mut forced: BTreeMap<Rule, usize> = BTreeMap::new();
        for rule in RULES {
            let at = format!("RALLYPOINT_SEED={seed} trace {trace_number} {rule:?}");
            let trace = run(rule, processes, &steps);
            let graph = Graph::new(&trace.histories);
            judge_rule(&trace, &graph, sums.entry(rule).or_default(), &at);
            forced.insert(rule, trace.processes.iter().map(|process| process.forced).sum());
            match rule {
                Rule::Bcs => judge_index_lines(&trace, &at),
                Rule::Independent => judge_lines(&trace, &graph, &mut lines, &at),
                _ => {}
            }
        }
        assert!(forced[&Rule::Fdas] <= forced[&Rule::Cbr] && forced[&Rule::Nras] <= forced[&Rule::Cbr]);
        hmnr_above_bcs += usize::from(forced[&Rule::Hmnr] > forced[&Rule::Bcs]);
        nras_below_fdas += usize::from(forced[&Rule::Nras] < forced[&Rule::Fdas]);
    }
    println!("{:14} useless/checkpoints  traces with useless  forced  traces without tracking", "rule");
    for (rule, sum) in &sums {
        println!(
            "{:14} {:7}/{:<11} {:19} {:7} {:24}",
            format!("{rule:?}"),
            sum.useless,
            sum.checkpoints,
            sum.traces_with_useless,
            sum.forced,
            sum.traces_without_tracking
        );
    }
    println!(
        "{lines:?}; HMNR forced more than BCS in {hmnr_above_bcs} traces, NRAS less than FDAS in {nras_below_fdas}"
    );

    for sound in [Rule::Bcs, Rule::Fdas, Rule::Nras, Rule::Cbr, Rule::Hmnr] {
        assert_eq!(sums[&sound].useless, 0, "{sound:?} leaves useless checkpoints");
    }
    for tracking in [Rule::Fdas, Rule::Nras, Rule::Cbr] {
        assert_eq!(sums[&tracking].traces_without_tracking, 0, "{tracking:?} hides a dependency");
    }
    let forced = |rule: Rule| sums[&rule].forced;
    assert!(forced(Rule::Hmnr) <= forced(Rule::Bcs));
    assert!(forced(Rule::Fdas) <= forced(Rule::Nras) && forced(Rule::Nras) <= forced(Rule::Cbr));

    // Negative controls: a checker that cannot fail proves nothing.
    for broken in [Rule::Independent, Rule::BcsLate, Rule::HmnrWithoutC1, Rule::HmnrWithoutC2] {
        assert!(sums[&broken].traces_with_useless > 0, "{broken:?} should have been caught");
    }
    for untracked in [Rule::Independent, Rule::Bcs, Rule::Hmnr] {
        assert!(sums[&untracked].traces_without_tracking > 0, "{untracked:?} does not track");
    }
    assert!(lines.by_every_cut * 2 > lines.compared, "most lines are compared with every cut");
}

#[test]
fn a_history_that_was_collected_too_early_has_no_line() {
    // p1 received message 1 from p0 before its only known checkpoint; p0 is back at its start.
    let mut late = History::empty();
    let mut state = LocalState::default();
    state.ran(Position(1), Some((PartitionId(0), Ssn(1))));
    late.push(Version(4), state).unwrap();
    let histories = Histories::from([(PartitionId(0), History::initial()), (PartitionId(1), late)]);
    let error = recovery_line(&histories, &BTreeSet::new()).unwrap_err();
    assert_eq!(error.partition, PartitionId(1));
}

#[test]
fn what_is_in_transit_across_the_line_is_named() {
    // p0 sends 1 and 2, cuts, sends 3; p1 receives 1, cuts, receives 2; p0 fails.
    let (p0, p1) = (PartitionId(0), PartitionId(1));
    let (mut sender, mut receiver) = (LocalState::default(), LocalState::default());
    let mut histories = Histories::from([(p0, History::initial()), (p1, History::initial())]);
    sender.sent_one(p1);
    sender.sent_one(p1);
    histories.get_mut(&p0).unwrap().push(Version(1), sender).unwrap();
    receiver.ran(Position(1), Some((p0, Ssn(1))));
    histories.get_mut(&p1).unwrap().push(Version(1), receiver.clone()).unwrap();
    let line = recovery_line(&histories, &[p0].into()).unwrap();
    assert_eq!(line, Cut::from([(p0, Point::Stable(Version(1))), (p1, Point::Stable(Version(1)))]));
    let again = cut::in_transit(&histories, &line);
    assert_eq!(again.iter().map(ToString::to_string).collect::<Vec<_>>(), ["p0 -> p1: ssn2..=ssn2"]);

    receiver.ran(Position(2), Some((p0, Ssn(2))));
    histories.get_mut(&p1).unwrap().set_current(Some(receiver));
    let line = recovery_line(&histories, &[p0].into()).unwrap();
    assert_eq!(line[&p1], Point::Current);
    assert!(cut::in_transit(&histories, &line).is_empty());
}

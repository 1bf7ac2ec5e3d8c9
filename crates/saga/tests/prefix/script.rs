//! Sagas as small scripts, and the async function that carries a script out.
//!
//! A step's value holds what was computed before it, so that a result told twice, lost or told of
//! another generation changes what the function asks for next, and the journal no longer matches.

use rallypoint_base::random::Random;
use rallypoint_saga::function::{BoxFuture, Either, Operation, Resolution, Saga};
use rallypoint_saga::op::Policy;
use rallypoint_saga::registry::Registry;
use rallypoint_saga::step::SagaError;
use rallypoint_saga::value::Blob;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a step of a script is attempted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Rule {
    pub(crate) attempts: u32,
    pub(crate) undo_attempts: u32,
    pub(crate) pivot: bool,
    pub(crate) atomic: bool,
}

/// A part of a script.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Node {
    Step(String, Rule),
    /// A step whose error the function puts up with.
    Caught(String, Rule),
    Closure(String),
    Sleep(u64),
    Signal(String, Option<u64>),
    Child(String),
    Sequence(Vec<Self>),
    /// Fan-out and fan-in.
    Join(Vec<Self>),
    /// The first of two.
    Select(Box<Self>, Box<Self>),
    /// Two steps made in one order and awaited in the other.
    Crossed(String, String),
    /// The same, side by side.
    CrossedJoin(String, String),
    /// The function returns an error here.
    Refuse,
}

fn step(s: &Saga<()>, name: &str, rule: Rule, told: u64) -> Operation<Resolution> {
    let policy = Policy {
        attempts: rule.attempts,
        undo_attempts: rule.undo_attempts,
        pivot: rule.pivot,
        atomic: rule.atomic,
        ..Policy::default()
    };
    s.step_as(name, Blob::of(&(name, told)).unwrap(), policy)
}

fn number(blob: &Blob) -> u64 {
    blob.read().unwrap_or_default()
}

/// Carries a script out; `told` is what the function knows so far.
pub(crate) fn interpret(s: Saga<()>, node: Node, told: u64) -> BoxFuture<Result<u64, SagaError>> {
    Box::pin(async move {
        let rule = Rule { attempts: 2, undo_attempts: 2, pivot: false, atomic: false };
        match node {
            Node::Step(name, rule) => {
                Ok(told ^ number(&step(&s, &name, rule, told).await.map_err(SagaError)?))
            }
            Node::Caught(name, rule) => match step(&s, &name, rule, told).await {
                Ok(output) => Ok(told ^ number(&output)),
                Err(_) => Ok(told + 1),
            },
            Node::Closure(name) => {
                let closure =
                    s.run::<u64, String, _, _>(&name, || async { Ok(0) }).retry(2, SECOND, SECOND).await;
                Ok(told ^ closure?)
            }
            Node::Sleep(length) => s.sleep(Duration::from_millis(length)).await.map(|()| told),
            Node::Signal(name, within) => {
                let signal = s.signal::<u64>(&name);
                match within {
                    Some(within) => Ok(told ^ signal.within(Duration::from_millis(within)).await?),
                    None => Ok(told ^ signal.await?),
                }
            }
            Node::Child(name) => Ok(told ^ s.child::<u64, u64>(&name, &told).await?),
            Node::Sequence(nodes) => {
                let mut told = told;
                for node in nodes {
                    told = interpret(s.clone(), node, told).await?;
                }
                Ok(told)
            }
            Node::Join(nodes) => {
                let branches = nodes.into_iter().map(|node| interpret(s.clone(), node, told)).collect();
                let all: Vec<u64> = s.join_all(branches).await?;
                Ok(all.into_iter().fold(told, |told, one| told.rotate_left(7) ^ one))
            }
            Node::Select(a, b) => {
                let (a, b) = (interpret(s.clone(), *a, told), interpret(s.clone(), *b, told));
                match s.select(a, b).await {
                    Either::First(a) => a,
                    Either::Second(b) => b.map(|told| told + 2),
                }
            }
            Node::Crossed(a, b) => {
                let (a, b) = (step(&s, &a, rule, told), step(&s, &b, rule, told));
                let later = number(&b.await.map_err(SagaError)?);
                Ok(told ^ later ^ number(&a.await.map_err(SagaError)?).rotate_left(3))
            }
            Node::CrossedJoin(a, b) => {
                let (a, b) = (step(&s, &a, rule, told), step(&s, &b, rule, told));
                let (b, a): (Blob, Blob) = s.join(Ours(b), Ours(a)).await?;
                Ok(told ^ number(&b) ^ number(&a).rotate_left(3))
            }
            Node::Refuse => Err(SagaError::business("the script refuses")),
        }
    })
}

const SECOND: Duration = Duration::from_secs(1);

/// A step's journaled result as a saga's.
struct Ours(Operation<Resolution>);

impl Future for Ours {
    type Output = Result<Blob, SagaError>;
    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|result| result.map_err(SagaError))
    }
}

/// The registry of every script.
pub(crate) fn registry() -> Registry<()> {
    Registry::new(()).saga("script", 1, |s: Saga<()>, node: Node| interpret(s, node, 1))
}

/// Makes scripts.
pub(crate) struct Generator<'a> {
    pub(crate) random: &'a mut Random,
    names: u32,
    pivots: bool,
}

impl<'a> Generator<'a> {
    pub(crate) fn script(random: &'a mut Random) -> Node {
        let pivots = random.chance(1, 3);
        let mut this = Self { random, names: 0, pivots };
        let mut nodes = this.nodes(3, 2);
        if this.random.chance(1, 4) {
            nodes.push(Node::Refuse);
        }
        Node::Sequence(nodes)
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("s{}", self.names)
    }

    fn rule(&mut self) -> Rule {
        Rule {
            attempts: self.random.range(1, 4) as u32,
            undo_attempts: self.random.range(1, 4) as u32,
            pivot: self.pivots && self.random.chance(1, 5),
            atomic: self.random.chance(1, 6),
        }
    }

    fn nodes(&mut self, least: u64, depth: u32) -> Vec<Node> {
        (0..least + self.random.below(3)).map(|_| self.node(depth)).collect()
    }

    fn node(&mut self, depth: u32) -> Node {
        let kinds = if depth == 0 { 9 } else { 15 };
        match self.random.below(kinds) {
            0..=3 => Node::Step(self.name(), self.rule()),
            4 => Node::Caught(self.name(), self.rule()),
            5 => Node::Closure(self.name()),
            6 => Node::Sleep(self.random.range(1, 5_000)),
            7 => {
                let within = self.random.chance(2, 3).then(|| self.random.range(1, 60_000));
                Node::Signal(["go", "stop"][self.random.below(2) as usize].to_owned(), within)
            }
            8 => Node::Child(self.name()),
            9 => Node::Sequence(self.nodes(1, depth - 1)),
            10 | 11 => Node::Join(self.nodes(2, depth - 1)),
            12 => {
                let timer = Node::Sleep(self.random.range(1, 5_000));
                let other = self.node(depth - 1);
                if self.random.chance(1, 2) {
                    Node::Select(Box::new(timer), Box::new(other))
                } else {
                    Node::Select(Box::new(other), Box::new(timer))
                }
            }
            13 => Node::Crossed(self.name(), self.name()),
            _ => Node::CrossedJoin(self.name(), self.name()),
        }
    }
}

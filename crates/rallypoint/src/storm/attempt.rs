//! One attempt: a user's code, executed as often as the case says, and the answer that comes of it.
//!
//! Decides what the machine is told of an attempt. Never what that means for the saga.
//!
//! Invariant: code that panics or never answers is an attempt without a certain end, as in
//! production.

use super::case::Deed;
use rallypoint_saga::event::Attempt;
use rallypoint_saga::function::{BoxFuture, panic_text};
use rallypoint_saga::op::{Failure, FailureKind};
use rallypoint_saga::value::Blob;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// What is known of an attempt once its code has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// What each execution answered; `None`: it was broken off, or did not answer in time.
    pub(super) answers: Vec<Option<Attempt>>,
    /// How often it was polled, at most.
    pub(super) polls: u32,
}

/// How often the code is executed in an attempt.
pub(super) fn executions(deed: Deed) -> usize {
    match deed {
        Deed::Refused | Deed::Fails | Deed::Misconfigured | Deed::Silent => 0,
        Deed::Twice | Deed::AtOnce => 2,
        Deed::Acts | Deed::Lost | Deed::Panics | Deed::Fatal | Deed::CutOff(_) => 1,
    }
}

/// Executes the bodies, one after the other or side by side.
pub(super) fn execute(
    bodies: Vec<BoxFuture<Attempt>>,
    deed: Deed,
    delay: Duration,
    timeout: Duration,
) -> BoxFuture<Facts> {
    Box::pin(async move {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let limit = if let Deed::CutOff(polls) = deed { polls } else { u32::MAX };
        let execution = |body| Box::pin(once(Guarded { body, polls: 0, limit }, timeout));
        let mut facts = Facts::default();
        if deed != Deed::AtOnce {
            for body in bodies {
                facts.add(execution(body).await);
            }
            return facts;
        }
        let mut open: Vec<_> = bodies.into_iter().map(execution).collect();
        poll_fn(|cx| {
            open.retain_mut(|execution| match execution.as_mut().poll(cx) {
                Poll::Ready(ended) => {
                    facts.add(ended);
                    false
                }
                Poll::Pending => true,
            });
            if open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        facts
    })
}

async fn once(mut body: Guarded, timeout: Duration) -> (Option<Attempt>, u32) {
    let answer = tokio::time::timeout(timeout, &mut body).await.unwrap_or_default();
    (answer, body.polls)
}

impl Facts {
    fn add(&mut self, (answer, polls): (Option<Attempt>, u32)) {
        self.answers.push(answer);
        self.polls = self.polls.max(polls);
    }
}

/// A body whose panic is a failed attempt, and which may be broken off.
struct Guarded {
    body: BoxFuture<Attempt>,
    polls: u32,
    limit: u32,
}

impl Future for Guarded {
    type Output = Option<Attempt>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Attempt>> {
        let this = &mut *self;
        this.polls += 1;
        let polled = catch_unwind(AssertUnwindSafe(|| this.body.as_mut().poll(cx)));
        match polled {
            Ok(Poll::Ready(attempt)) => Poll::Ready(Some(attempt)),
            Ok(Poll::Pending) if this.polls >= this.limit => Poll::Ready(None),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Some(panicked(&panic_text(&*panic)))),
        }
    }
}

fn failed(kind: FailureKind, text: String, may_have_acted: bool) -> Attempt {
    Attempt::Failed { failure: Failure::new(kind, text), may_have_acted, retry_after: None }
}

fn panicked(text: &str) -> Attempt {
    failed(FailureKind::Panicked, format!("the step panicked: {text}"), true)
}

fn timed_out(timeout: Duration) -> Attempt {
    failed(FailureKind::TimedOut, format!("no answer within {timeout:?}"), true)
}

/// What the machine is told; and whether only when the attempt's time is over.
pub(super) fn answer(deed: Deed, facts: &Facts, timeout: Duration) -> (Attempt, bool) {
    const BY: &str = "by the storm";
    match deed {
        Deed::Acts | Deed::Twice | Deed::AtOnce => match facts.answers.last() {
            Some(Some(attempt)) => (attempt.clone(), false),
            // The time of the attempt is over already.
            _ => (timed_out(timeout), false),
        },
        Deed::Refused => {
            let mut failure = Failure::new(FailureKind::Business, format!("refused {BY}"));
            // Typed for steps whose error is a text; for others the function sees the failure itself.
            failure.data = Blob::of(&failure.message).ok();
            (Attempt::Failed { failure, may_have_acted: false, retry_after: None }, false)
        }
        Deed::Fails => (failed(FailureKind::Transient, format!("prevented {BY}"), false), false),
        Deed::Misconfigured => {
            (failed(FailureKind::Misconfigured, format!("turned away {BY}"), false), false)
        }
        Deed::Fatal => (failed(FailureKind::Fatal, format!("a bug, declared {BY}"), true), false),
        Deed::Panics => (panicked(BY), false),
        Deed::Silent | Deed::Lost | Deed::CutOff(_) => (timed_out(timeout), true),
    }
}

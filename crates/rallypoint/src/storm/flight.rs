//! Attempts that are under way, and late requests: code of the user that runs, in virtual time.
//!
//! Decides whose turn it is. Each is polled only when it was woken, in the order in which they
//! began, so that the same case is the same run.

use super::attempt::Facts;
use super::case::Deed;
use rallypoint_saga::event::{Attempt, Direction};
use rallypoint_saga::function::BoxFuture;
use rallypoint_saga::op::OpNumber;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tokio::time::Instant;

/// Says whether one of the futures was woken, and wakes whoever polls them all.
#[derive(Default)]
pub(super) struct Flag {
    woken: AtomicBool,
    all: Mutex<Option<Waker>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if let Some(waker) = &*self.all.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }
}

/// One attempt, or one late request.
pub(super) struct Flight {
    pub(super) saga: String,
    pub(super) op: OpNumber,
    pub(super) generation: u32,
    pub(super) direction: Direction,
    pub(super) deed: Deed,
    /// It may have been attempted before, in a process that ended.
    pub(super) earlier: bool,
    /// What the machine said when it was asked for.
    pub(super) may_fail: bool,
    pub(super) timeout: Duration,
    pub(super) began: Instant,
    /// A late request: nobody waits for its answer.
    pub(super) stray: bool,
    /// How often its code was polled.
    pub(super) polls: u32,
    pub(super) state: State,
    pub(super) flag: Arc<Flag>,
}

/// How far it is.
pub(super) enum State {
    /// Its code runs.
    Executing(BoxFuture<Facts>),
    /// Its code has ended; the answer comes then.
    Answered(Attempt, Instant),
}

impl Flight {
    pub(super) fn new(saga: &str, op: OpNumber, direction: Direction, code: BoxFuture<Facts>) -> Self {
        let flag = Flag { woken: AtomicBool::new(true), all: Mutex::default() };
        Self {
            saga: saga.to_owned(),
            op,
            generation: 0,
            direction,
            deed: Deed::Acts,
            earlier: false,
            may_fail: true,
            timeout: Duration::ZERO,
            began: Instant::now(),
            stray: false,
            polls: 0,
            state: State::Executing(code),
            flag: Arc::new(flag),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Facts> {
        let State::Executing(code) = &mut self.state else { return Poll::Pending };
        *self.flag.all.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if !self.flag.woken.swap(false, Ordering::SeqCst) {
            return Poll::Pending;
        }
        let waker = Waker::from(Arc::clone(&self.flag));
        code.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// Runs its code to the end, whoever hears of it.
    pub(super) async fn finish(&mut self) -> Facts {
        match &self.state {
            State::Executing(_) => poll_fn(|cx| self.poll(cx)).await,
            State::Answered(..) => Facts::default(),
        }
    }
}

/// What comes next by itself.
pub(super) enum Next {
    /// The code of this flight has ended.
    Executed(usize, Facts),
    /// The time has come.
    Due,
    /// Nothing.
    Nothing,
}

/// Waits for the first of them, or for the time.
pub(super) async fn next(flights: &mut [Flight], due: Option<Instant>) -> Next {
    let executing = |flight: &Flight| matches!(flight.state, State::Executing(_));
    if due.is_none() && !flights.iter().any(executing) {
        return Next::Nothing;
    }
    // Without a time to wait for it is never polled.
    let mut sleep = pin!(tokio::time::sleep_until(due.unwrap_or_else(Instant::now)));
    poll_fn(|cx| {
        for (at, flight) in flights.iter_mut().enumerate() {
            if let Poll::Ready(facts) = flight.poll(cx) {
                return Poll::Ready(Next::Executed(at, facts));
            }
        }
        match due {
            Some(_) => sleep.as_mut().poll(cx).map(|()| Next::Due),
            None => Poll::Pending,
        }
    })
    .await
}

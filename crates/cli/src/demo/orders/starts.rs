//! The client: starts each order's saga until it is accepted, and asks until it has ended.
//!
//! Decides when to ask again. Never gives an order a second saga: the order's id is the request's key.

use orders_example::Order;
use rallypoint_server::client::{ApiClient, ClientError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const THREADS: usize = 8;
/// Before a request is repeated, and between two looks at a saga.
const AGAIN: Duration = Duration::from_millis(50);

/// How an order's saga stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Completed,
    Compensated,
    /// Not ended, or ended otherwise: its status.
    Other(String),
}

/// What the client has seen so far.
#[derive(Default)]
pub(super) struct Progress {
    started: AtomicU64,
    ended: AtomicU64,
    stop: AtomicBool,
    ends: Mutex<BTreeMap<String, End>>,
    failure: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// Started, ended.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.ended.load(Ordering::Relaxed))
    }

    /// The threads end soon.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How each saga that was started stands.
    pub(super) fn ends(&self) -> BTreeMap<String, End> {
        lock(&self.ends).clone()
    }

    /// Why an order could not be started, if one could not.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

/// Starts threads that start the orders.
pub(super) fn begin(server: String, orders: &[Order], progress: &Arc<Progress>) -> Vec<JoinHandle<()>> {
    let share = |thread: usize| orders.iter().skip(thread).step_by(THREADS).cloned().collect::<Vec<_>>();
    let run = |thread: usize| {
        let (server, orders, progress) = (server.clone(), share(thread), Arc::clone(progress));
        thread::spawn(move || {
            if let Err(error) = serve(&server, &orders, &progress) {
                lock(&progress.failure).get_or_insert(error);
                progress.stop();
            }
        })
    };
    (0..THREADS).map(run).collect()
}

fn serve(server: &str, orders: &[Order], progress: &Progress) -> Result<(), String> {
    let client = ApiClient::new(server, None).map_err(|error| error.to_string())?;
    let mut open = Vec::new();
    for order in orders {
        let body = serde_json::to_value(order).map_err(|error| error.to_string())?;
        let start = || client.post(&["sagas", "order"], &[], Some(&body), Some(&order.id));
        let Some(saga) =
            until_answered(progress, start).map_err(|why| format!("order {}: {why}", order.id))?
        else {
            return Ok(());
        };
        let id = saga["id"].as_str().unwrap_or_default().to_owned();
        open.push((order, id));
        progress.started.fetch_add(1, Ordering::Relaxed);
        lock(&progress.ends).insert(order.id.clone(), End::Other("running".into()));
    }
    while !open.is_empty() && !progress.is_stopped() {
        let mut left = Vec::new();
        for (order, id) in open {
            let Some(saga) = until_answered(progress, || client.get(&["sagas", &id], &[]))? else {
                return Ok(());
            };
            let end = match saga["status"].as_str().unwrap_or_default() {
                "completed" => End::Completed,
                "compensated" => End::Compensated,
                other => End::Other(other.to_owned()),
            };
            if matches!(end, End::Other(_)) {
                left.push((order, id));
            } else {
                progress.ended.fetch_add(1, Ordering::Relaxed);
            }
            lock(&progress.ends).insert(order.id.clone(), end);
        }
        open = left;
        thread::sleep(AGAIN);
    }
    Ok(())
}

/// Asks until there is an answer: the server may be dead, starting, or overloaded.
fn until_answered(
    progress: &Progress,
    ask: impl Fn() -> Result<Value, ClientError>,
) -> Result<Option<Value>, String> {
    while !progress.is_stopped() {
        match ask() {
            Ok(value) => return Ok(Some(value)),
            Err(ClientError::NoAnswer { .. }) => {}
            Err(error) if error.problem().is_some_and(|problem| problem["status"] == 503) => {}
            Err(error) => return Err(error.to_string()),
        }
        thread::sleep(AGAIN);
    }
    Ok(None)
}

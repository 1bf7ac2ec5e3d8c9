//! Inputs that were set aside: delivered again by their administrator, applied at most once.

use rallypoint::{Actor, App, AskError, Cx, InputSeq, PartitionId, Position, Retried, RetryError, Runtime};
use rallypoint::{SessionId, SetAside};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What the handler does with a delicate message: stands for one release of the program after another.
static RELEASE: AtomicU8 = AtomicU8::new(PANICS);
const PANICS: u8 = 0;
const REFUSES: u8 = 1;
const WORKS: u8 = 2;
/// The tests of this file share [`RELEASE`].
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Clone, Default, Serialize, Deserialize)]
struct Sum {
    total: u64,
}

#[derive(Serialize, Deserialize)]
struct Add {
    amount: u64,
    delicate: bool,
}

impl Actor for Sum {
    const KIND: &'static str = "sum";
    type Message = Add;
    type Reply = u64;
    type Error = String;

    fn handle(&mut self, add: Add, _cx: &mut Cx<'_>) -> Result<u64, String> {
        if add.delicate {
            match RELEASE.load(Ordering::SeqCst) {
                PANICS => panic!("this release cannot"),
                REFUSES => return Err("this release will not".to_owned()),
                _ => {}
            }
        }
        self.total += add.amount;
        Ok(self.total)
    }
}

fn app() -> App {
    App::define().actor::<Sum>().allow_unsuitable_file_system(true)
}

fn total(runtime: &Runtime) -> u64 {
    runtime.client().ask::<Sum>("a", &Add { amount: 0, delicate: false }).wait().unwrap()
}

/// A store in which `amount` was added, and one delicate message was set aside.
fn with_one_set_aside(dir: &Path, amount: u64) -> (Runtime, (PartitionId, SetAside)) {
    RELEASE.store(PANICS, Ordering::SeqCst);
    let runtime = app().open(dir).unwrap();
    let client = runtime.client();
    client.ask::<Sum>("a", &Add { amount, delicate: false }).wait().unwrap();
    let answer = client.ask::<Sum>("a", &Add { amount: 5, delicate: true }).wait();
    assert!(matches!(answer, Err(AskError::SetAside(_))), "{answer:?}");
    let entry = runtime.set_aside().remove(0);
    (runtime, entry)
}

fn admin(dir: &Path, line: &str) -> u8 {
    app().admin(dir, &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

#[test]
fn a_mended_handler_gets_the_message_once() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("data");
    let (runtime, (partition, first)) = with_one_set_aside(&dir, 100);

    // Still broken: it is set aside again, and only the newer entry is left.
    let again = runtime.retry_set_aside(partition, first.position);
    assert!(matches!(again, Ok(Retried::SetAside(_))), "{again:?}");
    let entries = runtime.set_aside();
    assert_eq!(entries.len(), 1);
    let second = entries[0].1.position;
    assert!(second > first.position);
    let gone = runtime.retry_set_aside(partition, first.position);
    assert_eq!(gone, Err(RetryError::Missing(partition, first.position)));

    // Refused: it stays, also over a restart.
    RELEASE.store(REFUSES, Ordering::SeqCst);
    assert_eq!(runtime.retry_set_aside(partition, second), Ok(Retried::Refused));
    assert!(runtime.close(Duration::from_secs(30)));
    let runtime = app().open(&dir).unwrap();
    assert_eq!(runtime.set_aside().len(), 1);

    // Mended: it is applied once, and gone for good (no orderly stop here).
    RELEASE.store(WORKS, Ordering::SeqCst);
    assert_eq!(runtime.retry_set_aside(partition, second), Ok(Retried::Applied));
    assert_eq!(total(&runtime), 105);
    drop(runtime);
    let runtime = app().open(&dir).unwrap();
    assert_eq!((runtime.set_aside().len(), total(&runtime)), (0, 105));
}

#[test]
fn a_retry_that_was_cut_short_does_not_run_the_message_twice() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
    let temporary = tempfile::tempdir().unwrap();
    let (runtime, (partition, entry)) = with_one_set_aside(&temporary.path().join("data"), 100);
    RELEASE.store(WORKS, Ordering::SeqCst);
    // What a retry does before it drops the entry: here the process would have been killed.
    let session = SessionId(0xFF << 56 | u64::from(partition.0) << 40 | entry.position.0);
    let client = runtime.resume_client(session, InputSeq(1));
    assert_eq!(client.ask::<Sum>("a", &Add { amount: 5, delicate: true }).wait(), Ok(105));
    assert_eq!(runtime.set_aside().len(), 1);
    assert_eq!(runtime.retry_set_aside(partition, entry.position), Ok(Retried::Applied));
    assert_eq!((runtime.set_aside().len(), total(&runtime)), (0, 105));
}

#[test]
fn the_commands_say_by_their_exit_code_what_happened() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("data");
    assert_eq!(admin(&dir, "quarantine list"), 2, "no store, and none is made");
    assert!(!dir.exists());
    let (runtime, (partition, entry)) = with_one_set_aside(&dir, 1);
    assert_eq!(admin(&dir, "quarantine list"), 2, "in use");
    drop(runtime);
    assert_eq!(admin(&dir, "quarantine list"), 0);
    assert_eq!(admin(&dir, "quarantine everything"), 2);
    let Position(position) = entry.position;
    assert_eq!(admin(&dir, &format!("quarantine drop {partition} @{}", position + 9)), 2, "nothing there");
    RELEASE.store(REFUSES, Ordering::SeqCst);
    assert_eq!(admin(&dir, &format!("quarantine retry {partition} @{position}")), 1, "not applied");
    RELEASE.store(WORKS, Ordering::SeqCst);
    assert_eq!(admin(&dir, &format!("quarantine retry {partition} @{position} --json")), 0);
    assert_eq!(admin(&dir, &format!("quarantine retry {partition} @{position}")), 2, "gone");
    let runtime = app().open(&dir).unwrap();
    assert_eq!((runtime.set_aside().len(), total(&runtime)), (0, 6));
}

#[test]
fn what_was_dropped_stays_dropped() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("data");
    let (runtime, (partition, entry)) = with_one_set_aside(&dir, 1);
    drop(runtime);
    let Position(position) = entry.position;
    assert_eq!(admin(&dir, &format!("quarantine drop {partition} @{position}")), 0);
    let runtime = app().open(&dir).unwrap();
    assert_eq!((runtime.set_aside().len(), total(&runtime)), (0, 1));
}

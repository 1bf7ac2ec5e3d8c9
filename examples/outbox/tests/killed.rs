//! Killed at every statement: orders, outbox, stock and sagas agree afterwards.
//!
//! The victim is this binary itself, with the number of the statement before which it aborts. After
//! each death a second process runs to the end, undisturbed, and the books are compared.

use outbox::{Between, application, database, drain, nobody, place};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};

const ORDERS: std::ops::RangeInclusive<i64> = 6..=8; // 7 is refused and undone
const PIECES: i64 = 10;

static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

/// Ends the process when its statements are used up.
fn count(_statement: &str) {
    if LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
        std::process::abort();
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, dir, left] = &arguments[..]
        && word == "--victim"
    {
        LEFT.store(left.parse().unwrap(), Ordering::SeqCst);
        run(Path::new(dir), count, &count);
        return ExitCode::SUCCESS;
    }
    let mut killed = 0;
    for statement in 0.. {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let victim = Command::new(std::env::current_exe().unwrap())
            .args(["--victim", dir.path().to_str().unwrap(), &statement.to_string()])
            .stderr(Stdio::null())
            .status()
            .unwrap();
        run(dir.path(), nobody, &nobody);
        audit(dir.path(), statement);
        if victim.success() {
            break;
        }
        killed += 1;
    }
    assert!(killed > 30, "only {killed} statements were met");
    println!("killed before each of {killed} statements: the books agree");
    ExitCode::SUCCESS
}

/// Takes the orders in, drains the outbox, and waits for every saga.
fn run(dir: &Path, between: fn(&str), here: Between<'_>) {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let path = dir.join("shop.db");
    tokio.block_on(async {
        let runtime = application(&path, between)
            .allow_unsuitable_file_system(true)
            .segment_len(8 << 20)
            .open(dir.join("sagas"))
            .unwrap();
        let sagas = runtime.sagas().unwrap();
        let mut connection = database(&path).unwrap();
        connection.execute("INSERT OR IGNORE INTO stock VALUES ('book', ?1)", [PIECES]).unwrap();
        for id in ORDERS {
            place(&mut connection, id, "book", here).unwrap();
            drain(&path, &sagas, here).await.unwrap();
        }
        for id in ORDERS {
            sagas.get(&id.to_string()).wait_end().await.unwrap();
        }
    });
}

fn audit(dir: &Path, statement: i32) {
    let connection = database(&dir.join("shop.db")).unwrap();
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let sold = number("SELECT count(*) FROM orders WHERE status = 'sold'");
    let pieces = number("SELECT pieces FROM stock");
    let waiting = number("SELECT count(*) FROM outbox");
    let orders = number("SELECT count(*) FROM orders");
    assert_eq!((orders, sold, pieces), (3, 2, PIECES - 2), "killed before statement {statement}");
    assert!(waiting == 0, "killed before statement {statement}: {waiting} orders without a saga");
}

//! The services as real processes: killed, started again, and with faults on purpose.

use orders_example::{Databases, Order, audit, make_orders};
use reqwest::blocking::{Client, RequestBuilder};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_orders-example");

/// A service's process; killed without a word when it is dropped.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(service: &str, db: &Path, further: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args([service, "--listen", "127.0.0.1:0", "--db"]).arg(db).args(further);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        Self { url: format!("http://{address}"), child }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn client() -> Client {
    // Whichever test is first installs it; without one a client cannot be built.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap()
}

/// Status and body; `None` if there was no answer.
fn send(request: RequestBuilder) -> Option<(u16, String)> {
    let response = request.send().ok()?;
    Some((response.status().as_u16(), response.text().ok()?))
}

/// Repeats a request until it is answered by more than "try again".
fn insist(request: &RequestBuilder) -> (u16, String) {
    for _ in 0..200 {
        match send(request.try_clone().unwrap()) {
            Some((503, _)) | None => {}
            Some(answer) => return answer,
        }
    }
    panic!("no answer after 200 attempts");
}

fn step(client: &Client, url: &str, key: &str, body: &Value) -> RequestBuilder {
    client.post(url).header("Idempotency-Key", key).json(body)
}

fn undo(client: &Client, url: &str, of: &str) -> RequestBuilder {
    let key = format!("{of}/undo");
    client.delete(url).header("Idempotency-Key", key).header("Idempotency-Key-Of", of)
}

fn rows(db: &Path, sql: &str) -> i64 {
    Connection::open(db).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn after_kill_9_the_same_key_gets_the_same_answer_and_nothing_is_doubled() {
    const CHARGES: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("payment.db");
    let client = client();
    let charge = |url: &str, number: usize| {
        let body = json!({ "order": format!("o{number}"), "cents": 500, "card": "card-1" });
        step(&client, &format!("{url}/charges"), &format!("o{number}/charge"), &body)
    };

    // Four clients charge; the service is killed while they do.
    let (answers, stop) = (Mutex::new(BTreeMap::new()), AtomicBool::new(false));
    let service = Process::start("payment", &db, &[]);
    let url = service.url.clone();
    thread::scope(|scope| {
        for first in 0..4 {
            let (answers, stop, charge, url) = (&answers, &stop, &charge, &url);
            scope.spawn(move || {
                for number in (first..CHARGES).step_by(4) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(answer) = send(charge(url, number)) {
                        answers.lock().unwrap().insert(number, answer);
                    }
                }
            });
        }
        while answers.lock().unwrap().len() < 40 {
            thread::yield_now();
        }
        drop(service);
        stop.store(true, Ordering::Relaxed);
    });

    let service = Process::start("payment", &db, &[]);
    let answers = answers.into_inner().unwrap();
    assert!(answers.len() >= 40);
    for number in 0..CHARGES {
        let answer = send(charge(&service.url, number)).unwrap();
        assert_eq!(answer.0, 201);
        if let Some(first) = answers.get(&number) {
            assert_eq!(&answer, first, "charge {number}");
        }
    }
    assert_eq!(rows(&db, "SELECT count(*) FROM charges"), CHARGES as i64);
    assert_eq!(rows(&db, "SELECT count(DISTINCT order_id) FROM charges"), CHARGES as i64);

    // An undo survives as well, and keeps its step out.
    let refund = |url: &str| undo(&client, &format!("{url}/charges/o7"), "o7/charge");
    let refunded = send(refund(&service.url)).unwrap();
    assert_eq!(refunded.0, 200);
    drop(service);
    let service = Process::start("payment", &db, &[]);
    assert_eq!(send(refund(&service.url)).unwrap(), refunded);
    assert_eq!(send(charge(&service.url, 7)).unwrap().0, 410);
    assert_eq!(rows(&db, "SELECT sum(undone) FROM charges"), 1);
    assert_eq!(rows(&db, "SELECT count(*) FROM charges"), CHARGES as i64);
}

#[test]
fn refusals_have_their_status_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let db = |name: &str| folder.path().join(name);
    let (inventory_db, payment_db) = (db("inventory.db"), db("payment.db"));
    let inventory = Process::start("inventory", &inventory_db, &[]);
    let payment = Process::start("payment", &payment_db, &[]);
    let client = client();

    let reservations = format!("{}/reservations", inventory.url);
    let unicorn = json!({ "order": "o1", "sku": "unicorn", "quantity": 1 });
    assert_eq!(send(step(&client, &reservations, "o1/reserve", &unicorn)).unwrap().0, 422);
    let charges = format!("{}/charges", payment.url);
    let declined = json!({ "order": "o1", "cents": 500, "card": "declined" });
    assert_eq!(send(step(&client, &charges, "o1/charge", &declined)).unwrap().0, 402);
    // Nothing to undo: not for what was refused, and not for what never came.
    assert_eq!(send(undo(&client, &format!("{charges}/o1"), "o1/charge")).unwrap().0, 204);
    assert_eq!(send(undo(&client, &format!("{charges}/o2"), "o2/charge")).unwrap().0, 204);
    // Without keys nothing is done.
    assert_eq!(send(client.post(&charges).json(&declined)).unwrap().0, 400);
    let without_step = client.delete(format!("{charges}/o1")).header("Idempotency-Key", "k");
    assert_eq!(send(without_step).unwrap().0, 400);
    // The key of another order's step undoes nothing.
    let rope = json!({ "order": "o3", "sku": "rope", "quantity": 2 });
    assert_eq!(send(step(&client, &reservations, "o3/reserve", &rope)).unwrap().0, 201);
    assert_eq!(send(undo(&client, &format!("{reservations}/o4"), "o3/reserve")).unwrap().0, 404);
    assert_eq!(rows(&inventory_db, "SELECT sum(undone) FROM reservations"), 0);
    assert_eq!(send(undo(&client, &format!("{reservations}/o3"), "o3/reserve")).unwrap().0, 200);
    assert_eq!(rows(&inventory_db, "SELECT sum(initial - left) FROM stock"), 0);
    assert_eq!(rows(&payment_db, "SELECT count(*) FROM charges"), 0);
}

/// What an order calls, all of it, or undone.
fn perform(client: &Client, [inventory, payment, shipping]: [&str; 3], order: &Order) -> bool {
    let id = &order.id;
    let calls = [
        (
            format!("{inventory}/reservations"),
            json!({ "order": id, "sku": order.sku, "quantity": order.quantity }),
        ),
        (format!("{shipping}/labels"), json!({ "order": id })),
        (format!("{payment}/charges"), json!({ "order": id, "cents": order.cents, "card": order.card })),
        (format!("{shipping}/shipments"), json!({ "order": id })),
    ];
    for (index, (url, body)) in calls.iter().enumerate() {
        let (status, answer) = insist(&step(client, url, &format!("{id}/{index}"), body));
        if status == 201 {
            continue;
        }
        assert!([402, 422].contains(&status), "{status}: {answer}");
        for (done, (url, _)) in calls[..=index].iter().enumerate().rev() {
            let (status, answer) = insist(&undo(client, &format!("{url}/{id}"), &format!("{id}/{done}")));
            assert_eq!(status, if done == index { 204 } else { 200 }, "{answer}");
        }
        return false;
    }
    true
}

fn run_audit(databases: &Databases, further: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    command.arg("audit").arg("--inventory").arg(&databases.inventory);
    command.arg("--payment").arg(&databases.payment).arg("--shipping").arg(&databases.shipping);
    let output = command.args(further).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn orders_are_whole_or_absent_under_chaos_and_the_audit_finds_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let databases = Databases {
        inventory: path("inventory.db"),
        payment: path("payment.db"),
        shipping: path("shipping.db"),
    };
    let start =
        |service, db: &PathBuf, seed| Process::start(service, db, &["--chaos", "0.4", "--seed", seed]);
    let inventory = start("inventory", &databases.inventory, "1");
    let payment = start("payment", &databases.payment, "2");
    let shipping = start("shipping", &databases.shipping, "3");
    let urls = [inventory.url.as_str(), payment.url.as_str(), shipping.url.as_str()];

    let file = path("orders.jsonl");
    make_orders(120, 5, &file).unwrap();
    let lines = std::fs::read_to_string(&file).unwrap();
    let orders: Vec<Order> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let client = client();
    let complete = orders.iter().filter(|order| perform(&client, urls, order)).count() as u64;
    let good =
        orders.iter().filter(|order| order.card != "declined" && order.sku != "unicorn").count() as u64;
    assert_eq!(complete, good);
    assert!(good > 60 && good < 120, "{good}");

    let report = audit(&databases).unwrap();
    assert_eq!(report.violations, Vec::<String>::new());
    assert_eq!(report.counts.complete, complete);
    // Sold-out orders left no row anywhere; declined ones had been reserved and labelled.
    let declined = orders.iter().filter(|order| order.card == "declined" && order.sku != "unicorn").count();
    assert_eq!((report.counts.undone, report.counts.violations), (declined as u64, 0));
    assert_eq!(run_audit(&databases, &[]).0, Some(0));

    // Planted, each on its own: a charge too many, a shipment too few, goods that vanished.
    let shipped = orders.iter().find(|order| order.card != "declined" && order.sku != "unicorn").unwrap();
    let id = &shipped.id;
    let plants = [
        (&databases.payment, format!("INSERT INTO charges (order_id, cents, card) VALUES ('{id}', 1, 'x')")),
        (&databases.payment, format!("UPDATE charges SET undone = 1 WHERE order_id = '{id}'")),
        (&databases.shipping, format!("DELETE FROM shipments WHERE order_id = '{id}'")),
        (&databases.inventory, "UPDATE stock SET left = left - 1 WHERE sku = 'rope'".to_owned()),
    ];
    for (db, plant) in plants {
        let backup = path("backup.db");
        let connection = Connection::open(db).unwrap();
        connection.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
        let mut planted = databases.clone();
        *[&mut planted.inventory, &mut planted.payment, &mut planted.shipping]
            .into_iter()
            .find(|other| *other == db)
            .unwrap() = backup.clone();
        assert_eq!(audit(&planted).unwrap().violations.len(), 0);
        Connection::open(&backup).unwrap().execute(&plant, []).unwrap();
        let (code, text) = run_audit(&planted, &[]);
        assert_eq!(code, Some(1), "{plant}: {text}");
        let named = if plant.contains("rope") { "rope" } else { id.as_str() };
        assert!(text.starts_with(&format!("violation: {named}: ")), "{plant}: {text}");
        let (code, text) = run_audit(&planted, &["--json"]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((code, report["violations"].as_array().unwrap().len()), (Some(1), 1), "{text}");
        std::fs::remove_file(&backup).unwrap();
    }
    let nowhere = Databases { payment: path("nowhere.db"), ..databases.clone() };
    assert_eq!(run_audit(&nowhere, &[]).0, Some(2));
}

#[test]
fn the_same_seed_gives_the_same_orders() {
    let folder = tempfile::tempdir().unwrap();
    let make = |seed: &str, name: &str| {
        let file = folder.path().join(name);
        let made =
            Command::new(PROGRAM).args(["make-orders", "1000", "--seed", seed]).arg(&file).status().unwrap();
        assert!(made.success());
        std::fs::read_to_string(file).unwrap()
    };
    let orders = make("3", "a");
    assert_eq!(orders.lines().count(), 1000);
    assert_eq!(orders, make("3", "b"));
    assert_ne!(orders, make("4", "c"));
    for rare in ["\"unicorn\"", "\"declined\""] {
        let count = orders.lines().filter(|line| line.contains(rare)).count();
        assert!((10..200).contains(&count), "{rare}: {count}");
    }
}

#[test]
fn only_the_loopback_and_a_share_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("payment.db");
    for wrong in [["--listen", "0.0.0.0:0", "--chaos", "0"], ["--listen", "127.0.0.1:0", "--chaos", "1.5"]] {
        let output = Command::new(PROGRAM).args(["payment", "--db"]).arg(&db).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(!output.stderr.is_empty());
    }
}

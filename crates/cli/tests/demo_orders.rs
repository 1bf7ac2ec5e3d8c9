//! `rallypoint demo orders` as a user runs it.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn demo(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rallypoint"));
    command.args(["demo", "orders", "--dir"]).arg(dir).args(arguments).output().unwrap()
}

fn words(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_order_is_whole_or_absent_although_all_four_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("orders");
    let output = demo(&dir, &["--count", "150", "--kill-every", "150ms", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{} {}", words(&output.stdout), words(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(number(&report["completed"]) + number(&report["compensated"]), 150);
    assert_eq!(report["audit"]["counts"]["complete"], report["completed"]);
    let kills = report["kills"].as_object().unwrap();
    assert!(kills.len() == 4 && kills.values().all(|kills| number(kills) > 0), "{report}");
    assert!(number(&report["compensated"]) > 0, "some are declined or sold out: {report}");
}

#[test]
fn what_the_demo_cannot_do_it_says() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine"), "x").unwrap();
    let output = demo(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output.stderr).contains("name another directory"), "{}", words(&output.stderr));

    let orders = folder.path().join("orders.jsonl");
    std::fs::write(&orders, "{\"id\":\"a\"}\n").unwrap();
    let dir = folder.path().join("d");
    let output = demo(&dir, &["--orders", orders.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output.stderr).contains("orders.jsonl:1: no order"), "{}", words(&output.stderr));
    assert!(!dir.exists(), "nothing was made");
}

//! What `docs/barrier.md` shows is what happens: its table is the crate's, and its Python runs on the
//! same file as the crate.

mod bank;

use bank::CENTS;
use rallypoint_barrier::answer::Source;
use rallypoint_barrier::sql;
use std::process::Command;

const DOCUMENT: &str = include_str!("../../../docs/barrier.md");

/// The lines of code below a heading, without their indentation.
fn code_below(heading: &str) -> String {
    let section = DOCUMENT.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let code = section.lines().filter(|line| line.starts_with("    ") || line.is_empty());
    code.map(|line| format!("{}\n", line.get(4..).unwrap_or(""))).collect()
}

#[test]
fn the_documented_table_is_the_one_that_is_created() {
    let columns = |statement: &str| {
        let lines = statement.lines().map(|line| line.split("--").next().unwrap().trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(columns(&code_below("The table")), columns(sql::CREATE_TABLE));
    let postgres = sql::CREATE_TABLE.replace("BLOB", "BYTEA").replace("at_ms INTEGER", "at_ms BIGINT");
    assert_eq!(postgres.replace(" WITHOUT ROWID", ""), sql::CREATE_TABLE_POSTGRES);
}

const STORY: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
runs = []

def add(cents, status, body):
    def work(db, *first):
        runs.append(first)
        db.execute("UPDATE account SET cents = cents + ? WHERE name = 'python'", [cents])
        if status >= 400: raise Refused(status, body)
        return status, body
    return work

def cents():
    return db.execute("SELECT cents FROM account WHERE name = 'python'").fetchone()[0]

def is_(found, expected):
    assert found == expected, (found, expected)

db.execute("INSERT INTO account VALUES ('python', 0)")
# A step, again, its undo, again, the step again.
is_(step(db, "K", add(-30, 201, b"charged")), (201, b"charged"))
is_(step(db, "K", add(-30, 201, b"other")), (201, b"charged"))
is_(cents(), -30)
is_(undo(db, "U", "K", add(30, 200, b"refunded")), (200, b"refunded"))
is_(runs[-1], ((201, b"charged"),))
is_(undo(db, "U", "K", add(30, 200, b"other")), (200, b"refunded"))
is_(step(db, "K", add(-30, 201, b"late")), (410, b"undone"))
is_(cents(), 0)
# An undo without its step, and then the step.
is_(undo(db, "V", "L", add(30, 200, b"refunded")), (204, b""))
is_(step(db, "L", add(-30, 201, b"late")), (410, b"undone"))
# A refusal, again, and its undo.
is_(step(db, "M", add(-30, 402, b"declined")), (402, b"declined"))
is_(step(db, "M", add(-30, 201, b"charged")), (402, b"declined"))
is_(undo(db, "W", "M", add(30, 200, b"refunded")), (204, b""))
is_(cents(), 0)
# A failure leaves nothing.
def fail(db):
    add(-30, 201, b"charged")(db)
    raise OSError("the network")
try: step(db, "N", fail); assert False
except OSError: pass
is_(cents(), 0)
is_(len(runs), 4)
# One for the other language.
is_(step(db, "rust/charge", add(-30, 201, b"by python")), (201, b"by python"))
"#;

#[test]
fn the_documented_python_keeps_the_rules() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("python3 is not installed: its lines in docs/barrier.md were not run");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bank.db");
    let mut connection = bank::open(&file, "WAL");
    let program = code_below("In Python") + STORY;
    let ran = Command::new("python3").args(["-c", &program]).arg(&file).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(bank::balance(&connection, "python"), -CENTS);
    let repeated = bank::charge(&mut connection, "rust", "by rust").unwrap();
    assert_eq!(
        (repeated.source, repeated.answer.body.as_slice()),
        (Source::Repeated, b"by python".as_slice())
    );
    assert_eq!(bank::refund(&mut connection, "rust", "undo").unwrap().source, Source::Fresh);
}

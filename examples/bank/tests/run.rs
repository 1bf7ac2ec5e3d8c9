//! The bank as a user runs it: again and again on one directory, and with its administrator.

use std::path::Path;
use std::process::{Command, Output};

fn bank(arguments: &[&str], dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bank-example"));
    command.arg(arguments[0]).arg(dir).args(&arguments[1..]).output().unwrap()
}

#[test]
fn the_money_is_all_there_and_nothing_is_set_aside() {
    let Some((dir, first)) = [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"].into_iter().find_map(|place| {
        let dir = tempfile::tempdir_in(place).ok()?;
        let output = bank(&["run"], &dir.path().join("bank"));
        // A container's own file system is refused.
        (output.status.code() == Some(0)).then_some((dir, output))
    }) else {
        panic!("no file system here keeps a store");
    };
    let dir = dir.path().join("bank");
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(text.ends_with("10000000 cents in 100 accounts\n"), "{text}");
    assert_eq!(bank(&["run"], &dir).status.code(), Some(0));
    let list = bank(&["admin", "quarantine", "list"], &dir);
    assert_eq!((list.status.code(), list.stdout.as_slice()), (Some(0), b"nothing is set aside\n".as_slice()));
    assert_eq!(bank(&["admin", "nonsense"], &dir).status.code(), Some(2));
}

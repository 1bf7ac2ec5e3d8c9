//! The transfer with compensation, on a real store.

use bank::transfer::{Bank, Move, Transfer, application};
use rallypoint::compensations::Compensations;
use rallypoint::{Sagas, Status, WaitError};
use std::sync::{Arc, Mutex};

async fn run(sagas: &Sagas, id: &str, from: &str, to: &str, cents: i64) -> Result<(), WaitError> {
    let transfer = Transfer { from: from.into(), to: to.into(), cents };
    sagas.start("transfer", id, &transfer).await.unwrap().wait().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_credit_gives_the_debit_back() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bank = Bank::default();
    let open = |bank: &Bank| application(bank).allow_unsuitable_file_system(true).segment_len(8 << 20);
    let runtime = open(&bank).open(dir.path()).unwrap();
    bank.connect(runtime.client());
    let sagas = runtime.sagas().unwrap();
    let opening = Move::Cents { key: "opening".into(), cents: 100 };
    bank.ask("alice", opening).await.unwrap();
    bank.ask("carol", Move::Close).await.unwrap();

    run(&sagas, "one", "alice", "bob", 30).await.unwrap();
    let refused = run(&sagas, "two", "alice", "carol", 50).await.unwrap_err();
    assert!(matches!(&refused, WaitError::Compensated(why) if why.message == "the account is closed"));
    let too_much = run(&sagas, "three", "bob", "alice", 31).await.unwrap_err();
    assert!(matches!(&too_much, WaitError::Compensated(why) if why.message == "there is too little money"));
    for (account, cents) in [("alice", 70), ("bob", 30), ("carol", 0)] {
        assert_eq!(bank.ask(account, Move::Read).await.unwrap(), cents, "{account}");
    }
    drop(runtime);

    // The same transfer, started again after a restart, is the same transfer.
    let bank = Bank::default();
    let runtime = open(&bank).open(dir.path()).unwrap();
    bank.connect(runtime.client());
    let sagas = runtime.sagas().unwrap();
    run(&sagas, "one", "alice", "bob", 30).await.unwrap();
    assert_eq!(bank.ask("bob", Move::Read).await.unwrap(), 30);
    assert_eq!(sagas.get("two").status().await.unwrap(), Status::Compensated);
}

#[tokio::test]
async fn the_bare_technique_without_a_journal() {
    let accounts = Arc::new(Mutex::new((100, 0)));
    let mut compensations = Compensations::new();
    accounts.lock().unwrap().0 -= 30;
    let debited = Arc::clone(&accounts);
    compensations.register("debit", move || async move {
        debited.lock().unwrap().0 += 30;
        Ok::<_, String>(())
    });
    // The credit is refused: what was done is undone, the newest first.
    let report = compensations.compensate().await;
    assert!(report.is_clean());
    assert_eq!(report.undone, ["debit"]);
    assert_eq!(*accounts.lock().unwrap(), (100, 0));
}

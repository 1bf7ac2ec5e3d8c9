//! Ended sagas of an application on a real store: put away, listed, shown, waited for, restarted, backed
//! up while they are put away, and found again.

use rallypoint_engine::partition::Limits;
use rallypoint_engine::saga::SagaActor;
use rallypoint_host::app::{App, Runtime};
use rallypoint_host::saga::handle::{Sagas, StartError};
use rallypoint_host::store_tools::{backup, restore, verify};
use rallypoint_saga::function::Saga;
use rallypoint_saga::registry::Registry;
use rallypoint_saga::status::Status;
use rallypoint_saga::step::{Outcome, SagaError, Step, StepCx, StepError, UndoError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Serialize, Deserialize)]
struct Note(String);

impl Step<()> for Note {
    const NAME: &'static str = "note";
    type Output = String;
    type Error = String;
    async fn run(&self, _: StepCx<'_, ()>) -> Result<String, StepError<String>> {
        if self.0 == "refuse" { Err(StepError::business("no".to_owned())) } else { Ok(self.0.clone()) }
    }
    async fn undo(&self, _: StepCx<'_, ()>, _: Outcome<String>) -> Result<(), UndoError> {
        Ok(())
    }
}

async fn notes(s: Saga<()>, words: Vec<String>) -> Result<u64, SagaError> {
    for word in &words {
        s.step(Note(word.clone())).await?;
    }
    Ok(words.len() as u64)
}

async fn family(s: Saga<()>, children: u64) -> Result<u64, SagaError> {
    let mut sum = 0;
    for at in 0..children {
        let words: Vec<String> = (0..=at).map(|word| word.to_string()).collect();
        sum += s.child::<_, u64>("notes", &words).await?;
    }
    s.step(Note("last".into())).await?;
    Ok(sum)
}

fn open(dir: &Path) -> (Runtime, Sagas) {
    let limits = Limits { archive_batch: 16, ..Limits::default() };
    let registry = Registry::new(()).step::<Note>().saga("notes", 1, notes).saga("family", 1, family);
    let app = App::define().sagas(registry).limits(limits).layout(3, 2);
    let runtime = app.allow_unsuitable_file_system(true).segment_len(8 << 20).open(dir).unwrap();
    for report in runtime.reports() {
        assert!(report.stopped.is_empty(), "{:?}", report.stopped);
    }
    let sagas = runtime.sagas().unwrap();
    (runtime, sagas)
}

fn in_memory(runtime: &Runtime) -> usize {
    use rallypoint_engine::actor::Actor;
    let mut count = 0;
    runtime.each_actor(&mut |kind, _, _| count += usize::from(kind == SagaActor::KIND));
    count
}

/// Waits until about everything that has ended is put away.
async fn settled(runtime: &Runtime, most: usize) {
    for _ in 0..400 {
        if in_memory(runtime) <= most {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{} sagas are in memory, wanted at most {most}", in_memory(runtime));
}

/// Every page of a list.
async fn all(sagas: &Sagas, name: Option<&str>, status: Option<Status>) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = sagas.list(name, status, 7, cursor.as_ref()).await.unwrap();
        ids.extend(page.into_iter().map(|saga| saga.id));
        cursor = next;
        if cursor.is_none() {
            return ids;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_sagas_are_as_they_were_wherever_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, sagas) = open(dir.path());
    let words = |word: &str| vec!["a".to_owned(), word.to_owned()];
    for at in 0..100 {
        let word = if at % 10 == 9 { "refuse" } else { "b" };
        let handle = sagas.start("notes", &format!("s-{at}"), &words(word)).await.unwrap();
        handle.wait_end().await.unwrap();
    }
    settled(&runtime, 3 * 16).await;
    let check = async |sagas: &Sagas| {
        let ids = all(sagas, None, None).await;
        let newest_first: Vec<String> = (0..100).rev().map(|at| format!("s-{at}")).collect();
        assert_eq!(ids, newest_first);
        assert_eq!(all(sagas, Some("notes"), Some(Status::Compensated)).await.len(), 10);
        assert_eq!(all(sagas, Some("family"), None).await.len(), 0);
        let counts = sagas.count().await.unwrap();
        assert_eq!(counts[&("notes".to_owned(), Status::Completed)], 90);
        for at in [0, 9, 42, 99] {
            let handle = sagas.get(&format!("s-{at}"));
            let machine = handle.show().await.unwrap();
            assert_eq!(machine.ops().len(), 2);
            let ended = if at % 10 == 9 { Status::Compensated } else { Status::Completed };
            assert_eq!(handle.status().await.unwrap(), ended);
            assert_eq!(handle.wait::<u64>().await.is_ok(), ended == Status::Completed);
            assert!(handle.cancel().await.is_err(), "there is nothing to cancel");
        }
        let again = sagas.start("notes", "s-3", &words("b")).await.unwrap();
        assert_eq!(again.wait::<u64>().await.unwrap(), 2);
        let other = sagas.start("notes", "s-3", &words("c")).await;
        assert!(matches!(other, Err(StartError::OtherInput(_))));
    };
    check(&sagas).await;
    drop((sagas, runtime));
    let (runtime, sagas) = open(dir.path());
    assert!(in_memory(&runtime) <= 3 * 16);
    check(&sagas).await;
    // A saga that completed long ago is restarted from its second step.
    let handle = sagas.get("s-0");
    handle.restart("1").await.unwrap();
    assert_eq!(handle.wait::<u64>().await.unwrap(), 2);
    assert_eq!(handle.show().await.unwrap().generation(), 1);
    assert_eq!(all(&sagas, None, None).await.len(), 100, "it is listed once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_family_is_restarted_out_of_the_archive_wherever_its_children_lie() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, sagas) = open(dir.path());
    for at in 0..30 {
        let handle = sagas.start("family", &format!("f-{at}"), &4_u64).await.unwrap();
        assert_eq!(handle.wait::<u64>().await.unwrap(), 10);
    }
    settled(&runtime, 3 * 16).await;
    let mut archived = BTreeSet::new();
    runtime
        .each_archived_saga(&mut |id, _| {
            archived.insert(id.to_owned());
        })
        .unwrap();
    let whole = |at: &u64| (0..4).all(|op| archived.contains(&format!("f-{at}/{op}")));
    let put_away: Vec<u64> =
        (0..30).filter(|at| archived.contains(&format!("f-{at}"))).filter(whole).take(3).collect();
    assert!(!put_away.is_empty(), "no family lies in the archive as a whole: {archived:?}");
    for at in put_away {
        let handle = sagas.get(&format!("f-{at}"));
        handle.restart("1").await.unwrap();
        assert_eq!(handle.wait::<u64>().await.unwrap(), 10, "f-{at}");
        // Children before the step stayed; the others were compensated and new ones took their place.
        let status = async |id: String| sagas.get(&id).status().await.unwrap();
        assert_eq!(status(format!("f-{at}/0")).await, Status::Completed);
        assert_eq!(status(format!("f-{at}/2")).await, Status::Compensated);
        assert_eq!(status(format!("f-{at}/2.1")).await, Status::Completed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_is_taken_while_sagas_are_put_away_has_every_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (runtime, sagas) = open(&store);
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let ended: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (sagas, stop, next, ended) =
                (sagas.clone(), Arc::clone(&stop), Arc::clone(&next), Arc::clone(&ended));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let id = format!("s-{}", next.fetch_add(1, Ordering::SeqCst));
                    let handle = sagas.start("notes", &id, &vec!["a".to_owned()]).await.unwrap();
                    handle.wait::<u64>().await.unwrap();
                    ended.lock().unwrap().insert(id);
                }
            })
        })
        .collect();
    let mut before = Vec::new();
    for round in 0..2 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        before.push(ended.lock().unwrap().clone());
        let (store, to) = (store.clone(), dir.path().join(format!("backup-{round}")));
        let taken = tokio::task::spawn_blocking(move || backup(&store, None, &to, true, &mut ())).await;
        taken.unwrap().expect("a backup");
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    drop((sagas, runtime));
    let verified = verify(&store, None, &mut ()).unwrap();
    assert!(verified.sound, "{:?}", verified.findings);
    for (round, before) in before.into_iter().enumerate() {
        assert!(before.len() > 50, "{}", before.len());
        let (from, to) =
            (dir.path().join(format!("backup-{round}")), dir.path().join(format!("copy-{round}")));
        restore(&from, &to, None, true, &mut ()).expect("a restore");
        let (_runtime, sagas) = open(&to);
        let listed = all(&sagas, None, None).await;
        let set: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(set.len(), listed.len(), "listed twice");
        assert!(before.is_subset(&set), "lost: {:?}", before.difference(&set).take(5).collect::<Vec<_>>());
    }
}

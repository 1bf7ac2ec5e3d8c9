//! Sagas of an application in its own process, on a real store.

use rallypoint::saga::{FailureKind, UndoState};
use rallypoint::{
    App, Registry, Runtime, Saga, SagaError, Sagas, StartError, Status, Step, StepCx, StepError, StepOutcome,
    UndoError, WaitError,
};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the steps did, in order; shared by all runtimes of a test, as the outside world is.
#[derive(Clone, Default)]
struct World(Arc<Mutex<Vec<String>>>);

impl World {
    fn did(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
    fn log(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct Act {
    name: String,
    /// "ok", "refuse", "hang", "panic", "transient"
    how: String,
}

fn act(name: &str, how: &str) -> Act {
    Act { name: name.into(), how: how.into() }
}

impl Step<World> for Act {
    const NAME: &'static str = "act";
    type Output = String;
    type Error = String;
    async fn run(&self, cx: StepCx<'_, World>) -> Result<String, StepError<String>> {
        cx.app().did(format!("run {}", self.name));
        match self.how.as_str() {
            "refuse" => Err(StepError::business(format!("{} is refused", self.name))),
            "hang" => std::future::pending().await,
            "panic" => panic!("on purpose"),
            "transient" if cx.attempt() < 3 => Err(StepError::transient("not yet")),
            _ => Ok(cx.key().to_owned()),
        }
    }
    async fn undo(&self, cx: StepCx<'_, World>, done: StepOutcome<String>) -> Result<(), UndoError> {
        let known = matches!(done, StepOutcome::Known(key) if Some(key.as_str()) == cx.key_of());
        cx.app().did(format!("undo {} {}", self.name, if known { "known" } else { "unknown" }));
        Ok(())
    }
}

type Plan = Vec<Act>;

async fn sequence(s: Saga<World>, plan: Plan) -> Result<Vec<String>, SagaError> {
    let mut keys = Vec::new();
    for act in plan {
        let step = s.step(act).timeout(Duration::from_millis(200));
        keys.push(step.retry(3, Duration::from_millis(1), Duration::from_millis(5)).await?);
    }
    Ok(keys)
}

fn registry(world: &World) -> Registry<World> {
    Registry::new(world.clone()).step::<Act>().saga("sequence", 1, sequence)
}

fn open(dir: &Path, registry: Registry<World>) -> (Runtime, Sagas) {
    let app = App::define().allow_unsuitable_file_system(true).segment_len(8 << 20).sagas(registry);
    let runtime = app.open(dir).unwrap();
    let sagas = runtime.sagas().unwrap();
    (runtime, sagas)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_runs_its_steps_in_order_and_gives_its_output() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let (_runtime, sagas) = open(dir.path(), registry(&world));
    let plan = vec![act("a", "ok"), act("b", "transient"), act("c", "ok")];
    let handle = sagas.start("sequence", "one", &plan).await.unwrap();
    let keys: Vec<String> = handle.wait().await.unwrap();
    assert_eq!(keys.len(), 3);
    assert!(keys[0].ends_with(".one.0.0.act.run"), "{keys:?}");
    assert_eq!(world.log(), ["run a", "run b", "run b", "run b", "run c"]);
    assert_eq!(handle.status().await.unwrap(), Status::Completed);
    // The same id with the same input is the same saga; with another input it is an error.
    let again = sagas.start("sequence", "one", &plan).await.unwrap();
    assert_eq!(again.wait::<Vec<String>>().await.unwrap(), keys);
    let other = sagas.start("sequence", "one", &vec![act("x", "ok")]).await;
    assert!(matches!(other, Err(StartError::OtherInput(id)) if id == "one"));
    assert!(matches!(sagas.start("nothing", "two", &plan).await, Err(StartError::Unregistered(_))));
    assert_eq!(world.log().len(), 5, "nothing ran again");
    let (list, next) = sagas.list(None, Some(Status::Completed), 10, None).await.unwrap();
    assert_eq!((list.len(), list[0].id.as_str(), next), (1, "one", None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_saga_undoes_unknown_outcomes_first_and_then_in_reverse() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let (_runtime, sagas) = open(dir.path(), registry(&world));
    let plan = vec![act("a", "ok"), act("b", "ok"), act("c", "hang")];
    let handle = sagas.start("sequence", "fails", &plan).await.unwrap();
    let error = handle.wait::<Vec<String>>().await.unwrap_err();
    assert!(matches!(&error, WaitError::Compensated(f) if f.kind == FailureKind::TimedOut), "{error:?}");
    assert_eq!(world.log()[2..5], ["run c", "run c", "run c"]);
    assert_eq!(world.log()[5..], ["undo c unknown", "undo b known", "undo a known"]);

    // A refusal has not acted: it is not undone.
    let plan = vec![act("a", "ok"), act("d", "refuse")];
    let handle = sagas.start("sequence", "refused", &plan).await.unwrap();
    let error = handle.wait::<Vec<String>>().await.unwrap_err();
    assert!(matches!(&error, WaitError::Compensated(f) if f.message == "d is refused"), "{error:?}");
    assert_eq!(world.log()[8..], ["run a", "run d", "undo a known"]);

    // A panic is a failed attempt whose outcome is unknown.
    let handle = sagas.start("sequence", "panics", &vec![act("p", "panic")]).await.unwrap();
    let error = handle.wait::<Vec<String>>().await.unwrap_err();
    assert!(matches!(&error, WaitError::Compensated(f) if f.kind == FailureKind::Panicked), "{error:?}");
    assert_eq!(world.log().last().unwrap(), "undo p unknown");
}

async fn waits(s: Saga<World>, plan: Plan) -> Result<u64, SagaError> {
    let mut plan = plan.into_iter();
    s.step(plan.next().unwrap()).await?;
    let approved: u64 = s.signal("approved").await?;
    s.step(plan.next().unwrap()).pivot().await?;
    Ok(approved)
}

async fn changed(s: Saga<World>, _plan: Plan) -> Result<u64, SagaError> {
    s.sleep(Duration::from_secs(3600)).await?;
    Ok(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_goes_on_after_a_restart_and_its_signal_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let waiting = || registry(&world).saga("waits", 1, waits);
    let plan = vec![act("a", "ok"), act("b", "ok")];
    {
        let (runtime, sagas) = open(dir.path(), waiting());
        sagas.start("waits", "w", &plan).await.unwrap();
        while sagas.get("w").status().await.unwrap() != Status::Waiting || world.log().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(runtime);
    }
    let (_runtime, sagas) = open(dir.path(), waiting());
    let handle = sagas.get("w");
    handle.signal("approved", &42u64).await.unwrap();
    assert_eq!(handle.wait::<u64>().await.unwrap(), 42);
    assert_eq!(world.log(), ["run a", "run b"]);
    assert!(handle.cancel().await.is_err(), "it has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_function_is_deployed_and_the_saga_can_still_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let plan = vec![act("a", "ok"), act("b", "ok")];
    {
        let (runtime, sagas) = open(dir.path(), registry(&world).saga("waits", 1, waits));
        sagas.start("waits", "one", &plan).await.unwrap();
        sagas.start("waits", "two", &plan).await.unwrap();
        while world.log().len() < 2 || sagas.get("two").status().await.unwrap() != Status::Waiting {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(runtime);
    }
    // The function asks for something else now, and somebody forgot to raise the version.
    let (_runtime, sagas) = open(dir.path(), registry(&world).saga("waits", 1, changed));
    let one = sagas.get("one");
    one.cancel().await.unwrap();
    let error = one.wait::<u64>().await.unwrap_err();
    assert!(matches!(&error, WaitError::Compensated(f) if f.kind == FailureKind::Cancelled), "{error:?}");
    assert_eq!(world.log().last().unwrap(), "undo a known");
    // The one that is to go on stops alone, and says where.
    let two = sagas.get("two");
    two.signal("approved", &1u64).await.unwrap();
    let error = two.wait::<u64>().await.unwrap_err();
    let WaitError::Stuck(failure) = &error else { panic!("{error:?}") };
    assert_eq!(failure.kind, FailureKind::Mismatch);
    assert!(
        failure.message.contains("\"act\"") && failure.message.contains("\"sleep\""),
        "{}",
        failure.message
    );
    // Others run.
    let other = sagas.start("sequence", "three", &vec![act("z", "ok")]).await.unwrap();
    other.wait::<Vec<String>>().await.unwrap();
    // And it can be compensated too.
    two.cancel().await.unwrap();
    assert!(matches!(two.wait::<u64>().await, Err(WaitError::Compensated(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_a_saga_names_the_place_and_stops_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let foreign = |s: Saga<World>, _: ()| async move {
        s.step(act("a", "ok")).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok::<_, SagaError>(())
    };
    let panics = |s: Saga<World>, _: ()| async move {
        s.step(act("a", "ok")).await?;
        if s.id() == "panics" {
            panic!("on purpose");
        }
        Ok::<_, SagaError>(())
    };
    #[derive(Serialize, Deserialize)]
    struct Stranger;
    impl Step<World> for Stranger {
        const NAME: &'static str = "stranger";
        type Output = ();
        type Error = String;
        async fn run(&self, _: StepCx<'_, World>) -> Result<(), StepError<String>> {
            Ok(())
        }
    }
    let unregistered = |s: Saga<World>, _: ()| async move { Ok::<_, SagaError>(s.step(Stranger).await?) };
    let registry = registry(&world).saga("foreign", 1, foreign).saga("panics", 1, panics);
    let (_runtime, sagas) = open(dir.path(), registry.saga("unregistered", 1, unregistered));
    for (name, kind, word) in [
        ("foreign", FailureKind::ForeignAwait, "after \"act\""),
        ("panics", FailureKind::BodyPanicked, "on purpose"),
        ("unregistered", FailureKind::Unregistered, "\"stranger\""),
    ] {
        let handle = sagas.start(name, name, &()).await.unwrap();
        let error = handle.wait::<()>().await.unwrap_err();
        let WaitError::Stuck(failure) = &error else { panic!("{error:?}") };
        assert_eq!(failure.kind, kind);
        assert!(failure.message.contains(word), "{}", failure.message);
    }
    sagas.start("panics", "another", &()).await.unwrap().wait::<()>().await.unwrap();
}

async fn parent(s: Saga<World>, refuse: bool) -> Result<Vec<String>, SagaError> {
    let keys: Vec<String> = s.child("sequence", &vec![act("c1", "ok"), act("c2", "ok")]).await?;
    let how = if refuse { "refuse" } else { "ok" };
    s.join(s.step(act("p1", "ok")), s.step(act("p2", how))).await?;
    s.run("note", || async { Ok::<u32, StepError<String>>(7) }).await?;
    Ok(keys)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_compensated_with_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let registry = registry(&world).saga("parent", 1, parent).concurrency(1);
    let (_runtime, sagas) = open(dir.path(), registry);
    let good = sagas.start("parent", "good", &false).await.unwrap();
    let bad = sagas.start("parent", "bad", &true).await.unwrap();
    assert_eq!(good.wait::<Vec<String>>().await.unwrap().len(), 2);
    assert!(matches!(bad.wait::<Vec<String>>().await, Err(WaitError::Compensated(_))));
    let log = world.log();
    let of_bad = &log[4..];
    assert_eq!(of_bad[..2], ["run c1", "run c2"], "one at a time: {log:?}");
    assert_eq!(of_bad[4..], ["undo p1 known", "undo c2 known", "undo c1 known"], "{log:?}");
    assert_eq!(sagas.get("bad/0").status().await.unwrap(), Status::Compensated);
    assert_eq!(sagas.get("good/0").status().await.unwrap(), Status::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_a_step_undoes_it_and_runs_it_under_new_keys() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let (_runtime, sagas) = open(dir.path(), registry(&world));
    let plan = vec![act("a", "ok"), act("b", "ok"), act("c", "ok")];
    let handle = sagas.start("sequence", "again", &plan).await.unwrap();
    let first: Vec<String> = handle.wait().await.unwrap();
    handle.restart("1").await.unwrap();
    let second: Vec<String> = handle.wait().await.unwrap();
    assert_eq!(world.log()[3..], ["undo c known", "undo b known", "run b", "run c"]);
    assert_eq!(first[0], second[0]);
    assert!(second[1].ends_with(".again.1.1.act.run"), "{second:?}");
    let machine = handle.show().await.unwrap();
    assert!(machine.ops().iter().all(|op| op.undo == UndoState::None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_sagas_that_end_at_once_does_not_wait_for_a_look_each_second() {
    let dir = tempfile::tempdir().unwrap();
    async fn nothing(_: Saga<World>, (): ()) -> Result<u32, SagaError> {
        Ok(7)
    }
    let (_runtime, sagas) = open(dir.path(), registry(&World::default()).saga("nothing", 1, nothing));
    // Thirty looks would take thirty seconds.
    let all = async {
        for at in 0..30 {
            let handle = sagas.start("nothing", &format!("n-{at}"), &()).await.unwrap();
            assert_eq!(handle.wait::<u32>().await.unwrap(), 7);
        }
    };
    tokio::time::timeout(Duration::from_secs(15), all).await.expect("no second for each");
}

/// Each answer is small; together they are more than a journal may hold.
async fn fills(s: Saga<World>, count: u32) -> Result<(), SagaError> {
    for _ in 0..count {
        s.run("fill", || async { Ok::<String, StepError<String>>("x".repeat(2000)) }).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_answers_that_come_to_too_much_stop_that_saga_and_it_can_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    let (_runtime, sagas) = open(dir.path(), registry(&world).saga("fills", 1, fills));
    let handle = sagas.start("fills", "much", &1620_u32).await.unwrap();
    let end = handle.wait::<()>().await;
    assert!(matches!(end, Err(WaitError::Stuck(_))), "{end:?}");
    let machine = handle.show().await.unwrap();
    let last = machine.ops().last().unwrap();
    assert!(last.error.as_ref().unwrap().message.contains("references"), "{last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_come_to_too_much_are_refused_and_the_saga_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::default();
    async fn waits(s: Saga<World>, (): ()) -> Result<u32, SagaError> {
        let go: u32 = s.signal("go").await?;
        Ok(go)
    }
    let (_runtime, sagas) = open(dir.path(), registry(&world).saga("waits", 1, waits));
    let handle = sagas.start("waits", "w", &()).await.unwrap();
    let large = "x".repeat(1_000_000);
    for _ in 0..3 {
        handle.signal("other", &large).await.unwrap();
    }
    let refused = handle.signal("other", &large).await.unwrap_err();
    assert!(refused.to_string().contains("send a reference"), "{refused}");
    handle.signal("go", &7u32).await.unwrap();
    assert_eq!(handle.wait::<u32>().await.unwrap(), 7);
}

#[test]
fn segments_too_short_for_what_a_saga_may_write_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let app = App::define().allow_unsuitable_file_system(true).segment_len(1 << 20);
    let Err(error) = app.sagas(registry(&World::default())).open(dir.path()) else { panic!("refused") };
    assert!(error.to_string().contains("at least 8388608 bytes"), "{error}");
}

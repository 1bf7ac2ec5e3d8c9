//! The threads host against what happens to a process: it is dropped, killed, opened twice, loses a
//! disk, fills it. Whoever is killed here is a real process; what it was told lies in files outside
//! its store.

use rallypoint_base::id::{InputSeq, SessionId};
use rallypoint_engine::actor::{Actor, Cx, Signal};
use rallypoint_engine::codec::Encoded;
use rallypoint_engine::command::Turned;
use rallypoint_engine::effect::EffectOutcome;
use rallypoint_engine::partition::Limits;
use rallypoint_host::app::{App, Runtime};
use rallypoint_host::client::{AskError, Client};
use rallypoint_recorder::preload::Preload;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const ROLE: &str = "RALLYPOINT_TEST_ROLE";
const PLACE: &str = "RALLYPOINT_TEST_PLACE";
const FIRST: &str = "RALLYPOINT_TEST_FIRST";

/// Remembers all that happened to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Witness {
    /// How often each number was noted.
    noted: BTreeMap<u64, u64>,
    /// Effects and timers that came back, in order.
    ends: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Do {
    Note(u64),
    /// Notes here and there, then refuses.
    Refuse(u64),
    /// Notes here and there, then panics.
    Panic(u64),
    /// Sends a panic to another actor.
    PanicAt(String),
    Pay {
        name: String,
        token: u64,
        timeout_ms: u64,
    },
    Wake {
        name: String,
        after_ms: u64,
    },
    Cancel {
        name: String,
    },
    Read,
}

impl Actor for Witness {
    const KIND: &'static str = "witness";
    type Message = Do;
    type Reply = Self;
    type Error = String;

    fn handle(&mut self, message: Do, cx: &mut Cx<'_>) -> Result<Self, String> {
        match message {
            Do::Note(number) => *self.noted.entry(number).or_default() += 1,
            Do::Refuse(number) => {
                *self.noted.entry(number).or_default() += 1;
                cx.send::<Self>("neighbour", &Do::Note(number));
                return Err(format!("{number} is refused"));
            }
            Do::Panic(number) => {
                *self.noted.entry(number).or_default() += 1;
                cx.send::<Self>("neighbour", &Do::Note(number));
                panic!("{number} is poison");
            }
            Do::PanicAt(key) => cx.send::<Self>(&key, &Do::Panic(1)),
            Do::Pay { name, token, timeout_ms } => {
                cx.effect(&name, &token, Duration::from_millis(timeout_ms), token);
            }
            Do::Wake { name, after_ms } => cx.set_timer(&name, Duration::from_millis(after_ms)),
            Do::Cancel { name } => cx.cancel_timer(&name),
            Do::Read => {}
        }
        Ok(self.clone())
    }

    fn signal(&mut self, signal: Signal<'_>, _cx: &mut Cx<'_>) -> Result<(), String> {
        self.ends.push(match signal {
            Signal::Timer { name } => format!("timer {name}"),
            Signal::Effect { token, outcome: EffectOutcome::Done(value) } => {
                format!("effect {token} done {}", value.decode::<u64>().map_err(|e| e.to_string())?)
            }
            Signal::Effect { token, outcome: EffectOutcome::Failed(why) } => {
                format!("effect {token} failed: {why}")
            }
            Signal::Effect { token, outcome: EffectOutcome::TimedOut } => format!("effect {token} timed out"),
            other => format!("{other:?}"),
        });
        Ok(())
    }

    fn read_only(message: &Do) -> bool {
        matches!(message, Do::Read)
    }
}

/// Small segments, and checkpoints often enough that kills meet them.
fn app() -> App {
    let limits = Limits { checkpoint_runs: 150, ..Limits::default() };
    App::define().actor::<Witness>().limits(limits).layout(4, 2).segment_len(1 << 20)
}

fn open(dir: &Path) -> Runtime {
    app().open(dir).expect("the store opens")
}

fn refusal(app: App, dir: &Path) -> String {
    match app.open(dir) {
        Ok(_) => panic!("{} must not open", dir.display()),
        Err(error) => error.to_string(),
    }
}

fn read(client: &Arc<Client>, key: &str) -> Witness {
    client.ask::<Witness>(key, &Do::Read).wait_for(PATIENCE).expect("read")
}

fn note(client: &Arc<Client>, key: &str, number: u64) -> Witness {
    client.ask::<Witness>(key, &Do::Note(number)).wait_for(PATIENCE).expect("noted")
}

/// Every number noted anywhere, with how often.
fn all_noted(runtime: &Runtime) -> BTreeMap<u64, u64> {
    assert!(runtime.drain(PATIENCE));
    noted_now(runtime)
}

/// The same without waiting for rest, which a full disk may not allow (a checkpoint finds no space).
fn noted_now(runtime: &Runtime) -> BTreeMap<u64, u64> {
    let mut all = BTreeMap::new();
    runtime.each_actor(&mut |_, _, bytes| {
        let state: Witness = Encoded::split(bytes).expect("codec").decode().expect("state");
        for (number, times) in state.noted {
            *all.entry(number).or_default() += times;
        }
    });
    all
}

fn key_of(number: u64) -> String {
    format!("key-{}", number % 23)
}

/// Waits until `what` gives something.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // What a kill tore does not count: the writer was not done saying it.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("the file opens");
    file.write_all(format!("{line}\n").as_bytes()).expect("written");
}

// -------------------------------------------------------------------------- the other processes

/// This test program again, in a role of [`other_process`]; killed when dropped.
struct Other {
    child: Child,
    out: BufReader<ChildStdout>,
}

fn role(role: &str, place: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", "other_process", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(PLACE, place);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

impl Other {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the test program starts again");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    /// The rest of the next line that begins with `word`; `None` when the process ends without.
    fn hear(&mut self, word: &str) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.out.read_line(&mut line).expect("a pipe") == 0 {
                return None;
            }
            // libtest prints "test other_process ... " before the first line, on the same one.
            if let Some(at) = line.find(word) {
                return Some(line[at + word.len()..].trim().to_owned());
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test of its own: what the other processes of the tests below do.
#[test]
fn other_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let place = PathBuf::from(std::env::var_os(PLACE).expect("set with the role"));
    match role.as_str() {
        "load" => load(&place),
        "session" => session(&place),
        "effect" => effect(&place),
        "hold" => hold(&place),
        "full" => full(&place, u64::MAX),
        "fill" => full(&place, 500),
        other => panic!("{other} is no role"),
    }
}

/// Notes numbers without end, 64 at a time, and writes down each one that is acknowledged.
fn load(place: &Path) {
    let runtime = open(&place.join("store"));
    let client = runtime.client();
    let first: u64 = std::env::var(FIRST).expect("set").parse().expect("a number");
    let mut ledger = OpenOptions::new().create(true).append(true).open(place.join("ledger")).expect("ledger");
    let mut window = VecDeque::new();
    for number in first.. {
        window.push_back((number, client.ask::<Witness>(&key_of(number), &Do::Note(number))));
        if window.len() == 64
            && let Some((number, pending)) = window.pop_front()
        {
            pending.wait().expect("acknowledged");
            ledger.write_all(format!("{number}\n").as_bytes()).expect("written");
        }
    }
}

/// Twenty inputs of one session; their answers go into a file.
fn session(place: &Path) {
    let runtime = open(&place.join("store"));
    let client = runtime.client();
    let pending: Vec<_> = (1..=20).map(|n| client.ask::<Witness>("one", &Do::Note(n))).collect();
    let mut text = format!("{}\n", client.session().0);
    for pending in pending {
        text += &format!("{}\n", serde_json::to_string(&pending.wait().expect("noted")).expect("JSON"));
    }
    fs::write(place.join("part"), text).expect("written");
    fs::rename(place.join("part"), place.join("answers")).expect("renamed");
    wait_for_the_end();
}

/// Performs the effect as far as the outside can see, and never hears of its end.
fn effect(place: &Path) {
    let performed = place.join("performed");
    let app = app().effect("pay", move |key, token: u64| -> Result<u64, String> {
        append(&performed, &format!("{token} {key}"));
        loop {
            thread::park();
        }
    });
    let runtime = app.open(place.join("store")).expect("opens");
    let client = runtime.client();
    for token in [7, 8] {
        let pay = Do::Pay { name: "pay".into(), token, timeout_ms: 3_600_000 };
        client.ask::<Witness>(&format!("payer-{token}"), &pay).wait().expect("asked for");
    }
    wait_for_the_end();
}

/// Opens the store, says how that went, and keeps it.
fn hold(place: &Path) {
    match app().open(place.join("store")) {
        Ok(_runtime) => {
            println!("\nHELD");
            wait_for_the_end();
        }
        Err(error) => println!("\nREFUSED {error}"),
    }
}

fn wait_for_the_end() {
    let _ = std::io::stdin().read(&mut [0]);
}

// -------------------------------------------------------------------------- what is kept

#[test]
fn a_runtime_that_is_dropped_loses_nothing() {
    let folder = Folder::new();
    let store = folder.path("store");
    for round in 0..3 {
        let runtime = open(&store);
        let client = runtime.client();
        for number in 0..100 {
            note(&client, &key_of(number), round * 100 + number);
        }
    }
    let noted = all_noted(&open(&store));
    assert_eq!(noted, (0..300).map(|number| (number, 1)).collect());
}

#[test]
fn what_was_not_waited_for_when_the_runtime_is_dropped_is_there_once_or_not_at_all() {
    let folder = Folder::new();
    let store = folder.path("store");
    let runtime = open(&store);
    let client = runtime.client();
    let pending: Vec<_> =
        (0..500).map(|number| client.ask::<Witness>(&key_of(number), &Do::Note(number))).collect();
    drop(runtime);
    let mut answered = BTreeSet::new();
    for (number, pending) in pending.into_iter().enumerate() {
        match pending.wait_for(PATIENCE) {
            Ok(_) => drop(answered.insert(number as u64)),
            Err(AskError::Closed(_)) => {}
            Err(error) => panic!("{number}: {error}"),
        }
    }
    let noted = all_noted(&open(&store));
    assert!(noted.values().all(|&times| times == 1), "{noted:?}");
    assert!(answered.iter().all(|number| noted.contains_key(number)), "{answered:?} {noted:?}");
}

#[test]
fn acknowledged_means_durable_under_kill_nine() {
    let folder = Folder::new();
    let ledger = folder.path("ledger");
    for round in 0..4_u64 {
        let mut command = role("load", folder.0.path());
        command.env(FIRST, (round * 1_000_000).to_string());
        let before = lines(&ledger).len();
        let mut other = Other::start(command);
        until("the ledger grows", || {
            assert!(other.child.try_wait().expect("a child").is_none(), "it ended by itself");
            (lines(&ledger).len() > before + 300 + 77 * round as usize).then_some(())
        });
        other.kill();
        let runtime = open(&folder.path("store"));
        let noted = all_noted(&runtime);
        let acknowledged = lines(&ledger);
        for line in &acknowledged {
            let number = line.parse().expect("a number");
            assert_eq!(noted.get(&number), Some(&1), "round {round}: {number} was acknowledged");
        }
        assert!(noted.values().all(|&times| times == 1), "round {round}: {noted:?}");
        assert!(noted.len() <= acknowledged.len() + 65 * (round as usize + 1));
        assert!(runtime.reports().iter().all(|report| report.stopped.is_empty()));
    }
}

// -------------------------------------------------------------------------- sessions and futures

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < deadline, "the future was never woken");
        thread::park_timeout(PATIENCE);
    }
}

#[test]
fn an_answer_is_a_future() {
    let folder = Folder::new();
    let runtime = open(&folder.path("store"));
    let client = runtime.client();
    let total = block_on(async {
        let mut total = 0;
        for number in 0..50 {
            // Two at once, awaited in the other order.
            let one = client.ask::<Witness>("a", &Do::Note(number));
            let other = client.ask::<Witness>("b", &Do::Note(number));
            total += other.await.expect("noted").noted.len() + one.await.expect("noted").noted.len();
        }
        total
    });
    assert_eq!(total, 50 * 51);
    // A hundred threads that await at once, and nobody who waits with a thread of its own to lend.
    thread::scope(|scope| {
        for number in 0..100 {
            let client = Arc::clone(&client);
            scope.spawn(move || block_on(client.ask::<Witness>("c", &Do::Note(number))).expect("noted"));
        }
    });
    assert_eq!(read(&client, "c").noted.len(), 100);
    // What will never be answered says so instead of sleeping for ever.
    let waiting = client.ask::<Witness>("a", &Do::Note(1_000));
    let waits = thread::spawn(move || block_on(waiting));
    drop(runtime);
    match waits.join().expect("no panic") {
        Ok(_) | Err(AskError::Closed(_)) => {}
        Err(error) => panic!("{error}"),
    }
    let late = block_on(client.ask::<Witness>("a", &Do::Note(1_001)));
    assert!(matches!(late, Err(AskError::Closed(_))), "{late:?}");
}

#[test]
fn a_session_taken_up_by_a_new_process_gets_the_original_answers() {
    let folder = Folder::new();
    let answers = folder.path("answers");
    let mut other = Other::start(role("session", folder.0.path()));
    until("the answers are there", || answers.exists().then_some(()));
    other.kill();
    let told = lines(&answers);
    let session = SessionId(told[0].parse().expect("a number"));
    let runtime = open(&folder.path("store"));
    // Others were here since; an original answer does not know of them.
    note(&runtime.client(), "one", 99);
    let client = runtime.resume_client(session, InputSeq(1));
    for (seq, original) in told[1..].iter().enumerate() {
        let seq = seq as u64 + 1;
        let pending = client.ask_as::<Witness>(InputSeq(seq), "one", &Do::Note(seq));
        let answer = pending.wait_for(PATIENCE).expect("answered");
        assert_eq!(&serde_json::to_string(&answer).expect("JSON"), original, "input {seq}");
    }
    let state = note(&client, "one", 21);
    assert_eq!(state.noted, (1..=21).chain([99]).map(|number| (number, 1)).collect());
    // That one told the door that the first twenty may be forgotten.
    let again = runtime.resume_client(session, InputSeq(5));
    let answer = again.ask_as::<Witness>(InputSeq(5), "one", &Do::Note(5)).wait_for(PATIENCE);
    assert_eq!(answer, Err(AskError::Turned(Turned::TooOld)));
    // (A session has one client at a time; another one looks.)
    assert_eq!(read(&runtime.client(), "one"), state);
}

// -------------------------------------------------------------------------- handlers that fail

#[test]
fn an_error_or_a_panic_undoes_its_run_and_nothing_else() {
    let folder = Folder::new();
    let store = folder.path("store");
    let runtime = open(&store);
    let client = runtime.client();
    note(&client, "one", 1);
    let traffic: Vec<_> = (0..200).map(|n| client.ask::<Witness>(&key_of(n), &Do::Note(1_000 + n))).collect();
    let refused = client.ask::<Witness>("one", &Do::Refuse(2)).wait_for(PATIENCE);
    assert_eq!(refused, Err(AskError::Refused("2 is refused".into())));
    let Err(AskError::SetAside(evidence)) = client.ask::<Witness>("one", &Do::Panic(3)).wait_for(PATIENCE)
    else {
        panic!("a panic is set aside");
    };
    assert!(evidence.contains("witness one") && evidence.contains("3 is poison"), "{evidence}");
    // The evidence names the actor that panicked, not the one that was asked, where they share a run.
    let near = (0..)
        .map(|n| format!("near-{n}"))
        .find(|key| runtime.map().partition_of(key) == runtime.map().partition_of("one"));
    let Err(AskError::SetAside(evidence)) =
        client.ask::<Witness>("one", &Do::PanicAt(near.clone().expect("found"))).wait_for(PATIENCE)
    else {
        panic!("an inner panic is set aside");
    };
    assert!(evidence.contains(&near.expect("found")), "{evidence}");
    // In another partition it is the message that is set aside, and the asker never knows.
    let far = (0..)
        .map(|n| format!("far-{n}"))
        .find(|key| runtime.map().partition_of(key) != runtime.map().partition_of("one"));
    client.ask::<Witness>("one", &Do::PanicAt(far.clone().expect("found"))).wait_for(PATIENCE).expect("sent");
    for pending in traffic {
        pending.wait_for(PATIENCE).expect("everything else goes on");
    }
    assert!(runtime.drain(PATIENCE));
    let check = |runtime: &Runtime| {
        let client = runtime.client();
        assert_eq!(read(&client, "one").noted, BTreeMap::from([(1, 1)]));
        assert_eq!(read(&client, "neighbour"), Witness::default());
        assert_eq!(read(&client, far.as_deref().expect("found")), Witness::default());
        let aside: BTreeSet<String> =
            runtime.set_aside().into_iter().map(|(_, aside)| aside.evidence).collect();
        assert_eq!(aside.len(), 3, "{aside:?}");
        assert!(aside.iter().all(|evidence| evidence.contains("is poison")), "{aside:?}");
    };
    check(&runtime);
    drop(runtime);
    let runtime = open(&store); // from the log
    check(&runtime);
    assert!(runtime.close(PATIENCE));
    let runtime = open(&store); // from checkpoints
    check(&runtime);
    for (partition, aside) in runtime.set_aside() {
        assert!(runtime.drop_set_aside(partition, aside.position));
        assert!(!runtime.drop_set_aside(partition, aside.position), "it is gone");
    }
    assert!(runtime.drain(PATIENCE));
    assert!(runtime.close(PATIENCE));
    assert!(open(&store).set_aside().is_empty(), "dropped is dropped");
}

// -------------------------------------------------------------------------- effects and timers

#[test]
fn an_effect_is_performed_again_under_the_same_key_after_kill_nine() {
    let folder = Folder::new();
    let performed = folder.path("performed");
    for round in 1..=2 {
        let mut other = Other::start(role("effect", folder.0.path()));
        // Each round asks for two more, and performs again what has had no end.
        until("the effects begin", || {
            assert!(other.child.try_wait().expect("a child").is_none(), "it ended by itself");
            (lines(&performed).len() >= 2 * (1 + round) - 2 + usize::from(round == 2)).then_some(())
        });
        other.kill();
    }
    let file = performed.clone();
    let app = app().effect("pay", move |key, token: u64| {
        append(&file, &format!("{token} {key}"));
        Ok(token * 10)
    });
    let runtime = app.open(folder.path("store")).expect("opens");
    let client = runtime.client();
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut asked = 0;
    for token in [7, 8] {
        let key = format!("payer-{token}");
        until("the effects end", || runtime.drain(PATIENCE).then_some(()));
        let ends = read(&client, &key).ends;
        asked += ends.len();
        assert!(!ends.is_empty());
        assert!(ends.iter().all(|end| *end == format!("effect {token} done {}", token * 10)), "{ends:?}");
    }
    for line in lines(&performed) {
        let (token, key) = line.split_once(' ').expect("two words");
        keys.entry(token.to_owned()).or_default().insert(key.to_owned());
    }
    let distinct: BTreeSet<&String> = keys.values().flatten().collect();
    assert_eq!(distinct.len(), asked, "one key for each cause, however often performed: {keys:?}");
    assert!(lines(&performed).len() > asked, "something was performed again");
}

#[test]
fn an_effect_that_fails_hangs_or_is_unknown_ends_all_the_same() {
    let folder = Folder::new();
    let app = app()
        .effect("fail", |_, _: u64| -> Result<u64, String> { Err("no money".into()) })
        .effect("panic", |_, _: u64| -> Result<u64, String> { panic!("oh") })
        .effect("hang", |_, _: u64| -> Result<u64, String> {
            loop {
                thread::park();
            }
        });
    let runtime = app.open(folder.path("store")).expect("opens");
    let client = runtime.client();
    for (token, name, timeout_ms) in
        [(1, "fail", 60_000), (2, "panic", 60_000), (3, "nobody", 60_000), (4, "hang", 200)]
    {
        let pay = Do::Pay { name: name.into(), token, timeout_ms };
        client.ask::<Witness>("payer", &pay).wait_for(PATIENCE).expect("asked for");
    }
    let ends = until("all four end", || {
        let ends: BTreeSet<String> = read(&client, "payer").ends.into_iter().collect();
        (ends.len() == 4).then_some(ends)
    });
    let ends: Vec<&str> = ends.iter().map(String::as_str).collect();
    assert_eq!(ends[0], "effect 1 failed: no money");
    assert!(ends[1].starts_with("effect 2 failed: ") && ends[1].contains("panicked"), "{ends:?}");
    assert!(ends[2].starts_with("effect 3 failed: ") && ends[2].contains("nobody"), "{ends:?}");
    assert_eq!(ends[3], "effect 4 timed out");
}

#[test]
fn an_effect_that_hangs_holds_no_other_up() {
    let folder = Folder::new();
    let app = app().effect("sure", |_, token: u64| Ok(token)).effect("hang", |_, _: u64| {
        thread::park_timeout(PATIENCE);
        Ok(0_u64)
    });
    let runtime = app.open(folder.path("store")).expect("opens");
    let client = runtime.client();
    let pay = |name: &str, token| Do::Pay { name: name.into(), token, timeout_ms: 600_000 };
    // One thread that performs effects has nothing to do.
    client.ask::<Witness>("payer", &pay("sure", 1)).wait_for(PATIENCE).expect("asked for");
    until("the first ends", || (read(&client, "payer").ends.len() == 1).then_some(()));
    // Then several come at once.
    let hangs: Vec<_> = (0..4).map(|n| client.ask::<Witness>("payer", &pay("hang", 100 + n))).collect();
    let sure = client.ask::<Witness>("payer", &pay("sure", 2));
    let begun = Instant::now();
    until("the second ends", || (read(&client, "payer").ends.len() == 2).then_some(()));
    assert!(begun.elapsed() < PATIENCE / 2, "it waited for those that hang");
    assert_eq!(read(&client, "payer").ends[1], "effect 2 done 2");
    drop((hangs, sure));
}

#[test]
fn timers_fire_across_a_restart() {
    let folder = Folder::new();
    let store = folder.path("store");
    let runtime = open(&store);
    let client = runtime.client();
    let wake = |name: &str, after_ms| Do::Wake { name: name.into(), after_ms };
    for message in [
        wake("soon", 150),
        wake("reset", 3_600_000),
        wake("reset", 250),
        wake("cancelled", 200),
        Do::Cancel { name: "cancelled".into() },
        wake("never", 3_600_000),
    ] {
        client.ask::<Witness>("sleeper", &message).wait_for(PATIENCE).expect("set");
    }
    drop(runtime);
    let runtime = open(&store);
    let client = runtime.client();
    until("the timers fire", || {
        let ends = read(&client, "sleeper").ends;
        ends.contains(&"timer soon".to_owned()).then_some(())?;
        ends.contains(&"timer reset".to_owned()).then_some(())
    });
    let ends = read(&client, "sleeper").ends;
    assert!(!ends.contains(&"timer cancelled".to_owned()), "{ends:?}");
    assert!(!ends.contains(&"timer never".to_owned()), "{ends:?}");
    assert_eq!(ends.iter().filter(|end| *end == "timer soon").count(), 1, "{ends:?}");
    assert!(runtime.close(PATIENCE));
    assert_eq!(read(&open(&store).client(), "sleeper").ends, ends, "fired is fired");
}

// -------------------------------------------------------------------------- two at once

#[test]
fn the_second_process_is_refused_and_told_by_whom() {
    let folder = Folder::new();
    let mut other = Other::start(role("hold", folder.0.path()));
    other.hear("HELD").expect("the first one gets it");
    let store = folder.path("store");
    let why = refusal(app(), &store);
    assert!(why.contains("in use") && why.contains(&format!("process {}", other.child.id())), "{why}");
    other.kill();
    let runtime = open(&store);
    assert!(refusal(app(), &store).contains("in use"), "also within one process");
    drop(runtime);
    drop(open(&store));
}

#[test]
fn of_two_processes_that_create_one_store_at_once_one_does() {
    for round in 0..8 {
        let folder = Folder::new();
        let mut others = [(); 3].map(|()| Other::start(role("hold", folder.0.path())));
        let (mut held, mut refused) = (0, Vec::new());
        for other in &mut others {
            match other.hear_either("HELD", "REFUSED") {
                (true, _) => held += 1,
                (false, why) => refused.push(why),
            }
        }
        assert_eq!(held, 1, "round {round}: {refused:?}");
        assert!(refused.iter().all(|why| why.contains("in use")), "round {round}: {refused:?}");
        others.iter_mut().for_each(Other::kill);
        let runtime = open(&folder.path("store"));
        note(&runtime.client(), "one", 1);
    }
}

impl Other {
    fn hear_either(&mut self, yes: &str, no: &str) -> (bool, String) {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.out.read_line(&mut line).expect("a pipe") > 0, "it ended without a word");
            if line.contains(yes) {
                return (true, line);
            }
            if let Some((_, why)) = line.split_once(no) {
                return (false, why.trim().to_owned());
            }
        }
    }
}

// -------------------------------------------------------------------------- two copies

fn mirrored(folder: &Folder) -> App {
    app().mirror(folder.path("mirror"))
}

/// What is in a store before one of its copies goes.
fn with_a_hundred(folder: &Folder) {
    let runtime = mirrored(folder).open(folder.path("store")).expect("opens");
    let client = runtime.client();
    for number in 0..100 {
        note(&client, &key_of(number), number);
    }
    drop(runtime);
}

#[test]
fn a_store_that_lost_a_copy_opens_only_when_told_so() {
    // What is lost: a whole copy, a journal directory of it.
    for lost in ["store", "mirror", "store/j0", "mirror/j1"] {
        let folder = Folder::new();
        with_a_hundred(&folder);
        fs::remove_dir_all(folder.path(lost)).expect("removed");
        let before = listing(folder.0.path());
        let why = refusal(mirrored(&folder), &folder.path("store"));
        assert!(why.contains("degraded") || why.contains("mend"), "{lost}: {why}");
        assert_eq!(listing(folder.0.path()), before, "{lost}: a refusal makes nothing");
        let runtime = mirrored(&folder).degraded(true).open(folder.path("store"));
        let runtime = runtime.unwrap_or_else(|error| panic!("{lost}, degraded: {error}"));
        assert_eq!(all_noted(&runtime), (0..100).map(|number| (number, 1)).collect(), "{lost}");
        note(&runtime.client(), "one", 100);
        drop(runtime);
        let runtime = mirrored(&folder).degraded(true).open(folder.path("store")).expect("opens again");
        assert_eq!(all_noted(&runtime).len(), 101, "{lost}");
    }
}

#[test]
fn one_file_lost_from_one_copy_is_put_back_or_refused_and_never_forgotten() {
    let segment = |dir: &Path| {
        let mut names: Vec<PathBuf> =
            fs::read_dir(dir).expect("listed").map(|entry| entry.expect("read").path()).collect();
        names.sort();
        names.into_iter().find(|path| path.to_string_lossy().contains("seg-")).expect("a segment")
    };
    for copy in ["store", "mirror"] {
        let folder = Folder::new();
        with_a_hundred(&folder);
        fs::remove_file(segment(&folder.path(copy).join("j0"))).expect("removed");
        let runtime = match mirrored(&folder).open(folder.path("store")) {
            Ok(runtime) => runtime,
            Err(error) => {
                let why = error.to_string();
                assert!(why.contains("degraded") || why.contains("mend"), "{copy}: {why}");
                mirrored(&folder).degraded(true).open(folder.path("store")).expect("opens degraded")
            }
        };
        assert_eq!(all_noted(&runtime), (0..100).map(|number| (number, 1)).collect(), "{copy}");
    }
}

/// Names below a directory, without those of locks and running pages.
fn listing(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.expect("read").path();
        let transient = ["lock", "running"].iter().any(|name| path.ends_with(name));
        if path.is_dir() {
            all.extend(listing(&path));
        }
        if !transient {
            all.insert(path);
        }
    }
    all
}

#[test]
fn a_mirror_whose_creation_was_cut_short_at_its_very_end_is_not_made_anew() {
    let folder = Folder::new();
    with_a_hundred(&folder);
    // The power went after the first copy's marker was there and before the second's.
    let (marker, creating) = ("mirror/rallypoint.store", "mirror/rallypoint.creating");
    fs::remove_file(folder.path(marker)).expect("removed");
    fs::write(folder.path(creating), "a store is being created here\n").expect("written");
    let runtime = mirrored(&folder).open(folder.path("store")).expect("opens");
    note(&runtime.client(), "one", 100);
    drop(runtime);
    // Long after that, the first disk is lost.
    fs::remove_dir_all(folder.path("store")).expect("removed");
    let _ = mirrored(&folder).open(folder.path("store")).map(drop);
    let _ = fs::remove_dir_all(folder.path("store"));
    let runtime = mirrored(&folder).degraded(true).open(folder.path("store")).expect("opens degraded");
    assert_eq!(all_noted(&runtime).len(), 101, "everything acknowledged is still there");
}

// -------------------------------------------------------------------------- a full disk

/// Notes numbers until the store gives up; then what is there must be what was acknowledged.
/// Asks until it goes no further; something else takes all space that is left after so many answers.
fn full(place: &Path, fill_after: u64) {
    let runtime = match app().allow_unsuitable_file_system(true).open(place.join("store")) {
        Ok(runtime) => runtime,
        Err(error) => return println!("\nREFUSED {error}"),
    };
    let client = runtime.client();
    let mut acknowledged = BTreeSet::new();
    let mut why = None;
    for number in 0..200_000 {
        if number == fill_after {
            let mut filler = File::create(place.join("filler")).expect("made");
            while filler.write_all(&[1; 4096]).is_ok() {}
        }
        match client.ask::<Witness>(&key_of(number), &Do::Note(number)).wait_for(PATIENCE / 6) {
            Ok(_) => drop(acknowledged.insert(number)),
            Err(error) => {
                why = Some(format!("{error}; {:?}", runtime.failure()));
                break;
            }
        }
    }
    drop(client);
    drop(runtime);
    let runtime = app().allow_unsuitable_file_system(true).open(place.join("store"));
    let runtime = runtime.unwrap_or_else(|error| panic!("it must open on a full disk: {error}"));
    let noted = noted_now(&runtime);
    assert!(noted.values().all(|&times| times == 1), "{noted:?}");
    let lost: Vec<&u64> = acknowledged.iter().filter(|number| !noted.contains_key(number)).collect();
    println!("\nFULL {} lost {lost:?}: {}", acknowledged.len(), why.unwrap_or_default());
}

#[test]
fn a_write_that_finds_no_space_loses_nothing_acknowledged() {
    for nth in [40, 300] {
        let folder = Folder::new();
        let preload = Preload::new(folder.0.path()).expect("the library is built");
        let preload = preload.fail_write(nth, libc::ENOSPC).fail_name("/seg-");
        let mut command = role("full", folder.0.path());
        preload.apply(&mut command);
        let mut other = Other::start(command);
        let said = other.hear("FULL").expect("it ends in order");
        assert!(said.contains("lost []") && said.contains("No space left"), "{said}");
    }
}

#[test]
fn a_full_file_system_loses_nothing_acknowledged() {
    let folder = Folder::new();
    let mut command = role("fill", folder.0.path());
    let target = std::ffi::CString::new(folder.0.path().as_os_str().as_encoded_bytes()).expect("no zero");
    // A small file system of its own, seen by nobody else and gone with the process.
    // SAFETY: only system calls between fork and exec, on memory made before.
    unsafe {
        command.pre_exec(move || {
            let alone = libc::unshare(libc::CLONE_NEWNS) == 0
                || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) == 0;
            let (none, slash, tmpfs) = (c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr());
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let mounted = alone
                && libc::mount(none, slash, std::ptr::null(), private, std::ptr::null()) == 0
                && libc::mount(tmpfs, target.as_ptr(), tmpfs, 0, c"size=12m".as_ptr().cast()) == 0;
            if mounted { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return println!("skipped: no file system of its own can be mounted here ({error})"),
    };
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let mut other = Other { child, out };
    let said = other.hear("FULL").expect("it ends in order");
    assert!(said.contains("lost []"), "{said}");
    assert!(said.contains("No space left") || said.to_lowercase().contains("full"), "{said}");
    let acknowledged: u64 = said.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    assert!(acknowledged > 100, "{said}");
}

#[test]
fn something_else_in_the_directory_is_left_alone() {
    let folder = Folder::new();
    let store = folder.path("store");
    fs::create_dir(&store).expect("made");
    File::create(store.join("thesis.txt")).expect("made");
    let why = refusal(app(), &store);
    assert!(why.contains("not a rallypoint store") && why.contains("thesis.txt"), "{why}");
    assert_eq!(listing(&store).len(), 1);
}

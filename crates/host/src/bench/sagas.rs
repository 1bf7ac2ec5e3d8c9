//! `rallypoint bench sagas`: sagas of three steps that do nothing, each durable before the next.
//!
//! Decides which loads: one saga at a time, 64 and 1,024 at once, a failing third step; what sagas
//! take on the disk and in memory; how soon a store full of them answers again after its process was
//! killed in the middle of a thousand steps. Every saga counted was waited for, and its end is durable.

use super::load::Area;
use super::messages::{resident, root_error};
use super::raw::BareLoop;
use super::report::{Must, Report, Row, median, quantile};
use crate::app::{App, Runtime};
use crate::os::machine::Machine;
use crate::saga::handle::{Sagas, WaitError};
use rallypoint_base::limits::BLOCK;
use rallypoint_engine::partition::Limits;
use rallypoint_saga::function::Saga;
use rallypoint_saga::registry::Registry;
use rallypoint_saga::status::Status;
use rallypoint_saga::step::{Outcome, SagaError, Step, StepCx, StepError, UndoError};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How to run the bench.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the first copy; something is made in it and removed again.
    pub directory: PathBuf,
    /// Directory of the second copy; without it there is one copy.
    pub mirror: Option<PathBuf>,
    /// Time for each case.
    pub time: Duration,
    /// Sagas whose memory is measured while they wait.
    pub waiting: u64,
    /// Sagas that have ended when the store is opened again; 0 leaves that out. This binary must hand
    /// `bench sagas --hold` to [`hold`].
    pub ended: u64,
}

impl Settings {
    /// The default: below two minutes.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let time = Duration::from_secs(6);
        Self { directory: directory.into(), mirror: None, time, waiting: 20_000, ended: 100_000 }
    }
}

#[derive(Serialize, Deserialize)]
struct Nothing {
    order: String,
    refuse: bool,
}

impl Step<Holding> for Nothing {
    const NAME: &'static str = "nothing";
    type Output = ();
    type Error = String;
    async fn run(&self, _: StepCx<'_, Holding>) -> Result<(), StepError<String>> {
        if self.refuse { Err(StepError::business("no".to_owned())) } else { Ok(()) }
    }
    async fn undo(&self, _: StepCx<'_, Holding>, _: Outcome<()>) -> Result<(), UndoError> {
        Ok(())
    }
}

/// True in the process that is to be killed while steps run.
struct Holding(bool);

/// Runs until its process ends where that is to be killed, and not at all elsewhere.
#[derive(Serialize, Deserialize)]
struct Hold {
    order: String,
}

impl Step<Holding> for Hold {
    const NAME: &'static str = "hold";
    type Output = ();
    type Error = String;
    async fn run(&self, cx: StepCx<'_, Holding>) -> Result<(), StepError<String>> {
        if cx.app().0 { std::future::pending().await } else { Ok(()) }
    }
}

/// 40 bytes when encoded.
#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    refuse: bool,
}

impl Order {
    fn new(refuse: bool) -> Self {
        Self { id: "x".repeat(27), refuse }
    }
}

async fn three(s: Saga<Holding>, order: Order) -> Result<(), SagaError> {
    for at in 0..3 {
        s.step(Nothing { order: order.id.clone(), refuse: order.refuse && at == 2 }).await?;
    }
    Ok(())
}

async fn waits(s: Saga<Holding>, order: Order) -> Result<(), SagaError> {
    s.step(Nothing { order: order.id, refuse: false }).await?;
    s.signal::<()>("go").await
}

async fn held(s: Saga<Holding>, order: Order) -> Result<(), SagaError> {
    s.step(Nothing { order: order.id.clone(), refuse: false }).await?;
    s.step(Hold { order: order.id.clone() }).await?;
    Ok(s.step(Nothing { order: order.id, refuse: false }).await?)
}

fn app(app: App) -> App {
    holding(app, false)
}

fn holding(app: App, holds: bool) -> App {
    let registry = Registry::new(Holding(holds)).step::<Nothing>().step::<Hold>();
    app.sagas(registry.saga("three", 1, three).saga("waits", 1, waits).saga("held", 1, held))
}

/// Runs everything.
///
/// # Errors
/// What the operating system or the store says.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut area = Area::new("sagas", &settings.directory, settings.mirror.as_deref())?;
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let mut rows = {
        let bare = BareLoop::new(&area.bare()?, BLOCK, 16 << 20)?;
        let (definition, dir) = area.store();
        let _inside = tokio.enter();
        let runtime = app(definition).layout(2, 1).open(dir).map_err(root_error)?;
        one_at_a_time(&tokio, &runtime, bare, settings.time)?
    };
    for (at_once, refuse, must) in [(64, false, 20_000.0), (1024, false, 60_000.0), (64, true, 12_000.0)] {
        let (definition, dir) = area.store();
        rows.extend(at_once_rows(&tokio, definition, &dir, at_once, refuse, settings.time, must)?);
    }
    let (definition, dir) = area.store();
    rows.extend(disk(&tokio, definition, &dir)?);
    let (definition, dir) = area.store();
    rows.push(memory(&tokio, definition, &dir, settings.waiting)?);
    if settings.ended > 0 {
        let (_, dir) = area.store();
        let again = area.mirrored(super::register(App::define()), &dir);
        let mirror = area.mirror_of(&dir);
        rows.extend(restart(&tokio, again, &dir, mirror.as_deref(), settings.ended)?);
    }
    let machine = Machine::of(&settings.directory);
    Ok(Report { bench: "sagas".to_owned(), machine, rows })
}

fn sagas(runtime: &Runtime) -> io::Result<Sagas> {
    runtime.sagas().ok_or_else(|| io::Error::other("the application has no sagas"))
}

async fn one(sagas: &Sagas, name: &str, id: &str, refuse: bool) -> io::Result<()> {
    let handle = sagas.start(name, id, &Order::new(refuse)).await.map_err(io::Error::other)?;
    match handle.wait::<()>().await {
        Ok(()) if !refuse => Ok(()),
        Err(WaitError::Compensated(_)) if refuse => Ok(()),
        other => Err(io::Error::other(format!("saga {id} ended otherwise: {other:?}"))),
    }
}

fn one_at_a_time(
    tokio: &tokio::runtime::Runtime,
    runtime: &Runtime,
    mut bare: BareLoop,
    time: Duration,
) -> io::Result<Vec<Row>> {
    const TURNS: u32 = 12;
    let sagas = sagas(runtime)?;
    let slice = time / TURNS / 2;
    let (mut times, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut at, mut commits, mut inline) = (0_u64, 0, 0);
    for _ in 0..TURNS {
        let here = bare.times(slice)?;
        let (before, inline_before) = (written(runtime).0, runtime.inline_commits());
        let ours = tokio.block_on(async {
            let (started, mut ours) = (Instant::now(), Vec::new());
            while started.elapsed() < slice {
                let before = Instant::now();
                one(&sagas, "three", &format!("one-{at}"), false).await?;
                ours.push(before.elapsed().as_secs_f64() * 1e6);
                at += 1;
            }
            Ok::<_, io::Error>(ours)
        })?;
        commits += written(runtime).0 - before;
        inline += runtime.inline_commits() - inline_before;
        ratios.push(median(&ours) / median(&here));
        times.extend(ours);
        limits.extend(here);
    }
    // A commit that the saga's own thread does not make costs a hop to the one that does, and one back.
    let hops = 2.0 * commits.saturating_sub(inline) as f64 / at as f64;
    Ok(vec![
        Row::beside(
            "embedded, 1 at a time, p50",
            median(&times),
            "us",
            median(&limits),
            median(&ratios),
            Some(Must::AtMost(8.0)),
        ),
        Row::plain("embedded, 1 at a time, p99", quantile(&times, 0.99), "us"),
        Row::plain("embedded, 1 at a time, syncs per saga", commits as f64 / at as f64, ""),
        Row::plain("embedded, 1 at a time, thread hops per saga", hops, "hops"),
    ])
}

/// Commits and bytes of journal in use.
fn written(runtime: &Runtime) -> (u64, u64) {
    let (mut commits, mut bytes) = (0, 0);
    runtime.each_store(&mut |durable, used| {
        commits += durable;
        bytes += used;
    });
    (commits, bytes)
}

/// `at_once` tasks that each run one saga after the other.
async fn load(
    sagas: &Sagas,
    at_once: u64,
    refuse: bool,
    more: Arc<dyn Fn(u64) -> bool + Send + Sync>,
) -> io::Result<u64> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..at_once {
        let (sagas, next, more) = (sagas.clone(), Arc::clone(&next), Arc::clone(&more));
        tasks.push(tokio::spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if !more(at) {
                    return Ok::<_, io::Error>(());
                }
                one(&sagas, "three", &format!("s-{at}"), refuse).await?;
            }
        }));
    }
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    Ok(next.load(Ordering::Relaxed) - at_once)
}

fn at_once_rows(
    tokio: &tokio::runtime::Runtime,
    definition: App,
    dir: &Path,
    at_once: u64,
    refuse: bool,
    time: Duration,
    must: f64,
) -> io::Result<Vec<Row>> {
    let _inside = tokio.enter();
    let runtime = app(definition).layout(4, 1).open(dir).map_err(root_error)?;
    let sagas = sagas(&runtime)?;
    let before = written(&runtime).0;
    let started = Instant::now();
    let done = tokio.block_on(load(&sagas, at_once, refuse, Arc::new(move |_| started.elapsed() < time)))?;
    let rate = done as f64 / started.elapsed().as_secs_f64();
    let what = if refuse { "failing third step, two compensations, " } else { "" };
    let syncs = (written(&runtime).0 - before) as f64 / done as f64;
    let case = format!("embedded, {what}{at_once} at once");
    Ok(vec![
        Row::judged(case.clone(), rate, "/s", Must::ValueAtLeast(must)),
        Row::plain(format!("{case}, syncs per saga"), syncs, ""),
    ])
}

fn disk(tokio: &tokio::runtime::Runtime, definition: App, dir: &Path) -> io::Result<Vec<Row>> {
    const SAGAS: u64 = 10_000;
    let _inside = tokio.enter();
    // No checkpoint while it runs, so that all of the log is counted.
    let limits = Limits { checkpoint_runs: u64::MAX, checkpoint_bytes: u64::MAX, ..Limits::default() };
    let runtime = app(definition).layout(4, 1).limits(limits).open(dir).map_err(root_error)?;
    let sagas = sagas(&runtime)?;
    let before = written(&runtime).1;
    tokio.block_on(load(&sagas, 1024, false, Arc::new(|at| at < SAGAS)))?;
    let log = written(&runtime).1 - before;
    if !runtime.checkpoint(Duration::from_secs(60)) {
        return Err(io::Error::other("no checkpoint could be written"));
    }
    let images = bytes_below(dir, "cp-")?;
    Ok(vec![
        Row::judged(
            "log of 10,000 sagas, 1,024 at once, one copy",
            log as f64 / 1e6,
            "MB",
            Must::ValueAtMost(10.0),
        ),
        Row::plain("checkpoint of 10,000 ended sagas", images as f64 / 1e6, "MB"),
    ])
}

/// Bytes of the files below whose path has `word` in it.
fn bytes_below(dir: &Path, word: &str) -> io::Result<u64> {
    let mut sum = 0;
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(0) };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            sum += bytes_below(&path, word)?;
        } else if path.to_string_lossy().contains(word) {
            sum += entry.metadata()?.len();
        }
    }
    Ok(sum)
}

fn memory(tokio: &tokio::runtime::Runtime, definition: App, dir: &Path, count: u64) -> io::Result<Row> {
    let _inside = tokio.enter();
    let runtime = app(definition).layout(4, 1).open(dir).map_err(root_error)?;
    let sagas = sagas(&runtime)?;
    let settle = || {
        let _ = runtime.checkpoint(Duration::from_secs(60));
        std::thread::sleep(Duration::from_secs(2));
        resident(std::process::id())
    };
    // First a few, so that buffers have the size that they keep.
    tokio.block_on(wait_for(&sagas, 0..count / 4))?;
    let before = settle()?;
    tokio.block_on(wait_for(&sagas, count / 4..count + count / 4))?;
    let each = (settle()? - before) / count as f64;
    Ok(Row::judged(
        format!("memory of a waiting saga, of {count}"),
        each / 1024.0,
        "KiB",
        Must::ValueAtMost(4.0),
    ))
}

/// Starts sagas that wait for a signal.
async fn wait_for(sagas: &Sagas, numbers: std::ops::Range<u64>) -> io::Result<()> {
    let ids: Vec<String> = numbers.map(|at| format!("w-{at}")).collect();
    for ids in ids.chunks(1024) {
        let mut tasks = Vec::new();
        for id in ids {
            let (sagas, id) = (sagas.clone(), id.clone());
            tasks.push(tokio::spawn(async move {
                sagas.start("waits", &id, &Order::new(false)).await.map_err(io::Error::other)
            }));
        }
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
    }
    Ok(())
}

/// Sagas in the middle of a step when their process is killed.
const RUNNING: u64 = 1_000;

/// In a process of its own: fills a store with sagas that have ended and with a thousand in the middle
/// of a step, says `ready` on its output, and waits to be killed.
///
/// # Errors
/// What the operating system or the store says.
pub fn hold(dir: &Path, mirror: Option<&Path>, ended: u64) -> io::Result<std::convert::Infallible> {
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let _inside = tokio.enter();
    let mut definition = super::register(App::define());
    if let Some(mirror) = mirror {
        definition = definition.mirror(mirror);
    }
    let runtime = holding(definition, true).layout(4, 1).open(dir).map_err(root_error)?;
    let sagas = sagas(&runtime)?;
    tokio.block_on(async {
        load(&sagas, 1024, false, Arc::new(move |at| at < ended)).await?;
        for at in 0..RUNNING {
            sagas.start("held", &format!("h-{at}"), &Order::new(false)).await.map_err(io::Error::other)?;
        }
        for at in 0..RUNNING {
            let handle = sagas.get(&format!("h-{at}"));
            // In its second step, durably.
            while handle.show().await.map_err(io::Error::other)?.ops().len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok::<_, io::Error>(())
    })?;
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Has a store filled and its process killed, and opens it.
fn restart(
    tokio: &tokio::runtime::Runtime,
    again: App,
    dir: &Path,
    mirror: Option<&Path>,
    ended: u64,
) -> io::Result<Vec<Row>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "sagas", "--hold", &ended.to_string(), "--dir"]).arg(dir);
    if let Some(mirror) = mirror {
        command.arg("--mirror").arg(mirror);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    let heard = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut said)).transpose();
    // SIGKILL, and nobody opens the store before the process is gone.
    child.kill()?;
    child.wait()?;
    heard?;
    if said.trim() != "ready" {
        return Err(io::Error::other("the process that fills the store ended before it was full"));
    }
    let _inside = tokio.enter();
    let started = Instant::now();
    let runtime = app(again).open(dir).map_err(root_error)?;
    let opened = started.elapsed();
    let sagas = sagas(&runtime)?;
    tokio.block_on(async {
        sagas.get(&format!("s-{}", ended / 3)).show().await.map_err(io::Error::other)?;
        one_start(&sagas).await
    })?;
    let served = started.elapsed();
    tokio.block_on(async {
        for at in 0..RUNNING {
            let handle = sagas.get(&format!("h-{at}"));
            let status = handle.wait_end().await.map_err(io::Error::other)?.status;
            if status != Status::Completed {
                return Err(io::Error::other(format!("saga h-{at} is {status}")));
            }
        }
        Ok(())
    })?;
    let resumed = started.elapsed();
    let (ms, one_second) = (|time: Duration| time.as_secs_f64() * 1e3, Must::ValueAtMost(1000.0));
    Ok(vec![
        Row::plain(format!("kill -9 with {ended} ended and {RUNNING} in a step: open"), ms(opened), "ms"),
        Row::judged(
            "kill -9: GET of an ended one and a durable start",
            ms(served),
            "ms",
            Must::ValueAtMost(200.0),
        ),
        Row::judged("kill -9: all that were in a step have ended", ms(resumed), "ms", one_second),
    ])
}

async fn one_start(sagas: &Sagas) -> io::Result<()> {
    sagas.start("three", "after", &Order::new(false)).await.map(drop).map_err(io::Error::other)
}

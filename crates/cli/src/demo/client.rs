//! The demo's client process, which nobody kills (unless everything is killed).
//!
//! Decides which line of the input is sent when: a window of unanswered transfers, each under its
//! line number in one session, so that a repetition gets the original answer. Every acknowledgement
//! is written to the ledger before the session is told that it may be forgotten.
//!
//! Lines on standard output: `progress ACKNOWLEDGED IN_FLIGHT`, `answer WORKER NANOS` (the first
//! answer over a new connection), `done ACKNOWLEDGED BUSY_NANOS`, `failed TEXT`.

use crate::demo::input::{Content, Input};
use crate::demo::ledger::{Ledger, Outcome};
use bank::{Account, Message, Reply};
use rallypoint::{InputSeq, Pending, RemoteClient, SessionId, Turned};
use rallypoint_host::os::process::monotonic_nanos;
use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Unanswered transfers.
const WINDOW: usize = 1024;
/// Answered ones that wait behind an unanswered one.
const SPAN: usize = 16 * WINDOW;

/// What the demo tells its client.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    opening: u64,
}

struct Sent {
    line: u64,
    message: Message,
    from: String,
    pending: Option<Pending<Account>>,
    /// When a turned away transfer may be tried again.
    again: Option<Instant>,
}

pub(crate) fn run(arguments: &Arguments) -> u8 {
    match try_run(arguments) {
        Ok(()) => 0,
        Err(error) => {
            println!("failed {}", error.replace('\n', " "));
            2
        }
    }
}

fn try_run(arguments: &Arguments) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let input = Input::open(&arguments.input).map_err(|e| text(&e))?;
    let (mut ledger, reading) =
        Ledger::resume(&arguments.ledger, input.hash(), arguments.opening).map_err(|e| text(&e))?;
    let session = SessionId(reading.header.session);
    let remote = RemoteClient::connect(&arguments.dir, Some((session, InputSeq(1)))).map_err(|e| text(&e))?;
    let client = remote.client();
    let mut lines = input.lines().map_err(|e| text(&e))?;
    let mut window: VecDeque<Sent> = VecDeque::new();
    let (mut acknowledged, mut exhausted) = (0u64, false);
    let start = Instant::now();
    let mut said = start;
    let mut batch = Vec::new();
    while !exhausted || !window.is_empty() {
        while !exhausted && client.in_flight() < WINDOW && window.len() < SPAN {
            let Some(line) = lines.next() else {
                exhausted = true;
                break;
            };
            let line = line.map_err(|e| text(&e))?;
            if reading.outcomes.get(line.number).is_some() {
                continue;
            }
            let opening = arguments.opening;
            let (from, message) = match line.content {
                Content::Rejected(_) => continue,
                Content::Transfer(t) => {
                    let (line, to, amount) = (line.number, t.to, t.amount);
                    (t.from, Message::Transfer { line, to, amount, opening })
                }
                Content::Duplicate(t) => (t.from, Message::Open { to: t.to, opening }),
            };
            let pending = client.ask_as::<Account>(InputSeq(line.number), &from, &message);
            window.push_back(Sent { line: line.number, message, from, pending: Some(pending), again: None });
        }
        let mut waited = false;
        for sent in &mut window {
            if sent.again.is_some_and(|again| again <= Instant::now()) {
                sent.again = None;
                sent.pending = sent.pending.take().map(|pending| pending.again(&sent.from, &sent.message));
            }
            // It did not run. Under another number it might run twice: a resumed client would ask for
            // the line under its own.
            let turned = sent.pending.as_ref().and_then(Pending::turned);
            if let Some(Turned::Overloaded | Turned::Stopped) = turned {
                sent.again.get_or_insert_with(|| Instant::now() + Duration::from_millis(20));
                continue;
            }
            if sent.pending.as_ref().is_some_and(Pending::is_ready)
                && let Some(pending) = sent.pending.take()
            {
                match pending.wait() {
                    Ok(Reply::Applied) => batch.push((sent.line, Outcome::Applied)),
                    Ok(Reply::Refused) => batch.push((sent.line, Outcome::Refused)),
                    Ok(Reply::Opened) => batch.push((sent.line, Outcome::Duplicate)),
                    Ok(other) => return Err(format!("line {} was answered with {other:?}", sent.line)),
                    Err(error) => return Err(format!("line {}: {error}", sent.line)),
                }
                waited = true;
            }
        }
        if !batch.is_empty() {
            // Before anything else is sent: what is sent next lets the door forget these answers.
            ledger.append(&batch).map_err(|e| text(&e))?;
            acknowledged += batch.len() as u64;
            batch.clear();
            while window.front().is_some_and(|sent| sent.pending.is_none()) {
                window.pop_front();
            }
        }
        for (worker, at) in remote.first_answers() {
            println!("answer {worker} {}", monotonic_nanos() - at.elapsed().as_nanos() as u64);
        }
        if said.elapsed() >= Duration::from_millis(5) {
            said = Instant::now();
            println!("progress {acknowledged} {}", client.in_flight());
            let _ = std::io::stdout().flush();
        }
        if !waited {
            let unanswered = |sent: &&Sent| sent.again.is_none();
            match window.iter().filter(unanswered).find_map(|sent| sent.pending.as_ref()) {
                Some(pending) => {
                    let _ = pending.wait_ready(Duration::from_millis(2));
                }
                None if !window.is_empty() => std::thread::sleep(Duration::from_millis(2)),
                None => {}
            }
        }
    }
    let busy = start.elapsed();
    ledger.sync().map_err(|e| text(&e))?;
    println!("done {acknowledged} {}", busy.as_nanos());
    Ok(())
}

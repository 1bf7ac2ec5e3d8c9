//! The demo's auditing process: fresh, after everything else has ended.
//!
//! Decides nothing itself: it opens the store (which is one more recovery), lets every message
//! arrive, reads every account, and has them judged against the input and the ledger, both of which
//! lie outside the store. What the supervisor measured comes over standard input.

use crate::demo::audit::audit;
use crate::demo::input::Input;
use crate::demo::report::{Measured, Report, write_balances, write_rejects};
use crate::demo::{ledger, sequential};
use crate::output::{Exit, print_json};
use bank::{Account, View};
use rallypoint::{Actor, Encoded};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

/// What the demo tells its auditor.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    mirror: Option<PathBuf>,
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    ledger: PathBuf,
    #[arg(long)]
    balances: Option<PathBuf>,
    #[arg(long)]
    rejects: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

/// What the supervisor measured.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) kills: u64,
    pub(crate) recoveries_ms: Vec<f64>,
    pub(crate) acknowledged: u64,
    pub(crate) busy_s: f64,
    pub(crate) elapsed_s: f64,
    /// What kind of kills fell where, for people.
    pub(crate) kinds: Vec<(String, u64)>,
}

pub(crate) fn run(arguments: &Arguments) -> u8 {
    match try_run(arguments) {
        Ok(exit) => exit as u8,
        Err(error) => {
            eprintln!("rallypoint: the audit could not be made: {error}");
            Exit::NotDone as u8
        }
    }
}

fn try_run(arguments: &Arguments) -> Result<Exit, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut measured = String::new();
    std::io::stdin().read_to_string(&mut measured).map_err(|e| text(&e))?;
    let figures: Figures = serde_json::from_str(&measured).map_err(|e| text(&e))?;

    let mut app = super::application();
    if let Some(mirror) = &arguments.mirror {
        app = app.mirror(mirror);
    }
    let runtime = app.open(&arguments.dir).map_err(|e| text(&e))?;
    for report in runtime.reports() {
        let damage = report.journal.lost.first().map(ToString::to_string);
        if let Some(what) = damage.or_else(|| report.stopped.first().map(ToString::to_string)) {
            let dir = arguments.dir.display();
            return Err(format!("the store cannot be read whole ({what}): see rallypoint verify {dir}"));
        }
    }
    if !runtime.drain(Duration::from_secs(60)) {
        return Err("the messages between accounts did not all arrive within a minute".into());
    }
    let mut views: BTreeMap<String, View> = BTreeMap::new();
    let mut unreadable = None;
    runtime.each_actor(&mut |kind, key, bytes| {
        if kind != Account::KIND {
            return;
        }
        match Encoded::split(bytes).map(|encoded| encoded.decode::<Account>()) {
            Some(Ok(account)) => drop(views.insert(key.to_owned(), account.view())),
            Some(Err(error)) => unreadable = Some(format!("account {key:?}: {error}")),
            None => unreadable = Some(format!("account {key:?} has no codec")),
        }
    });
    if let Some(error) = unreadable {
        return Err(error);
    }
    drop(runtime);

    let input = Input::open(&arguments.input).map_err(|e| text(&e))?;
    let reading = ledger::read(&arguments.ledger).map_err(|e| text(&e))?;
    let lines = || input.lines().map_err(|e| text(&e));
    let books =
        sequential::expect(lines()?, &reading.outcomes, reading.header.opening).map_err(|e| text(&e))?;
    let mut audit = audit(&books, &views);
    audit.name_transfers(lines()?, &reading.outcomes).map_err(|e| text(&e))?;
    let measured = Measured {
        kills: figures.kills,
        recoveries: figures.recoveries_ms.iter().map(|ms| Duration::from_secs_f64(ms / 1e3)).collect(),
        acknowledged: figures.acknowledged,
        busy: Duration::from_secs_f64(figures.busy_s),
        elapsed: Duration::from_secs_f64(figures.elapsed_s),
    };
    let report = Report::new(&books, &audit, &measured);
    if let Some(path) = &arguments.balances {
        write_balances(path, &views).map_err(|e| text(&e))?;
    }
    if let Some(path) = &arguments.rejects {
        write_rejects(path, lines()?).map_err(|e| text(&e))?;
    }
    if arguments.json {
        print_json(&report).map_err(|e| text(&e))?;
    } else {
        if figures.kills > 0 {
            let kinds: Vec<String> =
                figures.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            println!("kill -9     {} workers killed: {}", figures.kills, kinds.join(", "));
        }
        println!("{}", report.summary(&audit));
    }
    Ok(report.exit())
}

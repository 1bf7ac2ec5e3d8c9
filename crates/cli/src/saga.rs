//! `saga`: start, look at and step into the sagas of a server; look at those of a directory.
//!
//! Decides words and exit codes; what a saga is comes from the server's JSON, which `--json` prints as
//! it is.

use crate::admin::progress::Bar;
use crate::output::{Exit, print_json};
use clap::{Args, Subcommand};
use rallypoint_server::client::{ApiClient, ClientError};
use rallypoint_server::look::{self, LookError};
use rallypoint_server::{Token, TokenError};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Which server.
#[derive(Args, Debug)]
pub(crate) struct At {
    /// The server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// A file with the server's token.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print JSON, as the server gives it.
    #[arg(long)]
    json: bool,
}

/// Which store, instead of a server.
#[derive(Args, Debug)]
pub(crate) struct From {
    /// Look at the store in this directory instead, through a private copy: nothing of it changes.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The store's second copy, if it has one.
    #[arg(long, value_name = "DIR", requires = "dir")]
    mirror: Option<PathBuf>,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Start a saga; the same key and input is the same saga.
    ///
    /// Exit codes: 0 started (and completed, with --wait); 1 it ended otherwise, or is stuck; 2 not
    /// started, or no answer.
    Start {
        /// Name of its definition.
        name: String,
        /// Its input, as JSON.
        #[arg(default_value = "null", value_parser = parse_json)]
        input: Value,
        /// Names the saga, so that the command may be repeated.
        #[arg(long)]
        key: Option<String>,
        /// Wait this long at most for its end: `250ms`, `10s`, `2m`.
        #[arg(long, value_name = "TIME")]
        wait: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// List sagas, the newest first. Exit codes: 0 listed; 2 no answer, or no store.
    List {
        /// Only sagas of this name.
        #[arg(long)]
        name: Option<String>,
        /// Only sagas with this status.
        #[arg(long)]
        status: Option<String>,
        /// Most sagas.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        at: At,
    },
    /// Show a saga with its steps. Exit codes: 0 shown; 1 it is stuck; 2 none such, or no answer.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        at: At,
    },
    /// Follow a saga until it ends or is stuck. Exit codes: 0 completed; 1 otherwise; 2 no answer.
    Watch {
        /// Its id.
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Stop a saga and compensate what acted or may have acted.
    Cancel(Which),
    /// Begin nothing new; what is in flight is answered.
    Pause(Which),
    /// Go on after a pause.
    Resume(Which),
    /// Try now what is stuck, or waits for another attempt.
    Retry(Which),
    /// Give a saga up: nothing more is done, nothing is undone.
    Abandon(Which),
    /// Leave the exhausted undo of a step undone.
    Skip {
        /// The saga's id.
        id: String,
        /// Name or number of the step.
        step: String,
        #[command(flatten)]
        at: At,
    },
    /// Say that a step, or its undo, was done by hand.
    Resolve {
        /// The saga's id.
        id: String,
        /// Name or number of the step.
        step: String,
        /// The step's output, as JSON.
        #[arg(default_value = "null", value_parser = parse_json)]
        output: Value,
        #[command(flatten)]
        at: At,
    },
    /// Undo a step and all later ones, then run them anew under new keys.
    Restart {
        /// The saga's id.
        id: String,
        /// Name or number of the step.
        #[arg(long)]
        from: String,
        #[command(flatten)]
        at: At,
    },
    /// Send a saga a signal.
    Signal {
        /// The saga's id.
        id: String,
        /// The signal's name.
        signal: String,
        /// Its value, as JSON.
        #[arg(default_value = "null", value_parser = parse_json)]
        value: Value,
        #[command(flatten)]
        at: At,
    },
}

/// A saga of a server.
#[derive(Args, Debug)]
pub(crate) struct Which {
    /// The saga's id.
    id: String,
    #[command(flatten)]
    at: At,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{error}; a text is written in quotes: '\"text\"'"))
}

/// Why a command could not be carried out.
#[derive(Debug, Error)]
enum SagaError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Look(#[from] LookError),
}

/// What a command gives: JSON, words, and how it ends.
struct Done {
    value: Value,
    text: String,
    exit: Exit,
}

impl At {
    fn client(&self) -> Result<ApiClient, SagaError> {
        let token = self.token_file.as_deref().map(Token::read).transpose()?;
        Ok(ApiClient::new(&self.server, token)?)
    }
}

/// Carries a command out and gives the exit code.
pub(crate) fn run(command: Command) -> u8 {
    let json = match &command {
        Command::Start { at, .. }
        | Command::List { at, .. }
        | Command::Show { at, .. }
        | Command::Watch { at, .. }
        | Command::Skip { at, .. }
        | Command::Resolve { at, .. }
        | Command::Restart { at, .. }
        | Command::Signal { at, .. } => at.json,
        Command::Cancel(which)
        | Command::Pause(which)
        | Command::Resume(which)
        | Command::Retry(which)
        | Command::Abandon(which) => which.at.json,
    };
    let exit = match carry_out(command) {
        Ok(done) if json => print_json(&done.value).map_or(Exit::NotDone, |()| done.exit),
        Ok(done) => {
            say(&done.text);
            done.exit
        }
        Err(error) => {
            eprintln!("error: {error}");
            if json {
                let problem = match &error {
                    SagaError::Client(error) => error.problem().cloned(),
                    _ => None,
                };
                let _ = print_json(&problem.unwrap_or_else(|| json!({ "error": error.to_string() })));
            }
            Exit::NotDone
        }
    };
    exit as u8
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever closed the pipe has seen enough.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn carry_out(command: Command) -> Result<Done, SagaError> {
    match command {
        Command::Start { name, input, key, wait, at } => {
            let query: Vec<(&str, &str)> = wait.as_deref().map(|wait| ("wait", wait)).into_iter().collect();
            let saga = at.client()?.post(&["sagas", &name], &query, Some(&input), key.as_deref())?;
            let exit = if wait.is_some() { judge(&saga) } else { Exit::Done };
            let text = format!("{}  {}\n", word(&saga["id"]), word(&saga["status"]));
            Ok(Done { text, value: saga, exit })
        }
        Command::List { name, status, limit, from, at } => {
            let value = match from.dir {
                Some(dir) => {
                    let mut bar = Bar::new();
                    let (name, status) = (name.as_deref(), status.as_deref());
                    let found = look::list(&dir, from.mirror.as_deref(), name, status, limit, &mut bar);
                    bar.end();
                    let (sagas, unreadable) = found?;
                    json!({ "sagas": sagas, "unreadable": unreadable })
                }
                None => {
                    let limit = limit.to_string();
                    let mut query = vec![("limit", limit.as_str())];
                    query.extend(name.as_deref().map(|name| ("name", name)));
                    query.extend(status.as_deref().map(|status| ("status", status)));
                    at.client()?.get(&["sagas"], &query)?
                }
            };
            Ok(Done { text: list(&value), value, exit: Exit::Done })
        }
        Command::Show { id, from, at } => {
            let saga = match from.dir {
                Some(dir) => {
                    let mut bar = Bar::new();
                    let found = look::show(&dir, from.mirror.as_deref(), &id, &mut bar);
                    bar.end();
                    found?
                }
                None => at.client()?.get(&["sagas", &id], &[])?,
            };
            let exit = if saga["status"] == "stuck" { Exit::Look } else { Exit::Done };
            Ok(Done { text: tree(&saga), value: saga, exit })
        }
        Command::Watch { id, at } => watch(&id, &at),
        Command::Cancel(which) => request(&which.at, &[&which.id, "cancel"], &[], None),
        Command::Pause(which) => request(&which.at, &[&which.id, "pause"], &[], None),
        Command::Resume(which) => request(&which.at, &[&which.id, "resume"], &[], None),
        Command::Retry(which) => request(&which.at, &[&which.id, "retry"], &[], None),
        Command::Abandon(which) => request(&which.at, &[&which.id, "abandon"], &[], None),
        Command::Skip { id, step, at } => request(&at, &[&id, "steps", &step, "skip"], &[], None),
        Command::Resolve { id, step, output, at } => {
            request(&at, &[&id, "steps", &step, "resolve"], &[], Some(&output))
        }
        Command::Restart { id, from, at } => request(&at, &[&id, "restart"], &[("from", &from)], None),
        Command::Signal { id, signal, value, at } => {
            request(&at, &[&id, "signals", &signal], &[], Some(&value))
        }
    }
}

fn request(at: &At, path: &[&str], query: &[(&str, &str)], body: Option<&Value>) -> Result<Done, SagaError> {
    let path: Vec<&str> = std::iter::once("sagas").chain(path.iter().copied()).collect();
    let value = at.client()?.post(&path, query, body, None)?;
    let text = format!("{}  {}\n", word(&value["id"]), word(&value["status"]));
    Ok(Done { value, text, exit: Exit::Done })
}

/// 0 only for a saga that completed.
fn judge(saga: &Value) -> Exit {
    if matches!(word(&saga["status"]), "compensated" | "abandoned" | "stuck") {
        Exit::Look
    } else {
        Exit::Done
    }
}

fn has_ended(saga: &Value) -> bool {
    matches!(word(&saga["status"]), "completed" | "compensated" | "abandoned" | "stuck")
}

/// Prints what changes, as it changes.
fn watch(id: &str, at: &At) -> Result<Done, SagaError> {
    /// Often enough to be live, seldom enough to cost nothing.
    const EVERY: Duration = Duration::from_millis(200);
    let client = at.client()?;
    let mut said: Vec<String> = Vec::new();
    loop {
        let saga = client.get(&["sagas", id], &[])?;
        let lines: Vec<String> = tree(&saga).lines().map(str::to_owned).collect();
        if !at.json {
            for (index, line) in lines.iter().enumerate() {
                // The first line has the time of the last change: only its status is news.
                if said.get(index) != Some(line) {
                    say(&format!("{line}\n"));
                }
            }
        }
        said = lines;
        if has_ended(&saga) {
            return Ok(Done { text: String::new(), exit: judge(&saga), value: saga });
        }
        std::thread::sleep(EVERY);
    }
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Text in which no control character moves the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn list(value: &Value) -> String {
    let mut out = String::new();
    let sagas = value["sagas"].as_array().map(Vec::as_slice).unwrap_or_default();
    for saga in sagas {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{}  {:<12}  {}  {}{}",
            word(&saga["created_at"]),
            word(&saga["status"]),
            plain(word(&saga["name"])),
            plain(word(&saga["id"])),
            saga["error"]["message"].as_str().map(|why| format!("  ({})", plain(why))).unwrap_or_default()
        );
    }
    if sagas.is_empty() {
        out.push_str("no sagas\n");
    }
    if !value["next_cursor"].is_null() {
        out.push_str("there are more: raise --limit, or choose by --name and --status\n");
    }
    if let Some(count) = value["unreadable"].as_u64().filter(|count| *count > 0) {
        let _ = writeln!(out, "{count} sagas cannot be read by this release");
    }
    out
}

/// A saga and its steps.
fn tree(saga: &Value) -> String {
    let mut out = format!(
        "{}  {} (version {})  {}\n",
        plain(word(&saga["id"])),
        plain(word(&saga["name"])),
        saga["version"],
        word(&saga["status"])
    );
    if let Some(why) = saga["error"]["message"].as_str() {
        let _ = writeln!(out, "   {}", plain(why));
    }
    let steps = saga["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, step) in steps.iter().enumerate() {
        let is_last = index + 1 == steps.len() && saga["output"].is_null();
        let (branch, below) = if is_last { ("└─", "  ") } else { ("├─", "│ ") };
        let tries = step["attempts"].as_u64().filter(|tries| *tries > 1);
        let tries = tries.map(|tries| format!(", {tries} attempts")).unwrap_or_default();
        let due = step["due_at"].as_str().map(|due| format!(", until {due}")).unwrap_or_default();
        let alarm = if step["alarm"] == true { "  ALARM" } else { "" };
        let kind = if step["kind"] == "step" { String::new() } else { format!(" ({})", word(&step["kind"])) };
        let _ = writeln!(
            out,
            "{branch} {} {}{kind}  {}{tries}{due}{alarm}",
            step["number"],
            plain(word(&step["name"])),
            word(&step["status"])
        );
        if let Some(child) = step["child"].as_str() {
            let _ = writeln!(out, "{below}    child {}", plain(child));
        }
        if let Some(why) = step["error"]["message"].as_str() {
            let _ = writeln!(out, "{below}    {}", plain(why));
        }
        let undo = &step["compensation"];
        if undo["status"] != "none" {
            let why = undo["error"]["message"].as_str().map(|why| format!(": {}", plain(why)));
            let _ = writeln!(out, "{below}    undo {}{}", word(&undo["status"]), why.unwrap_or_default());
        }
    }
    if !saga["output"].is_null() {
        let _ = writeln!(out, "└─ output {}", saga["output"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saga_is_a_tree_and_moves_no_terminal() {
        let step = |name: &str, undo: &str| {
            json!({
                "name": name, "number": 0, "kind": "step", "status": "done", "attempts": 2, "alarm": false,
                "error": null, "compensation": {"status": undo, "error": null}
            })
        };
        let saga = json!({
            "id": "a\u{1b}[2J", "name": "order", "version": 1, "status": "stuck", "output": null,
            "error": {"message": "no"}, "steps": [step("reserve", "failed"), step("ship", "none")]
        });
        let text = tree(&saga);
        assert_eq!(
            text,
            "a [2J  order (version 1)  stuck\n   no\n├─ 0 reserve  done, 2 attempts\n│     undo failed\n\
             └─ 0 ship  done, 2 attempts\n"
        );
    }
}

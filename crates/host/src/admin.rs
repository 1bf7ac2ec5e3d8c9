//! What an administrator does that needs the application's own code: looking at inputs that were set
//! aside, delivering them again, dropping them.
//!
//! Decides when an entry has done its duty: when its message was applied, or when it was set aside
//! once more (the newer entry then stands for it). Never drops an entry whose message was refused,
//! and never delivers one message twice: a retry has the session that belongs to its entry, so that
//! asking again after a crash in the middle gives the first answer.
//!
//! Invariant: an input leaves the list only after the verdict that replaces it is durable.

use crate::app::{App, Runtime};
use crate::client::{RawAnswer, Unanswered};
use rallypoint_base::id::{InputSeq, PartitionId, Position, SessionId};
use rallypoint_engine::command::{Outcome, Turned};
use rallypoint_engine::parcel::{Body, Parcel};
use rallypoint_engine::snapshot::SetAside;
use serde_json::json;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// How long a retry waits for its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often one entry can be retried without being applied.
const ATTEMPTS: u64 = 1_000;

/// What became of a message that was set aside and delivered again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retried {
    /// It was applied; the entry is gone.
    Applied,
    /// The actor refused it; the entry stays.
    Refused,
    /// It could not be run; the entry stays.
    Failed(String),
    /// It was set aside again; a new entry replaces this one.
    SetAside(String),
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Refused => f.write_str("refused by the actor: nothing changed, and it stays set aside"),
            Self::Failed(why) => write!(f, "could not be run, and stays set aside: {why}"),
            Self::SetAside(why) => write!(f, "set aside again: {why}"),
        }
    }
}

/// Why a message that was set aside could not be delivered again. The entry stays.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RetryError {
    /// There is no such entry.
    #[error("nothing was set aside by {0} at {1}: see `quarantine list`")]
    Missing(PartitionId, Position),
    /// It is no message: what caused it cannot be repeated from outside.
    #[error("it is {0}, not a message, and cannot be delivered from outside: drop it")]
    NotAMessage(&'static str),
    /// The door did not let it in.
    #[error(transparent)]
    Turned(#[from] Turned),
    /// It is unknown whether it ran: retry it, which gives its answer and never runs it twice.
    #[error("no answer, so it is unknown whether it ran ({0}): retry it, it does not run twice")]
    Unanswered(String),
    /// It has been retried too often.
    #[error("it was retried {ATTEMPTS} times without being applied: drop it")]
    TooOften,
}

/// The message in `parcel` as an input: without the actor that asked, which had its answer when the
/// message was set aside.
fn as_input(parcel: &[u8]) -> Result<Vec<u8>, RetryError> {
    let parcel = Parcel::decode(parcel).map_err(|_| RetryError::NotAMessage("unreadable"))?;
    match parcel.body {
        Body::Message(_) => {}
        Body::Answer { .. } => return Err(RetryError::NotAMessage("an answer")),
        Body::Timer { .. } => return Err(RetryError::NotAMessage("a timer")),
        Body::Effect { .. } => return Err(RetryError::NotAMessage("the end of an effect")),
    }
    let mut input = Vec::new();
    Parcel { asker: None, ..parcel }.encode(&mut input);
    Ok(input)
}

/// The session in which an entry is retried: always the same, and none that a client opens before
/// the year 2105 (the upper bits of a client's session are the second it was opened in).
fn session_of(partition: PartitionId, position: Position) -> SessionId {
    SessionId(0xFF << 56 | u64::from(partition.0) << 40 | position.0 & ((1 << 40) - 1))
}

fn unanswered(error: Unanswered) -> RetryError {
    RetryError::Unanswered(match error {
        Unanswered::Closed(why) => why,
        Unanswered::TimedOut => format!("within {PATIENCE:?}"),
    })
}

impl Runtime {
    /// Delivers a message that was set aside again, as a new input, and waits for its verdict. When it
    /// was applied (or set aside once more, as a new entry) the old entry is dropped.
    ///
    /// A retry that ended without an answer is repeated safely for as long as a session lives (7 days):
    /// if the message was applied, it is not applied again. (After a crash an earlier refusal may be
    /// told once more instead of a new attempt.)
    ///
    /// # Errors
    /// [`RetryError`]; the entry stays.
    pub fn retry_set_aside(&self, partition: PartitionId, position: Position) -> Result<Retried, RetryError> {
        let all = self.set_aside();
        let entry = all.iter().find(|(p, entry)| (*p, entry.position) == (partition, position));
        let (_, entry) = entry.ok_or(RetryError::Missing(partition, position))?;
        let input = as_input(&entry.parcel)?;
        let session = session_of(partition, position);
        // Each attempt that ended in a refusal has a number of its own, acknowledged when it ended.
        for seq in (1..=ATTEMPTS).map(InputSeq) {
            let client = self.resume_client(session, seq);
            let answer = client.put(partition, &input, false, PATIENCE).map_err(unanswered)?;
            let (outcome, bytes) = match answer {
                RawAnswer::Turned(Turned::TooOld) => continue,
                RawAnswer::Turned(why) => return Err(why.into()),
                RawAnswer::Answered(outcome, bytes) => (outcome, bytes),
            };
            let text = || String::from_utf8_lossy(&bytes).into_owned();
            let retried = match outcome {
                Outcome::Applied => Retried::Applied,
                Outcome::Refused => Retried::Refused,
                Outcome::Failed => Retried::Failed(text()),
                Outcome::SetAside => Retried::SetAside(text()),
            };
            match retried {
                Retried::Applied | Retried::SetAside(_) => {
                    self.drop_set_aside(partition, position);
                }
                Retried::Refused | Retried::Failed(_) => {
                    // The next attempt is to be a new one: this answer need not be kept.
                    let client = self.resume_client(session, seq);
                    client.put(partition, &input, true, PATIENCE).map_err(unanswered)?;
                }
            }
            return Ok(retried);
        }
        Err(RetryError::TooOften)
    }
}

const USAGE: &str = "\
quarantine list                        inputs that were set aside
quarantine retry PARTITION POSITION    deliver one again; it goes when it was applied
quarantine drop PARTITION POSITION     give one up
each with --json; exit codes: 0 done; 1 retried, but not applied; 2 not done, nothing changed";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    List,
    Retry(PartitionId, Position),
    Drop(PartitionId, Position),
}

fn parse(arguments: &[String]) -> Option<(Request, bool)> {
    let json = arguments.iter().any(|argument| argument == "--json");
    let words: Vec<&str> = arguments.iter().map(String::as_str).filter(|word| *word != "--json").collect();
    let place = |partition: &str, position: &str| {
        let partition = partition.trim_start_matches('p').parse().ok()?;
        let position = position.trim_start_matches('@').parse().ok()?;
        Some((PartitionId(partition), Position(position)))
    };
    let request = match words[..] {
        ["quarantine", "list"] => Request::List,
        ["quarantine", "retry", partition, position] => {
            let (partition, position) = place(partition, position)?;
            Request::Retry(partition, position)
        }
        ["quarantine", "drop", partition, position] => {
            let (partition, position) = place(partition, position)?;
            Request::Drop(partition, position)
        }
        _ => return None,
    };
    Some((request, json))
}

impl App {
    /// The administrator's commands that need this application's code, for a subcommand of your own
    /// program: `quarantine list`, `quarantine retry` and `quarantine drop`. Opens the store in `dir`,
    /// which no other process may be using, prints what it finds and does, closes the store, and gives
    /// the exit code: 0 done, 1 retried but not applied, 2 not done.
    pub fn admin(self, dir: impl AsRef<Path>, arguments: &[String]) -> u8 {
        let Some((request, json)) = parse(arguments) else {
            eprintln!("{USAGE}");
            return 2;
        };
        let runtime = match self.open_or_make(dir.as_ref(), false) {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("{error}");
                return 2;
            }
        };
        let code = match request {
            Request::List => list(&runtime, json),
            Request::Retry(partition, position) => retry(&runtime, partition, position, json),
            Request::Drop(partition, position) => {
                let dropped = runtime.drop_set_aside(partition, position);
                if dropped && json {
                    println!("{}", json!({ "dropped": true }));
                } else if dropped {
                    println!("dropped");
                } else {
                    eprintln!("{}", RetryError::Missing(partition, position));
                }
                if dropped { 0 } else { 2 }
            }
        };
        // Not necessary for anything to be kept: the next start then has nothing to replay.
        let _ = runtime.close(PATIENCE);
        code
    }
}

fn list(runtime: &Runtime, json: bool) -> u8 {
    let entries = runtime.set_aside();
    if json {
        let rows = entries.iter().map(|(partition, entry)| {
            let (kind, key, what) = addressee(runtime, entry);
            json!({
                "partition": partition.0, "position": entry.position.0, "kind": kind, "key": key,
                "what": what, "evidence": entry.evidence,
            })
        });
        println!("{}", json!({ "set_aside": rows.collect::<Vec<_>>() }));
    } else if entries.is_empty() {
        println!("nothing is set aside");
    } else {
        for (partition, entry) in &entries {
            let (kind, key, what) = addressee(runtime, entry);
            println!("{partition} {}  {what} for {kind} {key:?}: {}", entry.position, entry.evidence);
        }
    }
    0
}

fn retry(runtime: &Runtime, partition: PartitionId, position: Position, json: bool) -> u8 {
    match runtime.retry_set_aside(partition, position) {
        Ok(retried) => {
            let applied = retried == Retried::Applied;
            if json {
                println!("{}", json!({ "applied": applied, "outcome": retried.to_string() }));
            } else {
                println!("{retried}");
            }
            u8::from(!applied)
        }
        Err(error) => {
            eprintln!("{error}");
            2
        }
    }
}

/// Kind and key of whom it was for, and what it is.
fn addressee(runtime: &Runtime, entry: &SetAside) -> (String, String, &'static str) {
    let Ok(parcel) = Parcel::decode(&entry.parcel) else {
        return ("?".into(), "?".into(), "unreadable");
    };
    let kind = runtime.registry().name(parcel.kind);
    let kind = kind.map_or_else(|| format!("unknown kind {:08x}", parcel.kind), str::to_owned);
    let what = match parcel.body {
        Body::Message(_) => "a message",
        Body::Answer { .. } => "an answer",
        Body::Timer { .. } => "a timer",
        Body::Effect { .. } => "the end of an effect",
    };
    (kind, parcel.key.to_owned(), what)
}

#[cfg(test)]
mod tests {
    use super::{Request, as_input, parse, session_of};
    use rallypoint_base::id::{PartitionId, Position};
    use rallypoint_engine::parcel::{Asker, Body, Parcel};

    fn parsed(line: &str) -> Option<(Request, bool)> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn commands_are_understood_as_they_are_listed() {
        assert_eq!(parsed("quarantine list"), Some((Request::List, false)));
        let place = (PartitionId(3), Position(17));
        assert_eq!(parsed("quarantine retry p3 @17 --json"), Some((Request::Retry(place.0, place.1), true)));
        assert_eq!(parsed("--json quarantine drop 3 17"), Some((Request::Drop(place.0, place.1), true)));
        for wrong in ["", "quarantine", "quarantine retry p3", "quarantine drop x 1", "quarantine list now"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_messages_are_delivered_again_and_nobody_is_answered_twice() {
        let asker = Some(Asker { kind: 7, key: "who", token: 9 });
        let message = Parcel { kind: 1, key: "a", asker, body: Body::Message(b"x") };
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let input = as_input(&bytes).unwrap();
        assert_eq!(Parcel::decode(&input).unwrap(), Parcel { asker: None, ..message });
        bytes.clear();
        Parcel { body: Body::Timer { set: 1, name: "t" }, asker: None, ..message }.encode(&mut bytes);
        assert!(as_input(&bytes).is_err());
    }

    #[test]
    fn entries_of_two_partitions_have_two_sessions() {
        let one = session_of(PartitionId(1), Position(5));
        assert_ne!(one, session_of(PartitionId(2), Position(5)));
        assert_ne!(one, session_of(PartitionId(1), Position(6)));
        assert!(one.0 >> 32 > 4_200_000_000, "no client's session, for a while");
    }
}

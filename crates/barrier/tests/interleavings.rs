//! Every order in which up to four requests about one step can arrive, on a real file, against
//! what a person would say must happen; and the same with a table that loses or changes rows.

mod bank;

use bank::CENTS;
use rallypoint_barrier::answer::Source;
use rusqlite::Connection;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Step,
    /// The same request over another connection.
    StepAgain,
    Undo,
    UndoAgain,
    /// Another undo of the same step.
    OtherUndo,
    /// The same step at a moment when the business would refuse it.
    Refusal,
}

const REQUESTS: [Request; 6] = [
    Request::Step,
    Request::StepAgain,
    Request::Undo,
    Request::UndoAgain,
    Request::OtherUndo,
    Request::Refusal,
];

impl Request {
    fn is_undo(self) -> bool {
        matches!(self, Self::Undo | Self::UndoAgain | Self::OtherUndo)
    }

    fn undo_key(self) -> &'static str {
        if self == Self::OtherUndo { "other" } else { "undo" }
    }
}

/// What must be answered to the last request of `history`, and the balance after it.
fn expected(history: &[Request]) -> (Source, i64) {
    let (last, before) = history.split_last().unwrap();
    let acted = !history[0].is_undo() && history[0] != Request::Refusal;
    let undone_before = before.iter().any(|request| request.is_undo());
    let source = if last.is_undo() {
        let seen = before.iter().any(|other| other.is_undo() && other.undo_key() == last.undo_key());
        match (seen, acted && !undone_before) {
            (true, _) => Source::Repeated,
            (false, true) => Source::Fresh,
            (false, false) => Source::NothingToUndo,
        }
    } else if undone_before {
        Source::TooLate
    } else if !before.is_empty() {
        Source::Repeated
    } else if acted {
        Source::Fresh
    } else {
        Source::Refused
    };
    let undone = undone_before || last.is_undo();
    (source, if acted && !undone { -CENTS } else { 0 })
}

/// Sends the requests of `sequence` about one account, and says what was wrong first.
fn check(connections: &mut [Connection; 2], sequence: &[Request]) -> Result<(), String> {
    let name = format!("{sequence:?}");
    let mut answers: Vec<(&str, _)> = Vec::new();
    for (index, request) in sequence.iter().enumerate() {
        let connection = &mut connections[usize::from(*request == Request::StepAgain)];
        let body = format!("request {index}");
        let (reply, key) = match request {
            Request::Step | Request::StepAgain => (bank::charge(connection, &name, &body), "step"),
            Request::Refusal => (bank::refuse(connection, &name, &body), "step"),
            Request::Undo | Request::UndoAgain | Request::OtherUndo => {
                (bank::refund(connection, &name, request.undo_key()), request.undo_key())
            }
        };
        let reply = reply.map_err(|error| format!("{name}: {error}"))?;
        let (source, cents) = expected(&sequence[..=index]);
        let found = (reply.source, bank::balance(connection, &name));
        if found != (source, cents) {
            return Err(format!("{name}, request {index}: {found:?}, not {:?}", (source, cents)));
        }
        let first = answers.iter().find(|(other, _)| *other == key);
        match first {
            Some((_, first)) if source == Source::Repeated && *first != reply.answer => {
                return Err(format!("{name}, request {index}: {:?}, not {first:?}", reply.answer));
            }
            Some(_) => {}
            None => answers.push((key, reply.answer)),
        }
    }
    Ok(())
}

fn sequences() -> Vec<Vec<Request>> {
    let (mut all, mut longest) = (Vec::new(), vec![Vec::new()]);
    for _ in 0..4 {
        let extend = |sequence: &Vec<Request>| {
            REQUESTS.map(|request| [sequence.as_slice(), &[request]].concat()).to_vec()
        };
        longest = longest.iter().flat_map(extend).collect();
        all.extend(longest.iter().cloned());
    }
    all
}

/// Checks every sequence on a new file, with `sabotage` done to its table before.
fn failures(sabotage: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let open = || bank::open(&folder.path().join("bank.db"), "WAL");
    let mut connections = [open(), open()];
    connections[0].execute_batch(sabotage).unwrap();
    sequences().iter().filter_map(|sequence| check(&mut connections, sequence).err()).collect()
}

#[test]
fn every_interleaving_ends_as_it_must() {
    assert_eq!(sequences().len(), 6 + 36 + 216 + 1296);
    assert_eq!(failures(""), Vec::<String>::new());
}

#[test]
fn the_check_notices_a_table_that_loses_or_changes_rows() {
    let on = |state: &str, action: &str| {
        format!(
            "CREATE TRIGGER sabotage AFTER UPDATE ON rallypoint_barrier WHEN new.state = '{state}' \
             BEGIN {action} WHERE key = new.key; END"
        )
    };
    for (state, action) in [
        ("acted", "DELETE FROM rallypoint_barrier"),
        ("refused", "DELETE FROM rallypoint_barrier"),
        ("refused", "UPDATE rallypoint_barrier SET state = 'acted'"),
        ("undone", "DELETE FROM rallypoint_barrier"),
        ("undone", "UPDATE rallypoint_barrier SET state = 'acted'"),
        ("undo", "DELETE FROM rallypoint_barrier"),
        ("acted", "UPDATE rallypoint_barrier SET body = x'00'"),
    ] {
        assert!(!failures(&on(state, action)).is_empty(), "{state}: {action}");
    }
}

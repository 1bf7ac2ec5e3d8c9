//! What is said of a run: the JSON object, the text for people, and the two files.
//!
//! Decides the names and units that scripts rely on, and the exit code. Never computes what others
//! know better: counts come from the books, the judgement from the audit.
//!
//! Invariants: `inputs` = `acknowledged` + `rejected`, and `acknowledged` = `applied` + `refused` +
//! `duplicates`, in every run that ended; the exit code is 0 only with `conserved`, `lost` = 0,
//! `doubled` = 0, and then every line was judged.

use crate::demo::audit::Audit;
use crate::demo::input::{Content, InputError, Line};
use crate::demo::sequential::{Books, Counts};
use crate::output::{Exit, OutputError, grouped, write_file};
use bank::View;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// What was measured while the demo ran. Of a run that was resumed: since it was resumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Processes ended by SIGKILL.
    pub(crate) kills: u64,
    /// From each SIGKILL to the next durable acknowledgement from the killed partitions.
    pub(crate) recoveries: Vec<Duration>,
    /// Acknowledgements received.
    pub(crate) acknowledged: u64,
    /// From the first input sent to the last acknowledgement received.
    pub(crate) busy: Duration,
    /// From the start of the command to its audit.
    pub(crate) elapsed: Duration,
}

/// The object that `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    inputs: u64,
    acknowledged: u64,
    applied: u64,
    refused: u64,
    duplicates: u64,
    rejected: u64,
    kills: u64,
    recovery_ms: RecoveryTimes,
    transfers_per_s: f64,
    conserved: bool,
    lost: u64,
    doubled: u64,
    elapsed_s: f64,
}

/// Milliseconds; null where nothing was recovered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct RecoveryTimes {
    count: u64,
    p50: Option<f64>,
    max: Option<f64>,
}

impl RecoveryTimes {
    fn of(recoveries: &[Duration]) -> Self {
        let mut sorted = recoveries.to_vec();
        sorted.sort_unstable();
        // The smallest time that at least half of all do not exceed.
        let middle = sorted.len().div_ceil(2).checked_sub(1);
        Self {
            count: sorted.len() as u64,
            p50: middle.map(|middle| rounded(sorted[middle].as_secs_f64() * 1e3, 10.0)),
            max: sorted.last().map(|last| rounded(last.as_secs_f64() * 1e3, 10.0)),
        }
    }
}

/// To one part of `parts`; measured times are not exact to the nanosecond.
fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

impl Report {
    /// Puts together what is known of a run.
    pub(crate) fn new(books: &Books, audit: &Audit, measured: &Measured) -> Self {
        let Counts { inputs, applied, refused, duplicates, rejected } = books.counts;
        let busy = measured.busy.as_secs_f64();
        let rate = if busy > 0.0 { measured.acknowledged as f64 / busy } else { 0.0 };
        Self {
            inputs,
            acknowledged: applied + refused + duplicates,
            applied,
            refused,
            duplicates,
            rejected,
            kills: measured.kills,
            recovery_ms: RecoveryTimes::of(&measured.recoveries),
            transfers_per_s: rounded(rate, 10.0),
            conserved: audit.conserved,
            lost: audit.lost,
            doubled: audit.doubled,
            elapsed_s: rounded(measured.elapsed.as_secs_f64(), 1e3),
        }
    }

    /// Lines that are neither rejected nor acknowledged: the run did not come to its end.
    fn unacknowledged(&self) -> u64 {
        self.inputs - self.rejected - self.acknowledged
    }

    /// [`Exit::Done`] only if money is conserved, nothing lost or doubled, and every line judged.
    pub(crate) fn exit(&self) -> Exit {
        let sound = self.conserved && self.lost == 0 && self.doubled == 0;
        if sound && self.unacknowledged() == 0 { Exit::Done } else { Exit::Look }
    }

    /// The text for people, which ends with the line of the audit and what it found.
    pub(crate) fn summary<'a>(&'a self, audit: &'a Audit) -> impl fmt::Display + 'a {
        Summary { report: self, audit }
    }
}

struct Summary<'a> {
    report: &'a Report,
    audit: &'a Audit,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { report, audit } = self;
        writeln!(
            f,
            "inputs      {}: {} applied, {} refused, {} duplicates, {} rejected",
            grouped(report.inputs),
            grouped(report.applied),
            grouped(report.refused),
            grouped(report.duplicates),
            grouped(report.rejected)
        )?;
        write!(f, "kills       {}", grouped(report.kills))?;
        if let RecoveryTimes { count, p50: Some(p50), max: Some(max) } = report.recovery_ms {
            write!(f, ", {} recoveries: half within {p50:.0} ms, all within {max:.0} ms", grouped(count))?;
        }
        let rate = grouped(report.transfers_per_s as u64);
        writeln!(f, "\nspeed       {rate} transfers/s, {:.1} s in all", report.elapsed_s)?;
        let money = if report.conserved { "conserved" } else { "NOT conserved" };
        write!(
            f,
            "audit       money {money}, {} lost, {} doubled ({} accounts against {} acknowledgements kept \
             outside the store)",
            grouped(report.lost),
            grouped(report.doubled),
            grouped(audit.accounts),
            grouped(report.acknowledged)
        )?;
        if report.unacknowledged() > 0 {
            let open = grouped(report.unacknowledged());
            write!(f, "\n            {open} lines are not acknowledged; finish them with `--resume`")?;
        }
        for finding in &audit.findings {
            write!(f, "\n            {finding}")?;
        }
        if audit.more > 0 {
            write!(f, "\n            and {} more findings", grouped(audit.more))?;
        }
        Ok(())
    }
}

/// Writes `account,balance` of every open account, in the order of the names' bytes.
pub(crate) fn write_balances(path: &Path, accounts: &BTreeMap<String, View>) -> Result<(), OutputError> {
    write_file(path, |out| {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(["account", "balance"])?;
        for (name, view) in accounts.iter().filter(|(_, view)| view.opened) {
            writer.write_record([name, view.balance.to_string().as_str()])?;
        }
        writer.flush()
    })
}

/// The file of rejected lines could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum RejectsError {
    /// The input could not be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Writes `line,reason` of every line that is rejected, in file order; says how many.
pub(crate) fn write_rejects(
    path: &Path,
    lines: impl Iterator<Item = Result<Line, InputError>>,
) -> Result<u64, RejectsError> {
    let mut rejected = 0;
    let mut failed = None;
    let written = write_file(path, |out| {
        let mut writer = csv::Writer::from_writer(out);
        writer.write_record(["line", "reason"])?;
        for line in lines {
            match line {
                Ok(Line { number, content: Content::Rejected(reason) }) => {
                    rejected += 1;
                    writer.write_record([number.to_string(), reason.to_string()])?;
                }
                Ok(_) => {}
                Err(error) => {
                    failed = Some(error);
                    // Ends the writing, so that no file is left; the error told is the input's.
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
        writer.flush()
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(written.map(|()| rejected)?),
    }
}

#[cfg(test)]
mod tests {
    use super::{Measured, RejectsError, Report, write_balances, write_rejects};
    use crate::demo::audit::{Audit, audit};
    use crate::demo::input::{HEADER, Input, InputError, Lines};
    use crate::demo::ledger::{Outcome, Outcomes};
    use crate::demo::sequential::{Books, expect};
    use crate::output::Exit;
    use bank::{Account, View};
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    const TEXT: &str = "1,ann,bob,5\n1,ann,bob,5\nnonsense\n2,bob,ann,999\n";

    fn lines(text: &str) -> Lines<&[u8]> {
        Lines::new(Path::new("in.csv"), text.as_bytes(), None).unwrap()
    }

    fn books(known: &[(u64, Outcome)]) -> Books {
        let mut outcomes = Outcomes::default();
        for &(line, outcome) in known {
            outcomes.note(line, outcome);
        }
        expect(lines(&format!("{HEADER}\n{TEXT}")), &outcomes, 100).unwrap()
    }

    fn views() -> BTreeMap<String, View> {
        let mut accounts =
            BTreeMap::from([("ann".to_owned(), Account::default()), ("bob".to_owned(), Account::default())]);
        accounts.values_mut().for_each(|account| account.open(100));
        assert!(accounts.get_mut("ann").unwrap().debit(2, 5));
        accounts.get_mut("bob").unwrap().credit(2, 5);
        accounts.into_iter().map(|(name, account)| (name, account.view())).collect()
    }

    const ALL: [(u64, Outcome); 3] = [(2, Outcome::Applied), (3, Outcome::Duplicate), (5, Outcome::Refused)];

    fn measured() -> Measured {
        Measured {
            kills: 3,
            recoveries: [40, 110, 70].map(Duration::from_millis).into(),
            acknowledged: 3,
            busy: Duration::from_millis(1_500),
            elapsed: Duration::from_micros(2_000_400),
        }
    }

    fn report(known: &[(u64, Outcome)], views: &BTreeMap<String, View>) -> (Report, Audit) {
        let books = books(known);
        let audit = audit(&books, views);
        (Report::new(&books, &audit, &measured()), audit)
    }

    #[test]
    fn the_object_has_exactly_these_fields() {
        let (sound, _) = report(&ALL, &views());
        assert_eq!(
            serde_json::to_string(&sound).unwrap(),
            "{\"inputs\":4,\"acknowledged\":3,\"applied\":1,\"refused\":1,\"duplicates\":1,\"rejected\":1,\
             \"kills\":3,\"recovery_ms\":{\"count\":3,\"p50\":70.0,\"max\":110.0},\"transfers_per_s\":2.0,\
             \"conserved\":true,\"lost\":0,\"doubled\":0,\"elapsed_s\":2.0}"
        );
        let nothing = Report::new(&Books::default(), &Audit::default(), &Measured::default());
        let said = serde_json::to_value(nothing).unwrap();
        assert_eq!(said["recovery_ms"], serde_json::json!({ "count": 0, "p50": null, "max": null }));
        assert_eq!(said["transfers_per_s"], 0.0);
    }

    #[test]
    fn the_summary_ends_with_the_audit() {
        let (report, audit) = report(&ALL, &views());
        assert_eq!(
            report.summary(&audit).to_string(),
            "inputs      4: 1 applied, 1 refused, 1 duplicates, 1 rejected\n\
             kills       3, 3 recoveries: half within 70 ms, all within 110 ms\n\
             speed       2 transfers/s, 2.0 s in all\n\
             audit       money conserved, 0 lost, 0 doubled (2 accounts against 3 acknowledgements kept \
             outside the store)"
        );
    }

    #[test]
    fn only_a_sound_and_whole_run_ends_with_0() {
        assert_eq!(report(&ALL, &views()).0.exit(), Exit::Done);
        let (unfinished, audit) = report(&ALL[..2], &views());
        assert!(audit.is_sound());
        assert_eq!(unfinished.exit(), Exit::Look);
        assert!(unfinished.summary(&audit).to_string().ends_with("finish them with `--resume`"));
        let mut wrong = views();
        wrong.get_mut("bob").unwrap().balance += 1;
        let (bad, audit) = report(&ALL, &wrong);
        assert_eq!(bad.exit(), Exit::Look);
        let said = bad.summary(&audit).to_string();
        assert!(said.contains("money NOT conserved") && said.contains("\"bob\": it holds 106"), "{said}");
        let mut lost = views();
        *lost.get_mut("bob").unwrap() = lost["ann"];
        assert_eq!(report(&ALL, &lost).0.exit(), Exit::Look);
    }

    #[test]
    fn balances_are_sorted_by_bytes_and_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("balances.csv");
        let view = |opened, balance| View { opened, balance, ..View::default() };
        let names = ["b", "B", "ä", "a,b", "say \"hi\"", "two\nlines", "a"];
        let mut accounts: BTreeMap<String, View> =
            names.iter().map(|name| ((*name).to_owned(), view(true, u128::from(u64::MAX) + 1))).collect();
        accounts.insert("never opened".to_owned(), view(false, 0));
        write_balances(&path, &accounts).unwrap();
        let cents = "18446744073709551616";
        let expected: String = ["B", "a", "\"a,b\"", "b", "\"say \"\"hi\"\"\"", "\"two\nlines\"", "ä"]
            .map(|name| format!("{name},{cents}\n"))
            .concat();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("account,balance\n{expected}"));
    }

    #[test]
    fn rejected_lines_are_written_with_number_and_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejects.csv");
        let text = format!("{HEADER}\n{TEXT}7,\"a,b\",\"a,b\",1\n");
        assert_eq!(write_rejects(&path, lines(&text)).unwrap(), 2);
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "line,reason\n4,\"4 fields are needed, not 1\"\n6,\"`from` and `to` are the same account `a,b`\"\n"
        );
        let input = folder.path().join("in.csv");
        fs::write(&input, &text).unwrap();
        let opened = Input::open(&input).unwrap();
        fs::write(&input, text.replace("ann", "ANN")).unwrap();
        let failed = write_rejects(&folder.path().join("no.csv"), opened.lines().unwrap());
        assert!(matches!(failed, Err(RejectsError::Input(InputError::Changed { .. }))));
        assert!(!folder.path().join("no.csv").exists());
    }
}

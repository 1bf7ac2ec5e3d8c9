//! What every bench gives: rows of figures with limit, ratio and verdict, as JSON or as a table.
//!
//! Decides nothing about what is good: the demand stands in the row. Never rounds what is
//! serialised.

use crate::os::machine::Machine;
use serde::{Serialize, Serializer};
use std::fmt;

/// The result of one bench.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the bench.
    pub bench: String,
    /// Where it ran.
    pub machine: Machine,
    /// The figures.
    pub rows: Vec<Row>,
}

/// What a ratio or a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Must {
    /// At least this part of the limit (a rate).
    AtLeast(f64),
    /// At most this multiple of the limit (a time).
    AtMost(f64),
    /// The figure itself is at least this.
    ValueAtLeast(f64),
    /// The figure itself is at most this.
    ValueAtMost(f64),
}

impl Must {
    /// Of the ratio or of the figure, whichever is judged.
    fn holds(self, judged: f64) -> bool {
        match self {
            Self::AtLeast(bound) | Self::ValueAtLeast(bound) => judged >= bound,
            Self::AtMost(bound) | Self::ValueAtMost(bound) => judged <= bound,
        }
    }
}

impl fmt::Display for Must {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::ValueAtLeast(bound) => write!(f, "value >= {bound}"),
            Self::ValueAtMost(bound) => write!(f, "value <= {bound}"),
        }
    }
}

impl Serialize for Must {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: String,
    /// The physical limit in the same unit, measured in the same run.
    pub limit: Option<f64>,
    /// The figure as a part of the limit: the median over the turns, not the quotient of the two.
    pub ratio: Option<f64>,
    /// What the ratio must be, or the value where it says so.
    pub must: Option<Must>,
    /// Whether it is; nothing where nothing is demanded or no limit could be measured.
    pub holds: Option<bool>,
}

impl Row {
    /// A figure with neither limit nor demand.
    #[must_use]
    pub fn plain(case: impl Into<String>, value: f64, unit: &str) -> Self {
        let (case, unit) = (case.into(), unit.to_owned());
        Self { case, value, unit, limit: None, ratio: None, must: None, holds: None }
    }

    /// A figure that is judged by itself.
    #[must_use]
    pub fn judged(case: impl Into<String>, value: f64, unit: &str, must: Must) -> Self {
        let row = Self::plain(case, value, unit);
        Self { must: Some(must), holds: Some(must.holds(value)), ..row }
    }

    /// A figure beside its limit.
    #[must_use]
    pub fn beside(
        case: impl Into<String>,
        value: f64,
        unit: &str,
        limit: f64,
        ratio: f64,
        must: Option<Must>,
    ) -> Self {
        let row = Self::plain(case, value, unit);
        let holds = must.map(|must| must.holds(ratio));
        Self { limit: Some(limit), ratio: Some(ratio), must, holds, ..row }
    }
}

impl Report {
    /// True when no demand is missed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.rows.iter().all(|row| row.holds != Some(false))
    }

    /// The report as one line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        // A report holds only text and numbers; a number that is none (NaN) becomes null.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The table for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(f, "{}: {}, {} cores, {} GiB", self.bench, machine.cpu, machine.cores, machine.memory_gib)?;
        writeln!(f, "{}, Linux {}", machine.disk, machine.kernel)?;
        let head = ["case", "value", "unit", "limit", "ratio", "must", ""].map(String::from);
        let cells: Vec<[String; 7]> = [head].into_iter().chain(self.rows.iter().map(cells)).collect();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 7] = std::array::from_fn(width);
        for row in &cells {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                // Numbers to the right, words to the left.
                let cell = match column {
                    1 | 3 | 4 => format!("{cell:>width$}"),
                    _ => format!("{cell:<width$}"),
                };
                line += &cell;
                line += "  ";
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 7] {
    let verdict = match row.holds {
        Some(true) => "holds",
        Some(false) => "MISSED",
        None => "",
    };
    [
        row.case.clone(),
        figure(row.value),
        row.unit.clone(),
        row.limit.map(figure).unwrap_or_default(),
        row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        row.must.map(|must| must.to_string()).unwrap_or_default(),
        verdict.to_owned(),
    ]
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle one (of an even number the higher); 0 of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this part of all lies; 0 of none.
#[must_use]
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let machine = Machine {
            cpu: "cpu".into(),
            cores: 2,
            memory_gib: 1.5,
            disk: "ext4 on /dev/vda".into(),
            kernel: "6".into(),
        };
        let rows = vec![
            Row::beside("rate", 90.0, "k/s", 100.0, 0.9, Some(Must::AtLeast(0.85))),
            Row::beside("time", 1.3, "s", 1.0, 1.3, Some(Must::AtMost(1.2))),
            Row::plain("alone", 7.0, "us"),
        ];
        Report { bench: "journal".into(), machine, rows }
    }

    #[test]
    fn demands_are_judged() {
        let report = report();
        assert_eq!(
            report.rows.iter().map(|row| row.holds).collect::<Vec<_>>(),
            [Some(true), Some(false), None]
        );
        assert!(!report.holds());
    }

    #[test]
    fn the_json_has_the_agreed_names() {
        let value: serde_json::Value = serde_json::from_str(&report().json()).expect("json");
        assert_eq!(value["machine"]["memory_gib"], 1.5);
        assert_eq!(value["rows"][0]["must"], ">= 0.85");
        assert_eq!(value["rows"][2]["holds"], serde_json::Value::Null);
        for name in ["case", "value", "unit", "limit", "ratio", "must", "holds"] {
            assert!(value["rows"][1].get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_table_is_aligned_and_names_what_is_missed() {
        let text = report().to_string();
        assert!(text.contains("time    1.30  s      1.00   1.30  <= 1.2   MISSED"), "{text}");
    }

    #[test]
    fn quantiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.99), 4.0);
        assert_eq!(median(&[]), 0.0);
    }
}

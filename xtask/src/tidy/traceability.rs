//! Every row of the fault matrix names the test that covers it, and that test exists.

use super::Finding;
use crate::lex::{functions, lex};
use crate::tree::Tree;
use std::collections::BTreeSet;

const MATRIX: &str = "docs/FAULTS.md";
/// The rows of the matrix.
const ROWS: std::ops::RangeInclusive<usize> = 1..=27;
/// Rows without a test: 20 (slow disk) is not in this release, 24 (memory damaged before the
/// checksum) is outside the promise.
const WITHOUT_TEST: &[usize] = &[20, 24];
const WHY: &str = "a fault that no test injects is a promise nobody has tried";

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    let Some(matrix) = tree.files.get(MATRIX) else {
        return;
    };
    let tests = tests_of(tree);
    let mut finding =
        |line: usize, what: String| findings.push(Finding { file: MATRIX.to_owned(), line, what, why: WHY });
    let mut seen = BTreeSet::new();
    for (line, row, names) in rows(matrix) {
        seen.insert(row);
        if names.is_empty() && !WITHOUT_TEST.contains(&row) {
            finding(line, format!("row {row} names no test"));
        }
        for name in names.iter().filter(|name| !tests.contains(*name)) {
            finding(line, format!("row {row}: no test is called `{name}`"));
        }
    }
    for row in ROWS.filter(|row| !seen.contains(row)) {
        finding(1, format!("row {row} of the fault matrix is missing"));
    }
}

fn tests_of(tree: &Tree) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    for (file, text) in &tree.files {
        if file.ends_with(".rs") {
            let named = functions(&lex(text)).into_iter().filter(|function| function.is_test);
            tests.extend(named.map(|function| function.name));
        }
    }
    tests
}

/// (line, row number, test names) of each table row that starts with a number. Tests stand in
/// backticks in the column whose head says "test", as a name or a path that ends with one.
fn rows(matrix: &str) -> Vec<(usize, usize, Vec<&str>)> {
    let (mut rows, mut column) = (Vec::new(), None);
    for (index, line) in matrix.lines().enumerate() {
        let Some(cells) = line.trim().strip_prefix('|').and_then(|rest| rest.strip_suffix('|')) else {
            column = None;
            continue;
        };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        if let Some(head) = cells.iter().position(|cell| cell.to_lowercase().starts_with("test")) {
            column = column.or(Some(head));
        }
        if let Ok(row) = cells[0].trim_matches('*').parse() {
            let cell = column.and_then(|column| cells.get(column)).copied().unwrap_or("");
            rows.push((index + 1, row, test_names(cell)));
        }
    }
    rows
}

fn test_names(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    let names = quoted.map(|path| path.rsplit("::").next().unwrap_or(path));
    // `cargo xtask faults` and the like are commands, `tests/a.rs` is a file: neither is a test's name.
    names
        .filter(|name| !name.is_empty() && name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::tests::{said, sound};

    fn checked(change: impl Fn(usize) -> String) -> Vec<String> {
        let mut tree = sound();
        let test = "#[test]\nfn torn_tail_is_cut() {}\nfn helper() {}\n";
        tree.files.insert("crates/store/tests/faults.rs".to_owned(), test.to_owned());
        let rows: Vec<String> = (1..=27).map(change).collect();
        let text = format!("# Faults\n\n| # | fault | test |\n|---|---|---|\n{}\n", rows.join("\n"));
        tree.files.insert("docs/FAULTS.md".to_owned(), text);
        said(&findings(&tree))
    }

    fn covered(row: usize) -> String {
        format!(
            "| {row} | `torn` tail | `crates/store/tests/faults.rs`: `faults::torn_tail_is_cut`, `cargo xtask faults` |"
        )
    }

    #[test]
    fn a_covered_matrix_passes() {
        assert_eq!(checked(covered), Vec::<String>::new());
        let later =
            |row| if row == 20 { "| 20 | slow | not in this release |".to_owned() } else { covered(row) };
        assert_eq!(checked(later), Vec::<String>::new());
    }

    #[test]
    fn a_row_without_its_test_fails() {
        let change = |row| match row {
            2 => "| 2 | rot | |".to_owned(),
            3 => "| 3 | rot | `no_such_test` |".to_owned(),
            4 => "| 4 | rot | `helper` |".to_owned(),
            5 => String::new(),
            _ => covered(row),
        };
        let expected = [
            "docs/FAULTS.md:6: row 2 names no test",
            "docs/FAULTS.md:7: row 3: no test is called `no_such_test`",
            "docs/FAULTS.md:8: row 4: no test is called `helper`",
        ];
        let found = checked(change);
        assert_eq!(found[..3], expected);
        assert!(
            found.contains(&"docs/FAULTS.md:1: row 5 of the fault matrix is missing".to_owned()),
            "{found:?}"
        );
    }
}

//! Long files and functions are questions, not faults: they are printed and nothing fails.

use crate::lex::{functions, lex};
use crate::tree::Tree;

const FILE_LINES: usize = 1_000;
const FUNCTION_LINES: usize = 100;

/// One line per long file or function.
pub(super) fn report(tree: &Tree) -> Vec<String> {
    let mut report = Vec::new();
    for (file, text) in tree.files.iter().filter(|(file, _)| file.ends_with(".rs")) {
        let lines = text.lines().count();
        if lines > FILE_LINES {
            report.push(format!("{file} has {lines} lines"));
        }
        for function in functions(&lex(text)) {
            let lines = function.last_line - function.first_line + 1;
            if lines > FUNCTION_LINES {
                report
                    .push(format!("{file}:{}: fn {} has {lines} lines", function.first_line, function.name));
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::tests::{said, sound};
    use super::report;

    #[test]
    fn lengths_are_printed_and_never_fail() {
        let mut tree = sound();
        let text = format!("//! A.\nfn long() {{\n{}}}\n", "\n".repeat(1_000));
        tree.files.insert("crates/engine/src/a.rs".to_owned(), text);
        let expected =
            ["crates/engine/src/a.rs has 1003 lines", "crates/engine/src/a.rs:2: fn long has 1002 lines"];
        assert_eq!(report(&tree), expected);
        assert!(said(&findings(&tree)).is_empty());
    }
}

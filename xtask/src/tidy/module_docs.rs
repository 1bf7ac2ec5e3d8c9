//! Every module of a library says what it decides and what it never does.

use super::Finding;
use crate::tree::Tree;

const WHY: &str = "a module opens with what it decides, what it never does and its invariants, \
                   so that a newcomer can read the crate file by file";

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for package in tree.packages.iter().filter(|package| package.folder.starts_with("crates/")) {
        for (file, text) in tree.sources(&format!("{}/src", package.folder)) {
            let first = text.lines().position(|line| !line.trim().is_empty()).unwrap_or(0);
            let documented =
                text.lines().nth(first).is_some_and(|line| line.starts_with("//! ") && line.len() > 5);
            if !documented {
                let what = "no `//!` documentation on top".to_owned();
                findings.push(Finding { file: file.to_owned(), line: first + 1, what, why: WHY });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn a_module_without_documentation_fails() {
        let expected = ["crates/engine/src/a.rs:2: no `//!` documentation on top"];
        assert_eq!(with("crates/engine/src/a.rs", "\nfn a() {}\n"), expected);
        assert_eq!(with("crates/engine/src/a.rs", "//!\nfn a() {}\n").len(), 1);
        assert_eq!(with("crates/engine/src/a.rs", "").len(), 1);
        assert_eq!(with("crates/engine/src/a.rs", "\n//! A.\n").len(), 0);
        assert_eq!(with("crates/engine/tests/a.rs", "fn a() {}\n").len(), 0);
    }
}

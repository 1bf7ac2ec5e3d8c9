//! Nothing unfinished is shipped.

use super::Finding;
use crate::lex::lex;
use crate::tree::Tree;

const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];
// Spelled in two halves, so that this file may name them in its comments' stead.
const WORDS: &[&str] = &[concat!("FIX", "ME"), concat!("XX", "X")];
const WHY: &str =
    "what is missing is left out or refused with an error, and an open question is a note in docs/DECISIONS";

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for package in &tree.packages {
        for (file, text) in tree.sources(&format!("{}/src", package.folder)) {
            check_file(file, text, findings);
        }
    }
}

fn check_file(file: &str, text: &str, findings: &mut Vec<Finding>) {
    let lexed = lex(text);
    let mut finding =
        |line: usize, what: String| findings.push(Finding { file: file.to_owned(), line, what, why: WHY });
    for (index, pair) in lexed.code.windows(2).enumerate() {
        if !lexed.in_test[index] && pair[1].is("!") && MACROS.iter().any(|name| pair[0].is(name)) {
            finding(pair[0].line, format!("leftover `{}!`", pair[0].text));
        }
    }
    for comment in &lexed.comments {
        for (offset, line) in comment.text.lines().enumerate() {
            let mut words = line.split(|character: char| !character.is_alphanumeric() && character != '_');
            if let Some(word) = words.find(|word| WORDS.contains(word)) {
                finding(comment.line + offset, format!("leftover marker `{word}`"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;

    #[test]
    fn leftovers_fail() {
        for (line, what) in [
            ("fn a() { todo!() }", "leftover `todo!`"),
            ("fn a() { unimplemented!(\"b\") }", "leftover `unimplemented!`"),
            ("fn a() { dbg!(1); }", "leftover `dbg!`"),
            (concat!("/* b\n * FIX", "ME: c */"), concat!("leftover marker `FIX", "ME`")),
            (concat!("// XX", "X"), concat!("leftover marker `XX", "X`")),
        ] {
            let found = with("crates/cli/src/a.rs", &format!("//! A.\n{line}\n"));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].ends_with(what), "{found:?}");
        }
    }

    #[test]
    fn tests_strings_and_other_words_pass() {
        let text =
            "//! A.\nconst A: &str = \"todo!()\"; fn todo() { XXXX }\n#[cfg(test)]\nfn b() { dbg!(1); }\n";
        assert_eq!(with("crates/cli/src/a.rs", text), Vec::<String>::new());
    }
}

//! The architecture as a check: what a reviewer would otherwise have to notice.
//!
//! Fails on what breaks a promise of the design (imports, purity, missing module docs, leftover
//! markers, a fault without its test). Only prints lengths: a state machine's `match` over all its
//! events is clearest whole.

mod floors;
mod lengths;
mod markers;
mod module_docs;
mod purity;
mod traceability;

use crate::Outcome;
use crate::tree::Tree;
use std::fmt;
use std::path::Path;

/// One breach of a rule, at a place, with the reason that the rule exists.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    what: String,
    why: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}\n    because {}", self.file, self.line, self.what, self.why)
    }
}

/// Every rule that can fail.
fn findings(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    floors::check(tree, &mut findings);
    purity::check(tree, &mut findings);
    module_docs::check(tree, &mut findings);
    markers::check(tree, &mut findings);
    traceability::check(tree, &mut findings);
    findings
}

pub(crate) fn command(root: &Path, arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Outcome::Misused(format!("tidy takes no argument, not `{argument}`"));
    }
    match run(root) {
        Ok(0) => Outcome::Passed,
        Ok(_) => Outcome::Failed,
        Err(message) => Outcome::Misused(message),
    }
}

/// Checks the workspace at `root`, prints what there is to say, and counts the findings.
pub(crate) fn run(root: &Path) -> Result<usize, String> {
    let tree = Tree::read(root)?;
    for line in lengths::report(&tree) {
        println!("long: {line}");
    }
    let findings = findings(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} findings in {} files", findings.len(), tree.files.len());
    Ok(findings.len())
}

#[cfg(test)]
mod tests {
    use super::{Finding, findings};
    use crate::tree::{Dependency, Package, Table, Tree};

    /// A workspace in which nothing is wrong: one package per floor, one file each.
    pub(super) fn sound() -> Tree {
        let mut tree = Tree::default();
        let packages: [(&str, &[&str]); 9] = [
            ("base", &[]),
            ("rollback", &["base"]),
            ("store", &["base"]),
            ("engine", &["base", "rollback", "store"]),
            ("host", &["base", "store", "engine"]),
            ("sim", &["base", "store", "engine"]),
            ("rallypoint", &["engine", "host", "sim"]),
            ("cli", &["rallypoint", "store"]),
            ("recorder", &[]),
        ];
        for (name, dependencies) in packages {
            let folder = format!("crates/{name}");
            tree.files.insert(format!("{folder}/src/lib.rs"), "//! Documented.\n".to_owned());
            tree.files.insert(format!("{folder}/clippy.toml"), "same = true\n".to_owned());
            let package = Package { name: full(name), folder, dependencies: Vec::new() };
            tree.packages.push(package);
            for dependency in dependencies {
                depend(&mut tree, name, &full(dependency), Table::Normal);
            }
        }
        tree
    }

    fn full(name: &str) -> String {
        if name == "rallypoint" { name.to_owned() } else { format!("rallypoint-{name}") }
    }

    /// Adds `dependency` to the manifest of `name`.
    pub(super) fn depend(tree: &mut Tree, name: &str, dependency: &str, table: Table) {
        let package = tree.packages.iter_mut().find(|package| package.short_name() == name).unwrap();
        package.dependencies.push(Dependency { name: dependency.to_owned(), table, renamed_to: None });
        let manifest = tree.files.entry(package.manifest()).or_default();
        manifest.push_str(&format!("{dependency}.workspace = true\n"));
    }

    /// The sound workspace with one file replaced.
    pub(super) fn with(path: &str, text: &str) -> Vec<String> {
        let mut tree = sound();
        tree.files.insert(path.to_owned(), text.to_owned());
        said(&findings(&tree))
    }

    /// Place and finding of each, without the reason.
    pub(super) fn said(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|f| format!("{}:{}: {}", f.file, f.line, f.what)).collect()
    }

    #[test]
    fn a_sound_workspace_has_no_finding() {
        assert_eq!(said(&findings(&sound())), Vec::<String>::new());
    }

    #[test]
    fn this_workspace_is_tidy() {
        let tree = Tree::read(&crate::workspace_root()).unwrap();
        let findings = findings(&tree);
        let text: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "\n{}\n", text.join("\n"));
    }
}

//! Imports run downward only.
//!
//! Decided here: which package may name which. A package that is not in the table fails, so that a
//! new crate cannot appear without a place.

use super::Finding;
use crate::tree::{Package, Table, Tree};

/// Where a package stands.
struct Floor {
    name: &'static str,
    /// Packages of this workspace that it may use.
    may_use: &'static [&'static str],
    /// Further ones that its tests may use: same floor or lower, never higher.
    tests_may_also_use: &'static [&'static str],
    /// Packages from elsewhere that it may use; `None` where that is not restricted.
    outside: Option<&'static [&'static str]>,
}

/// What pure crates may take from outside: no clock, no randomness, no runtime, no operating system.
const PURE: Option<&[&str]> =
    Some(&["hashbrown", "postcard", "reed-solomon-simd", "rmp-serde", "serde", "thiserror", "xxhash-rust"]);

const BELOW_HOSTS: &[&str] = &["base", "rollback", "saga", "store", "engine"];
const BELOW_FACE: &[&str] =
    &["base", "rollback", "saga", "advisor", "resilience", "store", "engine", "host", "sim"];
const BELOW_COMMAND: &[&str] =
    &["base", "rollback", "saga", "advisor", "resilience", "store", "engine", "host", "sim", "rallypoint"];

/// The command serves: it is the one that may use the server.
const BELOW_CLI: &[&str] = &[
    "base",
    "rollback",
    "saga",
    "advisor",
    "resilience",
    "store",
    "engine",
    "host",
    "sim",
    "rallypoint",
    "server",
];

/// From the ground up. `rollback`, `saga` and `advisor` meet only in `engine` or above it.
const FLOORS: &[Floor] = &[
    Floor { name: "base", may_use: &[], tests_may_also_use: &[], outside: PURE },
    Floor { name: "rollback", may_use: &["base"], tests_may_also_use: &[], outside: PURE },
    Floor { name: "saga", may_use: &["base"], tests_may_also_use: &[], outside: PURE },
    Floor { name: "advisor", may_use: &["base"], tests_may_also_use: &[], outside: PURE },
    Floor { name: "store", may_use: &["base"], tests_may_also_use: &[], outside: PURE },
    Floor {
        name: "engine",
        may_use: &["base", "rollback", "saga", "store"],
        tests_may_also_use: &[],
        outside: PURE,
    },
    Floor { name: "resilience", may_use: &["base"], tests_may_also_use: &[], outside: None },
    Floor { name: "host", may_use: BELOW_HOSTS, tests_may_also_use: &["sim", "recorder"], outside: None },
    Floor { name: "sim", may_use: BELOW_HOSTS, tests_may_also_use: &[], outside: None },
    Floor { name: "rallypoint", may_use: BELOW_FACE, tests_may_also_use: &[], outside: None },
    Floor { name: "server", may_use: BELOW_COMMAND, tests_may_also_use: &[], outside: None },
    Floor { name: "cli", may_use: BELOW_CLI, tests_may_also_use: &["recorder"], outside: None },
    // For the services that a saga calls: they need nothing of the rest.
    Floor { name: "barrier", may_use: &[], tests_may_also_use: &[], outside: None },
    // Tools of the project itself: they use nothing of it, so that they cannot become part of it.
    Floor { name: "recorder", may_use: &[], tests_may_also_use: &[], outside: None },
    Floor { name: "xtask", may_use: &[], tests_may_also_use: &[], outside: None },
];

/// An example is a user's program: it sees what a user sees.
const EXAMPLE: Floor =
    Floor { name: "example", may_use: &["rallypoint", "barrier"], tests_may_also_use: &[], outside: None };

const DOWNWARD: &str =
    "imports run downward only; what both need belongs on a lower floor (docs/ARCHITECTURE.md)";
const OUTSIDE: &str = "a pure crate takes nothing that could reach a clock, a thread, a file or randomness; \
                       if this one cannot, add it to the table in xtask/src/tidy/floors.rs";
const RENAMED: &str = "a renamed dependency hides the architecture from every tool and newcomer";
const PLACE: &str = "a new crate needs a place among the floors: give it one in xtask/src/tidy/floors.rs";

pub(super) fn check(tree: &Tree, findings: &mut Vec<Finding>) {
    for package in &tree.packages {
        let manifest = package.manifest();
        let Some(floor) = floor(package) else {
            let what = format!("package `{}` stands on no floor", package.name);
            findings.push(Finding { file: manifest, line: 1, what, why: PLACE });
            continue;
        };
        for dependency in &package.dependencies {
            let line = tree
                .line_of_dependency(&manifest, dependency.renamed_to.as_ref().unwrap_or(&dependency.name));
            let mut finding =
                |what: String, why| findings.push(Finding { file: manifest.clone(), line, what, why });
            let target = tree.packages.iter().find(|package| package.name == dependency.name);
            if let (Some(_), Some(renamed)) = (target, &dependency.renamed_to) {
                finding(format!("`{}` is renamed to `{renamed}`", dependency.name), RENAMED);
            }
            let tests_only = dependency.table == Table::Dev;
            match (target, floor.outside) {
                (Some(target), _) if !may_use(floor, target, tests_only) => {
                    let tests = if tests_only { ", not even in its tests" } else { "" };
                    finding(
                        format!("`{}` may not use `{}`{tests}", floor.name, target.short_name()),
                        DOWNWARD,
                    );
                }
                (None, Some(allowed)) if !tests_only && !allowed.contains(&dependency.name.as_str()) => {
                    finding(format!("pure crate `{}` uses `{}`", floor.name, dependency.name), OUTSIDE);
                }
                _ => {}
            }
        }
    }
}

fn is_example(package: &Package) -> bool {
    package.folder.starts_with("examples/")
}

fn floor(package: &Package) -> Option<&'static Floor> {
    if is_example(package) {
        return Some(&EXAMPLE);
    }
    FLOORS.iter().find(|floor| floor.name == package.short_name())
}

fn may_use(floor: &Floor, target: &Package, tests_only: bool) -> bool {
    // The command's demo runs the actors of an example.
    if is_example(target) {
        return floor.name == "cli";
    }
    let target = target.short_name();
    floor.may_use.contains(&target) || (tests_only && floor.tests_may_also_use.contains(&target))
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::super::tests::{depend, said, sound};
    use super::FLOORS;
    use crate::tree::{Package, Table, Tree};

    fn after(change: impl Fn(&mut Tree)) -> Vec<String> {
        let mut tree = sound();
        change(&mut tree);
        said(&findings(&tree))
    }

    fn depending(name: &str, dependency: &str, table: Table) -> Vec<String> {
        after(|tree| depend(tree, name, dependency, table))
    }

    #[test]
    fn the_table_itself_runs_downward() {
        for (height, floor) in FLOORS.iter().enumerate() {
            for used in floor.may_use {
                let below = FLOORS.iter().position(|other| other.name == *used);
                assert!(below.is_some_and(|below| below < height), "{} uses {used}", floor.name);
                assert!(!["cli", "xtask", "recorder"].contains(used), "{} uses {used}", floor.name);
                assert!(*used != "server" || floor.name == "cli", "{} uses {used}", floor.name);
            }
        }
    }

    #[test]
    fn an_upward_import_fails() {
        let expected = ["crates/store/Cargo.toml:2: `store` may not use `engine`"];
        assert_eq!(depending("store", "rallypoint-engine", Table::Normal), expected);
        let expected = ["crates/engine/Cargo.toml:4: `engine` may not use `sim`, not even in its tests"];
        assert_eq!(depending("engine", "rallypoint-sim", Table::Dev), expected);
        let expected = ["crates/base/Cargo.toml:1: `base` may not use `store`"];
        assert_eq!(depending("base", "rallypoint-store", Table::Build), expected);
    }

    #[test]
    fn a_sideways_import_fails() {
        for (name, dependency) in
            [("sim", "host"), ("store", "rollback"), ("rollback", "store"), ("host", "sim")]
        {
            let found = depending(name, &format!("rallypoint-{dependency}"), Table::Normal);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].ends_with(&format!("`{name}` may not use `{dependency}`")), "{found:?}");
        }
        assert_eq!(depending("sim", "rallypoint-host", Table::Dev).len(), 1);
        assert_eq!(depending("host", "rallypoint-sim", Table::Dev).len(), 0);
    }

    #[test]
    fn nothing_uses_the_command_or_the_recorder() {
        assert_eq!(depending("rallypoint", "rallypoint-cli", Table::Dev).len(), 1);
        assert_eq!(depending("engine", "rallypoint-recorder", Table::Dev).len(), 1);
        assert_eq!(depending("recorder", "rallypoint-base", Table::Normal).len(), 1);
    }

    #[test]
    fn a_pure_crate_takes_no_runtime() {
        let expected = ["crates/engine/Cargo.toml:4: pure crate `engine` uses `tokio`"];
        assert_eq!(depending("engine", "tokio", Table::Normal), expected);
        assert_eq!(depending("engine", "proptest", Table::Dev).len(), 0);
        assert_eq!(depending("host", "tokio", Table::Normal).len(), 0);
    }

    #[test]
    fn a_renamed_dependency_fails() {
        let found = after(|tree| {
            let host = tree.packages.iter_mut().find(|package| package.short_name() == "host").unwrap();
            host.dependencies[0].renamed_to = Some("b".to_owned());
        });
        assert_eq!(found, ["crates/host/Cargo.toml:1: `rallypoint-base` is renamed to `b`"]);
    }

    #[test]
    fn a_new_crate_needs_a_place_and_an_example_is_a_user() {
        let add = |folder: &str, dependency: &str| {
            after(|tree| {
                let (name, folder) = ("rallypoint-new".to_owned(), folder.to_owned());
                tree.packages.push(Package { name, folder, dependencies: Vec::new() });
                depend(tree, "new", dependency, Table::Normal);
            })
        };
        assert_eq!(
            add("crates/new", "rallypoint"),
            ["crates/new/Cargo.toml:1: package `rallypoint-new` stands on no floor"]
        );
        assert_eq!(add("examples/new", "rallypoint").len(), 0);
        assert_eq!(add("examples/new", "rallypoint-engine").len(), 1);
    }
}

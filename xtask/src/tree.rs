//! The workspace as a value: its text files and its packages.
//!
//! The checks work on this value and touch no disk, so that each of them can be shown to fail on a
//! few lines of made-up source.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Which of the three tables of a manifest names a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Normal,
    Dev,
    Build,
}

#[derive(Clone, Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) table: Table,
    pub(crate) renamed_to: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Folder below the root, `/` between names.
    pub(crate) folder: String,
    pub(crate) dependencies: Vec<Dependency>,
}

impl Package {
    /// The name that the floors use: `rallypoint-store` is `store`.
    pub(crate) fn short_name(&self) -> &str {
        self.name.strip_prefix("rallypoint-").unwrap_or(&self.name)
    }

    pub(crate) fn manifest(&self) -> String {
        format!("{}/Cargo.toml", self.folder)
    }
}

#[derive(Default)]
pub(crate) struct Tree {
    /// Text by path below the root, `/` between names; only `.rs`, `.toml` and `.md`.
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) packages: Vec<Package>,
}

impl Tree {
    /// Reads the workspace at `root`.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let mut tree = Self { packages: packages(root)?, ..Self::default() };
        read_folder(root, "", &mut tree.files)?;
        Ok(tree)
    }

    /// The line (from 1) of `manifest` that names `dependency`, or 1.
    pub(crate) fn line_of_dependency(&self, manifest: &str, dependency: &str) -> usize {
        let names = |line: &str| {
            line.trim_start().strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
        };
        let text = self.files.get(manifest).map_or("", String::as_str);
        text.lines().position(names).map_or(1, |index| index + 1)
    }

    /// The Rust files below `folder`.
    pub(crate) fn sources<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |(path, _)| {
                path.ends_with(".rs") && path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            })
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

fn read_folder(root: &Path, below: &str, files: &mut BTreeMap<String, String>) -> Result<(), String> {
    let folder = root.join(below);
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", folder.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Hidden folders and build output are not the project's text.
        if name.starts_with('.') || name == "target" {
            continue;
        }
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let kind = entry.file_type().map_err(|error| format!("{path}: {error}"))?;
        if kind.is_dir() {
            read_folder(root, &path, files)?;
        } else if kind.is_file() && [".rs", ".toml", ".md"].iter().any(|end| name.ends_with(end)) {
            // A file may vanish between the listing and the reading (an editor's temporary file).
            if let Ok(text) = std::fs::read_to_string(entry.path()) {
                files.insert(path, text);
            }
        }
    }
    Ok(())
}

fn packages(root: &Path) -> Result<Vec<Package>, String> {
    let output = crate::cargo(root)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    packages_of(&metadata)
}

/// Reads the answer of `cargo metadata --no-deps`.
fn packages_of(metadata: &Value) -> Result<Vec<Package>, String> {
    let text = |value: &Value, field: &str| {
        value[field].as_str().map(str::to_owned).ok_or_else(|| format!("cargo metadata: no {field}"))
    };
    let root = text(metadata, "workspace_root")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut packages = Vec::new();
    for package in list(&metadata["packages"]) {
        let manifest = text(&package, "manifest_path")?;
        let folder = manifest.strip_prefix(&root).unwrap_or(&manifest);
        let folder = folder.strip_suffix("Cargo.toml").unwrap_or(folder).trim_matches('/').to_owned();
        let mut dependencies = Vec::new();
        for dependency in list(&package["dependencies"]) {
            let table = match dependency["kind"].as_str() {
                Some("dev") => Table::Dev,
                Some("build") => Table::Build,
                _ => Table::Normal,
            };
            let renamed_to = dependency["rename"].as_str().map(str::to_owned);
            dependencies.push(Dependency { name: text(&dependency, "name")?, table, renamed_to });
        }
        packages.push(Package { name: text(&package, "name")?, folder, dependencies });
    }
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::{Table, packages_of};

    #[test]
    fn metadata_becomes_packages() {
        let metadata = serde_json::json!({
            "workspace_root": "/w",
            "packages": [{
                "name": "rallypoint-store",
                "manifest_path": "/w/crates/store/Cargo.toml",
                "dependencies": [
                    { "name": "rallypoint-base", "kind": null, "rename": null },
                    { "name": "proptest", "kind": "dev", "rename": "p" },
                ],
            }],
        });
        let packages = packages_of(&metadata).unwrap();
        assert_eq!(packages[0].short_name(), "store");
        assert_eq!(packages[0].manifest(), "crates/store/Cargo.toml");
        assert_eq!(packages[0].dependencies[0].table, Table::Normal);
        assert_eq!(packages[0].dependencies[1].table, Table::Dev);
        assert_eq!(packages[0].dependencies[1].renamed_to.as_deref(), Some("p"));
    }
}

//! Relative links in the documents lead somewhere.
//!
//! Links to the outside are not followed: a build must not depend on somebody else's server.

use crate::tree::Tree;
use std::path::Path;

/// Prints every dead link below `root`; whether there was none.
pub(crate) fn check(root: &Path) -> bool {
    let tree = match Tree::read(root) {
        Ok(tree) => tree,
        Err(message) => {
            println!("{message}");
            return false;
        }
    };
    let dead = dead_links(&tree, |path| root.join(path).exists());
    for line in &dead {
        println!("{line}");
    }
    dead.is_empty()
}

fn dead_links(tree: &Tree, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut dead = Vec::new();
    for (file, text) in tree.files.iter().filter(|(file, _)| file.ends_with(".md")) {
        for (line, target) in links(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.clone() } else { resolve(file, path) };
            if !exists(&path) {
                dead.push(format!("{file}:{line}: dead link to {path}"));
            } else if let Some(text) = tree.files.get(&path).filter(|_| path.ends_with(".md"))
                && !anchor.is_empty()
                && !anchors(text).any(|known| known == anchor)
            {
                dead.push(format!("{file}:{line}: {path} has no heading #{anchor}"));
            }
        }
    }
    dead
}

/// Lines with their numbers, code blocks left out.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().map(|(index, line)| (index + 1, line)).filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        !fence && !in_code
    })
}

/// Relative targets of `[text](target)`, with their lines.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(number, line)| {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let relative = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
        relative.map(move |target| (number, target.split(' ').next().unwrap_or(target)))
    })
}

/// The anchors that headings get: lower case, spaces as hyphens, other punctuation dropped.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| {
        let kept = |character: char| match character {
            ' ' => Some('-'),
            '-' | '_' => Some(character),
            _ => character.is_alphanumeric().then(|| character.to_ascii_lowercase()),
        };
        line.trim_start_matches('#').trim().chars().filter_map(kept).collect()
    })
}

/// `path` as seen from `file`, with `.` and `..` worked off.
fn resolve(file: &str, path: &str) -> String {
    let mut names: Vec<&str> = file.split('/').collect();
    names.pop();
    if let Some(absolute) = path.strip_prefix('/') {
        return absolute.to_owned();
    }
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::dead_links;
    use crate::tree::Tree;

    #[test]
    fn dead_links_and_headings_are_found() {
        let mut tree = Tree::default();
        tree.files.insert(
            "README.md".to_owned(),
            "# The `first` one\n[a](docs/A.md#what-is-not) [b](docs/B.md)\n".to_owned(),
        );
        let text = "## What is not\n[up](../README.md#the-first-one) [x](../README.md#second) [self](#what-is-not)\n\
                    ```\n[c](nowhere.md)\n```\n[web](https://example.org/a) [src](../crates)\n";
        tree.files.insert("docs/A.md".to_owned(), text.to_owned());
        let exists = |path: &str| ["README.md", "docs/A.md", "crates"].contains(&path);
        let expected =
            ["README.md:2: dead link to docs/B.md", "docs/A.md:2: README.md has no heading #second"];
        assert_eq!(dead_links(&tree, exists), expected);
    }
}

//! What the documents show is this program, letter by letter.

const PROGRAM: &str = include_str!("../src/main.rs");
const README: &str = include_str!("../../../README.md");
const TUTORIAL: &str = include_str!("../../../docs/tutorial.md");

/// The Rust code of a document, block by block.
fn blocks(document: &str) -> Vec<String> {
    let after = document.split("```rust\n").skip(1);
    after.map(|rest| rest.split("```").next().unwrap_or("").to_owned()).collect()
}

#[test]
fn the_actor_of_the_readme_is_the_counter_in_at_most_20_lines() {
    let blocks = blocks(README);
    let [actor, rest] = &blocks[..] else { panic!("{} blocks of code", blocks.len()) };
    assert!(actor.lines().count() <= 20, "{} lines", actor.lines().count());
    assert!(PROGRAM.contains(actor.as_str()), "not in the program:\n{actor}");
    assert!(PROGRAM.contains(rest.as_str()), "not in the program:\n{rest}");
}

#[test]
fn the_tutorial_is_the_whole_program_in_under_60_lines() {
    let blocks = blocks(TUTORIAL);
    let [program] = &blocks[..] else { panic!("{} blocks of code", blocks.len()) };
    assert_eq!(program, PROGRAM);
    assert!(PROGRAM.lines().count() < 60);
}

#[test]
fn the_tutorial_names_the_dependencies_of_this_example() {
    let manifest = TUTORIAL.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    for line in ["rallypoint = ", "serde = { version = \"1.0\", features = [\"derive\"] }"] {
        assert!(manifest.contains(line), "{line} is not in\n{manifest}");
    }
}

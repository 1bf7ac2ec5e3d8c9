//! The power cut on recordings made by hand.

use super::*;
use std::collections::BTreeSet;

/// A recording in the making; each operation takes two places in the order.
#[derive(Default)]
struct Story {
    operations: Vec<Operation>,
    order: u64,
}

impl Story {
    fn say(&mut self, what: What) -> Instant {
        self.say_as(what, 0)
    }

    fn say_as(&mut self, what: What, result: i64) -> Instant {
        let begin = self.order + 1;
        self.order += 2;
        self.operations.push(Operation { begin, end: Some(self.order), result, pid: 1, tid: 1, what });
        self.order
    }

    fn create(&mut self, path: &str, inode: u64) -> Instant {
        self.say(What::Create { inode, path: place(path), created: true, cuts: false })
    }

    fn write(&mut self, inode: u64, block: u64, byte: u8, durable: bool) -> Instant {
        let data = Some(vec![byte; 4096]);
        self.say(What::Write { inode, offset: block * 4096, len: 4096, data, durable })
    }

    fn sync(&mut self, inode: u64) -> Instant {
        self.say(What::Sync { inode, directory: None })
    }

    fn sync_names(&mut self) -> Instant {
        self.say(What::Sync { inode: 1, directory: Some(place("")) })
    }

    /// What is left at an instant for each of 64 seeds: the bytes of each file, first ones of blocks.
    fn ends(&self, instant: Instant) -> BTreeSet<BTreeMap<String, Vec<u8>>> {
        let recording =
            Recording { directory: PathBuf::from("/r"), base: None, operations: self.operations.clone() };
        (0..64).map(|seed| left(&recording, instant, seed)).collect()
    }
}

fn place(path: &str) -> PathBuf {
    if path.is_empty() { PathBuf::from("/r") } else { Path::new("/r").join(path) }
}

fn left(recording: &Recording, instant: Instant, seed: u64) -> BTreeMap<String, Vec<u8>> {
    let into = tempfile::tempdir().expect("temporary directory");
    recording.rebuild(instant, seed, into.path()).expect("rebuilt");
    let entries = fs::read_dir(into.path()).expect("listed").map(|entry| entry.expect("readable"));
    entries
        .filter(|entry| entry.path().is_file())
        .map(|entry| {
            let bytes = fs::read(entry.path()).expect("readable");
            let firsts = bytes.chunks(4096).map(|block| block[0]).collect();
            (entry.file_name().into_string().expect("text"), firsts)
        })
        .collect()
}

fn files(files: &[(&str, &[u8])]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(name, blocks)| ((*name).to_owned(), blocks.to_vec())).collect()
}

fn started() -> Story {
    let mut story = Story::default();
    story.create("a", 10);
    story.sync_names();
    story
}

#[test]
fn a_durable_write_is_certain_only_once_it_has_ended() {
    let mut story = started();
    let end = story.write(10, 0, 1, true);
    assert_eq!(story.ends(end), BTreeSet::from([files(&[("a", &[1])])]));
    let unsure = BTreeSet::from([files(&[("a", &[])]), files(&[("a", &[1])])]);
    assert_eq!(story.ends(end - 1), unsure);
}

#[test]
fn a_sync_covers_what_had_ended_before_it_began() {
    let mut story = started();
    story.write(10, 0, 1, false);
    let end = story.sync(10);
    story.write(10, 1, 2, false);
    assert_eq!(story.ends(end), BTreeSet::from([files(&[("a", &[1])])]));
    assert_eq!(story.ends(end - 1).len(), 2, "a sync that has not ended promises nothing");
    let last = story.order;
    assert_eq!(story.ends(last), BTreeSet::from([files(&[("a", &[1])]), files(&[("a", &[1, 2])])]));
}

#[test]
fn a_write_that_overlaps_the_sync_is_not_covered() {
    let mut story = started();
    story.write(10, 0, 1, false);
    story.sync(10);
    let write = story.operations.len() - 2;
    let sync_end = story.operations[write + 1].end.expect("ended");
    story.operations[write].end = Some(sync_end + 1);
    assert_eq!(story.ends(sync_end + 1).len(), 2);
}

#[test]
fn a_failed_sync_takes_the_certainty_of_what_came_before_it() {
    let mut story = started();
    story.write(10, 0, 1, false);
    story.say_as(What::Sync { inode: 10, directory: None }, -5);
    story.write(10, 1, 2, false);
    let end = story.sync(10);
    let ends = story.ends(end);
    assert!(ends.iter().all(|files| files["a"].get(1) == Some(&2)), "{ends:?}");
    assert_eq!(ends.len(), 2, "the first block may be zero though a second sync said yes");
}

#[test]
fn writes_to_one_block_survive_in_their_order() {
    let mut story = started();
    for byte in 1..=3 {
        story.write(10, 0, byte, byte == 1);
    }
    let expected = [1, 2, 3].map(|byte| files(&[("a", &[byte])]));
    assert_eq!(story.ends(story.order), BTreeSet::from(expected));
}

#[test]
fn names_are_certain_after_a_sync_of_their_directory() {
    let mut story = Story::default();
    story.create("a.tmp", 10);
    story.write(10, 0, 1, true);
    assert_eq!(story.ends(story.order).len(), 2, "there or not");
    story.say(What::Rename { inode: 10, from: place("a.tmp"), to: place("a") });
    let sync = story.sync_names();
    assert_eq!(story.ends(sync), BTreeSet::from([files(&[("a", &[1])])]));
    let before = story.ends(sync - 1);
    assert!(before.contains(&files(&[("a", &[1])])) && before.contains(&files(&[])), "{before:?}");
    story.say(What::Remove { path: place("a") });
    assert_eq!(story.ends(story.order).len(), 2);
    let sync = story.sync_names();
    assert_eq!(story.ends(sync), BTreeSet::from([files(&[])]));
}

#[test]
fn a_replacing_rename_leaves_the_old_or_the_new_file() {
    let mut story = started();
    story.write(10, 0, 1, true);
    story.create("b", 11);
    story.sync_names();
    story.write(11, 0, 2, true);
    story.say(What::Rename { inode: 11, from: place("b"), to: place("a") });
    let expected = [files(&[("a", &[1]), ("b", &[2])]), files(&[("a", &[2])])];
    assert_eq!(story.ends(story.order), BTreeSet::from(expected));
}

#[test]
fn an_inode_number_used_again_is_another_file() {
    let mut story = started();
    story.write(10, 0, 1, true);
    story.say(What::Remove { path: place("a") });
    story.create("b", 10);
    let end = story.sync_names();
    assert_eq!(story.ends(end), BTreeSet::from([files(&[("b", &[])])]));
}

#[test]
fn lengths_and_zeroes() {
    let mut story = started();
    story.write(10, 0, 1, true);
    story.say(What::Write { inode: 10, offset: 4096, len: 8192, data: None, durable: true });
    assert_eq!(story.ends(story.order), BTreeSet::from([files(&[("a", &[1, 0, 0])])]));
    story.say(What::Truncate { inode: 10, len: 4096 });
    assert_eq!(story.ends(story.order).len(), 2);
    let end = story.sync(10);
    assert_eq!(story.ends(end), BTreeSet::from([files(&[("a", &[1])])]));
}

#[test]
fn a_file_from_before_the_recording_is_taken_from_the_base() {
    let base = tempfile::tempdir().expect("temporary directory");
    fs::write(base.path().join("old"), [9; 8192]).expect("written");
    fs::write(base.path().join("still"), [3; 10]).expect("written");
    let mut story = Story::default();
    story.say(What::Known { inode: 20, path: place("old"), directory: false });
    let end = story.write(20, 1, 5, true);
    let recording = Recording {
        directory: PathBuf::from("/r"),
        base: Some(base.path().to_owned()),
        operations: story.operations,
    };
    assert_eq!(left(&recording, end, 0), files(&[("old", &[9, 5]), ("still", &[3])]));
    assert_eq!(left(&recording, 0, 0), files(&[("old", &[9, 9]), ("still", &[3])]));
}

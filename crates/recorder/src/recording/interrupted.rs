//! What became of an operation in the middle of which its process was killed.
//!
//! Such an operation has a begin and no end. It may have happened, wholly or in part, or not at all;
//! a power cut alone would leave that open for ever, but a process that comes after the killed one
//! *sees* which it was, builds on it and may make it durable. So the first look of another process at
//! the file, after the last sign of life of the killed one, settles it: what is there had ended by
//! then, and what is not there never happened. Without such a look it stays open.
//! Invariant: an operation that has an end is left as it is.

use super::{Instant, Operation, What};
use crate::blocks::{BLOCK, pieces};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// One process's look at one file.
struct Look<'a> {
    at: Instant,
    pid: u32,
    inode: u64,
    path: &'a Path,
    /// Blocks that are not all zeroes, by their number.
    blocks: BTreeMap<u64, &'a [u8]>,
}

/// Gives ends to interrupted operations where a later look tells them.
pub(super) fn settle(operations: Vec<Operation>) -> Vec<Operation> {
    let looks = looks(&operations);
    let mut alive: HashMap<u32, Instant> = HashMap::new();
    for operation in &operations {
        let seen = operation.end.unwrap_or(operation.begin);
        let last = alive.entry(operation.pid).or_default();
        *last = (*last).max(seen);
    }
    // Names that a later process made itself tell that nobody had before.
    let made = |path: &Path, after: Instant, pid: u32| {
        operations.iter().find(|operation| {
            operation.begin > after
                && operation.pid != pid
                && matches!(&operation.what, What::Create { path: at, created: true, .. } if at == path)
        })
    };
    let mut settled = Vec::with_capacity(operations.len());
    for operation in &operations {
        if operation.end.is_some() {
            settled.push(operation.clone());
            continue;
        }
        let death = alive[&operation.pid];
        let mut later = looks.iter().filter(|look| look.at > death && look.pid != operation.pid);
        match &operation.what {
            What::Write { inode, offset, len, data, durable } => {
                let Some(look) = later.find(|look| look.inode == *inode) else {
                    settled.push(operation.clone());
                    continue;
                };
                for (from, to) in pieces(*offset, *len) {
                    let part =
                        data.as_ref().map(|data| &data[(from - offset) as usize..(to - offset) as usize]);
                    if look.shows(from, to, part) {
                        let (len, data) = (to - from, part.map(<[u8]>::to_vec));
                        let what = What::Write { inode: *inode, offset: from, len, data, durable: *durable };
                        let result = len.cast_signed();
                        settled.push(Operation { end: Some(look.at), result, what, ..*operation });
                    }
                }
            }
            What::Rename { inode, from, to } => {
                match later.find(|look| look.inode == *inode && (look.path == to || look.path == from)) {
                    Some(look) if look.path == from => {}
                    Some(look) => settled.push(Operation { end: Some(look.at), ..operation.clone() }),
                    None => settled.push(operation.clone()),
                }
            }
            What::Create { path, cuts, .. } => {
                let look = later.find(|look| look.path == path);
                let anew = made(path, death, operation.pid);
                match (look, anew) {
                    (Some(look), anew) if anew.is_none_or(|anew| anew.begin > look.at) => {
                        let (inode, path) = (look.inode, path.clone());
                        let what = What::Create { inode, path, created: true, cuts: *cuts };
                        settled.push(Operation { end: Some(look.at), what, ..*operation });
                    }
                    (_, Some(_)) => {}
                    _ => settled.push(operation.clone()),
                }
            }
            _ => settled.push(operation.clone()),
        }
    }
    settled
}

fn looks(operations: &[Operation]) -> Vec<Look<'_>> {
    let mut looks: BTreeMap<Instant, Look<'_>> = BTreeMap::new();
    for operation in operations {
        match &operation.what {
            What::Known { inode, path, directory: false } => {
                let (at, pid) = (operation.begin, operation.pid);
                looks.insert(at, Look { at, pid, inode: *inode, path, blocks: BTreeMap::new() });
            }
            What::Seen { opened, offset, data: Some(data), .. } => {
                if let Some(look) = looks.get_mut(opened) {
                    for (number, block) in (offset / BLOCK..).zip(data.chunks(BLOCK as usize)) {
                        look.blocks.insert(number, block);
                    }
                }
            }
            _ => {}
        }
    }
    looks.into_values().collect()
}

impl Look<'_> {
    /// Whether these bytes (`None` = zeroes) are in the file, inside one block.
    fn shows(&self, from: u64, to: u64, bytes: Option<&[u8]>) -> bool {
        let inside = (from % BLOCK) as usize..(from % BLOCK + (to - from)) as usize;
        match (self.blocks.get(&(from / BLOCK)), bytes) {
            (Some(block), Some(bytes)) => block.get(inside) == Some(bytes),
            (Some(block), None) => block.get(inside).is_some_and(|part| part.iter().all(|byte| *byte == 0)),
            (None, Some(bytes)) => bytes.iter().all(|byte| *byte == 0),
            (None, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn known(begin: Instant, pid: u32, path: &str) -> Operation {
        let what = What::Known { inode: 7, path: PathBuf::from(path), directory: false };
        Operation { begin, end: Some(begin), result: 0, pid, tid: pid, what }
    }

    fn seen(begin: Instant, pid: u32, opened: Instant, data: Vec<u8>) -> Operation {
        let len = data.len() as u64;
        let what = What::Seen { opened, inode: 7, offset: 0, len, data: Some(data) };
        Operation { begin, end: Some(begin), result: 0, pid, tid: pid, what }
    }

    fn interrupted(begin: Instant, pid: u32, what: What) -> Operation {
        Operation { begin, end: None, result: 0, pid, tid: pid, what }
    }

    fn two_blocks(begin: Instant, pid: u32) -> Operation {
        let data = Some([[1; 4096], [2; 4096]].concat());
        interrupted(begin, pid, What::Write { inode: 7, offset: 0, len: 8192, data, durable: true })
    }

    #[test]
    fn a_half_written_write_is_what_the_next_process_sees_of_it() {
        let found = [vec![1; 4096], vec![9; 4096]].concat();
        let settled =
            settle(vec![known(1, 1, "/f"), two_blocks(2, 1), known(3, 2, "/f"), seen(4, 2, 3, found)]);
        let writes: Vec<_> = settled.iter().filter(|o| matches!(o.what, What::Write { .. })).collect();
        assert_eq!(writes.len(), 1);
        assert_eq!((writes[0].begin, writes[0].end, writes[0].result), (2, Some(3), 4096));
        assert!(matches!(&writes[0].what, What::Write { offset: 0, len: 4096, .. }));
    }

    #[test]
    fn a_look_while_the_writer_lives_or_by_the_writer_tells_nothing() {
        let found = [[1; 4096], [2; 4096]].concat();
        // Process 1 is heard of again after the look of process 2.
        let alive = vec![
            two_blocks(1, 1),
            known(2, 2, "/f"),
            seen(3, 2, 2, found.clone()),
            known(4, 1, "/other"),
            known(5, 1, "/f"),
            seen(6, 1, 5, found),
        ];
        assert_eq!(settle(alive.clone()), alive);
    }

    #[test]
    fn interrupted_names_are_settled_by_what_is_found_under_them() {
        let (from, to) = (PathBuf::from("/a"), PathBuf::from("/b"));
        let rename = interrupted(1, 1, What::Rename { inode: 7, from, to });
        let ends = |operations: Vec<Operation>| {
            let settled = settle(operations);
            settled
                .iter()
                .filter(|o| matches!(o.what, What::Rename { .. } | What::Create { .. }))
                .map(|o| o.end)
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(vec![rename.clone(), known(2, 2, "/b")]), [Some(2)]);
        assert_eq!(ends(vec![rename.clone(), known(2, 2, "/a")]), []);
        assert_eq!(ends(vec![rename, known(2, 2, "/c")]), [None]);
        let path = PathBuf::from("/b");
        let create =
            interrupted(1, 1, What::Create { inode: 0, path: path.clone(), created: false, cuts: false });
        assert_eq!(ends(vec![create.clone(), known(2, 2, "/b")]), [Some(2)]);
        let anew = What::Create { inode: 7, path, created: true, cuts: false };
        let anew = Operation { end: Some(3), ..interrupted(2, 2, anew) };
        assert_eq!(ends(vec![create, anew, known(4, 2, "/b")]), [Some(3)]);
    }
}

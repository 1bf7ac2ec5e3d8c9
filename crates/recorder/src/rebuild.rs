//! The power cut: which bytes and names are certain at an instant, and a dice for the rest.
//!
//! Decides what survives. *Certain* is a write through a descriptor with `O_DSYNC` that had ended,
//! a write that had ended before a sync of its file began which itself had ended well, and a
//! change of a name that had ended before such a sync of its directory began. A sync that failed
//! takes the certainty of everything before it, whatever a later sync says (Rebello et al. 2020).
//! *Possible* is everything else that had begun: for each 4 KiB block a random number of the writes
//! to it, in their order (a block cannot hold a later write without the earlier ones, since both
//! went through one page), and for each change of a name a coin.
//! Syncing a file does not make its name certain, although ext4 would: POSIX promises no more.
//! Invariant: the same recording, instant and seed give the same directory.

use crate::blocks::{BLOCK, pieces};
use crate::recording::{Instant, Operation, Random, Recording, What};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a rebuilt directory kept and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Files in the rebuilt directory.
    pub files: usize,
    /// Writes to a block that were not certain and survived.
    pub blocks_kept: u64,
    /// Writes to a block that were not certain and are gone.
    pub blocks_lost: u64,
    /// Changes of names that were not certain and survived.
    pub names_kept: u64,
    /// Changes of names that were not certain and are gone.
    pub names_lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sync {
    begin: Instant,
    end: Option<Instant>,
    good: bool,
}

/// A change of one file's bytes or length.
struct Change<'a> {
    operation: &'a Operation,
    kind: ChangeKind<'a>,
}

enum ChangeKind<'a> {
    /// `None` stands for zeroes.
    Write {
        offset: u64,
        len: u64,
        data: Option<&'a [u8]>,
        durable: bool,
    },
    Length {
        len: u64,
        grow_only: bool,
    },
}

#[derive(Default)]
struct Object<'a> {
    base: Option<PathBuf>,
    changes: Vec<Change<'a>>,
    syncs: Vec<Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

enum NameChange {
    Add { path: PathBuf, node: Node },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

type Names = BTreeMap<PathBuf, Node>;

/// Everything up to the instant, sorted by what it concerns.
#[derive(Default)]
struct History<'a> {
    objects: Vec<Object<'a>>,
    /// For each inode number the files that had it: from when, which.
    inodes: BTreeMap<u64, Vec<(Instant, usize)>>,
    /// The names before the recording.
    before: Names,
    /// The names as the processes saw them.
    visible: Names,
    name_changes: Vec<(&'a Operation, NameChange)>,
    directory_syncs: BTreeMap<PathBuf, Vec<Sync>>,
}

impl Recording {
    /// Rebuilds in `into` (empty or missing) what a power cut at `instant` could have left; `seed`
    /// decides what is possible but not certain.
    ///
    /// # Errors
    /// The base cannot be read or the directory not be written.
    pub fn rebuild(&self, instant: Instant, seed: u64, into: &Path) -> io::Result<Rebuilt> {
        let history = History::until(self, instant)?;
        let mut random = Random(seed ^ instant.rotate_left(32));
        let mut told = Rebuilt::default();
        let names = history.names(instant, &mut random, &mut told);
        fs::create_dir_all(into)?;
        for (path, node) in &names {
            let parent = path.parent().unwrap_or(Path::new(""));
            if !parent.as_os_str().is_empty() && names.get(parent) != Some(&Node::Directory) {
                continue; // its directory is gone, and it with it
            }
            match node {
                Node::Directory => fs::create_dir_all(into.join(path))?,
                Node::File(object) => {
                    let content = history.objects[*object].content(instant, &mut random, &mut told)?;
                    content.write(&into.join(path))?;
                    told.files += 1;
                }
            }
        }
        Ok(told)
    }
}

impl<'a> History<'a> {
    fn until(recording: &'a Recording, instant: Instant) -> io::Result<Self> {
        let mut history = Self::default();
        if let Some(base) = &recording.base {
            history.read_base(base, Path::new(""))?;
        }
        for operation in recording.operations.iter().take_while(|operation| operation.begin <= instant) {
            history.add(operation, &recording.directory);
        }
        Ok(history)
    }

    fn read_base(&mut self, base: &Path, below: &Path) -> io::Result<()> {
        for entry in fs::read_dir(base.join(below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.existed(&path, Node::Directory);
                self.read_base(base, &path)?;
            } else {
                let object = self.new_object(Some(base.join(&path)));
                self.existed(&path, Node::File(object));
            }
        }
        Ok(())
    }

    fn existed(&mut self, path: &Path, node: Node) {
        self.before.insert(path.to_owned(), node);
        self.visible.insert(path.to_owned(), node);
    }

    fn new_object(&mut self, base: Option<PathBuf>) -> usize {
        self.objects.push(Object { base, ..Object::default() });
        self.objects.len() - 1
    }

    /// The file that had this inode number at this time.
    fn object(&self, inode: u64, at: Instant) -> Option<usize> {
        let had = self.inodes.get(&inode)?;
        had.iter().rev().find(|(from, _)| *from <= at).map(|(_, object)| *object)
    }

    /// As [`Self::object`]; a file met for the first time existed before the recording.
    fn met(&mut self, inode: u64, path: Option<&Path>, at: Instant) -> usize {
        if let Some(object) = self.object(inode, at) {
            return object;
        }
        let object = match path.and_then(|path| self.visible.get(path)) {
            Some(Node::File(object)) => *object,
            _ => {
                let object = self.new_object(None);
                if let Some(path) = path.filter(|path| !path.to_string_lossy().ends_with(" (deleted)")) {
                    self.existed(path, Node::File(object));
                }
                object
            }
        };
        self.inodes.entry(inode).or_default().push((0, object));
        object
    }

    fn add(&mut self, operation: &'a Operation, root: &Path) {
        let begin = operation.begin;
        let relative = |path: &Path| path.strip_prefix(root).ok().map(Path::to_path_buf);
        let sync = Sync { begin, end: operation.end, good: operation.result >= 0 };
        match &operation.what {
            What::Known { inode, path, directory: false } => {
                self.met(*inode, relative(path).as_deref(), begin);
            }
            What::Known { path, directory: true, .. } => self.met_directory(relative(path)),
            What::Create { inode, path, created, cuts } => {
                if operation.end.is_none() || operation.result < 0 {
                    return;
                }
                let Some(path) = relative(path) else { return };
                if *created {
                    let object = self.new_object(None);
                    let from = operation.end.unwrap_or(begin);
                    self.inodes.entry(*inode).or_default().push((from, object));
                    self.name_change(operation, NameChange::Add { path, node: Node::File(object) });
                } else {
                    let object = self.met(*inode, Some(&path), begin);
                    if *cuts {
                        let kind = ChangeKind::Length { len: 0, grow_only: false };
                        self.objects[object].changes.push(Change { operation, kind });
                    }
                }
            }
            What::Write { inode, offset, len, data, durable } => {
                let (offset, len, durable) = (*offset, *len, *durable);
                let kind = ChangeKind::Write { offset, len, data: data.as_deref(), durable };
                self.change(operation, *inode, kind);
            }
            What::Truncate { inode, len } => {
                self.change(operation, *inode, ChangeKind::Length { len: *len, grow_only: false });
            }
            What::Allocate { inode, offset, len, mode } => {
                const KEEP_SIZE: i64 = 1;
                const PUNCH_HOLE: i64 = 2;
                const ZERO_RANGE: i64 = 16;
                if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
                    let (offset, len) = (*offset, *len);
                    let kind = ChangeKind::Write { offset, len, data: None, durable: false };
                    self.change(operation, *inode, kind);
                } else if mode & KEEP_SIZE == 0 {
                    let kind = ChangeKind::Length { len: offset + len, grow_only: true };
                    self.change(operation, *inode, kind);
                }
            }
            What::Sync { directory: Some(path), .. } => {
                if let Some(path) = relative(path) {
                    self.directory_syncs.entry(path).or_default().push(sync);
                }
            }
            What::Sync { inode, directory: None } => {
                let object = self.met(*inode, None, begin);
                self.objects[object].syncs.push(sync);
            }
            What::Rename { inode, from, to } => {
                let (Some(from), Some(to)) = (relative(from), relative(to)) else { return };
                if !matches!(self.visible.get(&from), Some(Node::Directory)) {
                    self.met(*inode, Some(&from), begin);
                }
                self.name_change(operation, NameChange::Rename { from, to });
            }
            What::Remove { path } | What::RemoveDirectory { path } => {
                if let Some(path) = relative(path) {
                    self.name_change(operation, NameChange::Remove { path });
                }
            }
            What::MakeDirectory { path } => {
                if let Some(path) = relative(path) {
                    self.name_change(operation, NameChange::Add { path, node: Node::Directory });
                }
            }
            What::Send { .. } | What::Ledger { .. } | What::Seen { .. } => {}
        }
    }

    fn met_directory(&mut self, path: Option<PathBuf>) {
        if let Some(path) = path.filter(|path| !path.as_os_str().is_empty())
            && !self.visible.contains_key(&path)
        {
            self.existed(&path, Node::Directory);
        }
    }

    fn change(&mut self, operation: &'a Operation, inode: u64, kind: ChangeKind<'a>) {
        let object = self.met(inode, None, operation.begin);
        self.objects[object].changes.push(Change { operation, kind });
    }

    fn name_change(&mut self, operation: &'a Operation, change: NameChange) {
        if operation.result < 0 {
            return;
        }
        if operation.end.is_some() {
            let before = self.visible.clone();
            apply(&mut self.visible, &change, &before);
        }
        self.name_changes.push((operation, change));
    }

    /// The names that are left: those before, the certain changes, and some of the others.
    fn names(&self, instant: Instant, random: &mut Random, told: &mut Rebuilt) -> Names {
        let mut names = self.before.clone();
        // What the processes saw, in step with the changes: a renaming moves the file that had the
        // name then, also when the change that gave it the name is lost.
        let mut seen = self.before.clone();
        for (operation, change) in &self.name_changes {
            let place = match change {
                NameChange::Add { path, .. } | NameChange::Remove { path } => path,
                NameChange::Rename { to, .. } => to,
            };
            let parent = place.parent().unwrap_or(Path::new(""));
            let syncs = self.directory_syncs.get(parent).map_or(&[][..], Vec::as_slice);
            let certain = operation.done_by(instant) && covered(operation, syncs, instant);
            let kept = certain || random.below(2) == 0;
            if kept {
                apply(&mut names, change, &seen);
            }
            match (certain, kept) {
                (true, _) => {}
                (false, true) => told.names_kept += 1,
                (false, false) => told.names_lost += 1,
            }
            let before = seen.clone();
            apply(&mut seen, change, &before);
        }
        names
    }
}

fn apply(names: &mut Names, change: &NameChange, seen: &Names) {
    match change {
        NameChange::Add { path, node } => {
            names.insert(path.clone(), *node);
        }
        NameChange::Remove { path } => {
            names.remove(path);
        }
        NameChange::Rename { from, to } => {
            let Some(node) = seen.get(from).copied() else { return };
            if names.get(from) == Some(&node) {
                names.remove(from);
            }
            names.insert(to.clone(), node);
            if node == Node::Directory {
                let inside: Vec<PathBuf> =
                    names.keys().filter(|path| path.starts_with(from)).cloned().collect();
                for path in inside {
                    if let (Some(node), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                        names.insert(to.join(rest), node);
                    }
                }
            }
        }
    }
}

/// Whether a sync that had ended well by the instant began after the operation had ended, with no
/// failed sync between.
fn covered(operation: &Operation, syncs: &[Sync], instant: Instant) -> bool {
    let Some(end) = operation.end else { return false };
    syncs
        .iter()
        .filter(|sync| sync.begin > end)
        .take_while(|sync| sync.good)
        .any(|sync| sync.end.is_some_and(|end| end <= instant))
}

/// The bytes of a file while it is put together: blocks that are not all zero, and the length.
#[derive(Default)]
struct Content {
    blocks: BTreeMap<u64, Vec<u8>>,
    len: u64,
}

impl Object<'_> {
    fn content(&self, instant: Instant, random: &mut Random, told: &mut Rebuilt) -> io::Result<Content> {
        let mut content = Content::default();
        if let Some(base) = &self.base {
            let bytes = fs::read(base)?;
            content.put(0, bytes.len() as u64, Some(&bytes));
        }
        let kept = self.kept_per_block(instant, random, told);
        for (index, change) in self.changes.iter().enumerate() {
            match change.kind {
                ChangeKind::Write { offset, len, data, .. } => {
                    for (from, to) in pieces(offset, len) {
                        if kept[&(from / BLOCK)] <= index {
                            continue;
                        }
                        let data = data.map(|data| &data[(from - offset) as usize..(to - offset) as usize]);
                        content.put(from, to - from, data);
                    }
                }
                ChangeKind::Length { len, grow_only } => {
                    let certain =
                        change.operation.done_by(instant) && covered(change.operation, &self.syncs, instant);
                    if certain || random.below(2) == 0 {
                        content.set_len(if grow_only { len.max(content.len) } else { len });
                    }
                }
            }
        }
        Ok(content)
    }

    /// For each block the index of the change before which all writes to it are kept.
    fn kept_per_block(
        &self,
        instant: Instant,
        random: &mut Random,
        told: &mut Rebuilt,
    ) -> BTreeMap<u64, usize> {
        let mut writes: BTreeMap<u64, Vec<(usize, bool)>> = BTreeMap::new();
        for (index, change) in self.changes.iter().enumerate() {
            let ChangeKind::Write { offset, len, durable, .. } = change.kind else { continue };
            let done = change.operation.done_by(instant);
            let certain = done && (durable || covered(change.operation, &self.syncs, instant));
            for (from, _) in pieces(offset, len) {
                writes.entry(from / BLOCK).or_default().push((index, certain));
            }
        }
        let mut kept = BTreeMap::new();
        for (block, writes) in writes {
            let certain = writes.iter().rposition(|(_, certain)| *certain).map_or(0, |last| last + 1);
            let possible = (writes.len() - certain) as u64;
            let survived = random.below(possible + 1);
            told.blocks_kept += survived;
            told.blocks_lost += possible - survived;
            kept.insert(
                block,
                writes.get(certain + survived as usize).map_or(usize::MAX, |(index, _)| *index),
            );
        }
        kept
    }
}

impl Content {
    fn put(&mut self, offset: u64, len: u64, data: Option<&[u8]>) {
        for (from, to) in pieces(offset, len) {
            let block = from / BLOCK;
            let inside = (from % BLOCK) as usize..(from % BLOCK + (to - from)) as usize;
            match data.map(|data| &data[(from - offset) as usize..(to - offset) as usize]) {
                Some(data) => {
                    let bytes = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK as usize]);
                    bytes[inside].copy_from_slice(data);
                }
                None if to - from == BLOCK => {
                    self.blocks.remove(&block);
                }
                None => {
                    if let Some(bytes) = self.blocks.get_mut(&block) {
                        bytes[inside].fill(0);
                    }
                }
            }
        }
        if len > 0 {
            self.len = self.len.max(offset + len);
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.put(len, self.len - len, None);
        }
        self.len = len;
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.len)?;
        for (block, bytes) in &self.blocks {
            let offset = block * BLOCK;
            let len = (self.len.saturating_sub(offset)).min(BLOCK) as usize;
            if len > 0 {
                file.write_all_at(&bytes[..len], offset)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Which input each partition was executing when the process died.
//!
//! Decides nothing: it keeps one number per slot (a slot is a partition, the number a hash of the
//! input) in a small file mapped into memory, so that noting it is a plain store and no system
//! call. After `kill -9`, abort or running out of memory the page cache still holds the last
//! store, and the successor learns which input was in execution without a synced write per run.
//! Never a promise: after a power cut the content is worthless, which the boot id in the page tells,
//! and nothing is then read from it. Never synced.
//! Opening keeps what the predecessor left: a successor that dies before it has written the evidence
//! down durably must not destroy it. Whoever has written it down calls [`RunningPage::clear`].
//! Invariant: the file is fully written before it is mapped, so that a store cannot meet a full disk
//! (which would be a signal, SIGBUS, not an error).

use rallypoint_base::hash::xxh3;
use rallypoint_base::limits::PARTITIONS;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// Name of the file in each journal directory.
pub const RUNNING_NAME: &str = "running";

/// Words before the slots: magic, boot id, whether a watchdog is about to end the process, the version
/// of a checkpoint that is being restored and for which slot; the rest of the cache line is kept free.
const HEADER: usize = 8;
const WORDS: usize = (HEADER + PARTITIONS).next_multiple_of(512);
const BYTES: usize = WORDS * 8;
const HUNG: usize = 2;
const RESTORING: usize = 3;
const RESTORING_SLOT: usize = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"rallyrun");

/// The mapped page of one journal directory. See the module.
#[derive(Debug)]
pub struct RunningPage {
    words: NonNull<AtomicU64>,
    previous: Previous,
}

/// What a predecessor left behind.
#[derive(Debug, Default)]
struct Previous {
    running: Vec<(usize, u64)>,
    hung: bool,
    restoring: Option<(usize, u64)>,
}

// SAFETY: the mapping belongs to this value until it is dropped, and it is only ever accessed as
// atomic words.
unsafe impl Send for RunningPage {}
// SAFETY: as above.
unsafe impl Sync for RunningPage {}

impl RunningPage {
    /// How many slots there are: one for every partition that a store can have.
    pub const SLOTS: usize = PARTITIONS;

    /// Opens or creates the page and remembers what the predecessor left in it. The caller holds the directory's lock, so there is one user at a time.
    ///
    /// # Errors
    /// The file cannot be opened, written or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_with(path, boot_id()?)
    }

    fn open_with(path: &Path, boot: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut content = vec![0; BYTES];
        let previous = match file.read_exact_at(&mut content, 0) {
            Ok(()) => left_behind(&content, boot),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Previous::default(),
            Err(error) => return Err(error),
        };
        // (A restore is forgotten by the next one, which comes after the count of this one.)
        content[HUNG * 8..][..8].fill(0);
        if previous.running.is_empty() && previous.restoring.is_none() {
            content.fill(0);
            content[..8].copy_from_slice(&MAGIC.to_ne_bytes());
            content[8..16].copy_from_slice(&boot.to_ne_bytes());
        }
        file.write_all_at(&content, 0)?;
        Ok(Self { words: map(&file)?, previous })
    }

    /// Notes that the partition in this slot executes this input from now on.
    ///
    /// # Panics
    /// When `slot` is not below [`Self::SLOTS`].
    pub fn set(&self, slot: usize, input: u64) {
        // Zero means "nothing"; an input that hashes to it shares the name of another one.
        self.word(slot).store(input.max(1), Ordering::Relaxed);
    }

    /// Notes that the partition in this slot executes nothing.
    ///
    /// # Panics
    /// When `slot` is not below [`Self::SLOTS`].
    pub fn clear(&self, slot: usize) {
        self.word(slot).store(0, Ordering::Relaxed);
    }

    /// What the predecessor was executing when it ended: (slot, input), by slot. Empty after an
    /// orderly end, at the first start, and after the machine was restarted.
    #[must_use]
    pub fn read_previous(&self) -> Vec<(usize, u64)> {
        self.previous.running.clone()
    }

    /// Notes that a watchdog is about to end this process.
    pub fn note_hung(&self) {
        self.header(HUNG).store(1, Ordering::Relaxed);
    }

    /// True when a watchdog ended the predecessor.
    #[must_use]
    pub fn was_hung(&self) -> bool {
        self.previous.hung
    }

    /// Notes that this version of the slot's checkpoints is being restored; version 0: none is.
    pub fn set_restoring(&self, slot: usize, version: u64) {
        // At no moment is one slot blamed for the version of another.
        self.header(RESTORING).store(0, Ordering::Relaxed);
        self.header(RESTORING_SLOT).store(slot as u64, Ordering::Release);
        self.header(RESTORING).store(version, Ordering::Release);
    }

    /// (slot, version) of the checkpoint in whose restore the predecessor ended.
    #[must_use]
    pub fn was_restoring(&self) -> Option<(usize, u64)> {
        self.previous.restoring
    }

    fn header(&self, word: usize) -> &AtomicU64 {
        assert!(word < HEADER, "word {word} is no header");
        // SAFETY: as in `word`.
        unsafe { self.words.add(word).as_ref() }
    }

    fn word(&self, slot: usize) -> &AtomicU64 {
        assert!(slot < Self::SLOTS, "slot {slot} is beyond the running page");
        // SAFETY: the mapping is `WORDS` words long and lives as long as `self`; the index is in it.
        unsafe { self.words.add(HEADER + slot).as_ref() }
    }
}

impl Drop for RunningPage {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `map` made; no reference into it outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), BYTES) };
    }
}

fn map(file: &File) -> io::Result<NonNull<AtomicU64>> {
    // SAFETY: a new mapping at an address of the kernel's choice; the file is `BYTES` long.
    let address = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(ptr::null_mut(), BYTES, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

fn left_behind(content: &[u8], boot: u64) -> Previous {
    let words = content.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    let words: Vec<u64> = words.collect();
    if words[0] != MAGIC || words[1] != boot {
        return Previous::default();
    }
    let slots = words[HEADER..HEADER + PARTITIONS].iter().copied().enumerate();
    let restoring = (words[RESTORING] != 0).then(|| (words[RESTORING_SLOT] as usize, words[RESTORING]));
    Previous { running: slots.filter(|&(_, input)| input != 0).collect(), hung: words[HUNG] == 1, restoring }
}

/// A number that is another one after every start of the machine.
///
/// # Errors
/// The kernel does not tell (no /proc).
pub fn boot_id() -> io::Result<u64> {
    Ok(xxh3(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const CHILD: &str = "RALLYPOINT_TEST_RUNNING_PAGE";

    #[test]
    fn the_word_of_a_watchdog_reaches_one_successor() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(RUNNING_NAME);
        let open = || RunningPage::open(&path).expect("page");
        let page = open();
        assert!(!page.was_hung());
        page.note_hung();
        drop(page);
        assert!(open().was_hung());
        assert!(!open().was_hung());
    }

    #[test]
    fn a_restore_that_took_the_process_with_it_is_known_to_the_next() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(RUNNING_NAME);
        let open = || RunningPage::open(&path).expect("page");
        let page = open();
        page.set_restoring(3, 7);
        drop(page);
        let page = open();
        assert_eq!(page.was_restoring(), Some((3, 7)));
        page.set_restoring(3, 8);
        page.set_restoring(0, 0);
        drop(page);
        assert_eq!(open().was_restoring(), None);
    }

    /// Not a test of its own: the process that dies in the test below.
    #[test]
    fn child_dies_while_running() {
        let Some(path) = std::env::var_os(CHILD) else { return };
        let page = RunningPage::open(Path::new(&path)).expect("page");
        page.set(3, 33);
        page.set(7, 77);
        page.clear(3);
        page.set(RunningPage::SLOTS - 1, 0);
        std::process::abort();
    }

    #[test]
    fn a_successor_sees_what_was_running_when_the_process_aborted() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(RUNNING_NAME);
        let status = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "os::running_page::tests::child_dies_while_running"])
            .env(CHILD, &path)
            .output()
            .expect("the test program starts again")
            .status;
        assert!(!status.success());
        let page = RunningPage::open(&path).expect("page");
        assert_eq!(page.read_previous(), vec![(7, 77), (RunningPage::SLOTS - 1, 1)]);
        drop(page);
        let page = RunningPage::open(&path).expect("page");
        assert_eq!(page.read_previous().len(), 2, "opening destroys nothing");
        page.clear(7);
        page.clear(RunningPage::SLOTS - 1);
        drop(page);
        assert!(RunningPage::open(&path).expect("page").read_previous().is_empty());
    }

    #[test]
    fn what_was_written_before_a_restart_of_the_machine_is_ignored() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join(RUNNING_NAME);
        RunningPage::open_with(&path, 1).expect("page").set(5, 55);
        assert!(RunningPage::open_with(&path, 2).expect("page").read_previous().is_empty());
        fs::write(&path, b"short").expect("damaged");
        assert!(RunningPage::open_with(&path, 2).expect("page").read_previous().is_empty());
    }
}

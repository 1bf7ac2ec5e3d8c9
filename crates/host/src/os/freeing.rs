//! Giving the space of large removed files back little by little.
//!
//! Freeing 64 MiB at once keeps the file system's own journal (and, mounted with `discard`, the
//! device) busy for 10 to 20 ms, and every commit beside it waits as long. So the name is removed at
//! once, while the file stays open, and its length is then taken back in slices with rests between
//! them (measured on ext4: p99.9 of a commit beside it 0.8 ms instead of 15).
//!
//! Decides the pace only. The end of the process frees at once what is left. Invariant: the name is
//! gone when [`Freeing::remove`] returns, so that removing means the same as ever.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What is freed at once: a slice, and every file up to this length.
const SLICE: u64 = 2 << 20;
/// The rest after each slice: at most 200 MB/s.
const REST: Duration = Duration::from_millis(10);
const STACK: usize = 64 << 10;

/// The files that are being freed. One thread while there are any, else none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Freeing {
    /// `None` = no thread.
    files: Arc<Mutex<Option<VecDeque<File>>>>,
}

impl Freeing {
    /// Removes a file, and gives its space back soon.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(path);
        let large = |file: &File| file.metadata().is_ok_and(|metadata| metadata.len() > SLICE);
        let file = file.ok().filter(large);
        fs::remove_file(path)?;
        if let Some(file) = file {
            self.add(file);
        }
        Ok(())
    }

    fn add(&self, file: File) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &mut *files {
            files.push_back(file);
            return;
        }
        *files = Some(VecDeque::from([file]));
        drop(files);
        let this = self.clone();
        let thread = thread::Builder::new().name("disk-free".into()).stack_size(STACK);
        if thread.spawn(move || this.free_all()).is_err() {
            // Without a thread they are freed here and now, by being closed.
            *self.files.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn free_all(&self) {
        while let Some(file) = self.next() {
            let mut len = file.metadata().map_or(0, |metadata| metadata.len());
            while len > SLICE && has_room(&file) {
                len -= SLICE;
                if file.set_len(len).is_err() {
                    break; // closing it frees the rest
                }
                thread::sleep(REST);
            }
        }
    }

    fn next(&self) -> Option<File> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let next = files.as_mut()?.pop_front();
        if next.is_none() {
            *files = None;
        }
        next
    }
}

/// Whether the file system can do without the space for a while: a sixteenth of it is free.
fn has_room(file: &File) -> bool {
    // SAFETY: a zeroed statvfs is a valid value for the kernel to fill.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and memory of the right type.
    let result = unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut found) };
    result == 0 && found.f_bavail >= found.f_blocks / 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_name_goes_at_once_and_the_space_soon() {
        let folder = tempfile::tempdir().expect("made");
        let freeing = Freeing::default();
        let mut watched = Vec::new();
        for number in 0..3_u64 {
            let path = folder.path().join(format!("f{number}"));
            fs::write(&path, vec![1; (SLICE * 3 * number) as usize]).expect("written");
            watched.push(File::open(&path).expect("there"));
            freeing.remove(&path).expect("removed");
            assert!(!path.exists());
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let len = |file: &File| file.metadata().expect("open").len();
        while watched.iter().any(|file| len(file) > SLICE) {
            assert!(Instant::now() < deadline, "{:?}", watched.iter().map(len).collect::<Vec<_>>());
            thread::sleep(REST);
        }
        let missing = freeing.remove(&folder.path().join("f0")).expect_err("gone");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}

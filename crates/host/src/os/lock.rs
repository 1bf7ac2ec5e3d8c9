//! One process per journal directory: the lock prevents the second, epochs only detect it.
//!
//! Decides nothing but who came first. The lock is the kernel's (flock(2) on the file `lock`), held
//! for the life of the process and released by the kernel when the process is gone, however it
//! went; so there is never a stale lock, and the file stays behind on purpose. Never waits: the
//! supervisor kills *and waits* before it starts a successor.
//! Invariant: the descriptor is closed on exec, so a program started by the holder does not keep
//! the lock alive.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the lock file in each journal directory.
pub const LOCK_NAME: &str = "lock";

/// Why a directory could not be locked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "{} is in use by {}: stop that process first (it may be your own application), \
         or choose another directory",
        directory.display(),
        holder_text(*pid)
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The holder, as it wrote itself down; `None` when it has not yet done so.
        pid: Option<u32>,
    },
    /// The lock file cannot be opened or written.
    #[error("cannot lock {}: {source}; is the directory writable for this user?", directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

fn holder_text(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Who holds the lock, as far as it wrote itself down. (An observer does not: then the name is that of
/// somebody who is gone.)
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    // The holder may be about to write; an unreadable name is no reason to say less.
    file.read_to_string(&mut text).ok()?;
    let pid = text.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

/// The lock of one directory; held until it is dropped or the process ends.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _file: File,
}

impl DirectoryLock {
    /// Locks an existing directory for this process.
    ///
    /// # Errors
    /// [`LockError::InUse`] when another holder (also within this process) has it.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable { directory: directory.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK_NAME))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::InUse { directory: directory.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        // Written first and cut afterwards, so that a reader never finds the file empty.
        let text = format!("{}\n", std::process::id());
        file.rewind().and_then(|()| file.write_all(text.as_bytes())).map_err(unusable)?;
        file.set_len(text.len() as u64).map_err(unusable)?;
        Ok(Self { directory: directory.to_owned(), _file: file })
    }

    /// Locks an existing directory without changing a byte of it: for whoever only reads, also on a
    /// read-only file system. `None` when it was never locked, so that nobody can have it.
    ///
    /// # Errors
    /// [`LockError::InUse`] when another holder has it.
    pub fn observe(directory: &Path) -> Result<Option<Self>, LockError> {
        let unusable = |source| LockError::Unusable { directory: directory.to_owned(), source };
        let mut file = match File::open(directory.join(LOCK_NAME)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { directory: directory.to_owned(), _file: file })),
            Err(TryLockError::WouldBlock) => {
                Err(LockError::InUse { directory: directory.to_owned(), pid: holder(&mut file) })
            }
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// The locked directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    const HOLD: &str = "RALLYPOINT_TEST_HOLD_LOCK";

    /// Not a test of its own: the second process of the test below.
    #[test]
    fn child_holds_the_lock() {
        let Some(directory) = std::env::var_os(HOLD) else { return };
        let _lock = DirectoryLock::acquire(Path::new(&directory)).expect("the directory is free");
        println!("\nheld");
        let _ = io::stdin().read(&mut [0]); // until the parent kills us
    }

    fn holder(directory: &Path) -> Child {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "os::lock::tests::child_holds_the_lock", "--nocapture", "--test-threads=1"])
            .env(HOLD, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test program starts again");
        let out = BufReader::new(child.stdout.as_mut().expect("piped"));
        assert!(out.lines().map_while(Result::ok).any(|line| line == "held"));
        child
    }

    #[test]
    fn the_second_process_is_refused_with_the_name_of_the_first() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut child = holder(directory.path());
        let error = DirectoryLock::acquire(directory.path()).expect_err("held by the child");
        assert!(matches!(&error, LockError::InUse { pid: Some(pid), .. } if *pid == child.id()), "{error}");
        assert!(error.to_string().contains(&format!("process {}", child.id())), "{error}");
        child.kill().expect("killed");
        child.wait().expect("ended");
        DirectoryLock::acquire(directory.path()).expect("kill -9 releases the lock");
    }

    #[test]
    fn dropping_releases_and_one_process_cannot_hold_it_twice() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = DirectoryLock::acquire(directory.path()).expect("free");
        assert!(matches!(DirectoryLock::acquire(directory.path()), Err(LockError::InUse { .. })));
        drop(first);
        DirectoryLock::acquire(directory.path()).expect("free again");
    }
}

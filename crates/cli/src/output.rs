//! How every command ends: exit codes, files and JSON.
//!
//! Decides what the three exit codes mean and that a file which a command was asked for is there
//! whole or not at all. Never leaves half a file in the place of a good one; never replaces what is
//! no file (`--balances /dev/stdout`).

use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use thiserror::Error;

/// How a command ended; the same for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and all is well.
    Done = 0,
    /// Done, and a person must look.
    Look = 1,
    /// Not done, and nothing damaged.
    NotDone = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A file or stream that was asked for could not be written.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}; {}", path.display(), advice(source))]
pub(crate) struct OutputError {
    path: PathBuf,
    source: io::Error,
}

/// What somebody can do about `error`.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: make room and try again"
        }
        io::ErrorKind::NotFound => "check the name and that its directory exists",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "choose a place that this user may use"
        }
        io::ErrorKind::IsADirectory => "name a file, not a directory",
        _ => "check the place and its disk",
    }
}

/// Writes the file `path` by `fill`: beside it first, synced, then renamed, so that a crash or a full
/// disk leaves the old file or none. What is no regular file (a pipe, a terminal) is written as it is.
pub(crate) fn write_file(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), OutputError> {
    let failed = |source| OutputError { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
            write_through(file, fill).map(drop).map_err(failed)
        }
        // Follows a link, which a rename would replace.
        Ok(_) => replace(&fs::canonicalize(path).map_err(failed)?, fill).map_err(failed),
        Err(_) => replace(path, fill).map_err(failed),
    }
}

fn write_through(file: File, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    fill(&mut writer)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)
}

fn replace(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = File::create(&beside)
        .and_then(|file| write_through(file, fill))
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to tell; what is left over is named `.new` and does no harm.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// Prints one JSON object on a line of its own.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<(), OutputError> {
    let failed = |source| OutputError { path: PathBuf::from("standard output"), source };
    let mut line = serde_json::to_vec(value).map_err(io::Error::from).map_err(failed)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush()).map_err(failed)
}

/// A number as people read it: `200,000`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{grouped, write_file};
    use std::fs;
    use std::io;
    use std::path::Path;

    #[test]
    fn numbers_are_grouped() {
        let said: Vec<String> = [0, 999, 1_000, 12_345, 1_234_567].map(grouped).into();
        assert_eq!(said, ["0", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_file(&path, |out| {
            out.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let said = failed.unwrap_err().to_string();
        assert!(said.contains("make room"), "{said}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_followed_and_a_device_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, |out| out.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        write_file(Path::new("/dev/null"), |out| out.write_all(b"new")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn a_place_that_is_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_file(folder.path(), |_| Ok(())).is_err());
        let said = write_file(&folder.path().join("no/such"), |_| Ok(())).unwrap_err().to_string();
        assert!(said.contains("its directory exists"), "{said}");
    }
}

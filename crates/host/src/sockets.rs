//! Where the workers of a store listen.

use crate::root::{Root, RootError};
use rallypoint_base::id::DirectoryId;
use std::fs;
use std::path::{Path, PathBuf};

/// The longest path a Unix socket can have is 107 bytes; a store deep in the tree listens elsewhere.
const PATH_MAX: usize = 100;

/// Directory of the sockets of a store.
pub(crate) fn directory(root: &Root) -> PathBuf {
    let beside = root.dir.join("sockets");
    let absolute = std::path::absolute(&beside).unwrap_or(beside);
    if absolute.as_os_str().len() + "/w9999.sock".len() < PATH_MAX {
        return absolute;
    }
    std::env::temp_dir().join(format!("rallypoint-{:016x}", root.store.0))
}

pub(crate) fn worker(sockets: &Path, worker: usize) -> PathBuf {
    sockets.join(format!("w{worker}.sock"))
}

/// Says how many workers there are, for clients in other processes.
pub(crate) fn announce(sockets: &Path, workers: usize) -> Result<(), RootError> {
    use std::os::unix::fs::PermissionsExt;
    let io = |error| RootError::Io { what: "preparing the sockets in", place: sockets.to_owned(), error };
    fs::create_dir_all(sockets).map_err(io)?;
    fs::set_permissions(sockets, fs::Permissions::from_mode(0o700)).map_err(io)?;
    fs::write(sockets.join("workers.part"), workers.to_string()).map_err(io)?;
    fs::rename(sockets.join("workers.part"), sockets.join("workers")).map_err(io)
}

/// How many workers were announced.
pub(crate) fn announced(sockets: &Path) -> Result<usize, RootError> {
    let place = sockets.join("workers");
    let text = fs::read_to_string(&place);
    let text = text.map_err(|error| RootError::Io { what: "reading", place: place.clone(), error })?;
    text.trim()
        .parse()
        .map_err(|_| RootError::Workers(format!("{}: {text:?} is no number of workers", place.display())))
}

/// The worker that serves a directory.
pub(crate) fn worker_of(directory: DirectoryId, workers: usize) -> usize {
    usize::from(directory.0) % workers
}

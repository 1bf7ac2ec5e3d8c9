//! Sagas of a store that this process does not serve.
//!
//! Decides that looking changes nothing: the store is backed up into a private copy, which is opened by
//! a program that performs no step, read and thrown away. Works also while the store is served.

use crate::http::view;
use rallypoint::{Actor, App, Encoded, RootError, Status};
use rallypoint_engine::saga::SagaActor;
use rallypoint_host::store_tools::{self as tools, Progress, ToolError};
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a store could not be looked at.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LookError {
    /// There is no store, or it could not be copied.
    #[error(transparent)]
    Copy(#[from] ToolError),
    /// The copy could not be opened.
    #[error("the copy of the store cannot be opened: {0}")]
    Open(#[from] RootError),
    /// There is no place for the copy.
    #[error("no room for a copy of the store in {}: {error}; set TMPDIR to another place", place.display())]
    Place {
        /// Where it was to be.
        place: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The archive of sagas that have ended is damaged on every copy.
    #[error("the archive of ended sagas cannot be read: {0}; `rallypoint verify` says what is damaged")]
    Archive(String),
    /// No saga ever has this status.
    #[error(
        "{0:?} is no status of a saga: running, waiting, paused, compensating, completed, compensated, stuck or abandoned"
    )]
    NoStatus(String),
    /// There is no such saga.
    #[error("there is no saga of the id {0:?} in this store")]
    NoSuchSaga(String),
}

/// Where a saga stands in the order of a list.
struct Row {
    created: u64,
    id: String,
}

/// What a store holds of sagas, the newest first, as the server shows each.
struct Looked {
    rows: Vec<(Row, Value)>,
    unread: u64,
}

fn look(dir: &Path, mirror: Option<&Path>, progress: &mut dyn Progress) -> Result<Looked, LookError> {
    let folder = std::env::temp_dir().join(format!("rallypoint-look-{}", std::process::id()));
    let place = |error| LookError::Place { place: folder.clone(), error };
    std::fs::create_dir(&folder).map_err(place)?;
    let _removed = Removed(&folder);
    let (backup, copy) = (folder.join("backup"), folder.join("copy"));
    tools::backup(dir, mirror, &backup, true, progress)?;
    tools::restore(&backup, &copy, None, true, progress)?;
    // Bodies run on the runtime that the store is opened in: this one is never run, so that the copy
    // performs no step and asks no function.
    let idle = tokio::runtime::Builder::new_current_thread().build().map_err(place)?;
    let _inside = idle.enter();
    let app = App::define().sagas(rallypoint::Registry::new(())).actor::<crate::catalog::DefinitionActor>();
    let runtime = app.allow_unsuitable_file_system(true).open(&copy)?;
    let mut looked = Looked { rows: Vec::new(), unread: 0 };
    runtime.each_actor(&mut |kind, id, state| {
        if kind != SagaActor::KIND {
            return;
        }
        let actor = Encoded::split(state).and_then(|encoded| encoded.decode::<SagaActor>().ok());
        let Some(actor) = actor else {
            looked.unread += 1;
            return;
        };
        let machine = actor.machine();
        if !machine.is_new() {
            let row = Row { created: machine.created().0, id: id.to_owned() };
            looked.rows.push((row, serde_json::to_value(view::saga(id, machine)).unwrap_or_default()));
        }
    });
    let archived = runtime.each_archived_saga(&mut |id, machine| {
        let row = Row { created: machine.created().0, id: id.to_owned() };
        looked.rows.push((row, serde_json::to_value(view::saga(id, machine)).unwrap_or_default()));
    });
    archived.map_err(LookError::Archive)?;
    looked.rows.sort_by(|(a, _), (b, _)| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(looked)
}

struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // What is left over lies in the directory for temporary files.
        let _ = std::fs::remove_dir_all(self.0);
    }
}

/// The newest `limit` sagas of a store, of a name and a status if given, as the server lists them.
/// Gives also how many there are that this program cannot read.
///
/// # Errors
/// [`LookError`].
pub fn list(
    dir: &Path,
    mirror: Option<&Path>,
    name: Option<&str>,
    status: Option<&str>,
    limit: usize,
    progress: &mut dyn Progress,
) -> Result<(Vec<Value>, u64), LookError> {
    if let Some(status) =
        status.filter(|status| !Status::ALL.iter().any(|known| known.to_string() == **status))
    {
        return Err(LookError::NoStatus(status.to_owned()));
    }
    let looked = look(dir, mirror, progress)?;
    let fits = |saga: &Value| {
        name.is_none_or(|name| saga["name"] == name) && status.is_none_or(|status| saga["status"] == status)
    };
    let sagas = looked.rows.into_iter().map(|(_, saga)| saga).filter(fits).take(limit);
    Ok((sagas.collect(), looked.unread))
}

/// One saga of a store, as the server shows it.
///
/// # Errors
/// [`LookError`].
pub fn show(
    dir: &Path,
    mirror: Option<&Path>,
    id: &str,
    progress: &mut dyn Progress,
) -> Result<Value, LookError> {
    let looked = look(dir, mirror, progress)?;
    let found = looked.rows.into_iter().find(|(row, _)| row.id == id);
    found.map(|(_, saga)| saga).ok_or_else(|| LookError::NoSuchSaga(id.to_owned()))
}

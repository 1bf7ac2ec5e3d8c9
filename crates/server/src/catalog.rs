//! The definitions that a server knows: kept durably, found in memory.
//!
//! Decides that a version is one definition for ever: another text under the same name and version
//! is refused, so that a saga goes on with what it began with. Never forgets a version.
//!
//! Order at start: the store is opened, `Catalog::load` reads what it holds, and only with
//! `Catalog::release` is any name found. A saga that goes on earlier waits for that, instead of being told that its definition
//! does not exist.

use crate::definition::Definition;
use crate::finding::Finding;
use rallypoint::{Actor, AskError, Client, Cx, Encoded, Runtime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Longest text of a definition.
pub const TEXT_BYTES: usize = 256 << 10;
/// All versions of one name together: an actor of the store holds no more.
const NAME_TEXT_BYTES: usize = 960 << 10;

/// One version as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    digest: u64,
    /// As it was put.
    text: String,
}

/// All versions of a name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DefinitionActor {
    versions: BTreeMap<u32, Kept>,
}

/// A version that is put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Put {
    version: u32,
    digest: u64,
    text: String,
}

/// Why a version is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NotPut {
    /// It is there with another content.
    Taken,
    /// The name has too many versions.
    Full,
}

impl Actor for DefinitionActor {
    const KIND: &'static str = "rallypoint.definition";
    type Message = Put;
    /// True when it is new.
    type Reply = bool;
    type Error = NotPut;

    fn handle(&mut self, put: Put, _cx: &mut Cx<'_>) -> Result<bool, NotPut> {
        match self.versions.get(&put.version) {
            Some(kept) if kept.digest == put.digest => Ok(false),
            Some(_) => Err(NotPut::Taken),
            None => {
                let held: usize = self.versions.values().map(|kept| kept.text.len()).sum();
                if held + put.text.len() > NAME_TEXT_BYTES {
                    return Err(NotPut::Full);
                }
                self.versions.insert(put.version, Kept { digest: put.digest, text: put.text });
                Ok(true)
            }
        }
    }
}

/// Why a definition was not taken. Nothing changed, unless it says that this is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PutError {
    /// It is no definition.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Finding>),
    /// It names itself otherwise than the place it is put to.
    #[error("the definition is named {found:?}, not {wanted:?}: put it under its own name")]
    OtherName {
        /// Its own name.
        found: String,
        /// Where it was put.
        wanted: String,
    },
    /// The version is there with another content.
    #[error(
        "version {version} of {name:?} is there with another content: give the changed definition a \
         higher version (sagas that began with the old one go on with it)"
    )]
    Taken {
        /// Its name.
        name: String,
        /// Its version.
        version: u32,
    },
    /// It is too long, or its name has too many versions.
    #[error("{0}")]
    Full(String),
    /// The store's door turned it away: nothing changed.
    #[error("the store has too much to do: {0}")]
    Busy(String),
    /// The store gave no answer: whether it was taken is unknown; putting it again is safe.
    #[error("the store could not take the definition: {0}")]
    Store(String),
}

/// A definition that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Digest of what it says.
    pub digest: u64,
    /// It was not there before.
    pub is_new: bool,
}

#[derive(Default)]
struct State {
    loaded: bool,
    names: BTreeMap<String, BTreeMap<u32, Arc<Definition>>>,
}

/// All definitions, in memory.
#[derive(Default)]
pub struct Catalog {
    state: Mutex<State>,
    loaded: Condvar,
}

impl Catalog {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the store holds. Gives what cannot be read by this program.
    pub(crate) fn load(&self, runtime: &Runtime) -> Vec<String> {
        let mut unread = Vec::new();
        let mut found: Vec<(String, u32, Kept)> = Vec::new();
        runtime.each_actor(&mut |kind, name, state| {
            if kind != DefinitionActor::KIND {
                return;
            }
            match Encoded::split(state).map(|encoded| encoded.decode::<DefinitionActor>()) {
                Some(Ok(actor)) => {
                    let versions = actor.versions.into_iter();
                    found.extend(versions.map(|(version, kept)| (name.to_owned(), version, kept)));
                }
                Some(Err(error)) => unread.push(format!("definition {name:?}: {error}")),
                None => unread.push(format!("definition {name:?}: its state has no codec")),
            }
        });
        for (name, version, kept) in found {
            match read(&kept.text, &name) {
                Ok(definition) => self.insert(Arc::new(definition)),
                Err(findings) => {
                    let why = findings.first().map(ToString::to_string).unwrap_or_default();
                    unread.push(format!("definition {name:?} version {version}: {why}"));
                }
            }
        }
        unread
    }

    /// From now on names are found, and no name is waited for.
    pub(crate) fn release(&self) {
        self.lock().loaded = true;
        self.loaded.notify_all();
    }

    fn insert(&self, definition: Arc<Definition>) {
        let mut state = self.lock();
        let versions = state.names.entry(definition.name().to_owned()).or_default();
        versions.insert(definition.version(), definition);
    }

    /// The definition of a name: this version, or the newest.
    pub(crate) fn find(&self, name: &str, version: Option<u32>) -> Option<Arc<Definition>> {
        let mut state = self.lock();
        while !state.loaded {
            state = self.loaded.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let versions = state.names.get(name)?;
        match version {
            Some(version) => versions.get(&version).cloned(),
            None => versions.values().next_back().cloned(),
        }
    }

    /// Every version of every name.
    pub(crate) fn all(&self) -> BTreeMap<String, Vec<Known>> {
        let state = self.lock();
        let known = |definition: &Arc<Definition>| Known {
            name: definition.name().to_owned(),
            version: definition.version(),
            digest: definition.digest(),
            is_new: false,
        };
        let names = state.names.iter();
        names.map(|(name, versions)| (name.clone(), versions.values().map(known).collect())).collect()
    }

    /// Takes a definition, durably. `place` is what its findings name; `name` what it must be called.
    pub(crate) async fn put(
        &self,
        client: &Arc<Client>,
        text: &str,
        place: &str,
        name: Option<&str>,
    ) -> Result<Known, PutError> {
        if text.len() > TEXT_BYTES {
            return Err(PutError::Full(format!(
                "the definition has more than {TEXT_BYTES} bytes, which are not kept: split it into several sagas"
            )));
        }
        // Templates are tried out, which may take long: nobody else waits for it.
        let (owned, at) = (text.to_owned(), place.to_owned());
        let read = tokio::task::spawn_blocking(move || read(&owned, &at)).await;
        let definition =
            read.map_err(|error| PutError::Store(error.to_string()))?.map_err(PutError::Invalid)?;
        if let Some(wanted) = name.filter(|name| *name != definition.name()) {
            let found = definition.name().to_owned();
            return Err(PutError::OtherName { found, wanted: wanted.to_owned() });
        }
        let (name, version, digest) =
            (definition.name().to_owned(), definition.version(), definition.digest());
        let put = Put { version, digest, text: text.to_owned() };
        match client.ask::<DefinitionActor>(&name, &put).await {
            Ok(is_new) => {
                self.insert(Arc::new(definition));
                Ok(Known { name, version, digest, is_new })
            }
            Err(AskError::Refused(NotPut::Taken)) => Err(PutError::Taken { name, version }),
            Err(AskError::Refused(NotPut::Full)) => Err(PutError::Full(format!(
                "the versions of {name:?} have {NAME_TEXT_BYTES} bytes together, no more are kept: put it \
                 under another name"
            ))),
            Err(AskError::Turned(turned)) => Err(PutError::Busy(turned.to_string())),
            Err(error) => Err(PutError::Store(error.to_string())),
        }
    }
}

/// Definition files of a folder: `.yaml`, `.yml` and `.json`, in the order of their names.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let fits = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
        // A link that leads nowhere is an error, not a definition less.
        if fits && std::fs::metadata(&path)?.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What a file holds, or the beginning of it that is too long already.
///
/// # Errors
/// It cannot be read, or is no UTF-8.
pub(crate) fn text_of(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(file)?.take(TEXT_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let is_whole = bytes.len() <= TEXT_BYTES;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        // Where it was cut, half a character may stand.
        Err(error) if !is_whole => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8")),
    }
}

/// Reads a definition.
fn read(text: &str, place: &str) -> Result<Definition, Vec<Finding>> {
    Definition::parse(text, place)
}

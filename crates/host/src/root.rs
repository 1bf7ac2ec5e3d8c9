//! The root of a store: which journal directories there are, and whose they are.
//!
//! Decides whether a directory is a store, a new one, or not ours. Never removes what it did not
//! make: a creation that was cut short is told by its marker, and only then begun anew.
//!
//! ```text
//! DIR/rallypoint.store      marker, written last: format, store id, directories
//! DIR/rallypoint.creating   written first, removed last: until then nothing was ever acknowledged;
//!                           locked by whoever creates
//! DIR/j0, DIR/j1, ..        journal directories
//! ```

use crate::os::file_disk::{DiskWarning, create_directory, mirror_warning, place_warning};
use crate::os::lock::LockError;
use rallypoint_base::id::{DirectoryId, Lineage, StoreId};
use rallypoint_base::limits::SAGA_SEGMENT_BYTES;
use rallypoint_engine::map::{Map, MapError};
use rallypoint_engine::unit::OpenError;
use rallypoint_store::superblock;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

const MARKER: &str = "rallypoint.store";
const CREATING: &str = "rallypoint.creating";
const FORMAT: u32 = 1;

/// Why a store could not be opened. Nothing was changed, except where the text says so.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootError {
    /// Something else is in the directory.
    #[error("{place} is not a rallypoint store and not empty (it holds {found}): name another directory")]
    NotOurs {
        /// The directory.
        place: PathBuf,
        /// Something in it.
        found: String,
    },
    /// There is no store, and none was to be made.
    #[error("there is no store in {place}")]
    Missing {
        /// The directory.
        place: PathBuf,
    },
    /// A copy of a journal directory is not where it was.
    #[error("{place} is missing: {advice}")]
    DirectoryMissing {
        /// The journal directory.
        place: PathBuf,
        /// What to do.
        advice: &'static str,
    },
    /// The marker is damaged or of another release.
    #[error("{place}: the marker says {found:?}; it needs the release that wrote it, or a backup")]
    Marker {
        /// The marker file.
        place: PathBuf,
        /// Its content.
        found: String,
    },
    /// The mirror belongs to another store.
    #[error("{mirror} belongs to another store than {place}: name the right mirror")]
    Foreign {
        /// The store.
        place: PathBuf,
        /// The mirror.
        mirror: PathBuf,
    },
    /// The log segments would be too short for what sagas may write.
    #[error(
        "log segments of {0} bytes are too short for sagas: give them at least {SAGA_SEGMENT_BYTES} bytes"
    )]
    SmallSegments(u64),
    /// The number of directories or partitions is not possible.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Files could not be read or written.
    #[error("{what} {place}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        place: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// In use.
    #[error(transparent)]
    Lock(LockError),
    /// The file system or the disk.
    #[error("{0}")]
    Disk(String),
    /// The running page.
    #[error("the running page cannot be mapped: {0}")]
    RunningPage(io::Error),
    /// Store, checkpoints or replay.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No thread could be started.
    #[error("no thread could be started: {0}")]
    Thread(io::Error),
    /// A recovery thread panicked: a bug of ours.
    #[error("recovery panicked: this is a bug in rallypoint; the store was not changed further")]
    Panicked,
    /// The supervisor or its workers.
    #[error("{0}")]
    Workers(String),
}

/// A store's root.
#[derive(Clone, Debug)]
pub struct Root {
    /// First copy.
    pub dir: PathBuf,
    /// Second copy.
    pub mirror: Option<PathBuf>,
    /// Identity.
    pub store: StoreId,
    /// History.
    pub lineage: Lineage,
    /// The map.
    pub map: Arc<Map>,
    /// The journal directories are empty and are to be created.
    pub is_new: bool,
    /// Held while they are: of two processes that begin at once, one does.
    _creating: Vec<Arc<File>>,
}

fn random64(salt: u64) -> u64 {
    RandomState::new().hash_one((salt, std::process::id(), std::time::SystemTime::now()))
}

fn io_error(what: &'static str, place: &Path) -> impl FnOnce(io::Error) -> RootError {
    let place = place.to_owned();
    move |error| RootError::Io { what, place, error }
}

fn write_synced(path: &Path, content: &str) -> Result<(), RootError> {
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(io_error("creating", &part))?;
    file.write_all(content.as_bytes()).map_err(io_error("writing", &part))?;
    file.sync_all().map_err(io_error("syncing", &part))?;
    fs::rename(&part, path).map_err(io_error("renaming", &part))?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

fn sync_directory(path: &Path) -> Result<(), RootError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("syncing", path))
}

struct Marker {
    store: u64,
    map: Vec<u8>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect()
}

fn title() -> String {
    format!("rallypoint store format {FORMAT}")
}

/// Claims an empty (or half made) directory for this process: whoever holds the lock on the sign may
/// remove what lies there.
fn begin_creation(place: &Path) -> Result<Arc<File>, RootError> {
    create_directory(place).map_err(io_error("creating", place))?;
    let creating = place.join(CREATING);
    if !creating.exists() {
        for entry in fs::read_dir(place).map_err(io_error("listing", place))? {
            let found = entry.map_err(io_error("listing", place))?.file_name();
            // Another process may have come this far at the same time, or further.
            let begun = || creating.exists() || place.join(MARKER).exists();
            if found != CREATING && found != MARKER && !begun() {
                let found = found.to_string_lossy().into_owned();
                return Err(RootError::NotOurs { place: place.to_owned(), found });
            }
        }
    }
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&creating);
    let mut file = open.map_err(io_error("creating", &creating))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = file.read_to_string(&mut text).ok();
            let pid = read.and_then(|_| text.rsplit(' ').next()?.trim().parse().ok());
            return Err(RootError::Lock(LockError::InUse { directory: place.to_owned(), pid }));
        }
        Err(TryLockError::Error(error)) => return Err(io_error("locking", &creating)(error)),
    }
    let text = format!("a store is being created here by process {}\n", std::process::id());
    let written =
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
    written.map_err(io_error("writing", &creating))?;
    sync_directory(place)?;
    Ok(Arc::new(file))
}

/// The first copy has its marker and the mirror has only the sign of its creation: that was cut short
/// between the two. Everything in the mirror counts, so it must not be taken for half made when the
/// first disk is lost one day.
fn finish_mirror(dir: &Path, mirror: &Path, marker: &Marker) -> Result<(), RootError> {
    let creating = mirror.join(CREATING);
    if !creating.exists() || read_marker(dir)?.is_none() {
        return Ok(());
    }
    let file = match File::open(&creating) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("reading", &creating)(error)),
    };
    if file.try_lock().is_err() {
        return Ok(()); // whoever creates it lives and is about to finish
    }
    if read_marker(mirror)?.is_none() {
        let text = format!("{}\nid {:016x}\nmap {}\n", title(), marker.store, hex(&marker.map));
        write_synced(&mirror.join(MARKER), &text)?;
    }
    match fs::remove_file(&creating) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", &creating)(error)),
        _ => Ok(()),
    }
}

fn read_marker(dir: &Path) -> Result<Option<Marker>, RootError> {
    read_titled(&dir.join(MARKER), &title())
}

/// Reads a marker of another title: store and map. `None` when there is none.
pub(crate) fn read_identity(place: &Path, title: &str) -> Result<Option<(StoreId, Map)>, RootError> {
    let Some(marker) = read_titled(place, title)? else { return Ok(None) };
    let map = Map::decode(&marker.map)
        .map_err(|_| RootError::Marker { place: place.to_owned(), found: "a damaged map".into() })?;
    Ok(Some((StoreId(marker.store), map)))
}

/// Writes what [`read_identity`] reads, durably.
pub(crate) fn write_identity(place: &Path, title: &str, store: StoreId, map: &Map) -> Result<(), RootError> {
    write_synced(place, &format!("{title}\nid {:016x}\nmap {}\n", store.0, hex(&map.encode())))
}

fn read_titled(place: &Path, title: &str) -> Result<Option<Marker>, RootError> {
    let place = place.to_owned();
    let text = match fs::read(&place) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("reading", &place)(error)),
    };
    let parse = || -> Option<Marker> {
        let mut lines = text.lines();
        let titled = lines.next()? == title;
        let store = u64::from_str_radix(lines.next()?.strip_prefix("id ")?, 16).ok()?;
        let map = unhex(lines.next()?.strip_prefix("map ")?)?;
        titled.then_some(Marker { store, map })
    };
    let shown: String = text.chars().take(80).collect();
    parse().map(Some).ok_or(RootError::Marker { place, found: shown })
}

/// What a survey found wrong with the markers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkerTrouble {
    /// The copy of the root that it stands in.
    pub place: PathBuf,
    /// What is wrong.
    pub what: &'static str,
}

impl Root {
    /// Finds a store whose markers may be damaged or missing: identity and map stand in each
    /// superblock too. For tools that repair; nothing is changed.
    ///
    /// # Errors
    /// [`RootError`] when there is no store, or the two are not one.
    pub fn survey(dir: &Path, mirror: Option<&Path>) -> Result<(Self, Vec<MarkerTrouble>), RootError> {
        let mut best: Option<(StoreId, Map)> = None;
        let (mut troubles, mut damaged) = (Vec::new(), None);
        let places: Vec<&Path> = [Some(dir), mirror].into_iter().flatten().collect();
        for &place in &places {
            let marker = match read_marker(place) {
                Ok(marker) => marker,
                Err(error @ RootError::Marker { .. }) => {
                    troubles.push(MarkerTrouble { place: place.to_owned(), what: "the marker is damaged" });
                    damaged = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(marker) = marker else {
                troubles.push(MarkerTrouble { place: place.to_owned(), what: "the marker is missing" });
                continue;
            };
            let Ok(map) = Map::decode(&marker.map) else {
                troubles.push(MarkerTrouble {
                    place: place.to_owned(),
                    what: "the map in the marker is damaged",
                });
                continue;
            };
            if best.as_ref().is_some_and(|(store, _)| *store != StoreId(marker.store)) {
                return Err(RootError::Foreign { place: dir.to_owned(), mirror: place.to_owned() });
            }
            best.get_or_insert((StoreId(marker.store), map));
        }
        if best.is_none() {
            best = places.iter().find_map(|place| from_superblocks(place));
        }
        let Some((store, map)) = best else {
            return Err(damaged.unwrap_or(RootError::Missing { place: dir.to_owned() }));
        };
        let root = Self {
            dir: dir.to_owned(),
            mirror: mirror.map(Path::to_owned),
            store,
            lineage: Lineage(0),
            map: Arc::new(map),
            is_new: false,
            _creating: Vec::new(),
        };
        Ok((root, troubles))
    }

    /// Begins a store of a known identity and map in an absent or empty directory (for a restore).
    ///
    /// # Errors
    /// [`RootError`]; nothing that was there is changed.
    pub fn begin(dir: &Path, mirror: Option<&Path>, store: StoreId, map: Map) -> Result<Self, RootError> {
        let places = || [Some(dir), mirror].into_iter().flatten();
        let creating = places().map(begin_creation).collect::<Result<Vec<_>, _>>()?;
        if let Some(made) = places().find(|place| place.join(MARKER).exists()) {
            // By another process, between the look at the marker and the lock.
            return Err(RootError::NotOurs { place: made.to_owned(), found: MARKER.into() });
        }
        for place in places() {
            Self::prepare(place, map.directory_count())?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            mirror: mirror.map(Path::to_owned),
            store,
            lineage: Lineage(random64(3)),
            map: Arc::new(map),
            is_new: true,
            _creating: creating,
        })
    }

    /// Writes the marker of one copy (again).
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn write_marker(&self, place: &Path) -> Result<(), RootError> {
        write_identity(&place.join(MARKER), &title(), self.store, &self.map)
    }

    /// Finds a store, or begins a new one where `create` gives the counts of partitions and
    /// directories and the directory is empty or absent.
    ///
    /// # Errors
    /// [`RootError`]; nothing was changed.
    pub fn find(
        dir: &Path,
        mirror: Option<&Path>,
        create: Option<(usize, usize)>,
    ) -> Result<Self, RootError> {
        let marker = match read_marker(dir)? {
            Some(marker) => Some(marker),
            // The first disk may be the one that was lost.
            None => mirror.map(read_marker).transpose()?.flatten(),
        };
        if let Some(marker) = marker {
            if let (Some(mirror), Some(_)) = (mirror, create) {
                finish_mirror(dir, mirror, &marker)?;
            }
            if let Some(mirror) = mirror
                && let Some(other) = read_marker(mirror)?
                && other.store != marker.store
            {
                return Err(RootError::Foreign { place: dir.to_owned(), mirror: mirror.to_owned() });
            }
            let map = Map::decode(&marker.map)
                .map_err(|_| RootError::Marker { place: dir.join(MARKER), found: "a damaged map".into() })?;
            return Ok(Self {
                dir: dir.to_owned(),
                mirror: mirror.map(Path::to_owned),
                store: StoreId(marker.store),
                lineage: Lineage(0),
                map: Arc::new(map),
                is_new: false,
                _creating: Vec::new(),
            });
        }
        let Some((partitions, directories)) = create else {
            return Err(RootError::Missing { place: dir.to_owned() });
        };
        let map = Map::even(partitions, directories, random64(1))?;
        match Self::begin(dir, mirror, StoreId(random64(2)), map) {
            Err(RootError::NotOurs { found, .. }) if found == MARKER => Self::find(dir, mirror, create),
            begun => begun,
        }
    }

    /// Makes the empty journal directories of one copy, whose creation this process has begun.
    fn prepare(place: &Path, directories: usize) -> Result<(), RootError> {
        // One that was cut short before the marker: nothing in it was ever acknowledged.
        for entry in fs::read_dir(place).map_err(io_error("listing", place))? {
            let path = entry.map_err(io_error("listing", place))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && is_journal_name(name) {
                fs::remove_dir_all(&path).map_err(io_error("removing", &path))?;
            }
        }
        for directory in 0..directories {
            let path = place.join(format!("j{directory}"));
            create_directory(&path).map_err(io_error("creating", &path))?;
        }
        sync_directory(place)
    }

    /// All directories are created: from now on this is a store.
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn finish_creation(&self) -> Result<(), RootError> {
        for place in [Some(&self.dir), self.mirror.as_ref()].into_iter().flatten() {
            self.write_marker(place)?;
            let creating = place.join(CREATING);
            fs::remove_file(&creating).map_err(io_error("removing", &creating))?;
        }
        Ok(())
    }

    /// Says which copy of a journal directory is not there, and what to do.
    ///
    /// # Errors
    /// [`RootError::DirectoryMissing`].
    pub fn check_copies(&self, directory: DirectoryId, degraded: bool) -> Result<(), RootError> {
        let copies = self.copies_of(directory).count();
        let mut missing: Vec<PathBuf> = self.copies_of(directory).filter(|path| !path.exists()).collect();
        if missing.is_empty() || degraded && missing.len() < copies {
            return Ok(());
        }
        let advice = if missing.len() < copies {
            "if its disk is only not mounted, mount it; if it is lost, open degraded, which serves from the \
             other copy, or make it anew with `mend`"
        } else {
            "put it back where it was, or restore a backup"
        };
        Err(RootError::DirectoryMissing { place: missing.remove(0), advice })
    }

    /// The copies of a journal directory, in order.
    pub fn copies_of(&self, directory: DirectoryId) -> impl Iterator<Item = PathBuf> + '_ {
        let name = directory.to_string();
        [Some(&self.dir), self.mirror.as_ref()].into_iter().flatten().map(move |place| place.join(&name))
    }

    /// What the owner of this store should know about the disks it lies on and may decide to live
    /// with: a file system in memory, a mirror on the same disk.
    #[must_use]
    pub fn warnings(&self) -> Vec<DiskWarning> {
        let places = [Some(&self.dir), self.mirror.as_ref()].into_iter().flatten();
        let mut warnings: Vec<DiskWarning> =
            places.filter_map(|place| place_warning(place).ok().flatten()).collect();
        if let Some(mirror) = &self.mirror {
            // One that cannot be looked at was opened, or is told of as missing.
            warnings.extend(mirror_warning(&self.dir, mirror).ok().flatten());
        }
        warnings
    }

    /// Where a directory's running page lies: beside the first copy that exists.
    #[must_use]
    pub fn running_page(&self, directory: DirectoryId) -> PathBuf {
        let copies: Vec<PathBuf> = self.copies_of(directory).collect();
        let place = copies.iter().find(|path| path.exists()).unwrap_or(&copies[0]);
        place.join(crate::os::running_page::RUNNING_NAME)
    }
}

/// Identity and map as the first readable superblock has them.
fn from_superblocks(place: &Path) -> Option<(StoreId, Map)> {
    if place.join(CREATING).exists() {
        return None; // never finished being created
    }
    let mut names: Vec<PathBuf> = fs::read_dir(place)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_journal_name))
        .collect();
    names.sort();
    names.iter().find_map(|path| {
        let bytes = fs::read(path.join(superblock::FILE)).ok()?;
        let best = superblock::judge(&bytes).ok()?.best.ok()?;
        Some((best.store, Map::decode(&best.meta).ok()?))
    })
}

fn is_journal_name(name: &str) -> bool {
    name.strip_prefix('j')
        .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

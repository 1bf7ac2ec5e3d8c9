//! Starting a program under the recorder, or with one failing write or sync.
//!
//! Decides only the environment of the started program. Never records its own process.

use crate::record::{ENV_DIR, ENV_FAIL_NAME, ENV_FAIL_SYNC, ENV_FAIL_WRITE, ENV_LEDGER, ENV_OUT};
use crate::recording::Recording;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to preload into a program, and with which settings.
#[derive(Clone, Debug)]
pub struct Preload {
    library: PathBuf,
    directory: PathBuf,
    out: Option<PathBuf>,
    settings: Vec<(&'static str, String)>,
}

impl Preload {
    /// For files below `directory`, which is made when missing.
    ///
    /// # Errors
    /// The library cannot be built, or the directory not be made.
    pub fn new(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let directory = fs::canonicalize(directory)?;
        Ok(Self { library: library()?, directory, out: None, settings: Vec::new() })
    }

    /// Records into `out`, which must not lie below the recorded directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn record(mut self, out: &Path) -> io::Result<Self> {
        fs::create_dir_all(out)?;
        self.out = Some(fs::canonicalize(out)?);
        Ok(self)
    }

    /// Records what is written to this file outside of the directory as the ledger.
    #[must_use]
    pub fn ledger(self, path: &Path) -> Self {
        self.with(ENV_LEDGER, path.display().to_string())
    }

    /// Lets the nth write (from 1) fail with this error number.
    #[must_use]
    pub fn fail_write(self, nth: u64, errno: i32) -> Self {
        self.with(ENV_FAIL_WRITE, format!("{nth},{errno}"))
    }

    /// Lets the nth sync (from 1) fail with this error number. A durable write is a write.
    #[must_use]
    pub fn fail_sync(self, nth: u64, errno: i32) -> Self {
        self.with(ENV_FAIL_SYNC, format!("{nth},{errno}"))
    }

    /// Counts and fails only on files whose path contains this.
    #[must_use]
    pub fn fail_name(self, part: &str) -> Self {
        self.with(ENV_FAIL_NAME, part.to_owned())
    }

    fn with(mut self, name: &'static str, value: String) -> Self {
        self.settings.push((name, value));
        self
    }

    /// Sets a command's environment, which the processes that it starts inherit.
    pub fn apply<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_PRELOAD", &self.library).env(ENV_DIR, &self.directory);
        if let Some(out) = &self.out {
            command.env(ENV_OUT, out);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)))
    }

    /// Reads what was recorded.
    ///
    /// # Errors
    /// Nothing is being recorded, or the records are damaged.
    pub fn recording(&self) -> io::Result<Recording> {
        let out = self.out.as_ref().ok_or_else(|| io::Error::other("no directory for records was given"))?;
        Recording::load(out, &self.directory)
    }
}

const LIBRARY: &str = "librallypoint_preload.so";

/// The library to preload: beside the running program's build if it is there, else it is built.
/// (`cargo test` of the workspace builds it; `cargo test --package` of another crate does not.)
///
/// # Errors
/// It is not there and cannot be built.
pub fn library() -> io::Result<PathBuf> {
    if let Some(path) = env::var_os("RALLYPOINT_PRELOAD") {
        return Ok(path.into());
    }
    // target/debug/deps/program or target/debug/program
    let program = env::current_exe()?;
    let profile = program
        .ancestors()
        .skip(1)
        .find(|folder| {
            !matches!(folder.file_name().and_then(|name| name.to_str()), Some("deps" | "examples"))
        })
        .ok_or_else(|| io::Error::other("the program lies in no folder"))?;
    let path = profile.join("examples").join(LIBRARY);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--offline", "--package", "rallypoint-recorder"])
        .args(["--example", "rallypoint_preload", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .args(profile.parent().into_iter().flat_map(|target| [Path::new("--target-dir"), target]));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    // Also when it is there: cargo knows whether it is still the newest.
    let built = build.status().is_ok_and(|status| status.success());
    if path.exists() {
        return Ok(path);
    }
    let why = if built { "cargo built it elsewhere" } else { "cargo cannot build it" };
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{}: {why}", path.display())))
}

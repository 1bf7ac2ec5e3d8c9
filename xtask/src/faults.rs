//! Damage, failing writes and a full disk under the shipped binary, on a real file system.
//!
//! Run by hand: it needs root and loop devices. Each scenario gets an ext4 file system of its own on a
//! loop device, runs `rallypoint demo` (the release binary) on it, makes it fail, and looks at what
//! the command says. Files are damaged as by a disk that rots; writes fail through the preloaded
//! library of `crates/recorder`; the disk is full because the file system is small.

use crate::Outcome;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One way to make a real disk fail, and what the shipped binary must do about it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Runs it; the error says what was expected and what happened.
    pub(crate) run: fn(&Path) -> Result<(), String>,
}

/// In the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a flipped bit in a mirrored store is named, and mended", run: flipped_bit_mirrored },
    Scenario { name: "a flipped bit without a mirror is named, and never invented", run: flipped_bit_alone },
    Scenario { name: "a failing write drops that copy, and the run goes on", run: failing_write_mirrored },
    Scenario {
        name: "a failing write without a mirror stops the run, and a new start finishes it",
        run: failing_write_alone,
    },
    Scenario { name: "a full disk stops the run, and space lets it finish", run: full_disk },
];

pub(crate) fn command(root: &Path, arguments: &[String]) -> Outcome {
    if let Some(argument) = arguments.first() {
        return Outcome::Misused(format!("faults takes no argument, not `{argument}`"));
    }
    if SCENARIOS.is_empty() {
        return Outcome::Misused("no fault scenario is in this release".to_owned());
    }
    let missing = missing_prerequisites();
    if !missing.is_empty() {
        return Outcome::Misused(format!(
            "the faults need root and loop devices; missing: {}",
            missing.join(", ")
        ));
    }
    let mut failed = 0;
    for scenario in SCENARIOS {
        match (scenario.run)(root) {
            Ok(()) => println!("{}: as promised", scenario.name),
            Err(message) => {
                println!("{}: FAILED: {message}", scenario.name);
                failed += 1;
            }
        }
    }
    println!("{} passed, {failed} failed", SCENARIOS.len() - failed);
    if failed == 0 { Outcome::Passed } else { Outcome::Failed }
}

/// What this machine lacks. Looks only; changes nothing.
fn missing_prerequisites() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status
        .lines()
        .any(|line| line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0")));
    let mut missing = Vec::new();
    for (present, what) in [(root, "root"), (Path::new("/dev/loop-control").exists(), "/dev/loop-control")] {
        if !present {
            missing.push(what);
        }
    }
    missing
}

/// A file system of its own on a loop device; unmounted and removed when dropped.
struct Volume {
    image: PathBuf,
    mount: PathBuf,
}

impl Volume {
    fn new(root: &Path, name: &str, mebibytes: u64) -> Result<Self, String> {
        let base = root.join("target").join("faults");
        std::fs::create_dir_all(&base).map_err(|error| error.to_string())?;
        let volume = Self { image: base.join(format!("{name}.img")), mount: base.join(name) };
        let _ = std::fs::remove_file(&volume.image);
        std::fs::create_dir_all(&volume.mount).map_err(|error| error.to_string())?;
        let file = std::fs::File::create(&volume.image).map_err(|error| error.to_string())?;
        file.set_len(mebibytes << 20).map_err(|error| error.to_string())?;
        let text = |path: &Path| path.display().to_string();
        sh("mkfs.ext4", &["-q", "-m", "0", &text(&volume.image)])?;
        sh("mount", &["-o", "loop", &text(&volume.image), &text(&volume.mount)])?;
        Ok(volume)
    }

    fn at(&self, name: &str) -> String {
        self.mount.join(name).display().to_string()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = sh("umount", &["-l", &self.mount.display().to_string()]);
        let _ = std::fs::remove_file(&self.image);
    }
}

fn sh(program: &str, arguments: &[&str]) -> Result<(), String> {
    let status = Command::new(program).args(arguments).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} {}: {status}", arguments.join(" "))),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// The shipped binary, built once.
fn binary(root: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    sh(&cargo, &["build", "--quiet", "--release", "--package", "rallypoint-cli"])?;
    sh(&cargo, &["build", "--quiet", "--package", "rallypoint-recorder", "--example", "rallypoint_preload"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/rallypoint"))
}

fn preload(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    target.join("debug/examples/librallypoint_preload.so")
}

/// Runs the binary; its exit code, and everything it said.
fn run(
    root: &Path,
    arguments: &[&str],
    environment: &[(&str, String)],
) -> Result<(Option<i32>, String), String> {
    let mut command = Command::new(binary(root)?);
    command.args(arguments);
    for (name, value) in environment {
        command.env(name, value);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), said))
}

fn expect(
    root: &Path,
    arguments: &[&str],
    environment: &[(&str, String)],
    code: i32,
) -> Result<String, String> {
    let (found, said) = run(root, arguments, environment)?;
    if found == Some(code) {
        return Ok(said);
    }
    Err(format!("`rallypoint {}` ended with {found:?} instead of {code}: {said}", arguments.join(" ")))
}

fn small_demo<'a>(dir: &'a str, mirror: Option<&'a str>) -> Vec<&'a str> {
    let mut arguments = vec!["demo", "--dir", dir, "--workers", "1", "--transfers", "100000"];
    arguments.extend(["--kill-every", "0", "--json"]);
    arguments.extend(mirror.iter().flat_map(|mirror| ["--mirror", mirror]));
    arguments
}

/// The same with segments that are filled with one write each, so that the writes can be counted.
fn small_segments<'a>(dir: &'a str, mirror: Option<&'a str>) -> Vec<&'a str> {
    let mut arguments = small_demo(dir, mirror);
    arguments.extend(["--segment-bytes", "1048576"]);
    arguments
}

/// Flips one bit half way through what is written of the first journal segment.
fn flip(dir: &str) -> Result<(), String> {
    let journal = Path::new(dir).join("j0");
    let mut segments: Vec<PathBuf> = std::fs::read_dir(&journal)
        .map_err(|error| error.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seg-")))
        .collect();
    segments.sort();
    let path = segments.first().ok_or("there is no segment")?;
    let mut bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let used = bytes.iter().rposition(|&byte| byte != 0).ok_or("the first segment is empty")?;
    bytes[used / 2] ^= 4;
    std::fs::write(path, bytes).map_err(|error| error.to_string())
}

fn flipped_bit_mirrored(root: &Path) -> Result<(), String> {
    let volume = Volume::new(root, "flip-mirrored", 700)?;
    let (dir, mirror) = (volume.at("store"), volume.at("mirror"));
    expect(root, &small_demo(&dir, Some(&mirror)), &[], 0)?;
    flip(&dir)?;
    expect(root, &["verify", &dir, "--mirror", &mirror], &[], 1)?;
    expect(root, &["mend", &dir, "--mirror", &mirror], &[], 0)?;
    expect(root, &["verify", &dir, "--mirror", &mirror], &[], 0).map(drop)
}

fn flipped_bit_alone(root: &Path) -> Result<(), String> {
    let volume = Volume::new(root, "flip-alone", 400)?;
    let dir = volume.at("store");
    expect(root, &small_demo(&dir, None), &[], 0)?;
    flip(&dir)?;
    expect(root, &["verify", &dir], &[], 1)?;
    expect(root, &["mend", &dir], &[], 1)?;
    expect(root, &["verify", &dir], &[], 1).map(drop)
}

/// EIO for the nth write to a segment below `only`.
fn failing(root: &Path, below: &Path, only: &str, nth: u32) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", preload(root).display().to_string()),
        ("RALLYPOINT_RECORD_DIR", below.display().to_string()),
        ("RALLYPOINT_FAIL_NAME", only.to_owned()),
        ("RALLYPOINT_FAIL_WRITE", format!("{nth},5")),
    ]
}

fn failing_write_mirrored(root: &Path) -> Result<(), String> {
    let volume = Volume::new(root, "eio-mirrored", 700)?;
    let (dir, mirror) = (volume.at("store"), volume.at("mirror"));
    let environment = failing(root, &volume.mount, "mirror/j0/seg-", 12);
    let said = expect(root, &small_segments(&dir, Some(&mirror)), &environment, 0)?;
    let events = expect(root, &["events", &dir, "--mirror", &mirror], &[], 0)?;
    if !events.contains("copy") || !events.contains("os error 5") {
        return Err(format!("the events do not name the failed copy: {events}"));
    }
    if !said.contains("\"lost\":0") {
        return Err(format!("the audit does not say that nothing was lost: {said}"));
    }
    expect(root, &["mend", &dir, "--mirror", &mirror], &[], 0)?;
    expect(root, &["verify", &dir, "--mirror", &mirror], &[], 0).map(drop)
}

fn failing_write_alone(root: &Path) -> Result<(), String> {
    let volume = Volume::new(root, "eio-alone", 400)?;
    let dir = volume.at("store");
    let mut arguments = small_segments(&dir, None);
    // Counted per process: in each worker the 12th write to a segment fails, until it is given up.
    let environment = failing(root, &volume.mount, "store/j0/seg-", 12);
    let said = expect(root, &arguments, &environment, 2)?;
    if !said.contains("os error 5") {
        return Err(format!("the error does not name what failed: {said}"));
    }
    arguments.push("--resume");
    let said = expect(root, &arguments, &[], 0)?;
    if said.contains("\"lost\":0") { Ok(()) } else { Err(format!("something was lost: {said}")) }
}

fn full_disk(root: &Path) -> Result<(), String> {
    let volume = Volume::new(root, "full", 460)?;
    let dir = volume.at("store");
    // What is left is too little for the segments of a longer run.
    let filler = volume.mount.join("filler");
    let file = std::fs::File::create(&filler).map_err(|error| error.to_string())?;
    drop(file);
    sh("fallocate", &["-l", "240M", &filler.display().to_string()])?;
    let mut arguments = vec![
        "demo",
        "--dir",
        &dir,
        "--workers",
        "1",
        "--transfers",
        "1500000",
        "--kill-every",
        "0",
        "--json",
    ];
    let said = expect(root, &arguments, &[], 2)?;
    if !said.to_lowercase().contains("space") {
        return Err(format!("the error does not speak of space: {said}"));
    }
    std::fs::remove_file(&filler).map_err(|error| error.to_string())?;
    arguments.push("--resume");
    let said = expect(root, &arguments, &[], 0)?;
    if said.contains("\"lost\":0") { Ok(()) } else { Err(format!("something was lost: {said}")) }
}

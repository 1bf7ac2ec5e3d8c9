//! Writes in a known way, for the tests of the recorder: `known_writes MODE DIRECTORY LEDGER`.
//!
//! Each line of the ledger says what must be in the directory after a power cut that comes later.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> io::Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [mode, directory, ledger] = &arguments[..] else {
        return Err(io::Error::other("usage: known_writes MODE DIRECTORY LEDGER"));
    };
    let mut ledger = OpenOptions::new().create(true).append(true).open(ledger)?;
    match mode.to_str() {
        Some("short") => short(directory, &mut ledger),
        Some("endless") => endless(directory, &mut ledger),
        Some("workers") => workers(directory, &arguments[2]),
        Some(worker) if worker.starts_with("worker-") => blocks(directory, worker, 20, &mut ledger),
        _ => Err(io::Error::other("no such mode")),
    }
}

/// Synced and not synced bytes and names of all kinds.
fn short(directory: &Path, ledger: &mut File) -> io::Result<()> {
    blocks(directory, "synced", 10, ledger)?;

    let durable = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DSYNC)
        .open(directory.join("dsync"))?;
    sync_names(directory)?;
    for block in 0..10 {
        durable.write_all_at(&[block as u8 + 1; 4096], block * 4096)?;
        say(ledger, &format!("dsync {block}"))?;
    }

    let loose = File::create_new(directory.join("loose"))?;
    loose.sync_all()?;
    sync_names(directory)?;
    say(ledger, "name loose")?;
    for block in 0..40 {
        loose.write_all_at(&[block as u8 + 1; 4096], block * 4096)?;
    }

    fs::write(directory.join("new.tmp"), [7; 100])?;
    File::open(directory.join("new.tmp"))?.sync_all()?;
    fs::rename(directory.join("new.tmp"), directory.join("new"))?;
    sync_names(directory)?;
    say(ledger, "name new")?;

    fs::create_dir(directory.join("folder"))?;
    fs::copy(directory.join("new"), directory.join("folder/copy"))?;
    fs::write(directory.join("no-name"), [8; 100])?;
    fs::remove_file(directory.join("new"))?;

    let (mut here, _there) = UnixStream::pair()?;
    here.write_all(b"it is done")?;
    Ok(())
}

/// Until it is killed.
fn endless(directory: &Path, ledger: &mut File) -> io::Result<()> {
    blocks(directory, "synced", u64::MAX, ledger)
}

/// Two further processes at the same time.
fn workers(directory: &Path, ledger: &Path) -> io::Result<()> {
    let program = std::env::current_exe()?;
    let start = |name: &str| Command::new(&program).arg(name).arg(directory).arg(ledger).spawn();
    for mut worker in [start("worker-1")?, start("worker-2")?] {
        if !worker.wait()?.success() {
            return Err(io::Error::other("a worker failed"));
        }
    }
    Ok(())
}

/// Writes block after block, each synced before the ledger says so.
fn blocks(directory: &Path, name: &str, count: u64, ledger: &mut File) -> io::Result<()> {
    let file = File::create_new(directory.join(name))?;
    sync_names(directory)?;
    for block in 0..count {
        file.write_all_at(&[(block % 250) as u8 + 1; 4096], block * 4096)?;
        file.sync_data()?;
        say(ledger, &format!("{name} {block}"))?;
    }
    Ok(())
}

/// One line, one write: a line that is written in pieces would be seen in pieces.
fn say(ledger: &mut File, line: &str) -> io::Result<()> {
    ledger.write_all(format!("{line}\n").as_bytes())
}

fn sync_names(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

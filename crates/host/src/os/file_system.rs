//! Which file system and which disk a directory lies on, and whether a journal may lie there.
//!
//! Decides by the kernel's magic number (statfs(2)), not by the path: NFS and other network file
//! systems, overlays and FUSE do not keep the promise of a synced write on a real disk (an overlay
//! loses the file when its container goes; a network file system answers for another machine), so
//! they are refused unless somebody says otherwise. Memory file systems are allowed with a warning,
//! since tests want them. An unknown number is let through: new local file systems appear more
//! often than new network ones.
//! Never writes anything.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a journal may expect of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suitability {
    /// A local file system whose synced writes are on the disk.
    Good,
    /// Lives in memory: nothing survives a power cut.
    Memory,
    /// A synced write is not (known to be) on a disk of this machine.
    Unsuitable,
}

/// What lies below a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name as the kernel's mount table tells it, for example `ext4`, `fuse.sshfs`.
    pub name: String,
    /// What is mounted there, for example `/dev/vda`.
    pub source: String,
    /// Whether a journal may lie there.
    pub suitability: Suitability,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.name, self.source)
    }
}

/// The magic numbers that are judged (linux/magic.h, and the sources of those kept outside of it).
const JUDGED: &[(u32, &str, Suitability)] = &[
    (0x6969, "nfs", Suitability::Unsuitable),
    (0x794c_7630, "overlay", Suitability::Unsuitable),
    (0x6573_5546, "fuse", Suitability::Unsuitable),
    (0xff53_4d42, "cifs", Suitability::Unsuitable),
    (0xfe53_4d42, "smb2", Suitability::Unsuitable),
    (0x517b, "smb", Suitability::Unsuitable),
    (0x00c3_6400, "ceph", Suitability::Unsuitable),
    (0x0102_1997, "9p", Suitability::Unsuitable),
    (0x5346_414f, "afs", Suitability::Unsuitable),
    (0x6b41_4653, "afs", Suitability::Unsuitable),
    (0x7375_7245, "coda", Suitability::Unsuitable),
    (0x0bd0_0bd0, "lustre", Suitability::Unsuitable),
    (0xf15f, "ecryptfs", Suitability::Unsuitable),
    (0x0102_1994, "tmpfs", Suitability::Memory),
    (0x8584_58f6, "ramfs", Suitability::Memory),
    (0xef53, "ext4", Suitability::Good),
    (0x5846_5342, "xfs", Suitability::Good),
    (0x9123_683e, "btrfs", Suitability::Good),
    (0x2fc1_2fc1, "zfs", Suitability::Good),
    (0xf2f5_2010, "f2fs", Suitability::Good),
    (0xca45_1a4e, "bcachefs", Suitability::Good),
];

/// The name and the judgement that belong to a magic number. Public for the tables of `docs`.
#[must_use]
pub fn judge(magic: u32) -> Option<(&'static str, Suitability)> {
    JUDGED.iter().find(|row| row.0 == magic).map(|row| (row.1, row.2))
}

/// Recognises the file system of an existing directory.
///
/// # Errors
/// The directory does not exist or cannot be examined.
pub fn recognise(directory: &Path) -> io::Result<FileSystem> {
    let magic = magic_of(directory)?;
    let mount = mount_of(directory);
    let judged = judge(magic);
    let mut suitability = judged.map_or(Suitability::Good, |(_, suitability)| suitability);
    // `fuseblk` is a local disk behind a user-space driver (ntfs-3g, exfat): slow, but a disk.
    if mount.as_ref().is_some_and(|mount| mount.kind == "fuseblk") {
        suitability = Suitability::Good;
    }
    let name = mount.as_ref().map(|mount| mount.kind.clone()).unwrap_or_else(|| match judged {
        Some((name, _)) => name.to_owned(),
        None => format!("file system {magic:#x}"),
    });
    let source = mount.map_or_else(|| "an unknown device".to_owned(), |mount| mount.source);
    Ok(FileSystem { name, source, suitability })
}

/// True when both directories lie on one physical disk, as far as the kernel tells: one device
/// number, or two partitions of one disk.
///
/// # Errors
/// One of the directories does not exist or cannot be examined.
pub fn share_a_disk(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::metadata(one)?.dev(), fs::metadata(other)?.dev());
    if one == other {
        return Ok(true);
    }
    Ok(match (disk_of(one), disk_of(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    })
}

/// The whole disk that carries a device number: partitions are followed to their disk.
fn disk_of(device: u64) -> Option<PathBuf> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    if path.join("partition").exists() { path.parent().map(Path::to_path_buf) } else { Some(path) }
}

fn magic_of(directory: &Path) -> io::Result<u32> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the path is a string with a terminating zero, and `answer` is as large as the kernel
    // writes; a zeroed statfs is a valid value.
    let (result, answer) =
        unsafe { (libc::statfs(path.as_ptr(), answer.as_mut_ptr()), answer.assume_init()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // The field's type differs between architectures; all magic numbers fit 32 bits.
    Ok(answer.f_type as u32)
}

struct Mount {
    kind: String,
    source: String,
}

/// The row of /proc/self/mountinfo (proc_pid_mountinfo(5)) whose mount point holds the directory:
/// the longest one, and of equally long ones the last, which hides those before it.
fn mount_of(directory: &Path) -> Option<Mount> {
    let directory = fs::canonicalize(directory).ok()?;
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut best: Option<(usize, Mount)> = None;
    for row in table.lines() {
        let Some((left, right)) = row.split_once(" - ") else { continue };
        let (Some(point), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (Some(kind), Some(source)) = (right.next(), right.next()) else { continue };
        let point = PathBuf::from(unescape(point));
        let length = point.as_os_str().len();
        if directory.starts_with(&point) && best.as_ref().is_none_or(|(best, _)| length >= *best) {
            best = Some((length, Mount { kind: kind.to_owned(), source: unescape(source) }));
        }
    }
    best.map(|(_, mount)| mount)
}

/// Space, tab, newline and backslash stand in the mount table as `\` and three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_judges_what_the_design_names() {
        for (magic, name) in [(0x6969, "nfs"), (0x794c_7630, "overlay"), (0x6573_5546, "fuse")] {
            assert_eq!(judge(magic), Some((name, Suitability::Unsuitable)));
        }
        assert_eq!(judge(0xef53), Some(("ext4", Suitability::Good)));
        assert_eq!(judge(0x1234_5678), None);
    }

    #[test]
    fn shared_memory_is_recognised_as_memory() {
        let found = recognise(Path::new("/dev/shm")).expect("/dev/shm exists");
        assert_eq!((found.name.as_str(), found.suitability), ("tmpfs", Suitability::Memory));
    }

    #[test]
    fn one_directory_shares_a_disk_with_itself_and_not_with_memory() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(share_a_disk(here, here).expect("both exist"));
        assert!(!share_a_disk(here, Path::new("/dev/shm")).expect("both exist"));
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert_eq!(recognise(Path::new("/nowhere/at/all")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

//! What machine this is: the facts that stand beside every measured figure.
//!
//! Decides nothing, never fails: a fact that cannot be read is said to be unknown, since a missing
//! cpu name is no reason not to measure.

use super::file_system;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// The facts of this machine that a figure depends on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory in GiB, to one decimal.
    pub memory_gib: f64,
    /// File system and device of the measured directory.
    pub disk: String,
    /// Release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// Looks at this machine and at the disk below `directory`.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self {
            cpu: row("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: row("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
                .map_or(0.0, |kib| (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0),
            disk: file_system::recognise(directory).map_or_else(|_| unknown(), |found| found.to_string()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
        }
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// The value of the first row `name : value` of one of the kernel's tables.
fn row(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let row = text.lines().find(|row| row.starts_with(name))?;
    Some(row.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let machine = Machine::of(Path::new("/dev/shm"));
        assert!(machine.cores >= 1 && machine.memory_gib > 0.0, "{machine:?}");
        assert!(machine.disk.starts_with("tmpfs"), "{machine:?}");
        assert_ne!(machine.kernel, "unknown");
    }
}

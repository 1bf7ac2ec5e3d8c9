//! How long work goes on, for whoever watches.
//!
//! Decides nothing. Shown only when standard error is a terminal, so that scripts see nothing of it.

use crate::output::grouped;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use rallypoint_base::id::DirectoryId;
use rallypoint_host::store_tools::Progress;
use std::io::IsTerminal;
use std::time::Duration;

/// A line that says what is being done.
pub(crate) struct Bar {
    bar: ProgressBar,
    step: String,
    records: u64,
    bytes: u64,
}

impl Bar {
    /// Begins to show.
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.set_style(ProgressStyle::default_spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, step: String::new(), records: 0, bytes: 0 }
    }

    /// Takes the line away.
    pub(crate) fn end(self) {
        self.bar.finish_and_clear();
    }

    fn show(&self) {
        let mut line = self.step.clone();
        if self.records > 0 {
            line.push_str(&format!(", {} records", grouped(self.records)));
        }
        if self.bytes > 0 {
            line.push_str(&format!(", {}", HumanBytes(self.bytes)));
        }
        self.bar.set_message(line);
    }
}

impl Progress for Bar {
    fn step(&mut self, what: &str, directory: DirectoryId, of: usize) {
        self.step = format!("{what} {directory} ({} of {of})", directory.0 + 1);
        self.show();
    }

    fn more(&mut self, records: u64, bytes: u64) {
        self.records += records;
        self.bytes += bytes;
        self.show();
    }
}

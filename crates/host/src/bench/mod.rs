//! Measurements, each figure beside the physical limit of the same run.
//!
//! Decides how long is measured and what a figure is compared with. Never claims a figure without
//! its limit where there is one, and never compares figures from different moments: the measured
//! thing and its limit take turns in short slices, so that whatever else the machine does meanwhile
//! hits both.

use crate::app::App;

pub mod checkpoint;
pub mod journal;
mod load;
pub mod messages;
pub mod raw;
pub mod recovery;
pub mod report;
#[cfg(feature = "saga")]
pub mod sagas;

/// Adds the actors of the benches to the application that a worker of this binary runs: the worker
/// processes of a bench are the same binary.
#[must_use]
pub fn register(app: App) -> App {
    load::register(app)
}

//! Stable storage: disk port, mirror, journal, checkpoints.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod backup;
pub mod block;
pub mod checkpoint;
pub mod copies;
pub mod disk;
pub mod error;
pub mod event_log;
pub mod journal;
pub mod mend;
pub mod mirror;
pub mod record;
pub mod recovery;
pub mod resume;
pub mod scrub;
pub mod sim_disk;
pub mod store;
pub mod superblock;
mod upkeep;
pub mod verify;

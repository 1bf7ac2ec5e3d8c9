//! Stable storage: disk port, mirror, journal, checkpoints.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod copies;
pub mod disk;
pub mod sim_disk;

//! Cuts, recovery lines and the rollback protocols, as pure state machines.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod pessimistic;
pub mod protocol;

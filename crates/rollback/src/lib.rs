//! Cuts, recovery lines and the rollback protocols, as pure state machines.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod before;
pub mod cut;
pub mod graph;
pub mod independent;
pub mod line;
pub mod pessimistic;
pub mod protocol;
pub mod recoverable;

//! The small types everything else shares: ids, epochs, virtual time, randomness, backoff, wire.
//!
//! Decides nothing about recovery. Never touches a clock, a file, a thread or random hash order:
//! time is a value handed in, randomness is a function of a seed.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod buffer;
pub mod hash;
pub mod id;
pub mod limits;
pub mod random;
pub mod time;
pub mod wire;

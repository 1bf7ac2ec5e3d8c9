//! Files, threads, sockets, supervisor: the only layer that touches the world.
//!
//! Internal to `rallypoint`; no semver promise.

pub mod os;

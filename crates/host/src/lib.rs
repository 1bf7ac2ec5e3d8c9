//! Files, threads, sockets, supervisor: the only layer that touches the world.
//!
//! Internal to `rallypoint`; no semver promise.

pub mod admin;
pub mod app;
pub mod bench;
pub mod client;
mod home;
mod link;
mod message;
mod node;
pub mod os;
pub mod remote;
pub mod root;
#[cfg(feature = "saga")]
pub mod saga;
mod sockets;
pub mod store_tools;
pub mod supervisor;
pub mod worker;

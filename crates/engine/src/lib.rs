//! One partition: events in, commands out, persist before send.
//!
//! Internal to `rallypoint`; no semver promise.
#![forbid(unsafe_code)]

pub mod actor;
pub mod archive;
pub mod channel;
pub mod codec;
pub mod command;
pub mod effect;
mod events;
pub mod map;
pub mod parcel;
pub mod partition;
pub mod record;
pub mod registry;
pub mod run;
pub mod saga;
pub mod session;
mod shards;
mod short;
pub mod snapshot;
pub mod table;
pub mod timer;
pub mod unit;

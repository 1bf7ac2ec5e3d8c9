//! The real engine and store under virtual time, network and disks, from one seed.
//!
//! Internal to `rallypoint`, which shows this crate as `rallypoint::test`.
//!
//! ```
//! use rallypoint_engine::actor::{Actor, Cx};
//! use rallypoint_sim::{World, storm};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Counter { total: u64 }
//!
//! impl Actor for Counter {
//!     const KIND: &'static str = "counter";
//!     type Message = u64;
//!     type Reply = u64;
//!     type Error = String;
//!     fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, String> {
//!         self.total += add;
//!         Ok(self.total)
//!     }
//! }
//!
//! // Workers are killed, disks lie, messages are lost; the counter counts each input once.
//! storm(&World::builder().workers(3).actor::<Counter>(), 5, |client| {
//!     let sent: Vec<_> = (0..10).map(|_| client.send::<Counter>("visits", &1)).collect();
//!     for sent in sent {
//!         assert!(client.wait(sent).unwrap() <= 10);
//!     }
//!     client.heal();
//!     assert_eq!(client.state::<Counter>("visits").unwrap().total, 10);
//! });
//! ```
//!
//! A failure says the seed; `RALLYPOINT_SEED=7 cargo test` runs that world again, event by event.
#![forbid(unsafe_code)]

mod abort;
pub mod bank;
mod builder;
mod client;
mod coordinator;
mod exit;
pub mod invariants;
mod message;
mod nemesis;
mod report;
mod settings;
mod tap;
mod world;

pub use abort::abort;
pub use builder::{AskError, Sent, TestClient, WorldBuilder, seeds_to_run, storm};
pub use exit::Leaving;
pub use message::{Message, Node};
pub use report::Report;
pub use settings::{DiskWrapper, Faults, RestoreWrapper, WireWrapper};
pub use world::{Violation, World};

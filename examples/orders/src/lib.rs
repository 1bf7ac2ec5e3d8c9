//! Three services that a saga calls (inventory, payment, shipping), each with its own database
//! behind the barrier, and the audit of what they were left with.
//!
//! The services know nothing of the saga that calls them: they see requests with keys, repeated,
//! late and out of order, and answer each of them once.
#![forbid(unsafe_code)]

mod audit;
mod chaos;
mod inventory;
mod orders;
mod payment;
mod respond;
mod server;
mod shipping;

pub use audit::{AuditError, Counts, Databases, Report, audit};
pub use chaos::Chaos;
pub use orders::{MakeOrdersError, Order, make_orders};
pub use server::{ServeError, Server, Service, Settings, serve};

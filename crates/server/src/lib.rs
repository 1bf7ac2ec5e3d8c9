//! Declared sagas over HTTP: their definitions, the calls they make, and the server.

pub mod bench;
mod call;
pub mod catalog;
pub mod client;
mod declared;
mod definition;
pub mod finding;
mod http;
mod listen;
pub mod look;
pub mod moment;
pub mod serve;

pub use http::auth::{Token, TokenError};
pub use http::description;

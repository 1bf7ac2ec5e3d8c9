//! Declared sagas over HTTP: their definitions, the calls they make, and the server.

mod call;
pub mod catalog;
mod declared;
mod definition;
pub mod finding;
mod http;
pub mod moment;
pub mod serve;

pub use http::auth::{Token, TokenError};
pub use http::description;

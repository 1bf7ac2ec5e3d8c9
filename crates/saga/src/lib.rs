//! Sagas: the machine that remembers what acted and compensates it, and the async function that
//! says what comes next.
//!
//! Internal to `rallypoint`; no semver promise. Pure: no clock, no thread, no file, no runtime. The
//! function's futures are polled by [`function::Runner`], which knows only what it was fed.
#![forbid(unsafe_code)]

pub mod compensations;
pub mod event;
pub mod function;
pub mod machine;
pub mod op;
pub mod registry;
mod stamp;
pub mod status;
pub mod step;
pub mod value;

//! Sagas in a process: the driver that runs their steps and functions, and the handles people hold.

pub(crate) mod driver;
pub mod handle;

//! Declared sagas over HTTP: their definitions, and the calls they make.

pub mod moment;

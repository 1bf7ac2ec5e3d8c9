//! Measurements, each figure beside the physical limit of the same run.
//!
//! Decides how long is measured and what a figure is compared with. Never claims a figure without
//! its limit, and never compares figures from different moments: the measured thing and its limit
//! take turns in short slices, so that whatever else the machine does meanwhile hits both.

pub mod journal;
pub mod raw;
pub mod report;

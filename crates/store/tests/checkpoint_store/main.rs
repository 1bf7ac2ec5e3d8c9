//! The checkpoint store against the simulated disk.

mod crash;
mod faults;
mod format;
mod policy;
mod rig;

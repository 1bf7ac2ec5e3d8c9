//! The journal on the simulated disk: what it keeps, what it repairs, what it refuses.

mod basic;
mod care;
mod crash;
mod faults;
mod resume;
mod rig;

//! A handler that ends its process, without ending the simulator.
//!
//! Decides: nothing. [`abort`] leaves a note that the world reads as soon as the call into the unit
//! is over; until then nothing that the unit does reaches a disk, the network or the witness, just
//! as nothing would after `std::process::abort`.
//!
//! Never: never seen by another test, since the note belongs to the calling thread.

use std::cell::Cell;

thread_local! {
    static ENDED: Cell<bool> = const { Cell::new(false) };
}

/// Ends the simulated worker that runs the calling handler, as `abort`, a stack overflow, the
/// out-of-memory killer or the watchdog would: no record, no answer, no destructor that matters.
pub fn abort() -> ! {
    ENDED.with(|ended| ended.set(true));
    // Not `panic!`: an expected end should not print a backtrace.
    std::panic::resume_unwind(Box::new("simulated abort"))
}

pub(crate) fn has_ended() -> bool {
    ENDED.with(Cell::get)
}

/// Reads the note and takes it away.
pub(crate) fn take() -> bool {
    ENDED.with(|ended| ended.replace(false))
}

//! The library that is preloaded into a program: notes its writes, syncs and names, and can fail one.
//!
//! Decides nothing for the program but the one failure it was asked for. Each call is noted before
//! it is made and after it ended, both with a number from one counter that all processes share.
//! Never locks and never allocates after the start, since it runs inside `fork`ed children, signal
//! handlers and threads with small stacks. Never touches `errno` but to hand on the call's own.
//! Invariant: an operation whose note cannot be written is not made: the program is ended, since a
//! recording with holes would prove nothing.
//!
//! The calls below are made as raw system calls, so that nothing here meets itself.

mod calls;
mod descriptors;
mod notes;
mod raw;

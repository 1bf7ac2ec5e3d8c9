//! What a power cut would have left: record a program's real writes and syncs, stop at any instant,
//! and rebuild the directory with only what was durable by then and a random part of the rest.
//!
//! `kill -9` proves nothing about syncs, since the page cache survives it. So a library is preloaded
//! into the program (`preload/`), which notes every write, sync and change of a name below one
//! directory, and everything that leaves the process, in one global order; this crate reads those
//! notes and plays the power cut (ALICE, OSDI 2014; dm-log-writes is the same in the kernel).
//! Decides nothing about the program under test. Never runs inside it, except for the preloaded
//! library, which shares [`record`] with this crate.
//!
//! What it does not see: writes through a mapping, io_uring, hard and symbolic links. A file
//! changed only through a mapping is rebuilt as it was before (which a power cut may do).
//!
//! A tool of the project: not published, part of no product.

mod blocks;
pub mod preload;
pub mod rebuild;
pub mod record;
pub mod recording;

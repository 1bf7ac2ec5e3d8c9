//! The operating system: the only module of the project that knows files, mounts and devices.
//!
//! Decides how bytes reach a real disk ([`file_disk`]), which file systems are fit for that
//! ([`file_system`]), who may touch a directory ([`lock`]), what was being executed when the
//! process died ([`running_page`]) and what machine this is ([`machine`]).
//! Never interprets what it stores, never retries an operation that failed, and never hides which
//! operation failed.
//! Invariant: every byte goes through a libc call (`open64`, `pwrite64`, `fdatasync`, `fsync`,
//! `rename`, `unlink`), no ring and no mapping, so that a recorder in front of libc sees every
//! operation that a promise rests on. The one mapping, the running page, carries no promise.

pub mod file_disk;
pub mod file_system;
pub(crate) mod freeing;
pub mod lock;
pub mod machine;
pub mod process;
pub mod running_page;

//! The engine against a miniature world that crashes, loses, doubles and reorders.
//! One file per promise; each important one has a mutation made in the test.

mod careful;
mod common;
mod decoders;
mod effects;
mod exactly_once;
mod output_commit;
mod pressure;
mod refusals;
mod replay;
mod rollback;
mod sessions;
mod snapshot;
mod timers;

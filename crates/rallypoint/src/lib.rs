//! Durable sagas and actors for Rust, and every recovery technique under one roof.
//!
//! What is here today: durable actors in your own process or in worker processes that survive
//! `kill -9`, on a mirrored, self-checking store; and [`Recoverable`] for state in memory.

pub use rallypoint_engine::actor::{Actor, Answer, Cx, Signal};
pub use rallypoint_engine::codec::{Codec, CodecError, Encoded};
pub use rallypoint_engine::effect::{EffectKey, EffectOutcome, EffectValue};
pub use rallypoint_rollback::recoverable::Recoverable;

//! Durable sagas and actors for Rust, and every recovery technique under one roof.
//!
//! What is here today: durable actors in your own process ([`App::open`]) or in worker processes
//! that survive `kill -9` ([`App::supervise`]), on a mirrored, self-checking store; the simulator
//! that proves them, for your own actors, as [`mod@test`]; sagas that undo what they did, with a
//! storm test for yours; and [`Recoverable`] for state in memory.
//!
//! ```
//! use rallypoint::{Actor, App, Cx};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Counter { total: u64 }
//!
//! impl Actor for Counter {
//!     const KIND: &'static str = "counter";
//!     type Message = u64;
//!     type Reply = u64;
//!     type Error = String;
//!     fn handle(&mut self, add: u64, _cx: &mut Cx<'_>) -> Result<u64, String> {
//!         self.total = self.total.checked_add(add).ok_or("the counter is full")?;
//!         Ok(self.total)
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path().join("data");
//! # let define = || App::define().allow_unsuitable_file_system(true);
//! let runtime = define().actor::<Counter>().open(&dir)?;
//! let total = runtime.client().ask::<Counter>("visits", &1).wait()?; // durable when it returns
//! drop(runtime);                                                     // or kill -9
//! let runtime = define().actor::<Counter>().open(&dir)?;
//! assert_eq!(runtime.client().ask::<Counter>("visits", &1).wait()?, total + 1);
//! # Ok(())
//! # }
//! ```

pub use rallypoint_base::id::{InputSeq, PartitionId, Position, SessionId};
pub use rallypoint_base::time::Time;
pub use rallypoint_engine::actor::{Actor, Answer, Cx, Signal};
pub use rallypoint_engine::codec::{Codec, CodecError, Encoded};
pub use rallypoint_engine::command::{Outcome, Turned};
pub use rallypoint_engine::effect::{EffectKey, EffectOutcome, EffectValue};
pub use rallypoint_engine::partition::Limits;
pub use rallypoint_engine::snapshot::SetAside;
pub use rallypoint_engine::unit::{OpenReport, UnitNotice};
pub use rallypoint_host::admin::{Retried, RetryError};
pub use rallypoint_host::app::{App, Runtime};
pub use rallypoint_host::client::{AskError, Client, Pending, new_session};
pub use rallypoint_host::remote::RemoteClient;
pub use rallypoint_host::root::RootError;
pub use rallypoint_host::supervisor::{Phase, Supervisor};
pub use rallypoint_rollback::recoverable::Recoverable;

#[cfg(feature = "saga")]
pub use rallypoint_host::saga::handle::{
    SagaHandle, SagaRequestError, SagaStoreError, SagaSummary, Sagas, StartError, WaitError,
};
#[cfg(feature = "saga")]
pub use rallypoint_saga::function::{Either, Operation, Saga};
#[cfg(feature = "saga")]
pub use rallypoint_saga::registry::{Registry, SagaOptions};
#[cfg(feature = "saga")]
pub use rallypoint_saga::status::Status;
#[cfg(feature = "saga")]
pub use rallypoint_saga::step::{
    Outcome as StepOutcome, SagaError, Step, StepCx, StepError, StepFailure, UndoError,
};

/// The bare technique, without a journal: register an undo after each thing done, run them in reverse.
pub mod compensations {
    pub use rallypoint_saga::compensations::{CompensationReport, Compensations};
}

/// What a look at a saga shows: its machine, operations, failures.
#[cfg(feature = "saga")]
pub mod saga {
    pub use rallypoint_engine::saga::{Peeked, child_id};
    pub use rallypoint_saga::event::{Attempt, Direction};
    pub use rallypoint_saga::function::{BoxFuture, Resolution};
    pub use rallypoint_saga::machine::{Machine, Refusal};
    pub use rallypoint_saga::op::{Failure, FailureKind, Op, OpNumber, OpState, Policy, UndoState, What};
    pub use rallypoint_saga::registry::{DynamicFunction, Fallback};
    pub use rallypoint_saga::value::{Blob, ValueError};
}

/// Being a worker process: call [`worker::is_worker`] first thing in `main`, and hand the
/// application to [`worker::run`] when it says so.
pub mod worker {
    pub use rallypoint_host::worker::{is_worker, run};
}

#[cfg(feature = "test")]
mod storm;

/// The simulator: the real engine and store under virtual time, network and disks, from a seed.
///
/// With the feature `test` also `test::saga`, the storm test of a saga.
pub mod test {
    #[cfg(feature = "test")]
    pub use crate::storm::{SagaStorm, StormEnd, StormFailure, StormLine, StormReport, StormRule, saga};
    pub use rallypoint_sim::*;
}

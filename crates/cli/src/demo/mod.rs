//! `rallypoint demo`: a bank under `kill -9`, and the proof that nothing was lost or doubled.
//!
//! The table of contents:
//!
//! | module | decides |
//! |---|---|
//! | [`input`] | which lines of the file are transfers, duplicates, rejected |
//! | [`generate`] | what stands in the file that the demo makes for itself |
//! | [`ledger`] | what the client keeps of the acknowledgements it got, outside the store |
//! | [`sequential`] | what the accounts must look like, by file and ledger alone |
//! | [`audit`] | whether they do: conserved, lost, doubled |
//! | [`report`] | what is said of it: JSON, text, `--balances`, `--rejects` |
//!
//! None of those knows a store, an actor or a worker: the judge must not share a fault with the one
//! who is judged. The others run it:
//!
//! | module | decides |
//! |---|---|
//! | [`run`] | the directory, the workers, when somebody is killed, the progress |
//! | [`client`] | the client process: which line is sent when, what the ledger hears |
//! | [`auditor`] | the auditing process: opens the store afresh, lets it come to rest, judges |
//!
//! `rallypoint demo orders` is another one: [`orders`].

pub(crate) mod audit;
pub(crate) mod auditor;
pub(crate) mod client;
pub(crate) mod generate;
pub(crate) mod input;
pub(crate) mod ledger;
pub(crate) mod orders;
pub(crate) mod report;
mod run;
pub(crate) mod sequential;

pub(crate) use run::{Arguments, application, run};

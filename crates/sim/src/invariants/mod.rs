//! What must hold, one property in one file, each judged on its own.
//!
//! | property | file | source | broken in the tests by |
//! |---|---|---|---|
//! | an input changes state once | [`exactly_once`] | design 4.1 | a client that repeats under a new number |
//! | money is neither made nor lost | [`conservation`] | design 4.3; Chandy and Lamport 1985 | a network that gives a frame's number to another |
//! | nothing is received that was not sent | [`no_orphan`] | design 4.3; Elnozahy et al. 2002, 2.3 | a protocol that lets frames out early |
//! | what the outside saw is never undone | [`output_never_undone`] | design 4.2; output commit, Strom and Yemini 1985 | a protocol that lets outputs out early; an older disk |
//! | nothing leaves before its cause is durable | [`durability_ledger`] | design 5; Elnozahy et al. 2002, 5.1 | a disk that drops `durable` |
//! | a reader never goes back in time | [`observations`] | design 5 (observations are outputs) | a network that gives a reader an older answer |
//!
//! Decides: nothing about the world. An invariant is told [`Fact`]s and remembers what it needs.
//! Never: never looks into a unit that serves; what it is told was seen by a client, was on its way
//! out, or was read back from disks.

pub mod conservation;
pub mod durability_ledger;
pub mod exactly_once;
pub mod no_orphan;
pub mod observations;
pub mod output_never_undone;

use crate::bank::{Account, Order};
use crate::exit::Leaving;
use rallypoint_base::id::{Epoch, InputSeq, PartitionId, SessionId};
use rallypoint_base::time::Time;
use rallypoint_engine::actor::Actor;
use rallypoint_engine::codec::Encoded;
use rallypoint_engine::command::Outcome;
use rallypoint_engine::parcel::{Body, Parcel, kind_tag};
use rallypoint_rollback::protocol::Channels;
use rallypoint_store::sim_disk::SimDrive;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// A partition at one instant.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Which.
    pub partition: PartitionId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its channel counters.
    pub channels: Channels,
    /// Every actor: kind, key, encoded state.
    pub actors: Vec<(&'static str, String, Vec<u8>)>,
    /// The parcels that were set aside, visibly.
    pub set_aside: Vec<Vec<u8>>,
}

/// All partitions at one instant.
#[derive(Clone, Debug, Default)]
pub struct States(pub Vec<Snapshot>);

impl States {
    /// The state of every actor of kind `A`, by key.
    #[must_use]
    pub fn of<A: Actor>(&self) -> BTreeMap<&str, A> {
        let actors = self.0.iter().flat_map(|snapshot| &snapshot.actors);
        let of_kind = actors.filter(|(kind, ..)| *kind == A::KIND);
        of_kind.filter_map(|(_, key, state)| Some((key.as_str(), decode(state)?))).collect()
    }

    /// Credits that were set aside: transfer and amount.
    #[must_use]
    pub fn credits_set_aside(&self) -> Vec<(u64, i64)> {
        let parcels = self.0.iter().flat_map(|snapshot| &snapshot.set_aside);
        let credit = |parcel: &Vec<u8>| match order(parcel)?.1 {
            Order::Credit { id, amount } => Some((id, amount)),
            _ => None,
        };
        parcels.filter_map(credit).collect()
    }

    /// Every account of the bank.
    #[must_use]
    pub fn accounts(&self) -> BTreeMap<&str, Account> {
        self.of::<Account>()
    }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    Encoded::split(bytes)?.decode().ok()
}

/// What a client asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its session.
    pub session: SessionId,
    /// Its number.
    pub seq: InputSeq,
    /// It only reads.
    pub read_only: bool,
    /// When it was sent for the first time, by the world's clock.
    pub sent: Time,
    /// The message to the actor.
    pub parcel: Vec<u8>,
}

impl Request {
    /// The account and the order, if this is one to the bank.
    #[must_use]
    pub fn order(&self) -> Option<(&str, Order)> {
        order(&self.parcel)
    }
}

fn order(parcel: &[u8]) -> Option<(&str, Order)> {
    let parcel = Parcel::decode(parcel).ok()?;
    let Body::Message(bytes) = parcel.body else { return None };
    if parcel.kind != kind_tag(Account::KIND) {
        return None;
    }
    Some((parcel.key, decode(bytes)?))
}

/// Something that happened and that anybody could have seen.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Fact<'a> {
    /// Something left a unit.
    Left {
        /// What.
        leaving: &'a Leaving,
        /// The disks of the directory that it left.
        drives: &'a [SimDrive],
        /// Which directory.
        directory: usize,
    },
    /// A directory was opened.
    Opened {
        /// Which.
        directory: usize,
        /// Its disks.
        drives: &'a [SimDrive],
    },
    /// A client got an answer (also when it had it already).
    Answered {
        /// To what.
        request: &'a Request,
        /// What became of it.
        outcome: Outcome,
        /// The answer.
        bytes: &'a [u8],
        /// When, by the world's clock.
        now: Time,
    },
    /// All partitions serve: what they hold in memory. Every frame that one has received, its
    /// sender has sent.
    Live(&'a States),
    /// All directories, rebuilt from forks of their disks as if the power had gone this instant.
    Audited(&'a States),
    /// All faults were off for long enough: everything is answered, nothing is under way.
    Settled(&'a States),
}

impl<'a> Fact<'a> {
    /// The states, when this fact has some.
    #[must_use]
    pub fn states(&self) -> Option<&'a States> {
        match self {
            Self::Live(states) | Self::Audited(states) | Self::Settled(states) => Some(states),
            _ => None,
        }
    }
}

/// One property.
pub trait Invariant {
    /// Name of its file.
    fn name(&self) -> &'static str;

    /// Takes in a fact.
    ///
    /// # Errors
    /// How the fact violates the property.
    fn check(&mut self, fact: &Fact<'_>) -> Result<(), String>;
}

/// All of them.
pub(crate) fn all(ledger: bool) -> Vec<Box<dyn Invariant>> {
    let mut all: Vec<Box<dyn Invariant>> = vec![
        Box::new(exactly_once::ExactlyOnce),
        Box::new(conservation::Conservation),
        Box::new(no_orphan::NoOrphan),
        Box::new(output_never_undone::OutputNeverUndone::default()),
        Box::new(observations::Observations::default()),
    ];
    if ledger {
        all.push(Box::new(durability_ledger::DurabilityLedger::default()));
    }
    all
}

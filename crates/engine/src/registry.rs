//! What the application consists of: its actor kinds.
//!
//! Decides which kinds exist. Filled once, before a store is opened; never changes afterwards.

use crate::actor::Actor;
use crate::parcel::kind_tag;
use crate::snapshot::ENGINE;
use crate::table::{Table, TypedTable};
use std::collections::BTreeMap;
use thiserror::Error;

struct Kind {
    name: &'static str,
    schema: u16,
    table: fn(u32) -> Box<dyn Table>,
}

/// The actor kinds of an application.
///
/// ```
/// # use rallypoint_engine::actor::{Actor, Cx};
/// # #[derive(Clone, Default, serde::Serialize, serde::Deserialize)] struct Counter(u64);
/// # impl Actor for Counter {
/// #     const KIND: &'static str = "counter";
/// #     type Message = u64; type Reply = u64; type Error = ();
/// #     fn handle(&mut self, n: u64, _: &mut Cx<'_>) -> Result<u64, ()> { self.0 += n; Ok(self.0) }
/// # }
/// use rallypoint_engine::registry::Registry;
/// let mut registry = Registry::default();
/// registry.actor::<Counter>().unwrap();
/// assert!(registry.actor::<Counter>().is_err());
/// ```
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<u32, Kind>,
}

/// Two actor kinds that cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("actor kinds {first:?} and {second:?} have the same name or tag: rename one of them")]
pub struct KindClash {
    /// The one registered first.
    pub first: &'static str,
    /// The one that was to be added.
    pub second: &'static str,
}

impl Registry {
    /// Adds an actor kind.
    ///
    /// # Errors
    /// [`KindClash`] when a kind of that name or tag exists.
    pub fn actor<A: Actor>(&mut self) -> Result<(), KindClash> {
        let tag = kind_tag(A::KIND);
        if tag == ENGINE {
            return Err(KindClash { first: "(the engine's own tables)", second: A::KIND });
        }
        if let Some(first) = self.kinds.get(&tag) {
            return Err(KindClash { first: first.name, second: A::KIND });
        }
        let table: fn(u32) -> Box<dyn Table> = |tag| Box::new(TypedTable::<A>::new(tag));
        self.kinds.insert(tag, Kind { name: A::KIND, schema: A::SCHEMA, table });
        Ok(())
    }

    /// The name behind a tag.
    #[must_use]
    pub fn name(&self, tag: u32) -> Option<&'static str> {
        self.kinds.get(&tag).map(|kind| kind.name)
    }

    /// Names and schema versions of all kinds, for the record of a start.
    #[must_use]
    pub fn describe(&self) -> Vec<(&'static str, u16)> {
        self.kinds.values().map(|kind| (kind.name, kind.schema)).collect()
    }

    pub(crate) fn tables(&self) -> Vec<(u32, Box<dyn Table>)> {
        self.kinds.iter().map(|(&tag, kind)| (tag, (kind.table)(tag))).collect()
    }
}

//! Backward recovery as a plain call: a value with versions to go back to, in memory.
//!
//! Decides: which versions exist and what `transact` undoes.
//!
//! Never: never touches a disk; versions end with the process. An actor's durable versions are the
//! checkpoint store's.
//!
//! Invariants: a version is never reused; after a rollback to v no version above v exists; whatever
//! way a `transact` ends, the state is either what its closure made and returned `Ok` for, or
//! exactly what it was before.
//!
//! Source: the seed's `RollbackRecovery` (`checkpoint`, `executeWithRollback`, `rollback`).

use rallypoint_base::id::Version;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use thiserror::Error;

/// A version that does not exist, or no longer.
///
/// ```
/// use rallypoint_base::id::Version;
/// use rallypoint_rollback::recoverable::{Recoverable, UnknownVersion};
/// let version = Version(1);
/// assert_eq!(Recoverable::new("a").rollback(version), Err(UnknownVersion { version }));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "there is no version {version}: it was never taken, was undone by a rollback, or fell out of the limit"
)]
pub struct UnknownVersion {
    /// What was asked for.
    pub version: Version,
}

/// A state with versions to go back to.
///
/// ```
/// use rallypoint_rollback::recoverable::Recoverable;
///
/// let mut account = Recoverable::new(100);
/// let before = account.checkpoint();
///
/// // A failed operation leaves nothing behind.
/// let failed = account.transact(|balance| {
///     *balance -= 500;
///     if *balance < 0 { Err("overdrawn") } else { Ok(()) }
/// });
/// assert_eq!(failed, Err("overdrawn"));
/// assert_eq!(*account.state(), 100);
///
/// // A successful one can still be taken back.
/// account.transact(|balance| { *balance -= 30; Ok::<_, ()>(()) }).unwrap();
/// assert_eq!(*account.state(), 70);
/// account.rollback(before).unwrap();
/// assert_eq!(*account.state(), 100);
/// ```
#[derive(Clone, Debug)]
pub struct Recoverable<S: Clone> {
    state: S,
    versions: VecDeque<(Version, S)>,
    next: Version,
    limit: Option<NonZeroUsize>,
}

impl<S: Clone> Recoverable<S> {
    /// Begins with `state` and no version.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self { state, versions: VecDeque::new(), next: Version(1), limit: None }
    }

    /// As [`Recoverable::new`], but keeps only the newest `limit` versions.
    ///
    /// ```
    /// use rallypoint_rollback::recoverable::Recoverable;
    /// let mut state = Recoverable::with_limit(0, 2.try_into().unwrap());
    /// let first = state.checkpoint();
    /// state.checkpoint();
    /// state.checkpoint();
    /// assert_eq!(state.versions().count(), 2);
    /// assert!(state.rollback(first).is_err());
    /// ```
    #[must_use]
    pub fn with_limit(state: S, limit: NonZeroUsize) -> Self {
        Self { limit: Some(limit), ..Self::new(state) }
    }

    /// Keeps a copy of the state as a new version.
    pub fn checkpoint(&mut self) -> Version {
        let version = self.next;
        self.next = version.next();
        self.versions.push_back((version, self.state.clone()));
        if self.limit.is_some_and(|limit| self.versions.len() > limit.get()) {
            self.versions.pop_front();
        }
        version
    }

    /// Runs `operation` on the state; undoes what it did when it returns an error or panics. See
    /// [`transact`]. Takes no version.
    ///
    /// # Errors
    /// The operation's.
    pub fn transact<T, E>(&mut self, operation: impl FnOnce(&mut S) -> Result<T, E>) -> Result<T, E> {
        transact(&mut self.state, operation)
    }

    /// Makes the state what it was at `version`. Later versions are gone, `version` stays.
    ///
    /// # Errors
    /// [`UnknownVersion`]; the state is unchanged then.
    pub fn rollback(&mut self, version: Version) -> Result<(), UnknownVersion> {
        let found = self.versions.binary_search_by_key(&version, |(kept, _)| *kept);
        let index = found.map_err(|_| UnknownVersion { version })?;
        self.state = self.versions[index].1.clone();
        self.versions.truncate(index + 1);
        Ok(())
    }

    /// The versions there are, oldest first.
    pub fn versions(&self) -> impl DoubleEndedIterator<Item = Version> + ExactSizeIterator + '_ {
        self.versions.iter().map(|(version, _)| *version)
    }

    /// The state as it was at `version`.
    #[must_use]
    pub fn at(&self, version: Version) -> Option<&S> {
        let index = self.versions.binary_search_by_key(&version, |(kept, _)| *kept).ok()?;
        Some(&self.versions[index].1)
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The state, to be changed without a net.
    pub fn state_mut(&mut self) -> &mut S {
        &mut self.state
    }

    /// Gives the state back and forgets all versions.
    #[must_use]
    pub fn into_state(self) -> S {
        self.state
    }
}

/// Runs `operation` on `state`; undoes what it did to it when it returns an error or panics. A panic
/// goes on after the undo. What the operation changed elsewhere stays changed.
///
/// May be nested: an inner failure undoes the inner part alone.
///
/// ```
/// use rallypoint_rollback::recoverable::transact;
/// let mut list = vec![1];
/// transact(&mut list, |list| {
///     list.push(2);
///     let inner = transact(list, |list| { list.clear(); Err::<(), _>("no") });
///     assert!(inner.is_err());
///     Ok::<_, ()>(())
/// }).unwrap();
/// assert_eq!(list, [1, 2]);
/// ```
///
/// # Errors
/// The operation's.
pub fn transact<S: Clone, T, E>(
    state: &mut S,
    operation: impl FnOnce(&mut S) -> Result<T, E>,
) -> Result<T, E> {
    let before = state.clone();
    // Unwind safety asks that nobody sees what a panic left half done. The state is replaced before
    // anybody can, and the panic is passed on, so whatever else the closure borrowed is in the same
    // position as if there had been no catch.
    match catch_unwind(AssertUnwindSafe(|| operation(&mut *state))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            *state = before;
            Err(error)
        }
        Err(panic) => {
            *state = before;
            resume_unwind(panic)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_undone_and_goes_on() {
        let mut state = Recoverable::new(vec![1, 2, 3]);
        let version = state.checkpoint();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            state.transact(|list| -> Result<(), ()> {
                list.clear();
                panic!("half done")
            })
        }));
        let panic = caught.expect_err("the panic must go on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"half done"));
        assert_eq!(state.state(), &[1, 2, 3]);
        assert_eq!(state.versions().collect::<Vec<_>>(), [version]);
    }

    #[test]
    fn an_inner_failure_undoes_the_inner_part_and_an_outer_one_all() {
        let mut state = Recoverable::new(0);
        let outer: Result<(), &str> = state.transact(|number| {
            *number += 1;
            transact(number, |number| {
                *number += 10;
                Ok::<_, &str>(())
            })?;
            let inner: Result<(), &str> = transact(number, |number| {
                *number += 100;
                Err("inner")
            });
            assert_eq!((inner, *number), (Err("inner"), 11));
            Err("outer")
        });
        assert_eq!((outer, *state.state()), (Err("outer"), 0));
    }

    #[test]
    fn an_inner_panic_undoes_every_level_on_its_way_out() {
        let mut state = Recoverable::new(0);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            state.transact(|outer| {
                *outer += 1;
                transact(outer, |inner| -> Result<(), ()> {
                    *inner += 10;
                    panic!("inner")
                })
            })
        }));
        assert!(caught.is_err());
        assert_eq!(*state.state(), 0);
    }

    #[test]
    fn versions_are_never_reused_and_later_ones_are_dropped() {
        let mut state = Recoverable::new(0);
        let taken: Vec<Version> = (0..4)
            .map(|_| {
                *state.state_mut() += 1;
                state.checkpoint()
            })
            .collect();
        state.rollback(taken[1]).unwrap();
        assert_eq!(*state.state(), 2);
        assert_eq!(state.versions().collect::<Vec<_>>(), taken[..2]);
        assert_eq!(state.rollback(taken[3]), Err(UnknownVersion { version: taken[3] }));
        assert_eq!(*state.state(), 2, "a refused rollback changes nothing");
        assert!(state.checkpoint() > taken[3]);
        // Back to the same version twice.
        state.rollback(taken[0]).unwrap();
        state.rollback(taken[0]).unwrap();
        assert_eq!(state.at(taken[0]), Some(&1));
        assert_eq!(state.into_state(), 1);
    }
}

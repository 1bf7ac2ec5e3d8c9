//! A map that a snapshot can share with its partition at once, whatever its size.
//!
//! Decides into which shard a key falls. Cloning copies no entry: the shards are shared until one of
//! the two owners changes one, and then that shard alone is copied (copy on update, in pieces: the
//! pause of a checkpoint does not depend on the size of the map, only on that of a shard).
//!
//! Invariant: a key is in the shard that its hash names, and nowhere else.
//!
//! Source: copy-on-update of Cao et al. (see `table.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

/// One in this many entries is copied by the first change of a shard after a cut.
pub(crate) const SHARDS: usize = 256;

/// Tells keys apart well enough to spread them.
pub(crate) trait Spread {
    fn spread(&self) -> u64;
}

#[derive(Clone, Debug)]
pub(crate) struct Shards<K, V> {
    shards: Vec<Arc<BTreeMap<K, V>>>,
    len: usize,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        // All of them are one empty map until they are not.
        Self { shards: vec![Arc::default(); SHARDS], len: 0 }
    }
}

impl<K: Spread + Ord + Clone, V: Clone> Shards<K, V> {
    fn at(key: &K) -> usize {
        (key.spread() % SHARDS as u64) as usize
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.shards[Self::at(key)].get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let shard = &mut self.shards[Self::at(key)];
        // What is not there to be changed is no reason to copy.
        if Arc::get_mut(shard).is_none() && !shard.contains_key(key) {
            return None;
        }
        Arc::make_mut(shard).get_mut(key)
    }

    pub(crate) fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let len = &mut self.len;
        Arc::make_mut(&mut self.shards[Self::at(&key)]).entry(key).or_insert_with(|| {
            *len += 1;
            make()
        })
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = Arc::make_mut(&mut self.shards[Self::at(&key)]).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let shard = &mut self.shards[Self::at(key)];
        if !shard.contains_key(key) {
            return None;
        }
        self.len -= 1;
        Arc::make_mut(shard).remove(key)
    }

    /// Removes all that are not to be kept; gives their number.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) -> usize {
        let before = self.len;
        for shard in &mut self.shards {
            let gone = shard.iter().filter(|(key, value)| !keep(key, value)).count();
            if gone > 0 {
                Arc::make_mut(shard).retain(|key, value| keep(key, value));
                self.len -= gone;
            }
        }
        before - self.len
    }

    /// The entries of one of the [`SHARDS`], in order.
    pub(crate) fn shard(&self, at: usize) -> &BTreeMap<K, V> {
        &self.shards[at]
    }

    /// All entries, in no order that means anything.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Spread for u64 {
        fn spread(&self) -> u64 {
            *self / 3
        }
    }

    #[test]
    fn a_clone_is_what_was_and_only_the_changed_shards_are_copied() {
        let mut map = Shards::default();
        for key in 0..3000_u64 {
            assert_eq!(map.insert(key, key), None);
        }
        let then = map.clone();
        assert_eq!(map.insert(7, 70), Some(7));
        assert_eq!(map.remove(&8), Some(8));
        assert_eq!(map.remove(&9000), None);
        assert_eq!(map.get_mut(&9000), None);
        *map.get_or_insert_with(5000, || 1) += 1;
        assert_eq!((map.len(), map.get(&7), map.get(&8), map.get(&5000)), (3000, Some(&70), None, Some(&2)));
        assert_eq!(
            (then.len(), then.get(&7), then.get(&8), then.get(&5000)),
            (3000, Some(&7), Some(&8), None)
        );
        let shared = (0..SHARDS).filter(|&at| Arc::ptr_eq(&map.shards[at], &then.shards[at])).count();
        assert_eq!(shared, SHARDS - 2, "7 and 8 share a shard, 5000 has another");
        assert_eq!(map.retain(|key, _| key % 2 == 0), 1500);
        assert_eq!((map.len(), map.iter().count(), then.iter().count()), (1500, 1500, 3000));
    }
}

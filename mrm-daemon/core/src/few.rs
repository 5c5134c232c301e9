//! Sets and maps that mostly have one entry, which they keep without an allocation of their own: a
//! node of a tree has room for eleven, and there is one of these for each version and source.

use std::collections::BTreeSet;

/// An ordered set.
#[derive(Debug)]
pub(crate) enum FewSet<T> {
    /// At most one.
    Few(Option<T>),
    /// More. Boxed, so that the others are smaller.
    #[expect(clippy::box_collection, reason = "seldom one")]
    Many(Box<BTreeSet<T>>),
}

impl<T> Default for FewSet<T> {
    fn default() -> Self {
        Self::Few(None)
    }
}

impl<T: Ord + Copy> FewSet<T> {
    /// Adds `item`; returns whether it was not there.
    pub(crate) fn insert(&mut self, item: T) -> bool {
        match self {
            Self::Few(None) => *self = Self::Few(Some(item)),
            Self::Few(Some(other)) if *other == item => return false,
            Self::Few(Some(other)) => *self = Self::Many(Box::new(BTreeSet::from([*other, item]))),
            Self::Many(items) => return items.insert(item),
        }
        true
    }

    /// Takes `item` out, if it is there.
    pub(crate) fn remove(&mut self, item: &T) {
        match self {
            Self::Few(one) if one.as_ref() == Some(item) => *one = None,
            Self::Few(_) => {}
            Self::Many(items) => {
                items.remove(item);
                if items.len() <= 1 {
                    *self = Self::Few(items.first().copied());
                }
            }
        }
    }

    /// Takes the first out.
    pub(crate) fn pop_first(&mut self) -> Option<T> {
        match self {
            Self::Few(one) => one.take(),
            Self::Many(items) => items.pop_first(),
        }
    }

    pub(crate) fn contains(&self, item: &T) -> bool {
        match self {
            Self::Few(one) => one.as_ref() == Some(item),
            Self::Many(items) => items.contains(item),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    pub(crate) fn first(&self) -> Option<&T> {
        self.iter().next()
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let (few, many) = match self {
            Self::Few(one) => (one.as_ref(), None),
            Self::Many(items) => (None, Some(items)),
        };
        few.into_iter()
            .chain(many.into_iter().flat_map(|items| items.iter()))
    }
}

impl<T: Ord + Copy> Extend<T> for FewSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        for item in items {
            self.insert(item);
        }
    }
}

/// An ordered map of at most as many entries as there are tiers, or routes between them.
#[derive(Debug, Clone)]
pub(crate) enum FewMap<K, V> {
    /// At most one.
    Few(Option<(K, V)>),
    /// There were more at some time.
    Many(Vec<(K, V)>),
}

impl<K, V> Default for FewMap<K, V> {
    fn default() -> Self {
        Self::Few(None)
    }
}

impl<K: Ord, V> FewMap<K, V> {
    fn entries(&self) -> &[(K, V)] {
        match self {
            Self::Few(one) => one.as_slice(),
            Self::Many(entries) => entries,
        }
    }

    fn entries_mut(&mut self) -> &mut [(K, V)] {
        match self {
            Self::Few(one) => one.as_mut_slice(),
            Self::Many(entries) => entries,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let entry = self.entries().iter().find(|(own, _)| own == key);
        entry.map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries_mut().iter_mut().find(|(own, _)| own == key);
        entry.map(|(_, value)| value)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Sets what `key` has.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if let Some(there) = self.get_mut(&key) {
            *there = value;
            return;
        }
        *self = match std::mem::take(self) {
            Self::Few(None) => Self::Few(Some((key, value))),
            Self::Few(Some(other)) if other.0 < key => Self::Many(vec![other, (key, value)]),
            Self::Few(Some(other)) => Self::Many(vec![(key, value), other]),
            Self::Many(mut entries) => {
                let at = entries.partition_point(|(own, _)| *own < key);
                entries.insert(at, (key, value));
                Self::Many(entries)
            }
        };
    }

    /// Takes out what `key` has, if it is there.
    pub(crate) fn remove(&mut self, key: &K) {
        match self {
            Self::Few(one) => drop(one.take_if(|(own, _)| own == key)),
            Self::Many(entries) => entries.retain(|(own, _)| own != key),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// In the order of the keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for FewMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::{FewMap, FewSet};
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        #[test]
        fn a_set_is_one(steps in vec((any::<bool>(), 0_u8..5), 0..60)) {
            let (mut few, mut all) = (FewSet::default(), BTreeSet::new());
            for (insert, item) in steps {
                match (insert, item) {
                    (true, _) => assert_eq!(few.insert(item), all.insert(item)),
                    (false, 4) => assert_eq!(few.pop_first(), all.pop_first()),
                    (false, _) => {
                        few.remove(&item);
                        all.remove(&item);
                    }
                }
                assert!(few.iter().eq(&all) && few.first() == all.first());
                assert_eq!(few.is_empty(), all.is_empty());
                assert!((0..5).all(|item| few.contains(&item) == all.contains(&item)));
            }
        }

        #[test]
        fn a_map_is_one(steps in vec((0_u8..3, 0_u8..5, any::<u8>()), 0..60)) {
            let (mut few, mut all) = (FewMap::default(), BTreeMap::new());
            for (what, key, value) in steps {
                match (what, few.get_mut(&key)) {
                    (0, _) => {
                        few.insert(key, value);
                        all.insert(key, value);
                    }
                    (1, Some(there)) => {
                        *there = value;
                        all.insert(key, value);
                    }
                    (_, _) => {
                        few.remove(&key);
                        all.remove(&key);
                    }
                }
                assert!(few.iter().eq(&all) && few.keys().eq(all.keys()));
                assert!(few.values().eq(all.values()));
                assert!((0..5).all(|key| few.contains_key(&key) == all.contains_key(&key)));
            }
        }
    }
}

//! Many keys looked up in one map, mostly in its order: each from where the last was found.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;

/// So many entries are stepped over before it is cheaper to look anew.
const STEPS_MAX: usize = 4;

/// Looks keys of a map up. Fast where they come in order and close together, right anyhow.
#[derive(Debug)]
pub(crate) struct Walk<'a, K, V> {
    map: &'a BTreeMap<K, V>,
    /// What comes behind `at`.
    rest: Range<'a, K, V>,
    /// The entry that was found last, or the first behind where it would have been.
    at: Option<(&'a K, &'a V)>,
}

impl<'a, K: Ord + Copy, V> Walk<'a, K, V> {
    pub(crate) fn of(map: &'a BTreeMap<K, V>) -> Self {
        let mut rest = map.range(..);
        let at = rest.next();
        Self { map, rest, at }
    }

    pub(crate) fn get(&mut self, key: K) -> Option<&'a V> {
        for _ in 0..STEPS_MAX {
            match self.at {
                Some((at, value)) if *at == key => return Some(value),
                Some((at, _)) if *at < key => self.at = self.rest.next(),
                Some(_) | None => break,
            }
        }
        if self.at.is_none_or(|(at, _)| *at != key) {
            self.rest = self.map.range(key..);
            self.at = self.rest.next();
        }
        self.at
            .and_then(|(at, value)| (*at == key).then_some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_finds_what_the_map_has(
            keys in proptest::collection::btree_set(0u32..60, 0..40),
            asked in proptest::collection::vec(0u32..60, 0..200),
        ) {
            let map: BTreeMap<u32, u32> = keys.into_iter().map(|key| (key, key * 3)).collect();
            let mut walk = Walk::of(&map);
            let mut sorted = asked.clone();
            sorted.sort_unstable();
            for key in asked.into_iter().chain(sorted) {
                prop_assert_eq!(walk.get(key), map.get(&key));
            }
        }
    }
}

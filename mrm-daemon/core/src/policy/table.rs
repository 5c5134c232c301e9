//! Records by id, found in about one step: a decision looks thousands of them up.
//!
//! It is walked in an order that insertions and removals alone decide, so that a replay does the
//! same again; where its slots lie is seen by nobody.

use crate::id::{ModelId, VersionId};

/// An id that counts up: nobody can choose many that fall together.
pub(super) trait Number: Copy + Eq {
    /// The number that it is.
    fn number(self) -> u64;
}

impl Number for ModelId {
    fn number(self) -> u64 {
        self.0
    }
}

impl Number for VersionId {
    fn number(self) -> u64 {
        self.0
    }
}

/// No record is here.
const NONE: u32 = u32::MAX;
const SLOTS_MIN: usize = 8;

/// Records by id.
#[derive(Debug, Clone)]
pub(super) struct Table<K, V> {
    records: Vec<(K, V)>,
    /// Places in `records`, each in the first slot from its id's that was free; a power of two,
    /// at least twice as many as there are records.
    slots: Vec<u32>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        let (records, slots) = (Vec::new(), Vec::new());
        Self { records, slots }
    }
}

impl<K: Number, V> Table<K, V> {
    /// The slot from which an id is looked for. Neighbours fall far apart.
    fn first_slot(&self, id: K) -> usize {
        let mixed = id.number().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // There are far fewer slots than these bits count.
        (mixed >> 32) as usize & self.slots.len().wrapping_sub(1)
    }

    /// The slot that has an id, and its record's place.
    fn find(&self, id: K) -> Option<(usize, usize)> {
        let mut slot = self.first_slot(id);
        loop {
            let place = *self.slots.get(slot)?;
            if place == NONE {
                return None;
            }
            let (of, _) = self.records.get(place as usize)?;
            if *of == id {
                return Some((slot, place as usize));
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    pub(super) fn get(&self, id: K) -> Option<&V> {
        let (_, place) = self.find(id)?;
        self.records.get(place).map(|(_, record)| record)
    }

    pub(super) fn get_mut(&mut self, id: K) -> Option<&mut V> {
        let (_, place) = self.find(id)?;
        self.records.get_mut(place).map(|(_, record)| record)
    }

    pub(super) fn contains(&self, id: K) -> bool {
        self.find(id).is_some()
    }

    /// Puts a record in, in place of the one that was there.
    pub(super) fn insert(&mut self, id: K, record: V) {
        if let Some(known) = self.get_mut(id) {
            *known = record;
            return;
        }
        if (self.records.len() + 1) * 2 > self.slots.len() {
            self.spread((self.slots.len() * 2).max(SLOTS_MIN));
        }
        self.take_slot(id, self.records.len());
        self.records.push((id, record));
    }

    /// The record of an id, which is made if there is none.
    pub(super) fn entry(&mut self, id: K, new: impl FnOnce() -> V) -> &mut V {
        let place = match self.find(id) {
            Some((_, place)) => place,
            None => {
                self.insert(id, new());
                self.records.len() - 1
            }
        };
        &mut self.records[place].1
    }

    pub(super) fn remove(&mut self, id: K) -> Option<V> {
        let (slot, place) = self.find(id)?;
        self.free_slot(slot);
        let last = self.records.len() - 1;
        if place < last {
            // The last record comes to the place of the one that goes.
            let (moved, _) = self.find(self.records[last].0)?;
            self.slots[moved] = number(place);
        }
        Some(self.records.swap_remove(place).1)
    }

    fn take_slot(&mut self, id: K, place: usize) {
        let mut slot = self.first_slot(id);
        while self.slots[slot] != NONE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = number(place);
    }

    /// Empties a slot; what would no longer be found behind it moves up.
    fn free_slot(&mut self, mut free: usize) {
        let last = self.slots.len() - 1;
        let mut slot = free;
        loop {
            slot = (slot + 1) & last;
            let place = self.slots[slot];
            if place == NONE {
                break;
            }
            let first = self.first_slot(self.records[place as usize].0);
            // How far each is behind where this one would best be.
            if (free.wrapping_sub(first) & last) <= (slot.wrapping_sub(first) & last) {
                self.slots[free] = place;
                free = slot;
            }
        }
        self.slots[free] = NONE;
    }

    fn spread(&mut self, slots: usize) {
        self.slots.clear();
        self.slots.resize(slots, NONE);
        for place in 0..self.records.len() {
            self.take_slot(self.records[place].0, place);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// All records, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.records.iter().map(|(id, record)| (*id, record))
    }
}

/// A place as slots have it: there are never so many records that it does not fit.
fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Ids that fall together, too: few of them, and far apart.
        #[test]
        fn it_has_what_a_map_has(
            steps in proptest::collection::vec((0u64..40, 0u8..3, any::<u32>()), 0..400),
            stride in prop_oneof![Just(1u64), Just(7), Just(1 << 33)],
        ) {
            let mut table = Table::default();
            let mut map = BTreeMap::new();
            for (id, what, value) in steps {
                let id = ModelId(id.wrapping_mul(stride));
                match what {
                    0 => {
                        table.insert(id, value);
                        map.insert(id, value);
                    }
                    1 => prop_assert_eq!(table.remove(id), map.remove(&id)),
                    _ => {
                        let own = *table.entry(id, || value);
                        prop_assert_eq!(own, *map.entry(id).or_insert(value));
                    }
                }
                prop_assert_eq!(table.len(), map.len());
                prop_assert_eq!(table.get(id), map.get(&id));
            }
            for (id, value) in &map {
                prop_assert_eq!(table.get(*id), Some(value));
            }
            let mut all: Vec<(ModelId, u32)> = table.iter().map(|(id, of)| (id, *of)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, map.into_iter().collect::<Vec<_>>());
        }
    }
}

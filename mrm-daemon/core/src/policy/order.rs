//! Versions in the order in which they came to a tier.

use super::table::Table;
use crate::id::VersionId;
use std::collections::BTreeMap;

/// The oldest first, each with something about it.
#[derive(Debug, Clone)]
pub(super) struct Order<T> {
    came: u64,
    queue: BTreeMap<u64, (VersionId, T)>,
    places: Table<VersionId, u64>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            came: 0,
            queue: BTreeMap::new(),
            places: Table::default(),
        }
    }
}

impl<T> Order<T> {
    pub(super) fn contains(&self, version: VersionId) -> bool {
        self.places.contains(version)
    }

    /// Puts a version that is not there behind all others.
    pub(super) fn push(&mut self, version: VersionId, about: T) {
        self.came += 1;
        self.queue.insert(self.came, (version, about));
        self.places.insert(version, self.came);
    }

    /// Puts a version back where it was.
    pub(super) fn restore(&mut self, place: u64, version: VersionId, about: T) {
        self.queue.insert(place, (version, about));
        self.places.insert(version, place);
    }

    /// The oldest of those at or behind a place that may be taken.
    pub(super) fn first_from(
        &self,
        place: u64,
        may: impl Fn(VersionId) -> bool,
    ) -> Option<(u64, VersionId, &T)> {
        let mut queue = self.queue.range(place..);
        let (place, (version, about)) = queue.find(|(_, (version, _))| may(*version))?;
        Some((*place, *version, about))
    }

    pub(super) fn remove(&mut self, version: VersionId) -> Option<(u64, T)> {
        let place = self.places.remove(version)?;
        let (_, about) = self.queue.remove(&place)?;
        Some((place, about))
    }

    pub(super) fn place(&self, version: VersionId) -> Option<u64> {
        self.places.get(version).copied()
    }

    pub(super) fn get(&self, version: VersionId) -> Option<(u64, &T)> {
        let place = self.place(version)?;
        self.queue.get(&place).map(|(_, about)| (place, about))
    }

    pub(super) fn get_mut(&mut self, version: VersionId) -> Option<&mut T> {
        let place = self.places.get(version)?;
        self.queue.get_mut(place).map(|(_, about)| about)
    }

    /// The oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, VersionId, &T)> {
        let queue = self.queue.iter();
        queue.map(|(place, (version, about))| (*place, *version, about))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let queue = self.queue.iter_mut();
        queue.map(|(place, (_, about))| (*place, about))
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

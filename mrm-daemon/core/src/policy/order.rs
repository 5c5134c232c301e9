//! Versions in the order in which they came to a tier.

use crate::id::VersionId;
use std::collections::{BTreeMap, BTreeSet};

/// The oldest first, each with something about it.
#[derive(Debug, Clone)]
pub(super) struct Order<T> {
    came: u64,
    queue: BTreeMap<u64, (VersionId, T)>,
    places: BTreeMap<VersionId, u64>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            came: 0,
            queue: BTreeMap::new(),
            places: BTreeMap::new(),
        }
    }
}

impl<T> Order<T> {
    pub(super) fn contains(&self, version: VersionId) -> bool {
        self.places.contains_key(&version)
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

    /// Takes out those of `versions`, in their places.
    pub(super) fn split(&mut self, versions: &BTreeSet<VersionId>) -> Self {
        let mut taken = Self {
            came: self.came,
            ..Self::default()
        };
        for version in versions {
            if let Some((place, about)) = self.remove(*version) {
                taken.restore(place, *version, about);
            }
        }
        taken
    }

    /// Puts back what was split off.
    pub(super) fn join(&mut self, other: Self) {
        self.came = self.came.max(other.came);
        self.queue.extend(other.queue);
        self.places.extend(other.places);
    }

    pub(super) fn remove(&mut self, version: VersionId) -> Option<(u64, T)> {
        let place = self.places.remove(&version)?;
        let (_, about) = self.queue.remove(&place)?;
        Some((place, about))
    }

    pub(super) fn place(&self, version: VersionId) -> Option<u64> {
        self.places.get(&version).copied()
    }

    pub(super) fn get_mut(&mut self, version: VersionId) -> Option<&mut T> {
        let place = self.places.get(&version)?;
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

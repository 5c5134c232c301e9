//! Leases on memory that was found damaged: what they keep until they are given back.

use crate::id::{LeaseId, SegmentId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// A lease, by its session.
pub(crate) type LeaseKey = (SessionId, LeaseId);

/// What each such lease keeps: all segments of its copy, as it was when that was found damaged.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    kept: BTreeMap<LeaseKey, BTreeSet<SegmentId>>,
}

impl Quarantine {
    pub(crate) fn holds(&self, lease: LeaseKey) -> bool {
        self.kept.contains_key(&lease)
    }

    pub(crate) fn add(&mut self, lease: LeaseKey, segments: BTreeSet<SegmentId>) {
        self.kept.insert(lease, segments);
    }

    /// Ends what a lease keeps; returns that.
    pub(crate) fn remove(&mut self, lease: LeaseKey) -> BTreeSet<SegmentId> {
        self.kept.remove(&lease).unwrap_or_default()
    }

    /// What a lease keeps.
    pub(crate) fn kept(&self, lease: LeaseKey) -> impl Iterator<Item = SegmentId> {
        let kept = self.kept.get(&lease).into_iter();
        kept.flat_map(|segments| segments.iter().copied())
    }

    /// How many such leases keep a segment.
    pub(crate) fn leases_on(&self, segment: SegmentId) -> usize {
        let kept = self.kept.values();
        kept.filter(|segments| segments.contains(&segment)).count()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (LeaseKey, &BTreeSet<SegmentId>)> {
        self.kept.iter().map(|(lease, segments)| (*lease, segments))
    }
}

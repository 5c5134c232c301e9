//! What it takes to get something back, from what loads took.

use super::{History, LoadMemory};
use crate::id::{Bytes, ModelId, SegmentId, Time, VersionId};
use crate::ledger::Tier;
use std::collections::BTreeMap;

/// Measurements before the last count for so much less, each time.
const DECAY: f64 = 0.7;

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Files to host memory.
    ToHost,
    /// Files to a device, by way of the host or past it.
    ToDevice,
    /// Host memory to a device.
    Up,
    /// One device to another.
    Across,
}

impl Route {
    /// All of them, in their order.
    pub(super) const ALL: [Self; 4] = [Self::ToHost, Self::ToDevice, Self::Up, Self::Across];

    /// What is taken for true before anything was measured: a start in microseconds, and bytes in a
    /// microsecond.
    const fn guess(self) -> (f64, f64) {
        match self {
            Self::ToHost | Self::ToDevice => (10_000.0, 1_000.0),
            Self::Up => (500.0, 10_000.0),
            Self::Across => (500.0, 20_000.0),
        }
    }
}

/// Bytes, and what they took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sum {
    bytes: f64,
    us: f64,
    /// What the last of them brought.
    last: Bytes,
}

impl Sum {
    pub(super) fn add(&mut self, bytes: Bytes, us: u64) {
        self.bytes = self.bytes * DECAY + bytes.0 as f64;
        self.us = self.us * DECAY + us as f64;
        self.last = bytes;
    }

    pub(super) fn memory(self, route: Route) -> LoadMemory {
        LoadMemory {
            route,
            bytes: self.bytes.round() as u64,
            us: self.us.round() as u64,
            last: self.last,
        }
    }

    pub(super) fn recalled(memory: &LoadMemory) -> Self {
        Self {
            bytes: memory.bytes as f64,
            us: memory.us as f64,
            last: memory.last,
        }
    }

    /// What the last of them brought.
    pub(super) const fn last(self) -> Bytes {
        self.last
    }

    /// What so many bytes take.
    fn of(self, bytes: Bytes) -> Option<f64> {
        (self.bytes > 0.0).then(|| self.us / self.bytes * bytes.0 as f64)
    }
}

/// Loads of one version to one tier that run together: what they take is what an open waits for.
#[derive(Debug)]
struct Batch {
    route: Route,
    since: Time,
    bytes: Bytes,
    /// What its loads took one by one, as far as that was told.
    told_us: u64,
    left: usize,
    failed: bool,
}

/// A load as the policies see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) version: VersionId,
    pub(crate) tier: Tier,
    pub(crate) route: Route,
    pub(crate) bytes: Bytes,
}

/// What loads take: those under way, and what those before took.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    loading: BTreeMap<SegmentId, (VersionId, Tier)>,
    batches: BTreeMap<(VersionId, Tier), Batch>,
    /// What all loads to a tier took.
    seen: BTreeMap<(Tier, Route), Sum>,
}

impl Reloads {
    pub(crate) fn started(&mut self, segment: SegmentId, load: Load, now: Time) {
        let key = (load.version, load.tier);
        self.loading.insert(segment, key);
        let batch = self.batches.entry(key).or_insert(Batch {
            route: load.route,
            since: now,
            bytes: Bytes::ZERO,
            told_us: 0,
            left: 0,
            failed: false,
        });
        batch.left += 1;
        batch.bytes = batch.bytes.saturating_add(load.bytes);
    }

    /// What a load took by itself.
    pub(crate) fn took(&mut self, segment: SegmentId, took_us: u64) {
        let key = self.loading.get(&segment);
        if let Some(batch) = key.and_then(|key| self.batches.get_mut(key)) {
            batch.told_us = batch.told_us.saturating_add(took_us);
        }
    }

    /// The end of a load. The last of its batch tells what all of it took, if none failed.
    pub(crate) fn ended(
        &mut self,
        segment: SegmentId,
        succeeded: bool,
        now: Time,
    ) -> Option<(VersionId, Route, Bytes, u64)> {
        let key = self.loading.remove(&segment)?;
        let batch = self.batches.get_mut(&key)?;
        batch.left = batch.left.saturating_sub(1);
        batch.failed |= !succeeded;
        if batch.left > 0 {
            return None;
        }
        let batch = self.batches.remove(&key)?;
        if batch.failed {
            return None;
        }
        let took_us = match (batch.told_us, now.us_since(batch.since)) {
            (0, together) => together,
            // A replay's clock stands still while it loads.
            (told, 0) => told,
            // Loads that run side by side take less than one by one.
            (told, together) => told.min(together),
        };
        let seen = self.seen.entry((key.1, batch.route)).or_default();
        seen.add(batch.bytes, took_us);
        Some((key.0, batch.route, batch.bytes, took_us))
    }

    /// What it takes to bring so many bytes of a model to a tier: as its own loads did; else as all
    /// loads that way did, and a start.
    pub(crate) fn estimate_us(
        &self,
        history: &History,
        (model, bytes): (Option<ModelId>, Bytes),
        (tier, route): (Tier, Route),
    ) -> u64 {
        let own = model.and_then(|model| history.load(model, route)?.of(bytes));
        let (start_us, per_us) = route.guess();
        let others = || {
            let seen = self.seen.get(&(tier, route)).and_then(|sum| sum.of(bytes));
            start_us + seen.unwrap_or(bytes.0 as f64 / per_us)
        };
        // The cast keeps to the range: there is nothing below zero, and no infinity.
        own.unwrap_or_else(others).round() as u64
    }

    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.loading.len(), self.batches.len())
    }
}

//! S3-FIFO: a small queue that most pass through once, a main one, and a memory of what left.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.
//! Here by bytes, and what may not go is passed over.

use super::order::Order;
use super::{Candidate, Decision, Facts, Policy};
use crate::id::{ModelId, VersionId};
use std::collections::{BTreeMap, BTreeSet};

/// Uses are counted to this.
const USES_MAX: u8 = 3;
/// The small queue takes one part in so many.
const SMALL_SHARE: u64 = 10;

#[derive(Debug, Clone, Copy)]
struct Entry {
    subject: Option<ModelId>,
    bytes: u64,
    /// Uses after the first, or since the last time it was spared.
    uses: u8,
}

/// Those that left the small queue, by model.
#[derive(Debug, Clone, Default)]
struct Ghosts {
    left: u64,
    queue: BTreeMap<u64, (ModelId, u64)>,
    places: BTreeMap<ModelId, u64>,
    bytes: u64,
}

impl Ghosts {
    fn remove(&mut self, model: ModelId) -> bool {
        let Some(place) = self.places.remove(&model) else {
            return false;
        };
        if let Some((_, bytes)) = self.queue.remove(&place) {
            self.bytes = self.bytes.saturating_sub(bytes);
        }
        true
    }

    /// Adds one, and forgets the oldest beyond so many bytes.
    fn add(&mut self, model: ModelId, bytes: u64, bytes_max: u64) {
        self.remove(model);
        self.left += 1;
        self.queue.insert(self.left, (model, bytes));
        self.places.insert(model, self.left);
        self.bytes = self.bytes.saturating_add(bytes);
        while self.bytes > bytes_max {
            let Some((_, (oldest, _))) = self.queue.first_key_value() else {
                break;
            };
            self.remove(*oldest);
        }
    }
}

/// The queues.
#[derive(Debug, Clone, Default)]
struct Queues {
    small: Order<Entry>,
    main: Order<Entry>,
    small_bytes: u64,
    main_bytes: u64,
}

impl Queues {
    /// Splits off those that may go. The bytes of all still count.
    fn split(&mut self, may: &BTreeSet<VersionId>) -> Self {
        Self {
            small: self.small.split(may),
            main: self.main.split(may),
            small_bytes: self.small_bytes,
            main_bytes: self.main_bytes,
        }
    }

    fn join(&mut self, other: Self) {
        self.small.join(other.small);
        self.main.join(other.main);
        (self.small_bytes, self.main_bytes) = (other.small_bytes, other.main_bytes);
    }

    /// The next to go, taken out. `true`: it leaves from the small queue.
    fn take(&mut self) -> Option<(VersionId, u64, Entry, bool)> {
        loop {
            let first = |order: &Order<Entry>| {
                let first = order.iter().next();
                first.map(|(_, version, entry)| (version, *entry))
            };
            let all = self.small_bytes.saturating_add(self.main_bytes);
            let full = self.small_bytes >= all / SMALL_SHARE;
            let (of_small, of_main) = (first(&self.small), first(&self.main));
            match (of_small, of_main) {
                (Some((version, mut entry)), other) if full || other.is_none() => {
                    let (place, _) = self.small.remove(version)?;
                    self.small_bytes = self.small_bytes.saturating_sub(entry.bytes);
                    if entry.uses <= 1 {
                        return Some((version, place, entry, true));
                    }
                    entry.uses = 0;
                    self.push_main(version, entry);
                }
                (_, Some((version, mut entry))) => {
                    let (place, _) = self.main.remove(version)?;
                    self.main_bytes = self.main_bytes.saturating_sub(entry.bytes);
                    if entry.uses == 0 {
                        return Some((version, place, entry, false));
                    }
                    entry.uses -= 1;
                    self.push_main(version, entry);
                }
                (_, None) => return None,
            }
        }
    }

    fn push_main(&mut self, version: VersionId, entry: Entry) {
        self.main_bytes = self.main_bytes.saturating_add(entry.bytes);
        self.main.push(version, entry);
    }

    fn push_small(&mut self, version: VersionId, entry: Entry) {
        self.small_bytes = self.small_bytes.saturating_add(entry.bytes);
        self.small.push(version, entry);
    }

    fn put_back(&mut self, (version, place, entry, small): (VersionId, u64, Entry, bool)) {
        let (order, bytes) = match small {
            true => (&mut self.small, &mut self.small_bytes),
            false => (&mut self.main, &mut self.main_bytes),
        };
        order.restore(place, version, entry);
        *bytes = bytes.saturating_add(entry.bytes);
    }

    fn remove(&mut self, version: VersionId) {
        if let Some((_, entry)) = self.small.remove(version) {
            self.small_bytes = self.small_bytes.saturating_sub(entry.bytes);
        }
        if let Some((_, entry)) = self.main.remove(version) {
            self.main_bytes = self.main_bytes.saturating_sub(entry.bytes);
        }
    }
}

/// A small queue that most pass through once, a main one, and a memory of what left.
#[derive(Debug, Clone, Default)]
pub struct S3Fifo {
    queues: Queues,
    ghosts: Ghosts,
}

fn versions<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> BTreeSet<VersionId> {
    candidates.map(|candidate| candidate.version).collect()
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let may = versions(candidates.iter());
        let mut queues = self.queues.clone().split(&may);
        let mut turns = BTreeMap::new();
        while let Some((version, ..)) = queues.take() {
            turns.insert(version, turns.len() + 1);
        }
        let turn = |candidate: &Candidate| turns.get(&candidate.version).copied().unwrap_or(0);
        scores.extend(candidates.iter().map(|candidate| turn(candidate) as f64));
    }

    fn used(&mut self, _facts: &Facts<'_>, used: &Candidate) {
        let Queues { small, main, .. } = &mut self.queues;
        let version = used.version;
        if let Some(entry) = small.get_mut(version).or_else(|| main.get_mut(version)) {
            entry.uses = (entry.uses + 1).min(USES_MAX);
            return;
        }
        let (subject, bytes, uses) = (used.subject, used.bytes.0, 0);
        let entry = Entry {
            subject,
            bytes,
            uses,
        };
        if subject.is_some_and(|subject| self.ghosts.remove(subject)) {
            self.queues.push_main(version, entry);
        } else {
            self.queues.push_small(version, entry);
        }
    }

    fn decided(&mut self, _facts: &Facts<'_>, decision: &Decision<'_>) {
        let may = versions(decision.ranked.iter().map(|ranked| &ranked.candidate));
        let tracked = |version: &&VersionId| {
            self.queues.small.contains(**version) || self.queues.main.contains(**version)
        };
        let mut left = decision.victims.iter().filter(tracked).count();
        let mut queues = self.queues.split(&may);
        let mut spared = Vec::new();
        while left > 0 {
            let Some(taken) = queues.take() else {
                break;
            };
            let (version, _, entry, small) = taken;
            if !decision.victims.contains(&version) {
                spared.push(taken);
                continue;
            }
            left -= 1;
            if let Some(subject) = entry.subject
                && small
            {
                let kept = queues.main_bytes.max(queues.small_bytes);
                self.ghosts.add(subject, entry.bytes, kept);
            }
        }
        for taken in spared {
            queues.put_back(taken);
        }
        self.queues.join(queues);
    }

    fn dropped(&mut self, version: VersionId) {
        self.queues.remove(version);
    }

    fn tracked(&self) -> usize {
        self.queues.small.len() + self.queues.main.len()
    }
}

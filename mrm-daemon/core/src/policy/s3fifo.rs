//! S3-FIFO: a small queue that most pass through once, a main one, and a memory of what left.
//!
//! Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for cache eviction", SOSP 2023.
//! Here by bytes, and what may not go is passed over.

use super::order::Order;
use super::table::Table;
use super::{Candidate, Decision, Facts, Policy};
use crate::id::{ModelId, VersionId};
use std::collections::{BTreeMap, VecDeque};

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

/// What becomes of the first of the two queues that may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The first of the small queue goes.
    LeaveSmall,
    /// The first of the small queue was used: it comes into the main one.
    ToMain,
    /// The first of the main queue goes.
    LeaveMain,
    /// The first of the main queue was used: it goes round once more.
    Again,
    /// Both are empty.
    End,
}

/// The next step, of what is first in each queue, and how many bytes both have.
fn step(small: Option<Entry>, main: Option<Entry>, (small_bytes, main_bytes): (u64, u64)) -> Step {
    let all = small_bytes.saturating_add(main_bytes);
    let full = small_bytes >= all / SMALL_SHARE;
    match (small, main) {
        (Some(entry), other) if full || other.is_none() => match entry.uses {
            0 | 1 => Step::LeaveSmall,
            _ => Step::ToMain,
        },
        (_, Some(entry)) => match entry.uses {
            0 => Step::LeaveMain,
            _ => Step::Again,
        },
        (_, None) => Step::End,
    }
}

/// The queues as numbers: in which order all that may go would, if nothing else happened.
#[derive(Debug, Default)]
struct Foretold {
    /// Who it is among the candidates.
    small: VecDeque<(usize, Entry)>,
    main: VecDeque<(usize, Entry)>,
    /// The bytes of all, also of those that may not go.
    small_bytes: u64,
    main_bytes: u64,
}

impl Foretold {
    fn of(queues: &Queues, may: &Table<VersionId, usize>) -> Self {
        let line = |order: &Order<Entry>| {
            let all = order.iter();
            let all = all.filter_map(|(_, version, entry)| Some((*may.get(version)?, *entry)));
            all.collect()
        };
        Self {
            small: line(&queues.small),
            main: line(&queues.main),
            small_bytes: queues.small_bytes,
            main_bytes: queues.main_bytes,
        }
    }

    /// The next to go.
    fn next(&mut self) -> Option<usize> {
        loop {
            let first = |line: &VecDeque<(usize, Entry)>| line.front().map(|(_, entry)| *entry);
            let bytes = (self.small_bytes, self.main_bytes);
            let step = step(first(&self.small), first(&self.main), bytes);
            let small = matches!(step, Step::LeaveSmall | Step::ToMain);
            let (line, bytes) = match small {
                true => (&mut self.small, &mut self.small_bytes),
                false => (&mut self.main, &mut self.main_bytes),
            };
            let (who, mut entry) = line.pop_front()?;
            *bytes = bytes.saturating_sub(entry.bytes);
            match step {
                Step::LeaveSmall | Step::LeaveMain => return Some(who),
                Step::ToMain => entry.uses = 0,
                Step::Again => entry.uses -= 1,
                Step::End => return None,
            }
            self.main_bytes = self.main_bytes.saturating_add(entry.bytes);
            self.main.push_back((who, entry));
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
    /// The next to go of those that may, taken out. `true`: it leaves from the small queue. `from`:
    /// nobody before these places in the two queues may go.
    fn take(
        &mut self,
        may: &Table<VersionId, usize>,
        from: &mut (u64, u64),
    ) -> Option<(VersionId, u64, Entry, bool)> {
        loop {
            let first = |order: &Order<Entry>, from: &mut u64| {
                let (place, version, entry) =
                    order.first_from(*from, |version| may.contains(version))?;
                *from = place;
                Some((version, *entry))
            };
            let of_small = first(&self.small, &mut from.0);
            let of_main = first(&self.main, &mut from.1);
            let entry = |of: Option<(VersionId, Entry)>| of.map(|(_, entry)| entry);
            let bytes = (self.small_bytes, self.main_bytes);
            let step = step(entry(of_small), entry(of_main), bytes);
            match step {
                Step::LeaveSmall | Step::ToMain => {
                    let (version, mut entry) = of_small?;
                    let (place, _) = self.small.remove(version)?;
                    self.small_bytes = self.small_bytes.saturating_sub(entry.bytes);
                    if step == Step::LeaveSmall {
                        return Some((version, place, entry, true));
                    }
                    entry.uses = 0;
                    self.push_main(version, entry);
                }
                Step::LeaveMain | Step::Again => {
                    let (version, mut entry) = of_main?;
                    let (place, _) = self.main.remove(version)?;
                    self.main_bytes = self.main_bytes.saturating_sub(entry.bytes);
                    if step == Step::LeaveMain {
                        return Some((version, place, entry, false));
                    }
                    entry.uses -= 1;
                    self.push_main(version, entry);
                }
                Step::End => return None,
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

/// Who may go, and the place of each.
fn places<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Table<VersionId, usize> {
    let mut places = Table::default();
    for (place, candidate) in candidates.enumerate() {
        places.insert(candidate.version, place);
    }
    places
}

impl Policy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn score(&self, _facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let mut foretold = Foretold::of(&self.queues, &places(candidates.iter()));
        let before = scores.len();
        scores.resize(before + candidates.len(), 0.0);
        let mut turn = 0.0;
        while let Some(next) = foretold.next() {
            turn += 1.0;
            scores[before + next] = turn;
        }
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
        let may = places(decision.ranked.iter().map(|ranked| &ranked.candidate));
        let tracked = |version: &&VersionId| {
            self.queues.small.contains(**version) || self.queues.main.contains(**version)
        };
        let mut left = decision.victims.iter().filter(tracked).count();
        let (queues, mut from) = (&mut self.queues, (0, 0));
        let mut spared = Vec::new();
        while left > 0 {
            let Some(taken) = queues.take(&may, &mut from) else {
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
    }

    fn dropped(&mut self, version: VersionId) {
        self.queues.remove(version);
    }

    fn tracked(&self) -> usize {
        self.queues.small.len() + self.queues.main.len()
    }
}

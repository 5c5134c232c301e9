//! Who was used when: remembered under the model, also when nothing of it is in memory.

use super::foresight::{Foresight, USES_MIN};
use super::reload::{Route, Sum};
use super::table::Table;
use crate::id::{Bytes, ModelId, Time};
use crate::ledger::Tier;
use crate::reserves::Lately;
use std::sync::LazyLock;

/// Most models whose uses are remembered; beyond that, those used least recently are forgotten.
pub const SUBJECTS_MAX: usize = 1 << 17;

/// Times between uses are counted in so many buckets: the first is under a second, and each of the
/// others begins 1.2 times as late as the one before, up to about 21 days.
pub(super) const BUCKETS: usize = 80;
const BUCKET_RATIO: f64 = 1.2;

/// Kinds of models: those used once; the others by how often, and how long ago the last time
/// between two uses was.
pub(super) const CLASSES: usize = 37;

/// Where each bucket ends, in seconds. Found by multiplying alone, which is the same everywhere.
static ENDS_S: LazyLock<[f64; BUCKETS]> = LazyLock::new(|| {
    let mut end = 1.0;
    std::array::from_fn(|_| {
        let this = end;
        end *= BUCKET_RATIO;
        this
    })
});

/// Where a bucket begins and ends, in seconds.
pub(super) fn bounds_s(bucket: usize) -> (f64, f64) {
    let end = |bucket: usize| ENDS_S.get(bucket).copied().unwrap_or(f64::MAX);
    let begin = bucket.checked_sub(1).map_or(0.0, end);
    (begin, end(bucket))
}

/// The bucket of a time between uses.
pub(super) fn bucket_of(gap_s: f64) -> usize {
    ENDS_S.partition_point(|end| *end <= gap_s).min(BUCKETS - 1)
}

/// What is remembered of a model.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) uses: u64,
    pub(super) last: Time,
    /// What had passed since the last use when another daemon's memory was taken in.
    pub(super) before_us: u64,
    pub(super) class: usize,
    /// How often it was used again after about this long: bucket and count, by bucket.
    pub(super) gaps: Vec<(u8, u32)>,
    /// Time for which it was leased, and how often.
    pub(super) run_us: u64,
    pub(super) runs: u64,
    /// What its loads took, by route.
    pub(super) loads: [Option<Sum>; Route::ALL.len()],
    /// Where it was used last.
    pub(super) tier: Tier,
    /// What its grants on devices kept free.
    pub(super) reserves: Lately,
}

impl Subject {
    /// How long ago it was used, in microseconds.
    pub(super) const fn idle_us(&self, now: Time) -> u64 {
        now.us_since(self.last).saturating_add(self.before_us)
    }
}

/// What is known of models of a kind.
#[derive(Debug, Clone)]
pub(super) struct Class {
    /// As [`Subject::gaps`], for all buckets.
    pub(super) gaps: [u64; BUCKETS],
    /// The buckets in which there are any, each a bit.
    pub(super) known: u128,
    /// Models of the kind now.
    pub(super) waiting: u64,
    /// The sum of `gaps`.
    pub(super) seen: u64,
}

/// Who was used when, and what their loads took.
#[derive(Debug, Clone)]
pub struct History {
    subjects_max: usize,
    pub(super) uses: u64,
    subjects: Table<ModelId, Box<Subject>>,
    pub(super) classes: Vec<Class>,
    /// What may be loaded before it is asked for.
    pub(super) foresight: Foresight,
    /// Forgotten since this was last asked.
    forgotten: Vec<ModelId>,
}

impl Default for History {
    fn default() -> Self {
        Self::with_max(SUBJECTS_MAX)
    }
}

impl History {
    /// One that remembers so many models at most, and at least one.
    #[must_use]
    pub fn with_max(subjects_max: usize) -> Self {
        let class = Class {
            gaps: [0; BUCKETS],
            known: 0,
            waiting: 0,
            seen: 0,
        };
        Self {
            subjects_max: subjects_max.max(1),
            uses: 0,
            subjects: Table::default(),
            classes: vec![class; CLASSES],
            foresight: Foresight::default(),
            forgotten: Vec::new(),
        }
    }

    /// Notes a use in host memory.
    pub fn used(&mut self, model: ModelId, now: Time) {
        self.used_on(model, Tier::Host, now);
    }

    /// Notes a use.
    pub(crate) fn used_on(&mut self, model: ModelId, tier: Tier, now: Time) {
        self.uses += 1;
        self.foresight.came(model);
        let known = self.subjects.get_mut(model);
        let Some(known) = known.filter(|known| known.uses > 0) else {
            let known = self.known(model, now);
            (known.uses, known.last, known.tier) = (1, now, tier);
            self.classes[0].waiting += 1;
            return;
        };
        let gap_s = known.idle_us(now) as f64 / 1e6;
        let bucket = bucket_of(gap_s);
        let class = &mut self.classes[known.class];
        class.gaps[bucket] += 1;
        class.known |= 1 << bucket;
        class.seen += 1;
        class.waiting -= 1;
        let key = u8::try_from(bucket).unwrap_or(u8::MAX);
        match known.gaps.binary_search_by_key(&key, |(bucket, _)| *bucket) {
            Ok(at) => known.gaps[at].1 = known.gaps[at].1.saturating_add(1),
            Err(at) => known.gaps.insert(at, (key, 1)),
        }
        known.uses += 1;
        (known.last, known.before_us, known.tier) = (now, 0, tier);
        if known.uses == USES_MIN {
            self.foresight.open(model);
        }
        known.class = class_of(known.uses, gap_s);
        self.classes[known.class].waiting += 1;
    }

    /// What is remembered of a model, which is nothing yet if it is new.
    pub(super) fn known(&mut self, model: ModelId, now: Time) -> &mut Subject {
        let new = !self.subjects.contains(model);
        if new && self.subjects.len() >= self.subjects_max {
            self.forget_oldest();
        }
        self.subjects.entry(model, || {
            Box::new(Subject {
                uses: 0,
                last: now,
                before_us: 0,
                class: 0,
                gaps: Vec::new(),
                run_us: 0,
                runs: 0,
                loads: [None; Route::ALL.len()],
                tier: Tier::Host,
                reserves: Lately::default(),
            })
        })
    }

    /// Makes room: an eighth at once, so that it is seldom gone through.
    fn forget_oldest(&mut self) {
        let known = self.subjects.iter();
        let mut by_age: Vec<(Time, ModelId)> = known.map(|(id, known)| (known.last, id)).collect();
        by_age.sort_unstable();
        by_age.truncate((self.subjects_max / 8).max(1));
        for (_, model) in by_age {
            if let Some(gone) = self.subjects.remove(model) {
                self.classes[gone.class].waiting -= u64::from(gone.uses > 0);
                self.foresight.forget(model);
                self.note_forgotten(model);
            }
        }
    }

    /// Nobody may ask.
    pub(super) fn note_forgotten(&mut self, model: ModelId) {
        if self.forgotten.len() < self.subjects_max {
            self.forgotten.push(model);
        }
    }

    /// Notes what a grant on a device keeps free there.
    pub(crate) fn reserved(&mut self, model: ModelId, reserve: Bytes) {
        if let Some(known) = self.subjects.get_mut(model) {
            known.reserves.granted(reserve);
        }
    }

    /// The most that grants of a model on devices kept free of late.
    pub(crate) fn reserve(&self, model: ModelId) -> Bytes {
        let known = self.get(Some(model));
        known.map_or(Bytes::ZERO, |known| known.reserves.most())
    }

    /// Notes that a lease on it ended after so long.
    pub(crate) fn ran(&mut self, model: ModelId, took_us: u64) {
        if let Some(known) = self.subjects.get_mut(model) {
            known.run_us = known.run_us.saturating_add(took_us);
            known.runs += 1;
        }
    }

    /// Notes what a load took, also of what nobody has used yet.
    pub(crate) fn loaded(
        &mut self,
        model: ModelId,
        route: Route,
        (bytes, took_us): (Bytes, u64),
        now: Time,
    ) {
        let known = self.known(model, now);
        let load = known.loads[route as usize].get_or_insert_default();
        load.add(bytes, took_us);
    }

    /// What loads of this model by this route took, if it was loaded so.
    pub(crate) fn load(&self, model: ModelId, route: Route) -> Option<Sum> {
        self.subjects.get(model)?.loads[route as usize]
    }

    /// How often a model was used.
    #[must_use]
    pub fn uses(&self, model: Option<ModelId>) -> u64 {
        self.get(model).map_or(0, |known| known.uses)
    }

    /// How often anything was used.
    #[must_use]
    pub const fn all_uses(&self) -> u64 {
        self.uses
    }

    /// For how long it was leased on average, in seconds; `None` before the first lease ended.
    #[must_use]
    pub fn run_s(&self, model: Option<ModelId>) -> Option<f64> {
        let known = self.get(model).filter(|known| known.runs > 0)?;
        Some(known.run_us as f64 / known.runs as f64 / 1e6)
    }

    /// Whether anything is remembered of a model.
    #[must_use]
    pub fn remembers(&self, model: ModelId) -> bool {
        self.subjects.contains(model) || self.foresight.hint(model).is_some()
    }

    /// How many models are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.subjects.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// The models that were forgotten since this was last asked; the first, if they are more than
    /// are remembered.
    pub(crate) fn take_forgotten(&mut self) -> Vec<ModelId> {
        std::mem::take(&mut self.forgotten)
    }

    /// What is remembered of a model that was used.
    pub(super) fn get(&self, model: Option<ModelId>) -> Option<&Subject> {
        let known = self.subjects.get(model?)?;
        (known.uses > 0).then_some(&**known)
    }

    pub(super) fn class(&self, of: &Subject) -> &Class {
        &self.classes[of.class]
    }
}

/// The class after so many uses, the last `gap_s` after the one before.
fn class_of(uses: u64, gap_s: f64) -> usize {
    let log2 = usize::try_from(uses.max(2).ilog2()).unwrap_or(4);
    // A power of four is an even power of two.
    let log4 = (gap_s.clamp(1.0, 1e9) as u64).max(1).ilog2() / 2;
    1 + 9 * (log2.min(4) - 1) + usize::try_from(log4).unwrap_or(8).min(8)
}

//! What is remembered of models, as one daemon leaves it to the next.

use super::foresight::Gate;
use super::history::{BUCKETS, CLASSES, History, Subject};
use super::reload::{Route, Sum};
use crate::id::{Bytes, ModelId, Time};
use crate::ledger::Tier;
use crate::reserves::Lately;
use std::collections::BTreeMap;

/// What loads that way took: later ones count for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadMemory {
    /// How they went.
    pub route: Route,
    /// The bytes of all of them, as far as they count.
    pub bytes: u64,
    /// What these took, in microseconds.
    pub us: u64,
    /// The bytes of the last.
    pub last: Bytes,
}

/// What is remembered of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// How often it was used.
    pub uses: u64,
    /// How long ago the last time was, in microseconds.
    pub idle_us: u64,
    /// Its kind, by how often it is used.
    pub class: u8,
    /// How often it was used again after about how long: bucket and count, by bucket.
    pub gaps: Vec<(u8, u32)>,
    /// For how long it was leased in all, in microseconds.
    pub run_us: u64,
    /// How often it was leased.
    pub runs: u64,
    /// What its loads took.
    pub loads: Vec<LoadMemory>,
    /// How often it was loaded ahead, in thousandths, as far as that counts.
    pub tries_thousandths: u32,
    /// How often it was used after that, likewise.
    pub hits_thousandths: u32,
    /// The most that its opens on devices kept free there of late.
    pub reserve: Bytes,
}

/// What is remembered of all models together: of each kind, how often they were used again after
/// about how long. Kind, bucket and count; nothing for those without.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Experience {
    /// Kind, bucket and count.
    pub gaps: Vec<(u8, u8, u64)>,
}

impl History {
    /// What is remembered of a model that was used.
    pub(crate) fn memory(&self, model: ModelId, now: Time) -> Option<Memory> {
        let known = self.get(Some(model))?;
        let gate = self.foresight.gate(model);
        let loads = Route::ALL.iter().zip(known.loads);
        let loads = loads.filter_map(|(route, sum)| Some(sum?.memory(*route)));
        Some(Memory {
            uses: known.uses,
            idle_us: known.idle_us(now),
            class: u8::try_from(known.class).unwrap_or(u8::MAX),
            gaps: known.gaps.clone(),
            run_us: known.run_us,
            runs: known.runs,
            loads: loads.collect(),
            tries_thousandths: thousandths(gate.tries),
            hits_thousandths: thousandths(gate.hits),
            reserve: known.reserves.most(),
        })
    }

    /// What is remembered of all models together.
    pub(crate) fn experience(&self) -> Experience {
        let mut gaps = Vec::new();
        for (class, of) in (0..).zip(&self.classes) {
            let counts = (0..).zip(of.gaps).filter(|(_, count)| *count > 0);
            gaps.extend(counts.map(|(bucket, count)| (class, bucket, count)));
        }
        Experience { gaps }
    }

    /// Takes in what another daemon remembered of a model, unless it was used since. What makes no
    /// sense is left out.
    pub(crate) fn recall(&mut self, model: ModelId, memory: &Memory, now: Time) {
        let class = usize::from(memory.class);
        if self.get(Some(model)).is_some() || memory.uses == 0 || class >= CLASSES {
            return;
        }
        let gaps: BTreeMap<u8, u32> = memory.gaps.iter().copied().collect();
        let gaps = gaps.into_iter();
        let gaps = gaps.filter(|(bucket, count)| usize::from(*bucket) < BUCKETS && *count > 0);
        let mut loads = [None; Route::ALL.len()];
        for load in memory.loads.iter().filter(|load| load.bytes > 0) {
            loads[load.route as usize] = Some(Sum::recalled(load));
        }
        let recalled = Subject {
            uses: memory.uses,
            last: now,
            before_us: memory.idle_us,
            class,
            gaps: gaps.collect(),
            run_us: memory.run_us,
            runs: memory.runs,
            loads,
            tier: Tier::Host,
            reserves: Lately::recalled(memory.reserve),
        };
        *self.known(model, now) = recalled;
        self.uses = self.uses.saturating_add(memory.uses);
        self.classes[class].waiting += 1;
        let gate = Gate {
            tries: f64::from(memory.tries_thousandths) / 1e3,
            hits: f64::from(memory.hits_thousandths) / 1e3,
        };
        self.foresight.recall(model, gate, memory.uses);
    }

    /// Takes in what another daemon remembered of all models together.
    pub(crate) fn recall_experience(&mut self, experience: &Experience) {
        for (class, bucket, count) in &experience.gaps {
            let Some(class) = self.classes.get_mut(usize::from(*class)) else {
                continue;
            };
            // Sums of what a lifetime brings are far from the end of the range.
            let count = (*count).min(u64::from(u32::MAX));
            if let Some(of) = class.gaps.get_mut(usize::from(*bucket)) {
                *of = of.saturating_add(count);
                class.known |= u128::from(count > 0) << bucket;
                class.seen = class.seen.saturating_add(count);
            }
        }
    }
}

fn thousandths(value: f64) -> u32 {
    // Both decay to less than ten, and the cast keeps to the range.
    (value * 1e3).round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used() -> History {
        let mut history = History::default();
        for second in [0, 10, 20, 30, 40, 55, 60] {
            history.used(ModelId(1), Time(second * 1_000_000));
        }
        history.used(ModelId(2), Time(5));
        history.loaded(ModelId(1), Route::ToHost, (Bytes(4096), 700), Time(9));
        history.ran(ModelId(1), 50);
        history.reserved(ModelId(1), Bytes(70));
        history
    }

    #[test]
    fn what_is_remembered_is_the_same_in_the_next_daemon() {
        let (before, now) = (used(), Time(70_000_000));
        let mut after = History::default();
        after.recall_experience(&before.experience());
        for model in [ModelId(1), ModelId(2)] {
            let memory = before.memory(model, now).unwrap();
            after.recall(model, &memory, Time(3));
            assert_eq!(after.memory(model, Time(3)), Some(memory));
        }
        assert_eq!(after.experience(), before.experience());
        for model in [1, 2] {
            let index =
                |history: &History, now| super::super::index(history, Some(ModelId(model)), now);
            let (was, is) = (index(&before, now), index(&after, Time(3)));
            assert!((was - is).abs() < 1e-12, "{was} {is}");
        }
        assert_eq!(after.all_uses(), before.all_uses());
        // Six uses and more may be foreseen again.
        assert_eq!(after.foreseeable(ModelId(0), 9), [ModelId(1)]);
        // The time between the last use there and the first here is one.
        after.used(ModelId(1), Time(2_000_003));
        let gaps = after.memory(ModelId(1), Time(2_000_003)).unwrap().gaps;
        assert_eq!(gaps.iter().map(|(_, count)| count).sum::<u32>(), 7);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let memory = used().memory(ModelId(1), Time(0)).unwrap();
        let mut history = History::default();
        for bad in [
            Memory {
                class: 37,
                ..memory.clone()
            },
            Memory {
                uses: 0,
                ..memory.clone()
            },
        ] {
            history.recall(ModelId(1), &bad, Time(0));
            assert!(history.is_empty());
        }
        let gaps = vec![(200, 3), (7, 0), (5, 2), (5, 4)];
        let odd = Memory { gaps, ..memory };
        history.recall(ModelId(1), &odd, Time(0));
        let known = history.memory(ModelId(1), Time(0)).unwrap();
        assert_eq!(known.gaps, [(5, 4)]);
        history.recall_experience(&Experience {
            gaps: vec![(99, 0, 1), (0, 99, 1), (1, 1, u64::MAX), (1, 1, u64::MAX)],
        });
        assert!(super::super::index(&history, Some(ModelId(1)), Time(9)).is_finite());
    }

    #[test]
    fn what_was_used_since_is_not_overwritten() {
        let memory = used().memory(ModelId(1), Time(0)).unwrap();
        let mut history = History::default();
        history.used(ModelId(1), Time(4));
        history.recall(ModelId(1), &memory, Time(5));
        assert_eq!(history.uses(Some(ModelId(1))), 1);
    }
}

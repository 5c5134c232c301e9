//! What is counted during a run.

use super::{Oversize, Setup};
use mrm_core::effect::Origin;
use mrm_core::id::{SegmentId, Time};
use mrm_core::ledger::Tier;
use std::collections::HashMap;
use std::time::Duration;

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Whether what was expected was loaded ahead.
    pub prefetch: bool,
    /// Requests that were served.
    pub requests: u64,
    /// Requests that were not.
    pub refused: u64,
    /// Requests that had to wait for a load.
    pub misses: u64,
    /// The bytes of the models of all requests.
    pub bytes: u128,
    /// The bytes of the models of all misses.
    pub missed_bytes: u128,
    /// What requests waited for loads, microseconds.
    pub load_us: u128,
    /// What requests waited for room, microseconds.
    pub wait_us: u128,
    /// For how long models were held, microseconds.
    pub exec_us: u128,
    /// The delays that are not zero, microseconds, in order.
    pub delays_us: Vec<u64>,
    /// What each decision took that dropped something, if that was asked for, in their order.
    pub decisions: Vec<Duration>,
    /// Models that were dropped for want of room.
    pub evictions: u64,
    /// Models that were loaded though nobody waited for them.
    pub prefetches: u64,
    /// Those of them that were used before they were dropped.
    pub prefetches_used: u64,
    /// What loading them took, microseconds.
    pub prefetch_us: u128,
    /// What was resident when, if that was asked for, in order of its end.
    pub timeline: Vec<Resident>,
}

impl Outcome {
    /// The delay that a share of all requests does not exceed, in seconds.
    #[must_use]
    pub fn delay_s(&self, share: f64) -> f64 {
        let rank = (self.requests as f64 * share).ceil().max(1.0) as u64;
        let zeros = self.requests.saturating_sub(self.delays_us.len() as u64);
        let at = rank.checked_sub(zeros + 1).map(|at| at as usize);
        let delay = at.and_then(|at| self.delays_us.get(at).or(self.delays_us.last()));
        delay.map_or(0.0, |us| *us as f64 / 1e6)
    }
}

/// A model was resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Which, by its place in the workload.
    pub model: usize,
    /// Where.
    pub tier: Tier,
    /// From when.
    pub from: Time,
    /// Until when.
    pub to: Time,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loading {
    pub(super) model: usize,
    pub(super) tier: Tier,
    pub(super) took_us: u64,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    loading: Loading,
    started: Time,
    loaded: Option<Time>,
}

/// What is known of a model.
#[derive(Debug, Clone, Copy, Default)]
struct Of {
    /// Requests that wait for it.
    waiting: u32,
    /// When its last loads began, in microseconds, and what they took together.
    load: (u64, u64),
    /// It was loaded ahead, and not used yet.
    ahead: bool,
}

pub(super) struct Books<'a> {
    setup: &'a Setup<'a>,
    of: Vec<Of>,
    segments: HashMap<SegmentId, Segment>,
    last_asked: Time,
    sums: Outcome,
}

impl<'a> Books<'a> {
    pub(super) fn new(setup: &'a Setup<'a>) -> Self {
        Self {
            setup,
            of: vec![Of::default(); setup.workload.models.len()],
            segments: HashMap::new(),
            last_asked: Time(0),
            sums: Outcome {
                prefetch: setup.prefetch,
                ..Outcome::default()
            },
        }
    }

    pub(super) const fn last_asked(&self) -> Time {
        self.last_asked
    }

    pub(super) fn asked(&mut self, model: u32, at: Time) {
        self.of[model as usize].waiting += 1;
        self.last_asked = at;
    }

    pub(super) fn started(&mut self, segment: SegmentId, loading: Loading, now: Time) {
        let of = &mut self.of[loading.model];
        let (began, took_us) = &mut of.load;
        // Loads of one model that begin together run side by side.
        *took_us = match *began == now.0 && *took_us > 0 {
            true => loading.took_us.max(*took_us),
            false => loading.took_us,
        };
        *began = now.0;
        if of.waiting == 0 {
            self.sums.prefetch_us += u128::from(loading.took_us);
            self.sums.prefetches += u64::from(!of.ahead);
            of.ahead = true;
        }
        let segment_of = Segment {
            loading,
            started: now,
            loaded: None,
        };
        self.segments.insert(segment, segment_of);
    }

    pub(super) fn loaded(&mut self, segment: SegmentId, now: Time) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.loaded = Some(now);
        }
    }

    /// How long a load still takes.
    pub(super) fn left_us(&self, segment: SegmentId, now: Time) -> u64 {
        let Some(segment) = self.segments.get(&segment) else {
            return 0;
        };
        // Loads that are not timed end at once; those that begin in this moment go on beside.
        let done = match self.setup.timed {
            true => segment.loaded.is_some(),
            false => segment.started < now,
        };
        match done {
            true => 0,
            false => segment
                .loading
                .took_us
                .saturating_sub(now.us_since(segment.started)),
        }
    }

    pub(super) fn freed(&mut self, segment: SegmentId, now: Time) {
        let Some(gone) = self.segments.remove(&segment) else {
            return;
        };
        self.sums.evictions += 1;
        self.of[gone.loading.model].ahead = false;
        self.resident(&gone, now);
    }

    fn resident(&mut self, segment: &Segment, now: Time) {
        if let (true, Some(from)) = (self.setup.timeline, segment.loaded) {
            self.sums.timeline.push(Resident {
                model: segment.loading.model,
                tier: segment.loading.tier,
                from,
                to: now,
            });
        }
    }

    /// A request has its model; returns until when it holds it.
    pub(super) fn granted(&mut self, number: u64, origin: Origin, now: Time) -> Time {
        let request = self.setup.workload.requests[number as usize];
        let of = &mut self.of[request.model as usize];
        of.waiting = of.waiting.saturating_sub(1);
        if std::mem::take(&mut of.ahead) && matches!(origin, Origin::Hit | Origin::Joined) {
            self.sums.prefetches_used += 1;
        }
        let waited_us = now.us_since(request.at);
        let load_us = of.load.1;
        let (load_us, wait_us) = match (origin, self.setup.timed) {
            (Origin::Hit, _) => (0, waited_us),
            (Origin::Loaded | Origin::Promoted, false) => (load_us, waited_us),
            // Another has booked that load; this one waits for it all the same.
            (Origin::Joined, false) => (0, waited_us.saturating_add(load_us)),
            (Origin::Loaded | Origin::Promoted, true) => {
                (load_us.min(waited_us), waited_us.saturating_sub(load_us))
            }
            (Origin::Joined, true) => (0, waited_us),
        };
        self.count(number, origin != Origin::Hit, (load_us, wait_us));
        Time(now.0.saturating_add(request.exec_us))
    }

    /// A model can never fit.
    pub(super) fn oversized(&mut self, number: u64) {
        let request = self.setup.workload.requests[number as usize];
        let model = &self.setup.workload.models[request.model as usize];
        match self.setup.oversize {
            Oversize::Refuse => self.refused(number),
            Oversize::Transient => {
                let of = &mut self.of[request.model as usize];
                of.waiting = of.waiting.saturating_sub(1);
                self.count(number, true, (model.load_us, 0));
            }
        }
    }

    pub(super) fn refused(&mut self, number: u64) {
        let request = self.setup.workload.requests[number as usize];
        let of = &mut self.of[request.model as usize];
        of.waiting = of.waiting.saturating_sub(1);
        self.sums.refused += 1;
    }

    fn count(&mut self, number: u64, missed: bool, (load_us, wait_us): (u64, u64)) {
        let request = self.setup.workload.requests[number as usize];
        let bytes = u128::from(self.setup.workload.models[request.model as usize].bytes);
        self.sums.requests += 1;
        self.sums.bytes += bytes;
        self.sums.exec_us += u128::from(request.exec_us);
        self.sums.load_us += u128::from(load_us);
        self.sums.wait_us += u128::from(wait_us);
        if missed {
            self.sums.misses += 1;
            self.sums.missed_bytes += bytes;
        }
        let delay_us = load_us.saturating_add(wait_us);
        if delay_us > 0 {
            self.sums.delays_us.push(delay_us);
        }
    }

    /// A decision that dropped something took so long.
    pub(super) fn decided(&mut self, took: Duration) {
        self.sums.decisions.push(took);
    }

    pub(super) fn outcome(mut self, now: Time) -> Outcome {
        let mut left: Vec<(SegmentId, Segment)> = self.segments.drain().collect();
        left.sort_unstable_by_key(|(id, _)| *id);
        for (_, segment) in left {
            self.resident(&segment, now);
        }
        self.sums.delays_us.sort_unstable();
        self.sums
    }
}

//! Which loads go first, what they will take, and the memory that is ready for them.

use super::forecast::{Forecast, Underway};
use super::supply::{Filled, LoadJob, supply_segment};
use super::work::lane_of;
use super::{State, Who};
use crate::memory::HostSegment;
use crate::memory::stock::Stock;
use crate::shell::names::Supply;
use crate::transfer::{
    Completion, Job, Lane, Lost, Rank, ReadWay, Task, Tenant, Ticket, Turn, Turns, Urgency,
    read_ahead,
};
use mrm_core::event::Fault;
use mrm_core::id::{ModelId, SegmentId, VersionId};
use mrm_core::ledger::Tier;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Files up to this are loaded together with others, one after the other: for so little the waking of
/// a thread counts more than the bytes.
const SMALL_BYTES: u64 = 4 << 20;
/// How much is loaded together at most: more is worth a second thread.
const TOGETHER_BYTES: u64 = 16 << 20;
/// How many files are loaded together at most.
const TOGETHER_MAX: usize = 64;

/// What is known of loads beyond their segments.
pub(super) struct Loading {
    stock: Option<Arc<Stock>>,
    /// What the stock was told last.
    told: Option<(u64, usize)>,
    turns: Arc<Turns>,
    forecast: Forecast,
    /// Loads of the event that is being handled that are to be run together.
    small: Vec<Small>,
}

/// A small load that is about to be queued.
struct Small {
    segment: SegmentId,
    lane: Lane,
    rank: Rank,
    supply: Supply,
    task: SmallTask,
}

type SmallTask = Box<dyn FnOnce(bool) -> Task>;

/// The place of a load among others, and what it was expected to take.
pub(super) struct Underlying {
    turn: Turn,
    ticket: Option<Ticket>,
    predicted_us: u64,
    /// No other load was under way at any time.
    alone: bool,
}

impl Loading {
    pub(super) fn new(stock: Option<Stock>) -> Self {
        Self {
            stock: stock.map(Arc::new),
            told: None,
            turns: Arc::default(),
            forecast: Forecast::default(),
            small: Vec::new(),
        }
    }

    /// Has a segment put together in huge pages whose load did not wait for them, or of which it is not
    /// known.
    pub(super) fn put_together(&self, segment: &Arc<HostSegment>) {
        if let Some(stock) = self
            .stock
            .as_ref()
            .filter(|_| segment.huge_pages().is_put_off)
        {
            stock.put_together(segment);
        }
    }

    /// What is in stock, in bytes.
    pub(super) fn stock_bytes(&self) -> u64 {
        self.stock.as_ref().map_or(0, |stock| stock.bytes())
    }

    /// What is still to be made ready, in bytes.
    pub(super) fn stock_pending_bytes(&self) -> u64 {
        let stock = self.stock.as_ref();
        stock.map_or(0, |stock| stock.pending_bytes())
    }
}

impl State {
    /// Says to the stock what the budget leaves it.
    pub(super) fn tell_stock(&mut self) {
        self.tell_stock_of(self.loads.len());
    }

    /// The same, with so many loads. Before any that was charged takes memory.
    fn tell_stock_of(&mut self, loads: usize) {
        let Some(stock) = &self.loading.stock else {
            return;
        };
        let room_bytes = match self.draining || !self.serving {
            true => 0,
            false => self.core.view().free(Tier::Host).0,
        };
        let told = Some((room_bytes, loads));
        if self.loading.told != told {
            self.loading.told = told;
            stock.tell(room_bytes, loads);
        }
    }

    /// Who waits for a version, the most urgent first; a client's uid is its tenant.
    fn rank_of(&self, version: VersionId, bytes: u64) -> Rank {
        let models: Vec<ModelId> = self.core.view().models_of(version).collect();
        let mut best: Option<(Urgency, Tenant)> = None;
        for session in self.sessions.values() {
            let waits = session.pending.values();
            if !waits.into_iter().any(|one| models.contains(&one.model)) {
                continue;
            }
            let place = match &session.who {
                Who::Client { peer, .. } => (Urgency::Foreground, Tenant(peer.uid)),
                Who::Operator(_) => (Urgency::Warm, Tenant(0)),
            };
            best = Some(best.map_or(place, |best| best.min(place)));
        }
        let (urgency, tenant) = best.unwrap_or((Urgency::Ahead, Tenant(0)));
        Rank {
            urgency,
            tenant,
            bytes,
        }
    }

    /// Hands a load to its lane, or to those that go there together.
    pub(super) fn queue_load(
        &mut self,
        segment: SegmentId,
        (version, foreign, bytes): (VersionId, bool, u64),
        job: LoadJob,
        completion: Completion<Result<Filled, Fault>>,
    ) -> Underlying {
        // This one is not among them yet; without it, the stock would look about beside it.
        self.tell_stock_of(self.loads.len() + 1);
        let rank = self.rank_of(version, bytes);
        let turn = Turn::new(&self.loading.turns, rank.urgency);
        let others = self.loads.values().map(|load| {
            let loaded = load.loaded_bytes.load(Ordering::Relaxed);
            load.bytes.saturating_sub(loaded)
        });
        let predicted_us = self.loading.forecast.predict(bytes, others);
        let alone = self.loads.is_empty();
        for load in self.loads.values_mut() {
            load.place.alone = false;
        }
        let lane = lane_of(foreign);
        let supply = job.supply.clone();
        let (stock, degraded) = (self.loading.stock.clone(), self.degraded.clone());
        let its_turn = turn.clone();
        let task: SmallTask = Box::new(move |is_ahead| {
            Task::new(completion, move || {
                supply_segment(job, (&its_turn, is_ahead), stock.as_deref(), &degraded)
            })
        });
        let small = Small {
            segment,
            lane,
            rank,
            supply,
            task,
        };
        let ticket = if bytes <= SMALL_BYTES {
            self.loading.small.push(small);
            None
        } else {
            self.run_together(vec![small])
        };
        Underlying {
            turn,
            ticket,
            predicted_us,
            alone,
        }
    }

    /// At the end of each event: queues the small loads that it gave rise to, several at a time.
    pub(super) fn queue_small_loads(&mut self) {
        while let Some(last) = self.loading.small.pop() {
            let (lane, urgency, tenant) = (last.lane, last.rank.urgency, last.rank.tenant);
            let mut batch = vec![last];
            let mut bytes = 0;
            while let Some(next) = self.loading.small.pop_if(|next| {
                let same = (next.lane, next.rank.urgency, next.rank.tenant);
                bytes += next.rank.bytes;
                same == (lane, urgency, tenant) && bytes <= TOGETHER_BYTES
            }) {
                batch.push(next);
                if batch.len() >= TOGETHER_MAX {
                    break;
                }
            }
            // They came last first.
            batch.reverse();
            let segments: Vec<SegmentId> = batch.iter().map(|small| small.segment).collect();
            let ticket = self.run_together(batch);
            for segment in segments {
                if let Some(load) = self.loads.get_mut(&segment) {
                    load.place.ticket.clone_from(&ticket);
                }
            }
        }
    }

    fn run_together(&self, batch: Vec<Small>) -> Option<Ticket> {
        let (lane, mut rank) = {
            let first = batch.first()?;
            (first.lane, first.rank)
        };
        rank.bytes = batch.iter().map(|small| small.rank.bytes).sum();
        let files: Vec<Supply> = batch
            .iter()
            .filter(|small| matches!(small.supply, Supply::File { .. }))
            .map(|small| small.supply.clone())
            .collect();
        // One after the other, small files would leave a disk idle most of the time.
        let is_ahead = files.len() > 1;
        let first: Option<Job> = is_ahead.then(|| {
            Box::new(move || {
                for file in &files {
                    if let Supply::File { source, .. } = file {
                        read_ahead(source.as_ref());
                    }
                }
            }) as Job
        });
        let tasks = batch.into_iter().map(|small| (small.task)(is_ahead));
        let tasks: Vec<Task> = tasks.collect();
        match &self.lanes {
            Some(lanes) => Some(lanes.run_all(lane, rank, first, tasks)),
            None => {
                for task in tasks {
                    task.lost(Lost::ShuttingDown);
                }
                None
            }
        }
    }

    /// Somebody waits for a model: what is being loaded of it is at least as urgent as that.
    pub(super) fn hasten(&self, model: ModelId, urgency: Urgency) {
        if self.loads.is_empty() {
            return;
        }
        let version = self.core.view().model(model).and_then(|m| m.version);
        for segment in version.map_or_else(Vec::new, |version| self.segments_of(version)) {
            let Some(load) = segment.and_then(|segment| self.loads.get(&segment)) else {
                continue;
            };
            load.place.turn.raise(urgency);
            if let (Some(lanes), Some(ticket)) = (&self.lanes, &load.place.ticket) {
                lanes.raise(ticket, urgency);
            }
        }
    }

    /// When all that is being loaded of a version will be there, in microseconds from now; `None` if
    /// nothing is.
    pub(super) fn eta_us(&self, version: VersionId) -> Option<u64> {
        let segments = self.segments_of(version);
        let loading = segments.into_iter().flatten().filter_map(|segment| {
            let load = self.loads.get(&segment)?;
            let others = self.loads.iter().filter(|(other, _)| **other != segment);
            let lacks = others.map(|(_, other)| {
                let loaded = other.loaded_bytes.load(Ordering::Relaxed);
                other.bytes.saturating_sub(loaded)
            });
            let underway = Underway {
                bytes: load.bytes,
                loaded_bytes: load.loaded_bytes.load(Ordering::Relaxed),
                elapsed_us: since_us(load.began),
            };
            Some(self.loading.forecast.left(underway, lacks))
        });
        loading.max()
    }

    /// A file was loaded: compares that with what was expected, and learns from it.
    pub(super) fn learn_from(
        &mut self,
        place: &Underlying,
        (bytes, took_us): (u64, u64),
        way: Option<ReadWay>,
    ) {
        let Some(way) = way else { return };
        self.metrics.load_predicted(place.predicted_us, took_us);
        self.metrics.load_way(way);
        if place.alone {
            self.loading.forecast.learn(bytes, took_us);
        }
    }
}

pub(super) fn since_us(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

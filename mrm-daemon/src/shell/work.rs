//! Effects that block, and what comes back from them.

use super::loading::since_us;
use super::names::{Dropped, Supply};
use super::resolving::Looked;
use super::supply::{Filled, LoadJob};
use super::{Held, LoadRecord, State};
use crate::catalogue::Scan;
use crate::device::{DeviceImage, FillError, HealthError, HostFeed};
use crate::failpoint::{self, Point};
use crate::integrity::{Listed, Verdict};
use crate::status::events::{Event as LogEvent, EventKind};
use crate::transfer::{Completion, Lane, Lanes, Lost, ReadWay};
use mrm_core::event::{Event, Fault, LoadFailure};
use mrm_core::id::{Bytes, DeviceId, ModelId, OpId, SegmentId, SourceId, VersionId};
use mrm_core::ledger::Tier;
use mrm_cuda::MemoryInfo;
use mrm_proto::error::ErrorCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

/// What a worker brings back.
pub(crate) enum Completed {
    /// A model's files were found, opened and checked.
    Resolved {
        op: OpId,
        model: ModelId,
        outcome: Result<Looked, Fault>,
    },
    /// The memory of a load may be lent while it is filled.
    Laid { op: OpId },
    /// More of a segment is there.
    More { segment: SegmentId },
    /// The memory of a load was thrown away; the load goes on in other memory.
    Unlaid { op: OpId, segment: SegmentId },
    /// A segment was filled and sealed.
    Loaded {
        op: OpId,
        segment: SegmentId,
        outcome: Result<Filled, Fault>,
    },
    /// A segment's memory was given back.
    Freed {
        op: OpId,
        segment: SegmentId,
        /// The model that it was loaded for and its size; `None` for a tensor table.
        gone: Option<(Arc<str>, u64)>,
    },
    /// A device was filled.
    Filled {
        op: OpId,
        segment: SegmentId,
        outcome: Result<Result<DeviceImage, FillError>, Lost>,
    },
    /// The keeper has what was loaded, or cannot have it: it may be lent.
    Kept { op: OpId, segment: SegmentId },
    /// The keeper has let go of a segment that is to be freed.
    LetGo {
        op: OpId,
        segment: SegmentId,
        tier: Tier,
    },
    /// A device was asked how it is.
    Checked {
        device: DeviceId,
        outcome: Result<Result<MemoryInfo, HealthError>, Lost>,
    },
    /// The catalogue's roots were listed.
    Scanned(Option<Scan>),
    /// A segment was compared with its digest.
    Verified {
        segment: SegmentId,
        verdict: Result<Verdict, Lost>,
    },
    /// A segment that came without a digest was hashed; `None`: it was freed before that.
    Identified {
        segment: SegmentId,
        digest: Result<Option<[u8; 32]>, Lost>,
    },
    /// A file that a list names was compared with it, in memory.
    Summed {
        segment: SegmentId,
        listed: Listed,
        sha256: Option<[u8; 32]>,
    },
}

impl State {
    pub(super) fn complete(&mut self, completed: Completed) {
        // Nobody is to hear of what the next daemon will not know.
        if self.left {
            return;
        }
        match completed {
            Completed::Resolved { op, model, outcome } => self.resolved(op, model, outcome),
            Completed::Laid { op } => self.step(Event::Laid { op }),
            Completed::More { segment } => self.more(segment),
            Completed::Unlaid { op, segment } => self.unlaid(op, segment),
            Completed::Loaded {
                op,
                segment,
                outcome,
            } => {
                if let Some(outcome) = self.hash_first((op, segment), outcome) {
                    self.loaded(op, segment, outcome);
                }
            }
            Completed::Freed { op, segment, gone } => {
                failpoint::pass(Point::AfterFree);
                self.names.forget_segment(segment);
                let why = self.take_reason(segment);
                if let Some((label, bytes)) = gone {
                    self.metrics.evicted(bytes);
                    let event = LogEvent::of(EventKind::Evicted).model(label).bytes(bytes);
                    self.note(match why {
                        Some(why) => event.why(why),
                        None => event,
                    });
                }
                self.step(Event::Freed { op });
            }
            Completed::Filled {
                op,
                segment,
                outcome,
            } => self.filled(op, segment, outcome),
            Completed::Kept { op, segment } => {
                self.tell_sealed(segment);
                // What was hashed meanwhile, the decider did not heed: it was not there.
                let content = self.names.content_in(segment);
                let outcome = Ok(content.unwrap_or_else(|| self.names.unknown_content()));
                self.step(Event::Loaded { op, outcome });
                self.supplies_stale = true;
                self.take_away_others();
            }
            Completed::LetGo { op, segment, tier } => self.free_on(op, segment, tier),
            Completed::Checked { device, outcome } => self.checked(device, outcome),
            Completed::Scanned(scan) => self.listed(scan),
            Completed::Verified { segment, verdict } => self.verified(segment, verdict),
            Completed::Identified { segment, digest } => self.identified(segment, digest),
            Completed::Summed {
                segment,
                listed,
                sha256,
            } => self.summed(segment, &listed, sha256),
        }
    }

    /// A completion that reports to the decider; lost work is a fault like any other.
    pub(super) fn report<T: 'static>(
        &self,
        completed: impl FnOnce(Result<T, Fault>) -> Completed + Send + 'static,
    ) -> Completion<Result<T, Fault>> {
        let done = self.completed.clone();
        Completion::new(move |outcome: Result<Result<T, Fault>, Lost>| {
            let outcome = outcome.unwrap_or_else(|lost| Err(fault(lost.code(), &lost)));
            drop(done.send(completed(outcome)));
        })
    }

    /// Carries out `Effect::Load`.
    pub(super) fn load(
        &mut self,
        op: OpId,
        segment: SegmentId,
        source: SourceId,
        version: VersionId,
        charge: Bytes,
    ) {
        let completion = self.report(move |outcome| Completed::Loaded {
            op,
            segment,
            outcome,
        });
        let part = self.names.version_of(version).and_then(|record| {
            let at = record.parts.iter().position(|part| part.source == source)?;
            let part = record.parts.get(at)?;
            Some((
                at.saturating_sub(1),
                part.supply.as_deref()?.clone(),
                part.bytes,
                Arc::clone(&record.label),
                record.foreign,
            ))
        });
        let Some((file, supply, bytes, label, foreign)) = part else {
            return completion.lost(Lost::Dropped);
        };
        let loaded_bytes = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&loaded_bytes);
        let label = matches!(supply, Supply::File { .. }).then_some(label);
        let listed = listed_as(&supply);
        if let Some(label) = &label {
            let event = LogEvent::of(EventKind::LoadStarted).model(Arc::clone(label));
            self.note(event.bytes(bytes));
        }
        let fed = label.as_ref().filter(|_| !self.tier.devices.is_empty());
        let (feed, writer) = fed.map(|label| HostFeed::loading(label, bytes)).unzip();
        let watcher = label.as_ref();
        let watcher = watcher.and_then(|_| self.watcher((op, segment), bytes));
        let marks = watcher.as_ref().map(|watcher| Arc::clone(&watcher.marks));
        let job = LoadJob {
            hash_later: self.may_hash_later(&supply, bytes),
            first: self.first_pieces(version, file),
            onlooker: watcher.map(|watcher| Box::new(watcher) as _),
            supply,
            charge,
            progress,
            feed: writer,
        };
        let place = self.queue_load(segment, (version, foreign, bytes), job, completion);
        let load = LoadRecord {
            marks,
            feed,
            loaded_bytes,
            bytes,
            began: Instant::now(),
            label,
            listed,
            place,
        };
        self.loads.insert(segment, load);
    }

    fn loaded(&mut self, op: OpId, segment: SegmentId, outcome: Result<Filled, Fault>) {
        failpoint::pass(Point::AfterLoad);
        let record = self.loads.remove(&segment);
        self.end_lending(segment);
        let label = record.as_ref().and_then(|record| record.label.clone());
        let feed = record.as_ref().and_then(|record| record.feed.clone());
        let listed = record.as_ref().and_then(|record| record.listed.clone());
        let load_us = record.as_ref().map_or(0, |record| since_us(record.began));
        let failure = match outcome {
            Ok(loaded) => {
                let (bytes, way) = (loaded.segment.bytes(), loaded.way);
                let marks = record.as_ref().and_then(|record| record.marks.as_ref());
                if let Some(first) = marks.and_then(|marks| marks.first()) {
                    self.metrics.load_first(first);
                }
                if let Some(record) = &record {
                    self.learn_from(&record.place, (bytes, load_us), way);
                }
                if let Some(label) = &label {
                    self.metrics.load_done(bytes, load_us);
                    let event = LogEvent::of(EventKind::LoadDone).model(Arc::clone(label));
                    let how = way.map_or("", ReadWay::as_str);
                    self.note(event.bytes(bytes).detail(&format!("{load_us} us, {how}")));
                    let took_us = loaded.took_us;
                    self.step(Event::Took { op, took_us });
                }
                let digest = loaded.digest;
                if let Some(digest) = digest {
                    self.names.content(segment, (digest, None));
                }
                let in_memory = loaded.segment;
                self.loading.put_together(&in_memory);
                if let Some(feed) = &feed {
                    feed.adopt(Arc::clone(&in_memory));
                }
                let held = Held {
                    segment: in_memory,
                    feed,
                    load_us,
                    label,
                    way,
                };
                self.segments.insert(segment, held);
                self.await_keeper(segment, record.and_then(|record| record.marks));
                if digest.is_none() {
                    self.hash_later(segment);
                }
                if let Some(listed) = listed {
                    self.sum(segment, listed);
                }
                return self.keep_loaded(op, segment);
            }
            Err(fault) => {
                self.metrics.load_failed();
                let event = LogEvent::of(EventKind::LoadFailed).detail(&fault.message);
                self.note(match label {
                    Some(label) => event.model(label),
                    None => event,
                });
                LoadFailure::Fault(fault)
            }
        };
        let outcome = Err(failure);
        self.step(Event::Loaded { op, outcome });
    }

    /// Frees what nobody keeps any more.
    pub(super) fn free_on(&mut self, op: OpId, segment: SegmentId, tier: Tier) {
        failpoint::pass(Point::BeforeFree);
        match tier {
            Tier::Host => self.free(op, segment),
            Tier::Device(device) => self.free_image(op, segment, device),
        }
    }

    /// Unmapping gigabytes takes time: it is a worker's job.
    fn free(&mut self, op: OpId, segment: SegmentId) {
        let held = self.segments.remove(&segment);
        let gone = held
            .as_ref()
            .and_then(|held| Some((held.label.clone()?, held.segment.allocated_bytes())));
        let done = self.completed.clone();
        let freed = move || drop(done.send(Completed::Freed { op, segment, gone }));
        match held {
            // A device may still be reading it.
            Some(Held {
                segment,
                feed: Some(feed),
                ..
            }) => {
                feed.when_gone(Box::new(freed));
                if let Some(lanes) = &self.lanes {
                    // A lane that takes no more work drops them at once.
                    drop(lanes.submit(Lane::Freeing, Box::new(move || drop((segment, feed)))));
                }
            }
            held => {
                let completion = Completion::new(move |_: Result<(), Lost>| freed());
                run_in(&self.lanes, Lane::Freeing, completion, move || drop(held));
            }
        }
    }

    /// Lets go of opened files unless somebody still waits for their bytes. They are closed in the
    /// lane that opened them: a disk that hangs, hangs there.
    pub(super) fn drop_supplies(&mut self) {
        let view = self.core.view();
        self.names
            .drop_supplies_unless(|version| view.waits_for_room(version));
        for Dropped { foreign, supplies } in self.names.take_dropped() {
            if let Some(lanes) = &self.lanes {
                // A lane that takes no more work drops them at once.
                drop(lanes.submit(lane_of(foreign), Box::new(move || drop(supplies))));
            }
        }
    }

    /// Forgets a model id that the decider has no use for. A name whose uses it remembers comes back
    /// under the same id.
    pub(super) fn forget_if_unknown(&mut self, model: ModelId) {
        let view = self.core.view();
        let comes_back = self.names.has_name(model) && view.remembers(model);
        if view.model(model).is_none() && !comes_back {
            self.names.forget_model(model);
        }
    }
}

/// Runs work in a lane; once the lanes are shut down, it is lost.
pub(super) fn run_in<T: 'static>(
    lanes: &Option<Lanes>,
    lane: Lane,
    completion: Completion<T>,
    work: impl FnOnce() -> T + Send + 'static,
) {
    match lanes {
        Some(lanes) => lanes.run(lane, completion, work),
        None => completion.lost(Lost::ShuttingDown),
    }
}

pub(super) const fn lane_of(foreign: bool) -> Lane {
    if foreign {
        Lane::Foreign
    } else {
        Lane::Registered
    }
}

pub(super) fn fault(code: ErrorCode, message: &dyn std::fmt::Display) -> Fault {
    Fault {
        code: code.number(),
        message: Arc::from(message.to_string()),
    }
}

/// What a file is to be compared with once it is in memory.
fn listed_as(supply: &Supply) -> Option<Listed> {
    match supply {
        Supply::Table(_) => None,
        Supply::File {
            source,
            identity,
            expected,
            ..
        } => Some(Listed {
            expected: Arc::clone(expected.as_ref()?),
            identity: *identity,
            file: source.label().to_owned(),
        }),
    }
}

//! Whether what is in memory is what was loaded: on demand, and of all that was taken over.
//!
//! One thread, of the lowest priority, reads one segment after the other. What does not hold what
//! it should is reported to the decider, which takes it from everybody but its holders, and to the
//! operator; the models that it was of are loaded anew.

mod digest;
mod files;

use super::State;
use super::work::{Completed, fault};
use crate::integrity::{Listed, Verdict, check_host, sha256_of, step_back};
use crate::status::ReplyTo;
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::view::{IntegrityView, Verified, VerifiedOutcome, VerifiedSegment};
use crate::status::{Place, WarmOn};
use crate::transfer::{Completion, Hung, LanesError, Lost, Threads};
use files::{File, Files};
use mrm_core::event::{Event, Fault};
use mrm_core::id::{ModelId, SegmentId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::{SegmentState, SlotView};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::ids::Digest;
use mrm_proto::name::ModelName;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Most segments that may wait to be checked: more than there can be.
const WAITING_MAX: usize = 1 << 20;
/// How long a model that was damaged may wait for room to be loaded again.
const RELOAD_WAIT_MS: u64 = 60_000;

/// What is being checked, and what came of it so far.
#[derive(Default)]
pub(super) struct Verifying {
    /// Started with the first check.
    thread: Option<Threads>,
    stop: Arc<AtomicBool>,
    running: BTreeMap<SegmentId, Running>,
    asked: Vec<Asked>,
    /// Segments that hold another file than is listed, and that the decider does not know as
    /// loaded yet.
    others: BTreeMap<SegmentId, Fault>,
}

/// A segment that is checked, or waits for it.
struct Running {
    about: VerifiedSegment,
    done: Arc<AtomicU64>,
}

/// A question that waits for its segments.
struct Asked {
    reply: ReplyTo<Verified>,
    began: Instant,
    left: BTreeSet<SegmentId>,
    found: Vec<VerifiedSegment>,
}

/// Reads memory and says what is in it.
type Check = Box<dyn FnOnce(&AtomicU64, &dyn Fn() -> bool) -> Verdict + Send>;

impl Verifying {
    fn thread(&mut self) -> Result<&Threads, LanesError> {
        if self.thread.is_none() {
            let thread = Threads::start("mrm-verify", 1, WAITING_MAX)?;
            thread.run(Completion::new(|_: Result<(), Lost>| {}), step_back);
            self.thread = Some(thread);
        }
        self.thread.as_ref().ok_or_else(|| LanesError {
            name: "mrm-verify".to_owned(),
            cause: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// Gives up what waits, and waits for what runs.
    pub(super) fn shut_down(&mut self, deadline: Instant) -> Vec<Hung> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take();
        thread.map_or_else(Vec::new, |thread| Threads::shut_down([thread], deadline))
    }
}

impl State {
    /// Checks all that is resident of a model, or everything.
    pub(super) fn verify(&mut self, name: Option<ModelName>, reply: ReplyTo<Verified>) {
        let segments = match &name {
            None => self.resident_segments(),
            Some(name) => match self.version_named(name) {
                Some(version) => self.segments_of_version(version),
                None if self.is_registered(name) => BTreeSet::new(),
                None => return reply.send(Err(self.not_found(name))),
            },
        };
        let mut left = BTreeSet::new();
        for segment in segments {
            match self.check_segment(segment) {
                Ok(true) => drop(left.insert(segment)),
                Ok(false) => {}
                Err(error) => {
                    let message = error.to_string();
                    return reply.send(Err(ErrorReply::new(ErrorCode::Exhausted, message)));
                }
            }
        }
        self.verifying.asked.push(Asked {
            reply,
            began: Instant::now(),
            left,
            found: Vec::new(),
        });
        self.answer_verified();
    }

    /// Checks what the last daemon left, while it is lent already.
    pub(super) fn verify_adopted(&mut self) {
        for segment in self.resident_segments() {
            if let Err(error) = self.check_segment(segment) {
                let cure = "`mrm verify --all` checks it";
                self.degraded
                    .report("not_verified", error.to_string(), cure);
                return;
            }
        }
    }

    fn resident_segments(&self) -> BTreeSet<SegmentId> {
        let all = self.core.view().segments();
        let resident = all.filter(|segment| segment.state == SegmentState::Resident);
        resident.map(|segment| segment.segment).collect()
    }

    fn segments_of_version(&self, version: VersionId) -> BTreeSet<SegmentId> {
        let Some(shown) = self.core.view().version(version) else {
            return BTreeSet::new();
        };
        let copies = std::iter::once(&shown.host).chain(&shown.devices);
        let slots = copies.flat_map(|copy| &copy.segments);
        let resident = slots.filter(|slot| slot.state == SegmentState::Resident);
        resident.filter_map(|slot| slot.segment).collect()
    }

    /// Has a segment checked, unless it is being; whether there is anything to check.
    fn check_segment(&mut self, segment: SegmentId) -> Result<bool, LanesError> {
        if self.verifying.running.contains_key(&segment) {
            return Ok(true);
        }
        let Some((about, check)) = self
            .check_in_host(segment)
            .or_else(|| self.check_on_device(segment))
        else {
            return Ok(false);
        };
        let done = Arc::new(AtomicU64::new(0));
        let (progress, stop) = (Arc::clone(&done), Arc::clone(&self.verifying.stop));
        let completed = self.completed.clone();
        let completion = Completion::new(move |verdict: Result<Verdict, Lost>| {
            drop(completed.send(Completed::Verified { segment, verdict }));
        });
        let thread = self.verifying.thread()?;
        thread.run(completion, move || {
            check(&progress, &|| !stop.load(Ordering::Relaxed))
        });
        let running = Running { about, done };
        self.verifying.running.insert(segment, running);
        Ok(true)
    }

    fn check_in_host(&self, segment: SegmentId) -> Option<(VerifiedSegment, Check)> {
        let held = self.segments.get(&segment)?;
        let digest = self.names.digest_of(segment)?;
        let memory = Arc::downgrade(&held.segment);
        let about = VerifiedSegment {
            model: held.label.as_ref().map(ToString::to_string),
            part: held.label.as_ref().map_or("table", |_| "file"),
            tier: self.tier_word(Tier::Host),
            bytes: held.segment.bytes(),
            digest: Digest(digest).to_string(),
            outcome: VerifiedOutcome::Gone,
            detail: None,
        };
        let check = move |done: &AtomicU64, go_on: &dyn Fn() -> bool| {
            check_host(&memory, &digest, done, go_on)
        };
        Some((about, Box::new(check)))
    }

    fn check_on_device(&self, segment: SegmentId) -> Option<(VerifiedSegment, Check)> {
        let held = self.images.get(&segment)?;
        let view = self.core.view();
        let Tier::Device(device) = view.segment(segment)?.tier else {
            return None;
        };
        let image = self.tier.device(device)?.check_of(&held.image);
        let about = VerifiedSegment {
            model: Some(held.label.to_string()),
            part: "image",
            tier: self.tier_word(Tier::Device(device)),
            bytes: held.image.bytes(),
            digest: Digest(*held.image.digest()).to_string(),
            outcome: VerifiedOutcome::Gone,
            detail: None,
        };
        let shown = view.versions().find(|shown| {
            let mut slots = shown.devices.iter().flat_map(|copy| &copy.segments);
            slots.any(|slot| slot.segment == Some(segment))
        })?;
        let resident = |slot: &SlotView| {
            let held = self.segments.get(&slot.segment?)?;
            (slot.state == SegmentState::Resident).then(|| Arc::downgrade(&held.segment))
        };
        let mut slots = shown.host.segments.iter();
        let table = slots.next().and_then(resident)?;
        let record = self.names.version_of(shown.version)?;
        let files = record.parts.iter().skip(1).zip(slots);
        let files = files.map(|(part, slot)| File {
            bytes: part.bytes,
            memory: resident(slot),
            state: self.names.source_ref(part.source),
        });
        let origin = Files {
            files: files.collect(),
            name: ModelName::new(&*record.label)
                .ok()
                .filter(|_| !record.foreign),
            catalogue: Arc::clone(&self.catalogue),
            opened: None,
        };
        let check = move |done: &AtomicU64, go_on: &dyn Fn() -> bool| {
            origin.check(&image, &table, (done, go_on))
        };
        Some((about, Box::new(check)))
    }

    /// A segment was checked.
    pub(super) fn verified(&mut self, segment: SegmentId, verdict: Result<Verdict, Lost>) {
        let Some(running) = self.verifying.running.remove(&segment) else {
            return;
        };
        let mut about = running.about;
        self.metrics.checked(running.done.load(Ordering::Relaxed));
        about.outcome = match verdict {
            Ok(Verdict::Intact) => VerifiedOutcome::Intact,
            Ok(Verdict::Gone) => VerifiedOutcome::Gone,
            Ok(Verdict::Unchecked(why)) => {
                about.detail = Some(why);
                VerifiedOutcome::Unchecked
            }
            Ok(Verdict::Damaged { found }) => {
                about.detail = Some(format!("it holds {}", Digest(found)));
                self.metrics.damaged();
                self.damaged(segment, &about);
                VerifiedOutcome::Damaged
            }
            Err(lost) => {
                about.detail = Some(lost.to_string());
                VerifiedOutcome::Unchecked
            }
        };
        self.tell_checked(segment, &about);
    }

    fn tell_checked(&mut self, segment: SegmentId, about: &VerifiedSegment) {
        for asked in &mut self.verifying.asked {
            if asked.left.remove(&segment) {
                asked.found.push(about.clone());
            }
        }
        self.answer_verified();
    }

    fn answer_verified(&mut self) {
        let asked = std::mem::take(&mut self.verifying.asked);
        let (ready, left) = asked.into_iter().partition(|asked| asked.left.is_empty());
        self.verifying.asked = left;
        for Asked {
            reply,
            began,
            found,
            ..
        } in ready
        {
            let bad = |segment: &VerifiedSegment| segment.outcome == VerifiedOutcome::Damaged;
            reply.send(Ok(Verified {
                intact: !found.iter().any(bad),
                bytes: found.iter().map(|segment| segment.bytes).sum(),
                took_ms: began.elapsed().as_secs_f64() * 1e3,
                segments: found,
            }));
        }
    }

    /// Nobody gets this segment any more, and what it was of is loaded anew.
    fn damaged(&mut self, segment: SegmentId, about: &VerifiedSegment) {
        let models = self.models_with(segment);
        let held = self.core.view().segment(segment);
        let (tier, leases) = held.map_or((Tier::Host, 0), |held| (held.tier, held.leases));
        let what = about.model.as_deref().unwrap_or("a tensor table");
        let place = &about.tier;
        let message = format!(
            "`{what}`: its memory in {place} does not hold what was loaded any more; close it and \
             open it again"
        );
        tracing::error!(
            what,
            place,
            leases,
            digest = about.digest,
            "memory is damaged"
        );
        self.degraded.report(
            "damaged",
            message.clone(),
            "it is loaded anew; check the node's memory (ECC counters, a memory test)",
        );
        let mut event = LogEvent::of(EventKind::Damaged)
            .bytes(about.bytes)
            .detail(&format!("in {place}, held by {leases} leases"));
        if let Some(model) = &about.model {
            event = event.model(model.as_str());
        }
        self.note(event);
        self.step(Event::Damaged {
            segment,
            fault: fault(ErrorCode::Damaged, &message),
        });
        // Kept for its holders alone: the next daemon must not find it.
        self.forget_kept_segment(segment);
        for model in models {
            self.load_anew(model, tier);
        }
    }

    /// Compares a file in memory with the list that names it, beside its first use.
    pub(super) fn sum(&mut self, segment: SegmentId, listed: Listed) {
        let Some(held) = self.segments.get(&segment) else {
            return;
        };
        if self.lists.knows(&listed) {
            return;
        }
        let (memory, stop) = (
            Arc::downgrade(&held.segment),
            Arc::clone(&self.verifying.stop),
        );
        let completed = self.completed.clone();
        let completion = Completion::new(move |sha256: Result<Option<[u8; 32]>, Lost>| {
            let sha256 = sha256.ok().flatten();
            let summed = Completed::Summed {
                segment,
                listed,
                sha256,
            };
            drop(completed.send(summed));
        });
        let go_on = move || !stop.load(Ordering::Relaxed);
        match self.verifying.thread() {
            Ok(thread) => thread.run(completion, move || sha256_of(&memory, &go_on)),
            Err(error) => {
                let cure = "raise the daemon's TasksMax or LimitNPROC";
                self.degraded.report("manifest", error.to_string(), cure);
            }
        }
    }

    /// A file was compared with the list that names it; `None`: it was freed before that.
    pub(super) fn summed(&mut self, segment: SegmentId, listed: &Listed, sha256: Option<[u8; 32]>) {
        let Some(sha256) = sha256 else { return };
        if let Err(error) = self.lists.found(listed, sha256) {
            let told = fault(error.code(), &error);
            self.verifying.others.insert(segment, told);
            self.take_away_others();
        }
    }

    /// Takes away what is another file than is listed, once the decider knows of it. It is not
    /// loaded again: the next look at the file finds the same.
    pub(super) fn take_away_others(&mut self) {
        for (segment, fault) in std::mem::take(&mut self.verifying.others) {
            let state = self.core.view().segment(segment).map(|shown| shown.state);
            match state {
                Some(SegmentState::Loading) => drop(self.verifying.others.insert(segment, fault)),
                Some(SegmentState::Resident) => {
                    tracing::error!(why = %fault.message, "a file is not what its list says");
                    let cure = "fetch the file again, or correct the list of digests";
                    self.degraded
                        .report("manifest", fault.message.to_string(), cure);
                    let held = self.segments.get(&segment);
                    let mut event = LogEvent::of(EventKind::Damaged).detail(&fault.message);
                    if let Some(label) = held.and_then(|held| held.label.clone()) {
                        event = event.model(label);
                    }
                    self.note(event);
                    self.step(Event::Damaged { segment, fault });
                    self.forget_kept_segment(segment);
                }
                Some(SegmentState::Absent | SegmentState::Evicting | SegmentState::Damaged)
                | None => {}
            }
        }
    }

    /// The models that stand for something that this segment is a part of.
    fn models_with(&self, segment: SegmentId) -> Vec<ModelId> {
        let view = self.core.view();
        let with = view.versions().filter(|shown| {
            let copies = std::iter::once(&shown.host).chain(&shown.devices);
            let mut slots = copies.flat_map(|copy| &copy.segments);
            slots.any(|slot| slot.segment == Some(segment))
        });
        let versions: Vec<VersionId> = with.map(|shown| shown.version).collect();
        let models = versions.into_iter().flat_map(|id| view.models_of(id));
        models.collect()
    }

    fn load_anew(&mut self, model: ModelId, tier: Tier) {
        let Some(record) = self.names.model(model) else {
            return;
        };
        // What one user has for himself is loaded when he opens it next.
        if record.owner.is_some() && tier != Tier::Host {
            return;
        }
        let name = record.name.clone();
        // What a client passed can only be passed again.
        if self.catalogue.find(&name).is_none() {
            return;
        }
        let on = match tier {
            Tier::Host => WarmOn::Host,
            Tier::Device(_) => match self.tier_word(tier).parse() {
                Ok(Place::Device(uuid)) => WarmOn::Named(uuid),
                Ok(Place::Host) | Err(_) => WarmOn::Host,
            },
        };
        self.warm(name, on, RELOAD_WAIT_MS, None);
    }

    /// How far the checks are.
    pub(super) fn integrity_view(&self) -> IntegrityView {
        let running = self.verifying.running.values();
        let (checked_total, checked_bytes_total, damaged_total) = self.metrics.checks();
        IntegrityView {
            waiting: self.verifying.running.len() as u64,
            waiting_bytes: running.clone().map(|running| running.about.bytes).sum(),
            done_bytes: running
                .map(|running| running.done.load(Ordering::Relaxed))
                .sum(),
            checked_total,
            checked_bytes_total,
            damaged_total,
        }
    }
}

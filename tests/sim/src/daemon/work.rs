//! What blocks, and what comes back from it, as in `shell/work.rs` of the daemon.

use super::names::{Found, ModelOrigin, Supply};
use super::{Daemon, Held, fault, impossible};
use crate::breach::{Checked, Rule, ensure};
use crate::disk::{self, Identity};
use crate::env::{Env, Job};
use crate::memory::AllocId;
use crate::mishap::Mishap;
use mrm_core::effect::Feed;
use mrm_core::event::{Event, Fault, LoadFailure, Part as CorePart, Resolution, SegmentFact};
use mrm_core::id::{Bytes, DeviceId, ModelId, OpId, SegmentId, SourceId, VersionId};
use mrm_core::ledger::Tier;
use mrm_proto::error::ErrorCode;
use std::collections::BTreeSet;

/// How long a look, a read, a completion and a free take at most, as a rule.
const LOOK_US: u64 = 4_000;
const READ_US: u64 = 20_000;
const ARRIVE_US: u64 = 2_000;
const FREE_US: u64 = 8_000;
/// How long a slow read takes at most.
const SLOW_US: u64 = 1_200_000;
/// Between two looks at a feed that is not there yet.
const FEED_US: u64 = 2_000;

/// Something on its way into memory.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) version: VersionId,
    pub(super) tier: Tier,
    pub(super) charge: Bytes,
    order: Order,
    pub(super) alloc: Option<AllocId>,
    /// It may be lent before it is filled.
    pub(super) laid: bool,
    pub(super) cancelled: bool,
    outcome: Option<Result<u64, Failed>>,
}

/// Where its bytes come from.
#[derive(Debug, Clone)]
pub(super) enum Order {
    Table(u64),
    /// One file, as it is.
    File(Identity),
    /// Files, as a device wants them.
    Files(Vec<Identity>),
    Host(Vec<SegmentId>),
    Peer(SegmentId),
}

/// Why it did not come.
#[derive(Debug, Clone)]
pub(super) enum Failed {
    Fault(Fault),
    /// There is no memory; how much there is, if that is known.
    Short(Option<u64>),
    /// The device is gone.
    Lost,
    /// The device that it was to be copied from is gone.
    Peer(DeviceId),
}

impl Daemon {
    /// Looks at a model's files.
    pub(super) fn look(&mut self, env: &mut Env, op: OpId, model: ModelId) {
        let failed = env.strikes(Mishap::ResolveFails);
        let registered = |name| {
            let there = env.disk.is_registered(name);
            let files = env.disk.files(name).map(<[u64]>::to_vec);
            match (there, files) {
                (true, Some(files)) => Ok(files),
                (true, None) => Err(ErrorCode::SourceMissing),
                (false, _) => Err(ErrorCode::ModelNotFound),
            }
        };
        let files = match self.names.model_mut(model) {
            Some(ModelOrigin::Registered(name)) => registered(*name),
            Some(ModelOrigin::Passed(files)) => files.take().ok_or(ErrorCode::BadFileSet),
            None => Err(ErrorCode::Internal),
        };
        let found = match files {
            Ok(_) if failed => Err(fault(ErrorCode::SourceUnreadable, "cannot be opened")),
            Ok(files) => Ok(Found {
                files: files
                    .iter()
                    .filter_map(|inode| env.disk.look(*inode))
                    .collect(),
            }),
            Err(code) => Err(fault(code, "not found")),
        };
        self.found.insert(op, found);
        let us = env.work_us(LOOK_US);
        self.plan(env, us, Job::Found { op, model });
    }

    pub(super) fn resolved(&mut self, env: &mut Env, op: OpId, model: ModelId) -> Checked {
        let Some(found) = self.found.remove(&op) else {
            return impossible("a look that was not begun has ended");
        };
        let outcome = match (found, self.names.model_mut(model).is_some()) {
            (Ok(found), true) => self.take_in(env, model, &found),
            (Ok(_), false) => return impossible("a model is forgotten while it is resolved"),
            (Err(fault), _) => Err(fault),
        };
        let version = outcome.as_ref().ok().map(|found| found.version);
        self.step(env, Event::Resolved { op, outcome })?;
        if let Some(version) = version
            && self.core.view().version(version).is_none()
        {
            self.names.forget_version(version);
        }
        self.supplies_stale = true;
        self.forget_if_unknown(model);
        Ok(())
    }

    /// Gives what was found its numbers.
    fn take_in(&mut self, env: &Env, model: ModelId, found: &Found) -> Result<Resolution, Fault> {
        if self.names.files_waiting() + found.files.len() > env.settings.files_waiting_max {
            return Err(fault(ErrorCode::Exhausted, "too many opened files wait"));
        }
        let owner = self.names.owner(model);
        let version = self.names.version((found, owner), !self.budgets.is_empty());
        self.names.call(version, model);
        let segments = self.facts(version);
        let sources: BTreeSet<SourceId> = segments.iter().map(|fact| fact.source).collect();
        if sources.len() < segments.len() {
            self.names.forget_version(version);
            return Err(fault(ErrorCode::ShardMismatch, "one file twice"));
        }
        Ok(Resolution { version, segments })
    }

    /// What the decider is told of a version.
    pub(super) fn facts(&self, version: VersionId) -> Vec<SegmentFact> {
        let Some(record) = self.names.version_of(version) else {
            return Vec::new();
        };
        let kinds = std::iter::once(CorePart::Table).chain(std::iter::repeat(CorePart::File));
        let parts = record
            .parts
            .iter()
            .zip(kinds)
            .map(|(part, kind)| SegmentFact {
                source: part.source,
                charge: Bytes(part.bytes),
                pieces: 1,
                part: kind,
            });
        let image = record.image.map(|image| SegmentFact {
            source: image.source,
            charge: Bytes(image.bytes),
            pieces: image.pieces,
            part: CorePart::Image,
        });
        parts.chain(image).collect()
    }

    /// Where the bytes of a load come from.
    pub(super) fn order(
        &self,
        version: VersionId,
        source: SourceId,
        tier: Tier,
        feed: &Feed,
    ) -> Checked<Order> {
        let Some(record) = self.names.version_of(version) else {
            return impossible("a load of a version that is not known");
        };
        match (tier, feed) {
            (Tier::Host, _) => {
                let part = record.parts.iter().find(|part| part.source == source);
                match part.and_then(|part| part.supply) {
                    Some(Supply::Table(content)) => Ok(Order::Table(content)),
                    Some(Supply::File(identity)) => Ok(Order::File(identity)),
                    None => impossible("a load of what is not open any more"),
                }
            }
            (Tier::Device(_), Feed::Source) => {
                let files = record.parts.iter().skip(1).map(|part| match part.supply {
                    Some(Supply::File(identity)) => Some(identity),
                    Some(Supply::Table(_)) | None => None,
                });
                match files.collect() {
                    Some(files) => Ok(Order::Files(files)),
                    None => impossible("a fill from what is not open any more"),
                }
            }
            (Tier::Device(_), Feed::Host(segments)) => Ok(Order::Host(segments.to_vec())),
            (Tier::Device(_), Feed::Peer(segment)) => Ok(Order::Peer(*segment)),
        }
    }

    pub(super) fn load(
        &mut self,
        env: &mut Env,
        (op, segment): (OpId, SegmentId),
        (version, tier, charge): (VersionId, Tier, Bytes),
        order: Order,
    ) -> Checked {
        for feed in feeds(&order) {
            let there = self
                .segments
                .get(feed)
                .is_some_and(|held| held.freeing.is_none());
            ensure(there || self.loads.contains_key(feed), Rule::Held, || {
                format!("{segment} is to be filled from {feed}, which is not there")
            })?;
            *self.feeding.entry(*feed).or_default() += 1;
        }
        let load = Load {
            version,
            tier,
            charge,
            order,
            alloc: None,
            laid: false,
            cancelled: false,
            outcome: None,
        };
        let before = self.loads.insert(segment, load);
        ensure(before.is_none(), Rule::Effects, || {
            format!("{segment} is loaded twice")
        })?;
        let us = env.work_us(ARRIVE_US);
        self.plan(env, us, Job::Allocate { op, segment });
        Ok(())
    }

    /// Takes the memory for a load.
    pub(super) fn allocate(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(load) = self.loads.get_mut(&segment) else {
            return impossible("memory for a load that is not under way");
        };
        let (tier, bytes) = (load.tier, load.charge.0);
        let refused = match tier {
            Tier::Host => env.strikes(Mishap::HostOutOfMemory),
            Tier::Device(_) => env.strikes(Mishap::DeviceOutOfMemory),
        };
        if load.cancelled || env.memory.is_lost(tier) {
            return self.failed(env, (op, segment), Failed::Lost);
        }
        if refused {
            // A driver may say that there is more than it gives, or nothing.
            let free = env.memory.free(tier).filter(|_| env.random.coin());
            return self.failed(env, (op, segment), Failed::Short(free));
        }
        match env.memory.allocate(tier, bytes) {
            Ok(alloc) => load.alloc = Some(alloc),
            Err(short) => return self.failed(env, (op, segment), Failed::Short(Some(short.free))),
        }
        let slow = env.strikes(Mishap::ReadSlow);
        let us = if slow {
            env.random.below(SLOW_US)
        } else {
            env.work_us(READ_US)
        };
        self.plan(env, us, Job::Read { op, segment });
        self.lay(env, op, segment)
    }

    /// Says that the memory of a file is there, as is done for those that are large.
    fn lay(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(load) = self.loads.get_mut(&segment) else {
            return impossible("a load vanished");
        };
        let (Order::File(_), Some(alloc)) = (&load.order, load.alloc) else {
            return Ok(());
        };
        if env.random.below(4) == 0 {
            return Ok(());
        }
        load.laid = true;
        env.memory.lay(alloc)?;
        self.step(env, Event::Laid { op })
    }

    /// Reads or copies what a load is filled from.
    pub(super) fn read(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(load) = self.loads.get(&segment) else {
            return impossible("a read for a load that is not under way");
        };
        if load.cancelled || env.memory.is_lost(load.tier) {
            return self.failed(env, (op, segment), Failed::Lost);
        }
        let read = match &load.order {
            Order::Table(content) => Ok(*content),
            Order::File(identity) => read_file(env, *identity),
            Order::Files(files) => {
                let contents = files.iter().map(|file| read_file(env, *file));
                contents
                    .collect::<Result<Vec<u64>, Failed>>()
                    .map(|of| disk::image_of(&of))
            }
            Order::Host(segments) => {
                if segments.iter().any(|feed| self.loads.contains_key(feed)) {
                    self.plan(env, FEED_US, Job::Read { op, segment });
                    return Ok(());
                }
                self.copy_up(env, segments)?
            }
            Order::Peer(peer) => self.copy_across(env, *peer)?,
        };
        let content = match read {
            Ok(content) => content,
            Err(failed) => return self.failed(env, (op, segment), failed),
        };
        let Some(load) = self.loads.get_mut(&segment) else {
            return impossible("a load vanished");
        };
        if load.laid && env.strikes(Mishap::PagesPinned) {
            return self.begin_anew(env, op, segment);
        }
        if let Some(alloc) = load.alloc {
            env.memory.fill(alloc, content)?;
        }
        load.outcome = Some(Ok(content));
        let us = env.work_us(ARRIVE_US);
        self.plan(env, us, Job::Loaded { op, segment });
        Ok(())
    }

    /// The user for whom alone is what a version has on a tier.
    fn owner_on(&self, tier: Tier, version: VersionId) -> Option<u32> {
        match tier {
            Tier::Host => None,
            Tier::Device(_) => self.names.version_of(version)?.owner,
        }
    }

    /// What was lent cannot be sealed: it is thrown away, and the file read into other memory.
    fn begin_anew(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(load) = self.loads.get_mut(&segment) else {
            return impossible("a load vanished");
        };
        load.laid = false;
        let (tier, bytes) = (load.tier, load.charge.0);
        if let Some(alloc) = load.alloc.take() {
            env.memory.spoil(alloc)?;
            env.memory.let_go(alloc)?;
        }
        let short = match env.memory.allocate(tier, bytes) {
            Ok(alloc) => {
                load.alloc = Some(alloc);
                None
            }
            Err(short) => Some(short.free),
        };
        let fault = fault(ErrorCode::Exhausted, "pages are pinned");
        self.step(env, Event::Unlaid { op, fault })?;
        if let Some(free) = short {
            return self.failed(env, (op, segment), Failed::Short(Some(free)));
        }
        let us = env.work_us(READ_US);
        self.plan(env, us, Job::Read { op, segment });
        Ok(())
    }

    fn failed(
        &mut self,
        env: &mut Env,
        (op, segment): (OpId, SegmentId),
        failed: Failed,
    ) -> Checked {
        if let Some(load) = self.loads.get_mut(&segment) {
            if load.laid {
                // It may be lent until the decider knows.
            } else if let Some(alloc) = load.alloc.take() {
                env.memory.let_go(alloc)?;
            }
            load.outcome = Some(Err(failed));
        }
        let us = env.work_us(ARRIVE_US);
        self.plan(env, us, Job::Loaded { op, segment });
        Ok(())
    }

    /// A load ended.
    pub(super) fn loaded(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(mut load) = self.loads.remove(&segment) else {
            return impossible("a load that is not under way has ended");
        };
        for feed in feeds(&load.order) {
            self.end_feed(env, *feed);
        }
        if let (Some(Err(_)), Some(alloc)) = (&load.outcome, load.alloc) {
            env.memory.spoil(alloc)?;
            env.memory.let_go(alloc)?;
            load.alloc = None;
        }
        let outcome = match (load.outcome, load.alloc) {
            (Some(Ok(content)), Some(alloc)) => {
                let (tier, freeing) = (load.tier, None);
                self.segments.insert(
                    segment,
                    Held {
                        alloc,
                        tier,
                        freeing,
                    },
                );
                let is_file = matches!(load.order, Order::File(_));
                if is_file && env.strikes(Mishap::HashedLater) {
                    self.hash_later(env, segment);
                    Ok(self.names.unknown_content())
                } else {
                    let owner = self.owner_on(tier, load.version);
                    Ok(self.names.content(segment, (content, owner)))
                }
            }
            (Some(Err(failed)), None) => Err(match load.tier {
                Tier::Host => LoadFailure::Fault(on_host(failed)),
                Tier::Device(device) => self.fill_failed(env, device, load.charge, failed)?,
            }),
            (_, _) => return impossible("a load ended without an end"),
        };
        let there = outcome.is_ok();
        self.step(env, Event::Loaded { op, outcome })?;
        self.supplies_stale = true;
        if there {
            self.sealed(env, segment)
        } else {
            Ok(())
        }
    }

    /// What a segment holds will be known in a while.
    pub(super) fn hash_later(&mut self, env: &mut Env, segment: SegmentId) {
        let us = env.work_us(READ_US);
        self.plan(env, us, Job::Identified(segment));
        self.names.unknown(segment);
    }

    /// What a segment holds is known, if it is still there.
    pub(super) fn identified(&mut self, env: &mut Env, segment: SegmentId) -> Checked {
        let Some(held) = self.segments.get(&segment) else {
            return Ok(());
        };
        let read = env.memory.read(held.alloc)?;
        let content = self.names.content(segment, (read, None));
        self.step(env, Event::Identified { segment, content })
    }

    /// One load less is filled from a segment.
    fn end_feed(&mut self, env: &mut Env, segment: SegmentId) {
        if let Some(loads) = self.feeding.get_mut(&segment) {
            *loads -= 1;
            if *loads == 0 {
                self.feeding.remove(&segment);
                let held = self.segments.get(&segment);
                if let Some(op) = held.and_then(|held| held.freeing) {
                    self.free_later(env, op, segment);
                }
            }
        }
    }

    /// Lets go of a segment, as soon as nothing is filled from it.
    pub(super) fn free(
        &mut self,
        env: &mut Env,
        op: OpId,
        segment: SegmentId,
        tier: Tier,
    ) -> Checked {
        let Some(held) = self.segments.get_mut(&segment) else {
            return impossible("what is not there is freed");
        };
        let before = held.freeing.replace(op);
        ensure(held.tier == tier && before.is_none(), Rule::Effects, || {
            format!("{segment} is freed on {tier}: {held:?}")
        })?;
        let content = env.memory.read(held.alloc)?;
        if !self.feeding.contains_key(&segment) {
            self.free_later(env, op, segment);
            return Ok(());
        }
        // What is there twice may go: the copy from it goes on, and the other is kept for it.
        let mut others = self
            .segments
            .values()
            .filter(|other| other.freeing.is_none());
        let twin = others.any(|other| {
            let same = env
                .memory
                .read(other.alloc)
                .is_ok_and(|there| there == content);
            other.tier == tier && same
        });
        ensure(twin || self.is_lost(tier), Rule::Held, || {
            format!("{segment} is freed while another is filled from it")
        })
    }

    fn free_later(&self, env: &mut Env, op: OpId, segment: SegmentId) {
        let us = env.work_us(FREE_US);
        self.plan(env, us, Job::Freed { op, segment });
    }

    pub(super) fn freed(&mut self, env: &mut Env, op: OpId, segment: SegmentId) -> Checked {
        let Some(held) = self.segments.remove(&segment) else {
            return impossible("what is not there was freed");
        };
        env.memory.let_go(held.alloc)?;
        self.names.forget_segment(segment);
        self.step(env, Event::Freed { op })
    }
}

/// The segments that a load is filled from.
fn feeds(order: &Order) -> &[SegmentId] {
    match order {
        Order::Table(_) | Order::File(_) | Order::Files(_) => &[],
        Order::Host(segments) => segments,
        Order::Peer(segment) => std::slice::from_ref(segment),
    }
}

fn read_file(env: &mut Env, identity: Identity) -> Result<u64, Failed> {
    let failed = |code, why| Err(Failed::Fault(fault(code, why)));
    if env.strikes(Mishap::ReadFails) {
        return failed(ErrorCode::SourceUnreadable, "the read failed");
    }
    if env.strikes(Mishap::ReadShort) {
        return failed(ErrorCode::SourceChanged, "it is shorter");
    }
    if env.strikes(Mishap::ReadWrong) {
        let other = env.random.below(env.settings.contents);
        env.disk.overwrite(identity.inode, other, env.now);
    }
    match env.disk.read(identity) {
        Some(content) => Ok(content),
        None => failed(ErrorCode::SourceChanged, "it was written to"),
    }
}

fn on_host(failed: Failed) -> Fault {
    match failed {
        Failed::Fault(fault) => fault,
        Failed::Short(_) => fault(ErrorCode::OutOfMemory, "the kernel has no memory"),
        Failed::Lost | Failed::Peer(_) => fault(ErrorCode::DeviceFailed, "a device failed"),
    }
}

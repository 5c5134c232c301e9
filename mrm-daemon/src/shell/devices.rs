//! The device tier: what is filled and freed on each device, and how each device is.

use super::names::Supply;
use super::work::{Completed, fault};
use super::{HEALTH_EVERY, Shell, State, Who};
use crate::config::{DeviceBudget, DeviceConfig};
use crate::device::{
    Device, DeviceImage, DeviceReport, Feed, FileFeed, FillError, FillOrder, HealthError, Refused,
};
use crate::failpoint::{self, Point};
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::view::DriverView;
use crate::transfer::{Completion, Hung, Lost};
use mrm_core::effect::Feed as CoreFeed;
use mrm_core::event::{Event, Fault, LoadFailure};
use mrm_core::id::{Bytes, DeviceId, LeaseId, OpId, SegmentId, SessionId, VersionId};
use mrm_core::ledger::Tier;
use mrm_cuda::MemoryInfo;
use mrm_proto::error::ErrorCode;
use mrm_proto::hello::features;
use mrm_proto::ids;
use mrm_proto::reply::{Reply, Revoked};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// The devices, and why there are no more of them.
pub(crate) struct DeviceTier {
    pub(crate) config: DeviceConfig,
    pub(crate) driver: DriverView,
    /// The place in the list is the decider's number.
    pub(crate) devices: Vec<Managed>,
    pub(crate) refused: Vec<Refused>,
}

/// A device that is used.
pub(crate) struct Managed {
    /// `None` once it is shut down.
    device: Option<Device>,
    pub(super) report: DeviceReport,
    pub(super) budget: DeviceBudget,
    /// What the driver reported last.
    pub(super) free_bytes: u64,
    /// Why it is of no use any more.
    pub(super) lost: Option<Arc<str>>,
    checking: bool,
}

/// Weights on a device.
pub(super) struct HeldImage {
    pub(super) image: Arc<DeviceImage>,
    pub(super) label: Arc<str>,
}

/// Weights on their way to a device.
pub(super) struct FillRecord {
    version: VersionId,
    pub(super) bytes: u64,
    pub(super) filled_bytes: Arc<AtomicU64>,
    pub(super) device: DeviceId,
    charge: Bytes,
    cancel: Arc<AtomicBool>,
    began: Instant,
    label: Arc<str>,
}

/// What `Effect::Load` says of an image.
pub(super) struct FillEffect {
    pub(super) op: OpId,
    pub(super) segment: SegmentId,
    pub(super) version: VersionId,
    pub(super) charge: Bytes,
    pub(super) device: DeviceId,
    pub(super) feed: CoreFeed,
}

impl Managed {
    pub(crate) fn new(device: Device, report: DeviceReport, budget: DeviceBudget) -> Self {
        Self {
            free_bytes: report.free_bytes,
            device: Some(device),
            report,
            budget,
            lost: None,
            checking: false,
        }
    }

    /// What was found out about it when the daemon started.
    pub(crate) const fn report(&self) -> &DeviceReport {
        &self.report
    }

    /// What models may take of it.
    pub(crate) const fn budget(&self) -> &DeviceBudget {
        &self.budget
    }
}

impl HeldImage {
    pub(super) const fn new(image: Arc<DeviceImage>, label: Arc<str>) -> Self {
        Self { image, label }
    }
}

impl DeviceTier {
    pub(super) fn get(&self, id: DeviceId) -> Option<&Managed> {
        self.devices.get(usize::from(id.0))
    }

    fn get_mut(&mut self, id: DeviceId) -> Option<&mut Managed> {
        self.devices.get_mut(usize::from(id.0))
    }

    pub(super) fn device(&self, id: DeviceId) -> Option<&Device> {
        self.get(id)?.device.as_ref()
    }

    /// Every device with its number.
    pub(super) fn all(&self) -> impl Iterator<Item = (DeviceId, &Managed)> {
        (0..=u16::MAX).map(DeviceId).zip(&self.devices)
    }

    pub(super) fn find(&self, uuid: ids::DeviceUuid) -> Option<DeviceId> {
        let mut all = self.all();
        all.find(|(_, managed)| managed.report.uuid == uuid)
            .map(|(id, _)| id)
    }

    /// What operators and clients call a device.
    pub(super) fn name(&self, id: DeviceId) -> String {
        let managed = self.get(id);
        managed.map_or_else(|| id.to_string(), |managed| managed.report.uuid.to_string())
    }

    /// Ends the threads; names those that do not end in time.
    pub(super) fn shut_down(&mut self, deadline: Instant) -> Vec<Hung> {
        let devices = self.devices.iter_mut().filter_map(|m| m.device.take());
        devices
            .flat_map(|device| device.shut_down(deadline))
            .collect()
    }

    /// What a layout is charged, on whichever device: bytes and allocations.
    pub(super) fn charge_for(&self, layout: &mrm_proto::layout::Layout) -> (u64, u64) {
        let devices = self.devices.iter().filter_map(|m| m.device.as_ref());
        let charges = devices.map(|device| device.charge_for(layout));
        charges.fold((0, 0), |most, one| (most.0.max(one.0), most.1.max(one.1)))
    }
}

impl Shell {
    /// New budgets for the devices. All else about them stays as it was at the start.
    pub(crate) fn replace_device_budgets(&self, config: DeviceConfig) -> Result<(), String> {
        self.with(|state| state.replace_device_budgets(config))
    }
}

impl State {
    fn replace_device_budgets(&mut self, config: DeviceConfig) -> Result<(), String> {
        let budgets = self.tier.devices.iter().map(|managed| {
            let report = &managed.report;
            config.budget_of(report.uuid, report.total_bytes)
        });
        let budgets = budgets.collect::<Result<Vec<_>, _>>();
        let budgets = budgets.map_err(|error| error.to_string())?;
        let numbered = (0..=u16::MAX).map(DeviceId).zip(budgets);
        for (id, budget) in numbered {
            if let Some(managed) = self.tier.get_mut(id) {
                managed.budget = budget;
            }
            // The next look at the device lowers it, if others take more than they were left.
            let bytes = Bytes(budget.budget_bytes);
            self.step(Event::SetLimit {
                tier: Tier::Device(id),
                budget: bytes,
                limit: bytes,
            });
        }
        let before = &self.tier.config;
        self.tier.config = DeviceConfig {
            uuids: before.uuids.clone(),
            settings: before.settings,
            user_reserve_percent: before.user_reserve_percent,
            ..config
        };
        Ok(())
    }

    /// Carries out `Effect::Load` for an image.
    pub(super) fn fill(&mut self, effect: FillEffect) {
        let FillEffect {
            op,
            segment,
            version,
            charge,
            device,
            feed,
        } = effect;
        let done = self.completed.clone();
        let completion = Completion::new(move |outcome| {
            drop(done.send(Completed::Filled {
                op,
                segment,
                outcome,
            }));
        });
        let filled_bytes = Arc::new(AtomicU64::new(0));
        let cancel = Arc::new(AtomicBool::new(false));
        let watched = (Arc::clone(&filled_bytes), Arc::clone(&cancel));
        let order = self.fill_order(version, charge, &feed, watched);
        let (Some((order, label, bytes)), Some(target)) = (order, self.tier.device(device)) else {
            return completion.lost(Lost::Dropped);
        };
        failpoint::pass(Point::BeforeFill);
        target.fill_async(order, completion);
        let record = FillRecord {
            version,
            bytes,
            filled_bytes,
            device,
            charge,
            cancel,
            began: Instant::now(),
            label: Arc::clone(&label),
        };
        self.fills.insert(segment, record);
        let event = LogEvent::of(EventKind::LoadStarted).model(label);
        let place = format!("on {}", self.tier.name(device));
        self.note(event.bytes(bytes).detail(&place));
    }

    fn fill_order(
        &self,
        version: VersionId,
        charge: Bytes,
        feed: &CoreFeed,
        (progress, cancel): (Arc<AtomicU64>, Arc<AtomicBool>),
    ) -> Option<(FillOrder, Arc<str>, u64)> {
        let record = self.names.version_of(version)?;
        let image = record.image.as_ref()?.as_ref().ok()?;
        let (table, files) = record.parts.split_first()?;
        let Some(Supply::Table(table)) = table.supply.as_deref() else {
            return None;
        };
        let feed = match feed {
            CoreFeed::Host(segments) => {
                let feeds = segments.iter().map(|segment| self.feed_of(*segment));
                Feed::Host(feeds.collect::<Option<_>>()?)
            }
            CoreFeed::Source => {
                let files = files.iter().map(|part| file_feed(part.supply.as_deref()));
                Feed::Files(files.collect::<Option<_>>()?)
            }
            CoreFeed::Peer(segment) => Feed::Peer(Arc::clone(&self.images.get(segment)?.image)),
        };
        let order = FillOrder {
            table: Arc::clone(table),
            granularity: image.granularity,
            charge_bytes: charge.0,
            feed,
            foreign: record.foreign,
            progress,
            cancel,
        };
        Some((order, Arc::clone(&record.label), image.bytes))
    }

    fn feed_of(&self, segment: SegmentId) -> Option<Arc<crate::device::HostFeed>> {
        let loading = self.loads.get(&segment).map(|load| &load.feed);
        let feed = loading.or_else(|| Some(&self.segments.get(&segment)?.feed));
        feed?.clone()
    }

    /// A fill ended.
    pub(super) fn filled(
        &mut self,
        op: OpId,
        segment: SegmentId,
        outcome: Result<Result<DeviceImage, FillError>, Lost>,
    ) {
        failpoint::pass(Point::AfterFill);
        let record = self.fills.remove(&segment);
        self.supplies_stale = true;
        let failure = match (outcome, record) {
            (Ok(Ok(image)), Some(record)) => {
                self.arrived(segment, image, &record);
                return self.keep_loaded(op, segment);
            }
            (Ok(Err(error)), Some(record)) => self.fill_failed(error, &record),
            (Err(lost), _) => LoadFailure::Fault(fault(lost.code(), &lost)),
            (Ok(_), None) => {
                let message = "a fill that nobody asked for";
                LoadFailure::Fault(fault(ErrorCode::Internal, &message))
            }
        };
        let outcome = Err(failure);
        self.step(Event::Loaded { op, outcome });
    }

    fn arrived(&mut self, segment: SegmentId, image: DeviceImage, record: &FillRecord) {
        let took_us = u64::try_from(record.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let uuid = self.tier.name(record.device);
        self.metrics.device_fill_done(&uuid, image.bytes(), took_us);
        let event = LogEvent::of(EventKind::LoadDone).model(Arc::clone(&record.label));
        let detail = format!("on {uuid}, {took_us} us");
        self.note(event.bytes(image.bytes()).detail(&detail));
        let owner = self
            .names
            .version_of(record.version)
            .and_then(|of| of.owner);
        self.names.content(segment, (*image.digest(), owner));
        let held = HeldImage {
            image: Arc::new(image),
            label: Arc::clone(&record.label),
        };
        self.images.insert(segment, held);
    }

    fn fill_failed(&mut self, error: FillError, record: &FillRecord) -> LoadFailure {
        let uuid = self.tier.name(record.device);
        self.metrics.device_fill_failed(&uuid);
        let event = LogEvent::of(EventKind::LoadFailed).model(Arc::clone(&record.label));
        self.note(event.detail(&error.to_string()));
        let told = fault(error.code(), &error);
        match error {
            FillError::OutOfMemory { free_bytes, .. } => {
                if let (Some(bytes), Some(managed)) = (free_bytes, self.tier.get_mut(record.device))
                {
                    managed.free_bytes = bytes;
                }
                // What it calls free and does not give is no room: counted as such it would let the
                // same be tried again, with nothing evicted for it.
                let short = Bytes(record.charge.0.saturating_sub(1));
                let free = free_bytes.map_or(short, |bytes| Bytes(bytes).min(short));
                self.reconcile(record.device, free, record.charge);
                // So that what passes is over soon.
                self.check_device(record.device);
                LoadFailure::OutOfMemory(told)
            }
            FillError::Lost { .. } => {
                self.lose(record.device, &told);
                LoadFailure::Fault(told)
            }
            FillError::Peer { peer, .. } => {
                if let Some(peer) = self.tier.find(peer) {
                    self.check_device(peer);
                }
                LoadFailure::Fault(told)
            }
            FillError::PeerDiffers { .. }
            | FillError::Driver { .. }
            | FillError::Descriptors(_)
            | FillError::Feed(_)
            | FillError::Source(_)
            | FillError::TooLarge { .. }
            | FillError::Layout(_) => LoadFailure::Fault(told),
        }
    }

    /// Frees an image that nobody keeps any more.
    pub(super) fn free_image(&mut self, op: OpId, segment: SegmentId, device: DeviceId) {
        let held = self.images.remove(&segment);
        let done = self.completed.clone();
        let uuid = self.tier.name(device);
        if let Some(held) = &held {
            let charged = held.image.charged_bytes();
            self.metrics.device_evicted(&uuid, charged);
            let event = LogEvent::of(EventKind::DeviceEvicted).model(Arc::clone(&held.label));
            let event = event.bytes(charged).detail(&format!("on {uuid}"));
            let why = self.take_reason(segment);
            self.note(match why {
                Some(why) => event.why(why.on(&uuid)),
                None => event,
            });
        }
        let completion = Completion::new(move |outcome| {
            match outcome {
                Ok(Ok(())) => {}
                // The next look at the device's memory tells the decider what is missing.
                Ok(Err(error)) => tracing::warn!(%error, "memory of a device is not free yet"),
                Err(lost) => tracing::warn!(%lost, "memory of a device is not free yet"),
            }
            drop(done.send(Completed::Freed {
                op,
                segment,
                gone: None,
            }));
        });
        match (held, self.tier.device(device)) {
            (Some(held), Some(target)) => target.free_async(held.image, completion),
            (_, _) => completion.done(Ok(())),
        }
    }

    /// Carries out `Effect::Revoke`.
    pub(super) fn revoke(
        &mut self,
        (session, lease): (SessionId, LeaseId),
        gone: bool,
        fault: &Fault,
    ) {
        if gone {
            self.end_early((session, lease));
        }
        self.note(
            LogEvent::of(EventKind::LeaseRevoked)
                .session(session.0)
                .detail(&fault.message),
        );
        let told = Reply::Revoked(Revoked {
            lease: ids::LeaseId(lease.0),
            number: fault.code,
            message: fault.message.to_string(),
        });
        let needed = if gone {
            features::DEVICE | features::EARLY
        } else {
            features::DAMAGE
        };
        if let Some(Who::Client { io, features, .. }) = self.sessions.get(&session).map(|s| &s.who)
            && features & needed != 0
        {
            io.send(ids::RequestId::NO_REPLY, &told, Vec::new());
        }
    }

    /// A device is of no use any more: its models and leases go.
    fn lose(&mut self, device: DeviceId, why: &Fault) {
        let uuid = self.tier.name(device);
        let Some(managed) = self.tier.get_mut(device) else {
            return;
        };
        if managed.lost.is_some() {
            return;
        }
        managed.lost = Some(Arc::clone(&why.message));
        tracing::error!(device = %uuid, cause = %why.message, "a device is lost");
        self.degraded.report(
            "device_lost",
            why.message.to_string(),
            "models are served from host memory; start mrmd anew when the device is well",
        );
        self.note(LogEvent::of(EventKind::DeviceLost).detail(&why.message));
        let leases = self.core.view().leases();
        for _ in leases.filter(|lease| lease.tier == Tier::Device(device)) {
            self.metrics.device_lease_revoked(&uuid);
        }
        for fill in self.fills.values().filter(|fill| fill.device == device) {
            fill.cancel.store(true, Ordering::Relaxed);
        }
        let fault = Fault {
            code: ErrorCode::DeviceLost.number(),
            message: Arc::clone(&why.message),
        };
        self.step(Event::DeviceLost { device, fault });
    }

    /// Brings a device's limit in line with what of it is free. `undone` is charged, and takes
    /// nothing.
    fn reconcile(&mut self, device: DeviceId, free: Bytes, undone: Bytes) {
        let tier = Tier::Device(device);
        let ledger = self.core.view().ledger(tier);
        let Some(managed) = self.tier.get_mut(device) else {
            return;
        };
        let budget = Bytes(managed.budget.budget_bytes);
        let there = ledger.charged.saturating_sub(undone);
        let limit = there.saturating_add(free).min(budget);
        if limit != ledger.limit && managed.lost.is_none() {
            tracing::debug!(
                device = %managed.report.uuid,
                limit_bytes = limit.0,
                budget_bytes = budget.0,
                free_bytes = free.0,
                "what others take of a device changed its limit"
            );
            self.step(Event::SetLimit {
                tier,
                budget,
                limit,
            });
        }
    }

    /// Asks every device how it is, if it is time to.
    pub(super) fn check_devices(&mut self) {
        if self.health_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.health_at = Some(Instant::now() + HEALTH_EVERY);
        let ids: Vec<DeviceId> = self.tier.all().map(|(id, _)| id).collect();
        for id in ids {
            self.check_device(id);
        }
    }

    fn check_device(&mut self, id: DeviceId) {
        let done = self.completed.clone();
        let Some(managed) = self.tier.get_mut(id) else {
            return;
        };
        if managed.checking || managed.lost.is_some() {
            return;
        }
        if let Some(device) = &managed.device {
            managed.checking = true;
            device.health_async(Completion::new(move |outcome| {
                drop(done.send(Completed::Checked {
                    device: id,
                    outcome,
                }));
            }));
        }
    }

    /// A device said how it is, or did not.
    pub(super) fn checked(
        &mut self,
        device: DeviceId,
        outcome: Result<Result<MemoryInfo, HealthError>, Lost>,
    ) {
        if let Some(managed) = self.tier.get_mut(device) {
            managed.checking = false;
            if let Ok(Ok(memory)) = &outcome {
                managed.free_bytes = memory.free_bytes;
            }
        }
        match outcome {
            Ok(Ok(memory)) => {
                // While memory comes and goes, what is free says nothing about what others take.
                let at_rest = self.core.view().ledger(Tier::Device(device)).freeing == Bytes::ZERO
                    && self.fills.values().all(|fill| fill.device != device);
                if at_rest {
                    self.reconcile(device, Bytes(memory.free_bytes), Bytes::ZERO);
                }
            }
            Ok(Err(error)) if error.lost => {
                self.lose(device, &fault(ErrorCode::DeviceLost, &error));
            }
            Ok(Err(error)) => tracing::warn!(%error, "a device does not answer well"),
            Err(lost) => tracing::warn!(%lost, "a device was not looked at"),
        }
    }

    /// Gives up all fills: the daemon ends.
    pub(super) fn cancel_fills(&self) {
        for fill in self.fills.values() {
            fill.cancel.store(true, Ordering::Relaxed);
        }
    }
}

fn file_feed(supply: Option<&Supply>) -> Option<FileFeed> {
    match supply? {
        Supply::Table(_) => None,
        Supply::File {
            source,
            identity,
            check,
            expected: _,
        } => Some(FileFeed {
            source: Arc::clone(source),
            identity: *identity,
            check: *check,
        }),
    }
}

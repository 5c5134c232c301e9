//! Where a client wants its weights, and the frames that lend them.

use super::answer::wire_origin;
use super::names::ModelOrigin;
use super::{Pending, State, Who};
use crate::device::Exported;
use crate::failpoint::{self, Point};
use crate::wire::LentFd;
use mrm_core::effect::Origin;
use mrm_core::event::{AnyOf, Event, Wanted};
use mrm_core::id::{Bytes, DeviceId, LeaseId, ModelId, SegmentId, SessionId, VersionId};
use mrm_core::ledger::Tier;
use mrm_cuda::Mechanism;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::hello::features;
use mrm_proto::ids;
use mrm_proto::limits::{DEVICES_PER_OPEN_MAX, FDS_PER_FRAME_MAX};
use mrm_proto::reply::{Handed, IpcHandle, OnDevice, Opened, Reply, Sharing};
use mrm_proto::request::{Devices, WaitFor};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Most allocations in one frame: `Opened` carries the tensor table as well.
const HANDED_MAX: usize = FDS_PER_FRAME_MAX - 1;

/// What the decider granted.
pub(super) struct Granted {
    pub(super) lease: LeaseId,
    pub(super) version: VersionId,
    pub(super) tier: Tier,
    pub(super) origin: Origin,
}

/// Why an open cannot even be asked for.
pub(super) enum Unwanted {
    /// It is refused.
    Refused(ErrorReply),
    /// The client broke the protocol.
    Broken(ErrorReply),
}

/// One `Handed` on its way.
type Batch = (Handed, Vec<LentFd>);

/// One `Opened` on its way, but for what its tier adds.
struct Lent {
    opened: Opened,
    fds: Vec<LentFd>,
}

impl State {
    /// Where an open wants its model to be.
    pub(super) fn wanted(
        &self,
        session: SessionId,
        (devices, wait_for): (Option<&Devices>, Option<WaitFor>),
    ) -> Result<Wanted, Unwanted> {
        let Some(devices) = devices else {
            let early = self.by_layout(session, wait_for);
            return Ok(if early { Wanted::Layout } else { Wanted::Host });
        };
        if devices.any_of.len() > DEVICES_PER_OPEN_MAX {
            let message = format!(
                "{} devices were named, an open may name {DEVICES_PER_OPEN_MAX}",
                devices.any_of.len()
            );
            let error = ErrorReply::new(ErrorCode::MalformedBody, message);
            return Err(Unwanted::Broken(error));
        }
        let mut known: Vec<DeviceId> = Vec::new();
        for device in devices
            .any_of
            .iter()
            .filter_map(|uuid| self.tier.find(*uuid))
        {
            if !known.contains(&device) {
                known.push(device);
            }
        }
        let agreed = self.agreed(session, features::DEVICE);
        match (known.is_empty() || !agreed, devices.else_host) {
            (true, true) => Ok(Wanted::Host),
            (true, false) => Err(Unwanted::Refused(self.unknown_device(devices))),
            (false, true) => Ok(Wanted::Best(self.keeping_free(session, known, devices))),
            (false, false) => Ok(Wanted::Device(self.keeping_free(session, known, devices))),
        }
    }

    /// Whether the client of a session and this daemon both know `feature`.
    pub(super) fn agreed(&self, session: SessionId, feature: u64) -> bool {
        let record = self.sessions.get(&session);
        record.is_some_and(|record| record.agreed(feature))
    }

    /// These devices, with what the client asks to be kept free there.
    fn keeping_free(&self, session: SessionId, known: Vec<DeviceId>, asked: &Devices) -> AnyOf {
        let agreed = self.agreed(session, features::RESERVE);
        let reserve = asked.reserve_bytes.filter(|_| agreed);
        AnyOf::from(known).with_reserve(Bytes(reserve.unwrap_or(0)))
    }

    /// What leases on a model keep free on a device, as the operator says.
    pub(super) fn workspace_of(&self, model: ModelId) -> Bytes {
        let record = self.names.model(model);
        let registered = record.filter(|record| matches!(record.origin, ModelOrigin::Registered));
        let declared = registered.and_then(|record| self.workspaces.get(&record.name));
        declared.copied().unwrap_or_default()
    }

    fn unknown_device(&self, devices: &Devices) -> ErrorReply {
        let why = self.not_served(&devices.any_of);
        let message = why + "; or open it in host memory";
        ErrorReply::new(ErrorCode::UnknownDevice, message)
    }

    /// Which devices the daemon has, or why none.
    pub(super) fn devices_there(&self) -> String {
        let own: Vec<String> = self.tier.all().map(|(id, _)| self.tier.name(id)).collect();
        match (&self.tier.driver.cause, own.is_empty()) {
            (_, false) => format!("has {}", own.join(", ")),
            (Some(cause), true) => format!("has no device: {cause}"),
            (None, true) => "has no device: see device.enabled and `mrm doctor`".to_owned(),
        }
    }

    /// Why none of these devices will do.
    pub(super) fn not_served(&self, any_of: &[ids::DeviceUuid]) -> String {
        let named: Vec<String> = any_of.iter().map(ToString::to_string).collect();
        let why = self.devices_there();
        let refused = self
            .tier
            .refused
            .iter()
            .find(|refused| any_of.contains(&refused.uuid));
        match refused {
            Some(refused) => format!("{} is not used: {}", refused.uuid, refused.cause),
            None if named.is_empty() => format!("no device was named; the daemon {why}"),
            None => format!("the daemon does not serve {}; it {why}", named.join(", ")),
        }
    }

    /// Sends what was granted.
    pub(super) fn grant(
        &mut self,
        (session, request): (SessionId, ids::RequestId),
        pending: &Pending,
        granted: Granted,
        segments: &[SegmentId],
    ) {
        let took_us = u64::try_from(pending.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (lease, origin, tier) = (granted.lease, granted.origin, granted.tier);
        let is_known = pending.known == Some(granted.version);
        let Some((handed, lent)) = self.lent((granted, is_known), segments, took_us) else {
            tracing::error!(label = %pending.label, "a granted segment is not there");
            let error = ErrorReply::new(ErrorCode::Internal, "a granted segment is not there");
            self.followups.push_back(Event::Close {
                session,
                request: None,
                lease,
            });
            return self.send(session, request, &Reply::Error(error));
        };
        failpoint::pass(Point::BeforeGrant);
        if let Some(Who::Client { io, .. }) = self.sessions.get(&session).map(|s| &s.who) {
            for (handed, fds) in handed {
                io.send(request, &Reply::Handed(handed), fds);
            }
            let filling = lent.opened.filling.clone();
            io.grant(request, lent.opened, lent.fds);
            if let (Some(filling), Some((_, weights))) = (filling, segments.split_first()) {
                self.begin_early((session, lease), weights, &filling);
            }
        }
        failpoint::pass(Point::AfterGrant);
        if let (Origin::Promoted, Tier::Device(device)) = (origin, tier) {
            self.metrics.device_promoted(&self.tier.name(device));
        }
        self.record_open(session, pending, origin, took_us);
    }

    fn lent(
        &self,
        (granted, is_known): (Granted, bool),
        segments: &[SegmentId],
        took_us: u64,
    ) -> Option<(Vec<Batch>, Lent)> {
        let (table, weights) = segments.split_first()?;
        let table = &self.segments.get(table)?.segment;
        let mut lent = Lent {
            opened: Opened {
                lease: ids::LeaseId(granted.lease.0),
                version: ids::VersionId(granted.version.0),
                origin: wire_origin(granted.origin),
                table_bytes: if is_known { 0 } else { table.bytes() },
                segments_bytes: Vec::with_capacity(weights.len()),
                took_us,
                device: None,
                filling: None,
            },
            fds: Vec::with_capacity(segments.len()),
        };
        if !is_known {
            lent.fds.push(lend(table));
        }
        let handed = match granted.tier {
            Tier::Host => {
                let mut filling = Vec::new();
                for (index, id) in (0..).zip(weights) {
                    let marks = self.marks_of(*id);
                    if marks.is_some() {
                        filling.push(index);
                    }
                    let (bytes, fd) = match self.segments.get(id) {
                        Some(held) => (held.segment.bytes(), lend(&held.segment)),
                        None => (marks?.bytes(), lend(&marks?.fd()?)),
                    };
                    lent.opened.segments_bytes.push(bytes);
                    lent.fds.push(fd);
                }
                lent.opened.filling = (!filling.is_empty()).then_some(filling);
                Vec::new()
            }
            Tier::Device(_) => self.lend_image(*weights.first()?, &mut lent)?,
        };
        Some((handed, lent))
    }

    fn lend_image(&self, segment: SegmentId, lent: &mut Lent) -> Option<Vec<Batch>> {
        let image = &self.images.get(&segment)?.image;
        let exports = image.exports();
        let mut batches: Vec<&[Exported]> = exports.chunks(HANDED_MAX).collect();
        let last = batches.pop().unwrap_or_default();
        let mut from = 0;
        let handed = batches.into_iter().map(|batch| {
            let (fds, handles) = split(batch);
            let handed = Handed { from, handles };
            from += batch.len() as u64;
            (handed, fds)
        });
        let handed = handed.collect();
        let (mut fds, handles) = split(last);
        lent.fds.append(&mut fds);
        let allocations = image.allocations().iter();
        lent.opened.device = Some(OnDevice {
            uuid: image.uuid(),
            sharing: match image.mechanism() {
                Mechanism::Vmm => Sharing::Vmm,
                Mechanism::Legacy => Sharing::Legacy,
            },
            granularity: image.granularity(),
            allocations_bytes: allocations.map(|allocation| allocation.bytes()).collect(),
            handles,
        });
        Some(handed)
    }
}

fn lend<T: AsFd + Send + Sync + 'static>(what: &Arc<T>) -> LentFd {
    let lent: Arc<dyn AsFd + Send + Sync> = Arc::clone(what) as _;
    Arc::downgrade(&lent)
}

/// Descriptors and handles of exports.
fn split(exports: &[Exported]) -> (Vec<LentFd>, Vec<IpcHandle>) {
    let (mut fds, mut handles) = (Vec::new(), Vec::new());
    for export in exports {
        match export {
            Exported::Fd(fd) => fds.push(lend(fd)),
            Exported::Handle(handle) => handles.push(IpcHandle(*handle)),
        }
    }
    (fds, handles)
}

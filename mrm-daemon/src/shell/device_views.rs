//! What operators and clients see of the device tier.

use super::State;
use super::devices::Managed;
use crate::config::Granularity;
use crate::device::{Refused, Register};
use crate::status::view::{
    DeviceCopyStateView, DeviceStateView, DeviceView, DevicesView, GranularityView,
    ModelDeviceView, RegistrationStateView, RegistrationView,
};
use mrm_core::event::Part;
use mrm_core::id::{CopyId, DeviceId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::view::{CopyView, Presence, SegmentState, VersionView};
use mrm_proto::reply::{DeviceState, ModelState};

const REGISTER_DEGRADED: &str = "device_register";

impl State {
    pub(super) fn devices_view(&self) -> DevicesView {
        let used = self
            .tier
            .all()
            .map(|(id, managed)| self.device_view(id, managed));
        let refused = self
            .tier
            .refused
            .iter()
            .map(|refused| self.refused_view(refused));
        DevicesView {
            driver: self.tier.driver.clone(),
            devices: used.chain(refused).collect(),
        }
    }

    fn device_view(&self, id: DeviceId, managed: &Managed) -> DeviceView {
        let tier = Tier::Device(id);
        let ledger = self.core.view().ledger(tier);
        let (report, lost) = (&managed.report, managed.lost.as_deref());
        let leases = self.core.view().leases();
        let images = self.images.values();
        let fills = self.fills.values();
        DeviceView {
            uuid: report.uuid.to_string(),
            name: Some(report.name.clone()),
            pci_bus_id: Some(report.pci_bus_id.clone()),
            state: match lost {
                Some(_) => DeviceStateView::Lost,
                None => DeviceStateView::Ready,
            },
            cause: lost.map(str::to_owned),
            cure: lost.map(|_| "start mrmd anew when the device is well".to_owned()),
            sharing: Some(report.mechanism.into()),
            sharing_why: Some(report.why.clone()),
            granularity: granularity_view(self.tier.config.granularity),
            block_bytes: self.block_bytes(),
            total_bytes: report.total_bytes,
            free_bytes: lost.is_none().then_some(managed.free_bytes),
            reserve_bytes: managed.budget.reserve_bytes,
            budget_bytes: managed.budget.budget_bytes,
            limit_bytes: ledger.limit.0,
            charged_bytes: ledger.charged.saturating_sub(ledger.freeing).0,
            reserved_bytes: ledger.reserved.0,
            freeing_bytes: ledger.freeing.0,
            resident_bytes: ledger.resident.0,
            context_bytes: report.context_bytes,
            images: images
                .filter(|held| held.image.uuid() == report.uuid)
                .count() as u64,
            loading: fills.filter(|fill| fill.device == id).count() as u64,
            leases: leases.filter(|lease| lease.tier == tier).count() as u64,
            peers: report.peers.iter().map(ToString::to_string).collect(),
            registration: self.registration_view(managed),
        }
    }

    fn registration_view(&self, managed: &Managed) -> RegistrationView {
        let degraded = self.degraded.list();
        let failed = degraded.iter().find(|path| path.id == REGISTER_DEGRADED);
        let (state, cause) = match (self.tier.config.settings.register, failed) {
            (Register::Never, _) => (RegistrationStateView::Off, None),
            (Register::Auto | Register::Always, _) if !managed.report.read_only_register => {
                let cause = "the device does not register read-only memory".to_owned();
                (RegistrationStateView::Unsupported, Some(cause))
            }
            (Register::Auto | Register::Always, Some(path)) => {
                (RegistrationStateView::Failed, Some(path.cause.clone()))
            }
            (Register::Auto | Register::Always, None) => (RegistrationStateView::On, None),
        };
        RegistrationView { state, cause }
    }

    fn refused_view(&self, refused: &Refused) -> DeviceView {
        DeviceView {
            uuid: refused.uuid.to_string(),
            name: refused.name.clone(),
            pci_bus_id: None,
            state: DeviceStateView::Refused,
            cause: Some(refused.cause.clone()),
            cure: None,
            sharing: None,
            sharing_why: None,
            granularity: granularity_view(self.tier.config.granularity),
            block_bytes: self.block_bytes(),
            total_bytes: 0,
            free_bytes: None,
            reserve_bytes: 0,
            budget_bytes: 0,
            limit_bytes: 0,
            charged_bytes: 0,
            reserved_bytes: 0,
            freeing_bytes: 0,
            resident_bytes: 0,
            context_bytes: None,
            images: 0,
            loading: 0,
            leases: 0,
            peers: Vec::new(),
            registration: RegistrationView {
                state: RegistrationStateView::Off,
                cause: None,
            },
        }
    }

    fn block_bytes(&self) -> Option<u64> {
        let config = &self.tier.config;
        (config.granularity == Granularity::Block).then_some(config.block_bytes)
    }

    /// Where a model is on devices.
    pub(super) fn model_devices(&self, shown: Option<&VersionView>) -> Vec<ModelDeviceView> {
        let version = shown.map(|shown| shown.version);
        let copies = shown.into_iter().flat_map(|shown| &shown.devices);
        let views = copies.filter_map(|copy| self.model_device(version?, copy));
        views.collect()
    }

    fn model_device(&self, version: VersionId, copy: &CopyView) -> Option<ModelDeviceView> {
        let (device, state) = (device_of(copy)?, image_state(copy)?);
        let id = CopyId {
            version,
            tier: copy.tier,
        };
        Some(ModelDeviceView {
            uuid: self.tier.name(device),
            state: match state {
                SegmentState::Loading => DeviceCopyStateView::Loading,
                SegmentState::Resident => DeviceCopyStateView::Resident,
                SegmentState::Absent | SegmentState::Damaged | SegmentState::Evicting => {
                    DeviceCopyStateView::Freeing
                }
            },
            bytes: copy.charged.0,
            reserved_bytes: copy.reserved.0,
            loaded_bytes: self.progress_of_image(id).loaded_bytes,
            leases: copy.leases,
        })
    }

    /// The same for clients.
    pub(super) fn row_devices(&self, version: Option<VersionId>) -> Option<Vec<DeviceState>> {
        if self.tier.devices.is_empty() {
            return None;
        }
        let shown = version.and_then(|version| self.core.view().version(version));
        let copies = shown.iter().flat_map(|shown| &shown.devices);
        let states = copies.filter_map(|copy| {
            image_state(copy)?;
            Some(DeviceState {
                uuid: self.tier.get(device_of(copy)?)?.report().uuid,
                state: match copy.presence {
                    Presence::Absent => ModelState::Absent,
                    Presence::Loading => ModelState::Loading,
                    Presence::Resident => ModelState::Resident,
                    Presence::Partial => ModelState::Partial,
                },
                bytes: copy.charged.0,
                leases: copy.leases,
            })
        });
        Some(states.collect())
    }
}

fn device_of(copy: &CopyView) -> Option<DeviceId> {
    match copy.tier {
        Tier::Host => None,
        Tier::Device(device) => Some(device),
    }
}

/// Where the image is in its life, if there is one.
fn image_state(copy: &CopyView) -> Option<SegmentState> {
    let mut slots = copy.segments.iter();
    let image = slots.find(|slot| slot.part == Part::Image)?;
    (image.state != SegmentState::Absent).then_some(image.state)
}

const fn granularity_view(granularity: Granularity) -> GranularityView {
    match granularity {
        Granularity::Model => GranularityView::Model,
        Granularity::Block => GranularityView::Block,
        Granularity::Tensor => GranularityView::Tensor,
    }
}

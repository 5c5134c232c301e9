//! Where the operator wants a model, and the words for where it is.

use super::super::State;
use crate::status::{Place, WarmOn};
use mrm_core::event::Wanted;
use mrm_core::id::DeviceId;
use mrm_core::ledger::Tier;
use mrm_cuda::DeviceUuid;
use mrm_proto::error::{ErrorCode, ErrorReply};
use std::sync::Arc;

impl State {
    /// What to ask the decider for.
    pub(super) fn wanted_on(&self, on: WarmOn) -> Result<Wanted, ErrorReply> {
        let all: Arc<[DeviceId]> = self.tier.all().map(|(id, _)| id).collect();
        match (on, all.is_empty()) {
            (WarmOn::Host, _) | (WarmOn::Best, true) => Ok(Wanted::Host),
            (WarmOn::Best, false) => Ok(Wanted::Best(all.into())),
            (WarmOn::Device, false) => Ok(Wanted::Device(all.into())),
            (WarmOn::Device, true) => Err(unknown_device(format!(
                "the daemon {}",
                self.devices_there()
            ))),
            (WarmOn::Named(uuid), _) => Ok(Wanted::Device([self.served(uuid)?].into())),
        }
    }

    /// The tier that a place is.
    pub(in super::super) fn tier_at(&self, place: Place) -> Result<Tier, ErrorReply> {
        match place {
            Place::Host => Ok(Tier::Host),
            Place::Device(uuid) => self.served(uuid).map(Tier::Device),
        }
    }

    /// The place that a tier is: `host`, or the UUID of a device.
    pub(in super::super) fn tier_word(&self, tier: Tier) -> String {
        match tier {
            Tier::Host => Place::Host.to_string(),
            Tier::Device(device) => self.tier.name(device),
        }
    }

    fn served(&self, uuid: DeviceUuid) -> Result<DeviceId, ErrorReply> {
        let known = self.tier.find(uuid);
        known.ok_or_else(|| unknown_device(self.not_served(&[uuid])))
    }
}

fn unknown_device(message: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::UnknownDevice, message)
}

//! The devices: what each can copy from, and whether it is still there.

use crate::DeviceConfig;
use crate::id::DeviceId;
use crate::ledger::{Amount, Tier};
use crate::violation::Violation;

#[derive(Debug)]
struct Device {
    peers: Vec<DeviceId>,
    lost: bool,
    user_reserve_percent: u8,
}

/// All of them, as many as were configured.
#[derive(Debug)]
pub(crate) struct Devices(Vec<Device>);

impl Devices {
    pub(crate) fn new(configs: Vec<DeviceConfig>) -> Self {
        let device = |config: DeviceConfig| Device {
            peers: config.peers,
            lost: false,
            user_reserve_percent: config.user_reserve_percent,
        };
        Self(configs.into_iter().map(device).collect())
    }

    /// What the ledger is to know of each.
    pub(crate) fn budgets(configs: &[DeviceConfig]) -> Vec<Amount> {
        let budget = |config: &DeviceConfig| Amount {
            bytes: config.budget,
            segments: config.pieces_max,
        };
        configs.iter().map(budget).collect()
    }

    pub(crate) fn expect(&self, id: DeviceId) -> Result<(), Violation> {
        self.get(id).map(|_| ()).ok_or(Violation::UnknownDevice(id))
    }

    pub(crate) fn expect_tier(&self, tier: Tier) -> Result<(), Violation> {
        match tier {
            Tier::Host => Ok(()),
            Tier::Device(id) => self.expect(id),
        }
    }

    /// How much of a device's budget the leases of one user may keep free, in percent.
    pub(crate) fn user_reserve_percent(&self, id: DeviceId) -> Result<u8, Violation> {
        let device = self.get(id).ok_or(Violation::UnknownDevice(id))?;
        Ok(device.user_reserve_percent)
    }

    /// Each device, and whether it is lost.
    pub(crate) fn all(&self) -> impl Iterator<Item = (DeviceId, bool)> {
        let ids = (0..=u16::MAX).map(DeviceId);
        ids.zip(self.0.iter().map(|device| device.lost))
    }

    /// Whether a device is lost, or never was.
    pub(crate) fn is_lost(&self, id: DeviceId) -> bool {
        self.get(id).is_none_or(|device| device.lost)
    }

    pub(crate) fn tier_is_lost(&self, tier: Tier) -> bool {
        match tier {
            Tier::Host => false,
            Tier::Device(id) => self.is_lost(id),
        }
    }

    pub(crate) fn lose(&mut self, id: DeviceId) {
        if let Some(device) = self.0.get_mut(usize::from(id.0)) {
            device.lost = true;
        }
    }

    /// The devices that are there, whose memory this one can copy from.
    pub(crate) fn peers(&self, id: DeviceId) -> impl Iterator<Item = DeviceId> {
        let peers = self.get(id).into_iter();
        let peers = peers.flat_map(|device| device.peers.iter().copied());
        peers.filter(move |peer| *peer != id && !self.is_lost(*peer))
    }

    fn get(&self, id: DeviceId) -> Option<&Device> {
        self.0.get(usize::from(id.0))
    }
}

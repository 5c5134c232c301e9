//! What is filled on devices, and how they are, as in `shell/devices.rs` of the daemon.

use super::work::Failed;
use super::{Daemon, fault};
use crate::breach::Checked;
use crate::disk;
use crate::env::{Env, Job};
use crate::settings::HEALTH_EVERY_US;
use mrm_core::event::{Event, LoadFailure};
use mrm_core::id::{Bytes, DeviceId, SegmentId, VersionId};
use mrm_core::ledger::Tier;
use mrm_proto::error::ErrorCode;
use std::collections::BTreeSet;

impl Daemon {
    pub(super) fn is_lost(&self, tier: Tier) -> bool {
        matches!(tier, Tier::Device(device) if self.lost.contains(&device))
    }

    /// Versions whose opened files may still be asked for.
    pub(super) fn filling(&self) -> BTreeSet<VersionId> {
        let fills = self.loads.values().filter(|load| load.tier != Tier::Host);
        fills.map(|load| load.version).collect()
    }

    /// An image from the files in host memory.
    pub(super) fn copy_up(
        &self,
        env: &Env,
        segments: &[SegmentId],
    ) -> Checked<Result<u64, Failed>> {
        let mut contents = Vec::new();
        for segment in segments {
            let Some(held) = self.segments.get(segment) else {
                let why = fault(ErrorCode::SourceUnreadable, "what it is copied from failed");
                return Ok(Err(Failed::Fault(why)));
            };
            contents.push(env.memory.read(held.alloc)?);
        }
        Ok(Ok(disk::image_of(&contents)))
    }

    /// An image from another device.
    pub(super) fn copy_across(&self, env: &Env, peer: SegmentId) -> Checked<Result<u64, Failed>> {
        match self.segments.get(&peer) {
            Some(held) if !env.memory.is_gone(held.alloc) => env.memory.read(held.alloc).map(Ok),
            Some(held) => Ok(Err(match held.tier {
                Tier::Device(device) => Failed::Peer(device),
                Tier::Host => Failed::Lost,
            })),
            None => super::impossible("what is copied across is not there"),
        }
    }

    pub(super) fn fill_failed(
        &mut self,
        env: &mut Env,
        device: DeviceId,
        charge: Bytes,
        failed: Failed,
    ) -> Checked<LoadFailure> {
        Ok(match failed {
            Failed::Fault(fault) => LoadFailure::Fault(fault),
            Failed::Short(free) => {
                if let Some(free) = free {
                    self.reconcile(env, device, free, charge)?;
                }
                LoadFailure::OutOfMemory(fault(ErrorCode::OutOfMemory, "the device is full"))
            }
            Failed::Lost => {
                self.lose(env, device)?;
                LoadFailure::Fault(fault(ErrorCode::DeviceLost, "the device is gone"))
            }
            Failed::Peer(peer) => {
                let again = false;
                self.plan(
                    env,
                    0,
                    Job::Health {
                        device: peer,
                        again,
                    },
                );
                LoadFailure::Fault(fault(ErrorCode::DeviceFailed, "another device is gone"))
            }
        })
    }

    /// A device is of no use any more.
    fn lose(&mut self, env: &mut Env, device: DeviceId) -> Checked {
        if !self.lost.insert(device) {
            return Ok(());
        }
        let tier = Tier::Device(device);
        for load in self.loads.values_mut().filter(|load| load.tier == tier) {
            load.cancelled = true;
        }
        let fault = fault(ErrorCode::DeviceLost, "the device is gone");
        self.step(env, Event::DeviceLost { device, fault })
    }

    /// Brings a device's limit in line with what is free there. `undone` is charged, and takes
    /// nothing.
    fn reconcile(&mut self, env: &mut Env, device: DeviceId, free: u64, undone: Bytes) -> Checked {
        let tier = Tier::Device(device);
        let ledger = self.core.view().ledger(tier);
        let budget = self.budgets.get(usize::from(device.0)).copied();
        let budget = Bytes(budget.unwrap_or(0));
        let there = ledger.charged.saturating_sub(undone);
        let limit = there.saturating_add(Bytes(free)).min(budget);
        if limit != ledger.limit && !self.lost.contains(&device) {
            self.step(
                env,
                Event::SetLimit {
                    tier,
                    budget,
                    limit,
                },
            )?;
        }
        Ok(())
    }

    /// Looks at a device.
    pub(super) fn check_device(&mut self, env: &mut Env, device: DeviceId, again: bool) -> Checked {
        let tier = Tier::Device(device);
        if self.lost.contains(&device) {
            return Ok(());
        }
        if env.memory.is_lost(tier) {
            return self.lose(env, device);
        }
        let at_rest = self.core.view().ledger(tier).freeing == Bytes::ZERO
            && self.loads.values().all(|load| load.tier != tier);
        if let (true, Some(free)) = (at_rest, env.memory.free(tier)) {
            self.reconcile(env, device, free, Bytes::ZERO)?;
        }
        if again {
            self.plan(env, HEALTH_EVERY_US, Job::Health { device, again });
        }
        Ok(())
    }
}

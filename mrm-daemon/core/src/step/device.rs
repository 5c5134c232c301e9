//! Devices that have less than was thought, or are lost.

use super::Turn;
use crate::Core;
use crate::admission::{Stage, Target};
use crate::effect::{Effect, Reply};
use crate::event::Fault;
use crate::id::{Bytes, CopyId, DeviceId, SegmentId, VersionId};
use crate::ledger::{Amount, Tier};
use crate::planted::{Bug, planted};
use crate::violation::Violation;

/// How often a want goes back to the queue because its device had less than was thought.
const RETRIES_MAX: u8 = 3;

impl Core {
    /// A load for this copy found no memory. It is tried again if there is something to evict for
    /// it: whoever found out has lowered the limit.
    pub(super) fn out_of_memory(
        &mut self,
        turn: &mut Turn<'_>,
        copy: CopyId,
    ) -> Result<(), Violation> {
        if self.admission.stage(copy) != Some(Stage::Loading) {
            return Ok(());
        }
        let account = self.ledger.account(copy.tier);
        let hope = self.residency.idle_amount(copy.tier).plus(account.freeing) != Amount::ZERO;
        let waited_for = self.admission.first_waiting_for(Target::Copy(copy));
        if hope && waited_for.is_some() && self.admission.readmit(copy, RETRIES_MAX)? {
            self.unreserve_waiting(copy)?;
            return self.change_copy(copy, turn.now, |copy| copy.admitted = false);
        }
        let holders = self.holders(copy.tier)?;
        let refusal = self.no_room((copy, Bytes::ZERO), copy.tier, holders)?;
        self.answer_all(turn, Target::Copy(copy), &Reply::Refused(refusal))
    }

    /// Takes a device out: nothing is admitted there any more, nobody holds anything there, and
    /// what is resident there goes. What is being loaded there goes when that has ended.
    pub(crate) fn device_lost(
        &mut self,
        turn: &mut Turn<'_>,
        device: DeviceId,
        fault: &Fault,
    ) -> Result<(), Violation> {
        self.devices.expect(device)?;
        if self.devices.is_lost(device) {
            return Ok(());
        }
        self.devices.lose(device);
        let tier = Tier::Device(device);
        self.ledger.close(tier);
        self.room_changed = true;
        self.revoke(turn, tier, fault)?;
        let there = self.expected.iter().copied();
        for gone in there
            .filter(|(_, copy)| copy.tier == tier)
            .collect::<Vec<_>>()
        {
            self.expected.remove(&gone);
            let (_, copy) = gone;
            self.change_copy(copy, turn.now, |copy| copy.expected -= 1)?;
        }
        let wants = self.admission.wants().map(|(copy, _)| copy);
        let wants: Vec<CopyId> = wants.filter(|copy| copy.tier == tier).collect();
        for copy in wants {
            self.answer_all(turn, Target::Copy(copy), &Reply::Failed(fault.clone()))?;
        }
        let versions: Vec<VersionId> = self.catalogue.versions.keys().copied().collect();
        for version in versions {
            if self.catalogue.version(version)?.copies.contains_key(&tier) {
                let copy = CopyId { version, tier };
                self.change_copy(copy, turn.now, |copy| copy.lost = true)?;
            }
        }
        let idle = self.residency.idle_index(tier);
        let idle: Vec<SegmentId> = idle.map(|(_, segment)| segment).collect();
        for segment in idle {
            self.evict(turn, segment)?;
        }
        Ok(())
    }

    /// Takes the leases on a tier away, the oldest of each session first.
    fn revoke(&mut self, turn: &mut Turn<'_>, tier: Tier, fault: &Fault) -> Result<(), Violation> {
        let leases = self.leases.all();
        let on_tier = leases.filter(|(_, _, held)| held.copy.tier == tier);
        let gone: Vec<_> = on_tier
            .map(|(session, id, held)| (session, id, *held))
            .collect();
        for (session, lease, held) in gone {
            self.leases.release(session, lease);
            if !planted(Bug::ForgetRevoke) {
                turn.effects.push(Effect::Revoke {
                    session,
                    lease,
                    gone: true,
                    fault: fault.clone(),
                });
            }
            self.lease_ended(turn, (session, lease), held)?;
        }
        Ok(())
    }
}

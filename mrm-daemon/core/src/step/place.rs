//! Which copy an open gets.

use super::Turn;
use super::plan::Claims;
use crate::Core;
use crate::admission::{Key, Stage, Target, Waiting};
use crate::effect::{Origin, Refusal, Reply};
use crate::event::{Part, Wanted};
use crate::id::{Bytes, CopyId, DeviceId, ModelId, SessionId, Time, VersionId};
use crate::lease::Lease;
use crate::ledger::Tier;
use crate::violation::Violation;
use std::sync::Arc;

impl Core {
    /// Gives the open its copy if all of it is resident, else lets it wait for the copy's want.
    pub(super) fn place(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        (model, wanted): (ModelId, Wanted),
        version: VersionId,
        deadline: Time,
    ) -> Result<(), Violation> {
        let copy = match self.choose(version, &wanted)? {
            Ok(tier) => CopyId { version, tier },
            Err(refusal) => return self.turn_away(turn, key, version, refusal),
        };
        if let Some(segments) = self.whole(copy)? {
            let since = turn.now;
            let lease = Lease { model, copy, since };
            return self.grant(turn, key, lease, Origin::Hit, segments);
        }
        if wanted == Wanted::Layout
            && let Some(segments) = self.laid_out(copy)?
        {
            let since = turn.now;
            let lease = Lease { model, copy, since };
            return self.grant(turn, key, lease, Origin::Joined, segments);
        }
        if let Some(full) = self.queue_full(key.0, |waiting| waiting.for_copies)? {
            return self.turn_away(turn, key, version, full);
        }
        if self.admission.stage(copy).is_none() {
            if let Some(refusal) = self.too_large(copy)? {
                return self.turn_away(turn, key, version, refusal);
            }
            self.admission.enqueue(copy);
            self.room_changed = true;
        }
        self.wait(key, (model, wanted), deadline, Target::Copy(copy))
    }

    /// Why no further open of a session may wait, if so. One tenant may have as many waiting as
    /// there are places left, so that there always are some for another.
    pub(super) fn queue_full(
        &self,
        session: SessionId,
        count: impl Fn(Waiting) -> usize,
    ) -> Result<Option<Refusal>, Violation> {
        let tenant = self.leases.session(session)?.tenant;
        let waiting = count(self.admission.waiting());
        let of_tenant = count(self.admission.waiting_of(tenant));
        let left = self.waiting_max.saturating_sub(waiting);
        let full = |waiting, of_tenant| Some(Refusal::QueueFull { waiting, of_tenant });
        Ok(match left {
            0 => full(waiting, false),
            _ if of_tenant > left => full(of_tenant, true),
            _ => None,
        })
    }

    fn turn_away(
        &mut self,
        turn: &mut Turn<'_>,
        key: Key,
        version: VersionId,
        refusal: Refusal,
    ) -> Result<(), Violation> {
        self.touched.insert(version);
        turn.reply(key, Reply::Refused(refusal));
        Ok(())
    }

    /// The tier on which an open gets its copy.
    pub(super) fn choose(
        &mut self,
        version: VersionId,
        wanted: &Wanted,
    ) -> Result<Result<Tier, Refusal>, Violation> {
        let (devices, or_host) = match wanted {
            Wanted::Host | Wanted::Layout => return Ok(Ok(Tier::Host)),
            Wanted::Device(devices) => (devices, false),
            Wanted::Best(devices) => (devices, true),
        };
        Ok(match self.choose_device(version, devices, or_host)? {
            Ok(device) => Ok(Tier::Device(device)),
            Err(_) if or_host => Ok(Tier::Host),
            Err(refusal) => Err(refusal),
        })
    }

    /// A device that has the copy, or will have it, or has the most room for it. `now`: only one
    /// that can make the room now.
    fn choose_device(
        &mut self,
        version: VersionId,
        devices: &Arc<[DeviceId]>,
        now: bool,
    ) -> Result<Result<DeviceId, Refusal>, Violation> {
        if !self.catalogue.version(version)?.has(Part::Image) {
            return Ok(Err(Refusal::NoImage));
        }
        let there = |device: &DeviceId| !self.devices.is_lost(*device);
        let mut alive: Vec<DeviceId> = devices.iter().copied().filter(there).collect();
        for device in &alive {
            if self.whole(CopyId::device(version, *device))?.is_some() {
                return Ok(Ok(*device));
            }
        }
        for device in &alive {
            if self.is_coming(CopyId::device(version, *device), now)? {
                return Ok(Ok(*device));
            }
        }
        let uses = self.policies.uses(self.subject(version));
        if now && uses == 0 {
            let mut later = Vec::new();
            for device in &alive {
                later.push(self.policies.choice(Tier::Device(*device))?.second_use);
            }
            let mut later = later.into_iter();
            alive.retain(|_| !later.next().unwrap_or(false));
        }
        let lost = devices.first().copied().unwrap_or(DeviceId(0));
        let mut refusal = (Bytes::ZERO, Refusal::DeviceLost { device: lost });
        let (mut roomiest, mut largest) = (None, None);
        for device in alive {
            let copy = CopyId::device(version, device);
            let budget = self.ledger.account(copy.tier).budget.bytes;
            if let Some(too_large) = self.too_large(copy)? {
                let first = matches!(refusal.1, Refusal::DeviceLost { .. });
                if first || budget > refusal.0 {
                    refusal = (budget, too_large);
                }
                continue;
            }
            let room = self.room_to_make(copy.tier).bytes;
            if more(room, roomiest) && self.can_be_made(copy)? {
                roomiest = Some((room, device));
            }
            if more(budget, largest) {
                largest = Some((budget, device));
            }
        }
        let chosen = if now { roomiest } else { roomiest.or(largest) };
        Ok(chosen.map(|(_, device)| device).ok_or(refusal.1))
    }

    /// Whether a copy is on its way, or an open waits for it already. `now`: not if that one waits
    /// for room that cannot be made now.
    fn is_coming(&self, copy: CopyId, now: bool) -> Result<bool, Violation> {
        match self.admission.stage(copy) {
            Some(Stage::Loading) => Ok(true),
            Some(Stage::Room) if now => {
                let least = self.least(copy)?;
                Ok(self.blocked_on(&least, &Claims::default())?.is_none())
            }
            Some(Stage::Room) => Ok(true),
            None => self.catalogue.lacks_nothing(copy),
        }
    }
}

/// Whether this device has more than the best so far: the first of equals stays.
fn more(bytes: Bytes, best: Option<(Bytes, DeviceId)>) -> bool {
    best.is_none_or(|(most, _)| bytes > most)
}

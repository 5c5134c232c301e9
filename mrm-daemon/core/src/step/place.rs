//! Which copy an open gets.

use super::Turn;
use super::plan::Claims;
use crate::Core;
use crate::admission::{Key, Stage, Target, Waiting};
use crate::effect::{Origin, Refusal, Reply};
use crate::event::{AnyOf, Part, Wanted};
use crate::id::{Bytes, CopyId, DeviceId, ModelId, SessionId, Tenant, Time, VersionId};
use crate::lease::Lease;
use crate::ledger::Tier;
use crate::violation::Violation;

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
        let copy = match self.choose(key.0, version, &wanted)? {
            Ok(tier) => CopyId { version, tier },
            Err(refusal) => return self.turn_away(turn, key, version, refusal),
        };
        let reserve = wanted.reserve_on(copy.tier);
        let lease = Lease {
            model,
            copy,
            since: turn.now,
            reserve,
        };
        let whole = self.whole(copy)?;
        let hit = whole.is_some();
        if let Some(segments) = whole
            && self.reserve_now(key.0, copy.tier, reserve)?
        {
            return self.grant(turn, key, lease, Origin::Hit, segments);
        }
        if wanted == Wanted::Layout
            && let Some(segments) = self.laid_out(copy)?
        {
            return self.grant(turn, key, lease, Origin::Joined, segments);
        }
        if let Some(full) = self.queue_full(key.0, |waiting| waiting.for_copies)? {
            return self.turn_away(turn, key, version, full);
        }
        let stage = self.admission.stage(copy);
        if (stage.is_none() || reserve > Bytes::ZERO)
            && let Some(refusal) = self.too_large(copy, reserve)?
        {
            return self.turn_away(turn, key, version, refusal);
        }
        match stage {
            Some(Stage::Loading) => {}
            // It may want less kept free than those who wait already.
            Some(Stage::Room) => self.room_changed |= copy.tier != Tier::Host,
            None => {
                self.admission.enqueue(copy);
                self.room_changed = true;
            }
        }
        self.wait(key, (model, wanted), deadline, Target::Copy(copy))?;
        if hit {
            self.admission.set_origin(key, Origin::Hit);
        }
        Ok(())
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
        session: SessionId,
        version: VersionId,
        wanted: &Wanted,
    ) -> Result<Result<Tier, Refusal>, Violation> {
        let (any, or_host) = match wanted {
            Wanted::Host | Wanted::Layout => return Ok(Ok(Tier::Host)),
            Wanted::Device(any) => (any, false),
            Wanted::Best(any) => (any, true),
        };
        Ok(match self.choose_device(session, version, any, or_host)? {
            Ok(device) => Ok(Tier::Device(device)),
            Err(_) if or_host => Ok(Tier::Host),
            Err(refusal) => Err(refusal),
        })
    }

    /// A device that has the copy, or will have it, or has the most room for it. `now`: only one
    /// that can make the room now. What is to stay free is room like any other: a device that has
    /// the copy, but cannot keep that free now, comes after those that can take both.
    fn choose_device(
        &mut self,
        session: SessionId,
        version: VersionId,
        any: &AnyOf,
        now: bool,
    ) -> Result<Result<DeviceId, Refusal>, Violation> {
        if !self.catalogue.version(version)?.has(Part::Image) {
            return Ok(Err(Refusal::NoImage));
        }
        let tenant = self.leases.session(session)?.tenant;
        let reserve = any.reserve;
        let there = |device: &DeviceId| !self.devices.is_lost(*device);
        let mut alive: Vec<DeviceId> = any.devices.iter().copied().filter(there).collect();
        let able = self.able(version, &alive, (tenant, reserve))?;
        if let Some(device) = self.there_or_coming(version, &able, (reserve, now))? {
            return Ok(Ok(device));
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
        let lost = any.devices.first().copied().unwrap_or(DeviceId(0));
        let mut refusal = (Bytes::ZERO, Refusal::DeviceLost { device: lost });
        let (mut roomiest, mut largest) = (None, None);
        let mut possible = Vec::new();
        for device in alive {
            let copy = CopyId::device(version, device);
            let budget = self.ledger.account(copy.tier).budget.bytes;
            if let Some(too_large) = self.too_large(copy, reserve)? {
                let first = matches!(refusal.1, Refusal::DeviceLost { .. });
                if first || budget > refusal.0 {
                    refusal = (budget, too_large);
                }
                continue;
            }
            possible.push(device);
            let room = self.room_to_make(copy.tier).bytes;
            if more(room, roomiest)
                && self.over_share(tenant, copy.tier, reserve)?.is_none()
                && self.can_be_made(copy, reserve)?
            {
                roomiest = Some((room, device));
            }
            if more(budget, largest) {
                largest = Some((budget, device));
            }
        }
        let mut chosen = roomiest.map(|(_, device)| device);
        if chosen.is_none() && !now {
            let later = self.there_or_coming(version, &possible, (reserve, now))?;
            chosen = later.or(largest.map(|(_, device)| device));
        }
        Ok(chosen.ok_or(refusal.1))
    }

    /// The devices that can keep so much free beside a copy now. All of them, if that is nothing.
    fn able(
        &self,
        version: VersionId,
        devices: &[DeviceId],
        (tenant, reserve): (Tenant, Bytes),
    ) -> Result<Vec<DeviceId>, Violation> {
        let mut able = Vec::new();
        for device in devices {
            let copy = CopyId::device(version, *device);
            if reserve == Bytes::ZERO
                || self.over_share(tenant, copy.tier, reserve)?.is_none()
                    && self.can_be_made(copy, reserve)?
            {
                able.push(*device);
            }
        }
        Ok(able)
    }

    /// The first of these devices that has a copy, else the first to which it is on its way.
    fn there_or_coming(
        &mut self,
        version: VersionId,
        devices: &[DeviceId],
        (reserve, now): (Bytes, bool),
    ) -> Result<Option<DeviceId>, Violation> {
        for device in devices {
            if self.whole(CopyId::device(version, *device))?.is_some() {
                return Ok(Some(*device));
            }
        }
        for device in devices {
            if self.is_coming(CopyId::device(version, *device), (reserve, now))? {
                return Ok(Some(*device));
            }
        }
        Ok(None)
    }

    /// Whether a copy is on its way, or an open waits for it already. `now`: not if that one waits
    /// for room that cannot be made now.
    fn is_coming(&self, copy: CopyId, (reserve, now): (Bytes, bool)) -> Result<bool, Violation> {
        match self.admission.stage(copy) {
            Some(Stage::Loading) => Ok(true),
            Some(Stage::Room) if now => {
                let least = self.least(copy, reserve)?;
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

//! Memory, and who has it: the daemon, and clients that mapped what it lent.
//!
//! An allocation is never used for anything else, so that a reader can tell what it reads. It is
//! there as long as anybody has it, as a memfd and an exported device allocation are.

use crate::breach::{Breach, Checked, Rule, breach, ensure};
use mrm_core::ledger::Tier;
use std::collections::{BTreeMap, BTreeSet};

/// One allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AllocId(pub(crate) u64);

#[derive(Debug)]
struct Allocation {
    tier: Tier,
    bytes: u64,
    /// Written once, then sealed.
    content: Option<u64>,
    /// The daemon has it.
    kept: bool,
    /// The keeper has it: its daemon is dead.
    left: bool,
    /// Mappings, and descriptors on their way to clients.
    refs: u64,
    /// Its device is gone.
    lost: bool,
    /// Clients may map it before it is filled.
    laid: bool,
    /// It never will be filled, though clients have mapped it.
    spoilt: bool,
    /// Whose clients it was lent to.
    users: BTreeSet<u32>,
}

#[derive(Debug, Default)]
struct Device {
    capacity: u64,
    others: u64,
    lost: bool,
}

/// All memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    made: u64,
    there: BTreeMap<AllocId, Allocation>,
    devices: BTreeMap<Tier, Device>,
}

/// Why there was no memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Short {
    pub(crate) free: u64,
}

impl Memory {
    pub(crate) fn add_device(&mut self, tier: Tier, capacity: u64) {
        let device = Device {
            capacity,
            ..Device::default()
        };
        self.devices.insert(tier, device);
    }

    /// Takes memory for the daemon. Host memory is as large as the kernel pleases.
    pub(crate) fn allocate(&mut self, tier: Tier, bytes: u64) -> Result<AllocId, Short> {
        if let Some(free) = self.free(tier)
            && free < bytes
        {
            return Err(Short { free });
        }
        self.made += 1;
        let id = AllocId(self.made);
        let allocation = Allocation {
            tier,
            bytes,
            content: None,
            kept: true,
            left: false,
            refs: 0,
            lost: false,
            laid: false,
            spoilt: false,
            users: BTreeSet::new(),
        };
        self.there.insert(id, allocation);
        Ok(id)
    }

    /// What a device has left; `None` for the host.
    pub(crate) fn free(&self, tier: Tier) -> Option<u64> {
        let device = self.devices.get(&tier)?;
        let here = self.there.values().filter(|there| there.tier == tier);
        let taken: u64 = here.map(|there| there.bytes).sum();
        Some(device.capacity.saturating_sub(taken + device.others))
    }

    /// How much others have of a device.
    pub(crate) fn set_others(&mut self, tier: Tier, bytes: u64) {
        if let Some(device) = self.devices.get_mut(&tier) {
            device.others = bytes.min(device.capacity);
        }
    }

    /// A device is gone, with all that was in it.
    pub(crate) fn lose(&mut self, tier: Tier) {
        if let Some(device) = self.devices.get_mut(&tier) {
            device.lost = true;
        }
        for there in self.there.values_mut() {
            there.lost |= there.tier == tier;
        }
    }

    /// Whether this allocation is gone with its device.
    pub(crate) fn is_gone(&self, id: AllocId) -> bool {
        self.there.get(&id).is_some_and(|there| there.lost)
    }

    /// Devices are replaced while no daemon runs.
    pub(crate) fn replace_lost(&mut self) {
        for device in self.devices.values_mut() {
            device.lost = false;
        }
    }

    pub(crate) fn is_lost(&self, tier: Tier) -> bool {
        self.devices.get(&tier).is_some_and(|device| device.lost)
    }

    /// Writes, once.
    pub(crate) fn fill(&mut self, id: AllocId, content: u64) -> Checked {
        let there = self.get_mut(id)?;
        let before = there.content.replace(content);
        let unseen = there.refs == 0 || there.laid;
        ensure(before.is_none() && unseen, Rule::Content, || {
            format!("{id:?} is written over")
        })
    }

    /// It may be mapped before it is filled.
    pub(crate) fn lay(&mut self, id: AllocId) -> Checked {
        self.get_mut(id)?.laid = true;
        Ok(())
    }

    /// It will not be filled.
    pub(crate) fn spoil(&mut self, id: AllocId) -> Checked {
        self.get_mut(id)?.spoilt = true;
        Ok(())
    }

    /// Whether it will never be filled.
    pub(crate) fn is_spoilt(&self, id: AllocId) -> bool {
        self.there.get(&id).is_some_and(|there| there.spoilt)
    }

    /// A client of the user `uid` was lent it. What one who shares nothing was ever lent on a device,
    /// nobody else is.
    pub(crate) fn lent_to(&mut self, id: AllocId, uid: u32, private: &[u32]) -> Checked {
        let there = self.get_mut(id)?;
        there.users.insert(uid);
        let alone = there.users.len() == 1 || !there.users.iter().any(|uid| private.contains(uid));
        let users = &there.users;
        ensure(alone, Rule::Apart, || {
            format!("{id:?} is lent to {users:?}")
        })
    }

    /// What is in it.
    pub(crate) fn read(&self, id: AllocId) -> Checked<u64> {
        let there = self.there.get(&id).ok_or_else(|| gone(id))?;
        let content = there.content;
        content.map_or_else(|| breach(Rule::Content, format!("{id:?} is empty")), Ok)
    }

    /// Whether the daemon has it.
    pub(crate) fn is_kept(&self, id: AllocId) -> bool {
        self.there.get(&id).is_some_and(|there| there.kept)
    }

    /// The daemon lets go of it.
    pub(crate) fn let_go(&mut self, id: AllocId) -> Checked {
        let there = self.get_mut(id)?;
        let kept = std::mem::replace(&mut there.kept, false);
        ensure(kept, Rule::Held, || format!("{id:?} is freed twice"))?;
        self.tidy(id);
        Ok(())
    }

    /// The daemon died. The keeper has this for its successor.
    pub(crate) fn daemon_died(&mut self, left: &BTreeSet<AllocId>) {
        for (id, there) in &mut self.there {
            there.kept = false;
            there.left = left.contains(id);
        }
        self.there.retain(|_, there| there.left || there.refs > 0);
    }

    /// A daemon takes over what the keeper has.
    pub(crate) fn take_over(&mut self, id: AllocId) -> Checked {
        let there = self.get_mut(id)?;
        let left = std::mem::replace(&mut there.left, false);
        there.kept = true;
        ensure(left, Rule::Held, || format!("{id:?} is taken over twice"))
    }

    /// The keeper lets go of what nobody took over.
    pub(crate) fn drop_left(&mut self) {
        for there in self.there.values_mut() {
            there.left = false;
        }
        self.there.retain(|_, there| there.kept || there.refs > 0);
    }

    pub(crate) fn add_ref(&mut self, id: AllocId) -> Checked {
        self.get_mut(id)?.refs += 1;
        Ok(())
    }

    pub(crate) fn drop_ref(&mut self, id: AllocId) -> Checked {
        let there = self.get_mut(id)?;
        there.refs = there.refs.saturating_sub(1);
        self.tidy(id);
        Ok(())
    }

    /// Allocations that the daemon has, and their bytes on a tier.
    pub(crate) fn kept(&self, tier: Tier) -> (usize, u64) {
        let here = self
            .there
            .values()
            .filter(|there| there.tier == tier && there.kept);
        here.fold((0, 0), |(n, bytes), there| (n + 1, bytes + there.bytes))
    }

    /// Allocations that anybody has.
    pub(crate) fn len(&self) -> usize {
        self.there.len()
    }

    fn tidy(&mut self, id: AllocId) {
        if self
            .there
            .get(&id)
            .is_some_and(|there| !there.kept && !there.left && there.refs == 0)
        {
            self.there.remove(&id);
        }
    }

    fn get_mut(&mut self, id: AllocId) -> Checked<&mut Allocation> {
        self.there.get_mut(&id).ok_or_else(|| gone(id))
    }
}

fn gone(id: AllocId) -> Breach {
    Breach {
        rule: Rule::Held,
        what: format!("{id:?} is not there"),
    }
}

//! The policy of each tier, and what all of them look at.

use crate::id::{Bytes, ModelId, Time, VersionId};
use crate::ledger::Tier;
use crate::policy::{Candidate, Choice, Facts, History, Policy, Reloads};
use crate::view::Explained;
use crate::violation::Violation;

/// A tier's policy, and what it was chosen by.
#[derive(Debug)]
struct Seat {
    choice: Choice,
    policy: Box<dyn Policy>,
}

impl Seat {
    fn of(choice: Choice) -> Self {
        let policy = choice.build();
        Self { choice, policy }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Policies {
    host: Seat,
    devices: Vec<Seat>,
    pub(crate) history: History,
    pub(crate) reloads: Reloads,
    /// Why what the last event evicted for want of room was chosen.
    pub(crate) explained: Vec<Explained>,
}

impl Policies {
    pub(crate) fn new(host: Choice, devices: impl Iterator<Item = Choice>) -> Self {
        Self {
            host: Seat::of(host),
            devices: devices.map(Seat::of).collect(),
            history: History::default(),
            reloads: Reloads::default(),
            explained: Vec::new(),
        }
    }

    /// Puts another policy in charge of a tier. It has seen nothing yet.
    pub(crate) fn choose(&mut self, tier: Tier, choice: Choice) -> Result<(), Violation> {
        let seat = self.seat_mut(tier)?;
        if seat.choice.rule == choice.rule {
            seat.choice = choice;
        } else {
            *seat = Seat::of(choice);
        }
        Ok(())
    }

    /// Puts one in charge that cannot be chosen.
    pub(crate) fn install(&mut self, tier: Tier, policy: Box<dyn Policy>) -> Result<(), Violation> {
        self.seat_mut(tier)?.policy = policy;
        Ok(())
    }

    pub(crate) fn policy(&self, tier: Tier) -> Result<&dyn Policy, Violation> {
        Ok(&*self.seat(tier)?.policy)
    }

    pub(crate) fn choice(&self, tier: Tier) -> Result<Choice, Violation> {
        Ok(self.seat(tier)?.choice)
    }

    /// The policy of a tier, to be told of something, and what it looks at.
    pub(crate) fn at(
        &mut self,
        tier: Tier,
        (now, capacity): (Time, Bytes),
    ) -> Result<(&mut (dyn Policy + 'static), Facts<'_>), Violation> {
        let seat = match tier {
            Tier::Host => Some(&mut self.host),
            Tier::Device(id) => self.devices.get_mut(usize::from(id.0)),
        };
        let facts = Facts {
            now,
            capacity,
            history: &self.history,
        };
        Ok((&mut *seat.ok_or(unknown(tier))?.policy, facts))
    }

    /// Tells the policy of a tier of a use.
    pub(crate) fn used(
        &mut self,
        tier: Tier,
        when: (Time, Bytes),
        used: &Candidate,
    ) -> Result<(), Violation> {
        let (policy, facts) = self.at(tier, when)?;
        policy.used(&facts, used);
        Ok(())
    }

    /// Tells the policy of a tier of what nobody has asked for yet.
    pub(crate) fn arrived(
        &mut self,
        tier: Tier,
        when: (Time, Bytes),
        arrived: &Candidate,
    ) -> Result<(), Violation> {
        let (policy, facts) = self.at(tier, when)?;
        policy.arrived(&facts, arrived);
        Ok(())
    }

    /// Tells the policy of a tier that something of these versions has left it.
    pub(crate) fn dropped(
        &mut self,
        tier: Tier,
        versions: impl Iterator<Item = VersionId>,
    ) -> Result<(), Violation> {
        let seat = self.seat_mut(tier)?;
        versions.for_each(|version| seat.policy.dropped(version));
        Ok(())
    }

    /// How often a model was used.
    pub(crate) fn uses(&self, subject: Option<ModelId>) -> u64 {
        self.history.uses(subject)
    }

    fn seat(&self, tier: Tier) -> Result<&Seat, Violation> {
        let seat = match tier {
            Tier::Host => Some(&self.host),
            Tier::Device(id) => self.devices.get(usize::from(id.0)),
        };
        seat.ok_or(unknown(tier))
    }

    fn seat_mut(&mut self, tier: Tier) -> Result<&mut Seat, Violation> {
        let seat = match tier {
            Tier::Host => Some(&mut self.host),
            Tier::Device(id) => self.devices.get_mut(usize::from(id.0)),
        };
        seat.ok_or(unknown(tier))
    }
}

/// The host always has its policy.
const fn unknown(tier: Tier) -> Violation {
    let device = match tier {
        Tier::Host => crate::id::DeviceId(u16::MAX),
        Tier::Device(device) => device,
    };
    Violation::UnknownDevice(device)
}

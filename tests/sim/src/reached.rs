//! How much of the decider a run got to see. A simulation that reaches little finds little.

use mrm_core::effect::{Effect, Feed, Origin, Refusal, Reply};
use mrm_core::ledger::Tier;
use mrm_core::view::Foreseen;
use std::collections::BTreeMap;

/// How often each thing was asked of the shell.
#[derive(Debug, Clone, Default)]
pub struct Reached(BTreeMap<&'static str, u64>);

impl Reached {
    /// Everything that a decider may ask for.
    pub const ALL: [&'static str; 36] = [
        "loaded ahead",
        "loaded ahead in place of something",
        "load",
        "fill from files",
        "fill from host memory",
        "fill from another device",
        "resolve",
        "free in host memory",
        "free on a device",
        "revoke",
        "taint",
        "forget",
        "adopted",
        "resumed",
        "opened: hit",
        "opened: loaded",
        "opened: joined",
        "opened: promoted",
        "opened on a device",
        "closed",
        "cancelled",
        "evicted",
        "failed",
        "refused: too large",
        "refused: no room",
        "refused: no room on a device",
        "refused: device lost",
        "refused: no image",
        "refused: timed out",
        "refused: queue full",
        "refused: draining",
        "refused: too many leases",
        "refused: unknown lease",
        "refused: cancelled",
        "refused: in use",
        "refused: too large for a device",
    ];

    pub(crate) fn see(&mut self, effect: &Effect) {
        let name = match effect {
            Effect::Resolve { .. } => "resolve",
            Effect::Load {
                tier: Tier::Host, ..
            } => "load",
            Effect::Load {
                feed: Feed::Source, ..
            } => "fill from files",
            Effect::Load {
                feed: Feed::Host(_),
                ..
            } => "fill from host memory",
            Effect::Load {
                feed: Feed::Peer(_),
                ..
            } => "fill from another device",
            Effect::Free {
                tier: Tier::Host, ..
            } => "free in host memory",
            Effect::Free {
                tier: Tier::Device(_),
                ..
            } => "free on a device",
            Effect::Revoke { gone: true, .. } => "revoke",
            Effect::Revoke { gone: false, .. } => "taint",
            Effect::Adopted { .. } => "adopted",
            Effect::Forget { .. } => "forget",
            Effect::Reply { reply, .. } => {
                if let Reply::Opened {
                    tier: Tier::Device(_),
                    ..
                } = reply
                {
                    *self.0.entry("opened on a device").or_default() += 1;
                }
                name_of(reply)
            }
        };
        *self.0.entry(name).or_default() += 1;
    }

    pub(crate) fn see_foreseen(&mut self, foreseen: &Foreseen) {
        let name = match foreseen.victims {
            0 => "loaded ahead",
            _ => "loaded ahead in place of something",
        };
        *self.0.entry(name).or_default() += 1;
    }

    /// Takes in what another run reached.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// How often this was asked for.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

const fn name_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::Opened {
            origin: Origin::Hit,
            ..
        } => "opened: hit",
        Reply::Opened {
            origin: Origin::Loaded,
            ..
        } => "opened: loaded",
        Reply::Opened {
            origin: Origin::Joined,
            ..
        } => "opened: joined",
        Reply::Opened {
            origin: Origin::Promoted,
            ..
        } => "opened: promoted",
        Reply::Resumed { .. } => "resumed",
        Reply::Closed => "closed",
        Reply::Cancelled { .. } => "cancelled",
        Reply::Evicted { .. } => "evicted",
        Reply::Failed(_) => "failed",
        Reply::Refused(refusal) => match refusal {
            Refusal::TooLarge {
                tier: Tier::Host, ..
            } => "refused: too large",
            Refusal::TooLarge {
                tier: Tier::Device(_),
                ..
            } => "refused: too large for a device",
            Refusal::NoRoom {
                tier: Tier::Host, ..
            } => "refused: no room",
            Refusal::NoRoom {
                tier: Tier::Device(_),
                ..
            } => "refused: no room on a device",
            Refusal::OverShare { .. } => "refused: more to stay free than one user's share",
            Refusal::DeviceLost { .. } => "refused: device lost",
            Refusal::NoImage => "refused: no image",
            Refusal::TimedOut => "refused: timed out",
            Refusal::QueueFull { .. } => "refused: queue full",
            Refusal::Draining => "refused: draining",
            Refusal::TooManyLeases { .. } => "refused: too many leases",
            Refusal::UnknownLease => "refused: unknown lease",
            Refusal::Cancelled => "refused: cancelled",
            Refusal::InUse(_) => "refused: in use",
        },
    }
}

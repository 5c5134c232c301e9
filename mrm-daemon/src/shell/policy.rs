//! Policies and loads ahead: as the operator chooses them, and why they did what they did.

mod hints;

use super::State;
use crate::config::Config;
use crate::status::Place;
use crate::status::events::{Event as LogEvent, EventKind};
use crate::status::view::{
    ComparedView, Hinted, PoliciesView, PrefetchView, TierPolicyView, WhyView, WorthView,
};
use mrm_core::Prefetch;
use mrm_core::event::Event;
use mrm_core::id::{ModelId, SegmentId, VersionId};
use mrm_core::ledger::Tier;
use mrm_core::policy::{Choice, Factor};
use mrm_core::view::{Explained, Foreseen};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::name::ModelName;
use std::collections::{BTreeMap, HashMap};

/// What the configuration says of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policies {
    host: Choice,
    device: Choice,
    prefetch: Prefetch,
}

impl Policies {
    pub(crate) const fn of(config: &Config) -> Self {
        Self {
            host: config.host_policy,
            device: config.device.policy,
            prefetch: config.prefetch,
        }
    }

    const fn on(&self, tier: Tier) -> Choice {
        match tier {
            Tier::Host => self.host,
            Tier::Device(_) => self.device,
        }
    }
}

/// What is remembered of decisions until it has been told, and who said what comes.
#[derive(Default)]
pub(super) struct Reasons {
    configured: Option<Policies>,
    /// Why what is being freed was chosen.
    freeing: HashMap<SegmentId, WhyView>,
    said: hints::Said,
}

impl super::Shell {
    /// What the configuration says now. What an operator chose since stays where it says what it
    /// said before.
    pub(crate) fn configure_policies(&self, policies: Policies) {
        self.with(|state| state.configure_policies(policies));
    }
}

impl State {
    fn configure_policies(&mut self, new: Policies) {
        let Some(old) = self.reasons.configured.replace(new) else {
            return;
        };
        let tiers: Vec<Tier> = self.core.view().tiers().collect();
        for tier in tiers {
            if old.on(tier) != new.on(tier) {
                self.choose(tier, new.on(tier));
            }
        }
        if old.prefetch != new.prefetch {
            self.step(Event::SetPrefetch(new.prefetch));
        }
    }

    fn choose(&mut self, tier: Tier, policy: Choice) {
        if self.core.view().policy(tier) == Some(policy) {
            return;
        }
        self.step(Event::SetPolicy { tier, policy });
        let detail = format!("{policy} on {}", self.tier_word(tier));
        self.note(LogEvent::of(EventKind::PolicyChanged).detail(&detail));
    }

    /// Gives a tier, or all of them, another policy, or the one of the configuration.
    pub(super) fn set_policy(
        &mut self,
        on: Option<Place>,
        to: Option<Choice>,
    ) -> Result<PoliciesView, ErrorReply> {
        let tiers: Vec<Tier> = match on {
            Some(place) => vec![self.tier_at(place)?],
            None => self.core.view().tiers().collect(),
        };
        for tier in tiers {
            let configured = self.reasons.configured.map(|policies| policies.on(tier));
            if let Some(policy) = to.or(configured) {
                self.choose(tier, policy);
            }
        }
        Ok(self.policies_view())
    }

    /// The policies in charge, and what became of loads ahead.
    pub(super) fn policies_view(&self) -> PoliciesView {
        let view = self.core.view();
        let tiers = view.tiers().map(|tier| {
            let policy = view.policy(tier).unwrap_or_default();
            let configured = self.reasons.configured.map(|policies| policies.on(tier));
            let configured = configured.unwrap_or(policy);
            TierPolicyView {
                tier: self.tier_word(tier),
                policy: policy.to_string(),
                configured: configured.to_string(),
                differs: policy != configured,
            }
        });
        PoliciesView {
            tiers: tiers.collect(),
            prefetch: self.prefetch_view(),
        }
    }

    pub(super) fn prefetch_view(&self) -> PrefetchView {
        let view = self.core.view();
        let (settings, counts) = (view.prefetch(), view.ahead());
        PrefetchView {
            enabled: settings.enabled,
            share_percent: settings.share_percent,
            started_total: counts.begun,
            used_total: counts.used,
            wasted_total: counts.wasted,
            failed_total: counts.failed,
            hints: counts.hints as u64,
        }
    }

    /// A model will be opened soon.
    pub(super) fn hint(&mut self, name: &ModelName, in_ms: u64) -> Result<Hinted, ErrorReply> {
        if !self.is_registered(name) && self.catalogue.find(name).is_none() {
            return Err(self.not_found(name));
        }
        let model = self.names.registered(name);
        let due = self.now().after_ms(in_ms);
        self.step(Event::Hint { model, due });
        if !self.core.view().remembers(model) {
            self.forget_if_unknown(model);
            let message = "too many models are said to come already: try again later";
            return Err(ErrorReply::new(ErrorCode::Exhausted, message));
        }
        Ok(Hinted {
            name: name.as_str().to_owned(),
            in_ms,
        })
    }

    /// How much a version is worth keeping on each tier that has something of it.
    pub(super) fn worth_of(&self, version: VersionId) -> Vec<WorthView> {
        let (view, now) = (self.core.view(), self.now());
        let on = |tier| {
            let worth = view.utility(version, tier, now)?;
            Some(WorthView {
                tier: self.tier_word(tier),
                policy: worth.policy.to_owned(),
                worth: worth.utility,
                factors: factors(&worth.factors),
                rank: worth.rank as u64,
                candidates: worth.candidates as u64,
            })
        };
        view.tiers().filter_map(on).collect()
    }

    /// Takes note of what the last event decided: evictions until their memory is free, loads ahead
    /// at once.
    pub(super) fn note_decisions(&mut self) {
        let view = self.core.view();
        let quiet = view.explained().is_empty()
            && view.foreseen().is_empty()
            && view.ahead_ended().is_empty();
        if quiet {
            return;
        }
        let mut freeing = Vec::new();
        for of in view.explained() {
            let why = self.why_evicted(of);
            freeing.extend(of.segments.iter().map(|segment| (*segment, why.clone())));
        }
        let mut events = Vec::new();
        for of in view.foreseen() {
            let event = LogEvent::of(EventKind::PrefetchStarted);
            let event = event.model(self.model_text(of.model));
            events.push((event.why(self.why_foreseen(of)), "started"));
        }
        for end in view.ahead_ended() {
            let (kind, outcome) = match end.used {
                true => (EventKind::PrefetchUsed, "used"),
                false => (EventKind::PrefetchWasted, "wasted"),
            };
            let event = LogEvent::of(kind).model(self.model_text(end.model));
            events.push((event, outcome));
        }
        self.reasons.freeing.extend(freeing);
        for (event, outcome) in events {
            self.metrics.prefetch(outcome);
            self.note(event);
        }
    }

    /// Why a segment was chosen to go, if a policy did that.
    pub(super) fn take_reason(&mut self, segment: SegmentId) -> Option<WhyView> {
        self.reasons.freeing.remove(&segment)
    }

    fn model_text(&self, model: ModelId) -> String {
        let record = self.names.model(model);
        record.map_or_else(|| "?".to_owned(), |record| record.text.to_string())
    }

    fn label_of(&self, version: VersionId) -> String {
        let record = self.names.version_of(version);
        record.map_or_else(|| "?".to_owned(), |record| record.label.to_string())
    }

    fn why_evicted(&self, of: &Explained) -> WhyView {
        WhyView {
            policy: of.policy.to_owned(),
            tier: self.tier_word(of.tier),
            worth: of.utility,
            factors: factors(&of.factors),
            compared: of.spared.map(|(version, worth)| ComparedView {
                model: Some(self.label_of(version)),
                worth,
            }),
            candidates: of.candidates as u64,
        }
    }

    fn why_foreseen(&self, of: &Foreseen) -> WhyView {
        WhyView {
            policy: if of.said { "hint" } else { "prefetch" }.to_owned(),
            tier: self.tier_word(of.copy.tier),
            worth: of.worth,
            factors: factors(&of.factors),
            compared: Some(ComparedView {
                model: None,
                worth: of.displaced,
            }),
            candidates: of.victims as u64,
        }
    }
}

fn factors(factors: &[Factor]) -> BTreeMap<&'static str, f64> {
    let factors = factors.iter();
    factors.map(|factor| (factor.name, factor.value)).collect()
}

//! Loading ahead of what is asked for: one model at a time, only while nobody waits, and never in
//! place of what is worth more.

use super::Turn;
use super::plan::{Claims, Plan};
use crate::Core;
use crate::admission::Stage;
use crate::ahead::{FORESEE_EVERY_MS, Going, Prefetch};
use crate::event::Part;
use crate::id::{Bytes, CopyId, ModelId, SegmentId, Time, VersionId};
use crate::ledger::{Amount, Tier};
use crate::planted::{Bug, planted};
use crate::policy::{Factor, Ranked, Route, index};
use crate::residency::State;
use crate::view::Foreseen;
use crate::violation::Violation;
use std::collections::BTreeSet;

/// What is not expected within this time is not loaded, in seconds.
const HORIZON_S: f64 = 120.0;
/// What is loaded must be worth so many times what goes for it.
const WORTH_TIMES: f64 = 1.5;
/// Most models that one look goes through.
const SEEN_MAX: usize = 4096;
/// Most of them for which it is reckoned what would have to go.
const WEIGHED_MAX: usize = 4;

/// A model that may be loaded ahead.
#[derive(Debug, Clone, Copy)]
struct Prospect {
    model: ModelId,
    tier: Tier,
    said: bool,
    /// What loading it ahead saves, in seconds per second.
    worth: f64,
    /// What it takes, if that is known.
    bytes: Option<Bytes>,
}

impl Prospect {
    /// In which order they are tried: the most worth for its bytes first.
    fn key(&self) -> (bool, f64) {
        let bytes = self.bytes.map_or(1, |bytes| bytes.0.max(1));
        (self.said, self.worth / bytes as f64)
    }
}

impl Core {
    /// A model is said to come.
    pub(crate) fn said(&mut self, turn: &mut Turn<'_>, model: ModelId, due: Time) {
        let known = self.catalogue.models.get(&model);
        let current = known.and_then(|known| known.current);
        let subject = current.and_then(|current| self.subject(current.version));
        self.policies.history.said(subject.unwrap_or(model), due);
        self.look_ahead(turn, false);
    }

    pub(crate) fn set_prefetch(&mut self, now: Time, settings: Prefetch) {
        if settings.enabled && !self.ahead.settings.enabled {
            self.ahead.foresee_at = now.after_ms(FORESEE_EVERY_MS);
        }
        self.ahead.settings = settings;
    }

    /// When it is to be looked next, if there is anything to look for.
    pub(crate) fn look_at(&self) -> Option<Time> {
        let look_at = self.ahead.look_at(self.policies.history.hints_len() > 0);
        look_at.filter(|_| !self.draining)
    }

    /// Looks, if it is time.
    pub(crate) fn look_if_due(&mut self, turn: &mut Turn<'_>) {
        if self.look_at().is_some_and(|at| at <= turn.now) {
            self.look_ahead(turn, self.ahead.foresee_at <= turn.now);
        }
    }

    /// Begins with the model that is most worth loading ahead, if there is one and nobody waits:
    /// one that was said to come or, `foresee`, one that is likely to.
    fn look_ahead(&mut self, turn: &mut Turn<'_>, foresee: bool) {
        self.ahead.looked_at_hints(turn.now);
        if foresee {
            self.ahead.foresee_at = turn.now.after_ms(FORESEE_EVERY_MS);
        }
        if self.ahead.going.is_some() || self.somebody_waits() {
            return;
        }
        let mut prospects = self.prospects(turn.now, foresee);
        prospects.sort_by(|a, b| {
            let (a, b) = ((a.key(), a.model), (b.key(), b.model));
            let by_worth = b.0.0.cmp(&a.0.0).then(b.0.1.total_cmp(&a.0.1));
            by_worth.then(a.1.cmp(&b.1))
        });
        for prospect in prospects.into_iter().take(WEIGHED_MAX) {
            if self.is_worth_it(turn.now, &prospect) {
                let Prospect { model, tier, .. } = prospect;
                self.ahead.going = Some(Going::Resolving { model, tier });
                return self.resolve(turn, model);
            }
        }
    }

    /// Whether there is an open that waits, or a load that was begun for one, or a drain.
    fn somebody_waits(&self) -> bool {
        let waits = self.admission.len() > 0 || self.policies.reloads.in_flight().0 > 0;
        self.draining || waits && !planted(Bug::LoadAheadOfOthers)
    }

    fn prospects(&mut self, now: Time, foresee: bool) -> Vec<Prospect> {
        let mut prospects = Vec::new();
        for (model, hint) in self.policies.history.said_to_come(now) {
            if !hint.tried {
                prospects.extend(self.prospect(now, model, true));
            }
        }
        if foresee && self.ahead.settings.enabled && self.ahead.has_time(now) {
            let history = &self.policies.history;
            let foreseeable = history.foreseeable(self.ahead.looked_at, SEEN_MAX);
            self.ahead.looked_at = foreseeable.last().copied().unwrap_or(ModelId(u64::MAX));
            for model in foreseeable {
                prospects.extend(self.prospect(now, model, false));
            }
        }
        prospects
    }

    /// A model, unless it is there or comes, or is not expected soon enough.
    fn prospect(&self, now: Time, model: ModelId, said: bool) -> Option<Prospect> {
        let history = &self.policies.history;
        let index = index(history, Some(model), now);
        if index * HORIZON_S < 1.0 {
            return None;
        }
        let tier = match history.tier(model) {
            tier if self.devices.tier_is_lost(tier) => Tier::Host,
            tier => tier,
        };
        let known = self.catalogue.models.get(&model);
        if let Some(current) = known.and_then(|known| known.current) {
            let copy = self.goal(current.version, tier);
            let there = copy.is_ok_and(|copy| self.catalogue.lacks_nothing(copy).unwrap_or(true));
            if there {
                return None;
            }
        }
        let bytes = history.brought(model, tier);
        // What was never loaded is said to come: it takes some time.
        let (bytes_or, route) = (bytes.unwrap_or_default(), route_to(tier));
        let reloads = &self.policies.reloads;
        let reload_us = reloads.estimate_us(history, (Some(model), bytes_or), (tier, route));
        (said || bytes.is_some()).then_some(Prospect {
            model,
            tier,
            said,
            worth: index * reload_us as f64 / 1e6,
            bytes,
        })
    }

    /// The copy of a version that an open like the last one would get.
    fn goal(&self, version: VersionId, tier: Tier) -> Result<CopyId, Violation> {
        let on_device = self.catalogue.version(version)?.has(Part::Image);
        let tier = if on_device { tier } else { Tier::Host };
        Ok(CopyId { version, tier })
    }

    /// What whoever opens a model on a device is likely to want kept free beside it: the most that
    /// was granted of late, and no more than one user may have.
    fn expected_reserve(&self, model: ModelId, tier: Tier) -> Bytes {
        // No tier but the host lacks a share, and nothing is kept free there.
        let max = self.user_reserve_max(tier).unwrap_or_default();
        self.policies.history.reserve(model).min(max)
    }

    /// Whether what would have to go for it is worth less, as far as can be said before it is
    /// known what it takes.
    fn is_worth_it(&self, now: Time, prospect: &Prospect) -> bool {
        let Some(bytes) = prospect.bytes else {
            return true;
        };
        let reserve = self.expected_reserve(prospect.model, prospect.tier);
        let wanted = Amount::segment(bytes).plus(Amount::bytes(reserve));
        let short = wanted.minus(self.ledger.account(prospect.tier).coming());
        let way = (prospect.tier, prospect.said);
        let displaced = self.displaced(now, way, short, &BTreeSet::new());
        displaced.is_ok_and(|displaced| displaced.is_some_and(|gone| gone.is_less(prospect.worth)))
    }

    /// What a resolution that was asked for ahead has found.
    pub(super) fn resolved_ahead(
        &mut self,
        turn: &mut Turn<'_>,
        of: ModelId,
        found: Option<VersionId>,
    ) -> Result<(), Violation> {
        let Some(Going::Resolving { model, tier }) = self.ahead.going else {
            return Ok(());
        };
        if model != of {
            return Ok(());
        }
        self.ahead.going = None;
        match found {
            Some(version) => {
                let copy = self.goal(version, tier)?;
                self.begin_ahead(turn, model, copy)
            }
            None => {
                self.policies.history.tried(model);
                self.ahead.counts.failed += 1;
                Ok(())
            }
        }
    }

    /// Makes room for a copy and loads it, if it is worth that now that it is known what it takes.
    fn begin_ahead(
        &mut self,
        turn: &mut Turn<'_>,
        model: ModelId,
        copy: CopyId,
    ) -> Result<(), Violation> {
        let idle = !self.somebody_waits() && self.admission.stage(copy).is_none();
        let wanted = !self.catalogue.lacks_nothing(copy)? && !self.catalogue.eager(copy.version)?;
        if !idle || !wanted || self.devices.tier_is_lost(copy.tier) {
            return Ok(());
        }
        for plan in self.plans(copy, self.expected_reserve(model, copy.tier))? {
            if self.exceeds(&plan).is_some() {
                continue;
            }
            let Some(foreseen) = self.weigh(turn.now, model, copy, &plan)? else {
                continue;
            };
            self.ahead.foreseen.push(foreseen);
            let short = self.short_for(&plan);
            for (tier, short) in short {
                for segment in self.victims(turn.now, tier, short, &plan.kept)? {
                    self.evict(turn, segment)?;
                }
            }
            self.ahead.going = Some(Going::Room { model, copy });
            self.room_changed = true;
            return Ok(());
        }
        // It does not fit, or what is there is worth more: not tried again for the same hint.
        if self.policies.history.hint(model).is_some() {
            self.policies.history.tried(model);
        }
        Ok(())
    }

    /// What is missing on each tier beyond what is free or being freed; devices first.
    fn short_for(&self, plan: &Plan) -> Vec<(Tier, Amount)> {
        let missing = plan.missing.iter().rev();
        let short = missing
            .map(|(tier, missing)| (tier, missing.minus(self.ledger.account(tier).coming())));
        short.filter(|(_, short)| *short != Amount::ZERO).collect()
    }

    /// Why a copy is loaded ahead; `None` if what would go for it is worth more.
    fn weigh(
        &self,
        now: Time,
        model: ModelId,
        copy: CopyId,
        plan: &Plan,
    ) -> Result<Option<Foreseen>, Violation> {
        let mut gone = Displaced::default();
        let said = self.policies.history.hint(model).is_some();
        for (tier, short) in self.short_for(plan) {
            match self.displaced(now, (tier, said), short, &plan.kept)? {
                Some(more) => gone.add(more),
                None => return Ok(None),
            }
        }
        let history = &self.policies.history;
        let bytes = plan.missing.get(copy.tier).bytes;
        let bytes = bytes.saturating_sub(plan.reserve);
        let way = (copy.tier, plan.route(copy.tier));
        let reloads = &self.policies.reloads;
        let reload_s = reloads.estimate_us(history, (Some(model), bytes), way) as f64 / 1e6;
        let index = index(history, Some(model), now);
        let factor = |name, value| Factor { name, value };
        let worth = index * reload_s;
        Ok(gone.is_less(worth).then(|| Foreseen {
            copy,
            model,
            said,
            worth,
            factors: vec![
                factor("index_per_s", index),
                factor("uses", history.uses(Some(model)) as f64),
                factor("reload_s", reload_s),
                factor("bytes", bytes.0 as f64),
            ],
            displaced: gone.worth,
            victims: gone.versions,
        }))
    }

    /// What those would be worth that would go from a tier for what is said to come, or is only
    /// foreseen; `None` if too little can go.
    fn displaced(
        &self,
        now: Time,
        (tier, said): (Tier, bool),
        short: Amount,
        kept: &BTreeSet<SegmentId>,
    ) -> Result<Option<Displaced>, Violation> {
        let mut displaced = Displaced::default();
        if short == Amount::ZERO {
            return Ok(Some(displaced));
        }
        let yields = said || self.policies.policy(tier)?.yields();
        if !yields || !short.fits(self.residency.idle_amount(tier)) {
            return Ok(None);
        }
        let chosen = self.choose_victims(now, tier, short, kept)?;
        if !short.fits(chosen.amount) {
            return Ok(None);
        }
        for Ranked { candidate, .. } in chosen.going() {
            let index = index(&self.policies.history, candidate.subject, now);
            displaced.worth += index * candidate.reload_s();
            displaced.versions += 1;
        }
        Ok(Some(displaced))
    }

    /// Goes on with what is loaded ahead, once everything else is settled.
    pub(super) fn go_ahead(&mut self, turn: &mut Turn<'_>) -> Result<(), Violation> {
        match self.ahead.going {
            Some(Going::Room { model, copy }) => self.take_room(turn, model, copy),
            Some(Going::Loading { copy }) => self.end_ahead(turn, copy),
            Some(Going::Resolving { .. }) | None => Ok(()),
        }
    }

    /// Loads a copy once its room is there. Whoever waits for room comes first and may have it.
    fn take_room(
        &mut self,
        turn: &mut Turn<'_>,
        model: ModelId,
        copy: CopyId,
    ) -> Result<(), Violation> {
        let version = self.catalogue.version(copy.version)?;
        let given_up = version.models.is_empty()
            || self.somebody_waits()
            || self.admission.stage(copy).is_some()
            || self.catalogue.lacks_nothing(copy)?;
        if !given_up {
            for plan in self.plans(copy, self.expected_reserve(model, copy.tier))? {
                if self.fits_now(&plan, &Claims::default()) && self.exceeds(&plan).is_none() {
                    return self.load_ahead(turn, (model, copy), &plan);
                }
                if self.short_for(&plan).is_empty() {
                    return Ok(());
                }
            }
        }
        self.ahead.going = None;
        self.touched.insert(copy.version);
        Ok(())
    }

    fn load_ahead(
        &mut self,
        turn: &mut Turn<'_>,
        (model, copy): (ModelId, CopyId),
        plan: &Plan,
    ) -> Result<(), Violation> {
        self.policies.history.tried(model);
        self.ahead.unused.insert(copy.version, model);
        self.ahead.counts.begun += 1;
        self.ahead.going = Some(Going::Loading { copy });
        self.admission.enqueue(copy);
        self.admit(turn, copy, plan, &Claims::default())
    }

    /// Ends it once nothing of it is loading any more, and looks for the next.
    fn end_ahead(&mut self, turn: &mut Turn<'_>, copy: CopyId) -> Result<(), Violation> {
        let mut whole = self.catalogue.versions.contains_key(&copy.version);
        if whole {
            for (_, _, segment) in self.catalogue.places(copy)? {
                let Some(segment) = segment else {
                    whole = false;
                    continue;
                };
                if matches!(self.residency.get(segment)?.state, State::Loading(_)) {
                    return Ok(());
                }
                whole &= self.residency.is_resident(segment);
            }
        }
        if self.admission.stage(copy) == Some(Stage::Loading) {
            return Ok(());
        }
        self.ahead.going = None;
        if whole {
            // Nobody may have waited for it.
            if self.ahead.unused.contains_key(&copy.version) {
                self.tell_arrived(copy, turn.now)?;
            }
        } else {
            self.ahead.counts.failed += 1;
            self.ahead.unused.remove(&copy.version);
        }
        self.look_ahead(turn, true);
        Ok(())
    }

    /// A drain: what only has been thought of is given up.
    pub(super) fn stop_ahead(&mut self) {
        if let Some(Going::Room { copy, .. }) = self.ahead.going {
            self.touched.insert(copy.version);
        }
        if !matches!(self.ahead.going, Some(Going::Loading { .. })) {
            self.ahead.going = None;
        }
    }
}

/// What would go.
#[derive(Debug, Clone, Copy, Default)]
struct Displaced {
    /// Seconds per second that keeping it saves.
    worth: f64,
    versions: usize,
}

impl Displaced {
    fn add(&mut self, more: Self) {
        self.worth += more.worth;
        self.versions += more.versions;
    }

    /// Whether it is worth enough less than something else.
    fn is_less(self, worth: f64) -> bool {
        self.worth * WORTH_TIMES <= worth
    }
}

/// How what is not in memory anywhere comes to a tier.
const fn route_to(tier: Tier) -> Route {
    match tier {
        Tier::Host => Route::ToHost,
        Tier::Device(_) => Route::ToDevice,
    }
}

//! What is loaded before anybody asks for it: settings, what is under way, what became of it.

use crate::id::{CopyId, ModelId, Time, VersionId};
use crate::ledger::Tier;
use crate::view::{AheadEnd, AheadView, Foreseen};
use std::collections::BTreeMap;

/// How often it is looked whether something is worth loading ahead, in milliseconds.
pub(crate) const FORESEE_EVERY_MS: u64 = 15_000;
/// How often it is looked whether what was said to come can be loaded, in milliseconds.
const HINTS_EVERY_MS: u64 = 1_000;

/// Loading ahead of what is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetch {
    /// Whether models are loaded that are likely to be used soon. Those that clients say will come
    /// are loaded either way.
    pub enabled: bool,
    /// How much of the time may be spent on that, in percent of one load after the other. What was
    /// said to come is loaded beyond it, but counts.
    pub share_percent: u8,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            enabled: false,
            share_percent: 20,
        }
    }
}

/// How far the one that is under way is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Going {
    /// It is being found out what the model stands for.
    Resolving { model: ModelId, tier: Tier },
    /// Room is being freed for it.
    Room { model: ModelId, copy: CopyId },
    /// All that it lacks is charged and loading.
    Loading { copy: CopyId },
}

/// All of it. One model is loaded ahead at a time.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) settings: Prefetch,
    pub(crate) going: Option<Going>,
    /// When it is looked next what is foreseen, if that is wanted.
    pub(crate) foresee_at: Time,
    /// When it is looked next at what was said to come, if anything was.
    hints_at: Time,
    /// Models up to this one were looked at last.
    pub(crate) looked_at: ModelId,
    /// What was loaded ahead and not used yet, and by what its use is foretold.
    pub(crate) unused: BTreeMap<VersionId, ModelId>,
    /// Load time that was spent beyond the share, in microseconds, and when that was reckoned.
    spent: (u64, Time),
    pub(crate) counts: AheadView,
    /// What the last event began to load ahead, and why.
    pub(crate) foreseen: Vec<Foreseen>,
    /// Of what was loaded ahead it turned out with the last event whether it is used.
    pub(crate) ended: Vec<AheadEnd>,
}

impl Ahead {
    pub(crate) fn new(settings: Prefetch) -> Self {
        Self {
            settings,
            going: None,
            foresee_at: Time(0).after_ms(FORESEE_EVERY_MS),
            hints_at: Time(0),
            looked_at: ModelId(u64::MAX),
            unused: BTreeMap::new(),
            spent: (0, Time(0)),
            counts: AheadView::default(),
            foreseen: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Whether it is being found out what this model stands for, to load it ahead.
    pub(crate) fn is_resolving(&self, of: ModelId) -> bool {
        matches!(self.going, Some(Going::Resolving { model, .. }) if model == of)
    }

    /// When it is to be looked next, if there is anything to look for.
    pub(crate) fn look_at(&self, hints: bool) -> Option<Time> {
        let hints_at = hints.then_some(self.hints_at);
        let foresee_at = self.settings.enabled.then_some(self.foresee_at);
        [hints_at, foresee_at].into_iter().flatten().min()
    }

    /// It is being looked at what was said to come.
    pub(crate) fn looked_at_hints(&mut self, now: Time) {
        self.hints_at = now.after_ms(HINTS_EVERY_MS);
    }

    /// Whether there is time left for another.
    pub(crate) fn has_time(&mut self, now: Time) -> bool {
        let share = u64::from(self.settings.share_percent.min(100));
        let (spent_us, since) = self.spent;
        let earned_us = now.us_since(since).saturating_mul(share) / 100;
        self.spent = (spent_us.saturating_sub(earned_us), now);
        // What one look may begin together.
        self.spent.0 < FORESEE_EVERY_MS * 1000 * share / 100
    }

    /// Loads of a version have ended.
    pub(crate) fn took(&mut self, version: VersionId, took_us: u64) {
        if let Some(Going::Loading { copy }) = self.going
            && copy.version == version
        {
            self.spent.0 = self.spent.0.saturating_add(took_us);
        }
    }

    /// Whether this copy is being loaded, whether somebody waits for it or not.
    pub(crate) fn loads(&self, copy: CopyId) -> bool {
        matches!(self.going, Some(Going::Loading { copy: going }) if going == copy)
    }

    /// Whether something of this version is being loaded ahead.
    pub(crate) fn loads_of(&self, version: VersionId) -> bool {
        matches!(self.going, Some(Going::Loading { copy }) if copy.version == version)
    }

    /// Whether room is being freed for this version.
    pub(crate) fn makes_room_for(&self, version: VersionId) -> bool {
        matches!(self.going, Some(Going::Room { copy, .. }) if copy.version == version)
    }

    /// What was loaded ahead is used: whose use that was.
    pub(crate) fn used(&mut self, version: VersionId) -> Option<ModelId> {
        if self.unused.is_empty() {
            return None;
        }
        let model = self.unused.remove(&version)?;
        self.counts.used += 1;
        self.end(version, model, true);
        Some(model)
    }

    /// Something of a version left the memory: if nobody used it, it was loaded in vain.
    pub(crate) fn left(&mut self, version: VersionId) {
        if let Some(model) = self.unused.remove(&version) {
            self.counts.wasted += 1;
            self.end(version, model, false);
        }
    }

    fn end(&mut self, version: VersionId, model: ModelId, used: bool) {
        self.ended.push(AheadEnd {
            version,
            model,
            used,
        });
    }
}

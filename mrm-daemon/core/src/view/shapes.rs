//! The shapes of what there is to see.

use crate::event::{Part, Wishes};
use crate::id::{Bytes, ContentId, CopyId, LeaseId, ModelId, SegmentId, SessionId, SourceId};
use crate::id::{Tenant, Time, VersionId};
use crate::ledger::Tier;
use crate::policy::Factor;

/// Totals of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerView {
    /// What is configured; 0 for a device that is lost.
    pub budget: Bytes,
    /// What may be charged now.
    pub limit: Bytes,
    /// Taken of it: loading, resident, freeing and reserved.
    pub charged: Bytes,
    /// The part that is kept free for those who hold leases, beside the weights.
    pub reserved: Bytes,
    /// The part that is being freed.
    pub freeing: Bytes,
    /// The part that is resident, held or idle.
    pub resident: Bytes,
    /// The part that is resident and could be evicted.
    pub idle: Bytes,
    /// Pieces that are charged; in host memory, segments.
    pub segments: u64,
    /// Most pieces that may be.
    pub segments_max: u64,
}

/// How much of a copy is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// Something is on its way.
    Loading,
    /// All.
    Resident,
    /// Something.
    Partial,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionView {
    /// The version.
    pub version: VersionId,
    /// Whether a model that stands for it is pinned.
    pub pinned: bool,
    /// Its copy in host memory, whether anything of it is there or not.
    pub host: CopyView,
    /// Its copies on devices of which something is there, or on which it is leased or wanted.
    pub devices: Vec<CopyView>,
}

impl VersionView {
    /// The copy on a tier, if there is one to show.
    #[must_use]
    pub fn copy(&self, tier: Tier) -> Option<&CopyView> {
        let mut copies = std::iter::once(&self.host).chain(&self.devices);
        copies.find(|copy| copy.tier == tier)
    }
}

/// A version on a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyView {
    /// Where it is.
    pub tier: Tier,
    /// How much of it is in memory.
    pub presence: Presence,
    /// Leases on what it was before that was found damaged.
    pub tainted: u64,
    /// What its segments on this tier are charged. A segment that versions share counts for each
    /// of them.
    pub charged: Bytes,
    /// What leases on it keep free there beside that.
    pub reserved: Bytes,
    /// Leases on it, over all sessions.
    pub leases: u64,
    /// Loads in flight that are filled from it.
    pub feeding: u64,
    /// When it was last granted or given back.
    pub last_used: Option<Time>,
    /// Its segments, in the order of the resolution.
    pub segments: Vec<SlotView>,
}

/// One place in a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    /// What it is filled from.
    pub source: SourceId,
    /// Which copies it is a part of.
    pub part: Part,
    /// Where it is.
    pub tier: Tier,
    /// What it is or will be charged.
    pub charge: Bytes,
    /// The segment that fills it, if any does.
    pub segment: Option<SegmentId>,
    /// Where that is in its life.
    pub state: SegmentState,
}

/// Where a segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// Not in memory.
    Absent,
    /// On its way.
    Loading,
    /// Filled and sealed.
    Resident,
    /// On its way out.
    Evicting,
    /// Not what it should be: kept for its last holders alone.
    Damaged,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentView {
    /// The segment.
    pub segment: SegmentId,
    /// Where it is in its life.
    pub state: SegmentState,
    /// Where it is.
    pub tier: Tier,
    /// What it is charged.
    pub charge: Bytes,
    /// How many pieces of memory it is in.
    pub pieces: u64,
    /// Leases on it: the sum over the copies that use it.
    pub leases: u64,
    /// The sources that it stands for.
    pub sources: Vec<SourceId>,
    /// What it holds, once that is known.
    pub content: Option<ContentId>,
}

/// One model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelView {
    /// The model.
    pub model: ModelId,
    /// What it stands for, as far as known.
    pub version: Option<VersionId>,
    /// The operator's wishes.
    pub wishes: Wishes,
    /// Whether it is being resolved.
    pub resolving: bool,
}

/// One session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub session: SessionId,
    /// Who is charged.
    pub tenant: Tenant,
    /// Leases that it holds.
    pub leases: usize,
    /// Opens of it that wait.
    pub waiting: usize,
}

/// One lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseView {
    /// Who holds it.
    pub session: SessionId,
    /// The lease.
    pub lease: LeaseId,
    /// What was opened.
    pub model: ModelId,
    /// What was granted.
    pub version: VersionId,
    /// Where it is.
    pub tier: Tier,
    /// What it keeps free there beside the weights.
    pub reserve: Bytes,
}

/// What an open waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// To know what the model stands for.
    Resolve,
    /// For room.
    Room,
    /// For its segments to be loaded.
    Load,
}

/// How many opens wait, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitingView {
    /// To know what the model stands for.
    pub resolve: usize,
    /// For room.
    pub room: usize,
    /// For segments to be loaded.
    pub load: usize,
}

/// An open that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingView {
    /// What is being opened.
    pub model: ModelId,
    /// What it waits for.
    pub stage: Stage,
    /// The copy that it will get; not known while its model is being resolved.
    pub copy: Option<CopyId>,
    /// The segments of that copy.
    pub segments: Vec<SlotView>,
}

/// How many records of each kind the decider keeps: flat, however many opens there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordsView {
    /// Models.
    pub models: usize,
    /// Versions.
    pub versions: usize,
    /// Sources.
    pub sources: usize,
    /// Segments.
    pub segments: usize,
    /// Contents.
    pub contents: usize,
    /// Sessions.
    pub sessions: usize,
    /// Leases.
    pub leases: usize,
    /// Opens that wait.
    pub waiting: usize,
    /// Copies that they want.
    pub wants: usize,
    /// Effects in flight.
    pub ops: usize,
    /// Evictions that await their frees.
    pub evictions: usize,
    /// What is being loaded ahead, or was and is not used yet.
    pub ahead: usize,
}

/// Why a copy is loaded before anybody asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreseen {
    /// The copy.
    pub copy: CopyId,
    /// The model whose use is expected.
    pub model: ModelId,
    /// Whether somebody said that it comes.
    pub said: bool,
    /// What loading it ahead is expected to save: seconds of loading per second.
    pub worth: f64,
    /// What that is made of.
    pub factors: Vec<Factor>,
    /// What those are worth that go for it, in the same measure.
    pub displaced: f64,
    /// How many go for it.
    pub victims: usize,
}

/// The end of waiting for the use of what was loaded ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AheadEnd {
    /// The version.
    pub version: VersionId,
    /// The model whose use was expected.
    pub model: ModelId,
    /// Whether it was used; else something of it was evicted before.
    pub used: bool,
}

/// What became of what was loaded ahead, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AheadView {
    /// Copies that were begun.
    pub begun: u64,
    /// Of these, used before something of them was evicted.
    pub used: u64,
    /// Of these, evicted before they were used.
    pub wasted: u64,
    /// What could not be resolved or loaded.
    pub failed: u64,
    /// Models that are said to come now.
    pub hints: usize,
}

/// Why a version, or what was left of it, was evicted for want of room.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// From where.
    pub tier: Tier,
    /// The version.
    pub version: VersionId,
    /// The model under which its uses are remembered.
    pub model: Option<ModelId>,
    /// The policy of the tier.
    pub policy: &'static str,
    /// How much it was worth keeping, by the policy's own measure.
    pub utility: f64,
    /// What that is made of.
    pub factors: Vec<Factor>,
    /// What goes of it.
    pub segments: Vec<SegmentId>,
    /// The least valuable version that stayed, and its utility; `None` if all went that could.
    pub spared: Option<(VersionId, f64)>,
    /// How many could have gone.
    pub candidates: usize,
}

/// How much a version is worth keeping.
#[derive(Debug, Clone, PartialEq)]
pub struct UtilityView {
    /// The policy of the tier.
    pub policy: &'static str,
    /// How much, by the policy's own measure.
    pub utility: f64,
    /// What that is made of.
    pub factors: Vec<Factor>,
    /// How many others would go first.
    pub rank: usize,
    /// How many there are to be compared, itself among them.
    pub candidates: usize,
}

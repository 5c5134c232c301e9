//! What goes first when room is needed.
//!
//! A policy is told who used what, and says of each version that may go how much it is worth
//! keeping. It sees facts alone: no clock, no IO, no chance but from a seed in its settings. That
//! nothing leased, pinned, loading or wanted goes, that the least valuable goes first, and that
//! victims that turn out not to be needed stay, is seen to by the caller, whatever a policy says.
//!
//! A version is kept or dropped on a tier as a whole: half of it serves nobody. Where only a part
//! of it may go, that part counts.
//!
//! ```
//! use mrm_core::id::{Bytes, ModelId, SegmentId, Time, VersionId};
//! use mrm_core::policy::{Candidate, Facts, History, rank};
//! let mut history = History::default();
//! history.used(ModelId(1), Time(10));
//! let candidate = |id, last_used| Candidate {
//!     version: VersionId(id),
//!     subject: Some(ModelId(id)),
//!     first: SegmentId(id),
//!     bytes: Bytes(4096),
//!     last_used: Time(last_used),
//!     reload_us: 1000,
//! };
//! let facts = Facts { now: Time(30), capacity: Bytes(1 << 30), history: &history };
//! let policy = "lru".parse::<mrm_core::policy::Choice>()?.build();
//! let ranked = rank(&*policy, &facts, vec![candidate(1, 20), candidate(2, 10)]);
//! assert_eq!(ranked[0].candidate.version, VersionId(2));
//! # Ok::<(), mrm_core::policy::UnknownPolicy>(())
//! ```

mod choice;
mod cremebrulee;
mod fifo;
mod foresight;
mod gdsf;
mod gittins;
mod history;
mod lfu;
mod lru;
mod memory;
mod mix;
mod oracle;
mod order;
mod random;
mod ranking;
mod reload;
mod s3fifo;
mod shadow;
mod sieve;
mod table;
#[cfg(test)]
mod tests;

pub use choice::{Choice, Rule, UnknownPolicy};
pub use cremebrulee::{Cost, CremeBrulee};
pub use fifo::Fifo;
pub use gdsf::Gdsf;
pub use gittins::Gc;
pub use history::{History, SUBJECTS_MAX};
pub use lfu::Lfu;
pub use lru::Lru;
pub use memory::{Experience, LoadMemory, Memory};
pub use mix::Mix;
pub use oracle::{Belady, CremeBruleeOracle, Future};
pub use random::Random;
pub use reload::Route;
pub use s3fifo::S3Fifo;
pub use sieve::Sieve;

pub(crate) use gittins::index;
pub(crate) use ranking::Ranking;
pub(crate) use reload::{Load, Reloads};

use crate::id::{Bytes, ModelId, SegmentId, Time, VersionId};
use std::collections::BTreeSet;

/// A version of which something on the tier may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The version.
    pub version: VersionId,
    /// Under which model its uses are remembered; `None` if what it was opened as stands for
    /// another version now.
    pub subject: Option<ModelId>,
    /// The first segment of it that may go: decides between equals.
    pub first: SegmentId,
    /// What its eviction brings.
    pub bytes: Bytes,
    /// When what may go of it was last let go of.
    pub last_used: Time,
    /// What it would take to get it back from the next lower tier that has it, in microseconds.
    pub reload_us: u64,
}

impl Candidate {
    /// What it would take to get it back, in seconds.
    #[must_use]
    pub fn reload_s(&self) -> f64 {
        self.reload_us as f64 / 1e6
    }

    /// What its eviction brings, at least one byte: it is divided by.
    #[must_use]
    pub fn size(&self) -> f64 {
        self.bytes.0.max(1) as f64
    }
}

/// What policies look at besides the candidates.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The time of the event.
    pub now: Time,
    /// What may be charged on the tier.
    pub capacity: Bytes,
    /// Who was used when, on any tier.
    pub history: &'a History,
}

/// A part of a utility, by its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    /// What it is, with its unit.
    pub name: &'static str,
    /// How much.
    pub value: f64,
}

/// A candidate in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// The candidate.
    pub candidate: Candidate,
    /// How much it is worth keeping, by the policy's own measure.
    pub utility: f64,
}

/// What was decided.
#[derive(Debug, Clone, Copy)]
pub struct Decision<'a> {
    /// All that could have gone: the least valuable first, as far as anything goes of it. The order
    /// of the others means nothing.
    pub ranked: &'a [Ranked],
    /// What goes of it.
    pub victims: &'a BTreeSet<VersionId>,
}

impl Decision<'_> {
    /// What goes, the least valuable first.
    pub fn gone(&self) -> impl Iterator<Item = &Candidate> {
        let candidates = self.ranked.iter().map(|ranked| &ranked.candidate);
        let gone = candidates.filter(|candidate| self.victims.contains(&candidate.version));
        gone.take(self.victims.len())
    }
}

/// Which victims stay when fewer suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveBack {
    /// The most valuable first, as long as the rest suffices.
    BestFirst,
    /// All but the fewest, largest ones that suffice: what CremeBrulee does.
    KeepLargest,
}

/// What is worth keeping on one tier.
pub trait Policy: std::fmt::Debug + Send {
    /// Its name in settings.
    fn name(&self) -> &'static str;

    /// Appends how much each candidate is worth keeping, in their order. The order in which they
    /// come means nothing. What is not a number counts as nothing, and so does what is missing.
    fn score(&self, facts: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>);

    /// What a utility is made of, for people.
    fn factors(&self, _facts: &Facts<'_>, _candidate: &Candidate) -> Vec<Factor> {
        Vec::new()
    }

    /// A version was granted on the tier, or another tier was filled from it. `history` has that
    /// use already; `last_used` is now.
    fn used(&mut self, _facts: &Facts<'_>, _used: &Candidate) {}

    /// A version was loaded before anybody asked for it.
    fn arrived(&mut self, facts: &Facts<'_>, arrived: &Candidate) {
        self.used(facts, arrived);
    }

    /// Victims were chosen; [`Policy::dropped`] follows for each.
    fn decided(&mut self, _facts: &Facts<'_>, _decision: &Decision<'_>) {}

    /// Something of a version has left the tier. What is left of it is as if it had never been
    /// used here.
    fn dropped(&mut self, _version: VersionId) {}

    /// Which victims stay when fewer suffice.
    fn give_back(&self) -> GiveBack {
        GiveBack::BestFirst
    }

    /// Whether what it keeps may go for what is only foreseen.
    fn yields(&self) -> bool {
        true
    }

    /// Whether it wants to be told of uses.
    fn watches(&self) -> bool {
        true
    }

    /// How many versions it remembers something of: none that has nothing on the tier.
    fn tracked(&self) -> usize {
        0
    }
}

/// Puts candidates in the order in which they are to go. Equals go by their last use, then by their
/// first segment, then by their version.
#[must_use]
pub fn rank(policy: &dyn Policy, facts: &Facts<'_>, candidates: Vec<Candidate>) -> Vec<Ranked> {
    let mut ranking = Ranking::of(policy, facts, &candidates);
    ranking.sort_all();
    ranking.into_all()
}

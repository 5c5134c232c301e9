//! Which idle segments go first when room is needed.
//!
//! A policy only ranks. That a victim is resident, not leased, not pinned, not being loaded, and
//! not wanted by the want that it would make room for, is seen to by the caller, whatever a
//! policy returns; so is giving back victims that turn out not to be needed.
//!
//! ```
//! use mrm_core::id::{Bytes, SegmentId, Time};
//! use mrm_core::policy::{Candidate, Lru, Policy};
//! let old = Candidate { segment: SegmentId(2), charge: Bytes(1), last_used: Time(10) };
//! let new = Candidate { segment: SegmentId(1), charge: Bytes(9), last_used: Time(20) };
//! let mut ranked = Vec::new();
//! Lru.rank(&[new, old], &mut ranked);
//! assert_eq!(ranked, [SegmentId(2), SegmentId(1)]);
//! ```

use crate::id::{Bytes, SegmentId, Time};

/// What a policy knows of a segment that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The segment.
    pub segment: SegmentId,
    /// What its eviction brings.
    pub charge: Bytes,
    /// When the last lease on it ended, or its load if it was never leased.
    pub last_used: Time,
}

/// An order of eviction.
pub trait Policy: std::fmt::Debug + Send {
    /// Appends the candidates to `ranked`, the one to evict first at the front.
    ///
    /// Candidates come in the order of their last use. What is not a candidate, or comes twice, is
    /// ignored; candidates that are left out count as ranked last.
    fn rank(&self, candidates: &[Candidate], ranked: &mut Vec<SegmentId>);
}

/// Least recently used first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lru;

impl Policy for Lru {
    fn rank(&self, candidates: &[Candidate], ranked: &mut Vec<SegmentId>) {
        let mut order: Vec<&Candidate> = candidates.iter().collect();
        // Candidates come nearly sorted, which the stable sort notices.
        order.sort_by_key(|candidate| (candidate.last_used, candidate.segment));
        ranked.extend(order.iter().map(|candidate| candidate.segment));
    }
}

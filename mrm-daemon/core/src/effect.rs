//! What the shell is to do.
//!
//! ```
//! use mrm_core::{effect::Effect, id::VersionId};
//! let effect = Effect::Forget { version: VersionId(3) };
//! assert!(effect.op().is_none());
//! ```

use crate::event::Fault;
use crate::id::{Bytes, DeviceId, LeaseId, ModelId, OpId, RequestId, SegmentId, SessionId};
use crate::id::{SourceId, VersionId};
use crate::ledger::Tier;
use std::sync::Arc;

/// Everything that the decider can ask for. Those with an `op` settle in exactly one completion
/// event with the same `op`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Find out what a model stands for now; settles in `Resolved`.
    Resolve {
        /// The effect.
        op: OpId,
        /// The model.
        model: ModelId,
    },
    /// Allocate, fill and seal a segment; settles in `Loaded`.
    Load {
        /// The effect.
        op: OpId,
        /// The segment to make.
        segment: SegmentId,
        /// What it holds.
        source: SourceId,
        /// A version whose resolution named the source.
        version: VersionId,
        /// What was charged: the allocation may not exceed it.
        charge: Bytes,
        /// Where it is to be.
        tier: Tier,
        /// What it is filled from.
        feed: Feed,
    },
    /// Drop what the daemon holds of a segment; settles in `Freed`.
    Free {
        /// The effect.
        op: OpId,
        /// The segment.
        segment: SegmentId,
        /// Where it is.
        tier: Tier,
    },
    /// Memory of the last daemon's has this number now.
    Adopted {
        /// The segment.
        segment: SegmentId,
        /// What it holds.
        source: SourceId,
        /// Where it is.
        tier: Tier,
    },
    /// What a lease is on is of no use any more: its device is lost, or it is damaged.
    Revoke {
        /// Who holds it.
        session: SessionId,
        /// The lease.
        lease: LeaseId,
        /// Whether the lease is gone. If not, it stays until it is given back, and keeps the memory.
        gone: bool,
        /// Why.
        fault: Fault,
    },
    /// Answer a request.
    Reply {
        /// Whom.
        session: SessionId,
        /// Which request.
        request: RequestId,
        /// What.
        reply: Reply,
    },
    /// Nothing refers to this version any more.
    Forget {
        /// The version.
        version: VersionId,
    },
}

/// What a segment is filled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// The files.
    Source,
    /// Host memory: the segments of the version's files, in the order of the resolution. Each is
    /// resident or being loaded, and none is evicted before this load has ended, but for one whose
    /// content was there already: the free of that one has to wait for the copy.
    Host(Arc<[SegmentId]>),
    /// Another device: the same image, resident there.
    Peer(SegmentId),
}

/// Answers to requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An open succeeded: the segments stay in memory until the lease ends.
    Opened {
        /// What to give back.
        lease: LeaseId,
        /// The version.
        version: VersionId,
        /// Where it is.
        tier: Tier,
        /// What it took.
        origin: Origin,
        /// The segments of the copy, in the order of the resolution.
        segments: Arc<[SegmentId]>,
    },
    /// A lease was given back.
    Closed,
    /// A client came back.
    Resumed {
        /// The lease for each that it had; `None` where there is nothing to lease any more.
        leases: Vec<Option<LeaseId>>,
    },
    /// A cancel was handled.
    Cancelled {
        /// Whether the target was still pending; it was answered before this.
        was_pending: bool,
    },
    /// A version, or its copy on one tier, was dropped from memory.
    Evicted {
        /// What was refunded.
        freed: Bytes,
    },
    /// The shell could not do it.
    Failed(Fault),
    /// The decider would not do it.
    Refused(Refusal),
}

/// What an open took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Everything was resident when the request came.
    Hit,
    /// This request started a load.
    Loaded,
    /// It waited for a load that another request had started.
    Joined,
    /// This request started copies from memory to a device; nothing was read from files for it.
    Promoted,
}

/// Why the decider refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It can never fit.
    #[error("needs {want} of {tier} memory, the budget is {limit}")]
    TooLarge {
        /// Where.
        tier: Tier,
        /// What the model needs.
        want: Bytes,
        /// The part of it that is to stay free beside the weights.
        reserve: Bytes,
        /// The budget.
        limit: Bytes,
    },
    /// No room came free in time.
    #[error("needs {want} more of {tier} memory, {charged} of {limit} are taken")]
    NoRoom {
        /// Where.
        tier: Tier,
        /// What is missing there.
        want: Bytes,
        /// The part of it that is to stay free beside the weights.
        reserve: Bytes,
        /// What may be charged there now.
        limit: Bytes,
        /// What is charged.
        charged: Bytes,
        /// The largest holders, largest first, at most [`HOLDERS_MAX`].
        holders: Vec<Holder>,
    },
    /// More is to stay free than one user's leases may keep free on a device.
    #[error("{reserve} of {tier} are to stay free; one user keeps {kept} of at most {max} free")]
    OverShare {
        /// Where.
        tier: Tier,
        /// What was asked for.
        reserve: Bytes,
        /// What the user's leases and opens keep free there now.
        kept: Bytes,
        /// What these may keep free in all.
        max: Bytes,
    },
    /// All devices that would have done are lost. Others may do.
    #[error("{device} is lost")]
    DeviceLost {
        /// The first of them.
        device: DeviceId,
    },
    /// The version has no part that is made for devices.
    #[error("this format has no tensors for a device")]
    NoImage,
    /// The load did not end in time. It goes on.
    #[error("the load did not end in time")]
    TimedOut,
    /// Too many requests wait.
    #[error("{waiting} requests {}wait already", if *.of_tenant { "of this tenant " } else { "" })]
    QueueFull {
        /// How many.
        waiting: usize,
        /// Whether these are the tenant's, and the places that are left are for others.
        of_tenant: bool,
    },
    /// No new leases are given.
    #[error("draining")]
    Draining,
    /// The session holds as many leases as it may.
    #[error("the session holds {held} leases already")]
    TooManyLeases {
        /// How many.
        held: usize,
    },
    /// The session holds no such lease.
    #[error("no such lease")]
    UnknownLease,
    /// The client gave up.
    #[error("cancelled")]
    Cancelled,
    /// Cannot be evicted now.
    #[error("in use")]
    InUse(Holder),
}

/// How many holders a refusal names at most.
pub const HOLDERS_MAX: usize = 5;

/// A copy that keeps memory from being freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The version.
    pub version: VersionId,
    /// Where the copy is.
    pub tier: Tier,
    /// What its segments are charged on the tier in question, and what leases on it keep free there.
    pub charged: Bytes,
    /// Leases on it.
    pub leases: u64,
    /// Whether the operator pinned it.
    pub pinned: bool,
    /// Whether it is being loaded, or another copy from it.
    pub loading: bool,
}

impl Effect {
    /// The effect's id, if it settles in a completion.
    #[must_use]
    pub const fn op(&self) -> Option<OpId> {
        match self {
            Self::Resolve { op, .. } | Self::Load { op, .. } | Self::Free { op, .. } => Some(*op),
            Self::Reply { .. }
            | Self::Adopted { .. }
            | Self::Revoke { .. }
            | Self::Forget { .. } => None,
        }
    }
}

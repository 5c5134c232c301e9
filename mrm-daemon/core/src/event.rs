//! What can happen: requests, completions, and the passing of time.
//!
//! ```
//! use mrm_core::{event::Event, id::{SessionId, Tenant}};
//! let event = Event::SessionOpened { session: SessionId(1), tenant: Tenant(1000) };
//! assert!(matches!(event, Event::SessionOpened { .. }));
//! ```

use crate::ahead::Prefetch;
use crate::id::{Bytes, ContentId, CopyId, DeviceId, LeaseId, ModelId, OpId, RequestId, SessionId};
use crate::id::{SegmentId, SourceId, Tenant, Time, VersionId};
use crate::ledger::{Amount, Tier};
use crate::policy::{Choice, Experience, Memory};
use std::sync::Arc;

/// Everything that the decider is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client connected. Comes first of all events of the session.
    SessionOpened {
        /// The connection.
        session: SessionId,
        /// Who it is charged to.
        tenant: Tenant,
    },
    /// The connection is gone, however it went. Comes last of all events of the session.
    SessionClosed {
        /// The connection.
        session: SessionId,
    },
    /// Open a model.
    Open {
        /// Who asks.
        session: SessionId,
        /// What to answer to.
        request: RequestId,
        /// What to open.
        model: ModelId,
        /// Where it is to be.
        wanted: Wanted,
        /// When to give up.
        deadline: Time,
    },
    /// Give a lease back.
    Close {
        /// Who asks.
        session: SessionId,
        /// What to answer to; `None` when no answer is wanted.
        request: Option<RequestId>,
        /// What to give back.
        lease: LeaseId,
    },
    /// Give up a pending open.
    Cancel {
        /// Who asks.
        session: SessionId,
        /// What to answer to; `None` when no answer is wanted.
        request: Option<RequestId>,
        /// The open to give up.
        target: RequestId,
    },
    /// The operator asks to drop a version from memory. One that is not known has nothing there.
    Evict {
        /// Who asks.
        session: SessionId,
        /// What to answer to, once the memory is free.
        request: RequestId,
        /// What to drop.
        version: VersionId,
        /// Which copy of it; `None`: all of them.
        tier: Option<Tier>,
    },
    /// The operator's wishes for a model. Not answered: it always takes effect.
    Configure {
        /// Which model.
        model: ModelId,
        /// What is wished.
        wishes: Wishes,
    },
    /// The catalogue no longer has this model. Its leases stay; new opens resolve again.
    ModelChanged {
        /// Which model.
        model: ModelId,
    },
    /// How much a tier may take. What is above the limit is evicted as it becomes free. Without
    /// effect on a device that is lost.
    SetLimit {
        /// Which tier.
        tier: Tier,
        /// What is configured: what is larger can never fit.
        budget: Bytes,
        /// What may be charged now, at most the budget; less while others use the device.
        limit: Bytes,
    },
    /// Another policy for a tier. It begins with what all policies look at, and nothing of its own.
    SetPolicy {
        /// Which tier.
        tier: Tier,
        /// Which policy.
        policy: Choice,
    },
    /// Other settings for loading ahead.
    SetPrefetch(Prefetch),
    /// A model is said to be opened soon. Not answered: it may be loaded before that, while nobody
    /// waits for anything else, and counts for more when something has to go.
    Hint {
        /// Which model.
        model: ModelId,
        /// When it will be opened.
        due: Time,
    },
    /// What another daemon remembered of a model. Without effect if it was used since.
    Recall {
        /// Which model.
        model: ModelId,
        /// What it remembered.
        memory: Box<Memory>,
    },
    /// What another daemon remembered of all models together.
    RecallAll(Box<Experience>),
    /// Memory of the last daemon's is taken over. Comes before any session.
    Adopt(Adoption),
    /// A client that had leases of the last daemon's wants them again. Each is given if what it was
    /// on is there.
    Resume {
        /// Who asks.
        session: SessionId,
        /// What to answer to.
        request: RequestId,
        /// What it had.
        leases: Vec<ResumedLease>,
    },
    /// A device does not answer any more, and will not. Its leases are revoked, its opens fail.
    DeviceLost {
        /// Which device.
        device: DeviceId,
        /// What those who lose by it are told.
        fault: Fault,
    },
    /// What a segment holds is not what it should. Nobody gets it any more, its holders are told,
    /// and it goes with the last of them. Without effect unless it is resident.
    Damaged {
        /// Which segment.
        segment: SegmentId,
        /// What its holders, and those who wait for more of it, are told.
        fault: Fault,
    },
    /// What a segment was loaded with is known. Its load named a content of its own until then, so that
    /// it could be lent before it was hashed. Without effect unless it is resident.
    Identified {
        /// Which segment.
        segment: SegmentId,
        /// What it holds.
        content: ContentId,
    },
    /// Take no new leases from now on.
    Drain,
    /// `Resolve` ended.
    Resolved {
        /// Which effect.
        op: OpId,
        /// What the model stands for now.
        outcome: Result<Resolution, Fault>,
    },
    /// What a load took by itself, without what it waited for. Comes before its `Loaded`, or not at
    /// all: then the time between the effect and that event counts.
    Took {
        /// Which effect.
        op: OpId,
        /// How long, in microseconds.
        took_us: u64,
    },
    /// The memory of a load to host memory is there, and may be lent while it is filled. Comes once
    /// and before its `Loaded`, or not at all: then it is lent when it is filled.
    Laid {
        /// Which effect.
        op: OpId,
    },
    /// The memory of a load, which was said to be there, was thrown away, and other memory is being
    /// filled instead: whoever leases it loses the lease, and who comes later gets it when it is
    /// filled. Comes after its `Laid` and before its `Loaded`, or not at all.
    Unlaid {
        /// Which effect.
        op: OpId,
        /// What those who lose by it are told.
        fault: Fault,
    },
    /// `Load` ended. On an error nothing of the segment is in memory.
    Loaded {
        /// Which effect.
        op: OpId,
        /// What was read; a content that nothing else has, if that is not known yet
        /// ([`Event::Identified`]).
        outcome: Result<ContentId, LoadFailure>,
    },
    /// `Free` ended: the daemon holds nothing of the segment any more.
    Freed {
        /// Which effect.
        op: OpId,
    },
    /// The time of [`Core::next_deadline`](crate::Core::next_deadline) has come.
    Tick,
}

/// Where an open wants its model to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// In host memory.
    Host,
    /// In host memory, and as soon as the table is resident and all else is or has its memory
    /// ([`Event::Laid`]): the lease is on what is still being filled, and is revoked if that fails.
    Layout,
    /// On any one of these devices; there is at least one.
    Device(AnyOf),
    /// On one of these devices, if one can make the room now, else in host memory.
    Best(AnyOf),
}

/// Devices of which any will do, and what is to stay free there beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyOf {
    /// The devices.
    pub devices: Arc<[DeviceId]>,
    /// How much of the device's budget nothing else may take while the lease lives, in bytes. In
    /// host memory nothing is kept free.
    pub reserve: Bytes,
}

impl AnyOf {
    /// The same devices, with so much to stay free.
    #[must_use]
    pub fn with_reserve(self, reserve: Bytes) -> Self {
        Self { reserve, ..self }
    }
}

impl From<Arc<[DeviceId]>> for AnyOf {
    fn from(devices: Arc<[DeviceId]>) -> Self {
        let reserve = Bytes::ZERO;
        Self { devices, reserve }
    }
}

impl From<Vec<DeviceId>> for AnyOf {
    fn from(devices: Vec<DeviceId>) -> Self {
        Self::from(Arc::from(devices))
    }
}

impl<const N: usize> From<[DeviceId; N]> for AnyOf {
    fn from(devices: [DeviceId; N]) -> Self {
        Self::from(Arc::from(devices))
    }
}

impl Wanted {
    /// The same, with at least so much to stay free if it comes to be on a device.
    #[must_use]
    pub fn with_reserve_at_least(self, least: Bytes) -> Self {
        let raised = |any: AnyOf| {
            let reserve = any.reserve.max(least);
            any.with_reserve(reserve)
        };
        match self {
            Self::Host => Self::Host,
            Self::Layout => Self::Layout,
            Self::Device(any) => Self::Device(raised(any)),
            Self::Best(any) => Self::Best(raised(any)),
        }
    }

    /// What is to stay free beside the weights, if they come to be on this tier.
    #[must_use]
    pub const fn reserve_on(&self, tier: Tier) -> Bytes {
        match (self, tier) {
            (Self::Device(any) | Self::Best(any), Tier::Device(_)) => any.reserve,
            (Self::Host | Self::Layout, _) | (Self::Device(_) | Self::Best(_), Tier::Host) => {
                Bytes::ZERO
            }
        }
    }
}

/// A version, and what is resident of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// A model that stands for it.
    pub model: Option<ModelId>,
    /// The version.
    pub resolution: Resolution,
    /// What is there. A source that another version brought before is skipped.
    pub resident: Vec<AdoptedSegment>,
    /// Until when it is kept for those who may come back.
    pub until: Time,
}

/// A source that is resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdoptedSegment {
    /// Which of the version's.
    pub source: SourceId,
    /// Where.
    pub tier: Tier,
    /// What it holds.
    pub content: ContentId,
}

/// A lease that a client had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumedLease {
    /// What was opened.
    pub model: ModelId,
    /// What was granted.
    pub copy: CopyId,
    /// What it kept free beside the weights, in bytes. It is kept free again if there is room.
    pub reserve: Bytes,
}

/// Why a load failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadFailure {
    /// It cannot be done.
    Fault(Fault),
    /// The device had less than the ledger thought. A lower limit was set before, if it is known
    /// how much it has. On the host tier this is a fault like any other.
    OutOfMemory(Fault),
}

/// The operator's wishes for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Never evict what it stands for.
    pub pinned: bool,
    /// Evict it as soon as nobody holds it, instead of when its room is needed.
    pub eager: bool,
}

/// What a model stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// The version.
    pub version: VersionId,
    /// Its segments: the tensor table first, then each file, then the image. No source appears
    /// twice.
    pub segments: Vec<SegmentFact>,
}

/// What is known of a segment before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFact {
    /// Where its bytes come from.
    pub source: SourceId,
    /// What it will be charged: its length, rounded up to whole pages.
    pub charge: Bytes,
    /// How many allocations it is in, each of which costs a descriptor; 1 in host memory.
    pub pieces: u64,
    /// Which copies it is a part of.
    pub part: Part,
}

impl SegmentFact {
    /// What it will be charged, with its pieces.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        Amount {
            bytes: self.charge,
            segments: self.pieces,
        }
    }
}

/// Which copies of its version a segment is a part of. A source is the same part of all versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The tensor table: in host memory, a part of every copy.
    Table,
    /// A file: in host memory, a part of the host copy.
    File,
    /// The tensors as a device wants them: on a device, a part of the copy there.
    Image,
}

impl Part {
    /// Where a copy on `copy` keeps this part, if it has it.
    #[must_use]
    pub const fn tier(self, copy: Tier) -> Option<Tier> {
        match (self, copy) {
            (Self::Table, _) | (Self::File, Tier::Host) => Some(Tier::Host),
            (Self::Image, Tier::Device(device)) => Some(Tier::Device(device)),
            (Self::File, Tier::Device(_)) | (Self::Image, Tier::Host) => None,
        }
    }
}

/// A failure of the world, to be passed on to whoever waits. The decider does not look inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Number of the boundary's error code.
    pub code: u16,
    /// For people.
    pub message: Arc<str>,
}

//! What can happen: requests, completions, and the passing of time.
//!
//! ```
//! use mrm_core::{event::Event, id::{SessionId, Tenant}};
//! let event = Event::SessionOpened { session: SessionId(1), tenant: Tenant(1000) };
//! assert!(matches!(event, Event::SessionOpened { .. }));
//! ```

use crate::id::{Bytes, ContentId, LeaseId, ModelId, OpId, RequestId, SessionId, SourceId};
use crate::id::{Tenant, Time, VersionId};
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
    /// The host budget is now this. What is above it is evicted as it becomes free.
    SetLimit {
        /// The new limit.
        limit: Bytes,
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
    /// `Load` ended. On an error nothing of the segment is in memory.
    Loaded {
        /// Which effect.
        op: OpId,
        /// What was read.
        outcome: Result<ContentId, Fault>,
    },
    /// `Free` ended: the daemon holds nothing of the segment any more.
    Freed {
        /// Which effect.
        op: OpId,
    },
    /// The time of [`Core::next_deadline`](crate::Core::next_deadline) has come.
    Tick,
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
    /// Its segments: the tensor table first, then each file. No source appears twice.
    pub segments: Vec<SegmentFact>,
}

/// What is known of a segment before it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFact {
    /// Where its bytes come from.
    pub source: SourceId,
    /// What it will be charged: its length, rounded up to whole pages.
    pub charge: Bytes,
}

/// A failure of the world, to be passed on to whoever waits. The decider does not look inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Number of the boundary's error code.
    pub code: u16,
    /// For people.
    pub message: Arc<str>,
}

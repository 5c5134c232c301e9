//! Faults of ours: what makes the shell dump its journal and abort.
//!
//! ```
//! use mrm_core::{id::OpId, violation::Violation};
//! assert_eq!(Violation::UnknownOp(OpId(7)).to_string(), "op7 completed, but is not in flight");
//! ```

use crate::id::{Bytes, ContentId, CopyId, DeviceId, LeaseId, ModelId, OpId, RequestId};
use crate::id::{SegmentId, SessionId, SourceId, VersionId};

/// A rule that the daemon broke: either the shell sent what cannot happen, or the decider's own
/// books disagree. Never a client's doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An event of a session that is not open.
    #[error("{0} is not open")]
    UnknownSession(SessionId),
    /// A session that was opened twice.
    #[error("{0} is open already")]
    SessionExists(SessionId),
    /// A request whose id still awaits its answer.
    #[error("{1} of {0} is unanswered, but came again")]
    RequestExists(SessionId, RequestId),
    /// A device that is not configured.
    #[error("{0} is not configured")]
    UnknownDevice(DeviceId),
    /// An open that wants a device, but names none.
    #[error("{1} of {0} wants a device, but names none")]
    NoDevice(SessionId, RequestId),
    /// A completion of an effect that is not in flight.
    #[error("{0} completed, but is not in flight")]
    UnknownOp(OpId),
    /// A completion of another kind than its effect.
    #[error("{0} completed as what it is not")]
    WrongCompletion(OpId),
    /// A version that came back with other segments: versions are immutable.
    #[error("{0} was resolved to other segments than before")]
    VersionChanged(VersionId),
    /// A resolution that names a source twice.
    #[error("{0} names {1} twice")]
    RepeatedSource(VersionId, SourceId),
    /// What was to be taken over is no part of its version there.
    #[error("{1} is no part of {0} there")]
    NotOfVersion(VersionId, SourceId),
    /// A source that is another part of this version than of another.
    #[error("{1} is another part of {0} than of other versions")]
    PartChanged(VersionId, SourceId),
    /// A charge that would have broken the budget.
    #[error("a charge of {want} with {charged} of {limit} taken")]
    OverLimit {
        /// What was to be charged.
        want: Bytes,
        /// What is charged.
        charged: Bytes,
        /// The budget.
        limit: Bytes,
    },
    /// A record that another record refers to is not there.
    #[error("{0} is referred to, but is not there")]
    Missing(Record),
    /// A segment in a state in which this cannot happen to it.
    #[error("{0} is not in a state for this")]
    WrongState(SegmentId),
    /// A numbered invariant of `mrm-daemon/DESIGN.md` does not hold.
    #[error("I{number}: {what}")]
    Invariant {
        /// Its number.
        number: u8,
        /// What is wrong.
        what: String,
    },
}

/// A record of the decider, for [`Violation::Missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Record {
    /// A model.
    #[error("{0}")]
    Model(ModelId),
    /// A version.
    #[error("{0}")]
    Version(VersionId),
    /// A source.
    #[error("{0}")]
    Source(SourceId),
    /// A segment.
    #[error("{0}")]
    Segment(SegmentId),
    /// A content.
    #[error("{0}")]
    Content(ContentId),
    /// A lease.
    #[error("{0}")]
    Lease(LeaseId),
    /// A waiting open.
    #[error("{1} of {0}")]
    Waiter(SessionId, RequestId),
    /// A copy.
    #[error("{0}")]
    Copy(CopyId),
    /// The want of a copy.
    #[error("the want of {0}")]
    Want(CopyId),
}

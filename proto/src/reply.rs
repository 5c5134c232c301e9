//! What the daemon answers.
//!
//! ```
//! use mrm_proto::{error::{ErrorCode, ErrorReply}, reply::Reply};
//! let reply = Reply::Error(ErrorReply::new(ErrorCode::ModelNotFound, "no model `x`"));
//! assert!(reply.ends_request());
//! ```

use crate::error::ErrorReply;
use crate::frame::{FrameError, Header, Kind, Message, decode_cbor, encode_cbor};
use crate::ids::{Digest, LeaseId, VersionId};
use crate::name::ModelName;
use minicbor::{Decode, Encode};

/// Every reply. Each carries the request id of what it answers; an `Error` with
/// [`RequestId::NO_REPLY`](crate::ids::RequestId::NO_REPLY) is about the session, which ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An open succeeded.
    Opened(Opened),
    /// A lease was given back.
    Closed(Closed),
    /// A cancel was handled.
    Cancelled(Cancelled),
    /// How far a pending open has come. Any number of these precede the final reply.
    Progress(Progress),
    /// One page of models.
    Listed(Listed),
    /// One model.
    Stated(Stated),
    /// The request failed.
    Error(ErrorReply),
}

/// A granted open. Travels with `1 + segments_bytes.len()` descriptors: the tensor table, then
/// the segments in order. All are sealed memfds, open for reading only.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Opened {
    /// What to give back.
    #[n(0)]
    pub lease: LeaseId,
    /// The version that was opened.
    #[n(1)]
    pub version: VersionId,
    /// Where it came from.
    #[n(2)]
    pub origin: Origin,
    /// Size of the tensor table.
    #[n(3)]
    pub table_bytes: u64,
    /// Size of each segment: exactly that of its file.
    #[n(4)]
    pub segments_bytes: Vec<u64>,
    /// From the daemon's receipt of the request to this reply, in microseconds.
    #[n(5)]
    pub took_us: u64,
}

/// What an open cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Origin {
    /// Everything was resident.
    #[n(0)]
    Hit,
    /// Something was loaded for this request.
    #[n(1)]
    Loaded,
    /// Another request's load was joined.
    #[n(2)]
    Joined,
}

/// A lease was given back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Closed {}

/// A cancel was handled.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Cancelled {
    /// Whether the target was still pending. It is then answered with `cancelled`.
    #[n(0)]
    pub was_pending: bool,
}

/// How far a pending open has come.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Progress {
    /// Bytes in place so far.
    #[n(0)]
    pub loaded_bytes: u64,
    /// Bytes of the whole model.
    #[n(1)]
    pub total_bytes: u64,
}

/// One page of models.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Listed {
    /// In the order of their names.
    #[n(0)]
    pub models: Vec<ModelRow>,
    /// Whether there are more after the last of these.
    #[n(1)]
    pub more: bool,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ModelRow {
    /// The name, or the label of files that a client passed.
    #[n(0)]
    pub name: ModelName,
    /// Whether the operator registered it.
    #[n(1)]
    pub registered: bool,
    /// Where it is.
    #[n(2)]
    pub state: ModelState,
    /// Size of its segments, 0 when not known yet.
    #[n(3)]
    pub bytes: u64,
    /// Leases on it, over all sessions.
    #[n(4)]
    pub leases: u64,
    /// Whether the operator pinned it.
    #[n(5)]
    pub pinned: bool,
}

/// Residency of a model in host memory, summed over its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum ModelState {
    /// Nothing is in memory.
    #[n(0)]
    Absent,
    /// On its way.
    #[n(1)]
    Loading,
    /// All of it is in memory.
    #[n(2)]
    Resident,
    /// Some segments are in memory.
    #[n(3)]
    Partial,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stated {
    /// The line that `List` would show.
    #[n(0)]
    pub row: ModelRow,
    /// The version that the next open would get, once known.
    #[n(1)]
    pub version: Option<VersionId>,
    /// Digest of each segment, where computed.
    #[n(2)]
    pub digests: Vec<Option<Digest>>,
}

impl Reply {
    /// Reads the body of a frame whose header was `header`.
    ///
    /// # Errors
    /// When the kind is not a reply, or the body is malformed.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, FrameError> {
        match header.kind {
            Kind::Opened => decode_cbor(header, body).map(Self::Opened),
            Kind::Closed => decode_cbor(header, body).map(Self::Closed),
            Kind::Cancelled => decode_cbor(header, body).map(Self::Cancelled),
            Kind::Progress => decode_cbor(header, body).map(Self::Progress),
            Kind::Listed => decode_cbor(header, body).map(Self::Listed),
            Kind::Stated => decode_cbor(header, body).map(Self::Stated),
            Kind::Error => decode_cbor(header, body).map(Self::Error),
            kind @ (Kind::ClientHello
            | Kind::ServerHello
            | Kind::Open
            | Kind::OpenFiles
            | Kind::Close
            | Kind::Cancel
            | Kind::List
            | Kind::Stat) => Err(FrameError::OutOfPlace(kind)),
        }
    }

    /// Whether this is the last frame about its request.
    #[must_use]
    pub const fn ends_request(&self) -> bool {
        !matches!(self, Self::Progress(_))
    }
}

impl Message for Reply {
    fn kind(&self) -> Kind {
        match self {
            Self::Opened(_) => Kind::Opened,
            Self::Closed(_) => Kind::Closed,
            Self::Cancelled(_) => Kind::Cancelled,
            Self::Progress(_) => Kind::Progress,
            Self::Listed(_) => Kind::Listed,
            Self::Stated(_) => Kind::Stated,
            Self::Error(_) => Kind::Error,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened(body) => encode_cbor(body, out),
            Self::Closed(body) => encode_cbor(body, out),
            Self::Cancelled(body) => encode_cbor(body, out),
            Self::Progress(body) => encode_cbor(body, out),
            Self::Listed(body) => encode_cbor(body, out),
            Self::Stated(body) => encode_cbor(body, out),
            Self::Error(body) => encode_cbor(body, out),
        }
    }
}

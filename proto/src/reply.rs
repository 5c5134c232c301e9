//! What the daemon answers.
//!
//! ```
//! use mrm_proto::{error::{ErrorCode, ErrorReply}, reply::Reply};
//! let reply = Reply::Error(ErrorReply::new(ErrorCode::ModelNotFound, "no model `x`"));
//! assert!(reply.ends_request());
//! ```

use crate::error::ErrorReply;
use crate::frame::{FrameError, Header, Kind, Message, decode_cbor, encode_cbor};
use crate::ids::{DeviceUuid, Digest, LeaseId, RequestId, VersionId};
use crate::layout::Granularity;
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
    /// Some allocations of an open. Any number of these precede its `Opened`.
    Handed(Handed),
    /// A lease was taken away. Comes unasked, with the request id 0.
    Revoked(Revoked),
    /// More of a model that is still being filled is there. Comes unasked, with the request id 0.
    Ready(Ready),
    /// Leases were taken up again.
    Resumed(Resumed),
    /// Several opens succeeded. Comes with the request id 0.
    OpenedMany(OpenedMany),
    /// One page of models.
    Listed(Listed),
    /// One model.
    Stated(Stated),
    /// What was said to come was noted.
    Hinted(Hinted),
    /// The request failed.
    Error(ErrorReply),
}

/// A granted open.
///
/// In host memory it travels with `1 + segments_bytes.len()` descriptors: the tensor table, then
/// the segments in order. All are sealed memfds, open for reading only. On a device it travels
/// with the tensor table and, where sharing is by descriptors, with those allocations that no
/// [`Handed`] brought before.
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
    /// Size of the tensor table; 0 if it does not travel, because the client named this version as
    /// [known](crate::request::Open::known).
    #[n(3)]
    pub table_bytes: u64,
    /// Size of each segment: exactly that of its file. Empty when the weights are on a device.
    #[n(4)]
    pub segments_bytes: Vec<u64>,
    /// From the daemon's receipt of the request to this reply, in microseconds.
    #[n(5)]
    pub took_us: u64,
    /// Where on a device the weights are; absent when they are in host memory.
    #[n(6)]
    pub device: Option<OnDevice>,
    /// Which segments are still being filled, in ascending order; absent if none is. Nothing of
    /// them may be read but what [`Ready`] frames name, and their seals are but
    /// `F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE`. Only after an open that waits for the
    /// [layout](crate::request::WaitFor::Layout) alone.
    #[n(7)]
    pub filling: Option<Vec<u32>>,
}

/// Weights on a device: their allocations, in the order of the [layout](crate::layout).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OnDevice {
    /// Which device.
    #[n(0)]
    pub uuid: DeviceUuid,
    /// How allocations are shared.
    #[n(1)]
    pub sharing: Sharing,
    /// How tensors are put together into allocations.
    #[n(2)]
    pub granularity: Granularity,
    /// Size of each allocation, as the layout has it: what the driver rounds it up to is not told.
    #[n(3)]
    pub allocations_bytes: Vec<u64>,
    /// Handles of the last allocations, those that no [`Handed`] brought; empty where sharing is
    /// by descriptors.
    #[n(4)]
    pub handles: Vec<IpcHandle>,
}

/// How allocations of a device are shared between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Sharing {
    /// Virtual memory management: a descriptor for each allocation.
    #[n(0)]
    Vmm,
    /// Inter-process handles of 64 bytes each.
    #[n(1)]
    Legacy,
}

/// The 64 bytes of a `CUipcMemHandle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct IpcHandle(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 64]);

/// The next allocations of an open, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Handed {
    /// How many allocations came before.
    #[n(0)]
    pub from: u64,
    /// Handles; empty where sharing is by descriptors, which travel with the frame.
    #[n(1)]
    pub handles: Vec<IpcHandle>,
}

/// What is there of a model that was still being filled when it was lent: each frame says what is
/// new. When all segments are sealed, none follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ready {
    /// Which lease.
    #[n(0)]
    pub lease: LeaseId,
    /// What can be read now, at most [`READY_RANGES_MAX`](crate::limits::READY_RANGES_MAX).
    #[n(1)]
    pub ranges: Vec<ReadyRange>,
    /// Segments that are whole, checked and sealed now.
    #[n(2)]
    pub sealed: Vec<u32>,
}

/// Bytes of a segment that are there, and will not change unless the lease is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ReadyRange {
    /// Which segment.
    #[n(0)]
    pub segment: u32,
    /// Its first byte.
    #[n(1)]
    pub from: u64,
    /// The byte after its last.
    #[n(2)]
    pub to: u64,
}

/// A lease was taken away: its device was lost. What is mapped of it is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Revoked {
    /// Which lease.
    #[n(0)]
    pub lease: LeaseId,
    /// Why, as in [`ErrorReply`].
    #[n(1)]
    pub number: u16,
    /// For people.
    #[n(2)]
    pub message: String,
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
    /// Something was copied to the device for this request, from the host's memory or another
    /// device's, and nothing was read from files.
    #[n(3)]
    Promoted,
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
    /// When the load is expected to have ended, in milliseconds from now, if the daemon says.
    #[n(2)]
    pub eta_ms: Option<u64>,
}

/// Leases were taken up again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resumed {
    /// For each that was asked for, in order: the lease that the client has now, or nothing when
    /// the daemon has it no longer. What is mapped stays mapped either way.
    #[n(0)]
    pub leases: Vec<Option<LeaseId>>,
}

/// Grants of several opens, each as if it had come by itself, in host memory. The frame's
/// descriptors are theirs, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OpenedMany {
    /// The grants.
    #[n(0)]
    pub opens: Vec<OpenedOne>,
}

/// One of several grants.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OpenedOne {
    /// The request that it answers.
    #[n(0)]
    pub request: RequestId,
    /// The grant.
    #[n(1)]
    pub opened: Opened,
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
    /// Devices that it is on, or on its way to; absent from daemons without any.
    #[n(6)]
    pub devices: Option<Vec<DeviceState>>,
}

/// A model on one device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeviceState {
    /// Which device.
    #[n(0)]
    pub uuid: DeviceUuid,
    /// How much of it is there.
    #[n(1)]
    pub state: ModelState,
    /// What it takes there, 0 while nothing is.
    #[n(2)]
    pub bytes: u64,
    /// Leases on it there, over all sessions.
    #[n(3)]
    pub leases: u64,
}

/// Residency of a model in one memory, summed over its segments.
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

/// What was said to come was noted. Whether it is loaded before that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hinted {}

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
            Kind::Handed => decode_cbor(header, body).map(Self::Handed),
            Kind::Revoked => decode_cbor(header, body).map(Self::Revoked),
            Kind::Ready => decode_cbor(header, body).map(Self::Ready),
            Kind::Resumed => decode_cbor(header, body).map(Self::Resumed),
            Kind::OpenedMany => decode_cbor(header, body).map(Self::OpenedMany),
            Kind::Listed => decode_cbor(header, body).map(Self::Listed),
            Kind::Stated => decode_cbor(header, body).map(Self::Stated),
            Kind::Hinted => decode_cbor(header, body).map(Self::Hinted),
            Kind::Error => decode_cbor(header, body).map(Self::Error),
            kind @ (Kind::ClientHello
            | Kind::ServerHello
            | Kind::Open
            | Kind::OpenFiles
            | Kind::Close
            | Kind::Cancel
            | Kind::Resume
            | Kind::List
            | Kind::Stat
            | Kind::Touched
            | Kind::Heard
            | Kind::Hint) => Err(FrameError::OutOfPlace(kind)),
        }
    }

    /// Whether this is the last frame about the request whose id it carries.
    #[must_use]
    pub const fn ends_request(&self) -> bool {
        !matches!(
            self,
            Self::Progress(_)
                | Self::Handed(_)
                | Self::Revoked(_)
                | Self::Ready(_)
                | Self::OpenedMany(_)
        )
    }
}

impl Message for Reply {
    fn kind(&self) -> Kind {
        match self {
            Self::Opened(_) => Kind::Opened,
            Self::Closed(_) => Kind::Closed,
            Self::Cancelled(_) => Kind::Cancelled,
            Self::Progress(_) => Kind::Progress,
            Self::Handed(_) => Kind::Handed,
            Self::Revoked(_) => Kind::Revoked,
            Self::Ready(_) => Kind::Ready,
            Self::Resumed(_) => Kind::Resumed,
            Self::OpenedMany(_) => Kind::OpenedMany,
            Self::Listed(_) => Kind::Listed,
            Self::Stated(_) => Kind::Stated,
            Self::Hinted(_) => Kind::Hinted,
            Self::Error(_) => Kind::Error,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Opened(body) => encode_cbor(body, out),
            Self::Closed(body) => encode_cbor(body, out),
            Self::Cancelled(body) => encode_cbor(body, out),
            Self::Progress(body) => encode_cbor(body, out),
            Self::Handed(body) => encode_cbor(body, out),
            Self::Revoked(body) => encode_cbor(body, out),
            Self::Ready(body) => encode_cbor(body, out),
            Self::Resumed(body) => encode_cbor(body, out),
            Self::OpenedMany(body) => encode_cbor(body, out),
            Self::Listed(body) => encode_cbor(body, out),
            Self::Stated(body) => encode_cbor(body, out),
            Self::Hinted(body) => encode_cbor(body, out),
            Self::Error(body) => encode_cbor(body, out),
        }
    }
}

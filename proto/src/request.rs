//! What a client asks.
//!
//! ```
//! use mrm_proto::{name::ModelName, request::{Open, Request}};
//! let request = Request::Open(Open { wait_ms: 500, ..Open::by_name(ModelName::new("m")?) });
//! assert_eq!(request.fds_expected(), 0);
//! # Ok::<(), mrm_proto::name::NameError>(())
//! ```

use crate::frame::{FrameError, Header, Kind, Message, decode_cbor, encode_cbor};
use crate::ids::{DeviceUuid, InstanceId, LeaseId, RequestId, VersionId};
use crate::name::{FileName, ModelName};
use minicbor::{Decode, Encode};

/// Every request. Closed: a new one is a new protocol version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Open a registered model.
    Open(Open),
    /// Open files that the client opened itself.
    OpenFiles(OpenFiles),
    /// Give a lease back.
    Close(Close),
    /// Give up a pending open.
    Cancel(Cancel),
    /// Take up leases of the last daemon again.
    Resume(Resume),
    /// List models.
    List(List),
    /// Describe a model.
    Stat(Stat),
    /// In which order tensors were used.
    Touched(Touched),
    /// What is there was heard of.
    Heard(Heard),
    /// A model will be opened soon.
    Hint(Hint),
}

/// Opens a model of the operator's catalogue. Carries no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Open {
    /// The registered name.
    #[n(0)]
    pub model: ModelName,
    /// How long to wait for room and for the load. 0 asks for the daemon's default.
    #[n(1)]
    pub wait_ms: u64,
    /// Whether to send [`Progress`](crate::reply::Progress) frames while waiting.
    #[n(2)]
    pub progress: bool,
    /// On which device the weights are wanted. Absent: in host memory.
    #[n(3)]
    pub devices: Option<Devices>,
    /// What to wait for. Absent: for all. Needs [`features::EARLY`](crate::hello::features).
    #[n(4)]
    pub wait_for: Option<WaitFor>,
    /// The version that the same daemon granted for this name before, if the client still has its
    /// tensor table: when it is granted again, the table does not travel. Needs
    /// [`features::KNOWN`](crate::hello::features).
    #[n(5)]
    pub known: Option<VersionId>,
}

/// What an open in host memory waits for. On a device it is always all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum WaitFor {
    /// The last byte.
    #[default]
    #[n(0)]
    All,
    /// The tensor table, and memory for the rest, which [`Ready`](crate::reply::Ready) frames
    /// speak of as it is filled.
    #[n(1)]
    Layout,
}

/// The devices on which an open may be served. Needs [`features::DEVICE`](crate::hello::features).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Devices {
    /// Any one of these, at most [`DEVICES_PER_OPEN_MAX`](crate::limits::DEVICES_PER_OPEN_MAX):
    /// those that the client can see. The daemon takes one where the model is, else one with room,
    /// else the first.
    #[n(0)]
    pub any_of: Vec<DeviceUuid>,
    /// Whether host memory will do when no such device can take it now. The reply says which it
    /// was.
    #[n(1)]
    pub else_host: bool,
    /// How much of the device's budget nothing else may take while the lease lives, in bytes: what
    /// the client needs there to run. In host memory nothing is kept free. Needs
    /// [`features::RESERVE`](crate::hello::features).
    #[n(2)]
    pub reserve_bytes: Option<u64>,
}

/// Opens files that the client passes, one descriptor each, in the order of `files`.
///
/// The kernel has checked the client's permission when it opened them; the daemon never opens a
/// path that a client named.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct OpenFiles {
    /// What to call the model in listings. Not an identity: two labels may name one content.
    #[n(0)]
    pub label: ModelName,
    /// Name of each file. One `*.safetensors` file, or `model.safetensors.index.json` and its
    /// shards, or any one file (opaque).
    #[n(1)]
    pub files: Vec<FileName>,
    /// As in [`Open`].
    #[n(2)]
    pub wait_ms: u64,
    /// As in [`Open`].
    #[n(3)]
    pub progress: bool,
    /// As in [`Open`].
    #[n(4)]
    pub devices: Option<Devices>,
    /// As in [`Open`].
    #[n(5)]
    pub wait_for: Option<WaitFor>,
}

/// Gives a lease back.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Close {
    /// The lease, as `Opened` named it.
    #[n(0)]
    pub lease: LeaseId,
}

/// Gives up a pending open. The open is answered with `cancelled` unless it was already granted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Cancel {
    /// The request to give up.
    #[n(0)]
    pub target: RequestId,
}

/// Tells the order in which the tensors of an open model were first used, for later loads of it.
/// Carries the request id 0, and is not answered. Needs [`features::EARLY`](crate::hello::features).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Touched {
    /// The lease that it is open by.
    #[n(0)]
    pub lease: LeaseId,
    /// Positions of tensors in the file order, the first used first; none twice, at most
    /// [`TOUCHED_MAX`](crate::limits::TOUCHED_MAX).
    #[n(1)]
    pub tensors: Vec<u32>,
}

/// Tells that all [`Ready`](crate::reply::Ready) frames of a lease so far were read: more may come.
/// Carries the request id 0, and is not answered. Needs [`features::EARLY`](crate::hello::features).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Heard {
    /// The lease.
    #[n(0)]
    pub lease: LeaseId,
}

/// Tells that a registered model will be opened soon, by anybody: it may be loaded before that,
/// while nobody waits for anything else. Needs [`features::HINT`](crate::hello::features).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Hint {
    /// The registered name.
    #[n(0)]
    pub model: ModelName,
    /// In how many milliseconds, at most [`HINT_MS_MAX`](crate::limits::HINT_MS_MAX). What is said
    /// later takes the place of what was said before.
    #[n(1)]
    pub in_ms: u64,
}

/// Takes up leases that another daemon gave, before this one took its memory over. Needs
/// [`features::RESUME`](crate::hello::features).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resume {
    /// The run of the daemon that gave them, from its hello.
    #[n(0)]
    pub instance: InstanceId,
    /// What was leased, at most [`RESUMED_MAX`](crate::limits::RESUMED_MAX).
    #[n(1)]
    pub leases: Vec<HadLease>,
}

/// What a client has open from before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HadLease {
    /// The version, as `Opened` named it.
    #[n(0)]
    pub version: VersionId,
    /// The device that it is on; absent when it is in host memory.
    #[n(1)]
    pub device: Option<DeviceUuid>,
    /// What it asked to be kept free there, in bytes: is kept free again if there is room.
    #[n(2)]
    pub reserve_bytes: Option<u64>,
}

/// Asks for one page of models, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct List {
    /// Only names that begin with this text.
    #[n(0)]
    pub prefix: String,
    /// Only names greater than this one; absent for the first page.
    #[n(1)]
    pub after: Option<ModelName>,
}

/// Asks about one model.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stat {
    /// The registered name, or the label of resident files.
    #[n(0)]
    pub model: ModelName,
}

impl Open {
    /// An open with the daemon's default wait and without progress.
    #[must_use]
    pub const fn by_name(model: ModelName) -> Self {
        Self {
            model,
            wait_ms: 0,
            progress: false,
            devices: None,
            wait_for: None,
            known: None,
        }
    }
}

impl Request {
    /// Reads the body of a frame whose header was `header`.
    ///
    /// # Errors
    /// When the kind is not a request, or the body is malformed.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, FrameError> {
        match header.kind {
            Kind::Open => decode_cbor(header, body).map(Self::Open),
            Kind::OpenFiles => decode_cbor(header, body).map(Self::OpenFiles),
            Kind::Close => decode_cbor(header, body).map(Self::Close),
            Kind::Cancel => decode_cbor(header, body).map(Self::Cancel),
            Kind::Resume => decode_cbor(header, body).map(Self::Resume),
            Kind::List => decode_cbor(header, body).map(Self::List),
            Kind::Stat => decode_cbor(header, body).map(Self::Stat),
            Kind::Touched => decode_cbor(header, body).map(Self::Touched),
            Kind::Heard => decode_cbor(header, body).map(Self::Heard),
            Kind::Hint => decode_cbor(header, body).map(Self::Hint),
            kind @ (Kind::ClientHello
            | Kind::ServerHello
            | Kind::Opened
            | Kind::Closed
            | Kind::Cancelled
            | Kind::Progress
            | Kind::Handed
            | Kind::Revoked
            | Kind::Ready
            | Kind::Resumed
            | Kind::OpenedMany
            | Kind::Listed
            | Kind::Stated
            | Kind::Hinted
            | Kind::Error) => Err(FrameError::OutOfPlace(kind)),
        }
    }

    /// How many descriptors must travel with the request.
    #[must_use]
    pub fn fds_expected(&self) -> usize {
        match self {
            Self::OpenFiles(open) => open.files.len(),
            Self::Open(_)
            | Self::Close(_)
            | Self::Cancel(_)
            | Self::Resume(_)
            | Self::List(_)
            | Self::Stat(_)
            | Self::Touched(_)
            | Self::Heard(_)
            | Self::Hint(_) => 0,
        }
    }
}

impl Message for Request {
    fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::OpenFiles(_) => Kind::OpenFiles,
            Self::Close(_) => Kind::Close,
            Self::Cancel(_) => Kind::Cancel,
            Self::Resume(_) => Kind::Resume,
            Self::List(_) => Kind::List,
            Self::Stat(_) => Kind::Stat,
            Self::Touched(_) => Kind::Touched,
            Self::Heard(_) => Kind::Heard,
            Self::Hint(_) => Kind::Hint,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open(body) => encode_cbor(body, out),
            Self::OpenFiles(body) => encode_cbor(body, out),
            Self::Close(body) => encode_cbor(body, out),
            Self::Cancel(body) => encode_cbor(body, out),
            Self::Resume(body) => encode_cbor(body, out),
            Self::List(body) => encode_cbor(body, out),
            Self::Stat(body) => encode_cbor(body, out),
            Self::Touched(body) => encode_cbor(body, out),
            Self::Heard(body) => encode_cbor(body, out),
            Self::Hint(body) => encode_cbor(body, out),
        }
    }
}

//! What can go wrong, one type per operation.
//!
//! Every error is a [`Fault`]: a stable number and name for programs, whether the same call may
//! succeed later, and whether anything took effect in the daemon. Numbers below 700 are the
//! daemon's ([`mrm_proto::error::ErrorCode`]); 7xx are the library's own ([`LocalCode`]).
//!
//! ```
//! use mrm_client::{Client, ConnectOptions, Fault};
//! let nowhere = ConnectOptions::new().socket("/nonexistent/mrmd.sock");
//! let error = Client::connect_with(&nowhere).expect_err("nothing listens there");
//! assert_eq!((error.number(), error.name()), (700, "no_daemon"));
//! assert!(error.retryable() && !error.took_effect());
//! assert!(error.to_string().contains("/nonexistent/mrmd.sock"));
//! ```

use crate::device::DeviceError;
use mrm_proto::dtype::DType;
use mrm_proto::error::ErrorReply;
use mrm_proto::frame::FrameError;
use mrm_proto::ids::DeviceUuid;
use mrm_proto::name::NameError;
use mrm_proto::table::TableError;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What every error of this crate can say to a program.
pub trait Fault: std::error::Error {
    /// The stable number: below 700 the daemon's, 7xx this library's.
    fn number(&self) -> u16;

    /// The stable name of the number, in snake case. `unknown` for a number of a newer daemon.
    fn name(&self) -> &'static str {
        let daemon = mrm_proto::error::ErrorCode::from_number(self.number()).map(|c| c.name());
        let local = LocalCode::from_number(self.number()).map(LocalCode::name);
        daemon.or(local).unwrap_or("unknown")
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    fn retryable(&self) -> bool;

    /// Whether the call changed anything in the daemon that outlives it.
    fn took_effect(&self) -> bool {
        false
    }
}

mrm_proto::stable_codes! {
/// Codes of errors that arise in the client, not in the daemon.
pub enum LocalCode {
    /// Nothing listens on any of the sockets that were tried.
    NoDaemon = 700, "no_daemon", true;
    /// The socket is there but cannot be used.
    ConnectFailed = 701, "connect_failed", false;
    /// The daemon did not accept or answer the hello in time.
    ConnectTimedOut = 702, "connect_timed_out", true;
    /// The daemon went away while the request was pending, more often than is retried.
    Disconnected = 703, "disconnected", true;
    /// What arrived is not this protocol.
    Protocol = 704, "protocol", false;
    /// No reply within the wait and its grace.
    ReplyTimedOut = 705, "reply_timed_out", true;
    /// A descriptor that is not what was announced: not sealed, or of another size.
    SegmentRefused = 706, "segment_refused", false;
    /// The kernel refused to map a segment.
    MapFailed = 707, "map_failed", true;
    /// A local file or directory that cannot be opened.
    FileUnreadable = 708, "file_unreadable", false;
    /// A local path that is no model: no file, several candidates, a broken index.
    NotAModel = 709, "not_a_model", false;
    /// The tensor table that the daemon sent is damaged.
    TableDamaged = 710, "table_damaged", false;
    /// No tensor of that name.
    TensorNotFound = 711, "tensor_not_found", false;
    /// The elements are of another type than was asked for.
    DTypeMismatch = 712, "dtype_mismatch", false;
    /// The bytes lie at an address at which such elements cannot be borrowed.
    Misaligned = 713, "misaligned", false;
    /// The process forked while the call was pending, and this is the child.
    Forked = 714, "forked", true;
    /// This process has no device that it could use.
    NoDevice = 715, "no_device", false;
    /// The device that was asked for is not visible to this process.
    DeviceNotVisible = 716, "device_not_visible", false;
    /// The daemon has no device tier.
    NoDeviceTier = 717, "no_device_tier", false;
    /// The daemon gave host memory where that was not asked for.
    GaveHost = 718, "gave_host", true;
    /// The driver did not import what the daemon lent on a device.
    ImportFailed = 719, "import_failed", true;
    /// Bytes were asked for in host memory, and are on a device.
    OnDevice = 720, "on_device", false;
    /// Device memory cannot be unmapped now.
    CloseRefused = 721, "close_refused", true;
}
}

/// The daemon answered with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub(crate) ErrorReply);

impl Refusal {
    /// The error as the daemon sent it.
    #[must_use]
    pub const fn reply(&self) -> &ErrorReply {
        &self.0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Refusal {}

impl Fault for Refusal {
    fn number(&self) -> u16 {
        self.0.number
    }
    fn retryable(&self) -> bool {
        self.0.retryable
    }
    fn took_effect(&self) -> bool {
        self.0.took_effect
    }
}

/// Why there is no session.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// No socket to connect to, or nobody behind it.
    #[error(
        "no mrmd listens on {}: start it (`mrmd`), or set MRM_SOCKET to the socket of a running one",
        Paths(tried)
    )]
    NoDaemon {
        /// Every path that was tried.
        tried: Vec<PathBuf>,
    },
    /// The socket cannot be used.
    #[error(
        "cannot connect to mrmd at {}: {source}; check that this user may write to the socket",
        path.display()
    )]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error(
        "mrmd at {} did not answer the hello within {} ms: it is stopped or overloaded, try again",
        path.display(), timeout.as_millis()
    )]
    TimedOut {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The session ended during the hello.
    #[error("cannot open a session with mrmd at {}: {source}", path.display())]
    Session {
        /// The socket.
        path: PathBuf,
        /// How it ended.
        source: SessionError,
    },
}

impl Fault for ConnectError {
    fn number(&self) -> u16 {
        match self {
            Self::NoDaemon { .. } => LocalCode::NoDaemon.number(),
            Self::Io { .. } => LocalCode::ConnectFailed.number(),
            Self::TimedOut { .. } => LocalCode::ConnectTimedOut.number(),
            Self::Session { source, .. } => source.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::NoDaemon { .. } | Self::TimedOut { .. } => true,
            Self::Io { .. } => false,
            Self::Session { source, .. } => source.retryable(),
        }
    }
}

/// How a session, or the wait for a reply on it, ended. Leases of a session that ended are gone;
/// what is mapped stays readable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The daemon closed the connection or died.
    #[error("mrmd closed the connection: it was stopped or restarted, try again")]
    Disconnected,
    /// The connection failed.
    #[error("the connection to mrmd failed: {0}")]
    Io(Arc<io::Error>),
    /// The daemon ended the session, and said why.
    #[error("mrmd ended the session: {0}")]
    Ended(Refusal),
    /// What arrived is no frame or no reply.
    #[error("mrmd broke the protocol: {0}; client and daemon may be of incompatible releases")]
    Frame(#[from] FrameError),
    /// What arrived is well formed but may not stand where it does.
    #[error("mrmd broke the protocol: {0}; client and daemon may be of incompatible releases")]
    OutOfPlace(String),
    /// Requests pile up unsent.
    #[error("mrmd does not read: {0} bytes wait to be sent; the session was given up")]
    NotReading(usize),
    /// No reply in time.
    #[error("no reply from mrmd within {} ms: it is stopped or overloaded, try again", .0.as_millis())]
    TimedOut(Duration),
    /// The caller is a child process of the one that asked.
    #[error("the process forked while the request was pending; the child must ask again")]
    Forked,
}

impl Fault for SessionError {
    fn number(&self) -> u16 {
        match self {
            Self::Disconnected | Self::Io(_) | Self::NotReading(_) => {
                LocalCode::Disconnected.number()
            }
            Self::Ended(refusal) => refusal.number(),
            Self::Frame(_) | Self::OutOfPlace(_) => LocalCode::Protocol.number(),
            Self::TimedOut(_) => LocalCode::ReplyTimedOut.number(),
            Self::Forked => LocalCode::Forked.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::Ended(refusal) => refusal.retryable(),
            Self::Frame(_) | Self::OutOfPlace(_) => false,
            Self::Disconnected
            | Self::Io(_)
            | Self::NotReading(_)
            | Self::TimedOut(_)
            | Self::Forked => true,
        }
    }
}

/// Why a request was not answered as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// A name that breaks the rules.
    #[error("`{}` is not a model name: {reason}", name.escape_debug())]
    BadName {
        /// What was given, cut to a length fit for a message.
        name: String,
        /// Which rule it breaks.
        reason: NameError,
    },
    /// There is no session and none could be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The session ended before the reply.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The daemon refused.
    #[error(transparent)]
    Refused(Refusal),
    /// The daemon is older than this library, and does not know what was asked for.
    #[error("the daemon ({0}) takes no hints: update it")]
    NoHints(String),
}

impl Fault for RequestError {
    fn number(&self) -> u16 {
        match self {
            Self::BadName { .. } => mrm_proto::error::ErrorCode::BadName.number(),
            Self::NoHints(_) => mrm_proto::error::ErrorCode::VersionMismatch.number(),
            Self::Connect(e) => e.number(),
            Self::Session(e) => e.number(),
            Self::Refused(e) => e.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::BadName { .. } | Self::NoHints(_) => false,
            Self::Connect(e) => e.retryable(),
            Self::Session(e) => e.retryable(),
            Self::Refused(e) => e.retryable(),
        }
    }
    fn took_effect(&self) -> bool {
        match self {
            Self::Refused(e) => e.took_effect(),
            Self::BadName { .. } | Self::NoHints(_) | Self::Connect(_) | Self::Session(_) => false,
        }
    }
}

/// A descriptor of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The tensor table.
    Table,
    /// The segment with this index.
    Segment(usize),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("the tensor table"),
            Self::Segment(index) => write!(f, "segment {index}"),
        }
    }
}

/// Why a descriptor of a grant was not mapped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SegmentError {
    /// It could still be written or cut, so borrowing its bytes would not be safe.
    #[error("{what} is not a sealed memory file: it lacks the seals against writing and shrinking")]
    NotSealed {
        /// Which descriptor.
        what: What,
    },
    /// It is not as long as was announced.
    #[error("{what} has {actual_bytes} bytes where {expected_bytes} were announced")]
    Size {
        /// Which descriptor.
        what: What,
        /// What the grant said.
        expected_bytes: u64,
        /// What the kernel says.
        actual_bytes: u64,
    },
    /// The kernel refused.
    #[error("cannot map {what}: {source}; check the limits on address space and on mappings")]
    Map {
        /// Which descriptor.
        what: What,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
}

impl Fault for SegmentError {
    fn number(&self) -> u16 {
        match self {
            Self::NotSealed { .. } | Self::Size { .. } => LocalCode::SegmentRefused.number(),
            Self::Map { .. } => LocalCode::MapFailed.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::NotSealed { .. } | Self::Size { .. } => false,
            Self::Map { .. } => true,
        }
    }
}

/// Why a model was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What the daemon passed was refused by the client.
    #[error("mrmd granted `{model}`, but {source}; the grant was given back")]
    Segment {
        /// The model.
        model: String,
        /// What is wrong.
        source: SegmentError,
    },
    /// It was opened by its layout before, and the rest does not come.
    #[error(transparent)]
    Incomplete(Box<TensorError>),
    /// The weights are not to be had on a device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A local file or directory cannot be opened.
    #[error("cannot open {}: {source}", path.display())]
    File {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: Arc<io::Error>,
    },
    /// A local path that is no model.
    #[error("{} cannot be opened as a model: {reason}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// Why, and what would be one.
        reason: String,
    },
}

impl Fault for OpenError {
    fn number(&self) -> u16 {
        match self {
            Self::Request(e) => e.number(),
            Self::Segment { source, .. } => source.number(),
            Self::Incomplete(e) => e.number(),
            Self::Device(e) => e.number(),
            Self::File { .. } => LocalCode::FileUnreadable.number(),
            Self::NotAModel { .. } => LocalCode::NotAModel.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::Request(e) => e.retryable(),
            Self::Segment { source, .. } => source.retryable(),
            Self::Incomplete(e) => e.retryable(),
            Self::Device(e) => e.retryable(),
            Self::File { .. } | Self::NotAModel { .. } => false,
        }
    }
    fn took_effect(&self) -> bool {
        match self {
            Self::Request(e) => e.took_effect(),
            Self::Segment { .. }
            | Self::Incomplete(_)
            | Self::Device(_)
            | Self::File { .. }
            | Self::NotAModel { .. } => false,
        }
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        Self::Request(error.into())
    }
}

impl From<SessionError> for OpenError {
    fn from(error: SessionError) -> Self {
        Self::Request(error.into())
    }
}

/// Why a tensor cannot be borrowed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TensorError {
    /// No such tensor.
    #[error("model `{model}` has no tensor `{tensor}`; `tensors()` lists its {tensors}")]
    NotFound {
        /// The model.
        model: String,
        /// What was asked for.
        tensor: String,
        /// How many it has.
        tensors: usize,
    },
    /// The table cannot be mapped.
    #[error("cannot read the tensor table of `{model}`: {source}")]
    TableSegment {
        /// The model.
        model: String,
        /// What is wrong.
        source: SegmentError,
    },
    /// The table is damaged.
    #[error("cannot read the tensor table of `{model}`: {source}")]
    Table {
        /// The model.
        model: String,
        /// What is wrong.
        source: TableError,
    },
    /// It is still being read.
    #[error("{tensor} of `{model}` is not there after {waited:?}: wait longer")]
    NotReady {
        /// The model.
        model: String,
        /// What was waited for.
        tensor: String,
        /// How long.
        waited: Duration,
    },
    /// The load of a model that was opened by its layout failed.
    #[error("{tensor} of `{model}` will not come, its load failed: {source}")]
    LoadFailed {
        /// The model.
        model: String,
        /// What was asked for.
        tensor: String,
        /// Why.
        source: Refusal,
    },
    /// The daemon went away before a model that was opened by its layout was whole.
    #[error("{tensor} of `{model}` will not come, the daemon went away: open the model again")]
    DaemonGone {
        /// The model.
        model: String,
        /// What was asked for.
        tensor: String,
    },
    /// The daemon says that it is whole, and the kernel does not.
    #[error("cannot use `{model}`: {source}")]
    NotSealed {
        /// The model.
        model: String,
        /// What is wrong.
        source: SegmentError,
    },
    /// Another element type.
    #[error("tensor `{tensor}` holds {actual}, which cannot be borrowed as {wanted}")]
    DType {
        /// The tensor.
        tensor: String,
        /// Its type.
        actual: DType,
        /// The Rust type that was asked for.
        wanted: &'static str,
    },
    /// It is not in host memory.
    #[error(
        "tensor `{tensor}` is on device {uuid}, where the host cannot read it: take its \
         `device_pointer()`, or open the model in host memory"
    )]
    OnDevice {
        /// The tensor.
        tensor: String,
        /// The device.
        uuid: DeviceUuid,
    },
    /// Not aligned for its type, as some writers leave it.
    #[error(
        "tensor `{tensor}` begins {misaligned_bytes} bytes off the alignment of {wanted}: \
         copy it out of `bytes()`, or write the file with aligned tensors"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// The Rust type that was asked for.
        wanted: &'static str,
        /// How far off it is.
        misaligned_bytes: usize,
    },
}

impl Fault for TensorError {
    fn number(&self) -> u16 {
        match self {
            Self::NotFound { .. } => LocalCode::TensorNotFound.number(),
            Self::TableSegment { source, .. } => source.number(),
            Self::Table { .. } => LocalCode::TableDamaged.number(),
            Self::NotReady { .. } => LocalCode::ReplyTimedOut.number(),
            Self::LoadFailed { source, .. } => source.number(),
            Self::DaemonGone { .. } => LocalCode::Disconnected.number(),
            Self::NotSealed { source, .. } => source.number(),
            Self::DType { .. } => LocalCode::DTypeMismatch.number(),
            Self::OnDevice { .. } => LocalCode::OnDevice.number(),
            Self::Misaligned { .. } => LocalCode::Misaligned.number(),
        }
    }
    fn retryable(&self) -> bool {
        match self {
            Self::TableSegment { source, .. } | Self::NotSealed { source, .. } => {
                source.retryable()
            }
            Self::LoadFailed { source, .. } => source.retryable(),
            Self::NotReady { .. } | Self::DaemonGone { .. } => true,
            Self::NotFound { .. }
            | Self::Table { .. }
            | Self::DType { .. }
            | Self::OnDevice { .. }
            | Self::Misaligned { .. } => false,
        }
    }
}

/// Paths as prose.
struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("any known socket (no candidate path)");
        }
        for (i, path) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}", path.display())?;
        }
        Ok(())
    }
}

//! Error numbers: those of the daemon, of the client library, and of this interface.
//!
//! ```
//! use mrm::number::mrm_error_e;
//! use mrm_proto::error::ErrorCode;
//! assert_eq!(mrm_error_e::NoRoom as u32, u32::from(ErrorCode::NoRoom.number()));
//! ```

/// What went wrong, as a number that keeps its meaning forever.
///
/// 1xx: the session broke the protocol and ended. 2xx: the request. 3xx: the source of the bytes.
/// 4xx: their format. 5xx: room. 6xx: the daemon's world. 7xx: the client's side of the socket.
/// 9xx: the C interface itself.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_error_e {
    /// Nothing went wrong.
    None = 0,
    /// The first bytes are not a frame of this protocol.
    BadMagic = 100,
    /// No common protocol version.
    VersionMismatch = 101,
    /// A frame body over the bound.
    FrameTooLong = 102,
    /// A frame kind that the daemon does not know.
    UnknownKind = 103,
    /// A frame out of order: a request before hello, a second hello, a reply from a client.
    OutOfOrder = 104,
    /// Not as many descriptors as the frame announced or its request needs.
    WrongFdCount = 105,
    /// A body that does not decode.
    MalformedBody = 106,
    /// A request id that is already awaiting its reply, or 0 where a reply is due.
    BadRequestId = 107,
    /// More requests in flight than the session may have.
    TooManyInFlight = 108,
    /// Connected, but did not send a whole frame in time.
    TooSlow = 109,
    /// Replies pile up unread.
    NotReading = 110,
    /// The daemon has as many sessions as it may have, in all or of this uid.
    TooManySessions = 111,
    /// Reserved header bits are set.
    ReservedBits = 112,
    /// A name that breaks the rules.
    BadName = 200,
    /// No such model in the catalogue.
    ModelNotFound = 201,
    /// A lease that this session does not hold.
    UnknownLease = 202,
    /// As many leases as the session may hold.
    TooManyLeases = 203,
    /// Given up by the client.
    Cancelled = 204,
    /// The peer's uid may not do this.
    NotPermitted = 205,
    /// A list of files that does not make a model: none, too many, two of one name, shards
    /// without their index.
    BadFileSet = 206,
    /// None of the devices asked for is one of the daemon's.
    UnknownDevice = 207,
    /// A descriptor that is not open for reading.
    FdNotReadable = 300,
    /// A directory, FIFO, device or socket where a regular file is needed.
    NotRegularFile = 301,
    /// A filesystem whose owner could make a read hang.
    FilesystemRefused = 302,
    /// Opening or reading failed.
    SourceUnreadable = 303,
    /// The file changed or shrank while it was read.
    SourceChanged = 304,
    /// A registered path that leads outside its root.
    OutsideRoot = 305,
    /// A registered file that is not there.
    SourceMissing = 306,
    /// No list of digests names the file, and the operator requires one that does.
    ManifestMissing = 307,
    /// The file is not what the list of digests beside it says.
    ManifestMismatch = 308,
    /// The list of digests beside the file cannot be read.
    ManifestMalformed = 309,
    /// Shorter than its own header, or than eight bytes.
    HeaderTruncated = 400,
    /// A header length of zero, or over the bound.
    HeaderLength = 401,
    /// A header that is not the JSON object which the format asks for.
    HeaderMalformed = 402,
    /// A header that is not UTF-8.
    HeaderNotUtf8 = 403,
    /// A header nested deeper than the bound.
    HeaderTooDeep = 404,
    /// Two tensors of one name.
    DuplicateTensor = 405,
    /// Tensors that overlap, or leave bytes between them.
    TensorOverlap = 406,
    /// A tensor that ends outside the file, or bytes after the last.
    TensorOutOfBounds = 407,
    /// Shape times element size does not equal the range.
    TensorSize = 408,
    /// Shape times element size overflows.
    TensorOverflow = 409,
    /// More tensors, dimensions or name bytes than the bounds allow.
    TooManyTensors = 410,
    /// An element type that this build does not know.
    UnknownDtype = 411,
    /// An index that is not the JSON which the format asks for.
    IndexMalformed = 412,
    /// A shard that the index names is not there.
    ShardMissing = 413,
    /// A shard listed twice, or a tensor that is in another shard than the index says.
    ShardMismatch = 414,
    /// A shard name that leads outside the model's directory.
    ShardOutside = 415,
    /// A file of no bytes.
    EmptyFile = 416,
    /// The files hold no tensors that could be laid out on a device.
    NoTensors = 417,
    /// More allocations than one model may have on a device, at its granularity.
    TooManyAllocations = 418,
    /// Larger than the budget: it can never fit.
    TooLarge = 500,
    /// No room within the wait: what is resident is held or pinned.
    NoRoom = 501,
    /// The kernel has no memory although the budget has room.
    OutOfMemory = 502,
    /// Too many requests wait for room.
    QueueFull = 503,
    /// The daemon takes no new leases: it is about to exit.
    Draining = 504,
    /// The load did not end within the wait. It goes on; a later open may hit.
    TimedOut = 505,
    /// Pinned, leased or loading: cannot be evicted now.
    InUse = 506,
    /// The daemon broke one of its own rules.
    Internal = 600,
    /// The daemon is out of descriptors or threads.
    Exhausted = 601,
    /// A device failed for good: its weights are gone.
    DeviceLost = 602,
    /// The driver of a device refused.
    DeviceFailed = 603,
    /// What is in memory is not what was loaded: close the model and open it again.
    Damaged = 604,
    /// Nothing listens on any of the sockets that were tried.
    NoDaemon = 700,
    /// The socket is there but cannot be used.
    ConnectFailed = 701,
    /// The daemon did not accept or answer the hello in time.
    ConnectTimedOut = 702,
    /// The daemon went away while the request was pending, more often than is retried.
    Disconnected = 703,
    /// What arrived is not this protocol.
    Protocol = 704,
    /// No reply within the wait and its grace.
    ReplyTimedOut = 705,
    /// A descriptor that is not what was announced: not sealed, or of another size.
    SegmentRefused = 706,
    /// The kernel refused to map a segment.
    MapFailed = 707,
    /// A local file or directory that cannot be opened.
    FileUnreadable = 708,
    /// A local path that is no model: no file, several candidates, a broken index.
    NotAModel = 709,
    /// The tensor table that the daemon sent is damaged.
    TableDamaged = 710,
    /// No tensor of that name.
    TensorNotFound = 711,
    /// The elements are of another type than was asked for.
    DtypeMismatch = 712,
    /// The bytes lie at an address at which such elements cannot be borrowed.
    Misaligned = 713,
    /// The process forked while the call was pending, and this is the child.
    Forked = 714,
    /// This process has no device that it could use.
    NoDevice = 715,
    /// The device that was asked for is not visible to this process.
    DeviceNotVisible = 716,
    /// The daemon has no device tier.
    NoDeviceTier = 717,
    /// The daemon gave host memory where that was not asked for.
    GaveHost = 718,
    /// The driver did not import what the daemon lent on a device.
    ImportFailed = 719,
    /// Bytes were asked for in host memory, and are on a device.
    OnDevice = 720,
    /// Device memory cannot be unmapped now.
    CloseRefused = 721,
    /// An argument is NULL that must not be.
    NullArgument = 901,
    /// An argument that breaks its rules: text that is not UTF-8, a struct size that is too small.
    BadArgument = 902,
    /// No tensor, metadata or segment of this index or key.
    NoSuchItem = 903,
    /// The kernel refused a descriptor.
    DupFailed = 904,
    /// A bug of this library, caught at its boundary.
    Panic = 999,
}

/// The numbers that this crate gives itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Local {
    NullArgument,
    BadArgument,
    NoSuchItem,
    DupFailed,
    Panic,
}

impl Local {
    /// The stable number.
    pub(crate) const fn number(self) -> u32 {
        let code = match self {
            Self::NullArgument => mrm_error_e::NullArgument,
            Self::BadArgument => mrm_error_e::BadArgument,
            Self::NoSuchItem => mrm_error_e::NoSuchItem,
            Self::DupFailed => mrm_error_e::DupFailed,
            Self::Panic => mrm_error_e::Panic,
        };
        code as u32
    }

    /// The stable name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NullArgument => "null_argument",
            Self::BadArgument => "bad_argument",
            Self::NoSuchItem => "no_such_item",
            Self::DupFailed => "dup_failed",
            Self::Panic => "panic",
        }
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    pub(crate) const fn retryable(self) -> bool {
        match self {
            Self::DupFailed => true,
            Self::NullArgument | Self::BadArgument | Self::NoSuchItem | Self::Panic => false,
        }
    }
}

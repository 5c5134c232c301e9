//! Error codes of the boundary: stable numbers, each with what a client may do next.
//!
//! A code keeps its number and meaning forever. The message names the object, the reason and the
//! remedy; programs look at the code. Numbers from 700 on never travel on this wire: 7xx are the
//! client library's own errors (and, in the status socket's JSON, faults of the HTTP request), 9xx
//! those of the C interface.
//!
//! ```
//! use mrm_proto::error::ErrorCode;
//! assert_eq!(ErrorCode::from_number(201), Some(ErrorCode::ModelNotFound));
//! assert!(ErrorCode::NoRoom.retryable() && !ErrorCode::TooLarge.retryable());
//! ```

use crate::limits::ERROR_MESSAGE_BYTES_MAX;
use minicbor::{Decode, Encode};

/// Whether the same request may succeed later with nothing changed by the caller.
const RETRY: bool = true;
const FINAL: bool = false;

/// Declares an enum of stable error codes: number, name, and whether trying again can help. Also
/// for the codes of client libraries, so that all codes answer the same questions.
///
/// ```
/// mrm_proto::stable_codes! {
///     /// Codes of an example.
///     pub enum Code {
///         /// It is raining.
///         Rain = 700, "rain", true;
///     }
/// }
/// assert_eq!(Code::from_number(700).map(Code::name), Some("rain"));
/// assert!(Code::Rain.retryable());
/// ```
#[macro_export]
macro_rules! stable_codes {
    ($(#[$about:meta])* pub enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $number:literal, $text:literal, $retry:expr;)*
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum $name { $($(#[$doc])* $variant = $number,)* }

        impl $name {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code with this number.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            /// The stable number.
            #[must_use]
            pub const fn number(self) -> u16 { self as u16 }

            /// The stable name, in snake case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Whether the same call may succeed later with nothing changed by the caller.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)* }
            }
        }
    };
}

stable_codes! {
/// What went wrong. 1xx: the session broke the protocol and ends. 2xx: the request.
/// 3xx: the source of the bytes. 4xx: their format. 5xx: room. 6xx: the daemon's world.
pub enum ErrorCode {
    /// The first bytes are not a frame of this protocol.
    BadMagic = 100, "bad_magic", FINAL;
    /// No common protocol version.
    VersionMismatch = 101, "version_mismatch", FINAL;
    /// A frame body over the bound.
    FrameTooLong = 102, "frame_too_long", FINAL;
    /// A frame kind that the daemon does not know.
    UnknownKind = 103, "unknown_kind", FINAL;
    /// A frame out of order: a request before hello, a second hello, a reply from a client.
    OutOfOrder = 104, "out_of_order", FINAL;
    /// Not as many descriptors as the frame announced or its request needs.
    WrongFdCount = 105, "wrong_fd_count", FINAL;
    /// A body that does not decode.
    MalformedBody = 106, "malformed_body", FINAL;
    /// A request id that is already awaiting its reply, or 0 where a reply is due.
    BadRequestId = 107, "bad_request_id", FINAL;
    /// More requests in flight than the session may have.
    TooManyInFlight = 108, "too_many_in_flight", FINAL;
    /// Connected, but did not send a whole frame in time.
    TooSlow = 109, "too_slow", FINAL;
    /// Replies pile up unread.
    NotReading = 110, "not_reading", FINAL;
    /// The daemon has as many sessions as it may have, in all or of this uid.
    TooManySessions = 111, "too_many_sessions", RETRY;
    /// Reserved header bits are set.
    ReservedBits = 112, "reserved_bits", FINAL;

    /// A name that breaks the rules.
    BadName = 200, "bad_name", FINAL;
    /// No such model in the catalogue.
    ModelNotFound = 201, "model_not_found", FINAL;
    /// A lease that this session does not hold.
    UnknownLease = 202, "unknown_lease", FINAL;
    /// As many leases as the session may hold.
    TooManyLeases = 203, "too_many_leases", FINAL;
    /// Given up by the client.
    Cancelled = 204, "cancelled", RETRY;
    /// The peer's uid may not do this.
    NotPermitted = 205, "not_permitted", FINAL;
    /// A list of files that does not make a model: none, too many, two of one name, shards
    /// without their index.
    BadFileSet = 206, "bad_file_set", FINAL;
    /// None of the devices that the request names is one of the daemon's.
    UnknownDevice = 207, "unknown_device", FINAL;

    /// A descriptor that is not open for reading.
    FdNotReadable = 300, "fd_not_readable", FINAL;
    /// A directory, FIFO, device or socket where a regular file is needed.
    NotRegularFile = 301, "not_regular_file", FINAL;
    /// A filesystem whose owner could make a read hang.
    FilesystemRefused = 302, "filesystem_refused", FINAL;
    /// Opening or reading failed.
    SourceUnreadable = 303, "source_unreadable", RETRY;
    /// The file changed or shrank while it was read.
    SourceChanged = 304, "source_changed", RETRY;
    /// A registered path that leads outside its root.
    OutsideRoot = 305, "outside_root", FINAL;
    /// A registered file that is not there.
    SourceMissing = 306, "source_missing", RETRY;
    /// No list of digests names the file, and the operator requires one that does.
    ManifestMissing = 307, "manifest_missing", FINAL;
    /// The file is not what the list of digests beside it says.
    ManifestMismatch = 308, "manifest_mismatch", FINAL;
    /// The list of digests beside the file cannot be read.
    ManifestMalformed = 309, "manifest_malformed", FINAL;

    /// Shorter than its own header, or than eight bytes.
    HeaderTruncated = 400, "header_truncated", FINAL;
    /// A header length of zero, or over the bound.
    HeaderLength = 401, "header_length", FINAL;
    /// A header that is not the JSON object which the format asks for.
    HeaderMalformed = 402, "header_malformed", FINAL;
    /// A header that is not UTF-8.
    HeaderNotUtf8 = 403, "header_not_utf8", FINAL;
    /// A header nested deeper than the bound.
    HeaderTooDeep = 404, "header_too_deep", FINAL;
    /// Two tensors of one name.
    DuplicateTensor = 405, "duplicate_tensor", FINAL;
    /// Tensors that overlap, or leave bytes between them.
    TensorOverlap = 406, "tensor_overlap", FINAL;
    /// A tensor that ends outside the file, or bytes after the last.
    TensorOutOfBounds = 407, "tensor_out_of_bounds", FINAL;
    /// Shape times element size does not equal the range.
    TensorSize = 408, "tensor_size", FINAL;
    /// Shape times element size overflows.
    TensorOverflow = 409, "tensor_overflow", FINAL;
    /// More tensors, dimensions or name bytes than the bounds allow.
    TooManyTensors = 410, "too_many_tensors", FINAL;
    /// An element type that this build does not know.
    UnknownDtype = 411, "unknown_dtype", FINAL;
    /// An index that is not the JSON which the format asks for.
    IndexMalformed = 412, "index_malformed", FINAL;
    /// A shard that the index names is not there.
    ShardMissing = 413, "shard_missing", FINAL;
    /// A shard listed twice, or a tensor that is in another shard than the index says.
    ShardMismatch = 414, "shard_mismatch", FINAL;
    /// A shard name that leads outside the model's directory.
    ShardOutside = 415, "shard_outside", FINAL;
    /// A file of no bytes.
    EmptyFile = 416, "empty_file", FINAL;
    /// The files hold no tensors that could be laid out on a device.
    NoTensors = 417, "no_tensors", FINAL;
    /// More allocations than one model may have on a device, at the granularity asked for.
    TooManyAllocations = 418, "too_many_allocations", FINAL;

    /// Larger than the budget: it can never fit.
    TooLarge = 500, "too_large", FINAL;
    /// No room within the wait: what is resident is held or pinned.
    NoRoom = 501, "no_room", RETRY;
    /// The kernel has no memory although the budget has room.
    OutOfMemory = 502, "out_of_memory", RETRY;
    /// Too many requests wait for room.
    QueueFull = 503, "queue_full", RETRY;
    /// The daemon takes no new leases: it is about to exit.
    Draining = 504, "draining", RETRY;
    /// The load did not end within the wait. It goes on; a later open may hit.
    TimedOut = 505, "timed_out", RETRY;
    /// Pinned, leased or loading: cannot be evicted now.
    InUse = 506, "in_use", RETRY;

    /// The daemon broke one of its own rules.
    Internal = 600, "internal", RETRY;
    /// The daemon is out of descriptors or threads.
    Exhausted = 601, "exhausted", RETRY;
    /// A device failed for good: its weights are gone, and it takes no more until the daemon starts
    /// anew.
    DeviceLost = 602, "device_lost", FINAL;
    /// The driver of a device refused.
    DeviceFailed = 603, "device_failed", RETRY;
    /// What is in memory is not what was loaded. It is lent to nobody any more, and loaded anew at
    /// the next open.
    Damaged = 604, "damaged", RETRY;
}
}

impl ErrorCode {
    /// Whether the session ends after this error.
    #[must_use]
    pub const fn ends_session(self) -> bool {
        self.number() / 100 == 1
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The body of an error frame.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ErrorReply {
    /// The number of an [`ErrorCode`]; a newer daemon may send one that this build lacks.
    #[n(0)]
    pub number: u16,
    /// For people: the object, the reason, the remedy.
    #[n(1)]
    pub message: String,
    /// Whether the same request may succeed later.
    #[n(2)]
    pub retryable: bool,
    /// Whether the request changed anything in the daemon.
    #[n(3)]
    pub took_effect: bool,
}

impl ErrorReply {
    /// An error without effect. A message over the bound is cut.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > ERROR_MESSAGE_BYTES_MAX {
            let mut end = ERROR_MESSAGE_BYTES_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self {
            number: code.number(),
            message,
            retryable: code.retryable(),
            took_effect: false,
        }
    }

    /// The same, saying that the request did change something.
    #[must_use]
    pub fn with_effect(mut self) -> Self {
        self.took_effect = true;
        self
    }

    /// The code, if this build knows it.
    #[must_use]
    pub const fn code(&self) -> Option<ErrorCode> {
        ErrorCode::from_number(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_and_round_trip() {
        assert!(ErrorCode::ALL.is_sorted());
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(code));
            assert_eq!(code.ends_session(), code.number() < 200);
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let reply = ErrorReply::new(ErrorCode::Internal, "é".repeat(5000));
        assert!(reply.message.len() <= ERROR_MESSAGE_BYTES_MAX);
    }
}

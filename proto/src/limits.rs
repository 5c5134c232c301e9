//! Every bound of the protocol, in one place. Units are the last word of the name.
//!
//! ```
//! use mrm_proto::limits;
//! assert!(limits::SEGMENTS_PER_MODEL_MAX < limits::FDS_PER_FRAME_MAX);
//! ```

/// Oldest protocol version that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// Newest protocol version that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// Size of the fixed frame header.
pub const FRAME_HEADER_BYTES: usize = 24;
/// Largest frame body either side may send. A frame and its header fit the default socket
/// buffer of Linux (212,992 bytes), so that a reply is never half-sent to a live reader.
pub const FRAME_BODY_BYTES_MAX: usize = 128 * 1024;
/// Most file descriptors in one frame: the kernel's `SCM_MAX_FD` (`unix(7)`).
pub const FDS_PER_FRAME_MAX: usize = 253;

/// Most files (shards and index together) that one model may consist of. A grant passes one
/// descriptor per segment and one for the tensor table.
pub const SEGMENTS_PER_MODEL_MAX: usize = 250;
/// Most devices that one open may name.
pub const DEVICES_PER_OPEN_MAX: usize = 64;
/// Most allocations that one model may have on a device: each is a descriptor in the daemon and in
/// every client.
pub const ALLOCATIONS_PER_MODEL_MAX: usize = 4096;
/// Most tensors in one model.
pub const TENSORS_PER_MODEL_MAX: usize = 1 << 20;
/// Most dimensions of one tensor.
pub const TENSOR_RANK_MAX: usize = 64;
/// Longest tensor name, in UTF-8 bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 4096;
/// Longest model name, in UTF-8 bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 1024;
/// Longest file name inside a model (`NAME_MAX` of Linux).
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// Largest header of one safetensors file: the bound of the reference implementation.
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 100_000_000;
/// Largest `model.safetensors.index.json`.
pub const INDEX_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Deepest nesting of JSON that a header may use. The format itself needs three levels.
pub const JSON_DEPTH_MAX: usize = 8;

/// Most leases that one session may hold.
pub const LEASES_PER_SESSION_MAX: usize = 4096;
/// Most leases that one `Resume` may name; a client with more sends several.
pub const RESUMED_MAX: usize = 2048;
/// Most requests of one session that may await their reply.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 256;
/// Most tensors whose order of use one `Touched` may tell.
pub const TOUCHED_MAX: usize = 16_384;
/// Most `Ready` frames of one lease that may be unread: the daemon goes on after a `Heard`, and
/// tells of what came meanwhile in one frame. The one that says that all is sealed is not counted.
pub const READY_UNHEARD_MAX: u32 = 4;
/// Most leases of one session on models that are still being filled; what is opened beyond that
/// is granted when it is filled.
pub const EARLY_LEASES_PER_SESSION_MAX: usize = 32;
/// Most ranges that one `Ready` may name; what does not fit comes in the next.
pub const READY_RANGES_MAX: usize = 1024;
/// Most rows in one reply to `List`.
pub const LIST_ROWS_MAX: usize = 256;
/// Longest wait that an `Open` may ask for.
pub const WAIT_MS_MAX: u64 = 3_600_000;
/// Furthest ahead that a `Hint` may speak of.
pub const HINT_MS_MAX: u64 = 3_600_000;
/// Most models that one user may have said to come at a time, over all its sessions.
pub const HINTS_PER_USER_MAX: usize = 128;
/// Longest human-readable error message.
pub const ERROR_MESSAGE_BYTES_MAX: usize = 4096;
/// Longest name a client may give of itself.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

const _: () = assert!(VERSION_MIN <= VERSION_MAX);
const _: () = assert!(TOUCHED_MAX * 5 + 64 < FRAME_BODY_BYTES_MAX);
const _: () =
    assert!(READY_RANGES_MAX * 32 + SEGMENTS_PER_MODEL_MAX * 5 + 64 < FRAME_BODY_BYTES_MAX);
const _: () = assert!(SEGMENTS_PER_MODEL_MAX + 1 < FDS_PER_FRAME_MAX);
// Sizes of all allocations, and as many handles as fit into one frame beside them.
const _: () =
    assert!(ALLOCATIONS_PER_MODEL_MAX * 9 + FDS_PER_FRAME_MAX * 66 + 256 < FRAME_BODY_BYTES_MAX);
const _: () = assert!(FRAME_BODY_BYTES_MAX + FRAME_HEADER_BYTES < 212_992);
const _: () = assert!(
    SEGMENTS_PER_MODEL_MAX * (FILE_NAME_BYTES_MAX + 16) + MODEL_NAME_BYTES_MAX
        < FRAME_BODY_BYTES_MAX
);

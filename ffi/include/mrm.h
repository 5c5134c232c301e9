/*
 * mrm.h - the C interface of the mrm client.
 *
 * Made by cbindgen from ffi/src; do not edit. To change it, change ffi/src and run
 *     MRM_UPDATE=1 cargo test -p mrm-ffi --test header
 *
 * Suffixes: `_h` a handle that you own and must give to its `_close`; `_ref` the same handle
 * borrowed for one call; `_t` a struct; `_e` an enum; `_f` a callback; `_ptr` bytes that the
 * library owns.
 *
 * Results: every function that can fail returns `int`, 0 for success and otherwise a stable
 * number of `mrm_error_e`; `mrm_last_error` tells the rest. On failure nothing was written to
 * the out arguments, except that handles are set to NULL. No function panics, throws or aborts;
 * a NULL argument is an error unless its text says otherwise.
 *
 * Threads: every function may be called from any thread, at the same time, on the same handles.
 * Only `_close` needs the handle for itself: no other call may be using it then.
 *
 * Fork: a child keeps what is mapped and opens more over a connection of its own. What is on a
 * device it cannot use: CUDA does not survive fork.
 */
#ifndef MRM_H
#define MRM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The bit of `mrm_dl_managed_t.flags` that says that the elements may not be written.
 */
#define MRM_DL_FLAG_READ_ONLY 1

/**
 * `mrm_dl_device_t.device_type` of host memory (`kDLCPU`).
 */
#define MRM_DL_CPU 1

/**
 * `mrm_dl_device_t.device_type` of a CUDA device (`kDLCUDA`).
 */
#define MRM_DL_CUDA 2

/**
 * The version of this interface. It changes when a program built against another one would not
 * work any more, together with the soname.
 */
#define MRM_ABI_VERSION 0

/**
 * As `mrm_open_options_t.wait_ms`: wait for 30 seconds.
 */
#define MRM_WAIT_DEFAULT UINT64_MAX

/**
 * What went wrong, as a number that keeps its meaning forever.
 *
 * 1xx: the session broke the protocol and ended. 2xx: the request. 3xx: the source of the bytes.
 * 4xx: their format. 5xx: room. 6xx: the daemon's world. 7xx: the client's side of the socket.
 * 9xx: the C interface itself.
 */
enum mrm_error_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing went wrong.
     */
    MRM_ERROR_E_NONE = 0,
    /**
     * The first bytes are not a frame of this protocol.
     */
    MRM_ERROR_E_BAD_MAGIC = 100,
    /**
     * No common protocol version.
     */
    MRM_ERROR_E_VERSION_MISMATCH = 101,
    /**
     * A frame body over the bound.
     */
    MRM_ERROR_E_FRAME_TOO_LONG = 102,
    /**
     * A frame kind that the daemon does not know.
     */
    MRM_ERROR_E_UNKNOWN_KIND = 103,
    /**
     * A frame out of order: a request before hello, a second hello, a reply from a client.
     */
    MRM_ERROR_E_OUT_OF_ORDER = 104,
    /**
     * Not as many descriptors as the frame announced or its request needs.
     */
    MRM_ERROR_E_WRONG_FD_COUNT = 105,
    /**
     * A body that does not decode.
     */
    MRM_ERROR_E_MALFORMED_BODY = 106,
    /**
     * A request id that is already awaiting its reply, or 0 where a reply is due.
     */
    MRM_ERROR_E_BAD_REQUEST_ID = 107,
    /**
     * More requests in flight than the session may have.
     */
    MRM_ERROR_E_TOO_MANY_IN_FLIGHT = 108,
    /**
     * Connected, but did not send a whole frame in time.
     */
    MRM_ERROR_E_TOO_SLOW = 109,
    /**
     * Replies pile up unread.
     */
    MRM_ERROR_E_NOT_READING = 110,
    /**
     * The daemon has as many sessions as it may have, in all or of this uid.
     */
    MRM_ERROR_E_TOO_MANY_SESSIONS = 111,
    /**
     * Reserved header bits are set.
     */
    MRM_ERROR_E_RESERVED_BITS = 112,
    /**
     * A name that breaks the rules.
     */
    MRM_ERROR_E_BAD_NAME = 200,
    /**
     * No such model in the catalogue.
     */
    MRM_ERROR_E_MODEL_NOT_FOUND = 201,
    /**
     * A lease that this session does not hold.
     */
    MRM_ERROR_E_UNKNOWN_LEASE = 202,
    /**
     * As many leases as the session may hold.
     */
    MRM_ERROR_E_TOO_MANY_LEASES = 203,
    /**
     * Given up by the client.
     */
    MRM_ERROR_E_CANCELLED = 204,
    /**
     * The peer's uid may not do this.
     */
    MRM_ERROR_E_NOT_PERMITTED = 205,
    /**
     * A list of files that does not make a model: none, too many, two of one name, shards
     * without their index.
     */
    MRM_ERROR_E_BAD_FILE_SET = 206,
    /**
     * None of the devices asked for is one of the daemon's.
     */
    MRM_ERROR_E_UNKNOWN_DEVICE = 207,
    /**
     * A descriptor that is not open for reading.
     */
    MRM_ERROR_E_FD_NOT_READABLE = 300,
    /**
     * A directory, FIFO, device or socket where a regular file is needed.
     */
    MRM_ERROR_E_NOT_REGULAR_FILE = 301,
    /**
     * A filesystem whose owner could make a read hang.
     */
    MRM_ERROR_E_FILESYSTEM_REFUSED = 302,
    /**
     * Opening or reading failed.
     */
    MRM_ERROR_E_SOURCE_UNREADABLE = 303,
    /**
     * The file changed or shrank while it was read.
     */
    MRM_ERROR_E_SOURCE_CHANGED = 304,
    /**
     * A registered path that leads outside its root.
     */
    MRM_ERROR_E_OUTSIDE_ROOT = 305,
    /**
     * A registered file that is not there.
     */
    MRM_ERROR_E_SOURCE_MISSING = 306,
    /**
     * No list of digests names the file, and the operator requires one that does.
     */
    MRM_ERROR_E_MANIFEST_MISSING = 307,
    /**
     * The file is not what the list of digests beside it says.
     */
    MRM_ERROR_E_MANIFEST_MISMATCH = 308,
    /**
     * The list of digests beside the file cannot be read.
     */
    MRM_ERROR_E_MANIFEST_MALFORMED = 309,
    /**
     * Shorter than its own header, or than eight bytes.
     */
    MRM_ERROR_E_HEADER_TRUNCATED = 400,
    /**
     * A header length of zero, or over the bound.
     */
    MRM_ERROR_E_HEADER_LENGTH = 401,
    /**
     * A header that is not the JSON object which the format asks for.
     */
    MRM_ERROR_E_HEADER_MALFORMED = 402,
    /**
     * A header that is not UTF-8.
     */
    MRM_ERROR_E_HEADER_NOT_UTF8 = 403,
    /**
     * A header nested deeper than the bound.
     */
    MRM_ERROR_E_HEADER_TOO_DEEP = 404,
    /**
     * Two tensors of one name.
     */
    MRM_ERROR_E_DUPLICATE_TENSOR = 405,
    /**
     * Tensors that overlap, or leave bytes between them.
     */
    MRM_ERROR_E_TENSOR_OVERLAP = 406,
    /**
     * A tensor that ends outside the file, or bytes after the last.
     */
    MRM_ERROR_E_TENSOR_OUT_OF_BOUNDS = 407,
    /**
     * Shape times element size does not equal the range.
     */
    MRM_ERROR_E_TENSOR_SIZE = 408,
    /**
     * Shape times element size overflows.
     */
    MRM_ERROR_E_TENSOR_OVERFLOW = 409,
    /**
     * More tensors, dimensions or name bytes than the bounds allow.
     */
    MRM_ERROR_E_TOO_MANY_TENSORS = 410,
    /**
     * An element type that this build does not know.
     */
    MRM_ERROR_E_UNKNOWN_DTYPE = 411,
    /**
     * An index that is not the JSON which the format asks for.
     */
    MRM_ERROR_E_INDEX_MALFORMED = 412,
    /**
     * A shard that the index names is not there.
     */
    MRM_ERROR_E_SHARD_MISSING = 413,
    /**
     * A shard listed twice, or a tensor that is in another shard than the index says.
     */
    MRM_ERROR_E_SHARD_MISMATCH = 414,
    /**
     * A shard name that leads outside the model's directory.
     */
    MRM_ERROR_E_SHARD_OUTSIDE = 415,
    /**
     * A file of no bytes.
     */
    MRM_ERROR_E_EMPTY_FILE = 416,
    /**
     * The files hold no tensors that could be laid out on a device.
     */
    MRM_ERROR_E_NO_TENSORS = 417,
    /**
     * More allocations than one model may have on a device, at its granularity.
     */
    MRM_ERROR_E_TOO_MANY_ALLOCATIONS = 418,
    /**
     * Larger than the budget: it can never fit.
     */
    MRM_ERROR_E_TOO_LARGE = 500,
    /**
     * No room within the wait: what is resident is held or pinned.
     */
    MRM_ERROR_E_NO_ROOM = 501,
    /**
     * The kernel has no memory although the budget has room.
     */
    MRM_ERROR_E_OUT_OF_MEMORY = 502,
    /**
     * Too many requests wait for room.
     */
    MRM_ERROR_E_QUEUE_FULL = 503,
    /**
     * The daemon takes no new leases: it is about to exit.
     */
    MRM_ERROR_E_DRAINING = 504,
    /**
     * The load did not end within the wait. It goes on; a later open may hit.
     */
    MRM_ERROR_E_TIMED_OUT = 505,
    /**
     * Pinned, leased or loading: cannot be evicted now.
     */
    MRM_ERROR_E_IN_USE = 506,
    /**
     * The daemon broke one of its own rules.
     */
    MRM_ERROR_E_INTERNAL = 600,
    /**
     * The daemon is out of descriptors or threads.
     */
    MRM_ERROR_E_EXHAUSTED = 601,
    /**
     * A device failed for good: its weights are gone.
     */
    MRM_ERROR_E_DEVICE_LOST = 602,
    /**
     * The driver of a device refused.
     */
    MRM_ERROR_E_DEVICE_FAILED = 603,
    /**
     * What is in memory is not what was loaded: close the model and open it again.
     */
    MRM_ERROR_E_DAMAGED = 604,
    /**
     * Nothing listens on any of the sockets that were tried.
     */
    MRM_ERROR_E_NO_DAEMON = 700,
    /**
     * The socket is there but cannot be used.
     */
    MRM_ERROR_E_CONNECT_FAILED = 701,
    /**
     * The daemon did not accept or answer the hello in time.
     */
    MRM_ERROR_E_CONNECT_TIMED_OUT = 702,
    /**
     * The daemon went away while the request was pending, more often than is retried.
     */
    MRM_ERROR_E_DISCONNECTED = 703,
    /**
     * What arrived is not this protocol.
     */
    MRM_ERROR_E_PROTOCOL = 704,
    /**
     * No reply within the wait and its grace.
     */
    MRM_ERROR_E_REPLY_TIMED_OUT = 705,
    /**
     * A descriptor that is not what was announced: not sealed, or of another size.
     */
    MRM_ERROR_E_SEGMENT_REFUSED = 706,
    /**
     * The kernel refused to map a segment.
     */
    MRM_ERROR_E_MAP_FAILED = 707,
    /**
     * A local file or directory that cannot be opened.
     */
    MRM_ERROR_E_FILE_UNREADABLE = 708,
    /**
     * A local path that is no model: no file, several candidates, a broken index.
     */
    MRM_ERROR_E_NOT_A_MODEL = 709,
    /**
     * The tensor table that the daemon sent is damaged.
     */
    MRM_ERROR_E_TABLE_DAMAGED = 710,
    /**
     * No tensor of that name.
     */
    MRM_ERROR_E_TENSOR_NOT_FOUND = 711,
    /**
     * The elements are of another type than was asked for.
     */
    MRM_ERROR_E_DTYPE_MISMATCH = 712,
    /**
     * The bytes lie at an address at which such elements cannot be borrowed.
     */
    MRM_ERROR_E_MISALIGNED = 713,
    /**
     * The process forked while the call was pending, and this is the child.
     */
    MRM_ERROR_E_FORKED = 714,
    /**
     * This process has no device that it could use.
     */
    MRM_ERROR_E_NO_DEVICE = 715,
    /**
     * The device that was asked for is not visible to this process.
     */
    MRM_ERROR_E_DEVICE_NOT_VISIBLE = 716,
    /**
     * The daemon has no device tier.
     */
    MRM_ERROR_E_NO_DEVICE_TIER = 717,
    /**
     * The daemon gave host memory where that was not asked for.
     */
    MRM_ERROR_E_GAVE_HOST = 718,
    /**
     * The driver did not import what the daemon lent on a device.
     */
    MRM_ERROR_E_IMPORT_FAILED = 719,
    /**
     * Bytes were asked for in host memory, and are on a device.
     */
    MRM_ERROR_E_ON_DEVICE = 720,
    /**
     * Device memory cannot be unmapped now.
     */
    MRM_ERROR_E_CLOSE_REFUSED = 721,
    /**
     * An argument is NULL that must not be.
     */
    MRM_ERROR_E_NULL_ARGUMENT = 901,
    /**
     * An argument that breaks its rules: text that is not UTF-8, a struct size that is too small.
     */
    MRM_ERROR_E_BAD_ARGUMENT = 902,
    /**
     * No tensor, metadata or segment of this index or key.
     */
    MRM_ERROR_E_NO_SUCH_ITEM = 903,
    /**
     * The kernel refused a descriptor.
     */
    MRM_ERROR_E_DUP_FAILED = 904,
    /**
     * A bug of this library, caught at its boundary.
     */
    MRM_ERROR_E_PANIC = 999,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_error_e mrm_error_e;
#else
typedef uint32_t mrm_error_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * An element type. The names are those of the safetensors format.
 */
enum mrm_dtype_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * One byte, 0 or 1.
     */
    MRM_DTYPE_E_BOOL = 1,
    /**
     * Unsigned 8-bit integer.
     */
    MRM_DTYPE_E_U8 = 2,
    /**
     * Signed 8-bit integer.
     */
    MRM_DTYPE_E_I8 = 3,
    /**
     * Unsigned 16-bit integer.
     */
    MRM_DTYPE_E_U16 = 4,
    /**
     * Signed 16-bit integer.
     */
    MRM_DTYPE_E_I16 = 5,
    /**
     * Unsigned 32-bit integer.
     */
    MRM_DTYPE_E_U32 = 6,
    /**
     * Signed 32-bit integer.
     */
    MRM_DTYPE_E_I32 = 7,
    /**
     * Unsigned 64-bit integer.
     */
    MRM_DTYPE_E_U64 = 8,
    /**
     * Signed 64-bit integer.
     */
    MRM_DTYPE_E_I64 = 9,
    /**
     * IEEE half precision.
     */
    MRM_DTYPE_E_F16 = 10,
    /**
     * bfloat16.
     */
    MRM_DTYPE_E_BF16 = 11,
    /**
     * IEEE single precision.
     */
    MRM_DTYPE_E_F32 = 12,
    /**
     * IEEE double precision.
     */
    MRM_DTYPE_E_F64 = 13,
    /**
     * Pair of `F32`: a complex number.
     */
    MRM_DTYPE_E_C64 = 14,
    /**
     * 8-bit float, 5 exponent bits (OCP OFP8).
     */
    MRM_DTYPE_E_F8E5M2 = 15,
    /**
     * 8-bit float, 4 exponent bits (OCP OFP8).
     */
    MRM_DTYPE_E_F8E4M3 = 16,
    /**
     * 8-bit scale, exponent only (OCP MX).
     */
    MRM_DTYPE_E_F8E8M0 = 17,
    /**
     * 6-bit float, 2 exponent bits (OCP MX).
     */
    MRM_DTYPE_E_F6E2M3 = 18,
    /**
     * 6-bit float, 3 exponent bits (OCP MX).
     */
    MRM_DTYPE_E_F6E3M2 = 19,
    /**
     * 4-bit float (OCP MX).
     */
    MRM_DTYPE_E_F4 = 20,
    /**
     * 8-bit float, 5 exponent bits, no infinities.
     */
    MRM_DTYPE_E_F8E5M2_FNUZ = 21,
    /**
     * 8-bit float, 4 exponent bits, no infinities.
     */
    MRM_DTYPE_E_F8E4M3_FNUZ = 22,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_dtype_e mrm_dtype_e;
#else
typedef uint32_t mrm_dtype_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What kind of files a model is made of.
 */
enum mrm_kind_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * One file of unknown format: no tensors.
     */
    MRM_KIND_E_OPAQUE = 0,
    /**
     * safetensors, in one file or sharded.
     */
    MRM_KIND_E_SAFETENSORS = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_kind_e mrm_kind_e;
#else
typedef uint32_t mrm_kind_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What an open cost.
 */
enum mrm_origin_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Everything was resident.
     */
    MRM_ORIGIN_E_HIT = 0,
    /**
     * Something was loaded for this open.
     */
    MRM_ORIGIN_E_LOADED = 1,
    /**
     * The load of another open was joined.
     */
    MRM_ORIGIN_E_JOINED = 2,
    /**
     * Something was copied to the device for this open, from memory, not from files.
     */
    MRM_ORIGIN_E_PROMOTED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_origin_e mrm_origin_e;
#else
typedef uint32_t mrm_origin_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a model is.
 */
enum mrm_state_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Nothing of it is in memory.
     */
    MRM_STATE_E_ABSENT = 0,
    /**
     * On its way.
     */
    MRM_STATE_E_LOADING = 1,
    /**
     * All of it is in memory.
     */
    MRM_STATE_E_RESIDENT = 2,
    /**
     * Some segments are in memory.
     */
    MRM_STATE_E_PARTIAL = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_state_e mrm_state_e;
#else
typedef uint32_t mrm_state_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * In which memory an open wants the weights.
 */
enum mrm_tier_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * The host's.
     */
    MRM_TIER_E_HOST = 0,
    /**
     * That of a device, or an error.
     */
    MRM_TIER_E_DEVICE = 1,
    /**
     * That of a device if that can be had now, else the host's; `mrm_model_why_host` says why.
     */
    MRM_TIER_E_BEST = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_tier_e mrm_tier_e;
#else
typedef uint32_t mrm_tier_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What an open waits for.
 */
enum mrm_wait_for_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * All of the model.
     */
    MRM_WAIT_FOR_E_ALL = 0,
    /**
     * Its layout, and memory for it. Tensors become ready one by one, in the order in which they
     * were first used the last time; what asks for a tensor's bytes waits for that one. On a
     * device, and with a daemon that does not know of this, as `ALL`.
     */
    MRM_WAIT_FOR_E_LAYOUT = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_wait_for_e mrm_wait_for_e;
#else
typedef uint32_t mrm_wait_for_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the memory of a device is shared between processes.
 */
enum mrm_sharing_e
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * By descriptors: what is mapped outlives the daemon.
     */
    MRM_SHARING_E_VMM = 0,
    /**
     * By handles: what is mapped is gone when the daemon is.
     */
    MRM_SHARING_E_LEGACY = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mrm_sharing_e mrm_sharing_e;
#else
typedef uint32_t mrm_sharing_e;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A client: a session with the daemon. Opaque.
 */
typedef struct mrm_client_h_t mrm_client_h_t;

/**
 * A private mapping of one file. Opaque.
 */
typedef struct mrm_copy_h_t mrm_copy_h_t;

/**
 * An open model: a lease on one immutable version, and its bytes mapped read-only. Opaque.
 */
typedef struct mrm_model_h_t mrm_model_h_t;

/**
 * A client that you own; give it to `mrm_client_close`.
 */
typedef struct mrm_client_h_t *mrm_client_h;

/**
 * Called while an open waits, on the thread that called open: bytes in place so far, bytes of the
 * whole model, and the `user` pointer of the options. It must return soon, must not call into
 * this library with the same client, and must not throw or jump out.
 */
typedef void (*mrm_progress_f)(uint64_t loaded_bytes, uint64_t total_bytes, void *user);

/**
 * Options of an open. Start from `MRM_OPEN_OPTIONS_INIT`.
 */
typedef struct mrm_open_options_t {
    /**
     * `sizeof(mrm_open_options_t)`, so that members can be added at the end.
     */
    size_t size;
    /**
     * How long to wait for room and for the load, in milliseconds. 0: only what is there at once.
     */
    uint64_t wait_ms;
    /**
     * Called with the progress of a load. NULL: not asked for.
     */
    mrm_progress_f progress;
    /**
     * Passed to `progress`.
     */
    void *user;
    /**
     * A number of `mrm_tier_e`: in which memory the weights are wanted.
     */
    uint32_t tier;
    /**
     * Zero.
     */
    uint32_t reserved;
    /**
     * Which device will do, NUL-terminated: `cuda:0` or `0` (the ordinal in this process), or its
     * UUID as `GPU-...`. NULL or `cuda`: any that this process sees. Only with a tier of devices.
     */
    const char *device;
    /**
     * 1: every page of what is in host memory is mapped before the open returns, so that no first
     * touch waits for the kernel: 0.3 ms per GiB in 2 MiB pages, 48 ms in those of 4 KiB. Else 0.
     */
    uint32_t populate;
    /**
     * A number of `mrm_wait_for_e`: whether the open returns when all is in memory, or by the
     * layout, before the last byte is.
     */
    uint32_t wait_for;
    /**
     * How many bytes of the device that the weights come to be on are to stay free of weights while
     * the model is open: what this process needs there to run. In host memory nothing is kept free.
     */
    uint64_t reserve_bytes;
} mrm_open_options_t;

/**
 * A model that you own; give it to `mrm_model_close`.
 */
typedef struct mrm_model_h_t *mrm_model_h;

/**
 * A client, borrowed for the call.
 */
typedef const struct mrm_client_h_t *mrm_client_ref;

/**
 * UTF-8 text of `len` bytes. Not terminated by NUL; may be empty, and then `data` is not NULL.
 */
typedef struct mrm_text_t {
    /**
     * Its first byte.
     */
    const char *data;
    /**
     * Its length in bytes.
     */
    size_t len;
} mrm_text_t;

/**
 * A model as the daemon knows it. Start from `MRM_STAT_INIT`.
 */
typedef struct mrm_stat_t {
    /**
     * `sizeof(mrm_stat_t)`, so that members can be added at the end.
     */
    size_t size;
    /**
     * The name. Lives as long as the callback runs; empty when `mrm_client_stat` filled it.
     */
    struct mrm_text_t name;
    /**
     * Bytes of its segments; 0 when not known yet.
     */
    uint64_t bytes;
    /**
     * Leases on it, over all sessions.
     */
    uint64_t leases;
    /**
     * The version that the next open would get. Only with `has_version`.
     */
    uint64_t version;
    /**
     * A number of `mrm_state_e`.
     */
    uint32_t state;
    /**
     * Whether the operator registered it.
     */
    bool registered;
    /**
     * Whether the operator pinned it.
     */
    bool pinned;
    /**
     * Whether `version` is known. Never in a listing.
     */
    bool has_version;
} mrm_stat_t;

/**
 * Called for each model of a listing, in the order of their names, with the `user` pointer.
 * Return false to end the listing. It must not throw or jump out.
 */
typedef bool (*mrm_list_f)(const struct mrm_stat_t *model, void *user);

/**
 * A model, borrowed for the call.
 */
typedef const struct mrm_model_h_t *mrm_model_ref;

/**
 * A private mapping that you own; give it to `mrm_copy_close`.
 */
typedef struct mrm_copy_h_t *mrm_copy_h;

/**
 * Where on a device a model is. Start from `MRM_DEVICE_INIT`.
 */
typedef struct mrm_device_t {
    /**
     * `sizeof(mrm_device_t)`, so that members can be added at the end.
     */
    size_t size;
    /**
     * The device's name for every process: the bytes of its UUID.
     */
    uint8_t uuid[16];
    /**
     * Its number in this process, under this process's `CUDA_VISIBLE_DEVICES`.
     */
    uint32_t ordinal;
    /**
     * A number of `mrm_sharing_e`.
     */
    uint32_t sharing;
    /**
     * Bytes of all allocations.
     */
    uint64_t bytes;
    /**
     * Number of allocations.
     */
    size_t allocations;
} mrm_device_t;

/**
 * One allocation of a model on a device. Mapped as long as the model is open.
 */
typedef struct mrm_allocation_t {
    /**
     * Where it begins on the device.
     */
    uint64_t device_ptr;
    /**
     * Its length.
     */
    uint64_t bytes;
} mrm_allocation_t;

/**
 * `DLPackVersion`.
 */
typedef struct mrm_dl_version_t {
    /**
     * Differs where the layout does.
     */
    uint32_t major;
    /**
     * Differs where the layout is the same.
     */
    uint32_t minor;
} mrm_dl_version_t;

/**
 * `DLDevice`.
 */
typedef struct mrm_dl_device_t {
    /**
     * `MRM_DL_CPU` or `MRM_DL_CUDA`.
     */
    int32_t device_type;
    /**
     * The ordinal in this process; 0 for host memory.
     */
    int32_t device_id;
} mrm_dl_device_t;

/**
 * `DLDataType`.
 */
typedef struct mrm_dl_dtype_t {
    /**
     * A number of `DLDataTypeCode`.
     */
    uint8_t code;
    /**
     * Size of an element in bits.
     */
    uint8_t bits;
    /**
     * 1.
     */
    uint16_t lanes;
} mrm_dl_dtype_t;

/**
 * `DLTensor`.
 */
typedef struct mrm_dl_tensor_t {
    /**
     * The elements, for reading only; NULL without elements.
     */
    void *data;
    /**
     * Where they are.
     */
    struct mrm_dl_device_t device;
    /**
     * Number of dimensions.
     */
    int32_t ndim;
    /**
     * Their type.
     */
    struct mrm_dl_dtype_t dtype;
    /**
     * The dimensions.
     */
    int64_t *shape;
    /**
     * From one element to the next in each dimension, counted in elements. Not NULL.
     */
    int64_t *strides;
    /**
     * 0.
     */
    uint64_t byte_offset;
} mrm_dl_tensor_t;

/**
 * `DLManagedTensorVersioned`: to be cast to it.
 */
typedef struct mrm_dl_managed_t {
    /**
     * The version of DLPack that it keeps to.
     */
    struct mrm_dl_version_t version;
    /**
     * The library's.
     */
    void *manager_ctx;
    /**
     * Call it with this struct, once, when the tensor is not needed any more.
     */
    void (*deleter)(struct mrm_dl_managed_t *managed);
    /**
     * `MRM_DL_FLAG_READ_ONLY`.
     */
    uint64_t flags;
    /**
     * The tensor.
     */
    struct mrm_dl_tensor_t dl_tensor;
} mrm_dl_managed_t;

/**
 * `DLManagedTensor`, of DLPack before 1.0: to be cast to it. It cannot say that the elements may
 * not be written.
 */
typedef struct mrm_dl_unversioned_t {
    /**
     * The tensor.
     */
    struct mrm_dl_tensor_t dl_tensor;
    /**
     * The library's.
     */
    void *manager_ctx;
    /**
     * Call it with this struct, once, when the tensor is not needed any more.
     */
    void (*deleter)(struct mrm_dl_unversioned_t *managed);
} mrm_dl_unversioned_t;

/**
 * What went wrong last on the calling thread. The pointers live until the next call of this
 * library that fails on the same thread.
 */
typedef struct mrm_error_t {
    /**
     * A number of `mrm_error_e`, or of a newer daemon. 0: nothing went wrong so far.
     */
    uint32_t number;
    /**
     * Whether the same call may succeed later with nothing changed.
     */
    bool retryable;
    /**
     * Whether the call changed anything in the daemon.
     */
    bool took_effect;
    /**
     * The stable name of `number`, in snake case, NUL-terminated.
     */
    const char *name;
    /**
     * For people: the object, the reason, the remedy. NUL-terminated UTF-8.
     */
    const char *message;
} mrm_error_t;

/**
 * What a model is. Start from `MRM_MODEL_INFO_INIT`.
 */
typedef struct mrm_model_info_t {
    /**
     * `sizeof(mrm_model_info_t)`, so that members can be added at the end.
     */
    size_t size;
    /**
     * The name that it was opened by. Lives as long as the handle.
     */
    struct mrm_text_t name;
    /**
     * The immutable version behind the name: one number for one content, as long as the daemon
     * runs, or others take its memory over.
     */
    uint64_t version;
    /**
     * A number of `mrm_kind_e`.
     */
    uint32_t kind;
    /**
     * A number of `mrm_origin_e`: what the open cost.
     */
    uint32_t origin;
    /**
     * Bytes of all segments; on a device, of all allocations.
     */
    uint64_t bytes;
    /**
     * Number of tensors.
     */
    size_t tensors;
    /**
     * Number of segments; 0 on a device.
     */
    size_t segments;
    /**
     * Number of metadata pairs.
     */
    size_t metadata;
    /**
     * From the daemon's receipt of the open to its reply, in microseconds.
     */
    uint64_t took_us;
} mrm_model_info_t;

/**
 * One tensor. All pointers live as long as the model handle; all memory is read-only.
 */
typedef struct mrm_tensor_t {
    /**
     * Its name.
     */
    struct mrm_text_t name;
    /**
     * A number of `mrm_dtype_e`.
     */
    uint32_t dtype;
    /**
     * Number of dimensions; 0 for a scalar.
     */
    uint32_t rank;
    /**
     * Its dimensions: `rank` numbers. Not NULL, even for a scalar.
     */
    const uint64_t *shape_ptr;
    /**
     * Its elements, little endian, the last dimension contiguous. Aligned only as the file
     * aligned them. NULL on a device, and in what `mrm_model_layout_at` and its like say.
     */
    const void *data_ptr;
    /**
     * Length of the elements in bytes.
     */
    uint64_t bytes;
    /**
     * Which file they are from: in host memory, which segment they lie in.
     */
    uint32_t segment;
    /**
     * The ordinal, in this process, of the device that they are on; -1 in host memory.
     */
    int32_t device;
    /**
     * Where they begin in that file.
     */
    uint64_t offset;
    /**
     * Where they begin on the device, at a multiple of 256, for reading only; 0 in host memory,
     * without elements, and in a layout.
     */
    uint64_t device_ptr;
    /**
     * Its position in the order of the files, as `mrm_model_tensor_at` counts.
     */
    size_t index;
} mrm_tensor_t;

/**
 * One segment: the exact image of one file of the model. Lives as long as the model handle.
 */
typedef struct mrm_segment_t {
    /**
     * Its first byte. Read-only.
     */
    const void *data_ptr;
    /**
     * Its length.
     */
    uint64_t bytes;
} mrm_segment_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The release of this library, NUL-terminated. Lives forever.
 *
 * Threads: any, at any time.
 */
const char *mrm_version(void);

/**
 * The version of the interface that this library has; compare it with `MRM_ABI_VERSION` when the
 * library was loaded at run time.
 *
 * Threads: any, at any time.
 */
uint32_t mrm_abi_version(void);

/**
 * Connects to the daemon behind the socket `socket_path`; NULL: to the node's daemon, found as
 * `$MRM_SOCKET`, `$MRM_RUNTIME_DIR/mrmd.sock`, `$XDG_RUNTIME_DIR/mrm/mrmd.sock`, then
 * `/run/mrm/mrmd.sock`. Waits for two seconds at most.
 *
 * A client that outlives the daemon connects anew by itself, and what is open stays open: see
 * `mrm_model_leased`. Opens wait, as long as their options say, for a daemon that is away. While
 * models are open, a thread of the library waits for the end of the session; it takes no signals.
 * With `MRM_RECONNECT=0` in the environment there is none: the next call connects anew, and opens
 * fail at once where no daemon listens.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `socket_path` is NULL or NUL-terminated; `client` may be written.
 */
int mrm_client_connect(const char *socket_path, mrm_client_h *client);

/**
 * Connects as `mrm_client_connect` does and opens `name` as `mrm_client_open` does, with one message
 * there: what a process does that was just started and needs one model. It saves the wait for the
 * daemon's hello. When either fails, there is neither a client nor a model.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * As `mrm_client_connect` and `mrm_client_open`.
 */
int mrm_client_connect_open(const char *socket_path,
                            const char *name,
                            const struct mrm_open_options_t *options,
                            mrm_client_h *client,
                            mrm_model_h *model);

/**
 * Gives a client back. Models that it opened stay open; the session ends with the last of them.
 *
 * Threads: any, but no other call may be using this handle, then or later.
 *
 * # Safety
 * `client` came from `mrm_client_connect` and was not closed before.
 */
int mrm_client_close(mrm_client_h client);

/**
 * Opens the registered model `name`. `options` may be NULL.
 *
 * While a model of this name is open in the process, this is the same memory and asks nobody;
 * every handle must be closed all the same. Blocks until the model is in memory, or as much of it
 * as `options->wait_for` says, for as long as the options say.
 *
 * Threads: any, at any time; opens of several threads wait side by side.
 *
 * # Safety
 * `client` is open; `name` is NUL-terminated; `options` is NULL or begins with its size;
 * `model` may be written.
 */
int mrm_client_open(mrm_client_ref client,
                    const char *name,
                    const struct mrm_open_options_t *options,
                    mrm_model_h *model);

/**
 * Opens `count` registered models, whose names `names` points to, with one message there and as few
 * back as hold the descriptors of all. All of them or none: when one cannot be opened, those that
 * were are given back, and the error is that of the first that was not. Otherwise as
 * `mrm_client_open`; `models` gets one handle a name, in order.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `client` is open; `names` has `count` texts, each NUL-terminated; `options` is NULL or begins
 * with its size; `models` has room for `count` handles.
 */
int mrm_client_open_many(mrm_client_ref client,
                         const char *const *names,
                         size_t count,
                         const struct mrm_open_options_t *options,
                         mrm_model_h *models);

/**
 * Opens local files that nobody registered: `path` is one file, a directory that holds one model,
 * or a `model.safetensors.index.json`. The calling process opens them, so that its own
 * permissions count, and passes the descriptors. `options` may be NULL. Otherwise as
 * `mrm_client_open`.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `client` is open; `path` is NUL-terminated; `options` is NULL or begins with its size;
 * `model` may be written.
 */
int mrm_client_open_path(mrm_client_ref client,
                         const char *path,
                         const struct mrm_open_options_t *options,
                         mrm_model_h *model);

/**
 * Calls `callback` for every model whose name begins with `prefix` (NULL: for every model), in
 * the order of their names, until it returns false.
 *
 * Threads: any, at any time; the callback runs on the calling thread.
 *
 * # Safety
 * `client` is open; `prefix` is NULL or NUL-terminated; `callback` keeps to `mrm_list_f`.
 */
int mrm_client_list(mrm_client_ref client, const char *prefix, mrm_list_f callback, void *user);

/**
 * Tells what the daemon knows of the model `name`, without opening it. `stat->name` is empty.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `client` is open; `name` is NUL-terminated; `stat` begins with its size and may be written.
 */
int mrm_client_stat(mrm_client_ref client, const char *name, struct mrm_stat_t *stat);

/**
 * Says that the registered model `name` will be opened in `in_ms` milliseconds (at most 3,600,000),
 * by this process or another: the daemon may load it before that, while nobody waits for anything
 * else, where it was used last. What is said later takes the place of what was said before.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `client` is open; `name` is NUL-terminated.
 */
int mrm_client_hint(mrm_client_ref client, const char *name, uint64_t in_ms);

/**
 * Maps the segment at `index` once more, privately and for writing: `data_ptr` leads to `bytes`
 * bytes, the exact image of the file, with each tensor at its `offset`. Pages stay shared until they
 * are written; what is written nobody else sees, and it is gone with the mapping. Other readers keep
 * their large pages; the kernel copies 4 KiB for each page that is written. It may outlive the
 * model, and then, like any mapping, keeps the memory.
 *
 * Waits as `mrm_model_segment_at` does. In host memory only.
 *
 * Threads: any, at any time; what is written to is yours to guard.
 *
 * # Safety
 * `model` is open; `copy`, `data_ptr` and `bytes` may be written.
 */
int mrm_model_segment_copy(mrm_model_ref model,
                           size_t index,
                           mrm_copy_h *copy,
                           void **data_ptr,
                           uint64_t *bytes);

/**
 * Gives a private mapping back, with what was written to it.
 *
 * Threads: any, but nobody may be using the memory, then or later.
 *
 * # Safety
 * `copy` came from `mrm_model_segment_copy`, and was not closed before.
 */
int mrm_copy_close(mrm_copy_h copy);

/**
 * Tells where on a device a model is. Fails with `NO_SUCH_ITEM` when it is in host memory.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `device` begins with its size and may be written.
 */
int mrm_model_device(mrm_model_ref model, struct mrm_device_t *device);

/**
 * The allocation at `index` of a model on a device.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `allocation` may be written.
 */
int mrm_model_allocation_at(mrm_model_ref model, size_t index, struct mrm_allocation_t *allocation);

/**
 * Why a model that was opened with `MRM_TIER_E_BEST` is in host memory; empty when it is not, or
 * was asked for there. Lives as long as the handle.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `why` may be written.
 */
int mrm_model_why_host(mrm_model_ref model, struct mrm_text_t *why);

/**
 * Whether what is mapped is still of use: 0, or the number of what became of it, of which
 * `mrm_last_error` tells the rest. A device may be lost; memory that is shared by legacy handles
 * goes with the daemon; host memory always stays. A later open of the name gets a new lease.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open.
 */
int mrm_model_lost(mrm_model_ref model);

/**
 * As `mrm_model_close`, but fails with `CLOSE_REFUSED` when the device memory cannot be unmapped
 * now, because a stream is captured into a graph. `streams` are `count` streams of the program
 * (`CUstream` or `cudaStream_t`) that may be captured: for those made non-blocking the driver does
 * not tell otherwise, and waiting spoils their capture.
 *
 * `*model` is NULL after success. After a failure it is a handle that is to be closed later, on
 * the same memory: pointers to names and shapes that came from the old one are invalid. It is NULL
 * then only if part of the memory was unmapped: the rest follows by itself.
 *
 * Threads: any, but no other call may be using the handle, then or later.
 *
 * # Safety
 * `*model` is open, and may be written; `streams` has `count` live streams of the model's device.
 */
int mrm_model_close_on(mrm_model_h *model, void *const *streams, size_t count);

/**
 * Tries again to unmap models that were closed while the driver would not let them be unmapped,
 * and tells how many are left. Later opens and closes on devices do this by themselves.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `left` is NULL or may be written.
 */
int mrm_release_deferred(size_t *left);

/**
 * Lends the tensor at `index`, in the order of the files, as a `DLManagedTensorVersioned` with the
 * read-only flag. It keeps the model open, whatever becomes of the handle, until its deleter is
 * called; that may wait for the device, as `mrm_model_close` does. Waits for the tensor as
 * `mrm_model_tensor_at` does. Fails with `DTYPE_MISMATCH` for
 * element types of less than a byte.
 *
 * Threads: any, at any time; the deleter too.
 *
 * # Safety
 * `model` is open; `managed` may be written.
 */
int mrm_tensor_dlpack(mrm_model_ref model, size_t index, struct mrm_dl_managed_t **managed);

/**
 * As `mrm_tensor_dlpack`, for libraries that know only DLPack before 1.0. Nothing tells them that
 * the elements may not be written: a write ends the process, or on a device the context.
 *
 * Threads: any, at any time; the deleter too.
 *
 * # Safety
 * `model` is open; `managed` may be written.
 */
int mrm_tensor_dlpack_unversioned(mrm_model_ref model,
                                  size_t index,
                                  struct mrm_dl_unversioned_t **managed);

/**
 * The name that safetensors headers use for a number of `mrm_dtype_e`; empty when this library
 * does not know the number. Lives forever.
 *
 * Threads: any, at any time.
 */
struct mrm_text_t mrm_dtype_name(uint32_t dtype);

/**
 * Size of one element of a number of `mrm_dtype_e`, in bits; 0 when this library does not know
 * the number.
 *
 * Threads: any, at any time.
 */
uint32_t mrm_dtype_bits(uint32_t dtype);

/**
 * Tells what went wrong last on the calling thread. Success of later calls does not clear it: look
 * at it only after a call that failed. Returns 0, or the number of `NULL_ARGUMENT`.
 *
 * Threads: any, at any time; each has its own last error.
 *
 * # Safety
 * `error` may be written.
 */
int mrm_last_error(struct mrm_error_t *error);

/**
 * Makes another handle on the same open; each must be closed.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `clone` may be written.
 */
int mrm_model_clone(mrm_model_ref model, mrm_model_h *clone);

/**
 * Gives a model back. Every pointer that came from this handle is invalid afterwards; the lease
 * ends with the last handle of the process on the model.
 *
 * On a device the last handle waits for the work that the process queued there. While a stream is
 * captured into a graph the model stays mapped, and leased, until a later open or close on a
 * device, or `mrm_release_deferred`; `mrm_model_close_on` tells instead.
 *
 * Threads: any, but no other call may be using this handle, then or later.
 *
 * # Safety
 * `model` is open, and was not closed before.
 */
int mrm_model_close(mrm_model_h model);

/**
 * Tells what a model is.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `info` begins with its size and may be written.
 */
int mrm_model_info(mrm_model_ref model, struct mrm_model_info_t *info);

/**
 * Whether the daemon counts a lease on the model now, as far as is known. Not so while no daemon
 * runs, and never again once one came that did not take over what the last one lent. What is mapped
 * stays readable all the same (`mrm_model_lost` tells the exception), but the daemon does not know
 * that it is in use; who would rather be counted opens the name again and closes this handle.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `leased` may be written.
 */
int mrm_model_leased(mrm_model_ref model, bool *leased);

/**
 * The tensor at `index`, in the order of the files. Waits for it, as long as the open would have,
 * if the model was opened by its layout and is still being filled.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `tensor` may be written.
 */
int mrm_model_tensor_at(mrm_model_ref model, size_t index, struct mrm_tensor_t *tensor);

/**
 * The tensor whose name is the `name_len` bytes at `name`. Waits as `mrm_model_tensor_at` does.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `name` has `name_len` bytes; `tensor` may be written.
 */
int mrm_model_tensor_find(mrm_model_ref model,
                          const char *name,
                          size_t name_len,
                          struct mrm_tensor_t *tensor);

/**
 * Fills `tensors` with the `count` tensors from `first` on, in the order of the files: one call
 * instead of many. Fails when there are fewer. Waits for each as `mrm_model_tensor_at` does.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `tensors` has room for `count`.
 */
int mrm_model_tensors(mrm_model_ref model,
                      size_t first,
                      size_t count,
                      struct mrm_tensor_t *tensors);

/**
 * The metadata pair at `index`, in the order of the file. Both texts live as long as the handle.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `key` and `value` may be written.
 */
int mrm_model_metadata_at(mrm_model_ref model,
                          size_t index,
                          struct mrm_text_t *key,
                          struct mrm_text_t *value);

/**
 * The metadata value whose key is the `key_len` bytes at `key`. It lives as long as the handle.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `key` has `key_len` bytes; `value` may be written.
 */
int mrm_model_metadata_find(mrm_model_ref model,
                            const char *key,
                            size_t key_len,
                            struct mrm_text_t *value);

/**
 * The segment at `index`: the exact image of one file of the model. Waits for all of the model, as
 * long as the open would have, if it was opened by its layout and is still being filled.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `segment` may be written.
 */
int mrm_model_segment_at(mrm_model_ref model, size_t index, struct mrm_segment_t *segment);

/**
 * The name of the file whose image is the segment at `index`. It lives as long as the handle.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `name` may be written.
 */
int mrm_model_segment_name(mrm_model_ref model, size_t index, struct mrm_text_t *name);

/**
 * A descriptor of the sealed memory file behind the segment at `index`, open for reading, for a
 * mapping of your own: private and writable, for instance. You own it; close it with `close`.
 * Keep the model open while such a mapping lives, so that the daemon's books are right. Waits as
 * `mrm_model_segment_at` does; `mrm_model_segment_copy` makes a private mapping by itself.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `fd` may be written.
 */
int mrm_model_segment_dup_fd(mrm_model_ref model, size_t index, int *fd);

/**
 * What the tensor at `index` is, in the order of the files, without its elements: `data_ptr` is
 * NULL and `device_ptr` 0. Waits for nothing.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `layout` may be written.
 */
int mrm_model_layout_at(mrm_model_ref model, size_t index, struct mrm_tensor_t *layout);

/**
 * What the tensor is whose name is the `name_len` bytes at `name`, as `mrm_model_layout_at` tells.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `name` has `name_len` bytes; `layout` may be written.
 */
int mrm_model_layout_find(mrm_model_ref model,
                          const char *name,
                          size_t name_len,
                          struct mrm_tensor_t *layout);

/**
 * Fills `layouts` with what the `count` tensors from `first` on are, as `mrm_model_layout_at` tells.
 * Fails when there are fewer.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `layouts` has room for `count`.
 */
int mrm_model_layouts(mrm_model_ref model,
                      size_t first,
                      size_t count,
                      struct mrm_tensor_t *layouts);

/**
 * Whether the tensor at `index`, in the order of the files, is there. Always so, but for a model
 * that was opened by its layout and is still being filled. Looks, without waiting, at what the
 * daemon has said; fails when the load has failed.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `ready` may be written.
 */
int mrm_tensor_ready(mrm_model_ref model, size_t index, bool *ready);

/**
 * Waits until the tensor at `index`, in the order of the files, is there: for `wait_ms`
 * milliseconds, or with `MRM_WAIT_DEFAULT` for as long as the open would have. Then
 * `mrm_model_tensor_at` gives it at once. Fails when it does not come: the wait is over, the load
 * failed, or the daemon went away.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open.
 */
int mrm_tensor_wait(mrm_model_ref model, size_t index, uint64_t wait_ms);

/**
 * Whether all of the model is there: see `mrm_tensor_ready`.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open; `whole` may be written.
 */
int mrm_model_whole(mrm_model_ref model, bool *whole);

/**
 * Waits until all of the model is there, as `mrm_tensor_wait` waits for a tensor.
 *
 * Threads: any, at any time.
 *
 * # Safety
 * `model` is open.
 */
int mrm_model_wait(mrm_model_ref model, uint64_t wait_ms);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/* The options of an open, with every member at its default. */
#define MRM_OPEN_OPTIONS_INIT { sizeof(mrm_open_options_t), MRM_WAIT_DEFAULT, NULL, NULL, 0, 0, NULL, 0, 0, 0 }

/* An empty mrm_model_info_t, to be filled. */
#define MRM_MODEL_INFO_INIT { sizeof(mrm_model_info_t), { NULL, 0 }, 0, 0, 0, 0, 0, 0, 0, 0 }

/* An empty mrm_device_t, to be filled. */
#define MRM_DEVICE_INIT { sizeof(mrm_device_t), { 0 }, 0, 0, 0, 0 }

/* An empty mrm_stat_t, to be filled. */
#define MRM_STAT_INIT { sizeof(mrm_stat_t), { NULL, 0 }, 0, 0, 0, 0, false, false, false }

#endif /* MRM_H */

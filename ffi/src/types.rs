//! The structs and enums of the header. Everything here is plain data.
//!
//! ```
//! use mrm::types::{MRM_WAIT_DEFAULT, mrm_open_options_t};
//! // What MRM_OPEN_OPTIONS_INIT is in C.
//! let options = mrm_open_options_t {
//!     size: size_of::<mrm_open_options_t>(),
//!     wait_ms: MRM_WAIT_DEFAULT,
//!     progress: None,
//!     user: std::ptr::null_mut(),
//!     tier: 0,
//!     reserved: 0,
//!     device: std::ptr::null(),
//!     populate: 0,
//!     wait_for: 0,
//!     reserve_bytes: 0,
//! };
//! assert_eq!(options.size, 64);
//! ```
//!
//! Enums are never taken as arguments or stored in structs: a number that a newer library sends
//! must not be undefined behaviour in an older program. They name the numbers.

use std::ffi::{c_char, c_void};

/// The version of this interface. It changes when a program built against another one would not
/// work any more, together with the soname.
pub const MRM_ABI_VERSION: u32 = 0;

/// As `mrm_open_options_t.wait_ms`: wait for 30 seconds.
pub const MRM_WAIT_DEFAULT: u64 = u64::MAX;

/// UTF-8 text of `len` bytes. Not terminated by NUL; may be empty, and then `data` is not NULL.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_text_t {
    /// Its first byte.
    pub data: *const c_char,
    /// Its length in bytes.
    pub len: usize,
}

/// Called while an open waits, on the thread that called open: bytes in place so far, bytes of the
/// whole model, and the `user` pointer of the options. It must return soon, must not call into
/// this library with the same client, and must not throw or jump out.
pub type mrm_progress_f =
    Option<unsafe extern "C" fn(loaded_bytes: u64, total_bytes: u64, user: *mut c_void)>;

/// Options of an open. Start from `MRM_OPEN_OPTIONS_INIT`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_open_options_t {
    /// `sizeof(mrm_open_options_t)`, so that members can be added at the end.
    pub size: usize,
    /// How long to wait for room and for the load, in milliseconds. 0: only what is there at once.
    pub wait_ms: u64,
    /// Called with the progress of a load. NULL: not asked for.
    pub progress: mrm_progress_f,
    /// Passed to `progress`.
    pub user: *mut c_void,
    /// A number of `mrm_tier_e`: in which memory the weights are wanted.
    pub tier: u32,
    /// Zero.
    pub reserved: u32,
    /// Which device will do, NUL-terminated: `cuda:0` or `0` (the ordinal in this process), or its
    /// UUID as `GPU-...`. NULL or `cuda`: any that this process sees. Only with a tier of devices.
    pub device: *const c_char,
    /// 1: every page of what is in host memory is mapped before the open returns, so that no first
    /// touch waits for the kernel: 0.3 ms per GiB in 2 MiB pages, 48 ms in those of 4 KiB. Else 0.
    pub populate: u32,
    /// A number of `mrm_wait_for_e`: whether the open returns when all is in memory, or by the
    /// layout, before the last byte is.
    pub wait_for: u32,
    /// How many bytes of the device that the weights come to be on are to stay free of weights while
    /// the model is open: what this process needs there to run. In host memory nothing is kept free.
    pub reserve_bytes: u64,
}

/// What a model is. Start from `MRM_MODEL_INFO_INIT`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_model_info_t {
    /// `sizeof(mrm_model_info_t)`, so that members can be added at the end.
    pub size: usize,
    /// The name that it was opened by. Lives as long as the handle.
    pub name: mrm_text_t,
    /// The immutable version behind the name: one number for one content, as long as the daemon
    /// runs, or others take its memory over.
    pub version: u64,
    /// A number of `mrm_kind_e`.
    pub kind: u32,
    /// A number of `mrm_origin_e`: what the open cost.
    pub origin: u32,
    /// Bytes of all segments; on a device, of all allocations.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of segments; 0 on a device.
    pub segments: usize,
    /// Number of metadata pairs.
    pub metadata: usize,
    /// From the daemon's receipt of the open to its reply, in microseconds.
    pub took_us: u64,
}

/// One tensor. All pointers live as long as the model handle; all memory is read-only.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_tensor_t {
    /// Its name.
    pub name: mrm_text_t,
    /// A number of `mrm_dtype_e`.
    pub dtype: u32,
    /// Number of dimensions; 0 for a scalar.
    pub rank: u32,
    /// Its dimensions: `rank` numbers. Not NULL, even for a scalar.
    pub shape_ptr: *const u64,
    /// Its elements, little endian, the last dimension contiguous. Aligned only as the file
    /// aligned them. NULL on a device, and in what `mrm_model_layout_at` and its like say.
    pub data_ptr: *const c_void,
    /// Length of the elements in bytes.
    pub bytes: u64,
    /// Which file they are from: in host memory, which segment they lie in.
    pub segment: u32,
    /// The ordinal, in this process, of the device that they are on; -1 in host memory.
    pub device: i32,
    /// Where they begin in that file.
    pub offset: u64,
    /// Where they begin on the device, at a multiple of 256, for reading only; 0 in host memory,
    /// without elements, and in a layout.
    pub device_ptr: u64,
    /// Its position in the order of the files, as `mrm_model_tensor_at` counts.
    pub index: usize,
}

/// Where on a device a model is. Start from `MRM_DEVICE_INIT`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_device_t {
    /// `sizeof(mrm_device_t)`, so that members can be added at the end.
    pub size: usize,
    /// The device's name for every process: the bytes of its UUID.
    pub uuid: [u8; 16],
    /// Its number in this process, under this process's `CUDA_VISIBLE_DEVICES`.
    pub ordinal: u32,
    /// A number of `mrm_sharing_e`.
    pub sharing: u32,
    /// Bytes of all allocations.
    pub bytes: u64,
    /// Number of allocations.
    pub allocations: usize,
}

/// One allocation of a model on a device. Mapped as long as the model is open.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_allocation_t {
    /// Where it begins on the device.
    pub device_ptr: u64,
    /// Its length.
    pub bytes: u64,
}

/// One segment: the exact image of one file of the model. Lives as long as the model handle.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_segment_t {
    /// Its first byte. Read-only.
    pub data_ptr: *const c_void,
    /// Its length.
    pub bytes: u64,
}

/// A model as the daemon knows it. Start from `MRM_STAT_INIT`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_stat_t {
    /// `sizeof(mrm_stat_t)`, so that members can be added at the end.
    pub size: usize,
    /// The name. Lives as long as the callback runs; empty when `mrm_client_stat` filled it.
    pub name: mrm_text_t,
    /// Bytes of its segments; 0 when not known yet.
    pub bytes: u64,
    /// Leases on it, over all sessions.
    pub leases: u64,
    /// The version that the next open would get. Only with `has_version`.
    pub version: u64,
    /// A number of `mrm_state_e`.
    pub state: u32,
    /// Whether the operator registered it.
    pub registered: bool,
    /// Whether the operator pinned it.
    pub pinned: bool,
    /// Whether `version` is known. Never in a listing.
    pub has_version: bool,
}

/// Called for each model of a listing, in the order of their names, with the `user` pointer.
/// Return false to end the listing. It must not throw or jump out.
pub type mrm_list_f =
    Option<unsafe extern "C" fn(model: *const mrm_stat_t, user: *mut c_void) -> bool>;

/// What went wrong last on the calling thread. The pointers live until the next call of this
/// library that fails on the same thread.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_error_t {
    /// A number of `mrm_error_e`, or of a newer daemon. 0: nothing went wrong so far.
    pub number: u32,
    /// Whether the same call may succeed later with nothing changed.
    pub retryable: bool,
    /// Whether the call changed anything in the daemon.
    pub took_effect: bool,
    /// The stable name of `number`, in snake case, NUL-terminated.
    pub name: *const c_char,
    /// For people: the object, the reason, the remedy. NUL-terminated UTF-8.
    pub message: *const c_char,
}

/// In which memory an open wants the weights.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_tier_e {
    /// The host's.
    Host = 0,
    /// That of a device, or an error.
    Device = 1,
    /// That of a device if that can be had now, else the host's; `mrm_model_why_host` says why.
    Best = 2,
}

/// What an open waits for.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_wait_for_e {
    /// All of the model.
    All = 0,
    /// Its layout, and memory for it. Tensors become ready one by one, in the order in which they
    /// were first used the last time; what asks for a tensor's bytes waits for that one. On a
    /// device, and with a daemon that does not know of this, as `ALL`.
    Layout = 1,
}

/// How the memory of a device is shared between processes.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_sharing_e {
    /// By descriptors: what is mapped outlives the daemon.
    Vmm = 0,
    /// By handles: what is mapped is gone when the daemon is.
    Legacy = 1,
}

/// What kind of files a model is made of.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_kind_e {
    /// One file of unknown format: no tensors.
    Opaque = 0,
    /// safetensors, in one file or sharded.
    Safetensors = 1,
}

/// What an open cost.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_origin_e {
    /// Everything was resident.
    Hit = 0,
    /// Something was loaded for this open.
    Loaded = 1,
    /// The load of another open was joined.
    Joined = 2,
    /// Something was copied to the device for this open, from memory, not from files.
    Promoted = 3,
}

/// Where a model is.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_state_e {
    /// Nothing of it is in memory.
    Absent = 0,
    /// On its way.
    Loading = 1,
    /// All of it is in memory.
    Resident = 2,
    /// Some segments are in memory.
    Partial = 3,
}

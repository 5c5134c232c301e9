//! Types and constants of the driver's C interface, by the meaning that `cuda.h` (CUDA 13.2)
//! documents; the layouts are the same since CUDA 11.

use std::ffi::{c_int, c_void};

/// `CUdeviceptr`.
pub type DevicePtr = u64;
/// `CUmemGenericAllocationHandle`.
pub type Handle = u64;
/// `CUdevice`: an ordinal.
pub type Ordinal = c_int;
/// `CUhostFn`.
pub type HostFn = Option<unsafe extern "C" fn(*mut c_void)>;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// `CUmemLocationType`: 1 is a device.
    pub kind: u32,
    /// The ordinal of the device.
    pub id: c_int,
}

/// `CUmemAllocationProp`, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AllocationProp {
    /// `CUmemAllocationType`: 1 is pinned, the only one that `cuMemCreate` takes.
    pub kind: u32,
    /// `CUmemAllocationHandleType`, a bit mask.
    pub handle_types: u32,
    /// Where the memory lies.
    pub location: Location,
    /// For another system; null here.
    pub win32_meta_data: *mut c_void,
    /// `allocFlags`: compression, GPUDirect RDMA, usage, reserved.
    pub flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AccessDesc {
    /// Whose access it is.
    pub location: Location,
    /// `CUmemAccess_flags`: 0 none, 1 read, 3 read and write.
    pub flags: u32,
}

/// `CUuuid`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uuid {
    /// The bytes in the order in which they are written.
    pub bytes: [u8; 16],
}

/// `CUipcMemHandle`, which travels by value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IpcMemHandle {
    /// Opaque to everyone but the driver.
    pub reserved: [u8; 64],
}

const _: () = {
    assert!(size_of::<Location>() == 8);
    assert!(size_of::<AllocationProp>() == 32);
    assert!(size_of::<AccessDesc>() == 12);
    assert!(size_of::<Uuid>() == 16);
    assert!(size_of::<IpcMemHandle>() == 64);
};

/// The granularity of device memory, minimal and recommended.
pub const GRANULARITY_BYTES: u64 = 2 << 20;

pub(crate) const LOCATION_DEVICE: u32 = 1;
pub(crate) const ALLOCATION_PINNED: u32 = 1;
pub(crate) const HANDLE_TYPE_POSIX_FD: u32 = 1;
pub(crate) const ACCESS_NONE: u32 = 0;
pub(crate) const ACCESS_READ: u32 = 1;
pub(crate) const ACCESS_READ_WRITE: u32 = 3;
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;
pub(crate) const EVENT_DISABLE_TIMING: u32 = 2;
pub(crate) const IPC_LAZY_ENABLE_PEER_ACCESS: u32 = 1;
pub(crate) const HOST_REGISTER_READ_ONLY: u32 = 8;

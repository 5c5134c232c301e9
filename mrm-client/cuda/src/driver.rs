//! The driver's functions as plain integers: an own table, loaded at run time.
//!
//! Every function here returns a `u32`, never an enum: the driver may be newer than this code and
//! return codes that nothing here has a name for. Structs of `cudarc` are passed in for their
//! layout; none is read back as an enum.
//!
//! This is one of the files with unsafe code. What is called with numbers only, or writes to
//! places that the caller here owns, is wrapped as a safe method; the rest is called from
//! `context.rs`, `stream.rs`, `pinned.rs`, `ring.rs`, `vmm.rs` and `legacy.rs`.

use crate::error::{CallError, CudaError};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUipcMemHandle, CUmemAccessDesc,
    CUmemAllocationProp, CUmemGenericAllocationHandle, CUstream, CUuuid,
};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

type GetErrorName = unsafe extern "C" fn(c_uint, *mut *const c_char) -> u32;

/// `cuGetErrorName` of the library that was loaded, which stays loaded.
static ERROR_NAME: OnceLock<GetErrorName> = OnceLock::new();

/// Attributes of a device that are asked for.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(crate) enum Attribute {
    CapabilityMajor = 75,
    CapabilityMinor = 76,
    VirtualMemory = 102,
    PosixFd = 103,
    ReadOnlyRegister = 113,
}

macro_rules! table {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// Functions of the driver. Their names are the driver's, without `cu` and version.
        #[derive(Debug)]
        pub(crate) struct Table {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> u32,)*
        }

        impl Table {
            /// Finds every function, or says which ones the library lacks.
            pub(crate) fn find(library: &Library) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    // SAFETY: the type is the one that the driver's header declares for this
                    // symbol, an enum argument or result standing as the integer that it is in C.
                    let $field = unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> u32>($symbol)
                    };
                    if $field.is_err() {
                        missing.push($symbol);
                    }
                )*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self { $($field: match $field {
                    Ok(function) => *function,
                    Err(_) => return Err(missing),
                },)* })
            }
        }
    };
}

table! {
    init = "cuInit" (c_uint);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut CUdevice, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
    device_uuid = "cuDeviceGetUuid_v2" (*mut CUuuid, CUdevice);
    device_total_mem = "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_uint, CUdevice);
    device_pci_bus_id = "cuDeviceGetPCIBusId" (*mut c_char, c_int, CUdevice);
    device_can_access_peer = "cuDeviceCanAccessPeer" (*mut c_int, CUdevice, CUdevice);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
    context_release = "cuDevicePrimaryCtxRelease_v2" (CUdevice);
    context_push = "cuCtxPushCurrent_v2" (CUcontext);
    context_pop = "cuCtxPopCurrent_v2" (*mut CUcontext);
    context_synchronize = "cuCtxSynchronize" ();
    mem_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    stream_create = "cuStreamCreate" (*mut CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (CUstream);
    stream_synchronize = "cuStreamSynchronize" (CUstream);
    stream_is_capturing = "cuStreamIsCapturing" (CUstream, *mut c_uint);
    event_create = "cuEventCreate" (*mut CUevent, c_uint);
    event_destroy = "cuEventDestroy_v2" (CUevent);
    event_record = "cuEventRecord" (CUevent, CUstream);
    event_synchronize = "cuEventSynchronize" (CUevent);
    event_query = "cuEventQuery" (CUevent);
    host_alloc = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    host_register = "cuMemHostRegister_v2" (*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister" (*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
    set_bytes = "cuMemsetD8Async" (CUdeviceptr, c_uchar, usize, CUstream);
    copy_to_host = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
    copy_peer = "cuMemcpyPeerAsync" (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, usize, CUstream);
    mem_granularity = "cuMemGetAllocationGranularity" (*mut usize, *const CUmemAllocationProp, c_uint);
    mem_create = "cuMemCreate" (*mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, c_ulonglong);
    mem_release = "cuMemRelease" (CUmemGenericAllocationHandle);
    mem_export = "cuMemExportToShareableHandle" (*mut c_void, CUmemGenericAllocationHandle, c_uint, c_ulonglong);
    mem_import = "cuMemImportFromShareableHandle" (*mut CUmemGenericAllocationHandle, *mut c_void, c_uint);
    mem_reserve = "cuMemAddressReserve" (*mut CUdeviceptr, usize, usize, CUdeviceptr, c_ulonglong);
    mem_address_free = "cuMemAddressFree" (CUdeviceptr, usize);
    mem_map = "cuMemMap" (CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, c_ulonglong);
    mem_unmap = "cuMemUnmap" (CUdeviceptr, usize);
    mem_set_access = "cuMemSetAccess" (CUdeviceptr, usize, *const CUmemAccessDesc, usize);
    mem_alloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
    mem_free = "cuMemFree_v2" (CUdeviceptr);
    mem_address_range = "cuMemGetAddressRange_v2" (*mut CUdeviceptr, *mut usize, CUdeviceptr);
    ipc_get = "cuIpcGetMemHandle" (*mut CUipcMemHandle, CUdeviceptr);
    ipc_open = "cuIpcOpenMemHandle_v2" (*mut CUdeviceptr, CUipcMemHandle, c_uint);
    ipc_close = "cuIpcCloseMemHandle" (CUdeviceptr);
}

/// Loads the first library of `names` that loads; else says why the first name did not. It is
/// never unloaded: the driver keeps threads and process-wide state.
pub(crate) fn load(names: &[String]) -> Result<&'static Library, String> {
    let mut why = None;
    for name in names {
        // SAFETY: loading runs the library's initialisers. These are names of the CUDA driver,
        // which every CUDA program of this machine loads in the same way.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) => {
                let error = std::error::Error::source(&error)
                    .map_or_else(|| error.to_string(), ToString::to_string);
                why.get_or_insert(error);
            }
        }
    }
    Err(why.unwrap_or_default())
}

/// From now on, errors are named by `library`.
pub(crate) fn name_errors_by(library: &'static Library) {
    // SAFETY: the type is the one that the driver's header declares.
    if let Ok(function) = unsafe { library.get::<GetErrorName>("cuGetErrorName") } {
        let _ = ERROR_NAME.set(*function);
    }
}

/// The name that the driver has for `code`; `None` when it has none, or none was loaded.
pub(crate) fn error_name(code: u32) -> Option<&'static str> {
    let function = ERROR_NAME.get()?;
    let mut name = std::ptr::null();
    // SAFETY: the driver writes one pointer to `name`, or leaves it.
    let found = unsafe { function(code, &raw mut name) } == 0;
    if !found || name.is_null() {
        return None;
    }
    // SAFETY: the pointer is not null, and the driver promises a terminated string of static
    // life; the library is never unloaded.
    unsafe { CStr::from_ptr(name) }.to_str().ok()
}

/// Version of the driver, as `1000 * major + 10 * minor`; `None` when it has no such function.
pub(crate) fn version(library: &Library) -> Option<Result<u32, CudaError>> {
    type GetVersion = unsafe extern "C" fn(*mut c_int) -> u32;
    // SAFETY: the type is the one that the driver's header declares.
    let function = unsafe { library.get::<GetVersion>("cuDriverGetVersion") }.ok()?;
    let mut version = 0;
    // SAFETY: the driver writes one integer to `version`. It may be asked before cuInit.
    let code = unsafe { function(&raw mut version) };
    Some(match CudaError::check(code) {
        Ok(()) => Ok(u32::try_from(version).unwrap_or(0)),
        Err(error) => Err(error),
    })
}

/// Address of `cuInit`, by which its library is found among the process's mappings.
pub(crate) fn address_within(library: &Library) -> Option<usize> {
    // SAFETY: the symbol is taken for its address and never used as what the type says.
    let symbol = unsafe { library.get::<*const c_void>("cuInit") }.ok()?;
    Some(symbol.addr())
}

impl Table {
    /// `cuInit`. To be called once, before any other function of the table.
    pub(crate) fn init(&self) -> Result<(), CallError> {
        // SAFETY: takes a number; zero is the one value that the driver defines.
        CallError::check("cuInit", unsafe { (self.init)(0) })
    }

    pub(crate) fn device_count(&self) -> Result<i32, CallError> {
        let mut count = 0;
        // SAFETY: the driver writes one integer to `count`.
        let code = unsafe { (self.device_count)(&raw mut count) };
        CallError::check("cuDeviceGetCount", code).map(|()| count)
    }

    pub(crate) fn device(&self, ordinal: i32) -> Result<CUdevice, CallError> {
        let mut device = 0;
        // SAFETY: the driver writes one integer to `device`, and checks `ordinal`.
        let code = unsafe { (self.device_get)(&raw mut device, ordinal) };
        CallError::check("cuDeviceGet", code).map(|()| device)
    }

    pub(crate) fn device_name(&self, device: CUdevice) -> Result<String, CallError> {
        let mut name = [0_u8; 256];
        // SAFETY: the driver writes at most the 255 bytes that it is told of, terminated.
        let code = unsafe { (self.device_name)(name.as_mut_ptr().cast(), 255, device) };
        CallError::check("cuDeviceGetName", code)?;
        Ok(text_of(&name))
    }

    pub(crate) fn device_pci_bus_id(&self, device: CUdevice) -> Result<String, CallError> {
        let mut id = [0_u8; 32];
        // SAFETY: the driver writes at most the 31 bytes that it is told of, terminated.
        let code = unsafe { (self.device_pci_bus_id)(id.as_mut_ptr().cast(), 31, device) };
        CallError::check("cuDeviceGetPCIBusId", code)?;
        Ok(text_of(&id))
    }

    pub(crate) fn can_access_peer(
        &self,
        device: CUdevice,
        peer: CUdevice,
    ) -> Result<bool, CallError> {
        let mut can = 0;
        // SAFETY: the driver writes one integer to `can`, and checks both devices.
        let code = unsafe { (self.device_can_access_peer)(&raw mut can, device, peer) };
        CallError::check("cuDeviceCanAccessPeer", code).map(|()| can != 0)
    }

    pub(crate) fn device_uuid(&self, device: CUdevice) -> Result<[u8; 16], CallError> {
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the driver writes 16 bytes to `uuid`.
        let code = unsafe { (self.device_uuid)(&raw mut uuid, device) };
        CallError::check("cuDeviceGetUuid_v2", code)?;
        Ok(uuid.bytes.map(|byte| u8::from_ne_bytes(byte.to_ne_bytes())))
    }

    pub(crate) fn device_total_bytes(&self, device: CUdevice) -> Result<u64, CallError> {
        let mut bytes = 0;
        // SAFETY: the driver writes one integer to `bytes`.
        let code = unsafe { (self.device_total_mem)(&raw mut bytes, device) };
        CallError::check("cuDeviceTotalMem_v2", code).map(|()| bytes as u64)
    }

    pub(crate) fn attribute(&self, device: CUdevice, which: Attribute) -> Result<i32, CallError> {
        let mut value = 0;
        // SAFETY: the driver writes one integer to `value`.
        let code = unsafe { (self.device_attribute)(&raw mut value, which as u32, device) };
        CallError::check("cuDeviceGetAttribute", code).map(|()| value)
    }
}

/// What is before the first zero.
fn text_of(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
    String::from_utf8_lossy(text).into_owned()
}

//! The driver's functions, loaded as a program loads them, with shorter names for the usual ones.

use mrm_fake_cuda::abi::{AccessDesc, AllocationProp, IpcMemHandle, Location, Uuid};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::OnceLock;

pub const GRAIN: usize = 2 << 20;

/// The address of a symbol of `libcuda.so.1`, or null.
pub fn symbol(name: &str) -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let library = *LIBRARY.get_or_init(|| {
        // SAFETY: loading the library runs no code of its own.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "no libcuda.so.1");
        library.expose_provenance()
    });
    let name = CString::new(name).unwrap();
    let library = ptr::with_exposed_provenance_mut(library);
    // SAFETY: the library stays loaded, and the name is a C string.
    unsafe { libc::dlsym(library, name.as_ptr()) }
}

macro_rules! import {
    ($(fn $name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        #[allow(non_snake_case, reason = "the driver's names")]
        pub fn $name($($arg: $ty),*) -> u32 {
            type Function = unsafe extern "C" fn($($ty),*) -> u32;
            let address = symbol(stringify!($name));
            assert!(!address.is_null(), stringify!($name));
            // SAFETY: the prototype is that of `cuda.h`; tests pass pointers to their locals.
            unsafe { std::mem::transmute::<*mut c_void, Function>(address)($($arg),*) }
        }
    )*};
}

import! {
    fn cuInit(flags: u32);
    fn cuDriverGetVersion(version: *mut i32);
    fn cuDeviceGetCount(count: *mut i32);
    fn cuDeviceGet(device: *mut i32, ordinal: i32);
    fn cuDeviceGetName(name: *mut c_char, len: i32, device: i32);
    fn cuDeviceGetUuid_v2(uuid: *mut Uuid, device: i32);
    fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32);
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32);
    fn cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32);
    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: i32);
    fn cuDevicePrimaryCtxRelease_v2(device: i32);
    fn cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32);
    fn cuCtxGetCurrent(context: *mut u64);
    fn cuCtxSetCurrent(context: u64);
    fn cuCtxPushCurrent_v2(context: u64);
    fn cuCtxPopCurrent_v2(context: *mut u64);
    fn cuCtxGetDevice(device: *mut i32);
    fn cuCtxSynchronize();
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemGetAllocationGranularity(b: *mut usize, p: *const AllocationProp, o: u32);
    fn cuMemCreate(handle: *mut u64, bytes: usize, prop: *const AllocationProp, flags: u64);
    fn cuMemRelease(handle: u64);
    fn cuMemExportToShareableHandle(fd: *mut i32, handle: u64, kind: u32, flags: u64);
    fn cuMemImportFromShareableHandle(handle: *mut u64, fd: usize, kind: u32);
    fn cuMemAddressReserve(ptr: *mut u64, bytes: usize, align: usize, hint: u64, flags: u64);
    fn cuMemAddressFree(ptr: u64, bytes: usize);
    fn cuMemMap(ptr: u64, bytes: usize, offset: usize, handle: u64, flags: u64);
    fn cuMemUnmap(ptr: u64, bytes: usize);
    fn cuMemSetAccess(ptr: u64, bytes: usize, desc: *const AccessDesc, count: usize);
    fn cuMemGetAccess(flags: *mut u64, location: *const Location, ptr: u64);
    fn cuMemRetainAllocationHandle(handle: *mut u64, address: usize);
    fn cuMemAlloc_v2(ptr: *mut u64, bytes: usize);
    fn cuMemFree_v2(ptr: u64);
    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, ptr: u64);
    fn cuIpcGetMemHandle(handle: *mut IpcMemHandle, ptr: u64);
    fn cuIpcOpenMemHandle_v2(ptr: *mut u64, handle: IpcMemHandle, flags: u32);
    fn cuIpcCloseMemHandle(ptr: u64);
    fn cuMemHostAlloc(ptr: *mut usize, bytes: usize, flags: u32);
    fn cuMemFreeHost(ptr: usize);
    fn cuMemHostRegister_v2(ptr: usize, bytes: usize, flags: u32);
    fn cuMemHostUnregister(ptr: usize);
    fn cuMemHostGetDevicePointer_v2(device_ptr: *mut u64, ptr: usize, flags: u32);
    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize);
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: u64);
    fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize);
    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: u64);
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64);
    fn cuMemcpyPeerAsync(to: u64, tc: u64, from: u64, fc: u64, bytes: usize, stream: u64);
    fn cuMemsetD8_v2(to: u64, value: u8, bytes: usize);
    fn cuStreamCreate(stream: *mut u64, flags: u32);
    fn cuStreamDestroy_v2(stream: u64);
    fn cuStreamSynchronize(stream: u64);
    fn cuStreamQuery(stream: u64);
    fn cuStreamIsCapturing(stream: u64, status: *mut u32);
    fn cuStreamBeginCapture_v2(stream: u64, mode: u32);
    fn cuStreamEndCapture(stream: u64, graph: *mut u64);
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32);
    fn cuLaunchHostFunc(stream: u64, f: unsafe extern "C" fn(*mut c_void), data: *mut c_void);
    fn cuEventCreate(event: *mut u64, flags: u32);
    fn cuEventDestroy_v2(event: u64);
    fn cuEventRecord(event: u64, stream: u64);
    fn cuEventSynchronize(event: u64);
    fn cuEventQuery(event: u64);
    fn cuEventElapsedTime(ms: *mut f32, start: u64, end: u64);
    fn cuGetErrorName(error: u32, name: *mut *const c_char);
    fn cuGetErrorString(error: u32, text: *mut *const c_char);
    fn cuPointerGetAttribute(value: *mut c_void, attribute: u32, ptr: u64);
    fn cuGetProcAddress_v2(n: *const c_char, f: *mut *mut c_void, v: i32, g: u64, s: *mut u32);
}

/// Initialises, and makes the primary context of a device current.
pub fn begin(device: i32) -> u64 {
    assert_eq!(cuInit(0), 0);
    let mut context = 0;
    assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, device), 0);
    assert_eq!(cuCtxSetCurrent(context), 0);
    context
}

pub const fn prop(device: i32) -> AllocationProp {
    AllocationProp {
        kind: 1,
        handle_types: 1,
        location: Location {
            kind: 1,
            id: device,
        },
        win32_meta_data: ptr::null_mut(),
        flags: [0; 8],
    }
}

pub fn create(device: i32, bytes: usize) -> Result<u64, u32> {
    let (mut handle, prop) = (0, prop(device));
    match cuMemCreate(&raw mut handle, bytes, &raw const prop, 0) {
        0 => Ok(handle),
        code => Err(code),
    }
}

pub fn export(handle: u64) -> i32 {
    let mut fd = -1;
    assert_eq!(cuMemExportToShareableHandle(&raw mut fd, handle, 1, 0), 0);
    fd
}

pub fn import(fd: i32) -> Result<u64, u32> {
    let mut handle = 0;
    let raw = usize::try_from(fd.cast_unsigned()).unwrap();
    match cuMemImportFromShareableHandle(&raw mut handle, raw, 1) {
        0 => Ok(handle),
        code => Err(code),
    }
}

pub fn reserve(bytes: usize) -> u64 {
    let mut ptr = 0;
    assert_eq!(cuMemAddressReserve(&raw mut ptr, bytes, 0, 0, 0), 0);
    ptr
}

pub fn access(ptr: u64, bytes: usize, device: i32, flags: u32) -> u32 {
    let location = Location {
        kind: 1,
        id: device,
    };
    let desc = AccessDesc { location, flags };
    cuMemSetAccess(ptr, bytes, &raw const desc, 1)
}

/// Maps a handle at new addresses.
pub fn map(handle: u64, bytes: usize, device: i32, flags: u32) -> u64 {
    let ptr = reserve(bytes);
    assert_eq!(cuMemMap(ptr, bytes, 0, handle, 0), 0);
    assert_eq!(access(ptr, bytes, device, flags), 0);
    ptr
}

pub fn alloc(bytes: usize) -> u64 {
    let mut ptr = 0;
    assert_eq!(cuMemAlloc_v2(&raw mut ptr, bytes), 0);
    ptr
}

pub fn stream(flags: u32) -> u64 {
    let mut stream = 0;
    assert_eq!(cuStreamCreate(&raw mut stream, flags), 0);
    stream
}

pub fn event() -> u64 {
    let mut event = 0;
    assert_eq!(cuEventCreate(&raw mut event, 0), 0);
    event
}

pub fn upload(to: u64, bytes: &[u8]) {
    assert_eq!(cuMemcpyHtoD_v2(to, bytes.as_ptr(), bytes.len()), 0);
}

pub fn download(from: u64, bytes: usize) -> Vec<u8> {
    let mut into = vec![0; bytes];
    assert_eq!(cuMemcpyDtoH_v2(into.as_mut_ptr(), from, bytes), 0);
    into
}

pub fn free_bytes() -> usize {
    let (mut free, mut total) = (0, 0);
    assert_eq!(cuMemGetInfo_v2(&raw mut free, &raw mut total), 0);
    free
}

pub fn error_name(code: u32) -> Option<String> {
    let mut name = ptr::null();
    let result = cuGetErrorName(code, &raw mut name);
    if result != 0 {
        assert_eq!((result, name), (1, ptr::null()));
        return None;
    }
    // SAFETY: the driver gave a C string that lives forever.
    Some(
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned(),
    )
}

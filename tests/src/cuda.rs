//! The device's memory as a process of its own sees it: by the driver's own functions, so that a
//! test relies on nothing of ours.
//!
//! This is one of the files with unsafe code.

use libloading::Library;
use std::ffi::{c_int, c_uint, c_void};

/// A driver, with the primary context of one device retained for ever.
#[derive(Debug)]
pub struct Cuda {
    library: Library,
    context: *mut c_void,
}

macro_rules! call {
    ($self:ident, $symbol:literal ($($type:ty),*) $arguments:tt) => {{
        // SAFETY: the type is the one that the driver's header declares for this symbol.
        let function = unsafe {
            $self.library.get::<unsafe extern "C" fn($($type),*) -> u32>($symbol)
        };
        let function = function.expect($symbol);
        // SAFETY: what the arguments point to outlives the call, and is as large as they say.
        let code = unsafe { function $arguments };
        assert_eq!(code, 0, "{}", $symbol);
    }};
}

impl Cuda {
    /// The device with this number in this process.
    pub fn of(ordinal: u32) -> Self {
        // SAFETY: loading runs the library's initialisers, as in every CUDA program.
        let library = unsafe { Library::new("libcuda.so.1") }.expect("a driver");
        let context = std::ptr::null_mut();
        let mut cuda = Self { library, context };
        let (mut device, ordinal) = (0, c_int::try_from(ordinal).expect("small"));
        call!(cuda, "cuInit"(c_uint)(0));
        call!(cuda, "cuDeviceGet" (*mut c_int, c_int) (&raw mut device, ordinal));
        let mut context = std::ptr::null_mut::<c_void>();
        call!(cuda, "cuDevicePrimaryCtxRetain" (*mut *mut c_void, c_int) (&raw mut context, device));
        cuda.context = context;
        cuda
    }

    /// `bytes` bytes at `pointer`.
    pub fn read(&self, pointer: u64, bytes: u64) -> Vec<u8> {
        let mut read = vec![0_u8; usize::try_from(bytes).expect("fits")];
        self.within(|| {
            let (to, len) = (read.as_mut_ptr().cast(), read.len());
            call!(self, "cuMemcpyDtoH_v2" (*mut c_void, u64, usize) (to, pointer, len));
        });
        read
    }

    /// What the driver reports as free.
    pub fn free_bytes(&self) -> u64 {
        let (mut free, mut total) = (0_usize, 0_usize);
        self.within(|| {
            let to = (&raw mut free, &raw mut total);
            call!(self, "cuMemGetInfo_v2" (*mut usize, *mut usize) (to.0, to.1));
        });
        free as u64
    }

    /// Takes memory of the device, for as long as this process lives.
    pub fn take(&self, bytes: u64) -> u64 {
        let (mut pointer, bytes) = (0_u64, usize::try_from(bytes).expect("fits"));
        self.within(|| call!(self, "cuMemAlloc_v2" (*mut u64, usize) (&raw mut pointer, bytes)));
        pointer
    }

    /// Gives back what [`take`](Self::take) took.
    pub fn give(&self, pointer: u64) {
        self.within(|| call!(self, "cuMemFree_v2"(u64)(pointer)));
    }

    /// Stores a byte at `pointer`, as a kernel of this process would.
    pub fn write(pointer: u64) {
        let address =
            std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(pointer).expect("fits"));
        // SAFETY: none: whether this process may do so is what the caller wants to know, and the
        // fault of a page that is not writable ends the process.
        unsafe { address.write_volatile(0x5a) };
    }

    fn within(&self, action: impl FnOnce()) {
        call!(self, "cuCtxPushCurrent_v2" (*mut c_void) (self.context));
        action();
        let mut popped = std::ptr::null_mut::<c_void>();
        call!(self, "cuCtxPopCurrent_v2" (*mut *mut c_void) (&raw mut popped));
    }
}

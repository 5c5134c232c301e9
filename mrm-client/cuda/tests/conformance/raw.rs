//! Calls that the crate does not make, for what tests must do behind its back: write where it is
//! forbidden, capture a stream. The unsafe file of the tests.

use libloading::Library;
use std::ffi::c_void;
use std::ptr;

/// The driver, with the primary context of device 0 current on this thread.
pub(crate) struct Raw(Library);

fn check(call: &str, code: u32) -> Result<(), String> {
    if code == 0 {
        Ok(())
    } else {
        Err(format!("{call}: error {code}"))
    }
}

macro_rules! call {
    ($self:ident, $name:literal, ($($type:ty),*), $($argument:expr),*) => {{
        // SAFETY: the type is what the driver's header declares for this symbol, and the arguments
        // are live places of the caller.
        let code = unsafe {
            let function = $self.0.get::<unsafe extern "C" fn($($type),*) -> u32>($name);
            function.map_err(|error| error.to_string())?($($argument),*)
        };
        check($name, code)
    }};
}

impl Raw {
    /// To be called when the crate has initialised the driver.
    pub(crate) fn enter() -> Result<Self, String> {
        // SAFETY: it is loaded already.
        let library = unsafe { Library::new("libcuda.so.1") }.map_err(|error| error.to_string())?;
        let raw = Self(library);
        let mut context: *mut c_void = ptr::null_mut();
        call!(
            raw,
            "cuDevicePrimaryCtxRetain",
            (*mut *mut c_void, i32),
            &raw mut context,
            0
        )?;
        call!(raw, "cuCtxPushCurrent_v2", (*mut c_void), context)?;
        Ok(raw)
    }

    /// The context that is current on this thread, as a number.
    pub(crate) fn current(&self) -> Result<usize, String> {
        let mut context: *mut c_void = ptr::null_mut();
        call!(
            self,
            "cuCtxGetCurrent",
            (*mut *mut c_void),
            &raw mut context
        )?;
        Ok(context.addr())
    }

    /// Writes one byte to `pointer`, whatever is there.
    pub(crate) fn write(&self, pointer: u64) -> Result<(), String> {
        let byte = 0xee_u8;
        call!(
            self,
            "cuMemcpyHtoD_v2",
            (u64, *const u8, usize),
            pointer,
            &raw const byte,
            1
        )?;
        call!(self, "cuCtxSynchronize", (),)
    }

    /// Begins to capture a new stream, which waits for the default stream unless `non_blocking`.
    pub(crate) fn capture(&self, non_blocking: bool) -> Result<*mut c_void, String> {
        let mut stream: *mut c_void = ptr::null_mut();
        let flags = u32::from(non_blocking);
        call!(
            self,
            "cuStreamCreate",
            (*mut *mut c_void, u32),
            &raw mut stream,
            flags
        )?;
        call!(
            self,
            "cuStreamBeginCapture_v2",
            (*mut c_void, u32),
            stream,
            2
        )?;
        Ok(stream)
    }

    /// Ends a capture.
    pub(crate) fn end_capture(&self, stream: *mut c_void) -> Result<(), String> {
        let mut graph: *mut c_void = ptr::null_mut();
        let types = &raw mut graph;
        call!(
            self,
            "cuStreamEndCapture",
            (*mut c_void, *mut *mut c_void),
            stream,
            types
        )
    }

    /// A stream of the driver, for the crate.
    pub(crate) fn stream(stream: *mut c_void) -> mrm_cuda::RawStream {
        // SAFETY: made by `capture`, and never destroyed.
        unsafe { mrm_cuda::RawStream::new(stream) }
    }
}

/// Does `work` in a fork of this process, and tells what it returned.
pub(crate) fn in_a_fork(work: impl FnOnce() -> bool) -> Result<bool, String> {
    unsafe extern "C" {
        fn fork() -> i32;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        fn _exit(status: i32) -> !;
    }
    // SAFETY: the child does its work on one thread and ends without running destructors; what it
    // does allocates, which the C library makes work in a child.
    match unsafe { fork() } {
        -1 => Err("no fork".to_owned()),
        // SAFETY: ends the child, as said.
        0 => unsafe { _exit(if work() { 0 } else { 1 }) },
        child => {
            let mut status = -1;
            // SAFETY: the child is this function's; the status is written to a live place.
            let waited = unsafe { waitpid(child, &raw mut status, 0) };
            Ok(waited == child && status == 0)
        }
    }
}

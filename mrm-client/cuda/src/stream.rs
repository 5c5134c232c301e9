//! Queues of work, and copies between host and device.
//!
//! This is one of the files with unsafe code.

use crate::context::Context;
use crate::error::CallError;
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::ptr;

/// The default flag would tie the stream to the caller's work on the default stream.
const NON_BLOCKING: u32 = 1;

/// A queue of copies of its own, which neither waits for other streams nor makes them wait.
pub struct Stream {
    context: Context,
    raw: CUstream,
}

// SAFETY: a stream is a token that the driver takes from any thread, and locks for itself.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A stream of the caller's, by the pointer that other libraries have for it.
#[derive(Debug, Clone, Copy)]
pub struct RawStream(pub(crate) CUstream);

impl RawStream {
    /// The stream at `pointer`: a `CUstream`, `cudaStream_t` or `torch.cuda.Stream.cuda_stream`.
    ///
    /// # Safety
    /// It must be a stream of the context that it is used with, and exist as long as this is used.
    #[must_use]
    pub unsafe fn new(pointer: *mut c_void) -> Self {
        Self(pointer.cast())
    }
}

/// A range of an allocation that is not sealed: may be written.
#[derive(Debug)]
pub struct Room<'a> {
    pointer: u64,
    bytes: usize,
    owner: PhantomData<&'a mut ()>,
}

/// A range of a sealed allocation or a mapping: may be read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pointer: u64,
    bytes: usize,
    owner: PhantomData<&'a ()>,
}

impl<'a> Room<'a> {
    /// `pointer` and `bytes` must be within memory that `_owner` keeps mapped for writing.
    pub(crate) fn within<T>(_owner: &'a mut T, pointer: u64, bytes: usize) -> Self {
        Self {
            pointer,
            bytes,
            owner: PhantomData,
        }
    }

    /// Address on the device.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.pointer
    }
}

impl<'a> View<'a> {
    /// `pointer` and `bytes` must be within memory that `_owner` keeps mapped.
    pub(crate) fn within<T>(_owner: &'a T, pointer: u64, bytes: usize) -> Self {
        Self {
            pointer,
            bytes,
            owner: PhantomData,
        }
    }
}

impl Stream {
    /// A stream on the context's device.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn new(context: &Context) -> Result<Self, CallError> {
        let mut raw = ptr::null_mut();
        let entered = context.enter()?;
        // SAFETY: the context is current, and the driver writes one pointer to `raw`.
        let code = unsafe { (entered.table().stream_create)(&raw mut raw, NON_BLOCKING) };
        CallError::check("cuStreamCreate", code)?;
        Ok(Self {
            context: context.clone(),
            raw,
        })
    }

    /// Waits until all that was queued is done.
    ///
    /// # Errors
    /// When something that was queued failed.
    pub fn synchronize(&self) -> Result<(), CallError> {
        let entered = self.context.enter()?;
        // SAFETY: the stream is alive, and of the current context.
        let code = unsafe { (entered.table().stream_synchronize)(self.raw) };
        CallError::check("cuStreamSynchronize", code)
    }

    /// Copies `from` to the beginning of `to`, as far as both go, and waits until it is there.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work of the stream failed.
    pub fn copy_in(&self, to: &mut Room<'_>, from: &[u8]) -> Result<(), CallError> {
        // SAFETY: `from` is borrowed until the copy is waited for, below. When waiting fails the
        // context is lost, and with it all work on it.
        unsafe { self.copy_in_async(to, from.as_ptr(), from.len()) }?;
        self.synchronize()
    }

    /// Queues a copy of `bytes` bytes at `from` to the beginning of `to`, no further than its end.
    /// It runs beside the caller only if `from` is page-locked.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work of the stream failed.
    ///
    /// # Safety
    /// The bytes at `from` must be readable, and not change, until the stream was waited for; and
    /// it must be waited for before the allocation of `to` is sealed or dropped.
    pub unsafe fn copy_in_async(
        &self,
        to: &mut Room<'_>,
        from: *const u8,
        bytes: usize,
    ) -> Result<(), CallError> {
        let bytes = bytes.min(to.bytes);
        let entered = self.context.enter()?;
        let copy = entered.table().copy_to_device;
        // SAFETY: `to` is mapped for writing as long as it borrows its allocation, and longer by
        // this function's contract, which also speaks for `from`.
        let code = unsafe { copy(to.pointer, from.cast(), bytes, self.raw) };
        CallError::check("cuMemcpyHtoDAsync_v2", code)
    }

    /// Queues the zeroing of all of `to`, which must be waited for before `to`'s allocation is
    /// sealed or dropped.
    pub(crate) fn zero(&self, to: &mut Room<'_>) -> Result<(), CallError> {
        let entered = self.context.enter()?;
        // SAFETY: `to` is mapped for writing; the callers of `Allocation::zero_rest`, the only user,
        // wait for the stream.
        let code = unsafe { (entered.table().set_bytes)(to.pointer, 0, to.bytes, self.raw) };
        CallError::check("cuMemsetD8Async", code)
    }

    /// Queues a copy from the beginning of `from`, which may be on another device, to the beginning
    /// of `to`, as far as both go. `home` is the context of `from`.
    ///
    /// # Safety
    /// The stream must be waited for before either owner is dropped, or that of `to` is sealed.
    pub(crate) unsafe fn copy_across_async(
        &self,
        to: &mut Room<'_>,
        from: View<'_>,
        home: &Context,
    ) -> Result<(), CallError> {
        let bytes = to.bytes.min(from.bytes);
        let entered = self.context.enter()?;
        let copy = entered.table().copy_peer;
        let (here, there) = (self.context.raw(), home.raw());
        // SAFETY: both ranges are mapped while they borrow their owners, and longer by this
        // function's contract; both contexts are retained. Neither device need have access to the
        // memory of the other: the driver goes through the host where it must.
        let code = unsafe { copy(to.pointer, here, from.pointer, there, bytes, self.raw) };
        CallError::check("cuMemcpyPeerAsync", code)
    }

    /// Copies from the beginning of `from` to `to`, as far as both go, and waits until it is there.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work of the stream failed.
    pub fn copy_out(&self, from: View<'_>, to: &mut [u8]) -> Result<(), CallError> {
        let bytes = to.len().min(from.bytes);
        let entered = self.context.enter()?;
        let copy = entered.table().copy_to_host;
        // SAFETY: `from` is mapped while it borrows its owner, `to` is borrowed for writing, and
        // both borrows last until the copy is waited for, or the context is lost.
        let code = unsafe { copy(to.as_mut_ptr().cast(), from.pointer, bytes, self.raw) };
        CallError::check("cuMemcpyDtoHAsync_v2", code)?;
        self.synchronize()
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    /// The stream as other libraries take it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut c_void {
        self.raw.cast()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: made by `new` and destroyed once; the driver finishes what is queued. An
            // error leaves nothing to be done: the stream ends with its context.
            let _ = unsafe { (entered.table().stream_destroy)(self.raw) };
        }
    }
}

//! Host memory that devices copy from by themselves: page-locked here, or the caller's, registered.
//!
//! This is one of the files with unsafe code.

use crate::context::Context;
use crate::deferred::{Held, Parts, Release};
use crate::error::{CallError, CudaError, RegisterError};
use crate::stream::Stream;
use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// Known as page-locked to all contexts, not only to the one that registered it.
const PORTABLE: u32 = 1;
/// The device only reads it: needed for what this process may not write.
const READ_ONLY: u32 = 8;

/// What may be queued that reads a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flight {
    /// Nothing.
    None,
    /// What an event marks the end of.
    Marked,
    /// Something of which only the stream tells the end.
    Unmarked,
}

/// Page-locked memory of this process, which copies queued on one stream read.
pub(crate) struct Pinned {
    stream: Arc<Stream>,
    /// Null when there is none, or none any more.
    address: *mut u8,
    bytes: usize,
    pub(crate) flight: Flight,
}

// SAFETY: the memory is owned, and reached by `&mut` only; the driver takes its address from any
// thread.
unsafe impl Send for Pinned {}
// SAFETY: as above: nothing reads or writes through a shared reference.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// `bytes` bytes, not zero, all of them zeroes.
    pub(crate) fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Held<Self>, CallError> {
        let mut address: *mut c_void = ptr::null_mut();
        let entered = stream.context().enter()?;
        // SAFETY: the context is current, and the driver writes one pointer to `address`.
        let code = unsafe { (entered.table().host_alloc)(&raw mut address, bytes, 0) };
        CallError::check("cuMemHostAlloc", code)?;
        let address: *mut u8 = address.cast();
        if address.is_null() {
            let (call, error) = ("cuMemHostAlloc", CudaError::OUT_OF_MEMORY);
            return Err(CallError::Driver { call, error });
        }
        // SAFETY: the driver has just allocated `bytes` bytes there, for this process alone.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Held(Self {
            stream: Arc::clone(stream),
            address,
            bytes,
            flight: Flight::None,
        }))
    }

    /// Its bytes, to be written. Waits for nothing: the caller has seen to `flight`.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        if self.address.is_null() {
            return &mut [];
        }
        // SAFETY: so many bytes are allocated there until `release`, initialised by `new`, and
        // borrowed with `self`. Copies that are queued only read them.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Parts for Pinned {
    fn take(&mut self) -> Self {
        Self {
            stream: Arc::clone(&self.stream),
            address: std::mem::replace(&mut self.address, ptr::null_mut()),
            bytes: self.bytes,
            flight: self.flight,
        }
    }
}

impl Release for Pinned {
    fn release(&mut self) -> Result<(), CallError> {
        if self.address.is_null() {
            return Ok(());
        }
        if self.flight != Flight::None {
            self.stream.synchronize()?;
            self.flight = Flight::None;
        }
        let entered = self.stream.context().enter()?;
        // SAFETY: allocated by `new` and freed once; what read it was waited for.
        let code = unsafe { (entered.table().host_free)(self.address.cast()) };
        CallError::check("cuMemFreeHost", code)?;
        self.address = ptr::null_mut();
        Ok(())
    }
}

/// Memory of the host, registered so that devices copy from it by themselves.
///
/// It keeps its owner, and is read and never written: a read-only mapping of a sealed memfd will
/// do. The registration ends, and then the owner drops, when the last clone is gone and no
/// [`Upload`](crate::Upload) copies from it any more; if the driver refuses, both are kept and
/// tried again by [`release_deferred`](crate::release_deferred). When it refuses because the device
/// is lost, the owner drops.
pub struct Registered<M: AsRef<[u8]> + Send + Sync + 'static>(Arc<Held<Registration<M>>>);

struct Registration<M> {
    context: Context,
    /// Boxed so that bytes within `M` itself stay where they are. Gone only from what was taken.
    owner: Option<Box<M>>,
    /// Of the caller's bytes.
    from: *const u8,
    bytes: usize,
    /// The first page. Null when nothing is registered.
    page: *mut c_void,
}

// SAFETY: `M` may be sent, and the pointers are into memory that it owns, which is only read.
unsafe impl<M: Send> Send for Registration<M> {}
// SAFETY: as above; nothing is reached through a shared reference but what `M` gives.
unsafe impl<M: Sync> Sync for Registration<M> {}

impl<M: AsRef<[u8]> + Send + Sync + 'static> Registered<M> {
    /// Registers the bytes of `owner`, rounded to whole pages, for every device.
    ///
    /// # Errors
    /// When the device cannot ([`DeviceInfo::read_only_register`](crate::DeviceInfo)), in which
    /// case no call is made, or the driver refuses. Nothing is left behind, and `owner` drops.
    pub fn new(context: &Context, owner: M) -> Result<Self, RegisterError> {
        let device = context.device().uuid;
        if !context.device().read_only_register {
            return Err(RegisterError::Unsupported { device });
        }
        let owner = Box::new(owner);
        let slice: &[u8] = (*owner).as_ref();
        let (from, bytes) = (slice.as_ptr(), slice.len());
        if bytes == 0 {
            return Err(RegisterError::Empty);
        }
        let mut held = Held(Registration {
            context: context.clone(),
            owner: Some(owner),
            from,
            bytes,
            page: ptr::null_mut(),
        });
        held.0.register().map_err(|source| RegisterError::Call {
            device,
            bytes: bytes as u64,
            source,
        })?;
        Ok(Self(Arc::new(held)))
    }

    /// How many bytes are registered.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.0.bytes as u64
    }

    /// Where the bytes are. They stay there, and the same, as long as what [`Registered::keep`]
    /// returns.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.0.from
    }

    /// Keeps the registration.
    pub(crate) fn keep(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        Arc::clone(&self.0) as Arc<dyn std::any::Any + Send + Sync>
    }
}

impl<M: AsRef<[u8]> + Send + Sync + 'static> Clone for Registered<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: AsRef<[u8]> + Send + Sync + 'static> fmt::Debug for Registered<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("device", &self.0.0.context.device().uuid)
            .field("bytes", &self.0.0.bytes)
            .finish_non_exhaustive()
    }
}

impl<M> Registration<M> {
    fn register(&mut self) -> Result<(), CallError> {
        let page_bytes = rustix::param::page_size();
        let before = self.from.addr() % page_bytes;
        let bytes = (before + self.bytes).next_multiple_of(page_bytes);
        let page: *mut c_void = self.from.wrapping_sub(before).cast_mut().cast();
        let entered = self.context.enter()?;
        let register = entered.table().host_register;
        // SAFETY: the pages hold the owner's bytes, so they are mapped, and stay so: the owner is
        // kept until they are unregistered. The driver only reads them, as the flag says.
        let code = unsafe { register(page, bytes, PORTABLE | READ_ONLY) };
        CallError::check("cuMemHostRegister_v2", code)?;
        self.page = page;
        Ok(())
    }

    fn unregister(&self) -> Result<(), CallError> {
        let entered = self.context.enter()?;
        // SAFETY: registered once, by `register`. No copy reads it: whoever queues one keeps the
        // registration until the copy was waited for.
        let code = unsafe { (entered.table().host_unregister)(self.page) };
        CallError::check("cuMemHostUnregister", code)
    }
}

impl<M: Send + Sync + 'static> Parts for Registration<M> {
    fn take(&mut self) -> Self {
        Self {
            context: self.context.clone(),
            owner: self.owner.take(),
            from: self.from,
            bytes: self.bytes,
            page: std::mem::replace(&mut self.page, ptr::null_mut()),
        }
    }
}

impl<M: Send + Sync> Release for Registration<M> {
    fn release(&mut self) -> Result<(), CallError> {
        if !self.page.is_null() {
            match self.unregister() {
                // The driver does no more for this process: to wait for it would keep the owner
                // for ever. What the driver itself holds of the pages goes with the process.
                Err(error) if error.cuda().is_some_and(CudaError::device_lost) => {}
                done => done?,
            }
            self.page = ptr::null_mut();
        }
        self.owner = None;
        Ok(())
    }
}

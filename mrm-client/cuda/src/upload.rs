//! Filling an allocation by copies that run beside the caller.
//!
//! ```no_run
//! use mrm_cuda::{Context, Mechanism, Ring, Upload, probe};
//! use std::io::Read;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let driver = probe()?;
//! let context = Context::retain(driver, driver.devices()?[0].uuid)?;
//! let mut ring = Ring::new(&context, 16 << 20, 3)?;
//!
//! let mut file = std::fs::File::open("model.bin")?;
//! let bytes = file.metadata()?.len();
//! let mut upload = Upload::new(&mut ring, Mechanism::Vmm.sharing().allocate(&context, bytes)?)?;
//! let mut at = 0;
//! while at < bytes {
//!     let len = upload.slot_bytes().min(bytes - at);
//!     // Reads this part while the device copies those before it.
//!     upload.stage(at, len, |slot| file.read_exact(slot))?;
//!     at += len;
//! }
//! let weights = upload.finish()?;
//! println!("{} bytes at {:#x}", weights.bytes(), weights.pointer());
//! # Ok(())
//! # }
//! ```
//!
//! Bytes come through the slots of a [`Ring`], out of host memory that is [`Registered`], or from
//! another device; one upload may mix them:
//!
//! ```no_run
//! # use mrm_cuda::{Context, Registered, Sealed, Upload};
//! # use std::sync::Arc;
//! # fn example(
//! #     mut upload: Upload<'_>, context: &Context, elsewhere: &Arc<Sealed>, mapped: Vec<u8>,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let segment = Registered::new(context, mapped)?; // once; all devices copy from it
//! upload.from_registered(0, &segment, 0..4096)?;
//! upload.from_peer(4096, elsewhere, 4096..8192)?;
//! let weights = upload.finish()?;
//! # Ok(())
//! # }
//! ```
//!
//! Several allocations are filled one after the other without a pause by [`Upload::end`]:
//!
//! ```no_run
//! # use mrm_cuda::{Allocation, Ring, Sealed, ShareError, Upload};
//! # fn example(ring: &mut Ring, rooms: Vec<Allocation>) -> Result<Vec<Sealed>, Box<dyn std::error::Error>> {
//! let mut endings = Vec::new();
//! for room in rooms {
//!     let mut upload = Upload::new(ring, room)?;
//!     upload.stage(0, 1, |slot| Ok::<(), ShareError>(slot.fill(7)))?;
//!     endings.push(upload.end()?);
//! }
//! let sealed: Result<Vec<_>, _> = endings.into_iter().map(|ending| ending.seal()).collect();
//! # Ok(sealed?)
//! # }
//! ```
//!
//! What is copied twice, or not at all, is the caller's to know: nothing counts it.
//!
//! What copies read is kept until they were waited for, and what they write is not freed before.
//! Where waiting fails, because the device is lost or the driver refuses, both are kept and tried
//! again by [`release_deferred`](crate::release_deferred).
//!
//! This is one of the files with unsafe code.

use crate::deferred::{Held, Parts, Release};
use crate::error::{CallError, ShareError, UploadError};
use crate::share::{Allocation, Sealed, call_failed, check};
use crate::stream::{Room, Stream};
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

pub use crate::pinned::Registered;
pub use crate::ring::Ring;

/// An allocation that is being filled. Dropped before it is finished, it waits for what was
/// started, and frees the allocation.
pub struct Upload<'r> {
    ring: &'r mut Ring,
    pending: Held<Pending>,
}

/// An allocation to which all copies were started. Dropped before it is sealed, it waits for them,
/// and frees the allocation.
#[must_use = "dropping it frees the allocation"]
pub struct Ending(Held<Pending>);

/// What copies write and read, kept until they were waited for.
struct Pending {
    stream: Arc<Stream>,
    allocation: Option<Allocation>,
    sources: Vec<Arc<dyn Any + Send + Sync>>,
    /// Whether something may be queued on the stream.
    queued: bool,
}

impl<'r> Upload<'r> {
    /// Begins to fill `into` through `ring`, which must be of the same device. Calls no driver.
    ///
    /// # Errors
    /// [`ShareError::OtherDevice`]; `into` is freed then.
    pub fn new(ring: &'r mut Ring, into: Allocation) -> Result<Self, ShareError> {
        let (memory, device) = (into.context().device().uuid, ring.context().device().uuid);
        if memory != device {
            let ring = device;
            return Err(ShareError::OtherDevice { memory, ring });
        }
        let pending = Held(Pending {
            stream: Arc::clone(ring.stream()),
            allocation: Some(into),
            sources: Vec::new(),
            queued: false,
        });
        Ok(Self { ring, pending })
    }

    /// The most that [`Upload::stage`] takes at a time.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.ring.slot_bytes()
    }

    /// Whether [`Upload::stage`] would have its slot without waiting.
    ///
    /// # Errors
    /// When earlier work failed, or the driver refuses.
    pub fn is_ready(&self) -> Result<bool, ShareError> {
        let failed = |source| call_failed(self.ring.context(), "copy to memory", source);
        self.ring.is_ready().map_err(failed)
    }

    /// Waits until the next slot of the ring is free, has `fill` write its first `len_bytes` bytes,
    /// and starts to copy them to `offset_bytes`. `fill` finds there what was copied before.
    ///
    /// # Errors
    /// When `fill` fails, or the range is outside the allocation or longer than a slot, nothing is
    /// started. When the driver refuses, or earlier work failed, the copy may have been started.
    pub fn stage<E>(
        &mut self,
        offset_bytes: u64,
        len_bytes: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), UploadError<E>> {
        let context = self.ring.context().clone();
        let failed = |source| call_failed(&context, "copy to memory", source);
        let slot_bytes = self.ring.slot_bytes();
        let mut room = self.pending.0.room(offset_bytes, len_bytes, None)?;
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let (slot, stream) = self.ring.wait_next().map_err(failed)?;
        let Some(bytes) = slot.bytes_mut().get_mut(..len) else {
            return Err(UploadError::TooLong {
                len_bytes,
                slot_bytes,
            });
        };
        fill(bytes).map_err(UploadError::Fill)?;
        if len == 0 {
            return Ok(());
        }
        let copy = |from| {
            // SAFETY: `from` is the slot, of at least `len` bytes, which is neither written nor
            // freed before the copy was waited for (`Slot::launch`). The allocation is in
            // `pending`, which waits for the stream before it seals or frees it.
            unsafe { stream.copy_in_async(&mut room, from, len) }
        };
        slot.launch(stream, copy).map_err(failed)?;
        self.ring.turn();
        Ok(())
    }

    /// Starts to copy `range` of `from` to `offset_bytes`.
    ///
    /// # Errors
    /// When either range is outside, nothing is started. When the driver refuses, or earlier work
    /// failed, the copy may have been started.
    pub fn from_registered<M: AsRef<[u8]> + Send + Sync + 'static>(
        &mut self,
        offset_bytes: u64,
        from: &Registered<M>,
        range: Range<u64>,
    ) -> Result<(), ShareError> {
        let (address, len_bytes) = (from.as_ptr().addr() as u64, len_of(&range));
        let (start, len) = check(address, from.bytes(), range.start, len_bytes)?;
        let from_start = from.as_ptr().with_addr(usize::try_from(start).unwrap_or(0));
        let context = self.ring.context().clone();
        let failed = |source| call_failed(&context, "copy to memory", source);
        let mut room = self.pending.0.room(offset_bytes, len_bytes, from.keep())?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: `start` and `len` are within the owner's bytes, which are mapped, readable and
        // unchanging while the registration is kept. That and the allocation are in `pending`,
        // which waits for the stream before it lets go of either.
        unsafe { self.ring.stream().copy_in_async(&mut room, from_start, len) }.map_err(failed)
    }

    /// Starts to copy `range` of `from`, which may be on another device, to `offset_bytes`:
    /// directly where [`Context::can_access`](crate::Context::can_access), else through the host.
    ///
    /// # Errors
    /// When either range is outside, nothing is started. When the driver refuses, or earlier work
    /// failed, the copy may have been started.
    pub fn from_peer(
        &mut self,
        offset_bytes: u64,
        from: &Arc<Sealed>,
        range: Range<u64>,
    ) -> Result<(), ShareError> {
        let len_bytes = len_of(&range);
        let view = from.view(range.start, len_bytes)?;
        let context = self.ring.context().clone();
        let failed = |source| call_failed(&context, "copy between devices", source);
        let source = Arc::clone(from) as Arc<dyn Any + Send + Sync>;
        let mut room = self.pending.0.room(offset_bytes, len_bytes, source)?;
        if len_bytes == 0 {
            return Ok(());
        }
        let stream = self.ring.stream();
        // SAFETY: both owners are in `pending`, which waits for the stream before it lets go of
        // either; nobody writes to sealed memory.
        unsafe { stream.copy_across_async(&mut room, view, from.context()) }.map_err(failed)
    }

    /// Waits for all copies, and seals as [`Allocation::seal`] does: what is behind the last byte
    /// is zeroed.
    ///
    /// # Errors
    /// When a copy failed, or the driver refuses; the allocation is freed then.
    pub fn finish(self) -> Result<Sealed, ShareError> {
        self.end()?.seal()
    }

    /// Starts what is left to be done, and lets the ring go: the next upload goes on while the
    /// device still copies for this one.
    ///
    /// # Errors
    /// When the driver refuses, or earlier work failed; the allocation is freed then.
    pub fn end(self) -> Result<Ending, ShareError> {
        let Self { ring, mut pending } = self;
        pending.0.queued = true;
        // There is one: only `take` and `Ending::seal`, which are the last, move it out.
        let allocation = pending.0.allocation.as_mut().ok_or(ShareError::Empty)?;
        allocation.zero_rest(ring.stream())?;
        Ok(Ending(pending))
    }
}

impl Ending {
    /// Waits for all that was started through the ring, be it for later uploads, and seals. So seal
    /// when the last upload has ended.
    ///
    /// # Errors
    /// As [`Upload::finish`].
    pub fn seal(self) -> Result<Sealed, ShareError> {
        let Self(mut pending) = self;
        let context = pending.0.stream.context().clone();
        let failed = |source| call_failed(&context, "seal memory", source);
        pending.0.wait().map_err(failed)?;
        let allocation = pending.0.allocation.take().ok_or(ShareError::Empty)?;
        allocation.freeze()
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending")
            .field("allocation", &self.0.0.allocation)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Upload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("ring", &self.ring)
            .field("allocation", &self.pending.0.allocation)
            .finish_non_exhaustive()
    }
}

impl Pending {
    /// A range to which a copy is about to be queued that reads `source`, which is kept. The
    /// staging buffers keep themselves.
    fn room(
        &mut self,
        offset_bytes: u64,
        len_bytes: u64,
        source: impl Into<Option<Arc<dyn Any + Send + Sync>>>,
    ) -> Result<Room<'_>, ShareError> {
        let allocation = self.allocation.as_mut().ok_or(ShareError::Empty)?;
        let room = allocation.room(offset_bytes, len_bytes)?;
        self.queued = true;
        if let Some(source) = source.into()
            && !self.sources.iter().any(|kept| Arc::ptr_eq(kept, &source))
        {
            self.sources.push(source);
        }
        Ok(room)
    }

    fn wait(&mut self) -> Result<(), CallError> {
        if self.queued {
            self.stream.synchronize()?;
            self.queued = false;
        }
        self.sources.clear();
        Ok(())
    }
}

/// More than anything has when the range ends before it begins.
fn len_of(range: &Range<u64>) -> u64 {
    range.end.checked_sub(range.start).unwrap_or(u64::MAX)
}

impl Parts for Pending {
    fn take(&mut self) -> Self {
        Self {
            stream: Arc::clone(&self.stream),
            allocation: self.allocation.take(),
            sources: std::mem::take(&mut self.sources),
            queued: std::mem::take(&mut self.queued),
        }
    }
}

impl Release for Pending {
    fn release(&mut self) -> Result<(), CallError> {
        self.wait()?;
        if let Some(allocation) = &mut self.allocation {
            allocation.release()?;
        }
        self.allocation = None;
        Ok(())
    }
}

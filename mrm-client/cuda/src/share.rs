//! Lending an allocation of one process to others: two mechanisms behind one trait.
//!
//! ```no_run
//! use mrm_cuda::{Context, Export, Mechanism, probe};
//!
//! # fn receive() -> Result<(mrm_cuda::DeviceUuid, std::os::fd::OwnedFd, u64), std::io::Error> { Err(std::io::Error::other("an example")) }
//! // An importer: the device's UUID, the descriptor and the size came over a Unix socket.
//! let (device, fd, bytes) = receive()?;
//! let context = Context::retain(probe()?, device)?;
//! let mapping = Mechanism::Vmm.sharing().import(&context, Export::Vmm(fd), bytes)?;
//! println!("{} bytes at {:#x}", mapping.bytes(), mapping.pointer());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | | VMM | legacy |
//! |---|---|---|
//! | travels as | a file descriptor, by `SCM_RIGHTS` | 64 bytes |
//! | importers may write | no (a guard against accidents: an importer can change its own mapping) | yes |
//! | exporter dies | importers keep the bytes | the memory is gone |
//! | importing in the exporting process | works | fails |
//!
//! Both hand out whole blocks of their own. What is behind the last byte is zeroed by
//! [`Allocation::seal`].

use crate::context::Context;
use crate::deferred::Release;
use crate::error::{CallError, ShareError};
use crate::stream::Stream;
use crate::{legacy, vmm};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use thiserror::Error;

pub use crate::mapping::{Mapping, NotClosed};
pub use crate::stream::{Room, View};

/// A way to share memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// Virtual memory management, exported as file descriptors. The default.
    Vmm,
    /// Inter-process handles of 64 bytes.
    Legacy,
}

impl Mechanism {
    /// What does it.
    #[must_use]
    pub fn sharing(self) -> &'static dyn Sharing {
        match self {
            Self::Vmm => &vmm::Vmm,
            Self::Legacy => &legacy::Legacy,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "vmm",
            Self::Legacy => "legacy",
        })
    }
}

/// What travels from the exporter to an importer, with the device's UUID and the size.
#[derive(Debug)]
pub enum Export {
    /// A descriptor, which keeps the memory as long as it is open anywhere.
    Vmm(OwnedFd),
    /// A handle, which keeps nothing.
    Legacy([u8; 64]),
}

/// What an allocation is exported by: as [`Export`], but the descriptor is the one that the
/// allocation itself has. Made once; to look at it calls no driver and takes no descriptor.
#[derive(Debug, Clone)]
pub enum Exported {
    /// A descriptor, which keeps the memory as long as it is open anywhere.
    Fd(Arc<OwnedFd>),
    /// A handle, which keeps nothing.
    Handle([u8; 64]),
}

/// One mechanism. What fails has left nothing allocated or mapped; what the driver would not take
/// back at once is tried again by [`crate::release_deferred`].
pub trait Sharing: fmt::Debug + Send + Sync {
    /// Which one it is.
    fn mechanism(&self) -> Mechanism;

    /// What allocations are rounded up to on this device.
    ///
    /// # Errors
    /// When the driver refuses.
    fn granularity_bytes(&self, context: &Context) -> Result<u64, ShareError>;

    /// Allocates memory for `bytes` bytes, of undefined content.
    ///
    /// # Errors
    /// [`ShareError::OutOfMemory`] when the device has no room, and when the driver refuses.
    fn allocate(&self, context: &Context, bytes: u64) -> Result<Allocation, ShareError>;

    /// Maps what another process exported: `bytes` bytes, as the exporter said.
    ///
    /// # Errors
    /// [`ShareError::SizeMismatch`] when less is there, and when the driver refuses.
    fn import(&self, context: &Context, export: Export, bytes: u64) -> Result<Mapping, ShareError>;

    /// Takes over what a process exported that may be gone: the descriptor keeps the memory when
    /// its exporter dies. What comes back is as good as an allocation of this process: it can be
    /// exported again, by this descriptor, copied from and freed. `bytes` is what the exporter's
    /// [`Sealed::bytes`] was; that all of the block is on the device of `context` is for the caller
    /// to know.
    ///
    /// # Errors
    /// [`ShareError::Gone`] with legacy handles, whose memory ends with its exporter;
    /// [`ShareError::SizeMismatch`] when less is there; and when the driver refuses. The descriptor
    /// is closed then.
    fn reclaim(&self, context: &Context, export: Export, bytes: u64) -> Result<Sealed, ShareError>;

    /// Maps several, in their order, or none of them: when one fails, those before it are closed.
    ///
    /// # Errors
    /// As [`Sharing::import`], of the first that fails.
    fn import_all(
        &self,
        context: &Context,
        exports: Vec<(Export, u64)>,
    ) -> Result<Vec<Mapping>, ShareError> {
        exports
            .into_iter()
            .map(|(export, bytes)| self.import(context, export, bytes))
            .collect()
    }
}

/// The exporter's side of a mechanism.
pub(crate) trait Block: Release {
    /// Takes away write access, where the mechanism can.
    fn seal(&mut self) -> Result<(), CallError>;
    fn exported(&self) -> &Exported;
}

/// Memory of this process on a device, being filled. Freed when it drops.
pub struct Allocation(Owned);

/// Memory of this process on a device, filled and for lending. Freed when it drops.
pub struct Sealed(Owned);

struct Owned {
    context: Context,
    block: Box<dyn Block>,
    pointer: u64,
    bytes: u64,
    block_bytes: u64,
}

impl Owned {
    fn check(&self, offset_bytes: u64, len_bytes: u64) -> Result<(u64, usize), ShareError> {
        check(self.pointer, self.bytes, offset_bytes, len_bytes)
    }

    fn failed(&self, doing: &'static str) -> impl Fn(CallError) -> ShareError + use<> {
        let context = self.context.clone();
        move |source| call_failed(&context, doing, source)
    }
}

impl Allocation {
    pub(crate) fn new(
        context: &Context,
        block: Box<dyn Block>,
        pointer: u64,
        bytes: u64,
        block_bytes: u64,
    ) -> Self {
        Self(Owned {
            context: context.clone(),
            block,
            pointer,
            bytes,
            block_bytes,
        })
    }

    /// What it takes on the device: its bytes, rounded up.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.0.block_bytes
    }

    /// A range to be written, by [`Stream::copy_in`] or [`Stream::copy_in_async`].
    ///
    /// # Errors
    /// When the range is not within the allocation.
    pub fn room(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<Room<'_>, ShareError> {
        let (pointer, bytes) = self.0.check(offset_bytes, len_bytes)?;
        Ok(Room::within(self, pointer, bytes))
    }

    /// Copies `from` to `offset_bytes`, and waits until it is there.
    ///
    /// # Errors
    /// When it does not fit, or the driver refuses.
    pub fn copy_in(
        &mut self,
        offset_bytes: u64,
        from: &[u8],
        stream: &Stream,
    ) -> Result<(), ShareError> {
        let failed = self.0.failed("copy to memory");
        stream
            .copy_in(&mut self.room(offset_bytes, from.len() as u64)?, from)
            .map_err(failed)
    }

    /// Waits for the stream, zeroes what is behind the last byte, and takes away write access
    /// where the mechanism can.
    ///
    /// # Errors
    /// When the driver refuses; the allocation is freed then.
    pub fn seal(self, stream: &Stream) -> Result<Sealed, ShareError> {
        let mut this = self;
        this.zero_rest(stream)?;
        let failed = this.0.failed("seal memory");
        stream.synchronize().map_err(failed)?;
        this.freeze()
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Queues the zeroing of what is behind the last byte. The stream is to be waited for before
    /// this is frozen or dropped.
    pub(crate) fn zero_rest(&mut self, stream: &Stream) -> Result<(), ShareError> {
        let owned = &mut self.0;
        let rest_bytes = usize::try_from(owned.block_bytes - owned.bytes).unwrap_or(0);
        if rest_bytes == 0 {
            return Ok(());
        }
        // It may hold what was here before, and importers map whole blocks.
        let failed = owned.failed("seal memory");
        let behind = owned.pointer + owned.bytes;
        let mut room = Room::within(owned, behind, rest_bytes);
        stream.zero(&mut room).map_err(failed)
    }

    /// Takes away write access, where the mechanism can. No work may be queued on it any more.
    pub(crate) fn freeze(mut self) -> Result<Sealed, ShareError> {
        let failed = self.0.failed("seal memory");
        self.0.block.seal().map_err(failed)?;
        Ok(Sealed(self.0))
    }
}

impl Release for Allocation {
    fn release(&mut self) -> Result<(), CallError> {
        self.0.block.release()
    }
}

impl Sealed {
    /// A block that nobody can write to any more.
    pub(crate) fn new(
        context: &Context,
        block: Box<dyn Block>,
        pointer: u64,
        bytes: u64,
        block_bytes: u64,
    ) -> Self {
        Self(Allocation::new(context, block, pointer, bytes, block_bytes).0)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.0.context
    }

    /// Its address on the device, in this process.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.0.pointer
    }

    /// Its size as asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// What it takes on the device: its bytes, rounded up.
    #[must_use]
    pub fn charged_bytes(&self) -> u64 {
        self.0.block_bytes
    }

    /// What an importer needs, beside the device's UUID and [`Sealed::bytes`]. Calls no driver.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn export(&self) -> Result<Export, ShareError> {
        Ok(match self.exported() {
            Exported::Fd(fd) => {
                Export::Vmm(rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(ShareError::Descriptor)?)
            }
            Exported::Handle(handle) => Export::Legacy(*handle),
        })
    }

    /// What [`Sealed::export`] copies. Whoever keeps the descriptor keeps the memory.
    #[must_use]
    pub fn exported(&self) -> &Exported {
        self.0.block.exported()
    }

    /// A range to be read, by [`Stream::copy_out`].
    ///
    /// # Errors
    /// When the range is not within the allocation.
    pub fn view(&self, offset_bytes: u64, len_bytes: u64) -> Result<View<'_>, ShareError> {
        let (pointer, bytes) = self.0.check(offset_bytes, len_bytes)?;
        Ok(View::within(self, pointer, bytes))
    }

    /// Frees it, and says whether that worked. With VMM the device has the room again when the
    /// last importer has closed too, and the last copy of the descriptor. With legacy handles
    /// every importer must have closed before: freeing under one is undefined in the driver.
    ///
    /// # Errors
    /// When the driver refuses. Dropping what comes back leaves it to [`crate::release_deferred`].
    pub fn free(mut self) -> Result<(), NotFreed> {
        self.0.block.release().map_err(|source| NotFreed {
            sealed: Box::new(self),
            source,
        })
    }
}

/// Memory that the driver did not take back. It is not to be lent any more.
#[derive(Debug, Error)]
#[error("cannot free memory of the device: {source}; it is tried again")]
pub struct NotFreed {
    /// What was not freed, for another try.
    pub sealed: Box<Sealed>,
    /// The call that failed.
    pub source: CallError,
}

impl fmt::Debug for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("Allocation", f)
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("Sealed", f)
    }
}

impl Owned {
    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("device", &self.context.device().uuid)
            .field("pointer", &format_args!("{:#x}", self.pointer))
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

pub(crate) fn call_failed(context: &Context, doing: &'static str, source: CallError) -> ShareError {
    ShareError::Call {
        doing,
        device: context.device().uuid,
        source,
    }
}

/// `bytes` rounded up; an error when there are none, or more than any device can have.
pub(crate) fn padded(
    context: &Context,
    bytes: u64,
    granularity_bytes: u64,
) -> Result<usize, ShareError> {
    if bytes == 0 {
        return Err(ShareError::Empty);
    }
    let padded = bytes.checked_next_multiple_of(granularity_bytes);
    padded
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| ShareError::OutOfMemory {
            device: context.device().uuid,
            requested_bytes: bytes,
            free_bytes: context.memory().ok().map(|memory| memory.free_bytes),
        })
}

/// Address and length of a range within `bytes` bytes at `pointer`.
pub(crate) fn check(
    pointer: u64,
    bytes: u64,
    offset_bytes: u64,
    len_bytes: u64,
) -> Result<(u64, usize), ShareError> {
    let outside = ShareError::OutOfRange {
        offset_bytes,
        len_bytes,
        bytes,
    };
    let end = offset_bytes.checked_add(len_bytes);
    if end.is_none_or(|end| end > bytes) {
        return Err(outside);
    }
    let len = usize::try_from(len_bytes).map_err(|_| outside)?;
    Ok((pointer + offset_bytes, len))
}

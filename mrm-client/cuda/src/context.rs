//! The primary context of a device: retained while needed, current only within a call.
//!
//! This is one of the files with unsafe code.

use crate::device::{DeviceInfo, DeviceUuid};
use crate::driver::Table;
use crate::error::{CallError, CudaError, DeviceError};
use crate::probe::Driver;
use cudarc::driver::sys::{CUcontext, CUdevice, CUstream};
use std::fmt;
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, OnceLock};

/// A hold on the primary context of a device, the one that every library of a process shares.
///
/// Cloning is cheap. The hold is given back when the last clone, and the last memory or stream
/// made with it, is gone. The first hold of a process takes some of the device's memory.
///
/// ```no_run
/// use mrm_cuda::{Context, probe};
///
/// let driver = probe()?;
/// for device in driver.devices()? {
///     let memory = Context::retain(driver, device.uuid)?.memory()?;
///     println!("{}: {} of {} bytes free", device.uuid, memory.free_bytes, memory.total_bytes);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Context(Arc<Retained>);

struct Retained {
    driver: Driver,
    device: DeviceInfo,
    number: CUdevice,
    raw: CUcontext,
    /// What VMM allocations are rounded up to; asked for once, for it is on the way to each import.
    vmm_granularity_bytes: OnceLock<u64>,
}

// SAFETY: a context is a token that the driver lets any thread make current; it has no state here.
unsafe impl Send for Retained {}
// SAFETY: as above: it is only read.
unsafe impl Sync for Retained {}

/// Memory of a device, as its driver reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What can still be allocated.
    pub free_bytes: u64,
    /// What there is.
    pub total_bytes: u64,
}

impl Context {
    /// Retains the primary context of the device with this UUID.
    ///
    /// # Errors
    /// When the device is not visible to this process, or the driver refuses.
    pub fn retain(driver: Driver, uuid: DeviceUuid) -> Result<Self, DeviceError> {
        let device = driver.device(uuid)?;
        let ordinal = i32::try_from(device.ordinal).unwrap_or(i32::MAX);
        let number = driver.table().device(ordinal)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the driver writes one pointer to `raw`, and `number` is a device of its own.
        let code = unsafe { (driver.table().context_retain)(&raw mut raw, number) };
        CallError::check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Self(Arc::new(Retained {
            driver,
            device,
            number,
            raw,
            vmm_granularity_bytes: OnceLock::new(),
        })))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &DeviceInfo {
        &self.0.device
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.0.driver
    }

    /// What the driver reports of the device's memory.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory(&self) -> Result<MemoryInfo, CallError> {
        let (mut free, mut total) = (0, 0);
        let entered = self.enter()?;
        // SAFETY: the context is current, and the driver writes one integer to each place.
        let code = unsafe { (entered.table().mem_info)(&raw mut free, &raw mut total) };
        CallError::check("cuMemGetInfo_v2", code)?;
        Ok(MemoryInfo {
            free_bytes: free as u64,
            total_bytes: total as u64,
        })
    }

    /// Whether this device reads memory of `other`'s device directly, over NVLink or PCIe. Without
    /// it a copy between them goes through the host. A device is no peer of itself: the answer is
    /// no, and the driver is not asked.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn can_access(&self, other: &Self) -> Result<bool, DeviceError> {
        let driver = self.0.driver;
        driver.usable()?;
        if self.number() == other.number() {
            return Ok(false);
        }
        Ok(driver
            .table()
            .can_access_peer(self.number(), other.number())?)
    }

    /// Waits until all work that this process queued on the device is done.
    ///
    /// # Errors
    /// When work failed, or a stream is being captured.
    pub fn synchronize(&self) -> Result<(), CallError> {
        let entered = self.enter()?;
        // SAFETY: takes nothing; the context is current.
        CallError::check("cuCtxSynchronize", unsafe {
            (entered.table().context_synchronize)()
        })
    }

    pub(crate) fn vmm_granularity_bytes(&self) -> &OnceLock<u64> {
        &self.0.vmm_granularity_bytes
    }

    pub(crate) fn number(&self) -> CUdevice {
        self.0.number
    }

    /// Valid as long as `self`.
    pub(crate) fn raw(&self) -> CUcontext {
        self.0.raw
    }

    /// Makes the context current on this thread until the guard drops.
    pub(crate) fn enter(&self) -> Result<Entered<'_>, CallError> {
        self.0.driver.usable()?;
        let table = self.0.driver.table();
        // SAFETY: the context is retained by `self`, which the guard borrows.
        CallError::check("cuCtxPushCurrent_v2", unsafe {
            (table.context_push)(self.0.raw)
        })?;
        Ok(Entered {
            table,
            context: PhantomData,
            thread: PhantomData,
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("device", &self.0.device)
            .finish_non_exhaustive()
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        if self.driver.usable().is_ok() {
            // SAFETY: given back once for the one retain of `Context::retain`. An error leaves
            // nothing to be done: the process's end releases it.
            let _ = unsafe { (self.driver.table().context_release)(self.number) };
        }
    }
}

/// Proof that a context is current on this thread. What was current before is so again when this
/// drops.
pub(crate) struct Entered<'a> {
    table: &'static Table,
    context: PhantomData<&'a Context>,
    /// Current contexts are a thread's own: the guard must not leave it.
    thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    pub(crate) fn table(&self) -> &'static Table {
        self.table
    }

    /// Waits for all queued work of the context, unless a stream is being captured: that is an
    /// error that [`CudaError::is_capture`] is true of.
    ///
    /// The default stream is asked first, which does not disturb a capture, whereas waiting
    /// spoils it. It tells of captures on blocking streams only.
    pub(crate) fn settle(&self) -> Result<(), CallError> {
        self.refuse_capturing(ptr::null_mut())?;
        // SAFETY: takes nothing; the context is current.
        CallError::check("cuCtxSynchronize", unsafe {
            (self.table.context_synchronize)()
        })
    }

    /// Fails if `stream`, which must be a stream of this context or null, is being captured.
    pub(crate) fn refuse_capturing(&self, stream: CUstream) -> Result<(), CallError> {
        let mut status = 0;
        // SAFETY: the driver writes one integer to `status`; the stream is of this context and
        // alive, by the contract of `RawStream::new`, or is the default stream.
        let code = unsafe { (self.table.stream_is_capturing)(stream, &raw mut status) };
        CallError::check("cuStreamIsCapturing", code)?;
        let capturing = if status == 0 {
            0
        } else {
            CudaError::STREAM_CAPTURE_IMPLICIT.code()
        };
        CallError::check("cuStreamIsCapturing", capturing)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: pops what `enter` pushed: guards are dropped in reverse order of their making,
        // on one thread, and nothing else here pushes.
        let _ = unsafe { (self.table.context_pop)(&raw mut popped) };
    }
}

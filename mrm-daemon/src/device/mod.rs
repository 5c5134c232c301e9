//! The device tier's backend: weights in the memory of CUDA devices, filled here and lent.
//!
//! [`start`] finds the devices and proves, with a child process, that their memory can be shared. A
//! [`Device`] then fills allocations on threads of its own, from host memory (also while that is
//! still being loaded), from files, or from another device; each ends in exactly one
//! [`Completion`].
//!
//! ```no_run
//! use mrm_daemon::degraded::Degraded;
//! use mrm_daemon::device::{DeviceSettings, Feed, FillOrder, SelfTest, Started, start};
//! use mrm_daemon::transfer::Completion;
//! use std::sync::{Arc, atomic::{AtomicBool, AtomicU64}, mpsc};
//!
//! # fn table_and_feeds() -> (Arc<[u8]>, Vec<Arc<mrm_daemon::device::feed::HostFeed>>, u64) { unreachable!() }
//! let settings = DeviceSettings::default();
//! let devices = match start(&settings, &[], &SelfTest::of_this_program(), &Degraded::new()) {
//!     Started::NoDriver(no) => return Ok(println!("no device tier: {}; {}", no.cause, no.cure)),
//!     Started::Driver(found) => found.devices,
//! };
//! let (table, feeds, charge_bytes) = table_and_feeds();
//! let (events, inbox) = mpsc::channel();
//! devices[0].device.fill_async(
//!     FillOrder {
//!         table,
//!         granularity: mrm_proto::layout::Granularity::Model,
//!         charge_bytes,
//!         feed: Feed::Host(feeds),
//!         foreign: false,
//!         progress: Arc::new(AtomicU64::new(0)),
//!         cancel: Arc::new(AtomicBool::new(false)),
//!     },
//!     Completion::new(move |outcome| drop(events.send(outcome))),
//! );
//! let image = inbox.recv()???;
//! println!("{} bytes, lent as {:?}", image.charged_bytes(), image.exports());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod check;
mod error;
pub mod feed;
mod fill;
mod image;
mod plan;
mod probe;
mod reclaim;
pub mod self_test;
mod settings;
mod shared;
mod supply;

pub use error::FillError;
pub use feed::{FeedError, FeedWriter, HostFeed};
pub use fill::{Feed, FileFeed, FillOrder};
pub use image::{DeviceImage, Exported, FreeError, charge_for};
pub use probe::{DeviceReport, Found, NoDriver, Refused, Started, Usable, start};
pub use reclaim::ReclaimOrder;
pub use self_test::SelfTest;
pub use settings::{DeviceSettings, Register};

use self::shared::Shared;
use crate::degraded::Degraded;
use crate::transfer::{Completion, Hung, LanesError, Threads};
use mrm_cuda::{CallError, Context, DeviceUuid, Mechanism, MemoryInfo, ShareError};
use mrm_proto::layout::Layout;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// How many fills or frees may wait for a device.
const WAITING_MAX: usize = 4096;

/// A device in use: its context, and threads that fill and free its memory.
///
/// [`shut_down`](Device::shut_down) ends the threads; dropping without it only stops them from
/// taking more work.
pub struct Device {
    shared: Arc<Shared>,
    filling: Threads,
    foreign: Threads,
    freeing: Threads,
}

/// Why a device cannot be used although its memory can be shared.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The driver refused.
    #[error(transparent)]
    Driver(#[from] ShareError),
    /// Its threads were not started.
    #[error(transparent)]
    Threads(#[from] LanesError),
}

/// A device does not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {device} does not answer: {cause}")]
pub struct HealthError {
    /// The device.
    pub device: DeviceUuid,
    /// Whether it is lost for good, for this process.
    pub lost: bool,
    /// What the driver said.
    pub cause: CallError,
}

impl Device {
    /// Takes the device of `context` into use. Slow paths are reported to `degraded`.
    ///
    /// # Errors
    /// When the driver refuses, or the system has no thread left.
    pub fn open(
        context: Context,
        mechanism: Mechanism,
        settings: &DeviceSettings,
        degraded: &Degraded,
    ) -> Result<Self, OpenError> {
        let ordinal = context.device().ordinal;
        let shared = Shared::new(context, mechanism, *settings, degraded.clone())?;
        let threads =
            |kind: &str, threads| Threads::start(&format!("{kind}{ordinal}"), threads, WAITING_MAX);
        Ok(Self {
            shared: Arc::new(shared),
            filling: threads("mrm-fill", settings.fill_threads)?,
            foreign: threads("mrm-ffill", settings.fill_threads)?,
            freeing: threads("mrm-dfree", 1)?,
        })
    }

    /// Its name for every process.
    #[must_use]
    pub fn uuid(&self) -> DeviceUuid {
        self.shared.uuid()
    }

    /// Its context.
    #[must_use]
    pub fn context(&self) -> &Context {
        self.shared.context()
    }

    /// How its memory is lent.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.shared.mechanism()
    }

    /// What `layout` is charged here: bytes, and allocations.
    #[must_use]
    pub fn charge_for(&self, layout: &Layout) -> (u64, u64) {
        charge_for(layout, self.shared.granularity_bytes())
    }

    /// Allocates memory on the device, fills it and seals it. Blocks.
    ///
    /// The digest of the image is the BLAKE3 hash of `mrm device image 1`, the granularity (one
    /// byte for its kind and eight for the size of a block), and the digest of each segment. Files
    /// are read whole for it, and hashed on the way, so that it does not depend on the feed.
    ///
    /// # Errors
    /// When the bytes cannot be had, the device has no room or its driver refuses, or `cancel` was
    /// set. What was allocated is freed.
    pub fn fill(&self, order: &FillOrder) -> Result<DeviceImage, FillError> {
        fill::fill(&self.shared, order)
    }

    /// [`fill`](Self::fill)s on a thread of the device. Never blocks; `completion` is settled
    /// exactly once, after what `order` holds was dropped.
    pub fn fill_async(
        &self,
        order: FillOrder,
        completion: Completion<Result<DeviceImage, FillError>>,
    ) {
        let shared = Arc::clone(&self.shared);
        let threads = if order.foreign {
            &self.foreign
        } else {
            &self.filling
        };
        threads.run(completion, move || fill::fill(&shared, &order));
    }

    /// Takes over an image whose daemon is gone: maps what its descriptors keep, and lends it by
    /// them again. Nothing is copied or read, so the digest is what the caller says, as are the
    /// device and the layout. Blocks.
    ///
    /// # Errors
    /// When the driver refuses, less is there than was said, or this device lends by legacy
    /// handles. All descriptors of `order` are closed then, and nothing stays mapped: the memory
    /// is free unless another descriptor keeps it.
    pub fn reclaim(&self, order: ReclaimOrder) -> Result<DeviceImage, FillError> {
        reclaim::reclaim(&self.shared, order)
    }

    /// [`reclaim`](Self::reclaim)s on a thread of the device, one of those that fill. Never blocks;
    /// `completion` is settled exactly once.
    pub fn reclaim_async(
        &self,
        order: ReclaimOrder,
        completion: Completion<Result<DeviceImage, FillError>>,
    ) {
        let shared = Arc::clone(&self.shared);
        let run = move || reclaim::reclaim(&shared, order);
        self.filling.run(completion, run);
    }

    /// What is needed to check an image of this device, on any thread.
    #[must_use]
    pub fn check_of(&self, image: &DeviceImage) -> check::ImageCheck {
        check::ImageCheck::new(Arc::clone(&self.shared), image)
    }

    /// Frees an image of this device on a thread of the device. Never blocks, unless the device is
    /// shut down; `completion` is settled exactly once. With legacy handles every client must have
    /// closed it before.
    pub fn free_async(
        &self,
        image: Arc<DeviceImage>,
        completion: Completion<Result<(), FreeError>>,
    ) {
        self.freeing.run(completion, move || {
            let device = image.uuid();
            match Arc::into_inner(image) {
                Some(image) => image.free(),
                None => Err(FreeError::InUse { device }),
            }
        });
    }

    /// What the driver reports of the device's memory, to be compared with what was charged.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory(&self) -> Result<MemoryInfo, CallError> {
        self.shared.context().memory()
    }

    /// Whether the device still answers. Also tries again to give back what the driver did not
    /// take. Blocks for as long as the driver does: to be called on a worker thread, or by
    /// [`health_async`](Self::health_async).
    ///
    /// # Errors
    /// When the driver refuses; the error says whether the device is lost.
    pub fn health(&self) -> Result<MemoryInfo, HealthError> {
        health(&self.shared)
    }

    /// Asks for the [`health`](Self::health) on the thread that frees.
    pub fn health_async(&self, completion: Completion<Result<MemoryInfo, HealthError>>) {
        let shared = Arc::clone(&self.shared);
        self.freeing.run(completion, move || health(&shared));
    }

    /// How many fills wait for a thread.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.filling.waiting() + self.foreign.waiting()
    }

    /// Gives up what waits, and waits for what runs until `deadline`; returns what still ran then.
    /// What runs is not cancelled: set the `cancel` of its order before.
    pub fn shut_down(self, deadline: Instant) -> Vec<Hung> {
        Threads::shut_down([self.filling, self.foreign, self.freeing], deadline)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("uuid", &self.uuid())
            .field("mechanism", &self.mechanism())
            .field("waiting", &self.waiting())
            .finish_non_exhaustive()
    }
}

fn health(shared: &Shared) -> Result<MemoryInfo, HealthError> {
    let health = shared.health().map_err(|cause| HealthError {
        device: shared.uuid(),
        lost: cause.cuda().is_some_and(mrm_cuda::CudaError::device_lost),
        cause,
    });
    if health.is_ok() {
        mrm_cuda::release_deferred();
    }
    health
}

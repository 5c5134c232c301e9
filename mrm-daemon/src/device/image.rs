//! A version in the memory of a device, filled and lent.

use mrm_cuda::{DeviceUuid, Mechanism, Sealed};
use mrm_proto::layout::{Granularity, Layout};
use std::sync::Arc;

pub use mrm_cuda::Exported;

/// What a layout is charged on a device that hands out multiples of `granularity_bytes`: how many
/// bytes, and how many allocations.
///
/// ```
/// use mrm_daemon::device::charge_for;
/// use mrm_proto::{dtype::DType, layout::{Granularity, Layout}};
/// use mrm_proto::table::{ModelKind, Table, TableBuilder};
///
/// let mut builder = TableBuilder::new(ModelKind::Safetensors);
/// let file = builder.segment("model.safetensors");
/// builder.tensor("a", DType::U8, &[3], file, 64, 3);
/// builder.tensor("b", DType::U8, &[5], file, 67, 5);
/// let table = builder.build()?;
/// let layout = Layout::new(&Table::parse(&table)?, Granularity::Tensor)?;
/// assert_eq!(charge_for(&layout, 2 << 20), (4 << 20, 2));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn charge_for(layout: &Layout, granularity_bytes: u64) -> (u64, u64) {
    let sizes = layout.allocations_bytes();
    let charge_bytes = sizes
        .iter()
        .map(|bytes| rounded(*bytes, granularity_bytes))
        .fold(0_u64, u64::saturating_add);
    (charge_bytes, sizes.len() as u64)
}

fn rounded(bytes: u64, granularity_bytes: u64) -> u64 {
    // More than any device has: whoever compares it with a budget refuses it.
    bytes
        .checked_next_multiple_of(granularity_bytes.max(1))
        .unwrap_or(u64::MAX)
}

/// The tensors of a version on a device, as [`Layout`] has them. Nobody can write to them with
/// VMM; with legacy handles nobody should. Dropping it frees the memory: do that on a worker
/// thread, or by [`Device::free_async`](super::Device::free_async).
#[derive(Debug)]
pub struct DeviceImage {
    uuid: DeviceUuid,
    mechanism: Mechanism,
    granularity: Granularity,
    // Those of the allocations: with VMM one descriptor each, which keeps the memory.
    exports: Vec<Exported>,
    allocations: Vec<Arc<Sealed>>,
    bytes: u64,
    charged_bytes: u64,
    digest: [u8; 32],
}

/// Memory of a device that is not free yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// The driver did not take it back. It is tried again by [`mrm_cuda::release_deferred`], which
    /// [`Device::health`](super::Device::health) calls.
    #[error("device {device} did not take back all memory of a model: {cause}; it is tried again")]
    Driver {
        /// The device.
        device: DeviceUuid,
        /// What the driver said.
        cause: mrm_cuda::CallError,
    },
    /// Somebody still has the image. It is freed when the last lets go of it.
    #[error("a model on device {device} is still in use within the daemon; it is freed after that")]
    InUse {
        /// The device.
        device: DeviceUuid,
    },
}

impl DeviceImage {
    /// An image of `allocations`, which hold `digest`.
    pub(super) fn new(
        device: (DeviceUuid, Mechanism),
        granularity: Granularity,
        allocations: Vec<Arc<Sealed>>,
        digest: [u8; 32],
    ) -> Self {
        let exports = allocations
            .iter()
            .map(|allocation| allocation.exported().clone())
            .collect();
        let sum = |size: fn(&Sealed) -> u64| allocations.iter().map(|one| size(one)).sum();
        Self {
            uuid: device.0,
            mechanism: device.1,
            granularity,
            exports,
            bytes: sum(Sealed::bytes),
            charged_bytes: sum(Sealed::charged_bytes),
            allocations,
            digest,
        }
    }

    /// The device that it is on.
    #[must_use]
    pub const fn uuid(&self) -> DeviceUuid {
        self.uuid
    }

    /// How it is lent.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// How it is divided into allocations.
    #[must_use]
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// What clients and the keeper get, one for each allocation of the layout, in its order. With
    /// VMM these are all the descriptors that the image has. Calls no driver.
    #[must_use]
    pub fn exports(&self) -> &[Exported] {
        &self.exports
    }

    /// The allocations, in the order of the layout.
    #[must_use]
    pub fn allocations(&self) -> &[Arc<Sealed>] {
        &self.allocations
    }

    /// The sizes of the allocations, added up.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it takes of the device's memory.
    #[must_use]
    pub const fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Images of one digest hold the same bytes at the same places, however they were filled. See
    /// [`Device::fill`](super::Device::fill).
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Gives the memory back, as far as nobody else has it. Blocks.
    ///
    /// # Errors
    /// When the driver refused for one of the allocations; the others are free.
    pub fn free(self) -> Result<(), FreeError> {
        drop(self.exports);
        let mut freed = Ok(());
        for allocation in self.allocations {
            // Where an upload that could not be waited for still reads it, dropping it is all
            // that can be done: it is freed with that upload.
            let Some(sealed) = Arc::into_inner(allocation) else {
                continue;
            };
            if let Err(refused) = sealed.free() {
                freed = freed.and(Err(FreeError::Driver {
                    device: self.uuid,
                    cause: refused.source,
                }));
            }
        }
        freed
    }
}

//! Taking over a version that another daemon put on a device.

use super::error::FillError;
use super::image::DeviceImage;
use super::shared::Shared;
use mrm_cuda::{Export, Sealed, ShareError};
use mrm_proto::layout::{Granularity, LayoutError};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An image of a daemon that is gone, by what keeps its memory.
#[derive(Debug)]
pub struct ReclaimOrder {
    /// How its tensors are divided into allocations.
    pub granularity: Granularity,
    /// The descriptor of each allocation and its size in bytes, in the order of the layout.
    pub allocations: Vec<(OwnedFd, u64)>,
    /// Of its content: [`DeviceImage::digest`].
    pub digest: [u8; 32],
}

/// As [`Device::reclaim`](super::Device::reclaim).
pub(super) fn reclaim(device: &Shared, order: ReclaimOrder) -> Result<DeviceImage, FillError> {
    mrm_cuda::release_deferred();
    if order.allocations.is_empty() {
        return Err(LayoutError::NoTensors.into());
    }
    let sealed = order
        .allocations
        .into_iter()
        .map(|(fd, bytes)| device.reclaim(Export::Vmm(fd), bytes).map(Arc::new))
        .collect::<Result<Vec<Arc<Sealed>>, ShareError>>()
        .map_err(|source| FillError::share(device.uuid(), source))?;
    Ok(DeviceImage::new(
        (device.uuid(), device.mechanism()),
        order.granularity,
        sealed,
        order.digest,
    ))
}

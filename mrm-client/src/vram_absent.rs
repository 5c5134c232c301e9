//! What stands in for `vram.rs` in builds without CUDA: there is never a device.

use crate::device::{CloseError, Device, DeviceError};
use crate::lease::Lease;
use mrm_proto::reply::OnDevice;
use std::convert::Infallible;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::Arc;

pub(crate) type RawStream = Infallible;

pub(crate) const fn visible() -> Result<Vec<Device>, DeviceError> {
    Err(DeviceError::NotBuilt)
}

pub(crate) const fn release_deferred() -> usize {
    0
}

#[derive(Debug, Default)]
pub(crate) struct Contexts;

impl Contexts {
    pub(crate) fn import(
        &mut self,
        _grant: &OnDevice,
        _fds: Vec<OwnedFd>,
        _keeper: &Arc<Lease>,
    ) -> Result<(Device, Mapped), Arc<dyn Error + Send + Sync>> {
        Err(Arc::new(DeviceError::NotBuilt))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mapped;

impl Mapped {
    pub(crate) fn allocations(&self) -> Box<[(u64, u64)]> {
        Box::default()
    }

    pub(crate) const fn close(&mut self, _streams: &[RawStream]) -> Result<(), CloseError> {
        Ok(())
    }

    pub(crate) const fn len(&self) -> usize {
        0
    }

    pub(crate) const fn retire(&mut self, _keeper: &Arc<Lease>) {}
}

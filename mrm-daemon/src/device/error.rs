//! Why a device was not filled.

use super::feed::FeedError;
use crate::transfer::LoadError;
use mrm_cuda::{DeviceUuid, ShareError};
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::LayoutError;

/// Why a version was not copied to a device. Nothing of it is left there, save what the driver
/// does not take back: that is tried again ([`mrm_cuda::release_deferred`]).
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The device has less room than was counted on.
    #[error("{source}")]
    OutOfMemory {
        /// The device.
        device: DeviceUuid,
        /// What was asked for, rounded up to what the device hands out.
        requested_bytes: u64,
        /// What the driver reported as free afterwards, if it did.
        free_bytes: Option<u64>,
        /// The same as an error, which names the cure.
        source: ShareError,
    },
    /// The device is of no more use to this process.
    #[error(
        "device {device} is lost: {source}; its weights are gone: see the kernel's log (dmesg, \
         Xid) and nvidia-smi, and start mrmd anew when the device is well"
    )]
    Lost {
        /// The device.
        device: DeviceUuid,
        /// What showed it.
        source: ShareError,
    },
    /// The device that was to be copied from failed; the one that was to be filled is well.
    #[error("device {peer} cannot be copied from: {source}; open the model again")]
    Peer {
        /// The device that failed.
        peer: DeviceUuid,
        /// What showed it.
        source: ShareError,
    },
    /// The image to be copied from is divided into other allocations.
    #[error(
        "the copy on device {peer} is divided into other allocations than were asked for: close \
         it there, or set one granularity for the model"
    )]
    PeerDiffers {
        /// The device that has it.
        peer: DeviceUuid,
    },
    /// The driver refused.
    #[error(
        "device {device} was not filled: {source}; try again, open the model in host memory \
         meanwhile, and see `mrm doctor` and the kernel's log"
    )]
    Driver {
        /// The device.
        device: DeviceUuid,
        /// The call, and what it returned.
        source: ShareError,
    },
    /// No descriptor is left to lend the memory by.
    #[error("{0} of the daemon (LimitNOFILE)")]
    Descriptors(ShareError),
    /// The bytes in host memory did not come.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The files cannot be read, or changed.
    #[error(transparent)]
    Source(#[from] LoadError),
    /// It takes more than was charged for it: a fault of the daemon's own.
    #[error("it takes {needed_bytes} bytes of device {device}, charged were {charge_bytes}")]
    TooLarge {
        /// The device.
        device: DeviceUuid,
        /// What it takes.
        needed_bytes: u64,
        /// What it may take.
        charge_bytes: u64,
    },
    /// It cannot be laid out.
    #[error("it cannot be copied to a device: {0}")]
    Layout(#[from] LayoutError),
}

impl FillError {
    /// The code for the client.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::OutOfMemory { .. } => ErrorCode::OutOfMemory,
            Self::Lost { .. } => ErrorCode::DeviceLost,
            Self::Peer { .. } | Self::PeerDiffers { .. } | Self::Driver { .. } => {
                ErrorCode::DeviceFailed
            }
            Self::Descriptors(_) => ErrorCode::Exhausted,
            Self::Feed(error) => error.code(),
            Self::Source(error) => error.code(),
            Self::TooLarge { .. } => ErrorCode::Internal,
            Self::Layout(LayoutError::NoTensors) => ErrorCode::NoTensors,
            Self::Layout(LayoutError::TooManyAllocations) => ErrorCode::TooManyAllocations,
            Self::Layout(LayoutError::Damaged) => ErrorCode::Internal,
        }
    }

    /// What the sharing of memory failed with, sorted by what can be done about it.
    pub(super) fn share(device: DeviceUuid, source: ShareError) -> Self {
        if let ShareError::OutOfMemory {
            requested_bytes,
            free_bytes,
            ..
        } = source
        {
            return Self::OutOfMemory {
                device,
                requested_bytes,
                free_bytes,
                source,
            };
        }
        if matches!(source, ShareError::Descriptor(_)) {
            return Self::Descriptors(source);
        }
        if source.cuda().is_some_and(mrm_cuda::CudaError::device_lost) {
            return Self::Lost { device, source };
        }
        Self::Driver { device, source }
    }
}

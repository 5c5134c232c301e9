//! What a call into the driver came to.
//!
//! ```
//! use mrm_cuda::error::CudaError;
//!
//! // A code that no driver has a name for is still an error like any other.
//! assert_eq!(CudaError::new(4242).to_string(), "error 4242");
//! ```

use crate::device::DeviceUuid;
use crate::driver;
use std::fmt;
use thiserror::Error;

/// An error code of the driver: any number but zero, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CudaError(u32);

impl CudaError {
    /// No memory of the kind asked for.
    pub const OUT_OF_MEMORY: Self = Self(2);
    /// A value that the driver does not take.
    pub const INVALID_VALUE: Self = Self(1);
    /// The library is a toolkit's stand-in for linking.
    pub const STUB_LIBRARY: Self = Self(34);
    /// There is no device, or none is visible.
    pub const NO_DEVICE: Self = Self(100);
    /// The operation is not allowed while a stream is captured.
    pub const STREAM_CAPTURE_UNSUPPORTED: Self = Self(900);
    /// A capture was spoilt by an operation that it does not allow.
    pub const STREAM_CAPTURE_INVALIDATED: Self = Self(901);
    /// The operation would depend on a stream that is captured.
    pub const STREAM_CAPTURE_IMPLICIT: Self = Self(906);

    /// The error with this code.
    #[must_use]
    pub const fn new(code: u32) -> Self {
        Self(code)
    }

    /// The code.
    #[must_use]
    pub const fn code(self) -> u32 {
        self.0
    }

    /// The driver's name of it, such as `CUDA_ERROR_OUT_OF_MEMORY`. `None` when the driver has
    /// none, or no driver was loaded.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        driver::error_name(self.0)
    }

    /// Whether the device is of no more use to this process: every later call returns the same,
    /// and memory on the device is not given back before the process ends.
    ///
    /// These are the codes of which the reference of the driver (`CUresult` in CUDA 13) says that
    /// the process must be terminated and relaunched (226, 700, 702, 714 to 719, 721, 810, 911) or
    /// that the context cannot be used any more (709, 710), and the uncorrectable errors of memory
    /// and NVLink (214, 220), of which it says only what they are, and which stay.
    ///
    /// Not among them: 46 (`DEVICE_UNAVAILABLE`: another process has the device for itself, which
    /// passes), 720 (a launch that was too large) and 999 (`UNKNOWN`, which says nothing).
    #[must_use]
    pub const fn device_lost(self) -> bool {
        matches!(
            self.0,
            214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 810 | 911
        )
    }

    /// Whether it says that a stream is being captured.
    #[must_use]
    pub const fn is_capture(self) -> bool {
        matches!(self.0, 900 | 901 | 906)
    }

    pub(crate) const fn check(code: u32) -> Result<(), Self> {
        match code {
            0 => Ok(()),
            code => Err(Self(code)),
        }
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaError({}: {self})", self.0)
    }
}

impl std::error::Error for CudaError {}

/// A call into the driver that failed, or was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CallError {
    /// The driver refused.
    #[error("{call}: {error}")]
    Driver {
        /// Name of the driver's function.
        call: &'static str,
        /// What it returned.
        error: CudaError,
    },
    /// This process was forked from the one that initialised the driver.
    #[error(
        "CUDA was initialised by process {pid}, of which this process is a fork: a fork cannot \
         use CUDA; start the process anew (spawn, exec) instead of forking it"
    )]
    Forked {
        /// The process that may use the driver.
        pid: u32,
    },
}

impl CallError {
    /// What the driver returned, if it was called.
    #[must_use]
    pub const fn cuda(self) -> Option<CudaError> {
        match self {
            Self::Driver { error, .. } => Some(error),
            Self::Forked { .. } => None,
        }
    }

    pub(crate) const fn check(call: &'static str, code: u32) -> Result<(), Self> {
        match CudaError::check(code) {
            Ok(()) => Ok(()),
            Err(error) => Err(Self::Driver { call, error }),
        }
    }
}

/// Why devices could not be listed, or the one asked for is not among them.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The driver refused a question.
    #[error("cannot ask the CUDA driver about its devices: {0}")]
    Call(#[from] CallError),
    /// No visible device has this UUID.
    #[error(
        "device {uuid} is not visible to this process ({setting}; visible: {}): add it to \
         CUDA_VISIBLE_DEVICES, or hand the device to the container", list(.visible)
    )]
    NotVisible {
        /// The device asked for.
        uuid: DeviceUuid,
        /// The devices that this process sees.
        visible: Vec<DeviceUuid>,
        /// What `CUDA_VISIBLE_DEVICES` says.
        setting: String,
    },
}

impl DeviceError {
    /// What the driver returned, if it was called.
    #[must_use]
    pub const fn cuda(&self) -> Option<CudaError> {
        match self {
            Self::Call(call) => call.cuda(),
            Self::NotVisible { .. } => None,
        }
    }
}

fn list(uuids: &[DeviceUuid]) -> String {
    if uuids.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<String> = uuids.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// Why memory was not allocated, filled, exported or imported. Nothing stays allocated or mapped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShareError {
    /// The device has no room.
    #[error(
        "device {device} has no room for {requested_bytes} bytes ({} free): evict something, or \
         lower the device's budget", free(.free_bytes)
    )]
    OutOfMemory {
        /// The device.
        device: DeviceUuid,
        /// What was asked for, rounded up to what the device hands out.
        requested_bytes: u64,
        /// What the driver reported as free afterwards, if it did.
        free_bytes: Option<u64>,
    },
    /// A call of the driver failed.
    #[error("cannot {doing} on device {device}: {source}")]
    Call {
        /// What was being done: "allocate memory", "import memory".
        doing: &'static str,
        /// The device.
        device: DeviceUuid,
        /// The call, and what it returned.
        source: CallError,
    },
    /// What was imported is not of the size that was said.
    #[error(
        "the memory imported on device {device} is not the {bytes} bytes that were said ({why}): \
         the exporter and this process disagree; open the model again"
    )]
    SizeMismatch {
        /// The device.
        device: DeviceUuid,
        /// The size that was said.
        bytes: u64,
        /// What showed it.
        why: String,
    },
    /// The export belongs to the other mechanism.
    #[error("an export of the {given} mechanism was given to the {wanted} mechanism")]
    WrongMechanism {
        /// The mechanism that was asked to import.
        wanted: crate::share::Mechanism,
        /// The mechanism that exported.
        given: crate::share::Mechanism,
    },
    /// Memory that was lent by a legacy handle was to be taken over.
    #[error(
        "memory on device {device} that was lent by a legacy handle is gone with the process that \
         allocated it: load it again, or set device.sharing = \"vmm\" for the next time"
    )]
    Gone {
        /// The device.
        device: DeviceUuid,
    },
    /// A range beyond the end.
    #[error("bytes {offset_bytes}..+{len_bytes} are outside an allocation of {bytes} bytes")]
    OutOfRange {
        /// Where the range begins.
        offset_bytes: u64,
        /// How long it is.
        len_bytes: u64,
        /// How long the allocation is.
        bytes: u64,
    },
    /// Memory of one device was to be filled through a ring of another.
    #[error("memory on device {memory} cannot be filled through a ring of device {ring}")]
    OtherDevice {
        /// Where the memory is.
        memory: DeviceUuid,
        /// The ring's device.
        ring: DeviceUuid,
    },
    /// Zero bytes cannot be allocated or imported, nor a ring be made of them.
    #[error("zero bytes of memory cannot be allocated or imported, nor a ring be made of them")]
    Empty,
    /// There is no descriptor left to lend the memory by.
    #[error("no descriptor is left for device memory: {0}; raise the limit of open files")]
    Descriptor(rustix::io::Errno),
}

impl ShareError {
    /// What the driver returned, if that is why.
    #[must_use]
    pub const fn cuda(&self) -> Option<CudaError> {
        match self {
            Self::OutOfMemory { .. } => Some(CudaError::OUT_OF_MEMORY),
            Self::Call { source, .. } => source.cuda(),
            Self::SizeMismatch { .. }
            | Self::WrongMechanism { .. }
            | Self::Gone { .. }
            | Self::OutOfRange { .. }
            | Self::OtherDevice { .. }
            | Self::Empty
            | Self::Descriptor(_) => None,
        }
    }
}

fn free(bytes: &Option<u64>) -> String {
    bytes.map_or_else(|| "an unknown number".to_owned(), |bytes| bytes.to_string())
}

/// Why a mapping was not closed. It is still mapped, and its bytes are still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CloseError {
    /// A stream is being captured into a graph, which may refer to the mapping.
    #[error("a stream is being captured into a graph: end the capture, then close again")]
    Capturing,
    /// A call of the driver failed.
    #[error("cannot close a mapping of device memory: {0}")]
    Call(#[from] CallError),
}

/// Why host memory was not registered. It is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegisterError {
    /// The driver registers only what this process may write. It was not asked.
    #[error(
        "device {device} does not register memory that is read-only to this process \
         (READ_ONLY_HOST_REGISTER_SUPPORTED is 0): copy through a ring of page-locked memory"
    )]
    Unsupported {
        /// The device.
        device: DeviceUuid,
    },
    /// There are no bytes.
    #[error("zero bytes of host memory cannot be registered")]
    Empty,
    /// A call of the driver failed.
    #[error("cannot register {bytes} bytes of host memory with device {device}: {source}")]
    Call {
        /// The device.
        device: DeviceUuid,
        /// How many bytes.
        bytes: u64,
        /// The call, and what it returned.
        source: CallError,
    },
}

impl RegisterError {
    /// What the driver returned, if it was called.
    #[must_use]
    pub const fn cuda(&self) -> Option<CudaError> {
        match self {
            Self::Unsupported { .. } | Self::Empty => None,
            Self::Call { source, .. } => source.cuda(),
        }
    }
}

/// Why a part of an allocation was not copied. `E` is what filling a slot may fail with.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UploadError<E> {
    /// The range is outside the allocation, or a call of the driver failed.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// More than fits into a slot.
    #[error("{len_bytes} bytes do not fit into a slot of {slot_bytes} bytes")]
    TooLong {
        /// What was to be copied.
        len_bytes: u64,
        /// The size of each slot of the ring.
        slot_bytes: u64,
    },
    /// The slot was not filled; nothing was copied.
    #[error("cannot fill a staging buffer: {0}")]
    Fill(E),
}

impl<E> UploadError<E> {
    /// What the driver returned, if that is why.
    #[must_use]
    pub const fn cuda(&self) -> Option<CudaError> {
        match self {
            Self::Share(error) => error.cuda(),
            Self::TooLong { .. } | Self::Fill(_) => None,
        }
    }
}

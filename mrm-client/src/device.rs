//! Weights in the memory of a device: which one is wanted, and where the weights are.
//!
//! ```
//! use mrm_client::{Client, Fault, OpenError, OpenOptions};
//! use mrm_client::device::{Devices, Tier};
//!
//! fn upload_free(client: &Client) -> Result<(), OpenError> {
//!     let anywhere = OpenOptions::new().tier(Tier::Best(Devices::Visible));
//!     let model = client.open_with("bert/base", &anywhere)?;
//!     match model.device() {
//!         Some(weights) => println!("on {}, here cuda:{}", weights.uuid(), weights.ordinal()),
//!         None => println!("in host memory: {:?}", model.why_host()),
//!     }
//!     Ok(())
//! }
//! # let _ = upload_free;
//! assert_eq!("cuda:1".parse(), Ok(Devices::Ordinal(1)));
//! ```
//!
//! * The library takes the primary context of the device, which torch and the CUDA runtime use
//!   too, and never switches the caller's current context. A client keeps it as long as it lives.
//! * A device is named by UUID to the daemon, and by ordinal to the program: the ordinal is the
//!   process's own, under its `CUDA_VISIBLE_DEVICES`.
//! * What the process has open on a device is mapped there once, however often it is opened.
//! * Pointers are valid in the process that opened the model, not in one forked from it.
//! * Closing a model waits for the work that the process queued on its device, and is refused
//!   while a stream is captured into a graph: see [`Model::close`](crate::Model::close). A model
//!   that is dropped then stays mapped, and keeps its lease, until a later open or close on a
//!   device, or [`release_deferred`].

use crate::error::{Fault, LocalCode};
use crate::vram;
use mrm_proto::limits::DEVICES_PER_OPEN_MAX;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

#[cfg(feature = "cuda")]
pub use mrm_cuda::RawStream;
pub use mrm_proto::ids::{DeviceUuid, UuidError};
pub use mrm_proto::layout::Granularity;
pub use mrm_proto::reply::Sharing;

/// In which memory an open wants the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tier {
    /// The host's.
    #[default]
    Host,
    /// That of one of these devices, or an error.
    Device(Devices),
    /// That of one of these devices if that can be had now, else the host's;
    /// [`Model::why_host`](crate::Model::why_host) then says why.
    Best(Devices),
}

/// Which devices will do. Reads `cuda` (any), `cuda:1` or `1` (an ordinal) and `GPU-...` (a UUID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Devices {
    /// All that this process sees: the daemon takes one where the model is, else one with room.
    Visible,
    /// The one with this number in this process.
    Ordinal(u32),
    /// The one with this name.
    Uuid(DeviceUuid),
}

/// A device that this process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Its name for every process.
    pub uuid: DeviceUuid,
    /// Its number in this process.
    pub ordinal: u32,
}

/// Weights of an open model in the memory of a device.
#[derive(Debug)]
pub struct DeviceWeights {
    pub(crate) device: Device,
    pub(crate) sharing: Sharing,
    pub(crate) granularity: Granularity,
    /// Address and size of each allocation, in the order of the layout.
    pub(crate) allocations: Box<[(u64, u64)]>,
}

impl DeviceWeights {
    /// The device's name for every process.
    #[must_use]
    pub const fn uuid(&self) -> DeviceUuid {
        self.device.uuid
    }

    /// The device's number in this process.
    #[must_use]
    pub const fn ordinal(&self) -> u32 {
        self.device.ordinal
    }

    /// How the memory is shared. With legacy handles it is gone when the daemon is.
    #[must_use]
    pub const fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// How the tensors are put together into allocations.
    #[must_use]
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Address and size in bytes of each allocation.
    #[must_use]
    pub const fn allocations(&self) -> &[(u64, u64)] {
        &self.allocations
    }

    /// Bytes of all allocations.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.allocations.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The devices that this process sees, by ordinal. Asked of the driver once per process.
///
/// # Errors
/// When there is no usable driver; says what to do.
pub fn visible() -> Result<Vec<Device>, DeviceError> {
    vram::visible()
}

/// Tries again to close what was dropped while the driver would not let it be closed: a model
/// dropped while a stream was captured. Returns how many models are left; each keeps its lease.
/// Later opens and closes on devices do this by themselves.
///
/// ```
/// assert_eq!(mrm_client::device::release_deferred(), 0);
/// ```
#[must_use = "what is left is still mapped"]
pub fn release_deferred() -> usize {
    vram::release_deferred()
}

/// A good moment for what could not be closed before.
pub(crate) fn retry_deferred() {
    let _ = vram::release_deferred();
}

/// Why weights are not on a device.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// This library was built without the feature `cuda`.
    #[error("this build of the mrm client has no device support; build it with feature `cuda`")]
    NotBuilt,
    /// No CUDA driver that can be used.
    #[error("no device can be used: {cause}; {cure}")]
    NoDriver {
        /// What is wrong.
        cause: String,
        /// What to do about it.
        cure: String,
    },
    /// The driver does not answer, or may not be used by this process.
    #[error("{source}")]
    Driver {
        /// What it said.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The process does not see the device.
    #[error("{message}")]
    NotVisible {
        /// Which one, what is visible, and what to do.
        message: String,
    },
    /// The daemon has no device.
    #[error(
        "the daemon ({daemon}) has no device tier: it found no usable device, or is of an older \
         release; `mrm status` says which, or open in host memory"
    )]
    NoDeviceTier {
        /// What the daemon calls itself.
        daemon: String,
    },
    /// The daemon gave host memory.
    #[error("no device that was asked for can take it now: the daemon gave host memory")]
    GaveHost,
    /// What the daemon granted cannot be imported.
    #[error("mrmd granted `{model}` on device {uuid}, but {source}; the grant was given back")]
    Import {
        /// The model.
        model: String,
        /// The device.
        uuid: DeviceUuid,
        /// What is wrong.
        source: Arc<dyn Error + Send + Sync>,
    },
}

/// Why a model on a device was not closed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloseError {
    /// A stream is being captured into a graph, which may refer to the weights.
    #[error("a stream is being captured into a graph: end the capture, then close again")]
    Capturing,
    /// The driver refused.
    #[error("{source}")]
    Driver {
        /// What it said.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl Fault for DeviceError {
    fn number(&self) -> u16 {
        self.code().number()
    }
    fn retryable(&self) -> bool {
        self.code().retryable()
    }
}

impl DeviceError {
    const fn code(&self) -> LocalCode {
        match self {
            Self::NotBuilt | Self::NoDriver { .. } | Self::Driver { .. } => LocalCode::NoDevice,
            Self::NotVisible { .. } => LocalCode::DeviceNotVisible,
            Self::NoDeviceTier { .. } => LocalCode::NoDeviceTier,
            Self::GaveHost => LocalCode::GaveHost,
            Self::Import { .. } => LocalCode::ImportFailed,
        }
    }
}

/// Why a text names no devices.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DevicesParseError {
    /// It names a slice.
    #[error("{0} is a MIG slice: name a whole device, `nvidia-smi -L` lists their UUIDs")]
    Mig(String),
    /// It is none of the forms.
    #[error("{0:?} names no device: write cuda, cuda:0, or a UUID as GPU- and 32 hex digits")]
    Malformed(String),
}

impl FromStr for Devices {
    type Err = DevicesParseError;

    fn from_str(text: &str) -> Result<Self, DevicesParseError> {
        let malformed = || DevicesParseError::Malformed(text.to_owned());
        if text == "cuda" {
            return Ok(Self::Visible);
        }
        if text.starts_with("MIG-") || text.starts_with("GPU-") {
            return text.parse().map(Self::Uuid).map_err(|error| match error {
                UuidError::Mig(text) => DevicesParseError::Mig(text),
                UuidError::Malformed(_) => malformed(),
            });
        }
        let number = text.strip_prefix("cuda:").unwrap_or(text);
        // Not what the number's own parser takes beside digits: a sign.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(malformed());
        }
        number.parse().map(Self::Ordinal).map_err(|_| malformed())
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Visible => f.write_str("cuda"),
            Self::Ordinal(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Uuid(uuid) => uuid.fmt(f),
        }
    }
}

impl Devices {
    /// Those of them that this process sees: at least one, at most as many as an open may name.
    pub(crate) fn find(self) -> Result<Vec<DeviceUuid>, DeviceError> {
        let mut seen = visible()?;
        let listed = || {
            let names: Vec<String> = (visible().unwrap_or_default().iter())
                .map(|device| format!("cuda:{} {}", device.ordinal, device.uuid))
                .collect();
            let setting = match std::env::var("CUDA_VISIBLE_DEVICES") {
                Ok(value) => format!("CUDA_VISIBLE_DEVICES is {value:?}"),
                Err(_) => "CUDA_VISIBLE_DEVICES is not set".to_owned(),
            };
            format!("{setting}; visible: {}", names.join(", "))
        };
        match self {
            Self::Visible => seen.truncate(DEVICES_PER_OPEN_MAX),
            Self::Ordinal(ordinal) => seen.retain(|device| device.ordinal == ordinal),
            Self::Uuid(uuid) => seen.retain(|device| device.uuid == uuid),
        }
        if seen.is_empty() {
            let message = format!(
                "device {self} is not visible to this process ({}): correct \
                 CUDA_VISIBLE_DEVICES, or hand the device to the container",
                listed()
            );
            return Err(DeviceError::NotVisible { message });
        }
        Ok(seen.into_iter().map(|device| device.uuid).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let text = "GPU-f1000000-0000-0000-0000-0000000000ab";
        let mut bytes = [0; 16];
        (bytes[0], bytes[15]) = (0xf1, 0xab);
        assert_eq!(text.parse(), Ok(Devices::Uuid(DeviceUuid(bytes))));
        for text in [text, "cuda", "cuda:0", "cuda:15"] {
            let read: Devices = text.parse().expect("names devices");
            assert_eq!(read.to_string(), text);
        }
        assert_eq!("3".parse(), Ok(Devices::Ordinal(3)));
    }

    #[test]
    fn what_names_no_device_is_refused() {
        let long = format!("GPU-{}", "0".repeat(33));
        for text in [
            "",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cpu",
            "GPU-",
            "GPU-12",
            &long,
            "4294967296",
        ] {
            let refused = text.parse::<Devices>();
            assert!(
                matches!(refused, Err(DevicesParseError::Malformed(_))),
                "{text}"
            );
        }
        let mig = "MIG-f1000000-0000-0000-0000-000000000000".parse::<Devices>();
        assert!(matches!(mig, Err(DevicesParseError::Mig(_))));
    }
}

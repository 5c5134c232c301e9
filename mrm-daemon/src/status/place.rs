//! Where a model is to be loaded, or dropped: in host memory, or on which device.
//!
//! ```
//! use mrm_daemon::status::{Place, WarmOn};
//! assert_eq!("best".parse(), Ok(WarmOn::Best));
//! let named = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";
//! assert_eq!(named.parse::<Place>()?.to_string(), named);
//! # Ok::<(), mrm_daemon::status::place::PlaceError>(())
//! ```

use mrm_cuda::DeviceUuid;
use mrm_cuda::device::UuidError;
use std::fmt;
use std::str::FromStr;

/// Where something of a model can be. Reads and writes `host`, or the UUID of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In host memory.
    Host,
    /// On this device.
    Device(DeviceUuid),
}

/// Where a model is to be loaded. Reads and writes `host`, `device`, `best`, or the UUID of a
/// device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WarmOn {
    /// Into host memory.
    #[default]
    Host,
    /// Onto any of the daemon's devices.
    Device,
    /// Onto a device if one can take it now, else into host memory.
    Best,
    /// Onto this device.
    Named(DeviceUuid),
}

/// Why a text names no place. Does not repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// It names a slice.
    #[error("a MIG slice, and only a whole device can be named")]
    Mig,
    /// It is none of the forms.
    #[error("neither a known word nor the UUID of a device, GPU- and 32 hexadecimal digits")]
    Unknown,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text {
            "host" => Ok(Self::Host),
            text => uuid(text).map(Self::Device),
        }
    }
}

impl FromStr for WarmOn {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text {
            "host" => Ok(Self::Host),
            "device" => Ok(Self::Device),
            "best" => Ok(Self::Best),
            text => uuid(text).map(Self::Named),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Device(uuid) => uuid.fmt(f),
        }
    }
}

impl fmt::Display for WarmOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Device => f.write_str("device"),
            Self::Best => f.write_str("best"),
            Self::Named(uuid) => uuid.fmt(f),
        }
    }
}

fn uuid(text: &str) -> Result<DeviceUuid, PlaceError> {
    text.parse().map_err(|error| match error {
        UuidError::Mig(_) => PlaceError::Mig,
        UuidError::Malformed(_) => PlaceError::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab";

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["host", "device", "best", UUID] {
            let on: WarmOn = text.parse().unwrap();
            assert_eq!(on.to_string(), text);
        }
        for text in ["host", UUID] {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
        }
    }

    #[test]
    fn what_names_no_place_is_refused() {
        for text in ["", "Host", "cuda", "cuda:0", "0", "GPU-", "GPU-12"] {
            assert_eq!(text.parse::<WarmOn>(), Err(PlaceError::Unknown), "{text}");
        }
        for text in ["device", "best", "any"] {
            assert_eq!(text.parse::<Place>(), Err(PlaceError::Unknown), "{text}");
        }
        assert_eq!("MIG-1".parse::<WarmOn>(), Err(PlaceError::Mig));
        assert_eq!("MIG-1".parse::<Place>(), Err(PlaceError::Mig));
    }
}

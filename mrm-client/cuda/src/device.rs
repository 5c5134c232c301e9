//! Which devices there are, and which of them is meant.
//!
//! ```
//! use mrm_cuda::DeviceUuid;
//!
//! let uuid: DeviceUuid = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab".parse()?;
//! assert_eq!(uuid.as_bytes()[0], 0x5a);
//! # Ok::<(), mrm_cuda::device::UuidError>(())
//! ```

use crate::driver::Attribute;
use crate::error::{CallError, DeviceError};
use crate::probe::Driver;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The name of a device that every process agrees on, whatever it sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceUuid([u8; 16]);

impl DeviceUuid {
    /// From the driver's 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The driver's 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 0 | 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not the UUID of a device.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UuidError {
    /// It names a slice.
    #[error("{0} is a MIG slice: name a whole device, its UUID is in `nvidia-smi -L`")]
    Mig(String),
    /// It is none.
    #[error("{0:?} is not the UUID of a device: it reads GPU-, then 32 hexadecimal digits")]
    Malformed(String),
}

impl FromStr for DeviceUuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        if text.starts_with("MIG-") {
            return Err(UuidError::Mig(text.to_owned()));
        }
        let malformed = || UuidError::Malformed(text.to_owned());
        let digits: Vec<u32> = text
            .strip_prefix("GPU-")
            .unwrap_or(text)
            .chars()
            .filter(|digit| *digit != '-')
            .map(|digit| digit.to_digit(16).ok_or_else(malformed))
            .collect::<Result<_, _>>()?;
        if digits.len() != 32 {
            return Err(malformed());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair
                .iter()
                .fold(0, |byte, digit| byte << 4 | (*digit & 15) as u8);
        }
        Ok(Self(bytes))
    }
}

/// A device, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name for every process.
    pub uuid: DeviceUuid,
    /// Its product name.
    pub name: String,
    /// Its memory.
    pub total_bytes: u64,
    /// Its number in this process, under this process's `CUDA_VISIBLE_DEVICES`. Never to be sent
    /// to another process.
    pub ordinal: u32,
    /// Major and minor compute capability.
    pub compute_capability: (u32, u32),
    /// Whether it can map allocations at reserved addresses (virtual memory management).
    pub vmm: bool,
    /// Whether its allocations can be exported as file descriptors.
    pub posix_fd: bool,
    /// Whether memory that a process may only read can be registered for its copies.
    pub read_only_register: bool,
    /// Where it is on the PCI bus, as `/sys/bus/pci/devices` writes it: `0000:3b:00.0`.
    pub pci_bus_id: String,
    /// Whether it is a MIG slice (by its name: the driver does not tell otherwise).
    pub mig: bool,
}

impl Driver {
    /// The devices that this process sees, by ordinal.
    ///
    /// # Errors
    /// When the driver refuses a question.
    pub fn devices(self) -> Result<Vec<DeviceInfo>, DeviceError> {
        self.usable()?;
        let count = self.table().device_count()?;
        (0..count)
            .map(|ordinal| self.describe(ordinal).map_err(DeviceError::Call))
            .collect()
    }

    /// The device with this UUID, if this process sees it.
    ///
    /// ```no_run
    /// let driver = mrm_cuda::probe()?;
    /// let uuid = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab".parse()?;
    /// println!("here it is number {}", driver.device(uuid)?.ordinal);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`DeviceError::NotVisible`] names the devices that are visible.
    pub fn device(self, uuid: DeviceUuid) -> Result<DeviceInfo, DeviceError> {
        let devices = self.devices()?;
        let visible: Vec<DeviceUuid> = devices.iter().map(|device| device.uuid).collect();
        devices
            .into_iter()
            .find(|device| device.uuid == uuid)
            .ok_or_else(|| {
                let setting = match std::env::var("CUDA_VISIBLE_DEVICES") {
                    Ok(value) => format!("CUDA_VISIBLE_DEVICES is {value:?}"),
                    Err(_) => "CUDA_VISIBLE_DEVICES is not set".to_owned(),
                };
                DeviceError::NotVisible {
                    uuid,
                    visible,
                    setting,
                }
            })
    }

    fn describe(self, ordinal: i32) -> Result<DeviceInfo, CallError> {
        let table = self.table();
        let device = table.device(ordinal)?;
        let number = |which| {
            table
                .attribute(device, which)
                .map(|value| u32::try_from(value).unwrap_or(0))
        };
        let name = table.device_name(device)?;
        Ok(DeviceInfo {
            uuid: DeviceUuid(table.device_uuid(device)?),
            total_bytes: table.device_total_bytes(device)?,
            ordinal: u32::try_from(ordinal).unwrap_or(0),
            compute_capability: (
                number(Attribute::CapabilityMajor)?,
                number(Attribute::CapabilityMinor)?,
            ),
            vmm: number(Attribute::VirtualMemory)? == 1,
            posix_fd: number(Attribute::PosixFd)? == 1,
            read_only_register: number(Attribute::ReadOnlyRegister)? == 1,
            pci_bus_id: table.device_pci_bus_id(device)?.to_ascii_lowercase(),
            mig: name.contains(" MIG "),
            name,
        })
    }
}

//! Which devices there are, and which of them is meant.
//!
//! ```no_run
//! let driver = mrm_cuda::probe()?;
//! for device in driver.devices()? {
//!     println!("{}: {} ({} bytes)", device.ordinal, device.uuid, device.total_bytes);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::driver::Attribute;
use crate::error::{CallError, DeviceError};
use crate::probe::Driver;
pub use mrm_proto::ids::{DeviceUuid, UuidError};

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
        self.usable()?;
        let count = self.table().device_count()?;
        let mut visible = Vec::new();
        for ordinal in 0..count {
            let seen = self.uuid(ordinal)?;
            if seen == uuid {
                return self.describe(ordinal).map_err(DeviceError::Call);
            }
            visible.push(seen);
        }
        let setting = match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(value) => format!("CUDA_VISIBLE_DEVICES is {value:?}"),
            Err(_) => "CUDA_VISIBLE_DEVICES is not set".to_owned(),
        };
        Err(DeviceError::NotVisible {
            uuid,
            visible,
            setting,
        })
    }

    fn uuid(self, ordinal: i32) -> Result<DeviceUuid, CallError> {
        let table = self.table();
        table.device_uuid(table.device(ordinal)?).map(DeviceUuid)
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

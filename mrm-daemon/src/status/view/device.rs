//! The device tier in the JSON of the status socket.

use mrm_cuda::Mechanism;
use serde::Serialize;

/// `devices` of `GET /v1/status`: the driver, and each device that it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DevicesView {
    /// Whether there is a driver that can be used.
    pub driver: DriverView,
    /// In the order of the configuration, or of the driver; empty without a driver.
    pub devices: Vec<DeviceView>,
}

/// The CUDA driver, as the daemon found it when it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriverView {
    /// What the probe came to.
    pub state: DriverStateView,
    /// The driver's version, once it is known: `12.4`.
    pub version: Option<String>,
    /// Where its library is, once it is loaded.
    pub library: Option<String>,
    /// What is wrong; null while it is ready or disabled.
    pub cause: Option<String>,
    /// What to do about it; null while it is ready or disabled.
    pub cure: Option<String>,
}

/// What the probe of the driver came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverStateView {
    /// It is there, complete, and sees a device.
    Ready,
    /// No library of it can be loaded.
    NoDriver,
    /// The library is a toolkit's stub.
    Stub,
    /// It sees no device.
    NoDevice,
    /// It is older than what is called for.
    TooOld,
    /// The library lacks functions.
    SymbolMissing,
    /// It did not initialise.
    InitFailed,
    /// Never looked for: `device.enabled = "no"`.
    Disabled,
}

/// One device. While it is ready, `charged_bytes + freeing_bytes` never exceeds `limit_bytes`,
/// except after the limit was lowered, until enough is released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceView {
    /// Its name for every process: `GPU-...`.
    pub uuid: String,
    /// Its product name; null when the daemon does not see it.
    pub name: Option<String>,
    /// Where it is on the PCI bus; null when the daemon does not see it.
    pub pci_bus_id: Option<String>,
    /// Whether models can be on it.
    pub state: DeviceStateView,
    /// Why not; null while it is ready.
    pub cause: Option<String>,
    /// What to do about it; null while it is ready, and where the cause says it.
    pub cure: Option<String>,
    /// How its memory is lent; null when no way was found.
    pub sharing: Option<SharingView>,
    /// Why in that way.
    pub sharing_why: Option<String>,
    /// How a model's tensors are put together on it, unless the model's entry says otherwise.
    pub granularity: GranularityView,
    /// Size of a block, in bytes; null unless the granularity is `block`.
    pub block_bytes: Option<u64>,
    /// All of its memory, in bytes; 0 when the daemon does not see it.
    pub total_bytes: u64,
    /// What the driver last reported as free, in bytes; null when it was not asked or is lost.
    pub free_bytes: Option<u64>,
    /// Kept free for the clients' own work, in bytes.
    pub reserve_bytes: u64,
    /// Most that models may take, in bytes, when nobody else needs the memory.
    pub budget_bytes: u64,
    /// Most that models may take now, in bytes: less while others use the device.
    pub limit_bytes: u64,
    /// Charged for what is loading, resident, or kept free for those who hold models, in bytes.
    pub charged_bytes: u64,
    /// The part of it that is kept free: what clients asked for, or models' `workspace_bytes` say.
    pub reserved_bytes: u64,
    /// Still charged for what is on its way out, in bytes.
    pub freeing_bytes: u64,
    /// Charged for what is resident, in bytes.
    pub resident_bytes: u64,
    /// What the daemon's own context takes of the device, in bytes; null when not measured.
    pub context_bytes: Option<u64>,
    /// Models of which it has all tensors.
    pub images: u64,
    /// Models on their way to it.
    pub loading: u64,
    /// Leases on what it has.
    pub leases: u64,
    /// Devices whose memory it can copy from, by UUID.
    pub peers: Vec<String>,
    /// Whether host memory is registered for its copies.
    pub registration: RegistrationView,
}

/// Whether models can be on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStateView {
    /// Yes.
    Ready,
    /// Not any more: it failed while it was in use.
    Lost,
    /// Never: it could not be used when the daemon started.
    Refused,
}

/// How device memory is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SharingView {
    /// Virtual memory management: file descriptors.
    Vmm,
    /// `cuIpcGetMemHandle`.
    Legacy,
}

/// How the tensors of a model are put together into allocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GranularityView {
    /// All in one.
    Model,
    /// Groups of a fixed size.
    Block,
    /// One each.
    Tensor,
}

/// Whether segments in host memory are registered, so that a device copies out of them itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistrationView {
    /// Whether they are.
    pub state: RegistrationStateView,
    /// Why not; null while they are.
    pub cause: Option<String>,
}

/// Whether host memory is registered for a device's copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RegistrationStateView {
    /// As often as it pays.
    On,
    /// By the configuration, not.
    Off,
    /// The device cannot copy out of memory that may only be read.
    Unsupported,
    /// The driver refused; copies go through a staging buffer.
    Failed,
}

/// A model on one device: only where something of it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelDeviceView {
    /// Which device.
    pub uuid: String,
    /// Where on its way.
    pub state: DeviceCopyStateView,
    /// What it takes there, in bytes, as it is charged.
    pub bytes: u64,
    /// What leases on it keep free there beside that, in bytes.
    pub reserved_bytes: u64,
    /// In place so far, in bytes: grows while it is loading.
    pub loaded_bytes: u64,
    /// Leases on it there.
    pub leases: u64,
}

/// Where a model's copy on a device is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceCopyStateView {
    /// Being copied there.
    Loading,
    /// There.
    Resident,
    /// Being dropped.
    Freeing,
}

impl DevicesView {
    /// No device tier, and by the configuration none is wanted.
    #[must_use]
    pub const fn disabled() -> Self {
        Self {
            driver: DriverView::disabled(),
            devices: Vec::new(),
        }
    }
}

impl DriverView {
    /// A driver that is not looked for.
    #[must_use]
    pub const fn disabled() -> Self {
        Self {
            state: DriverStateView::Disabled,
            version: None,
            library: None,
            cause: None,
            cure: None,
        }
    }

    /// A driver that can be used.
    #[must_use]
    pub fn ready(version: &str, library: &str) -> Self {
        Self {
            state: DriverStateView::Ready,
            version: Some(version.to_owned()),
            library: Some(library.to_owned()),
            cause: None,
            cure: None,
        }
    }

    /// Why there is none: a [`ProbeFailure`](mrm_cuda::ProbeFailure) in its own words.
    #[must_use]
    pub fn failed(id: &str, cause: &str, cure: &str) -> Self {
        Self {
            state: DriverStateView::of_failure(id),
            version: None,
            library: None,
            cause: Some(cause.to_owned()),
            cure: Some(cure.to_owned()),
        }
    }
}

impl DriverStateView {
    /// The state that the [id](mrm_cuda::ProbeFailure::id) of a failed probe stands for.
    #[must_use]
    pub fn of_failure(id: &str) -> Self {
        match id {
            "no_driver_library" => Self::NoDriver,
            "stub_library" => Self::Stub,
            "no_device" => Self::NoDevice,
            "driver_too_old" => Self::TooOld,
            "symbol_missing" => Self::SymbolMissing,
            // "init_failed", and what a later probe may tell apart.
            _ => Self::InitFailed,
        }
    }
}

impl From<Mechanism> for SharingView {
    fn from(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::Vmm => Self::Vmm,
            Mechanism::Legacy => Self::Legacy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mrm_cuda::{CudaError, ProbeFailure};

    #[test]
    fn each_failure_of_the_probe_has_its_state() {
        let no_library = ProbeFailure::NoDriverLibrary {
            tried: Vec::new(),
            reason: String::new(),
        };
        let stub = ProbeFailure::StubLibrary {
            path: String::new(),
        };
        let incomplete = ProbeFailure::SymbolMissing {
            names: Vec::new(),
            path: String::new(),
        };
        let failed = ProbeFailure::InitFailed {
            code: CudaError::NO_DEVICE,
        };
        for (failure, state) in [
            (no_library, DriverStateView::NoDriver),
            (stub, DriverStateView::Stub),
            (ProbeFailure::NoDevice, DriverStateView::NoDevice),
            (incomplete, DriverStateView::SymbolMissing),
            (failed, DriverStateView::InitFailed),
        ] {
            let view = DriverView::failed(failure.id(), &failure.cause(), failure.cure());
            assert_eq!(view.state, state);
            assert!(view.cause.is_some() && view.cure.is_some());
        }
        // Its versions are the driver's to make.
        let old = DriverStateView::of_failure("driver_too_old");
        assert_eq!(old, DriverStateView::TooOld);
    }
}

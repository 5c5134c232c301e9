//! Which devices there are, and which of them can be used.

use super::Device;
use super::self_test::{SelfTest, Tested};
use super::settings::DeviceSettings;
use crate::degraded::Degraded;
use mrm_cuda::{Context, DeviceInfo, DeviceUuid, Driver, Mechanism, ProbeFailure, choose};

/// What came of looking for devices.
#[derive(Debug)]
pub enum Started {
    /// There is no driver to use.
    NoDriver(NoDriver),
    /// There is a driver.
    Driver(Found),
}

/// Why there is no driver to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoDriver {
    /// A short stable name: that of a [`ProbeFailure`].
    pub id: &'static str,
    /// What is wrong, in a sentence without its full stop.
    pub cause: String,
    /// What to do about it.
    pub cure: String,
}

/// A driver, and what it has.
#[derive(Debug)]
pub struct Found {
    /// Its version, as "12.4".
    pub driver_version: String,
    /// Path of its library.
    pub library: String,
    /// The devices that can be used, in the driver's order.
    pub devices: Vec<Usable>,
    /// Those that were wanted and cannot.
    pub refused: Vec<Refused>,
}

/// A device that can be used.
#[derive(Debug)]
pub struct Usable {
    /// The device.
    pub device: Device,
    /// What was found out about it.
    pub report: DeviceReport,
}

/// What was found out about a device when the daemon started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// Its name for every process.
    pub uuid: DeviceUuid,
    /// Its product name.
    pub name: String,
    /// Where it is on the PCI bus.
    pub pci_bus_id: String,
    /// Its memory, as the driver counts it in its context.
    pub total_bytes: u64,
    /// What was free after the daemon had taken its own context.
    pub free_bytes: u64,
    /// How its memory is shared.
    pub mechanism: Mechanism,
    /// Why so, in a sentence without its full stop.
    pub why: String,
    /// What the context of one process costs in the device's memory: what was free before a child
    /// process made one, less what was free after. `None` where the driver did not say.
    pub context_bytes: Option<u64>,
    /// The devices among the usable ones that copy from and to this one directly.
    pub peers: Vec<DeviceUuid>,
    /// Whether segments in host memory can be registered for its copies.
    pub read_only_register: bool,
}

/// A device that was wanted and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name for every process.
    pub uuid: DeviceUuid,
    /// Its product name, if it is visible.
    pub name: Option<String>,
    /// Why not, and the cure.
    pub cause: String,
}

/// Looks for devices: those in `wanted`, or all that are visible if it is empty. Proves for each,
/// by the child processes that `self_test` starts, how its memory is shared. Blocks, for seconds.
/// A device that fails does not take the others with it. Slow paths are reported to `degraded`.
pub fn start(
    settings: &DeviceSettings,
    wanted: &[DeviceUuid],
    self_test: &SelfTest,
    degraded: &Degraded,
) -> Started {
    let no_driver = |id, cause, cure| Started::NoDriver(NoDriver { id, cause, cure });
    let driver = match mrm_cuda::probe() {
        Ok(driver) => driver,
        Err(failure) => {
            return no_driver(failure.id(), failure.cause(), failure.cure().to_string());
        }
    };
    let visible = match driver.devices() {
        Ok(visible) => visible,
        Err(error) => {
            let code = error.cuda().unwrap_or(mrm_cuda::CudaError::NO_DEVICE);
            let failure = ProbeFailure::InitFailed { code };
            return no_driver(failure.id(), error.to_string(), failure.cure().to_string());
        }
    };
    let mut found = Found {
        driver_version: driver.version().to_string(),
        library: driver.library().to_owned(),
        devices: Vec::new(),
        refused: Vec::new(),
    };
    let is_wanted = |info: &&DeviceInfo| wanted.is_empty() || wanted.contains(&info.uuid);
    for info in visible.iter().filter(is_wanted) {
        match take(driver, info, settings, self_test, degraded) {
            Ok(usable) => found.devices.push(usable),
            Err(cause) => found.refused.push(Refused {
                uuid: info.uuid,
                name: Some(info.name.clone()),
                cause,
            }),
        }
    }
    for uuid in wanted {
        if visible.iter().any(|info| info.uuid == *uuid) {
            continue;
        }
        let error = driver.device(*uuid).err();
        let cause = error.map_or_else(|| "it came and went".to_owned(), |error| error.to_string());
        found.refused.push(Refused {
            uuid: *uuid,
            name: None,
            cause,
        });
    }
    find_peers(&mut found.devices, degraded);
    Started::Driver(found)
}

fn take(
    driver: Driver,
    info: &DeviceInfo,
    settings: &DeviceSettings,
    self_test: &SelfTest,
    degraded: &Degraded,
) -> Result<Usable, String> {
    if info.mig {
        return Err(format!(
            "{} ({}) is a MIG slice, whose memory cannot be shared between processes: turn MIG off \
             (nvidia-smi -mig 0), or leave the device out of device.uuids",
            info.uuid, info.name
        ));
    }
    let context = Context::retain(driver, info.uuid).map_err(|error| error.to_string())?;
    let mut context_bytes = None;
    let mut prove = |trial| {
        let Tested { outcome, cost } = self_test.run(trial, &context);
        context_bytes = context_bytes.or(cost);
        outcome
    };
    let choice = choose(settings.sharing, &context, &mut prove).map_err(|e| e.to_string())?;
    if !choice.passed_over.is_empty() {
        degraded.report(
            "device_sharing",
            format!("{}: {}", info.uuid, choice.why),
            "cure what kept vmm from working: it needs no common namespaces, and clients cannot \
             write through it",
        );
    }
    let memory = context.memory().map_err(|error| error.to_string())?;
    let device =
        Device::open(context, choice.mechanism, settings, degraded).map_err(|e| e.to_string())?;
    let report = DeviceReport {
        uuid: info.uuid,
        name: info.name.clone(),
        pci_bus_id: info.pci_bus_id.clone(),
        total_bytes: memory.total_bytes,
        free_bytes: memory.free_bytes,
        mechanism: choice.mechanism,
        why: choice.why,
        context_bytes,
        peers: Vec::new(),
        read_only_register: info.read_only_register,
    };
    Ok(Usable { device, report })
}

fn find_peers(devices: &mut [Usable], degraded: &Degraded) {
    let contexts: Vec<Context> = devices
        .iter()
        .map(|usable| usable.device.context().clone())
        .collect();
    for usable in devices {
        let own = usable.device.context().clone();
        for other in contexts
            .iter()
            .filter(|other| other.device().uuid != own.device().uuid)
        {
            let both = own
                .can_access(other)
                .and_then(|there| Ok(there && other.can_access(&own)?));
            match both {
                Ok(true) => usable.report.peers.push(other.device().uuid),
                Ok(false) => {}
                Err(error) => {
                    degraded.report(
                        "device_peers",
                        error.to_string(),
                        "copies between devices go through host memory; see nvidia-smi topo -p2p r",
                    );
                }
            }
        }
    }
}

//! The device tier: the driver as this process finds it, and as the daemon did.
//!
//! The two can differ: the daemon looks once, when it starts, and as another user, in another
//! container, or confined by its unit.

use super::{Check, Level};
use crate::units;
use crate::wire::{Device, Devices, Status};
use serde_json::{Value, json};
use std::path::Path;

const ID: &str = "gpu";
/// There when the kernel's part of the driver is.
const KERNEL_MODULE: &str = "/proc/driver/nvidia/version";
const RESTART: &str = "restart mrmd, which looks once, when it starts";

/// What a look at the driver came to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Here {
    /// In the daemon's words: `devices.driver.state` of its status.
    state: &'static str,
    version: Option<String>,
    /// What there is, or what is wrong.
    finding: String,
    cure: Option<String>,
}

/// The checks, and the same for programs.
pub(super) fn checks(status: Option<&Status>) -> (Vec<Check>, Value) {
    let here = look();
    let module = Path::new(KERNEL_MODULE).exists();
    let devices = status.map(|status| &status.devices);
    let devices = devices.filter(|devices| !devices.driver.state.is_empty());
    let mut checks = vec![judge(&here, module)];
    if let Some(devices) = devices {
        checks.extend(daemon(&here, devices));
    }
    let document = json!({
        "here": {
            "state": here.state,
            "version": here.version,
            "finding": here.finding,
            "cure": here.cure,
        },
        "mrmd": devices.map(|devices| &devices.driver.state),
    });
    (checks, document)
}

/// Loads and initialises the driver in this process.
#[cfg(feature = "cuda")]
fn look() -> Here {
    let driver = match mrm_cuda::probe() {
        Ok(driver) => driver,
        Err(failure) => {
            return Here {
                state: state_of(failure.id()),
                version: None,
                finding: failure.cause(),
                cure: Some(failure.cure().to_owned()),
            };
        }
    };
    let version = driver.version().to_string();
    match driver.devices() {
        Ok(devices) => {
            let names: Vec<String> = devices
                .iter()
                .map(|device| format!("{} ({})", device.name, device.uuid))
                .collect();
            Here {
                state: "ready",
                finding: format!(
                    "driver {version} in {}: {}",
                    driver.library(),
                    names.join(", ")
                ),
                version: Some(version),
                cure: None,
            }
        }
        Err(error) => Here {
            state: "init_failed",
            version: Some(version),
            finding: error.to_string(),
            cure: Some("see nvidia-smi and the kernel's log (dmesg, Xid)".to_owned()),
        },
    }
}

#[cfg(not(feature = "cuda"))]
fn look() -> Here {
    Here {
        state: "disabled",
        version: None,
        finding: "this `mrm` was built without the feature `cuda` and does not look for GPUs"
            .to_owned(),
        cure: None,
    }
}

/// The daemon's word for what the probe calls `id`.
#[cfg(feature = "cuda")]
fn state_of(id: &str) -> &'static str {
    match id {
        "no_driver_library" => "no_driver",
        "stub_library" => "stub",
        "no_device" => "no_device",
        "driver_too_old" => "too_old",
        "symbol_missing" => "symbol_missing",
        _ => "init_failed",
    }
}

/// Judges what was found here. A machine without a GPU lacks nothing.
fn judge(here: &Here, kernel_module: bool) -> Check {
    match here.state {
        "ready" => Check::pass(ID, &here.finding),
        "disabled" => Check::info(ID, &here.finding),
        "no_driver" if !kernel_module => Check::info(ID, "no GPU driver: host tier only"),
        "no_device" if !kernel_module => {
            Check::info(ID, format!("{}: host tier only", here.finding))
        }
        state => Check {
            cure: here.cure.clone(),
            level: Level::Warn,
            ..Check::pass(ID, format!("{state}: {}", here.finding))
        },
    }
}

/// What the daemon has made of it; nothing where that is no news.
fn daemon(here: &Here, devices: &Devices) -> Vec<Check> {
    const ID: &str = "device_tier";
    let driver = &devices.driver;
    let cause = driver.cause.as_deref().unwrap_or("it does not say why");
    match driver.state.as_str() {
        "ready" if devices.devices.is_empty() => vec![Check::warn(
            ID,
            "mrmd has a driver and uses no device",
            format!("see `device.uuids` in mrm.toml; then {RESTART}"),
        )],
        "ready" => devices.devices.iter().map(device).collect(),
        "disabled" if here.state == "ready" => vec![Check::info(
            ID,
            "mrmd leaves the devices alone: device.enabled is \"no\"",
        )],
        "disabled" => Vec::new(),
        state if state == here.state => Vec::new(),
        state => {
            let cure = match (&driver.cure, here.state) {
                // It may have come after the daemon, or be kept from it.
                (_, "ready") => format!(
                    "{RESTART}; if that does not help, see that it may open /dev/nvidia* \
                     (`DeviceAllow=` in its unit, `--gpus` for its container)"
                ),
                (Some(cure), _) => cure.clone(),
                (None, _) => RESTART.to_owned(),
            };
            vec![Check::warn(ID, format!("mrmd: {state}: {cause}"), cure)]
        }
    }
}

fn device(device: &Device) -> Check {
    const ID: &str = "device";
    let name = device.name.as_deref().unwrap_or("a device");
    let cause = device.cause.as_deref().unwrap_or("mrmd does not say why");
    let found = format!("{name} ({})", device.uuid);
    match device.state.as_str() {
        "ready" => {
            let sharing = device.sharing.as_deref().unwrap_or("unknown");
            let mut found = format!(
                "{found}: {} of {} for models, lent by {sharing}",
                units::bytes(device.limit_bytes),
                units::bytes(device.total_bytes),
            );
            if let Some(why) = &device.sharing_why {
                found = format!("{found} ({why})");
            }
            Check::pass(ID, found)
        }
        "lost" => {
            let cure = device.cure.clone().unwrap_or_else(|| {
                format!("see nvidia-smi and dmesg (Xid), reset the device, then {RESTART}")
            });
            Check::fail(ID, format!("{found} is lost: {cause}"), cure)
        }
        _ => Check {
            cure: device.cure.clone(),
            level: Level::Warn,
            ..Check::pass(ID, format!("{found} is not used: {cause}"))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Driver;

    fn here(state: &'static str) -> Here {
        Here {
            state,
            version: None,
            finding: format!("found {state}"),
            cure: Some("cure it".into()),
        }
    }

    fn driver(state: &str) -> Devices {
        Devices {
            driver: Driver {
                state: state.into(),
                cause: Some("made up".into()),
                ..Driver::default()
            },
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_machine_without_a_gpu_lacks_nothing() {
        for (state, module, level) in [
            ("ready", true, Level::Pass),
            ("no_driver", false, Level::Info),
            ("no_driver", true, Level::Warn),
            ("no_device", false, Level::Info),
            ("no_device", true, Level::Warn),
            ("stub", false, Level::Warn),
            ("too_old", false, Level::Warn),
            ("symbol_missing", false, Level::Warn),
            ("init_failed", false, Level::Warn),
            ("disabled", true, Level::Info),
        ] {
            let check = judge(&here(state), module);
            assert_eq!(check.level, level, "{state} {module}");
            assert_eq!(check.cure.is_some(), level == Level::Warn, "{state}");
        }
    }

    #[test]
    fn the_daemons_word_is_repeated_where_it_differs() {
        for (own, theirs) in [
            ("no_driver", "no_driver"),
            ("no_driver", "disabled"),
            ("stub", "stub"),
        ] {
            assert_eq!(daemon(&here(own), &driver(theirs)), [], "{own} {theirs}");
        }
        let only = |checks: Vec<Check>| {
            assert_eq!(checks.len(), 1, "{checks:?}");
            checks.into_iter().next().unwrap()
        };
        let check = only(daemon(&here("ready"), &driver("no_device")));
        assert_eq!(check.level, Level::Warn);
        assert_eq!(check.finding, "mrmd: no_device: made up");
        assert!(check.cure.unwrap().contains("DeviceAllow"));
        let check = only(daemon(&here("ready"), &driver("disabled")));
        assert_eq!(check.level, Level::Info);
        let check = only(daemon(&here("ready"), &driver("ready")));
        assert_eq!(check.level, Level::Warn);
    }

    #[test]
    fn a_lost_device_is_a_failure() {
        for (state, level) in [
            ("ready", Level::Pass),
            ("lost", Level::Fail),
            ("refused", Level::Warn),
        ] {
            let one = Device {
                uuid: "GPU-1".into(),
                state: state.into(),
                cause: Some("made up".into()),
                ..Device::default()
            };
            let check = device(&one);
            assert_eq!(check.level, level, "{state}");
            assert!(check.finding.contains("GPU-1"));
        }
    }
}

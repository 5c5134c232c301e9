//! What the environment says about the machine to pretend. Read once, at the first call.

use std::collections::HashSet;
use std::env;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::abi::Uuid;
use crate::code;
use crate::faults::{self, Lost, Rule};

/// The most devices that can be pretended: the UUIDs of more would share their first digits.
const DEVICES_MAX: u32 = 16;

/// The pretended machine, as one process sees it.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the processes of one pretended machine meet.
    pub(crate) dir: PathBuf,
    pub(crate) capacity_bytes: u64,
    /// What a context costs in device memory.
    pub(crate) context_bytes: u64,
    pub(crate) init_error: u32,
    pub(crate) driver_version: i32,
    pub(crate) missing: HashSet<String>,
    pub(crate) faults: Vec<Rule>,
    pub(crate) lost: Vec<Lost>,
    pub(crate) delays: Vec<(String, Duration)>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) vmm: bool,
    pub(crate) posix_fd: bool,
    pub(crate) ipc: bool,
    pub(crate) peer: bool,
    pub(crate) read_only_register: bool,
    /// Physical indices of the devices that this process sees, in its order.
    pub(crate) visible: Vec<u32>,
}

/// The settings of this process. A setting that makes no sense is said once on standard error,
/// and every call then fails.
pub(crate) fn settings() -> Result<&'static Settings, u32> {
    static SETTINGS: OnceLock<Option<Settings>> = OnceLock::new();
    SETTINGS
        .get_or_init(|| match Settings::from(&|key| env::var(key).ok()) {
            Ok(settings) => Some(settings),
            Err(message) => {
                eprintln!("mrm-fake-cuda: {message}");
                None
            }
        })
        .as_ref()
        .ok_or(code::UNKNOWN)
}

impl Settings {
    fn from(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let var = |key: &str| {
            lookup(&format!("MRM_FAKE_CUDA_{key}")).filter(|value| !value.trim().is_empty())
        };
        let flag = |key: &str| var(key).is_some_and(|value| value.trim() != "0");
        let number = |key: &str, default: u64| {
            var(key).map_or(Ok(default), |value| {
                bytes(&value).ok_or_else(|| format!("MRM_FAKE_CUDA_{key}={value} is no number"))
            })
        };
        let small = |key: &str, default: u32| -> Result<u32, String> {
            u32::try_from(number(key, u64::from(default))?)
                .map_err(|_| format!("MRM_FAKE_CUDA_{key} is too large"))
        };
        let devices = small("DEVICES", 2)?;
        if devices > DEVICES_MAX {
            return Err(format!(
                "MRM_FAKE_CUDA_DEVICES={devices}: at most {DEVICES_MAX}"
            ));
        }
        Ok(Self {
            dir: var("DIR").map_or_else(default_dir, PathBuf::from),
            capacity_bytes: number("CAPACITY", 8 << 30)?,
            context_bytes: number("CONTEXT_BYTES", 0)?,
            init_error: small("INIT_ERROR", 0)?,
            driver_version: i32::try_from(small("DRIVER_VERSION", 12040)?)
                .map_err(|_| "MRM_FAKE_CUDA_DRIVER_VERSION is too large".to_owned())?,
            missing: var("MISSING")
                .map(|list| list.split(',').map(|name| name.trim().to_owned()).collect())
                .unwrap_or_default(),
            faults: faults::parse(&var("FAULTS").unwrap_or_default())?,
            lost: faults::parse_lost(&var("LOST").unwrap_or_default())?,
            delays: delays(&var("DELAY_US").unwrap_or_default())?,
            log: var("LOG").map(PathBuf::from),
            vmm: !flag("NO_VMM"),
            posix_fd: !flag("NO_VMM") && !flag("NO_POSIX_FD"),
            ipc: !flag("NO_IPC"),
            peer: !flag("NO_PEER"),
            read_only_register: !flag("NO_READ_ONLY_REGISTER"),
            visible: visible(lookup("CUDA_VISIBLE_DEVICES").as_deref(), devices),
        })
    }

    /// How long a call takes, or the work that it queues. The delay of a function that is
    /// asynchronous by name is the work's.
    pub(crate) fn delay(&self, function: &str, queued: bool) -> Duration {
        self.delays
            .iter()
            .filter(|(name, _)| match name.as_str() {
                "*" => queued,
                name => name == function && queued == function.contains("Async"),
            })
            .map(|(_, delay)| *delay)
            .sum()
    }
}

/// The UUID of a device. The first digits differ, so that an abbreviation names one device.
pub(crate) fn uuid(device: u32) -> Uuid {
    let first = 0xf0 | u8::try_from(device).unwrap_or(0x0f);
    Uuid {
        bytes: [
            first, 0x6d, 0x72, 0x6d, 0xfa, 0xce, 0x4c, 0xda, 0x80, 0, 0, 0, 0, 0, 0, first,
        ],
    }
}

/// A UUID as `CUDA_VISIBLE_DEVICES` and `nvidia-smi -L` write it.
pub fn uuid_text(uuid: &Uuid) -> String {
    let mut text = String::from("GPU-");
    for (index, byte) in uuid.bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// `CUDA_VISIBLE_DEVICES`: ordinals and abbreviated UUIDs. The first entry that names no device,
/// or one that is named already, ends the list.
fn visible(setting: Option<&str>, devices: u32) -> Vec<u32> {
    let Some(setting) = setting else {
        return (0..devices).collect();
    };
    let mut seen = Vec::new();
    for entry in setting.split(',').map(str::trim) {
        let named: Vec<u32> = if entry.starts_with("GPU-") {
            let wanted = entry.to_ascii_lowercase();
            (0..devices)
                .filter(|device| {
                    uuid_text(&uuid(*device))
                        .to_ascii_lowercase()
                        .starts_with(&wanted)
                })
                .collect()
        } else {
            entry
                .parse()
                .ok()
                .filter(|device| *device < devices)
                .into_iter()
                .collect()
        };
        match named.as_slice() {
            [device] if !seen.contains(device) => seen.push(*device),
            _ => break,
        }
    }
    seen
}

fn default_dir() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    env::temp_dir().join(format!("mrm-fake-cuda-{user}"))
}

/// `8GiB`, `512 MiB`, `64K`, or a plain number; hexadecimal is not needed.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `500` for all queued work, or `cuMemCreate:500,*:100`.
fn delays(text: &str) -> Result<Vec<(String, Duration)>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let (name, micros) = entry.split_once(':').unwrap_or(("*", entry));
            let micros = micros
                .parse()
                .map_err(|_| format!("delay {entry} is no number"))?;
            Ok((name.to_owned(), Duration::from_micros(micros)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_devices_by_index_and_by_uuid_until_one_is_unknown() {
        assert_eq!(visible(None, 3), [0, 1, 2]);
        assert_eq!(visible(Some(""), 3), [0_u32; 0]);
        assert_eq!(visible(Some("2,0"), 3), [2, 0]);
        assert_eq!(visible(Some("1,9,0"), 3), [1]);
        assert_eq!(visible(Some("1,1"), 3), [1]);
        assert_eq!(visible(Some("GPU-f2, 0"), 3), [2, 0]);
        assert_eq!(visible(Some("GPU-f"), 3), [0_u32; 0], "names three");
        assert_eq!(visible(Some(&uuid_text(&uuid(1))), 3), [1]);
    }

    #[test]
    fn reads_sizes_and_delays() {
        assert_eq!(bytes("8GiB"), Some(8 << 30));
        assert_eq!(bytes("64 M"), Some(64 << 20));
        assert_eq!(bytes("7"), Some(7));
        assert_eq!(bytes("7x"), None);
        assert_eq!(bytes("99999999T"), None);
        assert!(delays("cuMemCreate:5,*:x").is_err());
        assert_eq!(
            delays("50").unwrap(),
            [("*".to_owned(), Duration::from_micros(50))]
        );
    }
}

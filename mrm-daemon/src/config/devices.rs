//! Reads `[device]` and its tables `[device.gpu."GPU-..."]`.

use super::Size;
use super::device::{DEVICE_BUDGET_BYTES_MIN, DeviceConfig, Enabled, GpuEntry, Granularity};
use super::file::{self, Document, unknown_among};
use super::problem::{Place, Problem, Wrong};
use super::setting::{DEVICE_ENABLED, GRANULARITIES, Key, REGISTER, SHARING};
use super::values::{self, Form, Given, Reader};
use crate::device::{DeviceSettings, Register};
use mrm_cuda::DeviceUuid;
use mrm_proto::layout::ALIGNMENT_BYTES;
use std::collections::BTreeMap;
use toml::de::DeValue;

/// The table of `[device]` that has a table for each device.
pub(super) const GPU_KEY: &str = "gpu";
const GPU_KEYS: &[&str] = &["budget_bytes", "reserve_bytes"];

/// `[device]` without its tables.
pub(super) fn settings(reader: &mut Reader<'_>) -> DeviceConfig {
    let default = DeviceConfig::default();
    let fill = &default.settings;
    let settings = DeviceSettings {
        sharing: reader.read(Key::DeviceSharing, fill.sharing, |given| {
            values::word(given, SHARING, |word| word.parse().ok())
        }),
        stage_bytes: reader.bytes(Key::DeviceStageBytes, fill.stage_bytes),
        stage_slots: reader.count(Key::DeviceStageSlots, fill.stage_slots),
        register: reader.read(Key::DeviceRegister, fill.register, |given| {
            values::word(given, REGISTER, register_from_word)
        }),
        fill_threads: reader.count(Key::DeviceFillThreads, fill.fill_threads),
    };
    DeviceConfig {
        enabled: reader.read(Key::DeviceEnabled, default.enabled, |given| {
            values::word(given, DEVICE_ENABLED, Enabled::from_word)
        }),
        uuids: reader.read(Key::DeviceUuids, Vec::new(), uuids),
        budget: reader.read(Key::DeviceBudgetBytes, default.budget, budget),
        reserve: reader.read(Key::DeviceReserveBytes, default.reserve, reserve),
        gpus: Vec::new(),
        granularity: reader.read(Key::DeviceGranularity, default.granularity, |given| {
            values::word(given, GRANULARITIES, Granularity::from_word)
        }),
        block_bytes: reader.read(Key::DeviceBlockBytes, default.block_bytes, block_bytes),
        policy: reader.read(Key::DevicePolicy, default.policy, values::policy),
        private_uids: reader.read(Key::DevicePrivateUids, Vec::new(), uids),
        user_reserve_percent: {
            let default = default.user_reserve_percent.into();
            let percent = reader.number(Key::DeviceUserReservePercent, default);
            u8::try_from(percent).unwrap_or(u8::MAX)
        },
        settings,
    }
}

fn register_from_word(word: &str) -> Option<Register> {
    match word {
        "auto" => Some(Register::Auto),
        "never" => Some(Register::Never),
        "always" => Some(Register::Always),
        _ => None,
    }
}

fn block_bytes(given: &Given) -> Result<u64, Wrong> {
    let bytes = values::bytes(Key::DeviceBlockBytes.setting(), given)?;
    if !bytes.is_multiple_of(ALIGNMENT_BYTES) {
        let reason = format!("not a multiple of {ALIGNMENT_BYTES}, where each tensor begins");
        return Err(Wrong::new(reason, "write for example \"256MiB\""));
    }
    Ok(bytes)
}

/// A budget, as far as it can be judged without its device.
fn budget(given: &Given) -> Result<Size, Wrong> {
    match values::size(given)? {
        Size::Bytes(bytes) if bytes < DEVICE_BUDGET_BYTES_MIN => Err(Wrong::new(
            "too small to hold any model",
            format!("give at least {}", Size::Bytes(DEVICE_BUDGET_BYTES_MIN)),
        )),
        size @ (Size::Bytes(_) | Size::Percent(_)) => Ok(size),
    }
}

fn reserve(given: &Given) -> Result<Size, Wrong> {
    match values::size(given)? {
        Size::Percent(100) => Err(Wrong::new(
            "leaves nothing to models",
            "give a smaller share, or set device.enabled = \"no\"",
        )),
        size @ (Size::Bytes(_) | Size::Percent(_)) => Ok(size),
    }
}

fn uuids(given: &Given) -> Result<Vec<DeviceUuid>, Wrong> {
    let remedy = "write for example [\"GPU-...\"], with the UUIDs that `nvidia-smi -L` lists";
    each(given, remedy, ("name each device once", uuid))
}

fn uids(given: &Given) -> Result<Vec<u32>, Wrong> {
    let remedy = "write for example [\"1000\"], with the numbers that `id -u` prints";
    let uid = |text: &str| {
        let number = text.parse();
        number.map_err(|_| Wrong::new(format!("{text} is not the number of a user"), remedy))
    };
    each(given, remedy, ("name each user once", uid))
}

/// The items of a list, each once. `remedy` is for what is not a list.
fn each<T: PartialEq + std::fmt::Display>(
    given: &Given,
    remedy: &str,
    (once, item): (&str, impl Fn(&str) -> Result<T, Wrong>),
) -> Result<Vec<T>, Wrong> {
    match given.form {
        Form::Bare | Form::List => {}
        Form::Quoted | Form::Integer { .. } => return Err(Wrong::new("is not a list", remedy)),
    }
    let mut found = Vec::new();
    let texts = given.text.split(',').map(str::trim);
    for text in texts.filter(|text| !text.is_empty()) {
        let item = item(text)?;
        if found.contains(&item) {
            return Err(Wrong::new(format!("{item} is given twice"), once));
        }
        found.push(item);
    }
    Ok(found)
}

fn uuid(text: &str) -> Result<DeviceUuid, Wrong> {
    let remedy = "give it as `nvidia-smi -L` lists it, GPU-...";
    text.parse()
        .map_err(|error: mrm_cuda::device::UuidError| Wrong::new(error.to_string(), remedy))
}

/// The tables `[device.gpu."GPU-..."]` of a file.
pub(super) fn gpus_of_file(
    document: Document<'_>,
    place: Place,
    value: &DeValue<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<(GpuEntry, Place)> {
    let not_table = || Wrong::new("is a table", "write it as [device.gpu.\"GPU-...\"]");
    let Some(table) = value.as_table() else {
        problems.push(not_table().at(place, "device.gpu", None));
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in table.iter() {
        let (name, place) = (key.get_ref().as_ref(), document.place(key.span().start));
        let uuid = match uuid(name) {
            Ok(uuid) => uuid,
            Err(wrong) => {
                problems.push(wrong.at(place, "device.gpu", Some(name.to_owned())));
                continue;
            }
        };
        let Some(table) = value.get_ref().as_table() else {
            problems.push(not_table().at(place, &format!("device.gpu.\"{uuid}\""), None));
            continue;
        };
        let mut entry = GpuEntry {
            uuid,
            budget: None,
            reserve: None,
        };
        for (key, value) in table.iter() {
            let (name, place) = (key.get_ref().as_ref(), document.place(key.span().start));
            let full = format!("device.gpu.\"{uuid}\".{name}");
            if let Err((wrong, value)) = gpu_key(&mut entry, name, value.get_ref(), &place) {
                problems.push(wrong.at(place, &full, value));
            }
        }
        found.push((entry, place));
    }
    found
}

/// Sets one key of a device's table; what is wrong comes with the value.
fn gpu_key(
    entry: &mut GpuEntry,
    name: &str,
    value: &DeValue<'_>,
    place: &Place,
) -> Result<(), (Wrong, Option<String>)> {
    if !GPU_KEYS.contains(&name) {
        return Err((unknown_among(name, GPU_KEYS), None));
    }
    let given = file::given(value, place.clone()).map_err(|wrong| (wrong, None))?;
    let read = if name == "budget_bytes" {
        budget(&given).map(|size| entry.budget = Some(size))
    } else {
        reserve(&given).map(|size| entry.reserve = Some(size))
    };
    read.map_err(|wrong| (wrong, Some(given.text)))
}

/// Each device once, and none that is not to be used.
pub(super) fn unique_gpus(
    entries: Vec<(GpuEntry, Place)>,
    uuids: &[DeviceUuid],
    problems: &mut Vec<Problem>,
) -> Vec<GpuEntry> {
    let mut seen: BTreeMap<DeviceUuid, Place> = BTreeMap::new();
    let mut kept = Vec::with_capacity(entries.len());
    for (entry, place) in entries {
        let uuid = entry.uuid;
        let wrong = match seen.get(&uuid) {
            Some(first) => Wrong::new(
                format!("is given twice, first at {first}"),
                "give each device one table",
            ),
            None if !uuids.is_empty() && !uuids.contains(&uuid) => Wrong::new(
                "is not one of device.uuids",
                "add it there, or remove this table",
            ),
            None => {
                seen.insert(uuid, place);
                kept.push(entry);
                continue;
            }
        };
        problems.push(wrong.at(place, "device.gpu", Some(uuid.to_string())));
    }
    kept
}

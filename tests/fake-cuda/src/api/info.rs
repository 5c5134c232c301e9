//! What the driver tells about errors, pointers and itself.

use std::ffi::{c_char, c_void};
use std::ptr;

use crate::abi::{DevicePtr, HANDLE_TYPE_POSIX_FD};
use crate::api::legacy::range_of;
use crate::api::{TABLES, ordinal_out, size};
use crate::args::{In, Out};
use crate::call::{Symbol, driver};
use crate::code;
use crate::context;
use crate::process::{Process, process, strongest};
use crate::settings::settings;

const FOUND: u32 = 0;
const SYMBOL_NOT_FOUND: u32 = 1;
const MEMORY_TYPE_HOST: u32 = 1;
const MEMORY_TYPE_DEVICE: u32 = 2;

driver! {
    /// The name of an error; none, and 1, for a number that this driver does not know.
    Nothing fn cuGetErrorName(error: u32, name: Out<*const c_char>) {
        let found = code::name(error);
        name.set(found.map_or(ptr::null(), |text| text.as_ptr()))?;
        found.map(|_| ()).ok_or(code::INVALID_VALUE)
    }

    /// A text for an error: its name once more.
    Nothing fn cuGetErrorString(error: u32, text: Out<*const c_char>) {
        let found = code::name(error);
        text.set(found.map_or(ptr::null(), |name| name.as_ptr()))?;
        found.map(|_| ()).ok_or(code::INVALID_VALUE)
    }

    /// What an address is.
    Init fn cuPointerGetAttribute(value: Out<c_void>, attribute: u32, ptr: DevicePtr) {
        let process = process()?;
        value.check()?;
        let what = Pointer::at(&process, size(ptr)?).ok_or(code::INVALID_VALUE)?;
        what.tell(&process, value, attribute, ptr)
    }

    /// The address of a function by its name without version.
    Nothing fn cuGetProcAddress_v2(
        symbol: In<c_char>, function: Out<*const c_void>, version: i32, flags: u64,
        status: Out<u32>,
    ) {
        let found = lookup(symbol, version, flags);
        let state = if found.is_ok() { FOUND } else { SYMBOL_NOT_FOUND };
        status.set_if_wanted(state);
        function.set(found.unwrap_or(ptr::null()))?;
        found.map(|_| ())
    }

    /// The same, of before CUDA 12.
    Nothing fn cuGetProcAddress(
        symbol: In<c_char>, function: Out<*const c_void>, version: i32, flags: u64,
    ) {
        let found = lookup(symbol, version, flags);
        function.set(found.unwrap_or(ptr::null()))?;
        found.map(|_| ())
    }
}

fn lookup(symbol: In<c_char>, version: i32, flags: u64) -> Result<*const c_void, u32> {
    let symbol = symbol.text()?;
    let settings = settings()?;
    if flags > 2 || version < 0 {
        return Err(code::INVALID_VALUE);
    }
    ["_v2", ""]
        .iter()
        .map(|suffix| format!("{symbol}{suffix}"))
        .filter(|name| !settings.missing.contains(name))
        .filter(|_| !symbol.ends_with("_v2"))
        .find_map(|name| exported(&name))
        .ok_or(code::NOT_FOUND)
}

fn exported(name: &str) -> Option<*const c_void> {
    let mut all = TABLES.iter().copied().flatten();
    all.find(|(known, _)| *known == name)
        .map(|(_, Symbol(address))| *address)
}

/// What lies at an address.
struct Pointer {
    start: usize,
    bytes: usize,
    /// None for memory of the host.
    ordinal: Option<usize>,
    handle_types: u32,
    access: u32,
    legacy_ipc: bool,
}

impl Pointer {
    fn at(process: &Process, address: usize) -> Option<Self> {
        let (start, bytes) = range_of(process, address)?;
        let mut found = Self {
            start,
            bytes,
            ordinal: None,
            handle_types: 0,
            access: crate::abi::ACCESS_READ_WRITE,
            legacy_ipc: false,
        };
        if let Some(allocation) = process.allocations.get(&start) {
            found.ordinal = Some(allocation.ordinal);
            found.legacy_ipc = process.settings.ipc;
        } else if let Some(mapping) = process.mappings.get(&start) {
            found.ordinal = process.ordinal_of(&mapping.block);
            found.handle_types = mapping.block.handle_types & HANDLE_TYPE_POSIX_FD;
            found.access = strongest(&mapping.access);
        } else if !process.host.contains_key(&start) {
            let opened = process
                .opened
                .values()
                .find(|opened| opened.area.start() == start)?;
            found.ordinal = Some(opened.ordinal);
        }
        Some(found)
    }

    /// Attributes by their numbers in `cuda.h`; their types differ.
    fn tell(
        &self,
        process: &Process,
        value: Out<c_void>,
        attribute: u32,
        ptr: DevicePtr,
    ) -> Result<(), u32> {
        let on_device = self.ordinal.is_some();
        let home = self
            .ordinal
            .or_else(|| context::top().and_then(|top| context::active(process, top).ok()));
        match attribute {
            1 => value.cast().set(self.ordinal.map_or(0, context::of)),
            2 if on_device => value.cast().set(MEMORY_TYPE_DEVICE),
            2 => value.cast().set(MEMORY_TYPE_HOST),
            3 => value.cast().set(ptr),
            4 if !on_device => value.cast().set(ptr),
            8 => value.cast().set(false),
            9 => value.cast().set(home.map_or(-2, ordinal_out)),
            10 => value.cast().set(self.legacy_ipc),
            11 => value.cast().set(self.start as u64),
            12 => value.cast().set(self.bytes),
            13 => value.cast().set(true),
            14 => value.cast().set(u64::from(self.handle_types)),
            16 => value.cast().set(self.access),
            _ => Err(code::INVALID_VALUE),
        }
    }
}

/// The names of all exported functions.
pub fn exported_names() -> Vec<&'static str> {
    TABLES
        .iter()
        .copied()
        .flatten()
        .map(|(name, _)| *name)
        .collect()
}

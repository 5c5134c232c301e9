//! Pinned memory of the host.

use std::fs;
use std::ops::Range;

use crate::abi::{DevicePtr, HOST_REGISTER_READ_ONLY};
use crate::api::settle;
use crate::args::Out;
use crate::call::driver;
use crate::code;
use crate::context::current;
use crate::process::{Host, process};
use crate::space::{Area, Pin};

/// The flags of `cuMemHostRegister`, all but the one for memory of other hardware.
const REGISTER_FLAGS: u32 = 0x1 | 0x2 | HOST_REGISTER_READ_ONLY;
const ALLOC_FLAGS: u32 = 0x1 | 0x2 | 0x4;

driver! {
    /// Allocates pinned memory.
    Init fn cuMemHostAlloc(ptr: Out<usize>, bytes: usize, flags: u32) {
        if flags & !ALLOC_FLAGS != 0 {
            return Err(code::INVALID_VALUE);
        }
        allocate(ptr, bytes)
    }

    /// The same without flags.
    Init fn cuMemAllocHost_v2(ptr: Out<usize>, bytes: usize) {
        allocate(ptr, bytes)
    }

    /// Frees it, after the work that is queued.
    Init fn cuMemFreeHost(ptr: usize) {
        current(&*process()?)?;
        settle(None)?;
        let mut process = process()?;
        match process.host.get(&ptr) {
            Some(Host::Allocated { .. }) => process.host.remove(&ptr),
            Some(Host::Registered { .. }) | None => return Err(code::INVALID_VALUE),
        };
        Ok(())
    }

    /// Pins memory of the caller. Memory that the caller cannot write needs the flag that says
    /// so.
    Init fn cuMemHostRegister_v2(ptr: usize, bytes: usize, flags: u32) {
        let mut process = process()?;
        current(&process)?;
        let end = ptr.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
        if ptr == 0 || bytes == 0 || flags & !REGISTER_FLAGS != 0 {
            return Err(code::INVALID_VALUE);
        }
        let read_only = flags & HOST_REGISTER_READ_ONLY != 0;
        if read_only && !process.settings.read_only_register {
            return Err(code::NOT_SUPPORTED);
        }
        let before = process.host.range(..end).next_back();
        if before.is_some_and(|(start, host)| start + host.bytes() > ptr) {
            return Err(code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        if !accessible(ptr..end, !read_only) {
            return Err(code::INVALID_VALUE);
        }
        let registered = Host::Registered { bytes, pin: Pin::take(ptr, bytes) };
        process.host.insert(ptr, registered);
        Ok(())
    }

    /// Lets it go, after the work that is queued.
    Init fn cuMemHostUnregister(ptr: usize) {
        current(&*process()?)?;
        settle(None)?;
        let mut process = process()?;
        match process.host.get(&ptr) {
            Some(Host::Registered { .. }) => process.host.remove(&ptr),
            Some(Host::Allocated { .. }) | None => {
                return Err(code::HOST_MEMORY_NOT_REGISTERED);
            }
        };
        Ok(())
    }

    /// The address by which a device uses pinned memory: the same.
    Init fn cuMemHostGetDevicePointer_v2(device_ptr: Out<DevicePtr>, ptr: usize, flags: u32) {
        let process = process()?;
        current(&process)?;
        if flags != 0 || !process.pinned(ptr, 1) {
            return Err(code::INVALID_VALUE);
        }
        device_ptr.set(ptr as u64)
    }
}

fn allocate(ptr: Out<usize>, bytes: usize) -> Result<(), u32> {
    let mut process = process()?;
    current(&process)?;
    ptr.check()?;
    if bytes == 0 {
        return Err(code::INVALID_VALUE);
    }
    let rounded = bytes
        .checked_next_multiple_of(4096)
        .ok_or(code::OUT_OF_MEMORY)?;
    let area = Area::host(rounded)?;
    let start = area.start();
    process.host.insert(start, Host::Allocated { area });
    ptr.set(start)
}

/// Whether the kernel lists all pages of a range as readable, and writable if they must be.
fn accessible(range: Range<usize>, write: bool) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut covered = range.start;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (Some(place), Some(access)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((from, to)) = place.split_once('-') else {
            continue;
        };
        let (Ok(from), Ok(to)) = (
            usize::from_str_radix(from, 16),
            usize::from_str_radix(to, 16),
        ) else {
            continue;
        };
        if to <= covered {
            continue;
        }
        let suits = access.starts_with('r') && (!write || access.get(1..2) == Some("w"));
        if from > covered || !suits {
            return false;
        }
        covered = to;
        if covered >= range.end {
            return true;
        }
    }
    false
}

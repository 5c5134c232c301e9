//! Virtual memory management: allocations without an address, and addresses without memory.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::sync::Arc;

use crate::abi::{
    ACCESS_NONE, ACCESS_READ, ACCESS_READ_WRITE, ALLOCATION_PINNED, AccessDesc, AllocationProp,
    DevicePtr, GRANULARITY_BYTES, HANDLE_TYPE_POSIX_FD, Handle, LOCATION_DEVICE, Location,
};
use crate::api::{is_granular, ordinal_out, settle, size};
use crate::args::{In, Out};
use crate::block::Block;
use crate::call::driver;
use crate::code;
use crate::process::{HandleEntry, Mapping, Process, process, strongest};
use crate::settings::settings;
use crate::space::Area;

driver! {
    /// The unit of sizes and addresses: 2 MiB.
    Init fn cuMemGetAllocationGranularity(
        bytes: Out<usize>, prop: In<AllocationProp>, option: u32,
    ) {
        let process = supported()?;
        checked(&process, &prop.get()?)?;
        if option > 1 {
            return Err(code::INVALID_VALUE);
        }
        bytes.set(size(GRANULARITY_BYTES)?)
    }

    /// Takes memory from a device.
    Init fn cuMemCreate(handle: Out<Handle>, bytes: usize, prop: In<AllocationProp>, flags: u64) {
        let mut process = supported()?;
        handle.check()?;
        let prop = prop.get()?;
        let ordinal = checked(&process, &prop)?;
        let bytes = bytes as u64;
        if flags != 0 || bytes == 0 || !is_granular(bytes) {
            return Err(code::INVALID_VALUE);
        }
        process.usable(ordinal)?;
        let physical = crate::api::physical(&process, ordinal)?;
        let block = Block::create(&process.registry, physical, bytes, prop.handle_types)?;
        handle.set(process.add_handle(block))
    }

    /// Gives one reference of a handle back.
    Init fn cuMemRelease(handle: Handle) {
        let mut process = supported()?;
        let entry = process.handles.get_mut(&handle).ok_or(code::INVALID_VALUE)?;
        entry.references -= 1;
        if entry.references == 0 {
            process.handles.remove(&handle);
        }
        Ok(())
    }

    /// Makes a descriptor that keeps the memory alive by itself; the caller closes it.
    Init fn cuMemExportToShareableHandle(
        fd: Out<i32>, handle: Handle, handle_type: u32, flags: u64,
    ) {
        let process = supported()?;
        fd.check()?;
        let block = block(&process, handle)?;
        process.block_usable(block)?;
        if flags != 0
            || handle_type != HANDLE_TYPE_POSIX_FD
            || block.handle_types & handle_type == 0
        {
            return Err(code::INVALID_VALUE);
        }
        fd.set(block.export()?.into_raw_fd())
    }

    /// Makes a handle of a descriptor, which stays the caller's.
    Init fn cuMemImportFromShareableHandle(handle: Out<Handle>, fd: usize, handle_type: u32) {
        let mut process = supported()?;
        handle.check()?;
        if handle_type != HANDLE_TYPE_POSIX_FD {
            return Err(code::INVALID_VALUE);
        }
        if !process.settings.posix_fd {
            return Err(code::NOT_SUPPORTED);
        }
        // The interface passes the number in place of a pointer.
        let block = Block::import(u32::try_from(fd & 0xffff_ffff).unwrap_or(0).cast_signed())?;
        if block.handle_types & handle_type == 0 {
            return Err(code::INVALID_VALUE);
        }
        let ordinal = process.ordinal_of(&block).ok_or(code::NOT_SUPPORTED)?;
        process.usable(ordinal)?;
        handle.set(process.add_handle(block))
    }

    /// Reserves addresses.
    Init fn cuMemAddressReserve(
        ptr: Out<DevicePtr>, bytes: usize, alignment: usize, hint: DevicePtr, flags: u64,
    ) {
        let mut process = supported()?;
        ptr.check()?;
        let granularity = size(GRANULARITY_BYTES)?;
        let is_power = alignment == 0 || alignment.is_power_of_two();
        if flags != 0 || bytes == 0 || !is_granular(bytes as u64) || !is_power {
            return Err(code::INVALID_VALUE);
        }
        let area = Area::reserve(bytes, alignment.max(granularity), size(hint)?)?;
        let start = area.start();
        process.reservations.insert(start, area);
        ptr.set(start as u64)
    }

    /// Gives addresses back, all that one call reserved.
    Init fn cuMemAddressFree(ptr: DevicePtr, bytes: usize) {
        let mut process = supported()?;
        let start = size(ptr)?;
        let area = process.reservations.get(&start).ok_or(code::INVALID_VALUE)?;
        let mapped = process.mappings.range(start..start + area.bytes()).next().is_some();
        if area.bytes() != bytes || mapped {
            return Err(code::INVALID_VALUE);
        }
        process.reservations.remove(&start);
        Ok(())
    }

    /// Puts memory at addresses, still without access.
    Init fn cuMemMap(ptr: DevicePtr, bytes: usize, offset: usize, handle: Handle, flags: u64) {
        let mut process = supported()?;
        let entry = process.handles.get(&handle).ok_or(code::INVALID_VALUE)?;
        let block = Arc::clone(&entry.block);
        process.block_usable(&block)?;
        let granular = is_granular(ptr) && is_granular(bytes as u64);
        if flags != 0 || offset != 0 || bytes == 0 || !granular || bytes as u64 > block.bytes {
            return Err(code::INVALID_VALUE);
        }
        let (area, part) = reserved(&process, ptr, bytes)?;
        let range = area.start() + part.start..area.start() + part.end;
        let before = process.mappings.range(..range.end).next_back();
        if before.is_some_and(|(start, mapping)| start + mapping.bytes > range.start) {
            return Err(code::INVALID_VALUE);
        }
        area.map(part, block.fd())?;
        let access = BTreeMap::new();
        let mapping = Mapping { bytes, block, handle, access };
        process.mappings.insert(range.start, mapping);
        Ok(())
    }

    /// Takes memory from addresses: whole mappings, after the work that is queued.
    Init fn cuMemUnmap(ptr: DevicePtr, bytes: usize) {
        whole(&*supported()?, ptr, bytes)?;
        settle(None)?;
        let mut process = supported()?;
        for start in whole(&process, ptr, bytes)? {
            let mapping = process.mappings.get(&start).ok_or(code::INVALID_VALUE)?;
            process.block_usable(&mapping.block)?;
            let (area, part) = reserved(&process, start as u64, mapping.bytes)?;
            area.unmap(part)?;
            process.mappings.remove(&start);
        }
        Ok(())
    }

    /// Sets how devices may access whole mappings.
    Init fn cuMemSetAccess(ptr: DevicePtr, bytes: usize, desc: In<AccessDesc>, count: usize) {
        whole(&*supported()?, ptr, bytes)?;
        settle(None)?;
        let mut process = supported()?;
        let starts = whole(&process, ptr, bytes)?;
        let mut wanted = Vec::new();
        for index in 0..count {
            let desc = desc.get_at(index)?;
            let ordinal = process.located(desc.location)?;
            process.usable(ordinal)?;
            if !matches!(desc.flags, ACCESS_NONE | ACCESS_READ | ACCESS_READ_WRITE) {
                return Err(code::INVALID_VALUE);
            }
            wanted.push((ordinal, desc.flags));
        }
        if wanted.is_empty() {
            return Err(code::INVALID_VALUE);
        }
        for start in &starts {
            let mapping = process.mappings.get(start).ok_or(code::INVALID_VALUE)?;
            let home = process.ordinal_of(&mapping.block);
            if !process.settings.peer && wanted.iter().any(|(one, _)| Some(*one) != home) {
                return Err(code::INVALID_DEVICE);
            }
        }
        for start in starts {
            allow(&mut process, start, &wanted)?;
        }
        Ok(())
    }

    /// How a device may access an address.
    Init fn cuMemGetAccess(flags: Out<u64>, location: In<Location>, ptr: DevicePtr) {
        let process = supported()?;
        let ordinal = process.located(location.get()?)?;
        let (_, mapping) = at(&process, size(ptr)?).ok_or(code::INVALID_VALUE)?;
        let access = mapping.access.get(&ordinal_out(ordinal)).copied();
        flags.set(u64::from(access.unwrap_or(ACCESS_NONE)))
    }

    /// The handle of the memory at an address, with one more reference.
    Init fn cuMemRetainAllocationHandle(handle: Out<Handle>, address: usize) {
        let mut process = supported()?;
        handle.check()?;
        let (_, mapping) = at(&process, address).ok_or(code::INVALID_VALUE)?;
        let (kept, block) = (mapping.handle, Arc::clone(&mapping.block));
        let entry = process.handles.entry(kept).or_insert(HandleEntry { block, references: 0 });
        entry.references += 1;
        handle.set(kept)
    }

    /// What a handle was created with.
    Init fn cuMemGetAllocationPropertiesFromHandle(prop: Out<AllocationProp>, handle: Handle) {
        let process = supported()?;
        let block = block(&process, handle)?;
        let ordinal = process.ordinal_of(block).ok_or(code::INVALID_VALUE)?;
        prop.set(AllocationProp {
            kind: ALLOCATION_PINNED,
            handle_types: block.handle_types,
            location: Location { kind: LOCATION_DEVICE, id: ordinal_out(ordinal) },
            win32_meta_data: std::ptr::null_mut(),
            flags: [0; 8],
        })
    }
}

fn supported() -> Result<std::sync::MutexGuard<'static, Process>, u32> {
    if settings()?.vmm {
        process()
    } else {
        Err(code::NOT_SUPPORTED)
    }
}

/// Checks what memory is asked for, and tells the ordinal of its device.
fn checked(process: &Process, prop: &AllocationProp) -> Result<usize, u32> {
    if prop.kind != ALLOCATION_PINNED || !prop.win32_meta_data.is_null() {
        return Err(code::INVALID_VALUE);
    }
    let ordinal = process.located(prop.location)?;
    let offered = if process.settings.posix_fd {
        HANDLE_TYPE_POSIX_FD
    } else {
        0
    };
    if prop.handle_types & !offered != 0 {
        return Err(code::NOT_SUPPORTED);
    }
    Ok(ordinal)
}

fn block(process: &Process, handle: Handle) -> Result<&Block, u32> {
    let entry = process.handles.get(&handle).ok_or(code::INVALID_VALUE)?;
    Ok(&entry.block)
}

/// The reservation that holds a range, and the range within it.
fn reserved(process: &Process, ptr: DevicePtr, bytes: usize) -> Result<(&Area, Range<usize>), u32> {
    let start = size(ptr)?;
    let below = (Bound::Unbounded, Bound::Included(start));
    let (base, area) = process
        .reservations
        .range(below)
        .next_back()
        .ok_or(code::INVALID_VALUE)?;
    let from = start - base;
    match from.checked_add(bytes) {
        Some(to) if to <= area.bytes() => Ok((area, from..to)),
        _ => Err(code::INVALID_VALUE),
    }
}

/// The mapping at an address.
fn at(process: &Process, address: usize) -> Option<(usize, &Mapping)> {
    let below = (Bound::Unbounded, Bound::Included(address));
    let (start, mapping) = process.mappings.range(below).next_back()?;
    (address < start + mapping.bytes).then_some((*start, mapping))
}

/// The starts of the mappings that fill a range exactly.
fn whole(process: &Process, ptr: DevicePtr, bytes: usize) -> Result<Vec<usize>, u32> {
    let start = size(ptr)?;
    let end = start.checked_add(bytes).ok_or(code::INVALID_VALUE)?;
    let mut filled = start;
    let mut starts = Vec::new();
    for (at, mapping) in process.mappings.range(start..end) {
        if *at != filled {
            return Err(code::INVALID_VALUE);
        }
        filled += mapping.bytes;
        starts.push(*at);
    }
    if filled == end && start != end {
        Ok(starts)
    } else {
        Err(code::INVALID_VALUE)
    }
}

fn allow(process: &mut Process, start: usize, wanted: &[(usize, u32)]) -> Result<(), u32> {
    let mapping = process
        .mappings
        .get_mut(&start)
        .ok_or(code::INVALID_VALUE)?;
    for (ordinal, flags) in wanted {
        mapping.access.insert(ordinal_out(*ordinal), *flags);
    }
    let (bytes, access) = (mapping.bytes, strongest(&mapping.access));
    let (area, part) = reserved(process, start as u64, bytes)?;
    area.protect(part, access)
}

/// The number of the descriptor of a block, by which another process can open it.
pub(crate) fn descriptor(block: &Block) -> i32 {
    block.fd().as_raw_fd()
}

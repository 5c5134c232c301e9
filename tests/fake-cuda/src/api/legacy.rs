//! `cuMemAlloc` and the handles that share its memory.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::ops::Bound;
use std::process;

use crate::abi::{DevicePtr, GRANULARITY_BYTES, IPC_LAZY_ENABLE_PEER_ACCESS, IpcMemHandle};
use crate::api::{settle, size, vmm};
use crate::args::Out;
use crate::block::Block;
use crate::call::driver;
use crate::code;
use crate::context::current;
use crate::process::{Allocation, LegacyBlock, Opened, Process, process};
use crate::registry::Inode;
use crate::space::Area;

/// Smaller allocations share a block of 2 MiB, so that a handle of one exposes all.
const SMALL_BYTES: usize = 1 << 20;
/// What the addresses of allocations are multiples of.
const ALIGN_BYTES: usize = 512;
const MAGIC: u64 = u64::from_le_bytes(*b"FAKECUDA");

driver! {
    /// What is free on the device of this thread's context, for all processes, and in total.
    Init fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let process = process()?;
        let ordinal = current(&process)?;
        let physical = crate::api::physical(&process, ordinal)?;
        let bytes = process.registry.free_bytes(physical).map_err(|_| code::OPERATING_SYSTEM)?;
        free.check()?;
        total.set(size(process.settings.capacity_bytes)?)?;
        free.set(size(bytes)?)
    }

    /// Allocates memory with an address, readable and writable by this thread's context.
    Init fn cuMemAlloc_v2(ptr: Out<DevicePtr>, bytes: usize) {
        let mut process = process()?;
        let ordinal = current(&process)?;
        ptr.check()?;
        if bytes == 0 {
            return Err(code::INVALID_VALUE);
        }
        let room = bytes.checked_next_multiple_of(ALIGN_BYTES).ok_or(code::OUT_OF_MEMORY)?;
        let (block_start, start) = if room > SMALL_BYTES {
            let start = add_block(&mut process, ordinal, room, false)?;
            (start, start)
        } else {
            place_small(&mut process, ordinal, room)?
        };
        let allocation = Allocation { bytes, block_start, ordinal };
        process.allocations.insert(start, allocation);
        ptr.set(start as u64)
    }

    /// Frees it, after the work that is queued.
    Init fn cuMemFree_v2(ptr: DevicePtr) {
        if ptr == 0 {
            return Ok(());
        }
        current(&*process()?)?;
        settle(None)?;
        let mut process = process()?;
        let allocation = process.allocations.remove(&size(ptr)?).ok_or(code::INVALID_VALUE)?;
        let start = allocation.block_start;
        if !process.allocations.values().any(|other| other.block_start == start) {
            process.legacy.remove(&start);
        }
        Ok(())
    }

    /// The allocation that holds an address.
    Init fn cuMemGetAddressRange_v2(
        base: Out<DevicePtr>, bytes: Out<usize>, ptr: DevicePtr,
    ) {
        let process = process()?;
        current(&process)?;
        let (start, len) = range_of(&process, size(ptr)?).ok_or(code::NOT_FOUND)?;
        base.set_if_wanted(start as u64);
        bytes.set_if_wanted(len);
        Ok(())
    }

    /// Makes the handle by which another process can open an allocation of `cuMemAlloc`.
    Init fn cuIpcGetMemHandle(handle: Out<IpcMemHandle>, ptr: DevicePtr) {
        let process = process()?;
        current(&process)?;
        if !process.settings.ipc {
            return Err(code::NOT_SUPPORTED);
        }
        let start = size(ptr)?;
        let allocation = process.allocations.get(&start).ok_or(code::INVALID_VALUE)?;
        let found = process.legacy.get(&allocation.block_start).ok_or(code::INVALID_VALUE)?;
        let named = Named {
            pid: process::id(),
            fd: vmm::descriptor(&found.block),
            inode: found.block.inode,
            offset: (start - allocation.block_start) as u64,
        };
        handle.set(named.encode())
    }

    /// Opens another process's allocation, with the whole block that it lies in.
    Init fn cuIpcOpenMemHandle_v2(ptr: Out<DevicePtr>, handle: IpcMemHandle, flags: u32) {
        let mut process = process()?;
        let ordinal = current(&process)?;
        ptr.check()?;
        if !process.settings.ipc {
            return Err(code::NOT_SUPPORTED);
        }
        let named = Named::decode(&handle).ok_or(code::INVALID_VALUE)?;
        if flags != IPC_LAZY_ENABLE_PEER_ACCESS {
            return Err(code::INVALID_VALUE);
        }
        if named.pid == process::id() {
            return Err(code::INVALID_CONTEXT);
        }
        let opened = match process.opened.entry(named.inode) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                // The mapping keeps the block alive without the descriptor.
                let block = Block::of_process(named.pid, named.fd, named.inode)?;
                let align = size(GRANULARITY_BYTES)?;
                let area = Area::mapped(block.fd(), size(block.bytes)?, align)
                    .map_err(|_| code::MAP_FAILED)?;
                place.insert(Opened { area, ordinal, counts: BTreeMap::new() })
            }
        };
        if opened.ordinal != ordinal {
            return Err(code::INVALID_CONTEXT);
        }
        let address = opened.area.start() as u64 + named.offset;
        *opened.counts.entry(address).or_default() += 1;
        ptr.set(address)
    }

    /// Closes it once; the last close unmaps the block, after the work that is queued.
    Init fn cuIpcCloseMemHandle(ptr: DevicePtr) {
        current(&*process()?)?;
        settle(None)?;
        let mut process = process()?;
        let inode = process
            .opened
            .iter()
            .find(|(_, opened)| opened.counts.contains_key(&ptr))
            .map(|(inode, _)| *inode)
            .ok_or(code::INVALID_VALUE)?;
        let opened = process.opened.get_mut(&inode).ok_or(code::INVALID_VALUE)?;
        match opened.counts.get_mut(&ptr) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                opened.counts.remove(&ptr);
            }
        }
        if opened.counts.is_empty() {
            process.opened.remove(&inode);
        }
        Ok(())
    }
}

/// What a legacy handle says: which descriptor of which process, and where in its block.
struct Named {
    pid: u32,
    fd: i32,
    inode: Inode,
    offset: u64,
}

impl Named {
    fn encode(&self) -> IpcMemHandle {
        let words = [
            MAGIC,
            u64::from(self.pid),
            u64::from(self.fd.cast_unsigned()),
            self.inode.0,
            self.inode.1,
            self.offset,
        ];
        let mut reserved = [0; 64];
        for (place, word) in reserved.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        IpcMemHandle { reserved }
    }

    fn decode(handle: &IpcMemHandle) -> Option<Self> {
        let mut words = handle.reserved.chunks_exact(8).map(|word| {
            word.iter()
                .rev()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
        });
        if words.next()? != MAGIC {
            return None;
        }
        Some(Self {
            pid: u32::try_from(words.next()?).ok()?,
            fd: i32::try_from(words.next()?).ok()?,
            inode: (words.next()?, words.next()?),
            offset: words.next()?,
        })
    }
}

/// Takes a block from the device and maps it.
fn add_block(
    process: &mut Process,
    ordinal: usize,
    bytes: usize,
    shared: bool,
) -> Result<usize, u32> {
    let granularity = size(GRANULARITY_BYTES)?;
    let bytes = bytes
        .checked_next_multiple_of(granularity)
        .ok_or(code::OUT_OF_MEMORY)?;
    let physical = crate::api::physical(process, ordinal)?;
    let block = Block::create(&process.registry, physical, bytes as u64, 0)?;
    let area = Area::mapped(block.fd(), bytes, granularity)?;
    let start = area.start();
    process.legacy.insert(
        start,
        LegacyBlock {
            area,
            block,
            ordinal,
            shared,
        },
    );
    Ok(start)
}

/// Finds the first gap in a shared block of the context, or takes a new block.
fn place_small(process: &mut Process, ordinal: usize, room: usize) -> Result<(usize, usize), u32> {
    for (block_start, block) in &process.legacy {
        if !block.shared || block.ordinal != ordinal {
            continue;
        }
        let end = block_start + block.area.bytes();
        let mut gap = *block_start;
        for (start, allocation) in process.allocations.range(*block_start..end) {
            if start - gap >= room {
                break;
            }
            gap = (start + allocation.bytes).next_multiple_of(ALIGN_BYTES);
        }
        if gap + room <= end {
            return Ok((*block_start, gap));
        }
    }
    let start = add_block(process, ordinal, size(GRANULARITY_BYTES)?, true)?;
    Ok((start, start))
}

/// Start and length of what an address lies in: an allocation, a mapping, an opened block, or
/// pinned memory of the host.
pub(crate) fn range_of(process: &Process, address: usize) -> Option<(usize, usize)> {
    let below = (Bound::Unbounded, Bound::Included(address));
    let allocation = process
        .allocations
        .range(below)
        .next_back()
        .map(|(at, a)| (*at, a.bytes));
    let mapping = process
        .mappings
        .range(below)
        .next_back()
        .map(|(at, m)| (*at, m.bytes));
    let host = process
        .host
        .range(below)
        .next_back()
        .map(|(at, h)| (*at, h.bytes()));
    let opened = process
        .opened
        .values()
        .map(|o| (o.area.start(), o.area.bytes()));
    [allocation, mapping, host]
        .into_iter()
        .flatten()
        .chain(opened)
        .find(|(start, bytes)| (*start..start + bytes).contains(&address))
}

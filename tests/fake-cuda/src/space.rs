//! Address space: ranges that hold device memory or pinned host memory. One of the unsafe files.
//!
//! Addresses of device memory are handed to callers as plain numbers. No reference into such a
//! range is ever made here, so a caller that frees memory in use harms its own bytes only.

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous,
    mprotect, mremap, munmap,
};
use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr;

use crate::abi::{ACCESS_READ, ACCESS_READ_WRITE};
use crate::code;

/// A range of addresses that belongs to the driver, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Area {
    start: usize,
    bytes: usize,
}

impl Area {
    /// Reserves addresses without access.
    pub(crate) fn reserve(bytes: usize, align: usize, hint: usize) -> Result<Self, u32> {
        let room = bytes.checked_add(align).ok_or(code::OUT_OF_MEMORY)?;
        let hint = ptr::without_provenance_mut(hint);
        // SAFETY: without MAP_FIXED a new mapping touches no existing memory; the hint may be any
        // number.
        let found = unsafe { mmap_anonymous(hint, room, ProtFlags::empty(), RESERVED) }
            .map_err(|_| code::OUT_OF_MEMORY)?;
        let found = found.addr();
        let start = found.next_multiple_of(align);
        let area = Self { start, bytes };
        let end = start + bytes;
        for surplus in [found..start, end..found + room] {
            // The surplus lies outside of the area and nobody has been told of it.
            unmap(surplus);
        }
        Ok(area)
    }

    /// Zeroed memory of the host, readable and writable.
    pub(crate) fn host(bytes: usize) -> Result<Self, u32> {
        let area = Self::reserve(bytes, PAGE_BYTES, 0)?;
        area.protect(0..bytes, ACCESS_READ_WRITE)?;
        Ok(area)
    }

    /// All of `bytes` of a block, readable and writable.
    pub(crate) fn mapped(fd: BorrowedFd<'_>, bytes: usize, align: usize) -> Result<Self, u32> {
        let area = Self::reserve(bytes, align, 0)?;
        area.map(0..bytes, fd)?;
        area.protect(0..bytes, ACCESS_READ_WRITE)?;
        Ok(area)
    }

    pub(crate) const fn start(&self) -> usize {
        self.start
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    fn at(&self, part: &Range<usize>) -> Result<(*mut c_void, usize), u32> {
        if part.start >= part.end || part.end > self.bytes {
            return Err(code::INVALID_VALUE);
        }
        let address = ptr::with_exposed_provenance_mut(self.start + part.start);
        Ok((address, part.end - part.start))
    }

    /// Puts the start of a block at a part of this range, still without access.
    pub(crate) fn map(&self, part: Range<usize>, fd: BorrowedFd<'_>) -> Result<(), u32> {
        let (address, bytes) = self.at(&part)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the part lies within a range that this value owns, which MAP_FIXED replaces;
        // nothing in this crate refers into it.
        unsafe { mmap(address, bytes, ProtFlags::empty(), flags, fd, 0) }
            .and_then(|mapped| {
                // SAFETY: the range was mapped just now. A forked child must not hold the block,
                // as it cannot use the driver either.
                unsafe { madvise(mapped, bytes, Advice::LinuxDontFork) }
            })
            .map_err(|_| code::OUT_OF_MEMORY)
    }

    /// Turns a part back into a bare reservation.
    pub(crate) fn unmap(&self, part: Range<usize>) -> Result<(), u32> {
        let (address, bytes) = self.at(&part)?;
        // SAFETY: as for `map`.
        unsafe {
            mmap_anonymous(
                address,
                bytes,
                ProtFlags::empty(),
                RESERVED | MapFlags::FIXED,
            )
        }
        .map(|_| ())
        .map_err(|_| code::OUT_OF_MEMORY)
    }

    /// Makes access to a part possible, or impossible: a stray write through a mapping for
    /// reading ends in SIGSEGV.
    pub(crate) fn protect(&self, part: Range<usize>, access: u32) -> Result<(), u32> {
        let (address, bytes) = self.at(&part)?;
        let flags = match access {
            ACCESS_READ => MprotectFlags::READ,
            ACCESS_READ_WRITE => MprotectFlags::READ | MprotectFlags::WRITE,
            _ => MprotectFlags::empty(),
        };
        // SAFETY: the part lies within a range that this value owns.
        unsafe { mprotect(address, bytes, flags) }.map_err(|_| code::OUT_OF_MEMORY)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        unmap(self.start..self.start + self.bytes);
    }
}

/// A second mapping of registered host memory: it stands for the pages being pinned. As on
/// hardware, pages that are shared and writable cannot be sealed against writing meanwhile.
#[derive(Debug)]
pub(crate) struct Pin(#[expect(dead_code, reason = "held for what its drop ends")] Area);

impl Pin {
    /// Pins whole pages if they can be: private memory cannot be mapped twice and needs no seal.
    pub(crate) fn take(start: usize, bytes: usize) -> Option<Self> {
        let from = start & !(PAGE_BYTES - 1);
        let bytes = (start + bytes).next_multiple_of(PAGE_BYTES) - from;
        let address = ptr::with_exposed_provenance_mut(from);
        // SAFETY: an old size of zero leaves the range as it is and maps its pages once more, at
        // an address of the kernel's choice; for other than shared memory the kernel refuses.
        let twin = unsafe { mremap(address, 0, bytes, MremapFlags::MAYMOVE) }.ok()?;
        let start = twin.expose_provenance();
        Some(Self(Area { start, bytes }))
    }
}

/// Copies bytes between ranges that may overlap.
///
/// # Safety
/// `from` can be read and `to` written for `bytes` bytes.
pub(crate) unsafe fn copy(to: usize, from: usize, bytes: usize) {
    let from: *const u8 = ptr::with_exposed_provenance(from);
    let to: *mut u8 = ptr::with_exposed_provenance_mut(to);
    // SAFETY: by the contract of this function.
    unsafe { ptr::copy(from, to, bytes) };
}

/// Sets `bytes` bytes to a value.
///
/// # Safety
/// `to` can be written for `bytes` bytes.
pub(crate) unsafe fn fill(to: usize, value: u8, bytes: usize) {
    let to: *mut u8 = ptr::with_exposed_provenance_mut(to);
    // SAFETY: by the contract of this function.
    unsafe { ptr::write_bytes(to, value, bytes) };
}

/// A copy of memory of the host, as a call takes it that need not wait for its stream.
///
/// # Safety
/// `from` can be read for `bytes` bytes.
pub(crate) unsafe fn snapshot(from: usize, bytes: usize) -> Vec<u8> {
    let mut kept = vec![0; bytes];
    // SAFETY: `from` by the contract of this function; the vector has the length.
    unsafe { copy(kept.as_mut_ptr().expose_provenance(), from, bytes) };
    kept
}

const PAGE_BYTES: usize = 4096;
const RESERVED: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

fn unmap(range: Range<usize>) {
    if range.is_empty() {
        return;
    }
    let address = ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: callers give ranges that they own and that nothing in this crate refers into.
    let unmapped: Result<(), Errno> = unsafe { munmap(address, range.end - range.start) };
    debug_assert!(unmapped.is_ok(), "the range was mapped");
}

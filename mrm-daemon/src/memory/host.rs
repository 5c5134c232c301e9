//! A writable mapping of a segment that nobody else has yet. The only unsafe code of the memory
//! module.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use super::pages::{HUGE_PAGE_BYTES, PAGE_BYTES};

/// A shared, writable mapping that starts at a multiple of 2 MiB.
pub(super) struct Mapping {
    start: NonNull<u8>,
    /// The length of the segment; the mapping is this, rounded up to whole pages.
    bytes: usize,
}

// SAFETY: the mapping is owned like a `Box<[u8]>` is: no other value refers to it, and access to
// its bytes goes through `&mut self`.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `fd`, which must be that long and sealed against shrinking, or
    /// known to nobody else: the caller upholds it, else an access raises SIGBUS. No page is touched.
    pub(super) fn new(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, Errno> {
        let mut mapping = Self::placed(fd, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        // A child that inherits a writable mapping keeps the segment from being sealed until it
        // execs: whoever forks in this process must not have it.
        mapping.pager().advise(0..bytes, Advice::LinuxDontFork)?;
        Ok(mapping)
    }

    fn placed(fd: BorrowedFd<'_>, bytes: usize, access: ProtFlags) -> Result<Self, Errno> {
        const ALIGN: usize = HUGE_PAGE_BYTES as usize;
        let mapped = page_end(bytes).ok_or(Errno::NOMEM)?;
        let reserved = mapped.checked_add(ALIGN).ok_or(Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let area = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                reserved,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )
        }?;
        let head = area.addr().next_multiple_of(ALIGN) - area.addr();
        let start = area.wrapping_byte_add(head);
        // SAFETY: `start..start + mapped` lies within the area that was just reserved
        // (head < ALIGN), which nothing refers to; MAP_FIXED replaces only that.
        let placed = unsafe {
            mmap(
                start,
                mapped,
                access,
                MapFlags::SHARED | MapFlags::FIXED,
                fd,
                0,
            )
        };
        // If that failed, the middle may no longer be ours, but another thread's new mapping: it
        // is left alone, at the price of some address space.
        for (from, to) in [(0, head), (head + mapped, reserved)] {
            if from < to {
                // SAFETY: this part of the reserved area is page-aligned, is outside of what the
                // mapping of `fd` replaced, and nothing refers to it. Failing to give back address
                // space costs no memory, so the result does not matter.
                let _ = unsafe { munmap(area.wrapping_byte_add(from), to - from) };
            }
        }
        let start = NonNull::new(placed?.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, bytes })
    }

    /// The segment's bytes.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is valid for `bytes` bytes for as long as `self`, is readable and
        // writable, and `u8` has no invalid values. `&mut self` makes the slice unique in this
        // process; the descriptor has not left it before `seal`, which consumes `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// The segment's bytes and what is left of its last page.
    pub(super) fn as_mut_pages(&mut self) -> Result<&mut [u8], Errno> {
        let mapped = page_end(self.bytes).ok_or(Errno::NOMEM)?;
        // SAFETY: as in `as_mut_slice`. `new` mapped whole pages, and the end of a file's last page
        // can be accessed like the rest of it, so the mapping is valid for `mapped` bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), mapped) })
    }

    /// Clears what is left of the last page: others will see all of it.
    pub(super) fn clear_rest(&mut self) -> Result<(), Errno> {
        let bytes = self.bytes;
        self.as_mut_pages()?[bytes..].fill(0);
        Ok(())
    }

    /// The segment's bytes and what is left of its last page, and what allocates their pages while
    /// others fill those that are there.
    pub(super) fn parts(&mut self) -> Result<(&mut [u8], Pager<'_>), Errno> {
        let pager = Pager {
            start: self.start,
            bytes: self.bytes,
            of: PhantomData,
        };
        Ok((self.as_mut_pages()?, pager))
    }

    /// What allocates its pages.
    pub(super) fn pager(&mut self) -> Pager<'_> {
        Pager {
            start: self.start,
            bytes: self.bytes,
            of: PhantomData,
        }
    }
}

/// The pages of a segment that is lent: what is in them is neither read nor written.
pub(super) struct Pages(Mapping);

impl Pages {
    /// Maps the first `bytes` of `fd`, for reading. No page is touched.
    pub(super) fn of(fd: BorrowedFd<'_>, bytes: usize) -> Result<Self, Errno> {
        Mapping::placed(fd, bytes, ProtFlags::READ).map(Self)
    }

    /// Replaces the pages of a range of whole 2 MiB parts by huge ones, also for who has them mapped.
    pub(super) fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno> {
        self.0.pager().collapse(range)
    }
}

/// Decides about the pages behind a mapping, never about the bytes in them.
pub(super) struct Pager<'m> {
    start: NonNull<u8>,
    bytes: usize,
    /// The mapping outlives it, and has no other.
    of: PhantomData<&'m mut Mapping>,
}

// SAFETY: it is no more than a range of addresses; nothing is read or written through it, and the
// calls that it makes may be made from any thread.
unsafe impl Send for Pager<'_> {}

impl Pager<'_> {
    /// Where the mapping begins.
    pub(super) fn address(&self) -> usize {
        self.start.as_ptr().addr()
    }

    /// Allocates and maps every page of a range.
    pub(super) fn populate(&mut self, range: Range<usize>) -> Result<(), Errno> {
        self.advise(range, Advice::LinuxPopulateWrite)
    }

    /// Allows or forbids huge pages in a range that is not populated yet.
    pub(super) fn allow_huge(&mut self, range: Range<usize>, allow: bool) -> Result<(), Errno> {
        self.advise(
            range,
            if allow {
                Advice::LinuxHugepage
            } else {
                Advice::LinuxNoHugepage
            },
        )
    }

    /// Replaces the pages of a range of whole 2 MiB parts by huge ones. An error does not say how
    /// many parts were replaced.
    pub(super) fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno> {
        let (start, bytes) = self.pages(range)?;
        // SAFETY: the range lies within the mapping (checked by `pages`), which outlives `self`.
        // MADV_COLLAPSE keeps the contents and the addresses, also for who uses them meanwhile; it
        // changes only which physical pages are behind them.
        match unsafe { libc::madvise(start, bytes, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    fn advise(&mut self, range: Range<usize>, advice: Advice) -> Result<(), Errno> {
        let (start, bytes) = self.pages(range)?;
        rustix::io::retry_on_intr(|| {
            // SAFETY: the range lies within the mapping (checked by `pages`), which outlives `self`.
            // The advice passed here (populate, allow or forbid huge pages, not for children) never
            // changes contents, also of what others use meanwhile.
            unsafe { madvise(start, bytes, advice) }
        })
    }

    /// The whole pages that `range` lies in, if it lies within the mapping.
    fn pages(&self, range: Range<usize>) -> Result<(*mut c_void, usize), Errno> {
        let end = page_end(range.end).ok_or(Errno::INVAL)?;
        let aligned = range.start.is_multiple_of(PAGE_BYTES as usize);
        if !aligned || range.start > range.end || range.end > self.bytes {
            return Err(Errno::INVAL);
        }
        let start = self.start.as_ptr().wrapping_byte_add(range.start);
        Ok((start.cast(), end - range.start))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let Some(mapped) = page_end(self.bytes) else {
            return;
        };
        // SAFETY: `self` is being dropped, so no slice of it lives; the address and length are
        // those of the mapping that `new` made. It fails only for a bad range.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), mapped) };
    }
}

fn page_end(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(PAGE_BYTES as usize)
}

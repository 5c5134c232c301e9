//! A segment before and after it is sealed.

use super::available::{self, Amount, Probe, Promise};
use super::error::MemoryError;
use super::host::{Mapping, Pages};
use super::pages::{HugePages, Populator};
use crate::degraded::Degraded;
use rustix::fs::{self, MemfdFlags, Mode, OFlags, SealFlags, Stat};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The seals of a segment that is lent.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// Shown in `/proc/<pid>/maps` as `/memfd:mrm`.
const NAME: &str = "mrm";

/// A segment that is being filled. The daemon alone has it, and all its pages are there.
pub struct Unsealed {
    fd: OwnedFd,
    mapping: Mapping,
    bytes: u64,
    allocated_bytes: u64,
    huge: HugePages,
}

/// A segment whose memory was promised and whose length is fixed, but not all of whose pages are
/// there: they may be allocated while the first are filled.
pub(crate) struct Reserved {
    fd: OwnedFd,
    mapping: Mapping,
    length: usize,
    ready: Ready,
    charge_bytes: u64,
    promise: Promise,
}

/// A segment without content or fixed length, with all its pages: nobody but the daemon ever had
/// it, and nothing was ever written to it.
#[derive(Debug)]
pub(super) struct Blank {
    fd: OwnedFd,
    bytes: u64,
    is_huge: bool,
}

/// What is allocated of a segment from its beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    bytes: usize,
    is_huge: bool,
}

impl Blank {
    /// Takes memory for a blank of `bytes` bytes, for as long as `go_on` says so: it is asked at each
    /// part. The blank is shorter if it says no, and `None` if nothing is there then.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`].
    pub(super) fn make(
        (bytes, part): (u64, usize),
        go_on: impl Fn() -> bool,
        degraded: &Degraded,
    ) -> Result<Option<Self>, MemoryError> {
        let length = addressable(bytes)?;
        let promise = Promise::of(super::charge_for(bytes), &Probe::default().free())?;
        let fd = create(bytes, degraded)?;
        // Its length is not sealed yet, but only this function has the descriptor.
        let mut mapping = Mapping::new(fd.as_fd(), length)
            .map_err(|e| MemoryError::from_errno("mapping", bytes, e))?;
        let mut populator = Populator::new(mapping.pager(), fd.as_fd(), length, 0);
        populator.in_parts_of(part);
        let mut made = 0;
        while !populator.is_done() && go_on() {
            made = populator.step()?;
        }
        if made == 0 {
            return Ok(None);
        }
        populator.stop();
        let made = made as u64;
        let is_huge = populator.finish(degraded).huge_bytes == made;
        drop(promise);
        drop(mapping);
        if made < bytes {
            fs::ftruncate(&fd, made)
                .map_err(|e| MemoryError::from_errno("setting the length", made, e))?;
        }
        let bytes = made;
        Ok(Some(Self { fd, bytes, is_huge }))
    }

    /// The length, all of which is allocated.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A segment that can be lent: its bytes and its length can change no more.
///
/// Dropping it closes the descriptor. If nobody else has the memory, that frees it, which takes
/// about a millisecond for a GiB of huge pages and a hundred for one of small pages: drop it on a
/// worker thread.
pub struct HostSegment {
    fd: OwnedFd,
    bytes: u64,
    allocated_bytes: u64,
    huge: Mutex<HugePages>,
}

impl Unsealed {
    /// Takes memory for a segment of `bytes` bytes, all zero, if it can be had now without taking
    /// more than `charge_bytes`. Slow paths are reported to `degraded`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`] if the machine or the control group has not enough memory;
    /// others as their variants say. Nothing is taken then.
    pub fn allocate(
        bytes: u64,
        charge_bytes: u64,
        degraded: &Degraded,
    ) -> Result<Self, MemoryError> {
        let free = available::free_for(super::charge_for(bytes));
        Self::allocate_within(bytes, charge_bytes, &free, degraded)
    }

    /// As [`allocate`](Self::allocate), with what is free already known.
    pub(super) fn allocate_within(
        bytes: u64,
        charge_bytes: u64,
        free: &Amount,
        degraded: &Degraded,
    ) -> Result<Self, MemoryError> {
        Reserved::within(bytes, charge_bytes, free, degraded)?.populate(degraded)
    }

    /// The bytes, to be filled.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.mapping.as_mut_slice()
    }

    /// The bytes, and what is left of the last page: room for a read in whole pages. What is put
    /// there is cleared when the segment is sealed.
    #[cfg(test)]
    pub(super) fn as_mut_pages(&mut self) -> Result<&mut [u8], MemoryError> {
        let bytes = self.bytes;
        self.mapping
            .as_mut_pages()
            .map_err(|e| MemoryError::from_errno("mapping", bytes, e))
    }

    /// The length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What came of the wish for huge pages.
    #[must_use]
    pub const fn huge_pages(&self) -> &HugePages {
        &self.huge
    }

    /// The memory, which is still written to.
    #[cfg(test)]
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Ends all writing and verifies that it did.
    ///
    /// # Errors
    /// [`MemoryError::Pinned`] if somebody who was lent it keeps pages of it pinned;
    /// [`MemoryError::NotSealed`] or [`MemoryError::Refused`] if the kernel did not do as asked. The
    /// memory is given back.
    pub fn seal(self, degraded: &Degraded) -> Result<HostSegment, MemoryError> {
        let Self {
            fd,
            mut mapping,
            bytes,
            allocated_bytes,
            huge,
        } = self;
        mapping
            .clear_rest()
            .map_err(|e| MemoryError::from_errno("mapping", bytes, e))?;
        // The kernel refuses to seal what someone could write through a mapping.
        drop(mapping);
        fs::fcntl_add_seals(&fd, SEALS).map_err(|e| match e {
            Errno::BUSY => MemoryError::Pinned { bytes },
            e => MemoryError::from_errno("sealing", bytes, e),
        })?;
        let before = stat(fd.as_fd(), bytes)?;
        let fd = read_only(fd, degraded);
        let after = stat(fd.as_fd(), bytes)?;
        let seals = fs::fcntl_get_seals(&fd)
            .map_err(|e| MemoryError::from_errno("reading the seals", bytes, e))?;
        let length = u64::try_from(after.st_size).ok();
        let reason = if !seals.contains(SEALS) {
            format!("its seals are {seals:?}")
        } else if length != Some(bytes) || allocated(&after) != allocated_bytes {
            format!(
                "it has {} bytes, {} of them allocated",
                after.st_size,
                allocated(&after)
            )
        } else if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
            "/proc/self/fd led to another file".to_owned()
        } else {
            return Ok(HostSegment {
                fd,
                bytes,
                allocated_bytes,
                huge: Mutex::new(huge),
            });
        };
        Err(MemoryError::NotSealed { bytes, reason })
    }
}

impl AsFd for HostSegment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl HostSegment {
    /// A sealed segment with these bytes: a tensor table, for example.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`] and [`Unsealed::seal`].
    pub fn holding(bytes: &[u8], degraded: &Degraded) -> Result<Self, MemoryError> {
        let length = bytes.len() as u64;
        let mut unsealed = Unsealed::allocate(length, super::charge_for(length), degraded)?;
        unsealed.as_mut_slice().copy_from_slice(bytes);
        unsealed.seal(degraded)
    }

    /// A segment with these bytes as a load leaves it that did not wait for huge pages.
    #[cfg(test)]
    pub(super) fn scattered(bytes: &[u8]) -> Result<Self, MemoryError> {
        let length = bytes.len() as u64;
        let failed = |step| move |errno| MemoryError::from_errno(step, length, errno);
        let fd = create(length, &Degraded::new())?;
        let mut written = 0;
        while written < bytes.len() {
            let rest = &bytes[written..];
            written += rustix::io::pwrite(&fd, rest, written as u64).map_err(failed("writing"))?;
        }
        fs::fcntl_add_seals(&fd, SEALS).map_err(failed("sealing"))?;
        let fd = read_only(fd, &Degraded::new());
        let allocated_bytes = allocated(&stat(fd.as_fd(), length)?);
        let huge = Mutex::new(HugePages::put_off(length, "not waited for"));
        Ok(Self {
            fd,
            bytes: length,
            allocated_bytes,
            huge,
        })
    }

    /// A segment that another daemon made: `fd` is known to be sealed and `bytes` bytes long. How much of
    /// it is in huge pages comes out when it is put together, which is quick where it is already.
    ///
    /// # Errors
    /// If the kernel does not say what it takes.
    pub fn adopted(fd: OwnedFd, bytes: u64) -> Result<Self, MemoryError> {
        let allocated_bytes = allocated(&stat(fd.as_fd(), bytes)?);
        Ok(Self {
            fd,
            bytes,
            allocated_bytes,
            huge: Mutex::new(HugePages::put_off(
                bytes,
                "taken over from the last daemon: not looked at yet",
            )),
        })
    }

    /// What clients are given: a read-only description of the memory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it takes of the machine's memory.
    #[must_use]
    pub const fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes
    }

    /// How much of it is in 2 MiB pages.
    #[must_use]
    pub fn huge_bytes(&self) -> u64 {
        self.huge().huge_bytes
    }

    /// What came of the wish for huge pages, so far.
    #[must_use]
    pub fn huge_pages(&self) -> HugePages {
        self.huge().clone()
    }

    /// Puts the next `part_bytes` from `from` on together in 2 MiB pages, also for who has them mapped. Up to
    /// where that is, `None` when there is no more. Blocks.
    ///
    /// # Errors
    /// If the kernel does not do it: there may be no free page, or somebody keeps small ones pinned. The
    /// contents are as before.
    pub(super) fn put_together(
        &self,
        from: u64,
        part_bytes: u64,
    ) -> Result<Option<u64>, MemoryError> {
        let failed = |e| MemoryError::from_errno("putting pages together", self.bytes, e);
        let whole = self.huge().requested_bytes;
        let to = whole.min(from.saturating_add(part_bytes));
        if from < to {
            let mut pages = Pages::of(self.fd(), addressable(self.bytes)?).map_err(failed)?;
            let at = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
            let part = at(from)..at(to);
            pages.collapse(part).map_err(failed)?;
        }
        let mut huge = self.huge();
        huge.huge_bytes = huge.huge_bytes.max(to);
        if to < whole {
            return Ok(Some(to));
        }
        (huge.cause, huge.is_put_off) = (None, false);
        Ok(None)
    }

    /// The rest stays in small pages.
    pub(super) fn stays_scattered(&self, why: &MemoryError) {
        let mut huge = self.huge();
        huge.cause = Some(why.to_string());
        huge.is_put_off = false;
    }

    fn huge(&self) -> MutexGuard<'_, HugePages> {
        // Whole between any two statements.
        self.huge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved {
    /// As [`Unsealed::allocate`], without the pages.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`].
    pub(crate) fn take(
        bytes: u64,
        charge_bytes: u64,
        degraded: &Degraded,
    ) -> Result<Self, MemoryError> {
        let free = available::free_for(super::charge_for(bytes));
        Self::within(bytes, charge_bytes, &free, degraded)
    }

    fn within(
        bytes: u64,
        charge_bytes: u64,
        free: &Amount,
        degraded: &Degraded,
    ) -> Result<Self, MemoryError> {
        let length = addressable(bytes)?;
        let promise = Promise::of(super::charge_for(bytes), free)?;
        let fd = create(bytes, degraded)?;
        Self::of(fd, (length, Ready::default()), charge_bytes, promise)
    }

    /// Memory that was made ready, for a segment of `bytes` bytes: it is cut to that length, or
    /// what it lacks is taken.
    ///
    /// # Errors
    /// As [`Unsealed::allocate`].
    pub(super) fn of_blank(
        blank: Blank,
        bytes: u64,
        charge_bytes: u64,
    ) -> Result<Self, MemoryError> {
        let length = addressable(bytes)?;
        let lacks = super::charge_for(bytes).saturating_sub(blank.bytes);
        let promise = match lacks {
            // It is taken already. Asking what is free costs as much as all else here.
            0 => Promise::of_nothing(),
            lacks => Promise::of(lacks, &available::free_for(lacks))?,
        };
        fs::ftruncate(&blank.fd, bytes)
            .map_err(|e| MemoryError::from_errno("setting the length", bytes, e))?;
        let ready = Ready {
            bytes: usize::try_from(blank.bytes).map_or(length, |ready| ready.min(length)),
            is_huge: blank.is_huge,
        };
        Self::of(blank.fd, (length, ready), charge_bytes, promise)
    }

    fn of(
        fd: OwnedFd,
        (length, ready): (usize, Ready),
        charge_bytes: u64,
        promise: Promise,
    ) -> Result<Self, MemoryError> {
        let bytes = length as u64;
        fix_length(fd.as_fd(), bytes)?;
        let mapping = Mapping::new(fd.as_fd(), length)
            .map_err(|e| MemoryError::from_errno("mapping", bytes, e))?;
        Ok(Self {
            fd,
            mapping,
            length,
            ready,
            charge_bytes,
            promise,
        })
    }

    /// The memory, which is about to be written to: nobody outside the daemon gets this.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How much of it is allocated already, from its beginning.
    pub(crate) const fn ready_bytes(&self) -> usize {
        self.ready.bytes
    }

    /// The bytes, what is left of the last page, and what allocates their pages. What is put beyond
    /// the end, by a read in whole pages, is cleared when the segment is sealed.
    ///
    /// # Errors
    /// None for a segment that could be mapped.
    pub(crate) fn parts(&mut self) -> Result<(&mut [u8], Populator<'_>), MemoryError> {
        let length = self.length;
        let fail = |e| MemoryError::from_errno("mapping", length as u64, e);
        let (pages, pager) = self.mapping.parts().map_err(fail)?;
        let huge = if self.ready.is_huge {
            self.ready.bytes
        } else {
            0
        };
        Ok((pages, Populator::new(pager, self.fd.as_fd(), length, huge)))
    }

    /// Allocates all pages that are not there.
    fn populate(mut self, degraded: &Degraded) -> Result<Unsealed, MemoryError> {
        let (_, mut populator) = self.parts()?;
        while !populator.is_done() {
            populator.step()?;
        }
        let huge = populator.finish(degraded);
        self.populated(huge)
    }

    /// All pages are there.
    ///
    /// # Errors
    /// [`MemoryError::Allocated`] if they are not, or take more than was charged.
    pub(crate) fn populated(self, huge: HugePages) -> Result<Unsealed, MemoryError> {
        let (bytes, charge_bytes) = (self.length as u64, self.charge_bytes);
        drop(self.promise);
        let allocated_bytes = allocated(&stat(self.fd.as_fd(), bytes)?);
        if allocated_bytes > charge_bytes || allocated_bytes < bytes {
            return Err(MemoryError::Allocated {
                bytes,
                allocated_bytes,
                charge_bytes,
            });
        }
        Ok(Unsealed {
            fd: self.fd,
            mapping: self.mapping,
            bytes,
            allocated_bytes,
            huge,
        })
    }
}

impl fmt::Debug for Unsealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsealed")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HostSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostSegment")
            .field("bytes", &self.bytes)
            .field("huge_bytes", &self.huge_bytes())
            .finish_non_exhaustive()
    }
}

fn addressable(bytes: u64) -> Result<usize, MemoryError> {
    match usize::try_from(bytes) {
        Ok(0) => Err(MemoryError::Empty),
        Ok(length) if isize::try_from(length).is_ok() => Ok(length),
        _ => Err(MemoryError::TooLarge { bytes }),
    }
}

/// Ends all change of a memfd's length: while it is mapped here, nobody can take its end away.
fn fix_length(fd: BorrowedFd<'_>, bytes: u64) -> Result<(), MemoryError> {
    fs::fcntl_add_seals(fd, SealFlags::GROW | SealFlags::SHRINK)
        .map_err(|e| MemoryError::from_errno("sealing the length", bytes, e))
}

/// A memfd of exactly `bytes` bytes.
fn create(bytes: u64, degraded: &Degraded) -> Result<OwnedFd, MemoryError> {
    let fail = |step| move |errno| MemoryError::from_errno(step, bytes, errno);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = match fs::memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => {
            degraded.report(
                "memfd_noexec",
                "the kernel (before Linux 6.3) cannot make a memfd that is never executable",
                "run Linux 6.3 or later; clients are not affected",
            );
            fs::memfd_create(NAME, flags)
        }
        other => other,
    }
    .map_err(fail("memfd_create"))?;
    fs::ftruncate(&fd, bytes).map_err(fail("setting the length"))?;
    // Defence in depth: the seals are what counts.
    fs::fchmod(&fd, Mode::RUSR | Mode::RGRP | Mode::ROTH).map_err(fail("setting the mode"))?;
    Ok(fd)
}

/// Another description of the same memory, open for reading only: kernels before 6.7 let nobody
/// map a write-sealed memfd through a writable one.
fn read_only(fd: OwnedFd, degraded: &Degraded) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(read_only) => read_only,
        Err(errno) => {
            degraded.report(
                "read_only_reopen",
                format!(
                    "/proc/self/fd cannot be opened: {}",
                    std::io::Error::from(errno)
                ),
                "mount /proc for the daemon; on Linux before 6.7 clients cannot map without it",
            );
            fd
        }
    }
}

fn stat(fd: BorrowedFd<'_>, bytes: u64) -> Result<Stat, MemoryError> {
    fs::fstat(fd).map_err(|e| MemoryError::from_errno("fstat", bytes, e))
}

/// The unit of `st_blocks` is 512 bytes on every filesystem.
fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512)
}

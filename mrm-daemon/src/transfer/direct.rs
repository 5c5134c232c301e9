//! How a file is read best: from the page cache where it is there already, else past it.

use super::ring::Ring;
use crate::degraded::Degraded;
use crate::memory::PAGE_BYTES;
use crate::source::{Identity, Source};
use rustix::fs::{self, Advice, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Below this a file is read as it comes: its header, which was parsed, was most of it.
const SMALL_BYTES: u64 = 128 << 10;
/// How many bytes of a file are looked for in the page cache.
const SAMPLES: u64 = 16;
/// How many of them may be missing from a file that counts as cached.
const MISSING_MAX: u64 = 2;
/// How many reads of 4 MiB are under way at a time: enough for a fast disk, few enough for the
/// first piece to come soon and for a cancel to be quick.
const RING_DEPTH: u32 = 4;

/// How a file was read into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadWay {
    /// From its first byte to its last, through the page cache.
    Buffered,
    /// Copied from the page cache, where it was, by several threads.
    Cached,
    /// Past the page cache, by io_uring.
    DirectRing,
    /// Past the page cache, by several threads.
    DirectThreads,
}

impl ReadWay {
    /// Each of them.
    pub const ALL: [Self; 4] = [
        Self::Buffered,
        Self::Cached,
        Self::DirectRing,
        Self::DirectThreads,
    ];

    /// A stable name, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buffered => "buffered",
            Self::Cached => "cached",
            Self::DirectRing => "direct_ring",
            Self::DirectThreads => "direct_threads",
        }
    }
}

/// What is chosen, with what it takes.
pub(super) enum Way {
    Buffered,
    Cached,
    Direct(DirectFile, Option<Box<Ring>>),
}

impl Way {
    pub(super) const fn name(&self) -> ReadWay {
        match self {
            Self::Buffered => ReadWay::Buffered,
            Self::Cached => ReadWay::Cached,
            Self::Direct(_, Some(_)) => ReadWay::DirectRing,
            Self::Direct(_, None) => ReadWay::DirectThreads,
        }
    }
}

/// The calls that a sandbox or a filesystem may refuse.
pub(super) struct Means {
    /// Opens a description of our own of the same file.
    pub(super) reopen: fn(BorrowedFd<'_>) -> Result<OwnedFd, Errno>,
    /// Whether one byte at an offset is in the page cache.
    pub(super) is_cached: fn(BorrowedFd<'_>, u64) -> Result<bool, Errno>,
    /// Turns the page cache off for a description.
    pub(super) go_direct: fn(BorrowedFd<'_>) -> Result<(), Errno>,
    pub(super) ring: fn(u32) -> io::Result<Ring>,
}

impl Means {
    /// The kernel's own.
    pub(super) const KERNEL: Self = Self {
        reopen,
        is_cached,
        go_direct: |fd| fs::fcntl_setfl(fd, OFlags::DIRECT),
        ring: Ring::new,
    };
}

/// A file that is read past the page cache, in whole blocks.
#[derive(Debug)]
pub(super) struct DirectFile {
    fd: OwnedFd,
    block: usize,
}

impl DirectFile {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What offsets, lengths and addresses must be multiples of.
    pub(super) const fn block(&self) -> usize {
        self.block
    }

    #[cfg(test)]
    pub(super) fn of(fd: OwnedFd, block: usize) -> Self {
        Self { fd, block }
    }
}

/// Chooses how `source` is to be read, which is what it was resolved to be. A better way that is
/// not possible is reported.
pub(super) fn choose(
    source: &dyn Source,
    identity: &Identity,
    means: &Means,
    degraded: &Degraded,
) -> Way {
    let Some(fd) = source.fd().filter(|_| identity.bytes >= SMALL_BYTES) else {
        return Way::Buffered;
    };
    match prepare(fd, identity, means) {
        Ok(None) => Way::Cached,
        Ok(Some(file)) => Way::Direct(file, ring(identity.bytes, means, degraded)),
        Err(cause) => {
            refused(degraded, format!("`{}`: {cause}", source.label()));
            Way::Buffered
        }
    }
}

/// Records that a file cannot be read past the page cache.
pub(super) fn refused(degraded: &Degraded, cause: String) {
    degraded.report(
        "direct_io",
        cause,
        "keep models on a local ext4, xfs or btrfs that the daemon's user can read; others are \
         read through the page cache, which takes more processor time and memory",
    );
}

/// `None` if the file is in the page cache.
fn prepare(
    fd: BorrowedFd<'_>,
    identity: &Identity,
    means: &Means,
) -> Result<Option<DirectFile>, String> {
    let said = |step: &'static str| move |errno| format!("{step}: {}", io::Error::from(errno));
    let own = (means.reopen)(fd).map_err(said("opening it once more"))?;
    let stat = fs::fstat(&own).map_err(said("fstat"))?;
    if (stat.st_dev, stat.st_ino) != (identity.dev, identity.ino) {
        return Err("/proc/self/fd led to another file".to_owned());
    }
    if mostly_cached(own.as_fd(), identity.bytes, means) {
        return Ok(None);
    }
    let block = block_of(own.as_fd())?;
    (means.go_direct)(own.as_fd()).map_err(said("its filesystem refuses O_DIRECT"))?;
    Ok(Some(DirectFile { fd: own, block }))
}

/// A description that nobody else has, so that its flags are ours. Whoever may read the one may
/// have the other.
fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // A lease that somebody has on the file must not hold us up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let own = fs::open(path, flags, Mode::empty())?;
    fs::fcntl_setfl(&own, OFlags::empty())?;
    Ok(own)
}

/// Whether nearly all of a file is in the page cache, going by some of its bytes.
fn mostly_cached(fd: BorrowedFd<'_>, bytes: u64, means: &Means) -> bool {
    // A look at what is not there reads it: one page, not all that the kernel would read ahead.
    let _ = fs::fadvise(fd, 0, None, Advice::Random);
    let mut missing = 0;
    for sample in 1..=SAMPLES {
        let at = (u128::from(bytes) * u128::from(sample) / u128::from(SAMPLES)).saturating_sub(1);
        match (means.is_cached)(fd, u64::try_from(at).unwrap_or(0)) {
            Ok(true) => {}
            Ok(false) => missing += 1,
            // It cannot be told. The disk is the safe guess: it is right whenever it matters.
            Err(_) => return false,
        }
        if missing > MISSING_MAX {
            return false;
        }
    }
    true
}

fn is_cached(fd: BorrowedFd<'_>, at: u64) -> Result<bool, Errno> {
    let mut byte = [0];
    match preadv2(
        fd,
        &mut [IoSliceMut::new(&mut byte)],
        at,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(count) => Ok(count > 0),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The size of the blocks of a direct read of `fd`.
fn block_of(fd: BorrowedFd<'_>) -> Result<usize, String> {
    let page = PAGE_BYTES as usize;
    match fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let block = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align) as usize;
            match block {
                0 => Err("its filesystem has no direct IO".to_owned()),
                // An image begins at a multiple of 2 MiB and ends with a page.
                _ if page.is_multiple_of(block) => Ok(block),
                _ => Err(format!("its filesystem reads in blocks of {block} bytes")),
            }
        }
        // Linux before 6.1, or a filesystem that does not say: all take whole pages.
        Ok(_) | Err(_) => Ok(page),
    }
}

fn ring(bytes: u64, means: &Means, degraded: &Degraded) -> Option<Box<Ring>> {
    // One read takes it all; there is nothing to do beside it.
    if bytes <= super::read::CHUNK_BYTES as u64 {
        return None;
    }
    (means.ring)(RING_DEPTH)
        .inspect_err(|error| {
            degraded.report(
                "io_uring",
                format!("setting up io_uring: {error}"),
                "let the daemon use io_uring (kernel.io_uring_disabled=0, and a seccomp profile \
                 that has it); without it, threads read",
            );
        })
        .ok()
        .map(Box::new)
}

#[cfg(test)]
mod tests;

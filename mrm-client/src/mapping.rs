//! Borrowing the bytes of sealed memory files.
//!
//! # Why `&[u8]` is sound here
//!
//! A shared mapping may be lent as `&[u8]` only if nobody can change or take away its bytes while
//! the borrow lives. [`check`] has the kernel confirm both before anything is mapped:
//! `F_SEAL_WRITE` (no write, no writable mapping, no hole punched, by anyone, the daemon
//! included) and `F_SEAL_SHRINK` with the size (no access beyond the end, so no `SIGBUS`). Seals
//! cannot be taken off. `F_SEAL_FUTURE_WRITE` is not enough: it leaves older writable mappings.
//! The mapping is private to this module's types, read-only, and unmapped when the last owner
//! drops it; borrows are tied to the owner. None of this trusts the daemon.
//!
//! What is lent before it is filled (`WaitFor::Layout`) is another matter until it is sealed: its
//! length is fixed, and `F_SEAL_FUTURE_WRITE` leaves but the load's mapping to write by. Of that
//! only ranges are lent that the daemon has said to be there and not to change any more: here
//! its word is trusted. Once it says that all is sealed, [`check`] is asked again.
//!
//! # Where it is mapped
//!
//! The kernel uses 2 MiB pages only for a mapping at a 2 MiB boundary, and does not choose one by
//! itself (`shmem_enabled=never`). So large segments are mapped at an address that this module
//! proposes, one `mmap` each. When the kernel puts it elsewhere, a larger range is reserved and
//! the segment mapped at the boundary inside it.

use crate::error::{SegmentError, What};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size and alignment of a huge page.
const HUGE_BYTES: usize = 2 << 20;
/// Address space within which mappings are proposed. Only its position is taken: nothing is
/// reserved.
const ARENA_BYTES: usize = 1 << 40;

/// The bytes of one sealed memory file, readable for as long as this lives.
#[derive(Debug)]
pub(crate) enum Mapping {
    /// Nothing to map.
    Empty,
    /// At a 2 MiB boundary, if it is as large as a huge page and the address space has room for
    /// that.
    Mapped(Mapped),
}

/// An owned read-only shared mapping.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: ptr::NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the mapping is immutable (see the module's text) and not bound to a thread.
unsafe impl Send for Mapped {}
// SAFETY: as above; all access is by shared reference to immutable bytes.
unsafe impl Sync for Mapped {}

impl Mapping {
    /// Checks that `fd` is sealed and has exactly `bytes` bytes, and maps them.
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: u64, what: What) -> Result<Self, SegmentError> {
        let mapped = map_checked(fd, bytes, what, How::Shared)?;
        Ok(mapped.map_or(Self::Empty, Self::Mapped))
    }

    /// Has the kernel map every page.
    pub(crate) fn populate(&self) {
        let Self::Mapped(Mapped { start, bytes }) = self else {
            return;
        };
        // SAFETY: the range is a mapping of ours; what it holds does not change by this.
        if unsafe { madvise(start.as_ptr(), *bytes, Advice::LinuxPopulateRead) }.is_err() {
            // Kernels before 5.14: page by page.
            for byte in self.bytes().iter().step_by(rustix::param::page_size()) {
                std::hint::black_box(byte);
            }
        }
    }

    /// Maps what is still being filled: its length is fixed, and but for the load nobody can write.
    /// Only [`range`](Self::range) may be asked of it until it is sealed.
    pub(crate) fn new_filling(
        fd: BorrowedFd<'_>,
        bytes: u64,
        what: What,
    ) -> Result<Self, SegmentError> {
        let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
        check_with(fd, bytes, what, seals)?;
        let mapped = map_unchecked(fd, bytes, what, How::Shared)?;
        Ok(mapped.map_or(Self::Empty, Self::Mapped))
    }

    /// How many bytes.
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Mapped(mapped) => mapped.bytes,
        }
    }

    /// Some of the bytes; the caller knows that they are there.
    pub(crate) fn range(&self, range: std::ops::Range<usize>) -> Option<&[u8]> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        match self {
            Self::Empty => Some(&[]),
            Self::Mapped(Mapped { start, .. }) => {
                // SAFETY: within the live mapping, as checked above; `start` plus less than the
                // length of an allocation does not wrap. That these bytes do not change is known of
                // sealed segments by `check`, of others by the daemon's word (see above).
                Some(unsafe {
                    let first = start.as_ptr().cast::<u8>().add(range.start);
                    std::slice::from_raw_parts(first, range.len())
                })
            }
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Mapped(Mapped { start, bytes }) => {
                // SAFETY: `start` is a live mapping of at least `bytes` readable bytes, owned by
                // `self`; `check` made sure that they neither change nor vanish.
                unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), *bytes) }
            }
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // Give the place back when it is the last proposed, so that a loop of open and close
        // goes on using the same page tables.
        let start = self.start.as_ptr() as usize;
        let end = start + self.bytes.next_multiple_of(HUGE_BYTES);
        // SAFETY: the range was mapped by `map_small` or `map_large`, is owned, and no borrow outlives `self`.
        if unsafe { munmap(self.start.as_ptr(), self.bytes) }.is_ok() {
            let _ = NEXT.compare_exchange(end, start, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The image of a file that can be written to: see
/// [`Segment::copy_on_write`](crate::Segment::copy_on_write).
#[derive(Debug)]
pub struct CopyOnWrite(Option<Mapped>);

impl CopyOnWrite {
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: u64, what: What) -> Result<Self, SegmentError> {
        map_checked(fd, bytes, what, How::Private).map(Self)
    }
}

impl std::ops::Deref for CopyOnWrite {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Some(Mapped { start, bytes }) = &self.0 else {
            return &[];
        };
        // SAFETY: a live mapping of as many bytes, owned by `self`. What lies below it is sealed,
        // and what was written came through `&mut self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr().cast(), *bytes) }
    }
}

impl std::ops::DerefMut for CopyOnWrite {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(Mapped { start, bytes }) = &mut self.0 else {
            return &mut [];
        };
        // SAFETY: as in `deref`; the mapping is private and writable, and borrowed by nobody else.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr().cast(), *bytes) }
    }
}

/// How a sealed file is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// For reading, as everybody else has it.
    Shared,
    /// For writing, to be seen by nobody else.
    Private,
}

impl How {
    const fn flags(self) -> MapFlags {
        match self {
            Self::Shared => MapFlags::SHARED,
            Self::Private => MapFlags::PRIVATE,
        }
    }

    const fn protection(self) -> ProtFlags {
        match self {
            Self::Shared => ProtFlags::READ,
            Self::Private => ProtFlags::READ.union(ProtFlags::WRITE),
        }
    }
}

/// Element types whose every bit pattern is a value, and that have no padding.
///
/// # Safety
/// Implementers promise just that.
pub(crate) unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty),*) => {
        // SAFETY: any bits make a number, and arrays of numbers have no padding.
        $(unsafe impl Plain for $type {})*
    };
}
plain!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, [f32; 2]);

/// `bytes` as elements; `None` when they do not begin or end at an element's boundary.
pub(crate) fn cast<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    if bytes.is_empty() {
        return Some(&[]);
    }
    // SAFETY: `T: Plain`, so any bytes are valid elements.
    let (before, elements, after) = unsafe { bytes.align_to::<T>() };
    (before.is_empty() && after.is_empty()).then_some(elements)
}

/// Whether nobody can change or take away the bytes.
pub(crate) fn check(fd: BorrowedFd<'_>, bytes: u64, what: What) -> Result<(), SegmentError> {
    check_with(fd, bytes, what, SealFlags::WRITE | SealFlags::SHRINK)
}

fn check_with(
    fd: BorrowedFd<'_>,
    bytes: u64,
    what: What,
    wanted: SealFlags,
) -> Result<(), SegmentError> {
    // EINVAL: a file that cannot have seals.
    let seals = fcntl_get_seals(fd).unwrap_or(SealFlags::empty());
    if !seals.contains(wanted) {
        return Err(SegmentError::NotSealed { what });
    }
    let stat = fstat(fd).map_err(|e| SegmentError::Map {
        what,
        source: Arc::new(e.into()),
    })?;
    let actual_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if actual_bytes != bytes {
        return Err(SegmentError::Size {
            what,
            expected_bytes: bytes,
            actual_bytes,
        });
    }
    Ok(())
}

/// Maps all of a file that is sealed and as long as it should be; `None` if that is empty.
fn map_checked(
    fd: BorrowedFd<'_>,
    bytes: u64,
    what: What,
    how: How,
) -> Result<Option<Mapped>, SegmentError> {
    check(fd, bytes, what)?;
    map_unchecked(fd, bytes, what, how)
}

fn map_unchecked(
    fd: BorrowedFd<'_>,
    bytes: u64,
    what: What,
    how: How,
) -> Result<Option<Mapped>, SegmentError> {
    let failed = |e: Errno| SegmentError::Map {
        what,
        source: Arc::new(e.into()),
    };
    let len = usize::try_from(bytes).map_err(|_| failed(Errno::NOMEM))?;
    let mapped = match len {
        0 => return Ok(None),
        small if small < HUGE_BYTES => map_small(fd, small, how),
        large => map_large(fd, large, how),
    };
    mapped.map(Some).map_err(failed)
}

/// The next address to propose; 0 before the first mapping.
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn map_small(fd: BorrowedFd<'_>, len: usize, how: How) -> Result<Mapped, Errno> {
    // SAFETY: without MAP_FIXED the kernel chooses a free range.
    let start = unsafe { map_at(ptr::null_mut(), len, fd, (how, MapFlags::empty())) }?;
    owned(start, len)
}

fn map_large(fd: BorrowedFd<'_>, len: usize, how: How) -> Result<Mapped, Errno> {
    let hint = propose(len);
    // SAFETY: without MAP_FIXED the kernel chooses a free range, so no memory of anybody is
    // touched; the hint is only a wish.
    let start = unsafe { map_at(hint, len, fd, (how, MapFlags::empty())) }?;
    if (start as usize).is_multiple_of(HUGE_BYTES) {
        return owned(start, len);
    }
    match map_within_reservation(fd, len, how) {
        Ok(aligned) => {
            // SAFETY: mapped above, and nothing refers to it.
            let _ = unsafe { munmap(start, len) };
            Ok(aligned)
        }
        // No room for a larger range (RLIMIT_AS): small pages are slower, not wrong.
        Err(_) => owned(start, len),
    }
}

/// Maps at the first boundary inside a reserved range, and frees the rest of the range.
fn map_within_reservation(fd: BorrowedFd<'_>, len: usize, how: How) -> Result<Mapped, Errno> {
    let rounded = len
        .checked_next_multiple_of(HUGE_BYTES)
        .ok_or(Errno::NOMEM)?;
    let total = rounded.checked_add(HUGE_BYTES).ok_or(Errno::NOMEM)?;
    let reserved = reserve(total)?;
    let skip = (reserved as usize).next_multiple_of(HUGE_BYTES) - reserved as usize;
    let aligned = reserved.wrapping_byte_add(skip);
    // SAFETY: `aligned .. aligned + len` lies inside the reservation, which is ours alone.
    let mapped = unsafe { map_at(aligned, len, fd, (how, MapFlags::FIXED)) };
    let page = rustix::param::page_size();
    let kept = if mapped.is_ok() {
        len.next_multiple_of(page)
    } else {
        0
    };
    let tail = aligned.wrapping_byte_add(kept);
    // SAFETY: head and tail of the reservation, without the part that was mapped over.
    unsafe {
        if skip > 0 {
            let _ = munmap(reserved, skip);
        }
        let _ = munmap(tail, total - skip - kept);
    }
    owned(mapped?, len)
}

/// # Safety
/// With `MapFlags::FIXED` the range must belong to the caller.
unsafe fn map_at(
    at: *mut c_void,
    len: usize,
    fd: BorrowedFd<'_>,
    (how, flags): (How, MapFlags),
) -> Result<*mut c_void, Errno> {
    // SAFETY: forwarded to the caller.
    unsafe { mmap(at, len, how.protection(), how.flags() | flags, fd, 0) }
}

fn owned(start: *mut c_void, bytes: usize) -> Result<Mapped, Errno> {
    let start = ptr::NonNull::new(start).ok_or(Errno::NOMEM)?;
    Ok(Mapped { start, bytes })
}

fn reserve(len: usize) -> Result<*mut c_void, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), flags) }
}

/// A 2 MiB-aligned address at which `len` bytes are probably free; null when there is no idea.
fn propose(len: usize) -> *mut c_void {
    let Some((base, end)) = *ARENA.get_or_init(find_arena) else {
        return ptr::null_mut();
    };
    let Some(rounded) = len
        .checked_next_multiple_of(HUGE_BYTES)
        .filter(|n| *n <= end - base)
    else {
        return ptr::null_mut();
    };
    let advance = |next: usize| {
        let from = if next < base || next > end - rounded {
            base
        } else {
            next
        };
        Some(from + rounded)
    };
    match NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance) {
        Ok(before) if before >= base && before <= end - rounded => {
            ptr::without_provenance_mut(before)
        }
        Ok(_) | Err(_) => ptr::without_provenance_mut(base),
    }
}

static ARENA: OnceLock<Option<(usize, usize)>> = OnceLock::new();

/// Asks the kernel for a place where much address space is free, and leaves it free: other
/// mappings may come to lie there, and proposals are only wishes.
fn find_arena() -> Option<(usize, usize)> {
    let mut len = ARENA_BYTES;
    while len >= 64 * HUGE_BYTES {
        if let Ok(start) = reserve(len) {
            // SAFETY: reserved a line above, and nothing refers to it.
            let _ = unsafe { munmap(start, len) };
            let base = (start as usize).next_multiple_of(HUGE_BYTES);
            // The kernel hands out addresses from the top: leave it the upper half.
            return Some((base, base + (len / 2 / HUGE_BYTES) * HUGE_BYTES));
        }
        len /= 4;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let fd =
            memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).expect("memfd");
        ftruncate(&fd, bytes).expect("size");
        rustix::io::pwrite(&fd, b"\x2a", bytes.saturating_sub(1)).expect("last byte");
        fcntl_add_seals(&fd, seals).expect("seals");
        fd
    }

    const SEALED: SealFlags = SealFlags::WRITE
        .union(SealFlags::SHRINK)
        .union(SealFlags::GROW);

    #[test]
    fn large_segments_lie_at_huge_page_boundaries_and_do_not_overlap() {
        let fd = memfd(5 << 20, SEALED);
        let maps: Vec<_> = (0..40)
            .map(|_| Mapping::new(fd.as_fd(), 5 << 20, What::Segment(0)).expect("maps"))
            .collect();
        let mut starts: Vec<_> = maps.iter().map(|m| m.bytes().as_ptr() as usize).collect();
        starts.sort_unstable();
        assert!(starts.iter().all(|s| s.is_multiple_of(HUGE_BYTES)));
        assert!(starts.windows(2).all(|w| w[1] - w[0] >= 5 << 20));
        assert!(maps.iter().all(|m| m.bytes()[(5 << 20) - 1] == 0x2a));
    }

    #[test]
    fn a_taken_place_makes_a_detour_not_an_error() {
        let fd = memfd(3 << 20, SEALED);
        let aligned = map_within_reservation(fd.as_fd(), 3 << 20, How::Shared).expect("maps");
        assert!((aligned.start.as_ptr() as usize).is_multiple_of(HUGE_BYTES));
        assert_eq!(Mapping::Mapped(aligned).bytes()[(3 << 20) - 1], 0x2a);
    }

    #[test]
    fn a_private_mapping_is_written_to_by_its_owner_alone() {
        for bytes in [10, 5 << 20] {
            let fd = memfd(bytes, SEALED);
            let shared = Mapping::new(fd.as_fd(), bytes, What::Segment(0)).expect("maps");
            shared.populate();
            let own = || CopyOnWrite::new(fd.as_fd(), bytes, What::Segment(0)).expect("maps");
            let (mut one, two) = (own(), own());
            assert_eq!(one[..], *shared.bytes());
            one[0] = 7;
            *one.last_mut().expect("a byte") = 8;
            assert_eq!((one[0], one.last()), (7, Some(&8)));
            for other in [&two[..], shared.bytes()] {
                assert_eq!((other[0], other.last()), (0, Some(&0x2a)));
            }
        }
        let empty = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("memfd");
        fcntl_add_seals(&empty, SEALED).expect("seals");
        let own = CopyOnWrite::new(empty.as_fd(), 0, What::Segment(0)).expect("maps");
        assert!(own.is_empty());
        let open = memfd(10, SealFlags::SHRINK);
        let refused = CopyOnWrite::new(open.as_fd(), 10, What::Segment(0));
        assert!(matches!(refused, Err(SegmentError::NotSealed { .. })));
    }

    #[test]
    fn populating_maps_every_page() {
        let bytes = 6 << 20;
        let fd = memfd(bytes, SEALED);
        let map = Mapping::new(fd.as_fd(), bytes, What::Segment(0)).expect("maps");
        let mapped_kib = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps").expect("is there");
            let start = format!("{:x}-", map.bytes().as_ptr() as usize);
            let lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
            let rss = lines.filter_map(|line| line.strip_prefix("Rss:")).next();
            let number = rss.and_then(|rss| rss.split_whitespace().next());
            number.expect("a size").parse::<u64>().expect("a number")
        };
        let before = mapped_kib();
        map.populate();
        assert!(before < bytes / 1024, "{before} KiB");
        assert_eq!(mapped_kib(), bytes / 1024);
    }

    #[test]
    fn what_could_change_or_is_short_is_refused() {
        for seals in [
            SealFlags::empty(),
            SealFlags::WRITE,
            SealFlags::SHRINK,
            SealFlags::FUTURE_WRITE | SealFlags::SHRINK,
        ] {
            let fd = memfd(10, seals);
            let refused = Mapping::new(fd.as_fd(), 10, What::Segment(0));
            assert!(
                matches!(refused, Err(SegmentError::NotSealed { .. })),
                "{seals:?}"
            );
        }
        let fd = memfd(10, SEALED);
        for bytes in [0, 9, 11, u64::MAX] {
            let refused = Mapping::new(fd.as_fd(), bytes, What::Segment(0));
            assert!(matches!(refused, Err(SegmentError::Size { .. })), "{bytes}");
        }
        let file = tempfile::tempfile().expect("a file");
        let refused = Mapping::new(file.as_fd(), 0, What::Segment(0));
        assert!(matches!(refused, Err(SegmentError::NotSealed { .. })));
    }

    #[test]
    fn casts_refuse_what_is_not_aligned() {
        let words = [1u32, 2, 3];
        let bytes = words.map(u32::to_ne_bytes).concat();
        let aligned = cast::<u8>(&bytes).expect("bytes are always aligned");
        assert_eq!(aligned.len(), 12);
        let start = bytes.as_ptr().align_offset(4);
        let ok = cast::<u32>(&bytes[start..start + 8]).map(<[u32]>::len);
        assert_eq!(ok, Some(2));
        assert!(cast::<u32>(&bytes[start + 1..start + 5]).is_none());
        assert!(cast::<u32>(&bytes[start..start + 6]).is_none());
        assert_eq!(cast::<f64>(&bytes[3..3]), Some(&[][..]));
    }
}

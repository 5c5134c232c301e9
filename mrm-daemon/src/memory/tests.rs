use super::available::{Amount, Bound, Probe};
use super::*;
use crate::degraded::Degraded;
use mrm_proto::error::ErrorCode;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

const MIB: u64 = 1 << 20;
const SIZES: [u64; 6] = [1, 4096, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 5 * MIB + 123];

fn pattern(bytes: u64) -> Vec<u8> {
    let mut pattern = (0..251)
        .collect::<Vec<u8>>()
        .repeat(bytes as usize / 251 + 1);
    pattern.truncate(bytes as usize);
    pattern
}

fn sealed(bytes: u64) -> (HostSegment, Degraded) {
    let degraded = Degraded::new();
    let segment = HostSegment::holding(&pattern(bytes), &degraded).expect("a segment");
    (segment, degraded)
}

/// As another process of the same user could: open the memory again, for writing.
fn reopened(segment: &HostSegment) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", segment.fd().as_raw_fd());
    // Root is let past the mode; for others this fails already, which is as good.
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|_| segment.fd().try_clone_to_owned().expect("a duplicate"))
}

#[test]
fn no_size_takes_more_than_its_charge() {
    for bytes in SIZES {
        let (segment, _) = sealed(bytes);
        assert_eq!(segment.bytes(), bytes);
        assert_eq!(
            segment.allocated_bytes(),
            charge_for(bytes),
            "{bytes} bytes"
        );
        let stat = rustix::fs::fstat(segment.fd()).expect("fstat");
        assert_eq!(
            stat.st_blocks as u64 * 512,
            charge_for(bytes),
            "{bytes} bytes"
        );
        assert_eq!(
            segment.huge_pages().requested_bytes,
            bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        );
    }
    assert_eq!(charge_for(0), 0);
    assert_eq!(charge_for(u64::MAX), u64::MAX);
}

#[test]
fn readers_see_the_bytes_through_a_safe_mapping() {
    for bytes in SIZES {
        let (segment, _) = sealed(bytes);
        let fd = segment.fd().try_clone_to_owned().expect("a duplicate");
        let map = memmap2::MmapOptions::new()
            .map_if_safe(&fd)
            .expect("sealed, so safe to map");
        drop(segment);
        assert_eq!(&map[..], pattern(bytes), "{bytes} bytes");
    }
}

#[test]
fn nobody_can_change_a_sealed_segment() {
    let (segment, _) = sealed(2 * MIB + 5);
    let own = segment.fd().try_clone_to_owned().expect("a duplicate");
    for fd in [own, reopened(&segment)] {
        let refused = |result: rustix::io::Result<()>| {
            matches!(
                result,
                Err(Errno::PERM | Errno::BADF | Errno::INVAL | Errno::ACCESS)
            )
        };
        assert!(refused(rustix::io::pwrite(&fd, b"x", 0).map(drop)), "write");
        assert!(refused(rustix::fs::ftruncate(&fd, 1)), "shrink");
        assert!(refused(rustix::fs::ftruncate(&fd, 16 * MIB)), "grow");
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(refused(rustix::fs::fallocate(&fd, hole, 0, 4096)), "hole");
        assert!(
            refused(rustix::fs::fallocate(
                &fd,
                FallocateFlags::empty(),
                0,
                16 * MIB
            )),
            "grow"
        );
        // SAFETY: a new mapping at the kernel's choice; nothing refers to it.
        let writable = unsafe {
            let rw = ProtFlags::READ | ProtFlags::WRITE;
            rustix::mm::mmap(std::ptr::null_mut(), 4096, rw, MapFlags::SHARED, &fd, 0)
        };
        assert!(refused(writable.map(drop)), "shared writable mapping");
        // SAFETY: as above; the mapping is only asked to become writable, then given back.
        unsafe {
            let map = rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ,
                MapFlags::SHARED,
                &fd,
                0,
            )
            .expect("a shared read-only mapping");
            let write = MprotectFlags::READ | MprotectFlags::WRITE;
            assert!(refused(rustix::mm::mprotect(map, 4096, write)), "mprotect");
            rustix::mm::munmap(map, 4096).expect("munmap");
        }
    }
}

#[test]
fn a_private_mapping_can_be_written_and_stays_private() {
    let (segment, _) = sealed(4096);
    let fd = segment.fd().try_clone_to_owned().expect("a duplicate");
    // SAFETY: the segment is sealed, so nobody changes the pages below the private copy.
    let mut map = unsafe { memmap2::MmapOptions::new().map_copy(&fd) }.expect("a private mapping");
    map[0] = 200;
    let shared = memmap2::MmapOptions::new()
        .map_if_safe(&fd)
        .expect("a shared mapping");
    assert_eq!((map[0], shared[0]), (200, 0));
}

#[test]
fn what_is_lent_is_read_only_and_not_executable() {
    let (segment, degraded) = sealed(1);
    let flags = rustix::fs::fcntl_getfl(segment.fd()).expect("the flags");
    assert_eq!(flags & OFlags::ACCMODE, OFlags::RDONLY);
    let stat = rustix::fs::fstat(segment.fd()).expect("fstat");
    assert_eq!(stat.st_mode & 0o333, 0);
    assert!(
        degraded
            .list()
            .iter()
            .all(|path| path.id != "read_only_reopen")
    );
}

#[test]
fn the_report_of_huge_pages_agrees_with_the_kernel() {
    let degraded = Degraded::new();
    let bytes = 8 * MIB + 4097;
    let mut unsealed = Unsealed::allocate(bytes, charge_for(bytes), &degraded).expect("a segment");
    let huge = unsealed.huge_pages().clone();
    assert_eq!(huge.requested_bytes, 8 * MIB);
    assert_eq!(huge.cause.is_some(), huge.huge_bytes < huge.requested_bytes);
    assert_eq!(
        degraded.list().iter().any(|path| path.id == "huge_pages"),
        huge.cause.is_some()
    );
    // What is huge is mapped as huge as soon as it is touched.
    let slice = unsealed.as_mut_slice();
    slice.fill(7);
    let address = slice.as_ptr().addr();
    assert_eq!(smaps::huge_bytes(address), Some(huge.huge_bytes as usize));
    assert_eq!(address % HUGE_PAGE_BYTES as usize, 0);
}

#[test]
fn a_new_segment_is_zero_and_can_be_filled_from_another_thread() {
    let degraded = Degraded::new();
    let mut unsealed = Unsealed::allocate(3 * MIB, 3 * MIB, &degraded).expect("a segment");
    let segment = std::thread::spawn(move || {
        assert!(*unsealed.as_mut_slice() == vec![0; 3 * MIB as usize]);
        unsealed.as_mut_slice()[3 * MIB as usize - 1] = 9;
        unsealed.seal(&degraded).expect("sealed")
    })
    .join()
    .expect("the thread");
    let mut last = [0];
    rustix::io::pread(segment.fd(), &mut last, 3 * MIB - 1).expect("readable");
    assert_eq!(last, [9]);
}

#[test]
fn no_child_inherits_the_right_to_write() {
    let degraded = Degraded::new();
    for bytes in SIZES {
        let mut unsealed =
            Unsealed::allocate(bytes, charge_for(bytes), &degraded).expect("a segment");
        let address = unsealed.as_mut_slice().as_ptr().addr();
        assert_eq!(smaps::is_inherited(address), Some(false), "{bytes} bytes");
    }
    let map = memmap2::MmapMut::map_anon(4096).expect("a mapping");
    // Adjacent mappings of one kind share an entry; another kind than its neighbours has its own.
    map.advise(memmap2::Advice::Random).expect("advised");
    assert_eq!(smaps::is_inherited(map.as_ptr().addr()), Some(true));
}

#[test]
fn the_rest_of_the_last_page_is_never_lent() {
    let degraded = Degraded::new();
    let mut unsealed = Unsealed::allocate(4097, 8192, &degraded).expect("a segment");
    let pages = unsealed.as_mut_pages().expect("whole pages");
    assert_eq!(pages.len(), 8192);
    pages.fill(7);
    let segment = unsealed.seal(&degraded).expect("sealed");
    let fd = segment.fd();
    // SAFETY: a new mapping at the kernel's choice, of memory that is sealed and so never changes;
    // the slice is gone before it is given back.
    unsafe {
        let map = rustix::mm::mmap(
            std::ptr::null_mut(),
            8192,
            ProtFlags::READ,
            MapFlags::SHARED,
            fd,
            0,
        )
        .expect("a mapping");
        let seen = std::slice::from_raw_parts(map.cast::<u8>(), 8192);
        assert!(seen[..4097].iter().all(|&byte| byte == 7));
        assert!(seen[4097..].iter().all(|&byte| byte == 0));
        rustix::mm::munmap(map, 8192).expect("munmap");
    }
}

#[test]
fn too_little_memory_is_an_error_that_names_the_bound() {
    let degraded = Degraded::new();
    let free = Amount {
        bytes: available::RESERVE_BYTES + 4095,
        bound: Bound::Machine,
    };
    let error = Unsealed::allocate_within(1, 4096, &free, &degraded).expect_err("no room");
    assert_eq!(error.code(), ErrorCode::OutOfMemory);
    assert!(
        error.to_string().contains("the machine's memory leaves"),
        "{error}"
    );
    let more = Probe::default().limit().bytes + 1;
    let error = Unsealed::allocate(more, charge_for(more), &degraded).expect_err("no room");
    assert_eq!(error.code(), ErrorCode::OutOfMemory);
}

#[test]
fn lengths_that_cannot_be_mapped_are_refused() {
    let degraded = Degraded::new();
    let error = |bytes| {
        Unsealed::allocate(bytes, u64::MAX, &degraded)
            .expect_err("refused")
            .code()
    };
    assert_eq!(error(0), ErrorCode::EmptyFile);
    assert_eq!(error(u64::MAX), ErrorCode::TooLarge);
    assert_eq!(error(i64::MAX as u64), ErrorCode::OutOfMemory);
}

#[test]
fn a_charge_that_is_too_small_is_never_exceeded() {
    let degraded = Degraded::new();
    let error = Unsealed::allocate(4097, 4096, &degraded).expect_err("over its charge");
    assert!(
        matches!(
            error,
            MemoryError::Allocated {
                allocated_bytes: 8192,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.code(), ErrorCode::Internal);
}

#[test]
fn a_segment_that_someone_else_can_still_write_is_not_lent() {
    let degraded = Degraded::new();
    let unsealed = Unsealed::allocate(4096, 4096, &degraded).expect("a segment");
    let path = format!("/proc/self/fd/{}", unsealed.fd().as_raw_fd());
    rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR).expect("our own file");
    let other = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let other = other.expect("a second description");
    // SAFETY: never read or written; it only has to exist.
    let map = unsafe { memmap2::MmapMut::map_mut(other.as_fd().as_raw_fd()) }.expect("a mapping");
    let error = unsealed.seal(&degraded).expect_err("a writer is left");
    assert!(
        matches!(error, MemoryError::Pinned { bytes: 4096 }),
        "{error}"
    );
    drop(map);
}

#[test]
fn every_failure_of_the_kernel_has_its_code() {
    let code = |errno| MemoryError::from_errno("a step", 1, errno).code();
    for errno in [Errno::NOMEM, Errno::NOSPC, Errno::FAULT, Errno::AGAIN] {
        assert_eq!(code(errno), ErrorCode::OutOfMemory, "{errno:?}");
    }
    assert_eq!(
        (code(Errno::MFILE), code(Errno::NFILE)),
        (ErrorCode::Exhausted, ErrorCode::Exhausted)
    );
    assert_eq!(
        (code(Errno::FBIG), code(Errno::PERM)),
        (ErrorCode::TooLarge, ErrorCode::Internal)
    );
}

//! What only trying shows: small system calls that tell what this kernel, and this process's
//! seccomp filter and limits, allow. The one file of the command line with unsafe code.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr;

const PAGE_BYTES: usize = 4096;
const HUGE_BYTES: usize = 2 * 1024 * 1024;
const SAMPLE: u8 = 0xa5;
/// `SO_PEERPIDFD` of `asm-generic/socket.h`, for C libraries that do not name it yet.
const SO_PEERPIDFD: c_int = 77;
/// More than the kernel's `struct io_uring_params`, which has 120 bytes.
const IO_URING_PARAMS_BYTES: usize = 256;

/// A mapping that is removed when dropped.
struct Mapping {
    address: *mut c_void,
    bytes: usize,
    writable: bool,
}

impl Mapping {
    /// Maps the first `bytes` of `fd`, shared.
    fn shared(fd: BorrowedFd<'_>, bytes: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. The fd
        // is a memfd of this module that nobody else has, so that it is not truncated under us.
        let address = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, fd, 0)?
        };
        Ok(Self {
            address,
            bytes,
            writable: protection.contains(ProtFlags::WRITE),
        })
    }

    fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.bytes);
        // SAFETY: the offset is inside the mapping, which is readable, lives as long as `self`,
        // and whose file is at least as long.
        unsafe { ptr::read_volatile(self.address.cast::<u8>().add(offset)) }
    }

    /// Writes one byte of a mapping that was made with `WRITE`.
    fn write(&mut self, offset: usize, value: u8) {
        assert!(self.writable && offset < self.bytes);
        // SAFETY: as for `read`, and the mapping is writable; `&mut self` excludes a concurrent
        // read through it.
        unsafe { ptr::write_volatile(self.address.cast::<u8>().add(offset), value) }
    }

    /// Asks for one huge page at `offset`.
    fn collapse(&self, offset: usize) -> io::Result<()> {
        assert!(offset + HUGE_BYTES <= self.bytes);
        // SAFETY: the range is inside the mapping. MADV_COLLAPSE moves the pages' contents and
        // changes none of them.
        let result = unsafe {
            libc::madvise(
                self.address.byte_add(offset),
                HUGE_BYTES,
                libc::MADV_COLLAPSE,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was returned by mmap for this value alone, and no reference into it
        // outlives a method call. A failure would leave it mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.address, self.bytes) };
    }
}

/// Creates a memfd that may be sealed; `no_exec` also seals it against execution.
pub(crate) fn memfd(no_exec: bool) -> io::Result<OwnedFd> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if no_exec {
        flags |= MemfdFlags::NOEXEC_SEAL;
    }
    Ok(rustix::fs::memfd_create("mrm-doctor", flags)?)
}

/// Seals a memfd, maps it for reading, and checks that nobody can map it for writing.
pub(crate) fn sealed_mapping() -> io::Result<()> {
    let fd = memfd(true).or_else(|_| memfd(false))?;
    rustix::fs::ftruncate(&fd, PAGE_BYTES as u64)?;
    rustix::io::pwrite(&fd, &[SAMPLE], 0)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals)?;
    let mapping = Mapping::shared(fd.as_fd(), PAGE_BYTES, ProtFlags::READ)?;
    if mapping.read(0) != SAMPLE {
        return Err(io::Error::other(
            "the mapping does not show what was written",
        ));
    }
    match Mapping::shared(fd.as_fd(), PAGE_BYTES, ProtFlags::READ | ProtFlags::WRITE) {
        Ok(_) => Err(io::Error::other(
            "a sealed memfd could be mapped for writing",
        )),
        Err(_) => Ok(()),
    }
}

/// Makes one 2 MiB page of a memfd, as the daemon does.
pub(crate) fn collapse() -> io::Result<()> {
    let fd = memfd(true).or_else(|_| memfd(false))?;
    // Twice the size, so that an aligned part is inside wherever the mapping begins.
    let bytes = 2 * HUGE_BYTES;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    let mut mapping = Mapping::shared(fd.as_fd(), bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    // A huge page needs its place in the file and in memory aligned alike, so the mapping is
    // moved until both are: mapped again at an aligned address inside a larger reservation.
    let misaligned = mapping.address.addr() % HUGE_BYTES;
    if misaligned != 0 {
        mapping = aligned(fd.as_fd())?;
    }
    mapping.write(0, SAMPLE);
    mapping.collapse(0)?;
    if mapping.read(0) == SAMPLE {
        Ok(())
    } else {
        Err(io::Error::other(
            "the contents changed when the pages were collapsed",
        ))
    }
}

/// Maps the first 2 MiB of `fd` at a 2 MiB-aligned address.
fn aligned(fd: BorrowedFd<'_>) -> io::Result<Mapping> {
    let bytes = 2 * HUGE_BYTES;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
    let address = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            bytes,
            ProtFlags::empty(),
            MapFlags::PRIVATE,
        )?
    };
    // From here the reservation is unmapped whole by `Mapping`, whatever is mapped inside it.
    let reservation = Mapping {
        address,
        bytes,
        writable: false,
    };
    let offset = address.addr().next_multiple_of(HUGE_BYTES) - address.addr();
    // SAFETY: offset is below HUGE_BYTES, so that the range lies inside the reservation, which is
    // ours alone and holds nothing: replacing that part of it takes memory from nobody.
    unsafe {
        rustix::mm::mmap(
            address.byte_add(offset),
            HUGE_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | MapFlags::FIXED,
            fd,
            0,
        )?;
    }
    reservation.split(offset)
}

impl Mapping {
    /// Keeps the writable huge page at `offset` and unmaps what is around it.
    fn split(self, offset: usize) -> io::Result<Self> {
        let (address, bytes) = (self.address, self.bytes);
        // Taken apart here; its own drop must not unmap the part that is kept.
        let _ = std::mem::ManuallyDrop::new(self);
        let tail = offset + HUGE_BYTES;
        // SAFETY: both ranges are inside the mapping that `self` owned, page-aligned because the
        // kernel's addresses are, and do not touch the kept part.
        unsafe {
            if offset > 0 {
                rustix::mm::munmap(address, offset)?;
            }
            if tail < bytes {
                rustix::mm::munmap(address.byte_add(tail), bytes - tail)?;
            }
            Ok(Self {
                address: address.byte_add(offset),
                bytes: HUGE_BYTES,
                writable: true,
            })
        }
    }
}

/// Asks the kernel for a pidfd of the peer of a socket: the daemon does, to learn of a death.
pub(crate) fn peer_pidfd() -> io::Result<()> {
    let (socket, _peer) = UnixStream::pair()?;
    let mut fd: RawFd = -1;
    let mut bytes = libc::socklen_t::try_from(size_of::<RawFd>()).map_err(io::Error::other)?;
    // SAFETY: value and length point to live locals, and the length is that of the value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            ptr::from_mut(&mut fd).cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: on success the kernel stored a new descriptor, which is owned by nothing else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Sets up the smallest io_uring and closes it.
pub(crate) fn io_uring() -> io::Result<()> {
    let mut params = [0_u64; IO_URING_PARAMS_BYTES / size_of::<u64>()];
    // SAFETY: the kernel reads and writes `struct io_uring_params` at the pointer, which the
    // zeroed and sufficiently aligned array is larger than; zero asks for no extension.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1_u32, params.as_mut_ptr()) };
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: on success the call returned a new descriptor, which is owned by nothing else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_memfd_is_shared_for_reading_only() {
        sealed_mapping().unwrap();
    }

    #[test]
    fn an_aligned_mapping_is_aligned_and_writable() {
        let fd = memfd(false).unwrap();
        rustix::fs::ftruncate(&fd, HUGE_BYTES as u64).unwrap();
        let mut mapping = aligned(fd.as_fd()).unwrap();
        assert_eq!(mapping.address.addr() % HUGE_BYTES, 0);
        for offset in [0, HUGE_BYTES - 1] {
            mapping.write(offset, SAMPLE);
            assert_eq!(mapping.read(offset), SAMPLE);
        }
    }

    #[test]
    fn what_the_kernel_may_refuse_is_an_error_not_a_crash() {
        for probe in [collapse, peer_pidfd, io_uring] {
            drop(probe());
        }
    }
}

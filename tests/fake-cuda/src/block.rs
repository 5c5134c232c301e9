//! A block of device memory: a memfd whose name says what it is, locked for as long as anyone
//! anywhere holds it. One of the unsafe files: the lock has no safe wrapper.

use rustix::fs::{
    MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, fstat, ftruncate, memfd_create,
    open, readlink,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use crate::code;
use crate::registry::{Inode, Registry};

const NAME: &str = "mrm-fake-cuda";

/// Device memory, alive while this, a mapping of it, or a descriptor of it is.
#[derive(Debug)]
pub(crate) struct Block {
    fd: OwnedFd,
    pub(crate) bytes: u64,
    /// Physical index of the device.
    pub(crate) device: u32,
    /// The shareable handle types asked for at its creation.
    pub(crate) handle_types: u32,
    pub(crate) inode: Inode,
}

impl Block {
    /// Creates a block and charges it.
    pub(crate) fn create(
        registry: &Registry,
        device: u32,
        bytes: u64,
        handle_types: u32,
    ) -> Result<Self, u32> {
        let name = format!("{NAME}:{device}:{bytes}:{handle_types}");
        let fd = memfd_create(
            name.as_str(),
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(system)?;
        ftruncate(&fd, bytes).map_err(|_| code::OUT_OF_MEMORY)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(system)?;
        let block = Self::locked(fd, bytes, device, handle_types)?;
        match registry.charge(device, block.inode, bytes) {
            Ok(true) => Ok(block),
            Ok(false) => Err(code::OUT_OF_MEMORY),
            Err(_) => Err(code::OPERATING_SYSTEM),
        }
    }

    /// Another process's export, as it came through a socket. The descriptor stays the caller's;
    /// any number will do for one that is none.
    pub(crate) fn import(fd: RawFd) -> Result<Self, u32> {
        // SAFETY: takes numbers and gives a number, whatever the numbers mean.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(code::INVALID_VALUE);
        }
        // SAFETY: the kernel made this descriptor just now, for nobody else.
        Self::recognise(unsafe { OwnedFd::from_raw_fd(copy) })
    }

    /// The block that is open in another process as descriptor `number`.
    pub(crate) fn of_process(pid: u32, number: i32, inode: Inode) -> Result<Self, u32> {
        let path = format!("/proc/{pid}/fd/{number}");
        let fd = open(
            path,
            OFlags::RDWR | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|_| code::INVALID_HANDLE)?;
        let block = Self::recognise(fd).map_err(|_| code::INVALID_HANDLE)?;
        if block.inode == inode {
            Ok(block)
        } else {
            Err(code::INVALID_HANDLE)
        }
    }

    fn recognise(fd: OwnedFd) -> Result<Self, u32> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let target = readlink(path, Vec::new()).map_err(system)?;
        let target = target.to_str().map_err(|_| code::INVALID_VALUE)?;
        let (bytes, device, handle_types) = describe(target).ok_or(code::INVALID_VALUE)?;
        let found = fstat(&fd).map_err(system)?;
        let flags = fcntl_getfl(&fd).map_err(system)?;
        if u64::try_from(found.st_size) != Ok(bytes) || !flags.contains(OFlags::RDWR) {
            return Err(code::INVALID_VALUE);
        }
        Self::locked(fd, bytes, device, handle_types)
    }

    fn locked(fd: OwnedFd, bytes: u64, device: u32, handle_types: u32) -> Result<Self, u32> {
        // SAFETY: `flock` is plain data; zero in every field is a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_RDLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: the descriptor is open, and the lock outlives the call, which only reads it.
        let taken = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if taken != 0 {
            return Err(code::OPERATING_SYSTEM);
        }
        let found = fstat(&fd).map_err(system)?;
        Ok(Self {
            fd,
            bytes,
            device,
            handle_types,
            inode: (found.st_dev, found.st_ino),
        })
    }

    /// A descriptor that keeps the block alive by itself.
    pub(crate) fn export(&self) -> Result<OwnedFd, u32> {
        fcntl_dupfd_cloexec(&self.fd, 0).map_err(system)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads `/memfd:mrm-fake-cuda:DEVICE:BYTES:TYPES (deleted)`.
fn describe(target: &str) -> Option<(u64, u32, u32)> {
    let mut parts = target
        .strip_prefix("/memfd:")?
        .strip_suffix(" (deleted)")?
        .strip_prefix(NAME)?
        .split(':')
        .skip(1);
    let device = parts.next()?.parse().ok()?;
    let bytes = parts.next()?.parse().ok()?;
    Some((bytes, device, parts.next()?.parse().ok()?))
}

fn system(_: Errno) -> u32 {
    code::OPERATING_SYSTEM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_nothing_for_a_block_that_is_none() {
        assert_eq!(
            describe("/memfd:mrm-fake-cuda:1:4096:3 (deleted)"),
            Some((4096, 1, 3))
        );
        assert_eq!(describe("/memfd:other (deleted)"), None);
        assert_eq!(Block::import(-1).err(), Some(code::INVALID_VALUE));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            Block::import(file.as_raw_fd()).err(),
            Some(code::INVALID_VALUE)
        );
    }

    #[test]
    fn counts_until_the_last_descriptor_and_mapping_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path(), 8 << 20).unwrap();
        let free = || registry.free_bytes(0).unwrap();
        let block = Block::create(&registry, 0, 6 << 20, 1).unwrap();
        assert_eq!(free(), 2 << 20);
        assert_eq!(
            Block::create(&registry, 0, 4 << 20, 1).err(),
            Some(code::OUT_OF_MEMORY)
        );
        let exported = block.export().unwrap();
        drop(block);
        assert_eq!(free(), 2 << 20, "the descriptor alone keeps it");
        let imported = Block::import(exported.as_raw_fd()).unwrap();
        drop(exported);
        assert_eq!(
            (imported.bytes, imported.device, imported.handle_types),
            (6 << 20, 0, 1)
        );
        drop(imported);
        assert_eq!(free(), 8 << 20);
    }
}

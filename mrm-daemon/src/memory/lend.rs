//! Lending memory that is still being filled.

use super::error::MemoryError;
use rustix::fs::{self, Mode, OFlags, SealFlags};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// A description of a memfd that is being filled, open for reading only, for others to map.
///
/// `F_SEAL_FUTURE_WRITE` leaves the one writable mapping that there is, which is the load's: from
/// here on nobody can write by another way, or make another such mapping, whatever they open. The
/// seal against all writing follows when that mapping is gone.
///
/// # Errors
/// If the kernel would not seal it or open it, or opened something else.
pub(crate) fn lend_unfilled(fd: BorrowedFd<'_>) -> Result<OwnedFd, MemoryError> {
    let failed = |step| move |errno| MemoryError::from_errno(step, 0, errno);
    let seals = SealFlags::GROW | SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
    fs::fcntl_add_seals(fd, seals).map_err(failed("sealing"))?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lent = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed("opening for reading"))?;
    let (own, other) = (
        fs::fstat(fd).map_err(failed("fstat"))?,
        fs::fstat(&lent).map_err(failed("fstat"))?,
    );
    if (own.st_dev, own.st_ino) != (other.st_dev, other.st_ino) {
        let reason = "/proc/self/fd led to another file".to_owned();
        return Err(MemoryError::NotSealed { bytes: 0, reason });
    }
    Ok(lent)
}

#[cfg(test)]
mod tests {
    use super::super::host::Mapping;
    use super::super::segment::Unsealed;
    use super::*;
    use crate::degraded::Degraded;
    use rustix::fs::FallocateFlags;
    use rustix::io::Errno;
    use std::os::fd::AsFd;

    #[test]
    fn who_opens_it_again_cannot_write_and_the_load_still_can() {
        let degraded = Degraded::new();
        let mut unsealed = Unsealed::allocate(8192, 8192, &degraded).expect("memory");
        let lent = lend_unfilled(unsealed.fd()).expect("lent");
        let mut seen = [0; 2];
        unsealed.as_mut_slice()[..2].copy_from_slice(b"ok");
        assert_eq!(rustix::io::pread(&lent, &mut seen, 0), Ok(2));
        assert_eq!(&seen, b"ok");
        // Its owner may change the mode, and open it for writing; the seal holds.
        fs::fchmod(&lent, Mode::RUSR | Mode::WUSR).expect("the owner's right");
        let path = format!("/proc/self/fd/{}", lent.as_raw_fd());
        let again = fs::open(path, OFlags::RDWR, Mode::empty()).expect("opens");
        assert_eq!(rustix::io::pwrite(&again, b"x", 0), Err(Errno::PERM));
        assert!(Mapping::new(again.as_fd(), 8192).is_err());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fs::fallocate(&again, punch, 0, 4096).is_err());
        assert!(fs::ftruncate(&again, 4096).is_err());
        let sealed = unsealed.seal(&degraded).expect("all writing ends");
        assert_eq!(sealed.bytes(), 8192);
    }

    #[test]
    fn a_page_that_a_reader_put_into_a_pipe_keeps_the_seal_away_for_as_long() {
        let degraded = Degraded::new();
        let pinned = |let_go: bool| {
            let mut unsealed = Unsealed::allocate(8192, 8192, &degraded).expect("memory");
            let lent = lend_unfilled(unsealed.fd()).expect("lent");
            unsealed.as_mut_slice().fill(7);
            let (reader, writer) = std::io::pipe().expect("a pipe");
            let moved = rustix::fs::sendfile(&writer, &lent, Some(&mut 0), 4096);
            assert_eq!(moved, Ok(4096));
            if let_go {
                drop((reader, writer));
                return unsealed.seal(&degraded);
            }
            let sealed = unsealed.seal(&degraded);
            drop((reader, writer));
            sealed
        };
        let refused = pinned(false);
        assert!(
            matches!(refused, Err(MemoryError::Pinned { bytes: 8192 })),
            "{refused:?}"
        );
        assert!(pinned(true).is_ok());
    }
}

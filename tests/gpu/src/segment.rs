//! Host memory as the daemon lends it: sealed memfds, with pages of every size.

use crate::Anything;
use crate::bare::collapse;
use memmap2::{Advice, Mmap, MmapOptions};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::fs::{fallocate, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::AsFd;

const HUGE_BYTES: u64 = 2 << 20;

/// What is behind a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB.
    Small,
    /// 2 MiB, which the kernel put together.
    Transparent,
    /// 2 MiB, which the operator set aside.
    Reserved,
}

impl Pages {
    pub(crate) const ALL: [Self; 3] = [Self::Small, Self::Transparent, Self::Reserved];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "4 KiB pages",
            Self::Transparent => "transparent 2 MiB pages",
            Self::Reserved => "reserved 2 MiB pages (hugetlb)",
        }
    }
}

/// A sealed memfd, all of its pages allocated, mapped for reading.
pub(crate) fn sealed(bytes: u64, pages: Pages) -> Anything<Mmap> {
    let bytes = bytes.next_multiple_of(HUGE_BYTES);
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if pages == Pages::Reserved {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = memfd_create("mrm-gpu-check", flags)?;
    ftruncate(&fd, bytes)?;
    fallocate(&fd, FallocateFlags::empty(), 0, bytes)?;
    if pages == Pages::Transparent {
        collapse(fd.as_fd(), usize::try_from(bytes)?)
            .map_err(|error| format!("no transparent huge pages: {error}"))?;
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals)?;
    let map = MmapOptions::new()
        .len(usize::try_from(bytes)?)
        .map_if_safe(&fd)
        .map_err(|error| error.to_string())?;
    map.advise(Advice::PopulateRead)?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_sealed_and_as_long_as_asked() {
        let map = sealed(3 << 20, Pages::Small).unwrap();
        assert_eq!(map.len(), 4 << 20);
        assert!(map.iter().all(|byte| *byte == 0));
    }
}

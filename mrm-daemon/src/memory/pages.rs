//! Allocating the pages of a segment: huge ones where the kernel gives them.

use super::error::MemoryError;
use super::host::Mapping;
use super::smaps;
use crate::degraded::Degraded;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// The small page.
pub const PAGE_BYTES: u64 = 4096;

/// The huge page.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

const HUGE: usize = HUGE_PAGE_BYTES as usize;
const PAGE: usize = PAGE_BYTES as usize;

/// How much is asked of the kernel at a time. Each call first drains the page lists of all
/// processors, so it should be large; after a failure its parts are tried one by one.
const STEP: usize = 32 * HUGE;

const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// What came of the wish for huge pages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HugePages {
    /// The whole 2 MiB parts of the segment.
    pub requested_bytes: u64,
    /// How much of that is in 2 MiB pages.
    pub huge_bytes: u64,
    /// Why it is not all of it.
    pub cause: Option<String>,
}

/// What the kernel does for shared memory by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Policy {
    /// Huge pages on fault, at least where they are advised.
    OnFault,
    /// Only through MADV_COLLAPSE; the setting's value.
    OnCollapse(String),
    /// Not built in.
    Absent,
}

impl Policy {
    fn read() -> Self {
        fs::read_to_string(SHMEM_ENABLED).map_or(Self::Absent, |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let chosen = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'));
        match chosen.map_or("", |(word, _)| word) {
            "always" | "within_size" | "advise" | "force" => Self::OnFault,
            other => Self::OnCollapse(other.to_owned()),
        }
    }
}

/// Why some part is in small pages.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NotHuge {
    /// The kernel has no such call, or was told to give no huge pages.
    Refused(Policy),
    /// There was none to give.
    NoneFree(Errno),
}

impl NotHuge {
    fn cause(&self) -> String {
        match self {
            Self::Refused(Policy::Absent) => {
                "the kernel has no transparent huge pages for shared memory".to_owned()
            }
            Self::Refused(Policy::OnCollapse(setting)) => format!(
                "MADV_COLLAPSE is refused (Linux before 6.1, or huge pages are disabled for this \
                 process) and shmem_enabled is '{setting}'"
            ),
            Self::Refused(Policy::OnFault) => "the kernel gave small pages on fault".to_owned(),
            Self::NoneFree(errno) => {
                format!("no free 2 MiB page: {}", std::io::Error::from(*errno))
            }
        }
    }

    const fn cure(&self) -> &'static str {
        match self {
            Self::Refused(Policy::Absent) => {
                "use a kernel built with CONFIG_TRANSPARENT_HUGEPAGE and CONFIG_SHMEM"
            }
            Self::Refused(Policy::OnCollapse(_)) => {
                "run Linux 6.1 or later, or as root write 'advise' to \
                 /sys/kernel/mm/transparent_hugepage/shmem_enabled"
            }
            Self::Refused(Policy::OnFault) | Self::NoneFree(_) => {
                "as root write 1 to /proc/sys/vm/compact_memory, or give the node more free \
                 memory; segments loaded afterwards get huge pages"
            }
        }
    }
}

/// Allocates every page of the segment.
pub(super) fn populate(
    mapping: &mut Mapping,
    fd: BorrowedFd<'_>,
    bytes: usize,
    degraded: &Degraded,
) -> Result<HugePages, MemoryError> {
    let policy = match bytes < HUGE {
        // No part of it can be huge.
        true => Policy::Absent,
        false => Policy::read(),
    };
    populate_by(&policy, mapping, fd, bytes, degraded)
}

fn populate_by(
    policy: &Policy,
    mapping: &mut Mapping,
    fd: BorrowedFd<'_>,
    bytes: usize,
    degraded: &Degraded,
) -> Result<HugePages, MemoryError> {
    let whole = bytes - bytes % HUGE;
    if bytes > whole {
        // A huge page there would reach beyond the end, and take more than was charged. A kernel
        // without huge pages refuses the wish, and needs none.
        let _ = mapping.allow_huge(whole..bytes, false);
    }
    let (huge, why) = huge_parts(mapping, whole, policy);
    if let Some(why) = &why {
        degraded.report("huge_pages", why.cause(), why.cure());
    }
    let populated = match mapping.populate(0..bytes) {
        // Linux before 5.14: allocated, if not mapped.
        Err(Errno::INVAL) => {
            rustix::io::retry_on_intr(|| fallocate(fd, FallocateFlags::empty(), 0, bytes as u64))
        }
        other => other,
    };
    populated.map_err(|e| MemoryError::from_errno("allocating pages", bytes as u64, e))?;
    Ok(HugePages {
        requested_bytes: whole as u64,
        huge_bytes: huge as u64,
        cause: why.map(|why| why.cause()),
    })
}

/// Gets huge pages for the first `whole` bytes; returns how many bytes got them.
fn huge_parts(mapping: &mut Mapping, whole: usize, policy: &Policy) -> (usize, Option<NotHuge>) {
    if whole == 0 {
        return (0, None);
    }
    if *policy == Policy::OnFault && mapping.allow_huge(0..whole, true).is_ok() {
        // What it could not do is tried again below, and an error comes up again in `populate`.
        let _ = mapping.populate(0..whole);
    }
    let (huge, errno) = collapse_all(mapping, whole);
    match errno {
        None => (huge, None),
        Some(Errno::INVAL) if *policy == Policy::OnFault => {
            // Linux before 6.1 does not say what a fault gave; its account of the mapping does.
            let mapped = smaps::huge_bytes(mapping.address()).unwrap_or(0);
            let why = (mapped < whole).then(|| NotHuge::Refused(policy.clone()));
            (mapped.min(whole), why)
        }
        Some(Errno::INVAL) => (huge, Some(NotHuge::Refused(policy.clone()))),
        Some(errno) => (huge, Some(NotHuge::NoneFree(errno))),
    }
}

/// What [`collapse_all`] needs of a mapping.
trait Collapse {
    /// Allocates the page at an offset.
    fn touch(&mut self, offset: usize) -> Result<(), Errno>;
    /// Replaces the pages of a range by huge ones.
    fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno>;
}

impl Collapse for Mapping {
    fn touch(&mut self, offset: usize) -> Result<(), Errno> {
        self.populate(offset..offset + PAGE)
    }

    fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno> {
        Self::collapse(self, range)
    }
}

/// Collapses `whole` bytes step by step; returns how many bytes that was, and the last error.
fn collapse_all(memory: &mut impl Collapse, whole: usize) -> (usize, Option<Errno>) {
    let mut huge = 0;
    let mut last = None;
    for start in (0..whole).step_by(STEP) {
        let step = start..(start + STEP).min(whole);
        // A part of which no page is there is not collapsed.
        if let Some(errno) = step
            .clone()
            .step_by(HUGE)
            .find_map(|at| memory.touch(at).err())
        {
            return (huge, Some(errno));
        }
        match memory.collapse(step.clone()) {
            Ok(()) => huge += step.len(),
            Err(Errno::INVAL) => return (huge, Some(Errno::INVAL)),
            Err(_) => {
                let before = huge;
                for at in step.step_by(HUGE) {
                    match memory.collapse(at..at + HUGE) {
                        Ok(()) => huge += HUGE,
                        Err(errno) => last = Some(errno),
                    }
                }
                if huge == before {
                    // Looking for free huge pages is slow, and the next step will find none.
                    return (huge, last);
                }
            }
        }
    }
    (huge, last)
}

#[cfg(test)]
mod tests;

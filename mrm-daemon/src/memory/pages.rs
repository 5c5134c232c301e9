//! Allocating the pages of a segment: huge ones where the kernel gives them.

use super::error::MemoryError;
use super::host::Pager;
use super::smaps;
use crate::degraded::Degraded;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The small page.
pub const PAGE_BYTES: u64 = 4096;

/// The huge page.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

const HUGE: usize = HUGE_PAGE_BYTES as usize;
const PAGE: usize = PAGE_BYTES as usize;

/// How much is asked of the kernel at a time. Each call first drains the page lists of all
/// processors, so it should be large; after a failure its parts are tried one by one.
const STEP: usize = 32 * HUGE;

/// How much is allocated first: as much as is read at a time, so that reading begins soon.
const FIRST_STEP: usize = 8 * HUGE;

/// How long a huge page may take whose load waits for it: as long as a disk of 1 GB/s takes to fill it.
const SLOW: Duration = Duration::from_millis(2);

/// How much longer than that all of them together may take. In small pages a load is over sooner, but whoever
/// reads what was loaded does so more slowly until they are put together: up to some hundred MB it is better to wait.
const PATIENCE: Duration = Duration::from_millis(250);

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
    /// Whether the rest can be had, and was only not waited for.
    pub is_put_off: bool,
}

impl HugePages {
    /// Of a segment of `bytes` bytes of which nobody has put anything together yet.
    pub(super) fn put_off(bytes: u64, cause: &str) -> Self {
        let requested_bytes = bytes - bytes % HUGE_PAGE_BYTES;
        let is_put_off = requested_bytes > 0;
        Self {
            requested_bytes,
            huge_bytes: 0,
            cause: is_put_off.then(|| cause.to_owned()),
            is_put_off,
        }
    }
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
    /// They came slowly, and the load did not wait for the rest.
    Slow,
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
            Self::Slow => format!(
                "fresh 2 MiB pages took {} ms more than {} us each, so that the load went on in small \
                 ones; they are put together while nothing is loaded",
                PATIENCE.as_millis(),
                SLOW.as_micros()
            ),
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
            Self::Slow => {
                "a larger load.stock_bytes has memory ready ahead of loads; a virtual machine whose \
                 host keeps its memory does not wait for it"
            }
            Self::Refused(Policy::OnFault) | Self::NoneFree(_) => {
                "as root write 1 to /proc/sys/vm/compact_memory, or give the node more free \
                 memory; segments loaded afterwards get huge pages"
            }
        }
    }
}

/// Allocates the pages of a segment, a part at a time and from its beginning.
pub(crate) struct Populator<'m> {
    pager: Pager<'m>,
    fd: BorrowedFd<'m>,
    policy: Policy,
    bytes: usize,
    /// Up to where pages are there.
    done: usize,
    /// Up to where they were from the beginning, huge ones that are not mapped yet.
    ready: usize,
    /// How much each step allocates.
    part: usize,
    huge: HugeParts,
}

impl<'m> Populator<'m> {
    /// Of a segment of `bytes` bytes behind `fd`, whose first `ready` bytes are in huge pages.
    pub(super) fn new(pager: Pager<'m>, fd: BorrowedFd<'m>, bytes: usize, ready: usize) -> Self {
        let policy = match bytes < HUGE {
            // No part of it can be huge.
            true => Policy::Absent,
            false => Policy::read(),
        };
        let mut populator = Self::by(policy, pager, fd, bytes);
        populator.ready = ready.min(bytes - bytes % HUGE);
        populator
    }

    fn by(policy: Policy, mut pager: Pager<'m>, fd: BorrowedFd<'m>, bytes: usize) -> Self {
        let whole = bytes - bytes % HUGE;
        if bytes > whole {
            // A huge page there would reach beyond the end, and take more than was charged. A kernel
            // without huge pages refuses the wish, and needs none.
            let _ = pager.allow_huge(whole..bytes, false);
        }
        let huge_on_fault =
            policy == Policy::OnFault && whole > 0 && pager.allow_huge(0..whole, true).is_ok();
        Self {
            pager,
            fd,
            policy,
            bytes,
            done: 0,
            ready: 0,
            part: STEP,
            huge: HugeParts {
                on_fault: huge_on_fault,
                ..HugeParts::default()
            },
        }
    }

    /// Has small pages taken from where huge ones come slowly: somebody waits, and what stays small can be
    /// put together afterwards.
    pub(crate) const fn hasten(&mut self) {
        self.huge.hastens = true;
    }

    /// Has so much allocated by each [`step`](Self::step) after the first, in whole huge pages.
    pub(crate) const fn in_parts_of(&mut self, bytes: usize) {
        self.part = bytes;
    }

    /// What is there is all.
    pub(crate) const fn stop(&mut self) {
        self.bytes = self.done;
    }

    /// Whether all pages are there.
    pub(crate) const fn is_done(&self) -> bool {
        self.done >= self.bytes
    }

    /// Allocates the next part; returns up to where all pages are there. After an error it can be
    /// tried again.
    ///
    /// # Errors
    /// If there is no memory to be had.
    pub(crate) fn step(&mut self) -> Result<usize, MemoryError> {
        let part = match self.done {
            done if done < self.ready => self.ready - done,
            0 => FIRST_STEP,
            _ => self.part,
        };
        let step = self.done..self.bytes.min(self.done + part);
        let whole = step.start..step.end.min(self.bytes - self.bytes % HUGE);
        if step.end <= self.ready {
            // Asking for them again would wait for all processors to empty their page lists.
            self.huge.bytes += whole.len();
        } else {
            self.huge.step(&mut self.pager, whole);
        }
        let (fd, offset) = (self.fd, step.start as u64);
        let populated = match self.pager.populate(step.clone()) {
            // Linux before 5.14: allocated, if not mapped.
            Err(Errno::INVAL) => rustix::io::retry_on_intr(|| {
                fallocate(fd, FallocateFlags::empty(), offset, step.len() as u64)
            }),
            other => other,
        };
        populated.map_err(|e| MemoryError::from_errno("allocating pages", self.bytes as u64, e))?;
        self.done = step.end;
        Ok(self.done)
    }

    /// What came of the wish for huge pages; reported where it is not all.
    pub(crate) fn finish(self, degraded: &Degraded) -> HugePages {
        let whole = self.bytes - self.bytes % HUGE;
        let (huge, why) = match self.huge.last {
            None if self.huge.slow => (self.huge.bytes, Some(NotHuge::Slow)),
            None => (self.huge.bytes, None),
            Some(Errno::INVAL) if self.policy == Policy::OnFault => {
                // Linux before 6.1 does not say what a fault gave; its account of the mapping does.
                let mapped = smaps::huge_bytes(self.pager.address()).unwrap_or(0);
                let why = (mapped < whole).then_some(NotHuge::Refused(self.policy));
                (mapped.min(whole), why)
            }
            Some(Errno::INVAL) => (self.huge.bytes, Some(NotHuge::Refused(self.policy))),
            Some(errno) => (self.huge.bytes, Some(NotHuge::NoneFree(errno))),
        };
        if let Some(why) = &why {
            degraded.report("huge_pages", why.cause(), why.cure());
        }
        HugePages {
            requested_bytes: whole as u64,
            huge_bytes: huge as u64,
            is_put_off: why == Some(NotHuge::Slow),
            cause: why.map(|why| why.cause()),
        }
    }
}

/// What [`HugeParts`] needs of a mapping.
trait Collapse {
    /// Allocates and maps all pages of a range.
    fn fault(&mut self, range: Range<usize>) -> Result<(), Errno>;
    /// Allocates the page at an offset.
    fn touch(&mut self, offset: usize) -> Result<(), Errno>;
    /// Replaces the pages of a range by huge ones.
    fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno>;
    /// What time it is.
    fn now(&self) -> Instant;
}

impl Collapse for Pager<'_> {
    fn fault(&mut self, range: Range<usize>) -> Result<(), Errno> {
        self.populate(range)
    }

    fn touch(&mut self, offset: usize) -> Result<(), Errno> {
        self.populate(offset..offset + PAGE)
    }

    fn collapse(&mut self, range: Range<usize>) -> Result<(), Errno> {
        Self::collapse(self, range)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// How much got huge pages so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct HugeParts {
    /// The kernel may give them by itself.
    on_fault: bool,
    bytes: usize,
    /// The last error.
    last: Option<Errno>,
    /// No more are asked for.
    ended: bool,
    /// No more are asked for once they come slowly.
    hastens: bool,
    /// What they took beyond what they may.
    late: Duration,
    /// That was too much.
    slow: bool,
}

impl HugeParts {
    /// Gets huge pages for the next part, of whole 2 MiB pieces.
    fn step(&mut self, memory: &mut impl Collapse, step: Range<usize>) {
        if self.ended || step.is_empty() {
            return;
        }
        if self.on_fault {
            // What it could not do is tried again below, and an error comes up again afterwards.
            let _ = memory.fault(step.clone());
        }
        // A part of which no page is there is not collapsed.
        let mut touched = step.clone().step_by(HUGE);
        if let Some(errno) = touched.find_map(|at| memory.touch(at).err()) {
            (self.last, self.ended) = (Some(errno), true);
            return;
        }
        let began = memory.now();
        match memory.collapse(step.clone()) {
            Ok(()) => {
                self.bytes += step.len();
                let pages = u32::try_from(step.len() / HUGE).unwrap_or(u32::MAX);
                let took = memory.now().duration_since(began);
                self.late += took.saturating_sub(SLOW * pages);
                self.slow = self.hastens && self.late > PATIENCE;
                self.ended = self.slow;
            }
            Err(Errno::INVAL) => (self.last, self.ended) = (Some(Errno::INVAL), true),
            Err(_) => {
                let before = self.bytes;
                for at in step.step_by(HUGE) {
                    match memory.collapse(at..at + HUGE) {
                        Ok(()) => self.bytes += HUGE,
                        Err(errno) => self.last = Some(errno),
                    }
                }
                // Looking for free huge pages is slow, and the next step would find none.
                self.ended = self.bytes == before;
            }
        }
    }
}

#[cfg(test)]
mod tests;

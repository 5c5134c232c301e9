//! Which process this is, without a system call.
//!
//! A child that `fork` made has its parent's memory and a copy of its descriptors. It must never
//! write to the parent's connection, nor take a lock that a thread of the parent may have held.
//! So every piece of state is stamped with the [`generation`] of the process that made it, and a
//! process looks only at state of its own generation.
//!
//! How a child knows: a page under `MADV_WIPEONFORK` reads as zero after `fork`. Against
//! `getpid` this costs one load instead of a system call on each open, and a recycled pid cannot
//! deceive it; against `pthread_atfork` it also sees a raw `clone`, runs nothing of ours inside
//! `fork`, and leaves no handler behind when `libmrm.so` is unloaded.

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Differs between a process and every process that it was forked from.
pub(crate) fn generation() -> u64 {
    let Some(page) = *PAGE.get_or_init(wiped_on_fork) else {
        // Kernels before 4.14, or no memory for a page: pay the system call.
        return u64::from(std::process::id());
    };
    match page.load(Ordering::Acquire) {
        0 => first_look(page),
        generation => generation,
    }
}

/// Makes descriptor `raw` refer to something harmless, so that this process no longer holds the
/// socket that it inherited. The number stays taken: its owner will close it in its own time.
pub(crate) fn let_go(raw: RawFd) {
    let Ok(harmless) = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC) else {
        return;
    };
    // SAFETY: `raw` is open: its `OwnedFd` lives in state that only ever is leaked or dropped
    // after it was taken out of the place where the caller found the number. `ManuallyDrop`
    // keeps this second owner from closing it.
    let mut inherited = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(raw) });
    let _ = rustix::io::dup3(&harmless, &mut inherited, rustix::io::DupFlags::CLOEXEC);
}

static PAGE: OnceLock<Option<&'static AtomicU64>> = OnceLock::new();
/// Ordinary memory: a child goes on counting where its parent stood.
static LAST: AtomicU64 = AtomicU64::new(0);

#[cold]
fn first_look(page: &AtomicU64) -> u64 {
    let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match page.compare_exchange(0, fresh, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => fresh,
        Err(other_thread) => other_thread,
    }
}

fn wiped_on_fork() -> Option<&'static AtomicU64> {
    let bytes = rustix::param::page_size();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of
    // anybody. It is never unmapped.
    let page = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) };
    let page = page.ok()?;
    // SAFETY: the range is the mapping made above, which nothing else refers to yet.
    unsafe { madvise(page, bytes, Advice::LinuxWipeOnFork) }.ok()?;
    // SAFETY: the page is mapped readable and writable for the life of the process, aligned,
    // zeroed, and from here on only reached through this shared reference to an atomic.
    Some(unsafe { AtomicU64::from_ptr(page.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_stable_within_a_process() {
        let first = generation();
        assert_ne!(first, 0);
        let others: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(generation))
            .filter_map(|t| t.join().ok())
            .collect();
        assert_eq!(others, [first; 4]);
    }
}

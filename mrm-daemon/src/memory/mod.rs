//! Host memory: segments that are filled once, sealed, and lent.
//!
//! An [`Unsealed`] segment belongs to the daemon alone. All its pages are allocated before anyone
//! sees it, in 2 MiB pages where the kernel gives them. [`Unsealed::seal`] makes it a
//! [`HostSegment`]: its descriptor is what clients get, and nobody can write, grow or shrink it any
//! more, not even the daemon.
//!
//! ```
//! use mrm_daemon::{degraded::Degraded, memory::{Unsealed, charge_for}};
//!
//! let degraded = Degraded::new();
//! let mut unsealed = Unsealed::allocate(5, charge_for(5), &degraded)?;
//! unsealed.as_mut_slice().copy_from_slice(b"bytes");
//! let segment = unsealed.seal(&degraded)?;
//! assert_eq!((segment.bytes(), segment.allocated_bytes()), (5, 4096));
//! # Ok::<(), mrm_daemon::memory::MemoryError>(())
//! ```

pub mod available;
mod error;
mod host;
mod lend;
mod pages;
mod segment;
mod smaps;
pub mod stock;

pub use error::MemoryError;
pub(crate) use lend::lend_unfilled;
pub(crate) use pages::Populator;
pub use pages::{HUGE_PAGE_BYTES, HugePages, PAGE_BYTES};
pub(crate) use segment::Reserved;
pub use segment::{HostSegment, Unsealed};

/// What a segment of `bytes` is charged: whole pages. Never less than what the kernel takes.
///
/// ```
/// assert_eq!(mrm_daemon::memory::charge_for(4097), 8192);
/// ```
#[must_use]
pub const fn charge_for(bytes: u64) -> u64 {
    match bytes.checked_next_multiple_of(PAGE_BYTES) {
        Some(charge) => charge,
        // No machine has that much: whoever compares this with a budget refuses it.
        None => u64::MAX,
    }
}

#[cfg(test)]
mod tests;

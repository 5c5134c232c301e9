//! Whether memory still holds what was loaded into it.
//!
//! Each segment has the BLAKE3 digest that was computed while it was filled. What is checked is
//! read again, a MiB at a time, by a thread that steps back for everything else; nothing is kept
//! from being freed meanwhile.
//!
//! ```
//! use mrm_daemon::integrity::{Verdict, check_host};
//! use mrm_daemon::{degraded::Degraded, memory::HostSegment};
//! use std::sync::{Arc, atomic::AtomicU64};
//!
//! let segment = Arc::new(HostSegment::holding(b"weights", &Degraded::new())?);
//! let weak = Arc::downgrade(&segment);
//! let (done, digest) = (AtomicU64::new(0), *blake3::hash(b"weights").as_bytes());
//! assert_eq!(check_host(&weak, &digest, &done, &|| true), Verdict::Intact);
//! assert!(matches!(check_host(&weak, &[0; 32], &done, &|| true), Verdict::Damaged { .. }));
//! drop(segment);
//! assert_eq!(check_host(&weak, &digest, &done, &|| true), Verdict::Gone);
//! # Ok::<(), mrm_daemon::memory::MemoryError>(())
//! ```

mod lists;
pub mod manifest;
mod sums;

pub(crate) use lists::{Listed, Lists};
use sums::Sums;

use crate::memory::HostSegment;
use sha2::{Digest as _, Sha256};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much is read at once, and therefore for how long memory that is freed may stay.
const CHUNK_BYTES: usize = 1 << 20;

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds what was loaded.
    Intact,
    /// It does not.
    Damaged {
        /// The digest of what it holds.
        found: [u8; 32],
    },
    /// It was freed before all of it was read.
    Gone,
    /// It cannot be told.
    Unchecked(String),
}

/// Compares a segment with its digest. `done`: how many bytes were read so far. `go_on` is asked
/// before each MiB; if it says no, the segment counts as gone. Blocks.
#[must_use]
pub fn check_host(
    segment: &Weak<HostSegment>,
    digest: &[u8; 32],
    done: &AtomicU64,
    go_on: &dyn Fn() -> bool,
) -> Verdict {
    match hash(segment, done, go_on) {
        Err(verdict) => verdict,
        Ok(found) if found == *digest => Verdict::Intact,
        Ok(found) => Verdict::Damaged { found },
    }
}

/// The BLAKE3 digest of a segment that came without one; `None` if it was freed, or cannot be read.
/// `done` and `go_on` as for [`check_host`]. Blocks.
#[must_use]
pub fn digest_of(
    segment: &Weak<HostSegment>,
    done: &AtomicU64,
    go_on: &dyn Fn() -> bool,
) -> Option<[u8; 32]> {
    hash(segment, done, go_on).ok()
}

fn hash(
    segment: &Weak<HostSegment>,
    done: &AtomicU64,
    go_on: &dyn Fn() -> bool,
) -> Result<[u8; 32], Verdict> {
    let mut hasher = blake3::Hasher::new();
    read_all(segment, done, go_on, |bytes| {
        hasher.update(bytes);
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// The SHA-256 of a segment, by which lists know a file; `None` if it was freed, or cannot be read.
/// Takes a second for a GB or two. `go_on` as for [`check_host`]. Blocks.
#[must_use]
pub fn sha256_of(segment: &Weak<HostSegment>, go_on: &dyn Fn() -> bool) -> Option<[u8; 32]> {
    let mut hasher = Sha256::new();
    let read = read_all(segment, &AtomicU64::new(0), go_on, |bytes| {
        hasher.update(bytes)
    });
    read.ok().map(|()| hasher.finalize().into())
}

/// Hands a segment over, a MiB at a time.
fn read_all(
    segment: &Weak<HostSegment>,
    done: &AtomicU64,
    go_on: &dyn Fn() -> bool,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Verdict> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0_u64;
    loop {
        // Held for one read only: what is freed meanwhile is free at once.
        let held = segment.upgrade().filter(|_| go_on()).ok_or(Verdict::Gone)?;
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(held.fd(), &mut chunk, at));
        drop(held);
        match read {
            // A sealed memfd is as long as it was.
            Ok(0) => return Ok(()),
            Ok(read) => {
                take(&chunk[..read]);
                at += read as u64;
                done.store(at, Ordering::Relaxed);
            }
            Err(errno) => {
                return Err(Verdict::Unchecked(format!("it cannot be read: {errno}")));
            }
        }
    }
}

/// Lets the calling thread have what no other wants.
pub(crate) fn step_back() {
    const LOWEST: i32 = 19;
    if let Err(error) = rustix::process::nice(LOWEST) {
        tracing::debug!(%error, "checks of memory run at the usual priority");
    }
}

//! Waiting until a file's times can tell a later write apart.
//!
//! The kernel stamps files with the time of its last tick. Two writes within one tick leave the
//! same stamp, so a file is trusted only when its stamp is older than any tick is long, or when it
//! stayed the same while we watched it for that long (a server's clock may differ from ours).

use super::{Identity, Source, SourceError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How old a stamp must be: two ticks of the slowest kernel (100 Hz).
pub const SETTLE_MS: u64 = 20;
/// How many times a file that keeps changing is waited for.
pub const SETTLE_ROUNDS_MAX: u32 = 3;

/// The identity of each source, such that any later write gives another one. Sleeps at most
/// [`SETTLE_ROUNDS_MAX`] times [`SETTLE_MS`], whatever the number of sources; not at all for files
/// that have been left alone.
///
/// # Errors
/// [`SourceError::Changed`] names a file that is being written all the time.
pub fn settle(sources: &[&dyn Source]) -> Result<Vec<Identity>, SourceError> {
    let mut known = identities(sources)?;
    for _ in 0..SETTLE_ROUNDS_MAX {
        let now_ns = now_ns();
        if known.iter().all(|identity| is_old(identity, now_ns)) {
            return Ok(known);
        }
        thread::sleep(Duration::from_millis(SETTLE_MS));
        let fresh = identities(sources)?;
        if fresh == known {
            return Ok(known);
        }
        known = fresh;
    }
    let now_ns = now_ns();
    match sources
        .iter()
        .zip(&known)
        .find(|(_, identity)| !is_old(identity, now_ns))
    {
        Some((source, _)) => Err(SourceError::Changed {
            name: source.label().to_owned(),
        }),
        None => Ok(known),
    }
}

fn identities(sources: &[&dyn Source]) -> Result<Vec<Identity>, SourceError> {
    sources.iter().map(|source| source.identity()).collect()
}

fn is_old(identity: &Identity, now_ns: i128) -> bool {
    now_ns - identity.ctime_ns >= i128::from(SETTLE_MS) * 1_000_000
}

fn now_ns() -> i128 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

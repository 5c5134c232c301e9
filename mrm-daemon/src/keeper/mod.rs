//! What outlives a daemon: descriptors of its memory and its sockets, kept for the next one.
//!
//! A segment lives as long as a descriptor of it is open anywhere, and a listening socket too. So a
//! process that holds copies of them, and does almost nothing else, makes a daemon's death cost
//! nothing: the *keeper* ([`keeper_main`]), or under systemd its fd store. Neither knows what it
//! holds.
//!
//! **An entry** is the unit of keeping: a [`Key`], and descriptors, the first of which is a sealed
//! memfd that says what the others are ([`describe`]). Both keepers hold this and nothing more. An
//! entry is replaced as a whole or not at all, whenever the daemon is killed.
//!
//! **Under one key only the description may change.** Other descriptors are another entry, and take
//! another key: the fd store cannot exchange several descriptors at once.
//!
//! **The daemon's side** is [`Keeper`]: it remembers what is to be kept, and a thread of its own
//! brings the keeper into line with that, so that no caller ever waits. A keeper that died or does
//! not answer is reported as degraded, started again, and given everything again.
//!
//! **Memory is given back when the keeper has let go**: until [`Keeper::remove`] says that it is
//! done, the memory of an entry is not free, and its charge must stay.
//!
//! ```
//! use mrm_daemon::degraded::Degraded;
//! use mrm_daemon::keeper::{Entry, Keeper, Key, describe::{Description, Instance}};
//! use mrm_proto::ids::InstanceId;
//!
//! let keeper = Keeper::none();
//! assert!(keeper.adopt_all().entries.is_empty());
//! let instance = Instance { instance: InstanceId(7), release: "0.1.0".into(), counters: vec![1] };
//! let entry = Entry::new(Key::new("instance")?, Description::Instance(instance), Vec::new())?;
//! let (kept, told) = std::sync::mpsc::channel();
//! keeper.put(entry, Some(Box::new(move |result| drop(kept.send(result)))));
//! told.recv()??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod adopt;
mod client;
pub mod describe;
mod hold;
mod link;
mod process;
mod respawn;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod wire;

pub use adopt::{Adopted, Adoption, Dropped, Refusal};
pub use client::{Done, KeepError, Keeper, ProcessKeeper, StartError};
pub use process::keeper_main;
pub use respawn::Respawn;
pub use wire::RefusedBy;

use describe::Description;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 64;
/// Most descriptors of one entry, with its description: a model may have so many allocations on a
/// device.
pub const ENTRY_FDS_MAX: usize = 1 + mrm_proto::limits::ALLOCATIONS_PER_MODEL_MAX;
/// Most entries. Descriptors run out before, as a rule.
pub const ENTRIES_MAX: usize = 65_536;
/// What keys of listening sockets begin with, before a `-`.
pub const SOCKET_KEYS: &str = "l";
/// What keys of a daemon's run begin with, before a `-`.
pub const RUN_KEYS: &str = "r";
/// Descriptors that only [`SOCKET_KEYS`] and [`RUN_KEYS`] can have, where there are many more:
/// two sockets and some runs. Without them the next daemon could take up no lease of what is kept.
const VITAL_FDS_MAX: usize = 16;
/// Name of the keeper's socket in the runtime directory.
pub const KEEPER_SOCKET: &str = "keeper.sock";
/// The first argument of a process that is to be the keeper.
pub const KEEPER_ARGUMENT: &str = "--keeper";
/// How long a keeper goes on without a daemon, unless told otherwise.
pub const KEEP_FOR_MS_DEFAULT: u64 = 600_000;

/// The name of an entry: 1 to [`KEY_BYTES_MAX`] characters of `a-z`, `0-9`, `.` and `-`.
///
/// ```
/// use mrm_daemon::keeper::Key;
/// assert!(Key::new("segment-17").is_ok());
/// assert!(Key::new("Segment 17").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

/// A key that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key: it has 1 to {KEY_BYTES_MAX} characters of a-z, 0-9, `.` and `-`")]
pub struct BadKey(String);

/// A descriptor that an entry shares with whoever else uses it. It stays open until the entry is
/// removed.
pub type SharedFd = Arc<dyn AsFd + Send + Sync>;

/// What is to be kept.
#[derive(Clone)]
pub struct Entry {
    key: Key,
    description: Description,
    fds: Vec<SharedFd>,
}

/// An entry that does not fit its own description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} has {found} descriptors, and its description is of {expected} (at most {max})", max = ENTRY_FDS_MAX - 1)]
pub struct BadEntry {
    key: Key,
    expected: usize,
    found: usize,
}

/// What came back from a keeper, not looked at yet: the first descriptor should be the description.
#[derive(Debug)]
pub struct RawEntry {
    /// Its name.
    pub key: Key,
    /// Its descriptors, in order.
    pub fds: Vec<OwnedFd>,
}

impl Key {
    /// Checks and wraps `key`.
    ///
    /// # Errors
    /// When it is empty, too long, or has other characters.
    pub fn new(key: impl AsRef<str>) -> Result<Self, BadKey> {
        let key = key.as_ref();
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        match (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(fits) {
            true => Ok(Self(key.into())),
            // Not all of what a stranger sent belongs into a message.
            false => Err(BadKey(key.chars().take(KEY_BYTES_MAX).collect())),
        }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many of `fds_max` descriptors entries of this key may bring those in use to.
    fn fds_max(&self, fds_max: usize) -> usize {
        let kind = self.0.split('-').next().unwrap_or_default();
        match [SOCKET_KEYS, RUN_KEYS].contains(&kind) {
            true => fds_max,
            false => fds_max - VITAL_FDS_MAX.min(fds_max / 8),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Entry {
    /// An entry of `fds`, which `description` describes, in its order.
    ///
    /// # Errors
    /// When there are more or fewer descriptors than described, or more than
    /// [`ENTRY_FDS_MAX`] with the description.
    pub fn new(key: Key, description: Description, fds: Vec<SharedFd>) -> Result<Self, BadEntry> {
        let expected = description.fds();
        if fds.len() != expected || expected >= ENTRY_FDS_MAX {
            let found = fds.len();
            return Err(BadEntry {
                key,
                expected,
                found,
            });
        }
        Ok(Self {
            key,
            description,
            fds,
        })
    }

    /// Its name.
    #[must_use]
    pub const fn key(&self) -> &Key {
        &self.key
    }

    /// What it is.
    #[must_use]
    pub const fn description(&self) -> &Description {
        &self.description
    }

    /// The descriptors that it describes.
    #[must_use]
    pub fn fds(&self) -> &[SharedFd] {
        &self.fds
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("description", &self.description)
            .finish_non_exhaustive()
    }
}

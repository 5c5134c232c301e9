//! Entries in the fd store of systemd.
//!
//! The store has names and no order, so each descriptor has a name of its own:
//!
//! ```text
//! mrm_<key>_0_<generation>   the description: the highest generation is the one that counts
//! mrm_<key>_<index>          descriptor 1, 2, ... of the entry
//! ```
//!
//! `_` is in no key. A new entry's description is stored last and a removed one's is removed first,
//! so that what is there in part has no description or lacks descriptors, and is dropped. A changed
//! description is stored under the next generation before the last one is removed. systemd does not
//! store the same descriptor twice, which is why nothing but the description may change.

use super::client::{StartError, Transport};
use super::link::{LinkError, Taken};
use super::wire::RefusedBy;
use super::{Entry, Key, RawEntry};
use crate::runtime::{FdStore, STORED_PREFIX};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long the manager may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The fd store, and what is in it.
pub(super) struct Store {
    store: FdStore,
    given: Vec<(String, OwnedFd)>,
    there: BTreeMap<Key, There>,
    /// Of all entries.
    fds: usize,
}

/// What the store has of an entry.
#[derive(Debug, Default, Clone, Copy)]
struct There {
    generation: u64,
    /// Without the description.
    fds: usize,
}

/// What came back of an entry.
#[derive(Default)]
struct Given {
    description: Option<(u64, OwnedFd)>,
    fds: BTreeMap<usize, OwnedFd>,
}

fn description_name(key: &Key, generation: u64) -> String {
    format!("{STORED_PREFIX}{key}_0_{generation}")
}

fn name(key: &Key, index: usize) -> String {
    format!("{STORED_PREFIX}{key}_{index}")
}

/// Key, index and generation.
fn parse(name: &str) -> Option<(Key, usize, u64)> {
    let mut parts = name.strip_prefix(STORED_PREFIX)?.split('_');
    let key = Key::new(parts.next()?).ok()?;
    let index: usize = parts.next()?.parse().ok()?;
    let generation = match (index, parts.next()) {
        (0, Some(generation)) => generation.parse().ok()?,
        (1.., None) => 0,
        (_, _) => return None,
    };
    parts.next().is_none().then_some((key, index, generation))
}

impl Store {
    pub(super) const fn new(store: FdStore, given: Vec<(String, OwnedFd)>) -> Self {
        Self {
            store,
            given,
            there: BTreeMap::new(),
            fds: 0,
        }
    }

    fn send(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), LinkError> {
        Ok(self.store.store(name, fd, PATIENCE)?)
    }

    fn drop_name(&self, name: &str) -> Result<(), LinkError> {
        Ok(self.store.remove(name, PATIENCE)?)
    }

    /// Sorts what came back. Old generations and names that are none are removed at once.
    fn sort(&mut self) -> Result<BTreeMap<Key, Given>, LinkError> {
        let mut sorted: BTreeMap<Key, Given> = BTreeMap::new();
        let mut of_no_use = Vec::new();
        for (name, fd) in std::mem::take(&mut self.given) {
            let Some((key, index, generation)) = parse(&name) else {
                tracing::warn!(name, "not adopted: the name is none of ours");
                of_no_use.push(name);
                continue;
            };
            let given = sorted.entry(key.clone()).or_default();
            if index > 0 {
                given.fds.insert(index, fd);
                continue;
            }
            let old = match given.description.take() {
                Some((newer, kept)) if newer > generation => {
                    given.description = Some((newer, kept));
                    Some(generation)
                }
                older => {
                    given.description = Some((generation, fd));
                    older.map(|(older, _)| older)
                }
            };
            of_no_use.extend(old.map(|old| description_name(&key, old)));
        }
        for name in of_no_use {
            self.drop_name(&name)?;
        }
        Ok(sorted)
    }
}

impl Transport for Store {
    fn put(&mut self, entry: &Entry) -> Result<(), LinkError> {
        let description = entry.description().seal()?;
        let key = entry.key();
        let fds = entry.fds();
        let before = self.there.get(key).copied();
        let before = match before {
            Some(before) if before.fds == fds.len() => Some(before),
            Some(_) => {
                self.remove(key)?;
                None
            }
            None => None,
        };
        // A description is there twice for a moment.
        let more = before.map_or(fds.len(), |_| 0) + 1;
        if self.fds + more > key.fds_max(self.store.capacity()) {
            return Err(LinkError::Refused(RefusedBy::Descriptors));
        }
        let generation = before.map_or(0, |before| before.generation + 1);
        if before.is_none() {
            for (at, fd) in fds.iter().enumerate() {
                self.send(&name(key, at + 1), (**fd).as_fd())?;
            }
        }
        self.send(&description_name(key, generation), description.as_fd())?;
        match before {
            Some(before) => self.drop_name(&description_name(key, before.generation))?,
            None => self.fds += fds.len() + 1,
        }
        let fds = fds.len();
        self.there.insert(key.clone(), There { generation, fds });
        Ok(self.store.barrier(PATIENCE)?)
    }

    fn remove(&mut self, key: &Key) -> Result<(), LinkError> {
        let Some(there) = self.there.remove(key) else {
            return Ok(());
        };
        self.fds = self.fds.saturating_sub(there.fds + 1);
        self.drop_name(&description_name(key, there.generation))?;
        for index in 1..=there.fds {
            self.drop_name(&name(key, index))?;
        }
        Ok(self.store.barrier(PATIENCE)?)
    }

    fn take_all(&mut self) -> Result<Taken, LinkError> {
        let mut taken = Taken::default();
        for (key, given) in self.sort()? {
            // A gap is a missing descriptor: what comes after it has not its index.
            let last = given.fds.last_key_value().map_or(0, |(index, _)| *index);
            let whole = last == given.fds.len();
            let generation = given.description.as_ref().map_or(0, |(n, _)| *n);
            // Whatever is dropped is removed by what is written down here.
            self.there.insert(
                key.clone(),
                There {
                    generation,
                    fds: last,
                },
            );
            self.fds += last + 1;
            let description = given.description.map(|(_, fd)| fd).filter(|_| whole);
            let mut fds = Vec::new();
            if let Some(description) = description {
                fds.push(description);
                fds.extend(given.fds.into_values());
            }
            taken.entries.push(RawEntry { key, fds });
        }
        Ok(taken)
    }

    fn watch(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn unasked(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    fn end(&mut self) -> bool {
        // It is the service manager: it has what it has.
        false
    }

    fn start(&mut self) -> Result<(), StartError> {
        Ok(())
    }

    fn stop(&mut self) -> Result<(), LinkError> {
        Ok(())
    }
}

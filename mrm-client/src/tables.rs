//! Tensor tables that a process has, also of models that it has closed.
//!
//! A table belongs to a version and does not change. Who opens a model again says which version's
//! table is here still; when that is what is granted, its descriptor does not travel again, and what
//! was mapped is mapped still. What is kept here keeps no weights, counts as no lease, and is bounded.

use crate::error::{SegmentError, What};
use crate::mapping::Mapping;
use mrm_proto::ids::{InstanceId, VersionId};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

/// Most tables of closed models, and so most descriptors that are kept for them.
const TABLES_MAX: usize = 32;
/// Larger ones are not kept: this is a table of some 10,000 tensors.
const TABLE_BYTES_MAX: u64 = 1 << 20;

/// One tensor table.
#[derive(Debug)]
pub(crate) struct TableSegment {
    fd: OwnedFd,
    bytes: u64,
    /// Mapped when the first tensor is asked for: opaque users never pay for it.
    mapped: OnceLock<Result<Mapping, SegmentError>>,
}

/// The table of the version that a daemon granted for a name.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) instance: InstanceId,
    pub(crate) version: VersionId,
    pub(crate) table: Arc<TableSegment>,
}

/// The tables of what was opened last, by the names of the models.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    entries: HashMap<Box<str>, Entry>,
    /// How often one was asked for or kept.
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    known: Known,
    last_use: u64,
}

impl TableSegment {
    pub(crate) fn new(fd: OwnedFd, bytes: u64) -> Self {
        let mapped = OnceLock::new();
        Self { fd, bytes, mapped }
    }

    pub(crate) const fn len(&self) -> u64 {
        self.bytes
    }

    /// Its bytes, checked and mapped at the first call.
    pub(crate) fn bytes(&self) -> Result<&[u8], &SegmentError> {
        let map = || Mapping::new(self.fd.as_fd(), self.bytes, What::Table);
        self.mapped.get_or_init(map).as_ref().map(Mapping::bytes)
    }

    fn is_of_no_use(&self) -> bool {
        self.mapped.get().is_some_and(Result::is_err)
    }
}

impl Tables {
    /// What is known of `name`. A table that proved to be of no use is not: the daemon is asked for it
    /// again.
    pub(crate) fn get(&mut self, name: &str) -> Option<Known> {
        let entry = self.entries.get_mut(name)?;
        if entry.known.table.is_of_no_use() {
            self.entries.remove(name);
            return None;
        }
        self.uses += 1;
        entry.last_use = self.uses;
        Some(entry.known.clone())
    }

    /// Keeps a table, in the place of what was known of `name`, or of what was used longest ago.
    pub(crate) fn keep(&mut self, name: &str, known: Known) {
        if known.table.len() > TABLE_BYTES_MAX {
            self.entries.remove(name);
            return;
        }
        self.uses += 1;
        let last_use = self.uses;
        if let Some(entry) = self.entries.get_mut(name) {
            *entry = Entry { known, last_use };
            return;
        }
        if self.entries.len() >= TABLES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(name.into(), Entry { known, last_use });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(version: u64, bytes: u64) -> Known {
        let fd = std::fs::File::open("/dev/null").expect("opens").into();
        Known {
            instance: InstanceId(1),
            version: VersionId(version),
            table: Arc::new(TableSegment::new(fd, bytes)),
        }
    }

    #[test]
    fn what_proved_to_be_of_no_use_is_asked_for_again() {
        let mut tables = Tables::default();
        tables.keep("m", known(1, 100));
        let kept = tables.get("m").expect("nobody looked into it yet");
        assert!(kept.table.bytes().is_err(), "not sealed");
        assert!(tables.get("m").is_none());
        assert!(tables.entries.is_empty());
    }

    #[test]
    fn the_one_used_longest_ago_goes_and_large_ones_are_not_kept() {
        let mut tables = Tables::default();
        for n in 0..TABLES_MAX as u64 {
            tables.keep(&format!("m{n}"), known(n, 100));
        }
        assert!(tables.get("m0").is_some());
        tables.keep("another", known(99, 100));
        assert!(tables.get("m0").is_some() && tables.get("m1").is_none());
        assert_eq!(tables.entries.len(), TABLES_MAX);
        tables.keep("m0", known(7, 100));
        assert_eq!(tables.get("m0").map(|k| k.version), Some(VersionId(7)));
        tables.keep("m0", known(8, TABLE_BYTES_MAX + 1));
        assert!(tables.get("m0").is_none());
    }
}

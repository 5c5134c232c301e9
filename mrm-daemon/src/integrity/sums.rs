//! What files turned out to be.

use crate::source::Identity;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most files that are remembered.
const FILES_MAX: usize = 65_536;

/// The SHA-256 of files, by their state. Clones share one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums(Arc<Mutex<HashMap<Identity, [u8; 32]>>>);

impl Sums {
    pub(crate) fn get(&self, file: &Identity) -> Option<[u8; 32]> {
        self.lock().get(file).copied()
    }

    /// Beyond the bound all are forgotten: what is known is only ever needed to refuse a file
    /// without reading it again.
    pub(crate) fn insert(&self, file: Identity, sha256: [u8; 32]) {
        let mut sums = self.lock();
        if sums.len() >= FILES_MAX {
            sums.clear();
        }
        sums.insert(file, sha256);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identity, [u8; 32]>> {
        // The table is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

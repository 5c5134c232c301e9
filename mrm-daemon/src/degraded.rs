//! Slow paths that were taken, each with its cause and its cure.
//!
//! Nothing falls back in silence: who takes a slower path than the best one reports it here. It is
//! logged the first time, counted every time, and listed by the status socket.
//!
//! ```
//! use mrm_daemon::degraded::Degraded;
//!
//! let degraded = Degraded::new();
//! degraded.report("huge_pages", "shmem_enabled is 'never'", "write 'advise' to shmem_enabled");
//! degraded.report("huge_pages", "the same again", "write 'advise' to shmem_enabled");
//! let listed = degraded.list();
//! assert_eq!((listed.len(), listed[0].id, listed[0].times), (1, "huge_pages", 2));
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A slow path that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DegradedPath {
    /// Stable name of the path, in snake case.
    pub id: &'static str,
    /// Why the better path could not be taken, the first time.
    pub cause: String,
    /// What an operator can do about it.
    pub cure: &'static str,
    /// How often it was taken.
    pub times: u64,
}

/// The slow paths of one daemon. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Degraded {
    // As long as there are ids in the source code, so it needs no bound of its own.
    paths: Arc<Mutex<Vec<DegradedPath>>>,
}

impl Degraded {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that the path `id` was taken; returns whether this is the first time.
    pub fn report(&self, id: &'static str, cause: impl Into<String>, cure: &'static str) -> bool {
        let cause = cause.into();
        let mut paths = self.lock();
        if let Some(path) = paths.iter_mut().find(|path| path.id == id) {
            path.times = path.times.saturating_add(1);
            return false;
        }
        tracing::warn!(id, %cause, cure, "degraded");
        paths.push(DegradedPath {
            id,
            cause,
            cure,
            times: 1,
        });
        true
    }

    /// What was reported so far, by id.
    #[must_use]
    pub fn list(&self) -> Vec<DegradedPath> {
        let mut paths = self.lock().clone();
        paths.sort_by_key(|path| path.id);
        paths
    }

    fn lock(&self) -> MutexGuard<'_, Vec<DegradedPath>> {
        // The list is whole between any two statements, so a panic elsewhere cannot have broken it.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_cause_is_kept_and_repeats_are_counted() {
        let degraded = Degraded::new();
        assert!(degraded.report("b", "one", "cure"));
        assert!(!degraded.clone().report("b", "two", "cure"));
        assert!(degraded.report("a", "three", "cure"));
        let listed = degraded.list();
        assert_eq!(
            listed.iter().map(|p| (p.id, p.times)).collect::<Vec<_>>(),
            [("a", 1), ("b", 2)]
        );
        assert_eq!(listed[1].cause, "one");
    }
}

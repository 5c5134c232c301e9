//! What is to be kept, and what of it the keeper has yet to be told.
//!
//! Bounded by the number of keys: however often an entry changes before the keeper's thread comes
//! to it, only what was asked for last is done.

use super::client::{Done, KeepError};
use super::{ENTRIES_MAX, Entry, Key};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The wishes of the daemon.
#[derive(Default)]
pub(super) struct Table {
    wanted: BTreeMap<Key, Entry>,
    /// In the order in which they first differed.
    queue: VecDeque<Key>,
    changes: BTreeMap<Key, Change>,
}

/// What is to be done, and let go of, for one key.
#[derive(Default)]
struct Change {
    /// Closing what is in here can take time: never on the caller's thread.
    before: Vec<Entry>,
    waiting: Vec<Done>,
}

/// One step towards what is wanted.
pub(super) struct Job {
    pub(super) key: Key,
    /// `None`: it is to be let go of.
    pub(super) entry: Option<Entry>,
    pub(super) before: Vec<Entry>,
    pub(super) waiting: Vec<Done>,
}

impl Table {
    /// Wants `entry`, instead of what was wanted under its key.
    pub(super) fn put(&mut self, entry: Entry, done: Option<Done>) -> Result<(), Option<Done>> {
        let key = entry.key.clone();
        if self.wanted.len() >= ENTRIES_MAX && !self.wanted.contains_key(&key) {
            return Err(done);
        }
        let before = self.wanted.insert(key.clone(), entry);
        self.change(key, before, done);
        Ok(())
    }

    /// As `put`, of what the keeper has already.
    pub(super) fn hold(&mut self, entry: Entry) {
        // What it replaces was adopted from the same keeper, so nothing is freed here.
        self.wanted.insert(entry.key.clone(), entry);
    }

    /// Wants nothing under `key`.
    pub(super) fn remove(&mut self, key: &Key, done: Option<Done>) {
        let before = self.wanted.remove(key);
        self.change(key.clone(), before, done);
    }

    fn change(&mut self, key: Key, before: Option<Entry>, done: Option<Done>) {
        if !self.changes.contains_key(&key) {
            self.queue.push_back(key.clone());
        }
        let change = self.changes.entry(key).or_default();
        change.before.extend(before);
        change.waiting.extend(done);
    }

    /// The next step.
    pub(super) fn next(&mut self) -> Option<Job> {
        let key = self.queue.pop_front()?;
        let Change { before, waiting } = self.changes.remove(&key).unwrap_or_default();
        Some(Job {
            entry: self.wanted.get(&key).cloned(),
            key,
            before,
            waiting,
        })
    }

    /// A step that could not be done now: first in the queue again.
    pub(super) fn again(&mut self, job: Job) {
        let mut change = self.changes.remove(&job.key).unwrap_or_default();
        change.before.extend(job.before);
        change.waiting.extend(job.waiting);
        self.queue.retain(|key| *key != job.key);
        self.queue.push_front(job.key.clone());
        self.changes.insert(job.key, change);
    }

    /// The keeper is another one, which has nothing.
    pub(super) fn all_again(&mut self) {
        let queued: BTreeSet<Key> = self.queue.iter().cloned().collect();
        for key in self.wanted.keys().filter(|key| !queued.contains(key)) {
            self.queue.push_back(key.clone());
            self.changes.insert(key.clone(), Change::default());
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// How much is wanted.
    pub(super) fn entries(&self) -> usize {
        self.wanted.len()
    }
}

impl Job {
    /// Lets go of what it was before, and then says so.
    pub(super) fn end(self, result: Result<(), KeepError>) {
        drop((self.entry, self.before));
        for done in self.waiting {
            done(result.clone());
        }
    }
}

//! What a client holds, to be taken up again by the next session.

use crate::connection::Connection;
use crate::lease::{Fate, Grant, Leased, Standing};
use mrm_proto::ids::{InstanceId, LeaseId, VersionId};
use mrm_proto::limits::RESUMED_MAX;
use mrm_proto::request::HadLease;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Every lease that is held, and may be taken up by another session.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    entries: BTreeMap<u64, Entry>,
    last_key: u64,
    kin: Kin,
}

/// Under whose number the process shares versions that were taken over.
#[derive(Debug, Default)]
struct Kin {
    /// The session of which this is true.
    session: u64,
    of: HashMap<VersionId, InstanceId>,
}

#[derive(Debug)]
struct Entry {
    leased: Leased,
    /// The daemon that gave it last.
    instance: InstanceId,
    /// The one that was the first to lend what it covers.
    shared_as: InstanceId,
    standing: Arc<Standing>,
}

/// Leases to name in one `Resume`: all of one daemon.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) instance: InstanceId,
    pub(crate) had: Vec<HadLease>,
    keys: Vec<u64>,
}

impl Kin {
    fn shared_as(&self, connection: &Connection, version: VersionId) -> InstanceId {
        let known = self.of.get(&version).copied();
        let known = known.filter(|_| self.session == connection.number());
        known.unwrap_or(connection.hello().instance)
    }
}

impl Roll {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a lease of `connection` on the roll: its key, and under whose number it is shared.
    pub(crate) fn enter(
        &mut self,
        leased: Leased,
        connection: &Connection,
        standing: &Arc<Standing>,
    ) -> (u64, InstanceId) {
        let shared_as = self.kin.shared_as(connection, leased.had.version);
        let entry = Entry {
            leased,
            instance: connection.hello().instance,
            shared_as,
            standing: Arc::clone(standing),
        };
        self.last_key += 1;
        self.entries.insert(self.last_key, entry);
        (self.last_key, shared_as)
    }

    /// Takes a lease off the roll: nobody holds it any more.
    pub(crate) fn forget(&mut self, key: u64) {
        self.entries.remove(&key);
    }

    /// Leases that `connection` does not count yet, and could; `None` when there are none left.
    /// Those that it never can count are given up.
    pub(crate) fn strays(&mut self, connection: &Connection) -> Option<Batch> {
        let number = connection.number();
        if self.kin.session != number {
            self.kin.session = number;
            self.kin.of.clear();
        }
        self.entries.retain(|_, entry| {
            let lasts = entry.leased.lasts && entry.standing.is_whole();
            let could = lasts && connection.can_resume();
            let stays =
                entry.standing.session() == number || (could && entry.standing.lost().is_none());
            if !stays {
                entry.standing.give_up();
            }
            stays
        });
        let mut strays = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.standing.session() != number)
            .peekable();
        let instance = strays.peek()?.1.instance;
        let (keys, had) = strays
            .filter(|(_, entry)| entry.instance == instance)
            .map(|(key, entry)| (*key, entry.leased.had))
            .take(RESUMED_MAX)
            .unzip();
        Some(Batch {
            instance,
            had,
            keys,
        })
    }

    /// Enters what became of a batch: the leases that `connection` gave for it, and the fates of
    /// those, in order. Returns those that nobody holds any more.
    pub(crate) fn take_up(
        &mut self,
        batch: &Batch,
        leases: &[Option<LeaseId>],
        fates: Vec<Arc<Fate>>,
        connection: &Arc<Connection>,
    ) -> Vec<LeaseId> {
        let mut unheld = Vec::new();
        let mut fates = fates.into_iter();
        for (key, lease) in batch.keys.iter().zip(leases) {
            let Some(id) = *lease else {
                self.give_up_one(*key);
                continue;
            };
            let fate = fates.next();
            let Some(entry) = self.entries.get_mut(key) else {
                unheld.push(id);
                continue;
            };
            let had = entry.leased.had;
            entry.instance = connection.hello().instance;
            self.kin.of.insert(had.version, entry.shared_as);
            entry.standing.take_up(Grant {
                id,
                connection: Arc::clone(connection),
                fate: fate.filter(|_| had.device.is_some()),
            });
        }
        unheld
    }

    /// Nobody took these over.
    pub(crate) fn give_up(&mut self, batch: &Batch) {
        for key in &batch.keys {
            self.give_up_one(*key);
        }
    }

    fn give_up_one(&mut self, key: u64) {
        if let Some(entry) = self.entries.remove(&key) {
            entry.standing.give_up();
        }
    }
}

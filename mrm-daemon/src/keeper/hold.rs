//! What the keeper has in its hands: entries by key, none of them looked into.

use super::wire::{FDS_PER_PACKET_MAX, Packet, RefusedBy};
use super::{ENTRIES_MAX, Key};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::OwnedFd;

/// Descriptors that are left for everything else: sockets, and a packet that is being received.
const RESERVED_FDS: usize = 32 + mrm_proto::limits::FDS_PER_FRAME_MAX;

/// The entries.
#[derive(Debug)]
pub(super) struct Holdings {
    entries: BTreeMap<Key, Box<[OwnedFd]>>,
    /// Of all entries.
    fds: usize,
    fds_max: usize,
}

/// An entry that arrives in several packets. It counts for nothing until it is whole.
#[derive(Debug)]
pub(super) struct Staging {
    key: Key,
    number: u64,
    total: usize,
    arrived: usize,
    fds: Vec<OwnedFd>,
    refused: Option<RefusedBy>,
}

/// What became of a packet of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Staged {
    /// More must come.
    Partly,
    /// The entry is kept, or refused and what was there before stays.
    Whole(Result<(), RefusedBy>),
    /// It does not go on from the packets before: the sender is broken.
    OutOfOrder,
}

impl Holdings {
    /// Room for as many descriptors as `open_files_max` leaves.
    pub(super) const fn new(open_files_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            fds: 0,
            fds_max: open_files_max.saturating_sub(RESERVED_FDS),
        }
    }

    pub(super) fn entries(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn fds(&self) -> usize {
        self.fds
    }

    /// Takes in a packet of an entry. `staging` is the connection's.
    pub(super) fn stage(
        &mut self,
        staging: &mut Option<Staging>,
        packet: &Packet,
        fds: Vec<OwnedFd>,
        lost: bool,
    ) -> Staged {
        let Some(key) = &packet.key else {
            return Staged::OutOfOrder;
        };
        if packet.first == 0 {
            *staging = Some(Staging {
                key: key.clone(),
                number: packet.number,
                total: packet.total as usize,
                arrived: 0,
                fds: Vec::new(),
                refused: None,
            });
        }
        let Some(at) = staging else {
            return Staged::OutOfOrder;
        };
        let goes_on = at.arrived == packet.first as usize
            && at.total == packet.total as usize
            && at.number == packet.number
            && at.key == *key;
        if !goes_on {
            *staging = None;
            return Staged::OutOfOrder;
        }
        at.arrived += usize::from(packet.fds);
        at.fds.extend(fds);
        if lost {
            at.refuse(RefusedBy::Lost);
        }
        if self.fds.saturating_add(at.fds.len()) > key.fds_max(self.fds_max) {
            at.refuse(RefusedBy::Descriptors);
        }
        if at.arrived < at.total {
            return Staged::Partly;
        }
        match staging.take() {
            Some(whole) => Staged::Whole(self.put(whole)),
            None => Staged::OutOfOrder,
        }
    }

    fn put(&mut self, staging: Staging) -> Result<(), RefusedBy> {
        if let Some(reason) = staging.refused {
            return Err(reason);
        }
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&staging.key) {
            return Err(RefusedBy::Entries);
        }
        self.fds += staging.fds.len();
        let before = self.entries.insert(staging.key, staging.fds.into());
        self.fds -= before.map_or(0, |before| before.len());
        Ok(())
    }

    /// Lets go of `key`, if it is there.
    pub(super) fn remove(&mut self, key: &Key) {
        let gone = self.entries.remove(key);
        self.fds -= gone.map_or(0, |gone| gone.len());
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.fds = 0;
    }

    /// The first entry after `key`.
    pub(super) fn after(&self, key: Option<&Key>) -> Option<(&Key, &[OwnedFd])> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range::<Key, _>((from, Bound::Unbounded));
        rest.next().map(|(key, fds)| (key, &**fds))
    }

    /// The descriptors of `key` from the `first` on that fit into one packet.
    pub(super) fn part(&self, key: &Key, first: usize) -> &[OwnedFd] {
        let all = self.entries.get(key).map_or(&[][..], |fds| fds);
        let rest = all.get(first..).unwrap_or_default();
        &rest[..rest.len().min(FDS_PER_PACKET_MAX)]
    }
}

impl Staging {
    /// What already came is closed, and what still comes will be.
    fn refuse(&mut self, reason: RefusedBy) {
        self.refused.get_or_insert(reason);
        self.fds.clear();
    }
}

impl From<RefusedBy> for u32 {
    fn from(reason: RefusedBy) -> Self {
        reason as Self
    }
}

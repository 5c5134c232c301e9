//! How many connections there may be, and whose.

use super::server::Limits;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections. A part is kept for peers that may use the verbs, so that nobody can lock
/// the operator out.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    all_max: usize,
    others_max: usize,
    per_uid_max: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only uids without privilege that have a connection.
    others: HashMap<u32, usize>,
}

/// One connection; its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    taken: Arc<Mutex<Taken>>,
    uid: Option<u32>,
}

impl Slots {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            all_max: limits.connections_max,
            others_max: limits
                .connections_max
                .saturating_sub(limits.connections_reserved),
            per_uid_max: limits.connections_per_uid_max,
            taken: Arc::default(),
        }
    }

    /// A place, if there is one. `privileged`: root or the daemon's own user.
    pub(super) fn take(&self, uid: u32, privileged: bool) -> Option<Slot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.all_max {
            return None;
        }
        if !privileged {
            let others: usize = taken.others.values().sum();
            let mine = taken.others.get(&uid).copied().unwrap_or(0);
            if others >= self.others_max || mine >= self.per_uid_max {
                return None;
            }
            taken.others.insert(uid, mine + 1);
        }
        taken.all += 1;
        Some(Slot {
            taken: Arc::clone(&self.taken),
            uid: (!privileged).then_some(uid),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        let Some(uid) = self.uid else { return };
        match taken.others.get_mut(&uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                taken.others.remove(&uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Slots {
        let limits = Limits {
            connections_max: 4,
            connections_reserved: 1,
            connections_per_uid_max: 2,
            ..Limits::default()
        };
        Slots::new(&limits)
    }

    #[test]
    fn one_user_cannot_take_all_and_others_cannot_lock_root_out() {
        let slots = slots();
        let mut held: Vec<_> = (0..2).map(|_| slots.take(1000, false).unwrap()).collect();
        assert!(slots.take(1000, false).is_none(), "one uid has its bound");
        held.push(slots.take(1001, false).unwrap());
        assert!(slots.take(1002, false).is_none(), "the rest is reserved");
        held.push(slots.take(0, true).unwrap());
        assert!(
            slots.take(0, true).is_none(),
            "the bound holds for root too"
        );
    }

    #[test]
    fn every_place_comes_back() {
        let slots = slots();
        for _ in 0..100 {
            let _held = (slots.take(7, false).unwrap(), slots.take(7, false).unwrap());
            let _root = slots.take(0, true).unwrap();
        }
        let taken = slots.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.others.is_empty(), "{taken:?}");
    }
}

//! In which order the tensors of a model were first used: told to the daemon once, for later loads.

use crate::connection::{Connection, lock};
use mrm_proto::ids::LeaseId;
use mrm_proto::limits::TOUCHED_MAX;
use mrm_proto::request::{Request, Touched};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Of one open that was loaded for this process. Told when it is dropped, or when there is no more
/// to tell.
#[derive(Debug)]
pub(crate) struct Touches {
    lease: LeaseId,
    connection: Arc<Connection>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    order: Vec<u32>,
    known: HashSet<u32>,
    told: bool,
}

impl Touches {
    pub(crate) fn new(lease: LeaseId, connection: &Arc<Connection>) -> Self {
        Self {
            lease,
            connection: Arc::clone(connection),
            seen: Mutex::default(),
        }
    }

    /// The tensor at this position of `tensors` was asked for.
    pub(crate) fn add(&self, position: u32, tensors: usize) {
        // A child takes no lock that a thread of its parent may have held.
        if self.connection.is_inherited() {
            return;
        }
        let mut seen = lock(&self.seen);
        if seen.told || !seen.known.insert(position) {
            return;
        }
        seen.order.push(position);
        if seen.order.len() >= tensors.min(TOUCHED_MAX) {
            self.tell(&mut seen);
        }
    }

    fn tell(&self, seen: &mut Seen) {
        if seen.told || seen.order.is_empty() {
            return;
        }
        seen.told = true;
        seen.known = HashSet::new();
        let tensors = std::mem::take(&mut seen.order);
        let lease = self.lease;
        self.connection
            .tell(&Request::Touched(Touched { lease, tensors }));
    }
}

impl Drop for Touches {
    fn drop(&mut self) {
        if !self.connection.is_inherited() {
            self.tell(&mut lock(&self.seen));
        }
    }
}

//! Effects in flight: each belongs to one object and ends once.

use crate::id::{ModelId, OpId, SegmentId, Time};
use crate::violation::Violation;
use std::collections::BTreeMap;

/// What an effect in flight is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// A resolution, and when it was asked for: what it finds is as old as that.
    Resolve { model: ModelId, asked_at: Time },
    /// A load.
    Load { segment: SegmentId },
    /// A free.
    Free { segment: SegmentId },
}

/// All effects in flight.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    started: u64,
    in_flight: BTreeMap<OpId, Op>,
}

impl Ops {
    /// Starts one.
    pub(crate) fn start(&mut self, op: Op) -> OpId {
        self.started += 1;
        let id = OpId(self.started);
        self.in_flight.insert(id, op);
        id
    }

    /// Ends one.
    pub(crate) fn end(&mut self, id: OpId) -> Result<Op, Violation> {
        self.in_flight.remove(&id).ok_or(Violation::UnknownOp(id))
    }

    pub(crate) fn get(&self, id: OpId) -> Option<Op> {
        self.in_flight.get(&id).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }
}

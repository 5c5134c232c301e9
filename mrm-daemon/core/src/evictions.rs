//! Requests to drop a model that await the end of their frees.

use crate::id::{Bytes, OpId, RequestId, SessionId};
use std::collections::BTreeMap;

type Key = (SessionId, RequestId);

/// One request.
#[derive(Debug)]
struct Pending {
    left: usize,
    freed: Bytes,
}

/// All of them. A free can be awaited by several requests.
#[derive(Debug, Default)]
pub(crate) struct Evictions {
    pending: BTreeMap<Key, Pending>,
    by_op: BTreeMap<OpId, Vec<Key>>,
}

impl Evictions {
    pub(crate) fn contains(&self, session: SessionId, request: RequestId) -> bool {
        self.pending.contains_key(&(session, request))
    }

    /// Notes that a request is answered when all of `ops` have ended.
    pub(crate) fn wait(&mut self, session: SessionId, request: RequestId, ops: &[OpId]) {
        let key = (session, request);
        self.pending.insert(
            key,
            Pending {
                left: ops.len(),
                freed: Bytes::ZERO,
            },
        );
        for op in ops {
            self.by_op.entry(*op).or_default().push(key);
        }
    }

    /// Notes that a free ended; returns the requests for which it was the last, and the bytes that
    /// each saw freed.
    pub(crate) fn freed(&mut self, op: OpId, bytes: Bytes) -> Vec<(SessionId, RequestId, Bytes)> {
        let mut done = Vec::new();
        for key in self.by_op.remove(&op).unwrap_or_default() {
            // Requests of a session that closed are gone.
            let Some(pending) = self.pending.get_mut(&key) else {
                continue;
            };
            pending.left -= 1;
            pending.freed = pending.freed.saturating_add(bytes);
            if pending.left == 0 {
                done.push((key.0, key.1, pending.freed));
                self.pending.remove(&key);
            }
        }
        done
    }

    /// Forgets the requests of a session.
    pub(crate) fn drop_session(&mut self, session: SessionId) {
        self.pending.retain(|key, _| key.0 != session);
    }

    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// Every awaited op with who awaits it, for the check of invariants.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = (OpId, &[Key])> {
        self.by_op.iter().map(|(op, keys)| (*op, keys.as_slice()))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (SessionId, RequestId, usize)> {
        self.pending
            .iter()
            .map(|(key, pending)| (key.0, key.1, pending.left))
    }
}

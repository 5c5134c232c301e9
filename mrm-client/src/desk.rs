//! Where replies wait for those who asked.

use crate::error::SessionError;
use crate::inbox::Inbox;
use crate::request::{Incoming, Replied, session_end};
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Progress, Reply};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;

/// What the threads that wait on one connection share.
#[derive(Debug)]
pub(crate) struct Desk {
    last_id: RequestId,
    slots: HashMap<RequestId, Slot>,
    /// The right to read; away while a thread reads.
    pub(crate) inbox: Option<Box<Inbox>>,
    /// Threads that sleep until there is news.
    pub(crate) sleepers: usize,
}

/// Where one request stands.
#[derive(Debug)]
enum Slot {
    Waiting(Option<Progress>),
    Answered(Reply, Vec<OwnedFd>),
    /// Nobody waits any more, but the daemon may still answer.
    Abandoned,
}

/// What there is about a request.
pub(crate) enum Found {
    Reply(Replied),
    Progress(Progress),
    Nothing,
}

/// What an abandoned request leaves behind.
pub(crate) enum Left {
    /// It is not answered yet.
    Unanswered,
    /// It was granted, and nobody wants the grant.
    Grant(LeaseId),
    Nothing,
}

impl Desk {
    /// A desk whose next request has the id after `last_id`.
    pub(crate) fn new(inbox: Inbox, last_id: RequestId) -> Self {
        Self {
            last_id,
            slots: HashMap::new(),
            inbox: Some(Box::new(inbox)),
            sleepers: 0,
        }
    }

    /// An id for a new request, when fewer than `in_flight_max` await their reply.
    pub(crate) fn register(&mut self, in_flight_max: usize) -> Option<RequestId> {
        let awaited = |slot: &&Slot| !matches!(slot, Slot::Answered(..));
        if self.slots.values().filter(awaited).count() >= in_flight_max {
            return None;
        }
        self.last_id.0 += 1;
        self.slots.insert(self.last_id, Slot::Waiting(None));
        Some(self.last_id)
    }

    /// What there is about request `id`; each thing is found once.
    pub(crate) fn find(&mut self, id: RequestId) -> Found {
        match self.slots.remove(&id) {
            Some(Slot::Answered(reply, fds)) => Found::Reply(Replied { reply, fds }),
            Some(Slot::Waiting(progress)) => {
                self.slots.insert(id, Slot::Waiting(None));
                progress.map_or(Found::Nothing, Found::Progress)
            }
            Some(Slot::Abandoned) | None => Found::Nothing,
        }
    }

    /// Nobody waits for request `id` any more.
    pub(crate) fn abandon(&mut self, id: RequestId) -> Left {
        match self.slots.remove(&id) {
            Some(Slot::Waiting(_) | Slot::Abandoned) => {
                self.slots.insert(id, Slot::Abandoned);
                Left::Unanswered
            }
            Some(Slot::Answered(Reply::Opened(opened), _)) => Left::Grant(opened.lease),
            Some(Slot::Answered(..)) | None => Left::Nothing,
        }
    }

    /// Hands a reply to whom it belongs. A grant that nobody waits for any more goes to `late`.
    pub(crate) fn deliver(
        &mut self,
        incoming: Incoming,
        late: &mut Vec<LeaseId>,
    ) -> Result<(), SessionError> {
        let Incoming { id, reply, fds } = incoming;
        if id.wants_no_reply() {
            return Err(session_end(reply));
        }
        let Entry::Occupied(mut slot) = self.slots.entry(id) else {
            return Err(SessionError::OutOfPlace(format!(
                "a reply to unknown request {id}"
            )));
        };
        match (slot.get_mut(), reply) {
            (Slot::Waiting(seen), Reply::Progress(progress)) => *seen = Some(progress),
            (Slot::Waiting(_), reply) => *slot.get_mut() = Slot::Answered(reply, fds),
            (Slot::Abandoned, Reply::Progress(_)) => {}
            (Slot::Abandoned, reply) => {
                slot.remove();
                if let Reply::Opened(opened) = reply {
                    late.push(opened.lease);
                }
            }
            (Slot::Answered(..), _) => {
                return Err(SessionError::OutOfPlace(format!(
                    "a second reply to request {id}"
                )));
            }
        }
        Ok(())
    }
}

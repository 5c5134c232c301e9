//! Where replies wait for those who asked.

use crate::error::{Refusal, SessionError};
use crate::filling::Filling;
use crate::gather::{DESCRIPTORS_WAITING_MAX, Gathered};
use crate::inbox::Inbox;
use crate::lease::Fate;
use crate::request::{Incoming, Replied, session_end};
use mrm_proto::error::ErrorReply;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Handed, Opened, Progress, Ready, Reply, Revoked};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

/// What the threads that wait on one connection share.
#[derive(Debug)]
pub(crate) struct Desk {
    last_id: RequestId,
    slots: HashMap<RequestId, Slot>,
    /// The right to read; away while a thread reads.
    pub(crate) inbox: Option<Box<Inbox>>,
    /// Threads that sleep until there is news.
    pub(crate) sleepers: usize,
    /// Leases on devices, which the daemon may take away.
    leases: HashMap<LeaseId, Weak<Fate>>,
    /// How many leases make it worth looking for those that are gone.
    prune_at: usize,
}

/// A lease that may be taken away.
type Noted = (LeaseId, Weak<Fate>);

/// A quiet number of leases.
const PRUNE_AT: usize = 16;

/// Where one request stands.
#[derive(Debug)]
enum Slot {
    Waiting(Option<Progress>, Gathered),
    Answered(Replied),
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
            leases: HashMap::new(),
            prune_at: PRUNE_AT,
        }
    }

    /// An id for a new request, when fewer than `in_flight_max` await their reply.
    pub(crate) fn register(&mut self, in_flight_max: usize) -> Option<RequestId> {
        let awaited = |slot: &&Slot| !matches!(slot, Slot::Answered(..));
        if self.slots.values().filter(awaited).count() >= in_flight_max {
            return None;
        }
        self.last_id.0 += 1;
        self.slots
            .insert(self.last_id, Slot::Waiting(None, Gathered::default()));
        Some(self.last_id)
    }

    /// What there is about request `id`; each thing is found once.
    pub(crate) fn find(&mut self, id: RequestId) -> Found {
        match self.slots.remove(&id) {
            Some(Slot::Answered(replied)) => Found::Reply(replied),
            Some(Slot::Waiting(progress, gathered)) => {
                self.slots.insert(id, Slot::Waiting(None, gathered));
                progress.map_or(Found::Nothing, Found::Progress)
            }
            Some(Slot::Abandoned) | None => Found::Nothing,
        }
    }

    /// Nobody waits for request `id` any more.
    pub(crate) fn abandon(&mut self, id: RequestId) -> Left {
        match self.slots.remove(&id) {
            Some(Slot::Waiting(..) | Slot::Abandoned) => {
                self.slots.insert(id, Slot::Abandoned);
                Left::Unanswered
            }
            Some(Slot::Answered(replied)) => match replied.reply {
                Reply::Opened(opened) => Left::Grant(opened.lease),
                Reply::Closed(_)
                | Reply::Cancelled(_)
                | Reply::Progress(_)
                | Reply::Handed(_)
                | Reply::Revoked(_)
                | Reply::Ready(_)
                | Reply::Resumed(_)
                | Reply::OpenedMany(_)
                | Reply::Listed(_)
                | Reply::Stated(_)
                | Reply::Hinted(_)
                | Reply::Error(_) => Left::Nothing,
            },
            None => Left::Nothing,
        }
    }

    /// Hands a reply to whom it belongs. A grant that nobody waits for any more goes to `late`.
    pub(crate) fn deliver(
        &mut self,
        incoming: Incoming,
        (late, heard): (&mut Vec<LeaseId>, &mut Vec<LeaseId>),
    ) -> Result<(), SessionError> {
        let Incoming { id, reply, fds } = incoming;
        if id.wants_no_reply() {
            if let Reply::Revoked(revoked) = reply {
                self.revoke(revoked);
                return Ok(());
            }
            if let Reply::Ready(ready) = &reply {
                return self.ready(ready, heard);
            }
            return Err(session_end(reply));
        }
        if let Reply::Handed(handed) = reply {
            return self.gather(id, handed, fds);
        }
        let Entry::Occupied(mut slot) = self.slots.entry(id) else {
            return Err(out_of_place(format!("a reply to unknown request {id}")));
        };
        match (slot.get_mut(), reply) {
            (Slot::Waiting(seen, _), Reply::Progress(progress)) => *seen = Some(progress),
            (Slot::Waiting(_, gathered), Reply::Opened(mut opened)) => {
                let (gathered, mut fds) = (std::mem::take(gathered), fds);
                gathered.finish(id, &mut opened, &mut fds)?;
                let fate = Arc::new(Fate::filling_of(Filling::of(&opened)?));
                let noted = vec![(opened.lease, Arc::downgrade(&fate))];
                let fates = vec![fate];
                let reply = Reply::Opened(opened);
                *slot.get_mut() = Slot::Answered(Replied { reply, fds, fates });
                self.note(noted);
            }
            (Slot::Waiting(..), reply) => {
                // Which of these are on devices, who asked knows.
                let (fates, noted) = match &reply {
                    Reply::Resumed(resumed) => fates_of(resumed.leases.iter().flatten().copied()),
                    Reply::Opened(_)
                    | Reply::Closed(_)
                    | Reply::Cancelled(_)
                    | Reply::Progress(_)
                    | Reply::Handed(_)
                    | Reply::Revoked(_)
                    | Reply::Ready(_)
                    | Reply::OpenedMany(_)
                    | Reply::Listed(_)
                    | Reply::Stated(_)
                    | Reply::Hinted(_)
                    | Reply::Error(_) => fates_of(None),
                };
                *slot.get_mut() = Slot::Answered(Replied { reply, fds, fates });
                self.note(noted);
            }
            (Slot::Abandoned, Reply::Progress(_)) => {}
            (Slot::Abandoned, reply) => {
                slot.remove();
                if let Reply::Opened(Opened { lease, .. }) = reply {
                    late.push(lease);
                }
            }
            (Slot::Answered(..), _) => {
                return Err(out_of_place(format!("a second reply to request {id}")));
            }
        }
        Ok(())
    }

    /// Keeps some allocations of an open until its `Opened` comes.
    fn gather(
        &mut self,
        id: RequestId,
        handed: Handed,
        fds: Vec<OwnedFd>,
    ) -> Result<(), SessionError> {
        let held = |slot: &Slot| match slot {
            Slot::Waiting(_, gathered) => gathered.descriptors(),
            Slot::Answered(replied) => replied.fds.len(),
            Slot::Abandoned => 0,
        };
        let waiting: usize = self.slots.values().map(held).sum();
        if waiting + fds.len() > DESCRIPTORS_WAITING_MAX {
            return Err(out_of_place(format!(
                "more than {DESCRIPTORS_WAITING_MAX} descriptors at once"
            )));
        }
        match self.slots.get_mut(&id) {
            Some(Slot::Waiting(_, gathered)) => gathered.add(id, handed, fds),
            // Nobody wants them: they are closed here.
            Some(Slot::Abandoned) => Ok(()),
            Some(Slot::Answered(..)) | None => Err(out_of_place(format!(
                "allocations for request {id}, which awaits none"
            ))),
        }
    }

    /// From now on these leases may be taken away.
    fn note(&mut self, noted: Vec<Noted>) {
        if self.leases.len() >= self.prune_at {
            self.leases.retain(|_, fate| fate.strong_count() > 0);
            self.prune_at = PRUNE_AT + 2 * self.leases.len();
        }
        self.leases.extend(noted);
    }

    /// More of a lease is there. One that is not known was given back meanwhile.
    fn ready(&self, ready: &Ready, heard: &mut Vec<LeaseId>) -> Result<(), SessionError> {
        let fate = self.leases.get(&ready.lease).and_then(Weak::upgrade);
        let Some(fate) = fate else {
            return Ok(());
        };
        let Some(filling) = fate.filling() else {
            return Err(out_of_place("more of what was whole".to_owned()));
        };
        filling.apply(ready)?;
        if !filling.is_whole() && !heard.contains(&ready.lease) {
            heard.push(ready.lease);
        }
        Ok(())
    }

    /// Takes a lease away, or says that what it is on is damaged. One that is not known was given back meanwhile.
    fn revoke(&mut self, revoked: Revoked) {
        let fate = self.leases.remove(&revoked.lease);
        if let Some(fate) = fate.and_then(|fate| fate.upgrade()) {
            fate.seal(Refusal(ErrorReply {
                number: revoked.number,
                message: revoked.message,
                retryable: true,
                took_effect: false,
            }));
        }
    }
}

/// A fate for each lease, and how to find it.
fn fates_of(leases: impl IntoIterator<Item = LeaseId>) -> (Vec<Arc<Fate>>, Vec<Noted>) {
    let fates = leases.into_iter().map(|lease| {
        let fate = Arc::<Fate>::default();
        let noted = (lease, Arc::downgrade(&fate));
        (fate, noted)
    });
    fates.unzip()
}

fn out_of_place(what: String) -> SessionError {
    SessionError::OutOfPlace(what)
}

//! Sessions and what they hold.

use crate::id::{Bytes, CopyId, LeaseId, ModelId, SessionId, Tenant, Time};
use crate::violation::Violation;
use std::collections::BTreeMap;

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) tenant: Tenant,
    /// Leases that it holds: the number of its entries in the table of leases.
    pub(crate) leases: usize,
    /// Opens of it that wait: each may become a lease.
    pub(crate) waiting: usize,
}

/// One granted open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) model: ModelId,
    pub(crate) copy: CopyId,
    /// When it was granted.
    pub(crate) since: Time,
    /// What it keeps free on the copy's device beside the weights.
    pub(crate) reserve: Bytes,
}

/// All sessions and leases.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: u64,
    sessions: BTreeMap<SessionId, Session>,
    leases: BTreeMap<(SessionId, LeaseId), Lease>,
}

impl Leases {
    pub(crate) fn open_session(&mut self, id: SessionId, tenant: Tenant) -> Result<(), Violation> {
        let session = Session {
            tenant,
            leases: 0,
            waiting: 0,
        };
        match self.sessions.insert(id, session) {
            None => Ok(()),
            Some(_) => Err(Violation::SessionExists(id)),
        }
    }

    /// Ends a session that has neither leases nor waits left.
    pub(crate) fn close_session(&mut self, id: SessionId) -> Result<(), Violation> {
        self.sessions
            .remove(&id)
            .map(|_| ())
            .ok_or(Violation::UnknownSession(id))
    }

    pub(crate) fn session(&self, id: SessionId) -> Result<&Session, Violation> {
        self.sessions.get(&id).ok_or(Violation::UnknownSession(id))
    }

    pub(crate) fn session_mut(&mut self, id: SessionId) -> Result<&mut Session, Violation> {
        self.sessions
            .get_mut(&id)
            .ok_or(Violation::UnknownSession(id))
    }

    pub(crate) fn grant(&mut self, id: SessionId, lease: Lease) -> Result<LeaseId, Violation> {
        self.session_mut(id)?.leases += 1;
        self.granted += 1;
        let lease_id = LeaseId(self.granted);
        self.leases.insert((id, lease_id), lease);
        Ok(lease_id)
    }

    /// Takes a lease from a session; `None` if it holds no such lease.
    pub(crate) fn release(&mut self, id: SessionId, lease: LeaseId) -> Option<Lease> {
        let released = self.leases.remove(&(id, lease))?;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.leases -= 1;
        }
        Some(released)
    }

    /// Takes the oldest lease of a session.
    pub(crate) fn release_first(&mut self, id: SessionId) -> Option<(LeaseId, Lease)> {
        let first = self.of(id).next()?.0;
        Some((first, self.release(id, first)?))
    }

    /// The leases of a session, oldest first.
    pub(crate) fn of(&self, id: SessionId) -> impl Iterator<Item = (LeaseId, &Lease)> {
        let range = (id, LeaseId(0))..=(id, LeaseId(u64::MAX));
        self.leases
            .range(range)
            .map(|((_, lease), held)| (*lease, held))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (SessionId, LeaseId, &Lease)> {
        self.leases
            .iter()
            .map(|((session, id), lease)| (*session, *id, lease))
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.iter().map(|(id, session)| (*id, session))
    }

    pub(crate) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn sessions_len(&self) -> usize {
        self.sessions.len()
    }
}

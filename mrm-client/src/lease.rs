//! Leases: the right to map a version.
//!
//! A lease is counted by one session. When that ends, and the next daemon took the memory over, the
//! lease is taken up again under another number, by another session; its owner need not know. What
//! changes then is its [`Standing`], which the [`Link`] can reach too.

use crate::connection::{Connection, lock};
use crate::error::Refusal;
use crate::filling::Filling;
use crate::link::Link;
use mrm_proto::error::ErrorCode;
use mrm_proto::ids::{DeviceUuid, InstanceId, LeaseId, VersionId};
use mrm_proto::reply::{Opened, Sharing};
use mrm_proto::request::HadLease;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// The right to map a version. Given back when dropped, without waiting.
#[derive(Debug)]
pub(crate) struct Lease {
    key: u64,
    shared_as: InstanceId,
    standing: Arc<Standing>,
    link: Arc<Link>,
}

/// Which session counts a lease, and under which number.
#[derive(Debug)]
pub(crate) struct Standing {
    /// The number of the session; 0 once none ever will again.
    session: AtomicU64,
    /// Only leases on devices are taken away, and what happened to them is known for longer.
    on_device: bool,
    grant: Mutex<Option<Grant>>,
}

/// A lease as a session knows it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) id: LeaseId,
    pub(crate) connection: Arc<Connection>,
    /// Whether it was taken away, or what it is on was found damaged.
    pub(crate) fate: Option<Arc<Fate>>,
}

/// What is leased.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Leased {
    pub(crate) had: HadLease,
    /// Whether what is mapped is good for longer than the session.
    pub(crate) lasts: bool,
}

/// Whether the daemon took a lease away, and why.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    why: OnceLock<Refusal>,
    /// What is there of it, if it was granted before it was filled.
    filling: Option<Filling>,
}

impl Fate {
    /// Of a lease on what is being filled.
    pub(crate) fn filling_of(filling: Option<Filling>) -> Self {
        let why = OnceLock::new();
        Self { why, filling }
    }

    pub(crate) fn seal(&self, why: Refusal) {
        let _ = self.why.set(why);
    }

    /// Why it was taken away, or what it is on is of no use.
    pub(crate) fn why(&self) -> Option<Refusal> {
        self.why.get().cloned()
    }

    pub(crate) const fn filling(&self) -> Option<&Filling> {
        self.filling.as_ref()
    }

    /// Whether there is nothing of it that another daemon could not take over.
    fn is_whole(&self) -> bool {
        self.filling.as_ref().is_none_or(Filling::is_whole)
    }
}

impl Grant {
    fn is_sealed(&self) -> bool {
        self.fate
            .as_ref()
            .is_some_and(|fate| fate.why.get().is_some())
    }
}

impl Leased {
    /// What was opened with so much to be kept free on the device.
    pub(crate) fn of(opened: &Opened, reserve_bytes: Option<u64>) -> Self {
        let device = opened.device.as_ref();
        let legacy = device.is_some_and(|grant| grant.sharing == Sharing::Legacy);
        Self {
            had: HadLease {
                version: opened.version,
                device: device.map(|grant| grant.uuid),
                reserve_bytes: device.and(reserve_bytes),
            },
            lasts: !legacy,
        }
    }
}

impl Standing {
    pub(crate) fn new(grant: Grant, device: Option<DeviceUuid>) -> Self {
        Self {
            session: AtomicU64::new(grant.connection.number()),
            on_device: device.is_some(),
            grant: Mutex::new(Some(grant)),
        }
    }

    /// The number of the session that counts it, or last did; 0 once none ever will again.
    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    /// Another session counts it now.
    pub(crate) fn take_up(&self, grant: Grant) {
        let session = grant.connection.number();
        *lock(&self.grant) = Some(grant);
        self.session.store(session, Ordering::Release);
    }

    /// No session counts it any more, or will.
    pub(crate) fn give_up(&self) {
        self.session.store(0, Ordering::Release);
        let mut grant = lock(&self.grant);
        // Its fate stays known.
        let sealed = grant.as_ref().is_some_and(Grant::is_sealed);
        if !self.on_device && !sealed {
            *grant = None;
        }
    }

    /// Whether all of what it is on is there, for the next daemon to take over.
    pub(crate) fn is_whole(&self) -> bool {
        let grant = lock(&self.grant);
        let fate = grant.as_ref().and_then(|grant| grant.fate.as_ref());
        fate.is_none_or(|fate| fate.is_whole())
    }

    /// Why it was taken away, or that what it is on is damaged, if that is known.
    pub(crate) fn lost(&self) -> Option<Refusal> {
        let grant = lock(&self.grant);
        grant.as_ref()?.fate.as_ref()?.why()
    }
}

impl Lease {
    /// Made by [`Link::lease`], which keeps it on its roll under `key`.
    pub(crate) const fn new(
        key: u64,
        shared_as: InstanceId,
        standing: Arc<Standing>,
        link: Arc<Link>,
    ) -> Self {
        Self {
            key,
            shared_as,
            standing,
            link,
        }
    }

    /// Under whose number the process shares what it covers: that of the daemon that was the first
    /// to lend it.
    pub(crate) const fn shared_as(&self, version: VersionId) -> (InstanceId, VersionId) {
        (self.shared_as, version)
    }

    /// Whether the session that counts it goes on, as far as is known. Two loads, no lock.
    pub(crate) fn is_counted(&self) -> bool {
        self.link.is_live(self.standing.session())
    }

    /// Why it was taken away, if that is known.
    pub(crate) fn lost(&self) -> Option<Refusal> {
        // A child takes no lock that a thread of its parent may have held.
        if self.is_inherited() {
            return None;
        }
        self.standing.lost()
    }

    /// Reads what the daemon has said by now, without blocking.
    pub(crate) fn catch_up(&self) {
        if let Some(connection) = self.connection() {
            connection.catch_up();
        }
    }

    /// The session that counts it; `None` in a child of the process that made it.
    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        if self.is_inherited() {
            return None;
        }
        let grant = lock(&self.standing.grant);
        grant.as_ref().map(|grant| Arc::clone(&grant.connection))
    }

    /// Whether it is of the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.link.is_inherited()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_inherited() {
            return self.link.abandon();
        }
        // First off the roll: what is taken up for it from then on is given back by who took it up.
        self.link.forget(self.key);
        // What is damaged is kept for its holders: they give it back like any other.
        let damaged = ErrorCode::Damaged.number();
        let taken = self
            .standing
            .lost()
            .is_some_and(|why| why.0.number != damaged);
        let grant = lock(&self.standing.grant).take();
        if let Some(grant) = grant.filter(|_| !taken) {
            self.link.give_back(&grant.connection, grant.id);
        }
    }
}

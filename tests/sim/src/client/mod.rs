//! A client: asks, reads what it is lent, and misbehaves.

mod acts;
mod replies;

use crate::breach::{Checked, Rule, ensure};
use crate::env::{Env, Run};
use crate::link::{FrameBuffer, LinkId, Passed, Reader};
use crate::memory::AllocId;
use mrm_proto::ids::{DeviceUuid, LeaseId, VersionId};
use std::collections::BTreeMap;

/// One process.
#[derive(Debug, Default)]
pub(crate) struct Client {
    id: usize,
    link: Option<LinkId>,
    /// The run of the daemon that it is connected to.
    run: Option<Run>,
    buffer: FrameBuffer,
    greeted: bool,
    /// It agreed on nothing, and is not told of leases that it loses, although it may have taken some
    /// up again.
    untold: bool,
    /// It does not read now.
    asleep: bool,
    /// It did something for which its session may end.
    misbehaved: bool,
    /// The session was refused, for a reason.
    refused: bool,
    requests: u64,
    asked: BTreeMap<u64, Asked>,
    /// Allocations of opens whose grant is still to come.
    handed: BTreeMap<u64, Vec<AllocId>>,
    leases: Vec<Lease>,
    /// What it had leased when the daemon died, and which run that was.
    had: Vec<Lease>,
    had_of: u64,
    /// What it has mapped without a lease.
    kept: Vec<Mapping>,
    finishing: bool,
}

/// What to open.
#[derive(Debug, Clone)]
enum What {
    Model(usize),
    Files(Vec<u64>),
}

/// What an unanswered request is.
#[derive(Debug, Clone)]
enum Asked {
    Open {
        what: What,
        sent_at: u64,
        /// When it is to be given up at the earliest.
        until: u64,
        /// It is wanted in host memory, and nowhere else.
        host: bool,
        /// What is to stay free on its device.
        reserve_bytes: Option<u64>,
    },
    Close {
        /// The daemon may say that there is no such lease.
        unknown: bool,
    },
    Cancel {
        target: u64,
    },
    Resume,
}

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    mappings: Vec<Mapping>,
    revoked: bool,
    version: VersionId,
    device: Option<DeviceUuid>,
    /// What it wants kept free there.
    reserve_bytes: Option<u64>,
    /// Taken up again: what is mapped may be another allocation than the one that is leased.
    resumed: bool,
    /// What its files may hold, while it is being filled; nothing is read of it before it is.
    could_be: Vec<Vec<u64>>,
}

/// Memory, and what is to be read there.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    alloc: AllocId,
    /// Nothing is known of it while it is being filled.
    content: Option<u64>,
}

impl Client {
    pub(crate) fn new(id: usize) -> Self {
        Self {
            id,
            ..Self::default()
        }
    }

    /// From now on it only awaits its answers, and gives back what it has.
    pub(crate) const fn finish(&mut self) {
        self.finishing = true;
    }

    /// Whether it wants nothing more and has nothing.
    pub(crate) fn is_done(&self) -> bool {
        self.link.is_none() && self.kept.is_empty() && self.had.is_empty()
    }

    /// What it still waits for.
    pub(crate) fn unanswered(&self) -> Option<String> {
        (!self.is_done()).then(|| format!("client {}: {:?}", self.id, self.asked))
    }

    /// Reads all that it has.
    fn read(&self, env: &mut Env) -> Checked {
        for mapping in self
            .kept
            .iter()
            .chain(self.leases.iter().flat_map(|l| &l.mappings))
        {
            let Some(told) = mapping.content else {
                continue;
            };
            if env.memory.is_gone(mapping.alloc) {
                continue;
            }
            let content = env.memory.read(mapping.alloc)?;
            env.reads += 1;
            ensure(content == told, Rule::Content, || {
                format!("{mapping:?} is {content}")
            })?;
        }
        let ended = self
            .link
            .and_then(|link| env.links.pipe(link, Reader::Client));
        let Some(pipe) = ended.filter(|pipe| !pipe.ended) else {
            return Ok(());
        };
        // Which this client has yet to read.
        let taken_away = &pipe.taken_away;
        for lease in self
            .leases
            .iter()
            .filter(|lease| !lease.revoked && !lease.resumed)
            .filter(|lease| !taken_away.contains(&lease.id.0))
        {
            // Its device is lost: it is revoked, which this client has yet to read.
            if lease.mappings.iter().any(|m| env.memory.is_gone(m.alloc)) {
                continue;
            }
            // Its load failed: likewise.
            if lease.mappings.iter().any(|m| env.memory.is_spoilt(m.alloc)) {
                continue;
            }
            let dropped = lease.mappings.iter().find(|m| !env.memory.is_kept(m.alloc));
            ensure(dropped.is_none(), Rule::Held, || {
                format!(
                    "{dropped:?} of client {} is dropped while leased: {lease:?}",
                    self.id
                )
            })?;
        }
        Ok(())
    }

    /// Bytes arrived, or the end.
    pub(crate) fn arrive(&mut self, env: &mut Env, link: LinkId) -> Checked {
        if self.link != Some(link) || self.asleep {
            return Ok(());
        }
        let Some(pipe) = env.links.pipe(link, Reader::Client) else {
            return Ok(());
        };
        let (len, over) = (pipe.len(), pipe.ended && pipe.len() == 0);
        if over {
            return self.session_over(env);
        }
        let most = env.random.index(len) + 1;
        if let Some(pipe) = env.links.pipe(link, Reader::Client) {
            pipe.take(most, &mut self.buffer);
            if pipe.len() > 0 || pipe.ended {
                env.expect(link, Reader::Client);
            }
        }
        self.handle_frames(env, link)
    }

    /// The daemon ended the session, or is dead. What is mapped stays mapped for a while.
    fn session_over(&mut self, env: &mut Env) -> Checked {
        let innocent = !self.misbehaved && !self.refused && env.up == self.run && !env.device_lost;
        ensure(!innocent, Rule::Session, || {
            format!("client {} lost its session for nothing", self.id)
        })?;
        self.forget_had();
        if env.up != self.run && !self.finishing {
            let leases = self.leases.drain(..);
            (self.had, self.leases) = leases.partition(|lease| {
                let filled = lease.mappings.iter().all(|there| there.content.is_some());
                !lease.revoked && filled
            });
            self.had_of = self.run.map_or(0, |run| run.0);
        }
        self.forget_leases();
        self.disconnect(env)
    }

    /// What is mapped stays mapped, without a lease.
    fn forget_leases(&mut self) {
        let leases = std::mem::take(&mut self.leases);
        self.kept
            .extend(leases.into_iter().flat_map(|lease| lease.mappings));
    }

    fn forget_had(&mut self) {
        let had = std::mem::take(&mut self.had);
        self.kept
            .extend(had.into_iter().flat_map(|lease| lease.mappings));
    }

    /// Forgets its session.
    fn disconnect(&mut self, env: &mut Env) -> Checked {
        if let Some(link) = self.link.take() {
            env.end(link, Reader::Daemon);
            env.discard(link, Reader::Client)?;
        }
        for alloc in std::mem::take(&mut self.handed).into_values().flatten() {
            env.memory.drop_ref(alloc)?;
        }
        self.buffer = FrameBuffer::default();
        self.asked.clear();
        (self.greeted, self.asleep, self.misbehaved, self.refused) = (false, false, false, false);
        Ok(())
    }

    /// Unmaps what it has no lease on.
    fn unmap_kept(&mut self, env: &mut Env) -> Checked {
        for mapping in std::mem::take(&mut self.kept) {
            env.memory.drop_ref(mapping.alloc)?;
        }
        Ok(())
    }

    /// Unmaps everything.
    fn unmap_all(&mut self, env: &mut Env) -> Checked {
        self.forget_had();
        let leases = std::mem::take(&mut self.leases);
        self.kept
            .extend(leases.into_iter().flat_map(|lease| lease.mappings));
        self.unmap_kept(env)
    }

    /// It is killed. What it had sent may arrive, or not.
    fn die(&mut self, env: &mut Env) -> Checked {
        if let Some(link) = self.link
            && env.random.coin()
            && let Some(pipe) = env.links.pipe(link, Reader::Daemon)
        {
            pipe.discard();
        }
        self.unmap_all(env)?;
        self.disconnect(env)
    }

    fn write(&self, env: &mut Env, bytes: &[u8], cargo: Vec<Passed>) {
        if let Some(link) = self.link {
            env.write(link, Reader::Daemon, bytes, cargo);
        }
    }
}

//! What a client is answered, and whether that can be.

use super::{Asked, Client, Lease, Mapping, What};
use crate::breach::{Checked, Rule, breach, ensure};
use crate::disk;
use crate::env::Env;
use crate::link::{LinkId, Passed, Pipe, Reader};
use crate::memory::AllocId;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{FrameError, Header};
use mrm_proto::hello::ServerHello;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Opened, Ready, Reply};

/// How old a look may be that an open gets because it was under way already.
const LOOK_AGE_US: u64 = 125_000;

impl Client {
    pub(super) fn handle_frames(&mut self, env: &mut Env, link: LinkId) -> Checked {
        while let Some((header, body)) = self.buffer.next().or_else(|error| unreadable(&error))? {
            let cargo = match header.fds {
                0 => Vec::new(),
                _ => env
                    .links
                    .pipe(link, Reader::Client)
                    .map(Pipe::take_cargo)
                    .unwrap_or_default(),
            };
            let cargo: Vec<AllocId> = cargo.into_iter().filter_map(memory).collect();
            ensure(
                cargo.len() == usize::from(header.fds),
                Rule::Answers,
                || format!("{header:?} came with {} descriptors", cargo.len()),
            )?;
            if !self.greeted && header.request == RequestId(u64::MAX) {
                ServerHello::decode(&header, &body).or_else(|error| unreadable(&error))?;
                self.greeted = true;
                self.resume(env)?;
                continue;
            }
            let reply = Reply::decode(&header, &body).or_else(|error| unreadable(&error))?;
            self.handle(env, &header, reply, cargo)?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        env: &mut Env,
        header: &Header,
        reply: Reply,
        cargo: Vec<AllocId>,
    ) -> Checked {
        let id = header.request.0;
        if !reply.ends_request() {
            return self.handle_more(env, id, &reply, cargo);
        }
        if let (0, Reply::Error(error)) = (id, &reply) {
            return self.session_refused(error);
        }
        let Some(asked) = self.asked.remove(&id) else {
            let what = format!(
                "client {}: {reply:?} to {id}, which awaits nothing",
                self.id
            );
            return if self.misbehaved {
                self.forgive(env, cargo)
            } else {
                breach(Rule::Answers, what)
            };
        };
        match (&asked, reply) {
            (
                Asked::Open {
                    what,
                    sent_at,
                    reserve_bytes,
                    ..
                },
                Reply::Opened(opened),
            ) => {
                let mut allocs = self.handed.remove(&id).unwrap_or_default();
                let mut cargo = cargo.into_iter();
                let table = cargo.next();
                allocs.extend(cargo);
                let (what, sent_at, reserve_bytes) = (what.clone(), *sent_at, *reserve_bytes);
                self.opened(env, (&what, sent_at), &opened, (table, allocs))?;
                if let Some(lease) = self.leases.last_mut().filter(|_| opened.device.is_some()) {
                    lease.reserve_bytes = reserve_bytes;
                }
                Ok(())
            }
            (Asked::Open { until, host, .. }, Reply::Error(error)) => {
                self.open_failed(env, (*until, *host), &error)
            }
            (Asked::Close { .. }, Reply::Closed(_)) => Ok(()),
            (Asked::Close { unknown: true }, Reply::Error(error)) => {
                is_one_of(&error, &[ErrorCode::UnknownLease])
            }
            (Asked::Cancel { target }, Reply::Cancelled(_)) => {
                // What was given up is answered before.
                let waits = matches!(self.asked.get(target), Some(Asked::Open { .. }));
                ensure(!waits, Rule::Answers, || {
                    format!("{target} is given up, and waits")
                })
            }
            (Asked::Resume, Reply::Resumed(resumed)) => self.resumed(&resumed.leases),
            (asked, reply) => {
                let what = format!("client {}: {reply:?} to {asked:?}", self.id);
                breach(Rule::Answers, what)
            }
        }
    }

    /// Leases of the last daemon's are leases of this one's, as far as they could be.
    fn resumed(&mut self, leases: &[Option<LeaseId>]) -> Checked {
        let had = std::mem::take(&mut self.had);
        ensure(had.len() == leases.len(), Rule::Answers, || {
            format!("{leases:?} for {had:?}")
        })?;
        for (lease, mut had) in leases.iter().zip(had) {
            match lease {
                Some(id) => {
                    (had.id, had.resumed) = (*id, true);
                    self.leases.push(had);
                }
                None => self.kept.extend(had.mappings),
            }
        }
        Ok(())
    }

    /// An answer too many to one who asked twice by one id.
    fn forgive(&self, env: &mut Env, cargo: Vec<AllocId>) -> Checked {
        for alloc in cargo {
            env.memory.drop_ref(alloc)?;
        }
        Ok(())
    }

    /// What comes before an answer, or unasked.
    fn handle_more(
        &mut self,
        env: &mut Env,
        id: u64,
        reply: &Reply,
        cargo: Vec<AllocId>,
    ) -> Checked {
        match reply {
            Reply::Handed(handed) => {
                let so_far = self.handed.entry(id).or_default();
                let right = handed.from == so_far.len() as u64;
                so_far.extend(cargo);
                ensure(right, Rule::Answers, || format!("{handed:?} of {so_far:?}"))
            }
            Reply::Progress(_) => {
                let waits = matches!(self.asked.get(&id), Some(Asked::Open { .. }));
                ensure(waits || self.misbehaved, Rule::Answers, || {
                    format!("progress of {id}, which does not wait")
                })
            }
            Reply::Revoked(revoked) => {
                for lease in self.leases.iter_mut().filter(|l| l.id == revoked.lease) {
                    lease.revoked = true;
                }
                // A close that is on its way may find that there is no such lease.
                for asked in self.asked.values_mut() {
                    if let Asked::Close { unknown } = asked {
                        *unknown = true;
                    }
                }
                Ok(())
            }
            Reply::Ready(ready) => self.ready(env, ready),
            Reply::Opened(_)
            | Reply::Closed(_)
            | Reply::Cancelled(_)
            | Reply::Resumed(_)
            | Reply::OpenedMany(_)
            | Reply::Listed(_)
            | Reply::Stated(_)
            | Reply::Hinted(_)
            | Reply::Error(_) => Ok(()),
        }
    }

    /// Segments that it was lent before they were filled are whole now.
    fn ready(&mut self, env: &mut Env, ready: &Ready) -> Checked {
        let mut leases = self.leases.iter_mut();
        // It may have been given back meanwhile.
        let Some(lease) = leases.find(|lease| lease.id == ready.lease && !lease.resumed) else {
            return Ok(());
        };
        for index in &ready.sealed {
            let at = lease.mappings.get_mut(*index as usize + 1);
            let Some(mapping) = at.filter(|there| there.content.is_none()) else {
                return breach(Rule::Answers, format!("{ready:?} of {lease:?}"));
            };
            mapping.content = Some(env.memory.read(mapping.alloc)?);
            env.reads += 1;
        }
        let there: Vec<Option<u64>> = lease.mappings.iter().skip(1).map(|m| m.content).collect();
        let mut all = lease.could_be.iter();
        let right = all.any(|files| could_hold(&there, files));
        ensure(right, Rule::Content, || {
            format!("what came to be there: {there:?}, not {:?}", lease.could_be)
        })
    }

    fn session_refused(&mut self, error: &ErrorReply) -> Checked {
        self.refused = true;
        let innocent = !self.misbehaved && error.code() != Some(ErrorCode::TooManySessions);
        ensure(!innocent, Rule::Session, || {
            format!("client {} is turned away: {error:?}", self.id)
        })
    }

    fn open_failed(&self, env: &Env, (until, host): (u64, bool), error: &ErrorReply) -> Checked {
        is_one_of(error, &FAILURES)?;
        let code = error.code();
        let in_time = code == Some(ErrorCode::TimedOut) || host && code == Some(ErrorCode::NoRoom);
        ensure(!in_time || until <= env.now, Rule::Answers, || {
            format!(
                "client {}: {error:?} at {} instead of {until}",
                self.id, env.now
            )
        })
    }

    /// What is lent is what was asked for, as it was then.
    fn opened(
        &mut self,
        env: &mut Env,
        (what, sent_at): (&What, u64),
        opened: &Opened,
        (table, allocs): (Option<AllocId>, Vec<AllocId>),
    ) -> Checked {
        if opened.device.is_some() {
            let uid = env.settings.uid_of(self.id);
            for alloc in &allocs {
                env.memory
                    .lent_to(*alloc, uid, &env.settings.private_uids)?;
            }
        }
        let mut mappings = Vec::new();
        let filling = opened.filling.as_deref().unwrap_or_default();
        for (index, alloc) in (0..).zip(table.into_iter().chain(allocs)) {
            let there = index == 0 || !filling.contains(&(index - 1));
            let content = there.then(|| env.memory.read(alloc)).transpose()?;
            mappings.push(Mapping { alloc, content });
        }
        let from = sent_at.saturating_sub(LOOK_AGE_US);
        let could_be = match what {
            What::Files(inodes) => env.disk.contained(inodes, from, env.now),
            What::Model(model) => {
                let believed_us = env.settings.revalidate_ms * 1000;
                // What was taken over counts as looked at then, however old it is.
                let taken_over = sent_at <= env.started_at + believed_us;
                let from = if taken_over {
                    0
                } else {
                    from.saturating_sub(believed_us)
                };
                env.disk.stood_for(*model, from, env.now)
            }
        };
        let contents: Vec<Option<u64>> = mappings.iter().map(|there| there.content).collect();
        let gone = mappings
            .iter()
            .any(|mapping| env.memory.is_gone(mapping.alloc));
        let right = could_be.iter().any(|files| match &opened.device {
            None => contents.split_first().is_some_and(|(table, there)| {
                *table == Some(disk::table_of(files)) && could_hold(there, files)
            }),
            Some(on) => contents.split_first().is_some_and(|(table, there)| {
                *table == Some(disk::table_of(files))
                    && there.len() == on.allocations_bytes.len()
                    && there
                        .iter()
                        .all(|piece| *piece == Some(disk::image_of(files)))
            }),
        });
        ensure(right || gone, Rule::Content, || {
            format!(
                "client {} reads {contents:?} of {what:?}, not {could_be:?}",
                self.id
            )
        })?;
        env.reads += 1;
        let (id, revoked) = (opened.lease, false);
        self.leases.push(Lease {
            id,
            mappings,
            revoked,
            version: opened.version,
            device: opened.device.as_ref().map(|on| on.uuid),
            reserve_bytes: None,
            resumed: false,
            could_be: could_be.into_iter().collect(),
        });
        Ok(())
    }
}

/// Whether files with these contents may be what is mapped, some of which is not there yet.
fn could_hold(there: &[Option<u64>], files: &[u64]) -> bool {
    let mut pairs = there.iter().zip(files);
    there.len() == files.len() && pairs.all(|(there, file)| there.is_none_or(|it| it == *file))
}

/// How an open may fail.
const FAILURES: [ErrorCode; 21] = [
    ErrorCode::ModelNotFound,
    ErrorCode::TooManyLeases,
    ErrorCode::Cancelled,
    ErrorCode::BadFileSet,
    ErrorCode::UnknownDevice,
    ErrorCode::SourceUnreadable,
    ErrorCode::SourceChanged,
    ErrorCode::SourceMissing,
    ErrorCode::ShardMismatch,
    ErrorCode::NoTensors,
    ErrorCode::TooLarge,
    ErrorCode::NoRoom,
    ErrorCode::OutOfMemory,
    ErrorCode::QueueFull,
    ErrorCode::Draining,
    ErrorCode::TimedOut,
    ErrorCode::Exhausted,
    ErrorCode::DeviceLost,
    ErrorCode::DeviceFailed,
    ErrorCode::Damaged,
    ErrorCode::BadName,
];

fn is_one_of(error: &ErrorReply, codes: &[ErrorCode]) -> Checked {
    let known = error.code().is_some_and(|code| codes.contains(&code));
    ensure(known, Rule::Answers, || format!("{error:?}"))
}

const fn memory(passed: Passed) -> Option<AllocId> {
    match passed {
        Passed::Memory(alloc) => Some(alloc),
        Passed::File(_) => None,
    }
}

fn unreadable<T>(error: &FrameError) -> Checked<T> {
    breach(
        Rule::Answers,
        format!("the daemon's frame cannot be read: {error}"),
    )
}

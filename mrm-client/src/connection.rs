//! One session with the daemon: requests of many threads on one socket, without a thread of its
//! own.
//!
//! Whoever waits for a reply takes a turn at reading. The right to read is the [`Inbox`]: the
//! thread that finds it on the [`Desk`] takes it, reads until something arrives, delivers it to
//! whom it belongs, and puts the inbox back. The others sleep on a condition variable. A reader
//! whose own wait ends puts the inbox back too, and a sleeper takes over.
//!
//! No lock is held while blocking in the kernel. Order of locks: `desk` before `outbox`.

use crate::error::{ConnectError, SessionError};
use crate::fork;
use crate::handshake;
use crate::inbox::Inbox;
use crate::model::Holder;
use crate::outbox::Outbox;
use crate::request::{Incoming, Replied, decode, session_end};
use mrm_proto::error::ErrorCode;
use mrm_proto::frame;
use mrm_proto::hello::ServerHello;
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::reply::{Progress, Reply};
use mrm_proto::request::{Cancel, Close, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long the daemon may take to answer the cancel of an open that took too long.
const CANCEL_GRACE: Duration = Duration::from_millis(500);
/// How long a thread that may not read sleeps before it looks again whether the socket takes
/// what it could not send.
const SEND_LOOK: Duration = Duration::from_millis(20);

/// A session. It ends at its first error; there is no way back to life.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    generation: u64,
    hello: ServerHello,
    over: OnceLock<SessionError>,
    outbox: Mutex<Outbox>,
    desk: Mutex<Desk>,
    changed: Condvar,
}

/// What waiting threads share.
#[derive(Debug)]
struct Desk {
    last_id: u64,
    slots: HashMap<u64, Slot>,
    /// The right to read; away while a thread reads.
    inbox: Option<Box<Inbox>>,
    sleepers: usize,
}

/// Where one request stands.
#[derive(Debug)]
enum Slot {
    Waiting(Option<Progress>),
    Answered(Reply, Vec<OwnedFd>),
    /// Nobody waits any more, but the daemon may still answer.
    Abandoned,
}

/// What a request asks of the wait for its reply.
pub(crate) struct Patience<'a> {
    /// How long to wait.
    pub(crate) reply: Duration,
    /// Whether to cancel the request when that is over.
    pub(crate) cancel: bool,
    /// Called on the waiting thread.
    pub(crate) progress: Option<&'a dyn Fn(Progress)>,
}

impl Connection {
    /// Connects to `path` and says hello, within `timeout`.
    pub(crate) fn open(path: &Path, name: &str, timeout: Duration) -> Result<Self, ConnectError> {
        let (socket, hello, inbox) = handshake::connect(path, name, timeout)?;
        let desk = Desk {
            last_id: handshake::HELLO.0,
            slots: HashMap::new(),
            inbox: Some(Box::new(inbox)),
            sleepers: 0,
        };
        Ok(Self {
            socket,
            generation: fork::generation(),
            hello,
            over: OnceLock::new(),
            outbox: Mutex::default(),
            desk: Mutex::new(desk),
            changed: Condvar::new(),
        })
    }

    /// What the daemon said of itself.
    pub(crate) const fn hello(&self) -> &ServerHello {
        &self.hello
    }

    /// The number of the socket, for a forked child to let go of.
    pub(crate) fn raw_socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Ends the session; the first reason stays.
    pub(crate) fn end(&self, why: SessionError) -> SessionError {
        let why = self.over.get_or_init(|| why).clone();
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        self.changed.notify_all();
        why
    }

    /// Sends `request` and waits for the reply that ends it.
    pub(crate) fn request(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        patience: &Patience<'_>,
    ) -> Result<Replied, SessionError> {
        let mut deadline = Instant::now() + patience.reply;
        let ticket = self.register(deadline, patience.reply)?;
        self.send(ticket.id, request, fds)?;
        match self.wait(&ticket, deadline, patience)? {
            Some(replied) => return Ok(replied),
            None if patience.cancel => {
                let target = ticket.id;
                self.send(
                    RequestId::NO_REPLY,
                    &Request::Cancel(Cancel { target }),
                    &[],
                )?;
                deadline = Instant::now() + CANCEL_GRACE;
            }
            None => return Err(SessionError::TimedOut(patience.reply)),
        }
        let cancelled = ErrorCode::Cancelled.number();
        match self.wait(&ticket, deadline, patience)? {
            Some(Replied {
                reply: Reply::Error(e),
                ..
            }) if e.number == cancelled => Err(SessionError::TimedOut(patience.reply)),
            Some(replied) => Ok(replied),
            None => Err(SessionError::TimedOut(patience.reply)),
        }
    }

    /// Takes a request id, when fewer are in use than the daemon allows.
    fn register(&self, deadline: Instant, wait: Duration) -> Result<Ticket<'_>, SessionError> {
        let in_flight_max = self.hello.limits.requests_in_flight_max.max(1) as usize;
        let mut desk = self.desk();
        while desk.awaited() >= in_flight_max {
            if Instant::now() >= deadline {
                return Err(SessionError::TimedOut(wait));
            }
            self.check_live()?;
            desk = self.step(desk, deadline);
        }
        desk.last_id += 1;
        let id = desk.last_id;
        desk.slots.insert(id, Slot::Waiting(None));
        Ok(Ticket {
            connection: self,
            id: RequestId(id),
        })
    }

    fn send(
        &self,
        id: RequestId,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        let count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
        let frame = frame::encode(id, count, request)?;
        match lock(&self.outbox).send(self.socket.as_fd(), frame, fds) {
            // The daemon may have said why before it hung up: whoever waits will read it.
            Err(SessionError::Disconnected) if !id.wants_no_reply() => Ok(()),
            sent => sent.map_err(|why| self.end(why)),
        }
    }

    /// Waits until the request is answered; `None` when the deadline passes first.
    fn wait(
        &self,
        ticket: &Ticket<'_>,
        deadline: Instant,
        patience: &Patience<'_>,
    ) -> Result<Option<Replied>, SessionError> {
        let id = ticket.id.0;
        let mut desk = self.desk();
        loop {
            match desk.slots.get_mut(&id) {
                Some(Slot::Answered(..)) => {
                    if let Some(Slot::Answered(reply, fds)) = desk.slots.remove(&id) {
                        return Ok(Some(Replied { reply, fds }));
                    }
                }
                Some(Slot::Waiting(progress)) => {
                    if let Some((progress, call)) = progress.take().zip(patience.progress) {
                        drop(desk);
                        call(progress);
                        if fork::generation() != self.generation {
                            return Err(SessionError::Forked);
                        }
                        desk = self.desk();
                        continue;
                    }
                }
                Some(Slot::Abandoned) | None => {}
            }
            self.check_live()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            desk = self.step(desk, deadline);
        }
    }

    /// Takes one step towards news: reads, if it is this thread's turn, or sleeps until there is
    /// reason to look again.
    fn step<'a>(
        &'a self,
        mut desk: MutexGuard<'a, Desk>,
        deadline: Instant,
    ) -> MutexGuard<'a, Desk> {
        let until = deadline.saturating_duration_since(Instant::now());
        let backlog = !lock(&self.outbox).is_empty();
        if let Some(inbox) = desk.inbox.take() {
            drop(desk);
            let mut turn = Turn {
                connection: self,
                inbox: Some(inbox),
                arrived: Vec::new(),
            };
            if let Err(why) = turn.read(until, backlog) {
                self.end(why);
            }
            drop(turn);
            return self.desk();
        }
        if backlog {
            drop(desk);
            let _ = self.poll(PollFlags::OUT, until.min(SEND_LOOK));
            self.flush();
            return self.desk();
        }
        desk.sleepers += 1;
        let (mut desk, _) = self
            .changed
            .wait_timeout(desk, until)
            .unwrap_or_else(PoisonError::into_inner);
        desk.sleepers -= 1;
        desk
    }

    fn flush(&self) {
        match lock(&self.outbox).flush(self.socket.as_fd()) {
            // As in `send`: reading will tell.
            Ok(()) | Err(SessionError::Disconnected) => {}
            Err(why) => {
                self.end(why);
            }
        }
    }

    fn poll(&self, wanted: PollFlags, wait: Duration) -> Result<PollFlags, SessionError> {
        poll_socket(self.socket.as_fd(), wanted, wait)
    }

    fn check_live(&self) -> Result<(), SessionError> {
        self.over.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }
}

/// Waits until the socket is ready for `wanted`; empty when the time is over.
pub(crate) fn poll_socket(
    socket: BorrowedFd<'_>,
    wanted: PollFlags,
    wait: Duration,
) -> Result<PollFlags, SessionError> {
    let mut fds = [PollFd::from_borrowed_fd(socket, wanted)];
    let wait = Timespec::try_from(wait).ok();
    match poll(&mut fds, wait.as_ref()) {
        Ok(_) => Ok(fds[0].revents()),
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        Err(e) => Err(SessionError::Io(Arc::new(e.into()))),
    }
}

/// The right to read, while a thread has it. However the turn ends, the inbox goes back.
struct Turn<'a> {
    connection: &'a Connection,
    inbox: Option<Box<Inbox>>,
    arrived: Vec<Incoming>,
}

impl Turn<'_> {
    /// Waits for the socket once, sends what it takes, and reads what it has.
    fn read(&mut self, wait: Duration, backlog: bool) -> Result<(), SessionError> {
        let Some(inbox) = self.inbox.as_mut() else {
            return Ok(());
        };
        let wanted = if backlog {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let ready = self.connection.poll(wanted, wait)?;
        if ready.contains(PollFlags::OUT) {
            self.connection.flush();
        }
        if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return Ok(());
        }
        inbox.receive(self.connection.socket.as_fd())?;
        while let Some(frame) = inbox.next()? {
            self.arrived.push(decode(frame)?);
        }
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut desk = self.connection.desk();
        desk.inbox = self.inbox.take();
        let mut late = Vec::new();
        for incoming in self.arrived.drain(..) {
            if let Err(why) = desk.deliver(incoming, &mut late) {
                self.connection.end(why);
            }
        }
        // Somebody must take over reading, and somebody may have been answered.
        let wake = desk.sleepers > 0;
        drop(desk);
        if wake {
            self.connection.changed.notify_all();
        }
        for lease in late {
            self.connection.give_back(lease);
        }
    }
}

impl Desk {
    /// Requests that the daemon has not answered.
    fn awaited(&self) -> usize {
        self.slots
            .values()
            .filter(|slot| !matches!(slot, Slot::Answered(..)))
            .count()
    }

    /// Hands a reply to whom it belongs. A grant that nobody waits for any more goes to `late`.
    fn deliver(&mut self, incoming: Incoming, late: &mut Vec<LeaseId>) -> Result<(), SessionError> {
        let Incoming { id, reply, fds } = incoming;
        if id.wants_no_reply() {
            return Err(session_end(reply));
        }
        let Entry::Occupied(mut slot) = self.slots.entry(id.0) else {
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

impl Holder for Connection {
    fn give_back(&self, lease: LeaseId) {
        // A child must not write to its parent's connection, nor take its locks.
        if fork::generation() != self.generation || !self.is_live() {
            return;
        }
        // Nobody is there to tell: an error ends the session, which gives everything back.
        let _ = self.send(RequestId::NO_REPLY, &Request::Close(Close { lease }), &[]);
    }

    fn is_live(&self) -> bool {
        self.over.get().is_none()
    }
}

/// A request that awaits its reply. When it is dropped unanswered, the reply has no addressee.
struct Ticket<'a> {
    connection: &'a Connection,
    id: RequestId,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if fork::generation() != self.connection.generation {
            return;
        }
        let mut desk = self.connection.desk();
        match desk.slots.remove(&self.id.0) {
            Some(Slot::Waiting(_) | Slot::Abandoned) => {
                desk.slots.insert(self.id.0, Slot::Abandoned);
            }
            Some(Slot::Answered(Reply::Opened(opened), _)) => {
                drop(desk);
                self.connection.give_back(opened.lease);
            }
            Some(Slot::Answered(..)) | None => {}
        }
    }
}

/// No code of ours panics while it holds a lock with its data half changed, so a poisoned lock
/// is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

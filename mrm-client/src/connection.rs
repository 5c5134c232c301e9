//! One session with the daemon: requests of many threads on one socket, without a thread of its
//! own.
//!
//! Whoever waits for a reply takes a turn at reading. The right to read is the [`Inbox`]: the
//! thread that finds it on the [`Desk`] takes it, reads until something arrives, delivers it to
//! whom it belongs, and puts the inbox back. The others sleep on a condition variable. A reader
//! whose own wait ends puts the inbox back too, and a sleeper takes over.
//!
//! No lock is held while blocking in the kernel. Order of locks: `desk` before `outbox`.

mod ticket;

pub(crate) use self::ticket::Ticket;
use crate::desk::{Desk, Found};
use crate::error::{ConnectError, SessionError};
use crate::fork;
use crate::handshake::{self, RECEIVE_AT_ONCE};
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::request::{Incoming, Replied, decode};
use mrm_proto::error::ErrorCode;
use mrm_proto::frame;
use mrm_proto::hello::{ServerHello, features};
use mrm_proto::ids::RequestId;
use mrm_proto::reply::{Progress, Reply};
use mrm_proto::request::{Heard, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long the daemon may take to answer the cancel of an open that took too long.
pub(crate) const CANCEL_GRACE: Duration = Duration::from_millis(500);
/// How long a thread that may not read sleeps before it looks again whether the socket takes
/// what it could not send.
const SEND_LOOK: Duration = Duration::from_millis(20);
/// How long one look at a session lasts that is about to end.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A session. It ends at its first error; there is no way back to life.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    generation: u64,
    /// Unlike that of any other session of the client.
    number: u64,
    /// The number of the session that the client has; taken away when this one ends.
    live: Arc<AtomicU64>,
    since: Instant,
    hello: ServerHello,
    over: OnceLock<SessionError>,
    pub(crate) outbox: Mutex<Outbox>,
    /// What was asked along with the hello, until the first request.
    ahead: Mutex<Option<(RequestId, Request)>>,
    desk: Mutex<Desk>,
    changed: Condvar,
}

/// What a request asks of the wait for its reply.
pub(crate) struct Patience<'a> {
    /// How long to wait.
    pub(crate) reply: Duration,
    /// Called on the waiting thread.
    pub(crate) progress: Option<&'a dyn Fn(Progress)>,
}

impl Connection {
    /// Connects to `path` and says hello, within `timeout`, and asks for `ahead` in the same breath:
    /// when that is the first request, its reply is on its way already.
    pub(crate) fn open(
        path: &Path,
        name: &str,
        timeout: Duration,
        (number, live): (u64, Arc<AtomicU64>),
        ahead: Option<Request>,
    ) -> Result<Self, ConnectError> {
        let (socket, hello, inbox) = handshake::connect(path, name, timeout, ahead.as_ref())?;
        let mut desk = Desk::new(inbox, handshake::HELLO);
        let ahead = ahead.and_then(|request| Some((desk.register(1)?, request)));
        let connection = Self {
            socket,
            generation: fork::generation(),
            number,
            live,
            since: Instant::now(),
            hello,
            over: OnceLock::new(),
            outbox: Mutex::default(),
            ahead: Mutex::new(ahead),
            desk: Mutex::new(desk),
            changed: Condvar::new(),
        };
        // What came behind the hello was read with it.
        let _ = connection.take_turn(|_, _| Ok(true));
        Ok(connection)
    }

    /// What the daemon said of itself.
    pub(crate) const fn hello(&self) -> &ServerHello {
        &self.hello
    }

    /// Whether the daemon lends device memory.
    pub(crate) const fn has_devices(&self) -> bool {
        self.hello.features & features::DEVICE != 0
    }

    /// Whether the daemon keeps free on devices what opens ask for.
    pub(crate) const fn keeps_free(&self) -> bool {
        self.hello.features & features::RESERVE != 0
    }

    /// Whether the daemon leaves out tensor tables that the client has.
    pub(crate) const fn leaves_out_tables(&self) -> bool {
        self.hello.features & features::KNOWN != 0
    }

    /// Whether the daemon takes up leases of the last one.
    pub(crate) const fn can_resume(&self) -> bool {
        self.hello.features & features::RESUME != 0
    }

    /// Unlike that of any other session of the client; not 0.
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }

    /// How long ago it began.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The number of the socket, for a forked child to let go of.
    pub(crate) fn raw_socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Ends the session; the first reason stays.
    pub(crate) fn end(&self, why: SessionError) -> SessionError {
        let why = self.over.get_or_init(|| why).clone();
        // Whoever makes it the client's session looks afterwards whether it is over.
        fence(Ordering::SeqCst);
        let (mine, none) = (self.number, 0);
        let _ = self
            .live
            .compare_exchange(mine, none, Ordering::AcqRel, Ordering::Acquire);
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
        let late = || SessionError::TimedOut(patience.reply);
        let deadline = Instant::now() + patience.reply;
        let ticket = match self.asked_ahead(request) {
            Some(ticket) => ticket,
            None => {
                let mut ticket = self.register(deadline)?.ok_or_else(late)?;
                ticket.send(request, fds)?;
                ticket
            }
        };
        self.finish(ticket, deadline, patience)
    }

    /// The ticket of what was asked along with the hello, if that is `request`. If it is anything
    /// else, it is not wanted any more.
    fn asked_ahead(&self, request: &Request) -> Option<Ticket<'_>> {
        let (id, asked) = lock(&self.ahead).take()?;
        let ticket = Ticket::sent(self, id);
        (asked == *request).then_some(ticket)
    }

    /// Sends opens that carry no descriptors in one message, and waits for the reply to each. None
    /// for those that did not fit in beside what others await.
    pub(crate) fn open_together(
        &self,
        opens: &[Request],
        patience: &Patience<'_>,
    ) -> Vec<Option<Result<Replied, SessionError>>> {
        let deadline = Instant::now() + patience.reply;
        let (tickets, sent) = self.ask_together(opens);
        let finish = |ticket: Ticket<'_>| {
            sent.clone()?;
            self.finish(ticket, deadline, patience)
        };
        let each = tickets.into_iter();
        each.map(|ticket| ticket.map(finish)).collect()
    }

    /// Waits for the reply; beyond the deadline, cancels.
    fn finish(
        &self,
        mut ticket: Ticket<'_>,
        deadline: Instant,
        patience: &Patience<'_>,
    ) -> Result<Replied, SessionError> {
        let late = || SessionError::TimedOut(patience.reply);
        if let Some(replied) = self.wait(&ticket, deadline, patience)? {
            return Ok(replied);
        }
        if !ticket.cancel() {
            return Err(late());
        }
        match self.wait(&ticket, Instant::now() + CANCEL_GRACE, patience)? {
            Some(replied) if !was_cancelled(&replied) => Ok(replied),
            Some(_) | None => Err(late()),
        }
    }

    /// A ticket for a request, if fewer await their reply than the daemon allows.
    pub(crate) fn try_register(&self) -> Option<Ticket<'_>> {
        let in_flight_max = self.hello.limits.requests_in_flight_max.max(1) as usize;
        let id = self.desk().register(in_flight_max)?;
        Some(Ticket::new(self, id))
    }

    #[cfg(feature = "async")]
    /// What there is about a request, or how the session ended.
    pub(crate) fn look(&self, ticket: &Ticket<'_>) -> Result<Found, SessionError> {
        let found = self.desk().find(ticket.id);
        if let Found::Nothing = found {
            self.check_live()?;
        }
        Ok(found)
    }

    /// Reads once and delivers what came, if no other thread is about to; never blocks.
    pub(crate) fn pump(&self) -> std::io::Result<()> {
        match self.take_turn(Inbox::receive) {
            true => Ok(()),
            false => Err(std::io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Reads by `read` and delivers what is there, if no other thread is about to. False if there
    /// was nothing to read.
    fn take_turn(
        &self,
        read: impl FnOnce(&mut Inbox, BorrowedFd<'_>) -> Result<bool, SessionError>,
    ) -> bool {
        let Some(inbox) = self.desk().inbox.take() else {
            return true;
        };
        let mut turn = Turn {
            connection: self,
            inbox: Some(inbox),
            arrived: Vec::new(),
        };
        turn.receive_by(read).unwrap_or_else(|why| {
            self.end(why);
            true
        })
    }

    /// Waits for an id, which is to be had when fewer requests are in flight than the daemon
    /// allows; `None` when the deadline passes first.
    fn register(&self, deadline: Instant) -> Result<Option<Ticket<'_>>, SessionError> {
        loop {
            if let Some(ticket) = self.try_register() {
                return Ok(Some(ticket));
            }
            self.check_live()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            drop(self.step(self.desk(), deadline));
        }
    }

    fn send(
        &self,
        id: RequestId,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        let count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
        let frame = frame::encode(id, count, request)?;
        self.send_bytes(frame, fds, !id.wants_no_reply())
    }

    pub(crate) fn send_bytes(
        &self,
        frames: Vec<u8>,
        fds: &[BorrowedFd<'_>],
        awaited: bool,
    ) -> Result<(), SessionError> {
        match lock(&self.outbox).send(self.socket.as_fd(), frames, fds) {
            // The daemon may have said why before it hung up: whoever waits will read it.
            Err(SessionError::Disconnected) if awaited => Ok(()),
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
        let mut desk = self.desk();
        loop {
            match desk.find(ticket.id) {
                Found::Reply(replied) => return Ok(Some(replied)),
                Found::Progress(progress) => {
                    drop(desk);
                    if let Some(call) = patience.progress {
                        call(progress);
                    }
                    if fork::generation() != self.generation {
                        return Err(SessionError::Forked);
                    }
                    desk = self.desk();
                    continue;
                }
                Found::Nothing => {}
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
        let backlog = self.has_backlog();
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

    /// Whether something waits for the socket to take it.
    pub(crate) fn has_backlog(&self) -> bool {
        !lock(&self.outbox).is_empty()
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&self) {
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

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is left of a session that the daemon has ended. Blocks until then.
    pub(crate) fn read_out(&self) {
        let mut desk = self.desk();
        while self.is_live() {
            desk = self.step(desk, Instant::now() + LAST_LOOK);
        }
    }

    /// How the session ended, if it did.
    pub(crate) fn check_live(&self) -> Result<(), SessionError> {
        self.over.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Says what needs no answer, without blocking; nothing when the session is over.
    pub(crate) fn tell(&self, what: &Request) {
        if !self.is_inherited() && self.is_live() {
            // Nobody is there to tell: an error ends the session, which gives everything back.
            let _ = self.send(RequestId::NO_REPLY, what, &[]);
        }
    }

    /// Whether it is of the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        fork::generation() != self.generation
    }

    /// Whether opens may be granted by their layout.
    pub(crate) const fn grants_early(&self) -> bool {
        self.hello.features & features::EARLY != 0
    }

    /// Reads until it is `over`, the session is, or the deadline passes.
    pub(crate) fn await_frames(&self, deadline: Instant, over: impl Fn() -> bool) {
        if self.is_inherited() {
            return;
        }
        let mut desk = self.desk();
        while !over() && self.is_live() && Instant::now() < deadline {
            desk = self.step(desk, deadline);
        }
    }

    /// Whether the session is not known to be over.
    pub(crate) fn is_live(&self) -> bool {
        self.over.get().is_none()
    }

    /// Reads what has arrived, without blocking.
    pub(crate) fn catch_up(&self) {
        // A child takes none of its parent's locks.
        if fork::generation() == self.generation && self.is_live() {
            // Nothing to read is no error, and others end the session.
            let _ = self.pump();
        }
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
        if !backlog && wait >= 2 * RECEIVE_AT_ONCE && self.await_some()? {
            return Ok(());
        }
        let wanted = if backlog {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        };
        let ready = self.connection.poll(wanted, wait)?;
        if ready.contains(PollFlags::OUT) {
            self.connection.flush();
        }
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive()?;
        }
        Ok(())
    }

    /// Reads what the socket has; whether there was anything.
    fn receive(&mut self) -> Result<bool, SessionError> {
        self.receive_by(Inbox::receive)
    }

    /// The same, but waits for it a little.
    fn await_some(&mut self) -> Result<bool, SessionError> {
        self.receive_by(Inbox::await_some)
    }

    fn receive_by(
        &mut self,
        read: impl FnOnce(&mut Inbox, BorrowedFd<'_>) -> Result<bool, SessionError>,
    ) -> Result<bool, SessionError> {
        let Some(inbox) = self.inbox.as_mut() else {
            return Ok(false);
        };
        let any = read(inbox, self.connection.socket.as_fd())?;
        while let Some(frame) = inbox.next()? {
            decode(frame, &mut self.arrived)?;
        }
        Ok(any)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut desk = self.connection.desk();
        desk.inbox = self.inbox.take();
        let (mut late, mut heard) = (Vec::new(), Vec::new());
        for incoming in self.arrived.drain(..) {
            if let Err(why) = desk.deliver(incoming, (&mut late, &mut heard)) {
                // What follows a broken frame cannot be trusted.
                self.connection.end(why);
                break;
            }
        }
        // Somebody must take over reading, and somebody may have been answered.
        let wake = desk.sleepers > 0;
        drop(desk);
        if wake {
            self.connection.changed.notify_all();
        }
        for lease in late {
            self.connection.give_back(lease, false);
        }
        for lease in heard {
            self.connection.tell(&Request::Heard(Heard { lease }));
        }
    }
}

/// Whether a reply says that the request was cancelled.
pub(crate) fn was_cancelled(replied: &Replied) -> bool {
    matches!(&replied.reply, Reply::Error(e) if e.number == ErrorCode::Cancelled.number())
}

/// No code of ours panics while it holds a lock with its data half changed, so a poisoned lock
/// is as good as any.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

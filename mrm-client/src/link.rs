//! What a client and its models share of the daemon: the session, the leases, and the way from one
//! session to the next.
//!
//! There is one session at a time. When it ended, whoever asks next connects anew, or the thread of
//! [`watch`] does: one at a time, while others wait for the outcome. A new session first takes up
//! the leases that the last one counted; only then is it there for others, and only then do those
//! leases count again. Order of locks: `seat` before `roll` before the one of a lease.

use crate::client::ConnectOptions;
use crate::connection::{Connection, Patience, lock};
use crate::error::{ConnectError, SessionError};
use crate::fork;
use crate::lease::{Fate, Grant, Lease, Leased, Standing};
use crate::locate;
use crate::roll::{Batch, Roll};
use crate::watch::{self, Bell};
use mrm_proto::ids::LeaseId;
use mrm_proto::reply::Reply;
use mrm_proto::request::{Request, Resume};
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// No socket.
const NO_SOCKET: RawFd = -1;

/// Lives as long as a client or a model of it does.
#[derive(Debug)]
pub(crate) struct Link {
    generation: u64,
    /// By a child of the process that made it.
    abandoned: AtomicBool,
    options: ConnectOptions,
    /// Whether to connect anew without being asked, and to wait for a daemon.
    reconnects: bool,
    seat: Mutex<Seat>,
    /// Told when an attempt to connect is over.
    news: Condvar,
    /// The socket of the newest session, readable without a lock.
    socket: AtomicI32,
    /// The session that is there for all; 0 while there is none.
    live: Arc<AtomicU64>,
    last_number: AtomicU64,
    roll: Mutex<Roll>,
    /// What a new session is asked along with the hello.
    ahead: Mutex<Option<Request>>,
    bell: OnceLock<Arc<Bell>>,
}

/// The session, or the way to it.
#[derive(Debug, Default)]
struct Seat {
    connection: Option<Arc<Connection>>,
    /// Whether somebody connects now.
    dialling: bool,
    /// How many attempts are over.
    attempts: u64,
    /// How the last one failed.
    failed: Option<ConnectError>,
}

/// Where things stand.
pub(crate) enum Now {
    Live(Arc<Connection>),
    Over {
        /// Whether there are leases to take up again.
        holds: bool,
    },
}

impl Seat {
    fn live(&self) -> Option<Arc<Connection>> {
        let live = self.connection.as_ref().filter(|c| c.is_live());
        live.cloned()
    }
}

impl Link {
    pub(crate) fn new(options: ConnectOptions) -> Self {
        Self {
            generation: fork::generation(),
            abandoned: AtomicBool::new(false),
            reconnects: options.reconnects(),
            options,
            seat: Mutex::default(),
            news: Condvar::new(),
            socket: AtomicI32::new(NO_SOCKET),
            live: Arc::default(),
            last_number: AtomicU64::new(0),
            roll: Mutex::default(),
            ahead: Mutex::default(),
            bell: OnceLock::new(),
        }
    }

    pub(crate) const fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// From now on new sessions are asked for this along with the hello.
    pub(crate) fn ask_ahead(&self, request: Option<Request>) {
        *lock(&self.ahead) = request;
    }

    /// Whether opens wait for a daemon that comes back.
    pub(crate) const fn reconnects(&self) -> bool {
        self.reconnects
    }

    /// Whether it is of the process that this one was forked from.
    pub(crate) fn is_inherited(&self) -> bool {
        self.generation != fork::generation()
    }

    /// What a forked child does with its parent's link: lets go of the socket, so that the parent's
    /// end of the session is not put off by a copy of it, and otherwise leaves all as it is, for
    /// ever. A thread that does not exist in the child may have been in the midst of changing it.
    pub(crate) fn abandon(self: &Arc<Self>) {
        if self.abandoned.swap(true, Ordering::AcqRel) {
            return;
        }
        match self.socket.load(Ordering::Acquire) {
            NO_SOCKET => {}
            raw => fork::let_go(raw),
        }
        // A count that nobody takes back.
        let _ = Arc::into_raw(Arc::clone(self));
    }

    /// Whether `session` is the one that goes on, as far as is known.
    pub(crate) fn is_live(&self, session: u64) -> bool {
        session != 0 && session == self.live.load(Ordering::Acquire)
    }

    pub(crate) fn live(&self) -> Option<Arc<Connection>> {
        lock(&self.seat).live()
    }

    pub(crate) fn now(&self) -> Now {
        match self.live() {
            Some(connection) => Now::Live(connection),
            None => Now::Over {
                holds: !lock(&self.roll).is_empty(),
            },
        }
    }

    /// The live session, or a new one. Takes as long as connecting, the hello and taking up leases
    /// may take; who comes while another connects gets what that one gets.
    pub(crate) fn connection(&self) -> Result<Arc<Connection>, ConnectError> {
        let mut seat = lock(&self.seat);
        loop {
            if let Some(live) = seat.live() {
                return Ok(live);
            }
            if !seat.dialling {
                break;
            }
            let attempts = seat.attempts;
            while seat.dialling && seat.attempts == attempts {
                seat = self.news.wait(seat).unwrap_or_else(PoisonError::into_inner);
            }
            if let (None, Some(failed)) = (seat.live(), &seat.failed) {
                return Err(failed.clone());
            }
        }
        seat.dialling = true;
        drop(seat);
        let attempt = Attempt(self);
        let made = self.renew();
        attempt.end(&made);
        made
    }

    /// Waits until there is another session than now, at most for `pause`.
    pub(crate) fn await_news(&self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        let before = self.live.load(Ordering::Acquire);
        let same = |_: &mut Seat| self.live.load(Ordering::Acquire) == before;
        let waited = self.news.wait_timeout_while(lock(&self.seat), pause, same);
        drop(waited);
    }

    /// Notes what `connection` granted. Fails when another session is there already: then the
    /// lease went with its own.
    pub(crate) fn lease(
        self: &Arc<Self>,
        id: LeaseId,
        leased: Leased,
        connection: &Arc<Connection>,
        fate: Option<Arc<Fate>>,
    ) -> Result<Lease, SessionError> {
        let grant = Grant {
            id,
            connection: Arc::clone(connection),
            fate,
        };
        let standing = Arc::new(Standing::new(grant, leased.had.device));
        let mut roll = lock(&self.roll);
        // Under the lock of the roll, as `settle` is: either this is refused, or that sees it.
        let live = self.live.load(Ordering::Acquire);
        if live != 0 && live != connection.number() {
            return Err(SessionError::Disconnected);
        }
        let (key, shared_as) = roll.enter(leased, connection, &standing);
        drop(roll);
        if self.reconnects {
            self.watch(live == 0);
        }
        Ok(Lease::new(key, shared_as, standing, Arc::clone(self)))
    }

    /// Gives `lease` back to `connection`, now or when its socket takes it, or within a tick.
    pub(crate) fn give_back(&self, connection: &Connection, lease: LeaseId) {
        let bell = self.bell.get();
        let wake = connection.give_back(lease, bell.is_some());
        if let Some(bell) = bell.filter(|_| wake) {
            bell.ring();
        }
    }

    /// The lease is not held any more.
    pub(crate) fn forget(&self, key: u64) {
        lock(&self.roll).forget(key);
    }

    /// Makes sure that the thread runs. Where the system has no thread for it now, the next lease
    /// tries again, and until then the next call connects anew.
    fn watch(self: &Arc<Self>, something_is_new: bool) {
        if let Some(bell) = self.bell.get() {
            if something_is_new {
                bell.ring();
            }
            return;
        }
        let _one_at_a_time = lock(&self.seat);
        if self.bell.get().is_none()
            && let Ok(bell) = watch::start(self)
        {
            let _ = self.bell.set(bell);
        }
    }

    /// Connects, and takes up what is held.
    fn renew(&self) -> Result<Arc<Connection>, ConnectError> {
        let paths = match &self.options.socket {
            Some(path) => vec![path.clone()],
            None => locate::socket_candidates(),
        };
        let name = self.options.name.clone().unwrap_or_else(executable_name);
        for path in &paths {
            match self.dial(path, &name) {
                Err(ConnectError::NoDaemon { .. }) => {}
                done => return done,
            }
        }
        Err(ConnectError::NoDaemon { tried: paths })
    }

    fn dial(&self, path: &Path, name: &str) -> Result<Arc<Connection>, ConnectError> {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let live = Arc::clone(&self.live);
        let ahead = lock(&self.ahead).clone();
        let timeout = self.options.timeout;
        let connection = Connection::open(path, name, timeout, (number, live), ahead)?;
        let connection = Arc::new(connection);
        // The number must never name a descriptor that is closed already.
        self.socket.store(NO_SOCKET, Ordering::Release);
        self.socket
            .store(connection.raw_socket(), Ordering::Release);
        match self.take_up(&connection) {
            Ok(()) => Ok(connection),
            Err(source) => {
                self.socket.store(NO_SOCKET, Ordering::Release);
                let source = connection.end(source);
                let path = path.to_owned();
                Err(ConnectError::Session { path, source })
            }
        }
    }

    /// Has `connection` count what is held. When all that can be is, the session is there for all.
    fn take_up(&self, connection: &Arc<Connection>) -> Result<(), SessionError> {
        loop {
            let mut roll = lock(&self.roll);
            let Some(batch) = roll.strays(connection) else {
                self.live.store(connection.number(), Ordering::Release);
                break;
            };
            drop(roll);
            self.resume(connection, &batch)?;
        }
        // It may have ended before it was there for all, and then did not take itself away.
        fence(Ordering::SeqCst);
        connection.check_live()
    }

    fn resume(&self, connection: &Arc<Connection>, batch: &Batch) -> Result<(), SessionError> {
        let request = Request::Resume(Resume {
            instance: batch.instance,
            leases: batch.had.clone(),
        });
        let patience = Patience {
            reply: self.options.reply_grace,
            progress: None,
        };
        let replied = match connection.request(&request, &[], &patience) {
            Ok(replied) => replied,
            Err(why) => {
                // What breaks one session would break the next.
                if !crate::Fault::retryable(&why) {
                    lock(&self.roll).give_up(batch);
                }
                return Err(why);
            }
        };
        match replied.reply {
            Reply::Resumed(resumed) if resumed.leases.len() == batch.had.len() => {
                let unheld =
                    lock(&self.roll).take_up(batch, &resumed.leases, replied.fates, connection);
                for lease in unheld {
                    self.give_back(connection, lease);
                }
                Ok(())
            }
            Reply::Error(_) => {
                lock(&self.roll).give_up(batch);
                Ok(())
            }
            Reply::Resumed(_)
            | Reply::Opened(_)
            | Reply::Closed(_)
            | Reply::Cancelled(_)
            | Reply::Progress(_)
            | Reply::Handed(_)
            | Reply::Revoked(_)
            | Reply::Ready(_)
            | Reply::OpenedMany(_)
            | Reply::Listed(_)
            | Reply::Stated(_)
            | Reply::Hinted(_) => {
                lock(&self.roll).give_up(batch);
                let why = "a reply that does not fit the leases that were named";
                Err(SessionError::OutOfPlace(why.to_owned()))
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Never in a child, if all goes well: the socket and the bell are its parent's too.
        if self.is_inherited() {
            return;
        }
        let seat = self.seat.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = seat.connection.take() {
            // The thread may hold the socket still.
            connection.end(SessionError::Disconnected);
        }
        if let Some(bell) = self.bell.get() {
            bell.ring();
        }
    }
}

/// The right to connect. However it ends, others get to know.
struct Attempt<'a>(&'a Link);

impl Attempt<'_> {
    fn end(self, made: &Result<Arc<Connection>, ConnectError>) {
        let mut seat = lock(&self.0.seat);
        match made {
            Ok(connection) => {
                seat.connection = Some(Arc::clone(connection));
                seat.failed = None;
            }
            Err(why) => seat.failed = Some(why.clone()),
        }
        drop(seat);
        if let (Ok(_), Some(bell)) = (made, self.0.bell.get()) {
            bell.ring();
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut seat: MutexGuard<'_, Seat> = lock(&self.0.seat);
        seat.dialling = false;
        seat.attempts += 1;
        drop(seat);
        self.0.news.notify_all();
    }
}

/// What this process was called by. To ask the kernel for the path of its program would cost a fresh
/// process more than the answer is worth.
fn executable_name() -> String {
    let called = std::env::args_os().next();
    // Some C libraries do not tell a library what the program was called by.
    let called = called.or_else(|| Some(std::env::current_exe().ok()?.into_os_string()));
    let name = called
        .as_deref()
        .and_then(|path| Path::new(path).file_name());
    let name = name.map(|name| name.to_string_lossy());
    format!(
        "{} (pid {})",
        name.as_deref().unwrap_or("?"),
        std::process::id()
    )
}

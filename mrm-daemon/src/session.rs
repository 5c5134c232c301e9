//! One connection: reads frames, hands requests to the shell, writes what it answers.
//!
//! The task of a session only moves bytes. It ends on the first of: end of the stream, exit of
//! the connecting process (also while a forked child keeps the socket open), a broken frame, a
//! client that stalls in the middle of a frame or does not read its replies, or the shell's wish.
//! While a client leaves much unread, nothing more is read from it.

use crate::peer::Peer;
use crate::shell::Shell;
use crate::source::PassedFd;
use crate::spin::Spin;
use crate::turns::UserTurns;
use crate::watched::Watched;
use crate::wire::{FrameReader, FrameWriter, LentFd, OutFrame, ReadStep, WireError};
use mrm_core::id::SessionId;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{FrameError, Header, Message, encode_into};
use mrm_proto::hello::{ClientHello, features};
use mrm_proto::ids::RequestId;
use mrm_proto::limits::{FDS_PER_FRAME_MAX, FRAME_BODY_BYTES_MAX};
use mrm_proto::reply::{Opened, OpenedMany, OpenedOne, Reply};
use mrm_proto::request::Request;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Frames that one session may have handled before the others get their turn.
const FRAMES_PER_TURN_MAX: u64 = 64;
/// The same where there are other users, too.
const SHARED_FRAMES_PER_TURN_MAX: u64 = 16;
/// Large answers that may be unread before no more requests are read.
const LARGE_MAX: usize = 2;
/// Bytes of replies that may be: two of the largest.
const UNREAD_BYTES_MAX: usize = LARGE_MAX * FRAME_BODY_BYTES_MAX;

/// Between two attempts to send while too many descriptors are on their way.
const LENT_PAUSE: Duration = Duration::from_millis(5);

/// The writing end of a session, shared with whoever answers it.
pub(crate) struct SessionIo {
    socket: Rc<OwnedFd>,
    writer: RefCell<FrameWriter>,
    wake: Notify,
    ended: Cell<bool>,
    /// Grants that go out together, while requests that came together are handled.
    gathered: RefCell<Option<Gathered>>,
    /// Large answers that are owed, and will come all at once.
    owed: Cell<usize>,
}

/// Several grants on their way.
#[derive(Default)]
struct Gathered {
    opens: Vec<OpenedOne>,
    fds: Vec<LentFd>,
}

/// How long a session may keep others waiting.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From connect to a whole hello.
    pub(crate) hello: Duration,
    /// From the first byte of a frame to its last, and from a full socket to a read.
    pub(crate) stall: Duration,
}

impl SessionIo {
    pub(crate) fn new(socket: Rc<OwnedFd>) -> Rc<Self> {
        let writer = RefCell::new(FrameWriter::default());
        Rc::new(Self {
            socket,
            writer,
            wake: Notify::new(),
            ended: Cell::new(false),
            gathered: RefCell::default(),
            owed: Cell::new(0),
        })
    }

    /// From here on, grants wait for each other, until [`flush_gathered`](Self::flush_gathered).
    fn gather(&self) {
        self.gathered.replace(Some(Gathered::default()));
    }

    /// Sends the grants that wait: one by itself, several as one frame.
    fn flush_gathered(&self) {
        if let Some(gathered) = self.gathered.take() {
            self.send_gathered(gathered);
        }
    }

    fn send_gathered(&self, Gathered { mut opens, fds }: Gathered) {
        if opens.len() > 1 {
            let many = Reply::OpenedMany(OpenedMany { opens });
            self.send_now(RequestId::NO_REPLY, &many, fds);
        } else if let Some(OpenedOne { request, opened }) = opens.pop() {
            self.send_now(request, &Reply::Opened(opened), fds);
        }
    }

    /// Sends a grant, now or with others.
    pub(crate) fn grant(&self, request: RequestId, opened: Opened, fds: Vec<LentFd>) {
        let waiting = self.gathered.borrow().as_ref().map(|g| g.fds.len());
        let Some(waiting) = waiting.filter(|_| opened.device.is_none()) else {
            return self.send(request, &Reply::Opened(opened), fds);
        };
        if waiting + fds.len() > FDS_PER_FRAME_MAX {
            self.flush_gathered();
            self.gather();
        }
        if let Some(gathered) = &mut *self.gathered.borrow_mut() {
            gathered.opens.push(OpenedOne { request, opened });
            gathered.fds.extend(fds);
        }
    }

    /// Sends a frame now, or as soon as the client reads, behind those that wait. A client that
    /// does not read until the queue is full loses its session.
    pub(crate) fn send(&self, request: RequestId, message: &impl Message, fds: Vec<LentFd>) {
        if let Some(gathered) = self.gathered.borrow_mut().as_mut().map(std::mem::take) {
            self.send_gathered(gathered);
        }
        self.send_now(request, message, fds);
    }

    fn send_now(&self, request: RequestId, message: &impl Message, fds: Vec<LentFd>) {
        if self.ended.get() {
            return;
        }
        let mut writer = self.writer.borrow_mut();
        let mut bytes = writer.buffer();
        let fd_count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
        if let Err(error) = encode_into(&mut bytes, request, fd_count, message) {
            tracing::error!(%error, kind = ?message.kind(), "a reply does not fit a frame");
            self.end();
            return;
        }
        if writer.push(OutFrame { bytes, fds }).is_err() {
            self.end();
            return;
        }
        match writer.flush(&self.socket) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || too_many_lent(&error) => {
                self.wake.notify_one();
            }
            Err(_) => self.end(),
        }
    }

    /// Ends the session as soon as its task runs.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        self.wake.notify_one();
    }

    fn is_stalled(&self) -> bool {
        !self.writer.borrow().is_empty()
    }

    /// Whether so much is unread that the answers to more requests would only pile up.
    fn is_full(&self) -> bool {
        self.owed.get() >= LARGE_MAX || self.writer.borrow().waiting_bytes() > UNREAD_BYTES_MAX
    }

    /// A large answer is owed, or not any more. Those of many sessions come at the same time.
    pub(crate) fn owe(&self, owed: bool) {
        let count = self.owed.get();
        self.owed.set(if owed {
            count + 1
        } else {
            count.saturating_sub(1)
        });
        if !owed {
            self.wake.notify_one();
        }
    }

    /// Nothing more is sent, and nothing is lent to what was not.
    fn close(&self) {
        self.ended.set(true);
        self.writer.replace(FrameWriter::default());
    }

    async fn drain(&self, watched: &Watched) -> io::Result<()> {
        let flush = || self.writer.borrow_mut().flush(&self.socket);
        loop {
            match watched.when(Interest::WRITABLE, flush).await {
                Err(error) if too_many_lent(&error) => tokio::time::sleep(LENT_PAUSE).await,
                sent => return sent,
            }
        }
    }
}

/// Whether as many descriptors of the daemon's user are on their way, unread, as may be
/// (`unix(7)`, `ETOOMANYREFS`): no fault of this session, and over as soon as others read.
fn too_many_lent(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::TOOMANYREFS)
}

/// Serves a connection until it ends. The shell is told of its begin and its end.
pub(crate) async fn serve(socket: OwnedFd, shell: Shell, (patience, spin): (Patience, Spin)) {
    let socket = Rc::new(socket);
    let watched = match Watched::new(Rc::clone(&socket)) {
        Ok(watched) => watched,
        Err(error) => {
            tracing::warn!(%error, "a connection that cannot be watched is refused");
            return;
        }
    };
    let io = SessionIo::new(socket);
    let mut peer = match Peer::of(&io.socket) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!(%error, "a connection without credentials is refused");
            return;
        }
    };
    let pidfd = peer.take_exit();
    let uid = peer.uid;
    let turns = shell.turns().of_user(uid);
    let turn = turns.begin().await;
    let connected = shell.connected(peer, Rc::clone(&io));
    turn.end().await;
    let session = match connected {
        Ok(session) => session,
        Err(error) => {
            io.send(RequestId::NO_REPLY, &Reply::Error(error), Vec::new());
            return;
        }
    };
    let mut task = Task {
        io,
        watched,
        reader: FrameReader::new(shell.closer(uid)),
        turns: Rc::new(turns),
        shell,
        session,
        frames: 0,
        said_hello: false,
        takes_many: false,
        spin,
    };
    let why = task.run(pidfd, patience).await;
    task.io.close();
    task.shell.disconnected(session, why);
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The client closed the connection.
    Closed,
    /// The client's process is gone.
    PeerExited,
    /// The shell wished it, or the client's replies pile up.
    Dropped,
    /// The client broke the protocol; it was told.
    Protocol(ErrorReply),
    /// The kernel said so.
    Io(io::Error),
}

struct Task {
    io: Rc<SessionIo>,
    watched: Watched,
    shell: Shell,
    session: SessionId,
    reader: FrameReader,
    turns: Rc<UserTurns>,
    /// How many were handled.
    frames: u64,
    said_hello: bool,
    /// Whether the client knows grants that come together.
    takes_many: bool,
    spin: Spin,
}

/// When the client is given up, and why.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    at: Instant,
    code: ErrorCode,
    /// What it did by then: once it does more, it gets more time.
    done: u64,
}

impl Task {
    async fn run(&mut self, pidfd: Option<AsyncFd<OwnedFd>>, patience: Patience) -> Ended {
        let mut deadline = Some(Deadline {
            at: Instant::now() + patience.hello,
            code: ErrorCode::TooSlow,
            done: 0,
        });
        // Made once: to wait anew at each request would enter and leave the lists of who waits.
        let shared = Rc::clone(&self.io);
        let mut woken = pin!(shared.wake.notified());
        let mut exited = pin!(exited(pidfd.as_ref()));
        loop {
            let before = self.frames;
            let partial = match self.handle_frames().await {
                Ok(partial) => partial,
                Err(error) => return self.refuse(error),
            };
            if self.frames != before {
                self.spin.handled();
            }
            if self.io.ended.get() {
                return Ended::Dropped;
            }
            let (stalled, full) = (self.io.is_stalled(), self.io.is_full());
            if self.said_hello {
                deadline = self.deadline(deadline, partial, patience.stall);
            }
            let at = deadline.map(|deadline| deadline.at);
            if let Err(error) = self.watched.want_room(stalled) {
                return Ended::Io(error);
            }
            let (io, reader, watched) = (&self.io, &mut self.reader, &self.watched);
            tokio::select! {
                biased;
                read = watched.read(|| reader.fill_from(&io.socket)), if !full => {
                    match read {
                        Ok(0) => return Ended::Closed,
                        Ok(_) => {}
                        Err(error) => return Ended::Io(error),
                    }
                }
                () = &mut woken => woken.set(shared.wake.notified()),
                sent = io.drain(watched), if stalled => {
                    if let Err(error) = sent {
                        return Ended::Io(error);
                    }
                }
                () = &mut exited => return Ended::PeerExited,
                () = until(at), if at.is_some() => {
                    if self.said_hello {
                        deadline = self.deadline(deadline, partial, patience.stall);
                    }
                    if let Some(Deadline { code, .. }) = deadline.filter(|d| Some(d.at) == at) {
                        return self.refuse(late(code, self.said_hello));
                    }
                }
            }
        }
    }

    /// When the client is given up if it goes on as now: the deadline so far, unless it did
    /// something since.
    fn deadline(
        &self,
        so_far: Option<Deadline>,
        partial: bool,
        stall: Duration,
    ) -> Option<Deadline> {
        let (code, done) = if self.io.is_stalled() {
            (ErrorCode::NotReading, self.io.writer.borrow().sent_bytes())
        } else if partial {
            (ErrorCode::TooSlow, self.frames)
        } else {
            return None;
        };
        let same = so_far.filter(|deadline| (deadline.code, deadline.done) == (code, done));
        let at = Instant::now() + stall;
        Some(same.unwrap_or(Deadline { at, code, done }))
    }

    /// Handles every whole frame, in turns; says whether a part of one is left.
    async fn handle_frames(&mut self) -> Result<bool, ErrorReply> {
        let turns = Rc::clone(&self.turns);
        loop {
            if self.reader.is_empty() || self.io.ended.get() || self.io.is_full() {
                return Ok(false);
            }
            let turn = turns.begin().await;
            let most = match turn.is_shared() {
                true => SHARED_FRAMES_PER_TURN_MAX,
                false => FRAMES_PER_TURN_MAX,
            };
            if self.takes_many && self.reader.holds_several() {
                self.io.gather();
            }
            let handled = self.handle_some(most);
            self.io.flush_gathered();
            match turn.is_shared() {
                true => turn.end().await,
                // Enough for one, with more to come.
                false if handled == Ok(None) => tokio::task::yield_now().await,
                false => {}
            }
            if let Some(partial) = handled? {
                return Ok(partial);
            }
        }
    }

    /// Handles at most so many frames. Says whether a part of one is left, if no whole one is.
    fn handle_some(&mut self, most: u64) -> Result<Option<bool>, ErrorReply> {
        for _ in 0..most {
            if self.io.ended.get() || self.io.is_full() {
                return Ok(Some(false));
            }
            match self.reader.next().map_err(|e| broken(&e))? {
                ReadStep::Partial => return Ok(Some(true)),
                ReadStep::Empty => return Ok(Some(false)),
                ReadStep::Frame(header, body, fds) if self.said_hello => {
                    match Request::decode(&header, body) {
                        Ok(request) => {
                            check_fds(&request, &fds)?;
                            self.shell
                                .request(self.session, header.request, request, fds)?;
                        }
                        Err(FrameError::Name { why, .. }) => {
                            let error = ErrorReply::new(ErrorCode::BadName, why.to_string());
                            self.io
                                .send(header.request, &Reply::Error(error), Vec::new());
                        }
                        Err(error) => return Err(broken_frame(&error)),
                    }
                }
                ReadStep::Frame(header, body, fds) => {
                    let hello = read_hello(&header, body, &fds)?;
                    let reply = self.shell.hello(self.session, &hello)?;
                    self.io.send(header.request, &reply, Vec::new());
                    self.said_hello = true;
                    self.takes_many = reply.features & features::MANY != 0;
                }
            }
            self.frames += 1;
        }
        Ok(None)
    }

    fn refuse(&self, error: ErrorReply) -> Ended {
        self.io.send(
            RequestId::NO_REPLY,
            &Reply::Error(error.clone()),
            Vec::new(),
        );
        Ended::Protocol(error)
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn exited(pidfd: Option<&AsyncFd<OwnedFd>>) {
    match pidfd {
        // An error of the watch itself is no sign of death: the end of the stream remains.
        Some(pidfd) => match pidfd.readable().await {
            Ok(_) => {}
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn read_hello(header: &Header, body: &[u8], fds: &[PassedFd]) -> Result<ClientHello, ErrorReply> {
    let hello = ClientHello::decode(header, body).map_err(|e| broken_frame(&e))?;
    if fds.is_empty() {
        Ok(hello)
    } else {
        Err(ErrorReply::new(
            ErrorCode::WrongFdCount,
            "a hello carries no descriptors",
        ))
    }
}

fn check_fds(request: &Request, fds: &[PassedFd]) -> Result<(), ErrorReply> {
    let expected = request.fds_expected();
    if fds.len() == expected {
        return Ok(());
    }
    let message = format!(
        "a {:?} frame with {} descriptors, {expected} are due: send one per file",
        request.kind(),
        fds.len()
    );
    Err(ErrorReply::new(ErrorCode::WrongFdCount, message))
}

fn late(code: ErrorCode, said_hello: bool) -> ErrorReply {
    let message = match (code == ErrorCode::NotReading, said_hello) {
        (true, _) => "replies were not read in time: read them, or open a new connection",
        (false, true) => "a frame was begun and not finished in time",
        (false, false) => "no hello came in time: send ClientHello right after connecting",
    };
    ErrorReply::new(code, message)
}

fn broken(error: &WireError) -> ErrorReply {
    match error {
        WireError::Frame(frame) => broken_frame(frame),
        WireError::FdCount { .. } => ErrorReply::new(ErrorCode::WrongFdCount, error.to_string()),
        WireError::FdsLost => ErrorReply::new(ErrorCode::Exhausted, error.to_string()),
    }
}

fn broken_frame(error: &FrameError) -> ErrorReply {
    let code = match error {
        FrameError::Magic => ErrorCode::BadMagic,
        FrameError::TooLong(_) => ErrorCode::FrameTooLong,
        FrameError::UnknownKind(_) => ErrorCode::UnknownKind,
        FrameError::OutOfPlace(_) => ErrorCode::OutOfOrder,
        FrameError::Reserved => ErrorCode::ReservedBits,
        FrameError::TooManyFds(_) => ErrorCode::WrongFdCount,
        FrameError::Truncated { .. } | FrameError::Name { .. } | FrameError::Body { .. } => {
            ErrorCode::MalformedBody
        }
    };
    ErrorReply::new(code, error.to_string())
}

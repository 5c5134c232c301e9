//! Connections, as in `session.rs` and `wire.rs` of the daemon.

use super::Daemon;
use crate::breach::{Checked, Rule, breach};
use crate::env::{Env, Job};
use crate::link::{FrameBuffer, LinkId, Passed, Reader};
use crate::memory::AllocId;
use crate::settings::{HELLO_US, STALL_US};
use mrm_core::event::Event;
use mrm_core::id::{ModelId, RequestId, SessionId, Tenant};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{self, FrameError, Header, Message};
use mrm_proto::hello::ClientHello;
use mrm_proto::ids;
use mrm_proto::reply::Reply;
use mrm_proto::request::Request;
use std::collections::{BTreeMap, VecDeque};

/// Replies that may wait for a client to read.
const REPLIES_MAX: usize = 24;
/// Bytes of replies that may be unread before no more requests are read.
const UNREAD_BYTES_MAX: usize = 600;

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) who: Who,
    pub(super) pending: BTreeMap<RequestId, Pending>,
}

/// Who is answered.
#[derive(Debug)]
pub(super) enum Who {
    Client(Client),
    /// One session for each verb that waits.
    Operator,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) link: LinkId,
    /// Whose it is.
    pub(super) uid: u32,
    reader: FrameBuffer,
    out: VecDeque<OutFrame>,
    sent_bytes: u64,
    frames: u64,
    said_hello: bool,
    pub(super) features: u64,
    deadline: Option<Deadline>,
    ended: bool,
}

/// When a client is given up, and what it had done when that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadline {
    at: u64,
    code: ErrorCode,
    done: u64,
}

#[derive(Debug)]
struct OutFrame {
    bytes: Vec<u8>,
    sent: usize,
    lent: Vec<AllocId>,
}

/// An open that awaits its answer.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) model: ModelId,
    pub(super) progress: bool,
    /// The model is a set of passed files: its id is not needed after the answer.
    pub(super) passed: bool,
}

impl Session {
    pub(super) fn wants_progress(&self) -> bool {
        self.pending.values().any(|pending| pending.progress)
    }
}

impl Client {
    fn is_full(&self) -> bool {
        let unread: usize = self
            .out
            .iter()
            .map(|frame| frame.bytes.len() - frame.sent)
            .sum();
        unread > UNREAD_BYTES_MAX
    }
}

impl Daemon {
    fn client(&mut self, session: SessionId) -> Option<&mut Client> {
        match &mut self.sessions.get_mut(&session)?.who {
            Who::Client(client) => Some(client),
            Who::Operator => None,
        }
    }

    pub(super) fn new_session(&mut self) -> SessionId {
        self.sessions_made += 1;
        SessionId(self.sessions_made)
    }

    /// Bytes arrived, or a connection, or its end.
    pub(crate) fn arrive(&mut self, env: &mut Env, link: LinkId) -> Checked {
        let session = match self.of_link.get(&link) {
            Some(session) => *session,
            None => match self.connected(env, link)? {
                Some(session) => session,
                None => return Ok(()),
            },
        };
        if self.client(session).is_none_or(|client| client.is_full()) {
            return Ok(());
        }
        let Some(pipe) = env.links.pipe(link, Reader::Daemon) else {
            return breach(Rule::Session, "a session without connection");
        };
        let (len, over) = (pipe.len(), pipe.ended && pipe.len() == 0);
        let most = env.random.index(len) + 1;
        if let Some(client) = self.client(session)
            && let Some(pipe) = env.links.pipe(link, Reader::Daemon)
        {
            pipe.take(most, &mut client.reader);
            client.ended |= over;
            if pipe.len() > 0 || pipe.ended && !over {
                env.expect(link, Reader::Daemon);
            }
        }
        self.handle_frames(env, session)?;
        self.watch(env, session);
        self.finish(env)
    }

    fn connected(&mut self, env: &mut Env, link: LinkId) -> Checked<Option<SessionId>> {
        if self.of_link.len() >= env.settings.sessions_max {
            let error = ErrorReply::new(ErrorCode::TooManySessions, "full");
            let error = encode(ids::RequestId::NO_REPLY, 0, &Reply::Error(error))?;
            env.write(link, Reader::Client, &error, Vec::new());
            env.end(link, Reader::Client);
            env.discard(link, Reader::Daemon)?;
            return Ok(None);
        }
        let session = self.new_session();
        let deadline = Deadline {
            at: env.now + HELLO_US,
            code: ErrorCode::TooSlow,
            done: 0,
        };
        let uid = env.settings.uid_of(env.links.client(link).unwrap_or(0));
        let client = Client {
            link,
            uid,
            reader: FrameBuffer::default(),
            out: VecDeque::new(),
            sent_bytes: 0,
            frames: 0,
            said_hello: false,
            features: 0,
            deadline: Some(deadline),
            ended: false,
        };
        self.plan(env, HELLO_US, Job::Stall(session));
        self.of_link.insert(link, session);
        let who = Who::Client(client);
        self.sessions.insert(
            session,
            Session {
                who,
                pending: BTreeMap::new(),
            },
        );
        let tenant = Tenant(uid);
        self.step(env, Event::SessionOpened { session, tenant })?;
        Ok(Some(session))
    }

    fn handle_frames(&mut self, env: &mut Env, session: SessionId) -> Checked {
        loop {
            let Some(client) = self.client(session) else {
                return Ok(());
            };
            if client.ended || client.is_full() {
                return Ok(());
            }
            let (link, hello) = (client.link, !client.said_hello);
            let frame = match client.reader.next() {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => Ok(frame),
                Err(error) => Err(broken(&error)),
            };
            client.frames += 1;
            let handled = match frame {
                Ok(frame) if hello => self.first_frame(env, session, &frame)?,
                Ok(frame) => self.frame(env, (session, link), &frame)?,
                Err(error) => Err(error),
            };
            if let Err(error) = handled {
                self.refuse_session(env, session, error)?;
            }
        }
    }

    fn first_frame(
        &mut self,
        env: &mut Env,
        session: SessionId,
        (header, body): &(Header, Vec<u8>),
    ) -> Checked<Result<(), ErrorReply>> {
        let hello = match ClientHello::decode(header, body) {
            Ok(hello) => hello,
            Err(error) => return Ok(Err(broken(&error))),
        };
        let reply = match self.hello(&hello) {
            Ok(reply) => reply,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(client) = self.client(session) {
            client.said_hello = true;
            client.features = reply.features;
        }
        self.send(env, session, header.request, &reply, Vec::new())?;
        Ok(Ok(()))
    }

    fn frame(
        &mut self,
        env: &mut Env,
        (session, link): (SessionId, LinkId),
        (header, body): &(Header, Vec<u8>),
    ) -> Checked<Result<(), ErrorReply>> {
        let cargo = match header.fds {
            0 => Vec::new(),
            _ => env
                .links
                .pipe(link, Reader::Daemon)
                .map(crate::link::Pipe::take_cargo)
                .unwrap_or_default(),
        };
        match Request::decode(header, body) {
            Ok(request) if request.fds_expected() == cargo.len() => {
                self.request(env, session, header.request, (request, cargo))
            }
            Ok(_) => {
                let error = ErrorReply::new(ErrorCode::WrongFdCount, "other descriptors");
                Ok(Err(error))
            }
            Err(FrameError::Name { why, .. }) => {
                let error = ErrorReply::new(ErrorCode::BadName, why.to_string());
                self.send(
                    env,
                    session,
                    header.request,
                    &Reply::Error(error),
                    Vec::new(),
                )?;
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(broken(&error))),
        }
    }

    fn refuse_session(&mut self, env: &mut Env, session: SessionId, error: ErrorReply) -> Checked {
        let error = Reply::Error(error);
        self.send(env, session, ids::RequestId::NO_REPLY, &error, Vec::new())?;
        if let Some(client) = self.client(session) {
            client.ended = true;
        }
        Ok(())
    }

    /// Sends a frame, or as much as the client takes.
    pub(super) fn send(
        &mut self,
        env: &mut Env,
        session: SessionId,
        request: ids::RequestId,
        message: &impl Message,
        lent: Vec<AllocId>,
    ) -> Checked {
        let Some(client) = self.client(session) else {
            return Ok(());
        };
        if client.ended {
            return Ok(());
        }
        if client.out.len() >= REPLIES_MAX {
            client.ended = true;
            return Ok(());
        }
        let bytes = encode(request, lent.len(), message)?;
        client.out.push_back(OutFrame {
            bytes,
            sent: 0,
            lent,
        });
        self.flush(env, session)
    }

    /// A client has read: there is room for more.
    pub(crate) fn has_read(&mut self, env: &mut Env, link: LinkId) -> Checked {
        let Some(session) = self.of_link.get(&link).copied() else {
            return Ok(());
        };
        self.flush(env, session)?;
        self.handle_frames(env, session)?;
        env.expect(link, Reader::Daemon);
        self.watch(env, session);
        self.finish(env)
    }

    fn flush(&mut self, env: &mut Env, session: SessionId) -> Checked {
        let socket_bytes = env.settings.socket_bytes;
        let Some(client) = self.client(session) else {
            return Ok(());
        };
        let link = client.link;
        while let Some(frame) = client.out.front_mut() {
            let Some(pipe) = env.links.pipe(link, Reader::Client) else {
                return Ok(());
            };
            if pipe.gone {
                client.ended = true;
                break;
            }
            let room = socket_bytes.saturating_sub(pipe.len());
            if room == 0 {
                break;
            }
            let mut cargo = Vec::new();
            if frame.sent == 0 {
                // Gone is what the client gave back before it was sent.
                if frame.lent.iter().any(|id| !env.memory.is_kept(*id)) {
                    client.ended = true;
                    break;
                }
                for id in &frame.lent {
                    env.memory.add_ref(*id)?;
                    cargo.push(Passed::Memory(*id));
                }
            }
            let end = frame.bytes.len().min(frame.sent + room);
            env.write(link, Reader::Client, &frame.bytes[frame.sent..end], cargo);
            client.sent_bytes += (end - frame.sent) as u64;
            frame.sent = end;
            if end == frame.bytes.len() {
                client.out.pop_front();
            }
        }
        self.watch(env, session);
        Ok(())
    }

    /// Sets or clears the time by which a client must have done something.
    fn watch(&mut self, env: &mut Env, session: SessionId) {
        let Some(client) = self.client(session) else {
            return;
        };
        if !client.said_hello {
            return;
        }
        let now = if !client.out.is_empty() {
            Some((ErrorCode::NotReading, client.sent_bytes))
        } else if !client.reader.is_empty() {
            Some((ErrorCode::TooSlow, client.frames))
        } else {
            None
        };
        let before = client
            .deadline
            .map(|deadline| (deadline.code, deadline.done));
        if before == now {
            return;
        }
        let at = env.now + STALL_US;
        client.deadline = now.map(|(code, done)| Deadline { at, code, done });
        if now.is_some() {
            self.plan(env, STALL_US, Job::Stall(session));
        }
    }

    /// A deadline of a session may have come.
    pub(super) fn stalled(&mut self, env: &mut Env, session: SessionId) -> Checked {
        self.watch(env, session);
        let Some(client) = self.client(session) else {
            return Ok(());
        };
        match client.deadline {
            Some(deadline) if deadline.at <= env.now => {
                let error = ErrorReply::new(deadline.code, "stalled");
                self.refuse_session(env, session, error)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the sessions whose time has come; whether there were any.
    pub(super) fn end_sessions(&mut self, env: &mut Env) -> Checked<bool> {
        let ended = self
            .sessions
            .iter()
            .find_map(|(id, session)| match &session.who {
                Who::Client(client) if client.ended => Some((*id, client.link)),
                Who::Client(_) | Who::Operator => None,
            });
        let Some((session, link)) = ended else {
            return Ok(false);
        };
        self.of_link.remove(&link);
        let record = self.sessions.remove(&session);
        env.end(link, Reader::Client);
        env.discard(link, Reader::Daemon)?;
        self.step(env, Event::SessionClosed { session })?;
        for pending in record
            .into_iter()
            .flat_map(|record| record.pending.into_values())
        {
            self.supplies_stale = true;
            self.after_answer(&pending);
        }
        Ok(true)
    }
}

pub(super) fn encode(
    request: ids::RequestId,
    fds: usize,
    message: &impl Message,
) -> Checked<Vec<u8>> {
    let fds = u8::try_from(fds).unwrap_or(u8::MAX);
    frame::encode(request, fds, message)
        .or_else(|error| breach(Rule::Answers, format!("{:?}: {error}", message.kind())))
}

fn broken(error: &FrameError) -> ErrorReply {
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

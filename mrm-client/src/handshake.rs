//! Connecting, and the first frame each way.

use crate::connection::poll_socket;
use crate::error::{ConnectError, Refusal, SessionError};
use crate::inbox::Inbox;
use crate::outbox::send_some;
use crate::request::session_end;
use mrm_proto::error::ErrorReply;
use mrm_proto::frame::{self, Kind};
use mrm_proto::hello::{ClientHello, ServerHello};
use mrm_proto::ids::RequestId;
use mrm_proto::limits::{VERSION_MAX, VERSION_MIN};
use mrm_proto::reply::Reply;
use mrm_proto::request::Request;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_socket, socket_with,
    sockopt,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The request id of the hello. Requests count on from here.
pub(crate) const HELLO: RequestId = RequestId(1);

/// The request id of what is asked along with the hello.
pub(crate) const AHEAD: RequestId = RequestId(HELLO.0 + 1);

/// How long one read of a session may block. A reader that may wait much longer reads without
/// asking first whether there is anything: one system call for most replies instead of two.
pub(crate) const RECEIVE_AT_ONCE: Duration = Duration::from_millis(100);

/// Connects to `path` and says hello, with a request right behind it, within `timeout`. What answers
/// that may be in the inbox already.
pub(crate) fn connect(
    path: &Path,
    name: &str,
    timeout: Duration,
    ahead: Option<&Request>,
) -> Result<(OwnedFd, ServerHello, Inbox), ConnectError> {
    let deadline = Instant::now() + timeout;
    let failed = |source| ConnectError::Session {
        path: path.to_owned(),
        source,
    };
    let late = || ConnectError::TimedOut {
        path: path.to_owned(),
        timeout,
    };
    let socket = dial(path, timeout)?;
    let mut hello = client_hello(name).map_err(failed)?;
    if let Some(request) = ahead {
        let frame = frame::encode(AHEAD, 0, request).map_err(|e| failed(e.into()))?;
        hello.extend_from_slice(&frame);
    }
    // A hello and an open fit an empty socket buffer. That the daemon hung up is found by reading why.
    match send_some(socket.as_fd(), &hello, &[]) {
        Ok(_) | Err(SessionError::Disconnected) => {}
        Err(why) => return Err(failed(why)),
    }
    let mut inbox = Inbox::new();
    loop {
        if let Some(hello) = next_hello(&mut inbox).map_err(failed)? {
            return Ok((socket, hello, inbox));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        fill(&mut inbox, socket.as_fd(), left).map_err(failed)?;
    }
}

/// Opens a socket to `path`. A full queue of connections is waited for.
fn dial(path: &Path, timeout: Duration) -> Result<OwnedFd, ConnectError> {
    let failed = |e: Errno| match e {
        Errno::NOENT | Errno::CONNREFUSED => ConnectError::NoDaemon {
            tried: vec![path.to_owned()],
        },
        Errno::AGAIN => ConnectError::TimedOut {
            path: path.to_owned(),
            timeout,
        },
        e => ConnectError::Io {
            path: path.to_owned(),
            source: Arc::new(e.into()),
        },
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    // On a Unix socket this also bounds `connect`; a zero would mean forever.
    let bound = Some(timeout.max(Duration::from_millis(1)));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, bound).map_err(failed)?;
    let at_once = Some(RECEIVE_AT_ONCE);
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, at_once).map_err(failed)?;
    rustix::io::retry_on_intr(|| connect_socket(&socket, &address)).map_err(failed)?;
    Ok(socket)
}

/// The first frame of a client.
pub(crate) fn client_hello(name: &str) -> Result<Vec<u8>, SessionError> {
    Ok(frame::encode(HELLO, 0, &ClientHello::new(name))?)
}

/// The daemon's hello, if it is there.
pub(crate) fn next_hello(inbox: &mut Inbox) -> Result<Option<ServerHello>, SessionError> {
    let Some(frame) = inbox.next()? else {
        return Ok(None);
    };
    if frame.header.kind == Kind::Error {
        return Err(session_end(Reply::decode(&frame.header, frame.body)?));
    }
    let hello = ServerHello::decode(&frame.header, frame.body)?;
    if (VERSION_MIN..=VERSION_MAX).contains(&hello.version) {
        return Ok(Some(hello));
    }
    let message = format!(
        "the daemon ({}) chose protocol version {}, this client speaks {VERSION_MIN} to \
         {VERSION_MAX}; upgrade the older of the two",
        hello.daemon, hello.version
    );
    let code = mrm_proto::error::ErrorCode::VersionMismatch;
    Err(SessionError::Ended(Refusal(ErrorReply::new(code, message))))
}

fn fill(inbox: &mut Inbox, socket: BorrowedFd<'_>, wait: Duration) -> Result<(), SessionError> {
    if poll_socket(socket, PollFlags::IN, wait)?.is_empty() {
        return Ok(());
    }
    inbox.receive(socket).map(|_| ())
}

//! Frames of the daemon as replies.

use crate::error::{Refusal, RequestError, SessionError};
use crate::inbox::Frame;
use mrm_proto::ids::RequestId;
use mrm_proto::reply::Reply;
use std::os::fd::OwnedFd;

/// A reply as it arrived.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) id: RequestId,
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The reply that ended a request.
#[derive(Debug)]
pub(crate) struct Replied {
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Decodes a frame, and checks that as many descriptors came as its body speaks of.
pub(crate) fn decode(frame: Frame<'_>) -> Result<Incoming, SessionError> {
    let Frame { header, body, fds } = frame;
    let reply = Reply::decode(&header, body)?;
    let wanted = match &reply {
        Reply::Opened(opened) => 1 + opened.segments_bytes.len(),
        Reply::Closed(_)
        | Reply::Cancelled(_)
        | Reply::Progress(_)
        | Reply::Handed(_)
        | Reply::Revoked(_)
        | Reply::Listed(_)
        | Reply::Stated(_)
        | Reply::Error(_) => 0,
    };
    if fds.len() != wanted {
        let (kind, came) = (header.kind, fds.len());
        return Err(SessionError::OutOfPlace(format!(
            "a frame of kind {kind:?} needs {wanted} descriptors and came with {came}"
        )));
    }
    Ok(Incoming {
        id: header.request,
        reply,
        fds,
    })
}

/// What a reply without a request says: the end of the session, and why.
pub(crate) fn session_end(reply: Reply) -> SessionError {
    if let Reply::Error(error) = reply {
        return SessionError::Ended(Refusal(error));
    }
    SessionError::OutOfPlace("a reply to no request".to_owned())
}

/// What a request gets that was not answered as asked: the daemon's refusal, or the end of a
/// session that mixes up its replies.
pub(crate) fn refusal(reply: Reply, end: impl FnOnce(SessionError)) -> RequestError {
    if let Reply::Error(error) = reply {
        return RequestError::Refused(Refusal(error));
    }
    let why = SessionError::OutOfPlace("a reply of another kind than was asked for".to_owned());
    end(why.clone());
    why.into()
}

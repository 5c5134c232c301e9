//! Frames of the daemon as replies.

use crate::error::{Refusal, RequestError, SessionError};
use crate::inbox::Frame;
use crate::lease::Fate;
use mrm_proto::frame::Kind;
use mrm_proto::ids::RequestId;
use mrm_proto::reply::{Opened, OpenedOne, Reply, Sharing};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A reply as it arrived.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) id: RequestId,
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The reply that ended a request. An `Opened` on a device has the handles and descriptors of all
/// its allocations, whichever frames brought them.
#[derive(Debug)]
pub(crate) struct Replied {
    pub(crate) reply: Reply,
    pub(crate) fds: Vec<OwnedFd>,
    /// Of the leases that it grants and that may be taken away, in order.
    pub(crate) fates: Vec<Arc<Fate>>,
}

/// Decodes a frame, and checks that as many descriptors came as its body speaks of. What answers
/// several requests becomes as many replies.
pub(crate) fn decode(frame: Frame<'_>, arrived: &mut Vec<Incoming>) -> Result<(), SessionError> {
    let Frame { header, body, fds } = frame;
    match Reply::decode(&header, body)? {
        Reply::OpenedMany(many) => {
            // All of them or none: a frame that is wrong in part is wrong.
            let mut fds = fds.into_iter();
            let one = |OpenedOne { request, opened }| {
                let own = fds
                    .by_ref()
                    .take(tables(&opened) + opened.segments_bytes.len());
                let (reply, own) = (Reply::Opened(opened), own.collect());
                fitting(header.kind, request, reply, own)
            };
            let each: Result<Vec<_>, _> = many.opens.into_iter().map(one).collect();
            match fds.len() {
                0 => arrived.extend(each?),
                strays => return Err(ill_fitting(header.kind, strays)),
            }
            Ok(())
        }
        reply @ (Reply::Opened(_)
        | Reply::Closed(_)
        | Reply::Cancelled(_)
        | Reply::Progress(_)
        | Reply::Handed(_)
        | Reply::Revoked(_)
        | Reply::Ready(_)
        | Reply::Resumed(_)
        | Reply::Listed(_)
        | Reply::Stated(_)
        | Reply::Hinted(_)
        | Reply::Error(_)) => {
            arrived.push(fitting(header.kind, header.request, reply, fds)?);
            Ok(())
        }
    }
}

/// How many descriptors of tensor tables come with a grant: none where the client has it.
pub(crate) const fn tables(opened: &Opened) -> usize {
    if opened.table_bytes == 0 { 0 } else { 1 }
}

fn fitting(
    kind: Kind,
    id: RequestId,
    reply: Reply,
    fds: Vec<OwnedFd>,
) -> Result<Incoming, SessionError> {
    let came = fds.len();
    let fits = match &reply {
        Reply::Opened(opened) => match &opened.device {
            None => came == tables(opened) + opened.segments_bytes.len(),
            Some(_) if kind == Kind::OpenedMany => false,
            // How many of the allocations came before is known where they are put together.
            Some(on_device) => {
                let shared = match on_device.sharing {
                    Sharing::Vmm => on_device.handles.is_empty(),
                    Sharing::Legacy => came == tables(opened),
                };
                came >= tables(opened) && shared && opened.segments_bytes.is_empty()
            }
        },
        Reply::Handed(handed) => (came == 0) != handed.handles.is_empty(),
        Reply::Closed(_)
        | Reply::Cancelled(_)
        | Reply::Progress(_)
        | Reply::Revoked(_)
        | Reply::Ready(_)
        | Reply::Resumed(_)
        | Reply::OpenedMany(_)
        | Reply::Listed(_)
        | Reply::Stated(_)
        | Reply::Hinted(_)
        | Reply::Error(_) => came == 0,
    };
    if !fits {
        return Err(ill_fitting(kind, came));
    }
    Ok(Incoming { id, reply, fds })
}

fn ill_fitting(kind: Kind, came: usize) -> SessionError {
    SessionError::OutOfPlace(format!(
        "a frame of kind {kind:?} came with {came} descriptors, which its body does not speak of"
    ))
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

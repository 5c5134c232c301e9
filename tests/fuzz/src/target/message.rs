//! Messages: what decodes is what was encoded, and nothing else decodes.
//!
//! An input is a byte that chooses the kind of the frame, and the frame's body.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::message};
//! use mrm_proto::frame::Kind;
//! let close = message::choice_of(Kind::Close);
//! // {0: 5}: the lease to give back.
//! assert_eq!(message::request(&[close, 0xa1, 0x00, 0x05]), Verdict::Accepted);
//! assert_eq!(message::request(&[close, 0xa0]), Verdict::Refused);
//! ```

use super::{assert_says, take};
use crate::Verdict;
use mrm_proto::frame::{self, FrameError, Header, Kind, Message};
use mrm_proto::hello::{ClientHello, ServerHello};
use mrm_proto::ids::RequestId;
use mrm_proto::limits::{VERSION_MAX, VERSION_MIN};
use mrm_proto::reply::Reply;
use mrm_proto::request::Request;
use std::fmt::Debug;

/// A client's requests.
pub fn request(input: &[u8]) -> Verdict {
    let (header, body) = framed(input);
    let verdict = check(&header, body, Request::decode);
    if let Ok(request) = Request::decode(&header, body) {
        match &request {
            Request::OpenFiles(open) => assert_eq!(request.fds_expected(), open.files.len()),
            Request::Open(_)
            | Request::Close(_)
            | Request::Cancel(_)
            | Request::Resume(_)
            | Request::List(_)
            | Request::Stat(_)
            | Request::Touched(_)
            | Request::Heard(_)
            | Request::Hint(_) => assert_eq!(request.fds_expected(), 0),
        }
    }
    verdict
}

/// The daemon's replies.
pub fn reply(input: &[u8]) -> Verdict {
    let (header, body) = framed(input);
    let verdict = check(&header, body, Reply::decode);
    if let Ok(Reply::Error(error)) = Reply::decode(&header, body)
        && let Some(code) = error.code()
    {
        assert_eq!(code.number(), error.number);
    }
    verdict
}

/// The first message each way.
pub fn hello(input: &[u8]) -> Verdict {
    let (header, body) = framed(input);
    if let Ok(hello) = ClientHello::decode(&header, body)
        && let Some(version) = hello.pick_version()
    {
        assert!((hello.version_min..=hello.version_max).contains(&version));
        assert!((VERSION_MIN..=VERSION_MAX).contains(&version));
    }
    match header.kind {
        Kind::ClientHello => check(&header, body, ClientHello::decode),
        Kind::ServerHello
        | Kind::Open
        | Kind::OpenFiles
        | Kind::Close
        | Kind::Cancel
        | Kind::Resume
        | Kind::List
        | Kind::Stat
        | Kind::Touched
        | Kind::Heard
        | Kind::Hint
        | Kind::Opened
        | Kind::Closed
        | Kind::Cancelled
        | Kind::Progress
        | Kind::Handed
        | Kind::Revoked
        | Kind::Ready
        | Kind::Resumed
        | Kind::OpenedMany
        | Kind::Listed
        | Kind::Stated
        | Kind::Hinted
        | Kind::Error => check(&header, body, ServerHello::decode),
    }
}

/// The byte that stands for a kind, now and when there are more of them.
#[must_use]
pub const fn choice_of(kind: Kind) -> u8 {
    let [low, high] = (kind as u16).to_le_bytes();
    high & 0x80 | low & 0x7f
}

fn kind_of(choice: u8) -> Kind {
    let named = Kind::ALL
        .into_iter()
        .find(|kind| choice_of(*kind) == choice);
    named.unwrap_or(Kind::ALL[usize::from(choice) % Kind::ALL.len()])
}

/// The frame that an input stands for.
fn framed(mut input: &[u8]) -> (Header, &[u8]) {
    let [choice] = take(&mut input);
    let header = Header {
        kind: kind_of(choice),
        fds: 0,
        body_bytes: u32::try_from(input.len()).expect("an input is short"),
        request: RequestId(u64::from(choice)),
    };
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    (header, input)
}

type Decode<M> = fn(&Header, &[u8]) -> Result<M, FrameError>;

fn check<M: Message + PartialEq + Debug>(
    header: &Header,
    body: &[u8],
    decode: Decode<M>,
) -> Verdict {
    let of = |body: &[u8]| {
        let body_bytes = u32::try_from(body.len()).expect("an input is short");
        let header = Header {
            body_bytes,
            ..*header
        };
        decode(&header, body)
    };
    let message = match of(body) {
        Ok(message) => message,
        Err(error) => {
            if let FrameError::OutOfPlace(kind) = error {
                assert_eq!(kind, header.kind);
            }
            return assert_says(&error);
        }
    };
    assert_eq!(message.kind(), header.kind);
    let encoded = frame::encode(header.request, 0, &message).expect("no longer than it was");
    let again = Header::decode(&encoded).expect("our own header");
    assert_eq!((again.kind, again.request), (header.kind, header.request));
    let canonical = &encoded[Header::BYTES..];
    assert_eq!(decode(&again, canonical).as_ref(), Ok(&message));
    let mut body_again = Vec::new();
    message.encode_body(&mut body_again);
    assert_eq!(body_again, canonical, "one message has one encoding");

    // A body is one value and all of it.
    let longer = [canonical, &[0]].concat();
    assert!(of(&longer).is_err(), "a byte too many");
    assert!(of(&canonical[..canonical.len() - 1]).is_err(), "cut short");
    let wrong = Header {
        body_bytes: header.body_bytes + 1,
        ..*header
    };
    assert!(
        decode(&wrong, body).is_err(),
        "not the length that was said"
    );
    Verdict::Accepted
}

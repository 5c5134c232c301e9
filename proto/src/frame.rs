//! Frames: the fixed header, and how a message becomes bytes.
//!
//! ```text
//! offset  size  field
//!      0     4  magic            "MRM" and 0x01
//!      4     2  kind             little endian; replies have the top bit set
//!      6     1  fds              descriptors that travel with this frame
//!      7     1  flags            zero
//!      8     4  body length      bytes, at most FRAME_BODY_BYTES_MAX
//!     12     4  reserved         zero
//!     16     8  request id       little endian
//! ```
//!
//! ```
//! use mrm_proto::frame::{Header, Kind};
//! use mrm_proto::ids::RequestId;
//! let header = Header { kind: Kind::Open, fds: 0, body_bytes: 12, request: RequestId(1) };
//! assert_eq!(Header::decode(&header.encode())?, header);
//! # Ok::<(), mrm_proto::frame::FrameError>(())
//! ```

use crate::ids::RequestId;
use crate::limits::{FDS_PER_FRAME_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use crate::name::NameError;
use minicbor::{Decode, Encode};

/// First four bytes of every frame. The last is the version of the framing itself.
pub const MAGIC: [u8; 4] = [b'M', b'R', b'M', 1];

/// What a frame is. Requests have the top bit clear, replies have it set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// First frame of a client.
    ClientHello = 0x0001,
    /// Open a registered model by name.
    Open = 0x0010,
    /// Open a model whose files the client passes as descriptors.
    OpenFiles = 0x0011,
    /// Give a lease back.
    Close = 0x0012,
    /// Give up a pending open.
    Cancel = 0x0013,
    /// Take up leases of the last daemon again.
    Resume = 0x0014,
    /// List models.
    List = 0x0020,
    /// Describe one model.
    Stat = 0x0021,
    /// In which order tensors of an open model were used.
    Touched = 0x0022,
    /// What was said of a model that is being filled was read.
    Heard = 0x0023,
    /// A model will be opened soon.
    Hint = 0x0024,
    /// First frame of the daemon.
    ServerHello = 0x8001,
    /// An open succeeded.
    Opened = 0x8010,
    /// A lease was given back.
    Closed = 0x8012,
    /// A cancel was handled.
    Cancelled = 0x8013,
    /// How far a pending open has come.
    Progress = 0x8014,
    /// Allocations of an open that do not fit into its `Opened`.
    Handed = 0x8015,
    /// A lease was taken away.
    Revoked = 0x8016,
    /// Leases were taken up again.
    Resumed = 0x8017,
    /// More of a model that is still being filled is there.
    Ready = 0x8018,
    /// Several opens succeeded.
    OpenedMany = 0x8019,
    /// One page of models.
    Listed = 0x8020,
    /// One model.
    Stated = 0x8021,
    /// What was said to come was noted.
    Hinted = 0x8024,
    /// A request failed, or the session ends.
    Error = 0xffff,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 25] = [
        Self::ClientHello,
        Self::Open,
        Self::OpenFiles,
        Self::Close,
        Self::Cancel,
        Self::Resume,
        Self::List,
        Self::Stat,
        Self::Touched,
        Self::Heard,
        Self::Hint,
        Self::ServerHello,
        Self::Opened,
        Self::Closed,
        Self::Cancelled,
        Self::Progress,
        Self::Handed,
        Self::Revoked,
        Self::Resumed,
        Self::Ready,
        Self::OpenedMany,
        Self::Listed,
        Self::Stated,
        Self::Hinted,
        Self::Error,
    ];

    fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u16 == code)
    }
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the body is.
    pub kind: Kind,
    /// Descriptors that travel with the frame.
    pub fds: u8,
    /// Length of the body.
    pub body_bytes: u32,
    /// Which request this is, or answers.
    pub request: RequestId,
}

/// Why bytes are not a frame, or a body not a message. The session that sent them ends, but for
/// [`FrameError::Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header, or a body shorter than the header said.
    #[error("frame is truncated: {actual_bytes} of {expected_bytes} bytes")]
    Truncated {
        /// What the header asks for.
        expected_bytes: usize,
        /// What was there.
        actual_bytes: usize,
    },
    /// Not our protocol.
    #[error("frame does not begin with the magic bytes \"MRM\\x01\"")]
    Magic,
    /// Body length over the bound.
    #[error("frame body of {0} bytes is over the limit of {FRAME_BODY_BYTES_MAX}")]
    TooLong(u32),
    /// A kind that this version does not know.
    #[error("unknown frame kind 0x{0:04x}")]
    UnknownKind(u16),
    /// A known kind where it may not stand: a request from the daemon, a second hello.
    #[error("frame of kind {0:?} is out of place")]
    OutOfPlace(Kind),
    /// Flags or reserved bytes that are not zero.
    #[error("reserved bits are set")]
    Reserved,
    /// More descriptors than the kernel passes.
    #[error("{0} descriptors are over the limit of {FDS_PER_FRAME_MAX}")]
    TooManyFds(u8),
    /// A name in the body breaks the rules. The frame is whole: the session may go on.
    #[error("bad name in {kind:?}: {why}")]
    Name {
        /// The frame's kind.
        kind: Kind,
        /// Which rule.
        why: NameError,
    },
    /// The body is not the CBOR map that its kind asks for, or bytes follow it.
    #[error("malformed body of {kind:?}: {reason}")]
    Body {
        /// The frame's kind.
        kind: Kind,
        /// What the decoder said.
        reason: String,
    },
}

impl Header {
    /// Size of an encoded header.
    pub const BYTES: usize = FRAME_HEADER_BYTES;

    /// The header as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[6] = self.fds;
        out[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.request.0.to_le_bytes());
        out
    }

    /// Reads and checks a header from the front of `bytes`.
    ///
    /// # Errors
    /// See [`FrameError`]; the connection cannot be resynchronised after one.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let Some(bytes) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Err(FrameError::Truncated {
                expected_bytes: FRAME_HEADER_BYTES,
                actual_bytes: bytes.len(),
            });
        };
        if bytes[0..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        let code = u16::from_le_bytes([bytes[4], bytes[5]]);
        let kind = Kind::from_code(code).ok_or(FrameError::UnknownKind(code))?;
        if bytes[7] != 0 || bytes[12..16] != [0; 4] {
            return Err(FrameError::Reserved);
        }
        if usize::from(bytes[6]) > FDS_PER_FRAME_MAX {
            return Err(FrameError::TooManyFds(bytes[6]));
        }
        let body_bytes = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if body_bytes as usize > FRAME_BODY_BYTES_MAX {
            return Err(FrameError::TooLong(body_bytes));
        }
        let mut request = [0; 8];
        request.copy_from_slice(&bytes[16..24]);
        let request = RequestId(u64::from_le_bytes(request));
        Ok(Self {
            kind,
            fds: bytes[6],
            body_bytes,
            request,
        })
    }
}

/// Something that is the body of a frame.
pub trait Message {
    /// The kind that its frame carries.
    fn kind(&self) -> Kind;

    /// Appends the body, one CBOR map, to `out`.
    fn encode_body(&self, out: &mut Vec<u8>);
}

/// A whole frame as bytes. `fds` is the number of descriptors that will travel with it.
///
/// # Errors
/// [`FrameError::TooLong`] when the body is over the bound: the caller put too much into it.
pub fn encode(request: RequestId, fds: u8, message: &impl Message) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + 104);
    encode_into(&mut out, request, fds, message)?;
    Ok(out)
}

/// As [`encode`], appending to `out`, which is left as it was on an error.
///
/// # Errors
/// As [`encode`].
pub fn encode_into(
    out: &mut Vec<u8>,
    request: RequestId,
    fds: u8,
    message: &impl Message,
) -> Result<(), FrameError> {
    let start = out.len();
    out.resize(start + FRAME_HEADER_BYTES, 0);
    message.encode_body(out);
    let body = out.len() - start - FRAME_HEADER_BYTES;
    if body > FRAME_BODY_BYTES_MAX {
        out.truncate(start);
        return Err(FrameError::TooLong(u32::try_from(body).unwrap_or(u32::MAX)));
    }
    let body_bytes = u32::try_from(body).unwrap_or(u32::MAX);
    let header = Header {
        kind: message.kind(),
        fds,
        body_bytes,
        request,
    };
    out[start..start + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    Ok(())
}

pub(crate) fn encode_cbor<T: Encode<()>>(value: &T, out: &mut Vec<u8>) {
    let infallible: Result<(), minicbor::encode::Error<std::convert::Infallible>> =
        minicbor::encode(value, out);
    debug_assert!(infallible.is_ok(), "writing CBOR to memory cannot fail");
}

pub(crate) fn decode_cbor<'b, T: Decode<'b, ()>>(
    header: &Header,
    body: &'b [u8],
) -> Result<T, FrameError> {
    if body.len() != header.body_bytes as usize {
        return Err(FrameError::Truncated {
            expected_bytes: header.body_bytes as usize,
            actual_bytes: body.len(),
        });
    }
    let fail = |reason: String| FrameError::Body {
        kind: header.kind,
        reason,
    };
    let mut decoder = minicbor::Decoder::new(body);
    let value = decoder
        .decode()
        .map_err(|e: minicbor::decode::Error| match name_error(&e) {
            Some(why) => FrameError::Name {
                kind: header.kind,
                why,
            },
            None => fail(e.to_string()),
        })?;
    match body.len() - decoder.position() {
        0 => Ok(value),
        n => Err(fail(format!("{n} bytes follow the message"))),
    }
}

fn name_error(error: &minicbor::decode::Error) -> Option<NameError> {
    std::error::Error::source(error)?.downcast_ref().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [u8; FRAME_HEADER_BYTES] {
        Header {
            kind: Kind::Stat,
            fds: 0,
            body_bytes: 3,
            request: RequestId(9),
        }
        .encode()
    }

    #[test]
    fn every_kind_has_its_own_code() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind as u16), Some(kind));
        }
    }

    #[test]
    fn each_broken_header_has_its_own_error() {
        let broken = |at: usize, value: u8| {
            let mut bytes = sample();
            bytes[at] = value;
            Header::decode(&bytes)
        };
        assert_eq!(broken(3, 2), Err(FrameError::Magic));
        assert_eq!(broken(5, 0x7f), Err(FrameError::UnknownKind(0x7f21)));
        assert_eq!(broken(6, 254), Err(FrameError::TooManyFds(254)));
        assert_eq!(broken(7, 1), Err(FrameError::Reserved));
        assert_eq!(broken(13, 1), Err(FrameError::Reserved));
        assert_eq!(broken(11, 1), Err(FrameError::TooLong(0x0100_0003)));
        assert_eq!(
            Header::decode(&sample()[..20]),
            Err(FrameError::Truncated {
                expected_bytes: 24,
                actual_bytes: 20
            })
        );
    }
}

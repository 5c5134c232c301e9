//! The first frame each way.
//!
//! The client names the range of protocol versions that it speaks; the daemon picks the newest
//! that both know, or refuses with an error that names both ranges.
//!
//! ```
//! use mrm_proto::hello::ClientHello;
//! let hello = ClientHello::new("example");
//! assert_eq!(hello.pick_version(), Some(1));
//! ```

use crate::frame::{FrameError, Header, Kind, Message, decode_cbor, encode_cbor};
use crate::ids::InstanceId;
use crate::limits::{CLIENT_NAME_BYTES_MAX, VERSION_MAX, VERSION_MIN};
use minicbor::{Decode, Encode};

/// What a client says first.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ClientHello {
    /// Oldest protocol version that the client speaks.
    #[n(0)]
    pub version_min: u16,
    /// Newest protocol version that the client speaks.
    #[n(1)]
    pub version_max: u16,
    /// Bit set of [`features`] that the client understands.
    #[n(2)]
    pub features: u64,
    /// What the client calls itself, for the operator's eyes. Not trusted, may be empty.
    #[n(3)]
    pub client: String,
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServerHello {
    /// The version that both speak from now on.
    #[n(0)]
    pub version: u16,
    /// Bit set of [`features`] in force: those that both sides know.
    #[n(1)]
    pub features: u64,
    /// This run of the daemon.
    #[n(2)]
    pub instance: InstanceId,
    /// The daemon's release, for people.
    #[n(3)]
    pub daemon: String,
    /// Bounds that the client should keep to.
    #[n(4)]
    pub limits: ServerLimits,
}

/// Bounds that the daemon enforces on this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ServerLimits {
    /// Largest frame body.
    #[n(0)]
    pub frame_body_bytes_max: u32,
    /// Most requests awaiting their reply.
    #[n(1)]
    pub requests_in_flight_max: u32,
    /// Most leases of this session.
    #[n(2)]
    pub leases_max: u32,
    /// Longest wait that an open may ask for.
    #[n(3)]
    pub wait_ms_max: u64,
}

/// Feature bits.
pub mod features {
    /// Progress frames for pending opens.
    pub const PROGRESS: u64 = 1;
    /// Weights in device memory: opens may name devices, and [`Handed`](crate::reply::Handed) and
    /// [`Revoked`](crate::reply::Revoked) frames may come.
    pub const DEVICE: u64 = 1 << 1;
    /// Leases of the last daemon can be taken up again.
    pub const RESUME: u64 = 1 << 2;
    /// Opens may wait for the layout alone; [`Ready`](crate::reply::Ready) and
    /// [`Revoked`](crate::reply::Revoked) frames may come, and
    /// [`Touched`](crate::request::Touched) may be sent.
    pub const EARLY: u64 = 1 << 3;
    /// [`Revoked`](crate::reply::Revoked) frames may come for any lease, with the code `damaged`.
    pub const DAMAGE: u64 = 1 << 4;
    /// Grants of opens that came together may come together, as
    /// [`OpenedMany`](crate::reply::OpenedMany).
    pub const MANY: u64 = 1 << 6;
    /// [`Hint`](crate::request::Hint) may be sent.
    pub const HINT: u64 = 1 << 7;
    /// Opens on devices may say what is to stay free there.
    pub const RESERVE: u64 = 1 << 8;
    /// Opens may name the version whose tensor table the client has.
    pub const KNOWN: u64 = 1 << 9;
    /// Every feature of this build.
    pub const ALL: u64 =
        PROGRESS | DEVICE | RESUME | EARLY | DAMAGE | MANY | HINT | RESERVE | KNOWN;
}

impl ClientHello {
    /// The hello of this build, from a client that calls itself `client` (cut to the bound).
    #[must_use]
    pub fn new(client: &str) -> Self {
        let mut end = client.len().min(CLIENT_NAME_BYTES_MAX);
        while !client.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            features: features::ALL,
            client: client[..end].to_owned(),
        }
    }

    /// The newest version that both this build and the sender speak.
    #[must_use]
    pub fn pick_version(&self) -> Option<u16> {
        let version = self.version_max.min(VERSION_MAX);
        (version >= self.version_min.max(VERSION_MIN)).then_some(version)
    }

    /// Reads the body of a frame whose header was `header`.
    ///
    /// # Errors
    /// When the frame is another kind, or its body is malformed.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, FrameError> {
        if header.kind == Kind::ClientHello {
            decode_cbor(header, body)
        } else {
            Err(FrameError::OutOfPlace(header.kind))
        }
    }
}

impl ServerHello {
    /// Reads the body of a frame whose header was `header`.
    ///
    /// # Errors
    /// When the frame is another kind, or its body is malformed.
    pub fn decode(header: &Header, body: &[u8]) -> Result<Self, FrameError> {
        if header.kind == Kind::ServerHello {
            decode_cbor(header, body)
        } else {
            Err(FrameError::OutOfPlace(header.kind))
        }
    }
}

impl Message for ClientHello {
    fn kind(&self) -> Kind {
        Kind::ClientHello
    }
    fn encode_body(&self, out: &mut Vec<u8>) {
        encode_cbor(self, out);
    }
}

impl Message for ServerHello {
    fn kind(&self) -> Kind {
        Kind::ServerHello
    }
    fn encode_body(&self, out: &mut Vec<u8>) {
        encode_cbor(self, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disjoint_version_ranges_have_no_common_version() {
        let newer = ClientHello {
            version_min: 2,
            version_max: 9,
            ..ClientHello::new("x")
        };
        assert_eq!(newer.pick_version(), None);
        let wide = ClientHello {
            version_min: 0,
            version_max: 9,
            ..ClientHello::new("x")
        };
        assert_eq!(wide.pick_version(), Some(VERSION_MAX));
        let inverted = ClientHello {
            version_min: 5,
            version_max: 0,
            ..ClientHello::new("x")
        };
        assert_eq!(inverted.pick_version(), None);
    }

    #[test]
    fn a_long_client_name_is_cut_at_a_character() {
        let hello = ClientHello::new(&"é".repeat(200));
        assert_eq!(hello.client.len(), CLIENT_NAME_BYTES_MAX);
    }
}

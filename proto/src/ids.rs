//! Identifiers that travel on the wire.
//!
//! ```
//! use mrm_proto::ids::RequestId;
//! assert!(RequestId::NO_REPLY.wants_no_reply());
//! ```

use minicbor::{Decode, Encode};

macro_rules! wire_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

wire_id!(
    /// Chosen by the client, unique among its requests that await a reply.
    RequestId
);
wire_id!(
    /// One granted open. Unique for the life of a session.
    LeaseId
);
wire_id!(
    /// One immutable version of a model. Unique for the life of a daemon process; the identity
    /// that outlives it is the digest.
    VersionId
);
wire_id!(
    /// One run of the daemon: random, so that a client notices a restart.
    InstanceId
);

impl RequestId {
    /// Says that no reply is wanted. Only `Close` and `Cancel` may carry it.
    pub const NO_REPLY: Self = Self(0);

    /// Whether this is [`RequestId::NO_REPLY`].
    #[must_use]
    pub const fn wants_no_reply(self) -> bool {
        self.0 == 0
    }
}

/// The name of a device that every process agrees on: the 16 bytes of the driver's UUID, never an
/// ordinal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct DeviceUuid(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

impl std::fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GPU")?;
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 0 | 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// BLAKE3 digest (32 bytes) of a segment's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Digest(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Digest({self})")
    }
}

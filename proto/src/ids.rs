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
/// ordinal. Reads and writes as `nvidia-smi -L` has it.
///
/// ```
/// use mrm_proto::ids::{DeviceUuid, UuidError};
/// let uuid: DeviceUuid = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab".parse()?;
/// assert_eq!(uuid.0[0], 0x5a);
/// # Ok::<(), UuidError>(())
/// ```
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

/// Why a text is not the UUID of a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UuidError {
    /// It names a slice.
    #[error("{0} is a MIG slice: name a whole device, its UUID is in `nvidia-smi -L`")]
    Mig(String),
    /// It is none.
    #[error("{0:?} is not the UUID of a device: it reads GPU-, then 32 hexadecimal digits")]
    Malformed(String),
}

impl std::str::FromStr for DeviceUuid {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        if text.starts_with("MIG-") {
            return Err(UuidError::Mig(text.to_owned()));
        }
        let malformed = || UuidError::Malformed(text.to_owned());
        let digits: Vec<u32> = text
            .strip_prefix("GPU-")
            .unwrap_or(text)
            .chars()
            .filter(|digit| *digit != '-')
            .map(|digit| digit.to_digit(16).ok_or_else(malformed))
            .collect::<Result<_, _>>()?;
        if digits.len() != 32 {
            return Err(malformed());
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair
                .iter()
                .fold(0, |byte, digit| byte << 4 | (*digit & 15) as u8);
        }
        Ok(Self(bytes))
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

//! What an entry is, in words that the next daemon can trust or refuse.
//!
//! A description is a memfd with every seal set, so that it can be neither changed nor truncated
//! under a reader. Format 1, numbers little endian:
//!
//! ```text
//!  0   8  magic "MRMKEPT\n"       12   4  length of the CBOR that follows the header
//!  8   4  format (1)              16  32  BLAKE3 of bytes 0 to 16 and of the CBOR
//! 48   .  CBOR of a `Description`
//! ```
//!
//! Nothing in it is trusted: the seals, the length, the checksum and the format are checked before
//! anything is decoded, what is decoded is bounded, and bytes left over are an error.
//!
//! ```
//! use mrm_daemon::keeper::describe::{Description, Instance};
//! use mrm_proto::ids::InstanceId;
//!
//! let instance = Instance { instance: InstanceId(7), release: "0.1.0".into(), counters: vec![42] };
//! let description = Description::Instance(instance);
//! let memfd = description.seal()?;
//! assert_eq!(Description::read(&memfd)?, description);
//! let mut bytes = description.encode()?;
//! bytes[60] ^= 1;
//! assert!(Description::decode(&bytes).unwrap_err().to_string().contains("checksum"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::source::Identity;
use minicbor::{Decode, Encode};
use mrm_proto::ids::{DeviceUuid, Digest, InstanceId, VersionId};
use mrm_proto::layout::Granularity;

mod codec;
pub use codec::DescribeError;
pub(super) use codec::SEALS;

/// Largest description.
pub const DESCRIPTION_BYTES_MAX: usize = 1 << 20;
/// Longest path, as the kernel's.
pub const PATH_BYTES_MAX: usize = 4096;
/// Most sources that share one segment.
pub const SOURCES_PER_SEGMENT_MAX: usize = 4096;
/// Most versions that share one image, beside the first.
pub const IMAGE_OTHERS_MAX: usize = 16;
/// Most counters of an instance.
pub const COUNTERS_MAX: usize = 16;
/// Longest name of a release.
pub const RELEASE_BYTES_MAX: usize = 128;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Description {
    /// Bytes in host memory: one sealed memfd.
    #[n(0)]
    Segment(#[n(0)] Segment),
    /// Bytes on a device: one exported allocation each.
    #[n(1)]
    Image(#[n(0)] Image),
    /// What a model stood for: no descriptor.
    #[n(2)]
    Version(#[n(0)] Version),
    /// A listening socket.
    #[n(3)]
    Listener(#[n(0)] Listener),
    /// The daemon that wrote it: no descriptor.
    #[n(4)]
    Instance(#[n(0)] Instance),
}

/// A sealed memfd with the bytes of a file, or with a tensor table.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Segment {
    /// Of its bytes; `None` while it is not hashed yet.
    #[n(0)]
    pub digest: Option<Digest>,
    /// Its length.
    #[n(1)]
    pub bytes: u64,
    /// What its tier is charged for it.
    #[n(2)]
    pub charge_bytes: u64,
    /// What is in it.
    #[n(3)]
    pub kind: SegmentKind,
    /// Which states of files it stands for, at least one.
    #[n(4)]
    pub sources: Vec<SourceRef>,
    /// How long loading it took.
    #[n(5)]
    pub load_us: u64,
}

/// What is in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum SegmentKind {
    /// A tensor table.
    #[n(0)]
    Table,
    /// A file's bytes.
    #[n(1)]
    File,
}

/// One state of one file, or one tensor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum SourceRef {
    /// A file.
    #[n(0)]
    File(#[n(0)] FileState),
    /// A table, by the digest of its bytes.
    #[n(1)]
    Table(#[n(0)] Digest),
}

/// As [`Identity`]: device, inode, length and times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct FileState {
    /// The device of the filesystem.
    #[n(0)]
    pub dev: u64,
    /// The inode.
    #[n(1)]
    pub ino: u64,
    /// The length.
    #[n(2)]
    pub bytes: u64,
    /// When the content changed last, since the epoch.
    #[cbor(n(3), with = "time_ns")]
    pub mtime_ns: i128,
    /// When content or inode changed last, since the epoch.
    #[cbor(n(4), with = "time_ns")]
    pub ctime_ns: i128,
}

/// A version's copy on a device, in exported allocations. Only those whose descriptors keep them
/// alive: legacy handles keep nothing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Image {
    /// Where.
    #[n(0)]
    pub device: DeviceUuid,
    /// How its allocations are shared.
    #[n(1)]
    pub mechanism: ImageMechanism,
    /// How its tensors are put together.
    #[n(2)]
    pub granularity: Granularity,
    /// The length of each allocation, in the order of the descriptors.
    #[n(3)]
    pub allocations_bytes: Vec<u64>,
    /// Of its content.
    #[n(4)]
    pub digest: Digest,
    /// Of the tensor table by which it is laid out.
    #[n(5)]
    pub table: Digest,
    /// What its device is charged for it.
    #[n(6)]
    pub charge_bytes: u64,
    /// The files whose tensors it holds, in the table's order.
    #[n(7)]
    pub files: Vec<SourceRef>,
    /// The user for whom alone it is.
    #[n(8)]
    pub owner: Option<u32>,
    /// What else it stands for, where files of one content were one image.
    #[n(9)]
    pub others: Option<Vec<ImageOf>>,
}

/// What an image is made of.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ImageOf {
    /// The tensor table.
    #[n(0)]
    pub table: Digest,
    /// The files, in its order.
    #[n(1)]
    pub files: Vec<SourceRef>,
}

impl Image {
    /// Whether it stands for these files, laid out by this table.
    #[must_use]
    pub fn is_of(&self, table: Digest, files: &[SourceRef]) -> bool {
        let mut others = self.others.iter().flatten();
        (self.table == table && self.files == files)
            || others.any(|other| other.table == table && other.files == files)
    }
}

/// How allocations are shared so that a descriptor keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ImageMechanism {
    /// Virtual memory management, exported as descriptors.
    #[n(0)]
    Vmm,
}

/// What a model stood for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Version {
    /// What clients know it by.
    #[n(0)]
    pub version: VersionId,
    /// The name for people.
    #[n(1)]
    pub label: String,
    /// Whether a client passed its files.
    #[n(2)]
    pub foreign: bool,
    /// What kind of files it is made of: `ModelKind` of the tensor table, as its number there.
    #[n(3)]
    pub kind: u16,
    /// How many tensors it has.
    #[n(4)]
    pub tensors: u64,
    /// The table first, then each file.
    #[n(5)]
    pub parts: Vec<VersionPart>,
    /// Where its files are, where the daemon found them itself.
    #[n(6)]
    pub path: Option<String>,
    /// Leases when this was written: somebody may be about to connect again.
    #[n(7)]
    pub leases: u64,
    /// Whether the operator pinned it.
    #[n(8)]
    pub pinned: bool,
    /// The user for whom alone its images are.
    #[n(9)]
    pub owner: Option<u32>,
    /// The users who passed its files.
    #[n(10)]
    pub passed_by: Option<Vec<u32>>,
}

/// One segment's worth of a version.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct VersionPart {
    /// Where its bytes are from.
    #[n(0)]
    pub source: SourceRef,
    /// The file's name in the model.
    #[n(1)]
    pub name: String,
    /// Its length.
    #[n(2)]
    pub bytes: u64,
}

/// A listening socket that the daemon bound. What a service manager bound, it keeps itself.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Listener {
    /// For whom.
    #[n(0)]
    pub which: Which,
    /// Where it is bound.
    #[n(1)]
    pub path: String,
    /// Device of the file at `path`.
    #[n(2)]
    pub dev: u64,
    /// Inode of the file at `path`: another file there is another's socket.
    #[n(3)]
    pub ino: u64,
}

/// Whose socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Which {
    /// The clients'.
    #[n(0)]
    Client,
    /// The status server's.
    #[n(1)]
    Status,
}

/// The daemon that wrote it: what clients know of it stays unique only if the next one goes on from
/// there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Instance {
    /// Its run.
    #[n(0)]
    pub instance: InstanceId,
    /// Its release.
    #[n(1)]
    pub release: String,
    /// The next of each kind of id, in an order that the daemon defines.
    #[n(2)]
    pub counters: Vec<u64>,
}

impl From<Identity> for FileState {
    fn from(identity: Identity) -> Self {
        let Identity {
            dev,
            ino,
            bytes,
            mtime_ns,
            ctime_ns,
        } = identity;
        Self {
            dev,
            ino,
            bytes,
            mtime_ns,
            ctime_ns,
        }
    }
}

impl From<FileState> for Identity {
    fn from(state: FileState) -> Self {
        let FileState {
            dev,
            ino,
            bytes,
            mtime_ns,
            ctime_ns,
        } = state;
        Self {
            dev,
            ino,
            bytes,
            mtime_ns,
            ctime_ns,
        }
    }
}

impl Description {
    /// How many descriptors follow the description.
    #[must_use]
    pub const fn fds(&self) -> usize {
        match self {
            Self::Segment(_) | Self::Listener(_) => 1,
            Self::Image(image) => image.allocations_bytes.len(),
            Self::Version(_) | Self::Instance(_) => 0,
        }
    }

    /// What it is called in messages.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Segment(_) => "segment",
            Self::Image(_) => "image",
            Self::Version(_) => "version",
            Self::Listener(_) => "listener",
            Self::Instance(_) => "instance",
        }
    }
}

/// Nanoseconds, which CBOR has no integer for: 16 bytes, little endian.
mod time_ns {
    use minicbor::encode::Write;
    use minicbor::{Decoder, Encoder};

    type DecodeError = minicbor::decode::Error;
    type EncodeError<E> = minicbor::encode::Error<E>;

    pub(super) fn encode<C, W: Write>(
        ns: &i128,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.bytes(&ns.to_le_bytes())?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<i128, DecodeError> {
        let bytes = d.bytes()?.try_into();
        bytes
            .map(i128::from_le_bytes)
            .map_err(|_| DecodeError::message("a time has 16 bytes"))
    }
}

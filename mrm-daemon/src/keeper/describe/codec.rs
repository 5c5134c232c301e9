//! Descriptions in sealed memory, and what of them is believed.

use super::{
    COUNTERS_MAX, DESCRIPTION_BYTES_MAX, Description, IMAGE_OTHERS_MAX, ImageOf, PATH_BYTES_MAX,
    RELEASE_BYTES_MAX, SOURCES_PER_SEGMENT_MAX, VersionPart,
};
use mrm_proto::limits::{
    ALLOCATIONS_PER_MODEL_MAX, FILE_NAME_BYTES_MAX, MODEL_NAME_BYTES_MAX, SEGMENTS_PER_MODEL_MAX,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Every seal that a memfd for good has.
pub(in super::super) const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

const MAGIC: [u8; 8] = *b"MRMKEPT\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 48;
/// Where the checksum begins; it is of all else.
const CHECKSUM_AT: usize = 16;
/// Shown in `/proc/<pid>/maps`.
const NAME: &str = "mrm-kept";

/// Why a description cannot be used, or not be made.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// The system refused.
    #[error("its memory cannot be used ({step}): {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody could change it.
    #[error("its description is not sealed (seals {0:?})")]
    NotSealed(SealFlags),
    /// It is too short or too long.
    #[error(
        "its description has {0} bytes; at least {HEADER_BYTES} and at most {DESCRIPTION_BYTES_MAX} are possible"
    )]
    Size(u64),
    /// It is something else.
    #[error("its description does not begin as one")]
    Magic,
    /// It is from another release.
    #[error("its description has format {0}, and this daemon reads {FORMAT}")]
    Format(u32),
    /// It was damaged or tampered with.
    #[error("the checksum of its description is wrong")]
    Checksum,
    /// The checksum is right and the content is not.
    #[error("its description cannot be decoded: {0}")]
    Cbor(String),
    /// It breaks a bound.
    #[error("its description has {what} out of bounds")]
    Bounds {
        /// Which.
        what: &'static str,
    },
}

impl Description {
    /// Its bytes, header and all.
    ///
    /// # Errors
    /// When it breaks a bound, so that nobody would read it.
    pub fn encode(&self) -> Result<Vec<u8>, DescribeError> {
        self.check_bounds()?;
        let mut bytes = vec![0; HEADER_BYTES];
        let infallible: Result<(), minicbor::encode::Error<std::convert::Infallible>> =
            minicbor::encode(self, &mut bytes);
        infallible.map_err(|error| DescribeError::Cbor(error.to_string()))?;
        let body = (bytes.len() - HEADER_BYTES) as u64;
        let length = match u32::try_from(body) {
            Ok(length) if bytes.len() <= DESCRIPTION_BYTES_MAX => length,
            Ok(_) | Err(_) => return Err(DescribeError::Size(bytes.len() as u64)),
        };
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum);
        Ok(bytes)
    }

    /// Reads what [`encode`](Self::encode) wrote, from bytes of anybody.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DescribeError> {
        if !(HEADER_BYTES..=DESCRIPTION_BYTES_MAX).contains(&bytes.len()) {
            return Err(DescribeError::Size(bytes.len() as u64));
        }
        if bytes[..8] != MAGIC {
            return Err(DescribeError::Magic);
        }
        let format = word(bytes, 8);
        if format != FORMAT {
            return Err(DescribeError::Format(format));
        }
        if checksum(bytes) != bytes[CHECKSUM_AT..HEADER_BYTES] {
            return Err(DescribeError::Checksum);
        }
        let body = &bytes[HEADER_BYTES..];
        if word(bytes, 12) as usize != body.len() {
            return Err(DescribeError::Size(bytes.len() as u64));
        }
        let mut decoder = minicbor::Decoder::new(body);
        let description: Self = decoder
            .decode()
            .map_err(|error| DescribeError::Cbor(error.to_string()))?;
        if decoder.position() != body.len() {
            return Err(DescribeError::Cbor("bytes are left over".into()));
        }
        description.check_bounds()?;
        Ok(description)
    }

    /// A sealed memfd with its bytes.
    ///
    /// # Errors
    /// When the system gives no memory, or it breaks a bound.
    pub fn seal(&self) -> Result<OwnedFd, DescribeError> {
        sealed(&self.encode()?)
    }

    /// Reads a description that came back, after checking that nobody can change it.
    ///
    /// # Errors
    /// When it is no sealed memfd, or not a description.
    pub fn read(memfd: &impl AsFd) -> Result<Self, DescribeError> {
        let seals = fcntl_get_seals(memfd).map_err(at("reading the seals"))?;
        if !seals.contains(SEALS) {
            return Err(DescribeError::NotSealed(seals));
        }
        let stat = fstat(memfd).map_err(at("fstat"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        let length = match usize::try_from(size) {
            Ok(length) if length <= DESCRIPTION_BYTES_MAX => length,
            Ok(_) | Err(_) => return Err(DescribeError::Size(size)),
        };
        let mut bytes = vec![0; length];
        let mut done = 0;
        while done < length {
            let at_byte = done as u64;
            let read =
                rustix::io::retry_on_intr(|| rustix::io::pread(memfd, &mut bytes[done..], at_byte));
            match read.map_err(at("reading"))? {
                0 => return Err(DescribeError::Size(at_byte)),
                n => done += n,
            }
        }
        Self::decode(&bytes)
    }

    fn check_bounds(&self) -> Result<(), DescribeError> {
        let bound = |what, holds: bool| match holds {
            true => Ok(()),
            false => Err(DescribeError::Bounds { what }),
        };
        match self {
            Self::Segment(it) => {
                let sources = 1..=SOURCES_PER_SEGMENT_MAX;
                bound("sources", sources.contains(&it.sources.len()))?;
                bound("length", it.bytes > 0 && it.bytes <= it.charge_bytes)
            }
            Self::Image(it) => {
                let allocations = 1..=ALLOCATIONS_PER_MODEL_MAX;
                let sum = it.allocations_bytes.iter().try_fold(0_u64, |sum, bytes| {
                    sum.checked_add(*bytes).filter(|_| *bytes > 0)
                });
                bound(
                    "allocations",
                    allocations.contains(&it.allocations_bytes.len()),
                )?;
                bound("files", it.files.len() <= SEGMENTS_PER_MODEL_MAX)?;
                let others = it.others.as_deref().unwrap_or_default();
                let files = |other: &ImageOf| other.files.len() <= SEGMENTS_PER_MODEL_MAX;
                bound("others", others.len() <= IMAGE_OTHERS_MAX)?;
                bound("files of others", others.iter().all(files))?;
                bound("length", sum.is_some_and(|sum| sum <= it.charge_bytes))
            }
            Self::Version(it) => {
                let parts = 1..=SEGMENTS_PER_MODEL_MAX + 1;
                let named = |part: &VersionPart| part.name.len() <= FILE_NAME_BYTES_MAX;
                let path = it.path.as_ref().map_or(0, String::len);
                bound("label", it.label.len() <= MODEL_NAME_BYTES_MAX)?;
                bound("parts", parts.contains(&it.parts.len()))?;
                bound("name of a part", it.parts.iter().all(named))?;
                bound("path", path <= PATH_BYTES_MAX)
            }
            Self::Listener(it) => bound("path", (1..=PATH_BYTES_MAX).contains(&it.path.len())),
            Self::Instance(it) => {
                bound("release", it.release.len() <= RELEASE_BYTES_MAX)?;
                bound("counters", it.counters.len() <= COUNTERS_MAX)
            }
        }
    }
}

/// A memfd with `bytes`, which nobody can change.
fn sealed(bytes: &[u8]) -> Result<OwnedFd, DescribeError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3. Reported where segments are made.
        Err(Errno::INVAL) => memfd_create(NAME, flags),
        made => made,
    }
    .map_err(at("memfd_create"))?;
    let mut done = 0;
    while done < bytes.len() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&memfd, &bytes[done..]));
        done += written.map_err(at("writing"))?;
    }
    fcntl_add_seals(&memfd, SEALS).map_err(at("sealing"))?;
    Ok(memfd)
}

fn at(step: &'static str) -> impl FnOnce(Errno) -> DescribeError {
    move |errno| DescribeError::Io {
        step,
        source: errno.into(),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn checksum(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(&bytes[HEADER_BYTES..]);
    *hasher.finalize().as_bytes()
}

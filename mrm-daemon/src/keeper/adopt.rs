//! What comes back from a keeper is checked before anybody relies on it.
//!
//! A segment's digest is not computed here: that takes a second for a few GB, and nobody could
//! have changed a sealed memfd. [`integrity`](crate::integrity) does it, in the background.
//!
//! ```
//! use mrm_daemon::keeper::{Key, RawEntry, adopt, describe::{Description, Instance}};
//! use mrm_proto::ids::InstanceId;
//!
//! let instance = Instance { instance: InstanceId(7), release: "0.1.0".into(), counters: vec![] };
//! let fds = vec![Description::Instance(instance).seal()?, std::fs::File::open("/dev/null")?.into()];
//! let raw = RawEntry { key: Key::new("instance")?, fds };
//! let refused = adopt::check(raw).unwrap_err();
//! assert_eq!(refused.to_string(), "instance: it came with 1 descriptors, and describes 0");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use super::describe::{DescribeError, Description, Listener, SEALS, Segment};
use super::{Key, RawEntry};
use rustix::fs::{fcntl_get_seals, fstat};
use rustix::net::{AddressFamily, SocketType, sockopt};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;

/// An entry that checked out.
#[derive(Debug)]
pub struct Adopted {
    /// Its name.
    pub key: Key,
    /// What it is.
    pub description: Description,
    /// What is described, in that order.
    pub fds: Vec<OwnedFd>,
}

/// Everything that a keeper had.
#[derive(Debug, Default)]
pub struct Adoption {
    /// What checked out, by key.
    pub entries: Vec<Adopted>,
    /// What did not. The keeper is told to let go of it; its memory goes with that.
    pub dropped: Vec<Dropped>,
}

/// An entry that was not adopted.
#[derive(Debug)]
pub struct Dropped {
    /// Its name.
    pub key: Key,
    /// Why.
    pub reason: Refusal,
}

/// Why an entry is not what it says.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The description.
    #[error(transparent)]
    Description(#[from] DescribeError),
    /// It has none.
    #[error("it came without a description")]
    NoDescription,
    /// Descriptors are missing, or too many.
    #[error("it came with {found} descriptors, and describes {expected}")]
    Fds {
        /// Without the description.
        found: usize,
        /// As described.
        expected: usize,
    },
    /// They did not fit into this process.
    #[error("its descriptors did not fit: raise LimitNOFILE")]
    Lost,
    /// A segment that somebody could change.
    #[error("its memory is not sealed ({0})")]
    NotSealed(String),
    /// A segment of another length.
    #[error(
        "its memory has {found} bytes, {allocated} of them allocated; {expected} are described, {charge} charged"
    )]
    Size {
        /// The length.
        found: u64,
        /// What it takes of the machine's memory.
        allocated: u64,
        /// As described.
        expected: u64,
        /// As described.
        charge: u64,
    },
    /// A listener that is none, or no longer at its path.
    #[error("its socket cannot be used: {0}")]
    Listener(String),
    /// The system refused to tell.
    #[error("it cannot be looked at: {0}")]
    Io(#[from] io::Error),
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason)
    }
}

impl std::error::Error for Dropped {}

/// Looks whether `raw` is what its description says, as far as that takes no time.
///
/// Exported device memory is not looked into: whoever imports it is told by the driver.
///
/// # Errors
/// When it is not. Its descriptors are closed then.
pub fn check(raw: RawEntry) -> Result<Adopted, Dropped> {
    let RawEntry { key, fds } = raw;
    match describe(fds) {
        Ok((description, fds)) => Ok(Adopted {
            key,
            description,
            fds,
        }),
        Err(reason) => Err(Dropped { key, reason }),
    }
}

fn describe(fds: Vec<OwnedFd>) -> Result<(Description, Vec<OwnedFd>), Refusal> {
    let mut fds = fds.into_iter();
    let first = fds.next().ok_or(Refusal::NoDescription)?;
    let description = Description::read(&first)?;
    let rest: Vec<OwnedFd> = fds.collect();
    let (found, expected) = (rest.len(), description.fds());
    if found != expected {
        return Err(Refusal::Fds { found, expected });
    }
    match (&description, rest.first()) {
        (Description::Segment(segment), Some(memfd)) => check_segment(segment, memfd.as_fd())?,
        (Description::Listener(listener), Some(socket)) => check_listener(listener, socket)?,
        (
            Description::Segment(_)
            | Description::Listener(_)
            | Description::Image(_)
            | Description::Version(_)
            | Description::Instance(_),
            _,
        ) => {}
    }
    Ok((description, rest))
}

fn check_segment(segment: &Segment, memfd: BorrowedFd<'_>) -> Result<(), Refusal> {
    // Only a memfd has seals.
    let seals = fcntl_get_seals(memfd)
        .map_err(|error| Refusal::NotSealed(io::Error::from(error).to_string()))?;
    if !seals.contains(SEALS) {
        return Err(Refusal::NotSealed(format!("its seals are {seals:?}")));
    }
    let stat = fstat(memfd).map_err(io::Error::from)?;
    let found = u64::try_from(stat.st_size).unwrap_or(0);
    // The unit of `st_blocks` is 512 bytes on every filesystem.
    let allocated = u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(512);
    // A hole would be filled when somebody reads it, with memory that nobody was charged for.
    if found != segment.bytes || allocated < found || allocated > segment.charge_bytes {
        return Err(Refusal::Size {
            found,
            allocated,
            expected: segment.bytes,
            charge: segment.charge_bytes,
        });
    }
    Ok(())
}

fn check_listener(listener: &Listener, socket: &OwnedFd) -> Result<(), Refusal> {
    let listens = sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(socket) == Ok(true);
    if !listens {
        return Err(Refusal::Listener("it does not listen".into()));
    }
    let address = UnixListener::from(socket.try_clone()?).local_addr()?;
    let bound = address.as_pathname().map(|path| path.display().to_string());
    if bound.as_deref() != Some(&listener.path) {
        return Err(Refusal::Listener(format!("it is bound to {bound:?}")));
    }
    match std::fs::symlink_metadata(&listener.path) {
        Ok(there)
            if there.file_type().is_socket()
                && (there.dev(), there.ino()) == (listener.dev, listener.ino) =>
        {
            Ok(())
        }
        Ok(_) => Err(Refusal::Listener("another file is at its path".into())),
        Err(error) => Err(Refusal::Listener(format!("at its path: {error}"))),
    }
}

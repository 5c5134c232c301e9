//! The fd store of systemd: descriptors that it keeps for the next start of the service.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// What the names of our descriptors begin with, so that they are not taken for sockets of units.
pub const STORED_PREFIX: &str = "mrm_";

/// The way to the fd store of the service manager (`sd_pid_notify_with_fds(3)`).
///
/// What is stored comes back at the next start: [`Activated::take_stored`](super::Activated).
/// Nothing tells whether a message was obeyed; a full store drops what is sent to it, so
/// [`capacity`](Self::capacity) is for the sender to mind.
///
/// ```
/// use mrm_daemon::runtime::FdStore;
/// // Outside of systemd, or with FileDescriptorStoreMax=0.
/// assert!(FdStore::from_environment()?.is_none());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FdStore {
    manager: UnixDatagram,
    capacity: usize,
}

impl FdStore {
    /// Looks for `NOTIFY_SOCKET` and `FDSTORE`. systemd sets the latter since version 254, where
    /// `FileDescriptorStoreMax=` is over 0; with an older one, set it in the unit to the same
    /// number (`Environment=FDSTORE=4096`).
    ///
    /// # Errors
    /// When the manager's socket cannot be reached.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let capacity = std::env::var("FDSTORE").ok().and_then(|n| n.parse().ok());
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let (Some(capacity @ 1..), Some(socket)) = (capacity, socket) else {
            return Ok(None);
        };
        let address = match socket.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&socket)?,
        };
        let manager = UnixDatagram::unbound()?;
        manager.connect_addr(&address)?;
        manager.set_nonblocking(true)?;
        Ok(Some(Self { manager, capacity }))
    }

    /// A manager at a path, for tests.
    #[cfg(test)]
    pub(crate) fn at(path: &std::path::Path, capacity: usize) -> Self {
        let manager = UnixDatagram::unbound().unwrap();
        manager.connect(path).unwrap();
        manager.set_nonblocking(true).unwrap();
        Self { manager, capacity }
    }

    /// How many descriptors it keeps (`FileDescriptorStoreMax=`).
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Adds `fd` under `name`, beside others of that name. The manager does not watch it: a socket
    /// whose other side ends stays.
    ///
    /// # Errors
    /// `TimedOut` when the manager does not take the message within `timeout`; what the kernel says.
    pub fn store(&self, name: &str, fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        self.send(&message, Some(fd), timeout)
    }

    /// Removes all descriptors of that name.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn remove(&self, name: &str, timeout: Duration) -> io::Result<()> {
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        self.send(&message, None, timeout)
    }

    /// Waits until the manager has handled everything that was sent before.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn barrier(&self, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let (ours, theirs) = io::pipe()?;
        self.send("BARRIER=1\n", Some(theirs.as_fd()), timeout)?;
        // The manager closes its copy when it comes to this message.
        drop(theirs);
        wait(ours.as_fd(), PollFlags::IN, deadline)
    }

    fn send(&self, message: &str, fd: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        loop {
            let slices = [IoSlice::new(message.as_bytes())];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            match sendmsg(&self.manager, &slices, &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    wait(self.manager.as_fd(), PollFlags::OUT, deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits until `fd` is ready or at its end.
fn wait(fd: BorrowedFd<'_>, interest: PollFlags, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(
            &mut [PollFd::from_borrowed_fd(fd, interest)],
            Some(&timeout),
        ) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

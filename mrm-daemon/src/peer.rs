//! Who is at the other end of a connection.
//!
//! ```
//! let (ours, _theirs) = std::os::unix::net::UnixStream::pair()?;
//! let peer = mrm_daemon::peer::Peer::of(&ours)?;
//! assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
//! # Ok::<(), std::io::Error>(())
//! ```

use crate::watched::watch;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Credentials that the kernel recorded when the peer connected (`unix(7)`, `SO_PEERCRED`).
#[derive(Debug)]
pub struct Peer {
    /// Process id in the daemon's namespace; 0 when it has none there.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Readable when the process has exited. `None` when the kernel offers no way to get one.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    /// Asks the kernel about the peer of `socket`.
    ///
    /// The pidfd comes from `SO_PEERPIDFD` (Linux 6.5), which cannot be fooled by a recycled pid;
    /// on older kernels from `pidfd_open`, when the pid is visible here.
    ///
    /// # Errors
    /// When the kernel does not tell the credentials.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let pid = credentials.pid();
        let pidfd = getsockopt(socket, sockopt::PeerPidfd)
            .ok()
            .or_else(|| pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok());
        Ok(Self {
            pid,
            uid: credentials.uid(),
            gid: credentials.gid(),
            pidfd,
        })
    }

    /// Takes the pidfd out, to be polled on the current tokio runtime.
    #[must_use]
    pub fn take_exit(&mut self) -> Option<AsyncFd<OwnedFd>> {
        let pidfd = self.pidfd.take()?;
        watch(pidfd, Interest::READABLE).ok()
    }
}

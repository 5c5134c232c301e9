//! Asking another daemon to make way.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::time::Duration;

/// Sends SIGUSR2 to the daemon `pid`, and returns when it has exited.
pub(super) fn replace(pid: u32, patience: Duration) -> io::Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| io::Error::other("its lock file names no process"))?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    pidfd_send_signal(&process, Signal::USR2)?;
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))?;
    match ended {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it did not end within {} s; stop it", patience.as_secs()),
        )),
        _ => Ok(()),
    }
}

//! Descriptors that clients passed, until it is known what they are.
//!
//! `close(2)` can block for as long as the client likes: a FUSE filesystem is asked to flush, a
//! socket may linger. So an unknown descriptor is never closed by the thread that decides, nor by
//! one that loads: dropping it hands it to threads that do nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;

/// Threads that close. A descriptor whose close hangs keeps one of them.
const CLOSERS: usize = 4;

/// Closes descriptors somewhere else. Cheap to clone; ends with its last clone.
///
/// ```
/// use mrm_daemon::source::{Closer, PassedFd};
/// let closer = Closer::start()?;
/// let fd = PassedFd::new(std::fs::File::open("/dev/null")?.into(), &closer);
/// drop(fd); // returns at once, whatever the descriptor is
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Closer(Sender<OwnedFd>);

/// A descriptor that a client passed.
#[derive(Debug)]
pub struct PassedFd {
    // `None` once it was taken.
    fd: Option<OwnedFd>,
    closer: Closer,
}

impl Closer {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for i in 0..CLOSERS {
            let receiver = Arc::clone(&receiver);
            Builder::new()
                .name(format!("mrm-close-{i}"))
                .spawn(move || close_all(&receiver))?;
        }
        Ok(Self(sender))
    }
}

fn close_all(receiver: &Mutex<Receiver<OwnedFd>>) {
    loop {
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match next {
            Ok(fd) => drop(fd),
            Err(_) => return,
        }
    }
}

impl PassedFd {
    /// Takes charge of `fd`.
    #[must_use]
    pub fn new(fd: OwnedFd, closer: &Closer) -> Self {
        Self {
            fd: Some(fd),
            closer: closer.clone(),
        }
    }

    /// The descriptor, once it is known that closing it cannot hang.
    #[must_use]
    pub fn into_known(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }

    /// The descriptor, to be looked at.
    #[must_use]
    pub fn get(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for PassedFd {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            // Only at the very end are the threads gone, and then so is whom a hang could hurt.
            drop(self.closer.0.send(fd));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_dropped_is_closed_elsewhere() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let closer = Closer::start().unwrap();
        drop(PassedFd::new(theirs.into(), &closer));
        // The end of the stream comes when the other end is closed.
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_known_stays_open() {
        let closer = Closer::start().unwrap();
        let fd = PassedFd::new(std::fs::File::open("/dev/null").unwrap().into(), &closer);
        assert!(fd.get().is_some());
        let known = fd.into_known().unwrap();
        assert!(rustix::fs::fstat(&known).is_ok());
    }
}

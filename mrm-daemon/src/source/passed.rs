//! Descriptors that clients passed, until it is known what they are.
//!
//! `close(2)` can block for as long as the client likes: a FUSE filesystem is asked to flush, a
//! socket may linger. So an unknown descriptor is never closed by the thread that decides, nor by
//! one that loads: dropping it hands it to threads that do nothing else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
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
pub struct Closer {
    sender: Sender<OwnedFd>,
    /// Passed and not yet closed, nor known.
    open: Arc<AtomicUsize>,
    open_max: usize,
}

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
        let open = Arc::new(AtomicUsize::new(0));
        for i in 0..CLOSERS {
            let (receiver, open) = (Arc::clone(&receiver), Arc::clone(&open));
            Builder::new()
                .name(format!("mrm-close-{i}"))
                .spawn(move || close_all(&receiver, &open))?;
        }
        let open_max = usize::MAX;
        Ok(Self {
            sender,
            open,
            open_max,
        })
    }

    /// The same, for at most `open_max` descriptors at a time: clients can pass them faster than
    /// they can be looked at.
    #[must_use]
    pub fn at_most(self, open_max: usize) -> Self {
        Self { open_max, ..self }
    }

    /// Whether there are more than there may be.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.open_max
    }
}

fn close_all(receiver: &Mutex<Receiver<OwnedFd>>, open: &AtomicUsize) {
    loop {
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        match next {
            Ok(fd) => {
                drop(fd);
                open.fetch_sub(1, Ordering::Relaxed);
            }
            Err(_) => return,
        }
    }
}

impl PassedFd {
    /// Takes charge of `fd`.
    #[must_use]
    pub fn new(fd: OwnedFd, closer: &Closer) -> Self {
        closer.open.fetch_add(1, Ordering::Relaxed);
        Self {
            fd: Some(fd),
            closer: closer.clone(),
        }
    }

    /// The descriptor, once it is known that closing it cannot hang.
    #[must_use]
    pub fn into_known(mut self) -> Option<OwnedFd> {
        let fd = self.fd.take()?;
        self.closer.open.fetch_sub(1, Ordering::Relaxed);
        Some(fd)
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
            drop(self.closer.sender.send(fd));
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
    fn what_is_closed_or_known_no_longer_counts() {
        let closer = Closer::start().unwrap().at_most(1);
        let pass = || PassedFd::new(std::fs::File::open("/dev/null").unwrap().into(), &closer);
        let (first, second) = (pass(), pass());
        assert!(closer.is_overrun());
        let known = first.into_known();
        assert!(known.is_some() && !closer.is_overrun());
        let third = pass();
        assert!(closer.is_overrun());
        drop((second, third));
        while closer.open.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
        }
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

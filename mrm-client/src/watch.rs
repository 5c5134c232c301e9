//! A thread that notices the end of a session although nobody asks anything.
//!
//! It sleeps in `poll`, on the socket (for its end only: it reads nothing while the session goes
//! on) and on an eventfd. It also sends what the socket did not take, and closes that are held
//! ([`pace`](crate::pace)), if nobody else comes by. When the session ended and models are held it
//! connects anew, which takes their leases up again, and goes on trying until that succeeds. It ends
//! with the client and the last model. A forked child has no such thread until it opens something
//! itself.

use crate::link::{Link, Now};
use crate::retry::Backoff;
use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Its stack, of which it touches little: what the program's libraries keep per thread also counts.
const STACK_BYTES: usize = 1 << 20;
/// A session that ended sooner than this is not followed by the next at once.
const LASTED: Duration = Duration::from_secs(1);

/// Wakes the thread.
#[derive(Debug)]
pub(crate) struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    pub(crate) fn ring(&self) {
        // It fails when it was rung more often than can be counted, which is often enough.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits until it is rung, or the time is over.
    fn wait(&self, time: Option<Duration>) {
        self.poll(None, time);
    }

    /// Waits until it is rung, there is something about the socket, or the time is over: what that
    /// is.
    fn wait_with(
        &self,
        socket: BorrowedFd<'_>,
        wanted: PollFlags,
        time: Option<Duration>,
    ) -> PollFlags {
        self.poll(Some((socket, wanted)), time)
    }

    fn poll(
        &self,
        socket: Option<(BorrowedFd<'_>, PollFlags)>,
        time: Option<Duration>,
    ) -> PollFlags {
        // No allocation: the thread's first would cost it an arena of its own.
        let (other, wanted) = socket.unwrap_or((self.0.as_fd(), PollFlags::empty()));
        let mut fds = [
            PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(other, wanted),
        ];
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut fds, time.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return PollFlags::empty(),
            Err(_) => {
                // No memory in the kernel: not at once again.
                std::thread::park_timeout(LASTED);
                return PollFlags::empty();
            }
        }
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
        fds[1].revents()
    }
}

/// Starts the thread for `link`.
pub(crate) fn start(link: &Arc<Link>) -> io::Result<Arc<Bell>> {
    let bell = Arc::new(Bell::new()?);
    let (theirs, link) = (Arc::clone(&bell), Arc::downgrade(link));
    // The program's signals are for the program's threads. The mask is inherited.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let started = std::thread::Builder::new()
        .name("mrm-watch".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || run(&link, &theirs));
    before.thread_set_mask()?;
    started.map(|_| bell)
}

fn run(link: &Weak<Link>, bell: &Bell) {
    // Made when it is needed: most threads end without.
    let mut backoff: Option<Backoff> = None;
    // Nothing is kept alive while this sleeps, but for the socket, which the link shuts down.
    while let Some(held) = link.upgrade() {
        match held.now() {
            Now::Live(connection) => {
                drop(held);
                let again = connection.look_after();
                let backlog = connection.has_backlog();
                let out = PollFlags::OUT;
                let wanted = if backlog { out } else { PollFlags::empty() };
                let found = bell.wait_with(connection.socket(), wanted | PollFlags::RDHUP, again);
                if found.contains(out) {
                    connection.flush();
                }
                if (found - out).is_empty() {
                    continue;
                }
                connection.read_out();
                if connection.age() >= LASTED {
                    backoff = None;
                } else {
                    bell.wait(Some(backoff.get_or_insert_with(Backoff::idle).pause()));
                }
            }
            Now::Over { holds: false } => {
                drop(held);
                bell.wait(None);
            }
            Now::Over { holds: true } => {
                let renewed = held.connection().is_ok();
                drop(held);
                if !renewed {
                    bell.wait(Some(backoff.get_or_insert_with(Backoff::idle).pause()));
                }
            }
        }
    }
}

//! Descriptors that clients passed, until what they are of is loaded.
//!
//! `close(2)` can block for as long as the client likes: a FUSE filesystem is asked to flush, a
//! socket may linger. So an unknown descriptor is never closed by the thread that decides, nor by
//! one that loads: dropping it hands it to a thread that closes what its user passed, and nobody
//! else's.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

/// Closes descriptors somewhere else, and counts them. Cheap to clone.
///
/// ```
/// use mrm_daemon::source::{Closer, PassedFd};
/// let closer = Closer::new().of_user(1000);
/// let fd = PassedFd::new(std::fs::File::open("/dev/null")?.into(), &closer);
/// drop(fd); // returns at once, whatever the descriptor is
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Closer {
    users: Arc<Users>,
    user: Arc<User>,
    /// Of all users: passed, and not yet closed nor known.
    unknown: Arc<AtomicUsize>,
    unknown_max: usize,
    /// Of all users: passed, and not yet closed.
    held: Arc<AtomicUsize>,
    held_max: usize,
    /// Of one user, whatever others have.
    always: usize,
}

/// A descriptor that a client passed.
#[derive(Debug)]
pub struct PassedFd {
    // `None` once it was taken.
    fd: Option<OwnedFd>,
    held: Option<Held>,
    closer: Closer,
}

/// Counts a passed descriptor for its user until it is dropped, after the descriptor.
#[derive(Debug)]
pub struct Held {
    user: Arc<User>,
    all: Arc<AtomicUsize>,
}

/// Those who have passed something that is not closed yet.
#[derive(Debug, Default)]
struct Users(Mutex<HashMap<u32, Arc<User>>>);

/// One of them.
#[derive(Debug, Default)]
struct User {
    held: AtomicUsize,
    queue: Mutex<Queue>,
}

/// What is to be closed of one user.
#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(OwnedFd, Option<Held>)>,
    /// Whether a thread is at it.
    closing: bool,
}

impl Default for Closer {
    fn default() -> Self {
        Self::new()
    }
}

impl Closer {
    /// One without bounds, for descriptors of no particular user.
    #[must_use]
    pub fn new() -> Self {
        Self {
            users: Arc::default(),
            user: Arc::default(),
            unknown: Arc::default(),
            unknown_max: usize::MAX,
            held: Arc::default(),
            held_max: usize::MAX,
            always: 0,
        }
    }

    /// The same, for at most `unknown_max` descriptors of which it is not known what they are, and
    /// `held_max` in all: clients can pass them faster than they can be looked at and read. So many
    /// as `always` each user may have, also while another's are still being closed.
    #[must_use]
    pub fn at_most(self, unknown_max: usize, held_max: usize, always: usize) -> Self {
        Self {
            unknown_max,
            held_max,
            always,
            ..self
        }
    }

    /// The same, for what the user `uid` passes. A close that hangs keeps only the user's own
    /// descriptors from being closed.
    #[must_use]
    pub fn of_user(&self, uid: u32) -> Self {
        let mut users = lock(&self.users.0);
        // Whoever has nothing open, and no session, is forgotten.
        users.retain(|_, user| Arc::strong_count(user) > 1);
        let user = Arc::clone(users.entry(uid).or_default());
        Self {
            user,
            ..self.clone()
        }
    }

    /// Whether there are more than there may be: in all, or of this user, who may have as many as
    /// are left for others.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        let left = self
            .held_max
            .saturating_sub(self.held.load(Ordering::Relaxed));
        let own = self.user.held.load(Ordering::Relaxed);
        own > self.always && (own > left || self.unknown.load(Ordering::Relaxed) > self.unknown_max)
    }

    fn close(&self, fd: OwnedFd, held: Option<Held>) {
        let mut queue = lock(&self.user.queue);
        queue.waiting.push((fd, held));
        if queue.closing {
            return;
        }
        let (user, unknown) = (Arc::clone(&self.user), Arc::clone(&self.unknown));
        let thread = Builder::new().name("mrm-close".to_owned());
        // Where the system has no thread left, the next descriptor tries again.
        queue.closing = thread.spawn(move || close_all(&user, &unknown)).is_ok();
    }
}

fn close_all(user: &User, unknown: &AtomicUsize) {
    loop {
        let mut queue = lock(&user.queue);
        if queue.waiting.is_empty() {
            queue.closing = false;
            return;
        }
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for (fd, held) in waiting {
            drop(fd);
            unknown.fetch_sub(1, Ordering::Relaxed);
            drop(held);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    fn count(closer: &Closer) -> Self {
        closer.user.held.fetch_add(1, Ordering::Relaxed);
        closer.held.fetch_add(1, Ordering::Relaxed);
        Self {
            user: Arc::clone(&closer.user),
            all: Arc::clone(&closer.held),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.user.held.fetch_sub(1, Ordering::Relaxed);
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PassedFd {
    /// Takes charge of `fd`.
    #[must_use]
    pub fn new(fd: OwnedFd, closer: &Closer) -> Self {
        closer.unknown.fetch_add(1, Ordering::Relaxed);
        Self {
            fd: Some(fd),
            held: Some(Held::count(closer)),
            closer: closer.clone(),
        }
    }

    /// The descriptor, once it is known that closing it cannot hang, and what counts it until it is
    /// closed.
    #[must_use]
    pub fn into_known(mut self) -> Option<(OwnedFd, Option<Held>)> {
        let fd = self.fd.take()?;
        self.closer.unknown.fetch_sub(1, Ordering::Relaxed);
        Some((fd, self.held.take()))
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
            self.closer.close(fd, self.held.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pass(closer: &Closer) -> PassedFd {
        PassedFd::new(std::fs::File::open("/dev/null").unwrap().into(), closer)
    }

    fn until(what: impl Fn() -> bool) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !what() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_dropped_is_closed_elsewhere() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(PassedFd::new(theirs.into(), &Closer::new()));
        // The end of the stream comes when the other end is closed.
        assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_closed_or_known_no_longer_counts() {
        let closer = Closer::new().at_most(1, usize::MAX, 0);
        let (first, second) = (pass(&closer), pass(&closer));
        assert!(closer.is_overrun());
        let known = first.into_known();
        assert!(known.is_some() && !closer.is_overrun());
        let third = pass(&closer);
        assert!(closer.is_overrun());
        drop((second, third));
        until(|| closer.unknown.load(Ordering::Relaxed) == 0);
        assert_eq!(closer.held.load(Ordering::Relaxed), 1);
        drop(known);
        assert_eq!(closer.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_user_may_have_as_many_as_are_left_for_others() {
        let closer = Closer::new().at_most(usize::MAX, 5, 0);
        let (one, other) = (closer.of_user(1), closer.of_user(2));
        let mut passed = vec![pass(&one), pass(&one)];
        assert!(!one.is_overrun() && !other.is_overrun());
        passed.push(pass(&one));
        assert!(one.is_overrun() && !other.is_overrun());
        // Known or not, another session or not.
        let known = passed.pop().unwrap().into_known();
        assert!(closer.of_user(1).is_overrun());
        passed.push(pass(&other));
        assert!(!other.is_overrun());
        passed.push(pass(&other));
        assert!(other.is_overrun(), "five are held");
        drop((known, passed));
        until(|| closer.held.load(Ordering::Relaxed) == 0);
        assert!(!one.is_overrun() && !other.is_overrun());
    }

    #[test]
    fn what_one_user_has_too_many_of_is_not_anothers_fault() {
        let closer = Closer::new().at_most(3, 4, 2);
        let (one, other) = (closer.of_user(1), closer.of_user(2));
        let taken: Vec<PassedFd> = (0..9).map(|_| pass(&one)).collect();
        assert!(one.is_overrun());
        let mut passed = vec![pass(&other), pass(&other)];
        assert!(!other.is_overrun());
        passed.push(pass(&other));
        assert!(other.is_overrun());
        drop((taken, passed));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let closer = Closer::new();
        for uid in 0..1000 {
            drop(pass(&closer.of_user(uid)));
        }
        let kept = closer.of_user(7);
        until(|| {
            let _ = closer.of_user(8);
            lock(&closer.users.0).len() <= 2
        });
        assert!(lock(&closer.users.0).contains_key(&7));
        drop(kept);
    }

    /// A socket that lingers over what its peer does not read.
    #[test]
    fn a_close_that_hangs_holds_up_only_its_user() {
        let closer = Closer::new();
        let (one, other) = (closer.of_user(1), closer.of_user(2));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingering = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (unread, _) = listener.accept().unwrap();
        let linger = Some(std::time::Duration::from_secs(60));
        rustix::net::sockopt::set_socket_linger(&lingering, linger).unwrap();
        lingering.set_nonblocking(true).unwrap();
        while lingering.write(&[0; 65536]).is_ok() {}
        lingering.set_nonblocking(false).unwrap();
        drop(PassedFd::new(lingering.into(), &one));
        drop(pass(&one));
        for _ in 0..8 {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(PassedFd::new(theirs.into(), &other));
            assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(one.user.held.load(Ordering::Relaxed), 2, "it hangs");
        drop(unread); // A reset ends the close.
        until(|| one.user.held.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn what_is_known_stays_open() {
        let fd = pass(&Closer::new());
        assert!(fd.get().is_some());
        let (known, _held) = fd.into_known().unwrap();
        assert!(rustix::fs::fstat(&known).is_ok());
    }
}

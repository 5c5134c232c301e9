//! Descriptors that the runtime watches, for just what somebody waits for.
//!
//! A socket that is watched for room to write wakes the daemon each time its client reads a reply,
//! and again with each request: on a virtual machine every such wake-up costs as much as a
//! request. So a session is watched for what it reads, and for room only while it wants some.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

/// Watches `fd` for `interest`, from here on, on the current tokio runtime.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one and the same open descriptor for as long as it lives, and
    // `AsyncFd` owns it from here on: the registration never outlives the descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// A socket that is watched for what comes, and for room only while that is wanted.
pub(crate) struct Watched {
    socket: Rc<OwnedFd>,
    /// `None` once it could not be watched: the session ends then.
    watching: Option<AsyncFd<Rc<OwnedFd>>>,
    for_room: bool,
}

impl Watched {
    /// Watches `socket` for what comes.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub(crate) fn new(socket: Rc<OwnedFd>) -> io::Result<Self> {
        let watching = Some(register(&socket, Interest::READABLE)?);
        Ok(Self {
            socket,
            watching,
            for_room: false,
        })
    }

    /// From here on also for room, or not any more.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says. Nothing is waited for from then on.
    pub(crate) fn want_room(&mut self, wanted: bool) -> io::Result<()> {
        if self.for_room != wanted {
            // One descriptor is registered once: the old one goes first.
            self.watching = None;
            let also = Interest::READABLE | Interest::WRITABLE;
            let interest = if wanted { also } else { Interest::READABLE };
            self.watching = Some(register(&self.socket, interest)?);
            self.for_room = wanted;
        }
        Ok(())
    }

    /// Reads with `io` as soon as something has come. `io` says besides whether it took all that was
    /// there: if so, nothing is tried again before the kernel tells of more, which saves a read that
    /// finds nothing with each request.
    ///
    /// # Errors
    /// As [`when`](Self::when).
    pub(crate) async fn read<T>(
        &self,
        mut io: impl FnMut() -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        let Some(watching) = &self.watching else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        loop {
            let mut ready = watching.ready(Interest::READABLE).await?;
            match io() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready_matching(Ready::READABLE);
                }
                Err(error) => return Err(error),
                Ok((read, drained)) => {
                    if drained {
                        // The end of the stream is not cleared by this.
                        ready.clear_ready_matching(Ready::READABLE);
                    }
                    return Ok(read);
                }
            }
        }
    }

    /// Tries `io` whenever there is something of `interest`, until it would not block.
    ///
    /// # Errors
    /// What `io` says, and `NotConnected` once the socket is not watched.
    pub(crate) async fn when<T>(
        &self,
        interest: Interest,
        mut io: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match &self.watching {
            Some(watching) => watching.async_io(interest, |_| io()).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

fn register(socket: &Rc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Rc<OwnedFd>>> {
    // SAFETY: as in `watch`: the `OwnedFd` is shared, never taken out or replaced, and lives at
    // least as long as this share of it, which `AsyncFd` owns.
    Ok(unsafe { AsyncFd::register_with_interest(Rc::clone(socket), interest) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    use std::cell::Cell;
    use std::os::unix::net::UnixStream;

    fn fill(socket: &OwnedFd) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        std::iter::from_fn(|| send(socket, &[0; 4096], flags).ok()).sum()
    }

    #[tokio::test]
    async fn room_is_told_only_while_it_is_wanted() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let socket = Rc::new(OwnedFd::from(ours));
        let mut watched = Watched::new(Rc::clone(&socket)).expect("watches");
        // It can be written, and nobody asked.
        let told = watched.watching.as_ref().expect("watched");
        tokio::select! {
            biased;
            _ = told.ready(Interest::WRITABLE) => panic!("told of room"),
            () = tokio::task::yield_now() => {}
        }
        let sent = fill(&socket);
        watched.want_room(true).expect("watches");
        let reader = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; 1 << 20];
            let mut got = 0;
            while got < sent {
                got += recv(&theirs, &mut buffer, RecvFlags::empty())
                    .expect("reads")
                    .1;
            }
            theirs
        });
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let one = || Ok(send(&socket, &[1], flags)?);
        assert_eq!(
            watched.when(Interest::WRITABLE, one).await.expect("room"),
            1
        );
        let theirs = reader.await.expect("reads");
        watched.want_room(false).expect("watches");
        send(&theirs, &[2], flags).expect("sends");
        let mut buffer = [0; 8];
        let read = || Ok((recv(&socket, &mut buffer, RecvFlags::DONTWAIT)?.1, true));
        assert_eq!(watched.read(read).await.expect("one"), 1);
    }

    #[tokio::test]
    async fn who_took_all_reads_no_more_until_more_comes_or_it_ends() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let socket = Rc::new(OwnedFd::from(ours));
        let watched = Watched::new(Rc::clone(&socket)).expect("watches");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let tried = Cell::new(0);
        let read = |most: usize| {
            let (socket, tried) = (&socket, &tried);
            move || {
                tried.set(tried.get() + 1);
                let mut buffer = [0; 8];
                let got = recv(socket, &mut buffer[..most], RecvFlags::DONTWAIT)?.1;
                Ok((got, got < most))
            }
        };
        for sent in [&[1_u8; 3][..], &[2; 1]] {
            send(&theirs, sent, flags).expect("sends");
            assert_eq!(watched.read(read(8)).await.expect("all"), sent.len());
            let before = tried.get();
            tokio::select! {
                biased;
                _ = watched.read(read(8)) => panic!("there is nothing"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(tried.get(), before);
        }
        // What is left of what one read did not take all of is told again, and so is the end.
        send(&theirs, &[3; 5], flags).expect("sends");
        drop(theirs);
        let mut got = Vec::new();
        while got.last() != Some(&0) {
            got.push(watched.read(read(4)).await.expect("reads"));
        }
        assert_eq!(got, [4, 1, 0]);
    }
}

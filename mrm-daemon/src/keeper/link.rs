//! The daemon's end of the connection to its keeper. Each call waits, but not for ever.

use super::describe::DescribeError;
use super::wire::{self, FDS_PER_PACKET_MAX, Packet, Received, RefusedBy, Verb, WireError};
use super::{Key, RawEntry};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait while the kernel takes no more descriptors in flight: nothing tells when it does.
const IN_FLIGHT_WAIT: Duration = Duration::from_millis(10);

/// A keeper that has been told that this is the daemon.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    number: u64,
    /// How long each packet may take.
    patience: Duration,
    /// What the keeper said that it holds.
    pub(super) entries: usize,
}

/// What came from the keeper.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) entries: Vec<RawEntry>,
    /// Entries of which descriptors were lost on the way: this process may open no more.
    pub(super) lost: Vec<Key>,
}

/// Why the keeper did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it ended the connection")]
    Ended,
    #[error("it did not answer within {0} ms")]
    Silent(u128),
    #[error("another daemon has taken over")]
    Replaced,
    #[error("it refused: {0}")]
    Refused(#[from] RefusedBy),
    #[error("what it says makes no sense: {0}")]
    Broken(WireError),
    #[error(transparent)]
    Describe(#[from] DescribeError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Link {
    /// Connects and says hello; `None` when nobody listens there.
    pub(super) fn connect(path: &Path, patience: Duration) -> Result<Option<Self>, LinkError> {
        let socket = socket()?;
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        // While too many wait to be accepted, this waits with them.
        set_socket_timeout(&socket, Timeout::Send, Some(patience)).map_err(io::Error::from)?;
        match rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)) {
            Ok(()) => {}
            Err(Errno::CONNREFUSED | Errno::NOENT) => return Ok(None),
            Err(Errno::AGAIN) => return Err(LinkError::Silent(patience.as_millis())),
            Err(error) => return Err(LinkError::Io(error.into())),
        }
        let mut link = Self {
            socket,
            number: 0,
            patience,
            entries: 0,
        };
        let number = link.ask(Verb::Hello, None)?;
        let welcome = link.answer(number)?;
        if welcome.verb != Verb::Welcome {
            return Err(LinkError::Broken(WireError::NotOurs));
        }
        link.entries = welcome.first as usize;
        Ok(Some(link))
    }

    /// Keeps `fds` under `key`, the description first.
    pub(super) fn put(&mut self, key: &Key, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.number += 1;
        let number = self.number;
        let count = |n: usize| u32::try_from(n).map_err(|_| LinkError::Broken(WireError::Count));
        for (at, part) in fds.chunks(FDS_PER_PACKET_MAX).enumerate() {
            let packet = Packet {
                verb: Verb::Put,
                number,
                fds: u16::try_from(part.len()).map_err(|_| LinkError::Broken(WireError::Count))?,
                first: count(at * FDS_PER_PACKET_MAX)?,
                total: count(fds.len())?,
                key: Some(key.clone()),
            };
            self.send(&packet, part)?;
        }
        self.done(number)
    }

    /// Lets go of `key`.
    pub(super) fn remove(&mut self, key: &Key) -> Result<(), LinkError> {
        let number = self.ask(Verb::Remove, Some(key.clone()))?;
        self.done(number)
    }

    /// Copies of everything.
    pub(super) fn take_all(&mut self) -> Result<Taken, LinkError> {
        let number = self.ask(Verb::TakeAll, None)?;
        let mut taken = Taken::default();
        let mut open: Option<(RawEntry, usize)> = None;
        loop {
            let (packet, fds, lost) = self.receive()?;
            let broken = || Err(LinkError::Broken(WireError::Count));
            if packet.number != number {
                return broken();
            }
            let Some(key) = packet.key else {
                return match packet.verb == Verb::End && open.is_none() {
                    true => Ok(taken),
                    false => broken(),
                };
            };
            let (mut entry, arrived) = match open.take() {
                Some((entry, arrived)) if entry.key == key && arrived == packet.first as usize => {
                    (entry, arrived)
                }
                None if packet.first == 0 => (
                    RawEntry {
                        key,
                        fds: Vec::new(),
                    },
                    0,
                ),
                Some(_) | None => return broken(),
            };
            entry.fds.extend(fds);
            if lost && taken.lost.last() != Some(&entry.key) {
                taken.lost.push(entry.key.clone());
            }
            match arrived + usize::from(packet.fds) {
                all if all < packet.total as usize => open = Some((entry, all)),
                _ if taken.lost.last() == Some(&entry.key) => {}
                _ => taken.entries.push(entry),
            }
        }
    }

    /// Keys and the number of their descriptors.
    #[cfg(test)]
    pub(super) fn list(&mut self) -> Result<Vec<(Key, usize)>, LinkError> {
        let number = self.ask(Verb::List, None)?;
        let mut list = Vec::new();
        loop {
            let (packet, _, _) = self.receive()?;
            assert_eq!(packet.number, number);
            match packet.key {
                Some(key) => list.push((key, packet.total as usize)),
                None => return Ok(list),
            }
        }
    }

    /// Tells the keeper to let go of everything and to end, and waits until it has.
    pub(super) fn stop(mut self) -> Result<(), LinkError> {
        self.ask(Verb::Stop, None)?;
        match self.receive() {
            Err(LinkError::Ended) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(LinkError::Broken(WireError::NotOurs)),
        }
    }

    /// What came unasked: only the end, or that another daemon took over.
    pub(super) fn unasked(&mut self) -> Result<(), LinkError> {
        match wire::receive(&self.socket) {
            Ok(Received::Nothing) => Ok(()),
            Ok(Received::End) => Err(LinkError::Ended),
            Ok(Received::Packet(packet, ..)) if packet.verb == Verb::Replaced => {
                Err(LinkError::Replaced)
            }
            Ok(Received::Packet(..)) => Err(LinkError::Broken(WireError::NotOurs)),
            Err(error) => Err(LinkError::Broken(error)),
        }
    }

    /// The keeper's process, if the kernel can say: readable when it has exited.
    pub(super) fn process(&self) -> Option<OwnedFd> {
        process_of(&self.socket)
    }

    fn ask(&mut self, verb: Verb, key: Option<Key>) -> Result<u64, LinkError> {
        self.number += 1;
        let mut packet = Packet::bare(verb, self.number);
        packet.key = key;
        self.send(&packet, &[])?;
        Ok(self.number)
    }

    fn done(&mut self, number: u64) -> Result<(), LinkError> {
        let answer = self.answer(number)?;
        if answer.verb == Verb::Refused {
            return Err(LinkError::Refused(RefusedBy::from_wire(answer.first)));
        }
        match answer.verb == Verb::Done {
            true => Ok(()),
            false => Err(LinkError::Broken(WireError::NotOurs)),
        }
    }

    fn answer(&mut self, number: u64) -> Result<Packet, LinkError> {
        let (packet, _, _) = self.receive()?;
        match packet.number == number {
            true => Ok(packet),
            false => Err(LinkError::Broken(WireError::NotOurs)),
        }
    }

    fn send(&self, packet: &Packet, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let error = match wire::send(&self.socket, packet, fds) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Some(Errno::TOOMANYREFS) if Instant::now() < deadline => {
                    let soon = Instant::now() + IN_FLIGHT_WAIT;
                    // Its end is noticed at once; else this is only a pause.
                    let _ = self.wait(PollFlags::empty(), soon);
                }
                // What it said before it ended matters more than that it did.
                Some(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(match wire::receive(&self.socket) {
                        Ok(Received::Packet(last, ..)) if last.verb == Verb::Replaced => {
                            LinkError::Replaced
                        }
                        _ => LinkError::Ended,
                    });
                }
                _ => return Err(LinkError::Io(error)),
            }
        }
    }

    fn receive(&mut self) -> Result<(Packet, Vec<OwnedFd>, bool), LinkError> {
        let deadline = Instant::now() + self.patience;
        loop {
            match wire::receive(&self.socket).map_err(LinkError::Broken)? {
                Received::End => return Err(LinkError::Ended),
                Received::Nothing => self.wait(PollFlags::IN, deadline)?,
                Received::Packet(packet, ..) if packet.verb == Verb::Replaced => {
                    return Err(LinkError::Replaced);
                }
                Received::Packet(packet, fds, lost) => return Ok((packet, fds, lost)),
            }
        }
    }

    fn wait(&self, interest: PollFlags, deadline: Instant) -> Result<(), LinkError> {
        match wait(self.socket.as_fd(), interest, deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LinkError::Silent(self.patience.as_millis())),
            Err(error) => Err(LinkError::Io(error)),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The process that listens at `path`, if the kernel can say.
pub(super) fn process_at(path: &Path) -> Option<OwnedFd> {
    let socket = socket().ok()?;
    rustix::io::ioctl_fionbio(&socket, true).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    process_of(&socket)
}

fn process_of(socket: &OwnedFd) -> Option<OwnedFd> {
    let ours = i32::try_from(std::process::id()).ok();
    // Until the keeper has begun, the socket's credentials are those of who bound it.
    let peer = getsockopt(socket, sockopt::PeerCredentials).ok()?;
    if Some(peer.pid()) == ours {
        return None;
    }
    getsockopt(socket, sockopt::PeerPidfd).ok()
}

/// A socket of the kind that keepers speak.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // Nothing but connecting ever waits on it: see `wire`.
    let flags = SocketFlags::CLOEXEC;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socket_with(family, kind, flags, None)?)
}

/// Waits until `fd` is ready or at its end; `false` when the deadline came first.
pub(super) fn wait(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(fd, what)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

//! The daemon's connection, as its keeper sees it.

use super::super::Key;
use super::super::hold::{Holdings, Staged, Staging};
use super::super::wire::{self, Packet, Received, Verb, WireError};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connection that has said hello.
pub(super) struct Connection {
    socket: OwnedFd,
    staging: Option<Staging>,
    outgoing: Option<Outgoing>,
    /// The kernel takes no more descriptors in flight for now.
    stuck: bool,
}

/// What the daemon has yet to be told. Nothing more is read from it meanwhile.
enum Outgoing {
    Answer(Packet),
    Walk(Walk),
}

/// A tour through the entries. They stay as they are meanwhile: only the daemon changes them.
struct Walk {
    number: u64,
    with_fds: bool,
    /// The last entry that was sent in whole.
    done: Option<Key>,
    /// Descriptors of the next one that were sent.
    sent: usize,
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
pub(super) enum Turn {
    More,
    Wait,
    Gone,
    Stop,
}

impl Connection {
    /// A new daemon, which is yet to be welcomed.
    pub(super) const fn new(socket: OwnedFd, welcome: Packet) -> Self {
        Self {
            socket,
            staging: None,
            outgoing: Some(Outgoing::Answer(welcome)),
            stuck: false,
        }
    }

    /// Whether to try again soon, because nothing tells when.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// What to wait for.
    pub(super) fn poll(&self) -> PollFd<'_> {
        let interest = match &self.outgoing {
            // Only its end is of interest, which poll always reports.
            Some(_) if self.stuck => PollFlags::empty(),
            Some(_) => PollFlags::OUT,
            None => PollFlags::IN,
        };
        PollFd::new(&self.socket, interest)
    }

    /// Sends one packet, or else reads and handles one.
    pub(super) fn turn(&mut self, holdings: &mut Holdings) -> Result<Turn, WireError> {
        match self.outgoing.take() {
            Some(Outgoing::Answer(packet)) => {
                let sent = wire::send(&self.socket, &packet, &[]);
                self.after_sending(sent, Outgoing::Answer(packet), None)
            }
            Some(Outgoing::Walk(walk)) => self.walk(walk, holdings),
            None => match wire::receive(&self.socket)? {
                Received::End => Ok(Turn::Gone),
                Received::Nothing => Ok(Turn::Wait),
                Received::Packet(packet, fds, lost) => self.handle(&packet, fds, lost, holdings),
            },
        }
    }

    fn handle(
        &mut self,
        packet: &Packet,
        fds: Vec<OwnedFd>,
        lost: bool,
        holdings: &mut Holdings,
    ) -> Result<Turn, WireError> {
        let mut answer = Packet::bare(Verb::Done, packet.number);
        match packet.verb {
            Verb::Put => match holdings.stage(&mut self.staging, packet, fds, lost) {
                Staged::Partly => return Ok(Turn::More),
                Staged::Whole(Ok(())) => {}
                Staged::Whole(Err(reason)) => {
                    answer.verb = Verb::Refused;
                    answer.first = reason.into();
                }
                Staged::OutOfOrder => return Err(WireError::Count),
            },
            Verb::Remove => packet.key.iter().for_each(|key| holdings.remove(key)),
            Verb::List | Verb::TakeAll => {
                self.outgoing = Some(Outgoing::Walk(Walk {
                    number: packet.number,
                    with_fds: packet.verb == Verb::TakeAll,
                    done: None,
                    sent: 0,
                }));
                return Ok(Turn::More);
            }
            Verb::Stop => return Ok(Turn::Stop),
            Verb::Hello
            | Verb::Welcome
            | Verb::Done
            | Verb::Refused
            | Verb::Item
            | Verb::End
            | Verb::Replaced => return Err(WireError::NotOurs),
        }
        self.outgoing = Some(Outgoing::Answer(answer));
        Ok(Turn::More)
    }

    /// Sends the next packet of a tour.
    fn walk(&mut self, mut walk: Walk, holdings: &Holdings) -> Result<Turn, WireError> {
        let Some((key, all)) = holdings.after(walk.done.as_ref()) else {
            self.outgoing = Some(Outgoing::Answer(Packet::bare(Verb::End, walk.number)));
            return Ok(Turn::More);
        };
        let part = match walk.with_fds {
            true => holdings.part(key, walk.sent),
            false => &[],
        };
        let count = |n: usize| u32::try_from(n).map_err(|_| WireError::Count);
        let packet = Packet {
            verb: Verb::Item,
            number: walk.number,
            fds: u16::try_from(part.len()).map_err(|_| WireError::Count)?,
            first: count(walk.sent)?,
            total: count(all.len())?,
            key: Some(key.clone()),
        };
        let borrowed: Vec<BorrowedFd<'_>> = part.iter().map(AsFd::as_fd).collect();
        let sent = wire::send(&self.socket, &packet, &borrowed);
        let before = Walk {
            done: walk.done.clone(),
            ..walk
        };
        walk.sent += part.len();
        if !walk.with_fds || walk.sent >= all.len() {
            walk.done = Some(key.clone());
            walk.sent = 0;
        }
        self.after_sending(sent, Outgoing::Walk(before), Some(Outgoing::Walk(walk)))
    }

    /// `again` is what to send if that was not possible now, `next` what comes after it.
    fn after_sending(
        &mut self,
        sent: io::Result<()>,
        again: Outgoing,
        next: Option<Outgoing>,
    ) -> Result<Turn, WireError> {
        self.stuck = false;
        let error = match sent {
            Ok(()) => {
                self.outgoing = next;
                return Ok(Turn::More);
            }
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {}
            Some(Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => self.stuck = true,
            Some(Errno::PIPE | Errno::CONNRESET) => return Ok(Turn::Gone),
            _ => return Err(WireError::Io(error)),
        }
        self.outgoing = Some(again);
        Ok(Turn::Wait)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

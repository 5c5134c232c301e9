//! What arrives: bytes and descriptors, cut into frames.
//!
//! Descriptors travel with the first byte of the frame that announces them, and the kernel ends
//! a read where a set of descriptors ends. So a set belongs to the frame that begins within the
//! bytes of the read that brought it, and each set is kept with that range of the stream until
//! its frame is whole. Anything else is a broken peer.

use crate::error::SessionError;
use mrm_proto::frame::Header;
use mrm_proto::limits::FDS_PER_FRAME_MAX;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Size of the buffer of a quiet connection; it grows to the frame in hand.
const QUIET_BYTES: usize = 4096;

/// Bytes and descriptors that arrived and were not taken yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    /// The part of `buffer` that holds bytes not taken yet.
    held: Range<usize>,
    /// Position in the stream of the first byte held.
    position: u64,
    sets: VecDeque<FdSet>,
}

#[derive(Debug)]
struct FdSet {
    /// Range of the stream that the read which brought these delivered.
    read: Range<u64>,
    fds: Vec<OwnedFd>,
}

/// One frame, with what came with it.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) header: Header,
    pub(crate) body: &'a [u8],
    pub(crate) fds: Vec<OwnedFd>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let buffer = vec![0; QUIET_BYTES];
        Self {
            buffer,
            held: 0..0,
            position: 0,
            sets: VecDeque::new(),
        }
    }

    /// Reads what is there, without blocking; whether there was anything.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<bool, SessionError> {
        self.receive_with(socket, RecvFlags::DONTWAIT)
    }

    /// As [`receive`](Self::receive), but blocks for as long as the socket is set to, or until a
    /// signal comes.
    pub(crate) fn await_some(&mut self, socket: BorrowedFd<'_>) -> Result<bool, SessionError> {
        self.receive_with(socket, RecvFlags::empty())
    }

    fn receive_with(
        &mut self,
        socket: BorrowedFd<'_>,
        flags: RecvFlags,
    ) -> Result<bool, SessionError> {
        match self.fill(socket, flags) {
            Ok(0) => Err(SessionError::Disconnected),
            Ok(_) => Ok(true),
            Err(e) if is_for_later(&e) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(SessionError::Disconnected),
            Err(e) => Err(SessionError::Io(Arc::new(e))),
        }
    }

    /// Reads once; the number of bytes, 0 at the end of the stream.
    fn fill(&mut self, socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<usize> {
        self.make_room();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut self.buffer[self.held.end..])];
        let flags = RecvFlags::CMSG_CLOEXEC | flags;
        let got = recvmsg(socket, &mut slices, &mut ancillary, flags)?;
        let from = self.position + self.held.len() as u64;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                let read = from..from + got.bytes as u64;
                self.sets.push_back(FdSet {
                    read,
                    fds: fds.collect(),
                });
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::other(
                "descriptors were lost on arrival: this process is at its limit of open files \
                 (`ulimit -n`)",
            ));
        }
        self.held.end += got.bytes;
        Ok(got.bytes)
    }

    /// The next frame, if it is whole.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, SessionError> {
        if self.held.len() < Header::BYTES {
            return Ok(None);
        }
        let header = Header::decode(&self.buffer[self.held.clone()])?;
        let total = Header::BYTES + header.body_bytes as usize;
        if self.held.len() < total {
            return Ok(None);
        }
        let fds = self.fds_of(&header)?;
        let start = self.held.start;
        self.held.start += total;
        self.position += total as u64;
        Ok(Some(Frame {
            header,
            body: &self.buffer[start + Header::BYTES..start + total],
            fds,
        }))
    }

    /// The set of the frame at the front.
    fn fds_of(&mut self, header: &Header) -> Result<Vec<OwnedFd>, SessionError> {
        let announced = usize::from(header.fds);
        let at = self.position;
        let fds = match self.sets.front() {
            // Brought by a read that this frame begins in. A frame without descriptors may
            // precede, in one read, the frame that they belong to.
            Some(set) if set.read.contains(&at) && announced > 0 => self.sets.pop_front(),
            Some(set) if set.read.end <= at => {
                let strays = set.fds.len();
                return Err(SessionError::OutOfPlace(format!(
                    "{strays} descriptors of no frame"
                )));
            }
            Some(_) | None => None,
        };
        let fds = fds.map(|set| set.fds).unwrap_or_default();
        if fds.len() != announced {
            let arrived = fds.len();
            return Err(SessionError::OutOfPlace(format!(
                "a frame announced {announced} descriptors and {arrived} came"
            )));
        }
        Ok(fds)
    }

    /// Makes room behind what is held: for the rest of the frame in hand if it is known.
    fn make_room(&mut self) {
        if self.held.is_empty() {
            self.held = 0..0;
        } else if self.held.start > 0 {
            self.buffer.copy_within(self.held.clone(), 0);
            self.held = 0..self.held.len();
        }
        let frame = Header::decode(&self.buffer[self.held.clone()])
            .map_or(Header::BYTES, |header| {
                Header::BYTES + header.body_bytes as usize
            });
        let wanted = frame.max(self.held.len() + 1).max(QUIET_BYTES);
        if self.buffer.len() < wanted || (self.held.is_empty() && self.buffer.len() > wanted) {
            self.buffer.resize(wanted, 0);
            self.buffer.shrink_to_fit();
        }
    }
}

/// Whether nothing came, and reading may go on.
fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mrm_proto::frame::{FrameError, Kind};
    use mrm_proto::ids::RequestId;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn send(socket: &UnixStream, bytes: &[u8], fds: usize) {
        let fds = vec![socket.as_fd(); fds];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let sent = sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    fn frame(request: u64, fds: u8, body: &[u8]) -> Vec<u8> {
        let body_bytes = u32::try_from(body.len()).expect("small");
        let header = Header {
            kind: Kind::Closed,
            fds,
            body_bytes,
            request: RequestId(request),
        };
        [&header.encode()[..], body].concat()
    }

    #[test]
    fn descriptors_stay_with_their_frame_when_reads_are_merged() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send(&theirs, &frame(1, 0, b"x"), 0);
        send(&theirs, &frame(2, 2, b"yy"), 2);
        send(&theirs, &frame(3, 0, b""), 0);
        send(&theirs, &frame(4, 1, b"z"), 1);
        let mut inbox = Inbox::new();
        let mut seen = Vec::new();
        while seen.len() < 4 {
            assert!(
                inbox
                    .fill(ours.as_fd(), RecvFlags::DONTWAIT)
                    .expect("data is there")
                    > 0
            );
            while let Some(frame) = inbox.next().expect("well formed") {
                seen.push((frame.header.request.0, frame.body.to_vec(), frame.fds.len()));
            }
        }
        let wanted = [(1, "x", 0), (2, "yy", 2), (3, "", 0), (4, "z", 1)];
        assert_eq!(
            seen,
            wanted.map(|(id, body, fds)| (id, body.as_bytes().to_vec(), fds))
        );
    }

    #[test]
    fn a_frame_may_come_byte_by_byte() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut inbox = Inbox::new();
        let bytes = frame(9, 3, &[7; 5000]);
        for (i, byte) in bytes.iter().enumerate() {
            assert!(inbox.next().expect("no error").is_none());
            send(&theirs, &[*byte], if i == 0 { 3 } else { 0 });
            assert_eq!(
                inbox
                    .fill(ours.as_fd(), RecvFlags::DONTWAIT)
                    .expect("a byte"),
                1
            );
        }
        let frame = inbox.next().expect("no error").expect("whole");
        assert_eq!((frame.body.len(), frame.fds.len()), (5000, 3));
    }

    #[test]
    fn descriptors_that_were_not_announced_end_the_session() {
        for (announced, sent) in [(2, 1), (1, 2), (1, 0)] {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            send(&theirs, &frame(1, announced, b""), sent);
            let mut inbox = Inbox::new();
            inbox
                .fill(ours.as_fd(), RecvFlags::DONTWAIT)
                .expect("data is there");
            assert!(matches!(inbox.next(), Err(SessionError::OutOfPlace(_))));
        }
        // Not announced at all: noticed at the next frame, when no frame can claim them.
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut inbox = Inbox::new();
        send(&theirs, &frame(1, 0, b""), 2);
        inbox
            .fill(ours.as_fd(), RecvFlags::DONTWAIT)
            .expect("data is there");
        assert!(inbox.next().expect("no error yet").is_some());
        send(&theirs, &frame(2, 0, b""), 0);
        inbox
            .fill(ours.as_fd(), RecvFlags::DONTWAIT)
            .expect("data is there");
        assert!(matches!(inbox.next(), Err(SessionError::OutOfPlace(_))));
    }

    #[test]
    fn what_is_no_frame_ends_the_session() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send(&theirs, &[b'x'; 24], 0);
        let mut inbox = Inbox::new();
        inbox
            .fill(ours.as_fd(), RecvFlags::DONTWAIT)
            .expect("data is there");
        assert!(matches!(
            inbox.next(),
            Err(SessionError::Frame(FrameError::Magic))
        ));
    }
}

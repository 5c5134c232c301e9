//! What is to be sent: in order, whole frames, never blocking.

use crate::error::SessionError;
use crate::pace::Pace;
use mrm_proto::limits::FDS_PER_FRAME_MAX;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Most bytes that may wait for the daemon to read. Beyond that it is taken for hung, and the
/// session is given up, which gives every lease back.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// Held frames that are sent although nothing follows them.
const HELD_BYTES_ENOUGH: usize = 1 << 10;

/// Frames that the socket did not take yet. Empty but for moments, or a daemon that hangs.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queued: VecDeque<Queued>,
    queued_bytes: usize,
    /// Whole frames that go before the next.
    held: Vec<u8>,
    /// What is done with closes.
    pub(crate) pace: Pace,
}

#[derive(Debug)]
struct Queued {
    bytes: Vec<u8>,
    sent: usize,
    /// Travel with the first byte.
    fds: Vec<OwnedFd>,
}

impl Outbox {
    /// Whether something waits for the socket.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Keeps a frame until the next is sent. Says whether that is enough of them.
    pub(crate) fn hold(&mut self, frame: &[u8]) -> bool {
        self.held.extend_from_slice(frame);
        self.held.len() >= HELD_BYTES_ENOUGH
    }

    /// Sends what is held; whether there was anything.
    pub(crate) fn send_held(&mut self, socket: BorrowedFd<'_>) -> Result<bool, SessionError> {
        if self.held.is_empty() {
            return Ok(false);
        }
        let held = std::mem::take(&mut self.held);
        self.send_one(socket, held, &[]).map(|()| true)
    }

    /// Sends what is held and a frame, or queues what the socket does not take now.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        frame: Vec<u8>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        if self.held.is_empty() {
            return self.send_one(socket, frame, fds);
        }
        // Descriptors go with the first byte of their own frame.
        if !fds.is_empty() {
            self.send_held(socket)?;
            return self.send_one(socket, frame, fds);
        }
        let mut together = std::mem::take(&mut self.held);
        together.extend_from_slice(&frame);
        self.send_one(socket, together, fds)
    }

    fn send_one(
        &mut self,
        socket: BorrowedFd<'_>,
        frame: Vec<u8>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        self.flush(socket)?;
        let sent = if self.queued.is_empty() {
            send_some(socket, &frame, fds)?
        } else {
            0
        };
        if sent == frame.len() {
            return Ok(());
        }
        self.queued_bytes += frame.len();
        if self.queued_bytes > QUEUED_BYTES_MAX {
            return Err(SessionError::NotReading(self.queued_bytes));
        }
        let fds = if sent == 0 { fds } else { &[] };
        let fds: io::Result<Vec<_>> = fds.iter().map(BorrowedFd::try_clone_to_owned).collect();
        let fds = fds.map_err(|e| SessionError::Io(Arc::new(e)))?;
        self.queued.push_back(Queued {
            bytes: frame,
            sent,
            fds,
        });
        Ok(())
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&mut self, socket: BorrowedFd<'_>) -> Result<(), SessionError> {
        while let Some(front) = self.queued.front_mut() {
            let fds: Vec<_> = front.fds.iter().map(AsFd::as_fd).collect();
            let sent = send_some(socket, &front.bytes[front.sent..], &fds)?;
            if sent == 0 {
                break;
            }
            front.fds.clear();
            front.sent += sent;
            if front.sent == front.bytes.len() {
                self.queued_bytes -= front.bytes.len();
                self.queued.pop_front();
            }
        }
        Ok(())
    }
}

/// Sends once; how many bytes were taken, 0 when the socket is full.
pub(crate) fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, SessionError> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let slices = [IoSlice::new(bytes)];
    let sent = if fds.is_empty() {
        rustix::io::retry_on_intr(|| {
            sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), flags)
        })
    } else {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(SessionError::OutOfPlace(format!(
                "{} descriptors to send",
                fds.len()
            )));
        }
        rustix::io::retry_on_intr(|| sendmsg(socket, &slices, &mut control, flags))
    };
    match sent {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN) => Ok(0),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(SessionError::Disconnected),
        Err(e) => Err(SessionError::Io(Arc::new(e.into()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Inbox;
    use mrm_proto::frame::{Header, Kind};
    use mrm_proto::ids::RequestId;
    use std::os::unix::net::UnixStream;

    fn frame(request: u64, fds: u8) -> Vec<u8> {
        let header = Header {
            kind: Kind::Closed,
            fds,
            body_bytes: 1000,
            request: RequestId(request),
        };
        [&header.encode()[..], &[0; 1000]].concat()
    }

    #[test]
    fn a_full_socket_queues_and_later_gets_everything_in_order() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut outbox = Outbox::default();
        let mut count = 0u64;
        while count < 10 || outbox.queued.len() < 10 {
            count += 1;
            let fds: &[BorrowedFd<'_>] = if count.is_multiple_of(7) {
                &[ours.as_fd()]
            } else {
                &[]
            };
            let announced = u8::try_from(fds.len()).expect("one");
            outbox
                .send(ours.as_fd(), frame(count, announced), fds)
                .expect("sent or queued");
        }
        let mut inbox = Inbox::new();
        let mut seen = 0;
        while seen < count {
            inbox.receive(theirs.as_fd()).expect("something is there");
            outbox.flush(ours.as_fd()).expect("flushes");
            while let Some(frame) = inbox.next().expect("well formed") {
                seen += 1;
                let fds = usize::from(u64::is_multiple_of(seen, 7));
                assert_eq!((frame.header.request.0, frame.fds.len()), (seen, fds));
            }
        }
        assert!(outbox.is_empty());
        assert_eq!(outbox.queued_bytes, 0);
    }

    #[test]
    fn what_is_held_goes_before_the_next_frame_and_takes_no_descriptor_of_it() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let mut outbox = Outbox::default();
        let socket = ours.as_fd();
        assert!(!outbox.send_held(socket).expect("sends"));
        assert!(outbox.hold(&frame(1, 0)), "a kilobyte is enough");
        outbox.send(socket, frame(2, 0), &[]).expect("sends");
        outbox.hold(&frame(3, 0));
        outbox.send(socket, frame(4, 1), &[socket]).expect("sends");
        outbox.hold(&frame(5, 0));
        assert!(outbox.send_held(socket).expect("sends"));
        let (mut inbox, mut seen) = (Inbox::new(), Vec::new());
        while seen.len() < 5 {
            inbox.receive(theirs.as_fd()).expect("something is there");
            while let Some(frame) = inbox.next().expect("well formed") {
                seen.push((frame.header.request.0, frame.fds.len()));
            }
        }
        assert_eq!(seen, [(1, 0), (2, 0), (3, 0), (4, 1), (5, 0)]);
        assert!(outbox.held.is_empty());
    }

    #[test]
    fn a_daemon_that_never_reads_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let mut outbox = Outbox::default();
        let given_up = (1..10_000).find_map(|i| outbox.send(ours.as_fd(), frame(i, 0), &[]).err());
        assert!(matches!(given_up, Some(SessionError::NotReading(_))));
    }
}

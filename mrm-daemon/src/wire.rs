//! Frames with descriptors over a Unix stream socket, never blocking.
//!
//! Descriptors belong to the first byte of the frame that announces them (`PROTOCOL.md`, section
//! on descriptors). The kernel may hand over, in one read, a frame without descriptors and the
//! next one with; so what arrives is queued and each header takes its share from the front.
//!
//! ```
//! use mrm_daemon::{source::Closer, wire::{FrameReader, ReadStep}};
//! use mrm_proto::{frame, ids::{LeaseId, RequestId}, request::{Close, Request}};
//! use std::io::Write;
//! let (mut client, daemon) = std::os::unix::net::UnixStream::pair()?;
//! let close = Request::Close(Close { lease: LeaseId(1) });
//! client.write_all(&frame::encode(RequestId(7), 0, &close)?)?;
//! let mut reader = FrameReader::new(Closer::new());
//! assert!(reader.fill(&daemon)? > 0);
//! let ReadStep::Frame(header, body, fds) = reader.next()? else { panic!("one whole frame") };
//! assert_eq!((header.request, fds.len()), (RequestId(7), 0));
//! assert_eq!(Request::decode(&header, body)?, close);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::source::{Closer, PassedFd};
use mrm_proto::frame::{FrameError, Header};
use mrm_proto::limits::{FDS_PER_FRAME_MAX, FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Weak;

/// Buffer of an idle session. Grows to the frame in hand and shrinks back.
const READ_BUFFER_BYTES: usize = 4096;
/// Descriptors that may wait for their header: those of the frame in hand, and those of the next,
/// whose first bytes may come in the same read.
const FDS_QUEUED_MAX: usize = 2 * FDS_PER_FRAME_MAX;
/// Replies that may wait for a client to read. More than the requests it may have in flight.
const REPLIES_QUEUED_MAX: usize = 1024;

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Not the descriptors that the frame announced.
    #[error("{announced} descriptors announced, {arrived} arrived")]
    FdCount {
        /// What the header says.
        announced: usize,
        /// What came.
        arrived: usize,
    },
    /// The kernel dropped descriptors, or clients passed more than we hold: we are at our limit of
    /// open files.
    #[error(
        "the daemon has as many descriptors open as it may have: try again later, or raise its \
         LimitNOFILE"
    )]
    FdsLost,
}

/// Collects bytes and descriptors, and cuts them into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    fds: VecDeque<PassedFd>,
    closer: Closer,
    fds_lost: bool,
}

/// What is in the buffer.
#[derive(Debug)]
pub enum ReadStep<'a> {
    /// One whole frame, with the descriptors that it announced.
    Frame(Header, &'a [u8], Vec<PassedFd>),
    /// A part of a frame.
    Partial,
    /// Nothing.
    Empty,
}

impl FrameReader {
    /// An empty reader, which leaves the closing of what nobody takes to `closer`.
    #[must_use]
    pub fn new(closer: Closer) -> Self {
        let buffer = vec![0; READ_BUFFER_BYTES];
        let fds = VecDeque::new();
        Self {
            buffer,
            start: 0,
            end: 0,
            fds,
            closer,
            fds_lost: false,
        }
    }

    /// Reads once from `socket`; returns the number of bytes, 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there, and what the kernel says.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        Ok(self.fill_from(socket)?.0)
    }

    /// As [`fill`](Self::fill); says besides whether that was all that was there, as far as is known.
    pub(crate) fn fill_from(&mut self, socket: impl AsFd) -> io::Result<(usize, bool)> {
        self.make_room();
        let room = self.buffer.len() - self.end;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut slices = [IoSliceMut::new(&mut self.buffer[self.end..])];
        let got = rustix::io::retry_on_intr(|| {
            recvmsg(socket.as_fd(), &mut slices, &mut ancillary, flags)
        })?;
        if got.flags.contains(ReturnFlags::CTRUNC) {
            self.fds_lost = true;
        }
        // A read ends behind descriptors, whatever comes after them.
        let mut drained = got.bytes < room;
        for message in ancillary.drain() {
            drained = false;
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds
                    .extend(fds.map(|fd| PassedFd::new(fd, &self.closer)));
                self.fds_lost |= self.closer.is_overrun();
            }
        }
        self.end += got.bytes;
        Ok((got.bytes, drained))
    }

    /// Whether nothing has come that was not taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.fds.is_empty() && !self.fds_lost
    }

    /// The next frame, if it is whole.
    ///
    /// # Errors
    /// When what arrived is not a frame with its descriptors. The session must end.
    #[expect(clippy::should_implement_trait, reason = "it lends from the reader")]
    pub fn next(&mut self) -> Result<ReadStep<'_>, WireError> {
        if self.fds_lost {
            return Err(WireError::FdsLost);
        }
        let have = self.end - self.start;
        if have == 0 {
            return match self.fds.len() {
                0 => Ok(ReadStep::Empty),
                arrived => Err(WireError::FdCount {
                    announced: 0,
                    arrived,
                }),
            };
        }
        if self.fds.len() > FDS_QUEUED_MAX {
            return Err(WireError::FdCount {
                announced: FDS_QUEUED_MAX,
                arrived: self.fds.len(),
            });
        }
        if have < FRAME_HEADER_BYTES {
            return Ok(ReadStep::Partial);
        }
        let header = Header::decode(&self.buffer[self.start..self.end])?;
        let announced = usize::from(header.fds);
        if self.fds.len() < announced {
            return Err(WireError::FdCount {
                announced,
                arrived: self.fds.len(),
            });
        }
        let whole = FRAME_HEADER_BYTES + header.body_bytes as usize;
        if have < whole {
            self.reserve(whole);
            return Ok(ReadStep::Partial);
        }
        let body = self.start + FRAME_HEADER_BYTES..self.start + whole;
        self.start = body.end;
        let fds = self.fds.drain(..announced).collect();
        Ok(ReadStep::Frame(header, &self.buffer[body], fds))
    }

    /// Whether more has come than the frame at the front.
    #[must_use]
    pub fn holds_several(&self) -> bool {
        let held = &self.buffer[self.start..self.end];
        Header::decode(held)
            .is_ok_and(|header| held.len() > FRAME_HEADER_BYTES + header.body_bytes as usize)
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > READ_BUFFER_BYTES {
                self.buffer = vec![0; READ_BUFFER_BYTES];
            }
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        debug_assert!(self.end < self.buffer.len(), "a whole frame always fits");
    }

    /// Makes the buffer large enough for the frame of `whole` bytes at its start.
    fn reserve(&mut self, whole: usize) {
        debug_assert!(whole <= FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX);
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < whole {
            self.buffer.resize(whole, 0);
        }
    }
}

/// A descriptor that a reply lends, if it is still there when the reply is sent. A reply that
/// nobody reads keeps no memory from being freed.
pub type LentFd = Weak<dyn AsFd + Send + Sync>;

/// One frame on its way out.
pub struct OutFrame {
    /// Header and body.
    pub bytes: Vec<u8>,
    /// What travels with its first byte.
    pub fds: Vec<LentFd>,
}

/// Replies that wait for the client to read. Bounded: see [`FrameWriter::push`].
#[derive(Default)]
pub struct FrameWriter {
    queue: VecDeque<OutFrame>,
    /// Bytes of the first frame that are sent already.
    sent: usize,
    /// Bytes of the frames in the queue.
    queued_bytes: usize,
    /// Bytes that were ever sent.
    sent_bytes: u64,
    /// A buffer to use again.
    spare: Vec<u8>,
}

/// The client does not read its replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{REPLIES_QUEUED_MAX} replies wait to be read")]
pub struct QueueFull;

impl FrameWriter {
    /// An empty buffer for the next frame.
    pub fn buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Appends a frame.
    ///
    /// # Errors
    /// When too many wait already: the session must end.
    pub fn push(&mut self, frame: OutFrame) -> Result<(), QueueFull> {
        if self.queue.len() >= REPLIES_QUEUED_MAX {
            return Err(QueueFull);
        }
        self.queued_bytes += frame.bytes.len();
        self.queue.push_back(frame);
        Ok(())
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.queued_bytes - self.sent
    }

    /// Bytes that were sent, in all.
    #[must_use]
    pub const fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether everything was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends as much as the socket takes.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full, `NotFound` when what a reply lends is gone, and what
    /// the kernel says.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        while let Some(frame) = self.queue.front() {
            let fds: &[LentFd] = if self.sent == 0 { &frame.fds } else { &[] };
            let sent = send_once(socket.as_fd(), &frame.bytes[self.sent..], fds)?;
            self.sent += sent;
            self.sent_bytes += sent as u64;
            if self.sent == frame.bytes.len() {
                self.queued_bytes -= self.sent;
                self.sent = 0;
                if let Some(done) = self.queue.pop_front() {
                    self.spare = done.bytes;
                    self.spare.clear();
                    self.spare.shrink_to(READ_BUFFER_BYTES);
                }
            }
        }
        Ok(())
    }
}

fn send_once(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[LentFd]) -> io::Result<usize> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let slices = [IoSlice::new(bytes)];
    if fds.is_empty() {
        let mut none = SendAncillaryBuffer::default();
        return Ok(rustix::io::retry_on_intr(|| {
            sendmsg(socket, &slices, &mut none, flags)
        })?);
    }
    // Gone is what the client gave back before it was sent.
    let held: Option<Vec<_>> = fds.iter().map(Weak::upgrade).collect();
    let held = held.ok_or(io::ErrorKind::NotFound)?;
    let borrowed: Vec<BorrowedFd<'_>> = held.iter().map(|fd| (**fd).as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors than a frame may carry"));
    }
    Ok(rustix::io::retry_on_intr(|| {
        sendmsg(socket, &slices, &mut ancillary, flags)
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mrm_proto::frame::{self, Kind};
    use mrm_proto::ids::{LeaseId, RequestId};
    use mrm_proto::request::{Close, Request};
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn close_frame(request: u64, fds: u8) -> Vec<u8> {
        let close = Request::Close(Close { lease: LeaseId(3) });
        frame::encode(RequestId(request), fds, &close).expect("a small frame")
    }

    fn send(socket: &UnixStream, bytes: &[u8], fds: usize) {
        let files: Vec<Arc<dyn AsFd + Send + Sync>> = (0..fds)
            .map(|_| Arc::new(std::fs::File::open("/dev/null").expect("opens")) as _)
            .collect();
        let fds: Vec<LentFd> = files.iter().map(Arc::downgrade).collect();
        assert_eq!(
            send_once(socket.as_fd(), bytes, &fds).expect("sends"),
            bytes.len()
        );
    }

    #[test]
    fn descriptors_go_to_the_frame_that_announced_them() {
        let (client, daemon) = UnixStream::pair().expect("a pair");
        send(&client, &close_frame(1, 0), 0);
        send(&client, &close_frame(2, 2), 2);
        send(&client, &close_frame(3, 0), 0);
        let mut reader = FrameReader::new(Closer::new());
        let mut seen = Vec::new();
        while seen.len() < 3 {
            match reader.next().expect("frames") {
                ReadStep::Frame(header, _, fds) => seen.push((header.request.0, fds.len())),
                ReadStep::Partial | ReadStep::Empty => {
                    assert!(reader.fill(&daemon).expect("bytes are there") > 0);
                }
            }
        }
        assert_eq!(seen, [(1, 0), (2, 2), (3, 0)]);
    }

    #[test]
    fn a_frame_may_arrive_byte_by_byte() {
        let (mut client, daemon) = UnixStream::pair().expect("a pair");
        let mut reader = FrameReader::new(Closer::new());
        let bytes = close_frame(9, 0);
        for (i, byte) in bytes.iter().enumerate() {
            assert!(
                !matches!(reader.next().expect("no error"), ReadStep::Frame(..)),
                "at {i}"
            );
            client.write_all(&[*byte]).expect("writes");
            assert_eq!(reader.fill(&daemon).expect("reads"), 1);
        }
        assert!(matches!(reader.next().expect("whole"), ReadStep::Frame(..)));
        assert!(matches!(reader.next().expect("empty"), ReadStep::Empty));
    }

    #[test]
    fn announced_but_missing_and_unannounced_descriptors_end_the_session() {
        let (client, daemon) = UnixStream::pair().expect("a pair");
        send(&client, &close_frame(1, 2), 1);
        let mut reader = FrameReader::new(Closer::new());
        reader.fill(&daemon).expect("reads");
        assert!(matches!(
            reader.next(),
            Err(WireError::FdCount {
                announced: 2,
                arrived: 1
            })
        ));

        let mut reader = FrameReader::new(Closer::new());
        send(&client, &close_frame(1, 0), 1);
        reader.fill(&daemon).expect("reads");
        assert!(matches!(reader.next(), Ok(ReadStep::Frame(..))));
        assert!(matches!(
            reader.next(),
            Err(WireError::FdCount {
                announced: 0,
                arrived: 1
            })
        ));
    }

    #[test]
    fn the_largest_frame_fits_and_the_buffer_shrinks_again() {
        let (mut client, daemon) = UnixStream::pair().expect("a pair");
        let body_bytes = u32::try_from(FRAME_BODY_BYTES_MAX).expect("fits");
        let header = Header {
            kind: Kind::List,
            fds: 0,
            body_bytes,
            request: RequestId(1),
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(FRAME_HEADER_BYTES + FRAME_BODY_BYTES_MAX, 7);
        let writer = std::thread::spawn(move || {
            client.write_all(&bytes).expect("writes");
            client
        });
        let mut reader = FrameReader::new(Closer::new());
        loop {
            match reader.next().expect("no error") {
                ReadStep::Frame(_, body, _) => {
                    assert_eq!(body.len(), FRAME_BODY_BYTES_MAX);
                    break;
                }
                ReadStep::Partial | ReadStep::Empty => match reader.fill(&daemon) {
                    Ok(n) => assert!(n > 0),
                    Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
                },
            }
        }
        drop(writer.join().expect("writer ends"));
        assert_eq!(reader.fill(&daemon).expect("end"), 0);
        assert_eq!(reader.buffer.len(), READ_BUFFER_BYTES);
    }

    #[test]
    fn an_unsent_reply_keeps_nothing_alive() {
        let (_client, daemon) = UnixStream::pair().expect("a pair");
        let lent: Arc<dyn AsFd + Send + Sync> = Arc::new(std::io::stdin());
        let mut writer = FrameWriter::default();
        let frame = OutFrame {
            bytes: vec![0; 8],
            fds: vec![Arc::downgrade(&lent)],
        };
        writer.push(frame).expect("an empty queue");
        assert_eq!((Arc::strong_count(&lent), writer.waiting_bytes()), (1, 8));
        drop(lent);
        let error = writer.flush(&daemon).expect_err("what it lends is gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(writer.sent_bytes(), 0);
    }

    #[test]
    fn a_client_that_never_reads_is_noticed() {
        let (_client, daemon) = UnixStream::pair().expect("a pair");
        let mut writer = FrameWriter::default();
        let mut pushed = 0;
        while writer
            .push(OutFrame {
                bytes: vec![0; 65_536],
                fds: Vec::new(),
            })
            .is_ok()
        {
            let _ = writer.flush(&daemon);
            pushed += 1;
            assert!(pushed < 10_000, "the queue is bounded");
        }
        assert!(!writer.is_empty());
    }
}

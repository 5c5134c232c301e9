//! The daemon's frame reader against a model of it that keeps everything in one buffer.
//!
//! An input is a list of pieces, each of two bytes and a text: how many descriptors travel with
//! its first byte (lowest two bits), whether more is sent before the reader reads (bit 2), whether
//! zeros follow, as many as 512 times the length (bit 3); and how long the text is.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::frame};
//! use mrm_proto::{frame::encode, ids::{LeaseId, RequestId}, request::{Close, Request}};
//! let close = encode(RequestId(1), 0, &Request::Close(Close { lease: LeaseId(1) }))?;
//! let one_piece = [&[0, close.len() as u8], &close[..]].concat();
//! assert_eq!(frame::run(&one_piece), Verdict::Accepted);
//! # Ok::<(), mrm_proto::frame::FrameError>(())
//! ```

use super::take;
use crate::Verdict;
use mrm_daemon::source::Closer;
use mrm_daemon::wire::{FrameReader, ReadStep};
use mrm_proto::frame::Header;
use mrm_proto::limits::FDS_PER_FRAME_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, PipeWriter};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// How many descriptors a piece may carry. The last is few enough for any limit of open files,
/// and some of it is over the reader's own bound.
const FDS: [usize; 4] = [0, 1, 3, 120];
/// Sets of descriptors on their way: they count against the limit of open files.
const SETS_MAX: usize = 32;
/// Descriptors that the reader lets wait.
const FDS_QUEUED_MAX: usize = 2 * FDS_PER_FRAME_MAX;
/// How long closing what was passed may take.
const CLOSED_WITHIN_S: i64 = 20;

static CLOSER: OnceLock<Closer> = OnceLock::new();

/// Sends the pieces and compares each step of the reader with the model's.
pub fn run(mut input: &[u8]) -> Verdict {
    let closer = CLOSER.get_or_init(Closer::new);
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (ended, passed) = std::io::pipe().expect("a pipe");
    let mut pair = Pair {
        theirs,
        reader: FrameReader::new(closer.clone()),
        model: Model::default(),
        frames: 0,
    };
    let mut whole = true;
    while !input.is_empty() && whole {
        let mut piece = Piece::of(&mut input);
        while whole && !piece.bytes.is_empty() {
            let sent = piece.send(&ours, &passed);
            pair.model.sent(&piece.bytes[..sent], piece.fds);
            piece.bytes.drain(..sent);
            if sent > 0 {
                piece.fds = 0;
            }
            // A full socket takes the rest once the reader has read.
            let goes_on = piece.more && pair.model.coming.len() < SETS_MAX;
            whole = goes_on && piece.bytes.is_empty() || pair.drain();
        }
    }
    whole = whole && pair.drain();
    let verdict = if whole && pair.frames > 0 {
        Verdict::Accepted
    } else {
        Verdict::Refused
    };
    drop((pair, ours, passed));
    all_are_closed(ended.as_fd());
    verdict
}

struct Piece {
    bytes: Vec<u8>,
    fds: usize,
    more: bool,
}

impl Piece {
    fn of(input: &mut &[u8]) -> Self {
        let [control, len] = take(input);
        let (text, rest) = input.split_at(usize::from(len).min(input.len()));
        *input = rest;
        let mut bytes = text.to_vec();
        if control & 8 != 0 {
            bytes.resize(bytes.len() * 513, 0);
        }
        if bytes.is_empty() {
            bytes.push(b'M');
        }
        Self {
            bytes,
            fds: FDS[usize::from(control & 3)],
            more: control & 4 != 0 && control & 3 < 3,
        }
    }

    /// How much the socket took.
    fn send(&self, socket: &UnixStream, fd: &PipeWriter) -> usize {
        let fds = vec![fd.as_fd(); self.fds];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, &[IoSlice::new(&self.bytes)], &mut control, flags) {
            Ok(sent) => sent,
            Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
            Err(e) => panic!("sending failed: {e}"),
        }
    }
}

/// The stream as it was sent, and how much of it the reader has.
#[derive(Default)]
struct Model {
    stream: Vec<u8>,
    /// Descriptors on their way: the position of their first byte, and how many.
    coming: VecDeque<(usize, usize)>,
    /// End of what arrived.
    arrived: usize,
    /// Start of what was not taken yet.
    at: usize,
    fds: usize,
}

/// What a look at the buffer finds.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Frame(Header, Vec<u8>, usize),
    Partial,
    Empty,
    Broken,
}

impl Model {
    fn sent(&mut self, bytes: &[u8], fds: usize) {
        if fds > 0 && !bytes.is_empty() {
            self.coming.push_back((self.stream.len(), fds));
        }
        self.stream.extend_from_slice(bytes);
    }

    fn arrive(&mut self, bytes: usize) {
        self.arrived += bytes;
        assert!(self.arrived <= self.stream.len(), "more than was sent");
        while let Some(&(at, fds)) = self.coming.front()
            && at < self.arrived
        {
            self.fds += fds;
            self.coming.pop_front();
        }
    }

    fn step(&mut self) -> Step {
        let held = &self.stream[self.at..self.arrived];
        match (held.len(), self.fds) {
            (0, 0) => return Step::Empty,
            (0, _) => return Step::Broken,
            (_, fds) if fds > FDS_QUEUED_MAX => return Step::Broken,
            (bytes, _) if bytes < Header::BYTES => return Step::Partial,
            (..) => {}
        }
        let Ok(header) = Header::decode(held) else {
            return Step::Broken;
        };
        let announced = usize::from(header.fds);
        if self.fds < announced {
            return Step::Broken;
        }
        let end = Header::BYTES + header.body_bytes as usize;
        let Some(body) = held.get(Header::BYTES..end) else {
            return Step::Partial;
        };
        let frame = Step::Frame(header, body.to_vec(), announced);
        self.at += end;
        self.fds -= announced;
        frame
    }
}

struct Pair {
    theirs: UnixStream,
    reader: FrameReader,
    model: Model,
    frames: usize,
}

impl Pair {
    /// Reads all that was sent; whether the stream is whole so far.
    fn drain(&mut self) -> bool {
        loop {
            match self.reader.fill(&self.theirs) {
                Ok(bytes) => self.model.arrive(bytes),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    assert_eq!(
                        self.model.arrived,
                        self.model.stream.len(),
                        "bytes were lost"
                    );
                    return true;
                }
                Err(e) => panic!("reading failed: {e}"),
            }
            loop {
                let wanted = self.model.step();
                let got = match self.reader.next() {
                    Ok(ReadStep::Frame(header, body, fds)) => {
                        Step::Frame(header, body.to_vec(), fds.len())
                    }
                    Ok(ReadStep::Partial) => Step::Partial,
                    Ok(ReadStep::Empty) => Step::Empty,
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        Step::Broken
                    }
                };
                assert_eq!(got, wanted);
                match got {
                    Step::Frame(..) => self.frames += 1,
                    Step::Partial | Step::Empty => break,
                    Step::Broken => return false,
                }
            }
        }
    }
}

/// Whoever had a copy of the pipe's other end has let go of it.
fn all_are_closed(ended: BorrowedFd<'_>) {
    let wait = Timespec {
        tv_sec: CLOSED_WITHIN_S,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(ended, PollFlags::empty())];
    let ready = loop {
        match poll(&mut fds, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.expect("polls"),
        }
    };
    assert!(ready > 0, "a descriptor that was passed is still open");
}

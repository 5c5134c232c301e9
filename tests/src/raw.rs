//! A client without the library, free to break every rule.

use crate::DEADLINE;
use mrm_proto::frame::{self, Header, Message};
use mrm_proto::hello::{ClientHello, ServerHello, features};
use mrm_proto::ids::RequestId;
use mrm_proto::reply::Reply;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection.
pub struct Raw {
    pub stream: UnixStream,
}

impl Raw {
    /// Connects and says nothing.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("connects");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
        Self { stream }
    }

    /// Connects and says hello, as one who knows all but grants that come together.
    pub fn hello(socket: &Path) -> Self {
        Self::hello_with(socket, features::ALL & !features::MANY)
    }

    /// Connects and says hello with these features.
    pub fn hello_with(socket: &Path, features: u64) -> Self {
        let mut raw = Self::connect(socket);
        let hello = ClientHello {
            features,
            ..ClientHello::new("raw")
        };
        raw.send(RequestId(1), &hello, &[]);
        let (header, body, _) = raw.receive().expect("a hello");
        ServerHello::decode(&header, &body).expect("a hello");
        raw
    }

    /// Sends a message with descriptors.
    pub fn send(&mut self, request: RequestId, message: &impl Message, fds: &[BorrowedFd<'_>]) {
        let count = u8::try_from(fds.len()).expect("few");
        let bytes = frame::encode(request, count, message).expect("encodes");
        self.send_bytes(&bytes, fds).expect("sends");
    }

    /// Sends any bytes with any descriptors.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if fds.is_empty() {
            return self.stream.write_all(bytes);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
        let slices = [IoSlice::new(bytes)];
        let sent = rustix::io::retry_on_intr(|| {
            let flags = SendFlags::NOSIGNAL;
            rustix::net::sendmsg(self.stream.as_fd(), &slices, &mut ancillary, flags)
        })?;
        self.stream.write_all(&bytes[sent..])
    }

    /// The next frame; `None` at the end of the stream.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
        let mut head = [0; Header::BYTES];
        let mut fds = Vec::new();
        let mut have = 0;
        while have < head.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut head[have..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = match rustix::net::recvmsg(&self.stream, &mut slices, &mut ancillary, flags) {
                Ok(got) if got.bytes == 0 => return None,
                Ok(got) => got,
                // Threads that change their user signal all others.
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::CONNRESET) => return None,
                Err(error) => panic!("no frame within {DEADLINE:?}: {error}"),
            };
            have += got.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    fds.extend(passed);
                }
            }
        }
        let header = Header::decode(&head).expect("the daemon sends good frames");
        let mut body = vec![0; header.body_bytes as usize];
        self.stream.read_exact(&mut body).expect("a whole frame");
        Some((header, body, fds))
    }

    /// The next reply, with its request id and descriptors.
    pub fn reply(&mut self) -> Option<(RequestId, Reply, Vec<OwnedFd>)> {
        let (header, body, fds) = self.receive()?;
        assert_eq!(fds.len(), usize::from(header.fds));
        Some((
            header.request,
            Reply::decode(&header, &body).expect("a good reply"),
            fds,
        ))
    }

    /// Sends a request and returns its reply.
    pub fn ask(
        &mut self,
        request: RequestId,
        message: &impl Message,
        fds: &[BorrowedFd<'_>],
    ) -> Reply {
        self.send(request, message, fds);
        let (id, reply, _) = self.reply().expect("a reply");
        assert_eq!(id, request);
        reply
    }

    /// Expects that the session ends with this error, and then the stream.
    pub fn ends_with(&mut self, code: mrm_proto::error::ErrorCode) {
        loop {
            match self.reply() {
                Some((RequestId::NO_REPLY, Reply::Error(error), _)) => {
                    assert_eq!(error.code(), Some(code), "{}", error.message);
                    break;
                }
                Some(_) => {}
                None => panic!("the session ended without saying {code}"),
            }
        }
        assert!(self.receive().is_none(), "the session goes on");
    }
}

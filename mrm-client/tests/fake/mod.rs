//! A daemon in a thread, which says what a test tells it to say.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "each test binary uses a part of it, and it fails loudly"
)]

use mrm_proto::dtype::DType;
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{self, Header, Message};
use mrm_proto::hello::{ClientHello, ServerHello, ServerLimits, features};
use mrm_proto::ids::{InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::reply::{Opened, Origin, Reply, Resumed};
use mrm_proto::request::{HadLease, Request};
use mrm_proto::table::{ModelKind, TableBuilder};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest that a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the fake saw, for tests to wait on.
#[derive(Default)]
pub struct Seen {
    requests: Mutex<Vec<(RequestId, Request)>>,
    news: Condvar,
}

impl Seen {
    fn add(&self, id: RequestId, request: &Request) {
        self.requests
            .lock()
            .expect("lock")
            .push((id, request.clone()));
        self.news.notify_all();
    }

    /// Number of requests so far.
    pub fn count(&self) -> usize {
        self.requests.lock().expect("lock").len()
    }

    pub fn all(&self) -> Vec<Request> {
        self.requests
            .lock()
            .expect("lock")
            .iter()
            .map(|(_, r)| r.clone())
            .collect()
    }

    /// Waits until `done` likes what was seen.
    pub fn wait(&self, what: &str, done: impl Fn(&[(RequestId, Request)]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut requests = self.requests.lock().expect("lock");
        while !done(&requests) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited in vain for {what}; saw {}, at last {:?}",
                requests.len(),
                requests.iter().rev().take(20).collect::<Vec<_>>()
            );
            requests = self.news.wait_timeout(requests, left).expect("lock").0;
        }
    }

    /// Waits until the lease was given back.
    pub fn wait_closed(&self, lease: u64) {
        self.wait(&format!("the close of lease {lease}"), |requests| {
            requests
                .iter()
                .any(|(_, r)| matches!(r, Request::Close(close) if close.lease == LeaseId(lease)))
        });
    }
}

/// A listening fake. Each connection is served by `serve` on a thread of its own.
pub struct Fake {
    directory: tempfile::TempDir,
    pub seen: Arc<Seen>,
}

impl Fake {
    /// `serve` gets the number of the connection, from 0.
    pub fn start(serve: impl Fn(usize, &mut Session) + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let seen = Arc::new(Seen::default());
        let listener = UnixListener::bind(directory.path().join("mrmd.sock")).expect("binds");
        let (serve, log) = (Arc::new(serve), Arc::clone(&seen));
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let mut session = Session {
                    stream: stream.expect("accepts"),
                    seen: Arc::clone(&log),
                };
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(n, &mut session));
            }
        });
        Self { directory, seen }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("mrmd.sock")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// From now on nobody listens on the socket.
    pub fn hide(&self) {
        std::fs::rename(self.socket(), self.directory().join("hidden")).expect("moves");
    }

    /// From now on the fake is there again.
    pub fn show(&self) {
        std::fs::rename(self.directory().join("hidden"), self.socket()).expect("moves");
    }

    pub fn client(&self) -> mrm_client::Client {
        // However slow the machine and a sanitizer are.
        let options = mrm_client::ConnectOptions::new().timeout(PATIENCE);
        let client = mrm_client::Client::connect_with(&options.socket(self.socket()));
        client.expect("the fake says hello")
    }
}

/// The fake's end of one connection.
pub struct Session {
    pub stream: UnixStream,
    seen: Arc<Seen>,
}

impl Session {
    /// Reads the client's hello and answers as a daemon should.
    pub fn hello(&mut self) {
        let id = self.client_hello().0;
        self.send(id, &server_hello(), &[]);
    }

    /// The same as another run of the daemon, with these features.
    pub fn hello_as(&mut self, instance: u64, features: u64) {
        let id = self.client_hello().0;
        let mut hello = server_hello();
        hello.0.instance = InstanceId(instance);
        hello.0.features = features;
        self.send(id, &hello, &[]);
    }

    /// The next request, which must be a `Resume`: its id, the run it names, and what was held.
    pub fn next_resume(&mut self) -> (RequestId, u64, Vec<HadLease>) {
        match self.next() {
            Some((id, Request::Resume(resume), _)) => (id, resume.instance.0, resume.leases),
            other => panic!("a resume, not {other:?}"),
        }
    }

    pub fn client_hello(&mut self) -> (RequestId, ClientHello) {
        let (header, body, _) = self.frame().expect("a hello");
        (
            header.request,
            ClientHello::decode(&header, &body).expect("a hello"),
        )
    }

    /// The next request; `None` when the client is gone.
    pub fn next(&mut self) -> Option<(RequestId, Request, Vec<OwnedFd>)> {
        let (header, body, fds) = self.frame()?;
        let request = Request::decode(&header, &body).expect("a request");
        assert_eq!(fds.len(), request.fds_expected());
        self.seen.add(header.request, &request);
        Some((header.request, request, fds))
    }

    /// The next request that awaits a reply. Who comes back with leases of another daemon gets
    /// none: this one took nothing over.
    pub fn next_asking(&mut self) -> Option<(RequestId, Request, Vec<OwnedFd>)> {
        loop {
            let next = self.next()?;
            if let Request::Resume(resume) = &next.1 {
                self.resumed(next.0, vec![None; resume.leases.len()]);
            } else if !next.0.wants_no_reply() {
                return Some(next);
            }
        }
    }

    /// Answers a `Resume`.
    pub fn resumed(&mut self, id: RequestId, leases: impl IntoIterator<Item = Option<u64>>) {
        let leases = leases.into_iter().map(|lease| lease.map(LeaseId)).collect();
        self.send(id, &Reply::Resumed(Resumed { leases }), &[]);
    }

    pub fn send(&mut self, id: RequestId, message: &impl Message, fds: &[BorrowedFd<'_>]) {
        let count = u8::try_from(fds.len()).expect("few");
        self.raw(&frame::encode(id, count, message).expect("encodes"), fds);
    }

    pub fn error(&mut self, id: RequestId, code: ErrorCode, message: &str) {
        self.send(id, &Reply::Error(ErrorReply::new(code, message)), &[]);
    }

    /// Bytes as they are. A client that is gone is no error.
    pub fn raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let slices = [IoSlice::new(bytes)];
        if let Ok(sent) = sendmsg(&self.stream, &slices, &mut control, SendFlags::NOSIGNAL) {
            let _ = self.stream.write_all(&bytes[sent..]);
        }
    }

    /// Grants `lease` on `content`.
    pub fn grant(&mut self, id: RequestId, lease: u64, version: u64, content: &Content) {
        self.send(
            id,
            &Reply::Opened(content.opened(lease, version)),
            &content.fds(),
        );
    }

    /// Says hello and grants every open, with leases from 1, until the client is gone.
    pub fn serve(&mut self, content: &Content) {
        self.hello();
        self.serve_opens(content, 1);
    }

    pub fn serve_opens(&mut self, content: &Content, first_lease: u64) {
        let mut lease = first_lease;
        while let Some((id, request, _)) = self.next_asking() {
            match request {
                Request::Open(_) | Request::OpenFiles(_) => {
                    self.grant(id, lease, 7, content);
                    lease += 1;
                }
                other => panic!("not served here: {other:?}"),
            }
        }
    }

    /// Reads until the client is gone.
    pub fn until_gone(&mut self) {
        while self.next().is_some() {}
    }

    fn frame(&mut self) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let mut head = [0; Header::BYTES];
        self.fill(&mut head, &mut fds)?;
        let header = Header::decode(&head).expect("clients send frames");
        let mut body = vec![0; header.body_bytes as usize];
        self.fill(&mut body, &mut fds)?;
        assert_eq!(fds.len(), usize::from(header.fds));
        Some((header, body, fds))
    }

    fn fill(&mut self, mut into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<()> {
        while !into.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(into)];
            let got = recvmsg(
                &self.stream,
                &mut slices,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
            .ok()?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(passed) = message {
                    fds.extend(passed);
                }
            }
            if got.bytes == 0 {
                return None;
            }
            into = &mut into[got.bytes..];
        }
        Some(())
    }
}

pub fn server_hello() -> Hello {
    Hello(ServerHello {
        version: 1,
        features: features::ALL,
        instance: InstanceId(42),
        daemon: "fake 1.0".to_owned(),
        limits: ServerLimits {
            frame_body_bytes_max: 131_072,
            requests_in_flight_max: 256,
            leases_max: 4096,
            wait_ms_max: 60_000,
        },
    })
}

/// A hello that a test may bend.
pub struct Hello(pub ServerHello);

impl Message for Hello {
    fn kind(&self) -> frame::Kind {
        self.0.kind()
    }
    fn encode_body(&self, out: &mut Vec<u8>) {
        self.0.encode_body(out);
    }
}

/// What a grant passes.
pub struct Content {
    pub table: OwnedFd,
    pub table_bytes: u64,
    pub segments: Vec<(OwnedFd, u64)>,
}

impl Content {
    /// One file of `large` floats `w`, one `scalar`, and one tensor that is not aligned.
    pub fn sample(large: usize) -> Self {
        let mut file = vec![0u8; 64];
        for i in 0..large {
            file.extend_from_slice(&(i as f32).to_le_bytes());
        }
        let end = file.len() as u64;
        file.extend_from_slice(&(-9i64).to_le_bytes());
        file.extend_from_slice(&[0, 1, 2, 3, 4]);
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let segment = builder.segment("model.safetensors");
        builder.metadata("format", "pt");
        builder.tensor("w", DType::F32, &[1, large as u64], segment, 64, end - 64);
        builder.tensor("scalar", DType::I64, &[], segment, end, 8);
        builder.tensor("odd", DType::BF16, &[2], segment, end + 9, 4);
        let table = builder.build().expect("a table");
        Self::of(&table, &[&file])
    }

    pub fn of(table: &[u8], segments: &[&[u8]]) -> Self {
        let sealed = |bytes: &[u8]| (memfd(bytes, SEALED), bytes.len() as u64);
        let (table, table_bytes) = sealed(table);
        Self {
            table,
            table_bytes,
            segments: segments.iter().map(|s| sealed(s)).collect(),
        }
    }

    pub fn opened(&self, lease: u64, version: u64) -> Opened {
        Opened {
            lease: LeaseId(lease),
            version: VersionId(version),
            origin: Origin::Hit,
            table_bytes: self.table_bytes,
            segments_bytes: self.segments.iter().map(|(_, bytes)| *bytes).collect(),
            took_us: 3,
            device: None,
            filling: None,
        }
    }

    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let segments = self.segments.iter().map(|(fd, _)| fd.as_fd());
        std::iter::once(self.table.as_fd())
            .chain(segments)
            .collect()
    }
}

pub const SEALED: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// A memory file with `seals`, open for reading only.
pub fn memfd(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("fake", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).expect("memfd");
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes).expect("writes");
    fcntl_add_seals(&file, seals).expect("seals");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    std::fs::File::open(path).expect("opens again").into()
}

impl Content {
    /// The bytes of the table.
    pub fn table_copy(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.table_bytes).expect("small")];
        assert_eq!(
            rustix::io::pread(&self.table, &mut bytes, 0),
            Ok(bytes.len())
        );
        bytes
    }
}

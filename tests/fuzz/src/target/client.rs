//! A client whose daemon answers anything: it must neither trust it nor wait for it, and what the
//! client itself says stays within the protocol.
//!
//! The first byte of an input says what the client asks (two lowest bits) and what the daemon
//! does: bit 2, the rest of the input is all that it ever says, hello included; bit 3, it grants a
//! model whose tensor table is the rest of the input, after a byte with the number of segments and
//! one with their size in 16-byte units. Otherwise the rest of the input answers the first
//! request, and brings as many sealed memory files as the upper four bits say.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::client};
//! use mrm_proto::table::{ModelKind, TableBuilder};
//! let table = TableBuilder::new(ModelKind::Safetensors).build()?;
//! let open_and_grant = [0b1010, 1, 4];
//! assert_eq!(client::run(&[&open_and_grant[..], &table].concat()), Verdict::Accepted);
//! assert_eq!(client::run(&[0b100, 0, 0]), Verdict::Refused);
//! # Ok::<(), mrm_proto::table::TableError>(())
//! ```

use super::take;
use crate::Verdict;
use mrm_client::{Client, ConnectOptions, Element, Model, OpenOptions, Tensor};
use mrm_proto::frame::{self, Header, Kind};
use mrm_proto::hello::{ClientHello, ServerHello, ServerLimits, features};
use mrm_proto::ids::{InstanceId, LeaseId, RequestId, VersionId};
use mrm_proto::reply::{Opened, Origin, Reply};
use mrm_proto::request::{Close, Request};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::error::Error;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a client may take over anything. The daemon here never makes it wait.
const PATIENCE: Duration = Duration::from_secs(20);
/// The first request of a session: the hello is number 1.
const FIRST: RequestId = RequestId(2);
const LEASE: LeaseId = LeaseId(7);

/// Asks, and looks at all that comes.
pub fn run(mut input: &[u8]) -> Verdict {
    let [control] = take(&mut input);
    let daemon = Daemon::get();
    let said = daemon.said.lock().unwrap_or_else(PoisonError::into_inner);
    daemon.will_say(Script::of(control, input));
    let verdict = ask(control & 3, daemon);
    for session in daemon.ended(&said) {
        keeps_to_the_protocol(&session);
    }
    verdict
}

/// What the daemon of one input does.
#[derive(Default)]
struct Script {
    at_once: Vec<u8>,
    answer: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Script {
    fn of(control: u8, mut input: &[u8]) -> Self {
        if control & 4 != 0 {
            return Self {
                at_once: input.to_vec(),
                ..Self::default()
            };
        }
        let at_once = hello();
        if control & 8 == 0 {
            let fds = (0..control >> 4).map(|at| sealed(&[at; 64]));
            return Self {
                at_once,
                answer: input.to_vec(),
                fds: fds.collect(),
            };
        }
        let [count, size] = take(&mut input);
        let segment: Vec<u8> = (0..usize::from(size) * 16).map(|i| i as u8).collect();
        let segments_bytes = vec![segment.len() as u64; usize::from(count % 8)];
        let mut fds = vec![sealed(input)];
        fds.extend(segments_bytes.iter().map(|_| sealed(&segment)));
        let opened = Reply::Opened(Opened {
            lease: LEASE,
            version: VersionId(3),
            origin: Origin::Hit,
            table_bytes: input.len() as u64,
            segments_bytes,
            took_us: 1,
            device: None,
            filling: None,
        });
        let announced = u8::try_from(fds.len()).expect("few");
        Self {
            at_once,
            answer: frame::encode(FIRST, announced, &opened).expect("a small frame"),
            fds,
        }
    }
}

fn hello() -> Vec<u8> {
    let hello = ServerHello {
        version: 1,
        features: features::ALL,
        instance: InstanceId(9),
        daemon: "fuzz".to_owned(),
        limits: ServerLimits {
            frame_body_bytes_max: 1 << 17,
            requests_in_flight_max: 8,
            leases_max: 8,
            wait_ms_max: 1000,
        },
    };
    frame::encode(RequestId(1), 0, &hello).expect("a small frame")
}

fn sealed(bytes: &[u8]) -> OwnedFd {
    let fd = memfd_create("fuzz", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(fd.expect("a memory file"));
    file.write_all(bytes).expect("a memory file");
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).expect("allowed above");
    file.into()
}

fn ask(what: u8, daemon: &Daemon) -> Verdict {
    let options = ConnectOptions::new()
        .socket(&daemon.socket)
        .name("fuzz")
        .timeout(PATIENCE)
        .reply_grace(PATIENCE)
        // It would ask a daemon that hangs up again until its wait is over, as it should.
        .reconnect(false);
    let client = match Client::connect_with(&options) {
        Ok(client) => client,
        Err(error) => return refused(&error),
    };
    let open = |how: OpenOptions<'_>| match client.open_with("m", &how) {
        Ok(model) => {
            look_into(&model);
            Verdict::Accepted
        }
        Err(error) => refused(&error),
    };
    match what {
        0 => match client.list("") {
            Ok(_) => Verdict::Accepted,
            Err(error) => refused(&error),
        },
        1 => match client.stat("m") {
            Ok(_) => Verdict::Accepted,
            Err(error) => refused(&error),
        },
        2 => open(OpenOptions::new()),
        _ => open(OpenOptions::new().on_progress(|_| {})),
    }
}

fn refused(error: &dyn Error) -> Verdict {
    let shown = error.to_string();
    assert!(!shown.contains("timed out"), "made to wait: {shown}");
    super::assert_says(error)
}

/// Every tensor lies within a segment, and every byte of it can be read.
fn look_into(model: &Model) {
    let segments: Vec<_> = model.segments().map(|segment| segment.bytes()).collect();
    let Ok(tensors) = model.tensors() else {
        return;
    };
    let _ = (model.metadata(), model.kind());
    for tensor in tensors.iter() {
        let segment = segments[tensor.segment_index()];
        lies_within::<u8>(&tensor, segment);
        lies_within::<i8>(&tensor, segment);
        lies_within::<u16>(&tensor, segment);
        lies_within::<i16>(&tensor, segment);
        lies_within::<u32>(&tensor, segment);
        lies_within::<i32>(&tensor, segment);
        lies_within::<u64>(&tensor, segment);
        lies_within::<i64>(&tensor, segment);
        lies_within::<f32>(&tensor, segment);
        lies_within::<f64>(&tensor, segment);
        lies_within::<[f32; 2]>(&tensor, segment);
        if let Some(found) = tensors.get(tensor.name()) {
            assert_eq!(found.name(), tensor.name());
        }
    }
}

fn lies_within<T: Element>(tensor: &Tensor<'_>, segment: &[u8]) {
    let Ok(elements) = tensor.as_slice::<T>() else {
        return;
    };
    let range = elements.as_ptr_range();
    let (start, end) = (range.start.cast(), range.end.cast());
    let segment = segment.as_ptr_range();
    assert!(
        elements.is_empty() || segment.start <= start && end <= segment.end,
        "outside its segment: {tensor:?}"
    );
    for element in elements {
        std::hint::black_box(element);
    }
}

/// What a client sent in one session: a hello, then requests; and a lease that it got is given
/// back. The last frame may be missing where the session broke.
fn keeps_to_the_protocol(mut stream: &[u8]) {
    let mut kinds = Vec::new();
    let mut closed = 0;
    while !stream.is_empty() {
        let header = Header::decode(stream).expect("a client sends frames");
        let end = Header::BYTES + header.body_bytes as usize;
        let body = stream.get(Header::BYTES..end).expect("whole frames");
        stream = &stream[end..];
        if kinds.is_empty() {
            ClientHello::decode(&header, body).expect("first a hello");
        } else {
            let request = Request::decode(&header, body).expect("then requests");
            assert_eq!(request.fds_expected(), usize::from(header.fds));
            closed += usize::from(request == Request::Close(Close { lease: LEASE }));
        }
        kinds.push(header.kind);
    }
    assert!(closed <= 1, "a lease given back {closed} times: {kinds:?}");
    assert!(kinds.iter().skip(1).all(|kind| *kind != Kind::ClientHello));
}

/// A socket behind which a thread does as it is told, one session after the other.
struct Daemon {
    socket: PathBuf,
    script: Arc<Mutex<Script>>,
    /// What the client of each session sent; nothing, for a session that only marks an end.
    said: Mutex<Receiver<Vec<u8>>>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn get() -> &'static Self {
        static DAEMON: OnceLock<Daemon> = OnceLock::new();
        DAEMON.get_or_init(|| {
            let directory = tempfile::tempdir().expect("a directory");
            let socket = directory.path().join("mrmd.sock");
            let listener = UnixListener::bind(&socket).expect("binds");
            let script = Arc::<Mutex<Script>>::default();
            let (say, said) = channel();
            let theirs = Arc::clone(&script);
            std::thread::spawn(move || serve(&listener, &theirs, &say));
            Self {
                socket,
                script,
                said: Mutex::new(said),
                _directory: directory,
            }
        })
    }

    fn will_say(&self, script: Script) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }

    /// What the clients of the sessions so far sent, once they all ended.
    fn ended(&self, said: &Receiver<Vec<u8>>) -> Vec<Vec<u8>> {
        drop(UnixStream::connect(&self.socket).expect("listens"));
        let next = || said.recv_timeout(PATIENCE).expect("sessions end");
        std::iter::repeat_with(next)
            .take_while(|sent| !sent.is_empty())
            .collect()
    }
}

fn serve(listener: &UnixListener, script: &Mutex<Script>, say: &Sender<Vec<u8>>) {
    for stream in listener.incoming() {
        let stream = stream.expect("accepts");
        let script = script.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = session(stream, &script);
        drop(script);
        if say.send(sent).is_err() {
            return;
        }
    }
}

/// Says what the script says, and returns what the client said until it hung up.
fn session(mut stream: UnixStream, script: &Script) -> Vec<u8> {
    let mut sent = Vec::new();
    // A client that hung up first needs no answer.
    let _ = stream.write_all(&script.at_once);
    if !script.answer.is_empty() && two_frames(&mut stream, &mut sent) {
        answer(&stream, script);
    }
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read_to_end(&mut sent);
    sent
}

/// Reads until the hello and the first request are there; whether they ever were.
fn two_frames(stream: &mut UnixStream, sent: &mut Vec<u8>) -> bool {
    loop {
        let hello = Header::decode(sent).ok();
        let second = hello.and_then(|h| sent.get(Header::BYTES + h.body_bytes as usize..));
        if second.is_some_and(|second| Header::decode(second).is_ok()) {
            return true;
        }
        let mut part = [0; 512];
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return false,
            Ok(n) => sent.extend_from_slice(&part[..n]),
        }
    }
}

fn answer(stream: &UnixStream, script: &Script) {
    let fds: Vec<_> = script.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let bytes = [IoSlice::new(&script.answer)];
    let _ = sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL);
}

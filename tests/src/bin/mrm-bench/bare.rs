//! The floor: a Unix socket, one message back with one descriptor, one mapping. No protocol, no
//! table, no library.

use crate::floor::map_unchecked;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const MESSAGE_BYTES: usize = 64;

/// The floor's server in a process of its own.
pub(crate) struct BareServer {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) bytes: u64,
}

impl BareServer {
    pub(crate) fn start(dir: &Path, bytes: u64) -> Self {
        let socket = dir.join(format!("bare-{bytes}.sock"));
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .arg("bare-server")
            .arg(&socket)
            .arg(bytes.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut line = [0; 1];
        child
            .stdout
            .take()
            .expect("piped")
            .read_exact(&mut line)
            .expect("it says that it listens");
        Self {
            child,
            socket,
            bytes,
        }
    }
}

impl BareServer {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until killed: one thread, as few system calls as there can be.
pub(crate) fn serve(socket: &Path, bytes: u64) {
    let fd = segment(bytes);
    let listener = UnixListener::bind(socket).expect("binds");
    println!("listening");
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let watch = |what: BorrowedFd<'_>, number: u64| {
        let data = epoll::EventData::new_u64(number);
        epoll::add(&ready, what, data, epoll::EventFlags::IN).expect("watched");
    };
    watch(listener.as_fd(), 0);
    let mut streams: Vec<Option<UnixStream>> = vec![None];
    let mut events = Vec::with_capacity(64);
    loop {
        events.clear();
        epoll::wait(&ready, spare_capacity(&mut events), None).expect("waits");
        for event in &events {
            let number = usize::try_from(event.data.u64()).expect("small");
            if number == 0 {
                let (stream, _) = listener.accept().expect("accepts");
                watch(stream.as_fd(), streams.len() as u64);
                streams.push(Some(stream));
            } else if streams[number].as_ref().is_none_or(|s| !answer(s, &fd)) {
                streams[number] = None;
            }
        }
    }
}

/// Answers one message; whether there was one, and somebody takes the answer.
fn answer(mut stream: &UnixStream, fd: &OwnedFd) -> bool {
    let mut message = [0; MESSAGE_BYTES];
    if stream.read_exact(&mut message).is_err() {
        return false;
    }
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let message = [IoSlice::new(&message)];
    sendmsg(stream, &message, &mut ancillary, SendFlags::NOSIGNAL).is_ok()
}

fn segment(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("bare", flags).expect("memfd");
    rustix::fs::ftruncate(&fd, bytes).expect("grows");
    File::from(fd.try_clone().expect("dup"))
        .write_all(&[7; 4096])
        .expect("writes");
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&fd, seals).expect("seals");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    File::open(path).expect("re-opens for reading").into()
}

/// One cycle of a connected client: nanoseconds.
pub(crate) fn cycle(stream: &mut UnixStream, bytes: u64) -> f64 {
    let began = Instant::now();
    stream.write_all(&[1; MESSAGE_BYTES]).expect("sends");
    let mut message = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(
        &*stream,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        flags,
    )
    .expect("receives");
    let fd = ancillary
        .drain()
        .find_map(|message| {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                fds.next()
            } else {
                None
            }
        })
        .expect("one descriptor");
    let map = map_unchecked(&fd, bytes);
    std::hint::black_box(map[0]);
    drop(map);
    drop(fd);
    began.elapsed().as_nanos() as f64
}

/// The same in a fresh process, with connecting.
pub(crate) fn fresh(socket: &Path, bytes: u64) -> f64 {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).expect("connects");
    cycle(&mut stream, bytes);
    began.elapsed().as_nanos() as f64
}

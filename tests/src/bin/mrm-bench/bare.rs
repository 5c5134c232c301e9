//! The floor: a Unix socket, one message back with one descriptor, one mapping. No protocol, no
//! table, no library.

use memmap2::MmapOptions;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
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
        let socket = dir.join("bare.sock");
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

impl Drop for BareServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until killed: a thread per connection, blocking.
pub(crate) fn serve(socket: &Path, bytes: u64) {
    let fd = segment(bytes);
    let listener = UnixListener::bind(socket).expect("binds");
    println!("listening");
    for stream in listener.incoming().flatten() {
        let fd = fd.try_clone().expect("dup");
        std::thread::spawn(move || answer(&stream, &fd));
    }
}

fn answer(stream: &UnixStream, fd: &OwnedFd) {
    let mut message = [0; MESSAGE_BYTES];
    while (&*stream).read_exact(&mut message).is_ok() {
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        if sendmsg(
            stream,
            &[IoSlice::new(&message)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .is_err()
        {
            return;
        }
    }
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
    let len = usize::try_from(bytes).expect("fits");
    let map = MmapOptions::new()
        .len(len)
        .map_if_safe(&fd)
        .expect("sealed");
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

//! Roles in processes of their own, and the driver as a program finds it: through
//! `dlopen("libcuda.so.1")`.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses a part of this module"
)]

pub mod cu;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::env;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

const ROLE: &str = "MRM_FAKE_CUDA_TEST_ROLE";
/// So long may a peer take to answer; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Roles = &'static [(&'static str, fn(&mut Peer))];

/// A pretended machine of a test.
pub struct Machine {
    pub dir: TempDir,
    settings: Vec<(String, String)>,
}

impl Machine {
    pub fn new() -> Self {
        Self::missing(&[])
    }

    pub fn missing(symbols: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        mrm_fake_cuda::install::driver_dir(&dir.path().join("driver"), symbols).unwrap();
        Self {
            dir,
            settings: Vec::new(),
        }
    }

    /// Sets `MRM_FAKE_CUDA_{key}`, or another variable in full.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("machine").join(name)
    }

    /// Starts a role in another process, with a socket to this one.
    pub fn start(&self, role: &str) -> Running {
        let (here, there) = UnixStream::pair().unwrap();
        let mut running = self.start_with(role, there);
        running.socket = Peer::new(here);
        running
    }

    /// Starts two roles with a socket between them.
    pub fn start_pair(&self, one: &str, other: &str) -> (Running, Running) {
        let (left, right) = UnixStream::pair().unwrap();
        (self.start_with(one, left), self.start_with(other, right))
    }

    fn start_with(&self, role: &str, socket: UnixStream) -> Running {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "child", "--nocapture", "-q"])
            .env(ROLE, role)
            .env("LD_LIBRARY_PATH", self.dir.path().join("driver"))
            .env("MRM_FAKE_CUDA_DIR", self.dir.path().join("machine"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(Stdio::null());
        for (key, value) in &self.settings {
            let known = key.starts_with("CUDA_");
            let name = if known {
                key.clone()
            } else {
                format!("MRM_FAKE_CUDA_{key}")
            };
            command.env(name, value);
        }
        let (unused, _) = UnixStream::pair().unwrap();
        Running {
            child: command.spawn().unwrap(),
            socket: Peer::new(unused),
        }
    }

    /// Runs a role to its end, which must be good.
    pub fn run(&self, role: &str) {
        self.start(role).succeed();
    }
}

/// A role in another process; killed if the test fails before it ends.
pub struct Running {
    child: Child,
    pub socket: Peer,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn succeed(self) {
        let status = self.end();
        assert!(status.success(), "{status}");
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails if it has ended, as it should have.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// The other end of a socket.
pub struct Peer(UnixStream);

impl Peer {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub fn say(&mut self, byte: u8) {
        self.0.write_all(&[byte]).unwrap();
    }

    /// Waits for the other's word.
    pub fn hear(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn send_fd(&mut self, fd: BorrowedFd<'_>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let flags = SendFlags::NOSIGNAL;
        sendmsg(self.0.as_fd(), &[IoSlice::new(b"f")], &mut control, flags).unwrap();
    }

    pub fn receive_fd(&mut self) -> OwnedFd {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut places = [IoSliceMut::new(&mut byte)];
        recvmsg(
            self.0.as_fd(),
            &mut places,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .unwrap();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                return fds.next().unwrap();
            }
        }
        panic!("no descriptor came");
    }
}

/// What the ignored test `child` of each program does: plays the role that it was started for.
pub fn play(roles: Roles) {
    let Ok(wanted) = env::var(ROLE) else { return };
    let (_, role) = roles
        .iter()
        .find(|(name, _)| *name == wanted)
        .expect("a known role");
    // SAFETY: standard input is a socket that the parent made for this, and nobody else here
    // reads it.
    let socket = unsafe { UnixStream::from_raw_fd(0) };
    role(&mut Peer::new(socket));
}

/// The bytes at a device address, as a kernel would see them.
pub fn device_bytes(ptr: u64, bytes: usize) -> Vec<u8> {
    let start: *const u8 = std::ptr::with_exposed_provenance(usize::try_from(ptr).unwrap());
    // SAFETY: the fake driver's addresses are addresses of the process; a test that reads where
    // it may not read means to crash. Volatile, so that it does.
    (0..bytes)
        .map(|at| unsafe { start.add(at).read_volatile() })
        .collect()
}

/// Writes a byte to a device address, as a kernel would.
pub fn device_write(ptr: u64, byte: u8) {
    let place: *mut u8 = std::ptr::with_exposed_provenance_mut(usize::try_from(ptr).unwrap());
    // SAFETY: as for `device_bytes`.
    unsafe { place.write_volatile(byte) };
}

/// A file of the machine's directory, written in one step.
pub fn put(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, path).unwrap();
}

//! Processes that do what a test tells them, on a pretended machine or on a real one.
//!
//! The test itself never touches the driver. It starts *agents*: this test binary again, with the
//! library path set, which take one command at a time over a socket (see `agent.rs`).
//!
//! `MRM_TEST_CUDA=hardware` has the agents use the machine's own driver. Otherwise they use the
//! fake one, which is built beside this binary; where there is none, tests are skipped aloud.

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long an answer may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
const MESSAGE_BYTES_MAX: usize = 16 << 10;

/// Where the state of a pretended machine is, until the last who needs it is gone.
struct Dir(PathBuf);

/// A pretended machine with a driver, or this machine.
pub(crate) struct Machine {
    dir: Arc<Dir>,
    library: Option<PathBuf>,
    settings: Vec<(String, String)>,
}

/// The fake driver that was built with this binary.
pub(crate) fn fake() -> Option<PathBuf> {
    let named = std::env::var_os("MRM_FAKE_CUDA_LIBRARY").map(PathBuf::from);
    let exe = std::env::current_exe().expect("this test is a file");
    let beside = exe
        .ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| ["libmrm_fake_cuda.so", "libcuda.so"].map(|name| dir.join(name)));
    named.into_iter().chain(beside).find(|path| path.exists())
}

impl Machine {
    /// The machine to test on; `None`, said aloud, when there is none.
    pub(crate) fn find() -> Option<Self> {
        if std::env::var("MRM_TEST_CUDA").is_ok_and(|value| value == "hardware") {
            return Some(Self::new(None));
        }
        Self::fake()
    }

    /// A pretended machine; `None`, said aloud, when there is no fake driver.
    pub(crate) fn fake() -> Option<Self> {
        match fake() {
            Some(library) => Some(Self::new(Some(&library))),
            None => {
                eprintln!(
                    "SKIPPED: no fake CUDA driver beside this test: cargo build -p mrm-fake-cuda"
                );
                None
            }
        }
    }

    fn new(library: Option<&Path>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mrm-cuda-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(dir.join("lib")).expect("a directory for the machine");
        if let Some(library) = library {
            std::os::unix::fs::symlink(library, dir.join("lib/libcuda.so.1")).expect("a link");
        }
        Self {
            dir: Arc::new(Dir(dir)),
            library: library.map(Path::to_owned),
            settings: Vec::new(),
        }
    }

    pub(crate) fn is_fake(&self) -> bool {
        self.library.is_some()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// With a setting of the fake driver, or any other variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts an agent.
    pub(crate) fn agent(&self) -> Agent {
        let mut settings = self.settings.clone();
        if self.is_fake() {
            let path = |path: PathBuf| path.to_str().expect("a path of text").to_owned();
            settings.push(("LD_LIBRARY_PATH".to_owned(), path(self.dir().join("lib"))));
            settings.push(("MRM_FAKE_CUDA_DIR".to_owned(), path(self.dir().to_owned())));
        }
        let mut agent = Agent::start(&settings);
        agent.dir = Some(Arc::clone(&self.dir));
        agent
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that does what it is told.
pub(crate) struct Agent {
    child: Child,
    socket: OwnedFd,
    /// Rules for faults that strike this process, and only it.
    faults: Option<PathBuf>,
    dir: Option<Arc<Dir>>,
}

/// What an agent answered: words, and perhaps a descriptor.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) fd: Option<OwnedFd>,
}

impl Agent {
    /// Starts this binary as an agent, with these variables beside the inherited ones.
    pub(crate) fn start(settings: &[(String, String)]) -> Self {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, kind, flags, None).expect("a pair of sockets");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE))
            .expect("a deadline");
        let child = Command::new(std::env::current_exe().expect("this test is a file"))
            .args(["--exact", "agent", "--nocapture", "--test-threads=1"])
            .env("MRM_CUDA_TEST_AGENT", "1")
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .expect("an agent");
        let dir = settings
            .iter()
            .find(|(name, _)| name == "MRM_FAKE_CUDA_DIR");
        let faults = dir.map(|(_, dir)| Path::new(dir).join(format!("faults.{}", child.id())));
        Self {
            child,
            socket,
            faults,
            dir: None,
        }
    }

    /// Sends a command and waits for the answer; an error is what the agent said, or its death.
    pub(crate) fn ask_with(
        &mut self,
        text: &str,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Answer, String> {
        send(self.socket.as_fd(), text, fd).map_err(|error| error.to_string())?;
        let answer = receive(self.socket.as_fd()).map_err(|error| format!("{text}: {error}"))?;
        let answer = answer.ok_or_else(|| format!("{text}: the agent died"))?;
        match answer.text.strip_prefix("error ") {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// Sends a command that takes no descriptor; the answer's words.
    pub(crate) fn ask(&mut self, text: &str) -> Result<String, String> {
        self.ask_with(text, None).map(|answer| answer.text)
    }

    /// Sends a command that must succeed.
    #[track_caller]
    pub(crate) fn tell(&mut self, text: &str) -> String {
        self.ask(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// Imports in this agent what the other allocated last, as `bytes` bytes.
    pub(crate) fn import(&mut self, from: &mut Self, bytes: u64) -> Result<String, String> {
        let export = from.ask_with("export", None)?;
        let fd = export.fd.as_ref().map(AsFd::as_fd);
        self.ask_with(&format!("import {bytes} {}", export.text), fd)
            .map(|answer| answer.text)
    }

    /// Free memory of the agent's device.
    #[track_caller]
    pub(crate) fn free_bytes(&mut self) -> u64 {
        self.tell("memory")
            .split(' ')
            .next()
            .and_then(|free| free.parse().ok())
            .expect("a number")
    }

    /// Waits until the device has so much free memory again.
    #[track_caller]
    pub(crate) fn await_free_bytes(&mut self, bytes: u64) {
        let end = Instant::now() + DEADLINE;
        // A real driver keeps some of what it took for its own work.
        let kept_bytes_max = if self.faults.is_some() { 0 } else { 32 << 20 };
        loop {
            let free = self.free_bytes();
            if free + kept_bytes_max >= bytes {
                return;
            }
            assert!(Instant::now() < end, "{free} bytes are free, not {bytes}");
            std::thread::yield_now();
        }
    }

    /// From now on these rules strike the agent's calls, counted from here.
    pub(crate) fn inject(&self, rules: &str) {
        let path = self
            .faults
            .as_ref()
            .expect("faults are injected into the fake driver");
        let new = path.with_extension("new");
        std::fs::write(&new, rules).expect("rules");
        std::fs::rename(new, path).expect("rules");
    }

    /// Kills the agent, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it is ours to kill");
        self.child.wait().expect("it is ours to wait for");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends one message.
pub(crate) fn send(
    to: BorrowedFd<'_>,
    text: &str,
    fd: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        assert!(
            control.push(SendAncillaryMessage::ScmRights(&fds)),
            "room for one descriptor"
        );
    }
    let bytes = [IoSlice::new(text.as_bytes())];
    sendmsg(to, &bytes, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// Receives one message; `None` when the other side is gone.
pub(crate) fn receive(from: BorrowedFd<'_>) -> rustix::io::Result<Option<Answer>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(from, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    bytes.truncate(got.bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((got.bytes > 0).then_some(Answer { text, fd }))
}

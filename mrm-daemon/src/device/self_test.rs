//! Proving in a child process that memory of a device can be shared, and what a context costs.
//!
//! The daemon starts itself again with [`ARGUMENT`], and sends over the socket that is the child's
//! standard input what it is to prove. The child says `context` when it has a context, then
//! `proved` or why not.
//!
//! ```no_run
//! use mrm_daemon::device::self_test;
//!
//! fn main() -> std::process::ExitCode {
//!     // Before anything is parsed or started:
//!     if std::env::args_os().nth(1).is_some_and(|argument| argument == self_test::ARGUMENT) {
//!         return self_test::child_main();
//!     }
//!     std::process::ExitCode::SUCCESS
//! }
//! ```

use mrm_cuda::choose::{Trial, prove};
use mrm_cuda::{Context, DeviceUuid, Export, Mechanism};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The argument by which a program becomes the child.
pub const ARGUMENT: &str = "--device-self-test";

/// How long a child may take. Making the first context on a device takes some hundred
/// milliseconds; on one with a cold driver (no persistence daemon), seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a killed child may take to be gone.
const KILLED: Duration = Duration::from_secs(1);
const MESSAGE_BYTES_MAX: usize = 4096;
const CONTEXT: &str = "context";
const PROVED: &str = "proved";
const DIED: &str = "the child process died";

/// How the child is started.
#[derive(Debug, Clone)]
pub struct SelfTest {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// How long one child may take, before it is killed.
    pub deadline: Duration,
}

/// What came of a child.
pub(super) struct Tested {
    pub(super) outcome: Result<(), String>,
    /// What its context took of the device's memory, in bytes.
    pub(super) cost: Option<u64>,
}

impl SelfTest {
    /// This program again, even if its file was replaced since it was started.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self {
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec![ARGUMENT.into()],
            deadline: DEADLINE,
        }
    }

    /// Has a child prove `trial`, whose memory is in `context`.
    pub(super) fn run(&self, trial: Trial, context: &Context) -> Tested {
        let deadline = Instant::now() + self.deadline;
        let free_bytes = || context.memory().ok().map(|memory| memory.free_bytes);
        let before = free_bytes();
        let mut cost = None;
        let outcome = self.start().and_then(|(mut child, socket)| {
            let answered = converse(&socket, &trial, deadline, &mut || {
                cost = Some((before, free_bytes()));
            });
            // Before the end is waited for: a child that still listens would wait as well.
            drop(socket);
            // Its context, and what it imported, is gone when it is gone.
            let until = if answered.is_ok() {
                deadline
            } else {
                Instant::now()
            };
            let ended = end(&mut child, until);
            answered.and(ended)
        });
        let cost = cost.and_then(|(before, after)| Some(before?.saturating_sub(after?)));
        Tested { outcome, cost }
    }

    fn start(&self) -> Result<(Child, OwnedFd), String> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)
            .map_err(|errno| format!("no pair of sockets: {errno}"))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.program.display()))?;
        Ok((child, socket))
    }
}

/// The child: proves what standard input asks for. Its exit status says whether it answered, not
/// what.
#[must_use]
pub fn child_main() -> ExitCode {
    let socket = std::io::stdin();
    let answer = match receive(socket.as_fd()) {
        Ok(Some((text, fd))) => match prove_for(socket.as_fd(), &text, fd) {
            Ok(()) => PROVED.to_owned(),
            Err(cause) => cause,
        },
        Ok(None) => "the daemon is gone".to_owned(),
        Err(errno) => format!("{ARGUMENT} is for the daemon's own use: {errno}"),
    };
    match send(socket.as_fd(), &answer, None) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => {
            eprintln!("mrmd {ARGUMENT}: {answer}");
            ExitCode::FAILURE
        }
    }
}

fn prove_for(socket: BorrowedFd<'_>, text: &str, fd: Option<OwnedFd>) -> Result<(), String> {
    let trial = decode(text, fd).ok_or_else(|| format!("{text:?} is not understood"))?;
    let driver = mrm_cuda::probe().map_err(|failure| failure.to_string())?;
    let context = Context::retain(driver, trial.device).map_err(|error| error.to_string())?;
    send(socket, CONTEXT, None).map_err(|errno| errno.to_string())?;
    // The daemon looks at the device's memory meanwhile: nothing else may be taken of it yet.
    let go_on = receive(socket).map_err(|errno| errno.to_string())?;
    go_on.ok_or("the daemon is gone")?;
    prove(&context, trial).map_err(|error| error.to_string())
}

/// The daemon's side. `has_context` is called while the child has a context and waits.
fn converse(
    socket: &OwnedFd,
    trial: &Trial,
    deadline: Instant,
    has_context: &mut dyn FnMut(),
) -> Result<(), String> {
    let (text, fd) = encode(trial);
    tell(socket, &text, fd)?;
    match answer(socket, deadline)?.as_str() {
        CONTEXT => has_context(),
        cause => return Err(cause.to_owned()),
    }
    tell(socket, CONTEXT, None)?;
    match answer(socket, deadline)?.as_str() {
        PROVED => Ok(()),
        cause => Err(cause.to_owned()),
    }
}

fn tell(socket: &OwnedFd, text: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), String> {
    send(socket.as_fd(), text, fd).map_err(|errno| match errno {
        rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET => DIED.to_owned(),
        errno => format!("the child process cannot be told: {errno}"),
    })
}

fn answer(socket: &OwnedFd, deadline: Instant) -> Result<String, String> {
    if !readable(socket.as_fd(), deadline) {
        return Err("the child process did not answer in time, and was killed".to_owned());
    }
    match receive(socket.as_fd()) {
        Ok(Some((text, _))) => Ok(text),
        Ok(None) | Err(rustix::io::Errno::CONNRESET) => Err(DIED.to_owned()),
        Err(errno) => Err(format!("the child process cannot be heard: {errno}")),
    }
}

/// Waits until `deadline` for the child to end, then kills it.
fn end(child: &mut Child, deadline: Instant) -> Result<(), String> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let gone = |until| {
        process
            .as_ref()
            .is_some_and(|process| readable(process.as_fd(), until))
    };
    let failed = |error: std::io::Error| format!("the child process cannot be waited for: {error}");
    if gone(deadline) {
        return child.wait().map(drop).map_err(failed);
    }
    child.kill().map_err(failed)?;
    // One that hangs in the driver does not even die: it is not waited for.
    if process.is_none() || gone(Instant::now() + KILLED) {
        child.wait().map_err(failed)?;
    }
    Err("the child process did not end, and was killed".to_owned())
}

/// Whether `fd` can be read from, or has ended, before `deadline`.
fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn encode(trial: &Trial) -> (String, Option<BorrowedFd<'_>>) {
    let (device, bytes, seed) = (trial.device, trial.bytes, trial.seed);
    let (export, fd) = match &trial.export {
        Export::Vmm(fd) => ("vmm".to_owned(), Some(fd.as_fd())),
        Export::Legacy(handle) => (
            handle.iter().map(|byte| format!("{byte:02x}")).collect(),
            None,
        ),
    };
    (format!("{device} {bytes} {seed} {export}"), fd)
}

fn decode(text: &str, fd: Option<OwnedFd>) -> Option<Trial> {
    let words: Vec<&str> = text.split(' ').collect();
    let [device, bytes, seed, export] = words.as_slice() else {
        return None;
    };
    let (mechanism, export) = match fd {
        Some(fd) => (Mechanism::Vmm, Export::Vmm(fd)),
        None => (Mechanism::Legacy, Export::Legacy(handle_of(export)?)),
    };
    Some(Trial {
        device: device.parse::<DeviceUuid>().ok()?,
        mechanism,
        export,
        bytes: bytes.parse().ok()?,
        seed: seed.parse().ok()?,
    })
}

fn handle_of(hex: &str) -> Option<[u8; 64]> {
    let mut handle = [0; 64];
    if hex.len() != 2 * handle.len() {
        return None;
    }
    for (at, byte) in handle.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(handle)
}

fn send(to: BorrowedFd<'_>, text: &str, fd: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(rustix::io::Errno::TOOBIG);
    }
    let bytes = [IoSlice::new(text.as_bytes())];
    sendmsg(to, &bytes, &mut control, SendFlags::NOSIGNAL).map(drop)
}

type Message = (String, Option<OwnedFd>);

/// One message; `None` when the other side is gone.
fn receive(from: BorrowedFd<'_>) -> rustix::io::Result<Option<Message>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(from, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fd = control.drain().find_map(|message| {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message {
            fds.next()
        } else {
            None
        }
    });
    bytes.truncate(got.bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok((got.bytes > 0).then_some((text, fd)))
}

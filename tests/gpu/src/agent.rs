//! Processes that use the device for a step. The step's own process never touches the driver: it
//! can hold descriptors of device memory as a process without CUDA does, and a fault on the device
//! ends no more than an agent.

use crate::Anything;
use crate::stats::Rounds;
use crate::wire::{Attached, Command, How, Poke, Reply, receive, send};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{self, Child, Stdio};
use std::time::{Duration, Instant};

/// How long one command may take. A driver that hangs must not take the step's whole time.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a driver may keep of what it took for its own work.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// A process that does what it is told. Killed when dropped.
pub(crate) struct Agent {
    child: Child,
    socket: OwnedFd,
}

/// What one agent exported, kept by the step's process, which has no CUDA.
pub(crate) struct Parcel {
    pub(crate) how: How,
    pub(crate) bytes: u64,
    handle: String,
    fd: Option<OwnedFd>,
}

impl Agent {
    /// Starts one.
    pub(crate) fn start() -> Anything<Self> {
        Self::start_below(&[])
    }

    /// Starts one with a context.
    pub(crate) fn ready() -> Anything<Self> {
        let mut agent = Self::start()?;
        agent.tell(&Command::Retain)?;
        Ok(agent)
    }

    /// From now on a command may take so long.
    pub(crate) fn wait_up_to(&mut self, time: Duration) -> Anything<()> {
        sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(time))?;
        Ok(())
    }

    /// Starts one by these words before its own command line, such as `unshare --ipc`.
    pub(crate) fn start_below(words: &[&str]) -> Anything<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (socket, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(DEADLINE))?;
        let own = std::env::current_exe()?;
        let mut command = match words.split_first() {
            None => process::Command::new(own),
            Some((first, rest)) => {
                let mut command = process::Command::new(first);
                command.args(rest).arg(own);
                command
            }
        };
        let child = command
            .arg("agent")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Sends a command and waits; an error is what the agent said, or its death.
    pub(crate) fn ask_with(
        &mut self,
        command: &Command,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), String> {
        let text = |error: Box<dyn std::error::Error>| error.to_string();
        send(self.socket.as_fd(), command, fd).map_err(text)?;
        let got: Option<(Reply, _)> =
            receive(&self.socket).map_err(|error| format!("no answer in time: {error}"))?;
        let Some((reply, fd)) = got else {
            let status = self.child.wait().map_err(|error| error.to_string())?;
            return Err(format!("the process died ({status})"));
        };
        match reply.error {
            Some(error) => Err(error),
            None => Ok((reply, fd)),
        }
    }

    pub(crate) fn tell(&mut self, command: &Command) -> Result<Reply, String> {
        self.ask_with(command, None).map(|(reply, _)| reply)
    }

    pub(crate) fn free_bytes(&mut self) -> Result<u64, String> {
        Ok(self.tell(&Command::Memory)?.free_bytes)
    }

    /// Waits until so much is free again; how much was missing at the end.
    pub(crate) fn await_free_bytes(&mut self, bytes: u64) -> Result<u64, String> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let missing = bytes.saturating_sub(self.free_bytes()?);
            if missing <= KEPT_BYTES_MAX || Instant::now() > end {
                return Ok(missing);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Allocates, filled by `seed`, and exports.
    pub(crate) fn lend(&mut self, how: How, bytes: u64, seed: u64) -> Result<Parcel, String> {
        let seed = Some(seed);
        self.tell(&Command::Drop)?;
        self.tell(&Command::Allocate {
            how,
            bytes,
            count: 1,
            seed,
        })?;
        self.export(0, how, bytes)
    }

    pub(crate) fn export(&mut self, at: usize, how: How, bytes: u64) -> Result<Parcel, String> {
        let (reply, fd) = self.ask_with(&Command::Export { at }, None)?;
        Ok(Parcel {
            how,
            bytes,
            handle: reply.text,
            fd,
        })
    }

    /// Passes a parcel on.
    pub(crate) fn take(&mut self, parcel: &Parcel) -> Result<(), String> {
        let command = Command::Take {
            how: parcel.how,
            bytes: parcel.bytes,
            handle: parcel.handle.clone(),
        };
        self.ask_with(&command, parcel.fd.as_ref().map(AsFd::as_fd))
            .map(drop)
    }

    /// Takes a parcel and opens it, and nothing else.
    pub(crate) fn open(&mut self, parcel: &Parcel) -> Result<(), String> {
        self.tell(&Command::Drop)?;
        self.take(parcel)?;
        self.tell(&Command::Open).map(drop)
    }

    pub(crate) fn check(&mut self, seed: u64) -> Result<(), String> {
        self.tell(&Command::Check { seed }).map(drop)
    }

    pub(crate) fn poke(&mut self, poke: Poke) -> Result<(), String> {
        self.tell(&Command::Poke(poke)).map(drop)
    }

    pub(crate) fn attach(&mut self, rounds: Rounds) -> Result<Attached, String> {
        let reply = self.tell(&Command::Attach(rounds))?;
        reply.attached.ok_or_else(|| "no samples".to_owned())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) -> Anything<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Parcel {
    /// What [`Command::CreateWithoutContext`] passed.
    pub(crate) fn of_vmm(bytes: u64, fd: OwnedFd) -> Self {
        Self {
            how: How::Vmm,
            bytes,
            handle: String::new(),
            fd: Some(fd),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A keeper in a process of its own, started by the daemon.

use super::{StartError, Transport};
use crate::degraded::Degraded;
use crate::keeper::link::{self, Link, LinkError, Taken};
use crate::keeper::process::Settings;
use crate::keeper::{Entry, KEEP_FOR_MS_DEFAULT, KEEPER_ARGUMENT, KEEPER_SOCKET, Key, Respawn};
use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::net::SocketAddrUnix;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a keeper may take for one packet.
const PATIENCE_MS: u64 = 5_000;
/// How many may wait to be accepted.
const BACKLOG: i32 = 16;

/// How to start a keeper, and where.
#[derive(Debug, Clone)]
pub struct ProcessKeeper {
    /// Where its socket is: [`KEEPER_SOCKET`] in the runtime directory.
    pub socket: PathBuf,
    /// The program that calls [`keeper_main`](crate::keeper::keeper_main) when its first argument
    /// is [`KEEPER_ARGUMENT`].
    pub program: PathBuf,
    /// Arguments before that one: none for `mrmd`.
    pub before: Vec<OsString>,
    /// How long it goes on without a daemon.
    pub keep_for_ms: u64,
    /// How it starts the daemon again, where nobody else does.
    pub respawn: Option<Respawn>,
    /// How long it may take for one packet before it is taken for dead.
    pub patience_ms: u64,
}

/// A started keeper.
pub(super) struct Started {
    settings: ProcessKeeper,
    link: Option<Link>,
    /// Where this process started it.
    child: Option<Child>,
}

impl ProcessKeeper {
    /// The keeper of a runtime directory: this very program, for ten minutes, without starting the
    /// daemon again.
    #[must_use]
    pub fn of(runtime_dir: &Path) -> Self {
        Self {
            socket: runtime_dir.join(KEEPER_SOCKET),
            program: "/proc/self/exe".into(),
            before: Vec::new(),
            keep_for_ms: KEEP_FOR_MS_DEFAULT,
            respawn: None,
            patience_ms: PATIENCE_MS,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }
}

impl Started {
    /// The keeper that is there, or a new one.
    pub(super) fn connect(
        settings: ProcessKeeper,
        degraded: &Degraded,
    ) -> Result<Self, StartError> {
        let mut started = Self {
            settings,
            link: None,
            child: None,
        };
        match Link::connect(&started.settings.socket, started.settings.patience()) {
            Ok(Some(link)) => started.link = Some(link),
            Ok(None) => started.start()?,
            Err(error) => {
                degraded.report(
                    "keeper",
                    format!(
                        "what the daemon before left is lost: the keeper was there, but {error}"
                    ),
                    super::CURE,
                );
                started.end_stranger();
                started.start()?;
            }
        }
        Ok(started)
    }

    fn link(&mut self) -> Result<&mut Link, LinkError> {
        self.link.as_mut().ok_or(LinkError::Ended)
    }

    /// Makes an end of a keeper that listens at the path and does not answer.
    fn end_stranger(&mut self) -> bool {
        let killed = link::process_at(&self.settings.socket).is_some_and(|it| self.kill(&it));
        // Whether or not it is dead: nobody is to find it any more.
        let _ = std::fs::remove_file(&self.settings.socket);
        killed
    }

    /// Kills it and waits until all that it held is given back.
    fn kill(&self, process: &OwnedFd) -> bool {
        // Fails when it is dead already, which is what is waited for.
        let _ = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL);
        let deadline = Instant::now() + self.settings.patience();
        link::wait(process.as_fd(), PollFlags::IN, deadline).unwrap_or(false)
    }

    fn bind(&self) -> io::Result<OwnedFd> {
        match std::fs::remove_file(&self.settings.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = link::socket()?;
        // The keeper accepts on it, and must not wait there.
        rustix::io::ioctl_fionbio(&socket, true)?;
        // The mode of a socket becomes that of its file: never more than its owner's.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&self.settings.socket)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    fn spawn(&self, listener: OwnedFd) -> io::Result<Child> {
        let settings = Settings {
            // It may be in another working directory.
            socket: std::path::absolute(&self.settings.socket)?,
            keep_for_ms: self.settings.keep_for_ms,
            respawn: self.settings.respawn.clone(),
        };
        let adj = std::fs::read_to_string("/proc/self/oom_score_adj").ok();
        let adj = adj.and_then(|text| text.trim().parse().ok());
        let output = match self.settings.respawn {
            // A daemon that is started again writes where this one does.
            Some(_) => Stdio::inherit(),
            None => Stdio::null(),
        };
        Command::new(&self.settings.program)
            .arg0("mrm-keeper")
            .args(&self.settings.before)
            .arg(KEEPER_ARGUMENT)
            .args(settings.to_args(adj))
            .stdin(Stdio::from(listener))
            .stdout(output)
            .spawn()
    }
}

impl Transport for Started {
    fn put(&mut self, entry: &Entry) -> Result<(), LinkError> {
        let description = entry.description().seal()?;
        let mut fds = vec![description.as_fd()];
        fds.extend(entry.fds().iter().map(|fd| (**fd).as_fd()));
        self.link()?.put(entry.key(), &fds)
    }

    fn remove(&mut self, key: &Key) -> Result<(), LinkError> {
        self.link()?.remove(key)
    }

    fn take_all(&mut self) -> Result<Taken, LinkError> {
        self.link()?.take_all()
    }

    fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    fn unasked(&mut self) -> Result<(), LinkError> {
        self.link()?.unasked()
    }

    fn end(&mut self) -> bool {
        let link = self.link.take();
        if let Some(mut child) = self.child.take() {
            let killed = child.kill();
            return killed.and_then(|()| child.wait()).is_ok();
        }
        // A keeper that ended took its socket with it, or is dead.
        match link.as_ref().and_then(Link::process) {
            Some(process) => self.kill(&process),
            None => self.end_stranger(),
        }
    }

    fn start(&mut self) -> Result<(), StartError> {
        let fail = |step| move |source| StartError { step, source };
        let listener = self.bind().map_err(fail("bind the socket of"))?;
        let child = self.spawn(listener).map_err(fail("start"))?;
        self.child = Some(child);
        let patience = self.settings.patience();
        match Link::connect(&self.settings.socket, patience) {
            Ok(Some(link)) => {
                self.link = Some(link);
                Ok(())
            }
            Ok(None) => {
                self.end();
                let source = io::Error::other("it ended at once; its log says why");
                Err(fail("reach")(source))
            }
            Err(error) => {
                self.end();
                Err(fail("reach")(io::Error::other(error.to_string())))
            }
        }
    }

    fn stop(&mut self) -> Result<(), LinkError> {
        let Some(link) = self.link.take() else {
            return Ok(());
        };
        let stopped = link.stop();
        if let (Ok(()), Some(mut child)) = (&stopped, self.child.take()) {
            // Its connection has ended, so that its process is about to.
            let _ = child.wait();
        }
        stopped
    }
}

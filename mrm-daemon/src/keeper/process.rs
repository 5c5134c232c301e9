//! The keeper's process: one thread, one socket, and the descriptors in its hands.
//!
//! Its standard input is the listening socket, which the daemon bound: the next daemon can connect
//! from the first moment on, and there is never a second keeper at one path.

use super::KEEP_FOR_MS_DEFAULT;
use super::hold::Holdings;
use super::respawn::{Happened, Respawn, Respawner};
use super::wire::{self, Packet, Received, Verb};
use crate::peer::Peer;
use crate::runtime::OpenFiles;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::DumpableBehavior;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

mod connection;
use connection::{Connection, Turn};

/// Connections that have not said hello.
const VISITORS_MAX: usize = 8;
/// How many may wait to be accepted.
const BACKLOG: i32 = 16;
/// Packets of a connection that are handled before others have their turn.
const PACKETS_A_TURN: usize = 64;
/// How long to wait while the kernel takes no more descriptors in flight: nothing tells when it does.
const IN_FLIGHT_WAIT: Duration = Duration::from_millis(10);
/// Complaints about strangers that are written down; others would fill the log.
const COMPLAINTS_MAX: u32 = 16;

/// What the daemon that started the keeper told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) socket: PathBuf,
    pub(super) keep_for_ms: u64,
    pub(super) respawn: Option<Respawn>,
}

/// What the keeper of a daemon does, until it is told to stop or nobody has come for long.
///
/// `args` are those after [`KEEPER_ARGUMENT`](super::KEEPER_ARGUMENT), and standard input must be
/// the listening socket: only [`ProcessKeeper`](super::ProcessKeeper) starts it. To be called
/// before anything else of the process: it starts no thread and no runtime. It ends with 0 when it
/// was told to, or nobody came; with 1 when it could not begin.
#[must_use]
pub fn keeper_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let prepared = Settings::parse(args).and_then(prepare);
    match prepared {
        Ok(process) => {
            process.run();
            ExitCode::SUCCESS
        }
        Err(reason) => {
            say(reason);
            ExitCode::FAILURE
        }
    }
}

struct Process {
    settings: Settings,
    listener: OwnedFd,
    /// Device and inode of the socket's file.
    file: Option<(u64, u64)>,
    uid: u32,
    holdings: Holdings,
    daemon: Option<Connection>,
    visitors: Vec<OwnedFd>,
    /// Since when there is no daemon.
    alone_since: Instant,
    respawner: Option<Respawner>,
    complaints: u32,
}

impl Settings {
    /// The arguments that [`parse`](Self::parse) reads.
    pub(super) fn to_args(&self, oom_score_adj: Option<i32>) -> Vec<OsString> {
        let mut args = vec![
            self.socket.clone().into(),
            self.keep_for_ms.to_string().into(),
        ];
        if let Some(respawn) = &self.respawn {
            let numbers = [
                oom_score_adj.map_or("none".into(), |adj| adj.to_string()),
                respawn.backoff_min_ms.to_string(),
                respawn.backoff_max_ms.to_string(),
                respawn.crashes_max.to_string(),
            ];
            args.push("--respawn".into());
            args.extend(numbers.map(OsString::from));
            args.push(respawn.program.clone().into());
            args.extend(respawn.args.iter().cloned());
        }
        args
    }

    pub(super) fn parse(
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<(Self, Option<i32>), String> {
        let mut args = args.into_iter();
        let mut next = |what: &str| args.next().ok_or(format!("{what} is missing"));
        let socket = PathBuf::from(next("the socket")?);
        let keep_for_ms = number(&next("the time to keep")?).unwrap_or(KEEP_FOR_MS_DEFAULT);
        let mut settings = Self {
            socket,
            keep_for_ms,
            respawn: None,
        };
        match next("--respawn") {
            Err(_) => return Ok((settings, None)),
            Ok(word) if word == "--respawn" => {}
            Ok(word) => return Err(format!("{} is no argument", word.display())),
        }
        let oom_score_adj = number(&next("an OOM score")?);
        let mut count = |what: &str| {
            let text = next(what)?;
            number::<u64>(&text).ok_or(format!("{what} is {}", text.display()))
        };
        let (backoff_min_ms, backoff_max_ms) = (count("a delay")?, count("a delay")?);
        let crashes_max = count("a count of crashes")?;
        settings.respawn = Some(Respawn {
            program: next("a program")?.into(),
            args: args.collect(),
            backoff_min_ms,
            backoff_max_ms,
            crashes_max: usize::try_from(crashes_max).unwrap_or(usize::MAX),
        });
        Ok((settings, oom_score_adj))
    }
}

fn number<T: std::str::FromStr>(text: &OsString) -> Option<T> {
    text.to_str()?.parse().ok()
}

/// Makes this process hard to kill by accident, and gets hold of the socket.
fn prepare((settings, oom_score_adj): (Settings, Option<i32>)) -> Result<Process, String> {
    let listener = io::stdin().as_fd().try_clone_to_owned();
    let listener = listener.map_err(|error| format!("standard input: {error}"))?;
    if sockopt::socket_acceptconn(&listener) != Ok(true) {
        return Err("standard input is no listening socket: mrmd starts its keeper itself".into());
    }
    // Again, so that whoever connects is told this process's credentials, not the daemon's.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| format!("listen: {error}"))?;
    // The first session leader is this process already when it is started by hand.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"mrm-keeper");
    if settings.respawn.is_none() {
        // No filesystem is held by it. A daemon that is started again may have relative arguments.
        let _ = std::env::set_current_dir("/");
    }
    // Before it stops being dumpable, after which the file belongs to root.
    spare_from_oom_killer();
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let files = OpenFiles::raise().soft;
    let files = files.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let respawner = settings.respawn.clone();
    Ok(Process {
        file: identity(&settings.socket),
        listener,
        uid: rustix::process::geteuid().as_raw(),
        holdings: Holdings::new(files),
        daemon: None,
        visitors: Vec::new(),
        alone_since: Instant::now(),
        respawner: respawner.map(|respawn| Respawner::new(respawn, oom_score_adj)),
        complaints: 0,
        settings,
    })
}

/// As low as it is permitted: root may go to the end.
fn spare_from_oom_killer() {
    for adj in (-10..0).map(|step| step * 100) {
        if std::fs::write("/proc/self/oom_score_adj", adj.to_string()).is_ok() {
            return;
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

fn say(what: impl Display) {
    // Where nobody reads it any more, there is nobody to tell.
    let _ = writeln!(io::stderr(), "mrmd keeper: {what}");
}

impl Process {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            if let Some(due) = self.respawner.as_ref().and_then(Respawner::due)
                && due <= now
            {
                self.start_daemon(now);
            }
            let ready = match self.wait(now) {
                Ok(ready) => ready,
                // The kernel is short of memory: it has been said, and the next attempt may do.
                Err(error) => {
                    self.complain(format_args!("poll: {error}"));
                    continue;
                }
            };
            // Whoever is at the door comes before the end.
            let over = self.ends_at().is_some_and(|end| end <= Instant::now());
            if over && ready.is_empty() {
                say(format_args!(
                    "no daemon for {} ms: {} entries with {} descriptors are let go",
                    self.settings.keep_for_ms,
                    self.holdings.entries(),
                    self.holdings.fds()
                ));
                break;
            }
            if self.serve(&ready) {
                break;
            }
        }
        self.end();
    }

    /// Everything is given back before anybody can see that the keeper is gone.
    fn end(mut self) {
        self.holdings.clear();
        // The path is ours until the listener is closed: no daemon replaces it before.
        if self.file.is_some() && identity(&self.settings.socket) == self.file {
            let _ = std::fs::remove_file(&self.settings.socket);
        }
    }

    fn ends_at(&self) -> Option<Instant> {
        let keep_for = Duration::from_millis(self.settings.keep_for_ms);
        match self.daemon {
            Some(_) => None,
            None => self.alone_since.checked_add(keep_for),
        }
    }

    /// Waits for the first of: a connection, a packet, the daemon's exit, a deadline.
    fn wait(&self, now: Instant) -> Result<Ready, Errno> {
        let due = self.respawner.as_ref().and_then(Respawner::due);
        let stuck = self.daemon.as_ref().is_some_and(Connection::is_stuck);
        let retry = stuck.then(|| now + IN_FLIGHT_WAIT);
        let deadline = [self.ends_at(), due, retry].into_iter().flatten().min();
        let timeout = deadline.map(|at| at.saturating_duration_since(now));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());

        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        for visitor in &self.visitors {
            fds.push(PollFd::new(visitor, PollFlags::IN));
        }
        let exit = self.respawner.as_ref().and_then(Respawner::exit);
        let daemon_at = fds.len();
        fds.extend(self.daemon.as_ref().map(Connection::poll));
        let exit_at = fds.len();
        fds.extend(exit.map(|exit| PollFd::from_borrowed_fd(exit, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Ready {
            accept: is_ready(&fds[0]),
            visitors: fds[1..daemon_at].iter().map(is_ready).collect(),
            daemon: stuck || fds[daemon_at..exit_at].iter().any(is_ready),
            exit: fds[exit_at..].iter().any(is_ready),
        })
    }

    /// Does what can be done; returns whether to end.
    fn serve(&mut self, ready: &Ready) -> bool {
        if ready.daemon && self.serve_daemon() {
            return true;
        }
        let mut visitors = std::mem::take(&mut self.visitors).into_iter();
        for is_ready in &ready.visitors {
            match visitors.next() {
                Some(visitor) if *is_ready => self.hear(visitor),
                Some(visitor) => self.visitors.push(visitor),
                None => {}
            }
        }
        if ready.accept {
            // Nobody waits long at the door, and nobody inside waits long for those at the door.
            for _ in 0..VISITORS_MAX - self.visitors.len().min(VISITORS_MAX - 1) {
                self.accept();
            }
        }
        if ready.exit {
            let happened = self.respawner.as_mut();
            let happened = happened.and_then(|it| it.exited(Instant::now()));
            tell(happened);
        }
        false
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            Err(error) => return self.complain(format_args!("accept: {error}")),
        };
        match nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials) {
            Ok(peer) if peer.uid() == self.uid => {}
            Ok(peer) => {
                let (pid, uid) = (peer.pid(), peer.uid());
                return self.complain(format_args!("refused process {pid} of uid {uid}"));
            }
            Err(error) => return self.complain(format_args!("refused a stranger: {error}")),
        }
        if self.visitors.len() >= VISITORS_MAX {
            // The one that has said nothing for longest.
            self.visitors.remove(0);
        }
        self.visitors.push(socket);
    }

    /// The first words of a visitor, who is the daemon from then on, or nobody.
    fn hear(&mut self, visitor: OwnedFd) {
        let hello = match wire::receive(&visitor) {
            Ok(Received::Packet(packet, _, _)) if packet.verb == Verb::Hello => packet,
            Ok(Received::Nothing) => return self.visitors.push(visitor),
            Ok(Received::End) => return,
            Ok(Received::Packet(packet, ..)) => {
                return self.complain(format_args!("{:?} before Hello", packet.verb));
            }
            Err(error) => return self.complain(error),
        };
        let now = Instant::now();
        if let (Some(respawner), Ok(peer)) = (&mut self.respawner, Peer::of(&visitor)) {
            respawner.came(peer.pid, peer.pidfd, now);
        }
        if let Some(before) = self.daemon.take() {
            say("another daemon takes over");
            let _ = wire::send(before, &Packet::bare(Verb::Replaced, 0), &[]);
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut welcome = Packet::bare(Verb::Welcome, hello.number);
        welcome.first = count(self.holdings.entries());
        welcome.total = count(self.holdings.fds());
        self.daemon = Some(Connection::new(visitor, welcome));
    }

    /// Returns whether to end.
    fn serve_daemon(&mut self) -> bool {
        for _ in 0..PACKETS_A_TURN {
            let Some(daemon) = &mut self.daemon else {
                return false;
            };
            match daemon.turn(&mut self.holdings) {
                Ok(Turn::More) => {}
                Ok(Turn::Wait) => return false,
                Ok(Turn::Stop) => return true,
                Ok(Turn::Gone) => {
                    self.daemon_went();
                    return false;
                }
                Err(error) => {
                    self.complain(format_args!("the daemon's connection is ended: {error}"));
                    self.daemon_went();
                    return false;
                }
            }
        }
        false
    }

    fn daemon_went(&mut self) {
        self.daemon = None;
        let now = Instant::now();
        self.alone_since = now;
        say(format_args!(
            "the daemon is gone: {} entries with {} descriptors are kept for {} ms",
            self.holdings.entries(),
            self.holdings.fds(),
            self.settings.keep_for_ms
        ));
        tell(self.respawner.as_mut().and_then(|it| it.went(now)));
    }

    fn start_daemon(&mut self, now: Instant) {
        let Some(respawner) = &mut self.respawner else {
            return;
        };
        if let Err((error, happened)) = respawner.start(now) {
            say(format_args!("the daemon cannot be started: {error}"));
            tell(happened);
        }
    }

    fn complain(&mut self, what: impl Display) {
        self.complaints = self.complaints.saturating_add(1);
        match self.complaints {
            n if n < COMPLAINTS_MAX => say(what),
            COMPLAINTS_MAX => say("more of this is not written down"),
            _ => {}
        }
    }
}

fn tell(happened: Option<Happened>) {
    match happened {
        None => {}
        Some(Happened::Died { crashes, delay_ms }) => say(format_args!(
            "the daemon died ({crashes} times in a minute): it is started again in {delay_ms} ms"
        )),
        Some(Happened::GaveUp { crashes }) => say(format_args!(
            "the daemon died {crashes} times in a minute: IT IS NOT STARTED AGAIN; start mrmd by \
             hand, its models are still here"
        )),
        Some(Happened::Final { status }) => say(format_args!(
            "the daemon ended with status {status}: it is not started again"
        )),
    }
}

/// What [`Process::wait`] found.
struct Ready {
    accept: bool,
    visitors: Vec<bool>,
    daemon: bool,
    exit: bool,
}

impl Ready {
    fn is_empty(&self) -> bool {
        let visitor = self.visitors.iter().any(|is_ready| *is_ready);
        !(self.accept || visitor || self.daemon || self.exit)
    }
}

//! The part of systemd that the daemon relies on: readiness, the fd store, and sockets that are
//! passed. Played by a thread of the test.

use crate::eventually;
use crate::node::{Setup, beside, command};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the manager has of a service.
#[derive(Debug, Default)]
struct Known {
    ready: u64,
    /// In the order in which they came.
    stored: Vec<(String, OwnedFd)>,
}

/// A service manager with one service.
#[derive(Debug)]
pub struct Manager {
    dir: PathBuf,
    known: Arc<Mutex<Known>>,
    capacity: usize,
}

impl Manager {
    /// With its socket in `dir`, and a store for so many descriptors.
    pub fn new(dir: &Path, capacity: usize) -> Self {
        let socket = UnixDatagram::bind(dir.join("systemd.sock")).expect("binds");
        let pause = Some(Duration::from_millis(100));
        socket.set_read_timeout(pause).expect("a timeout");
        let known = Arc::new(Mutex::new(Known::default()));
        let seen = Arc::downgrade(&known);
        std::thread::spawn(move || {
            while let Some(known) = seen.upgrade() {
                hear(&socket, &known, capacity);
            }
        });
        Self {
            dir: dir.to_owned(),
            known,
            capacity,
        }
    }

    /// Starts the service, with everything that is in the store, and waits until it is ready.
    pub fn start(&self, setup: &Setup) -> Child {
        let before = self.lock().ready;
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("mrmd.log"))
            .expect("a log");
        let daemon = command(&self.dir, setup);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        // What else this process was started with would be in the way of the numbers from 3 on.
        let script = "for fd in /proc/$$/fd/*; do n=${fd##*/}; \
                      if [ $n -gt 2 ]; then eval \"exec $n>&-\"; fi; done; exec \"$0\" \"$@\"";
        let mut passing = std::process::Command::new("bash");
        passing.arg("-c").arg(script).arg(beside("mrm-pass-fds"));
        passing.arg(daemon.get_program()).args(daemon.get_args());
        for (name, value) in daemon.get_envs() {
            match value {
                Some(value) => passing.env(name, value),
                None => passing.env_remove(name),
            };
        }
        let child = passing
            .env("NOTIFY_SOCKET", self.dir.join("systemd.sock"))
            .env("FDSTORE", self.capacity.to_string())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        drop(passing);
        self.pass(&ours);
        drop(ours);
        eventually("the service is ready", || {
            (self.lock().ready > before).then_some(())
        });
        child
    }

    /// Names of what is stored.
    pub fn stored(&self) -> Vec<String> {
        let known = self.lock();
        known.stored.iter().map(|(name, _)| name.clone()).collect()
    }

    /// How long the file behind a stored descriptor is, in bytes.
    pub fn length(&self, name: &str) -> u64 {
        let known = self.lock();
        let found = known.stored.iter().find(|(other, _)| other == name);
        let stat = rustix::fs::fstat(&found.expect("is stored").1).expect("a file");
        u64::try_from(stat.st_size).expect("a length")
    }

    /// Exchanges a stored descriptor for another.
    pub fn replace(&self, name: &str, fd: OwnedFd) {
        let mut known = self.lock();
        let found = known.stored.iter_mut().find(|(other, _)| other == name);
        found.expect("is stored").1 = fd;
    }

    /// Stores something that the service did not ask for.
    pub fn plant(&self, name: &str, fd: OwnedFd) {
        self.lock().stored.push((name.to_owned(), fd));
    }

    fn pass(&self, to: &UnixStream) {
        let known = self.lock();
        for (name, fd) in &known.stored {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = [fd.as_fd()];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            // A name fills its message, so that none runs into the next.
            let line = format!("{name:<255}\n");
            let slices = [IoSlice::new(line.as_bytes())];
            let sent = rustix::net::sendmsg(to, &slices, &mut ancillary, SendFlags::NOSIGNAL);
            assert_eq!(sent.expect("sends"), line.len());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("no test thread failed")
    }
}

/// One message, if one comes.
fn hear(socket: &UnixDatagram, known: &Mutex<Known>, capacity: usize) {
    let mut message = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut message)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let Ok(got) = rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags) else {
        return;
    };
    let mut fds: Vec<OwnedFd> = Vec::new();
    for received in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = received {
            fds.extend(passed);
        }
    }
    let text = String::from_utf8_lossy(&message[..got.bytes]);
    let has = |line: &str| text.lines().any(|other| other == line);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut known = known.lock().expect("no test thread failed");
    if has("READY=1") {
        known.ready += 1;
    }
    if has("FDSTOREREMOVE=1") {
        known.stored.retain(|(other, _)| Some(&**other) != name);
    } else if has("FDSTORE=1") {
        for fd in fds.drain(..) {
            let same = |other: &OwnedFd| is_same(other.as_fd(), fd.as_fd());
            // systemd stores nothing twice, and nothing beyond its limit.
            if known.stored.len() < capacity && !known.stored.iter().any(|(_, fd)| same(fd)) {
                known.stored.push((name.unwrap_or("stored").to_owned(), fd));
            }
        }
    }
    // A barrier's descriptor is closed here, after everything before it.
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let stat = |fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((stat(one), stat(other)), (Ok(one), Ok(other)) if one == other)
}

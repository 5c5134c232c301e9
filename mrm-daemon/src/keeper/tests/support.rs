//! Entries whose bytes are known, and processes that are heard and killed.

use crate::degraded::Degraded;
use crate::keeper::describe::{
    Description, Image, ImageMechanism, Instance, Segment, SegmentKind, SourceRef,
};
use crate::keeper::link::{self, Link};
use crate::keeper::{
    Adopted, Adoption, Done, Entry, KeepError, Keeper, Key, ProcessKeeper, SharedFd,
};
use crate::memory::{HostSegment, charge_for};
use mrm_proto::ids::{DeviceUuid, Digest, InstanceId};
use mrm_proto::layout::Granularity;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::PollFlags;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Nothing here takes this long.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// The arguments with which this binary plays a role.
pub(super) const ROLE: [&str; 4] = ["--exact", "keeper::tests::role", "--nocapture", "--"];

pub(super) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// A keeper that this binary plays. It does not outlive a failed test for long.
pub(super) fn settings(dir: &Path) -> ProcessKeeper {
    ProcessKeeper {
        program: std::env::current_exe().unwrap(),
        before: ROLE.map(Into::into).into(),
        keep_for_ms: 60_000,
        patience_ms: 30_000,
        ..ProcessKeeper::of(dir)
    }
}

#[track_caller]
pub(super) fn keeper(dir: &Path) -> Keeper {
    Keeper::process(settings(dir), &Degraded::new()).unwrap()
}

/// What is given to the callback.
pub(super) fn done() -> (Option<Done>, Receiver<Result<(), KeepError>>) {
    let (tell, told) = channel();
    let done: Done = Box::new(move |result| drop(tell.send(result)));
    (Some(done), told)
}

#[track_caller]
pub(super) fn put(keeper: &Keeper, entry: Entry) -> Result<(), KeepError> {
    let (done, told) = done();
    keeper.put(entry, done);
    told.recv_timeout(DEADLINE).unwrap()
}

#[track_caller]
pub(super) fn remove(keeper: &Keeper, key: &Key) -> Result<(), KeepError> {
    let (done, told) = done();
    keeper.remove(key, done);
    told.recv_timeout(DEADLINE).unwrap()
}

/// Bytes that only `name` has.
pub(super) fn bytes_of(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 5_000];
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) fn memfd(bytes: &[u8]) -> HostSegment {
    HostSegment::holding(bytes, &Degraded::new()).unwrap()
}

pub(super) fn segment_of(bytes: &[u8]) -> Segment {
    let digest = Digest(*blake3::hash(bytes).as_bytes());
    Segment {
        digest: Some(digest),
        bytes: bytes.len() as u64,
        charge_bytes: charge_for(bytes.len() as u64),
        kind: SegmentKind::Table,
        sources: vec![SourceRef::Table(digest)],
        load_us: 17,
    }
}

pub(super) fn segment(name: &str) -> Entry {
    let bytes = bytes_of(name);
    let fd: SharedFd = Arc::new(memfd(&bytes));
    let description = Description::Segment(segment_of(&bytes));
    Entry::new(key(name), description, vec![fd]).unwrap()
}

/// As many descriptors, each of which says which it is.
pub(super) fn image(name: &str, allocations: usize) -> Entry {
    let fds = (0..allocations).map(|at| Arc::new(memfd(&at.to_le_bytes())) as SharedFd);
    image_over(name, fds.collect())
}

pub(super) fn image_over(name: &str, fds: Vec<SharedFd>) -> Entry {
    let description = Description::Image(Image {
        device: DeviceUuid([7; 16]),
        mechanism: ImageMechanism::Vmm,
        granularity: Granularity::Block { block_bytes: 4096 },
        allocations_bytes: vec![8; fds.len()],
        digest: Digest([1; 32]),
        table: Digest([2; 32]),
        charge_bytes: 1 << 30,
        files: vec![SourceRef::Table(Digest([3; 32]))],
        owner: Some(1000),
        others: None,
    });
    Entry::new(key(name), description, fds).unwrap()
}

/// An entry without any descriptor but its description, which says `counter`.
pub(super) fn instance(name: &str, counter: u64) -> Entry {
    let description = Description::Instance(Instance {
        instance: InstanceId(7),
        release: "test".into(),
        counters: vec![counter],
    });
    Entry::new(key(name), description, Vec::new()).unwrap()
}

pub(super) fn counter(adopted: &Adopted) -> u64 {
    let Description::Instance(instance) = &adopted.description else {
        panic!("{:?}", adopted.description)
    };
    instance.counters[0]
}

pub(super) fn read(fd: impl AsFd) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let length = rustix::io::pread(fd, &mut bytes, 0).unwrap();
    bytes.truncate(length);
    bytes
}

pub(super) fn keys(adoption: &Adoption) -> Vec<&str> {
    adoption.entries.iter().map(|it| it.key.as_str()).collect()
}

/// Panics unless the entry has what [`segment`] or [`image`] put into it.
#[track_caller]
pub(super) fn verify(adopted: &Adopted) {
    match &adopted.description {
        Description::Segment(segment) => {
            let bytes = bytes_of(adopted.key.as_str());
            assert_eq!(*segment, segment_of(&bytes));
            assert_eq!(read(&adopted.fds[0]), bytes);
        }
        Description::Image(image) => {
            assert_eq!(adopted.fds.len(), image.allocations_bytes.len());
            for (at, fd) in adopted.fds.iter().enumerate() {
                assert_eq!(read(fd), at.to_le_bytes());
            }
        }
        Description::Instance(_) => assert!(adopted.fds.is_empty()),
        other @ (Description::Version(_) | Description::Listener(_)) => panic!("{other:?}"),
    }
}

/// The next daemon adopts what is there, in whole, and stops the keeper.
#[track_caller]
pub(super) fn adopt_and_stop(dir: &Path) -> Adoption {
    let keeper = keeper(dir);
    let adoption = keeper.adopt_all();
    adoption.entries.iter().for_each(verify);
    keeper.stop();
    assert!(!settings(dir).socket.exists());
    adoption
}

/// A connection as the daemon, without a thread.
pub(super) fn link(dir: &Path) -> Link {
    let link = Link::connect(&settings(dir).socket, DEADLINE).unwrap();
    link.expect("a keeper listens")
}

/// The keeper's process.
pub(super) fn keeper_pid(dir: &Path) -> i32 {
    let socket = link::socket().unwrap();
    let address = rustix::net::SocketAddrUnix::new(settings(dir).socket).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let pid = getsockopt(&socket, sockopt::PeerCredentials).unwrap().pid();
    assert_ne!(
        pid.unsigned_abs(),
        std::process::id(),
        "the keeper has said hello"
    );
    pid
}

pub(super) fn pidfd(pid: i32) -> OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

/// Waits for a descriptor to be readable, or at its end.
#[track_caller]
pub(super) fn wait_for(fd: impl AsFd) {
    let deadline = Instant::now() + DEADLINE;
    assert!(link::wait(fd.as_fd(), PollFlags::IN, deadline).unwrap());
}

/// A run of this binary in a role. Killed when it drops.
pub(super) struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    pub(super) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub(super) fn of(args: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(ROLE).args(args);
        Self::start(command)
    }

    /// What it said last, which must be `said ...`.
    pub(super) fn hear(&mut self, said: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "{said:?} was not said");
            if let Some(rest) = line.trim_end().strip_prefix(said) {
                return rest.trim().to_owned();
            }
        }
    }

    /// What it holds of its output stays open: its keeper has that too.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub(super) fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says something to whoever started this role.
pub(super) fn say(what: &str) {
    let mut out = std::io::stdout();
    write!(out, "\n{what}\n").unwrap();
    out.flush().unwrap();
}

/// Until this role is killed, or its parent is gone.
pub(super) fn linger() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

//! Strangers and garbage: the keeper survives, and what it keeps stays whole.

use super::support::*;
use crate::degraded::Degraded;
use crate::keeper::link;
use crate::keeper::wire::{self, Packet, Received, Verb};
use crate::keeper::{KeepError, Keeper};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg};
use std::fs::{File, Permissions};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// A user that is nobody's.
const NOBODY: u32 = 65_534;
const SEED: u64 = 0x6d72_6d6b;

/// xorshift64*: a repeatable stream for garbage.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: u64) -> Vec<u8> {
        (0..n).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

fn connect(dir: &Path) -> OwnedFd {
    let socket = link::socket().unwrap();
    let address = SocketAddrUnix::new(settings(dir).socket).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    socket
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: usize) {
    let null = File::open("/dev/null").unwrap();
    let fds = vec![null.as_fd(); fds];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // It may have ended the connection already.
    let _ = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    );
}

/// A header that may be right, with fields that are not.
fn almost(random: &mut Random) -> Vec<u8> {
    let mut bytes = b"MRMK\x01".to_vec();
    bytes.push(u8::try_from(random.below(24)).unwrap());
    bytes.extend(u16::try_from(random.below(300)).unwrap().to_le_bytes());
    bytes.extend(random.below(3).to_le_bytes());
    bytes.extend(u32::try_from(random.below(3)).unwrap().to_le_bytes());
    bytes.extend(u32::try_from(random.below(6000)).unwrap().to_le_bytes());
    let key = random.below(80);
    bytes.extend((0..key).map(|_| b'a'));
    bytes
}

#[test]
fn garbage_is_bounded_and_changes_nothing() {
    println!("seed {SEED}");
    let mut random = Random(SEED);
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    put(&keeper, segment("a")).unwrap();
    let pid = keeper_pid(dir.path());
    let mut silent = Vec::new();
    for round in 0..300 {
        let stranger = connect(dir.path());
        for _ in 0..random.below(4) {
            let fds = usize::try_from(random.below(254)).unwrap();
            let length = random.below(300);
            let bytes = match random.below(2) {
                0 => random.bytes(length),
                _ => almost(&mut random),
            };
            // Hello would be a daemon, which is tested elsewhere.
            if bytes.get(5) != Some(&(Verb::Hello as u8)) {
                send(&stranger, &bytes, fds);
            }
        }
        if round % 4 == 0 {
            silent.push(stranger);
        }
    }
    // The daemon is still the daemon.
    put(&keeper, segment("b")).unwrap();
    assert_eq!(keeper_pid(dir.path()), pid);
    // Two entries of two, itself and its visitors; more only while it takes what it is sent apart.
    let until = Instant::now() + Duration::from_secs(20);
    while std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|open| open.count() >= 40) {
        assert!(
            Instant::now() < until,
            "the keeper keeps what is not its daemon's"
        );
        std::thread::yield_now();
    }
    drop(keeper);
    assert_eq!(keys(&adopt_and_stop(dir.path())), ["a", "b"]);
}

#[test]
fn a_broken_daemon_loses_its_connection_and_nothing_else() {
    println!("seed {SEED}");
    let mut random = Random(SEED ^ 1);
    let dir = tempfile::tempdir().unwrap();
    let first = keeper(dir.path());
    put(&first, segment("a")).unwrap();
    drop(first);
    for _ in 0..200 {
        let daemon = connect(dir.path());
        wire::send(&daemon, &Packet::bare(Verb::Hello, 1), &[]).unwrap();
        for _ in 0..8 {
            let fds = usize::try_from(random.below(254)).unwrap();
            let bytes = almost(&mut random);
            // Anybody who is the daemon may stop it, or remove what there is.
            let verb = bytes[5];
            if verb != Verb::Stop as u8 && !(bytes.len() == 25 && verb == Verb::Remove as u8) {
                send(&daemon, &bytes, fds);
            }
        }
    }
    let adoption = {
        let next = keeper(dir.path());
        let adoption = next.adopt_all();
        next.stop();
        adoption
    };
    let a = adoption.entries.iter().find(|it| it.key == key("a"));
    // One of the packets may have been a whole and right entry of that name: then it is dropped.
    match a {
        Some(a) => verify(a),
        None => assert!(
            adoption.dropped.iter().any(|it| it.key == key("a")),
            "{adoption:?}"
        ),
    }
}

/// Another user says hello.
pub(super) fn visit(args: &[String]) {
    // Here and not by the parent, whose fork would share the mappings of other tests for a moment.
    nix::unistd::setgid(NOBODY.into()).unwrap();
    nix::unistd::setuid(NOBODY.into()).unwrap();
    let socket = link::socket().unwrap();
    let address = SocketAddrUnix::new(Path::new(&args[0])).unwrap();
    let said = match rustix::net::connect(&socket, &address) {
        Err(error) => format!("{:?}", std::io::Error::from(error).kind()),
        Ok(()) => {
            let _ = wire::send(&socket, &Packet::bare(Verb::Hello, 1), &[]);
            wait_for(&socket);
            match wire::receive(&socket) {
                Ok(Received::End) => "ended".into(),
                Ok(Received::Packet(packet, ..)) => format!("{:?}", packet.verb),
                Ok(Received::Nothing) => "nothing".into(),
                Err(error) => error.to_string(),
            }
        }
    };
    say(&format!("visited {said}"));
}

#[test]
fn another_user_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    let socket = settings(dir.path()).socket;
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    if !rustix::process::geteuid().is_root() {
        println!("not root: nobody else to be");
        return keeper.stop();
    }
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let visit = || Role::of(&["--visit", socket.to_str().unwrap()]).hear("visited");
    assert_eq!(visit(), "PermissionDenied", "by the mode of the socket");
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(visit(), "ended", "by the credentials of the peer");
    put(&keeper, segment("a")).unwrap();
    keeper.stop();
}

#[test]
fn what_was_tampered_with_is_dropped_by_name_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    drop(keeper(dir.path()));
    let mut raw = link(dir.path());
    let good = segment("good");
    let memory = (*good.fds()[0]).as_fd();
    let description = good.description().seal().unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.description().encode().unwrap();
        bytes[at] ^= 1;
        memfd(&bytes)
    };
    let unsealed = |bytes: &[u8]| {
        let fd = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, bytes).unwrap();
        fd
    };
    let loose = unsealed(&good.description().encode().unwrap());
    let loose_memory = unsealed(&bytes_of("good"));
    let short = memfd(&bytes_of("good")[..4_999]);
    let (body, format) = (flipped(100), flipped(8));
    let null = File::open("/dev/null").unwrap();
    let sealed = description.as_fd();
    let cases: [(&str, Vec<_>, &str); 8] = [
        ("checksum", vec![body.as_fd(), memory], "checksum"),
        ("format", vec![format.as_fd(), memory], "has format 0"),
        (
            "loose",
            vec![loose.as_fd(), memory],
            "description is not sealed",
        ),
        ("null", vec![null.as_fd(), memory], "reading the seals"),
        (
            "memory",
            vec![sealed, loose_memory.as_fd()],
            "memory is not sealed",
        ),
        ("short", vec![sealed, short.as_fd()], "has 4999 bytes"),
        ("few", vec![sealed], "with 0 descriptors, and describes 1"),
        ("many", vec![sealed, memory, memory], "with 2 descriptors"),
    ];
    raw.put(&key("good"), &[sealed, memory]).unwrap();
    for (name, fds, _) in &cases {
        raw.put(&key(name), fds).unwrap();
    }
    drop(raw);

    let degraded = Degraded::new();
    let keeper = Keeper::process(settings(dir.path()), &degraded).unwrap();
    let adoption = keeper.adopt_all();
    assert_eq!(keys(&adoption), ["good"]);
    assert_eq!(adoption.dropped.len(), cases.len());
    for (name, _, reason) in cases {
        let dropped = adoption.dropped.iter().find(|it| it.key == key(name));
        let said = dropped.expect(name).to_string();
        assert!(said.contains(reason), "{said}");
    }
    let told = degraded.list();
    assert_eq!((told[0].id, told[0].times), ("keeper_dropped", 8));
    // After what was to be removed, since it was asked for later.
    put(&keeper, segment("last")).unwrap();
    drop(keeper);
    let mut list = link(dir.path()).list().unwrap();
    list.sort();
    assert_eq!(list, [(key("good"), 2), (key("last"), 2)]);
    adopt_and_stop(dir.path());
}

#[test]
fn nothing_is_kept_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = keeper(dir.path());
    put(&keeper, segment("a")).unwrap();
    keeper.stop();
    assert_eq!(put(&keeper, segment("b")), Err(KeepError::Ended));
    assert_eq!(put(&Keeper::none(), segment("b")), Ok(()));
    assert_eq!(remove(&Keeper::none(), &key("b")), Ok(()));
}

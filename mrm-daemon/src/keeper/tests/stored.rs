//! The fd store of systemd, played by a thread that does what `systemd` does with the messages.

use super::support::*;
use crate::degraded::Degraded;
use crate::keeper::describe::Description;
use crate::keeper::{KeepError, Keeper, RefusedBy};
use crate::runtime::FdStore;
use rustix::fs::fstat;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

type Stored = Vec<(String, OwnedFd)>;

/// What the manager has, and what it had after each message.
#[derive(Default)]
struct Memory {
    stored: Stored,
    moments: Vec<Stored>,
}

struct Manager {
    path: PathBuf,
    memory: Arc<Mutex<Memory>>,
    thread: Option<JoinHandle<()>>,
}

fn copy(stored: &Stored) -> Stored {
    let copy = |(name, fd): &(String, OwnedFd)| (name.clone(), fd.try_clone().unwrap());
    stored.iter().map(copy).collect()
}

fn is_same(a: &OwnedFd, b: &OwnedFd) -> bool {
    let (a, b) = (fstat(a).unwrap(), fstat(b).unwrap());
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

impl Manager {
    fn start(dir: &Path, name: &str, stored: Stored) -> Self {
        let path = dir.join(name);
        let socket = UnixDatagram::bind(&path).unwrap();
        let memory = Arc::new(Mutex::new(Memory {
            stored,
            moments: Vec::new(),
        }));
        let shared = memory.clone();
        let thread = std::thread::spawn(move || while hear(&socket, &shared) {});
        Self {
            path,
            memory,
            thread: Some(thread),
        }
    }

    fn keeper(&self, capacity: usize, stored: Stored) -> Keeper {
        let store = FdStore::at(&self.path, capacity);
        Keeper::systemd(store, stored, &Degraded::new()).unwrap()
    }

    fn stored(&self) -> Stored {
        copy(&self.memory.lock().unwrap().stored)
    }

    fn moments(&self) -> usize {
        self.memory.lock().unwrap().moments.len()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let end = UnixDatagram::unbound().unwrap();
        let _ = end.send_to(b"END=1\n", &self.path);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

/// Handles one message; returns whether to go on.
fn hear(socket: &UnixDatagram, memory: &Mutex<Memory>) -> bool {
    let mut bytes = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    let text = String::from_utf8(bytes[..got.bytes].to_vec()).unwrap();
    let has = |line: &str| text.lines().any(|it| it == line);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut memory = memory.lock().unwrap();
    if has("FDSTORE=1") {
        assert!(has("FDPOLL=0") && fds.len() == 1, "{text}");
        let fd = fds.remove(0);
        if !memory.stored.iter().any(|(_, known)| is_same(known, &fd)) {
            memory.stored.push((name.unwrap().to_owned(), fd));
        }
    } else if has("FDSTOREREMOVE=1") {
        memory.stored.retain(|(known, _)| known != name.unwrap());
    } else if !has("BARRIER=1") {
        assert_eq!(text, "END=1\n");
        return false;
    }
    // A real store has no order.
    memory.stored.reverse();
    let moment = copy(&memory.stored);
    memory.moments.push(moment);
    true
}

type State = BTreeMap<String, Description>;

fn state_of(keeper: &Keeper) -> State {
    let adoption = keeper.adopt_all();
    adoption
        .entries
        .iter()
        .for_each(|it| match &it.description {
            Description::Segment(_) => assert_eq!(read(&it.fds[0]), bytes_of(it.key.as_str())),
            Description::Image(_)
            | Description::Version(_)
            | Description::Listener(_)
            | Description::Instance(_) => verify(it),
        });
    let entries = adoption.entries.into_iter();
    entries
        .map(|it| (it.key.to_string(), it.description))
        .collect()
}

#[test]
fn a_kill_after_any_message_leaves_whole_entries_only() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::start(dir.path(), "manager", Vec::new());
    let keeper = manager.keeper(100, Vec::new());
    let mut state = State::new();
    let mut states = vec![(0, state.clone())];
    let a = segment("a");
    let renewed = {
        let Description::Segment(mut it) = a.description().clone() else {
            panic!("it is one")
        };
        it.load_us += 1;
        let fds = a.fds().to_vec();
        crate::keeper::Entry::new(key("a"), Description::Segment(it), fds).unwrap()
    };
    for entry in [
        a,
        image("b.0-1", 3),
        instance("c", 1),
        instance("c", 2),
        renewed,
        image("c", 2),
    ] {
        state.insert(entry.key().to_string(), entry.description().clone());
        put(&keeper, entry).unwrap();
        states.push((manager.moments(), state.clone()));
    }
    state.remove("b.0-1");
    remove(&keeper, &key("b.0-1")).unwrap();
    states.push((manager.moments(), state.clone()));
    drop(keeper);

    let moments: Vec<Stored> = manager.memory.lock().unwrap().moments.drain(..).collect();
    assert!(moments.len() > 20, "{}", moments.len());
    for (at, moment) in moments.into_iter().enumerate() {
        // What is there after message `at + 1` is what was before the change, or after it. The
        // exchange of descriptors under one key is the one change that may leave neither.
        let after = states.iter().position(|(sent, _)| *sent > at).unwrap();
        let next = Manager::start(dir.path(), &format!("{at}"), copy(&moment));
        let keeper = next.keeper(100, moment);
        let found = state_of(&keeper);
        let (mut old, new) = (states[after - 1].1.clone(), &states[after].1);
        if found != *new && found != old && after == 6 {
            old.remove("c");
        }
        assert!(
            found == *new || found == old,
            "after message {}: {found:?}",
            at + 1
        );

        // Nothing else is left in the store.
        put(&keeper, instance("last", 1)).unwrap();
        drop(keeper);
        let clean = next.keeper(100, next.stored());
        assert!(clean.adopt_all().dropped.is_empty());
        let fds: usize = found.values().map(|it| it.fds() + 1).sum();
        assert_eq!(next.stored().len(), fds + 1, "after message {}", at + 1);
    }
}

#[test]
fn a_store_that_is_full_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let manager = Manager::start(dir.path(), "manager", Vec::new());
    let keeper = manager.keeper(5, Vec::new());
    put(&keeper, image("a", 2)).unwrap();
    let refused = put(&keeper, image("b", 2));
    assert_eq!(refused, Err(KeepError::Refused(RefusedBy::Descriptors)));
    put(&keeper, segment("c")).unwrap();
    assert_eq!(manager.stored().len(), 5);
    remove(&keeper, &key("a")).unwrap();
    put(&keeper, image("b", 2)).unwrap();
    // Its end keeps everything: systemd knows whether this is a restart.
    keeper.stop();
    let next = manager.keeper(5, manager.stored());
    let adoption = next.adopt_all();
    assert_eq!(keys(&adoption), ["b", "c"]);
    adoption.entries.iter().for_each(verify);
}

#[test]
fn names_that_are_none_of_ours_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let fd = || memfd(b"x").fd().try_clone_to_owned().unwrap();
    let names = [
        "mrm_a",
        "mrm_A_0_0",
        "mrm_a_1_1",
        "mrm_a_0",
        "mrm_a_x",
        "mrm_a_0_0_0",
    ];
    let stored: Stored = names
        .iter()
        .map(|name| ((*name).to_owned(), fd()))
        .collect();
    let manager = Manager::start(dir.path(), "manager", copy(&stored));
    let keeper = manager.keeper(100, stored);
    assert!(keeper.adopt_all().entries.is_empty());
    put(&keeper, instance("a", 1)).unwrap();
    assert_eq!(manager.stored().len(), 1);
}

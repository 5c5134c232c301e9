//! What tests of bad input share: frames that break a rule, how a session ends, and the books
//! that must be as before.

use crate::node::Node;
use crate::raw::Raw;
use crate::{eventually, http};
use mrm_proto::error::{ErrorCode, ErrorReply};
use mrm_proto::frame::{self, Kind, Message};
use mrm_proto::ids::{LeaseId, RequestId};
use mrm_proto::name::{FileName, ModelName};
use mrm_proto::reply::{Opened, Reply};
use mrm_proto::request::{Close, Open, OpenFiles, Request};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A user and a group that own nothing.
pub const NOBODY: u32 = 65_534;

/// A frame header with any field, right or wrong.
pub fn header(kind: u16, fds: u8, flags: u8, body_bytes: u32, reserved: u32, id: u64) -> Vec<u8> {
    let mut out = frame::MAGIC.to_vec();
    out.extend(kind.to_le_bytes());
    out.extend([fds, flags]);
    out.extend(body_bytes.to_le_bytes());
    out.extend(reserved.to_le_bytes());
    out.extend(id.to_le_bytes());
    out
}

/// A whole frame of `kind` with any body.
pub fn framed(kind: u16, fds: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = header(kind, fds, 0, u32::try_from(body.len()).unwrap(), 0, id);
    out.extend_from_slice(body);
    out
}

/// The good frame of a message that announces `fds` descriptors.
pub fn encoded(id: u64, fds: usize, message: &impl Message) -> Vec<u8> {
    frame::encode(RequestId(id), u8::try_from(fds).unwrap(), message).unwrap()
}

/// An open by name.
pub fn open(name: &str, wait_ms: u64) -> Request {
    let model = ModelName::new(name).unwrap();
    Request::Open(Open {
        model,
        wait_ms,
        progress: false,
        devices: None,
        wait_for: None,
        known: None,
    })
}

/// An open by descriptors.
pub fn open_files(label: &str, files: &[&str]) -> Request {
    let files = files
        .iter()
        .map(|name| FileName::new(*name).unwrap())
        .collect();
    let label = ModelName::new(label).unwrap();
    Request::OpenFiles(OpenFiles {
        label,
        files,
        wait_ms: 0,
        progress: false,
        devices: None,
        wait_for: None,
    })
}

pub fn close(lease: LeaseId) -> Request {
    Request::Close(Close { lease })
}

/// Opens by name and returns the grant with its descriptors: the table, then each file.
pub fn granted(raw: &mut Raw, id: u64, name: &str) -> (Opened, Vec<OwnedFd>) {
    raw.send(RequestId(id), &open(name, 0), &[]);
    match raw.reply() {
        Some((RequestId(got), Reply::Opened(opened), fds)) if got == id => (opened, fds),
        other => panic!("`{name}` was not granted: {other:?}"),
    }
}

/// Asks for what must be refused, on a session that goes on.
pub fn refused(raw: &mut Raw, id: u64, request: &Request, fds: &[BorrowedFd<'_>]) -> ErrorReply {
    match raw.ask(RequestId(id), request, fds) {
        Reply::Error(error) => error,
        other => panic!("{request:?} was not refused: {other:?}"),
    }
}

/// Reads until the session says why it ends, and then the end of the stream.
pub fn ending(raw: &mut Raw) -> ErrorReply {
    let error = loop {
        match raw.receive() {
            Some((header, body, _)) if (header.kind, header.request.0) == (Kind::Error, 0) => {
                match Reply::decode(&header, &body) {
                    Ok(Reply::Error(error)) => break error,
                    other => panic!("no good error: {other:?}"),
                }
            }
            Some(_) => {}
            None => panic!("the session ended without a word"),
        }
    };
    assert!(
        raw.receive().is_none(),
        "the session goes on after {}",
        error.message
    );
    error
}

/// Sends bytes that must end the session with `code`, alone.
pub fn ends_session(node: &Node, bytes: &[u8], fds: &[BorrowedFd<'_>], code: ErrorCode) {
    let mut raw = Raw::hello(&node.socket());
    // The daemon may hang up while we still write.
    let _ = raw.send_bytes(bytes, fds);
    let error = ending(&mut raw);
    assert_eq!(error.code(), Some(code), "{}", error.message);
    assert!(!error.message.is_empty());
}

/// The whole content of a segment, read by position.
pub fn content(fd: &OwnedFd, bytes: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(bytes).unwrap()];
    let mut at = 0;
    while at < out.len() {
        let n = rustix::io::pread(fd, &mut out[at..], at as u64).expect("reads");
        assert!(n > 0, "the segment is shorter than its grant says");
        at += n;
    }
    out
}

/// Another client opens `name` and reads the right bytes.
pub fn still_serves(node: &Node, name: &str, image: &[u8]) {
    let mut raw = Raw::hello(&node.socket());
    let (opened, fds) = granted(&mut raw, 2, name);
    assert_eq!(opened.segments_bytes, [image.len() as u64]);
    assert!(
        content(&fds[1], image.len() as u64) == image,
        "`{name}` has other bytes"
    );
}

/// Borrows `count` times the same descriptor.
pub fn copies(fd: &impl AsFd, count: usize) -> Vec<BorrowedFd<'_>> {
    vec![fd.as_fd(); count]
}

/// Descriptors and segments of a daemon at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Baseline {
    fds: usize,
    memfds: usize,
}

impl Baseline {
    /// What an idle daemon holds.
    pub fn of(node: &Node) -> Self {
        node.until_idle();
        // The status connection that asked is closed a moment after its answer.
        let mut last = Self::now(node);
        eventually("the descriptors settle", || {
            let now = Self::now(node);
            let same = now == last && node.number("/sessions") == 0 && Self::now(node) == now;
            last = now;
            same.then_some(now)
        })
    }

    fn now(node: &Node) -> Self {
        let dir = fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("is there");
        let links = dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        let links: Vec<_> = links.collect();
        let memfds = links
            .iter()
            .filter(|link| link.to_string_lossy().contains("memfd:"));
        Self {
            fds: links.len(),
            memfds: memfds.count(),
        }
    }

    /// Waits until the daemon is idle and holds no more than this.
    pub fn is_restored(self, node: &Node) {
        node.until_idle();
        let mut now = Self::now(node);
        let until = std::time::Instant::now() + crate::DEADLINE;
        while now.fds > self.fds || now.memfds > self.memfds {
            assert!(
                std::time::Instant::now() < until,
                "leaked: {now:?}, before {self:?}"
            );
            std::thread::yield_now();
            now = Self::now(node);
        }
    }
}

/// Evicts a registered model and waits for its memory.
pub fn evict(node: &Node, name: &str) {
    eventually("the model can be evicted", || {
        let (status, body) = http::request(
            &node.status_socket(),
            "POST",
            &format!("/v1/models/{name}/evict?wait_ms=30000"),
        );
        assert!(matches!(status, 200 | 404 | 409), "{status}: {body}");
        (status != 409).then_some(())
    });
}

/// Lets every user reach the daemon's sockets below its temporary directory.
pub fn let_everybody_in(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("our own directory");
}

/// Runs `action` on a thread that is the user `uid`; `None`, said aloud, when we are not root.
///
/// Credentials belong to threads: to the kernel, and so to the daemon, this is another user.
pub fn as_user<T: Send>(uid: u32, action: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can become another user (uid {uid})");
        return None;
    }
    let run = || {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        set_thread_groups(&[]).expect("root may");
        set_thread_res_gid(group, group, group).expect("root may");
        set_thread_res_uid(user, user, user).expect("root may");
        action()
    };
    std::thread::scope(|scope| Some(scope.spawn(run).join().expect("the other user's thread")))
}

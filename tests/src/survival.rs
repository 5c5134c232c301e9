//! What outlives a daemon, seen from outside: its keeper, the memory of both, and who serves.

use crate::node::{Node, Setup};
use crate::{eventually, http};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A daemon with a keeper process that does not start it again: the test does.
pub fn kept(setup: Setup) -> Setup {
    keeper(setup, "process", "no")
}

/// A daemon that its keeper starts again.
pub fn respawned(setup: Setup) -> Setup {
    keeper(setup, "process", "yes")
}

fn keeper(mut setup: Setup, kind: &str, respawn: &str) -> Setup {
    for (variable, value) in [
        ("MRM_KEEPER_KIND", kind),
        ("MRM_KEEPER_RESPAWN", respawn),
        ("MRM_KEEPER_FOR_MS", "60000"),
        ("MRM_KEEPER_GRACE_MS", "1000"),
    ] {
        let pair = (variable.to_owned(), value.to_owned());
        setup.environment.push(pair);
    }
    setup
}

/// One more variable for the daemon.
pub fn with(mut setup: Setup, variable: &str, value: &str) -> Setup {
    let pair = (variable.to_owned(), value.to_owned());
    setup.environment.push(pair);
    setup
}

/// A daemon that does at its failpoints what files in `points` say; that directory is made.
pub fn failing(setup: Setup, points: &Path) -> Setup {
    fs::create_dir_all(points).expect("a directory");
    with(setup, "MRM_FAILPOINTS", &points.display().to_string())
}

/// The keepers and daemons of a test's directory. All of them are killed when this is dropped.
#[derive(Debug)]
pub struct Family {
    dir: PathBuf,
}

impl Family {
    /// Of a directory that no other test uses.
    pub fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The keeper, if there is one.
    pub fn keeper(&self) -> Option<u32> {
        let all = self.processes();
        let (pid, _) = all.iter().find(|(_, args)| is_keeper(args))?;
        Some(*pid)
    }

    /// The keeper, which must be there soon.
    pub fn until_keeper(&self) -> u32 {
        eventually("there is a keeper", || self.keeper())
    }

    /// Every daemon, also one that does not serve yet.
    pub fn daemons(&self) -> Vec<u32> {
        let all = self.processes().into_iter();
        all.filter(|(_, args)| !is_keeper(args))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Processes of `mrmd` that were started with a path below the directory.
    fn processes(&self) -> Vec<(u32, Vec<String>)> {
        let dir = self.dir.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let args: Vec<String> = line
                .split(|byte| *byte == 0)
                .map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect();
            let is_mrmd = args.iter().any(|arg| arg == "--keeper")
                || args.first().is_some_and(|arg| arg.ends_with("mrmd"));
            if is_mrmd && args.iter().any(|arg| arg.starts_with(&dir)) {
                found.push((pid, args));
            }
        }
        found
    }
}

fn is_keeper(args: &[String]) -> bool {
    args.get(1).is_some_and(|arg| arg == "--keeper")
}

impl Drop for Family {
    fn drop(&mut self) {
        // Keepers first: they start what was killed.
        for is_first in [true, false] {
            for (pid, args) in self.processes() {
                if is_keeper(&args) || !is_first {
                    signal(pid, Signal::SIGKILL);
                }
            }
        }
    }
}

/// Sends a signal, also to a process that has just ended.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
    let _ = kill(pid, signal);
}

/// `/v1/status`, if a daemon answers.
pub fn status(node: &Node) -> Option<Value> {
    status_at(&node.status_socket())
}

/// The same, of a socket.
pub fn status_at(socket: &Path) -> Option<Value> {
    let stream = UnixStream::connect(socket).ok()?;
    let (status, body) = http::try_request(stream, "GET", "/v1/status").ok()?;
    (status == 200).then(|| serde_json::from_str(&body).ok())?
}

/// Waits until a daemon other than `pid` serves; returns its pid.
pub fn until_other_serves(node: &Node, pid: u32) -> u32 {
    eventually("another daemon serves", || {
        let status = status(node)?;
        let serves = status["daemon"]["state"] == "serving";
        let other = u32::try_from(status["daemon"]["pid"].as_u64()?).ok()?;
        (serves && other != pid).then_some(other)
    })
}

/// Waits until the keeper has what the daemon has: as many segments of memory.
pub fn until_kept(family: &Family, daemon: u32) {
    eventually("the keeper has every segment", || {
        let mine = segments(daemon);
        let kept = segments(family.keeper()?);
        let all = mine.keys().all(|inode| kept.contains_key(inode));
        (all && !mine.is_empty()).then_some(())
    });
}

/// The segments in host memory that a process has open: what each takes, in bytes, by inode.
pub fn segments(pid: u32) -> BTreeMap<u64, u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = BTreeMap::new();
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return found;
    };
    for fd in fds.flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("/memfd:mrm ")
            && let Ok(metadata) = fs::metadata(fd.path())
        {
            found.insert(metadata.ino(), metadata.blocks() * 512);
        }
    }
    found
}

/// What the descriptors of a process stand for, in order.
pub fn descriptors(pid: u32) -> Vec<PathBuf> {
    let list = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    let mut all: Vec<_> = list
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .collect();
    all.sort();
    all
}

/// Memory of a process that it shares with nobody, in bytes.
pub fn private_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

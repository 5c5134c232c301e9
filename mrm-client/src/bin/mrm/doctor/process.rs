//! Limits of processes: of this one, which a client would have, and of the daemon.

use super::Check;
use crate::units;
use crate::wire::Status;
use rustix::process::{Resource, getrlimit};
use std::fs;

/// A grant of the largest model, and some files of the program itself.
const CLIENT_FILES_MIN: u64 = 512;
/// As many sessions as a daemon accepts unless told otherwise, and the segments of its models.
const DAEMON_FILES_MIN: u64 = 4096;
/// Enough for rings and small registered buffers.
const LOCKED_BYTES_COMFORTABLE: u64 = 64 << 20;
/// `statfs(2)`'s number for procfs.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Checks of this process's surroundings.
pub(super) fn checks() -> Vec<Check> {
    vec![
        proc_mounted(),
        open_files("open_files", "this shell", own_files()),
        locked_memory(),
    ]
}

/// Checks of the daemon's process, as far as this user may look at it.
pub(super) fn daemon_checks(status: Option<&Status>) -> Vec<Check> {
    let Some(status) = status else {
        return Vec::new();
    };
    let path = format!("/proc/{}/limits", status.daemon.pid);
    // Another namespace, or a process that is hidden: then there is nothing to say.
    let Ok(text) = fs::read_to_string(path) else {
        return Vec::new();
    };
    match soft_files(&text) {
        Some(files) => vec![open_files("mrmd_open_files", "mrmd", files)],
        None => Vec::new(),
    }
}

fn proc_mounted() -> Check {
    const ID: &str = "proc";
    let magic = rustix::fs::statfs("/proc").map(|info| info.f_type);
    let is_proc = magic.is_ok_and(|magic| u64::try_from(magic) == Ok(PROC_SUPER_MAGIC));
    if is_proc && fs::read_dir("/proc/self/fd").is_ok() {
        return Check::pass(ID, "/proc is mounted");
    }
    Check::fail(
        ID,
        "/proc is not mounted, so that memory cannot be lent read-only or measured",
        "`mount -t proc proc /proc`, or give the container its own /proc",
    )
}

fn own_files() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Judges a limit on open files.
fn open_files(id: &'static str, whose: &str, files: u64) -> Check {
    let min = if whose == "mrmd" {
        DAEMON_FILES_MIN
    } else {
        CLIENT_FILES_MIN
    };
    let found = match files {
        u64::MAX => format!("{whose} may open any number of files"),
        files => format!("{whose} may open {files} files"),
    };
    if files >= min {
        return Check::pass(id, found);
    }
    let cure = if whose == "mrmd" {
        "set `LimitNOFILE=65536` in mrmd's unit, or `ulimit -n 65536` before it starts"
    } else {
        "`ulimit -n 4096`: a model of many files takes one descriptor for each"
    };
    Check::warn(id, format!("{found}, fewer than {min}"), cure)
}

/// The soft limit on open files in the text of `/proc/PID/limits`.
fn soft_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn locked_memory() -> Check {
    const ID: &str = "locked_memory";
    match getrlimit(Resource::Memlock).current {
        None => Check::pass(ID, "any amount of memory may be locked"),
        Some(bytes) if bytes >= LOCKED_BYTES_COMFORTABLE => {
            Check::pass(ID, format!("{} may be locked", units::bytes(bytes)))
        }
        Some(bytes) => Check::info(
            ID,
            format!(
                "{} may be locked (host memory is lent without locking)",
                units::bytes(bytes)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn limits_are_read_from_proc() {
        let text = "Limit          Soft Limit  Hard Limit  Units\n\
                    Max processes  1           2           processes\n\
                    Max open files 1024        524288      files\n";
        assert_eq!(soft_files(text), Some(1024));
        assert_eq!(
            soft_files("Max open files unlimited unlimited files"),
            Some(u64::MAX)
        );
        assert_eq!(soft_files(""), None);
    }

    #[test]
    fn a_daemon_needs_more_files_than_a_client() {
        assert_eq!(open_files("x", "this shell", 1024).level, Level::Pass);
        assert_eq!(open_files("x", "mrmd", 1024).level, Level::Warn);
        assert_eq!(open_files("x", "mrmd", u64::MAX).level, Level::Pass);
    }
}

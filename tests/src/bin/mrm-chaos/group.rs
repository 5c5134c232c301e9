//! A control group for daemon and keeper, whose memory limit is drawn tight around what they use.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel's groups are.
const ROOTS: [(&str, &Version); 3] = [
    ("/sys/fs/cgroup", &V2),
    ("/sys/fs/cgroup/unified", &V2),
    ("/sys/fs/cgroup/memory", &V1),
];

/// The names that one version of the interface has.
#[derive(Debug)]
struct Version {
    limit: &'static str,
    used: &'static str,
    kills: &'static str,
    cache: &'static str,
    no_limit: &'static str,
}

const V2: Version = Version {
    limit: "memory.max",
    used: "memory.current",
    kills: "memory.events",
    cache: "file",
    no_limit: "max",
};

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    kills: "memory.oom_control",
    cache: "total_cache",
    no_limit: "-1",
};

/// A group of its own, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    version: &'static Version,
}

impl Group {
    /// A new one, where this process may make one that limits memory.
    pub(crate) fn new(name: &str) -> Option<Self> {
        ROOTS.into_iter().find_map(|(root, version)| {
            let dir = Path::new(root).join(format!("{name}-{}", std::process::id()));
            fs::create_dir(&dir).ok()?;
            let group = Self { dir, version };
            // It is no group where nothing is mounted, and of version 2 it has the file only where
            // the one above hands the controller down.
            let limit = group.file(version.limit);
            limit.exists().then_some(())?;
            fs::write(limit, version.no_limit).ok()?;
            Some(group)
        })
    }

    /// The file in which a process enters itself.
    pub(crate) fn entry(&self) -> PathBuf {
        self.file("cgroup.procs")
    }

    /// Leaves so much above what is used now, and cannot be had back from caches of files.
    pub(crate) fn squeeze(&self, margin_bytes: u64) {
        let used = number(&self.read(self.version.used), "");
        let stat = self.read("memory.stat");
        // Of what counts as cache, the memory of models cannot be reclaimed.
        let shmem = number(&stat, "shmem").max(number(&stat, "total_shmem"));
        let files = number(&stat, self.version.cache).saturating_sub(shmem);
        let limit = used.saturating_sub(files) + margin_bytes;
        // Version 1 refuses a limit that it cannot reclaim down to; the next attempt may do.
        let _ = fs::write(self.file(self.version.limit), limit.to_string());
    }

    /// No limit any more.
    pub(crate) fn release(&self) {
        let _ = fs::write(self.file(self.version.limit), self.version.no_limit);
    }

    /// How many processes the kernel has killed for want of memory.
    pub(crate) fn kills(&self) -> u64 {
        number(&self.read(self.version.kills), "oom_kill")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }
}

/// The number after a word at the beginning of a line, or in a file that has nothing else.
fn number(text: &str, word: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| match word {
        "" => line.trim().parse().ok(),
        _ => line
            .strip_prefix(word)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok(),
    });
    lines.next().unwrap_or(0)
}

impl Drop for Group {
    fn drop(&mut self) {
        // Those in it were killed; the kernel takes a moment to see that.
        for _ in 0..500 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(10));
        }
        // Nobody can use it, and nothing is in it.
        eprintln!("{} is left over", self.dir.display());
    }
}

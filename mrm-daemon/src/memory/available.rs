//! How much memory this process may use, and how much of it is free now.
//!
//! The machine is one bound; the memory limit of each control group above the process, version 2
//! or 1, is another. The tightest counts.
//!
//! ```
//! use mrm_daemon::memory::available::Probe;
//!
//! let probe = Probe::default();
//! let limit = probe.limit();
//! println!("may use {} bytes, bound by {}", limit.bytes, limit.bound);
//! assert!(probe.free().bytes <= limit.bytes);
//! ```

use super::error::MemoryError;
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is left free when memory for a segment is taken: the kernel's and other processes' needs
/// of the moment.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// An amount of memory and what bounds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Amount {
    /// How much.
    pub bytes: u64,
    /// What bounds it.
    pub bound: Bound,
}

/// What bounds the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// The machine.
    Machine,
    /// The control group with this directory.
    Group(PathBuf),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("the machine's memory"),
            Self::Group(path) => write!(f, "the memory limit of {}", path.display()),
        }
    }
}

/// More than most of the kernel's accounts take.
const ACCOUNT_BYTES: usize = 4096;

/// Where the kernel's accounts are.
#[derive(Debug, Clone)]
pub struct Probe {
    proc: PathBuf,
    groups: PathBuf,
}

impl Default for Probe {
    fn default() -> Self {
        Self::at("/proc", "/sys/fs/cgroup")
    }
}

impl Probe {
    /// Reads `/proc` and `/sys/fs/cgroup` elsewhere.
    #[must_use]
    pub fn at(proc: impl Into<PathBuf>, groups: impl Into<PathBuf>) -> Self {
        Self {
            proc: proc.into(),
            groups: groups.into(),
        }
    }

    /// All that this process may ever use.
    #[must_use]
    pub fn limit(&self) -> Amount {
        let machine = self.meminfo("MemTotal:").unwrap_or_else(|| sysinfo().0);
        self.tightest(machine, |group| group.limit)
    }

    /// What it could take now without anything being swapped or killed.
    #[must_use]
    pub fn free(&self) -> Amount {
        let machine = self.meminfo("MemAvailable:").unwrap_or_else(|| sysinfo().1);
        self.tightest(machine, |group| {
            group
                .limit
                .saturating_sub(group.used.saturating_sub(group.reclaimable))
        })
    }

    /// No more than [`free`](Self::free), for a fraction of what that costs: what others would give
    /// back first is not counted. The kernel adds up a group's page cache anew for each who asks.
    fn free_at_least(&self, (total, free): (u64, u64)) -> Amount {
        let groups = self.groups(Look::Used { below_bytes: total });
        Self::least(free, groups, |group| group.limit.saturating_sub(group.used))
    }

    fn tightest(&self, machine: u64, of: impl Fn(&Group) -> u64) -> Amount {
        Self::least(machine, self.groups(Look::All), of)
    }

    fn least(machine: u64, groups: Vec<Group>, of: impl Fn(&Group) -> u64) -> Amount {
        let machine = Amount {
            bytes: machine,
            bound: Bound::Machine,
        };
        groups.into_iter().fold(machine, |least, group| {
            let bytes = of(&group);
            if bytes < least.bytes {
                Amount {
                    bytes,
                    bound: Bound::Group(group.path),
                }
            } else {
                least
            }
        })
    }

    fn meminfo(&self, key: &str) -> Option<u64> {
        let text = read_text(&self.proc.join("meminfo"))?;
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    }

    /// The groups that limit memory, from this process's own up.
    fn groups(&self, look: Look) -> Vec<Group> {
        let text = read_text(&self.proc.join("self/cgroup")).unwrap_or_default();
        let mut groups = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
                continue;
            };
            if controllers.is_empty() {
                // Version 2 alone, or beside version 1.
                for root in [self.groups.clone(), self.groups.join("unified")] {
                    groups
                        .extend(levels(&root, path).filter_map(|dir| Group::read(dir, &V2, look)));
                }
            } else if controllers.split(',').any(|name| name == "memory") {
                let root = self.groups.join("memory");
                groups.extend(levels(&root, path).filter_map(|dir| Group::read(dir, &V1, look)));
            }
        }
        groups
    }
}

/// The directories of a group and of those above it. In a container a group's path may not exist
/// beneath the mounted root; then the root stands for it.
fn levels(root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let inside: PathBuf = Path::new(path)
        .components()
        .filter(|c| matches!(c, Component::Normal(_)))
        .collect();
    let root = root.to_owned();
    inside
        .ancestors()
        .map(|part| root.join(part))
        .collect::<Vec<_>>()
        .into_iter()
}

/// The names of a group's accounts.
struct Files {
    limit: &'static str,
    used: &'static str,
    stat: &'static str,
    /// Page cache, which the kernel takes back before it kills anything.
    cache: [&'static str; 2],
}

const V2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    stat: "memory.stat",
    cache: ["inactive_file ", "active_file "],
};
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    stat: "memory.stat",
    cache: ["total_inactive_file ", "total_active_file "],
};

/// What is read of a group.
#[derive(Debug, Clone, Copy)]
enum Look {
    All,
    /// Not what could be reclaimed, and nothing of a group that may use `below_bytes`.
    Used {
        below_bytes: u64,
    },
}

/// A control group with a memory limit.
struct Group {
    path: PathBuf,
    limit: u64,
    used: u64,
    reclaimable: u64,
}

impl Group {
    /// `None` if the group does not exist or has no limit.
    fn read(path: PathBuf, files: &Files, look: Look) -> Option<Self> {
        let number =
            |name: &str| -> Option<u64> { read_text(&path.join(name))?.trim().parse().ok() };
        let limit = number(files.limit)?;
        let reclaimable = match look {
            Look::Used { below_bytes } if limit >= below_bytes => return None,
            Look::Used { .. } => 0,
            Look::All => read_text(&path.join(files.stat))
                .unwrap_or_default()
                .lines()
                .filter_map(|line| files.cache.iter().find_map(|key| line.strip_prefix(key)))
                .filter_map(|value| value.parse::<u64>().ok())
                .fold(0, u64::saturating_add),
        };
        let used = number(files.used)?;
        Some(Self {
            path,
            limit,
            used,
            reclaimable,
        })
    }
}

/// What one of the kernel's accounts says, in as few calls as can be.
fn read_text(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let mut text = Vec::with_capacity(ACCOUNT_BYTES);
    let mut part = [0; ACCOUNT_BYTES];
    loop {
        match file.read(&mut part) {
            Ok(0) => return String::from_utf8(text).ok(),
            Ok(count) => text.extend_from_slice(part.get(..count)?),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// Total and free bytes, where `/proc` cannot be read.
fn sysinfo() -> (u64, u64) {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit.max(1));
    (
        info.totalram.saturating_mul(unit),
        info.freeram.saturating_mul(unit),
    )
}

/// How long what was found free is believed. Asking the kernel takes some sixty calls, which is more
/// than all else that a small segment takes.
const BELIEVED: Duration = Duration::from_millis(100);
/// It is believed only if it is so many times what is wanted, with the reserve.
const AMPLE: u64 = 16;

static SEEN: Mutex<Option<Seen>> = Mutex::new(None);

/// What was found free, less what was taken since.
struct Seen {
    at: Instant,
    free: Amount,
}

impl Seen {
    const fn is_ample(free_bytes: u64, bytes: u64) -> bool {
        free_bytes >= bytes.saturating_add(RESERVE_BYTES).saturating_mul(AMPLE)
    }

    /// What is free beside what was taken before, if there is no doubt that it suffices.
    fn take(&mut self, bytes: u64, now: Instant) -> Option<Amount> {
        let is_fresh = now.saturating_duration_since(self.at) < BELIEVED;
        (is_fresh && Self::is_ample(self.free.bytes, bytes)).then(|| {
            let free = self.free.clone();
            self.free.bytes -= bytes;
            free
        })
    }
}

/// What this process can take now, for a segment that takes `bytes` bytes of it.
pub(super) fn free_for(bytes: u64) -> Amount {
    let seen = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(free) = seen().as_mut().and_then(|s| s.take(bytes, Instant::now())) {
        return free;
    }
    let at = Instant::now();
    let probe = Probe::default();
    let few = probe.free_at_least(sysinfo());
    let free = match Seen::is_ample(few.bytes, bytes) {
        true => few,
        false => probe.free(),
    };
    let mut rest = free.clone();
    rest.bytes = rest.bytes.saturating_sub(bytes);
    *seen() = Some(Seen { at, free: rest });
    free
}

/// What segments in the making of this process were promised and may not have taken yet. Global
/// because the memory is.
static PROMISED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Memory that was found free; counted as taken until it is.
#[derive(Debug)]
pub(super) struct Promise {
    account: &'static AtomicU64,
    bytes: u64,
}

impl Promise {
    /// Checks that `bytes` are free beside all other promises and the reserve.
    pub(super) fn of(bytes: u64, free: &Amount) -> Result<Self, MemoryError> {
        Self::on(&PROMISED_BYTES, bytes, free)
    }

    /// For what takes no memory that it does not have.
    pub(super) const fn of_nothing() -> Self {
        Self {
            account: &PROMISED_BYTES,
            bytes: 0,
        }
    }

    fn on(account: &'static AtomicU64, bytes: u64, free: &Amount) -> Result<Self, MemoryError> {
        let before = account.fetch_add(bytes, Ordering::Relaxed);
        let promise = Self { account, bytes };
        let wanted = before.saturating_add(bytes).saturating_add(RESERVE_BYTES);
        if wanted <= free.bytes {
            return Ok(promise);
        }
        Err(MemoryError::OutOfMemory {
            bytes,
            cause: format!(
                "{} leaves {} bytes, of which {before} are promised to other loads and \
                 {RESERVE_BYTES} are kept free",
                free.bound, free.bytes
            ),
        })
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;

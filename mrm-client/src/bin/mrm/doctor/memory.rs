//! Memory: what the kernel and the cgroup have, against what the daemon may use.

use super::Check;
use crate::units;
use crate::wire::Status;
use std::fs;
use std::path::{Path, PathBuf};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Version 1 says "no limit" by a number near the largest.
const CGROUP1_UNLIMITED_BYTES: u64 = 1 << 60;

/// Checks of memory; against the daemon's budget if it answered.
pub(super) fn checks(status: Option<&Status>) -> Vec<Check> {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let pid = status.map(|status| status.daemon.pid);
    vec![available(&text, status), cgroup(cgroup_limit(pid), status)]
}

fn available(meminfo: &str, status: Option<&Status>) -> Check {
    const ID: &str = "memory";
    let bytes = |name| meminfo_number(meminfo, name).map(|kib| kib.saturating_mul(1024));
    let (Some(total), Some(available)) = (bytes("MemTotal"), bytes("MemAvailable")) else {
        return Check::warn(ID, "/proc/meminfo has no MemAvailable", "mount /proc");
    };
    let found = format!(
        "{} of {} are available",
        units::bytes(available),
        units::bytes(total)
    );
    let Some(host) = status.map(|status| &status.host) else {
        return Check::info(ID, found);
    };
    let unused = host.limit_bytes.saturating_sub(host.charged_bytes);
    let found = format!("{found}; mrmd may still take {}", units::bytes(unused));
    if unused <= available {
        return Check::pass(ID, found);
    }
    Check::warn(
        ID,
        format!("{found}, more than there is"),
        "stop what else uses memory, or lower `host_budget_bytes`",
    )
}

/// The number that follows `name:` in the text of `/proc/meminfo`.
pub(super) fn meminfo_number(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cgroup(limit: Option<u64>, status: Option<&Status>) -> Check {
    const ID: &str = "cgroup";
    let whose = if status.is_some() {
        "mrmd"
    } else {
        "this shell"
    };
    let Some(limit) = limit else {
        return Check::pass(
            ID,
            format!("no memory limit on the control group of {whose}"),
        );
    };
    let found = format!(
        "{whose} may use {} by its control group",
        units::bytes(limit)
    );
    match status.map(|status| status.host.limit_bytes) {
        Some(budget) if budget > limit => Check::warn(
            ID,
            format!("{found}, less than its budget of {}", units::bytes(budget)),
            "raise `MemoryMax=` (or the container's limit), or lower `host_budget_bytes`",
        ),
        Some(_) => Check::pass(ID, found),
        None => Check::info(ID, found),
    }
}

/// The lowest memory limit on the control group of a process, up its tree.
fn cgroup_limit(pid: Option<u32>) -> Option<u64> {
    let own = || fs::read_to_string("/proc/self/cgroup").ok();
    let of_daemon = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    let (directory, file) = limit_file(&of_daemon.or_else(own)?)?;
    lowest_limit(&directory, file)
}

/// Where the limits are, by the text of `/proc/PID/cgroup`: the process's directory, and the name
/// of the file in it and in those above.
fn limit_file(cgroup: &str) -> Option<(PathBuf, &'static str)> {
    let mut unified = None;
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|name| name == "memory") {
            let root = Path::new(CGROUP_ROOT).join("memory");
            return Some((root.join(path), "memory.limit_in_bytes"));
        }
        if controllers.is_empty() {
            unified = Some((Path::new(CGROUP_ROOT).join(path), "memory.max"));
        }
    }
    unified
}

fn lowest_limit(directory: &Path, file: &str) -> Option<u64> {
    let limits = directory
        .ancestors()
        .take_while(|above| above.starts_with(CGROUP_ROOT));
    let number = |above: &Path| {
        fs::read_to_string(above.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    limits
        .filter_map(number)
        .min()
        .filter(|&bytes: &u64| bytes < CGROUP1_UNLIMITED_BYTES)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::wire::Host;

    const MEMINFO: &str = "MemTotal:  1024 kB\nMemAvailable: 512 kB\nHugePages_Total:   3\n";

    fn status(limit_bytes: u64, charged_bytes: u64) -> Status {
        let host = Host {
            limit_bytes,
            charged_bytes,
            ..Host::default()
        };
        Status {
            host,
            ..Status::default()
        }
    }

    #[test]
    fn a_budget_is_held_against_what_is_available() {
        assert_eq!(meminfo_number(MEMINFO, "HugePages_Total"), Some(3));
        assert_eq!(meminfo_number(MEMINFO, "Mem"), None);
        assert_eq!(available(MEMINFO, None).level, Level::Info);
        assert_eq!(
            available(MEMINFO, Some(&status(512 << 10, 0))).level,
            Level::Pass
        );
        assert_eq!(
            available(MEMINFO, Some(&status(1 << 20, 0))).level,
            Level::Warn
        );
        assert_eq!(
            available(MEMINFO, Some(&status(1 << 20, 600 << 10))).level,
            Level::Pass
        );
        assert_eq!(available("", None).level, Level::Warn);
    }

    #[test]
    fn both_versions_of_control_groups_are_understood() {
        let (directory, file) = limit_file("0::/system.slice/mrmd.service\n").unwrap();
        assert_eq!(
            directory,
            Path::new("/sys/fs/cgroup/system.slice/mrmd.service")
        );
        assert_eq!(file, "memory.max");
        let (directory, file) = limit_file("4:cpu:/\n3:hugetlb,memory:/a\n0::/b\n").unwrap();
        assert_eq!(directory, Path::new("/sys/fs/cgroup/memory/a"));
        assert_eq!(file, "memory.limit_in_bytes");
        assert_eq!(limit_file(""), None);
    }

    #[test]
    fn a_limit_below_the_budget_is_a_warning() {
        assert_eq!(cgroup(None, None).level, Level::Pass);
        assert_eq!(cgroup(Some(1), None).level, Level::Info);
        assert_eq!(cgroup(Some(1), Some(&status(2, 0))).level, Level::Warn);
        assert_eq!(cgroup(Some(2), Some(&status(2, 0))).level, Level::Pass);
    }
}

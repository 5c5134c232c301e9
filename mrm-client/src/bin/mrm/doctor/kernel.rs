//! The kernel: its version, and what it lets this process do.

use super::Check;
use crate::probe;
use std::fs;
use std::io;

/// Below this the daemon does not run.
const OLDEST: (u32, u32) = (5, 17);
/// From here on huge pages need no privilege.
const COLLAPSE: (u32, u32) = (6, 1);
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
/// How long an idle core of a virtual machine looks for work before it halts (the kernel's
/// `Documentation/virt/guest-halt-polling.rst`).
const HALT_POLL_NS: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
const IDLE_GOVERNOR: &str = "/sys/devices/system/cpu/cpuidle/current_governor";

/// Every check of the kernel.
pub(super) fn checks() -> Vec<Check> {
    vec![
        version(),
        memfd(),
        sealed_mapping(),
        huge_pages(),
        hugetlb(),
        peer_pidfd(),
        io_uring(),
        idle(),
    ]
}

fn version() -> Check {
    let uname = rustix::system::uname();
    judge_version(&uname.release().to_string_lossy())
}

fn judge_version(release: &str) -> Check {
    const ID: &str = "kernel";
    let found = format!("Linux {release}");
    match parse_version(release) {
        None => Check::warn(
            ID,
            format!("{found}: an unknown numbering"),
            "use Linux 6.1 or later",
        ),
        Some(version) if version < OLDEST => Check::fail(
            ID,
            format!("{found}: mrmd needs {}.{} or later", OLDEST.0, OLDEST.1),
            "run a later kernel; 6.1 or later for huge pages without privilege",
        ),
        Some(version) if version < COLLAPSE => Check::warn(
            ID,
            format!("{found}: has no MADV_COLLAPSE, so huge pages need the administrator"),
            format!("run Linux 6.1 or later, or `echo advise > {SHMEM_ENABLED}` as root"),
        ),
        Some(_) => Check::pass(ID, found),
    }
}

/// The first two numbers of a release: `6.18.44-fc` is (6, 18).
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn memfd() -> Check {
    const ID: &str = "memfd";
    match (probe::memfd(true), probe::memfd(false)) {
        (Ok(_), _) => Check::pass(ID, "memfd_create with sealing and MFD_NOEXEC_SEAL"),
        (Err(_), Ok(_)) => Check::warn(
            ID,
            "memfd_create with sealing, but without MFD_NOEXEC_SEAL (Linux 6.3)",
            "nothing depends on it; a later kernel also bars execution of what is lent",
        ),
        (Err(_), Err(cause)) => Check::fail(
            ID,
            format!("memfd_create with sealing is refused: {cause}"),
            "allow memfd_create in the container's seccomp profile, or use a kernel that has it",
        ),
    }
}

fn sealed_mapping() -> Check {
    const ID: &str = "sealed_mapping";
    match probe::sealed_mapping() {
        Ok(()) => Check::pass(
            ID,
            "a sealed memfd can be mapped for reading, and not for writing",
        ),
        Err(cause) => Check::fail(
            ID,
            format!("a sealed memfd cannot be shared read-only: {cause}"),
            "allow mmap and fcntl(F_ADD_SEALS) in the container's seccomp profile",
        ),
    }
}

fn huge_pages() -> Check {
    let enabled = fs::read_to_string(SHMEM_ENABLED).unwrap_or_default();
    judge_huge_pages(&probe::collapse(), chosen(&enabled))
}

fn judge_huge_pages(collapse: &io::Result<()>, enabled: Option<&str>) -> Check {
    const ID: &str = "huge_pages";
    let setting = match enabled {
        Some(word) => format!("shmem_enabled is `{word}`"),
        None => "no shmem_enabled in this kernel".to_owned(),
    };
    let by_kernel = matches!(enabled, Some("always" | "within_size" | "advise" | "force"));
    // In the order in which the daemon tries them.
    match collapse {
        Ok(()) if by_kernel => Check::pass(
            ID,
            format!(
                "2 MiB pages at the first write, for {setting}; what is left, by MADV_COLLAPSE"
            ),
        ),
        Err(cause) if by_kernel => Check::pass(
            ID,
            format!("2 MiB pages at the first write, for {setting}; not by MADV_COLLAPSE: {cause}"),
        ),
        Ok(()) => Check::pass(
            ID,
            format!("2 MiB pages by MADV_COLLAPSE; not at the first write: {setting}"),
        ),
        Err(cause) => Check::warn(
            ID,
            format!("no 2 MiB pages: MADV_COLLAPSE: {cause}; {setting}"),
            format!(
                "as root: `echo advise > {SHMEM_ENABLED}`; if memory is only fragmented: \
                 `echo 1 > /proc/sys/vm/compact_memory`. Without them mapping 1 GiB takes 50 ms \
                 instead of 0.3 ms"
            ),
        ),
    }
}

/// The word in brackets of a sysfs choice.
fn chosen(choices: &str) -> Option<&str> {
    let (_, rest) = choices.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word)
}

fn hugetlb() -> Check {
    const ID: &str = "hugetlb";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| super::memory::meminfo_number(&text, name).unwrap_or(0);
    match (field("HugePages_Total"), field("HugePages_Free")) {
        (0, _) => Check::info(ID, "no reserved huge pages (mrmd uses none)"),
        (total, free) => Check::info(
            ID,
            format!(
                "{free} of {total} reserved huge pages are free; mrmd uses none of them, and has that \
                 much less memory"
            ),
        ),
    }
}

fn peer_pidfd() -> Check {
    const ID: &str = "peer_pidfd";
    match probe::peer_pidfd() {
        Ok(()) => Check::pass(ID, "SO_PEERPIDFD"),
        Err(cause) => Check::warn(
            ID,
            format!("no SO_PEERPIDFD: {cause}; mrmd opens a pidfd by number instead"),
            "run Linux 6.5 or later",
        ),
    }
}

fn io_uring() -> Check {
    const ID: &str = "io_uring";
    match probe::io_uring() {
        Ok(()) => Check::info(ID, "allowed"),
        Err(cause) => Check::info(ID, format!("not allowed here: {cause} (not needed)")),
    }
}

fn idle() -> Check {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    judge_idle(read(IDLE_GOVERNOR).trim(), read(HALT_POLL_NS).trim())
}

fn judge_idle(governor: &str, halt_poll_ns: &str) -> Check {
    const ID: &str = "idle";
    match (governor, halt_poll_ns) {
        ("haltpoll", "0") => Check::warn(
            ID,
            "idle cores of this virtual machine halt at once, and to wake one takes longer than all \
             else of an open",
            format!(
                "if opens are to be quick: `echo 200000 > {HALT_POLL_NS}` as root, which has idle cores \
                 look for work that long first and costs the host their time"
            ),
        ),
        ("haltpoll", ns) => Check::pass(ID, format!("idle cores look for work for {ns} ns")),
        ("", _) => Check::info(ID, "the kernel does not say what idle cores do"),
        (other, _) => Check::info(ID, format!("idle cores are governed by `{other}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn versions_are_judged() {
        for (release, level) in [
            ("6.18.44-fc-v657", Level::Pass),
            ("6.1-rc3", Level::Pass),
            ("5.17.0", Level::Warn),
            ("5.4.0-1.el8", Level::Fail),
            ("hurd", Level::Warn),
        ] {
            assert_eq!(judge_version(release).level, level, "{release}");
        }
    }

    #[test]
    fn a_core_that_halts_at_once_is_told_of_with_the_cure() {
        let check = judge_idle("haltpoll", "0");
        assert_eq!(check.level, Level::Warn);
        assert!(check.cure.is_some_and(|cure| cure.contains(HALT_POLL_NS)));
        assert_eq!(judge_idle("haltpoll", "200000").level, Level::Pass);
        assert_eq!(judge_idle("menu", "").level, Level::Info);
        assert_eq!(judge_idle("", "").level, Level::Info);
    }

    #[test]
    fn huge_pages_come_by_either_way() {
        let refused = || Err(io::Error::from_raw_os_error(22));
        for (collapse, setting, way) in [
            (Ok(()), "never", "by MADV_COLLAPSE; not at the first write"),
            (Ok(()), "advise", "at the first write, for shmem_enabled is"),
            (refused(), "always", "not by MADV_COLLAPSE: "),
        ] {
            let check = judge_huge_pages(&collapse, Some(setting));
            assert_eq!(check.level, Level::Pass);
            assert!(check.finding.contains(way), "{}", check.finding);
        }
        assert_eq!(
            judge_huge_pages(&refused(), Some("advise")).level,
            Level::Pass
        );
        assert_eq!(
            judge_huge_pages(&refused(), Some("never")).level,
            Level::Warn
        );
        assert_eq!(judge_huge_pages(&refused(), None).level, Level::Warn);
        assert_eq!(chosen("always [advise] never\n"), Some("advise"));
        assert_eq!(chosen("always"), None);
    }
}

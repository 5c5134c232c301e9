//! Which filesystems a foreign descriptor may be on.
//!
//! Whoever mounts a FUSE or 9p filesystem answers its reads, or does not. In an unprivileged user
//! namespace anybody can mount FUSE, tmpfs and overlayfs, so only filesystems whose reads the
//! kernel or an administrator answers for are read.

use rustix::fs::{AtFlags, FileType, RawMode, Statx, StatxFlags, fstat, fstatfs, statx};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// `f_type` of what may be read.
const ALLOWED: &[(u64, &str)] = &[
    (0xEF53, "ext2/3/4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x794C_7630, "overlayfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xF2F5_2010, "f2fs"),
    (0xCA45_1A4E, "bcachefs"),
    (0x7371_7368, "squashfs"),
    (0xE0F5_E1E2, "erofs"),
    (0x9660, "iso9660"),
    (0x6969, "nfs"),
    (0x00C3_6400, "ceph"),
    (0x0BD0_0BD0, "lustre"),
    (0x9584_58F6, "hugetlbfs"),
];

/// Names for messages, of what may not.
const REFUSED: &[(u64, &str)] = &[
    (FUSE_MAGIC, "FUSE"),
    (0x0102_1997, "9p"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x9FA0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x0027_E0EB, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x5346_4846, "WSL drvfs"),
    (0x786F_4256, "VirtualBox shared folder"),
    (0x5346_414F, "afs"),
    (0x5345_434D, "secretmem"),
];

const FUSE_MAGIC: u64 = 0x6573_5546;

/// A filesystem that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) name: &'static str,
    pub(super) magic: u64,
}

/// What `fd` is, without asking the owner of its filesystem.
pub(super) fn file_type(fd: BorrowedFd<'_>) -> Result<FileType, Errno> {
    let mode = match stat_from_memory(fd)? {
        Some(stat) => RawMode::from(stat.stx_mode),
        None => fstat(fd)?.st_mode,
    };
    Ok(FileType::from_raw_mode(mode))
}

/// Says whether `fd` is on a filesystem that may be read.
pub(super) fn check(fd: BorrowedFd<'_>) -> Result<Result<(), Refused>, Errno> {
    // Even statfs(2) asks the owner of a FUSE filesystem. The kernel lists its FUSE connections by
    // device number, and a stat that may be answered from memory gives that number.
    if fuse_by_device(fd)? {
        return Ok(Err(Refused {
            name: "FUSE",
            magic: FUSE_MAGIC,
        }));
    }
    Ok(verdict(magic_of(fd)?))
}

fn verdict(magic: u64) -> Result<(), Refused> {
    if ALLOWED.iter().any(|&(allowed, _)| allowed == magic) {
        return Ok(());
    }
    let known = REFUSED.iter().find(|&&(refused, _)| refused == magic);
    Err(Refused {
        name: known.map_or("an unknown filesystem", |&(_, name)| name),
        magic,
    })
}

fn magic_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let f_type = fstatfs(fd)?.f_type;
    // The kernel's magics have 32 bits; the word of `statfs` sign-extends on some machines.
    Ok(u64::try_from(i128::from(f_type) & 0xFFFF_FFFF).unwrap_or(u64::MAX))
}

fn fuse_by_device(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let stat = match stat_from_memory(fd) {
        Ok(Some(stat)) => stat,
        // Whom FUSE does not even let stat, it answers statfs(2) without asking its owner.
        Ok(None) | Err(Errno::ACCESS) => return Ok(false),
        Err(errno) => return Err(errno),
    };
    let (major, minor) = (stat.stx_dev_major, stat.stx_dev_minor);
    if Path::new(&format!("/sys/fs/fuse/connections/{minor}")).exists() && major == 0 {
        return Ok(true);
    }
    // That list has to be mounted. Without it, the mounts that we can see have to do.
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(major == 0 && mounted_as_fuse(&mounts(), &format!("{major}:{minor}")))
}

/// Whether `mountinfo`, as in `proc_pid_mountinfo(5)`, has `device` as FUSE.
fn mounted_as_fuse(mountinfo: &str, device: &str) -> bool {
    mountinfo.lines().any(|line| {
        let is_it = line.split(' ').nth(2) == Some(device);
        let kind = line.split_once(" - ").map_or("", |(_, rest)| rest);
        is_it && kind.starts_with("fuse")
    })
}

/// `None` where the kernel has no such call.
fn stat_from_memory(fd: BorrowedFd<'_>) -> Result<Option<Statx>, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    match statx(fd, c"", flags, StatxFlags::TYPE) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_unprivileged_owner_can_make_hang_is_refused_by_name() {
        for (magic, name) in [
            (FUSE_MAGIC, "FUSE"),
            (0x0102_1997, "9p"),
            (0xFF53_4D42, "cifs"),
        ] {
            assert_eq!(verdict(magic), Err(Refused { name, magic }));
        }
        let unknown = verdict(0x1234).expect_err("not on the list");
        assert_eq!(unknown.name, "an unknown filesystem");
    }

    #[test]
    fn fuse_is_found_among_the_mounts() {
        let text = "29 1 0:39 / /mnt/x\\040y rw,relatime shared:1 - fuse.sshfs s rw,user_id=0\n\
                    30 1 0:40 / /tmp rw - tmpfs fuse rw\n\
                    damaged line";
        assert!(mounted_as_fuse(text, "0:39"));
        assert!(!mounted_as_fuse(text, "0:40") && !mounted_as_fuse(text, "0:3"));
    }

    #[test]
    fn no_filesystem_is_on_both_lists() {
        for (magic, _) in ALLOWED {
            assert!(REFUSED.iter().all(|(refused, _)| refused != magic));
            assert_eq!(verdict(*magic), Ok(()));
        }
    }
}

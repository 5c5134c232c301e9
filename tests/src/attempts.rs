//! What somebody might try with what was lent to it, and with the daemon itself, without its leave.
//! Each attempt says what it is, and which mechanism of the kernel's is to stop it.

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, SealFlags, fallocate, fchmod, fchown,
    fcntl_add_seals, fstat, ftruncate, linkat, open,
};
use rustix::io::{Errno, pwrite, write};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{
    ForeignRawFd, Gid, Pid, PidfdFlags, PidfdGetfdFlags, Signal, Uid, kill_process, pidfd_getfd,
    pidfd_open,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// One attempt.
#[derive(Debug)]
pub struct Attempt {
    /// What was tried.
    pub what: String,
    /// What is to stop it.
    pub by: &'static str,
    /// What the kernel may say then.
    pub denied: &'static [Errno],
    /// What it said.
    pub said: Result<(), Errno>,
}

impl Attempt {
    fn new<T>(
        what: impl Into<String>,
        by: &'static str,
        denied: &'static [Errno],
        said: Result<T, Errno>,
    ) -> Self {
        let (what, said) = (what.into(), said.map(drop));
        Self {
            what,
            by,
            denied,
            said,
        }
    }

    /// Whether it was stopped, by what was to stop it.
    pub fn is_denied(&self) -> bool {
        self.said.is_err_and(|errno| self.denied.contains(&errno))
    }
}

/// Fails with every attempt that was not denied as it should be. Returns how many there were.
pub fn all_denied(attempts: &[Attempt]) -> usize {
    let open: Vec<&Attempt> = attempts.iter().filter(|it| !it.is_denied()).collect();
    assert!(open.is_empty(), "not denied: {open:#?}");
    attempts.len()
}

const READ_ONLY: &str = "the descriptor is open for reading only";
const MODE: &str = "nobody but the daemon's user may open the inode for writing";
const SEALED: &str = "seals";

/// What can be tried with a lent descriptor by who may only read it.
pub fn on_descriptor(fd: &OwnedFd) -> Vec<Attempt> {
    let bytes = fstat(fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE;
    let grow = fallocate(fd, FallocateFlags::empty(), bytes, 4096);
    let mut attempts = vec![
        Attempt::new("write", READ_ONLY, &[Errno::BADF], write(fd, b"x")),
        Attempt::new("pwrite", READ_ONLY, &[Errno::BADF], pwrite(fd, b"x", 0)),
        Attempt::new("truncate", READ_ONLY, &[Errno::INVAL], ftruncate(fd, 0)),
        Attempt::new(
            "grow",
            READ_ONLY,
            &[Errno::INVAL],
            ftruncate(fd, bytes + 4096),
        ),
        Attempt::new("grow by fallocate", READ_ONLY, &[Errno::BADF], grow),
        Attempt::new(
            "punch a hole",
            READ_ONLY,
            &[Errno::BADF],
            fallocate(fd, punch, 0, 4096),
        ),
        Attempt::new(
            "zero a range",
            READ_ONLY,
            &[Errno::BADF],
            fallocate(fd, zero, 0, 4096),
        ),
        Attempt::new(
            "add a seal",
            SEALED,
            &[Errno::PERM],
            fcntl_add_seals(fd, SealFlags::FUTURE_WRITE),
        ),
    ];
    attempts.extend(by_mapping(fd));
    attempts.extend(by_path(fd));
    attempts
}

fn by_mapping(fd: &OwnedFd) -> Vec<Attempt> {
    let shared = "a shared mapping of it may never be written to";
    let tries = [
        ("map it shared and writable", Try::SharedWritable),
        ("map it shared, then mprotect", Try::SharedThenMadeWritable),
        ("map it shared, then MADV_REMOVE", Try::SharedThenRemoved),
    ];
    let mut attempts: Vec<Attempt> = tries
        .into_iter()
        .map(|(what, how)| Attempt::new(what, shared, &[Errno::ACCESS], map_and_try(fd, how)))
        .collect();
    let forced = map_and_try(fd, Try::SharedThenForced);
    let what = "write to its mapping by /proc/self/mem";
    // A thread that changed its user may not even open that.
    let denied: &[Errno] = &[Errno::IO, Errno::ACCESS];
    attempts.push(Attempt::new(what, shared, denied, forced));
    attempts
}

fn by_path(fd: &OwnedFd) -> Vec<Attempt> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = Path::new(&path);
    let again = |flags| open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let nobody = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    let denied: &[Errno] = &[Errno::ACCESS];
    let link = linkat(
        CWD,
        path,
        CWD,
        std::env::temp_dir().join("mrm-stolen"),
        AtFlags::SYMLINK_FOLLOW,
    );
    vec![
        Attempt::new(
            "open it again for writing",
            MODE,
            denied,
            again(OFlags::RDWR),
        ),
        Attempt::new(
            "open it again for writing only",
            MODE,
            denied,
            again(OFlags::WRONLY),
        ),
        Attempt::new(
            "open it again to truncate",
            MODE,
            denied,
            again(OFlags::RDONLY | OFlags::TRUNC),
        ),
        Attempt::new(
            "let everybody write to it",
            "another's inode",
            &[Errno::PERM],
            fchmod(fd, Mode::from_raw_mode(0o666)),
        ),
        Attempt::new(
            "take it over",
            "another's inode",
            &[Errno::PERM, Errno::INVAL],
            fchown(fd, Some(nobody.0), Some(nobody.1)),
        ),
        Attempt::new(
            "give it a name",
            "it is on no filesystem that is mounted",
            &[Errno::XDEV, Errno::NOENT],
            link,
        ),
    ]
}

/// What can be tried with the process `daemon`, as it is numbered here.
pub fn on_process(daemon: i32) -> Vec<Attempt> {
    let other = "another user's process (ptrace access check)";
    let foreign = "another user's process (signals)";
    let refused: &[Errno] = &[Errno::ACCESS, Errno::PERM];
    let proc = |name: &str, flags| {
        let path = format!("/proc/{daemon}/{name}");
        open(path, flags | OFlags::CLOEXEC, Mode::empty())
    };
    let pid = Pid::from_raw(daemon).expect("a pid");
    let mut attempts = vec![
        Attempt::new(
            "write to its memory by /proc",
            other,
            refused,
            proc("mem", OFlags::RDWR),
        ),
        Attempt::new(
            "list its descriptors",
            other,
            refused,
            proc("fd", OFlags::RDONLY | OFlags::DIRECTORY),
        ),
        Attempt::new(
            "see its mappings",
            other,
            refused,
            proc("map_files", OFlags::RDONLY | OFlags::DIRECTORY),
        ),
        Attempt::new("process_vm_writev", other, refused, vm_write(daemon)),
        Attempt::new("ptrace", other, refused, trace(daemon)),
        Attempt::new("stop it", foreign, refused, kill_process(pid, Signal::STOP)),
        Attempt::new(
            "have it hand over",
            foreign,
            refused,
            kill_process(pid, Signal::USR2),
        ),
    ];
    for n in 0..64 {
        let path = format!("fd/{n}");
        let what = format!("open its descriptor {n} for writing");
        attempts.push(Attempt::new(
            what,
            other,
            refused,
            proc(&path, OFlags::RDWR),
        ));
    }
    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
        let get = |n: ForeignRawFd| pidfd_getfd(&pidfd, n, PidfdGetfdFlags::empty());
        attempts.extend((0..16).map(|n| {
            let what = format!("take its descriptor {n}");
            Attempt::new(what, other, refused, get(n))
        }));
    }
    attempts
}

fn vm_write(daemon: i32) -> Result<(), Errno> {
    let mut byte = *b"x";
    let from = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let to = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(0x40_0000),
        iov_len: 1,
    };
    // SAFETY: one vector each, of one byte; the first is `byte`, which outlives the call, and the
    // second is an address in another process, to the kernel a number.
    let wrote = unsafe { libc::process_vm_writev(daemon, &raw const from, 1, &raw const to, 1, 0) };
    said(wrote as i64)
}

fn trace(daemon: i32) -> Result<(), Errno> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: `PTRACE_SEIZE` takes no address and no options, and touches no memory of ours.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, daemon, none, none) };
    said(seized)
}

fn said(result: i64) -> Result<(), Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        _ => Ok(()),
    }
}

/// A way to change what is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    SharedWritable,
    SharedThenMadeWritable,
    SharedThenRemoved,
    /// By `/proc/self/mem`, which writes to what is not writable, where that makes a private copy.
    SharedThenForced,
    PrivateWrite,
}

/// Maps the first page of `fd`, and changes it if that can be done.
pub fn map_and_try(fd: &OwnedFd, how: Try) -> Result<(), Errno> {
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let (protection, flags) = match how {
        Try::SharedWritable => (both, MapFlags::SHARED),
        Try::SharedThenMadeWritable | Try::SharedThenRemoved | Try::SharedThenForced => {
            (ProtFlags::READ, MapFlags::SHARED)
        }
        Try::PrivateWrite => (both, MapFlags::PRIVATE),
    };
    // SAFETY: a new mapping at an address that the kernel picks; nothing else refers to it, it is
    // unmapped below, and the file behind it is at least a page long and cannot shrink.
    unsafe {
        let at = rustix::mm::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0)?;
        let done = match how {
            Try::SharedThenMadeWritable => {
                rustix::mm::mprotect(at, 4096, MprotectFlags::READ | MprotectFlags::WRITE)
            }
            Try::SharedThenRemoved => rustix::mm::madvise(at, 4096, Advice::LinuxRemove),
            Try::SharedThenForced => force(at as u64),
            Try::SharedWritable | Try::PrivateWrite => {
                at.cast::<u8>().write_volatile(0xee);
                Ok(())
            }
        };
        rustix::mm::munmap(at, 4096)?;
        done
    }
}

fn force(address: u64) -> Result<(), Errno> {
    let memory = open(
        "/proc/self/mem",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    pwrite(memory.as_fd(), b"\xee", address).map(drop)
}

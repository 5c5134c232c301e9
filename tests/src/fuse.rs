//! A FUSE filesystem with one file, whose owner answers one process never: neither reads nor the
//! flush that `close(2)` waits for. Needs root and `/dev/fuse`.

use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the owner of the filesystem has seen and not answered.
#[derive(Debug, Default)]
struct Unanswered {
    flushes: AtomicUsize,
    others: AtomicUsize,
}

/// The mounted filesystem. Ends with its owner: what hangs then fails.
#[derive(Debug)]
pub struct Hanging {
    dir: PathBuf,
    unanswered: Arc<Unanswered>,
    minor: u64,
}

/// Bytes of the file.
const FILE_BYTES: u64 = 1 << 20;
const ROOT: u64 = 1;
const FILE: u64 = 2;

impl Hanging {
    /// Mounts it on `dir`, which must exist; `None`, said aloud, where that cannot be. What the
    /// process `victim` asks is not answered.
    pub fn mount(dir: &Path, victim: u32) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let Ok(device) = device else {
            println!("SKIPPED: /dev/fuse cannot be opened here");
            return None;
        };
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other";
        let mount = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", options, "mrm-hanging"])
            .arg(dir)
            .stdin(Stdio::from(device.try_clone().expect("a descriptor")))
            .output();
        match mount {
            Ok(output) if output.status.success() => {}
            other => {
                println!("SKIPPED: FUSE cannot be mounted here: {other:?}");
                return None;
            }
        }
        let unanswered = Arc::new(Unanswered::default());
        let seen = Arc::clone(&unanswered);
        std::thread::spawn(move || serve(device, victim, &seen));
        // The number by which the kernel lists the connection.
        let minor = fs::symlink_metadata(dir).map(|it| {
            use std::os::unix::fs::MetadataExt;
            rustix::fs::minor(it.dev()).into()
        });
        Some(Self {
            dir: dir.to_owned(),
            unanswered,
            minor: minor.expect("the owner answers us"),
        })
    }

    /// Its file, open for reading.
    pub fn open(&self) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(CWD, self.dir.join("model.bin"), flags, Mode::empty()).expect("the owner answers us")
    }

    /// How many closes wait for the owner.
    pub fn hanging_closes(&self) -> usize {
        self.unanswered.flushes.load(Ordering::Relaxed)
    }

    /// How many other questions of the victim wait.
    pub fn hanging_others(&self) -> usize {
        self.unanswered.others.load(Ordering::Relaxed)
    }

    /// Ends what hangs.
    pub fn abort(&self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
        let abort = format!("/sys/fs/fuse/connections/{}/abort", self.minor);
        if fs::write(&abort, "1").is_ok() {
            return;
        }
        // That list is a filesystem of its own, which may not be mounted.
        let connections = "/sys/fs/fuse/connections";
        let _ = Command::new("mount")
            .args(["-t", "fusectl", "fusectl", connections])
            .output();
        let _ = fs::write(&abort, "1");
        let _ = Command::new("umount").arg(connections).output();
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.abort();
    }
}

/// The operations of `fuse(4)` that matter here.
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

/// Answers until the kernel says that nobody asks any more.
fn serve(mut device: File, victim: u32, unanswered: &Unanswered) {
    let mut request = vec![0; 1 << 20];
    while let Ok(n) = device.read(&mut request) {
        if n < 40 {
            continue;
        }
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
        let (operation, unique, node, asker) = (word(4), long(8), long(16), word(32));
        let body = match operation {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
            _ if is_of(asker, victim) => {
                let count = match operation {
                    op::FLUSH => &unanswered.flushes,
                    _ => &unanswered.others,
                };
                count.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            op::INIT => init(),
            op::LOOKUP => [longs(&[FILE, 0, 60, 60]), longs(&[0]), attributes(FILE)].concat(),
            op::GETATTR => [longs(&[60, 0]), attributes(node)].concat(),
            op::OPEN | op::OPENDIR => longs(&[0, 0]),
            op::RELEASE | op::RELEASEDIR | op::FLUSH => Vec::new(),
            _ => {
                let refused = [words(&[16, (-38_i32).cast_unsigned()]), longs(&[unique])];
                let _ = device.write_all(&refused.concat());
                continue;
            }
        };
        let length = u32::try_from(16 + body.len()).expect("short");
        let head = [words(&[length, 0]), longs(&[unique])].concat();
        if device.write_all(&[head, body].concat()).is_err() {
            return;
        }
    }
}

/// Whether the thread `asker` belongs to the process `victim`.
fn is_of(asker: u32, victim: u32) -> bool {
    Path::new(&format!("/proc/{victim}/task/{asker}")).exists()
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Version 7.31, nothing special.
fn init() -> Vec<u8> {
    let mut body = words(&[7, 31, 0, 0, 0, 1 << 17]);
    body.resize(64, 0);
    body
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o40_755 } else { 0o100_644 };
    let size = if node == ROOT { 0 } else { FILE_BYTES };
    let head = longs(&[node, size, size / 512, 0, 0, 0]);
    let tail = words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]);
    [head, tail].concat()
}

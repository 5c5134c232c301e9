//! What is no readable regular file is refused before anything is read, and no open blocks.

use super::*;
use mrm_proto::error::ErrorCode;
use rustix::fs::{CWD, FileType, Mode, OFlags, mkfifoat, open};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long something may take that must not block at all.
const DEADLINE: Duration = Duration::from_secs(20);

fn without_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = mpsc::channel();
    thread::spawn(move || tx.send(work()));
    rx.recv_timeout(DEADLINE).expect("must not block")
}

#[track_caller]
fn assert_refused(error: &SourceError, code: ErrorCode, words: &[&str]) {
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message:?}");
    }
    assert!(message.contains("; "), "no remedy in {message:?}");
}

fn registered(root: &Path, rel: &str) -> Result<FileSource, SourceError> {
    let (root, rel) = (root.to_owned(), rel.to_owned());
    without_blocking(move || FileSource::registered(&root, Path::new(&rel)))
}

fn foreign(fd: OwnedFd) -> Result<FileSource, SourceError> {
    let fd = PassedFd::new(fd, &Closer::new());
    without_blocking(move || FileSource::foreign(fd, "weights"))
}

fn fd(path: impl AsRef<Path>, flags: OFlags) -> OwnedFd {
    open(path.as_ref(), flags | OFlags::CLOEXEC, Mode::empty()).expect("the test may open it")
}

/// A directory with one of everything that is no regular file.
fn zoo() -> (tempfile::TempDir, UnixListener) {
    let dir = tempfile::tempdir().expect("a directory");
    mkfifoat(CWD, dir.path().join("fifo"), Mode::RUSR | Mode::WUSR).expect("a FIFO");
    let socket = UnixListener::bind(dir.path().join("socket")).expect("a socket");
    fs::create_dir(dir.path().join("dir")).expect("a directory");
    fs::write(dir.path().join("file"), b"0123456789").expect("a file");
    (dir, socket)
}

#[test]
fn special_files_below_a_root_are_refused_without_blocking() {
    let (dir, _socket) = zoo();
    for (name, kind) in [("fifo", "FIFO"), ("socket", "socket"), ("dir", "directory")] {
        let error = registered(dir.path(), name).expect_err("no regular file");
        assert_refused(
            &error,
            ErrorCode::NotRegularFile,
            &[name, kind, "name the weights file"],
        );
    }
    for name in ["null", "zero"] {
        let error = registered(Path::new("/dev"), name).expect_err("a device");
        assert_refused(
            &error,
            ErrorCode::NotRegularFile,
            &[name, "character device"],
        );
    }
}

#[test]
fn special_files_from_clients_are_refused_without_blocking() {
    let (dir, socket) = zoo();
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    for (fd, kind) in [
        (fd(dir.path().join("fifo"), OFlags::RDWR), "FIFO"),
        (fd(dir.path().join("dir"), OFlags::RDONLY), "directory"),
        (fd("/dev/null", OFlags::RDONLY), "character device"),
        (fd("/dev/zero", OFlags::RDWR), "character device"),
        (OwnedFd::from(reader), "FIFO"),
        (OwnedFd::from(socket), "socket"),
    ] {
        let error = foreign(fd).expect_err("no regular file");
        assert_refused(&error, ErrorCode::NotRegularFile, &["`weights`", kind]);
    }
}

#[test]
fn descriptors_that_cannot_be_read_are_refused() {
    let (dir, _socket) = zoo();
    let file = dir.path().join("file");
    for (flags, how) in [(OFlags::WRONLY, "O_WRONLY"), (OFlags::PATH, "O_PATH")] {
        let error = foreign(fd(&file, flags)).expect_err("cannot be read");
        assert_refused(
            &error,
            ErrorCode::FdNotReadable,
            &["`weights`", how, "O_RDONLY"],
        );
    }
    for flags in [OFlags::RDONLY, OFlags::RDWR] {
        let source = foreign(fd(&file, flags)).expect("can be read");
        let mut bytes = [0; 4];
        source.read_exact_at(3, &mut bytes).expect("is long enough");
        assert_eq!(&bytes, b"3456");
    }
}

#[test]
fn filesystems_that_are_not_on_the_list_are_refused() {
    let error = foreign(fd("/proc/self/status", OFlags::RDONLY)).expect_err("procfs");
    let words = ["`weights`", "procfs", "0x9fa0", "copy it to a local disk"];
    assert_refused(&error, ErrorCode::FilesystemRefused, &words);
}

#[test]
fn memory_files_are_sources() {
    let fd = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::io::write(&fd, b"abc").expect("room for three bytes");
    let source = foreign(fd).expect("a memfd is a regular file");
    assert_eq!(source.identity().expect("can be asked").bytes, 3);
}

#[test]
fn links_are_followed_below_the_root_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/b")).expect("directories");
    fs::write(root.join("blob"), b"x").expect("a file");
    fs::write(dir.path().join("secret"), b"x").expect("a file");
    symlink("../../blob", root.join("a/b/inside")).expect("a link");
    symlink("../../../secret", root.join("a/b/outside")).expect("a link");
    symlink(root.join("blob"), root.join("absolute")).expect("a link");
    symlink("loop", root.join("loop")).expect("a link");
    assert_eq!(
        registered(&root, "a/b/inside")
            .expect("stays below")
            .label(),
        { root.join("a/b/inside").display().to_string() }
    );
    for rel in ["a/b/outside", "absolute", "../secret", "/etc/passwd"] {
        let error = registered(&root, rel).expect_err("leads outside");
        assert_refused(
            &error,
            ErrorCode::OutsideRoot,
            &[rel, "move the file below the root"],
        );
    }
    for rel in ["nothing", "blob/x", "a/nothing/x"] {
        let error = registered(&root, rel).expect_err("is not there");
        assert_refused(&error, ErrorCode::SourceMissing, &[rel, "correct the path"]);
    }
    let error = registered(&root, "loop").expect_err("never ends");
    assert_refused(
        &error,
        ErrorCode::SourceUnreadable,
        &["loop", "symbolic links"],
    );
    let error = registered(&dir.path().join("gone"), "x").expect_err("no root");
    assert_refused(&error, ErrorCode::SourceMissing, &["gone"]);
}

#[test]
fn paths_are_kept_below_the_root_without_the_kernels_help_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("root");
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("blob"), b"x").expect("a file");
    fs::write(dir.path().join("secret"), b"x").expect("a file");
    symlink("blob", path.join("inside")).expect("a link");
    symlink("../secret", path.join("outside")).expect("a link");
    let root = RootDir::open(&path).expect("a root");
    let open = |rel| root.open_walked(Path::new(rel), OFlags::RDONLY | OFlags::CLOEXEC);
    assert!(open("inside").is_ok() && open("./blob").is_ok());
    for rel in ["outside", "../secret", "/etc/passwd"] {
        let error = open(rel).expect_err("leads outside");
        assert_eq!(error.code(), ErrorCode::OutsideRoot, "{error}");
    }
    assert_eq!(
        open("gone").expect_err("not there").code(),
        ErrorCode::SourceMissing
    );
}

#[test]
fn directories_are_opened_below_the_root() {
    let (dir, _socket) = zoo();
    let root = RootDir::open(dir.path()).expect("a root");
    assert!(root.open_dir(Path::new("")).is_ok() && root.open_dir(Path::new("dir")).is_ok());
    assert_eq!(root.file_type(Path::new("fifo")), Ok(FileType::Fifo));
    assert!(root.open_dir(Path::new("..")).is_err());
    let error = root.open_dir(Path::new("file")).expect_err("no directory");
    assert_eq!(error.code(), ErrorCode::SourceMissing);
    assert!(RootDir::open(&dir.path().join("file")).is_err());
}

#[test]
fn a_file_that_shrinks_is_another_and_ends_early() {
    let (dir, _socket) = zoo();
    let path = dir.path().join("file");
    let source = registered(dir.path(), "file").expect("a file");
    let before = settle(&[&source]).expect("nobody writes it")[0];
    fs::File::options()
        .write(true)
        .open(&path)
        .expect("mine")
        .set_len(4)
        .expect("shrinks");
    assert_ne!(source.identity().expect("can be asked"), before);
    let error = source
        .read_exact_at(0, &mut [0; 10])
        .expect_err("ends early");
    assert_refused(&error, ErrorCode::SourceChanged, &["file", "rename(2)"]);
}

#[test]
fn a_write_after_settling_always_gives_another_identity() {
    let (dir, _socket) = zoo();
    let path = dir.path().join("file");
    let source = registered(dir.path(), "file").expect("a file");
    for round in 0..10u8 {
        fs::write(&path, [round; 10]).expect("can be written");
        let settled = settle(&[&source]).expect("nobody writes it")[0];
        fs::write(&path, [round + 100; 10]).expect("can be written");
        assert_ne!(
            source.identity().expect("can be asked"),
            settled,
            "round {round}"
        );
    }
}

/// A file whose times are always those of the present.
struct Restless(Mutex<i128>);

impl Source for Restless {
    fn label(&self) -> &str {
        "restless"
    }

    fn identity(&self) -> Result<Identity, SourceError> {
        let mut ctime_ns = self.0.lock().expect("one thread");
        *ctime_ns += 1;
        Ok(Identity {
            dev: 0,
            ino: 0,
            bytes: 0,
            mtime_ns: 0,
            ctime_ns: *ctime_ns,
        })
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<usize, SourceError> {
        Ok(0)
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

#[test]
fn a_file_that_is_written_all_the_time_is_refused_in_bounded_time() {
    let future = i128::from(u64::MAX);
    let error = settle(&[&Restless(Mutex::new(future))]).expect_err("never settles");
    assert_refused(&error, ErrorCode::SourceChanged, &["restless", "try again"]);
    let old = settle(&[&Restless(Mutex::new(0))]).expect("an old stamp is enough");
    assert_eq!(old[0].ctime_ns, 1);
}

#[test]
fn errors_of_the_system_name_their_cure() {
    use rustix::io::Errno;
    let error = |errno| SourceError::Unreadable {
        name: "f".into(),
        action: "open",
        errno,
    };
    let access = error(Errno::ACCESS);
    assert_refused(
        &access,
        ErrorCode::SourceUnreadable,
        &["`f`", "daemon's user"],
    );
    assert_refused(
        &error(Errno::IO),
        ErrorCode::SourceUnreadable,
        &["check the disk"],
    );
    assert_refused(
        &error(Errno::MFILE),
        ErrorCode::Exhausted,
        &["limit of open files"],
    );
}

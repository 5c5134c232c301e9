//! What another user can do to the memory that it was lent, to the daemon, and to what it may not
//! have: as another uid, and in user, mount and PID namespaces of its own. Nothing, and each time
//! by a mechanism that is named (README, threat model).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_proto::error::ErrorCode;
use mrm_tests::attempts::{all_denied, on_descriptor, on_process};
use mrm_tests::hostile::{
    NOBODY, as_user, content, granted, let_everybody_in, open, open_files, refused, still_serves,
};
use mrm_tests::node::{Node, Setup};
use mrm_tests::raw::Raw;
use mrm_tests::{http, model};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the child finds what it is to try: directory of the daemon, its pid, the file that it may
/// not read.
const DIR: &str = "MRM_TEST_ISOLATION_DIR";
const PID: &str = "MRM_TEST_ISOLATION_PID";

/// A daemon that every user may use, with the model `m` and the file `secret.bin`, which are root's
/// alone; and the image of `m`.
fn node(settings: &[(&str, &str)]) -> (Node, Vec<u8>) {
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 3 << 20, 3, 1);
    let secret = dir.path().join("secret.bin");
    fs::write(&secret, b"of root").unwrap();
    for file in [&path, &secret] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let_everybody_in(dir.path());
    let mut setup = Setup::new().model("m", &path);
    for (name, value) in settings {
        setup
            .environment
            .push(((*name).to_owned(), (*value).to_owned()));
    }
    (Node::start_in(dir, &setup), image)
}

/// What is there to attack.
struct Target {
    dir: PathBuf,
    pid: Option<i32>,
}

impl Target {
    fn of(node: &Node) -> Self {
        Self {
            dir: node.dir.path().to_owned(),
            pid: Some(i32::try_from(node.pid()).unwrap()),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/mrmd.sock")
    }

    fn status_socket(&self) -> PathBuf {
        self.dir.join("run/status.sock")
    }

    fn lent(&self) -> (Raw, Vec<OwnedFd>) {
        let mut raw = Raw::hello(&self.socket());
        let (_, fds) = granted(&mut raw, 2, "m");
        (raw, fds)
    }
}

/// Tries everything, and returns how many attempts were denied. Fails with the first that was not.
fn try_everything(target: &Target) -> usize {
    let (mut raw, fds) = target.lent();
    let mut denied = 0;
    for fd in &fds {
        denied += all_denied(&on_descriptor(fd));
    }
    denied += target.pid.map_or(0, |pid| all_denied(&on_process(pid)));
    denied += files_stay_shut(target);
    denied += models_stay_shut(&mut raw, target);
    denied += verbs_are_refused(target);
    granted(&mut raw, 90, "m");
    denied
}

/// The files and sockets that are not for clients.
fn files_stay_shut(target: &Target) -> usize {
    let open = |path: &Path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let run = target.dir.join("run");
    let mut tried = 0;
    for entry in fs::read_dir(&run).expect("everybody may look") {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_file() {
            let opened = open(&path, OFlags::RDWR);
            assert_eq!(opened.err(), Some(Errno::ACCESS), "{}", path.display());
            tried += 1;
        }
    }
    for name in ["mrmd.sock", "stolen.sock"] {
        let bound = std::os::unix::net::UnixListener::bind(run.join(name));
        let error = bound.expect_err("the directory is the daemon's");
        let expected = [
            std::io::ErrorKind::PermissionDenied,
            std::io::ErrorKind::AddrInUse,
        ];
        assert!(expected.contains(&error.kind()), "{name}: {error}");
        let removed = fs::remove_file(run.join(name)).expect_err("it is the daemon's");
        let expected = [
            std::io::ErrorKind::PermissionDenied,
            std::io::ErrorKind::NotFound,
        ];
        assert!(expected.contains(&removed.kind()), "{name}: {removed}");
        tried += 2;
    }
    let keeper = run.join("keeper.sock");
    if keeper.exists() {
        let error = UnixStream::connect(keeper).expect_err("the keeper is the daemon's");
        // Whoever is not let in is not told that it speaks another protocol.
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        tried += 1;
    }
    tried
}

/// What the kernel does not let somebody read, no daemon reads for him.
fn models_stay_shut(raw: &mut Raw, target: &Target) -> usize {
    let secret = target.dir.join("secret.bin");
    let error = File::open(&secret).expect_err("it is root's");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    let path_only = rustix::fs::open(&secret, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let path_only = path_only.expect("a path is no more than a name");
    let request = open_files("x", &["secret.bin"]);
    let error = refused(raw, 3, &request, &[path_only.as_fd()]);
    assert_eq!(error.code(), Some(ErrorCode::FdNotReadable));
    let own = File::open("/dev/null").unwrap();
    let mut tried = 2;
    let text = secret.to_str().unwrap();
    // Names that are paths, to it and to itself.
    for name in [
        text.trim_start_matches('/').to_owned(),
        format!("m{text}"),
        format!("proc/{}/root{text}", std::process::id()),
    ] {
        let error = refused(raw, 10 + tried as u64, &open(&name, 0), &[]);
        assert_eq!(error.code(), Some(ErrorCode::ModelNotFound), "{name}");
        let request = open_files(&name, &["secret.bin"]);
        let error = refused(raw, 40 + tried as u64, &request, &[own.as_fd()]);
        assert_eq!(error.code(), Some(ErrorCode::NotRegularFile), "{name}");
        tried += 2;
    }
    tried
}

/// Everybody may look, and nobody but the operator change anything.
fn verbs_are_refused(target: &Target) -> usize {
    let verbs = [
        "/v1/models/m/pin",
        "/v1/models/m/unpin",
        "/v1/models/m/warm",
        "/v1/models/m/evict",
        "/v1/drain",
    ];
    for verb in verbs {
        let (status, body) = http::request(&target.status_socket(), "POST", verb);
        assert_eq!(status, 403, "{verb}: {body}");
    }
    let (status, _) = http::request(&target.status_socket(), "GET", "/v1/status");
    assert_eq!(status, 200);
    verbs.len()
}

#[test]
fn another_user_changes_nothing() {
    let (node, image) = node(&[]);
    let target = Target::of(&node);
    if let Some(denied) = as_user(NOBODY, || try_everything(&target)) {
        println!("{denied} attempts, all denied");
    }
    still_serves(&node, "m", &image);
    node.until_idle();
}

#[test]
fn another_user_does_not_reach_the_keeper() {
    let settings = [
        ("MRM_KEEPER_KIND", "process"),
        ("MRM_KEEPER_RESPAWN", "no"),
        ("MRM_KEEPER_FOR_MS", "1000"),
    ];
    let (node, image) = node(&settings);
    let target = Target::of(&node);
    assert!(target.dir.join("run/keeper.sock").exists());
    still_serves(&node, "m", &image);
    if let Some(denied) = as_user(NOBODY, || try_everything(&target)) {
        println!("{denied} attempts, all denied");
    }
    still_serves(&node, "m", &image);
}

/// Not a test: what runs in namespaces of its own.
#[test]
#[ignore = "the program of another test's child process"]
fn child_in_namespaces() {
    let dir = std::env::var_os(DIR).expect("started by its test");
    let pid = std::env::var(PID).ok().and_then(|pid| pid.parse().ok());
    let target = Target {
        dir: dir.into(),
        pid,
    };
    println!("{} attempts denied", try_everything(&target));
}

/// The child's program where every user can run it, and what it printed.
fn run_child(node: &Node, wrapper: &[&str], pid: Option<u32>) -> Option<String> {
    let program = node.dir.path().join("tries");
    if !program.exists() {
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(&program);
    command.args(["--exact", "child_in_namespaces", "--ignored", "--nocapture"]);
    command.env(DIR, node.dir.path()).current_dir("/");
    match pid {
        Some(pid) => command.env(PID, pid.to_string()),
        None => command.env_remove(PID),
    };
    let output = as_user(NOBODY, || command.output().expect("it is there"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let cause = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("attempts denied"),
        "{wrapper:?}: {}\n{said}\n{cause}",
        output.status
    );
    Some(said)
}

/// Whether an unprivileged user may make the namespaces that `wrapper` makes.
fn can(wrapper: &[&str]) -> bool {
    let run = || {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg("true").current_dir("/");
        command.output().is_ok_and(|output| output.status.success())
    };
    let can = as_user(NOBODY, run) == Some(true);
    if !can {
        println!("SKIPPED: {wrapper:?} is not possible here");
    }
    can
}

#[test]
fn namespaces_of_ones_own_change_nothing() {
    let (node, image) = node(&[]);
    // As root of a user namespace, with every capability there.
    let in_user = ["unshare", "--user", "--map-root-user", "--mount"];
    // The daemon has no number there; what /proc shows is what was mounted there before.
    let in_pid = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--net",
        "--ipc",
    ];
    let mut ran = 0;
    for (wrapper, pid) in [(&in_user[..], Some(node.pid())), (&in_pid[..], None)] {
        if can(wrapper)
            && let Some(said) = run_child(&node, wrapper, pid)
        {
            let count = said.lines().find(|line| line.contains("attempts denied"));
            println!("{wrapper:?}: {}", count.unwrap_or_default());
            ran += 1;
            still_serves(&node, "m", &image);
        }
    }
    println!("{ran} of 2 kinds of namespaces");
    node.until_idle();
}

/// Bytes that one client wrote into a private copy of a page are seen by nobody else.
#[test]
fn what_another_user_reads_is_what_was_loaded() {
    let (node, image) = node(&[]);
    let target = Target::of(&node);
    as_user(NOBODY, || {
        let (_raw, fds) = target.lent();
        let how = mrm_tests::attempts::Try::PrivateWrite;
        assert_eq!(mrm_tests::attempts::map_and_try(&fds[1], how), Ok(()));
        assert!(content(&fds[1], image.len() as u64) == image);
    });
    still_serves(&node, "m", &image);
}

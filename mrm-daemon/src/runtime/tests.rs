//! Claims, take-overs and permissions, against the real file system.

use super::*;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Tells a run of this test binary which directory it is to serve in.
const CHILD: &str = "MRM_TEST_RUNTIME_DIR";

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn tokio() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// Runs one test of this binary as a process of its own.
fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("runtime::tests::{test}"), "--nocapture"]);
    command.env(CHILD, dir);
    command
}

/// Waits for the line `said`, which must come before the process ends.
fn hear(child: &mut Child, said: &str) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains(said)),
        "{said:?} was not said"
    );
}

#[test]
fn one_daemon_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mrm");
    let first = RuntimeDir::claim(&path).unwrap();
    let lock = fs::read_to_string(path.join(LOCK_FILE)).unwrap();
    assert_eq!(lock, format!("{}\n", std::process::id()));

    let second = RuntimeDir::claim(&path).unwrap_err();
    let expected = format!(
        "another mrmd (pid {}) serves in {}; stop it, or choose another --runtime-dir",
        std::process::id(),
        path.display()
    );
    assert_eq!(second.to_string(), expected);

    drop(first);
    assert!(!path.exists(), "what was made is removed");
    RuntimeDir::claim(&path).unwrap();
}

#[test]
fn claims_that_race_with_departures_never_overlap() {
    const CLAIMS: usize = 200;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mrm");
    let (held, won) = (AtomicBool::new(false), AtomicUsize::new(0));
    let claim_often = || {
        for _ in 0..CLAIMS {
            match RuntimeDir::claim(&path) {
                Ok(claimed) => {
                    assert!(!held.swap(true, Ordering::SeqCst), "two daemons at a time");
                    won.fetch_add(1, Ordering::SeqCst);
                    held.store(false, Ordering::SeqCst);
                    drop(claimed);
                }
                Err(ClaimError::AlreadyRunning { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(claim_often);
        }
    });
    assert!(won.into_inner() > 0);
    assert!(!path.exists() || fs::read_dir(&path).unwrap().next().is_none());
}

#[test]
fn a_killed_daemon_is_taken_over_and_a_living_one_is_not() {
    if let Some(path) = std::env::var_os(CHILD) {
        let mut runtime = RuntimeDir::claim(Path::new(&path)).unwrap();
        let _status = runtime.status_listener().unwrap();
        writeln!(std::io::stdout(), "\nserving").unwrap();
        // Until it is killed, or its parent is gone.
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mrm");
    let mut child = again(
        "a_killed_daemon_is_taken_over_and_a_living_one_is_not",
        &path,
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    hear(&mut child, "serving");

    match RuntimeDir::claim(&path) {
        Err(ClaimError::AlreadyRunning { pid, .. }) => assert_eq!(pid, Some(child.id())),
        other => panic!("{other:?}"),
    }
    UnixStream::connect(path.join(STATUS_SOCKET)).unwrap();

    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        path.join(STATUS_SOCKET).exists(),
        "a killed daemon leaves its socket"
    );
    let mut runtime = RuntimeDir::claim(&path).unwrap();
    assert!(
        path.join(STATUS_SOCKET).exists(),
        "removed only when it is replaced"
    );
    let _listener = runtime.status_listener().unwrap();
    UnixStream::connect(path.join(STATUS_SOCKET)).unwrap();
}

#[test]
fn what_is_not_a_dead_socket_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join(STATUS_SOCKET);
    let listener = UnixListener::bind(&status).unwrap();
    let mut runtime = RuntimeDir::claim(dir.path()).unwrap();
    let error = runtime.status_listener().unwrap_err().to_string();
    assert!(
        error.contains("another process listens on it; stop that"),
        "{error}"
    );
    UnixStream::connect(&status).unwrap();

    drop(listener);
    fs::remove_file(&status).unwrap();
    fs::write(&status, "precious").unwrap();
    let error = runtime.status_listener().unwrap_err().to_string();
    assert!(
        error.contains("what is there is not a socket; remove it"),
        "{error}"
    );
    drop(runtime);
    assert_eq!(fs::read(&status).unwrap(), b"precious");
}

#[test]
fn clients_are_accepted_on_a_socket_with_its_mode_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let gid = rustix::process::getegid().as_raw();
    let group = Group {
        name: gid.to_string(),
        gid,
    };
    for (bits, group) in [(0o666, None), (0o600, None), (0o660, Some(&group))] {
        let mut runtime = RuntimeDir::claim(&dir.path().join("mrm")).unwrap();
        let socket = runtime.path().join(CLIENT_SOCKET);
        tokio().block_on(async {
            let bits_of = SocketMode::new(bits).unwrap();
            let listener = runtime.client_listener(bits_of, group).unwrap();
            assert_eq!(mode(&socket), bits);
            assert_eq!(fs::metadata(&socket).unwrap().gid(), gid);
            let client = UnixStream::connect(&socket).unwrap();
            let accepted = listener.accept().await.unwrap();
            let peer = crate::peer::Peer::of(&accepted).unwrap();
            assert_eq!(u32::try_from(peer.pid), Ok(std::process::id()));
            drop(client);
        });
        drop(runtime);
        assert!(!socket.exists());
    }
}

#[test]
fn a_socket_that_others_put_in_place_of_ours_stays() {
    let dir = tempfile::tempdir().unwrap();
    let status = dir.path().join(STATUS_SOCKET);
    let mut runtime = RuntimeDir::claim(dir.path()).unwrap();
    let ours = runtime.status_listener().unwrap();
    // Ours lives on, so that its inode cannot be given to theirs.
    fs::rename(&status, dir.path().join("moved")).unwrap();
    let _theirs = UnixListener::bind(&status).unwrap();
    drop(runtime);
    drop(ours);
    assert!(status.exists());
}

#[test]
fn directories_that_others_can_tamper_with_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("real");
    fs::create_dir(&real).unwrap();
    let link = dir.path().join("link");
    symlink(&real, &link).unwrap();
    let refusal = |path: &Path| match RuntimeDir::claim(path) {
        Err(error @ ClaimError::Unfit { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refusal(&link).contains("it is a symbolic link"));

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refusal(&file).contains("it is not a directory"));

    fs::set_permissions(&real, Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&real).contains("everybody may replace what is in it (mode 0777)"));
    fs::set_permissions(&real, Permissions::from_mode(0o1777)).unwrap();
    RuntimeDir::claim(&real).unwrap();
    assert!(real.exists(), "what was there stays");

    let metadata = fs::metadata(&real).unwrap();
    let uid = metadata.uid();
    assert!(directory::check(&real, &metadata, uid).is_ok());
    let other = directory::check(&real, &metadata, uid + 1);
    assert_eq!(
        other.is_err(),
        uid != 0,
        "root's directories are trusted, no other user's"
    );
}

#[test]
fn a_made_directory_has_the_mode_of_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::claim(&dir.path().join("mrm")).unwrap();
    let root = rustix::process::geteuid().is_root();
    assert_eq!(mode(runtime.path()), if root { 0o755 } else { 0o700 });

    let error = RuntimeDir::claim(&dir.path().join("no/parent"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no/parent"), "{error}");
    assert!(error.contains("No such file or directory"), "{error}");
}

#[test]
fn sockets_of_a_service_manager_are_used_and_left_in_place() {
    if let Some(path) = std::env::var_os(CHILD) {
        let activated = Activated::from_environment().unwrap();
        assert!(activated.clients.is_some() && activated.status.is_none());
        let again = Activated::from_environment().unwrap();
        assert!(again.clients.is_none(), "descriptors have one owner");
        let claimed = RuntimeDir::claim(Path::new(&path)).unwrap();
        let mut runtime = claimed.with_activated(activated);
        tokio().block_on(async {
            let listener = runtime.client_listener(SocketMode::DEFAULT, None).unwrap();
            listener.accept().await.unwrap();
        });
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(CLIENT_SOCKET);
    let listener = UnixListener::bind(&socket).unwrap();
    // Connected before the daemon starts: the manager's socket keeps it.
    let _client = UnixStream::connect(&socket).unwrap();
    let test = again(
        "sockets_of_a_service_manager_are_used_and_left_in_place",
        dir.path(),
    );
    let output = Command::new("sh")
        .args(["-c", r#"LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#, "sh"])
        .arg(test.get_program())
        .args(test.get_args())
        .env(CHILD, dir.path())
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "mrmd")
        .stdin(OwnedFd::from(listener.try_clone().unwrap()))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(socket.exists());
    assert!(!dir.path().join(LOCK_FILE).exists());
}

#[test]
fn an_adopted_socket_is_served_on_and_removed_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(CLIENT_SOCKET);
    let mut first = RuntimeDir::claim(dir.path()).unwrap();
    assert!(first.bound(Which::Client).is_none());
    let kept = tokio().block_on(async {
        let listener = first.client_listener(SocketMode::DEFAULT, None).unwrap();
        listener.as_fd().try_clone_to_owned().unwrap()
    });
    let bound = first.bound(Which::Client).unwrap();
    assert_eq!(Path::new(&bound.path), path);
    first.hand_over();
    // Nobody serves; whoever connects is not refused.
    let client = UnixStream::connect(&path).unwrap();

    let mut second = RuntimeDir::claim(dir.path()).unwrap();
    let elsewhere = Listener {
        path: "/elsewhere/mrmd.sock".into(),
        ..bound.clone()
    };
    let refused = second.adopt(&elsewhere, kept.try_clone().unwrap());
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("not in this runtime directory")
    );
    second.adopt(&bound, kept).unwrap();
    assert_eq!(second.bound(Which::Client), Some(bound));
    tokio().block_on(async {
        let narrower = SocketMode::new(0o600).unwrap();
        let listener = second.client_listener(narrower, None).unwrap();
        listener.accept().await.unwrap();
        assert_eq!(mode(&path), 0o600);
    });
    drop((client, second));
    assert!(!path.exists());
}

#[test]
fn what_the_fd_store_gave_back_is_told_from_sockets() {
    const TEST: &str = "what_the_fd_store_gave_back_is_told_from_sockets";
    if let Some(path) = std::env::var_os(CHILD) {
        let mut activated = Activated::from_environment().unwrap();
        assert!(activated.clients.is_some() && activated.status.is_none());
        let stored = activated.take_stored();
        let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mrm_a_0_0", "mrm_a_1"]);
        assert!(activated.take_stored().is_empty());
        let store = FdStore::from_environment().unwrap().unwrap();
        assert_eq!(store.capacity(), 7);
        let file = fs::File::open(path).unwrap();
        let soon = std::time::Duration::from_millis(1);
        store.store("mrm_b_0_0", file.as_fd(), soon).unwrap();
        store.remove("mrm_a_1", soon).unwrap();
        // Nobody reads: nobody closes the end of the pipe.
        assert_eq!(
            store.barrier(soon).unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(CLIENT_SOCKET)).unwrap();
    let manager = dir.path().join("notify");
    let heard = std::os::unix::net::UnixDatagram::bind(&manager).unwrap();
    let test = again(TEST, dir.path());
    let script = r#"LISTEN_PID=$$ exec "$@" 3<&0 4<&0 5<&0 0</dev/null"#;
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(test.get_program())
        .args(test.get_args())
        .env(CHILD, dir.path())
        .env("LISTEN_FDS", "3")
        .env("LISTEN_FDNAMES", "mrm_a_0_0:mrmd:mrm_a_1")
        .env("NOTIFY_SOCKET", &manager)
        .env("FDSTORE", "7")
        .stdin(OwnedFd::from(listener))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    heard.set_nonblocking(true).unwrap();
    let mut text = [0; 512];
    for expected in [
        "FDSTORE=1\nFDPOLL=0\nFDNAME=mrm_b_0_0\n",
        "FDSTOREREMOVE=1\nFDNAME=mrm_a_1\n",
        "BARRIER=1\n",
    ] {
        let bytes = heard.recv(&mut text).unwrap();
        assert_eq!(String::from_utf8_lossy(&text[..bytes]), expected);
    }
}

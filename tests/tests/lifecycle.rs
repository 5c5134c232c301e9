//! How a daemon begins, is told things, and ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use mrm_client::{Client, Fault, OpenOptions};
use mrm_tests::node::{Node, Setup, command, program};
use mrm_tests::{DEADLINE, eventually, http, model};
use nix::sys::signal::Signal::{self, SIGHUP, SIGTERM};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A daemon that was not started by the harness.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("starts"))
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).expect("is there");
    }

    fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", || self.0.try_wait().expect("waits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until_ready(status_socket: &Path) {
    eventually("the daemon is ready", || {
        UnixStream::connect(status_socket).ok()?;
        (http::request(status_socket, "GET", "/readyz").0 == 200).then_some(())
    });
}

fn two_models(dir: &Path) -> Setup {
    let (a, _) = model::write(dir, "a.safetensors", MIB, 3, 1);
    let (b, _) = model::write(dir, "b.safetensors", MIB, 3, 2);
    Setup::new().model("a", &a).model("b", &b)
}

fn leftovers(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Nothing is left but what is remembered of the models that were used.
fn assert_only_statistics(dir: &Path) {
    assert_eq!(leftovers(dir), ["statistics"]);
}

#[test]
fn it_needs_no_configuration_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let (path, image) = model::write(dir.path(), "m.safetensors", MIB, 2, 7);
    let mut bare = Command::new(program("mrmd"));
    bare.env_clear()
        .env("MRM_RUNTIME_DIR", &run)
        .stderr(Stdio::null());
    let mut daemon = Process::start(&mut bare);
    until_ready(&run.join("status.sock"));
    let (_, body) = http::request(&run.join("status.sock"), "GET", "/v1/status");
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(
        status["host"]["limit_bytes"].as_u64().unwrap() > MIB,
        "{status}"
    );

    let client = Client::connect_to(run.join("mrmd.sock")).unwrap();
    let opened = client.open_path(&path).unwrap();
    assert_eq!(opened.segment(0).unwrap().bytes(), image);
    drop((opened, client));
    daemon.signal(SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!run.exists(), "{:?}", leftovers(&run));
}

#[test]
fn check_prints_what_is_in_force_or_where_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let setup = two_models(dir.path()).budget(123 * MIB);
    let checked = command(dir.path(), &setup).arg("--check").output().unwrap();
    let shown = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(0), "{shown}");
    assert!(shown.contains("host_budget_bytes = 128974848"), "{shown}");
    assert!(!dir.path().join("run").exists(), "a check claims nothing");

    let wrong = Setup::new()
        .setting("drain_ms = 5")
        .setting("host_budget_bytes = \"8GiX\"");
    let checked = command(dir.path(), &wrong).arg("--check").output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(2), "{said}");
    let place = format!("{}:2", dir.path().join("mrm.toml").display());
    assert!(said.contains(&place), "{said}");
}

#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    let node = Node::start(&Setup::new());
    let second = command(node.dir.path(), &Setup::new()).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("pid {}", node.pid())), "{said}");
    node.client().list("").expect("the first is unharmed");
}

#[test]
fn what_a_killed_daemon_left_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let setup = two_models(dir.path());
    let mut node = Node::start_in(dir, &setup);
    drop(node.client().open("a").unwrap());
    node.kill();
    let left = leftovers(&node.runtime_dir());
    assert_eq!(left.len(), 3, "two sockets and a lock: {left:?}");
    node.restart(&setup);
    let opened = node.client().open("a").unwrap();
    assert_eq!(opened.tensors().unwrap().len(), 3);
}

#[test]
fn an_idle_daemon_ends_at_once_and_leaves_nothing_but_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let setup = two_models(dir.path());
    let mut node = Node::start_in(dir, &setup);
    let client = node.client();
    drop(client.open("a").unwrap());
    node.until_leases(0);
    node.signal(SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
    assert_only_statistics(&node.runtime_dir());
}

#[test]
fn a_drain_refuses_opens_and_waits_for_the_last_lease() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = model::write(dir.path(), "a.safetensors", MIB, 3, 1);
    let setup = two_models(dir.path());
    let mut node = Node::start_in(dir, &setup);
    let (holder, other) = (node.client(), node.client());
    let held = holder.open("a").unwrap();
    node.signal(SIGTERM);
    eventually("it drains", || {
        (node.get("/v1/status")["daemon"]["state"] == "draining").then_some(())
    });
    // A client asks again until its wait is over: another daemon may come.
    let soon = OpenOptions::new().wait(Duration::from_millis(100));
    for name in ["a", "b"] {
        let refused = other.open_with(name, &soon).unwrap_err();
        assert_eq!(refused.name(), "draining", "{refused}");
    }
    let (ready, _) = http::request(&node.status_socket(), "GET", "/readyz");
    assert_eq!(ready, 503);
    assert_eq!(held.segment(0).unwrap().bytes(), image);
    assert_eq!(node.number("/leases"), 1);
    drop(held);
    assert_eq!(node.wait().code(), Some(0));
    assert_only_statistics(&node.runtime_dir());
}

#[test]
fn a_second_signal_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = model::write(dir.path(), "a.safetensors", MIB, 3, 1);
    let setup = two_models(dir.path()).setting("drain_ms = 3600000");
    let mut node = Node::start_in(dir, &setup);
    let held = node.client().open("a").unwrap();
    node.signal(SIGTERM);
    eventually("it drains", || {
        (node.get("/v1/status")["daemon"]["state"] == "draining").then_some(())
    });
    node.signal(SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
    assert_only_statistics(&node.runtime_dir());
    assert_eq!(
        held.segment(0).unwrap().bytes(),
        image,
        "what is mapped stays"
    );
}

#[test]
fn a_drain_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let setup = two_models(dir.path()).setting("drain_ms = 50");
    let mut node = Node::start_in(dir, &setup);
    let held = node.client().open("a").unwrap();
    node.signal(SIGTERM);
    assert_eq!(node.wait().code(), Some(0));
    assert!(node.log().contains("the drain took too long"));
    assert_only_statistics(&node.runtime_dir());
    assert_eq!(held.tensors().unwrap().len(), 3);
}

#[test]
fn the_operator_can_ask_for_a_drain() {
    let mut node = Node::start(&Setup::new());
    let (status, body) = node.post("/v1/drain");
    assert_eq!((status, &body["ok"]), (200, &true.into()), "{body}");
    assert_eq!(node.wait().code(), Some(0));
}

/// Sends SIGHUP and waits until the log says `line` once more.
fn hang_up(node: &Node, line: &str) {
    let seen = |log: &str| log.matches(line).count();
    let before = seen(&node.log());
    node.signal(SIGHUP);
    eventually(line, || (seen(&node.log()) > before).then_some(()));
}

const RELOADED: &str = "catalogue and host budget were read again";

#[test]
fn a_reload_brings_the_new_catalogue() {
    let dir = tempfile::tempdir().unwrap();
    let (c, _) = model::write(dir.path(), "c.safetensors", MIB, 2, 3);
    let (a, image) = model::write(dir.path(), "a.safetensors", MIB, 3, 1);
    let setup = two_models(dir.path());
    let node = Node::start_in(dir, &setup);
    let client = node.client();
    let held = client.open("a").unwrap();
    assert_eq!(client.open("c").unwrap_err().name(), "model_not_found");

    // `a` goes, `b` is pinned, `c` comes.
    let b = node.dir.path().join("b.safetensors");
    let next = Setup::new()
        .model_with("b", &b, "pin = true")
        .model("c", &c);
    let _ = command(node.dir.path(), &next);
    hang_up(&node, RELOADED);
    assert_eq!(client.open("c").unwrap().tensors().unwrap().len(), 2);
    eventually("the newly pinned model is loaded", || {
        let b = node.get("/v1/models/b");
        (b["pinned"] == true && b["state"] == "resident").then_some(())
    });
    assert_eq!(
        held.segment(0).unwrap().bytes(),
        image,
        "a holder keeps what it has"
    );
    let gone = node.client().open("a").unwrap_err();
    assert_eq!(gone.name(), "model_not_found", "{gone}");
    assert_eq!(node.number("/leases"), 1);
    drop(held);

    // `b` is pinned no more, and `a` is back.
    let last = Setup::new().model("a", &a).model("b", &b);
    let _ = command(node.dir.path(), &last);
    hang_up(&node, RELOADED);
    assert_eq!(node.get("/v1/models/b")["pinned"], false);
    assert_eq!(
        node.client().open("a").unwrap().segment(0).unwrap().bytes(),
        image
    );
}

#[test]
fn a_broken_file_keeps_the_old_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_in(dir, &Setup::new());
    let (path, _) = model::write(node.dir.path(), "a.safetensors", MIB, 3, 1);
    let good = Setup::new().model("a", &path);
    let _ = command(node.dir.path(), &good);
    hang_up(&node, RELOADED);
    let budget = node.number("/host/limit_bytes");
    fs::write(
        node.dir.path().join("mrm.toml"),
        "host_budget_bytes = 1\n[[model]\n",
    )
    .unwrap();
    hang_up(&node, "the old configuration stays in force");
    assert!(node.log().contains("mrm.toml:2"), "the log says where");
    assert_eq!(node.client().open("a").unwrap().tensors().unwrap().len(), 3);
    assert_eq!(node.number("/host/limit_bytes"), budget);
}

#[test]
fn sockets_of_a_service_manager_are_used_and_left_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (clients, status) = (dir.path().join("c.sock"), dir.path().join("s.sock"));
    let listeners = [&clients, &status].map(|path| UnixListener::bind(path).unwrap());
    let [first, second] = listeners.map(|listener| Stdio::from(OwnedFd::from(listener)));
    // A shell moves them to 3 and 4 and knows the pid that it passes on.
    let script = "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=mrmd:status \
                  exec \"$0\" \"$@\" 3<&0 4<&1 0</dev/null 1>/dev/null";
    let setup = two_models(dir.path());
    let daemon = command(dir.path(), &setup);
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(script)
        .arg(daemon.get_program())
        .args(daemon.get_args());
    shell.stdin(first).stdout(second).stderr(Stdio::null());
    // A client may connect before anybody serves.
    let mut daemon = Process::start(&mut shell);
    let opened = Client::connect_with(
        &mrm_client::ConnectOptions::new()
            .socket(&clients)
            .timeout(DEADLINE),
    );
    let opened = opened.unwrap().open("a").unwrap();
    assert_eq!(opened.tensors().unwrap().len(), 3);
    until_ready(&status);
    assert!(!dir.path().join("run/mrmd.sock").exists());
    drop(opened);
    daemon.signal(SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(
        clients.exists() && status.exists(),
        "they are the manager's"
    );
    assert_only_statistics(&dir.path().join("run"));
}

#[test]
fn the_service_manager_hears_each_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let next = || {
        let mut message = [0; 1024];
        let bytes = manager
            .recv(&mut message)
            .expect("the daemon says something");
        String::from_utf8_lossy(&message[..bytes]).into_owned()
    };
    let mut command = command(dir.path(), &Setup::new());
    let mut daemon = Process::start(command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null()));
    assert!(next().starts_with("READY=1\nSTATUS=serving"));
    daemon.signal(SIGHUP);
    let reloading = next();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert!(next().starts_with("READY=1"));
    daemon.signal(SIGTERM);
    assert!(next().starts_with("STOPPING=1"));
    assert_eq!(daemon.wait().code(), Some(0));
}

//! A daemon in a directory of its own.

use crate::{DEADLINE, eventually, http};
use mrm_client::Client;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A process with so many addresses has shadow memory: the sanitizers reserve some 16 TiB for it.
const SHADOWED_BYTES_MIN: u64 = 8 << 40;

/// What a test may set. Everything else has the daemon's defaults.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Lines of TOML before the catalogue.
    pub settings: String,
    /// `[[model]]` name and path, with more lines of its table.
    pub models: Vec<(String, PathBuf, String)>,
    /// Environment of the daemon.
    pub environment: Vec<(String, String)>,
}

impl Setup {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    pub fn budget(self, bytes: u64) -> Self {
        self.setting(&format!("host_budget_bytes = {bytes}"))
    }

    /// Has the daemon make so much memory ready for loads: none, if not told.
    pub fn stock(mut self, bytes: &str) -> Self {
        let stock = ("MRM_LOAD_STOCK_BYTES".to_owned(), bytes.to_owned());
        self.environment.push(stock);
        self
    }

    pub fn model(mut self, name: &str, path: &Path) -> Self {
        self.models
            .push((name.to_owned(), path.to_owned(), String::new()));
        self
    }

    pub fn model_with(mut self, name: &str, path: &Path, lines: &str) -> Self {
        self.models
            .push((name.to_owned(), path.to_owned(), lines.to_owned()));
        self
    }
}

/// A running daemon. Killed and cleaned up when dropped.
pub struct Node {
    pub dir: tempfile::TempDir,
    child: Child,
}

/// Where the programs under test are: `MRM_BIN_DIR`, or the directory of this test's own build.
pub fn program(name: &str) -> PathBuf {
    let Some(dir) = std::env::var_os("MRM_BIN_DIR") else {
        return beside(name);
    };
    built(PathBuf::from(dir).join(name))
}

/// A program of this test's own build.
pub fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("own path");
    let deps = own.parent().expect("a directory");
    let is_nested = deps.ends_with("deps") || deps.ends_with("examples");
    let dir = if is_nested {
        deps.parent().expect("target/PROFILE")
    } else {
        deps
    };
    built(dir.join(name))
}

fn built(path: PathBuf) -> PathBuf {
    assert!(
        path.exists(),
        "{} is not built: run `cargo build --workspace` first (scripts/test does)",
        path.display()
    );
    path
}

impl Node {
    /// Starts a daemon and waits until it serves.
    pub fn start(setup: &Setup) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mrm-test-")
            .tempdir()
            .expect("a directory");
        Self::start_in(dir, setup)
    }

    pub fn start_in(dir: tempfile::TempDir, setup: &Setup) -> Self {
        let child = spawn(dir.path(), setup);
        Self { dir, child }
    }

    /// Starts the next daemon on the same directory after the last has ended.
    pub fn restart(&mut self, setup: &Setup) {
        self.child = spawn(self.dir.path(), setup);
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime_dir().join("mrmd.sock")
    }

    pub fn status_socket(&self) -> PathBuf {
        self.runtime_dir().join("status.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> Client {
        Client::connect_to(self.socket()).expect("the daemon serves")
    }

    /// `GET path`, which must succeed.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = http::request(&self.status_socket(), "GET", path);
        assert_eq!(status, 200, "GET {path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("GET {path}: {e}: {body}"))
    }

    /// `POST path`: status and body.
    pub fn post(&self, path: &str) -> (u16, Value) {
        let (status, body) = http::request(&self.status_socket(), "POST", path);
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// A number of `/v1/status`, by JSON pointer.
    pub fn number(&self, pointer: &str) -> u64 {
        let status = self.get("/v1/status");
        status
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{pointer}: {status}"))
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).expect("the daemon is there");
    }

    pub fn wait(&mut self) -> ExitStatus {
        eventually("the daemon ends", || self.child.try_wait().expect("waits"))
    }

    /// SIGKILL, as the kernel's memory killer would.
    pub fn kill(&mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("waits");
    }

    /// Open descriptors of the daemon.
    pub fn fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("is there")
            .count()
    }

    /// Resident memory of the daemon without shared segments, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// Asserts that the daemon's own memory is less than `most_bytes` above `before_bytes`.
    ///
    /// Says nothing of a daemon under AddressSanitizer, whose allocator keeps what is freed in
    /// quarantine, and remembers where each piece was allocated: such a daemon grows although it
    /// leaks nothing, which is for the sanitizer to say.
    pub fn grew_less_than(&self, most_bytes: u64, before_bytes: u64) {
        if self.memory("VmSize:") > SHADOWED_BYTES_MIN {
            println!("SKIPPED: memory does not count under a sanitizer");
            return;
        }
        let grown = self.resident_bytes().saturating_sub(before_bytes);
        assert!(grown < most_bytes, "grew by {grown} bytes");
    }

    fn memory(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("is there");
        let line = status.lines().find(|l| l.starts_with(what));
        let number = line.expect("a line").split_whitespace().nth(1);
        let kib: u64 = number.and_then(|n| n.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Waits until so many leases are counted. What a client closes or drops is back a little
    /// later, and evicting before that is refused.
    pub fn until_leases(&self, leases: u64) {
        eventually(&format!("{leases} leases"), || {
            (self.number("/leases") == leases).then_some(())
        });
    }

    /// Evicts a model as soon as no lease is counted, and waits for its memory.
    pub fn evict(&self, name: &str) {
        self.until_leases(0);
        let (status, body) = self.post(&format!("/v1/models/{name}/evict?wait_ms=60000"));
        assert_eq!(status, 200, "{body}");
    }

    /// Waits until the books are empty: no session, no lease, no work.
    pub fn until_idle(&self) {
        eventually("the daemon is idle", || {
            let status = self.get("/v1/status");
            let zero = |p: &str| status.pointer(p).and_then(Value::as_u64) == Some(0);
            let all = [
                "/sessions",
                "/leases",
                "/waiting",
                "/loading",
                "/host/freeing_bytes",
            ];
            all.into_iter().all(zero).then_some(())
        });
    }

    /// What the daemon wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("mrmd.log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the daemon ---\n{}", self.log());
        }
    }
}

/// The command line of a daemon in `dir`.
pub fn command(dir: &Path, setup: &Setup) -> Command {
    let mut toml = setup.settings.clone();
    for (name, path, lines) in &setup.models {
        write!(
            toml,
            "[[model]]\nname = {name:?}\npath = {path:?}\n{lines}\n"
        )
        .expect("to memory");
    }
    // Another daemon may be reading it just now.
    fs::write(dir.join("mrm.toml.new"), toml).expect("writes");
    fs::rename(dir.join("mrm.toml.new"), dir.join("mrm.toml")).expect("renames");
    let mut command = Command::new(program("mrmd"));
    command.arg("--config").arg(dir.join("mrm.toml"));
    command.arg("--runtime-dir").arg(dir.join("run"));
    command
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("MRM_RUNTIME_DIR")
        // A test that wants one says so: a killed daemon is to stay dead in all others.
        .env("MRM_KEEPER_KIND", "none")
        // Nor does a daemon that is not asked about it make memory ready: tests count memory.
        .env("MRM_LOAD_STOCK_BYTES", "0");
    command.envs(setup.environment.iter().map(|(k, v)| (k, v)));
    command
}

fn spawn(dir: &Path, setup: &Setup) -> Child {
    let notify = dir.join("notify.sock");
    let _ = fs::remove_file(&notify);
    let socket = UnixDatagram::bind(&notify).expect("binds");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("mrmd.log"))
        .expect("log");
    let mut child = command(dir, setup)
        .env("NOTIFY_SOCKET", &notify)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("starts");
    socket
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .expect("a timeout");
    eventually("the daemon is ready", || {
        let mut message = [0; 1024];
        if let Some(status) = child.try_wait().expect("waits") {
            let log = fs::read_to_string(dir.join("mrmd.log")).unwrap_or_default();
            panic!("the daemon ended with {status} before it was ready:\n{log}");
        }
        let n = socket.recv(&mut message).ok()?;
        String::from_utf8_lossy(&message[..n])
            .contains("READY=1")
            .then_some(())
    });
    child
}

//! The daemon, kept going as a service manager would, and looked at all the time.

use crate::group::Group;
use crate::{GRACE, PATIENCE};
use mrm_tests::gpus::Gpus;
use mrm_tests::http;
use mrm_tests::node::{Setup, command};
use mrm_tests::survival::{Family, failing, kept, respawned, signal, status_at, with};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEVICES: u32 = 2;
const MIB: u64 = 1 << 20;

/// What is special about one run of daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Nothing.
    None,
    /// No device is used: files may be lent before they are hashed. Memory is made ready for loads.
    Host,
    /// Few descriptors.
    Files,
    /// Runtime directory and temporary files are on a filesystem that becomes full.
    Disk,
    /// A control group, whose memory limit is drawn tight now and then.
    Memory,
    /// No daemon dies, so that what leaks adds up.
    Steady,
}

impl Edge {
    /// How many devices they use.
    pub(crate) const fn devices(self) -> u32 {
        match self {
            Self::Host => 0,
            Self::None | Self::Files | Self::Disk | Self::Memory | Self::Steady => DEVICES,
        }
    }

    /// Whether they come to a point at all: where devices are used, nothing is lent unhashed.
    pub(crate) fn comes_to(self, point: &str) -> bool {
        point != "hashed" || self.devices() == 0
    }
}

pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) gpus: Gpus,
    pub(crate) family: Family,
    setup: Setup,
    pub(crate) edge: Edge,
    /// Where daemon and keeper are, if their memory is limited.
    pub(crate) group: Option<Group>,
    respawned: bool,
    children: Vec<Child>,
    gone_since: Option<Instant>,
    watched: Arc<Watched>,
    watcher: Option<JoinHandle<()>>,
}

/// What the thread that looks at the books has seen.
#[derive(Default)]
struct Watched {
    stop: AtomicBool,
    violations: Mutex<Vec<String>>,
}

impl Daemon {
    /// Over the models of a directory, with room for so many of their bytes.
    pub(crate) fn new(models: &Path, budget: u64, (edge, respawn): (Edge, bool)) -> Self {
        let prefix = tempfile::Builder::new().prefix("mrm-chaos-").tempdir();
        let dir = prefix.expect("a directory");
        let run = dir.path().join("run");
        fs::create_dir(&run).expect("a directory");
        if edge == Edge::Disk {
            mount(&run);
        }
        fs::create_dir(run.join("tmp")).expect("a directory");
        let group = (edge == Edge::Memory).then(|| Group::new("mrm-chaos"));
        let gpus = Gpus::new(DEVICES, budget + 2_048 * MIB);
        let tmp = run.join("tmp").display().to_string();
        let gpus = gpus.with("TMPDIR", &tmp);
        let lines = format!("host_budget_bytes = {budget}\nrevalidate_ms = 200");
        let device = match edge.devices() {
            0 => "enabled = \"no\"".to_owned(),
            _ => format!("enabled = \"yes\"\nbudget_bytes = {budget}"),
        };
        let mut setup = gpus.setup_of(&lines, &device);
        for model in crate::models::Model::list(models) {
            setup = setup.model(&model.name, &model.path);
        }
        if edge == Edge::Host {
            setup = setup.stock("32MiB");
        }
        let setup = failing(setup, &dir.path().join("failpoints"));
        // So that it is full early, and does not look like a leak.
        let setup = with(setup, "MRM_JOURNAL_BYTES_MAX", "1MiB");
        let setup = match respawn {
            true => respawned(setup),
            false => kept(setup),
        };
        let setup = with(setup, "MRM_KEEPER_GRACE_MS", &GRACE.as_millis().to_string());
        let family = Family::of(dir.path());
        let watched = Arc::new(Watched::default());
        let (seen, socket) = (Arc::clone(&watched), run.join("status.sock"));
        let watcher = std::thread::spawn(move || watch(&socket, &seen));
        Self {
            dir,
            gpus,
            family,
            setup,
            edge,
            group: group.flatten(),
            respawned: respawn,
            children: Vec::new(),
            gone_since: None,
            watched,
            watcher: Some(watcher),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("run/mrmd.sock")
    }

    pub(crate) fn failpoint(&self, name: &str) -> PathBuf {
        self.dir.path().join("failpoints").join(name)
    }

    /// Disarms everything.
    pub(crate) fn disarm(&self) {
        for file in fs::read_dir(self.dir.path().join("failpoints"))
            .into_iter()
            .flatten()
        {
            let _ = fs::remove_file(file.expect("a file").path());
        }
    }

    /// Starts one where there is none, as a service manager would, and lets one go on that stopped
    /// at a failpoint.
    pub(crate) fn tend(&mut self) {
        self.children
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let there = self.family.daemons();
        for pid in &there {
            signal(*pid, Signal::SIGCONT);
        }
        if !there.is_empty() {
            self.gone_since = None;
            return;
        }
        let since = *self.gone_since.get_or_insert_with(Instant::now);
        // A keeper has its time: it waits longer after each death, and gives up at last, as it should.
        if !self.respawned || since.elapsed() > Duration::from_secs(12) || self.children.is_empty()
        {
            self.start(&[]);
            self.gone_since = None;
        }
    }

    /// Starts one that takes over.
    pub(crate) fn replace(&mut self) {
        self.start(&["--takeover"]);
    }

    fn start(&mut self, more: &[&str]) {
        let plain = command(self.dir.path(), &self.setup);
        let mut start = match (self.edge, &self.group) {
            (Edge::Files, _) => after("ulimit -n 400", &plain),
            (Edge::Memory, Some(group)) => {
                after(&format!("echo $$ > {}", group.entry().display()), &plain)
            }
            (Edge::None | Edge::Host | Edge::Disk | Edge::Memory | Edge::Steady, _) => plain,
        };
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        start.args(more).stdin(Stdio::null()).stdout(Stdio::null());
        self.children
            .push(start.stderr(log).spawn().expect("starts"));
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("mrmd.log")
    }

    /// Waits for a daemon that serves, and returns its status.
    pub(crate) fn until_serving(&mut self) -> Result<Value, String> {
        self.until("a daemon serves", |status| {
            status["daemon"]["state"] == "serving"
        })
    }

    /// Waits for a status of this kind.
    pub(crate) fn until(
        &mut self,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let until = Instant::now() + PATIENCE;
        let mut last = Value::Null;
        while Instant::now() < until {
            self.tend();
            if let Some(status) = self.status() {
                if is(&status) {
                    return Ok(status);
                }
                last = status;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Err(format!("{what}: not within {PATIENCE:?}: {last}"))
    }

    pub(crate) fn status(&self) -> Option<Value> {
        status_at(&self.dir.path().join("run/status.sock"))
    }

    /// `METHOD PATH`: the body.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Option<(u16, Value)> {
        let stream = UnixStream::connect(self.dir.path().join("run/status.sock")).ok()?;
        let (code, body) = http::try_request(stream, method, path).ok()?;
        Some((code, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }

    /// What was seen that may never be, since the last call.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut seen = self.watched.violations.lock().expect("no thread failed");
        let mut all = std::mem::take(&mut *seen);
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let bad = ["broke one of its own rules", "panicked at"];
        let lines = log
            .lines()
            .filter(|line| bad.iter().any(|bad| line.contains(bad)));
        all.extend(lines.map(|line| format!("log: {line}")));
        all
    }

    /// How many leases were not taken up again as the log says, by cause.
    pub(crate) fn leases_not_resumed(&self) -> BTreeMap<String, u64> {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines = log
            .lines()
            .filter(|line| line.contains("leases were not taken up again"));
        let mut causes = BTreeMap::new();
        for line in lines {
            let field = |name: &str| line.split(name).nth(1).unwrap_or_default();
            let why = field(" why=").trim_matches('"').to_owned();
            let leases = field(" leases=").split(' ').next().unwrap_or_default();
            *causes.entry(why).or_default() += leases.parse().unwrap_or(1);
        }
        causes
    }

    /// Puts the log where it outlives this.
    pub(crate) fn keep_log(&self, to: &Path) {
        if let Err(error) = fs::copy(self.log_path(), to) {
            eprintln!("{}: {error}", to.display());
        }
    }

    /// The last lines of the log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Fills what is left of a small filesystem, or makes room again.
    pub(crate) fn fill_disk(&self, full: bool) {
        let file = self.dir.path().join("run/filler");
        match (self.edge, full) {
            (Edge::Disk, true) => {
                // It fails when all is taken, which is what is wanted.
                let _ = fs::write(&file, vec![7; 1 << 20]);
            }
            (Edge::Disk, false) => drop(fs::remove_file(&file)),
            (Edge::None | Edge::Host | Edge::Files | Edge::Memory | Edge::Steady, _) => {}
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.watched.stop.store(true, Ordering::Relaxed);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        drop(std::mem::replace(
            &mut self.family,
            Family::of(self.dir.path()),
        ));
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        // Before the group is removed, which can only be done when nobody is in it.
        if let Some(group) = &self.group {
            group.release();
        }
        if self.edge == Edge::Disk {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.path().join("run"))
                .status();
        }
    }
}

/// Whether a filesystem can be mounted here.
pub(crate) fn can_mount() -> bool {
    let Ok(dir) = tempfile::tempdir() else {
        return false;
    };
    let mounted = mount(dir.path());
    if mounted {
        let _ = Command::new("umount").arg(dir.path()).status();
    }
    mounted
}

fn mount(at: &Path) -> bool {
    let mut mount = Command::new("mount");
    mount
        .args(["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"])
        .arg(at);
    let done = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

/// The same command, started by a shell that does something before.
fn after(first: &str, plain: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("{first} && exec \"$0\" \"$@\""));
    shell.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// At no time is more charged than may be.
fn watch(socket: &Path, watched: &Watched) {
    while !watched.stop.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(15));
        let Some(status) = status_at(socket) else {
            continue;
        };
        let over = |books: &Value, most: &str| {
            let field = |key: &str| books[key].as_u64();
            let beside = ["freeing_bytes", "stock_bytes"]
                .into_iter()
                .filter_map(field);
            field("charged_bytes").map(|charged| charged + beside.sum::<u64>()) > field(most)
        };
        let devices = status["devices"]["devices"].as_array();
        let mut devices = devices.into_iter().flatten();
        if over(&status["host"], "limit_bytes") || devices.any(|one| over(one, "budget_bytes")) {
            let what = format!("more is charged than may be: {status}");
            watched
                .violations
                .lock()
                .expect("no thread failed")
                .push(what);
        }
    }
}

//! A daemon for a step, with models of its own.

use crate::Anything;
use crate::model_file::ModelFile;
use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the daemon may take to start: it makes a context on each device, and a process that
/// proves that sharing works.
const DEADLINE: Duration = Duration::from_secs(40);

/// A running daemon. Killed and cleaned up when dropped.
pub(crate) struct Daemon {
    child: Child,
    dir: PathBuf,
    programs: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until it serves. It must use a device.
    pub(crate) fn start(bundle: &Path, models: &[ModelFile]) -> Anything<Self> {
        // Paths of sockets are short.
        let dir = std::env::temp_dir().join(format!("mrm-gpu-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir)?;
        let mut toml = "host_budget_bytes = \"50%\"\n[device]\nenabled = \"yes\"\n".to_owned();
        for model in models {
            let (name, path, granularity) = (&model.name, &model.path, model.granularity);
            writeln!(toml, "[[model]]\nname = {name:?}\npath = {path:?}")?;
            writeln!(toml, "granularity = {granularity:?}")?;
        }
        fs::write(dir.join("mrm.toml"), toml)?;
        let notify = UnixDatagram::bind(dir.join("notify.sock"))?;
        notify.set_read_timeout(Some(Duration::from_millis(200)))?;
        let programs = bundle.join("bin");
        let log = fs::File::create(dir.join("mrmd.log"))?;
        let child = Command::new(programs.join("mrmd"))
            .env("MRM_KEEPER_KIND", "none")
            .arg("--config")
            .arg(dir.join("mrm.toml"))
            .arg("--runtime-dir")
            .arg(dir.join("run"))
            .env("NOTIFY_SOCKET", dir.join("notify.sock"))
            .env_remove("LISTEN_FDS")
            .env_remove("MRM_RUNTIME_DIR")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut daemon = Self {
            child,
            dir,
            programs,
        };
        daemon.await_ready(&notify)?;
        Ok(daemon)
    }

    fn await_ready(&mut self, notify: &UnixDatagram) -> Anything<()> {
        let end = Instant::now() + DEADLINE;
        let mut message = [0; 1024];
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("mrmd ended ({status}): {}", self.log()).into());
            }
            let Ok(len) = notify.recv(&mut message) else {
                continue;
            };
            let text = String::from_utf8_lossy(message.get(..len).unwrap_or_default());
            if text.contains("READY=1") {
                return Ok(());
            }
        }
        Err(format!("mrmd was not ready after {DEADLINE:?}: {}", self.log()).into())
    }

    /// Where clients connect.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/mrmd.sock")
    }

    /// Runs `mrm` with these words; what it printed, as JSON.
    pub(crate) fn mrm(&self, words: &[&str]) -> Anything<Value> {
        let output = Command::new(self.programs.join("mrm"))
            .arg("--json")
            .arg("--socket")
            .arg(self.socket())
            .args(words)
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("mrm {}: {} {text}", words.join(" "), said.trim()).into());
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Everything of the model leaves memory. Leases that are on their way back are waited for.
    pub(crate) fn evict(&self, model: &str) -> Anything<()> {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.mrm(&["evict", model]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::park_timeout(Duration::from_millis(10)),
            }
        }
    }

    /// The first device of the daemon's status.
    pub(crate) fn device(&self) -> Anything<Value> {
        let status = self.mrm(&["status"])?;
        let device = status.pointer("/devices/devices/0").cloned();
        device.ok_or_else(|| format!("the daemon has no device: {}", status["devices"]).into())
    }

    /// Waits until nobody has a lease.
    pub(crate) fn await_no_leases(&self) -> Anything<bool> {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let status = self.mrm(&["status"])?;
            if status["leases"] == 0 {
                return Ok(true);
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(false)
    }

    pub(crate) fn kill(&mut self) -> Anything<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.join("mrmd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(12);
        lines.get(last..).unwrap_or_default().join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        eprintln!("--- the end of the daemon's log ---\n{}", self.log());
        let _ = fs::remove_dir_all(&self.dir);
    }
}

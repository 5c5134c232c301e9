//! Tests that run in a process of their own, on a pretended machine with a CUDA driver.
//!
//! The driver is loaded once per process, so the test runs this binary again with the fake driver
//! in its library path, for itself alone; what it does there is its body.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses a part of it, and it fails loudly"
)]

use mrm_fake_cuda::install;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const BODY: &str = "MRM_DEVICE_TEST_BODY";
const DIR: &str = "MRM_FAKE_CUDA_DIR";
const LOG: &str = "MRM_FAKE_CUDA_LOG";

/// The pretended machine on which a body runs.
pub struct Machine {
    dir: PathBuf,
}

/// Runs `body`, of the test called `name`, in a process with the fake driver and these settings.
#[track_caller]
pub fn on_machine(name: &str, settings: &[(&str, &str)], body: impl FnOnce(&Machine)) {
    if let Some(machine) = inside(name) {
        return body(&machine);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let driver = install::driver_dir(&dir.path().join("driver"), &[])
        .expect("the fake driver is built with this test");
    let output = command(name)
        .env("LD_LIBRARY_PATH", driver)
        .env(DIR, dir.path())
        .env(LOG, dir.path().join("log"))
        .env_remove("CUDA_VISIBLE_DEVICES")
        .envs(settings.iter().copied())
        .output()
        .expect("this test runs again");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}\n{said}\n{complained}",
        output.status
    );
}

/// The machine, in the process that runs the body of the test called `name`.
pub fn inside(name: &str) -> Option<Machine> {
    let dir = std::env::var_os(DIR).map(PathBuf::from)?;
    std::env::var(BODY)
        .is_ok_and(|body| body == name)
        .then_some(Machine { dir })
}

fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test is a file"));
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(BODY, name);
    command
}

impl Machine {
    /// Starts the body of another test in a process beside this one, with pipes to it.
    pub fn beside(&self, name: &str, settings: &[(&str, &str)]) -> Child {
        command(name)
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// From now on these faults strike the calls of this process; none when empty.
    pub fn inject(&self, rules: &str) {
        let path = self.dir.join(format!("faults.{}", std::process::id()));
        let new = path.with_extension("new");
        std::fs::write(&new, rules).expect("rules");
        std::fs::rename(new, path).expect("rules");
    }

    /// The driver's functions that this process has called, in order.
    pub fn calls(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let mine = std::process::id().to_string();
        log.lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                (words.next() == Some(&mine)).then(|| words.next().unwrap_or("").to_owned())
            })
            .collect()
    }

    /// How often a call of `function` by this process has succeeded.
    pub fn succeeded(&self, function: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let line = format!("{} {function} 0", std::process::id());
        log.lines().filter(|one| *one == line).count()
    }

    /// How often it has called `function`.
    pub fn count(&self, function: &str) -> usize {
        self.calls().iter().filter(|call| *call == function).count()
    }
}

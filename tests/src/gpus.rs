//! A machine with pretended GPUs: the environment in which daemon and clients find them.

use crate::eventually;
use crate::holder::Holder;
use crate::node::{Node, Setup, beside};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// The machine. Its devices are there as long as it is.
pub struct Gpus {
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Gpus {
    /// So many devices of so many bytes, on which a context costs 16 MiB.
    pub fn new(devices: u32, capacity_bytes: u64) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("mrm-gpus-")
            .tempdir()
            .expect("a directory");
        let driver = mrm_fake_cuda::install::driver_dir(&dir.path().join("driver"), &[]);
        let driver = driver.expect("the fake driver is built");
        let machine = dir.path().join("machine");
        let environment = [
            (LIBRARIES, driver.display().to_string()),
            ("MRM_FAKE_CUDA_DIR", machine.display().to_string()),
            ("MRM_FAKE_CUDA_DEVICES", devices.to_string()),
            ("MRM_FAKE_CUDA_CAPACITY", capacity_bytes.to_string()),
            ("MRM_FAKE_CUDA_CONTEXT_BYTES", (16 << 20).to_string()),
        ];
        let environment = environment.map(|(k, v)| (k.to_owned(), v)).to_vec();
        Self { dir, environment }
    }

    /// One more variable, for daemon and clients.
    pub fn with(mut self, variable: &str, value: &str) -> Self {
        self.environment
            .push((variable.to_owned(), value.to_owned()));
        self
    }

    /// Whatever looks for the driver finds this directory instead.
    pub fn with_library_dir(mut self, dir: &Path) -> Self {
        let driver = self.environment.iter_mut().find(|(k, _)| k == LIBRARIES);
        driver.expect("is set").1 = dir.display().to_string();
        self
    }

    /// A driver without these symbols.
    pub fn without_symbols(self, symbols: &[&str]) -> Self {
        let dir = self.dir.path().join("incomplete");
        let dir = mrm_fake_cuda::install::driver_dir(&dir, symbols).expect("is built");
        self.with_library_dir(&dir)
    }

    /// A daemon on this machine that must have a device, and may use nearly all of it.
    pub fn setup(&self) -> Setup {
        self.setup_of("", "enabled = \"yes\"\nbudget_bytes = \"90%\"")
    }

    /// A daemon with these lines about all but devices, and about devices.
    pub fn setup_of(&self, lines: &str, device_lines: &str) -> Setup {
        let setup = Setup {
            environment: self.environment.clone(),
            ..Setup::new()
        };
        let setup = setup.setting(lines).setting("[device]");
        setup.setting("reserve_bytes = 0").setting(device_lines)
    }

    /// The variables by which a program finds this machine.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment.clone()
    }

    /// A program that finds this machine.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command
    }

    /// A client on this machine.
    pub fn holder(&self, node: &Node) -> Holder {
        self.holder_with(node, &[])
    }

    /// A client with variables of its own.
    pub fn holder_with(&self, node: &Node, variables: &[(&str, &str)]) -> Holder {
        let mut command = self.command(&beside("mrm-hold"));
        command.arg(node.socket());
        command.envs(variables.iter().copied());
        Holder::start_with(&mut command)
    }

    /// Where each process notes its calls of the driver; to be passed as `MRM_FAKE_CUDA_LOG`.
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("calls.log")
    }

    /// The machine, whose processes note their calls.
    pub fn logged(self) -> Self {
        let path = self.log_path().display().to_string();
        self.with("MRM_FAKE_CUDA_LOG", &path)
    }

    /// The functions that a process called so far, in their order, by the log.
    pub fn calls(&self, pid: u32) -> Vec<String> {
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let start = format!("{pid} ");
        let own = log.lines().filter_map(|line| line.strip_prefix(&start));
        own.filter_map(|call| Some(call.split_whitespace().next()?.to_owned()))
            .collect()
    }

    /// How long the log of all processes is now.
    pub fn log_bytes(&self) -> u64 {
        fs::metadata(self.log_path()).map_or(0, |found| found.len())
    }

    /// What a process called since the log was so long: function and result.
    pub fn calls_since(&self, pid: u32, log_bytes: u64) -> Vec<(String, u32)> {
        let mut log = fs::File::open(self.log_path()).expect("is there");
        log.seek(SeekFrom::Start(log_bytes)).expect("seeks");
        let mut text = String::new();
        log.read_to_string(&mut text).expect("reads");
        let start = format!("{pid} ");
        let own = text.lines().filter_map(|line| line.strip_prefix(&start));
        let call = |call: &str| {
            let (function, result) = call.split_once(' ')?;
            Some((function.to_owned(), result.parse().ok()?))
        };
        own.filter_map(call).collect()
    }

    /// From now on these rules of faults hold for every process.
    pub fn faults(&self, rules: &str) {
        Self::replace(&self.dir.path().join("machine/faults"), rules);
    }

    /// From now on these hold for one process.
    pub fn faults_of(&self, pid: u32, rules: &str) {
        let file = format!("machine/faults.{pid}");
        Self::replace(&self.dir.path().join(file), rules);
    }

    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).expect("writes");
        fs::rename(new, path).expect("renames");
    }
}

/// The UUID of a pretended device.
pub fn uuid(device: usize) -> String {
    format!("GPU-f{device:x}6d726d-face-4cda-8000-0000000000f{device:x}")
}

/// Waits until nothing is under way, whatever is leased.
pub fn until_at_rest(node: &Node) {
    eventually("nothing is under way", || {
        let status = node.get("/v1/status");
        let count = |value: &Value, field: &str| value[field].as_u64().expect("a number");
        let devices = status["devices"]["devices"].as_array().expect("a list");
        let busy = |device: &Value| count(device, "loading") + count(device, "freeing_bytes");
        let all = count(&status, "waiting")
            + count(&status, "loading")
            + count(&status["host"], "freeing_bytes")
            + devices.iter().map(busy).sum::<u64>();
        (all == 0).then_some(())
    });
}

/// Opens on a device what must succeed.
pub fn open_on(holder: &mut Holder, alias: &str, name: &str, device: &str) -> Value {
    holder.must(&json!(["open-on", alias, name, device, 60_000]))
}

/// What came of an open that may fail.
pub fn try_open_on(holder: &mut Holder, alias: &str, name: &str, device: &str) -> Value {
    holder.ask(&json!(["open-on", alias, name, device, 300]))
}

/// Asserts that every tensor that `holder` reads from its device is what it reads in host memory.
pub fn assert_same_tensors(holder: &mut Holder, on_device: &str, name: &str) {
    let device = holder.must(&json!(["device-tensors", on_device]));
    holder.open("reference", name);
    let host = holder.must(&json!(["tensors", "reference"]));
    holder.close("reference");
    assert_eq!(device["tensors"], host["tensors"], "{name}");
    assert!(
        !host["tensors"].as_object().expect("tensors").is_empty(),
        "{name} has no tensors"
    );
}

/// A field of one device in the daemon's status.
pub fn device_field(node: &Node, device: usize, field: &str) -> Value {
    let status = node.get("/v1/status");
    let pointer = format!("/devices/devices/{device}/{field}");
    let value = status.pointer(&pointer).cloned();
    value.unwrap_or_else(|| panic!("{pointer}: {status}"))
}

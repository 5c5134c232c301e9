//! A pretended machine: the test again, in a process that finds the fake driver.

use mrm_cuda::{Context, DeviceUuid, Driver, Mechanism, probe};
use mrm_daemon::degraded::Degraded;
use mrm_daemon::device::{Device, DeviceSettings, SelfTest};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// How long anything may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
const INSIDE: &str = "MRM_DEVICE_TEST";

/// Whether this process is one on a pretended machine.
pub(crate) fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs `body`, the closure of a test, on a pretended machine with these settings of the fake
/// driver (without their prefix).
#[track_caller]
pub(crate) fn on_machine<F: FnOnce()>(settings: &[(&str, &str)], body: F) {
    if inside() {
        return body();
    }
    let closure = std::any::type_name::<F>();
    let name = closure
        .split("::")
        .skip(1)
        .take_while(|part| !part.starts_with('{'));
    let name = name.collect::<Vec<_>>().join("::");
    let dir = tempfile::tempdir().expect("a directory");
    let driver = mrm_fake_cuda::install::driver_dir(&dir.path().join("driver"), &[])
        .expect("the fake driver");
    let child = Command::new(std::env::current_exe().expect("this test is a file"))
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", driver)
        .env("MRM_FAKE_CUDA_DIR", dir.path())
        .env("MRM_FAKE_CUDA_LOG", dir.path().join("log"))
        .env(INSIDE, "1")
        .envs(
            settings
                .iter()
                .map(|(name, value)| (format!("MRM_FAKE_CUDA_{name}"), value)),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, ended) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output = match ended.recv_timeout(DEADLINE) {
        Ok(output) => output.expect("it is ours to wait for"),
        Err(_) => {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            ended
                .recv()
                .expect("it is killed")
                .expect("it is ours to wait for")
        }
    };
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let ran = output.status.success() && out.contains("1 passed");
    assert!(ran, "{name}: {}\n{out}\n{err}", output.status);
}

fn dir() -> PathBuf {
    std::env::var_os("MRM_FAKE_CUDA_DIR")
        .expect("a pretended machine")
        .into()
}

/// From now on these rules strike the calls of this process, counted from here.
pub(crate) fn inject(rules: &str) {
    let path = dir().join(format!("faults.{}", std::process::id()));
    let new = path.with_extension("new");
    std::fs::write(&new, rules).expect("rules");
    std::fs::rename(new, path).expect("rules");
}

/// The calls that this process made into the driver so far.
pub(crate) fn calls() -> Vec<String> {
    let log = std::fs::read_to_string(dir().join("log")).unwrap_or_default();
    let pid = std::process::id().to_string();
    log.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            (words.next() == Some(&pid)).then(|| words.next().unwrap_or_default().to_owned())
        })
        .collect()
}

/// The calls of one function so far.
pub(crate) fn count(function: &str) -> usize {
    calls().iter().filter(|call| *call == function).count()
}

pub(crate) fn driver() -> Driver {
    probe().expect("the fake driver")
}

pub(crate) fn uuid(ordinal: usize) -> DeviceUuid {
    driver().devices().expect("devices")[ordinal].uuid
}

/// A device that is in use, without a self-test.
pub(crate) fn device(ordinal: usize, how: Mechanism, settings: &DeviceSettings) -> Device {
    with_degraded(ordinal, how, settings, &Degraded::new())
}

pub(crate) fn with_degraded(
    ordinal: usize,
    how: Mechanism,
    settings: &DeviceSettings,
    degraded: &Degraded,
) -> Device {
    let context = Context::retain(driver(), uuid(ordinal)).expect("a context");
    Device::open(context, how, settings, degraded).expect("a device")
}

pub(crate) fn free_bytes(device: &Device) -> u64 {
    device.memory().expect("memory").free_bytes
}

/// Starts this binary again as the self-test's child.
pub(crate) fn self_test() -> SelfTest {
    let arguments = [
        "--exact",
        "self_test_child",
        "--nocapture",
        "--test-threads=1",
    ];
    SelfTest {
        program: std::env::current_exe().expect("this test is a file"),
        arguments: arguments.map(Into::into).into(),
        deadline: Duration::from_secs(60),
    }
}

/// Waits until `there` says yes.
#[track_caller]
pub(crate) fn await_that(what: &str, mut there: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !there() {
        assert!(Instant::now() < end, "{what} takes too long");
        std::thread::yield_now();
    }
}

//! The systemd unit: how exposed it leaves the daemon, and that the daemon does its work under it:
//! as a user without privileges, making no system call that the unit forbids.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_tests::hostile::{NOBODY, as_user, let_everybody_in};
use mrm_tests::node::{Setup, command};
use mrm_tests::{eventually, http, model};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Tenths of systemd's scale, on which 100 is worst. What is left: it speaks over Unix sockets, sees
/// GPUs, peers' processes and users as the host does, may give a socket to a group of its own, and
/// reads models in home directories.
const EXPOSURE_MAX: u32 = 10;

/// Where the child finds the calls that it may make, and what it is to run.
const CALLS: &str = "MRM_TEST_CALLS";
const PROGRAM: &str = "MRM_TEST_PROGRAM";

fn unit() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.join("../mrm-daemon/packaging/mrmd.service")
}

/// What `systemd-analyze` says; `None`, said aloud, where it cannot say it.
fn analyzed(args: &[&str]) -> Option<String> {
    let output = Command::new("systemd-analyze").args(args).output();
    match output {
        Ok(output) if output.status.success() => {
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => {
            let cause = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("SKIPPED: systemd-analyze {args:?}: {}", cause.trim());
            None
        }
        Err(error) => {
            println!("SKIPPED: there is no systemd-analyze ({error})");
            None
        }
    }
}

#[test]
fn the_unit_leaves_the_daemon_no_more_exposed_than_it_must() {
    let unit = unit();
    let args = ["security", "--offline=yes", "--no-pager"];
    let Some(text) = analyzed(&[&args[..], &[unit.to_str().unwrap()]].concat()) else {
        return;
    };
    let line = text.lines().find(|line| line.contains("exposure level"));
    let line = line.expect("a verdict");
    println!("{}", line.trim());
    let score = line.split_whitespace().find_map(|word| {
        let (ones, tenths) = word.split_once('.')?;
        Some(ones.parse::<u32>().ok()? * 10 + tenths.parse::<u32>().ok()?)
    });
    let open = text.lines().filter(|line| line.starts_with('✗'));
    let open: Vec<&str> = open.collect();
    assert!(
        score.expect("a number") <= EXPOSURE_MAX,
        "{line}\n{}",
        open.join("\n")
    );
}

/// The system calls that the unit allows, from its `SystemCallFilter=` lines in order.
fn allowed_calls() -> Option<BTreeSet<String>> {
    let text = fs::read_to_string(unit()).unwrap();
    let mut allowed = BTreeSet::new();
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="));
    for line in lines {
        let (denies, names) = match line.strip_prefix('~') {
            Some(names) => (true, names),
            None => (false, line),
        };
        for name in names.split_whitespace() {
            let mut calls = BTreeSet::new();
            expand(name, &mut calls)?;
            match denies {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    // What systemd allows whatever a unit says, so that a program can be started and ended.
    expand("@default", &mut allowed)?;
    Some(allowed)
}

fn expand(name: &str, into: &mut BTreeSet<String>) -> Option<()> {
    if !name.starts_with('@') {
        into.insert(name.to_owned());
        return Some(());
    }
    let text = analyzed(&["syscall-filter", "--no-pager", name])?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("    "));
    for line in lines.map(str::trim).filter(|line| !line.starts_with('#')) {
        expand(line, into)?;
    }
    Some(())
}

/// The filter that systemd makes of the unit: the calls, with what `RestrictAddressFamilies=`,
/// `MemoryDenyWriteExecute=` and `RestrictRealtime=` look at. Any other call ends the daemon, which
/// no test overlooks; the unit only fails the call.
fn filter(calls: &BTreeSet<String>) -> Vec<u8> {
    let unix_only = json!([{"index": 0, "type": "dword", "op": "eq", "val": 1}]);
    let masked = |index: u8, mask: u32, value: u32| json!([{"index": index, "type": "dword", "op": {"masked_eq": mask}, "val": value}]);
    let mut rules = Vec::new();
    for call in calls.iter().filter(|call| is_known(call)) {
        let conditions = match call.as_str() {
            "socket" => vec![unix_only.clone()],
            // Never both writable and executable.
            "mmap" => vec![masked(2, 6, 0), masked(2, 6, 2), masked(2, 6, 4)],
            "mprotect" | "pkey_mprotect" => vec![masked(2, 4, 0)],
            _ => vec![serde_json::Value::Null],
        };
        rules.extend(conditions.into_iter().map(|args| match args.is_null() {
            true => json!({"syscall": call}),
            false => json!({"syscall": call, "args": args}),
        }));
    }
    let main = json!({
        "mismatch_action": "kill_process", "match_action": "allow", "filter": rules
    });
    json!({ "main": main }).to_string().into_bytes()
}

fn architecture() -> seccompiler::TargetArch {
    std::env::consts::ARCH
        .try_into()
        .expect("an architecture of ours")
}

/// Whether this machine has a call of that name; systemd names those of all architectures.
fn is_known(call: &str) -> bool {
    let rule = json!({"main": {
        "mismatch_action": "kill_process", "match_action": "allow", "filter": [{"syscall": call}]
    }});
    seccompiler::compile_from_json(rule.to_string().as_bytes(), architecture()).is_ok()
}

/// Not a test: takes the filter upon itself, and becomes the daemon.
#[test]
#[ignore = "the program of another test's child process"]
fn child_under_the_filter() {
    let calls = std::env::var(CALLS).expect("started by its test");
    let calls = calls.split(' ').map(str::to_owned).collect();
    let compiled = seccompiler::compile_from_json(&filter(&calls)[..], architecture());
    let program = compiled.expect("a good filter").remove("main").unwrap();
    let line: Vec<String> = serde_json::from_str(&std::env::var(PROGRAM).unwrap()).unwrap();
    seccompiler::apply_filter(&program).expect("anybody may give up calls");
    panic!("{}", Command::new(&line[0]).args(&line[1..]).exec());
}

/// A daemon under the filter, as a user without privileges where we can become one.
struct Confined {
    dir: tempfile::TempDir,
    child: Child,
}

impl Confined {
    fn start(calls: &BTreeSet<String>, setup: &Setup, dir: tempfile::TempDir) -> Self {
        let daemon = command(dir.path(), setup);
        let mut line: Vec<OsString> = vec![daemon.get_program().to_owned()];
        line.extend(daemon.get_args().map(OsString::from));
        let line: Vec<&str> = line.iter().map(|word| word.to_str().unwrap()).collect();
        let mut launcher = Command::new(std::env::current_exe().unwrap());
        launcher.args(["--exact", "child_under_the_filter", "--ignored"]);
        for (name, value) in daemon.get_envs() {
            match value {
                Some(value) => launcher.env(name, value),
                None => launcher.env_remove(name),
            };
        }
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        launcher.env(CALLS, calls.join(" "));
        launcher.env(PROGRAM, serde_json::to_string(&line).unwrap());
        let log = File::create(dir.path().join("mrmd.log")).unwrap();
        let out = log.try_clone().unwrap();
        launcher.stdin(Stdio::null()).stdout(out).stderr(log);
        let program = PathBuf::from(line[0]);
        let mut spawn = || launcher.spawn();
        // In a home directory it is out of another user's reach.
        let reachable = as_user(NOBODY, || File::open(&program).is_ok()) == Some(true);
        let child = match reachable {
            true => as_user(NOBODY, &mut spawn).expect("root may"),
            false => {
                println!("the daemon runs as the user of this test");
                spawn()
            }
        };
        let child = child.expect("starts");
        Self { dir, child }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join("run").join(name)
    }

    /// Fails with what the daemon said when it is gone.
    fn is_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            let log = fs::read_to_string(self.dir.path().join("mrmd.log"));
            let why = match status.signal() {
                Some(31) => "it made a call that the unit forbids (see `journalctl -k`, SECCOMP)",
                _ => "it ended",
            };
            panic!("{why}: {status}\n{}", log.unwrap_or_default());
        }
    }

    fn get(&mut self, path: &str) -> Option<serde_json::Value> {
        self.is_alive();
        let socket = self.socket("status.sock");
        std::os::unix::net::UnixStream::connect(&socket).ok()?;
        let (status, body) = http::request(&socket, "GET", path);
        (status == 200).then(|| serde_json::from_str(&body).unwrap_or(serde_json::Value::Null))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill_process(pid.unwrap(), signal).expect("it is there");
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_daemon_does_its_work_with_the_calls_that_the_unit_allows() {
    let Some(calls) = allowed_calls() else { return };
    let dir = tempfile::Builder::new()
        .prefix("mrm-test-")
        .tempdir()
        .unwrap();
    let models = dir.path().join("models");
    let (_, image) = model::write(&models, "small.safetensors", 4096, 2, 1);
    // Large enough for direct reads, by io_uring where there is one.
    let (large, _) = model::write(&models, "large.safetensors", 24 << 20, 4, 2);
    File::open(&large).unwrap().sync_all().unwrap();
    let passed = dir.path().join("passed.safetensors");
    fs::copy(models.join("small.safetensors"), &passed).unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    let_everybody_in(dir.path());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&run, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut setup = Setup::new().setting(&format!("[[catalogue]]\nroot = {models:?}"));
    for (name, value) in [
        ("MRM_KEEPER_KIND", "process"),
        ("MRM_KEEPER_RESPAWN", "no"),
        ("MRM_KEEPER_FOR_MS", "1000"),
    ] {
        setup.environment.push((name.to_owned(), value.to_owned()));
    }
    let mut daemon = Confined::start(&calls, &setup, dir);
    eventually("it serves", || daemon.get("/readyz"));
    let seccomp = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    assert!(
        seccomp.contains("\nSeccomp:\t2\n"),
        "it runs under a filter"
    );

    let client = mrm_client::Client::connect_to(daemon.socket("mrmd.sock")).expect("serves");
    for name in ["small.safetensors", "large.safetensors"] {
        for _ in 0..2 {
            drop(client.open(name).unwrap_or_else(|e| panic!("{name}: {e}")));
        }
    }
    let own = client.open_path(&passed).expect("opens a passed file");
    assert!(own.segment(0).expect("one file").bytes() == &image[..]);
    assert!(client.open("none").is_err());
    assert_eq!(client.list("").expect("lists").len(), 3);
    for path in ["/metrics", "/v1/models", "/v1/sessions", "/v1/events"] {
        let (status, body) = http::request(&daemon.socket("status.sock"), "GET", path);
        assert_eq!(status, 200, "{path}: {body}");
    }
    daemon.signal(Signal::HUP);
    let status = daemon.get("/v1/status").expect("serves");
    println!("degraded: {}", status["degraded"]);
    drop((own, client));
    daemon.signal(Signal::TERM);
    let status = eventually("it drains", || daemon.child.try_wait().unwrap());
    let log = fs::read_to_string(daemon.dir.path().join("mrmd.log")).unwrap();
    assert!(status.success(), "{status}\n{log}");
}

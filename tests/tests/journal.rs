//! The journal of real daemons: exported and run again, or left behind when a rule was broken.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly"
)]

use mrm_tests::gpus::{Gpus, open_on, try_open_on, until_at_rest};
use mrm_tests::model;
use mrm_tests::node::{Node, Setup, program};
use nix::sys::signal::Signal::SIGABRT;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;
/// Some user that is not root.
const NOBODY: u32 = 65534;

fn mrm(node: &Node) -> Command {
    let mut command = Command::new(program("mrm"));
    command.arg("--status-socket").arg(node.status_socket());
    command
}

fn export(node: &Node) -> PathBuf {
    let path = node.dir.path().join("today.journal");
    let output = mrm(node)
        .args(["events", "--json", "--export"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(told["bytes"], metadata.len());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    path
}

fn replay(path: &Path) -> (Output, Value) {
    let mut command = Command::new(program("mrmd"));
    let output = command.arg("--replay").arg(path).arg("--json").output();
    let output = output.unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output, report)
}

/// Asserts that a replay stands where the daemon does, which is at rest.
fn assert_agrees(node: &Node, report: &Value) {
    let status = node.get("/v1/status");
    for (replayed, of_daemon) in [
        ("/end/sessions", "/sessions"),
        ("/end/leases", "/leases"),
        ("/end/tiers/0/resident_bytes", "/host/resident_bytes"),
        ("/end/tiers/0/charged_bytes", "/host/charged_bytes"),
        (
            "/end/tiers/1/charged_bytes",
            "/devices/devices/0/charged_bytes",
        ),
        (
            "/end/tiers/2/charged_bytes",
            "/devices/devices/1/charged_bytes",
        ),
        ("/counts/opens", "/counters/opens_total"),
        ("/counts/hits", "/counters/hits_total"),
    ] {
        let found = report.pointer(replayed);
        assert!(found.is_some(), "{replayed}: {report}");
        assert_eq!(found, status.pointer(of_daemon), "{of_daemon}: {report}");
    }
    assert_eq!(report["end"]["in_flight"], 0);
    assert_eq!(report["instance"], status["daemon"]["instance"]);
}

#[test]
fn a_daemon_with_devices_is_run_again_to_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let gpus = Gpus::new(2, 64 * MIB);
    let mut setup = gpus.setup().setting("[limits]");
    // Before the tables.
    setup.settings = format!("host_budget_bytes = {}\n{}", 24 * MIB, setup.settings);
    for (at, bytes) in [5, 7, 9, 11].into_iter().enumerate() {
        let file = format!("m{at}.safetensors");
        let (path, _) = model::write(dir.path(), &file, bytes * MIB, 7, at as u64);
        setup = setup.model(&format!("m{at}"), &path);
    }
    let node = Node::start(&setup);
    let mut one = gpus.holder(&node);
    let mut two = gpus.holder(&node);
    open_on(&mut one, "a", "m0", "cuda:0");
    open_on(&mut two, "a", "m0", "cuda:0");
    open_on(&mut two, "b", "m1", "cuda:1");
    open_on(&mut two, "c", "m0", "cuda:1");
    // More than the host has room for, one after the other.
    for name in ["m0", "m1", "m2", "m3", "m0", "m2"] {
        one.open("x", name);
        one.close("x");
    }
    one.open("held", "m3");
    let refused = try_open_on(&mut one, "none", "no-such-model", "cuda:0");
    assert_eq!(refused["ok"], false);
    assert_eq!(node.post("/v1/models/m1/pin").0, 200);
    two.close("b");
    two.kill();
    node.until_leases(2);
    until_at_rest(&node);

    let path = export(&node);
    let (output, report) = replay(&path);
    assert!(output.status.success(), "{output:?}");
    assert_agrees(&node, &report);
    assert!(report["counts"]["frees"].as_u64() > Some(0), "{report}");
    assert!(report["counts"]["hits"].as_u64() > Some(0), "{report}");

    // In words as well, and a file that lost its end is told from one that was changed.
    let words = Command::new(program("mrmd"))
        .arg("--replay")
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(words.stdout).unwrap();
    assert!(text.contains("at the end 1 sessions, 2 leases"), "{text}");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    let (output, report) = replay(&path);
    assert!(output.status.success() && report["cut_off"] == true);
    let mut changed = bytes.clone();
    let at = bytes.len() - bytes.len() / 3;
    changed[at] ^= 1;
    fs::write(&path, &changed).unwrap();
    let (output, _) = replay(&path);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("is damaged at byte "), "{message}");
}

#[test]
fn only_operators_have_the_journal() {
    let node = Node::start(&Setup::new());
    fs::set_permissions(node.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if !nix::unistd::geteuid().is_root() {
        // Without root nobody else can be asked for: what the daemon's own user gets is above.
        return;
    }
    let target = tempfile::tempdir().unwrap();
    fs::set_permissions(target.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = mrm(&node);
    command.uid(NOBODY).gid(NOBODY);
    let path = target.path().join("stolen");
    let output = command.args(["events", "--export"]).arg(&path).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn a_broken_rule_leaves_a_journal_that_breaks_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 3, 1);
    let at = 20;
    let mut setup = Setup::new().model("m", &path);
    let planted = ("MRM_FAILPOINT_IMPOSSIBLE_EVENT".to_owned(), at.to_string());
    setup.environment.push(planted);
    let mut node = Node::start(&setup);
    // Each is an event at least.
    let warmed = (0..=at).take_while(|_| {
        let output = mrm(&node).args(["warm", "m"]).output().unwrap();
        output.status.success()
    });
    assert!(
        warmed.count() <= at,
        "mrmd has no failpoints: build with `cargo build --workspace --all-targets`"
    );
    let ended = node.wait();
    assert_eq!(ended.signal(), Some(SIGABRT as i32), "{}", node.log());
    let dump = node.runtime_dir().join("mrmd.journal");
    assert!(node.log().contains(&dump.display().to_string()));

    let (output, report) = replay(&dump);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stop = &report["violation"];
    assert_eq!(stop["index"], at, "{report}");
    let rule = format!("op{} completed, but is not in flight", u64::MAX);
    assert_eq!(stop["violation"], json!(rule));
    assert_eq!(report["recorded_violation"], json!(rule));
    assert_eq!(report["divergence"], Value::Null);

    // The next daemon takes no offence at what lies there, nor does it take it away.
    setup.environment.clear();
    node.restart(&setup);
    node.client().open("m").unwrap();
    assert!(dump.exists());
}

//! The operator's view of a live daemon: HTTP, metrics, and the command line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use mrm_tests::node::{Node, Setup, program};
use mrm_tests::{DEADLINE, http, model};
use nix::sys::signal::Signal::SIGINT;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const MIB: u64 = 1 << 20;
/// Some user that is not root.
const NOBODY: u32 = 65534;

/// A daemon with the models `m` and `org/n`.
fn node_with(setup: Setup) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let (m, _) = model::write(dir.path(), "m.safetensors", MIB, 3, 1);
    let (n, _) = model::write(dir.path(), "n.safetensors", MIB, 4, 2);
    // Others must be able to reach the sockets.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    Node::start_in(dir, &setup.model("m", &m).model("org/n", &n))
}

fn node() -> Node {
    node_with(Setup::new())
}

#[test]
fn every_route_answers() {
    let node = node();
    let client = node.client();
    let _held = client.open("m").unwrap();

    let status = node.get("/v1/status");
    assert_eq!(status["daemon"]["pid"], node.pid());
    assert_eq!(status["daemon"]["state"], "serving");
    assert_eq!(
        (&status["sessions"], &status["leases"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(status["counters"]["misses_total"], 1);
    assert!(status["degraded"].is_array());

    let models = node.get("/v1/models");
    assert_eq!(models["models"].as_array().unwrap().len(), 2);
    assert_eq!(models["models"][0]["state"], "resident");
    assert_eq!(
        node.get("/v1/models?prefix=org/")["models"][0]["name"],
        "org/n"
    );

    let shown = node.get("/v1/models/m");
    assert_eq!(shown["holders"][0]["pid"], std::process::id());
    assert_eq!(
        (&shown["tensors"], &shown["kind"]),
        (&json!(3), &json!("safetensors"))
    );
    assert_eq!(shown["digest"].as_str().unwrap().len(), 64);

    let sessions = node.get("/v1/sessions");
    assert_eq!(
        sessions["sessions"][0]["models"],
        json!([{"name": "m", "leases": 1}])
    );

    let events = node.get("/v1/events?since=0");
    let kinds: Vec<&str> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["session_opened", "load_started", "load_done", "open_loaded"],
        "{events}"
    );

    for (path, expected) in [("/healthz", 200), ("/readyz", 200), ("/metrics", 200)] {
        assert_eq!(
            http::request(&node.status_socket(), "GET", path).0,
            expected,
            "{path}"
        );
    }
    for (method, path, expected) in [
        ("GET", "/v2/status", 404),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/models/nope", 404),
        ("POST", "/v1/models/nope/warm", 404),
        ("GET", "/v1/models?limit=many", 400),
    ] {
        let (code, body) = http::request(&node.status_socket(), method, path);
        assert_eq!(code, expected, "{method} {path}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert!(
            body["error"]["message"]
                .as_str()
                .is_some_and(|m| !m.is_empty()),
            "{body}"
        );
    }
}

#[test]
fn a_long_poll_sees_what_happens() {
    let node = node();
    let future = u64::MAX >> 1;
    let start = node.get(&format!("/v1/events?since={future}"))["next"]
        .as_u64()
        .unwrap();
    let socket = node.status_socket();
    let follower = std::thread::spawn(move || {
        let (mut next, mut seen) = (start, Vec::new());
        let until = Instant::now() + DEADLINE;
        while !seen.iter().any(|event: &Value| event["kind"] == "close") {
            assert!(Instant::now() < until, "no close was seen: {seen:?}");
            let path = format!("/v1/events?since={next}&wait_ms=5000");
            let (status, body) = http::request(&socket, "GET", &path);
            assert_eq!(status, 200, "{body}");
            let page: Value = serde_json::from_str(&body).unwrap();
            seen.extend(page["events"].as_array().unwrap().iter().cloned());
            next = page["next"].as_u64().unwrap();
        }
        seen
    });
    let client = node.client();
    drop(client.open("m").unwrap());
    let seen = follower.join().expect("the follower saw the end");
    let of = |kind: &str| seen.iter().find(|event| event["kind"] == kind).unwrap();
    assert_eq!(of("open_loaded")["model"], "m");
    assert_eq!(of("load_done")["model"], "m");
    assert_eq!(of("open_loaded")["session"], of("close")["session"]);
    let numbers: Vec<u64> = seen
        .iter()
        .map(|event| event["seq"].as_u64().unwrap())
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "{numbers:?}"
    );
}

/// The rules of a metrics linter that a live page can break. Returns the values without labels.
fn lint(text: &str) -> BTreeMap<String, f64> {
    let (mut kinds, mut helped, mut values) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !helped.contains(&name), "{line}");
            helped.push(name);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(helped.contains(&name), "no HELP for {name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(kinds.insert(name, kind).is_none(), "TYPE twice: {name}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.replace("+Inf", "inf").parse().unwrap();
            let name = series.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let family = base
                .filter(|base| kinds.get(base) == Some(&"histogram"))
                .unwrap_or(name);
            assert!(kinds.contains_key(family), "no TYPE for {line}");
            assert!(name.starts_with("mrm_") && !name.contains("_ms"), "{line}");
            assert!(
                values.insert(series.to_owned(), value).is_none(),
                "twice: {series}"
            );
        }
    }
    assert!(text.ends_with('\n') && kinds.len() > 15, "{text}");
    values
}

#[test]
fn metrics_are_what_a_scraper_expects() {
    let node = node();
    let client = node.client();
    let held = client.open("m").unwrap();
    let _hit = node.client().open("m").unwrap();
    let _ = client.open("nope").unwrap_err();
    drop(held);
    node.until_leases(1);
    let (_, text) = http::request(&node.status_socket(), "GET", "/metrics");
    let values = lint(&text);
    for (series, expected) in [
        ("mrm_opens_total{outcome=\"loaded\"}", 1.0),
        ("mrm_opens_total{outcome=\"hit\"}", 1.0),
        ("mrm_opens_total{outcome=\"refused\"}", 1.0),
        ("mrm_open_duration_seconds_count{outcome=\"hit\"}", 1.0),
        ("mrm_leases", 1.0),
        ("mrm_ready", 1.0),
    ] {
        assert_eq!(values.get(series), Some(&expected), "{series}\n{text}");
    }
    let status = node.get("/v1/status");
    let resident = status["host"]["resident_bytes"].as_f64();
    assert_eq!(values.get("mrm_host_resident_bytes").copied(), resident);
}

#[test]
fn curl_can_ask() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("skipped: no curl on this machine");
        return;
    }
    let node = node();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command
            .arg("-sS")
            .arg("--fail")
            .arg("--unix-socket")
            .arg(node.status_socket());
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(curl(&["http://mrm/v1/status"])["daemon"]["pid"], node.pid());
    assert_eq!(
        curl(&["-X", "POST", "http://mrm/v1/models/m/warm"])["origin"],
        "loaded"
    );
}

/// `mrm` for this node.
fn mrm(node: &Node) -> Command {
    let mut command = Command::new(program("mrm"));
    command
        .env("MRM_SOCKET", node.socket())
        .env_remove("MRM_STATUS_SOCKET");
    command.stdin(Stdio::null());
    command
}

fn run(node: &Node, arguments: &[&str]) -> Output {
    mrm(node).args(arguments).output().unwrap()
}

/// What a successful `mrm --json` printed.
fn asked(node: &Node, arguments: &[&str]) -> Value {
    let output = mrm(node).arg("--json").args(arguments).output().unwrap();
    assert!(output.status.success(), "mrm {arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}"))
}

#[test]
fn the_command_line_asks_and_steers() {
    let node = node();
    assert_eq!(asked(&node, &["status"])["daemon"]["pid"], node.pid());
    assert_eq!(asked(&node, &["ls"])["models"].as_array().unwrap().len(), 2);
    assert_eq!(asked(&node, &["ls", "org/"])["models"][0]["name"], "org/n");
    assert_eq!(
        asked(&node, &["warm", "m", "org/n"])["results"][1]["ok"],
        true
    );
    assert_eq!(asked(&node, &["show", "org/n"])["state"], "resident");
    assert_eq!(asked(&node, &["pin", "m"])["results"][0]["pinned"], true);
    assert_eq!(
        run(&node, &["evict", "m"]).status.code(),
        Some(1),
        "it is pinned"
    );
    assert_eq!(asked(&node, &["unpin", "m"])["results"][0]["changed"], true);
    assert!(asked(&node, &["evict", "m"])["results"][0]["freed_bytes"].as_u64() >= Some(MIB));
    assert_eq!(asked(&node, &["show", "m"])["state"], "absent");
    let opened = asked(&node, &["open", "m"]);
    assert_eq!(
        (&opened["tensors"], &opened["origin"]),
        (&json!(3), &json!("loaded"))
    );
    let path = node.dir.path().join("n.safetensors");
    let by_path = asked(&node, &["open", path.to_str().unwrap()]);
    assert_eq!(
        (&by_path["tensors"], &by_path["origin"]),
        (&json!(4), &json!("hit"))
    );
    assert!(asked(&node, &["events"])["next"].as_u64() > Some(5));
    let doctor = asked(&node, &["doctor"]);
    let checks = doctor["checks"].as_array().unwrap();
    let level = |id: &str| checks.iter().find(|check| check["id"] == id).unwrap()["level"].clone();
    assert_eq!(
        (level("session"), level("status")),
        (json!("pass"), json!("pass"))
    );

    for (arguments, words) in [
        (&["status"][..], &["serving", "resident"][..]),
        (&["ls"], &["NAME", "org/n", "resident"]),
        (&["show", "m"], &["safetensors", "m.safetensors"]),
        (&["top", "--once"], &["serving", "org/n"]),
        (&["events"], &["open_loaded", "evicted"]),
    ] {
        let output = run(&node, arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && words.iter().all(|w| text.contains(w)),
            "{text}"
        );
        assert!(
            !text.contains('\x1b'),
            "no colours where there is no terminal: {text:?}"
        );
    }
}

#[test]
fn exit_codes_say_what_went_wrong() {
    let mut node = node();
    for (arguments, code) in [
        (&["show", "nope"][..], 5),
        (&["open", "nope"], 5),
        (&["warm", "nope"], 5),
        (&["open", "a//b"], 2),
        (&["frobnicate"], 2),
        (&["open", "m", "--", "sh", "-c", "exit 7"], 7),
        (&["open", "m", "--", "/nonexistent/program"], 127),
    ] {
        let output = run(&node, arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }
    node.kill();
    assert_eq!(run(&node, &["status"]).status.code(), Some(3));
    assert_eq!(run(&node, &["open", "m"]).status.code(), Some(3));
}

#[test]
fn a_command_runs_while_the_model_is_held() {
    let node = node();
    let script = "test \"$MRM_MODEL\" = m && exec \"$0\" --json show m";
    let show = program("mrm");
    let output = mrm(&node)
        .args(["open", "m", "--", "sh", "-c", script])
        .arg(show)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["leases"], 1, "{shown}");
    assert_eq!(shown["holders"][0]["client"], "mrm open");
    node.until_idle();

    let mut held = mrm(&node)
        .args(["open", "m", "--hold"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so once it listens to signals; one that came before would be lost where whoever
    // started the tests has it ignored, as shells do for what they put into the background.
    let mut said = BufReader::new(held.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("held until Ctrl-C")));
    node.until_leases(1);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(held.id()).unwrap());
    nix::sys::signal::kill(pid, SIGINT).unwrap();
    let _ = held.wait().unwrap();
    node.until_idle();
}

/// `nohup mrm open m -- server &`: the server must outlive the terminal as it would without `mrm`.
#[test]
fn what_nohup_protects_from_a_hangup_stays_protected() {
    let node = node();
    let ignores_hangups = |under: &[&str]| {
        let output = Command::new(under[0])
            .args(&under[1..])
            .arg(program("mrm"))
            .args(["open", "m", "--", "grep", "SigIgn", "/proc/self/status"])
            .env("MRM_SOCKET", node.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let mask = String::from_utf8(output.stdout).unwrap();
        // The last bit of the mask stands for SIGHUP.
        u8::from_str_radix(&mask.trim()[mask.trim().len() - 1..], 16).unwrap() & 1 == 1
    };
    assert!(ignores_hangups(&["nohup"]));
    assert!(!ignores_hangups(&["env", "--default-signal=HUP"]));
}

/// Runs a copy of `mrm` that anybody may execute as somebody else.
fn as_nobody(node: &Node, gid: u32, arguments: &[&str]) -> Output {
    let copy = node.dir.path().join("mrm");
    if !copy.exists() {
        // Copied by another process: a descriptor of ours, open for writing, would live on in what
        // other tests start meanwhile, and the kernel runs no file that is open for writing.
        let copied = Command::new("cp").arg(program("mrm")).arg(&copy).status();
        assert!(copied.unwrap().success());
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(copy);
    command
        .env("MRM_SOCKET", node.socket())
        .env_remove("MRM_STATUS_SOCKET");
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .gid(gid)
        .uid(NOBODY);
    command.args(arguments).output().unwrap()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: only root can act as another user");
    }
    root
}

#[test]
fn verbs_are_refused_to_other_users() {
    if !is_root() {
        return;
    }
    let node = node();
    assert_eq!(
        as_nobody(&node, NOBODY, &["status"]).status.code(),
        Some(0),
        "all may look"
    );
    assert_eq!(
        as_nobody(&node, NOBODY, &["open", "m"]).status.code(),
        Some(0),
        "all may open"
    );
    for verb in ["pin", "unpin", "warm", "evict"] {
        let output = as_nobody(&node, NOBODY, &["--json", verb, "m"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(4), "{verb}: {output:?}");
        assert!(
            text.contains("not_permitted") && text.contains("205"),
            "{verb}: {text}"
        );
    }
    let shown = node.get("/v1/models/m");
    assert_eq!(
        (&shown["pinned"], &shown["state"]),
        (&json!(false), &json!("resident"))
    );
    let seen = node.get("/v1/events?since=0&limit=1024").to_string();
    assert!(
        seen.contains("open_loaded") && !seen.contains("\"pinned\""),
        "{seen}"
    );
}

#[test]
fn the_status_group_may_use_the_verbs() {
    if !is_root() {
        return;
    }
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let gid: u32 = fields.get(2)?.parse().ok()?;
        (gid != 0 && gid != NOBODY).then(|| (fields[0].to_owned(), gid))
    });
    let Some((group, gid)) = named else {
        println!("skipped: no group besides root");
        return;
    };
    let node = node_with(Setup::new().setting(&format!("status_group = {group:?}")));
    assert_eq!(
        as_nobody(&node, NOBODY, &["pin", "m"]).status.code(),
        Some(4)
    );
    assert_eq!(as_nobody(&node, gid, &["pin", "m"]).status.code(), Some(0));
    assert_eq!(node.get("/v1/models/m")["pinned"], true);
    assert!(Path::new(&node.status_socket()).exists());
}

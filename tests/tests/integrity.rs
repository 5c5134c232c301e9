//! Memory that does not hold what was loaded is found, told of, and loaded anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_client::{Client, Origin};
use mrm_tests::node::{Node, Setup, program};
use mrm_tests::survival::{Family, failing, kept, with};
use mrm_tests::{eventually, http, model};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

const MIB: u64 = 1 << 20;

/// A daemon in which what is loaded while the file `damage` is in `points` counts as damaged.
fn node(points: &Path, setup: Setup) -> Node {
    Node::start(&failing(setup, points))
}

/// The next file that is loaded is not what the daemon thinks.
fn damage_next(points: &Path) {
    std::fs::write(points.join("damage"), "").unwrap();
}

fn mrm(node: &Node, args: &[&str]) -> Output {
    std::process::Command::new(program("mrm"))
        .args(args)
        .arg("--status-socket")
        .arg(node.status_socket())
        .output()
        .unwrap()
}

fn mrm_json(node: &Node, args: &[&str]) -> (Option<i32>, Value) {
    let mut all = args.to_vec();
    all.push("--json");
    let output = mrm(node, &all);
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), document)
}

fn open(client: &Client, name: &str, origin: Origin) -> mrm_client::Model {
    let model = client.open(name).unwrap();
    assert_eq!(model.origin(), origin, "{name}");
    model
}

/// Waits until it is known what a model holds: it may be lent before that.
fn hashed(node: &Node, name: &str) -> String {
    let path = format!("/v1/models/{name}");
    eventually("it is hashed", || {
        node.get(&path)["digest"].as_str().map(str::to_owned)
    })
}

/// The digest that a model must have.
fn digest(image: &[u8]) -> String {
    blake3::hash(image).to_hex().to_string()
}

#[test]
fn what_is_lent_before_it_is_hashed_has_its_digest_soon() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 33 * MIB, 9, 3);
    let node = Node::start(&Setup::new().model("m", &path));
    let client = node.client();
    let held = open(&client, "m", Origin::Loaded);
    assert_eq!(hashed(&node, "m"), digest(&image));
    assert_eq!(held.segment(0).unwrap().bytes(), image);
    assert_eq!(node.number("/integrity/waiting"), 0);
    let stated = client.stat("m").unwrap();
    assert_eq!(stated.digests.len(), 1);
}

#[test]
fn of_one_length_what_comes_later_is_hashed_first_and_shared() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 33 * MIB, 9, 3);
    let copy = dir.path().join("copy.safetensors");
    std::fs::write(&copy, &image).unwrap();
    let node = Node::start(&Setup::new().model("m", &path).model("copy", &copy));
    let client = node.client();
    let first = open(&client, "m", Origin::Loaded);
    hashed(&node, "m");
    let charged = node.number("/host/charged_bytes");
    let second = open(&client, "copy", Origin::Loaded);
    // But for a table of its own, nothing is there twice.
    eventually("what was loaded for it is freed", || {
        (node.number("/host/charged_bytes") < charged + MIB).then_some(())
    });
    assert_eq!(hashed(&node, "copy"), digest(&image));
    assert_eq!(second.segment(0).unwrap().bytes(), image);
    drop(first);
}

#[test]
fn copies_that_are_opened_at_once_are_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = model::write(dir.path(), "m0.safetensors", 17 * MIB, 9, 3);
    let names: Vec<String> = (0..4).map(|at| format!("m{at}")).collect();
    let mut setup = Setup::new();
    for name in &names {
        let path = dir.path().join(format!("{name}.safetensors"));
        std::fs::write(&path, &image).unwrap();
        setup = setup.model(name, &path);
    }
    let node = Node::start(&setup);
    let clients: Vec<Client> = names.iter().map(|_| node.client()).collect();
    let together = std::sync::Barrier::new(names.len());
    let held: Vec<mrm_client::Model> = std::thread::scope(|scope| {
        let opens: Vec<_> = std::iter::zip(&names, &clients)
            .map(|(name, client)| {
                scope.spawn(|| {
                    together.wait();
                    client.open(name).unwrap()
                })
            })
            .collect();
        opens.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (name, model) in std::iter::zip(&names, &held) {
        assert_eq!(hashed(&node, name), digest(&image));
        assert_eq!(model.segment(0).unwrap().bytes(), image);
    }
    eventually("second copies are freed", || {
        (node.number("/host/freeing_bytes") == 0).then_some(())
    });
    let resident = node.number("/host/resident_bytes");
    assert!(resident < image.len() as u64 + MIB, "{resident}");
}

#[test]
fn what_was_not_hashed_when_the_daemon_died_is_hashed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 33 * MIB, 9, 3);
    let setup = kept(Setup::new().model("m", &path));
    let setup = failing(setup, &points);
    std::fs::write(points.join("hashed"), "kill").unwrap();
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let client = node.client();
    let held = open(&client, "m", Origin::Loaded);
    eventually("it was hashed, and died before it told", || {
        (!points.join("hashed").exists()).then_some(())
    });
    node.kill();
    node.restart(&setup);
    let again = open(&node.client(), "m", Origin::Hit);
    assert_eq!(hashed(&node, "m"), digest(&image));
    assert_eq!(again.segment(0).unwrap().bytes(), image);
    assert_eq!(held.segment(0).unwrap().bytes(), image);
    let (code, found) = mrm_json(&node, &["verify", "m"]);
    assert_eq!(code, Some(0), "{found}");
    // The keeper was told: a third daemon need not hash it.
    node.kill();
    std::fs::write(points.join("hashed"), "kill").unwrap();
    node.restart(&setup);
    drop(open(&node.client(), "m", Origin::Hit));
    assert_eq!(hashed(&node, "m"), digest(&image));
    assert!(points.join("hashed").exists());
}

#[test]
fn what_is_whole_is_found_intact() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let node = Node::start(&Setup::new().model("m", &path).model("other", &path));
    let nothing = mrm(&node, &["verify", "--all"]);
    assert_eq!(nothing.status.code(), Some(0));
    let client = node.client();
    let held = open(&client, "m", Origin::Loaded);
    let (code, found) = mrm_json(&node, &["verify", "m"]);
    assert_eq!(code, Some(0), "{found}");
    let result = &found["results"][0];
    assert_eq!(
        (&result["intact"], &result["ok"]),
        (&true.into(), &true.into())
    );
    let segments = result["segments"].as_array().unwrap();
    assert_eq!(segments.len(), 2, "{found}");
    assert!(
        segments
            .iter()
            .all(|segment| segment["outcome"] == "intact")
    );
    let bytes: u64 = segments.iter().map(|s| s["bytes"].as_u64().unwrap()).sum();
    assert!(bytes > 5 * MIB, "{found}");
    assert_eq!(node.number("/integrity/checked_bytes_total"), bytes);
    assert_eq!(node.number("/integrity/damaged_total"), 0);
    assert_eq!(mrm(&node, &["verify", "nope"]).status.code(), Some(5));
    assert!(held.lost().is_none());
    let text = String::from_utf8(mrm(&node, &["verify", "--all"]).stdout).unwrap();
    assert!(text.contains("everything: intact: 2 segments"), "{text}");
}

#[test]
fn damage_is_told_to_who_holds_it_and_others_get_it_anew() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let node = node(&points, Setup::new().model("m", &path));
    damage_next(&points);
    let (first, second) = (node.client(), node.client());
    let held = open(&first, "m", Origin::Loaded);
    let charged = node.number("/host/charged_bytes");
    assert!(held.lost().is_none());

    let (code, found) = mrm_json(&node, &["verify", "m"]);
    assert_eq!(code, Some(1), "{found}");
    let result = &found["results"][0];
    assert_eq!(result["intact"], false, "{found}");
    let segments = result["segments"].as_array().unwrap();
    let damaged: Vec<_> = segments
        .iter()
        .filter(|segment| segment["outcome"] == "damaged")
        .collect();
    assert_eq!(damaged.len(), 1, "{found}");
    assert_eq!(damaged[0]["part"], "file", "{found}");

    let why = eventually("its holder is told", || held.lost());
    assert_eq!(why.reply().number, 604, "{why:?}");
    assert!(why.reply().message.contains("open it again"), "{why:?}");
    assert!(!held.is_leased());
    // It is loaded anew without being asked for.
    eventually("it is loaded again", || {
        (node.get("/v1/models/m")["state"] == "resident").then_some(())
    });
    let other = open(&second, "m", Origin::Hit);
    assert_eq!(other.segment(0).unwrap().bytes(), image);
    // Also for who still has the damaged copy open.
    let again = open(&first, "m", Origin::Hit);
    assert_ne!(
        again.segment(0).unwrap().bytes().as_ptr(),
        held.segment(0).unwrap().bytes().as_ptr()
    );
    assert!(again.lost().is_none() && again.is_leased());
    // What is damaged is kept, and paid for, as long as somebody has it.
    assert!(node.number("/host/charged_bytes") > charged);
    assert_eq!(node.number("/leases"), 3);
    drop(held);
    eventually("what is damaged goes with its last holder", || {
        (node.number("/host/charged_bytes") == charged).then_some(())
    });
    assert_eq!(mrm(&node, &["verify", "--all"]).status.code(), Some(0));
    assert_eq!(node.number("/integrity/damaged_total"), 1);
    let (_, metrics) = http::request(&node.status_socket(), "GET", "/metrics");
    assert!(
        metrics.lines().any(|line| line == "mrm_damaged_total 1"),
        "{metrics}"
    );
    let events = node.get("/v1/events?limit=1000");
    let events = events["events"].as_array().unwrap();
    let kinds = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((kinds("damaged"), kinds("lease_revoked")), (1, 1));
    let status = node.get("/v1/status");
    let degraded = status["degraded"].as_array().unwrap();
    assert!(
        degraded.iter().any(|path| path["id"] == "damaged"),
        "{status}"
    );
}

#[test]
fn what_is_taken_over_is_served_at_once_and_checked_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let points = dir.path().join("points");
    let (path, image) = model::write(dir.path(), "m.safetensors", 9 * MIB, 9, 3);
    let (fine, fine_image) = model::write(dir.path(), "fine.safetensors", 2 * MIB, 9, 4);
    let setup = kept(Setup::new().model("m", &path).model("fine", &fine));
    let setup = failing(setup, &points);
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    damage_next(&points);
    let client = node.client();
    let held = open(&client, "m", Origin::Loaded);
    hashed(&node, "m");
    let sound = open(&client, "fine", Origin::Loaded);

    node.kill();
    node.restart(&setup);
    let found = eventually("what was taken over is checked", || {
        let found = node.get("/v1/status")["integrity"].clone();
        (found["waiting"] == 0 && found["checked_total"].as_u64()? >= 4).then_some(found)
    });
    assert_eq!(found["damaged_total"], 1, "{found}");
    eventually("it is loaded again", || {
        (node.get("/v1/models/m")["state"] == "resident").then_some(())
    });
    let other = node.client();
    let again = open(&other, "m", Origin::Hit);
    assert_eq!(again.segment(0).unwrap().bytes(), image);
    let again = open(&other, "fine", Origin::Hit);
    assert_eq!(again.segment(0).unwrap().bytes(), fine_image);
    assert!(sound.lost().is_none());
    drop(held);

    // A third daemon does not find what was damaged.
    node.kill();
    node.restart(&setup);
    eventually("what was taken over is checked again", || {
        let found = node.get("/v1/status")["integrity"].clone();
        let done = found["waiting"] == 0 && found["checked_total"].as_u64()? >= 4;
        assert_eq!(found["damaged_total"], 0, "{found}");
        done.then_some(())
    });
}

#[test]
fn a_check_keeps_nothing_from_being_freed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 64 * MIB, 9, 3);
    let node = Node::start(&Setup::new().model("m", &path));
    drop(open(&node.client(), "m", Origin::Loaded));
    let socket = node.status_socket();
    let asked = std::thread::spawn(move || {
        mrm_tests::http::request(&socket, "POST", "/v1/verify?wait_ms=60000")
    });
    eventually("nobody holds it", || {
        (node.post("/v1/models/m/evict").0 == 200).then_some(())
    });
    assert_eq!(node.number("/host/charged_bytes"), 0);
    let (status, body) = asked.join().unwrap();
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["intact"], true, "{body}");
    for segment in body["segments"].as_array().unwrap() {
        let outcome = segment["outcome"].as_str().unwrap();
        assert!(["gone", "intact"].contains(&outcome), "{body}");
    }
}

const RIGHT: &str = "SHA256SUMS";

fn sha256sum(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum")
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

/// A model, and a daemon that looks at the lists beside it.
fn listed(dir: &Path, policy: &str, list: Option<&str>) -> (Node, std::path::PathBuf) {
    let models = dir.join("models");
    std::fs::create_dir(&models).unwrap();
    let (path, _) = model::write(&models, "m.safetensors", 5 * MIB, 9, 3);
    if let Some(list) = list {
        let sum = sha256sum(&path);
        let list = list
            .replace("RIGHT", &sum)
            .replace("WRONG", &"0".repeat(64));
        std::fs::write(models.join(RIGHT), list).unwrap();
    }
    let setup = Setup::new().model("m", &path);
    let node = Node::start(&with(setup, "MRM_INTEGRITY_MANIFEST", policy));
    (node, path)
}

fn refusal(client: &Client, code: u16) -> String {
    match client.open("m") {
        Err(mrm_client::OpenError::Request(mrm_client::RequestError::Refused(why))) => {
            assert_eq!(why.reply().number, code, "{why:?}");
            why.reply().message.clone()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_required_list_decides_what_is_lent() {
    for (list, expected) in [
        (Some("RIGHT  m.safetensors\n"), None),
        (Some("WRONG  m.safetensors\n"), Some(308)),
        (Some("RIGHT  other\n"), Some(307)),
        (None, Some(307)),
        (Some("no list\n"), Some(309)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (node, path) = listed(dir.path(), "required", list);
        let client = node.client();
        let Some(code) = expected else {
            open(&client, "m", Origin::Loaded);
            continue;
        };
        let why = refusal(&client, code);
        assert!(
            why.contains("m.safetensors") || why.contains(RIGHT),
            "{why}"
        );
        assert_eq!(node.number("/counters/loads_total"), 0, "{list:?}");
        // Put right, it is lent.
        let right = format!("{}  m.safetensors\n", sha256sum(&path));
        std::fs::write(path.with_file_name(RIGHT), right).unwrap();
        open(&client, "m", Origin::Loaded);
    }
}

#[test]
fn a_list_that_is_there_takes_back_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (node, path) = listed(dir.path(), "if-present", Some("WRONG  m.safetensors\n"));
    let client = node.client();
    let held = open(&client, "m", Origin::Loaded);
    let why = eventually("its holder is told", || held.lost());
    assert_eq!(why.reply().number, 308, "{why:?}");
    let other = node.client();
    let why = refusal(&other, 308);
    assert!(why.contains("fetch it again"), "{why}");
    // It was not loaded again to find out.
    assert_eq!(node.number("/counters/loads_total"), 1);
    drop(held);
    let right = format!("{}  m.safetensors\n", sha256sum(&path));
    std::fs::write(path.with_file_name(RIGHT), right).unwrap();
    let again = open(&other, "m", Origin::Loaded);
    assert!(again.lost().is_none());
}

#[test]
fn without_a_list_that_need_not_be_there_all_is_as_ever() {
    for (policy, list) in [
        ("if-present", None),
        ("if-present", Some("no list\n")),
        ("off", Some("WRONG  m.safetensors\n")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (node, _) = listed(dir.path(), policy, list);
        let client = node.client();
        let held = open(&client, "m", Origin::Loaded);
        assert_eq!(mrm(&node, &["verify", "m"]).status.code(), Some(0));
        assert!(held.lost().is_none(), "{policy} {list:?}");
        let status = node.get("/v1/status");
        let degraded = status["degraded"].as_array().unwrap();
        let told = degraded.iter().any(|path| path["id"] == "manifest");
        assert_eq!(told, policy == "if-present" && list.is_some(), "{status}");
    }
}

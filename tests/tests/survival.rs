//! The daemon's death takes nothing with it: a keeper holds memory and sockets for the next one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_client::{Client, Origin};
use mrm_tests::gpus::{Gpus, assert_same_tensors, device_field, open_on};
use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, Setup, command};
use mrm_tests::survival::{
    Family, descriptors, kept, private_bytes, respawned, segments, signal, until_kept,
    until_other_serves, with,
};
use mrm_tests::{eventually, model};
use nix::sys::signal::Signal;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MIB: u64 = 1 << 20;

/// Opens what must be resident.
fn hit(client: &Client, name: &str) -> mrm_client::Model {
    let model = client.open(name).unwrap();
    assert_eq!(model.origin(), Origin::Hit, "{name}");
    model
}

fn is_degraded(node: &Node, id: &str) -> bool {
    let status = node.get("/v1/status");
    let list = status["degraded"].as_array().unwrap();
    list.iter().any(|path| path["id"] == id)
}

#[test]
fn a_killed_daemon_leaves_its_models_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let setup = kept(Setup::new().model("m", &path));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("held", "m");
    let charged = node.number("/host/charged_bytes");
    let instance = node.get("/v1/status")["daemon"]["instance"].clone();

    node.kill();
    holder.assert_equal("held", &[&path]);
    // Whoever reads the disk now finds nothing.
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    node.restart(&setup);
    assert_ne!(node.get("/v1/status")["daemon"]["instance"], instance);
    assert_eq!(node.number("/host/charged_bytes"), charged);
    assert_eq!(node.number("/counters/misses_total"), 0);
    std::fs::rename(dir.path().join("elsewhere"), &path).unwrap();

    let client = node.client();
    let again = hit(&client, "m");
    assert_eq!(again.segment(0).unwrap().bytes(), image);
    // Nobody asked the holder to do anything.
    node.until_leases(2);
    drop((again, holder));
    eventually("the grace is over and nobody holds it", || {
        (node.post("/v1/models/m/evict").0 == 200).then_some(())
    });
    assert_eq!(node.number("/host/charged_bytes"), 0);
}

/// Two files of one content.
fn of_one_content(dir: &Path) -> [PathBuf; 2] {
    ["m.safetensors", "two/m.safetensors"].map(|file| model::write(dir, file, 5 * MIB, 9, 3).0)
}

#[test]
fn two_files_of_one_content_are_one_for_the_next_daemon_too() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = of_one_content(dir.path());
    let setup = kept(Setup::new().model("one", &one).model("two", &two));
    let mut node = Node::start(&setup);
    let family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("first", "one");
    let charged = node.number("/host/charged_bytes");
    holder.open("second", "two");
    eventually("the second is merged into the first", || {
        (node.number("/host/charged_bytes") == charged).then_some(())
    });
    // Also by a daemon that knows of it from the one before only.
    for _ in 0..2 {
        until_kept(&family, node.pid());
        node.kill();
        node.restart(&setup);
        node.until_leases(2);
        assert_eq!(node.number("/host/charged_bytes"), charged);
        hit(&node.client(), "two");
        assert_eq!(node.number("/counters/misses_total"), 0);
    }
    holder.assert_equal("second", &[&two]);
}

#[test]
fn a_killed_daemon_is_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (path, image) = model::write(dir.path(), "m.safetensors", 2 * MIB, 3, 3);
    let node = Node::start(&respawned(Setup::new().model("m", &path)));
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("held", "m");
    let mut pid = node.pid();
    for _ in 0..3 {
        signal(pid, Signal::SIGKILL);
        pid = until_other_serves(&node, pid);
        holder.assert_equal("held", &[&path]);
        node.until_leases(1);
        assert_eq!(node.number("/counters/misses_total"), 0);
        let model = hit(&node.client(), "m");
        assert_eq!(model.segment(0).unwrap().bytes(), image);
    }
}

fn take_over(node: &Node, setup: &Setup) -> Child {
    let mut next = command(node.dir.path(), setup);
    next.arg("--takeover").stdin(Stdio::null());
    let next = next.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    next.unwrap()
}

fn until_serves(node: &Node, pid: u32) {
    eventually("the next one serves", || {
        let daemon = mrm_tests::survival::status(node)?["daemon"].clone();
        (daemon["pid"] == pid && daemon["state"] == "serving").then_some(())
    });
}

#[test]
#[expect(clippy::zombie_processes, reason = "the family is ended with the test")]
fn a_newer_daemon_takes_a_running_ones_place() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB, 4, 3);
    let setup = kept(Setup::new().model("m", &path));
    let mut old = Node::start(&setup);
    let _family = Family::of(old.dir.path());
    let mut holder = Holder::start(&old.socket());
    holder.open("held", "m");
    let charged = old.number("/host/charged_bytes");
    let new = take_over(&old, &setup);
    assert_eq!(old.wait().code(), Some(0));
    // The sockets were never away: this waits in their queue at worst.
    until_serves(&old, new.id());
    assert_eq!(old.number("/host/charged_bytes"), charged);
    holder.assert_equal("held", &[&path]);
    old.until_leases(1);
}

#[test]
#[expect(clippy::zombie_processes, reason = "the family is ended with the test")]
fn no_open_is_refused_while_daemons_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new().budget(8 * MIB);
    let mut images = Vec::new();
    for i in 0..12 {
        let (path, image) = model::write(dir.path(), &format!("{i}"), MIB, 2, i);
        setup = setup.model(&format!("m{i}"), &path);
        images.push(image);
    }
    let setup = kept(with(setup, "MRM_KEEPER_GRACE_MS", "100"));
    let node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let (stop, opens) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|seed| {
                let (node, images, stop, opens) = (&node, &images, &stop, &opens);
                scope.spawn(move || {
                    let client = node.client();
                    let mut random = mrm_tests::Random(seed);
                    while !stop.load(Ordering::Relaxed) {
                        let at = random.below(images.len() as u64);
                        let model = client.open(&format!("m{at}")).unwrap();
                        let image = &images[usize::try_from(at).unwrap()];
                        assert!(model.segment(0).unwrap().bytes() == image, "m{at}");
                        opens.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let more = |than: u64| {
            eventually("opens go on", || {
                assert!(!clients.iter().any(|client| client.is_finished()));
                (opens.load(Ordering::Relaxed) >= than + 50).then_some(())
            });
        };
        for _ in 0..4 {
            more(opens.load(Ordering::Relaxed));
            let next = take_over(&node, &setup);
            until_serves(&node, next.id());
        }
        more(opens.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn device_memory_outlives_the_daemon_that_filled_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let gpus = Gpus::new(2, 256 * MIB);
    let setup = kept(gpus.setup().model("m", &path));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = gpus.holder(&node);
    for device in ["cuda:0", "cuda:1"] {
        open_on(&mut holder, device, "m", device);
    }
    let charged = [0, 1].map(|i| device_field(&node, i, "charged_bytes"));
    node.kill();
    holder.must(&json!(["device-tensors", "cuda:0"]));
    node.restart(&setup);
    assert_eq!(
        [0, 1].map(|i| device_field(&node, i, "charged_bytes")),
        charged
    );
    node.until_leases(2);
    let mut other = gpus.holder(&node);
    for device in ["cuda:0", "cuda:1"] {
        let found = open_on(&mut other, device, "m", device);
        assert_eq!(found["origin"], "hit", "{found}");
        assert_same_tensors(&mut other, device, "m");
    }
}

#[test]
fn two_models_of_one_content_are_one_image_for_the_next_daemon_too() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = of_one_content(dir.path());
    let gpus = Gpus::new(1, 256 * MIB);
    let setup = kept(gpus.setup().model("one", &one).model("two", &two));
    let mut node = Node::start(&setup);
    let family = Family::of(node.dir.path());
    let mut holder = gpus.holder(&node);
    open_on(&mut holder, "first", "one", "cuda:0");
    let charged = device_field(&node, 0, "charged_bytes");
    open_on(&mut holder, "second", "two", "cuda:0");
    eventually("the second is merged into the first", || {
        (device_field(&node, 0, "charged_bytes") == charged).then_some(())
    });
    for _ in 0..2 {
        until_kept(&family, node.pid());
        node.kill();
        node.restart(&setup);
        node.until_leases(2);
        assert_eq!(device_field(&node, 0, "charged_bytes"), charged);
        let found = open_on(&mut gpus.holder(&node), "other", "two", "cuda:0");
        assert_eq!(found["origin"], "hit", "{found}");
        assert!(!is_degraded(&node, "keeper_dropped"));
    }
    assert_same_tensors(&mut holder, "second", "two");
}

#[test]
fn a_device_that_is_not_used_any_more_takes_only_its_own_images() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 9, 3);
    let gpus = Gpus::new(2, 256 * MIB);
    let setup = kept(gpus.setup().model("m", &path));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = gpus.holder(&node);
    for device in ["cuda:0", "cuda:1"] {
        open_on(&mut holder, device, "m", device);
    }
    node.kill();
    node.restart(&with(setup, "CUDA_VISIBLE_DEVICES", "0"));
    assert!(is_degraded(&node, "keeper_dropped"));
    node.until_leases(1);
    let mut other = gpus.holder(&node);
    let found = open_on(&mut other, "m", "m", "cuda:0");
    assert_eq!(found["origin"], "hit", "{found}");
    assert_same_tensors(&mut other, "m", "m");
    // What is mapped stays; when it is closed, the device has its memory back.
    holder.must(&json!(["device-tensors", "cuda:1"]));
    let free = |holder: &mut Holder| holder.must(&json!(["device-free", 1]))["bytes"].clone();
    let before = free(&mut other).as_u64().unwrap();
    holder.close("cuda:1");
    eventually("the device has its memory back", || {
        (free(&mut other).as_u64().unwrap() >= before + 5 * MIB).then_some(())
    });
}

#[test]
fn pinned_sharded_and_passed_models_are_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (pinned, _) = model::write(dir.path(), "p.safetensors", MIB, 2, 1);
    let (passed, _) = model::write(dir.path(), "f.safetensors", MIB, 2, 2);
    let shards = model::write_sharded(&dir.path().join("s"), 3, MIB, 3);
    let setup = Setup::new()
        .model_with("p", &pinned, "pin = true")
        .model("s", &dir.path().join("s"));
    let setup = kept(setup);
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("s", "s");
    holder.open("p", "p");
    holder.close("p");
    holder.must(&json!(["path", "f", passed]));
    node.kill();
    node.restart(&setup);
    node.until_leases(2);
    let client = node.client();
    let model = hit(&client, "s");
    for (segment, (_, image)) in model.segments().zip(&shards) {
        assert!(segment.bytes() == image);
    }
    drop(hit(&client, "p"));
    assert_eq!(node.get("/v1/models/p")["pinned"], true);
    assert_eq!(node.post("/v1/models/p/evict").0, 409);
    let mut other = Holder::start(&node.socket());
    let found = other.must(&json!(["path", "f", passed]));
    assert_eq!(found["origin"], "hit", "{found}");
    other.assert_equal("f", &[&passed]);
    holder.assert_equal("f", &[&passed]);
    assert_eq!(node.number("/counters/misses_total"), 0);
}

#[test]
fn a_smaller_budget_spares_what_is_held_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new();
    for name in ["held", "idle", "other"] {
        let (path, _) = model::write(dir.path(), name, 4 * MIB, 2, 7);
        // The same bytes twice would be kept once.
        let (path, _) = (path.clone(), append(&path, name));
        setup = setup.model(name, &path);
    }
    let large = kept(setup.clone().budget(32 * MIB));
    let small = kept(setup.budget(6 * MIB));
    let mut node = Node::start(&large);
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("held", "held");
    for name in ["idle", "other"] {
        holder.open(name, name);
        holder.close(name);
    }
    node.kill();
    node.restart(&small);
    let limit = node.number("/host/limit_bytes");
    eventually("what nobody holds has gone", || {
        (node.number("/host/charged_bytes") <= limit).then_some(())
    });
    node.until_leases(1);
    holder.assert_equal("held", &[&dir.path().join("held")]);
    drop(hit(&node.client(), "held"));
    eventually("and is in no process any more", || {
        let all: u64 = segments(node.pid()).values().sum();
        (all <= limit).then_some(())
    });
}

/// Makes the file of a model differ, without a word in its tensors.
fn append(path: &Path, text: &str) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - text.len();
    bytes[at..].copy_from_slice(text.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_file_that_changed_meanwhile_is_another_version() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 2, 1);
    let (gone, _) = model::write(dir.path(), "gone.safetensors", MIB, 2, 2);
    let setup = Setup::new().setting("revalidate_ms = 0");
    let setup = kept(setup.model("m", &path).model("gone", &gone));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("m", "m");
    holder.open("gone", "gone");
    node.kill();
    let (old, away) = (dir.path().join("old"), dir.path().join("away"));
    std::fs::rename(&path, &old).unwrap();
    std::fs::rename(&gone, &away).unwrap();
    let (_, image) = model::write(dir.path(), "m.safetensors", 2 * MIB, 3, 5);
    node.restart(&setup);
    let client = node.client();
    let model = client.open("m").unwrap();
    assert_eq!(model.origin(), Origin::Loaded);
    assert!(model.segment(0).unwrap().bytes() == image);
    assert!(client.open("gone").is_err());
    node.until_leases(3);
    holder.assert_equal("m", &[&old]);
    holder.assert_equal("gone", &[&away]);
}

#[test]
fn without_a_keeper_the_next_daemon_begins_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 2, 1);
    let setup = Setup::new().model("m", &path);
    let mut node = Node::start(&setup);
    let family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("m", "m");
    assert_eq!(family.keeper(), None);
    node.kill();
    node.restart(&setup);
    assert_eq!(node.number("/host/charged_bytes"), 0);
    holder.assert_equal("m", &[&path]);
    assert_eq!(node.client().open("m").unwrap().origin(), Origin::Loaded);
    node.until_leases(0);
}

#[test]
fn a_killed_keeper_is_replaced_and_given_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 2, 1);
    let setup = kept(Setup::new().model("m", &path));
    let mut node = Node::start(&setup);
    let family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("m", "m");
    let first = family.until_keeper();
    signal(first, Signal::SIGKILL);
    eventually("another keeper has every segment", || {
        let other = family.keeper().filter(|pid| *pid != first)?;
        (segments(other) == segments(node.pid())).then_some(())
    });
    assert!(is_degraded(&node, "keeper"));
    node.kill();
    node.restart(&setup);
    drop(hit(&node.client(), "m"));
    assert_eq!(node.number("/counters/misses_total"), 0);
    holder.assert_equal("m", &[&path]);
}

#[test]
fn many_restarts_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", MIB, 2, 1);
    // How much memory is made ready for loads depends on what else runs on this machine, and each
    // piece of it is a descriptor.
    let unstocked = |setup| with(setup, "MRM_LOAD_STOCK_BYTES", "0");
    let setup = unstocked(kept(Setup::new().model("m", &path)));
    let mut node = Node::start(&setup);
    let family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("m", "m");
    let mut baseline = None;
    for run in 1..=24 {
        node.kill();
        node.restart(&setup);
        // The holder is back before another comes and goes, or it would be counted for the holder.
        node.until_leases(1);
        drop(hit(&node.client(), "m"));
        eventually("only the holder is there", || {
            let there = (node.number("/leases"), node.number("/sessions"));
            (there == (1, 1)).then_some(())
        });
        let keeper = family.keeper().unwrap();
        // So many runs are remembered for clients of theirs.
        if run == 12 {
            let now = [keeper, node.pid()].map(descriptors);
            println!("at the baseline: {now:#?}");
            baseline = Some((keeper, now, private_bytes(keeper)));
        }
    }
    let (keeper, at_rest, memory) = baseline.unwrap();
    assert_eq!(family.keeper(), Some(keeper));
    let mut seen = at_rest.clone();
    eventually("descriptors are back at the baseline", || {
        // No more: the baseline may have caught one that was about to be closed.
        let now = [keeper, node.pid()].map(descriptors);
        let leaked = std::iter::zip(&now, &at_rest).any(|(now, then)| now.len() > then.len());
        if leaked && now != seen {
            println!("now: {now:#?}");
            seen = now;
        }
        (!leaked).then_some(())
    });
    let grown = private_bytes(keeper).saturating_sub(memory);
    assert!(grown <= 256 << 10, "the keeper grew by {grown} bytes");
    holder.assert_equal("m", &[&path]);
}

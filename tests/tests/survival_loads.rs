//! A daemon that dies in the middle of a load.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_tests::holder::Holder;
use mrm_tests::node::{Node, Setup};
use mrm_tests::survival::{Family, failing, kept, segments};
use mrm_tests::{Random, eventually, model, seed};
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

const MIB: u64 = 1 << 20;

#[test]
fn an_open_survives_a_daemon_that_is_killed_at_any_moment_of_its_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(seed());
    let mut setup = Setup::new().budget(20 * MIB);
    let mut images = Vec::new();
    for i in 0..6 {
        let (path, image) = model::write(dir.path(), &format!("{i}"), 6 * MIB, 3, i);
        setup = setup.model(&format!("m{i}"), &path);
        images.push(image);
    }
    let setup = kept(setup);
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    for round in 0..18 {
        let at = round % images.len();
        let client = node.client();
        let moment = Duration::from_micros(random.below(60_000));
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| client.open(&format!("m{at}")).unwrap());
            // Not to wait for anything: the moment is what is tried.
            std::thread::park_timeout(moment);
            node.kill();
            node.restart(&setup);
            let (charged, limit) = (
                node.number("/host/charged_bytes"),
                node.number("/host/limit_bytes"),
            );
            assert!(charged <= limit, "{charged} of {limit}");
            let model = opened.join().unwrap();
            assert!(model.segment(0).unwrap().bytes() == images[at], "m{at}");
        });
        let there: u64 = segments(node.pid()).values().sum();
        assert!(there <= 20 * MIB, "{there} bytes are in memory");
    }
}

#[test]
fn nothing_is_lent_once_everything_is_left_to_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let points = tempfile::tempdir().unwrap();
    let at = |point: &str| points.path().join(point);
    let (path, image) = model::write(dir.path(), "m.safetensors", MIB, 3, 5);
    let setup = failing(kept(Setup::new().model("m", &path)), points.path());
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let client = node.client();
    // The load ends when the keeper has been told of everything, and the daemon has yet to exit.
    fs::write(at("before-load"), "stall 2").unwrap();
    fs::write(at("handing-over"), "stall 1").unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| client.open("m").unwrap());
        eventually("the load of the file has begun", || {
            at("before-load.done").exists().then_some(())
        });
        // Not to wait for anything: both stall for 100 ms, and the load is to be the first to go on.
        std::thread::park_timeout(Duration::from_millis(50));
        node.signal(Signal::SIGUSR2);
        assert!(node.wait().success());
        assert!(at("handing-over.done").exists());
        fs::remove_file(at("before-load")).unwrap();
        node.restart(&setup);
        let model = opened.join().unwrap();
        assert!(model.segment(0).unwrap().bytes() == image);
        node.until_leases(1);
        assert!(model.is_leased());
    });
}

#[test]
fn what_is_hashed_before_the_keeper_has_it_is_shared_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let points = tempfile::tempdir().unwrap();
    let (one, _) = model::write(dir.path(), "m.safetensors", 5 * MIB, 3, 5);
    let (two, _) = model::write(dir.path(), "two/m.safetensors", 5 * MIB, 3, 5);
    let setup = kept(Setup::new().model("one", &one).model("two", &two));
    let setup = failing(setup, points.path());
    let node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    fs::write(points.path().join("before-put"), "stall 1").unwrap();
    let client = node.client();
    let first = client.open("one").unwrap();
    let charged = node.number("/host/charged_bytes");
    let _second = client.open("two").unwrap();
    eventually("the second is merged into the first", || {
        (node.number("/host/charged_bytes") == charged).then_some(())
    });
    drop(first);
}

#[test]
fn what_is_in_huge_pages_is_known_again_after_a_takeover() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = model::write(dir.path(), "m.safetensors", 9 * MIB, 4, 3);
    let setup = kept(Setup::new().model("m", &path));
    let mut node = Node::start(&setup);
    let _family = Family::of(node.dir.path());
    let mut holder = Holder::start(&node.socket());
    holder.open("held", "m");
    let huge = node.number("/host/huge_bytes");
    println!("{huge} bytes are in huge pages");
    node.kill();
    node.restart(&setup);
    eventually("the new daemon has looked", || {
        (node.number("/host/huge_bytes") >= huge).then_some(())
    });
}

//! The fd store of systemd as the keeper, played by the test.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use mrm_client::{Client, Origin};
use mrm_tests::holder::Holder;
use mrm_tests::node::Setup;
use mrm_tests::survival::{status_at, with};
use mrm_tests::systemd::Manager;
use mrm_tests::{eventually, model};
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;

const MIB: u64 = 1 << 20;

struct Service {
    dir: tempfile::TempDir,
    manager: Manager,
    child: Child,
}

impl Service {
    fn start(capacity: usize, setup: &Setup) -> Self {
        let dir = tempfile::Builder::new().prefix("mrm-test-").tempdir();
        let dir = dir.unwrap();
        let manager = Manager::new(dir.path(), capacity);
        let child = manager.start(setup);
        Self {
            dir,
            manager,
            child,
        }
    }

    /// SIGKILL, and the next start.
    fn crash(&mut self, setup: &Setup) {
        self.kill();
        self.child = self.manager.start(setup);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/mrmd.sock")
    }

    fn client(&self) -> Client {
        Client::connect_to(self.socket()).unwrap()
    }

    fn status(&self) -> Value {
        status_at(&self.dir.path().join("run/status.sock")).unwrap()
    }

    fn degraded(&self, id: &str) -> Option<Value> {
        let status = self.status();
        let list = status["degraded"].as_array().unwrap();
        list.iter().find(|path| path["id"] == id).cloned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("mrmd.log"));
            eprintln!("--- log of the daemon ---\n{}", log.unwrap_or_default());
        }
    }
}

fn setup(dir: &Path, models: &[&str]) -> Setup {
    let mut setup = Setup::new();
    for (at, name) in models.iter().enumerate() {
        let (path, _) = model::write(dir, name, MIB, 2, at as u64);
        setup = setup.model(name, &path);
    }
    with(setup, "MRM_KEEPER_KIND", "systemd")
}

#[test]
fn the_store_gives_back_models_and_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path(), &["m"]);
    let mut service = Service::start(512, &setup);
    let mut holder = Holder::start(&service.socket());
    holder.open("m", "m");
    for _ in 0..3 {
        service.kill();
        holder.assert_equal("m", &[&dir.path().join("m")]);
        // Nobody serves, and nobody is refused: the socket is in the store.
        let waiting = std::os::unix::net::UnixStream::connect(service.socket());
        assert!(waiting.is_ok());
        service.child = service.manager.start(&setup);
        let model = service.client().open("m").unwrap();
        assert_eq!(model.origin(), Origin::Hit);
        assert_eq!(service.status()["counters"]["misses_total"], 0);
        drop(model);
        eventually("the holder's lease counts again", || {
            (service.status()["leases"] == 1).then_some(())
        });
    }
    assert_eq!(service.degraded("keeper"), None);
    assert_eq!(service.degraded("keeper_dropped"), None);
}

fn memfd(bytes: &[u8]) -> OwnedFd {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("mrm-test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&fd, bytes).unwrap();
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

#[test]
fn what_does_not_check_out_is_dropped_loudly_and_the_rest_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let models = ["a", "b", "c"];
    let setup = setup(dir.path(), &models);
    let mut service = Service::start(512, &setup);
    let client = service.client();
    for name in models {
        client.open(name).unwrap();
    }
    drop(client);
    service.kill();
    let before = service.manager.stored();
    let large = |name: &String| name.starts_with("mrm_s-") && name.ends_with("_1");
    let segments: Vec<&String> = before.iter().filter(|name| large(name)).collect();
    assert_eq!(
        segments.len(),
        6,
        "three tables and three files: {before:?}"
    );
    // Other bytes of the right length; a description that is none; one that nobody wrote.
    let length = std::fs::metadata(dir.path().join("a")).unwrap().len();
    let mut file = None;
    for name in &segments {
        if service.manager.length(name) == length {
            file = Some((*name).clone());
        }
    }
    let file = file.unwrap();
    service.manager.replace(&file, memfd(&[7; 100]));
    let other = segments.iter().find(|name| ***name != file).unwrap();
    let description = other.strip_suffix("_1").unwrap().to_owned() + "_0_0";
    service
        .manager
        .replace(&description, memfd(b"nothing that anybody wrote"));
    service
        .manager
        .plant("mrm_s-planted_0_0", memfd(b"MRMKEPT\n"));
    service.child = service.manager.start(&setup);

    let told = service.degraded("keeper_dropped").unwrap();
    assert!(told["cause"].as_str().unwrap().contains("not"), "{told}");
    let mut origins = Vec::new();
    let client = service.client();
    for name in models {
        let model = client.open(name).unwrap();
        let image = std::fs::read(dir.path().join(name)).unwrap();
        assert!(model.segment(0).unwrap().bytes() == image, "{name}");
        origins.push(model.origin());
    }
    assert!(origins.contains(&Origin::Hit), "{origins:?}");
    assert!(origins.contains(&Origin::Loaded), "{origins:?}");
    eventually("what was dropped is not in the store either", || {
        let now = service.manager.stored();
        let is_there = |gone: &str| now.iter().any(|name| name == gone);
        (!is_there("mrm_s-planted_0_0") && !is_there(&file)).then_some(())
    });
}

#[test]
fn a_store_that_is_too_small_is_reported_and_takes_nothing_from_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path(), &["a", "b", "c", "d"]);
    let mut service = Service::start(12, &setup);
    let client = service.client();
    let models: Vec<_> = ["a", "b", "c", "d"]
        .map(|name| client.open(name).unwrap())
        .into();
    assert!(service.degraded("keeper").is_some());
    for (model, name) in models.iter().zip(["a", "b", "c", "d"]) {
        let image = std::fs::read(dir.path().join(name)).unwrap();
        assert!(model.segment(0).unwrap().bytes() == image, "{name}");
    }
    assert!(service.manager.stored().len() <= 12);
    drop((models, client));
    service.crash(&setup);
    let client = service.client();
    for name in ["a", "b", "c", "d"] {
        let model = client.open(name).unwrap();
        let image = std::fs::read(dir.path().join(name)).unwrap();
        assert!(model.segment(0).unwrap().bytes() == image, "{name}");
    }
}

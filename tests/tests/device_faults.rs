//! The driver returns every error code at every call that the daemon makes, one at a time: each
//! open ends in an error that can be understood or succeeds, the daemon lives, and nothing leaks.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use mrm_tests::gpus::{
    Gpus, assert_same_tensors, device_field, open_on, try_open_on, until_at_rest, uuid,
};
use mrm_tests::holder::Holder;
use mrm_tests::node::Node;
use mrm_tests::{eventually, model};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;
/// What the pretended device has for the model.
const IMAGE: u64 = 4 * MIB;
/// Of these the process recovers. (46 sticks on the pretended driver unless told otherwise.)
const PASSING: [&str; 10] = [
    "2", "1", "3", "46:once", "100", "101", "200", "201", "999", "4242",
];
/// Of these a process does not recover.
const LASTING: [u32; 3] = [719, 214, 700];
/// What an open may be told of a driver that fails.
const CODES: [&str; 5] = [
    "device_failed",
    "device_lost",
    "no_room",
    "out_of_memory",
    "exhausted",
];

/// A daemon with a model, and a client; all calls are noted.
struct Bench {
    _dir: tempfile::TempDir,
    gpus: Gpus,
    node: Node,
    client: Holder,
    cases: usize,
}

impl Bench {
    fn new(devices: u32, sharing: &str) -> Self {
        Self::on(Gpus::new(devices, 128 * MIB), sharing)
    }

    fn on(gpus: Gpus, sharing: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = model::write(dir.path(), "m.safetensors", 3 * MIB + 100, 5, 1);
        let gpus = gpus.logged();
        let lines = format!(
            "enabled = \"yes\"\nstage_bytes = \"1MiB\"\nstage_slots = 2\nfill_threads = 1\n\
             sharing = \"{sharing}\""
        );
        let node = Node::start(&gpus.setup_of("", &lines).model("m", &path));
        let client = gpus.holder(&node);
        Self {
            _dir: dir,
            gpus,
            node,
            client,
            cases: 0,
        }
    }

    fn faults(&self, rules: &str) {
        self.gpus.faults_of(self.node.pid(), rules);
    }

    /// Opens on a device, and gives it back if that succeeded.
    fn open(&mut self, case: &str, device: &str) -> Value {
        let opened = self
            .client
            .ask(&json!(["open-on", "m", "m", device, 30_000]));
        if opened["ok"] == true {
            self.client.close("m");
        } else {
            let code = opened["code"].as_str().unwrap();
            let message = opened["message"].as_str().unwrap();
            assert!(CODES.contains(&code), "{case}: {opened}");
            assert!(
                message.contains("GPU-f") || message.contains("LimitNOFILE"),
                "{case}: {opened}"
            );
        }
        opened
    }

    /// Drops the model everywhere; the books must be empty then.
    fn evict(&self, case: &str) {
        eventually(case, || (self.node.number("/leases") == 0).then_some(()));
        until_at_rest(&self.node);
        let (status, body) = self.node.post("/v1/models/m/evict");
        assert!(
            status == 200 || body["error"]["code"] == "model_not_found",
            "{case}: {body}"
        );
        let status = self.node.get("/v1/status");
        for device in status["devices"]["devices"].as_array().unwrap() {
            assert_eq!(device["charged_bytes"], 0, "{case}: {device}");
            assert_eq!(device["freeing_bytes"], 0, "{case}: {device}");
            assert_eq!(device["images"], 0, "{case}: {device}");
        }
        assert_eq!(status["host"]["charged_bytes"], 0, "{case}");
    }

    /// Which functions `work` has the daemon call, and how often each.
    fn called(&mut self, work: impl FnOnce(&mut Self)) -> BTreeMap<String, usize> {
        let from = self.gpus.log_bytes();
        work(self);
        let mut counts = BTreeMap::new();
        for (function, _) in self.gpus.calls_since(self.node.pid(), from) {
            *counts.entry(function).or_default() += 1;
        }
        counts
    }

    /// Does `work` while the n-th call of `function` fails, for each n that there is.
    fn each_call(
        &mut self,
        (function, code): (&str, &str),
        nth_max: u64,
        mut work: impl FnMut(&mut Self, &str),
    ) {
        let number: u32 = code.trim_end_matches(":once").parse().unwrap();
        for nth in 1..=nth_max {
            let rule = format!(
                "{function}:{number}:{nth}{}",
                &code[number.to_string().len()..]
            );
            let from = self.gpus.log_bytes();
            self.faults(&rule);
            work(self, &rule);
            self.faults("");
            self.cases += 1;
            let calls = self.gpus.calls_since(self.node.pid(), from);
            if !calls.contains(&(function.to_owned(), number)) {
                break;
            }
        }
    }

    /// What the device has free, as another process sees it.
    fn free_bytes(&mut self) -> u64 {
        let free = self.client.must(&json!(["device-free"]))["bytes"].clone();
        free.as_u64().unwrap()
    }

    /// The devices that are said to be in this state.
    fn in_state(&self, state: &str) -> Vec<usize> {
        let status = self.node.get("/v1/status");
        let devices = status["devices"]["devices"].as_array().unwrap();
        let numbered = devices.iter().enumerate();
        let found = numbered.filter(|(_, device)| device["state"] == state);
        found.map(|(at, _)| at).collect()
    }

    /// A fill that fails, so that the daemon has no staging buffers for the next.
    fn without_ring(&mut self) {
        self.faults("cuMemcpyHtoDAsync_v2:999:1+");
        let failed = self.open("to begin with", "cuda:0");
        assert_eq!(failed["code"], "device_failed", "{failed}");
        self.faults("");
    }
}

/// Opens, closes and evicts under each fault of passing kind, at each call that this makes.
fn passing(sharing: &str, codes: &[&str]) {
    let mut bench = Bench::new(1, sharing);
    for _ in 0..2 {
        assert_eq!(bench.open("before", "cuda:0")["ok"], true);
        bench.evict("before");
    }
    let baseline = (bench.free_bytes(), bench.node.fds());
    bench.without_ring();
    let functions = bench.called(|bench| {
        bench.open("counting", "cuda:0");
        bench.evict("counting");
    });
    assert!(functions.len() > 12, "{functions:?}");
    for function in functions.keys() {
        // What cannot be unregistered is tried again when the device is looked at: seconds each.
        let few = function == "cuMemHostUnregister";
        // Around every step: each place is tried with some codes, each code at some places.
        let common = function.starts_with("cuCtx");
        for code in codes.iter().take(if few { 1 } else { codes.len() }) {
            if ["cuStreamCreate", "cuMemHostAlloc", "cuEventCreate"].contains(&function.as_str()) {
                bench.without_ring();
            }
            let nth_max = if common && !PASSING[..2].contains(code) {
                4
            } else {
                u64::MAX
            };
            bench.each_call((function, code), nth_max, |bench, case| {
                bench.open(case, "cuda:0");
                bench.evict(case);
            });
        }
        let opened = open_on(&mut bench.client, "m", "m", "cuda:0");
        assert_eq!(opened["origin"], "loaded", "{function}");
        assert_same_tensors(&mut bench.client, "m", "m");
        bench.client.close("m");
        bench.evict(function);
        assert_eq!(
            bench.free_bytes(),
            baseline.0,
            "after {function}: memory of the device"
        );
        assert_eq!(device_field(&bench.node, 0, "state"), "ready", "{function}");
    }
    eventually("no descriptor more than before", || {
        (bench.node.fds() <= baseline.1).then_some(())
    });
    assert!(bench.cases > 5 * functions.len(), "{} cases", bench.cases);
}

#[test]
fn every_call_of_a_fill_and_a_free_may_fail() {
    passing("vmm", &PASSING);
}

#[test]
fn every_call_with_legacy_handles_may_fail() {
    passing("legacy", &PASSING[..2]);
}

#[test]
fn every_call_of_a_copy_between_devices_may_fail() {
    let mut bench = Bench::new(2, "vmm");
    open_on(&mut bench.client, "first", "m", "cuda:0");
    let cycle = |bench: &mut Bench, case: &str| {
        let opened = bench.open(case, "cuda:1");
        eventually(case, || (bench.node.number("/leases") == 1).then_some(()));
        until_at_rest(&bench.node);
        opened
    };
    assert_eq!(cycle(&mut bench, "before")["origin"], "promoted");
    for code in PASSING {
        // There is no way to drop one copy alone but pressure: so each case has it copied anew.
        bench.client.close("first");
        bench.evict(code);
        open_on(&mut bench.client, "first", "m", "cuda:0");
        bench.each_call(("cuMemcpyPeerAsync", code), u64::MAX, |bench, case| {
            cycle(bench, case);
        });
        let charged = device_field(&bench.node, 1, "charged_bytes");
        assert_eq!(charged, IMAGE, "{code}: the last was not struck");
    }
    assert!(bench.cases >= 2 * PASSING.len(), "{}", bench.cases);
    open_on(&mut bench.client, "m", "m", "cuda:1");
    assert_same_tensors(&mut bench.client, "m", "m");
    assert_same_tensors(&mut bench.client, "first", "m");
}

#[test]
fn every_call_may_lose_the_device() {
    let mut bench = Bench::new(1, "vmm");
    let functions = bench.called(|bench| {
        bench.open("counting", "cuda:0");
        bench.evict("counting");
    });
    // Where no context is current yet, the pretended driver takes all devices down.
    let functions = functions
        .into_keys()
        .filter(|name| name != "cuCtxPushCurrent_v2");
    let functions: Vec<String> = functions.collect();
    assert!(functions.len() > 12, "{functions:?}");
    for (function, code) in functions.iter().zip(LASTING.iter().cycle()) {
        lose_at(function, *code);
    }
}

fn lose_at(function: &str, code: u32) {
    let mut bench = Bench::new(2, "vmm");
    let case = format!("{function}:{code}");
    let from = bench.gpus.log_bytes();
    bench.faults(&case);
    let opened = bench.open(&case, "cuda:0");
    assert!(
        opened["ok"] == true || opened["code"] == "device_lost",
        "{case}: {opened}"
    );
    bench.evict(&case);
    let calls = bench.gpus.calls_since(bench.node.pid(), from);
    assert!(
        calls.contains(&(function.to_owned(), code)),
        "{case} did not strike"
    );
    bench.faults("");
    // Use shows it. (It may have struck what looked at the other device just then.)
    for device in ["cuda:0", "cuda:1"] {
        let again = bench.open(&case, device);
        assert!(
            again["ok"] == true || again["code"] == "device_lost",
            "{case}: {again}"
        );
    }
    assert_eq!(bench.in_state("lost").len(), 1, "{case}");
    let (lost, other) = (bench.in_state("lost")[0], bench.in_state("ready")[0]);
    let refused = try_open_on(&mut bench.client, "x", "m", &uuid(lost));
    assert_eq!(refused["code"], "device_lost", "{case}: {refused}");
    // The other, and host memory, do not notice.
    open_on(&mut bench.client, "other", "m", &uuid(other));
    assert_same_tensors(&mut bench.client, "other", "m");
    bench.client.close("other");
    bench.evict(&case);
}

#[test]
fn a_lost_device_keeps_no_host_memory() {
    let gpus = Gpus::new(2, 128 * MIB).with("MRM_FAKE_CUDA_NO_PEER", "1");
    let mut bench = Bench::on(gpus, "vmm");
    // Copied twice, so that it is registered for the device's own copies.
    let functions = bench.called(|bench| {
        bench.client.open("host", "m");
        bench.open("zero", "cuda:0");
        bench.open("one", "cuda:1");
    });
    assert!(
        functions.contains_key("cuMemHostRegister_v2"),
        "{functions:?}"
    );
    bench
        .gpus
        .faults_of(bench.node.pid(), "lost:719@0,lost:719@1");
    eventually("both are lost", || {
        (bench.in_state("lost").len() == 2).then_some(())
    });
    bench.client.close("host");
    bench.evict("without devices");
    bench.client.open("host", "m");
}

#[test]
fn looking_at_devices_may_fail() {
    let mut bench = Bench::new(16, "vmm");
    let codes: Vec<u32> = [2, 1, 3, 100, 101, 200, 201, 999, 4242]
        .into_iter()
        .chain(LASTING)
        .collect();
    // Each device that is looked at gets another code; the rest are well.
    let rules: Vec<String> = (1..)
        .zip(&codes)
        .map(|(nth, code)| format!("cuMemGetInfo_v2:{code}:{nth}"))
        .collect();
    let from = bench.gpus.log_bytes();
    bench.faults(&rules.join(","));
    let struck = |bench: &Bench| {
        let calls = bench.gpus.calls_since(bench.node.pid(), from);
        codes
            .iter()
            .all(|code| calls.contains(&("cuMemGetInfo_v2".to_owned(), *code)))
    };
    eventually("each code was returned", || struck(&bench).then_some(()));
    bench.faults("");
    eventually("the lost are lost", || {
        (bench.in_state("lost").len() == LASTING.len()).then_some(())
    });
    let lost = bench.in_state("lost");
    for device in 0..16 {
        let opened = bench
            .client
            .ask(&json!(["open-on", "m", "m", uuid(device), 30_000]));
        let expected = match lost.contains(&device) {
            true => json!("device_lost"),
            false => Value::Null,
        };
        assert_eq!(opened["code"], expected, "{device}: {opened}");
        if opened["ok"] == true {
            bench.client.close("m");
        }
    }
    bench.evict("in the end");
}

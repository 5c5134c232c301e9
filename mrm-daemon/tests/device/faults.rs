//! Each call of the driver fails in turn while a device is filled: an error or a success, never a
//! panic or a hang, and all memory is given back.

use crate::machine::{calls, device, free_bytes, inject, on_machine};
use crate::model::{Model, SMALL};
use mrm_cuda::Mechanism::{self, Legacy, Vmm};
use mrm_cuda::release_deferred;
use mrm_daemon::device::{Device, DeviceSettings, Feed, FillError, Register};
use mrm_proto::error::ErrorCode;
use mrm_proto::layout::Granularity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One tensor that is worth a copy of its own, and small ones.
const ONE_LARGE: [&[u64]; 2] = [&[(1 << 20) + 5, 7, 300], &[9]];

/// Out of memory, an uncommon one, and one that no driver has.
const CODES: [u32; 3] = [2, 999, 4242];

fn open(ordinal: usize, how: Mechanism) -> Device {
    let settings = DeviceSettings {
        stage_bytes: 1 << 16,
        stage_slots: 2,
        register: Register::Always,
        ..DeviceSettings::default()
    };
    device(ordinal, how, &settings)
}

/// How often each function is called by `work`.
fn called_by(work: impl FnOnce()) -> BTreeMap<String, usize> {
    let before = calls().len();
    work();
    let mut counts = BTreeMap::new();
    for call in calls().into_iter().skip(before) {
        *counts.entry(call).or_default() += 1;
    }
    counts
}

/// The first call of a function, one in the middle and the last; all of them where they are few.
fn chosen(times: usize) -> Vec<usize> {
    match times {
        0..=4 => (1..=times).collect(),
        _ => vec![1, 2, times / 2, times],
    }
}

/// A fill from the opening of the device to its end, with a rule in its way.
fn sweep(how: Mechanism, model: &Model, granularity: Granularity, from_peer: bool) {
    let host = open(0, how);
    let order = model.order(&host, granularity, Feed::Host(model.feeds()));
    let image = Arc::new(host.fill(&order).expect("filled"));
    drop(order);
    let target = |device: &Device| {
        let feed = if from_peer {
            Feed::Peer(Arc::clone(&image))
        } else {
            Feed::Host(model.feeds())
        };
        let order = model.order(device, granularity, feed);
        let image = device.fill(&order)?;
        Ok::<_, FillError>((order, image))
    };
    let baseline = free_bytes(&open(1, how));
    let device = open(1, how);
    let functions = called_by(|| drop(target(&device).expect("no fault yet")));
    drop(device);
    let (mut failed, mut passed) = (0, 0);
    for (function, times) in functions {
        for nth in chosen(times) {
            for code in CODES {
                let what = format!("{how} {function}:{code}:{nth}");
                let device = open(1, how);
                inject(&format!("{function}:{code}:{nth}"));
                let outcome = target(&device);
                inject("");
                match outcome {
                    Ok((_, image)) => {
                        passed += 1;
                        model.check(&device, &image);
                        image.free().expect("freed");
                    }
                    Err(error) => {
                        failed += 1;
                        let known = [ErrorCode::OutOfMemory, ErrorCode::DeviceFailed];
                        assert!(known.contains(&error.code()), "{what}: {error}");
                        assert!(error.to_string().contains("GPU-"), "{what}: {error}");
                    }
                }
                assert_eq!(release_deferred(), 0, "{what}");
                assert_eq!(free_bytes(&device), baseline, "{what}");
            }
        }
    }
    // Clearing up may fail, and registering may, without the fill failing; the rest may not.
    assert!(
        failed > passed / 2 && failed > 30,
        "{failed} failed, {passed} passed"
    );
}

#[test]
fn filling_from_the_host_survives_every_failure() {
    on_machine(&[], || {
        sweep(Vmm, &Model::new(&ONE_LARGE), Granularity::Model, false);
    });
}

#[test]
fn filling_many_allocations_survives_every_failure() {
    on_machine(&[], || {
        sweep(Vmm, &Model::new(&SMALL), Granularity::Tensor, false);
    });
}

#[test]
fn filling_legacy_memory_survives_every_failure() {
    on_machine(&[], || {
        let block = Granularity::Block { block_bytes: 4096 };
        sweep(Legacy, &Model::new(&SMALL), block, false);
    });
}

#[test]
fn filling_from_a_peer_survives_every_failure() {
    on_machine(&[], || {
        sweep(Vmm, &Model::new(&SMALL), Granularity::Tensor, true);
    });
}

#[test]
fn a_failure_that_stays_loses_the_device_and_no_more() {
    // Each in a process of its own: what is lost stays lost.
    const CALLS: [&str; 8] = [
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemHostAlloc",
        "cuMemHostRegister_v2",
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuStreamSynchronize",
    ];
    on_machine(&[], || {
        let program = std::env::current_exe().expect("this test is a file");
        for rule in CALLS
            .iter()
            .map(|call| format!("{call}:719"))
            .chain(["cuMemcpyHtoDAsync_v2:700:1:async".to_owned()])
        {
            let name = "faults::one_failure_that_stays";
            let status = std::process::Command::new(&program)
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env("MRM_DEVICE_RULE", &rule)
                .status()
                .expect("a process");
            assert!(status.success(), "{rule}: {status}");
        }
    });
}

/// A part of the test above: nothing without its rule.
#[test]
fn one_failure_that_stays() {
    let Ok(rule) = std::env::var("MRM_DEVICE_RULE") else {
        return;
    };
    let model = Model::new(&ONE_LARGE);
    let (lost, well) = (open(0, Vmm), open(1, Vmm));
    let feeds = model.feeds();
    let order = model.order(&lost, Granularity::Model, Feed::Host(feeds.clone()));
    inject(&rule);
    let error = lost.fill(&order).expect_err("lost");
    assert_eq!(error.code(), ErrorCode::DeviceLost, "{rule}: {error}");
    assert!(lost.health().expect_err("lost").lost, "{rule}");
    let order = model.order(&well, Granularity::Model, Feed::Host(feeds));
    let image = well.fill(&order).expect("the other device is well");
    model.check(&well, &image);
}

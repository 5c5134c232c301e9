//! Every call of the driver fails once, with codes known and unknown: an error that names the call
//! and the code, and nothing left behind. On the fake driver only.

use crate::machine::{Agent, Machine};
use mrm_cuda::Mechanism::{self, Legacy, Vmm};

/// Out of memory, an uncommon one, and one that no driver has.
const CODES: [u32; 3] = [2, 999, 4242];

/// What is called before anything is shared.
const BEFORE: [&str; 10] = [
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuCtxPushCurrent_v2",
    "cuStreamCreate",
];

/// What an exporter calls, from allocating to freeing.
fn exporting(how: Mechanism) -> &'static [&'static str] {
    match how {
        Vmm => &[
            "cuCtxPushCurrent_v2",
            "cuMemCreate",
            "cuMemExportToShareableHandle",
            "cuMemAddressReserve",
            "cuMemMap",
            "cuMemSetAccess",
            "cuMemcpyHtoDAsync_v2",
            "cuMemsetD8Async",
            "cuStreamSynchronize",
            "cuMemUnmap",
            "cuMemAddressFree",
            "cuMemRelease",
        ],
        Legacy => &[
            "cuCtxPushCurrent_v2",
            "cuMemAlloc_v2",
            "cuIpcGetMemHandle",
            "cuMemcpyHtoDAsync_v2",
            "cuMemsetD8Async",
            "cuStreamSynchronize",
            "cuMemFree_v2",
        ],
    }
}

/// What an importer calls, from importing to closing.
fn importing(how: Mechanism) -> &'static [&'static str] {
    match how {
        Vmm => &[
            "cuCtxPushCurrent_v2",
            "cuMemImportFromShareableHandle",
            "cuMemAddressReserve",
            "cuMemMap",
            "cuMemSetAccess",
            "cuMemRelease",
            "cuMemcpyDtoHAsync_v2",
            "cuStreamSynchronize",
            "cuStreamIsCapturing",
            "cuCtxSynchronize",
            "cuMemUnmap",
            "cuMemAddressFree",
        ],
        Legacy => &[
            "cuCtxPushCurrent_v2",
            "cuIpcOpenMemHandle_v2",
            "cuMemGetAddressRange_v2",
            "cuMemcpyDtoHAsync_v2",
            "cuStreamSynchronize",
            "cuStreamIsCapturing",
            "cuCtxSynchronize",
            "cuIpcCloseMemHandle",
        ],
    }
}

#[track_caller]
fn expect_named(error: &str, call: &str, code: u32) {
    // Having no room is told in its own words; then it is not the call that matters.
    if code == 2 && error.contains("has no room for") {
        return;
    }
    assert!(error.contains(call), "{call} {code}: {error}");
    let said = match code {
        2 => "CUDA_ERROR_OUT_OF_MEMORY (2)",
        999 => "CUDA_ERROR_UNKNOWN (999)",
        _ => "error 4242",
    };
    assert!(error.contains(said), "{call} {code}: {error}");
}

/// Gives up what an agent holds, with no fault in its way; nothing is left for later.
#[track_caller]
fn settle(agent: &mut Agent, what: &str) {
    agent.inject("");
    agent.tell("forget");
    assert_eq!(agent.tell("deferred"), "0", "{what}");
}

fn export(exporter: &mut Agent, how: Mechanism) -> Result<(), String> {
    exporter.ask(&format!("allocate {how} 2097153 4"))?;
    exporter.ask_with("export", None)?;
    exporter.ask("free").map(drop)
}

fn import(importer: &mut Agent, exporter: &mut Agent) -> Result<(), String> {
    importer.import(exporter, 2_097_153)?;
    importer.ask("check 2097153 4")?;
    importer.ask("close").map(drop)
}

#[test]
fn exporting_survives_every_failure_and_leaves_nothing() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    for how in [Vmm, Legacy] {
        export(&mut agent, how).expect("no fault yet");
        let baseline = agent.free_bytes();
        for call in exporting(how) {
            for code in CODES {
                let what = format!("{how} {call} {code}");
                agent.inject(&format!("{call}:{code}"));
                let error = export(&mut agent, how).expect_err(&what);
                expect_named(&error, call, code);
                settle(&mut agent, &what);
                assert_eq!(agent.free_bytes(), baseline, "{what}");
            }
        }
        export(&mut agent, how).expect("no fault any more");
    }
}

#[test]
fn importing_survives_every_failure_and_leaves_nothing() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let (mut exporter, mut importer) = (machine.agent(), machine.agent());
    importer.tell("ready");
    for how in [Vmm, Legacy] {
        let baseline = exporter.free_bytes();
        for call in importing(how) {
            for code in CODES {
                let what = format!("{how} {call} {code}");
                exporter.tell(&format!("allocate {how} 2097153 4"));
                importer.inject(&format!("{call}:{code}"));
                let error = import(&mut importer, &mut exporter).expect_err(&what);
                expect_named(&error, call, code);
                settle(&mut importer, &what);
                import(&mut importer, &mut exporter).expect("no fault any more");
                exporter.tell("free");
                assert_eq!(exporter.free_bytes(), baseline, "{what}");
            }
        }
    }
}

#[test]
fn what_fails_again_while_it_is_undone_is_released_later() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    let baseline = agent.free_bytes();
    agent.inject("cuMemSetAccess:999,cuMemUnmap:4242:1+");
    let error = agent.ask("allocate vmm 4096 1").expect_err("access fails");
    assert!(
        error.contains("cuMemSetAccess"),
        "the first failure is told: {error}"
    );
    assert_eq!(agent.tell("deferred"), "1");
    assert!(agent.free_bytes() < baseline);
    settle(&mut agent, "later");
    assert_eq!(agent.free_bytes(), baseline);
}

#[test]
fn a_mapping_that_could_not_be_closed_is_still_good() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let (mut exporter, mut importer) = (machine.agent(), machine.agent());
    for (how, call) in [(Vmm, "cuMemUnmap"), (Legacy, "cuIpcCloseMemHandle")] {
        exporter.tell(&format!("allocate {how} 4096 6"));
        importer.import(&mut exporter, 4096).expect("an import");
        importer.inject(&format!("{call}:4242"));
        let error = importer.ask("close").expect_err("a fault");
        expect_named(&error, call, 4242);
        assert_eq!(importer.tell("check 4096 6"), "right");
        importer.tell("close");
        exporter.tell("free");
    }
}

#[test]
fn getting_ready_survives_every_failure() {
    if Machine::fake().is_none() {
        return;
    }
    for call in BEFORE {
        for code in CODES {
            let Some(machine) = Machine::fake() else {
                return;
            };
            let machine = machine.with("MRM_FAKE_CUDA_FAULTS", &format!("{call}:{code}"));
            let mut agent = machine.agent();
            let error = agent.ask("ready").expect_err(call);
            // The probe asks for the count too, and does not name the call.
            let named = if call == "cuDeviceGetCount" {
                "did not initialise"
            } else {
                call
            };
            expect_named(&error, named, code);
        }
    }
}

#[test]
fn what_is_asked_for_once_may_fail_once() {
    for code in CODES {
        let Some(machine) = Machine::fake() else {
            return;
        };
        let call = "cuMemGetAllocationGranularity";
        let mut agent = machine
            .with("MRM_FAKE_CUDA_FAULTS", &format!("{call}:{code}"))
            .agent();
        let error = export(&mut agent, Vmm).expect_err(call);
        expect_named(&error, call, code);
        export(&mut agent, Vmm).expect("no fault any more");
    }
}

#[test]
fn a_lost_device_is_an_error_and_no_more() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let (mut exporter, mut importer) = (machine.agent(), machine.agent());
    exporter.tell("allocate vmm 4096 8");
    importer.import(&mut exporter, 4096).expect("an import");
    importer.inject("lost:719");
    for command in ["check 4096 8", "close", "memory"] {
        let error = importer.ask(command).expect_err("the device is lost");
        assert!(
            error.contains("CUDA_ERROR_LAUNCH_FAILED (719)"),
            "{command}: {error}"
        );
    }
    importer.tell("forget");
    assert_eq!(exporter.tell("check 4096 8"), "right");
}

#[test]
fn a_mechanism_that_fails_is_passed_over() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    let baseline = agent.free_bytes();
    agent.inject("cuMemExportToShareableHandle:801:1+");
    let chosen = agent.tell("choose auto");
    assert!(chosen.starts_with("legacy|"), "{chosen}");
    assert!(
        chosen.contains("passed over: vmm: cannot allocate memory"),
        "{chosen}"
    );
    assert!(chosen.ends_with("|1"), "{chosen}");
    let error = agent.ask("choose vmm").expect_err("vmm does not work");
    assert!(error.contains("set device.sharing = \"auto\""), "{error}");
    agent.inject("cuMemExportToShareableHandle:801:1+,cuIpcGetMemHandle:801:1+");
    let error = agent.ask("choose auto").expect_err("nothing works");
    assert!(
        error.contains("vmm: ") && error.contains("legacy: "),
        "{error}"
    );
    settle(&mut agent, "chosen");
    assert_eq!(agent.free_bytes(), baseline);
    // A child that cannot open what its parent could export.
    let rules = "cuMemImportFromShareableHandle:800:1+";
    let Some(machine) = Machine::fake() else {
        return;
    };
    let chosen = machine
        .with("MRM_FAKE_CUDA_FAULTS", rules)
        .agent()
        .tell("choose auto");
    assert!(chosen.starts_with("legacy|"), "{chosen}");
    assert!(chosen.contains("the self-test failed: "), "{chosen}");
}

#[test]
fn a_device_without_vmm_is_shared_by_legacy_handles() {
    for lacking in ["MRM_FAKE_CUDA_NO_VMM", "MRM_FAKE_CUDA_NO_POSIX_FD"] {
        let Some(machine) = Machine::fake() else {
            return;
        };
        let mut agent = machine.with(lacking, "1").agent();
        let chosen = agent.tell("choose auto");
        assert!(chosen.starts_with("legacy|"), "{chosen}");
        assert!(chosen.contains("does not support"), "{chosen}");
    }
}

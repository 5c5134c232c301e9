//! Filling memory beside the caller: the same on the fake driver and on hardware, but for the faults.

use crate::machine::{Agent, Machine};
use mrm_cuda::Mechanism::{self, Legacy, Vmm};
use mrm_cuda::{CudaError, RegisterError, ShareError, UploadError};

const BOTH: [Mechanism; 2] = [Vmm, Legacy];

/// How often the agent called `function`, by the fake driver's log.
fn calls(log: &std::path::Path, function: &str) -> usize {
    let text = std::fs::read_to_string(log).expect("a log");
    text.lines()
        .filter(|line| line.split(' ').nth(1) == Some(function))
        .count()
}

#[track_caller]
fn expect_right(agent: &mut Agent, bytes: u64, seed: u64) {
    assert_eq!(agent.tell(&format!("check {bytes} {seed}")), "right");
    agent.tell("free");
}

#[test]
fn every_byte_gets_through_the_ring() {
    let Some(machine) = Machine::find() else {
        return;
    };
    // Each copy is slow: a slot that was filled again too early would be seen.
    let machine = machine.with("MRM_FAKE_CUDA_DELAY_US", "2000");
    let mut agent = machine.agent();
    let baseline = agent.free_bytes();
    for how in BOTH {
        for slots in [1, 2, 3] {
            agent.tell(&format!("up ring 65536 {slots}"));
            for bytes in [1, 65_536, 1_000_003] {
                agent.tell(&format!("up stage {how} {bytes} {slots}"));
                expect_right(&mut agent, bytes, slots);
            }
        }
    }
    agent.tell("forget");
    agent.await_free_bytes(baseline);
    for ring in ["up ring 0 2", "up ring 4096 0"] {
        let error = agent.ask(ring).expect_err("no such ring");
        assert!(error.contains("zero bytes"), "{error}");
    }
}

#[test]
fn an_upload_waits_for_slots_and_once_at_its_end() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let log = machine.dir().join("log");
    let mut agent = machine
        .with("MRM_FAKE_CUDA_LOG", log.to_str().expect("a path of text"))
        .agent();
    agent.tell("up ring 1000 4");
    let count = |name: &str| calls(&log, name);
    let names = [
        "cuMemcpyHtoDAsync_v2",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemsetD8Async",
        "cuStreamSynchronize",
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuStreamCreate",
    ];
    let before = names.map(count);
    agent.tell("up stage vmm 10000 1");
    let after = names.map(count);
    let made: Vec<usize> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    // Ten copies, of which the fifth is the first that finds its slot used; the rest is zeroed.
    assert_eq!(made, [10, 10, 6, 1, 1, 0, 0, 0]);
    expect_right(&mut agent, 10_000, 1);
}

#[test]
fn allocations_in_a_row_are_waited_for_once_all_were_started() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let log = machine.dir().join("log");
    let fake = machine.is_fake();
    let mut agent = machine
        .with("MRM_FAKE_CUDA_LOG", log.to_str().expect("a path of text"))
        .with("MRM_FAKE_CUDA_DELAY_US", "2000")
        .agent();
    agent.tell("up ring 20000 2");
    let baseline = agent.free_bytes();
    for how in BOTH {
        let before = fake.then(|| {
            std::fs::read_to_string(&log)
                .expect("a log")
                .lines()
                .count()
        });
        assert_eq!(agent.tell(&format!("up row {how} 50003 4")), "4");
        expect_right(&mut agent, 50_003, 3);
        agent.await_free_bytes(baseline);
        let Some(before) = before else { continue };
        let text = std::fs::read_to_string(&log).expect("a log");
        let made: Vec<&str> = text
            .lines()
            .skip(before)
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        let copied = made
            .iter()
            .rposition(|call| *call == "cuMemcpyHtoDAsync_v2");
        let waited = made.iter().position(|call| *call == "cuStreamSynchronize");
        assert!(copied.is_some() && copied < waited, "{how}: {made:?}");
        for rule in [
            "cuMemcpyHtoDAsync_v2:999:7",
            "cuMemsetD8Async:999:3",
            "cuStreamSynchronize:999:2",
        ] {
            agent.inject(rule);
            let error = agent.ask(&format!("up row {how} 50003 4")).expect_err(rule);
            assert!(error.contains("999"), "{rule}: {error}");
            agent.inject("");
            assert_eq!(agent.tell("deferred"), "0", "{how} {rule}");
            assert_eq!(agent.free_bytes(), baseline, "{how} {rule}");
        }
    }
}

#[test]
fn what_is_copied_from_is_kept_until_it_was_copied() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.with("MRM_FAKE_CUDA_DELAY_US", "2000").agent();
    agent.tell("up ring 65536 1");
    for how in BOTH {
        match agent.ask("up register 3000001 6") {
            Ok(_) => {
                assert_eq!(agent.tell("up owners"), "1");
                let told = agent.tell(&format!("up registered {how} 3000001"));
                assert_eq!(told, "1 0", "{how}: owners before and after the end");
                expect_right(&mut agent, 3_000_001, 6);
            }
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
        let told = agent.tell(&format!("up peer {how} 3000001 8"));
        let told = told.strip_prefix("1 0 ").expect("kept, then let go");
        if told == "false" {
            eprintln!("SKIPPED in part: one device, so it copied to itself");
        }
        expect_right(&mut agent, 3_000_001, 8);
    }
}

#[test]
fn misuse_is_refused_and_starts_nothing() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.agent();
    agent.tell("up ring 4096 2");
    agent.tell("up register 5000 1");
    let outside = |range: &str, bytes: u64| {
        format!("bytes {range} are outside an allocation of {bytes} bytes")
    };
    let max = u64::MAX;
    let expected = [
        // The range was right, so it is filled, and that fails.
        "cannot fill a staging buffer: it was filled".to_owned(),
        outside(&format!("{max}..+1"), 10_000),
        "4097 bytes do not fit into a slot of 4096 bytes".to_owned(),
        "cannot fill a staging buffer: the disk is gone".to_owned(),
        outside("0..+5001", 5000),
        outside("5000..+1", 5000),
        outside(&format!("9..+{max}"), 5000),
        outside(&format!("{}..+1", max - 1), 5000),
        outside("0..+4097", 4096),
        outside(&format!("9..+{max}"), 4096),
        outside("9999..+2", 10_000),
        outside("9999..+2", 10_000),
    ];
    for how in BOTH {
        let told = agent.tell(&format!("up misuse {how}"));
        let told: Vec<&str> = told.split('|').collect();
        // 10001 - 4096 is where the first begins: its end is one byte too far.
        let first = outside("5905..+4096", 10_000);
        assert_eq!(told[0], first);
        assert_eq!(told[1..], expected[1..]);
        expect_right(&mut agent, 10_000, 5);
    }
}

#[test]
fn a_failed_registration_leaves_nothing_behind() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.agent();
    if let Err(error) = agent.ask("up register 5000 1") {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let error = agent.ask("up register 0 1").expect_err("no bytes");
    assert!(error.contains("zero bytes"), "{error}");
    let error = agent
        .ask("up register-twice 9000")
        .expect_err("it is registered");
    assert!(error.contains("cuMemHostRegister_v2"), "{error}");
    assert!(error.ends_with("lost: false"), "{error}");
    assert_eq!(agent.tell("up owners"), "1", "only the first is left");
    // The error was its own, and no later call's.
    agent.tell("up ring 4096 2");
    agent.tell("up registered vmm 5000");
    expect_right(&mut agent, 5000, 1);
    assert_eq!(agent.tell("up owners"), "0");
    assert_eq!(agent.tell("deferred"), "0");
}

#[test]
fn a_device_that_cannot_register_read_only_memory_is_not_asked_to() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let log = machine.dir().join("log");
    let mut agent = machine
        .with("MRM_FAKE_CUDA_NO_READ_ONLY_REGISTER", "1")
        .with("MRM_FAKE_CUDA_LOG", log.to_str().expect("a path of text"))
        .agent();
    let error = agent.ask("up register 5000 1").expect_err("it cannot");
    assert!(
        error.contains("READ_ONLY_HOST_REGISTER_SUPPORTED is 0"),
        "{error}"
    );
    assert_eq!(calls(&log, "cuMemHostRegister_v2"), 0);
    assert_eq!(agent.tell("up owners"), "0");
    agent.tell("up ring 4096 2");
    agent.tell("up stage vmm 5000 1");
    expect_right(&mut agent, 5000, 1);
}

#[test]
fn an_upload_that_is_given_up_frees_its_memory() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.with("MRM_FAKE_CUDA_DELAY_US", "2000").agent();
    agent.tell("up ring 65536 3");
    let baseline = agent.free_bytes();
    for how in BOTH {
        agent.tell(&format!("up abandon {how} 500000"));
        assert_eq!(agent.tell("deferred"), "0");
        agent.await_free_bytes(baseline);
        agent.tell(&format!("up stage {how} 500000 2"));
        expect_right(&mut agent, 500_000, 2);
    }
}

#[test]
fn memory_is_not_freed_under_copies_that_cannot_be_waited_for() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let log = machine.dir().join("log");
    let mut agent = machine
        .with("MRM_FAKE_CUDA_LOG", log.to_str().expect("a path of text"))
        .agent();
    let freed = || {
        [
            "cuMemUnmap",
            "cuMemFree_v2",
            "cuMemRelease",
            "cuMemFreeHost",
        ]
        .map(|name| calls(&log, name))
    };
    for how in BOTH {
        agent.tell("up ring 65536 3");
        let baseline = agent.free_bytes();
        let before = freed();
        agent.inject("cuStreamSynchronize:999:1+");
        agent.tell(&format!("up abandon {how} 100000"));
        assert_eq!(agent.tell("deferred"), "1", "{how}");
        // Two of the ring's slots were used, and go the same way.
        agent.tell("up ring 65536 1");
        assert_eq!(agent.tell("deferred"), "3", "{how}");
        let after = freed();
        assert_eq!(after[..3], before[..3], "{how}: nothing of the device");
        assert_eq!(after[3], before[3] + 1, "{how}: the slot that was not used");
        assert!(agent.free_bytes() < baseline, "{how}");
        agent.inject("");
        assert_eq!(agent.tell("deferred"), "0", "{how}");
        assert_eq!(agent.free_bytes(), baseline, "{how}");
    }
}

/// What an upload calls, and how often it may fail.
const UPLOADING: [(&str, u32); 12] = [
    ("cuCtxPushCurrent_v2", 3),
    ("cuStreamCreate", 2),
    ("cuMemHostAlloc", 2),
    ("cuEventCreate", 2),
    ("cuMemHostRegister_v2", 1),
    ("cuEventQuery", 1),
    ("cuEventSynchronize", 1),
    ("cuMemcpyHtoDAsync_v2", 4),
    ("cuEventRecord", 3),
    ("cuMemcpyPeerAsync", 1),
    ("cuMemsetD8Async", 2),
    ("cuStreamSynchronize", 2),
];

#[test]
fn an_upload_survives_every_failure_and_leaves_nothing() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    for how in BOTH {
        // More than a third goes through two slots, so that both are used twice.
        let all = format!("up all {how} 350003 4");
        agent.tell(&all);
        expect_right(&mut agent, 350_003, 4);
        let baseline = agent.free_bytes();
        for (call, times) in UPLOADING {
            for (nth, code) in (1..=times).flat_map(|nth| [2, 999, 4242].map(|code| (nth, code))) {
                let what = format!("{how} {call}:{code}:{nth}");
                agent.inject(&format!("{call}:{code}:{nth}"));
                let error = agent.ask(&all).expect_err(&what);
                assert!(
                    error.contains(call) || error.contains("has no room for"),
                    "{what}: {error}"
                );
                assert!(!error.ends_with("lost: true"), "{what}: {error}");
                agent.inject("");
                agent.tell("forget");
                assert_eq!(agent.tell("deferred"), "0", "{what}");
                assert_eq!(agent.tell("up owners"), "0", "{what}");
                assert_eq!(agent.free_bytes(), baseline, "{what}");
            }
        }
        agent.tell(&all);
        expect_right(&mut agent, 350_003, 4);
    }
}

#[test]
fn a_slot_whose_copy_was_not_marked_is_waited_for_all_the_same() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.with("MRM_FAKE_CUDA_DELAY_US", "2000").agent();
    agent.tell("up ring 65536 1");
    agent.inject("cuEventRecord:999:2");
    let error = agent.tell("up stage-on vmm 300000 7");
    assert!(error.contains("cuEventRecord"), "{error}");
    expect_right(&mut agent, 300_000, 7);
}

#[test]
fn what_is_not_given_back_is_tried_again() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    agent.tell("ready");
    let baseline = agent.free_bytes();
    for call in ["cuMemHostUnregister", "cuMemFreeHost", "cuMemUnmap"] {
        agent.inject(&format!("{call}:4242:1+"));
        // These fail behind the caller's back, and spoil nothing.
        agent.tell("up all vmm 3000003 4");
        assert_eq!(agent.tell("check 3000003 4"), "right");
        agent.tell("forget");
        assert_ne!(agent.tell("deferred"), "0", "{call}");
        let kept = if call == "cuMemHostUnregister" {
            "1"
        } else {
            "0"
        };
        assert_eq!(agent.tell("up owners"), kept, "{call}");
        agent.inject("");
        assert_eq!(agent.tell("deferred"), "0", "{call}");
        assert_eq!(agent.tell("up owners"), "0", "{call}");
        assert_eq!(agent.free_bytes(), baseline, "{call}");
    }
}

#[test]
fn a_lost_device_is_told_as_lost() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    for rule in [
        "cuMemcpyHtoDAsync_v2:719:2",
        "cuMemcpyHtoDAsync_v2:700:2:async",
        "lost:214",
    ] {
        let mut agent = machine.agent();
        agent.tell("up ring 4096 2");
        agent.inject(rule);
        let error = agent.ask("up stage vmm 50000 3").expect_err(rule);
        assert!(error.ends_with("; lost: true"), "{rule}: {error}");
        // Nothing can be given back, and trying harms nothing.
        agent.tell("forget");
        assert_ne!(agent.tell("deferred"), "0", "{rule}");
        agent.ask("memory").expect_err(rule);
    }
}

#[test]
fn uploads_may_be_done_by_any_thread() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<mrm_cuda::Upload<'static>>();
    sent::<mrm_cuda::Ending>();
    sent::<mrm_cuda::Ring>();
    sent::<mrm_cuda::Allocation>();
    shared::<mrm_cuda::Sealed>();
    shared::<mrm_cuda::Registered<Vec<u8>>>();
}

#[test]
fn codes_that_lose_the_device_are_told_apart() {
    let lost: Vec<u32> = (0..1100)
        .filter(|code| CudaError::new(*code).device_lost())
        .collect();
    let expected = [
        214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911,
    ];
    assert_eq!(lost, expected);
    assert_eq!(ShareError::Empty.cuda(), None);
    assert_eq!(RegisterError::Empty.cuda(), None);
    let uuid = mrm_cuda::DeviceUuid([0; 16]);
    let source = mrm_cuda::CallError::Driver {
        call: "cuMemcpyHtoDAsync_v2",
        error: CudaError::new(700),
    };
    let share = ShareError::Call {
        doing: "copy to memory",
        device: uuid,
        source,
    };
    assert_eq!(share.cuda(), Some(CudaError::new(700)));
    assert_eq!(UploadError::<String>::Share(share).cuda(), source.cuda());
    assert_eq!(UploadError::Fill("no disk").cuda(), None);
    assert_eq!(mrm_cuda::DeviceError::Call(source).cuda(), source.cuda());
}

#[test]
fn several_exports_are_imported_together_or_not_at_all() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut exporter, mut importer) = (machine.agent(), machine.agent());
    importer.tell("ready");
    for how in BOTH {
        exporter.tell(&format!("allocate {how} 4096 2"));
        let export = exporter.ask_with("export", None).expect("an export");
        let fd = || export.fd.as_ref().map(std::os::fd::AsFd::as_fd);
        let import = |importer: &mut Agent, count: usize, state: &str| {
            let command = format!("import-all 4096 {count} {state} {}", export.text);
            importer.ask_with(&command, fd()).map(|answer| answer.text)
        };
        let error = import(&mut importer, 4, "bad").expect_err("the last is none");
        assert!(error.contains("cannot import memory"), "{error}");
        assert_eq!(importer.tell("deferred"), "0");
        assert_eq!(import(&mut importer, 4, "good").as_deref(), Ok("3"));
        assert_eq!(importer.tell("check 4096 2"), "right");
        importer.tell("forget");
        assert_eq!(import(&mut importer, 1, "good").as_deref(), Ok("0"));
        importer.tell("close");
        exporter.tell("free");
    }
}

#[test]
fn devices_say_where_they_are_and_whom_they_read() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let fake = machine.is_fake();
    let mut agent = machine.agent();
    for line in agent.tell("devices").lines() {
        let id = line.split(' ').nth(7).expect("a place on the bus");
        let parts: Vec<&str> = id.split([':', '.']).collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [4, 2, 2, 1],
            "{id}"
        );
        let hex = |part: &&str| u32::from_str_radix(part, 16).is_ok();
        assert!(parts.iter().all(hex) && id.to_lowercase() == id, "{id}");
    }
    let told = agent.tell("up devices");
    let parts: Vec<&str> = told.split('|').collect();
    assert_eq!(parts[0], "false", "a device is no peer of itself");
    if parts.len() == 2 {
        eprintln!("SKIPPED in part: one device");
        return;
    }
    assert!(
        parts[3].contains("cannot be filled through a ring of device GPU-"),
        "{told}"
    );
    if fake {
        assert_eq!(parts[1..3], ["true", "true"]);
        let Some(machine) = Machine::fake() else {
            return;
        };
        let mut apart = machine.with("MRM_FAKE_CUDA_NO_PEER", "1").agent();
        let told = apart.tell("up devices");
        assert!(told.starts_with("false|false|false|"), "{told}");
        // Copies go through the host then.
        apart.tell("up ring 4096 1");
        assert_eq!(apart.tell("up peer vmm 5000 3"), "1 0 true");
        expect_right(&mut apart, 5000, 3);
    }
}

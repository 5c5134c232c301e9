//! What both mechanisms must do, across processes: the same on the fake driver and on hardware
//! (`MRM_TEST_CUDA=hardware cargo test -p mrm-cuda --test conformance -- --test-threads=1`).

use crate::machine::Machine;
use mrm_cuda::Mechanism::{self, Legacy, Vmm};
use std::os::fd::AsFd;

const MIB: u64 = 1 << 20;
const BOTH: [Mechanism; 2] = [Vmm, Legacy];

#[test]
fn importers_read_every_byte_that_was_written() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let mut importers = [machine.agent(), machine.agent()];
    for how in BOTH {
        for bytes in [1, 4096, 2 * MIB, 5 * MIB + 13] {
            exporter.tell(&format!("allocate {how} {bytes} 7"));
            for importer in &mut importers {
                importer.import(&mut exporter, bytes).expect("an import");
                assert_eq!(
                    importer.tell(&format!("check {bytes} 7")),
                    "right",
                    "{how} {bytes}"
                );
            }
            for importer in &mut importers {
                importer.tell("close");
            }
            exporter.tell("free");
        }
    }
}

#[test]
fn what_was_there_before_is_not_lent() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let mut importer = machine.agent();
    for how in BOTH {
        let charged: u64 = exporter
            .tell(&format!("allocate {how} 4096 9"))
            .parse()
            .unwrap();
        // The whole block is what an importer can reach.
        importer.import(&mut exporter, charged).expect("an import");
        let all = importer
            .ask(&format!("check {charged} 9"))
            .expect_err("the rest is zero");
        assert_eq!(all, "byte 4096 is wrong", "{how}");
        importer.tell("close");
        exporter.tell("free");
    }
}

#[test]
fn a_write_through_a_read_only_mapping_harms_nobody() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let (mut writer, mut reader) = (machine.agent(), machine.agent());
    exporter.tell("allocate vmm 8192 3");
    writer.import(&mut exporter, 8192).expect("an import");
    reader.import(&mut exporter, 8192).expect("an import");
    // An error, or the writer's death: only that it succeeds is wrong.
    let error = writer.ask("write").expect_err("the mapping is read-only");
    eprintln!("the write: {error}");
    assert_eq!(reader.tell("check 8192 3"), "right");
    assert_eq!(exporter.tell("check 8192 3"), "right");
}

#[test]
fn vmm_importers_keep_the_bytes_of_a_killed_exporter() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let (mut early, mut late) = (machine.agent(), machine.agent());
    early.tell("ready");
    exporter.tell("ready");
    let baseline = late.free_bytes();
    exporter.tell("allocate vmm 3000000 5");
    early.import(&mut exporter, 3_000_000).expect("an import");
    let export = exporter.ask_with("export", None).expect("an export");
    exporter.kill();
    assert_eq!(early.tell("check 3000000 5"), "right");
    // A descriptor alone keeps them too.
    early.kill();
    let fd = export.fd.expect("a descriptor");
    late.ask_with("import 3000000 vmm", Some(fd.as_fd()))
        .expect("an import");
    assert_eq!(late.tell("check 3000000 5"), "right");
    late.tell("close");
    drop(fd);
    // What the processes that died took for themselves is back as well, so there may be more.
    let end = std::time::Instant::now() + crate::machine::DEADLINE;
    while late.free_bytes() < baseline {
        assert!(
            std::time::Instant::now() < end,
            "the memory is free when nobody holds it"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_importer_leaves_no_memory_behind() {
    let Some(machine) = Machine::find() else {
        return;
    };
    for how in BOTH {
        let mut exporter = machine.agent();
        let baseline = exporter.free_bytes();
        for round in 0..3 {
            exporter.tell(&format!("allocate {how} {} {round}", 8 * MIB));
            assert!(
                exporter.free_bytes() <= baseline - 8 * MIB,
                "{how}: it takes memory"
            );
            let mut importer = machine.agent();
            importer.import(&mut exporter, 8 * MIB).expect("an import");
            if round == 1 && how == Vmm {
                // Freed while it is mapped elsewhere, which legacy handles forbid.
                exporter.tell("free");
                importer.kill();
            } else {
                importer.kill();
                exporter.tell("free");
            }
            exporter.await_free_bytes(baseline);
        }
    }
}

#[test]
fn another_size_is_refused() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let mut importer = machine.agent();
    for how in BOTH {
        exporter.tell(&format!("allocate {how} {} 1", 2 * MIB));
        let error = importer
            .import(&mut exporter, 9 * MIB)
            .expect_err("more than there is");
        assert!(
            error.contains("not the 9437184 bytes that were said"),
            "{how}: {error}"
        );
        let error = importer.import(&mut exporter, 0).expect_err("nothing");
        assert!(error.contains("zero bytes"), "{how}: {error}");
        // The refusal spoilt nothing.
        importer.import(&mut exporter, 2 * MIB).expect("an import");
        assert_eq!(importer.tell(&format!("check {} 1", 2 * MIB)), "right");
        importer.tell("close");
        exporter.tell("free");
    }
}

#[test]
fn an_export_of_the_other_mechanism_is_refused() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.agent();
    let null = std::fs::File::open("/dev/null").expect("a file");
    let error = agent
        .ask_with("import 4096 vmm", Some(null.as_fd()))
        .expect_err("no device memory");
    assert!(
        error.starts_with("cannot import memory on device GPU-"),
        "{error}"
    );
    let handle = "00".repeat(64);
    let error = agent
        .ask(&format!("import 4096 legacy {handle}"))
        .expect_err("no handle");
    assert!(error.contains("cuIpcOpenMemHandle_v2"), "{error}");
    agent.tell("allocate vmm 4096 1");
}

#[test]
fn no_room_is_an_error_like_any_other() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.agent();
    let baseline = agent.free_bytes();
    for how in BOTH {
        for bytes in [baseline + 64 * MIB, u64::MAX - 5] {
            // Only the refusal is of interest: it comes before anything is copied.
            let error = agent
                .ask(&format!("reserve {how} {bytes}"))
                .expect_err("no room");
            assert!(error.contains("has no room for"), "{how} {bytes}: {error}");
            assert!(error.contains("evict something"), "{how} {bytes}: {error}");
        }
        agent.tell(&format!("allocate {how} 4096 1"));
        agent.tell("free");
        agent.await_free_bytes(baseline);
    }
}

#[test]
fn closing_is_refused_while_a_stream_is_captured() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    for how in BOTH {
        let mut importer = machine.agent();
        exporter.tell(&format!("allocate {how} 4096 2"));
        for stream in ["blocking", "nonblocking"] {
            importer.import(&mut exporter, 4096).expect("an import");
            importer.tell(&format!("capture {stream}"));
            let error = importer
                .ask("close naming")
                .expect_err("a stream is captured");
            assert!(error.contains("being captured"), "{how} {stream}: {error}");
            // It was noticed without spoiling the capture.
            importer.tell("end");
            assert_eq!(importer.tell("check 4096 2"), "right");
            importer.tell("capture blocking");
            let error = importer.ask("close").expect_err("a stream is captured");
            assert!(error.contains("being captured"), "{how} {stream}: {error}");
            // The default stream told of it, and it was not spoilt either.
            importer.tell("end");
            assert_eq!(importer.tell("check 4096 2"), "right");
            importer.tell("close");
        }
        exporter.tell("free");
    }
}

#[test]
fn a_mapping_dropped_during_a_capture_is_closed_later() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    for how in BOTH {
        let mut importer = machine.agent();
        exporter.tell(&format!("allocate {how} 4096 2"));
        importer.import(&mut exporter, 4096).expect("an import");
        importer.tell("capture blocking");
        importer.tell("forget");
        assert_eq!(importer.tell("deferred"), "1", "{how}");
        importer.tell("end");
        assert_eq!(importer.tell("deferred"), "0", "{how}");
        exporter.tell("free");
    }
}

#[test]
fn a_fork_is_refused_and_harms_nothing() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut exporter, mut importer) = (machine.agent(), machine.agent());
    for how in BOTH {
        exporter.tell(&format!("allocate {how} 4096 2"));
        importer.import(&mut exporter, 4096).expect("an import");
        assert_eq!(exporter.tell("fork"), "true", "{how}");
        assert_eq!(importer.tell("fork"), "true", "{how}");
        assert_eq!(importer.tell("check 4096 2"), "right", "{how}");
        importer.tell("close");
        exporter.tell("free");
    }
}

#[test]
fn the_current_context_stays_the_callers() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut exporter = machine.agent();
    let mut importer = machine.agent();
    let (ours, theirs) = (exporter.tell("current"), importer.tell("current"));
    for how in BOTH {
        exporter.tell(&format!("allocate {how} 4096 2"));
        importer.import(&mut exporter, 4096).expect("an import");
        importer.import(&mut exporter, 0).expect_err("nothing");
        importer.tell("close");
        exporter.tell("free");
        assert_eq!(exporter.tell("current"), ours, "{how}");
        assert_eq!(importer.tell("current"), theirs, "{how}");
    }
}

#[test]
fn the_choice_is_proven_in_a_child() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut agent = machine.agent();
    let baseline = agent.free_bytes();
    for (setting, mechanism) in [("auto", "vmm"), ("vmm", "vmm"), ("legacy", "legacy")] {
        let chosen = agent.tell(&format!("choose {setting}"));
        let parts: Vec<&str> = chosen.split('|').collect();
        assert_eq!((parts[0], parts[2]), (mechanism, "0"), "{chosen}");
        assert!(parts[1].contains("read every byte right"), "{chosen}");
    }
    agent.await_free_bytes(baseline);
    let error = agent.ask("choose best").expect_err("no such setting");
    assert!(error.contains("must be auto, vmm or legacy"), "{error}");
}

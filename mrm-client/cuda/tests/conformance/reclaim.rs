//! Memory that outlives the process that allocated it, taken over by the next: on the fake driver
//! and on hardware; the failures on the fake driver only.

use crate::machine::{Agent, Machine};
use std::os::fd::{AsFd, OwnedFd};

const MIB: u64 = 1 << 20;

/// What an agent exports, in the keeping of this process, which never touches the driver.
#[track_caller]
fn kept(owner: &mut Agent) -> OwnedFd {
    let export = owner.ask_with("export", None).expect("an export");
    assert_eq!(export.text, "vmm");
    export.fd.expect("a descriptor")
}

fn reclaim(next: &mut Agent, kept: &OwnedFd, bytes: u64) -> Result<u64, String> {
    let answer = next.ask_with(&format!("reclaim {bytes} vmm"), Some(kept.as_fd()))?;
    Ok(answer.text.parse().expect("a number"))
}

#[test]
fn the_next_process_lends_what_a_killed_one_left() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let mut importer = machine.agent();
    for bytes in [1, 2 * MIB, 5 * MIB + 13] {
        let mut owner = machine.agent();
        owner.tell("ready");
        let baseline = importer.free_bytes();
        let charged = owner.tell(&format!("allocate vmm {bytes} 11"));
        let charged: u64 = charged.parse().expect("a number");
        // It is handed on more than once.
        for _ in 0..3 {
            let keeper = kept(&mut owner);
            owner.kill();
            owner = machine.agent();
            assert_eq!(reclaim(&mut owner, &keeper, bytes), Ok(charged));
            drop(keeper);
            assert_eq!(owner.tell(&format!("check {bytes} 11")), "right");
            importer.import(&mut owner, bytes).expect("an import");
            assert_eq!(importer.tell(&format!("check {bytes} 11")), "right");
            importer.tell("close");
        }
        assert!(
            importer.free_bytes() <= baseline - charged,
            "it was there all the time"
        );
        owner.tell("free");
        importer.await_free_bytes(baseline);
    }
}

#[test]
fn what_was_there_before_stays_hidden() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut owner, mut next) = (machine.agent(), machine.agent());
    let mut importer = machine.agent();
    let charged = owner.tell("allocate vmm 4096 9");
    let keeper = kept(&mut owner);
    owner.kill();
    reclaim(&mut next, &keeper, 4096).expect("taken over");
    let whole = charged.parse().expect("a number");
    importer.import(&mut next, whole).expect("an import");
    let all = importer.ask(&format!("check {charged} 9"));
    assert_eq!(all, Err("byte 4096 is wrong".to_owned()));
}

#[test]
fn nobody_writes_to_what_was_taken_over() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut owner, mut next) = (machine.agent(), machine.agent());
    owner.tell("allocate vmm 8192 3");
    let keeper = kept(&mut owner);
    owner.kill();
    reclaim(&mut next, &keeper, 8192).expect("taken over");
    let mut writer = machine.agent();
    writer.import(&mut next, 8192).expect("an import");
    // An error, or the writer's death: only that it succeeds is wrong.
    let error = writer.ask("write").expect_err("the mapping is read-only");
    eprintln!("the write: {error}");
    assert_eq!(next.tell("check 8192 3"), "right");
}

#[test]
fn what_is_not_what_was_said_is_refused() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut owner, mut next) = (machine.agent(), machine.agent());
    owner.tell(&format!("allocate vmm {} 1", 2 * MIB));
    let keeper = kept(&mut owner);
    let error = reclaim(&mut next, &keeper, 9 * MIB).expect_err("more than there is");
    assert!(
        error.contains("not the 9437184 bytes that were said"),
        "{error}"
    );
    let error = reclaim(&mut next, &keeper, 0).expect_err("nothing");
    assert!(error.contains("zero bytes"), "{error}");
    let null: OwnedFd = std::fs::File::open("/dev/null").expect("a file").into();
    let error = reclaim(&mut next, &null, 4096).expect_err("no device memory");
    assert!(
        error.starts_with("cannot reclaim memory on device GPU-"),
        "{error}"
    );
    // The refusals spoilt nothing.
    reclaim(&mut next, &keeper, 2 * MIB).expect("taken over");
    assert_eq!(next.tell(&format!("check {} 1", 2 * MIB)), "right");
}

#[test]
fn legacy_memory_is_gone_and_the_error_says_so() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let (mut owner, mut next) = (machine.agent(), machine.agent());
    owner.tell("allocate legacy 4096 1");
    let export = owner.ask_with("export", None).expect("an export").text;
    owner.kill();
    let error = next.ask(&format!("reclaim 4096 {export}"));
    let error = error.expect_err("it is gone");
    assert!(error.contains("is gone with the process"), "{error}");
    assert!(error.contains("load it again"), "{error}");
}

#[test]
fn taking_over_survives_every_failure_and_leaves_nothing() {
    const CALLS: [&str; 8] = [
        "cuCtxPushCurrent_v2",
        "cuMemImportFromShareableHandle",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemRelease",
        "cuMemUnmap",
        "cuMemAddressFree",
    ];
    let Some(machine) = Machine::fake() else {
        return;
    };
    let (mut owner, mut next) = (machine.agent(), machine.agent());
    next.tell("ready");
    let baseline = owner.free_bytes();
    let take_over = |next: &mut Agent, keeper: &OwnedFd| {
        reclaim(next, keeper, 2_097_153)?;
        next.ask("free")
    };
    for call in CALLS {
        // Out of memory, an uncommon one, and one that no driver has.
        for code in [2, 999, 4242] {
            let what = format!("{call} {code}");
            owner.tell("allocate vmm 2097153 4");
            let keeper = kept(&mut owner);
            owner.tell("free");
            next.inject(&format!("{call}:{code}"));
            let error = take_over(&mut next, &keeper).expect_err(&what);
            assert!(error.contains(call), "{what}: {error}");
            next.inject("");
            next.tell("forget");
            assert_eq!(next.tell("deferred"), "0", "{what}");
            reclaim(&mut next, &keeper, 2_097_153).expect("no fault any more");
            assert_eq!(next.tell("check 2097153 4"), "right", "{what}");
            drop(keeper);
            next.tell("free");
            assert_eq!(owner.free_bytes(), baseline, "{what}");
        }
    }
}

#[test]
fn a_process_without_descriptors_says_so() {
    let Some(machine) = Machine::fake() else {
        return;
    };
    let mut agent = machine.agent();
    agent.tell("allocate vmm 4096 1");
    let baseline = agent.free_bytes();
    // The fake driver takes one for the memory itself.
    agent.tell("crowd 1");
    let error = agent.ask("reserve vmm 4096").expect_err("none is left");
    assert!(error.contains("no descriptor is left"), "{error}");
    agent.tell("forget");
    assert!(agent.free_bytes() > baseline);
    agent.tell("allocate vmm 4096 1");
}

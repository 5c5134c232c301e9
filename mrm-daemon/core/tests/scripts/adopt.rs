//! What a daemon takes over from the last one, and the leases of clients that come back.

use crate::support::{Script, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::violation::Violation;

/// m1 = table a, file b, image i on d0; all of it is there.
const LEFT: &str = "
    > adopt m1 v1 a=1 b:4 i@5/2 has a/c1 b/c2 i.d0/c3 until 500
    adopted s1 a
    adopted s2 b
    adopted s3 i on d0
    > session 1
";

#[track_caller]
fn script(limit: u64, text: &str) -> Script {
    let mut script = Script::new(with_devices(limit, &[6]));
    script.run(LEFT).run(text);
    script
}

#[test]
fn what_was_left_is_a_hit_on_every_tier() {
    let script = script(
        10,
        "> open 1.1 m1
         1.1 opened l1 v1 hit [s1 s2]
         > open 1.2 m1 on d0
         1.2 opened l2 v1 on d0 hit [s1 s3]",
    );
    assert_eq!(script.core.view().ledger(Tier::Host).charged, Bytes(5));
    let device = script.core.view().ledger(Tier::Device(DeviceId(0)));
    assert_eq!((device.charged, device.resident), (Bytes(5), Bytes(5)));
}

#[test]
fn it_is_kept_for_those_who_come_back_until_their_time_is_over() {
    let script = script(
        10,
        "> open 1.1 m2 by 900
         resolve op1 m2
         > resolved op1 v2 d:8
         at 500
         > tick
         free op2 s2
         > freed op2
         load op3 s4 d:8 v2
         > loaded op3 c4
         1.1 opened l1 v2 loaded [s4]",
    );
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn a_client_that_comes_back_has_its_leases_again() {
    script(
        10,
        "> resume 1.1 v1 v1.d0 v7
         1.1 resumed l1 l2 -
         at 500
         > tick
         > open 1.2 m2 by 900
         resolve op1 m2
         > resolved op1 v2 d:8
         > close 1 l1
         free op2 s2
         > freed op2
         load op3 s4 d:8 v2
         > loaded op3 c4
         1.2 opened l3 v2 loaded [s4]
         > close 1.3 l2
         1.3 closed",
    );
}

#[test]
fn what_is_above_a_smaller_budget_goes_when_nobody_comes_back() {
    let mut script = script(
        3,
        "> open 1.1 m1
         1.1 opened l1 v1 hit [s1 s2]",
    );
    script.run(
        "at 500
         > tick
         > close 1 l1
         free op1 s2
         > freed op1",
    );
}

#[test]
fn one_content_of_two_files_is_taken_over_once() {
    let mut script = Script::new(with_devices(10, &[]));
    script.run(
        "> adopt m1 v1 a=1 b:4 has a/c1 b/c2 until 500
         adopted s1 a
         adopted s2 b
         > adopt - v2 a=1 c:4 has a/c1 c/c2 until 500
         > session 1
         > resume 1.1 v2
         1.1 resumed l1
         > resume 1.2 v1
         1.2 resumed l2",
    );
    assert_eq!(script.core.view().ledger(Tier::Host).charged, Bytes(5));
}

#[test]
fn what_is_freed_while_more_is_taken_over_is_not_taken_over_again() {
    let mut script = Script::new(with_devices(3, &[]));
    script.run(
        "> adopt m1 v1 a=1 b:4 c:2 has a/c1 b/c2 until 500
         adopted s1 a
         adopted s2 b
         free op1 s1
         free op2 s2
         > adopt m2 v2 a=1 b:4 has a/c1 b/c2 until 500
         forget v2
         > freed op1
         > freed op2
         forget v1
         > session 1
         > resume 1.1 v2
         1.1 resumed -",
    );
    assert_eq!(script.core.view().ledger(Tier::Host).charged, Bytes(0));
}

#[test]
fn part_of_a_version_is_no_hit_but_need_not_be_read_again() {
    let mut script = Script::new(with_devices(10, &[]));
    script.run(
        "> adopt m1 v1 a=1 b:2 c:2 has a/c1 c/c2 until 500
         adopted s1 a
         adopted s2 c
         > session 1
         > resume 1.1 v1
         1.1 resumed -
         > open 1.2 m1
         resolve op1 m1
         > resolved op1 v1 a=1 b:2 c:2
         load op2 s3 b:2 v1
         > loaded op2 c3
         1.2 opened l1 v1 loaded [s1 s3 s2]",
    );
}

#[test]
fn a_version_of_which_nothing_is_left_is_forgotten() {
    let mut script = Script::new(with_devices(10, &[]));
    script.run(
        "> adopt m1 v1 a=1 b:2 has until 500
         forget v1",
    );
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn a_lost_device_ends_the_wait_for_those_who_had_it() {
    let mut script = script(
        10,
        "> lost d0
         free op1 s3 on d0
         > resume 1.1 v1.d0 v1
         1.1 resumed - l1
         > freed op1
         at 500
         > tick",
    );
    script.run("> close 1 l1");
}

#[test]
fn what_cannot_be_left_is_a_violation() {
    let mut script = Script::new(with_devices(10, &[6]));
    let violation = script.violation("adopt - v1 a=1 b:4 i@5 has b.d0/c1 until 5");
    assert_eq!(
        violation,
        Violation::NotOfVersion(VersionId(1), SourceId(2))
    );
    let mut script = Script::new(with_devices(10, &[6]));
    let violation = script.violation("adopt - v1 a=1 has z/c1 until 5");
    assert_eq!(
        violation,
        Violation::NotOfVersion(VersionId(1), SourceId(26))
    );
}

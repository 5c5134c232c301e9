//! Copies on devices: hits, promotions, what they are filled from, and which tier an open gets.

use crate::support::{ON_BOTH, ON_HOST, Script, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::view::Presence;
use mrm_core::violation::Violation;

#[track_caller]
fn script(limit: u64, budgets: &[u64], text: &str) -> Script {
    let mut script = Script::new(with_devices(limit, budgets));
    script.run(text);
    script
}

#[test]
fn a_host_hit_is_promoted_and_then_hits_on_the_device() {
    let end = script(10, &[10], ON_HOST)
        .run(ON_BOTH)
        .run(
            "> open 1.3 m1 on d0
             1.3 opened l3 v1 on d0 hit [s1 s3]
             > open 1.4 m1
             1.4 opened l4 v1 hit [s1 s2]
             > open 1.5 m1 on best:d0
             1.5 opened l5 v1 on d0 hit [s1 s3]",
        )
        .core
        .view()
        .version(VersionId(1))
        .unwrap();
    let device = end.copy(Tier::Device(DeviceId(0))).unwrap();
    assert_eq!((end.host.leases, device.leases), (2, 3));
    assert_eq!((end.host.charged.0, device.charged.0), (5, 5));
    assert_eq!(device.presence, Presence::Resident);
    assert_eq!((end.host.feeding, device.feeding), (0, 0));
}

#[test]
fn a_miss_loads_the_files_along_and_fills_the_image_from_them() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:2 c:2 i@5/2
         load op2 s1 a:1 v1
         load op3 s2 b:2 v1
         load op4 s3 c:2 v1
         load op5 s4 i:5 v1 on d0 from [s2 s3]
         > open 1.2 m1 on d0
         > loaded op4 c3
         > loaded op3 c2
         > loaded op2 c1
         > loaded op5 c4
         1.1 opened l1 v1 on d0 loaded [s1 s4]
         1.2 opened l2 v1 on d0 joined [s1 s4]
         > open 1.3 m1
         1.3 opened l3 v1 hit [s1 s2 s3]",
    );
}

#[test]
fn a_model_too_large_for_the_host_goes_to_the_device_from_its_files() {
    script(
        4,
        &[10],
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5/2
         load op2 s1 a:1 v1
         load op3 s2 i:5 v1 on d0
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 on d0 loaded [s1 s2]
         > open 1.2 m1
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         1.2 refused too_large 5 of 4",
    );
}

#[test]
fn a_host_without_room_for_the_files_is_passed_by_and_the_table_still_fits() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m2
         resolve op1 m2
         > resolved op1 v2 d:6
         load op2 s1 d:6 v2
         > loaded op2 c1
         1.1 opened l1 v2 loaded [s1]
         > open 1.2 m1 on d0
         resolve op3 m1
         > resolved op3 v1 a=1 b:4 i@5/2
         load op4 s2 a:1 v1
         load op5 s3 i:5 v1 on d0",
    );
}

#[test]
fn a_host_that_can_make_room_for_the_files_does() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m2
         resolve op1 m2
         > resolved op1 v2 d:6
         load op2 s1 d:6 v2
         > loaded op2 c1
         1.1 opened l1 v2 loaded [s1]
         > close 1 l1
         > open 1.2 m1 on d0
         resolve op3 m1
         > resolved op3 v1 a=1 b:4 i@5/2
         free op4 s1
         > freed op4
         load op5 s2 a:1 v1
         load op6 s3 b:4 v1
         load op7 s4 i:5 v1 on d0 from [s3]
         forget v2",
    );
}

#[test]
fn an_image_is_filled_from_files_that_are_still_being_loaded_for_the_host() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > open 1.2 m1 on d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5
         load op5 s3 i:5 v1 on d0 from [s2]
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 loaded [s1 s2]
         > loaded op5 c3
         1.2 opened l2 v1 on d0 promoted [s1 s3]",
    );
}

#[test]
fn a_failed_load_of_a_file_fails_the_host_and_the_image_fails_by_itself() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         load op4 s3 i:5 v1 on d0 from [s2]
         > open 1.2 m1
         > loaded op2 c1
         > loaded op3 fails 303
         1.2 failed 303
         > loaded op4 fails 304
         1.1 failed 304",
    );
}

#[test]
fn a_device_copies_from_a_peer_that_is_held_until_the_copy_is_there() {
    script(10, &[10, 10], ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m1 on d1
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         load op7 s4 i:5 v1 on d1 from s3
         > close 1 l1
         > close 1 l2
         > evict 1.4 v1 on d0
         1.4 refused in_use v1.d0=5+loading
         > evict 1.5 v1 on host
         free op8 s2
         > freed op8
         1.5 evicted 4
         > loaded op7 c3
         1.3 opened l3 v1 on d1 promoted [s1 s4]
         > evict 1.6 v1 on d0
         free op9 s3 on d0
         > freed op9
         1.6 evicted 5",
    );
}

#[test]
fn a_device_that_is_no_peer_is_not_copied_from() {
    script(
        10,
        &[10, 10],
        "> session 1
         > open 1.1 m1 on d1
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         load op4 s3 i:5 v1 on d1 from [s2]
         > loaded op2 c1
         > loaded op3 c2
         > loaded op4 c3
         1.1 opened l1 v1 on d1 loaded [s1 s3]
         > open 1.2 m1 on d0
         resolve op5 m1
         > resolved op5 v1 a=1 b:4 i@5
         load op6 s4 i:5 v1 on d0 from [s2]",
    );
}

#[test]
fn a_device_with_the_copy_or_a_want_comes_before_one_with_room() {
    script(10, &[10, 20], ON_HOST).run(
        "> open 1.2 m1 on d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         load op5 s3 i:5 v1 on d0 from [s2]
         > open 1.3 m1 on d1,d0
         > cancel 1 of 2
         1.2 refused cancelled
         > cancel 1 of 3
         1.3 refused cancelled
         > open 1.4 m1 on d1,d0
         > loaded op5 c3
         1.4 opened l2 v1 on d0 joined [s1 s3]
         > open 1.5 m1 on d1,d0
         1.5 opened l3 v1 on d0 hit [s1 s3]",
    );
}

#[test]
fn the_device_with_the_most_room_is_chosen_and_the_first_of_equals() {
    script(10, &[10, 12, 12], ON_HOST).run(
        "> open 1.2 m1 on d0,d1,d2
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         load op5 s3 i:5 v1 on d1 from [s2]
         > open 1.3 m2 on d0,d1,d2
         resolve op6 m2
         > resolved op6 v2 c=1 j@3
         load op7 s4 c:1 v2
         load op8 s5 j:3 v2 on d2
         > open 1.4 m3 on d0,d1
         resolve op9 m3
         > resolved op9 v3 d=1 k@8
         load op10 s6 d:1 v3
         load op11 s7 k:8 v3 on d0",
    );
}

#[test]
fn room_that_the_queue_has_a_claim_on_is_none() {
    script(20, &[12, 9], ON_HOST).run(
        "> open 1.2 m2 on d0
         resolve op4 m2
         > resolved op4 v2 j@12
         load op5 s3 j:12 v2 on d0
         > loaded op5 c3
         1.2 opened l2 v2 on d0 loaded [s3]
         > close 1 l2
         > open 1.3 m3 on d0
         resolve op6 m3
         > resolved op6 v3 k@4
         free op7 s3 on d0
         > open 1.4 m1 on d0,d1
         resolve op8 m1
         > resolved op8 v1 a=1 b:4 i@5/2
         load op9 s4 i:5 v1 on d1 from [s2]",
    );
}

#[test]
fn where_no_device_can_make_the_room_an_open_waits_for_the_largest() {
    script(10, &[6, 8], ON_HOST).run(
        "> open 1.2 m1 on d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         load op5 s3 i:5 v1 on d0 from [s2]
         > open 1.3 m2 on d1
         resolve op6 m2
         > resolved op6 v2 j@5
         load op7 s4 j:5 v2 on d1
         > loaded op7 c4
         1.3 opened l2 v2 on d1 loaded [s4]
         > open 1.4 m3 on d0,d1
         resolve op8 m3
         > resolved op8 v3 k@4
         > close 1 l2
         free op9 s4 on d1
         > freed op9
         load op10 s5 k:4 v3 on d1
         forget v2",
    );
}

#[test]
fn what_fits_no_device_is_too_large_for_the_largest() {
    script(10, &[4, 6, 5], ON_HOST).run(
        "> open 1.2 m2 on d0,d1,d2
         resolve op4 m2
         > resolved op4 v2 c=1 j@7
         1.2 refused too_large 7 of 6 on d1
         forget v2
         > open 1.3 m3 on d0
         resolve op5 m3
         > resolved op5 v3 c=11 j@1
         1.3 refused too_large 11 of 10
         forget v3",
    );
}

#[test]
fn pieces_have_a_limit_of_their_own() {
    let mut settings = with_devices(10, &[100]);
    settings.devices[0].pieces_max = 3;
    Script::new(settings).run(ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m2 on d0
         resolve op6 m2
         > resolved op6 v2 j@1/2
         > close 1 l2
         free op7 s3 on d0
         > freed op7
         load op8 s4 j:1 v2 on d0",
    );
}

#[test]
fn what_has_no_image_goes_to_no_device() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:4
         1.1 refused no_image
         forget v1
         > open 1.2 m1 on best:d0
         resolve op2 m1
         > resolved op2 v1 a=1 b:4
         load op3 s1 a:1 v1
         load op4 s2 b:4 v1",
    );
}

#[test]
fn the_best_is_a_device_that_can_make_the_room_else_the_host() {
    // m2 is leased on d0, which leaves 4 of 9.
    let on_device = "
        > open 1.2 m2 on d0
        resolve op4 m2
        > resolved op4 v2 c=1 j@5
        load op5 s3 c:1 v2
        load op6 s4 j:5 v2 on d0
        > loaded op5 c3
        > loaded op6 c4
        1.2 opened l2 v2 on d0 loaded [s3 s4]
    ";
    let fresh = || script(10, &[9], ON_HOST);
    // None is listed.
    fresh().run(
        "> open 1.2 m1 on best:
         1.2 opened l2 v1 hit [s1 s2]",
    );
    // It is full of what is leased: the host has it.
    fresh().run(on_device).run(
        "> open 1.3 m1 on best:d0
         1.3 opened l3 v1 hit [s1 s2]",
    );
    // Room can be made.
    fresh().run(on_device).run(
        "> close 1 l2
         > open 1.3 m1 on best:d0
         resolve op7 m1
         > resolved op7 v1 a=1 b:4 i@5/2
         free op8 s4 on d0",
    );
    // It can never fit.
    fresh().run(
        "> limit d0 4
         > open 1.2 m1 on best:d0
         1.2 opened l2 v1 hit [s1 s2]",
    );
    // It is lost.
    fresh().run(
        "> lost d0
         > open 1.2 m1 on best:d0
         1.2 opened l2 v1 hit [s1 s2]",
    );
    // Another open waits for room there, which cannot be made.
    fresh().run(on_device).run(
        "> open 1.3 m1 on d0
         resolve op7 m1
         > resolved op7 v1 a=1 b:4 i@5/2
         > open 1.4 m1 on best:d0
         1.4 opened l3 v1 hit [s1 s2]",
    );
    // What is coming is claimed already.
    fresh().run(on_device).run(
        "> close 1 l2
         > open 1.3 m3 on d0
         resolve op7 m3
         > resolved op7 v3 k@9
         free op8 s4 on d0
         > open 1.4 m1 on best:d0
         1.4 opened l3 v1 hit [s1 s2]",
    );
}

#[test]
fn an_image_of_two_versions_is_there_once_for_each_device() {
    script(20, &[10, 10], ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m2 on d0
         resolve op6 m2
         > resolved op6 v2 c=1 i@5/2
         load op7 s4 c:1 v2
         > loaded op7 c4
         1.3 opened l3 v2 on d0 loaded [s4 s3]
         > open 1.4 m3 on d0
         resolve op8 m3
         > resolved op8 v3 a=1 j@5
         load op9 s5 j:5 v3 on d0
         > loaded op9 c3
         free op10 s5 on d0
         1.4 opened l4 v3 on d0 loaded [s1 s3]
         > open 1.5 m3 on d1
         resolve op11 m3
         > resolved op11 v3 a=1 j@5
         load op12 s6 j:5 v3 on d1 from s3
         > loaded op12 c3
         1.5 opened l5 v3 on d1 promoted [s1 s6]",
    );
}

#[test]
fn a_file_that_was_there_already_is_freed_though_an_image_is_filled_from_it() {
    script(
        20,
        &[10],
        "> session 1
         > open 1.1 m2
         resolve op1 m2
         > resolved op1 v2 d:4
         load op2 s1 d:4 v2
         > open 1.2 m1 on d0
         resolve op3 m1
         > resolved op3 v1 b:4 i@5
         load op4 s2 b:4 v1
         load op5 s3 i:5 v1 on d0 from [s2]
         > loaded op2 c1
         1.1 opened l1 v2 loaded [s1]
         > loaded op4 c1
         free op6 s2
         > close 1 l1
         > evict 1.3 v2
         1.3 refused in_use v1=4+loading
         > loaded op5 c2
         1.2 opened l2 v1 on d0 loaded [s3]
         > freed op6",
    );
}

#[test]
fn devices_that_are_not_there_are_violations() {
    let fresh = || script(10, &[10], ON_HOST);
    let v = |event: &str| fresh().violation(event);
    let unknown = Violation::UnknownDevice(DeviceId(1));
    assert_eq!(v("open 1.2 m1 on d0,d1"), unknown);
    assert_eq!(v("open 1.2 m1 on best:d1"), unknown);
    assert_eq!(v("limit d1 4"), unknown);
    assert_eq!(v("evict 1.2 v9 on d1"), unknown);
    assert_eq!(v("lost d1"), unknown);
    let none = Violation::NoDevice(SessionId(1), RequestId(2));
    assert_eq!(v("open 1.2 m1 on ,"), none);
    let mut asked = fresh();
    asked.run(
        "> open 1.2 m2
         resolve op4 m2",
    );
    let changed = Violation::PartChanged(VersionId(2), SourceId(2));
    assert_eq!(asked.violation("resolved op4 v2 b@4"), changed);
}

//! Memory that is found damaged.

use crate::support::{ON_BOTH, ON_HOST, Script, script as on_host, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;

#[track_caller]
fn script(limit: u64, devices: &[u64], text: &str) -> Script {
    let mut script = Script::new(with_devices(limit, devices));
    script.run(text);
    script
}

#[test]
fn what_is_damaged_is_kept_for_its_holders_and_loaded_anew_for_others() {
    let script = on_host(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a=1 b:4
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 loaded [s1 s2]
         > damaged s2
         taint 1 l1 604
         > open 1.2 m1
         resolve op4 m1
         > resolved op4 v1 a=1 b:4
         load op5 s3 b:4 v1
         > loaded op5 c2
         1.2 opened l2 v1 loaded [s1 s3]
         > open 1.3 m1
         1.3 opened l3 v1 hit [s1 s3]
         > damaged s2
         > close 1 l2
         > close 1 l3
         > close 1.4 l1
         free op6 s2
         1.4 closed
         > freed op6",
    );
    let ledger = script.core.view().ledger(Tier::Host);
    assert_eq!((ledger.charged, ledger.idle), (Bytes(5), Bytes(5)));
}

#[test]
fn what_nobody_holds_goes_at_once_also_from_under_a_pin() {
    script(10, &[10], ON_HOST).run(
        "> wish m1 pinned
         > close 1 l1
         > damaged s2
         free op4 s2
         > freed op4
         > damaged s2
         > damaged s7",
    );
}

#[test]
fn a_damaged_table_is_of_every_copy() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> damaged s1
         taint 1 l1 604
         taint 1 l2 604
         > close 1 l1
         > gone 1
         free op6 s1",
    );
}

#[test]
fn two_parts_are_told_of_once_and_go_together() {
    script(10, &[], ON_HOST).run(
        "> damaged s2
         taint 1 l1 604
         > damaged s1
         > changed m1
         > gone 1
         free op4 s1
         free op5 s2
         forget v1",
    );
}

#[test]
fn an_open_that_waits_for_the_rest_fails() {
    script(
        10,
        &[],
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 c:2
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         load op4 s3 c:2 v1
         > damaged s2
         > loaded op3 c2
         > damaged s2
         1.1 failed 604
         free op5 s2
         > loaded op2 c1
         > loaded op4 c3",
    );
}

/// The image on d0, alone and leased; a load of it to d1 is under way from there.
const ACROSS: &str = "
    > session 1
    > open 1.1 m1 on d0
    resolve op1 m1
    > resolved op1 v1 a=1 b:4 i@5
    load op2 s1 a:1 v1
    load op3 s2 b:4 v1
    load op4 s3 i:5 v1 on d0 from [s2]
";

#[test]
fn what_is_filled_from_it_is_of_no_use_either() {
    let arrived = "
        > loaded op2 c1
        > loaded op3 c2
        > loaded op4 c3
        1.1 opened l1 v1 on d0 loaded [s1 s3]
        > open 1.2 m1 on d1
        resolve op5 m1
        > resolved op5 v1 a=1 b:4 i@5
        load op6 s4 i:5 v1 on d1 from s3
        > damaged s3
        taint 1 l1 604
        > close 1 l1
        > loaded op6 c3
        free op7 s3 on d0
        1.2 failed 604
        free op8 s4 on d1
    ";
    script(10, &[10, 10], ACROSS).run(arrived);
    // From host memory; the load fails by itself, and lets go as well.
    script(10, &[10, 10], ACROSS).run(
        "> loaded op2 c1
         > loaded op3 c2
         > damaged s2
         > loaded op4 fails 303
         free op5 s2
         1.1 failed 303",
    );
}

#[test]
fn what_the_last_daemon_left_is_not_kept_for_those_who_come_back() {
    script(
        10,
        &[],
        "> adopt m1 v1 a=1 b:4 has a/c1 b/c2 until 500
         adopted s1 a
         adopted s2 b
         > damaged s2
         free op1 s2
         > session 1
         > resume 1.1 v1
         1.1 resumed -
         > freed op1",
    );
}

#[test]
fn those_who_hold_what_is_damaged_are_named_where_room_lacks() {
    script(5, &[], ON_HOST).run(
        "> damaged s2
         taint 1 l1 604
         > open 1.2 m1 by 100
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         at 100
         > tick
         1.2 refused no_room 4, 5 of 5: v1=5+1leases",
    );
}

#[test]
fn a_device_that_is_lost_takes_what_was_damaged_on_it() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> damaged s3
         taint 1 l2 604
         > lost d0
         revoke 1 l2 404
         free op6 s3 on d0",
    );
}

//! What opens want kept free on a device beside the weights.

use crate::support::{ON_BOTH, ON_HOST, Script, with_devices};
use mrm_core::Config;
use mrm_core::id::*;
use mrm_core::ledger::Tier;

/// A host of 20 and one device, of which one user may keep all free.
fn on_device(budget: u64) -> Config {
    let mut config = with_devices(20, &[budget]);
    config.devices[0].user_reserve_percent = 100;
    config
}

/// m1, an image of 5, is on a device of this budget; leased there as l2 and in host memory as l1.
#[track_caller]
fn with_m1(budget: u64) -> Script {
    let mut script = Script::new(on_device(budget));
    script.run(ON_HOST).run(ON_BOTH);
    script
}

/// m2, an image of 4, comes to the device for nobody.
const M2_IS_IDLE: &str = "
    > open 1.20 m2 on d0
    resolve op6 m2
    > resolved op6 v2 d:4 e@4
    load op7 s4 d:4 v2
    load op8 s5 e:4 v2 on d0 from [s4]
    > loaded op7 c7
    > loaded op8 c8
    1.20 opened l3 v2 on d0 loaded [s5]
    > close 1 l3
";

#[track_caller]
fn expect_reserved(script: &Script, reserved: u64, charged: u64) {
    let ledger = script.core.view().ledger(Tier::Device(DeviceId(0)));
    assert_eq!((ledger.reserved.0, ledger.charged.0), (reserved, charged));
}

#[test]
fn a_hit_keeps_its_reserve_free_until_the_lease_ends() {
    let mut script = with_m1(10);
    script.run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 4, 9);
    let view = script.core.view();
    let copy = view.version(VersionId(1)).unwrap();
    let copy = copy.copy(Tier::Device(DeviceId(0))).unwrap().clone();
    assert_eq!((copy.charged.0, copy.reserved.0), (5, 4));
    script.run("> close 1 l3");
    expect_reserved(&script, 0, 5);
}

#[test]
fn each_lease_keeps_its_own_free() {
    let mut script = with_m1(10);
    script.run(
        "> open 1.3 m1 on d0 keep 2
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > session 2
         > open 2.1 m1 on d0 keep 3
         2.1 opened l4 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 5, 10);
    script.run("> gone 2");
    expect_reserved(&script, 2, 7);
}

#[test]
fn a_load_is_admitted_with_what_is_to_stay_free() {
    let mut script = Script::new(on_device(10));
    script.run(
        "> session 1
         > open 1.1 m1 on d0 keep 5
         resolve op1 m1
         > resolved op1 v1 b:4 i@5
         load op2 s1 b:4 v1
         load op3 s2 i:5 v1 on d0 from [s1]",
    );
    expect_reserved(&script, 5, 10);
    script.run(
        "> loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 on d0 loaded [s2]",
    );
    expect_reserved(&script, 5, 10);
}

#[test]
fn idle_weights_go_for_what_is_to_stay_free() {
    let mut script = with_m1(10);
    script.run(M2_IS_IDLE).run(
        "> open 1.3 m1 on d0 keep 3
         resolve op9 m1
         > resolved op9 v1 a=1 b:4 i@5/2
         free op10 s5 on d0
         > freed op10
         1.3 opened l4 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 3, 8);
}

#[test]
fn it_waits_while_leased_models_fill_the_device() {
    let mut script = with_m1(10);
    script.run(M2_IS_IDLE).run(
        "> open 1.3 m2 on d0
         1.3 opened l4 v2 on d0 hit [s5]
         > open 1.4 m1 on d0 keep 3
         resolve op9 m1
         > resolved op9 v1 a=1 b:4 i@5/2
         > open 1.5 m1 on d0
         1.5 opened l5 v1 on d0 hit [s1 s3]
         > close 1 l4
         free op10 s5 on d0
         > freed op10
         1.4 opened l6 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 3, 8);
}

#[test]
fn who_waits_beside_what_is_there_has_its_files_opened() {
    // It may go meanwhile, and the shell keeps no files open for what is there.
    let mut script = Script::new(on_device(10));
    script.run(
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 b:4 i@5
         load op2 s1 b:4 v1
         load op3 s2 i:5 v1 on d0 from [s1]
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 on d0 loaded [s2]
         > open 1.2 m2 on d0
         resolve op4 m2
         > resolved op4 v2 e@4
         load op5 s3 e:4 v2 on d0
         > loaded op5 c3
         1.2 opened l2 v2 on d0 loaded [s3]
         > open 1.3 m1 on d0 keep 3
         resolve op6 m1",
    );
    let view = script.core.view();
    assert!(!view.is_served_from_memory(ModelId(1), VersionId(1)));
    script.run("> resolved op6 v1 b:4 i@5");
    assert!(script.core.view().waits_for_room(VersionId(1)));
}

#[test]
fn those_who_are_left_have_their_room_made() {
    // What goes is enough for who wants least; when that one gives up, the other wants more.
    let mut script = with_m1(10);
    script.run(
        "> open 1.20 m2 on d0
         resolve op6 m2
         > resolved op6 v2 d:4 e@2
         load op7 s4 d:4 v2
         load op8 s5 e:2 v2 on d0 from [s4]
         > loaded op7 c7
         > loaded op8 c8
         1.20 opened l3 v2 on d0 loaded [s5]
         > open 1.21 m3 on d0
         resolve op9 m3
         > resolved op9 v3 f:4 g@2
         load op10 s6 f:4 v3
         load op11 s7 g:2 v3 on d0 from [s6]
         > loaded op10 c9
         > loaded op11 c10
         1.21 opened l4 v3 on d0 loaded [s7]
         > close 1 l3
         > close 1 l4
         > open 1.3 m1 on d0 keep 2
         resolve op12 m1
         > open 1.4 m1 on d0 keep 4
         > resolved op12 v1 a=1 b:4 i@5/2
         free op13 s5 on d0
         > cancel 1.5 of 3
         1.3 refused cancelled
         1.5 cancelled true
         free op14 s7 on d0
         > freed op13
         > freed op14
         1.4 opened l5 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 4, 9);
}

#[test]
fn it_waits_for_its_deadline_at_most_and_is_told_what_is_in_its_way() {
    with_m1(10).run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > open 1.4 m1 on d0 keep 3 by 50
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         at 60
         > tick
         1.4 refused no_room 3 (3 free), 9 of 10 on d0: v1.d0=9+2leases",
    );
}

#[test]
fn what_can_never_fit_beside_the_weights_is_refused_with_its_numbers() {
    with_m1(10).run(
        "> open 1.3 m1 on d0 keep 6
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         1.3 refused too_large 11 (6 free) of 10 on d0
         > open 1.4 m1 on best:d0 keep 6
         1.4 opened l3 v1 hit [s1 s2]",
    );
}

#[test]
fn in_host_memory_nothing_is_kept_free() {
    let mut script = with_m1(10);
    script.run(
        "> open 1.3 m1 on host keep 9
         1.3 opened l3 v1 hit [s1 s2]",
    );
    expect_reserved(&script, 0, 5);
    assert_eq!(script.core.view().ledger(Tier::Host).reserved, Bytes::ZERO);
}

#[test]
fn the_best_place_is_the_host_while_the_device_cannot_keep_so_much_free() {
    with_m1(10).run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > open 1.4 m1 on best:d0 keep 2
         1.4 opened l4 v1 hit [s1 s2]
         > open 1.5 m1 on best:d0 keep 1
         1.5 opened l5 v1 on d0 hit [s1 s3]",
    );
}

#[test]
fn another_device_takes_what_the_one_with_the_copy_cannot_keep_free() {
    let mut config = with_devices(20, &[10, 20]);
    for device in &mut config.devices {
        device.user_reserve_percent = 100;
    }
    Script::new(config).run(ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m1 on d0,d1 keep 6
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         load op7 s4 i:5 v1 on d1 from s3
         > loaded op7 c3
         1.3 opened l3 v1 on d1 promoted [s1 s4]",
    );
}

#[test]
fn who_wants_less_kept_free_does_not_wait_for_who_wants_more() {
    let mut script = Script::new(on_device(10));
    script.run(
        "> session 1
         > open 1.1 m1 on d0 keep 3
         resolve op1 m1
         > resolved op1 v1 b:4 i@5
         load op2 s1 b:4 v1
         load op3 s2 i:5 v1 on d0 from [s1]
         > open 1.2 m1 on d0 keep 4
         > open 1.3 m1 on d0 keep 1
         > open 1.4 m1 on d0
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 on d0 loaded [s2]
         1.4 opened l2 v1 on d0 joined [s2]
         1.3 opened l3 v1 on d0 joined [s2]
         > close 1 l1
         1.2 opened l4 v1 on d0 joined [s2]",
    );
    expect_reserved(&script, 5, 10);
}

#[test]
fn what_is_kept_free_for_an_open_that_fails_or_is_given_up_is_given_back() {
    let mut script = Script::new(on_device(10));
    script.run(
        "> session 1
         > open 1.1 m1 on d0 keep 2
         resolve op1 m1
         > resolved op1 v1 b:4 i@5
         load op2 s1 b:4 v1
         load op3 s2 i:5 v1 on d0 from [s1]
         > open 1.2 m1 on d0 keep 1
         > cancel 1.3 of 1
         1.1 refused cancelled
         1.3 cancelled true",
    );
    expect_reserved(&script, 0, 5);
    script.run(
        "> loaded op2 c1
         > loaded op3 fails 303
         1.2 failed 303",
    );
    expect_reserved(&script, 0, 0);
}

#[test]
fn one_user_keeps_no_more_free_than_his_share() {
    let mut script = Script::new(with_devices(20, &[20]));
    script.run(ON_HOST).run(ON_BOTH).run(
        "> session 2 of 7
         > open 2.1 m1 on d0 keep 7
         2.1 opened l3 v1 on d0 hit [s1 s3]
         > open 2.2 m1 on d0 keep 4
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         > session 3 of 8
         > open 3.1 m1 on d0 keep 4
         3.1 opened l4 v1 on d0 hit [s1 s3]
         > open 2.3 m1 on d0 keep 5 by 50
         resolve op7 m1
         > resolved op7 v1 a=1 b:4 i@5/2
         at 60
         > tick
         2.3 refused over_share 5, 7 of 10 on d0
         > close 2 l3
         2.2 opened l5 v1 on d0 hit [s1 s3]",
    );
    expect_reserved(&script, 8, 13);
    script.run(
        "> open 2.4 m1 on d0 keep 11
         resolve op8 m1
         > resolved op8 v1 a=1 b:4 i@5/2
         2.4 refused over_share 11, 0 of 10 on d0",
    );
}

#[test]
fn weights_wait_for_what_is_kept_free() {
    with_m1(10).run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > open 1.4 m2 on d0
         resolve op6 m2
         > resolved op6 v2 d:4 e@4
         > close 1 l3
         load op7 s4 d:4 v2
         load op8 s5 e:4 v2 on d0 from [s4]",
    );
}

#[test]
fn it_ends_with_its_device() {
    let mut script = with_m1(10);
    script.run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > lost d0
         revoke 1 l2 404
         revoke 1 l3 404
         free op6 s3 on d0
         > freed op6",
    );
    expect_reserved(&script, 0, 0);
}

#[test]
fn a_device_that_is_short_gets_it_back_for_the_next_try() {
    let mut script = with_m1(20);
    script.run(M2_IS_IDLE).run(
        "> open 1.3 m3 on d0 keep 6
         resolve op9 m3
         > resolved op9 v3 f:2 g@3
         load op10 s6 f:2 v3
         load op11 s7 g:3 v3 on d0 from [s6]",
    );
    expect_reserved(&script, 6, 18);
    script.run(
        "> limit d0 14 of 20
         free op12 s5 on d0
         > loaded op10 c10
         > loaded op11 short
         > freed op12
         load op13 s8 g:3 v3 on d0 from [s6]
         > loaded op13 c11
         1.3 opened l4 v3 on d0 loaded [s8]",
    );
    expect_reserved(&script, 6, 14);
}

#[test]
fn who_comes_back_has_it_kept_free_again_if_there_is_room() {
    let mut script = Script::new(on_device(10));
    script.run(
        "> adopt m1 v1 a=1 i@5 has a/c1 i.d0/c2 until 9
         adopted s1 a
         adopted s2 i on d0
         > session 1
         > resume 1.1 v1.d0/3 v1.d0/3 v1/3
         1.1 resumed l1 l2 l3",
    );
    expect_reserved(&script, 3, 8);
}

#[test]
fn what_is_damaged_keeps_it_until_it_is_given_back() {
    let mut script = with_m1(20);
    script.run(
        "> open 1.3 m1 on d0 keep 4
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > close 1 l2
         > damaged s3
         taint 1 l3 604",
    );
    expect_reserved(&script, 4, 9);
    script.run(
        "> close 1 l3
         free op6 s3 on d0
         > freed op6",
    );
    expect_reserved(&script, 0, 0);
}

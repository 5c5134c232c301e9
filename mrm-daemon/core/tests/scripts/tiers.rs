//! Room on several tiers: victims, feeds, devices that have less than was thought, eviction of one
//! copy, devices that are lost.

use crate::support::{ON_BOTH, ON_HOST, Script, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;

#[track_caller]
fn script(limit: u64, budgets: &[u64], text: &str) -> Script {
    let mut script = Script::new(with_devices(limit, budgets));
    script.run(text);
    script
}

/// m2 = image j of 3 without table or file; leased on the device as l1.
const IMAGE_LEASED: &str = "
    > session 1
    > open 1.1 m2 on d0
    resolve op1 m2
    > resolved op1 v2 j@3
    load op2 s1 j:3 v2 on d0
    > loaded op2 c1
    1.1 opened l1 v2 on d0 loaded [s1]
";

/// After that, m1 = file b of 4, image i of 5 is asked for on the device; d0 turns out to have 6.
const SHORT: &str = "
    > open 1.2 m1 on d0
    resolve op3 m1
    > resolved op3 v1 b:4 i@5
    load op4 s2 b:4 v1
    load op5 s3 i:5 v1 on d0 from [s2]
    > loaded op4 c2
";

#[test]
fn pressure_on_a_device_leaves_the_host_alone_and_the_other_way_round() {
    script(10, &[6], ON_HOST).run(ON_BOTH).run(
        "> close 1 l1
         > close 1 l2
         > open 1.3 m2 on d0
         resolve op6 m2
         > resolved op6 v2 j@4
         free op7 s3 on d0
         > freed op7
         load op8 s4 j:4 v2 on d0
         > loaded op8 c4
         1.3 opened l3 v2 on d0 loaded [s4]
         > close 1 l3
         > open 1.4 m3
         resolve op9 m3
         > resolved op9 v3 d:8
         free op10 s1
         free op11 s2
         > freed op10
         > freed op11
         load op12 s5 d:8 v3
         forget v1
         > open 1.5 m2 on d0
         1.5 opened l4 v2 on d0 hit [s4]",
    );
}

#[test]
fn a_want_that_is_blocked_on_one_tier_claims_nothing_on_the_other() {
    script(10, &[5], IMAGE_LEASED).run(
        "> open 1.2 m1 on d0 by 100
         resolve op3 m1
         > resolved op3 v1 a=1 b:9 i@3
         > open 1.3 m3
         resolve op4 m3
         > resolved op4 v3 d:10
         load op5 s2 d:10 v3
         at 100
         > tick
         1.2 refused no_room 1, 10 of 10: v3=10+loading
         forget v1",
    );
}

#[test]
fn a_want_without_room_on_the_device_says_who_holds_that() {
    script(10, &[5], IMAGE_LEASED).run(
        "> open 1.2 m1 on d0 by 100
         resolve op3 m1
         > resolved op3 v1 a=1 b:4 i@3
         at 100
         > tick
         1.2 refused no_room 3, 3 of 5 on d0: v2.d0=3+1leases
         forget v1",
    );
}

#[test]
fn room_on_both_tiers_is_made_before_anything_is_charged() {
    script(10, &[6], ON_HOST).run(ON_BOTH).run(
        "> close 1 l1
         > close 1 l2
         > open 1.3 m2 on d0
         resolve op6 m2
         > resolved op6 v2 c:8 j@4
         free op7 s3 on d0
         free op8 s1
         free op9 s2
         > open 1.4 m3
         resolve op10 m3
         > resolved op10 v3 d:3
         > freed op8
         > freed op9
         > freed op7
         load op11 s4 c:8 v2
         load op12 s5 j:4 v2 on d0 from [s4]
         forget v1",
    );
}

#[test]
fn a_want_needs_less_once_another_loads_its_image() {
    script(
        10,
        &[10],
        "> session 1
         > open 1.1 m3
         resolve op1 m3
         > resolved op1 v3 d:8
         load op2 s1 d:8 v3
         > loaded op2 c1
         1.1 opened l1 v3 loaded [s1]
         > close 1 l1
         > open 1.2 m1 on d0
         resolve op3 m1
         > resolved op3 v1 a=1 b:5 i@5
         free op4 s1
         > open 1.3 m2 on d0
         resolve op5 m2
         > resolved op5 v2 i@5
         load op6 s2 i:5 v2 on d0
         load op7 s3 a:1 v1
         > loaded op6 c2
         1.3 opened l2 v2 on d0 loaded [s2]
         > loaded op7 c3
         1.2 opened l3 v1 on d0 loaded [s3 s2]",
    );
}

#[test]
fn what_feeds_a_load_is_not_evicted_before_that_has_ended() {
    script(10, &[10], ON_HOST).run(
        "> close 1 l1
         > open 1.2 m1 on d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         load op5 s3 i:5 v1 on d0 from [s2]
         > cancel 1 of 2
         1.2 refused cancelled
         > open 1.3 m2 by 100
         resolve op6 m2
         > resolved op6 v2 c:7
         > open 1.4 m3 by 50
         resolve op7 m3
         > resolved op7 v3 d:6
         at 50
         > tick
         1.4 refused no_room 6, 5 of 10: v1=5+loading v1.d0=1+loading
         forget v3
         > loaded op5 c3
         free op8 s2
         > freed op8
         load op9 s4 c:7 v2",
    );
}

#[test]
fn what_is_to_feed_a_want_in_the_queue_is_no_victim_of_later_ones() {
    script(20, &[5, 5], ON_HOST).run(ON_BOTH).run(
        "> close 1 l2
         > open 1.3 m2 on d1
         resolve op6 m2
         > resolved op6 v2 j@5
         load op7 s4 j:5 v2 on d1
         > loaded op7 c4
         1.3 opened l3 v2 on d1 loaded [s4]
         > close 1 l3
         > open 1.4 m1 on d1
         resolve op8 m1
         > resolved op8 v1 a=1 b:4 i@5/2
         free op9 s4 on d1
         > open 1.5 m3 on d0
         resolve op10 m3
         > resolved op10 v3 k@5
         > freed op9
         load op11 s5 i:5 v1 on d1 from s3
         forget v2
         > loaded op11 c3
         1.4 opened l4 v1 on d1 promoted [s1 s5]
         free op12 s3 on d0",
    );
}

#[test]
fn a_lease_on_a_device_keeps_the_table_though_the_files_are_gone() {
    let end = script(10, &[10], ON_HOST)
        .run(ON_BOTH)
        .run(
            "> close 1 l1
             > open 1.3 m2
             resolve op6 m2
             > resolved op6 v2 c:9
             free op7 s2
             > freed op7
             load op8 s4 c:9 v2
             > open 1.4 m1 on d0
             1.4 opened l3 v1 on d0 hit [s1 s3]",
        )
        .core
        .view()
        .ledger(Tier::Host);
    assert_eq!(end.charged.0, 10);
}

#[test]
fn what_a_device_drops_makes_the_host_copy_the_last_to_go() {
    // m1 and m2 are idle on the host, m1 longer; m1 was on the device until now.
    script(14, &[10], ON_HOST).run(ON_BOTH).run(
        "> open 1.3 m2
         resolve op6 m2
         > resolved op6 v2 c:4
         load op7 s4 c:4 v2
         > loaded op7 c4
         1.3 opened l3 v2 loaded [s4]
         at 10
         > close 1 l1
         > close 1 l2
         at 20
         > close 1 l3
         at 30
         > limit d0 0 of 10
         free op8 s3 on d0
         > freed op8
         at 40
         > open 1.4 m3
         resolve op9 m3
         > resolved op9 v3 d:8
         free op10 s4",
    );
}

#[test]
fn a_device_that_was_short_is_tried_again_when_its_room_is_made() {
    script(10, &[10], IMAGE_LEASED)
        .run("> close 1 l1")
        .run(SHORT)
        .run(
            "> limit d0 6 of 10
             free op6 s1 on d0
             > loaded op5 short
             > freed op6
             load op7 s4 i:5 v1 on d0 from [s2]
             forget v2
             > loaded op7 c3
             1.2 opened l2 v1 on d0 loaded [s4]",
        );
}

#[test]
fn a_device_that_was_short_and_has_nothing_to_evict_says_who_holds_it() {
    script(10, &[10], IMAGE_LEASED).run(SHORT).run(
        "> limit d0 6 of 10
         > loaded op5 short
         1.2 refused no_room 5, 3 of 6 on d0: v2.d0=3+1leases",
    );
}

#[test]
fn a_device_that_is_short_again_and_again_is_not_tried_for_ever() {
    script(10, &[10], IMAGE_LEASED)
        .run("> close 1 l1")
        .run(SHORT)
        .run(
            "> loaded op5 short
             load op6 s4 i:5 v1 on d0 from [s2]
             > loaded op6 short
             load op7 s5 i:5 v1 on d0 from [s2]
             > loaded op7 short
             load op8 s6 i:5 v1 on d0 from [s2]
             > loaded op8 short
             1.2 refused no_room 5, 3 of 10 on d0:",
        );
}

#[test]
fn a_host_that_is_short_fails_like_any_load() {
    script(
        10,
        &[],
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 short
         1.1 failed 405
         forget v1",
    );
}

#[test]
fn a_model_larger_than_the_limit_of_now_waits_and_is_not_too_large() {
    script(10, &[10], ON_HOST).run(
        "> limit d0 3 of 10
         > open 1.2 m1 on d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         > limit d0 5 of 10
         load op5 s3 i:5 v1 on d0 from [s2]
         > loaded op5 c3
         1.2 opened l2 v1 on d0 promoted [s1 s3]
         > limit d0 30 of 20",
    );
}

#[test]
fn one_copy_is_evicted_and_the_others_stay() {
    script(10, &[10, 10], ON_HOST).run(ON_BOTH).run(
        "> evict 1.3 v1 on d0
         1.3 refused in_use v1.d0=5+1leases
         > close 1 l2
         > evict 1.4 v1
         1.4 refused in_use v1=5+1leases
         > evict 1.5 v1 on d0
         free op6 s3 on d0
         > evict 1.6 v1 on d1
         1.6 evicted 0
         > freed op6
         1.5 evicted 5
         > close 1 l1
         > evict 1.7 v1 on host
         free op7 s1
         free op8 s2
         > freed op8
         > freed op7
         1.7 evicted 5
         forget v1",
    );
}

#[test]
fn the_table_goes_with_the_last_copy() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> close 1 l1
         > close 1 l2
         > evict 1.3 v1 on host
         free op6 s2
         > freed op6
         1.3 evicted 4
         > evict 1.4 v1 on d0
         free op7 s1
         free op8 s3 on d0
         > freed op7
         > freed op8
         1.4 evicted 6
         forget v1",
    );
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> close 1 l1
         > close 1 l2
         > evict 1.3 v1
         free op6 s1
         free op7 s2
         free op8 s3 on d0
         > freed op8
         > freed op7
         > freed op6
         1.3 evicted 10
         forget v1",
    );
}

#[test]
fn a_pin_holds_every_copy_and_its_end_lets_go() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> wish m1 pinned
         > close 1 l1
         > close 1 l2
         > evict 1.3 v1 on d0
         1.3 refused in_use v1.d0=5+pinned
         > open 1.4 m2 by 10
         resolve op6 m2
         > resolved op6 v2 c:9
         at 10
         > tick
         1.4 refused no_room 9, 5 of 10: v1=5+pinned
         forget v2
         > limit d0 0
         > wish m1
         free op7 s3 on d0",
    );
}

#[test]
fn copies_of_an_eager_model_go_each_on_its_own() {
    script(10, &[10], ON_HOST).run(ON_BOTH).run(
        "> wish m1 eager
         > close 1 l1
         free op6 s2
         > freed op6
         > close 1 l2
         free op7 s1
         free op8 s3 on d0
         > freed op8
         > freed op7
         forget v1",
    );
    // What a device needs of the host stays until it has it.
    script(10, &[10], IMAGE_LEASED).run(
        "> wish m1 eager
         > open 1.2 m1 on d0
         resolve op3 m1
         > resolved op3 v1 a=1 b:4 i@8
         > open 1.3 m1
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@8
         load op5 s2 a:1 v1
         load op6 s3 b:4 v1
         > loaded op5 c2
         > loaded op6 c3
         1.3 opened l2 v1 loaded [s2 s3]
         > close 1 l2
         > close 1 l1
         free op7 s1 on d0
         > freed op7
         load op8 s4 i:8 v1 on d0 from [s3]
         forget v2
         > loaded op8 c4
         1.2 opened l3 v1 on d0 promoted [s2 s4]
         free op9 s3",
    );
}

#[test]
fn a_lost_device_gives_everything_back() {
    let mut end = script(20, &[20, 20], ON_HOST);
    // Leased by two sessions, pinned, fed from, being loaded, waited for.
    end.run(ON_BOTH).run(
        "> session 2
         > open 2.1 m1 on d0
         2.1 opened l3 v1 on d0 hit [s1 s3]
         > open 1.3 m1 on d0
         1.3 opened l4 v1 on d0 hit [s1 s3]
         > wish m1 pinned
         > open 1.4 m1 on d1
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         load op7 s4 i:5 v1 on d1 from s3
         > open 2.2 m2 on d0
         resolve op8 m2
         > resolved op8 v2 j@6
         load op9 s5 j:6 v2 on d0
         > open 2.3 m3 on d0
         resolve op10 m3
         > resolved op10 v3 k@12
         > lost d0
         revoke 1 l2 404
         revoke 1 l4 404
         revoke 2 l3 404
         2.2 failed 404
         2.3 failed 404
         free op11 s3 on d0
         forget v3",
    );
    let view = end.core.view();
    assert!(view.is_lost(DeviceId(0)) && !view.is_lost(DeviceId(1)));
    let ledger = view.ledger(Tier::Device(DeviceId(0)));
    assert_eq!((ledger.budget.0, ledger.limit.0), (0, 0));
    assert_eq!((ledger.charged.0, ledger.freeing.0), (11, 5));
    end.run(
        "> close 1.5 l2
         1.5 refused unknown_lease
         > loaded op9 c5
         free op12 s5 on d0
         > freed op12
         forget v2
         > freed op11
         > loaded op7 fails 404
         1.4 failed 404
         > open 1.6 m1
         1.6 opened l5 v1 hit [s1 s2]
         > open 1.7 m1 on d0
         resolve op13 m1
         > resolved op13 v1 a=1 b:4 i@5/2
         1.7 refused device_lost d0
         > open 1.8 m1 on d0,d1
         resolve op14 m1
         > resolved op14 v1 a=1 b:4 i@5/2
         load op15 s6 i:5 v1 on d1 from [s2]
         > limit d0 20
         > lost d0
         > evict 1.9 v1 on d0
         1.9 evicted 0",
    );
}

#[test]
fn a_load_that_fails_on_a_lost_device_leaves_nothing() {
    for outcome in ["fails 303", "short"] {
        let mut end = script(
            10,
            &[10],
            "> session 1
             > open 1.1 m1 on d0
             resolve op1 m1
             > resolved op1 v1 j@3
             load op2 s1 j:3 v1 on d0
             > lost d0
             1.1 failed 404",
        );
        end.run(&format!(
            "> loaded op2 {outcome}
             forget v1"
        ));
        let ledger = end.core.view().ledger(Tier::Device(DeviceId(0)));
        assert_eq!(ledger.charged.0, 0);
    }
}

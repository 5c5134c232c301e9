//! Sessions, pins, eager models, eviction, drain, and what is a fault of ours.

use crate::support::{Script, config, script};
use mrm_core::id::*;
use mrm_core::violation::Violation;

const ONE_LEASED: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a:4
    load op2 s1 a:4 v1
    > loaded op2 c1
    1.1 opened l1 v1 loaded [s1]
";

#[test]
fn a_closed_session_owns_nothing_and_is_not_answered() {
    let end = script(10, ONE_LEASED)
        .run(
            "> session 2
             > open 2.1 m1
             2.1 opened l2 v1 hit [s1]
             > open 2.2 m2
             resolve op3 m2
             > resolved op3 v2 b:5
             load op4 s2 b:5 v2
             > open 2.3 m3
             resolve op5 m3
             > gone 2
             > resolved op5 v3 c:1
             forget v3
             > loaded op4 c2",
        )
        .core
        .view()
        .records();
    assert_eq!(
        (end.sessions, end.leases, end.waiting, end.wants),
        (1, 1, 0, 0)
    );
    assert_eq!(end.segments, 2, "the load went on");
}

#[test]
fn a_lease_of_another_session_is_unknown() {
    script(10, ONE_LEASED).run(
        "> session 2
         > close 2.1 l1
         2.1 refused unknown_lease
         > close 2 l1
         > close 1.2 l1
         1.2 closed
         > close 1.3 l1
         1.3 refused unknown_lease",
    );
}

#[test]
fn leases_and_waits_of_a_session_are_bounded_together() {
    let mut settings = config(10);
    settings.leases_per_session_max = 2;
    Script::new(settings).run(ONE_LEASED).run(
        "> open 1.2 m2
         resolve op3 m2
         > open 1.3 m1
         1.3 refused too_many_leases 1
         > close 1 l1
         > open 1.3 m1
         1.3 opened l2 v1 hit [s1]",
    );
}

#[test]
fn a_cancel_answers_its_target_first() {
    script(10, ONE_LEASED).run(
        "> open 1.2 m2
         resolve op3 m2
         > cancel 1.3 of 2
         1.2 refused cancelled
         1.3 cancelled true
         > cancel 1.4 of 2
         1.4 cancelled false
         > resolved op3 v2 b:1
         forget v2",
    );
}

#[test]
fn a_pin_keeps_and_its_end_lets_go() {
    script(10, ONE_LEASED).run(
        "> wish m1 pinned
         > close 1 l1
         > evict 1.2 v1
         1.2 refused in_use v1=4+pinned
         > open 1.3 m2
         resolve op3 m2
         > resolved op3 v2 b:8
         > wish m1
         free op4 s1
         > freed op4
         load op5 s2 b:8 v2
         forget v1",
    );
}

#[test]
fn a_pin_moves_to_the_version_that_the_model_stands_for() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    let mut end = Script::new(settings);
    end.run(ONE_LEASED).run(
        "> wish m1 pinned
         > close 1 l1
         > open 1.2 m1
         resolve op3 m1
         > resolved op3 v2 b:4
         load op4 s2 b:4 v2
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s2]
         > close 1 l2
         > open 1.3 m2
         resolve op5 m2
         > resolved op5 v3 c:6
         free op6 s1
         > freed op6
         load op7 s3 c:6 v3
         forget v1",
    );
    assert!(end.core.view().version(VersionId(2)).unwrap().pinned);
}

#[test]
fn a_failed_resolution_does_not_unpin() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    let mut end = Script::new(settings);
    end.run(ONE_LEASED).run(
        "> wish m1 pinned
         > close 1 l1
         > open 1.2 m1
         resolve op3 m1
         > resolved op3 fails 306
         1.2 failed 306",
    );
    assert!(end.core.view().version(VersionId(1)).unwrap().pinned);
}

#[test]
fn an_eager_model_goes_with_its_last_lease() {
    script(10, ONE_LEASED).run(
        "> wish m1 eager
         > open 1.2 m1
         1.2 opened l2 v1 hit [s1]
         > close 1 l1
         > close 1.3 l2
         1.3 closed
         free op3 s1
         > freed op3
         forget v1",
    );
}

#[test]
fn eagerness_gives_way_to_pins_other_models_and_waits() {
    script(20, ONE_LEASED).run(
        "> wish m1 eager pinned
         > close 1 l1
         > wish m1 eager
         free op3 s1
         > freed op3
         forget v1
         > wish m2 eager
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 b:4
         load op5 s2 b:4 v2
         > open 1.3 m3
         resolve op6 m3
         > resolved op6 v2 b:4
         > loaded op5 c2
         1.2 opened l2 v2 loaded [s2]
         1.3 opened l3 v2 joined [s2]
         > gone 1",
    );
}

#[test]
fn an_eager_model_is_kept_for_those_who_wait_for_its_resolution() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    Script::new(settings).run(ONE_LEASED).run(
        "> wish m1 eager
         > open 1.2 m1
         resolve op3 m1
         > close 1 l1
         > resolved op3 v1 a:4
         1.2 opened l2 v1 hit [s1]
         > open 1.3 m1
         resolve op4 m1
         > close 1 l2
         > cancel 1 of 3
         1.3 refused cancelled
         free op5 s1",
    );
}

#[test]
fn an_old_version_of_an_eager_model_goes_with_its_last_lease() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    Script::new(settings).run(ONE_LEASED).run(
        "> wish m1 eager
         > open 1.2 m1
         resolve op3 m1
         > resolved op3 v2 b:4
         load op4 s2 b:4 v2
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s2]
         > close 1 l1
         free op5 s1
         > freed op5
         forget v1",
    );
}

#[test]
fn an_eager_load_that_nobody_waits_for_goes_when_it_ends() {
    script(
        10,
        "> session 1
         > wish m1 eager
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > gone 1
         > loaded op2 c1
         free op3 s1
         > freed op3
         forget v1",
    );
}

#[test]
fn an_eviction_is_refused_while_in_use_and_answered_after_the_last_free() {
    script(
        10,
        "> session 1
         > evict 1.1 v1
         1.1 evicted 0
         > open 1.2 m1
         resolve op1 m1
         > resolved op1 v1 a:1 b:4
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > evict 1.3 v1
         1.3 refused in_use v1=5+loading
         > loaded op2 c1
         > loaded op3 c2
         1.2 opened l1 v1 loaded [s1 s2]
         > evict 1.3 v1
         1.3 refused in_use v1=5+1leases
         > close 1 l1
         > evict 1.3 v1
         free op4 s1
         free op5 s2
         > evict 1.4 v1
         > freed op5
         > freed op4
         1.3 evicted 5
         1.4 evicted 5
         forget v1
         > evict 1.5 v1
         1.5 evicted 0",
    );
}

#[test]
fn an_open_during_an_eviction_loads_anew_into_another_segment() {
    script(10, ONE_LEASED).run(
        "> close 1 l1
         > evict 1.2 v1
         free op3 s1
         > open 1.3 m1
         resolve op4 m1
         > resolved op4 v1 a:4
         load op5 s2 a:4 v1
         > freed op3
         1.2 evicted 4
         > loaded op5 c1
         1.3 opened l2 v1 loaded [s2]",
    );
}

#[test]
fn what_is_shared_with_a_held_version_stays_at_an_eviction() {
    script(20, ONE_LEASED).run(
        "> open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 a:4 b:4
         load op4 s2 b:4 v2
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s1 s2]
         > close 1 l2
         > evict 1.3 v2
         free op5 s2
         > freed op5
         1.3 evicted 4
         > evict 1.4 v2
         1.4 refused in_use v1=4+1leases",
    );
}

#[test]
fn a_drain_refuses_new_opens_and_those_that_wait() {
    script(10, ONE_LEASED).run(
        "> open 1.2 m2
         resolve op3 m2
         > open 1.3 m3
         resolve op4 m3
         > resolved op4 v3 c:5
         load op5 s2 c:5 v3
         > drain
         1.2 refused draining
         1.3 refused draining
         > open 1.4 m1
         1.4 refused draining
         > loaded op5 c3
         > resolved op3 v2 b:1
         forget v2
         > close 1.5 l1
         1.5 closed",
    );
}

#[test]
fn what_cannot_happen_is_a_violation() {
    let fresh = || script(10, ONE_LEASED);
    let v = |event: &str| fresh().violation(event);
    assert_eq!(v("open 2.1 m1"), Violation::UnknownSession(SessionId(2)));
    assert_eq!(v("close 2 l1"), Violation::UnknownSession(SessionId(2)));
    assert_eq!(v("gone 2"), Violation::UnknownSession(SessionId(2)));
    assert_eq!(v("session 1"), Violation::SessionExists(SessionId(1)));
    assert_eq!(v("freed op9"), Violation::UnknownOp(OpId(9)));
    assert_eq!(v("loaded op2 c1"), Violation::UnknownOp(OpId(2)));
    let mut asked = fresh();
    asked.run(
        "> open 1.2 m2
         resolve op3 m2",
    );
    assert_eq!(
        asked.violation("open 1.2 m3"),
        Violation::RequestExists(SessionId(1), RequestId(2))
    );
    let mut asked = fresh();
    asked.run(
        "> open 1.2 m2
         resolve op3 m2",
    );
    assert_eq!(
        asked.violation("loaded op3 c1"),
        Violation::WrongCompletion(OpId(3))
    );
    for (text, violation) in [
        (
            "resolved op3 v1 a:5",
            Violation::VersionChanged(VersionId(1)),
        ),
        (
            "resolved op3 v2 b:1 b:1",
            Violation::RepeatedSource(VersionId(2), SourceId(2)),
        ),
    ] {
        let mut asked = fresh();
        asked.run(
            "> open 1.2 m2
             resolve op3 m2",
        );
        assert_eq!(asked.violation(text), violation);
    }
}

//! Opens that need room: victims, the queue, deadlines, limits.

use crate::support::{Script, config, script};
use mrm_core::ledger::Tier;
use mrm_core::policy::{Candidate, Facts, Policy};

/// Budget 10: m1 = a:4 and m2 = b:4 resident and idle, m1 used longer ago.
const TWO_IDLE: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a:4
    load op2 s1 a:4 v1
    > loaded op2 c1
    1.1 opened l1 v1 loaded [s1]
    > open 1.2 m2
    resolve op3 m2
    > resolved op3 v2 b:4
    load op4 s2 b:4 v2
    > loaded op4 c2
    1.2 opened l2 v2 loaded [s2]
    at 10
    > close 1 l1
    at 20
    > close 1 l2
    at 30
";

#[test]
fn the_least_recently_used_goes_and_the_load_waits_for_its_room() {
    script(10, TWO_IDLE).run(
        "> open 1.3 m3
         resolve op5 m3
         > resolved op5 v3 c:5
         free op6 s1
         > freed op6
         load op7 s3 c:5 v3
         forget v1
         > loaded op7 c3
         1.3 opened l3 v3 loaded [s3]",
    );
}

#[test]
fn bytes_that_are_being_freed_count_before_more_victims_are_chosen() {
    script(10, TWO_IDLE).run(
        "> evict 1.9 v2
         free op5 s2
         > open 1.3 m3
         resolve op6 m3
         > resolved op6 v3 c:6
         > freed op5
         1.9 evicted 4
         load op7 s3 c:6 v3
         forget v2",
    );
}

#[test]
fn a_cold_open_under_pressure_whose_client_leaves() {
    let mut end = script(10, TWO_IDLE);
    end.run(
        "> session 2
         > open 2.1 m3
         resolve op5 m3
         > resolved op5 v3 c:8
         free op6 s1
         free op7 s2
         > freed op7
         forget v2
         > freed op6
         load op8 s3 c:8 v3
         forget v1
         > gone 2
         > loaded op8 c3
         > open 1.3 m3
         1.3 opened l3 v3 hit [s3]",
    );
}

#[test]
fn a_victim_without_which_the_rest_suffices_is_given_back() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:1
         load op2 s1 a:1 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 b:8
         load op4 s2 b:8 v2
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s2]
         at 10
         > close 1 l1
         at 20
         > close 1 l2
         > open 1.3 m3
         resolve op5 m3
         > resolved op5 v3 c:8
         free op6 s2",
    );
}

#[test]
fn remains_of_a_version_that_lost_a_segment_are_not_spared() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:5 a:1
         load op2 s1 b:5 v1
         load op3 s2 a:1 v1
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 c:4
         load op5 s3 c:4 v2
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 loaded [s1 s2]
         > loaded op5 c3
         1.2 opened l2 v2 loaded [s3]
         > close 1 l1
         at 10
         > close 1 l2
         > open 1.3 m3
         resolve op6 m3
         > resolved op6 v3 d:5
         free op7 s1
         > freed op7
         load op8 s4 d:5 v3
         > loaded op8 c4
         1.3 opened l3 v3 loaded [s4]
         > open 1.4 m4
         resolve op9 m4
         > resolved op9 v4 e:4
         free op10 s2
         free op11 s3",
    );
}

#[test]
fn a_leased_a_pinned_and_a_loading_segment_are_never_victims() {
    script(
        12,
        "> session 1
         > wish m2 pinned
         > open 1.1 m1
         resolve op1 m1
         > open 1.2 m2
         resolve op2 m2
         > resolved op1 v1 a:4
         load op3 s1 a:4 v1
         > resolved op2 v2 b:4
         load op4 s2 b:4 v2
         > loaded op3 c1
         1.1 opened l1 v1 loaded [s1]
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s2]
         > close 1 l2
         > open 1.3 m3 by 100
         resolve op5 m3
         > open 1.4 m4 by 200
         resolve op6 m4
         > resolved op5 v3 c:3
         load op7 s3 c:3 v3
         > resolved op6 v4 d:5
         at 100
         > tick
         1.3 refused timed_out
         at 200
         > tick
         1.4 refused no_room 5, 11 of 12: v1=4+1leases v2=4+pinned v3=3+loading
         forget v4
         > loaded op7 c3
         > open 1.5 m3
         1.5 opened l3 v3 hit [s3]",
    );
}

#[test]
fn nothing_is_evicted_for_a_want_that_would_not_fit_even_so() {
    script(10, TWO_IDLE).run(
        "> open 1.3 m1
         1.3 opened l3 v1 hit [s1]
         > open 1.4 m3
         resolve op5 m3
         > resolved op5 v3 c:7
         > open 1.5 m2
         1.5 opened l4 v2 hit [s2]",
    );
}

#[test]
fn a_blocked_want_is_passed_and_goes_on_when_a_lease_ends() {
    script(10, TWO_IDLE).run(
        "> open 1.3 m1
         1.3 opened l3 v1 hit [s1]
         > open 1.4 m3
         resolve op5 m3
         > resolved op5 v3 c:7
         > open 1.5 m4
         resolve op6 m4
         > resolved op6 v4 d:2
         load op7 s3 d:2 v4
         > loaded op7 c4
         1.5 opened l4 v4 loaded [s3]
         > close 1 l3
         free op8 s2
         free op9 s1
         > freed op8
         forget v2
         > freed op9
         load op10 s4 c:7 v3
         forget v1",
    );
}

#[test]
fn room_that_is_made_for_the_first_is_not_taken_by_a_later_one() {
    script(10, TWO_IDLE).run(
        "> open 1.3 m3
         resolve op5 m3
         > resolved op5 v3 c:6
         free op6 s1
         > open 1.4 m4
         resolve op7 m4
         > resolved op7 v4 d:2
         free op8 s2
         > freed op8
         load op9 s3 c:6 v3
         forget v2
         > freed op6
         load op10 s4 d:2 v4
         forget v1",
    );
}

#[test]
fn a_want_keeps_what_it_has_while_it_waits() {
    // v1 = a b; b is gone, a idle and the oldest. The want for v1 evicts c, not its own a.
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:2
         load op2 s1 a:4 v1
         load op3 s2 b:2 v1
         > loaded op3 fails 303
         1.1 failed 303
         > loaded op2 c1
         at 10
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 c:6
         load op5 s3 c:6 v2
         > loaded op5 c3
         1.2 opened l1 v2 loaded [s3]
         at 20
         > close 1 l1
         > open 1.3 m1
         resolve op6 m1
         > resolved op6 v1 a:4 b:2
         free op7 s3
         > freed op7
         load op8 s4 b:2 v1
         forget v2
         > loaded op8 c2
         1.3 opened l2 v1 loaded [s1 s4]",
    );
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:7
         1.1 refused too_large 11 of 10
         forget v1",
    );
}

#[test]
fn segments_have_a_limit_too() {
    let mut settings = config(100);
    settings.segments_max = 2;
    Script::new(settings).run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:1 b:1
         load op2 s1 a:1 v1
         load op3 s2 b:1 v1
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 loaded [s1 s2]
         > close 1 l1
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 c:1
         free op5 s1
         > freed op5
         load op6 s3 c:1 v2
         > open 1.3 m3
         resolve op7 m3
         > resolved op7 v3 d:1 e:1 f:1
         1.3 refused too_large 3 of 100
         forget v3",
    );
}

#[test]
fn a_lower_limit_evicts_now_and_as_things_come_free() {
    let end = script(10, TWO_IDLE)
        .run(
            "> open 1.3 m2
             1.3 opened l3 v2 hit [s2]
             > limit 3
             free op5 s1
             > freed op5
             forget v1
             > open 1.4 m3
             resolve op6 m3
             > resolved op6 v3 c:2
             > close 1 l3
             free op7 s2
             > freed op7
             load op8 s3 c:2 v3
             forget v2",
        )
        .core
        .view()
        .ledger(Tier::Host);
    assert_eq!((end.limit.0, end.charged.0), (3, 2));
}

#[test]
fn a_lower_limit_refuses_what_can_no_longer_fit_and_a_higher_one_admits() {
    script(10, TWO_IDLE).run(
        "> open 1.3 m1
         1.3 opened l3 v1 hit [s1]
         > open 1.4 m2
         1.4 opened l4 v2 hit [s2]
         > open 1.5 m3
         resolve op5 m3
         > resolved op5 v3 c:3
         > open 1.6 m4
         resolve op6 m4
         > resolved op6 v4 d:9
         > limit 8
         1.6 refused too_large 9 of 8
         forget v4
         > limit 11
         load op7 s3 c:3 v3",
    );
}

#[test]
fn a_deadline_in_the_past_still_hits_and_a_miss_is_answered_at_the_tick() {
    let mut script = script(10, TWO_IDLE);
    script.run(
        "> open 1.3 m1 by 0
         1.3 opened l3 v1 hit [s1]
         > open 1.4 m3 by 0
         resolve op5 m3",
    );
    assert_eq!(script.core.next_deadline().map(|time| time.0), Some(0));
    script.run(
        "> tick
         1.4 refused timed_out
         > resolved op5 v3 c:1
         forget v3",
    );
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn the_load_of_an_open_that_timed_out_goes_on_and_can_be_joined() {
    script(
        10,
        "> session 1
         > open 1.1 m1 by 50
         resolve op1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         at 50
         > tick
         1.1 refused timed_out
         > open 1.2 m1
         > loaded op2 c1
         1.2 opened l1 v1 joined [s1]",
    );
}

#[test]
fn the_queue_is_bounded() {
    let mut settings = config(10);
    settings.waiting_max = 2;
    Script::new(settings).run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > open 1.2 m2
         resolve op2 m2
         > open 1.3 m1
         1.3 refused queue_full 2
         > cancel 1 of 1
         1.1 refused cancelled
         > open 1.3 m1",
    );
}

#[test]
fn one_tenant_leaves_room_in_the_queue_for_others() {
    let mut settings = config(10);
    settings.waiting_max = 5;
    Script::new(settings).run(
        "> session 1 of 7
         > session 2 of 7
         > session 3 of 8
         > open 1.1 m1
         resolve op1 m1
         > open 1.2 m1
         > open 2.1 m1
         > open 2.2 m1
         2.2 refused share_full 3
         > open 3.1 m1
         > open 2.3 m1
         2.3 refused share_full 3
         > open 3.2 m1
         > open 3.3 m1
         3.3 refused queue_full 5
         > gone 1
         > open 2.4 m1
         > open 2.5 m1
         2.5 refused share_full 2",
    );
}

#[test]
fn a_share_is_of_what_is_not_in_memory() {
    let mut settings = config(10);
    settings.waiting_max = 2;
    settings.revalidate_ms = 1;
    Script::new(settings).run(
        "> session 1 of 7
         > session 2 of 8
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:6
         load op2 s1 a:6 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 b:6
         at 5000
         > open 1.3 m1
         resolve op4 m1
         > open 1.4 m1
         > open 1.5 m1
         > open 1.6 m3
         1.6 refused queue_full 4
         > resolved op4 v1 a:6
         1.3 opened l2 v1 hit [s1]
         1.4 opened l3 v1 hit [s1]
         1.5 opened l4 v1 hit [s1]",
    );
}

/// The most recently used first.
#[derive(Debug)]
struct Newest;

impl Policy for Newest {
    fn name(&self) -> &'static str {
        "newest"
    }

    fn score(&self, _: &Facts<'_>, candidates: &[Candidate], scores: &mut Vec<f64>) {
        let newest = |candidate: &Candidate| -(candidate.first.0 as f64);
        scores.extend(candidates.iter().map(newest));
    }
}

#[test]
fn the_policy_decides_who_goes() {
    let mut script = Script::new(config(10));
    script
        .core
        .install_policy(Tier::Host, Box::new(Newest))
        .unwrap();
    script.run(TWO_IDLE).run(
        "> open 1.3 m3
         resolve op5 m3
         > resolved op5 v3 c:5
         free op6 s2",
    );
}

/// Says what it must not: no numbers, and more of them than there are candidates.
#[derive(Debug)]
struct Liar;

impl Policy for Liar {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn score(&self, _: &Facts<'_>, _: &[Candidate], scores: &mut Vec<f64>) {
        scores.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0].repeat(25));
    }
}

#[test]
fn a_policy_that_lies_cannot_reach_what_is_held() {
    let mut script = Script::new(config(10));
    script
        .core
        .install_policy(Tier::Host, Box::new(Liar))
        .unwrap();
    script.run(TWO_IDLE).run(
        "> open 1.3 m2
         1.3 opened l3 v2 hit [s2]
         > open 1.4 m3
         resolve op5 m3
         > resolved op5 v3 c:6
         free op6 s1",
    );
}

#[test]
fn a_full_queue_keeps_nobody_from_what_is_in_memory() {
    let mut settings = config(10);
    settings.waiting_max = 1;
    settings.revalidate_ms = 1;
    Script::new(settings).run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:6
         load op2 s1 a:6 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 b:6
         at 5000
         > open 1.3 m3
         1.3 refused queue_full 1
         > open 1.4 m1
         resolve op4 m1
         > resolved op4 v1 a:6
         1.4 opened l2 v1 hit [s1]
         > open 1.5 m1
         1.5 opened l3 v1 hit [s1]
         at 9000
         > open 1.6 m1
         resolve op5 m1
         > resolved op5 v3 c:6
         1.6 refused queue_full 1
         forget v3",
    );
}

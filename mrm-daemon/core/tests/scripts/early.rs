//! Leases on what is still being filled: granted by the layout, revoked, and kept as twins.

use crate::support::{Script, config, script};
use mrm_core::violation::Violation;

/// m1 = table a of 1, files b of 4 and c of 2; the table is resident, b and c have no memory yet.
const UNDER_WAY: &str = "
    > session 1
    > session 2
    > open 1.1 m1 on layout
    resolve op1 m1
    > resolved op1 v1 a=1 b:4 c:2
    load op2 s1 a:1 v1
    load op3 s2 b:4 v1
    load op4 s3 c:2 v1
    > loaded op2 c1
";

/// After that: leased by its layout, as l1.
const LENT: &str = "
    > laid op3
    > laid op4
    1.1 opened l1 v1 loaded [s1 s2 s3]
";

fn lent(limit: u64) -> Script {
    let mut script = script(limit, UNDER_WAY);
    script.run(LENT);
    script
}

#[test]
fn the_layout_is_lent_when_all_memory_is_there_and_who_wants_all_waits() {
    script(10, UNDER_WAY).run(
        "> open 2.1 m1
         > laid op4
         > laid op3
         1.1 opened l1 v1 loaded [s1 s2 s3]
         > loaded op4 c3
         > loaded op3 c2
         2.1 opened l2 v1 joined [s1 s2 s3]
         > close 1.2 l1
         1.2 closed",
    );
}

#[test]
fn the_table_is_there_before_the_layout_is_lent() {
    script(
        10,
        "> session 1
         > open 1.1 m1 on layout
         resolve op1 m1
         > resolved op1 v1 a=1 b:4
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > laid op3
         > laid op2
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1 s2]",
    );
}

#[test]
fn a_shell_that_never_says_that_memory_is_there_lends_it_whole() {
    script(10, UNDER_WAY).run(
        "> loaded op3 c2
         > loaded op4 c3
         1.1 opened l1 v1 loaded [s1 s2 s3]",
    );
}

#[test]
fn who_comes_later_joins_without_waiting() {
    lent(10).run(
        "> open 2.1 m1 on layout
         2.1 opened l2 v1 joined [s1 s2 s3]
         > loaded op3 c2
         > loaded op4 c3
         > open 2.2 m1 on layout
         2.2 opened l3 v1 hit [s1 s2 s3]",
    );
}

#[test]
fn a_load_that_fails_takes_the_leases_and_fails_those_who_wait() {
    lent(10).run(
        "> open 2.1 m1 on layout
         2.1 opened l2 v1 joined [s1 s2 s3]
         > open 2.2 m1
         > loaded op3 fails 303
         revoke 1 l1 303
         revoke 2 l2 303
         2.2 failed 303
         > close 1.2 l1
         1.2 refused unknown_lease
         > loaded op4 c3",
    );
}

#[test]
fn what_is_lent_early_holds_its_room_and_is_no_victim() {
    lent(7).run(
        "> open 2.1 m2 by 900
         resolve op5 m2
         > resolved op5 v2 d:3
         > loaded op3 c2
         > loaded op4 c3
         > close 1 l1
         free op6 s1
         free op7 s2
         > freed op6
         > freed op7
         load op8 s4 d:3 v2",
    );
}

#[test]
fn an_open_that_is_given_up_leaves_its_load_and_its_lease_is_never_made() {
    script(10, UNDER_WAY).run(
        "> laid op3
         > cancel 1.2 of 1
         1.1 refused cancelled
         1.2 cancelled true
         > laid op4
         > loaded op3 c2
         > loaded op4 c3",
    );
}

#[test]
fn a_lent_segment_of_a_content_that_is_there_is_a_twin_while_it_is_lent() {
    // v2 names another file with the content of b.
    let mut script = script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c2
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2 on layout
         resolve op3 m2
         > resolved op3 v2 d:4
         load op4 s2 d:4 v2
         > laid op4
         1.2 opened l2 v2 loaded [s2]
         > loaded op4 c2",
    );
    // Who comes meanwhile gets the twin: it is what the version has.
    script.run(
        "> open 1.3 m2
         1.3 opened l3 v2 hit [s2]
         > close 1 l2
         > close 1 l3
         free op5 s2
         > open 1.4 m2
         1.4 opened l4 v2 hit [s1]
         > freed op5",
    );
}

#[test]
fn a_twin_that_outlives_the_other_stands_for_the_content() {
    script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c2
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2 on layout
         resolve op3 m2
         > resolved op3 v2 d:4
         load op4 s2 d:4 v2
         > laid op4
         1.2 opened l2 v2 loaded [s2]
         > loaded op4 c2
         > close 1 l1
         > evict 1.3 v1
         free op5 s1
         > freed op5
         1.3 evicted 4
         forget v1
         > close 1 l2
         > open 1.4 m3
         resolve op6 m3
         > resolved op6 v3 e:4
         load op7 s3 e:4 v3
         > loaded op7 c2
         free op8 s3
         1.4 opened l3 v3 loaded [s2]",
    );
}

#[test]
fn a_pinned_twin_is_merged_when_it_is_not_lent_any_more() {
    script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c2
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2 on layout
         resolve op3 m2
         > resolved op3 v2 d:4
         load op4 s2 d:4 v2
         > laid op4
         1.2 opened l2 v2 loaded [s2]
         > wish m2 pinned
         > loaded op4 c2
         > gone 1
         free op5 s2
         > freed op5",
    );
}

#[test]
fn memory_is_there_once_and_for_a_load() {
    let mut script = Script::new(config(10));
    script.run(
        "> session 1
         > open 1.1 m1 on layout
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > laid op2
         1.1 opened l1 v1 loaded [s1]",
    );
    assert!(matches!(
        script.violation("laid op2"),
        Violation::WrongState(_)
    ));
    assert!(matches!(
        script.violation("laid op1"),
        Violation::UnknownOp(_)
    ));
}

#[test]
fn damage_ends_what_was_lent_before_it_was_whole() {
    lent(20).run(
        "> loaded op3 c2
         > damaged s2
         revoke 1 l1 604
         free op5 s2
         > loaded op4 c3
         > freed op5",
    );
}

#[test]
fn a_load_that_begins_anew_takes_its_early_leases_and_grants_the_others_when_it_is_whole() {
    lent(10).run(
        "> open 2.1 m1
         > unlaid op3
         revoke 1 l1 503
         > open 1.2 m1 on layout
         > loaded op3 c2
         1.2 opened l2 v1 joined [s1 s2 s3]
         > loaded op4 c3
         2.1 opened l3 v1 joined [s1 s2 s3]",
    );
}

#[test]
fn only_what_is_there_can_begin_anew() {
    for op in ["op3", "op1"] {
        let mut script = script(10, UNDER_WAY);
        let violation = script.violation(&format!("unlaid {op}"));
        let right = matches!(
            violation,
            Violation::WrongState(_) | Violation::UnknownOp(_)
        );
        assert!(right, "{violation}");
    }
}

#[test]
fn what_is_hashed_after_it_was_lent_is_merged_with_what_was_there_already() {
    // v2 names another file with the content of b, lent as c9 before that is known.
    let lent_twice = "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c2
         1.1 opened l1 v1 loaded [s1]
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 d:4
         load op4 s2 d:4 v2
         > loaded op4 c9
         1.2 opened l2 v2 loaded [s2]";
    let mut lent = script(20, lent_twice);
    lent.run(
        "> identified s2 c2
         > open 1.3 m2
         1.3 opened l3 v2 hit [s2]
         > close 1 l3
         > close 1 l2
         free op5 s2
         > freed op5
         > open 1.4 m2
         1.4 opened l4 v2 hit [s1]",
    );
    let mut given_back = script(20, lent_twice);
    given_back.run(
        "> close 1 l2
         > identified s2 c2
         free op5 s2
         > freed op5
         > open 1.4 m2
         1.4 opened l3 v2 hit [s1]",
    );
}

#[test]
fn what_is_hashed_later_stands_for_its_content_from_then_on() {
    script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c9
         1.1 opened l1 v1 loaded [s1]
         > identified s1 c2
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v2 d:4
         load op4 s2 d:4 v2
         > loaded op4 c2
         free op5 s2
         1.2 opened l2 v2 loaded [s1]",
    );
}

#[test]
fn what_is_gone_or_damaged_when_it_is_hashed_needs_nothing() {
    script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 b:4
         load op2 s1 b:4 v1
         > loaded op2 c9
         1.1 opened l1 v1 loaded [s1]
         > damaged s1
         taint 1 l1 604
         > identified s1 c2
         > close 1 l1
         free op3 s1
         forget v1
         > identified s1 c2
         > freed op3
         > identified s1 c2",
    );
}

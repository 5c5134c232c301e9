//! Opens that find room: hits, misses, joins, deduplication, staleness, failure.

use crate::support::{Script, config, script};
use mrm_core::id::{ModelId, VersionId};
use mrm_core::ledger::Tier;

const ONE_RESIDENT: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a:1 b:4
    load op2 s1 a:1 v1
    load op3 s2 b:4 v1
    > loaded op3 c2
    > loaded op2 c1
    1.1 opened l1 v1 loaded [s1 s2]
";

#[test]
fn a_miss_loads_every_segment_and_a_second_open_hits() {
    script(10, ONE_RESIDENT).run(
        "> open 1.2 m1
         1.2 opened l2 v1 hit [s1 s2]
         > close 1.3 l1
         1.3 closed
         > close 1 l2
         > open 1.4 m1
         1.4 opened l3 v1 hit [s1 s2]",
    );
}

#[test]
fn simultaneous_first_opens_resolve_and_load_once() {
    script(
        10,
        "> session 1
         > session 2
         > open 1.1 m1
         resolve op1 m1
         > open 2.1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > open 2.2 m1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         2.1 opened l2 v1 joined [s1]
         2.2 opened l3 v1 joined [s1]",
    );
}

#[test]
fn another_model_of_the_same_version_hits_after_its_own_resolution() {
    script(10, ONE_RESIDENT).run(
        "> open 1.2 m2
         resolve op4 m2
         > resolved op4 v1 a:1 b:4
         1.2 opened l2 v1 hit [s1 s2]",
    );
}

#[test]
fn a_version_that_shares_a_source_loads_only_the_rest() {
    script(10, ONE_RESIDENT).run(
        "> open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 b:4 c:5
         load op5 s3 c:5 v2
         > loaded op5 c3
         1.2 opened l2 v2 loaded [s2 s3]",
    );
}

#[test]
fn a_want_of_which_all_is_loading_joins_without_room() {
    script(
        8,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:4
         load op2 s1 a:4 v1
         load op3 s2 b:4 v1
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 b:4
         > loaded op3 c2
         1.2 opened l1 v2 joined [s2]
         > loaded op2 c1
         1.1 opened l2 v1 loaded [s1 s2]",
    );
}

#[test]
fn one_content_from_two_files_is_kept_once() {
    script(10, ONE_RESIDENT).run(
        "> open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 c:4
         load op5 s3 c:4 v2
         > loaded op5 c2
         free op6 s3
         1.2 opened l2 v2 loaded [s2]
         > close 1 l1
         > evict 1.3 v1
         free op7 s1
         > open 1.4 m2
         1.4 opened l3 v2 hit [s2]
         > freed op6
         > freed op7
         1.3 evicted 1",
    );
}

#[test]
fn two_files_of_one_content_in_one_version_share_a_segment() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:4
         load op2 s1 a:4 v1
         load op3 s2 b:4 v1
         > loaded op3 c1
         > loaded op2 c1
         free op4 s1
         1.1 opened l1 v1 loaded [s2 s2]
         > freed op4
         > close 1 l1
         > evict 1.2 v1
         free op5 s2
         > freed op5
         1.2 evicted 4
         forget v1",
    );
}

#[test]
fn a_content_that_is_on_its_way_out_is_not_shared() {
    script(
        10,
        "> session 1
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
         > close 1 l1
         > evict 1.3 v1
         free op5 s1
         > loaded op4 c1
         1.2 opened l2 v2 loaded [s2]
         > freed op5
         1.3 evicted 4
         forget v1
         > open 1.4 m2
         1.4 opened l3 v2 hit [s2]",
    );
}

#[test]
fn a_stale_model_is_resolved_again_and_a_changed_file_is_a_new_version() {
    let mut settings = config(10);
    settings.revalidate_ms = 1;
    let mut script = Script::new(settings);
    script.run(ONE_RESIDENT).run(
        "at 499
         > open 1.2 m1
         1.2 opened l2 v1 hit [s1 s2]
         at 1000
         > open 1.3 m1
         resolve op4 m1
         > open 1.4 m1
         > resolved op4 v2 c:2
         load op5 s3 c:2 v2
         > open 1.5 m1
         > loaded op5 c9
         1.3 opened l3 v2 loaded [s3]
         1.4 opened l4 v2 joined [s3]
         1.5 opened l5 v2 joined [s3]",
    );
    let versions: Vec<_> = script
        .core
        .view()
        .versions()
        .map(|v| (v.version.0, v.host.leases))
        .collect();
    assert_eq!(
        versions,
        [(1, 2), (2, 3)],
        "holders of the old version keep it"
    );
}

#[test]
fn what_a_resolution_found_is_as_old_as_its_beginning() {
    let mut settings = config(10);
    settings.revalidate_ms = 1;
    Script::new(settings).run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         at 900
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         at 1000
         > open 1.2 m1
         resolve op3 m1",
    );
}

#[test]
fn with_no_belief_each_open_resolves_once() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    Script::new(settings).run(ONE_RESIDENT).run(
        "> open 1.2 m1
         resolve op4 m1
         > resolved op4 v1 a:1 b:4
         1.2 opened l2 v1 hit [s1 s2]",
    );
}

#[test]
fn no_file_is_needed_for_what_is_all_in_memory() {
    let mut settings = config(10);
    settings.revalidate_ms = 0;
    let mut script = Script::new(settings);
    script.run(ONE_RESIDENT).run(
        "> open 1.2 m1
         resolve op4 m1",
    );
    let served = |script: &Script, model, version| {
        let view = script.core.view();
        view.is_served_from_memory(ModelId(model), VersionId(version))
    };
    assert!(served(&script, 1, 1), "one waits, and all is there");
    assert!(!served(&script, 1, 2), "a version that is not known");
    script.run(
        "> resolved op4 v1 a:1 b:4
         1.2 opened l2 v1 hit [s1 s2]
         > open 1.3 m2
         resolve op5 m2
         > resolved op5 v2 c:2
         load op6 s3 c:2 v2",
    );
    assert!(served(&script, 1, 1), "nobody waits");
    assert!(!served(&script, 2, 2), "on its way");
}

#[test]
fn a_failed_resolution_fails_all_that_wait_for_it() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > open 1.2 m1
         > resolved op1 fails 306
         1.1 failed 306
         1.2 failed 306
         > open 1.3 m1
         resolve op2 m1",
    );
}

#[test]
fn a_failed_load_fails_every_version_that_needs_it_and_no_other() {
    let end = script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:4
         load op2 s1 a:4 v1
         load op3 s2 b:4 v1
         > open 1.2 m2
         resolve op4 m2
         > resolved op4 v2 b:4 c:4
         load op5 s3 c:4 v2
         > open 1.3 m3
         resolve op6 m3
         > resolved op6 v3 a:4
         > loaded op3 fails 303
         1.1 failed 303
         1.2 failed 303
         > loaded op2 c1
         1.3 opened l1 v3 joined [s1]
         > loaded op5 c3
         > open 1.4 m2
         resolve op7 m2
         > resolved op7 v2 b:4 c:4
         load op8 s4 b:4 v2
         > loaded op8 c2
         1.4 opened l2 v2 loaded [s4 s3]",
    );
    assert_eq!(end.core.view().ledger(Tier::Host).charged.0, 12);
}

#[test]
fn a_failed_load_of_all_there_was_forgets_the_version() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > loaded op2 fails 303
         1.1 failed 303
         forget v1
         > open 1.2 m1
         resolve op3 m1",
    );
}

#[test]
fn a_model_in_use_is_looked_at_again_behind_its_hits_and_never_believed_for_longer() {
    let mut settings = config(10);
    settings.revalidate_ms = 10;
    let mut script = crate::support::Script::new(settings);
    script.run(ONE_RESIDENT).run(
        "at 4999
         > open 1.2 m1
         1.2 opened l2 v1 hit [s1 s2]
         at 5000
         > open 1.3 m1
         1.3 opened l3 v1 hit [s1 s2]
         resolve op4 m1
         at 9999
         > open 1.4 m1
         1.4 opened l4 v1 hit [s1 s2]
         at 10000
         > open 1.5 m1
         > resolved op4 v1 a:1 b:4
         1.5 opened l5 v1 hit [s1 s2]
         at 14999
         > open 1.6 m1
         1.6 opened l6 v1 hit [s1 s2]
         resolve op5 m1
         > resolved op5 fails 303
         > open 1.7 m1
         1.7 opened l7 v1 hit [s1 s2]
         resolve op6 m1
         at 15000
         > open 1.8 m1
         > resolved op6 v2 c:1
         load op7 s3 c:1 v2
         > loaded op7 c3
         1.8 opened l8 v2 loaded [s3]",
    );
}

#[test]
fn a_model_that_changes_while_it_is_resolved_is_resolved_again() {
    script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > changed m1
         > resolved op1 v1 a:4
         resolve op2 m1
         > resolved op2 v2 b:4
         load op3 s1 b:4 v2
         > loaded op3 c1
         1.1 opened l1 v2 loaded [s1]
         > changed m1
         > open 1.2 m1
         resolve op4 m1
         > resolved op4 fails 201
         1.2 failed 201
         > close 1.3 l1
         1.3 closed",
    );
}

#[test]
fn what_an_open_waits_for_can_be_seen() {
    use mrm_core::id::{RequestId, SegmentId, SessionId};
    use mrm_core::view::{SegmentState, Stage};
    let mut script = script(
        10,
        "> session 1
         > open 1.1 m1
         resolve op1 m1",
    );
    let pending = |script: &Script, n| {
        script
            .core
            .view()
            .pending_segments(SessionId(1), RequestId(n))
    };
    assert_eq!(pending(&script, 1).unwrap().stage, Stage::Resolve);
    script.run(
        "> resolved op1 v1 a:1 b:4
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > loaded op2 c1",
    );
    let load = pending(&script, 1).unwrap();
    let states: Vec<_> = load
        .segments
        .iter()
        .map(|slot| (slot.segment, slot.state))
        .collect();
    assert_eq!(load.stage, Stage::Load);
    assert_eq!(
        states,
        [
            (Some(SegmentId(1)), SegmentState::Resident),
            (Some(SegmentId(2)), SegmentState::Loading)
        ]
    );
    assert_eq!(pending(&script, 2), None);
    let waiting = script.core.view().waiting();
    assert_eq!((waiting.resolve, waiting.room, waiting.load), (0, 0, 1));
}

#[test]
fn what_must_be_loaded_is_resolved_first_however_fresh_but_a_load_in_flight_is_joined() {
    script(
        20,
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4 b:4
         load op2 s1 a:4 v1
         load op3 s2 b:4 v1
         > open 1.2 m1
         > loaded op2 c1
         > loaded op3 fails 303
         1.1 failed 303
         1.2 failed 303
         > open 1.3 m1
         resolve op4 m1
         > resolved op4 v1 a:4 b:4
         load op5 s3 b:4 v1
         > loaded op5 c2
         1.3 opened l1 v1 loaded [s1 s3]",
    );
}

//! What policies are told, what they may decide, and how it is explained.

use crate::support::{ON_HOST, Script, config, script, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::violation::Violation;

/// Budget 10: m1 = a:4 took a second to load, m2 = b:4 ten, both used twice, m2 longer ago.
const CHEAP_AND_DEAR: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a:4
    load op2 s1 a:4 v1
    > took op2 1000000
    > loaded op2 c1
    1.1 opened l1 v1 loaded [s1]
    > open 1.2 m2
    resolve op3 m2
    > resolved op3 v2 b:4
    load op4 s2 b:4 v2
    > took op4 10000000
    > loaded op4 c2
    1.2 opened l2 v2 loaded [s2]
    at 2000000
    > open 1.3 m2
    1.3 opened l3 v2 hit [s2]
    > open 1.4 m1
    1.4 opened l4 v1 hit [s1]
    > close 1 l2
    > close 1 l3
    at 2500000
    > close 1 l1
    > close 1 l4
    at 3000000
";

const THIRD: &str = "
    > open 1.5 m3
    resolve op5 m3
    > resolved op5 v3 c:5
";

#[test]
fn what_is_dear_to_load_stays_where_the_policy_counts_it() {
    for (policy, victim) in [
        ("lru", "s2"),
        ("gdsf", "s1"),
        ("cremebrulee", "s1"),
        ("gc", "s1"),
        // Nothing but LRU is followed before much was lost.
        ("mix", "s2"),
    ] {
        let mut settings = config(10);
        settings.policy = policy.parse().unwrap();
        let third = format!("{THIRD} free op6 {victim}");
        Script::new(settings).run(CHEAP_AND_DEAR).run(&third);
    }
}

#[test]
fn a_policy_changed_at_run_time_knows_what_was_before() {
    let mut script = script(10, CHEAP_AND_DEAR);
    script.run("> policy host gc");
    script.run(&format!("{THIRD} free op6 s1"));
    let view = script.core.view();
    assert_eq!(view.policy(Tier::Host).unwrap().to_string(), "gc");
}

#[test]
fn a_policy_for_a_tier_that_is_not_there_is_a_violation() {
    let violation = script(10, "").violation("policy d0 gc");
    assert_eq!(violation, Violation::UnknownDevice(DeviceId(0)));
}

#[test]
fn only_loads_take_time() {
    let mut script = script(10, "> session 1\n> open 1.1 m1\nresolve op1 m1");
    let violation = script.violation("took op1 5");
    assert_eq!(violation, Violation::WrongCompletion(OpId(1)));
    assert_eq!(
        script.violation("took op7 5"),
        Violation::UnknownOp(OpId(7))
    );
}

#[test]
fn an_eviction_is_explained_until_the_next_event() {
    let mut settings = config(10);
    settings.policy = "gdsf".parse().unwrap();
    let mut script = Script::new(settings);
    script.run(CHEAP_AND_DEAR);
    let now = script.now;
    let before = script.core.view().utility(VersionId(1), Tier::Host, now);
    script.run(&format!("{THIRD} free op6 s1"));
    let view = script.core.view();
    let [why] = view.explained() else {
        panic!("{:?}", view.explained());
    };
    assert_eq!(
        (why.tier, why.version, why.policy),
        (Tier::Host, VersionId(1), "gdsf")
    );
    assert_eq!((why.model, why.candidates), (Some(ModelId(1)), 2));
    // Two uses times one second by four bytes; ten seconds for the one that stays.
    assert_eq!((why.utility, why.spared), (0.5, Some((VersionId(2), 5.0))));
    let factors: Vec<_> = why.factors.iter().map(|of| (of.name, of.value)).collect();
    let expected = [
        ("clock", 0.0),
        ("uses", 2.0),
        ("reload_s", 1.0),
        ("bytes", 4.0),
    ];
    assert_eq!(factors, expected);
    let before = before.unwrap();
    assert_eq!(
        (before.utility, before.rank, before.candidates),
        (0.5, 0, 2)
    );
    assert_eq!(
        view.utility(VersionId(1), Tier::Host, now),
        None,
        "it is gone"
    );
    script.run("> freed op6\nload op7 s3 c:5 v3\nforget v1");
    assert!(script.core.view().explained().is_empty());
    // What is gone is remembered.
    assert!(script.core.view().remembers(ModelId(1)));
}

#[test]
fn a_held_version_has_a_utility_too() {
    let mut script = script(10, "");
    script.run(ON_HOST.trim_end());
    let now = script.now;
    let view = script.core.view();
    let held = view.utility(VersionId(1), Tier::Host, now).unwrap();
    assert_eq!((held.policy, held.rank, held.candidates), ("mix", 0, 1));
    assert_eq!(view.utility(VersionId(2), Tier::Host, now), None);
}

#[test]
fn the_first_use_goes_to_the_host_where_that_will_do() {
    let mut settings = with_devices(20, &[10]);
    settings.devices[0].policy = "lru,second-use=yes".parse().unwrap();
    Script::new(settings).run(
        "> session 1
         > open 1.1 m1 on best:d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5/2
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         > loaded op2 c1
         > loaded op3 c2
         1.1 opened l1 v1 loaded [s1 s2]
         > open 1.2 m1 on best:d0
         resolve op4 m1
         > resolved op4 v1 a=1 b:4 i@5/2
         load op5 s3 i:5 v1 on d0 from [s2]
         > loaded op5 c3
         1.2 opened l2 v1 on d0 promoted [s1 s3]
         > open 1.3 m2 on d0
         resolve op6 m2
         > resolved op6 v2 c=1 d:4 j@5/2
         load op7 s4 c:1 v2
         load op8 s5 d:4 v2
         load op9 s6 j:5 v2 on d0 from [s5]",
    );
}

#[test]
fn what_the_host_still_has_is_cheap_to_get_back_to_a_device() {
    let mut settings = with_devices(30, &[10]);
    settings.devices[0].policy = "gdsf".parse().unwrap();
    let mut script = Script::new(settings);
    script.run(
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a:4 i@5
         load op2 s1 a:4 v1
         load op3 s2 i:5 v1 on d0 from [s1]
         at 1000000
         > loaded op2 c1
         at 2000000
         > loaded op3 c2
         1.1 opened l1 v1 on d0 loaded [s2]
         > close 1 l1",
    );
    let reload_s = |script: &Script| {
        let view = script.core.view();
        let tier = Tier::Device(DeviceId(0));
        let utility = view.utility(VersionId(1), tier, script.now).unwrap();
        let factor = utility.factors.iter().find(|of| of.name == "reload_s");
        factor.unwrap().value
    };
    // A copy up has not been measured yet: half a millisecond and next to nothing.
    assert_eq!(reload_s(&script), 0.000_5);
    script.run("> evict 1.2 v1 on host\nfree op4 s1\n> freed op4\n1.2 evicted 4");
    // From the files it took two seconds.
    assert_eq!(reload_s(&script), 2.0);
}

#[test]
fn cremebrulee_keeps_the_fewest_and_largest_victims() {
    let resident = "
        > session 1
        > open 1.1 m1
        resolve op1 m1
        > resolved op1 v1 a:2
        load op2 s1 a:2 v1
        > loaded op2 c1
        1.1 opened l1 v1 loaded [s1]
        > open 1.2 m2
        resolve op3 m2
        > resolved op3 v2 b:3
        load op4 s2 b:3 v2
        > loaded op4 c2
        1.2 opened l2 v2 loaded [s2]
        > open 1.3 m3
        resolve op5 m3
        > resolved op5 v3 c:5
        load op6 s3 c:5 v3
        > loaded op6 c3
        1.3 opened l3 v3 loaded [s3]
        > gone 1
        > session 2
        > open 2.4 m4
        resolve op7 m4
        > resolved op7 v4 d:6
    ";
    // In the order of use 2, 3 and 5 go; without the 3 they suffice.
    let mut lru = Script::new(config(10));
    lru.run(&format!("{resident} free op8 s1\nfree op9 s3"));
    let mut settings = config(10);
    settings.policy = "lru,give-back=no".parse().unwrap();
    let mut all = Script::new(settings);
    all.run(&format!(
        "{resident} free op8 s1\nfree op9 s2\nfree op10 s3"
    ));
    // A load takes no time here, so all weigh nothing, and the oldest go first: 2, 3 and 5. The
    // largest two suffice.
    let mut settings = config(10);
    settings.policy = "cremebrulee".parse().unwrap();
    let mut largest = Script::new(settings);
    largest.run(&format!("{resident} free op8 s3\nfree op9 s2"));
}

/// How often a version counts as used.
fn uses(script: &Script, version: u64) -> f64 {
    let view = script.core.view();
    let utility = view.utility(VersionId(version), Tier::Host, script.now);
    utility.unwrap().utility
}

#[test]
fn files_that_are_passed_again_under_another_number_are_the_same_model() {
    let mut settings = config(10);
    settings.policy = "lfu".parse().unwrap();
    let mut script = Script::new(settings);
    script.run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         > changed m1
         > open 1.2 m2
         resolve op3 m2
         > resolved op3 v1 a:4
         1.2 opened l2 v1 hit [s1]
         > changed m2
         > close 1 l1
         > close 1 l2",
    );
    assert_eq!(uses(&script, 1), 2.0);
    assert!(!script.core.view().remembers(ModelId(2)));
}

#[test]
fn an_old_version_has_no_part_in_what_its_model_stands_for_now() {
    let mut settings = config(10);
    settings.policy = "lfu".parse().unwrap();
    let mut script = Script::new(settings);
    script.run(
        "> session 1
         > open 1.1 m1
         resolve op1 m1
         > resolved op1 v1 a:4
         load op2 s1 a:4 v1
         > loaded op2 c1
         1.1 opened l1 v1 loaded [s1]
         > changed m1
         > open 1.2 m1
         resolve op3 m1
         > resolved op3 v2 b:4
         load op4 s2 b:4 v2
         > loaded op4 c2
         1.2 opened l2 v2 loaded [s2]",
    );
    assert_eq!((uses(&script, 1), uses(&script, 2)), (0.0, 2.0));
}

/// Host 10, one device of 10: m1 on both, then m2 = c:4 in host memory, used later.
const UPLOADED: &str = "
    > session 1
    > open 1.1 m2
    resolve op1 m2
    > resolved op1 v2 c:4
    load op2 s1 c:4 v2
    > loaded op2 c9
    1.1 opened l1 v2 loaded [s1]
    > close 1 l1
    at 10
    > open 1.2 m1 on d0
    resolve op3 m1
    > resolved op3 v1 a=1 b:4 i@5/2
    load op4 s2 a:1 v1
    load op5 s3 b:4 v1
    load op6 s4 i:5 v1 on d0 from [s3]
    > loaded op4 c1
    > loaded op5 c2
    > loaded op6 c3
    1.2 opened l2 v1 on d0 loaded [s2 s4]
    > close 1 l2
    at 20
    > open 1.3 m3
    resolve op7 m3
";

#[test]
fn what_a_device_has_alone_goes_first_from_the_host() {
    let mut settings = with_devices(10, &[10]);
    Script::new(settings)
        .run(UPLOADED)
        .run("> resolved op7 v3 d:4\nfree op8 s1");
    settings = with_devices(10, &[10]);
    settings.devices[0].policy = "lru,exclusive=yes".parse().unwrap();
    let mut script = Script::new(settings);
    script.run(UPLOADED);
    script.run("> resolved op7 v3 d:4\nfree op8 s3");
    // The table stays: what is on the device is lent with it.
    script.run(
        "> freed op8\nload op9 s5 d:4 v3\n> open 1.4 m1 on d0\n1.4 opened l3 v1 on d0 hit [s2 s4]",
    );
}

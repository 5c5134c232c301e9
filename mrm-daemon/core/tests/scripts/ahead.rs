//! What is loaded before it is asked for, and what is not.

use crate::support::{ON_BOTH, ON_HOST, Script, config, script, with_devices};
use mrm_core::id::*;
use mrm_core::ledger::Tier;
use mrm_core::view::AheadView;

/// Budget 10: m1 = a:4, which took a second to load, opened every 10 seconds for a minute; then m2 = b:8
/// comes in its place, and is given back.
const REGULAR: &str = "
    > session 1
    > open 1.1 m1
    resolve op1 m1
    > resolved op1 v1 a:4
    load op2 s1 a:4 v1
    > took op2 1000000
    > loaded op2 c1
    1.1 opened l1 v1 loaded [s1]
    > close 1 l1
    at 10000000
    > open 1.2 m1
    1.2 opened l2 v1 hit [s1]
    > close 1 l2
    at 20000000
    > open 1.3 m1
    1.3 opened l3 v1 hit [s1]
    > close 1 l3
    at 30000000
    > open 1.4 m1
    1.4 opened l4 v1 hit [s1]
    > close 1 l4
    at 40000000
    > open 1.5 m1
    1.5 opened l5 v1 hit [s1]
    > close 1 l5
    at 50000000
    > open 1.6 m1
    1.6 opened l6 v1 hit [s1]
    > close 1 l6
    > open 1.7 m2
    resolve op3 m2
    > resolved op3 v2 b:8
    free op4 s1
    > freed op4
    load op5 s2 b:8 v2
    forget v1
    > took op5 1000
    > loaded op5 c2
    1.7 opened l7 v2 loaded [s2]
    > close 1 l7
";

/// The default follows LRU until it has seen enough: then nothing goes for what is only foreseen.
const FORESEEING: &str = "> policy host gc\n> prefetch 20";

fn counts(script: &Script) -> AheadView {
    script.core.view().ahead()
}

/// Loads m1 ahead in place of m2.
const FORETOLD: &str = "
    at 55000000
    > tick
    resolve op6 m1
    > resolved op6 v1 a:4
    free op7 s2
    > freed op7
    load op8 s3 a:4 v1
    forget v2
    > took op8 1000000
    > loaded op8 c1
";

#[test]
fn what_is_used_at_regular_times_is_loaded_before_the_next() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR).run(FORETOLD);
    let [begun, used] = [counts(&script).begun, counts(&script).used];
    assert_eq!((begun, used), (1, 0));
    script.run(
        "at 60000000
         > open 1.8 m1
         1.8 opened l8 v1 hit [s3]",
    );
    assert_eq!(counts(&script).used, 1);
    assert_eq!(script.core.view().records().ahead, 0);
}

#[test]
fn nothing_goes_for_what_is_foreseen_while_too_little_is_known() {
    let mut script = script(10, "> prefetch 20");
    script.run(REGULAR).run("at 55000000\n> tick");
    assert_eq!(counts(&script).begun, 0);
    // What is said to come is another matter.
    script.run("> hint m1 60000000\nresolve op6 m1\n> resolved op6 v1 a:4\nfree op7 s2");
}

#[test]
fn nothing_is_loaded_ahead_where_that_is_off() {
    let mut script = script(10, REGULAR);
    assert_eq!(script.core.next_deadline(), None);
    script.run("at 55000000\n> tick");
}

#[test]
fn it_is_explained_what_is_loaded_ahead() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR);
    script.run("at 55000000\n> tick\nresolve op6 m1");
    script.run("> resolved op6 v1 a:4\nfree op7 s2");
    let view = script.core.view();
    let [why] = view.foreseen() else {
        panic!("{:?}", view.foreseen());
    };
    assert_eq!(
        (why.copy, why.model),
        (CopyId::host(VersionId(1)), ModelId(1))
    );
    assert_eq!((why.said, why.victims), (false, 1));
    assert!(why.worth > 1.5 * why.displaced, "{why:?}");
    let names: Vec<_> = why.factors.iter().map(|factor| factor.name).collect();
    assert_eq!(names, ["index_per_s", "uses", "reload_s", "bytes"]);
    assert_eq!(view.explained().len(), 1, "and what goes for it");
    script.run("> tick");
    assert!(script.core.view().foreseen().is_empty());
}

#[test]
fn whoever_waits_comes_first() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR);
    // Somebody waits when it is time: not even looked.
    script.run("> open 1.8 m3\nresolve op6 m3");
    script.run("at 55000000\n> tick");
    script.run("> resolved op6 fails 303\n1.8 failed 303");
    script.run("at 57000000\n> hint m1 60000000\nresolve op7 m1");
    // Somebody comes while room is made: it is theirs.
    script.run("> resolved op7 v1 a:4\nfree op8 s2");
    script.run("> open 1.9 m3\nresolve op9 m3\n> freed op8\nforget v1\nforget v2");
    script.run("> resolved op9 v3 c:9\nload op10 s3 c:9 v3");
    assert_eq!(counts(&script).begun, 0);
    assert_eq!(script.core.view().records().ahead, 0);
}

#[test]
fn an_open_joins_what_is_loaded_ahead() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR).run(
        "at 55000000
         > tick
         resolve op6 m1
         > resolved op6 v1 a:4
         free op7 s2
         > freed op7
         load op8 s3 a:4 v1
         forget v2",
    );
    assert!(script.core.view().is_ahead(VersionId(1)));
    script.run("> open 1.8 m1");
    assert!(!script.core.view().is_ahead(VersionId(1)));
    script.run("> loaded op8 c1\n1.8 opened l8 v1 joined [s3]");
    assert_eq!((counts(&script).begun, counts(&script).used), (1, 1));
}

#[test]
fn what_was_loaded_in_vain_is_not_loaded_ahead_again() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR).run(FORETOLD);
    script.run(
        "at 56000000
         > open 1.8 m2
         resolve op9 m2
         > resolved op9 v2 b:8
         free op10 s3
         > freed op10
         load op11 s4 b:8 v2
         forget v1
         > took op11 1000
         > loaded op11 c2
         1.8 opened l8 v2 loaded [s4]
         > close 1 l8",
    );
    assert_eq!((counts(&script).wasted, counts(&script).used), (1, 0));
    script.run("at 75000000\n> tick\nat 95000000\n> tick");
}

#[test]
fn what_is_there_stays_if_it_is_worth_more() {
    let mut script = script(10, FORESEEING);
    // m2 takes longer to load, and is said to come as well, and sooner.
    script.run(&REGULAR.replace("took op5 1000", "took op5 5000000"));
    script.run("> hint m2 55000000\n> hint m1 85000000");
    script.run("at 52000000\n> tick");
    assert_eq!(counts(&script).hints, 2);
}

#[test]
fn what_is_said_to_come_is_loaded_though_prediction_is_off() {
    let mut script = script(10, "> hint m1 30000000\nresolve op1 m1");
    script.run("> resolved op1 v1 a:4\nload op2 s1 a:4 v1\n> loaded op2 c1");
    assert_eq!((counts(&script).begun, counts(&script).hints), (1, 1));
    script.run("> session 1\n> open 1.1 m1\n1.1 opened l1 v1 hit [s1]");
    assert_eq!((counts(&script).used, counts(&script).hints), (1, 0));
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn a_hint_that_did_not_come_true_is_forgotten() {
    let mut script = script(10, "> hint m1 30000000\nresolve op1 m1");
    script.run("> resolved op1 fails 303");
    assert!(script.core.view().remembers(ModelId(1)));
    assert_eq!(counts(&script).failed, 1);
    script.run("at 80000000\n> tick\nat 95000000\n> tick");
    assert!(!script.core.view().remembers(ModelId(1)));
    assert_eq!(script.core.take_forgotten(), [ModelId(1)]);
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn what_comes_late_is_loaded_when_it_is_near() {
    let mut script = script(10, "> hint m1 300000000");
    assert_eq!(script.core.next_deadline(), Some(Time(1_000_000)));
    script.run("at 170000000\n> tick\nat 185000000\n> tick\nresolve op1 m1");
}

#[test]
#[cfg_attr(miri, ignore = "thousands of times the same event")]
fn hints_are_bounded() {
    let mut script = Script::new(config(0));
    for model in 0..3000 {
        let event = format!("hint m{model} 900000000");
        script.run(&format!("> {event}"));
    }
    assert_eq!(counts(&script).hints, 1024);
}

#[test]
fn a_drain_ends_it() {
    let mut script = script(10, FORESEEING);
    script.run(REGULAR).run(
        "at 55000000
         > tick
         resolve op6 m1
         > resolved op6 v1 a:4
         free op7 s2
         > drain
         forget v1
         > freed op7
         forget v2",
    );
    assert_eq!(script.core.view().records().ahead, 0);
    assert_eq!(script.core.next_deadline(), None);
}

#[test]
fn a_model_comes_back_to_the_device_that_it_was_used_on() {
    let mut script = Script::new(with_devices(20, &[10]));
    script.run(
        "> session 1
         > open 1.1 m1 on d0
         resolve op1 m1
         > resolved op1 v1 a=1 b:4 i@5/2
         load op2 s1 a:1 v1
         load op3 s2 b:4 v1
         load op4 s3 i:5 v1 on d0 from [s2]
         > loaded op2 c1
         > loaded op3 c2
         > loaded op4 c3
         1.1 opened l1 v1 on d0 loaded [s1 s3]
         > close 1 l1
         > evict 1.2 v1 on d0
         free op5 s3 on d0
         > freed op5
         1.2 evicted 5
         > hint m1 1000000
         resolve op6 m1
         > resolved op6 v1 a=1 b:4 i@5/2
         load op7 s4 i:5 v1 on d0 from [s2]
         > loaded op7 c3
         > open 1.3 m1 on d0
         1.3 opened l2 v1 on d0 hit [s1 s4]",
    );
    assert_eq!((counts(&script).begun, counts(&script).used), (1, 1));
}

/// A device of 10, all of which one user may keep free. m1 had so much free beside its image of 5,
/// and is in host memory again; m2's image of 3 is held.
fn worked(keep: u64) -> Script {
    let mut config = with_devices(20, &[10]);
    config.devices[0].user_reserve_percent = 100;
    let mut script = Script::new(config);
    script.run(ON_HOST).run(ON_BOTH).run(&format!(
        "> open 1.3 m1 on d0 keep {keep}
         1.3 opened l3 v1 on d0 hit [s1 s3]
         > close 1 l3
         > close 1 l2
         > evict 1.4 v1 on d0
         free op6 s3 on d0
         > freed op6
         1.4 evicted 5
         > open 1.5 m2 on d0
         resolve op7 m2
         > resolved op7 v2 d:4 e@3
         load op8 s4 d:4 v2
         load op9 s5 e:3 v2 on d0 from [s4]
         > loaded op8 c7
         > loaded op9 c8
         1.5 opened l4 v2 on d0 loaded [s5]"
    ));
    let view = script.core.view();
    assert_eq!(view.reserve_of(ModelId(1)), Bytes(keep));
    assert_eq!(view.reserve_of(ModelId(2)), Bytes::ZERO);
    script
}

const LOADS_M1: &str = "
    > hint m1 1000000
    resolve op10 m1
    > resolved op10 v1 a=1 b:4 i@5/2
    load op11 s6 i:5 v1 on d0 from [s2]
";

#[test]
fn there_must_be_room_for_what_was_kept_free_of_late_too() {
    worked(2).run(LOADS_M1);
    // 5 and 3 do not fit beside the 3 that are held.
    let mut script = worked(3);
    script.run("> hint m1 1000000");
    assert_eq!(counts(&script).begun, 0);
    // Once they are not, they go for it.
    script.run(
        "> close 1 l4
         at 1000000
         > tick
         resolve op10 m1
         > resolved op10 v1 a=1 b:4 i@5/2
         free op11 s5 on d0
         > freed op11
         load op12 s6 i:5 v1 on d0 from [s2]",
    );
    // It is looked for, and not kept.
    let device = Tier::Device(DeviceId(0));
    assert_eq!(script.core.view().ledger(device).reserved, Bytes::ZERO);
}

//! Runs whose figures can be worked out by hand, and what holds of every run.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use mrm_core::ledger::Tier;
use mrm_simulate::contender::Contender;
use mrm_simulate::engine::{Setup, run};
use mrm_simulate::figures::Row;
use mrm_simulate::plot::{against_memory, residency};
use mrm_simulate::size::Sizes;
use mrm_simulate::study::{Options, study};
use proptest::prelude::*;
use support::{ALL, contender, outcome, workload};

#[test]
fn lru_by_hand() {
    // Room for two of 10 bytes. a b a c b a: c drops b, b drops a, a drops c.
    let asked = [(0, 0), (10, 1), (20, 0), (30, 2), (40, 1), (50, 0)];
    let day = workload(&[(10, 1), (10, 2), (10, 4)], &asked, 1_000_000);
    let done = outcome(&day, "lru", 20);
    assert_eq!((done.requests, done.misses), (6, 5));
    assert_eq!(done.load_us, (1 + 2 + 4 + 2 + 1) * 1_000_000);
    assert_eq!(done.evictions, 3);
    let row = Row::of(("lru", "20B"), 20, &done);
    assert!((row.object_miss_ratio - 5.0 / 6.0).abs() < 1e-12);
    assert!((row.mean_s - 10.0 / 6.0).abs() < 1e-12);
    assert_eq!((row.p50_s, row.p99_s), (1.0, 4.0));
    assert_eq!(row.load_over_exec, Some(10.0 / 6.0));
}

#[test]
fn cremebrulee_orders_as_worked_out_by_hand() {
    // Uses, load seconds, bytes: a 3, 2, 10; b 1, 8, 20; c 2, 3, 30. Of (n / 3) (c / 8) / s:
    // a 1 * 0.25 / 10 = 0.025; b 0.333 / 20 = 0.0167; c 0.667 * 0.375 / 30 = 0.0083.
    // So 10 more bytes drop c, 30 more drop c alone, and 40 more drop b and c.
    let asked = |size: u32| {
        [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 1),
            (4, 2),
            (5, 2),
            (10, size),
            (11, 0),
            (12, 1),
            (13, 2),
        ]
    };
    let models = [(10, 2), (20, 8), (30, 3), (10, 1), (30, 1), (40, 1)];
    for (size, missed_again) in [(3, vec![2]), (4, vec![2]), (5, vec![1, 2])] {
        let day = workload(&models, &asked(size), 1000);
        let all = outcome(&day, "cremebrulee", 60);
        let once: u64 = 3 + 1;
        assert_eq!(all.misses, once + missed_again.len() as u64, "{size}");
        let again: u64 = missed_again
            .iter()
            .map(|model: &usize| models[*model].1)
            .sum();
        let first: u64 = 2 + 8 + 3 + models[size as usize].1;
        assert_eq!(
            all.load_us,
            u128::from((first + again) * 1_000_000),
            "{size}"
        );
    }
}

#[test]
fn the_oracle_keeps_what_comes_back_and_costs_most() {
    let asked = [(0, 0), (1, 1), (2, 2), (3, 0), (4, 1)];
    let day = workload(&[(10, 9), (10, 1), (10, 1)], &asked, 1000);
    let lru = outcome(&day, "lru", 20).load_us;
    let oracle = outcome(&day, "cremebrulee-oracle", 20).load_us;
    assert_eq!((lru, oracle), (21_000_000, 12_000_000));
    let sizes: Sizes = "20B".parse().unwrap();
    let contenders = [contender("lru"), Contender::oracle()]
        .into_iter()
        .collect();
    let done = study(&day, &Options::new(contenders, sizes), &|_, _| {}).unwrap();
    assert_eq!(done.rows[0].gap_closed, Some(0.0));
    assert_eq!(done.rows[1].gap_closed, Some(1.0));
}

#[test]
fn timed_loads_are_joined() {
    // A load of 10 s: the second comes in its middle, the third after its end.
    let day = workload(&[(10, 10)], &[(0, 0), (4, 0), (11, 0)], 1000);
    let mut setup = Setup::new(&day, contender("lru"), 10);
    setup.timed = true;
    let done = run(&setup, &mut |_| {}).unwrap();
    assert_eq!((done.misses, done.load_us), (2, 10_000_000));
    assert_eq!(done.delays_us, [6_000_000, 10_000_000]);
}

#[test]
fn a_device_is_filled_from_the_host_at_the_speed_of_the_link() {
    // Room for one on the device, for both in the host.
    let day = workload(
        &[(1200, 5), (1200, 5)],
        &[(0, 0), (10, 1), (20, 0), (30, 0)],
        1000,
    );
    let mut setup = Setup::new(&day, contender("lru"), 2400);
    setup.device_bytes = Some(1200);
    setup.upload_bytes_per_s = 1200;
    setup.timeline = true;
    let done = run(&setup, &mut |_| {}).unwrap();
    // Two from files, 5 s each while the upload goes on; one back from the host, 1 s; one hit.
    assert_eq!((done.misses, done.load_us), (3, 11_000_000));
    let on_device = done.timeline.iter().filter(|one| one.tier != Tier::Host);
    assert_eq!(on_device.count(), 3);
    setup.host_bytes = 0;
    let without = run(&setup, &mut |_| {}).unwrap();
    assert_eq!(
        (without.misses, without.load_us),
        (3, 15_000_000),
        "files each time"
    );
}

#[test]
fn pictures_have_a_line_for_each_policy_and_say_what_they_show() {
    let asked: Vec<(u64, u32)> = (0..200).map(|at| (at * 30, (at * at % 7) as u32)).collect();
    let models = [(10, 1), (20, 2), (30, 3), (10, 9), (50, 1), (5, 1), (7, 7)];
    let mut day = workload(&models, &asked, 1000);
    day.models[3].name = "a<b>&\"c\"\u{1}".to_owned();
    let sizes: Sizes = "10%..60%".parse().unwrap();
    let mut options = Options::new("lru,gc,belady".parse().unwrap(), sizes.clone());
    options.timeline = true;
    let done = study(&day, &options, &|_, _| {}).unwrap();
    assert_eq!(done.rows.len(), 3 * sizes.all().len());
    for (file, lines) in against_memory(&done.rows, sizes.all()) {
        let svg = lines.svg();
        assert_eq!(svg.matches("<polyline").count(), 3, "{file}");
        assert!(svg.contains(">belady</text>"), "{file}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    assert_eq!(done.timelines.len(), 3);
    let svg = residency(&day, &done.timelines[1]);
    assert!(svg.contains("Resident under gc at 30%"), "{svg}");
    assert!(
        svg.contains("a&lt;b&gt;&amp;&quot;c&quot;\u{fffd}"),
        "{svg}"
    );
    assert!(svg.matches("<rect").count() > 7, "{svg}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is asked for: every request is answered, no more is missed than asked, nothing is
    /// missed twice where all fits, and a run is the same again.
    #[test]
    fn every_run_adds_up(
        models in prop::collection::vec((1u64..50, 0u64..20), 1..8),
        asked in prop::collection::vec((0u64..5, any::<prop::sample::Index>()), 1..60),
        exec_us in 0u64..20_000_000,
        host in 1u64..120,
        policy in prop::sample::select(&ALL[..]),
        timed: bool,
    ) {
        let mut now = 0;
        let asked: Vec<(u64, u32)> = asked
            .into_iter()
            .map(|(after, model)| {
                now += after;
                (now, model.index(models.len()) as u32)
            })
            .collect();
        let day = workload(&models, &asked, exec_us);
        let mut setup = Setup::new(&day, contender(policy), host);
        setup.timed = timed;
        let done = run(&setup, &mut |_| {}).unwrap();
        prop_assert_eq!(done.requests, asked.len() as u64);
        prop_assert!(done.misses <= done.requests);
        prop_assert_eq!(done.refused, 0);
        prop_assert_eq!(&run(&setup, &mut |_| {}).unwrap(), &done);
        let all: u64 = models.iter().map(|(bytes, _)| bytes).sum();
        setup.host_bytes = all;
        let roomy = run(&setup, &mut |_| {}).unwrap();
        prop_assert_eq!(roomy.evictions, 0);
        if !timed {
            let different: std::collections::BTreeSet<u32> =
                asked.iter().map(|(_, model)| *model).collect();
            prop_assert_eq!(roomy.misses, different.len() as u64);
        }
    }
}

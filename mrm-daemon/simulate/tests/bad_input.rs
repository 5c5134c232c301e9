//! What is wrong with an input is said with its line and its remedy, or does no harm.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use mrm_simulate::engine::{Oversize, Setup, run};
use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Unknown, Workload};
use std::io::Write as _;
use support::{ALL, catalogue, contender, outcome, trace, workload};

/// The trace is refused, at this line, with these words.
fn refused(text: &str, line: u64, words: &str) {
    let error = trace(text.as_bytes()).expect_err(text);
    assert_eq!(error.line, Some(line), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.to_string().starts_with("trace.csv:"), "{error}");
}

#[test]
fn times_that_go_back_or_are_negative_are_refused() {
    refused("t_s,model\n0,a\n5,b\n4.9,a\n", 4, "sort the trace");
    refused("t_s,model\n-1,a\n", 2, "negative");
    refused("t_s,model\nnan,a\n", 2, "finite");
    refused("t_s,model\ninf,a\n", 2, "finite");
    refused("t_s,model\n1e300,a\n", 2, "finite");
    refused("t_s,model\nsoon,a\n", 2, "no number");
    refused(
        "app,func,end_timestamp,duration\na,f,10,-1\n",
        2,
        "negative",
    );
}

#[test]
fn lines_that_are_not_of_the_format_are_refused() {
    refused("t_s,model\n1\n", 2, "t_s,model");
    refused("t_s,model\n1,a,b\n", 2, "more fields");
    refused("t_s,model\n1,\n", 2, "no name");
    refused("minute,func,count\n1,a\n", 2, "minute,func,count");
    refused("minute,func,count\n1,a,-3\n", 2, "`count`");
    refused("minute,func,count\n99999999999,a,1\n", 2, "thousand years");
    refused(
        "HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,1,x\n",
        2,
        "`count`",
    );
    refused("app,func,end_timestamp,duration\na,f,10\n", 2, "fields");
    refused(
        &format!("t_s,model\n1,{}\n", "a".repeat(1 << 17)),
        2,
        "too long",
    );
}

#[test]
fn a_file_of_another_kind_is_refused_with_the_kinds_that_are_known() {
    for other in ["", "\n", "name,size\n", "{}", "t_s;model\n"] {
        let error = trace(other.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("t_s,model") && error.contains("Azure"),
            "{error}"
        );
    }
    let error = trace(b"t_s,model\n0,\xff\n").unwrap_err().to_string();
    assert!(error.contains("not text"), "{error}");
    let error = trace(b"t_s,model\n").unwrap_err().to_string();
    assert!(error.contains("no request"), "{error}");
}

#[test]
fn a_compressed_file_that_is_cut_off_is_refused() {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    let lines: String = (0..5000).map(|at| format!("{at},m{}\n", at % 7)).collect();
    write!(packed, "t_s,model\n{lines}").unwrap();
    let packed = packed.finish().unwrap();
    assert_eq!(trace(&packed).unwrap().requests.len(), 5000);
    let cut = trace(&packed[..packed.len() / 2]).unwrap_err();
    assert!(cut.line.is_some(), "{cut}");
}

#[test]
fn more_requests_than_fit_are_refused_before_they_are_made() {
    let options = TraceOptions {
        requests_max: 1000,
        ..TraceOptions::default()
    };
    let read = |text: &str| Trace::read("trace.csv".as_ref(), text.as_bytes(), &options);
    let many = "minute,func,count\n0,a,18446744073709551615\n0,b,18446744073709551615\n";
    let error = read(many).unwrap_err().to_string();
    assert!(error.contains("more than 1000 requests"), "{error}");
    let wide = "HashOwner,HashApp,HashFunction,Trigger,1\no,a,f,http,1001\n";
    assert!(read(wide).is_err());
    let lines: String = (0..1001).map(|at| format!("{at},a\n")).collect();
    assert!(read(&format!("t_s,model\n{lines}")).is_err());
}

#[test]
fn a_catalogue_with_what_cannot_be_is_refused() {
    for (line, words) in [
        ("a,0,1,1", "size of zero"),
        ("a,-1,1,1", "no whole number"),
        ("a,1.5,1,1", "no whole number"),
        ("a,1,-1,1", "negative"),
        ("a,1,inf,1", "finite"),
        ("a,1,1,nan", "finite"),
        ("a,1,1", "fields"),
        (",1,1,1", "no name"),
        ("b,1,1,1\nb,2,1,1", "came before"),
    ] {
        let error = catalogue(line).unwrap_err();
        assert!(error.to_string().contains(words), "{line}: {error}");
        assert!(error.line.is_some_and(|line| line >= 2), "{error}");
    }
    let empty = catalogue("").unwrap_err().to_string();
    assert!(empty.contains("no model"), "{empty}");
}

#[test]
fn unknown_models_are_named_skipped_or_drawn() {
    let trace = trace(b"t_s,model\n0,a\n1,b\n2,c\n3,b\n").unwrap();
    let models = catalogue("a,10,1,1\n").unwrap();
    let bind = |unknown| Workload::of(&trace, &models, &Binding { unknown, seed: 1 });
    let error = bind(Unknown::Refuse).unwrap_err();
    assert_eq!((error.unknown, error.first.as_str()), (2, "b"));
    assert!(error.to_string().contains("--skip-unknown"), "{error}");
    let (skipped, notes) = bind(Unknown::Skip).unwrap();
    assert_eq!((skipped.requests.len(), skipped.models.len()), (1, 1));
    assert!(
        notes[0].starts_with("3 of 4 requests left out"),
        "{notes:?}"
    );
    let (drawn, notes) = bind(Unknown::Draw).unwrap();
    assert_eq!((drawn.requests.len(), drawn.models.len()), (4, 3));
    assert_eq!(drawn.models[2].bytes, 10);
    assert!(notes[0].contains("seed 1"), "{notes:?}");
}

#[test]
fn a_model_that_never_fits_is_loaded_for_itself_or_refused() {
    let day = workload(
        &[(100, 7), (10, 1)],
        &[(0, 0), (1, 1), (2, 0), (3, 1)],
        1000,
    );
    for policy in ALL {
        let mut setup = Setup::new(&day, contender(policy), 50);
        let transient = run(&setup, &mut |_| {}).unwrap();
        assert_eq!((transient.requests, transient.refused), (4, 0), "{policy}");
        assert_eq!(
            (transient.misses, transient.load_us),
            (3, 15_000_000),
            "{policy}"
        );
        setup.oversize = Oversize::Refuse;
        let refused = run(&setup, &mut |_| {}).unwrap();
        assert_eq!((refused.requests, refused.refused), (2, 2), "{policy}");
        assert_eq!(refused.load_us, 1_000_000, "{policy}");
        // The cache is smaller than any model.
        setup.host_bytes = 5;
        let none = run(&setup, &mut |_| {}).unwrap();
        assert_eq!((none.requests, none.refused), (0, 4), "{policy}");
    }
}

#[test]
fn clocks_that_jump_do_no_harm() {
    const YEAR_S: u64 = 31_557_600;
    let asked = [
        (0, 0),
        (0, 1),
        (1, 0),
        (900 * YEAR_S, 0),
        (900 * YEAR_S, 1),
        (900 * YEAR_S + 1, 0),
    ];
    let day = workload(&[(10, 1), (10, 2)], &asked, 1000);
    for policy in ALL {
        for prefetch in [false, true] {
            let mut setup = Setup::new(&day, contender(policy), 15);
            setup.prefetch = prefetch;
            let done = run(&setup, &mut |_| {}).unwrap();
            assert_eq!(done.requests, 6, "{policy}");
            assert!(done.load_us > 0, "{policy}");
        }
    }
}

#[test]
fn loads_that_take_nothing_or_for_ever_do_no_harm() {
    for load_us in [0, u64::MAX] {
        let asked: Vec<(u64, u32)> = (0..40).map(|at| (at, (at % 4) as u32)).collect();
        let mut day = workload(&[(10, 1), (10, 2), (10, 3), (10, 4)], &asked, 1000);
        day.models[2].load_us = load_us;
        for policy in ALL {
            let done = outcome(&day, policy, 25);
            assert_eq!(done.requests, 40, "{policy}");
            let mut timed = Setup::new(&day, contender(policy), 25);
            timed.timed = true;
            run(&timed, &mut |_| {}).unwrap();
        }
    }
}

#[test]
fn all_leased_means_to_wait() {
    // Two fit, and run for 100 s; the third waits for the first to end.
    let day = workload(
        &[(10, 1), (10, 2), (10, 4)],
        &[(0, 0), (1, 1), (2, 2)],
        100_000_000,
    );
    for policy in ALL {
        let done = outcome(&day, policy, 20);
        assert_eq!((done.requests, done.misses), (3, 3), "{policy}");
        assert_eq!(done.wait_us, 98_000_000, "{policy}");
        assert_eq!(
            done.delays_us,
            [1_000_000, 2_000_000, 102_000_000],
            "{policy}"
        );
    }
}

#[test]
fn a_hundred_thousand_models_all_of_them_leased() {
    let count = 100_000;
    let models: Vec<(u64, u64)> = (0..count).map(|of| (10 + of % 7, 1 + of % 5)).collect();
    let mut asked: Vec<(u64, u32)> = (0..count).map(|of| (0, of as u32)).collect();
    asked.extend((0..10).map(|at| (10 + at, at as u32 * 7)));
    // Each runs to the end, and beyond.
    let day = workload(&models, &asked, 1_000_000_000);
    let all: u64 = models.iter().map(|(bytes, _)| bytes).sum();
    for policy in ["lru", "gc", "mix", "s3-fifo"] {
        let done = outcome(&day, policy, all - 5);
        assert_eq!(done.requests, count + 10, "{policy}");
        // The last finds no room until others end.
        assert!(done.wait_us > 900_000_000, "{policy}: {}", done.wait_us);
        assert!(done.misses >= count, "{policy}");
    }
}

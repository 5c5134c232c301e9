//! What policies look at: history, reload times, and their own settings.

use super::super::history::{bounds_s, bucket_of};
use super::*;
use crate::ledger;

#[test]
fn buckets_begin_at_a_second_and_reach_three_weeks() {
    assert_eq!([0.0, 0.99, 1.0, 1.19, 1.2].map(bucket_of), [0, 0, 1, 1, 2]);
    assert_eq!(bounds_s(0), (0.0, 1.0));
    assert_eq!(bucket_of(f64::INFINITY), 79);
    let (begin, end) = bounds_s(79);
    assert!(
        begin < 21.0 * 86_400.0 && 20.0 * 86_400.0 < end,
        "{begin} {end}"
    );
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand times the same")]
fn history_is_bounded_and_forgets_the_least_recent() {
    let mut history = History::with_max(100);
    for id in 0..100_000 {
        history.used(ModelId(id), Time(id));
        assert!(history.len() <= 100);
    }
    assert_eq!(history.take_forgotten().len(), 100, "nobody asked");
    for id in 100_000..100_050 {
        history.used(ModelId(id), Time(id));
    }
    assert!(history.remembers(ModelId(99_999)) && !history.remembers(ModelId(99_900)));
    let forgotten = history.take_forgotten();
    let gone = |model: &ModelId| !history.remembers(*model);
    assert!(!forgotten.is_empty() && forgotten.iter().all(gone));
    assert!(history.take_forgotten().is_empty());
    assert_eq!(history.all_uses(), 100_050);
}

#[test]
fn a_reload_takes_what_loads_took() {
    let (mut history, mut reloads) = (History::default(), Reloads::default());
    let (one, two) = (ModelId(1), ModelId(2));
    let to_host = (ledger::Tier::Host, Route::ToHost);
    let estimate = |history: &History, reloads: &Reloads, model, bytes| {
        reloads.estimate_us(history, (Some(model), Bytes(bytes)), to_host)
    };
    // Nothing was measured: a start of 10 ms and a gigabyte a second.
    assert_eq!(estimate(&history, &reloads, one, 1_000_000), 11_000);
    let load = |bytes| Load {
        version: VersionId(1),
        tier: ledger::Tier::Host,
        route: Route::ToHost,
        bytes: Bytes(bytes),
    };
    // Two loads side by side: what both took together counts.
    reloads.started(SegmentId(1), load(600), Time(100));
    reloads.started(SegmentId(2), load(400), Time(100));
    assert_eq!(reloads.ended(SegmentId(1), true, Time(300)), None);
    let both = reloads.ended(SegmentId(2), true, Time(600));
    assert_eq!(both, Some((VersionId(1), Route::ToHost, Bytes(1000), 500)));
    assert_eq!(reloads.in_flight(), (0, 0));
    history.loaded(one, Route::ToHost, (Bytes(1000), 500), Time(0));
    assert_eq!(estimate(&history, &reloads, one, 1000), 500);
    // Others take as long for a byte, and a start.
    assert_eq!(estimate(&history, &reloads, two, 2000), 11_000);
    // A mean in which what is older counts for less: (0.7 * 500 + 1500) / (0.7 * 1000 + 1000).
    history.loaded(one, Route::ToHost, (Bytes(1000), 1500), Time(0));
    assert_eq!(estimate(&history, &reloads, one, 1700), 1850);
    // That it was loaded is no use of it.
    assert_eq!((history.uses(Some(one)), history.all_uses()), (0, 0));
    history.used(one, Time(5));
    assert_eq!(history.uses(Some(one)), 1);
    // A device is another matter.
    let up = (ledger::Tier::Device(crate::id::DeviceId(0)), Route::Up);
    let up = reloads.estimate_us(&history, (Some(one), Bytes(10_000)), up);
    assert_eq!(up, 501);
}

#[test]
fn what_a_load_took_by_itself_is_believed_if_told() {
    let mut reloads = Reloads::default();
    let load = Load {
        version: VersionId(1),
        tier: ledger::Tier::Host,
        route: Route::ToHost,
        bytes: Bytes(1000),
    };
    let mut run = |told: Option<u64>, ended| {
        reloads.started(SegmentId(1), load, Time(100));
        if let Some(told) = told {
            reloads.took(SegmentId(1), told);
        }
        reloads
            .ended(SegmentId(1), true, Time(ended))
            .map(|of| of.3)
    };
    assert_eq!(run(Some(200), 900), Some(200));
    assert_eq!(run(Some(200), 100), Some(200), "a clock that stands still");
    assert_eq!(run(None, 100), Some(0));
    reloads.started(SegmentId(1), load, Time(0));
    assert_eq!(reloads.ended(SegmentId(1), false, Time(9)), None, "failed");
    assert_eq!(
        reloads.ended(SegmentId(9), true, Time(9)),
        None,
        "not timed"
    );
}

#[test]
fn a_choice_is_the_same_again_from_its_text() {
    for text in [
        "lru",
        "random,seed=18446744073709551615",
        "cremebrulee,beta=0.500,gamma=1.000,cost=increase,size=no",
        "gc,second-use=yes",
        "mix,second-use=yes,give-back=no",
    ] {
        let choice: Choice = text.parse().unwrap();
        assert_eq!(choice.to_string(), text);
        assert_eq!(choice.build().name(), text.split(',').next().unwrap());
    }
    for name in Rule::names() {
        let choice: Choice = name.parse().unwrap();
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    assert_eq!("cremebrulee, beta=.5".parse::<Choice>().ok(), None);
}

#[test]
fn what_is_no_choice_is_refused_with_what_there_is() {
    for text in [
        "",
        "belady",
        "LRU",
        "lru,seed=1",
        "random,seed=-1",
        "random,seed",
        "cremebrulee,beta=1.2345",
        "cremebrulee,beta=4294968",
        "cremebrulee,cost=high",
        "gc,second-use=maybe",
    ] {
        let refused = text.parse::<Choice>().unwrap_err();
        assert!(refused.to_string().contains("s3-fifo"), "{refused}");
    }
}

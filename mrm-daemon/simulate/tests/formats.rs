//! Every format that is read, and how traces become workloads.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Workload};
use support::{catalogue, trace};

fn seeded(text: &str, seed: u64) -> Trace {
    let options = TraceOptions {
        seed,
        ..TraceOptions::default()
    };
    Trace::read("trace.csv".as_ref(), text.as_bytes(), &options).unwrap()
}

fn names(trace: &Trace) -> Vec<&str> {
    let name = |request: &mrm_simulate::trace::Asked| trace.names[request.name as usize].as_str();
    trace.requests.iter().map(name).collect()
}

#[test]
fn requests_are_taken_as_they_come() {
    let trace = trace(b"t_s,model\r\n0.5,a\r\n\r\n0.5,org/b\r\n86400.25,a\r\n").unwrap();
    assert_eq!(names(&trace), ["a", "org/b", "a"]);
    assert_eq!(trace.requests[2].at.0, 86_400_250_000);
}

#[test]
fn counts_are_spread_over_their_minute_in_an_order_that_the_seed_decides() {
    let text = "minute,func,count\n3,a,30\n3,b,30\n1,c,1\n";
    let first = seeded(text, 1);
    assert_eq!(names(&first)[0], "c", "minutes come in order");
    assert_eq!(first.requests[0].at.0, 60_000_000);
    let last = first.requests.last().unwrap();
    assert_eq!(last.at.0, 239_000_000, "evenly, one a second");
    assert_eq!(names(&first), names(&seeded(text, 1)), "the same again");
    assert_ne!(names(&first), names(&seeded(text, 2)));
    let of_a = names(&first).iter().filter(|name| **name == "a").count();
    assert_eq!(of_a, 30);
    let order = names(&first);
    let runs = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(runs > 10, "shuffled: {order:?}");
}

#[test]
fn the_wide_file_of_2019_is_the_same_day() {
    let wide = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\n\
        o,a1,f1,http,2,0,0\n\
        o,a2,f2,timer,0,0,1\n";
    let trace = seeded(wide, 0);
    assert_eq!(names(&trace), ["a1/f1", "a1/f1", "a2/f2"]);
    let at: Vec<u64> = trace
        .requests
        .iter()
        .map(|one| one.at.0 / 1_000_000)
        .collect();
    assert_eq!(at, [0, 30, 120]);
    // No catalogue has its hashes: each function is drawn, and that is said.
    let models = catalogue("resnet,100,2,0.1\nvgg,500,5,0.1\n").unwrap();
    let (workload, notes) = Workload::of(&trace, &models, &Binding::default()).unwrap();
    assert_eq!(workload.models.len(), 2);
    assert!(
        notes[0].contains("2 functions") && notes[0].contains("seed 0"),
        "{notes:?}"
    );
    // One that has them by their own names is found.
    let own = catalogue("f1,100,2,0.1\na2/f2,500,5,0.1\n").unwrap();
    let (workload, notes) = Workload::of(&trace, &own, &Binding::default()).unwrap();
    assert_eq!((workload.models[1].bytes, notes.len()), (500, 0));
}

#[test]
fn the_file_of_2021_has_ends_and_durations() {
    let text = "app,func,end_timestamp,duration\n\
        a,f,0.0795,0.078\n\
        a,g,57.157,57.154\n\
        a,f,60.5,0.5\n\
        a,f,1.0,2.0\n";
    let trace = trace(text.as_bytes()).unwrap();
    assert_eq!(names(&trace), ["a/f", "a/f", "a/g", "a/f"]);
    let at: Vec<u64> = trace.requests.iter().map(|one| one.at.0).collect();
    assert_eq!(at, [0, 1_500, 3_000, 60_000_000], "by their begin");
    let models = catalogue("f,100,2,0.1\ng,100,2,0.1\n").unwrap();
    let (workload, _) = Workload::of(&trace, &models, &Binding::default()).unwrap();
    assert_eq!(workload.requests[2].exec_us, 57_154_000, "as recorded");
}

#[test]
fn the_most_popular_and_the_singles_are_left_out_where_asked() {
    let mut text = String::from("minute,func,count\n");
    for of in 0..21 {
        text.push_str(&format!("{of},f{of},{}\n", of + 1));
    }
    let options = TraceOptions {
        trim: true,
        ..TraceOptions::default()
    };
    let trimmed = Trace::read("t".as_ref(), text.as_bytes(), &options).unwrap();
    // Counts are 1 to 21; their 95th percentile is 20.
    let left = names(&trimmed);
    assert!(!left.contains(&"f0"), "asked for once");
    assert!(!left.contains(&"f20"), "asked for most");
    assert!(left.contains(&"f1") && left.contains(&"f19"));
    assert!(
        trimmed.notes[0].contains("19 models stay"),
        "{:?}",
        trimmed.notes
    );
}

#[test]
fn a_subset_keeps_the_requests_of_its_models() {
    let trace = trace(b"t_s,model\n0,a\n1,b\n2,c\n3,a\n").unwrap();
    let models = catalogue("a,1,1,1\nb,2,1,1\nc,3,1,1\n").unwrap();
    let (all, _) = Workload::of(&trace, &models, &Binding::default()).unwrap();
    let some = all.subset(2, 5);
    assert_eq!(some.models.len(), 2);
    let kept = |name: &str| some.models.iter().any(|model| model.name == name);
    let expected = 2 * usize::from(kept("a")) + usize::from(kept("b")) + usize::from(kept("c"));
    assert_eq!(some.requests.len(), expected);
    assert_eq!(all.subset(9, 5), all);
}

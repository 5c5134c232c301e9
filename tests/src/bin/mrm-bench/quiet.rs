//! A daemon that has nothing to do but to answer: what is measured beside its own work says little.

use mrm_tests::node::Node;
use std::time::{Duration, Instant};

/// What may be under way, by its place in `/v1/status`.
const WORK: [(&str, &str); 6] = [
    ("/loading", "segments to load"),
    ("/waiting", "opens that wait for room"),
    ("/host/freeing_bytes", "bytes to free"),
    ("/host/stock_pending_bytes", "bytes to make ready for loads"),
    ("/integrity/waiting", "segments to check"),
    ("/devices/loading", "models to copy to devices"),
];
/// Until it is given up. A stock of memory takes seconds.
const DEADLINE: Duration = Duration::from_secs(300);
/// Between two looks, which cost the daemon a little, too.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is told what is waited for.
const TOLD: Duration = Duration::from_secs(2);

/// Waits until nothing is under way, and tells what is.
pub(crate) fn wait(node: &Node) {
    let began = Instant::now();
    let mut told = began;
    loop {
        let status = node.get("/v1/status");
        let left = WORK.iter().filter_map(|(pointer, what)| {
            let number = status.pointer(pointer).and_then(serde_json::Value::as_u64);
            number.filter(|n| *n > 0).map(|n| format!("{n} {what}"))
        });
        let left: Vec<String> = left.collect();
        if left.is_empty() {
            return;
        }
        let left = left.join(", ");
        assert!(began.elapsed() < DEADLINE, "the daemon still has {left}");
        if told.elapsed() > TOLD {
            println!("the daemon still has {left}");
            told = Instant::now();
        }
        std::thread::park_timeout(PAUSE);
    }
}

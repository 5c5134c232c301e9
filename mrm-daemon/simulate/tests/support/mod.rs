//! Small traces and catalogues.

#![allow(dead_code, reason = "not every test needs all of it")]

use mrm_simulate::catalogue::{BadInput, Catalogue, Model};
use mrm_simulate::contender::Contender;
use mrm_simulate::engine::{Outcome, Setup, run};
use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Request, Workload};

pub(crate) fn trace(text: &[u8]) -> Result<Trace, BadInput> {
    Trace::read("trace.csv".as_ref(), text, &TraceOptions::default())
}

pub(crate) fn catalogue(text: &str) -> Result<Catalogue, BadInput> {
    let text = format!("model,bytes,load_s,exec_s\n{text}");
    Catalogue::read("models.csv".as_ref(), text.as_bytes())
}

/// Models of so many bytes and seconds of loading each, asked for at these seconds.
pub(crate) fn workload(models: &[(u64, u64)], asked: &[(u64, u32)], exec_us: u64) -> Workload {
    let model = |(place, (bytes, load_s)): (usize, &(u64, u64))| Model {
        name: format!("m{place}"),
        bytes: *bytes,
        load_us: load_s * 1_000_000,
        exec_us,
    };
    let request = |(at_s, model): &(u64, u32)| Request {
        at: mrm_core::id::Time(at_s * 1_000_000),
        model: *model,
        exec_us,
    };
    Workload {
        models: models.iter().enumerate().map(model).collect(),
        requests: asked.iter().map(request).collect(),
    }
}

pub(crate) fn contender(name: &str) -> Contender {
    name.parse().expect("a policy")
}

pub(crate) fn outcome(workload: &Workload, policy: &str, host_bytes: u64) -> Outcome {
    let setup = Setup::new(workload, contender(policy), host_bytes);
    run(&setup, &mut |_| {}).expect("no rule is broken")
}

/// The daemon's policies, and those that know the future.
pub(crate) const ALL: [&str; 12] = [
    "lru",
    "lfu",
    "fifo",
    "random",
    "gdsf",
    "sieve",
    "s3-fifo",
    "cremebrulee",
    "gc",
    "mix",
    "belady",
    "cremebrulee-oracle",
];

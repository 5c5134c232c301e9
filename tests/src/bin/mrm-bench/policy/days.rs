//! The day and its models, six draws of them.

use mrm_simulate::catalogue::{Catalogue, Model};
use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Request, Workload};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Models of the trace from which the sample was taken.
const WHOLE_MODELS: usize = 1105;

/// One day with one draw of models.
pub(crate) struct Day {
    /// `C1` or `C2`.
    pub(crate) catalogue: &'static str,
    pub(crate) seed: u64,
    pub(crate) workload: Workload,
}

/// All of them.
pub(crate) struct Days {
    pub(crate) days: Vec<Day>,
    /// Whether it is the whole trace, of which figures are promised.
    pub(crate) whole: bool,
}

/// The sample of this repository.
pub(crate) fn sample_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mrm-daemon/simulate/traces")
}

fn open(dir: &Path, name: &str) -> (PathBuf, File) {
    for file in [dir.join(name), dir.join(format!("{name}.gz"))] {
        if let Ok(open) = File::open(&file) {
            return (file, open);
        }
    }
    panic!("{} has no {name}", dir.display());
}

pub(crate) fn read(dir: &Path) -> Days {
    let (file, open_trace) = open(dir, "azure2019_requests_s0.csv");
    let trace = Trace::read(&file, open_trace, &TraceOptions::default()).expect("a trace");
    let mut days = Vec::new();
    for catalogue in ["C1", "C2"] {
        for seed in 0..3 {
            let (file, open) = open(dir, &format!("azure2019_models_{catalogue}_s{seed}.csv"));
            let models = Catalogue::read(&file, open).expect("models");
            let (workload, _) = Workload::of(&trace, &models, &Binding::default()).expect("known");
            days.push(Day {
                catalogue,
                seed,
                workload,
            });
        }
    }
    let whole = days[0].workload.models.len() == WHOLE_MODELS;
    Days { days, whole }
}

/// The day with another draw: each function stands for one of the models of the draws that are there.
pub(crate) fn redrawn(days: &Days, catalogue: &'static str, seed: u64) -> Workload {
    let of: Vec<&Day> = days
        .days
        .iter()
        .filter(|day| day.catalogue == catalogue)
        .collect();
    let pool: Vec<&Model> = of.iter().flat_map(|day| &day.workload.models).collect();
    // SplitMix64, from far apart for each seed.
    let mut state = (seed + 1).wrapping_mul(0xd134_2543_de82_ef95);
    state = (state ^ (state >> 31)).wrapping_mul(0xda94_2042_e4dd_58b5);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let day = &of[0].workload;
    let drawn = |model: &Model| Model {
        name: model.name.clone(),
        ..pool[(next() % pool.len() as u64) as usize].clone()
    };
    let models: Vec<Model> = day.models.iter().map(drawn).collect();
    let request = |request: &Request| Request {
        exec_us: models[request.model as usize].exec_us,
        ..*request
    };
    let requests = day.requests.iter().map(request).collect();
    Workload { models, requests }
}

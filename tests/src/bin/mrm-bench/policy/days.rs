//! The day and its models, six draws of them.

use mrm_simulate::catalogue::Catalogue;
use mrm_simulate::trace::{Trace, TraceOptions};
use mrm_simulate::workload::{Binding, Workload};
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

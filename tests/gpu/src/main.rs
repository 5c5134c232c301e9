//! `mrm-gpu-check`: checks and measurements of mrm on a machine with a GPU, each step in a process
//! of its own. See the README beside this crate.

#![allow(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "a measuring program: it prints, and figures are floating point"
)]

mod agent;
mod attach;
mod bare;
mod contexts;
mod copy;
mod daemon;
mod frameworks;
mod loads;
mod machine;
mod model_file;
mod python;
mod questions;
mod render;
mod report;
mod scale;
mod segment;
mod serve;
mod serve_client;
mod service;
mod smi;
mod stats;
mod suite;
mod wire;

use clap::{Parser, Subcommand, ValueEnum};
use report::Recorder;
use scale::Scale;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

pub(crate) type Anything<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(name = "mrm-gpu-check", about = "Checks mrm on a machine with a GPU")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// All steps, each in a process of its own with a deadline.
    Suite(suite::Options),
    /// One step, in this process.
    Step {
        step: StepName,
        #[arg(long, value_enum, default_value_t = Scale::Full)]
        scale: Scale,
        #[command(flatten)]
        place: Place,
        /// Where to write what is found.
        #[arg(long)]
        out: PathBuf,
    },
    /// Serves commands of a step on standard input; started by steps.
    Agent,
}

/// What a step may use.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// The bundle: bin, lib, python, checks, wheels.
    #[arg(long)]
    pub(crate) bundle: PathBuf,
    /// Where models may be written.
    #[arg(long)]
    pub(crate) scratch: PathBuf,
    /// Python, with torch if it is to be compared with.
    #[arg(long, default_value = "python3")]
    pub(crate) python: String,
    /// What the step has, in seconds, before it is stopped.
    #[arg(long, default_value_t = 240)]
    pub(crate) time_s: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StepName {
    /// What the machine is.
    Machine,
    /// What a context costs.
    Contexts,
    /// What attaching costs.
    Attach,
    /// Copies from the host.
    Copy,
    /// Questions about sharing.
    Questions,
    /// The daemon and its clients.
    Service,
    /// Torch, CuPy and plain Python.
    Frameworks,
    /// How long clients wait.
    Loads,
}

fn main() -> ExitCode {
    raise_open_files();
    let done = match Cli::parse().what {
        What::Suite(options) => suite::run(&options),
        What::Agent => serve::serve().map(|()| ExitCode::SUCCESS),
        What::Step {
            step,
            scale,
            place,
            out,
        } => {
            let mut recorder = Recorder::new(&out, scale.is_judged());
            run(step, scale, &place, &mut recorder).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mrm-gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(step: StepName, scale: Scale, place: &Place, recorder: &mut Recorder) -> Anything<()> {
    match step {
        StepName::Machine => machine::step(recorder),
        StepName::Contexts => contexts::step(scale, recorder),
        StepName::Attach => attach::step(scale, recorder),
        StepName::Copy => copy::step(scale, recorder),
        StepName::Questions => questions::step(scale, recorder),
        StepName::Service => service::step(scale, place, recorder),
        StepName::Frameworks => frameworks::step(scale, place, recorder),
        StepName::Loads => loads::step(scale, place, recorder),
    }
}

/// Each allocation that is lent is a descriptor, and a soft limit of 1024 is usual.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is refused, the step that needs more says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

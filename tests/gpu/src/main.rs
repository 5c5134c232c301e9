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
mod machine;
mod questions;
mod render;
mod report;
mod scale;
mod segment;
mod serve;
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
        /// The bundle: bin, lib, python, checks, wheels.
        #[arg(long)]
        bundle: PathBuf,
        /// Where models and sockets may be made.
        #[arg(long)]
        scratch: PathBuf,
        /// Where to write what is found.
        #[arg(long)]
        out: PathBuf,
    },
    /// Serves commands of a step on standard input; started by steps.
    Agent,
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
}

fn main() -> ExitCode {
    raise_open_files();
    let done = match Cli::parse().what {
        What::Suite(options) => suite::run(&options),
        What::Agent => serve::serve().map(|()| ExitCode::SUCCESS),
        What::Step {
            step,
            scale,
            bundle: _,
            scratch: _,
            out,
        } => run(step, scale, &mut Recorder::new(&out, scale.is_judged()))
            .map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mrm-gpu-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(step: StepName, scale: Scale, recorder: &mut Recorder) -> Anything<()> {
    match step {
        StepName::Machine => machine::step(recorder),
        StepName::Contexts => contexts::step(scale, recorder),
        StepName::Attach => attach::step(scale, recorder),
        StepName::Copy => copy::step(scale, recorder),
        StepName::Questions => questions::step(scale, recorder),
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

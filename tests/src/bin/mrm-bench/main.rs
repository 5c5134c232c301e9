//! `mrm-bench`: what an open costs, against a floor measured in the same run.
//!
//! Machines like ours are noisy, so no figure stands alone: each case is interleaved with its
//! floor, the bare system calls that nothing could do without, and reported as a ratio.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark fails loudly and prints"
)]

mod bare;
mod churn;
mod cost;
mod first;
mod floor;
mod hit;
mod hostile;
mod miss;
mod pages;
mod place;
mod plot;
mod policy;
mod progress;
mod python;
mod quiet;
mod replay;
mod report;
mod restart;
mod results;
mod scale;
mod share;
mod torch;
mod touch;
mod trims;
mod worker;

use clap::{Parser, Subcommand};
use report::Row;
use results::Results;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "mrm-bench",
    about = "Measures mrm against floors of the same run"
)]
struct Cli {
    /// What to measure; without one, what is quick.
    benches: Vec<Bench>,
    /// Also write the rows here, as JSON with the raw values, the machine and the commit.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Keep what was measured below tests/bench/results, for `report`.
    #[arg(long)]
    keep: bool,
    /// The same, but under this name: part of a benchmark beside the rest of it.
    #[arg(long, value_name = "NAME")]
    keep_as: Option<String>,
    /// Rounds of `first`, `python`, `torch`, `touch` and `trims`; medians of fewer than 15 are for a first look.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Models of `python`, `torch`, `touch` and `trims` above this size are left out; that of `first` is made so
    /// small.
    #[arg(long, default_value_t = 8000)]
    most_mb: u64,
    /// Models of `torch` and `trims` below this size are left out.
    #[arg(long, default_value_t = 0)]
    least_mb: u64,
    /// Opens of `churn`, in all.
    #[arg(long, default_value_t = 1_000_000)]
    opens: u64,
    /// A Python that has the `safetensors` package, for `miss`, `python` and `trims`; and torch, for
    /// `torch`.
    #[arg(long, env = "MRM_BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Only one of its parts, started by the benchmark itself.
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum, PartialEq, Eq)]
enum Bench {
    /// Opening what is resident.
    Hit,
    /// Opening what is on disk or in the page cache.
    Miss,
    /// Opening what is resident with every page read, or mapped, against the page cache.
    Touch,
    /// The first tensor of a cold model against all of it.
    First,
    /// Opening what is resident through Python, against `load_file` and `numpy.memmap`.
    Python,
    /// Memory of many holders.
    Share,
    /// Opens a second, and what they leave behind.
    Churn,
    /// Many models, many clients: what they take, and whether hits stay as quick.
    Scale,
    /// An open beside 64 clients that keep no rule.
    Hostile,
    /// After a daemon or a client was killed, and what the keeper costs. Takes 11 GB of memory.
    Restart,
    /// The experiment of the TrIMS paper: a process per inference, of 45 models.
    Trims,
    /// Loads of the same models for torch, against `safetensors.torch`.
    Torch,
}

#[derive(Subcommand)]
enum Part {
    /// Writes the pages below tests/bench and README's figures from the results that were kept.
    Report,
    /// What each policy would have had to load on recorded requests, against what is promised.
    Policy {
        /// Where the whole traces are; else the sample of this repository.
        #[arg(long, env = "MRM_TRACES")]
        traces: Option<PathBuf>,
        /// Where to write the page of whole traces.
        #[arg(long, default_value = "tests/bench/policy.md")]
        page: PathBuf,
        /// The policy that is judged, instead of the default.
        #[arg(long, default_value_t)]
        policy: mrm_core::policy::Choice,
    },
    /// An hour of recorded requests at sixty times its speed, against a daemon and the simulator.
    Replay {
        /// Where the whole traces are; else the sample of this repository.
        #[arg(long, env = "MRM_TRACES")]
        traces: Option<PathBuf>,
    },
    /// Serves the floor: one message with one descriptor.
    BareServer {
        /// Where to listen.
        socket: PathBuf,
        /// What to pass.
        bytes: u64,
    },
    /// One fresh process of the floor: prints nanoseconds from connect to the first byte.
    BareFresh {
        /// Where the floor is served.
        socket: PathBuf,
        /// What is passed.
        bytes: u64,
    },
    /// One fresh process with the library: prints nanoseconds from connect to the first byte.
    Fresh {
        /// The daemon's socket.
        socket: PathBuf,
        /// The model.
        model: String,
    },
    /// 64 clients that keep no rule, until the input ends.
    HostileClients {
        /// The daemon's socket.
        socket: PathBuf,
    },
    /// Opens, touches every page, says so, and holds until its input ends.
    Hold {
        /// The daemon's socket.
        socket: PathBuf,
        /// The model.
        model: String,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.part {
        Some(Part::BareServer { socket, bytes }) => bare::serve(socket, *bytes),
        Some(Part::BareFresh { socket, bytes }) => println!("{}", bare::fresh(socket, *bytes)),
        Some(Part::Fresh { socket, model }) => println!("{}", hit::fresh(socket, model)),
        Some(Part::Hold { socket, model }) => share::hold(socket, model),
        Some(Part::HostileClients { socket }) => hostile::clients(socket),
        Some(Part::Report) => pages::write(Path::new(".")),
        Some(Part::Policy {
            traces,
            page,
            policy,
        }) => return judged(policy::measure(traces.as_deref(), page, *policy)),
        Some(Part::Replay { traces }) => return judged(replay::measure(traces.as_deref())),
        None => return measure(&cli),
    }
    ExitCode::SUCCESS
}

fn judged(holds: bool) -> ExitCode {
    match holds {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn measure(cli: &Cli) -> ExitCode {
    // What takes long, or needs a quiet machine, is measured only when asked for.
    let usual = [Bench::Hit, Bench::Share, Bench::Churn];
    let benches = match cli.benches.is_empty() {
        true => &usual[..],
        false => &cli.benches,
    };
    let mut all = Results::begin();
    for bench in benches {
        let mut results = Results::begin();
        results.rows = rows(*bench, cli);
        results.end();
        report::print(&results.rows);
        if cli.keep || cli.keep_as.is_some() {
            let own = || format!("{bench:?}").to_lowercase();
            let name = cli.keep_as.clone().unwrap_or_else(own);
            results.write(Path::new(&format!("tests/bench/results/{name}.json")));
        }
        all.rows.extend(results.rows);
    }
    all.end();
    if let Some(path) = &cli.json {
        all.write(path);
    }
    if all.rows.iter().all(Row::holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn rows(bench: Bench, cli: &Cli) -> Vec<Row> {
    let python = cli.python.as_deref();
    let sizes_mb = cli.least_mb..=cli.most_mb;
    match bench {
        Bench::Hit => hit::measure(),
        Bench::Miss => miss::measure(python),
        Bench::Touch => touch::measure(cli.rounds, cli.most_mb),
        Bench::First => first::measure(cli.rounds, cli.most_mb),
        Bench::Python => python::measure(python, cli.rounds, cli.most_mb),
        Bench::Share => share::measure(),
        Bench::Churn => churn::measure(cli.opens),
        Bench::Scale => scale::measure(),
        Bench::Hostile => hostile::measure(),
        Bench::Restart => restart::measure(),
        Bench::Trims => trims::measure(python, cli.rounds, &sizes_mb),
        Bench::Torch => torch::measure(python, cli.rounds, &sizes_mb),
    }
}

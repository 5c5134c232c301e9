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
mod floor;
mod hit;
mod miss;
mod report;
mod share;

use clap::{Parser, Subcommand};
use report::Row;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "mrm-bench",
    about = "Measures mrm against floors of the same run"
)]
struct Cli {
    /// What to measure: hit, miss, share, churn.
    benches: Vec<Bench>,
    /// Also write the rows here, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Opens of `churn`, in all.
    #[arg(long, default_value_t = 1_000_000)]
    opens: u64,
    /// A Python that has the `safetensors` package, for `miss` to be compared with it.
    #[arg(long, env = "MRM_BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Only one of its parts, started by the benchmark itself.
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Clone, Copy, clap::ValueEnum, PartialEq, Eq)]
enum Bench {
    /// Opening what is resident.
    Hit,
    /// Opening what is on disk or in the page cache.
    Miss,
    /// Memory of many holders.
    Share,
    /// Opens a second, and what they leave behind.
    Churn,
}

#[derive(Subcommand)]
enum Part {
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
    match cli.part {
        Some(Part::BareServer { socket, bytes }) => bare::serve(&socket, bytes),
        Some(Part::BareFresh { socket, bytes }) => println!("{}", bare::fresh(&socket, bytes)),
        Some(Part::Fresh { socket, model }) => println!("{}", hit::fresh(&socket, &model)),
        Some(Part::Hold { socket, model }) => share::hold(&socket, &model),
        None => return measure(&cli.benches, cli.json, cli.opens, cli.python.as_deref()),
    }
    ExitCode::SUCCESS
}

fn measure(
    benches: &[Bench],
    json: Option<PathBuf>,
    opens: u64,
    python: Option<&Path>,
) -> ExitCode {
    let all = [Bench::Hit, Bench::Miss, Bench::Share, Bench::Churn];
    let benches = if benches.is_empty() {
        &all[..]
    } else {
        benches
    };
    let mut rows: Vec<Row> = Vec::new();
    for bench in benches {
        let new = match bench {
            Bench::Hit => hit::measure(),
            Bench::Miss => miss::measure(python),
            Bench::Share => share::measure(),
            Bench::Churn => churn::measure(opens),
        };
        report::print(&new);
        rows.extend(new);
    }
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&rows).expect("rows are plain");
        std::fs::write(&path, text + "\n").expect("writes");
    }
    if rows.iter().all(Row::holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

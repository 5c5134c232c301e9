//! `mrm-chaos`: a daemon, its keeper, and clients in three languages, while everything that can
//! die, stop or fail does. `scripts/soak --processes` builds and starts it.
//!
//! It goes from round to round. After each, everybody rests, and what must be true is checked: see
//! `audit.rs`. The last line is JSON; exit status 1 on a violation.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a tool of tests fails loudly"
)]

mod audit;
mod client;
mod daemon;
mod fleet;
mod models;
mod trouble;

use audit::Baseline;
use clap::{Parser, Subcommand};
use daemon::{Daemon, Edge};
use fleet::{Fleet, Languages, Place, Totals};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use trouble::{POINTS, Trouble};

/// So much of the models' bytes has room at a time.
const ROOM: u64 = 10;
/// Rounds between two runs of the daemon from scratch.
const ROUNDS_AN_EPOCH: u64 = 3;
/// A keeper gives up after eight deaths a minute.
const DEATHS_MAX: usize = 6;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How long to go on, in seconds. A round that has begun is ended.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How long a round goes on, in seconds.
    #[arg(long, default_value_t = 8)]
    round_seconds: u64,
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 32)]
    clients: usize,
    #[arg(long, default_value_t = 200)]
    models: usize,
    /// A client in C.
    #[arg(long)]
    c_client: Option<PathBuf>,
    /// A Python that finds the package.
    #[arg(long, requires = "python_client")]
    python: Option<PathBuf>,
    #[arg(long)]
    python_client: Option<PathBuf>,
    /// `libmrm.so`.
    #[arg(long)]
    library: Option<PathBuf>,
    /// Every point must have been reached.
    #[arg(long)]
    all_points: bool,
}

#[derive(Subcommand)]
enum Role {
    /// Started by the program itself.
    Client {
        socket: PathBuf,
        models: PathBuf,
        seed: u64,
        devices: u32,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Role::Client {
        socket,
        models,
        seed,
        devices,
    }) = &args.role
    {
        client::run(socket, models, *devices, *seed);
        return ExitCode::SUCCESS;
    }
    let seed = args.seed.unwrap_or_else(mrm_tests::seed);
    let dir = tempfile::Builder::new().prefix("mrm-models-").tempdir();
    let dir = dir.expect("a directory");
    let bytes = models::write(dir.path(), args.models, seed);
    let mut run = Run {
        fleet: Fleet::new(seed),
        trouble: Trouble::new(seed),
        began: Instant::now(),
        rounds: 0,
        leases_lost: 0,
        violations: Vec::new(),
        skipped: Vec::new(),
        models: dir.path().to_owned(),
        budget: bytes / ROOM,
        args,
    };
    run.epochs();
    run.report(seed)
}

struct Run {
    args: Args,
    models: PathBuf,
    budget: u64,
    fleet: Fleet,
    trouble: Trouble,
    began: Instant,
    rounds: u64,
    leases_lost: u64,
    violations: Vec<String>,
    skipped: Vec<&'static str>,
}

impl Run {
    fn goes_on(&self) -> bool {
        self.began.elapsed() < Duration::from_secs(self.args.seconds) && self.violations.is_empty()
    }

    fn epochs(&mut self) {
        let mut edges = vec![Edge::None, Edge::Files];
        match daemon::can_mount() {
            true => edges.push(Edge::Disk),
            false => self
                .skipped
                .push("a full filesystem: mount(8) is not permitted"),
        }
        self.skipped.push("memory.max: set it around the whole run");
        let mut epoch = 0;
        while self.goes_on() {
            let edge = edges[epoch % edges.len()];
            // The keeper brings it back in every other one.
            let respawn = epoch % 2 == 1;
            self.trouble
                .spare(if respawn { DEATHS_MAX } else { usize::MAX });
            let mut daemon = Daemon::new(&self.models, self.budget, respawn, edge);
            let mut baseline = Baseline::default();
            for _ in 0..ROUNDS_AN_EPOCH {
                if self.goes_on() {
                    let outcome = self.round(&mut daemon, &mut baseline);
                    self.after(outcome.err(), &daemon);
                }
            }
            self.fleet.end();
            epoch += 1;
        }
    }

    fn round(&mut self, daemon: &mut Daemon, baseline: &mut Baseline) -> Result<(), String> {
        daemon.until_serving()?;
        let languages = Languages {
            c: self.args.c_client.clone(),
            python: self
                .args
                .python
                .clone()
                .zip(self.args.python_client.clone()),
            library: self.args.library.clone(),
        };
        let (socket, models, count) = (daemon.socket(), self.models.clone(), self.args.models);
        let environment = daemon.gpus.environment();
        let command = |program: &std::path::Path| {
            let mut command = std::process::Command::new(program);
            command.envs(environment.iter().map(|(k, v)| (k, v)));
            command
        };
        let place = Place {
            socket: &socket,
            models: &models,
            count,
            devices: daemon::DEVICES,
            command: &command,
        };
        self.fleet.fill(&place, &languages, self.args.clients);
        let until = Instant::now() + Duration::from_secs(self.args.round_seconds);
        while Instant::now() < until {
            self.trouble
                .moment(daemon, &mut self.fleet, (&place, &languages));
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.trouble.end(daemon);
        daemon.until_serving()?;
        let (held, _) = self.fleet.rest()?;
        audit::holding(daemon)?;
        self.leases(daemon, held)?;
        self.fleet.end();
        audit::empty(daemon, baseline)?;
        self.rounds += 1;
        Ok(())
    }

    /// The daemon counts the leases that the clients think they have.
    fn leases(&mut self, daemon: &mut Daemon, held: u64) -> Result<(), String> {
        let until = Instant::now() + mrm_tests::DEADLINE;
        loop {
            let (_, leased) = self.fleet.rest()?;
            let status = daemon.status().ok_or("no daemon answers")?;
            if status["leases"] == leased {
                // Whoever was stopped for longer than the grace lost its lease, not its bytes.
                self.leases_lost += held.saturating_sub(leased);
                return Ok(());
            }
            if Instant::now() > until {
                let counted = &status["leases"];
                return Err(format!("{leased} leases are had, {counted} are counted"));
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn after(&mut self, failed: Option<String>, daemon: &Daemon) {
        self.violations.extend(failed);
        self.violations.extend(daemon.violations());
        let totals = self.totals();
        self.violations.extend(totals.violations);
        if !self.violations.is_empty() {
            eprintln!(
                "--- the end of the daemon's log ---\n{}",
                daemon.log_tail(40)
            );
        }
        eprintln!(
            "round {}: {} opens, {} kills, {} violations",
            self.rounds,
            totals.opens,
            self.trouble.done.kills,
            self.violations.len()
        );
    }

    fn totals(&self) -> Totals {
        self.fleet.totals.lock().expect("no thread failed").clone()
    }

    fn report(mut self, seed: u64) -> ExitCode {
        let totals = self.totals();
        let done = &self.trouble.done;
        let never = POINTS
            .iter()
            .filter(|point| !done.reached.contains_key(*point));
        let never: Vec<_> = never.collect();
        // A daemon without failpoints reaches none; a short run cannot reach all.
        let too_few = self.args.all_points || done.reached.is_empty();
        if too_few && !never.is_empty() && self.violations.is_empty() {
            self.violations.push(format!(
                "never reached: {never:?}; is mrmd built with the feature failpoints?"
            ));
        }
        for violation in &self.violations {
            eprintln!("violation: {violation}");
        }
        let refused: u64 = totals.refusals.values().sum();
        println!(
            "{}",
            json!({
                "rounds": self.rounds, "opens": totals.opens, "checks": totals.checks,
                "refused": refused, "refusals": totals.refusals,
                "kills": done.kills, "stops": done.stops, "takeovers": done.takeovers,
                "disk_faults": done.disk_faults, "failpoints": done.reached,
                "leases_lost": self.leases_lost, "skipped": self.skipped,
                "violations": self.violations.len(), "seed": seed,
            })
        );
        ExitCode::from(u8::from(!self.violations.is_empty()))
    }
}

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
mod group;
mod models;
mod trouble;

use audit::{Baseline, Leaked};
use clap::{Parser, Subcommand};
use daemon::{Daemon, Edge};
use fleet::{Fleet, Languages, Place, Totals};
use group::Group;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use trouble::Trouble;

/// So much of the models' bytes has room at a time.
const ROOM: u64 = 10;
/// How long a daemon waits for clients of the one before: longer than any of them is away that was
/// not stopped on purpose, on a machine that is busy with other things.
const GRACE: Duration = Duration::from_secs(5);
/// How long anything may take that must come. Slowness is no violation.
const PATIENCE: Duration = Duration::from_secs(180);
/// Of an epoch: what is special about its daemons, and whether the keeper brings them back.
const EPOCHS: [(Edge, bool); 9] = [
    (Edge::None, false),
    (Edge::Host, false),
    (Edge::Files, true),
    (Edge::Disk, false),
    (Edge::Memory, false),
    (Edge::Steady, true),
    (Edge::None, true),
    (Edge::Files, false),
    (Edge::Disk, true),
];
/// How often all of them have their turn.
const CYCLES: u64 = 2;
/// Rounds of an epoch, at least.
const ROUNDS_MIN: u64 = 3;
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
    /// Where the logs of the daemons are kept.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Every point must have been reached: it goes on for up to eight times as long until each was.
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
        trouble: Trouble::new(seed, args.all_points),
        began: Instant::now(),
        rounds: 0,
        leases_lost: 0,
        leases_late: 0,
        not_resumed: BTreeMap::new(),
        leaked: Leaked::default(),
        logs: 0,
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
    /// Leases that were gone at the end of a round: because nobody kept what they were on, or
    /// because their client was stopped for longer than the grace.
    leases_lost: u64,
    leases_late: u64,
    /// What daemons said of leases that they did not take up again.
    not_resumed: BTreeMap<String, u64>,
    leaked: Leaked,
    logs: u64,
    violations: Vec<String>,
    skipped: Vec<&'static str>,
}

impl Run {
    fn goes_on(&self) -> bool {
        let seconds = Duration::from_secs(self.args.seconds);
        let missing = self.args.all_points && !self.trouble.done.never().is_empty();
        let most = if missing { 8 * seconds } else { seconds };
        self.began.elapsed() < most && self.violations.is_empty()
    }

    /// Once the time is over, those go on that come to what is missing.
    fn is_of_use(&self, edge: Edge) -> bool {
        let never = self.trouble.done.never();
        let is_over = self.began.elapsed() > Duration::from_secs(self.args.seconds);
        !is_over || never.is_empty() || never.iter().any(|point| edge.comes_to(point))
    }

    fn epochs(&mut self) {
        let mut epochs = EPOCHS.to_vec();
        if !daemon::can_mount() {
            epochs.retain(|(edge, _)| *edge != Edge::Disk);
            self.skipped
                .push("a full filesystem: mount(8) is not permitted");
        }
        if Group::new("mrm-chaos-try").is_none() {
            epochs.retain(|(edge, _)| *edge != Edge::Memory);
            self.skipped
                .push("memory.max: no control group can be made here");
        }
        for skipped in &self.skipped {
            eprintln!("skipped: {skipped}");
        }
        let rounds = self.args.seconds / (2 * self.args.round_seconds.max(1));
        let rounds = (rounds / (CYCLES * epochs.len() as u64)).max(ROUNDS_MIN);
        let mut epochs = epochs.into_iter().cycle();
        while self.goes_on() {
            let Some((edge, respawn)) = epochs.find(|(edge, _)| self.is_of_use(*edge)) else {
                break;
            };
            eprintln!("daemons of the kind {edge:?}, brought back by the keeper: {respawn}");
            let deaths_max = match (edge, respawn) {
                (Edge::Steady, _) => 0,
                (_, true) => DEATHS_MAX,
                (_, false) => usize::MAX,
            };
            self.trouble.begin(edge, deaths_max);
            let mut daemon = Daemon::new(&self.models, self.budget, (edge, respawn));
            let mut baseline = Baseline::default();
            for _ in 0..rounds {
                if self.goes_on() {
                    let outcome = self.round(&mut daemon, &mut baseline);
                    self.after(outcome.err(), &daemon);
                }
            }
            self.fleet.end();
            let not_resumed = daemon.leases_not_resumed();
            if !not_resumed.is_empty() {
                eprintln!("leases not taken up again: {not_resumed:?}");
            }
            for (why, count) in not_resumed {
                *self.not_resumed.entry(why).or_default() += count;
            }
            if let Some(dir) = &self.args.logs {
                let kept = format!("{:02}-{edge:?}-{respawn}.log", self.logs);
                daemon.keep_log(&dir.join(kept));
                self.logs += 1;
            }
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
            devices: daemon.edge.devices(),
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
        self.fleet.rest()?;
        audit::holding(daemon)?;
        self.leases(daemon)?;
        self.fleet.end();
        audit::empty(daemon, baseline, &mut self.leaked)?;
        self.rounds += 1;
        Ok(())
    }

    /// The daemon counts the leases that the clients think they have, and only clients that were
    /// stopped for long have lost theirs, or those of what the keeper had no room for.
    fn leases(&mut self, daemon: &mut Daemon) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            let held = self.fleet.rest()?;
            let status = daemon.status().ok_or("no daemon answers")?;
            let lost = (held.models - held.leased).saturating_sub(held.late);
            if status["leases"] == held.leased {
                self.leases_late += held.late;
                self.leases_lost += lost;
                return match (lost, daemon.edge) {
                    (0, _) | (_, Edge::Files) => Ok(()),
                    (lost, _) => Err(format!(
                        "{lost} leases were lost: {:?}",
                        daemon.leases_not_resumed()
                    )),
                };
            }
            if Instant::now() > until {
                let (leased, counted) = (held.leased, &status["leases"]);
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
            "round {}: {} opens, {} kills, {} violations, never reached so far: {:?}",
            self.rounds,
            totals.opens,
            self.trouble.done.kills,
            self.violations.len(),
            self.trouble.done.never()
        );
    }

    fn totals(&self) -> Totals {
        self.fleet.totals.lock().expect("no thread failed").clone()
    }

    fn report(mut self, seed: u64) -> ExitCode {
        let totals = self.totals();
        let done = &self.trouble.done;
        let never = done.never();
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
                "seconds": self.began.elapsed().as_secs(),
                "rounds": self.rounds, "opens": totals.opens, "checks": totals.checks,
                "bytes_checked": totals.bytes,
                "refused": refused, "refusals": totals.refusals,
                "kills": done.kills, "stops": done.stops, "takeovers": done.takeovers,
                "long_stops": done.long_stops, "disk_faults": done.disk_faults,
                "memory_squeezes": done.squeezes, "memory_kills": done.memory_kills,
                "failpoints": done.reached, "failpoints_never": never,
                "leases_lost_unkept": self.leases_lost, "leases_lost_late": self.leases_late,
                "leases_not_resumed": self.not_resumed,
                "leaked_fds": self.leaked.fds,
                "leaked_bytes": self.leaked.keeper_bytes + self.leaked.daemon_bytes,
                "skipped": self.skipped,
                "violations": self.violations.len(), "seed": seed,
            })
        );
        ExitCode::from(u8::from(!self.violations.is_empty()))
    }
}

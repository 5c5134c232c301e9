//! From a validated configuration to a serving daemon, and to its end.
//!
//! ```no_run
//! use mrm_daemon::config::Config;
//! use mrm_daemon::runtime::RuntimeDir;
//! use mrm_daemon::serve::{Embedding, run};
//! let config = Config::with_defaults("/tmp/mrm".into(), 1 << 30);
//! let runtime_dir = RuntimeDir::claim(&config.runtime_dir)?;
//! run(config, runtime_dir, Embedding::default())?; // returns after SIGTERM
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod devices;
mod keeping;

use crate::catalogue::{Catalogue, CatalogueError, Entry, Root};
use crate::config::{BudgetError, Config, DeviceRequired};
use crate::degraded::Degraded;
use crate::device::SelfTest;
use crate::failpoint::{self, Point};
use crate::journal::{Header, Journal};
use crate::keeper::Keeper;
use crate::keeper::describe::Which;
use crate::memory::stock::Stock;
use crate::runtime::{ClaimError, Notifier, OpenFiles, RuntimeDir};
use crate::session::Patience;
use crate::shell::{DeviceTier, Parts, Policies, Shell, ShellConfig, answer_queries};
use crate::source::Closer;
use crate::spin::Spin;
use crate::status::metrics::{Metrics, MetricsError};
use crate::status::{self, Access, ServeError, ServeOptions, StatusInbox, StatusServer};
use crate::transfer::{Lanes, LanesConfig, LanesError};
use mrm_core::Core;
use mrm_core::id::Bytes;
use mrm_proto::ids::InstanceId;
use mrm_proto::limits::{FDS_PER_FRAME_MAX, LEASES_PER_SESSION_MAX, SEGMENTS_PER_MODEL_MAX};
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::LocalSet;

pub use keeping::Survival;

/// How long workers may take to end what they are doing when the daemon exits.
const WORKERS_END_MS: u64 = 2_000;
/// How long the status server may take to end its answers.
const STATUS_END_MS: u64 = 500;
/// Descriptors kept for everything but segments, sessions and opened files.
const FILES_RESERVED: usize = 128;

/// What a caller that is not `mrmd` may bring.
#[derive(Default)]
pub struct Embedding {
    /// Reads the configuration again, on SIGHUP. Without it, SIGHUP does nothing.
    pub reload: Option<Reload>,
    /// Starts a process that proves that a device's memory can be shared. Without it, no device is
    /// used.
    pub self_test: Option<SelfTest>,
    /// What is needed to outlive the program's death. Without it, nothing does.
    pub survival: Option<Survival>,
}

/// Reads the configuration again.
pub type Reload = Box<dyn Fn() -> Result<Config, String>>;

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The sockets.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The configured models.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The worker threads.
    #[error(transparent)]
    Lanes(#[from] LanesError),
    /// The status server.
    #[error(transparent)]
    Status(#[from] ServeError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A device is required, and there is none.
    #[error(transparent)]
    Devices(#[from] DeviceRequired),
    /// A device cannot have its budget.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// The event loop.
    #[error("cannot start the event loop: {0}; raise the limits on descriptors")]
    Loop(#[from] io::Error),
}

/// Serves until it is told to stop: SIGTERM or SIGINT drain (no new leases, until the last ends or
/// `drain_ms` are over), a second one stops at once. SIGUSR2 hands everything over to the next
/// daemon and stops at once.
///
/// # Errors
/// When it could not begin to serve.
pub fn run(config: Config, runtime_dir: RuntimeDir, embedding: Embedding) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = LocalSet::new();
    // A task like the others: what a set itself blocks on is polled whenever one of them is.
    let served = tasks.spawn_local(serve(config, runtime_dir, embedding));
    match tasks.block_on(&runtime, served) {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(RunError::Loop(io::Error::other(error))),
        },
    }
}

async fn serve(
    config: Config,
    mut runtime_dir: RuntimeDir,
    mut embedding: Embedding,
) -> Result<(), RunError> {
    let notifier = Notifier::from_environment();
    let mut signals = Signals::new()?;
    let degraded = Degraded::new();
    let files = OpenFiles::current();
    files.report(&degraded);
    let metrics = Metrics::new()?;
    let (handle, inbox) = status::query::channel();

    let survival = embedding.survival.take();
    let (keeper, left) = keeping::start(&config.keeper, survival, &mut runtime_dir, &degraded);
    let instance = instance();
    let clients = runtime_dir.client_listener(config.socket_mode, config.socket_group.as_ref())?;
    let status_listener = runtime_dir.status_listener()?;
    left.keep_socket(&keeper, &runtime_dir, Which::Client, (instance, &clients));
    left.keep_socket(
        &keeper,
        &runtime_dir,
        Which::Status,
        (instance, &status_listener),
    );
    let tier = devices::find(&config.device, embedding.self_test.as_ref(), &degraded)?;
    let parts = assemble(
        &config,
        &runtime_dir,
        (files, degraded, tier),
        (instance, keeper),
        metrics.clone(),
        &inbox,
    )?;
    let (shell, completions) = Shell::new(parts);

    let decider = shell.clone();
    tokio::task::spawn_local(async move { decider.run(completions).await });
    tokio::task::spawn_local(answer_queries(shell.clone(), inbox));
    shell.recall();
    shell.take_over(left.entries, config.keeper.grace_ms).await;
    shell.configure_policies(Policies::of(&config));
    shell.apply_wishes(&config.models);
    let patience = Patience {
        hello: Duration::from_millis(config.limits.idle_hello_ms),
        stall: Duration::from_millis(config.limits.write_stall_ms),
    };
    let spin = Spin::start(config.daemon.spin_us);
    let listening = tokio::task::spawn_local(crate::listener::listen(
        clients,
        shell.clone(),
        (patience, spin),
    ));
    let options = status_options(&config);
    let status_server = status::serve(status_listener, handle, metrics, options)?;
    tokio::task::spawn_local(keep_watchdog(notifier.clone()));
    shell.serving();
    tracing::info!(
        socket = %config.client_socket().display(),
        budget_bytes = config.host_budget_bytes,
        "serving"
    );
    notifier.ready("serving");

    let stop = until_stopped(&shell, &mut signals, &notifier, &embedding).await;
    listening.abort();
    if stop == Stop::HandOver {
        hand_over(&shell, &notifier, runtime_dir);
        return Ok(());
    }
    drain(&shell, &mut signals, &notifier, config.drain_ms).await;
    shell.remember();
    shell.stop_keeping();
    end(&shell, status_server);
    Ok(())
}

/// Leaves everything to the next daemon.
fn hand_over(shell: &Shell, notifier: &Notifier, runtime_dir: RuntimeDir) {
    tracing::info!("handing over to the next daemon");
    notifier.stopping("handing over");
    shell.remember();
    shell.leave_keeping();
    failpoint::pass(Point::HandingOver);
    runtime_dir.hand_over();
}

fn status_options(config: &Config) -> ServeOptions {
    let own = rustix::process::geteuid().as_raw();
    let group = config.status_group.as_ref().map(|group| group.gid);
    ServeOptions {
        access: Access::new(own, group),
        warm_wait_ms_default: config.limits.open_wait_ms_default,
        ..ServeOptions::for_daemon_uid(own)
    }
}

fn assemble(
    config: &Config,
    runtime_dir: &RuntimeDir,
    (files, degraded, tier): (OpenFiles, Degraded, DeviceTier),
    (instance, keeper): (InstanceId, Keeper),
    metrics: Metrics,
    inbox: &StatusInbox,
) -> Result<Parts, RunError> {
    let stock_degraded = degraded.clone();
    let lanes = Lanes::start(LanesConfig {
        registered_threads: config.load.threads,
        foreign_threads: config.load.foreign_threads,
        ..LanesConfig::default()
    })?;
    let files_max = files
        .soft
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX);
    // Sessions take a socket and a pidfd; the rest is shared by segments and files being loaded.
    let left = files_max
        .saturating_sub(FILES_RESERVED)
        .saturating_sub(config.limits.sessions_max.saturating_mul(2));
    let files_waiting_max = (left / 4).max(SEGMENTS_PER_MODEL_MAX);
    let files_unknown_max = files_waiting_max / 2 + 2 * FDS_PER_FRAME_MAX;
    let decider = mrm_core::Config {
        limit: Bytes(config.host_budget_bytes),
        segments_max: (left / 2).max(SEGMENTS_PER_MODEL_MAX + 1) as u64,
        waiting_max: config.limits.waiting_max,
        leases_per_session_max: LEASES_PER_SESSION_MAX,
        revalidate_ms: config.revalidate_ms,
        policy: config.host_policy,
        prefetch: config.prefetch,
        devices: devices::decider_configs(&tier, (left / 4).max(SEGMENTS_PER_MODEL_MAX) as u64),
    };
    let journal_bytes = usize::try_from(config.journal.bytes_max).unwrap_or(usize::MAX);
    let journal = Journal::new(Header::of(instance.0, &decider), journal_bytes);
    Ok(Parts {
        config: ShellConfig {
            sessions_max: config.limits.sessions_max,
            sessions_per_uid_max: config.limits.sessions_per_uid_max,
            open_wait_ms_default: config.limits.open_wait_ms_default,
            files_waiting_max,
            runtime_dir: runtime_dir.path().display().to_string(),
            journal_dir: config.journal_dir(),
            integrity: config.integrity,
            state_dir: config.state_dir(),
        },
        core: Core::new(decider),
        journal,
        catalogue: catalogue_of(config, &degraded)?,
        lanes,
        degraded,
        metrics,
        instance,
        announcer: inbox.announcer(),
        closer: Closer::new().at_most(
            files_unknown_max,
            files_waiting_max + files_unknown_max,
            // A frame's, and one that waits to be handled.
            2 * FDS_PER_FRAME_MAX,
        ),
        tier,
        keeper,
        stock: stock_of(config, &stock_degraded),
    })
}

/// Memory that is ready for loads to come. Without any it still puts together what was loaded in small
/// pages.
fn stock_of(config: &Config, degraded: &Degraded) -> Option<Stock> {
    Stock::start(config.load.stock_bytes, degraded)
        .inspect_err(|error| {
            degraded.report(
                "stock",
                format!("no thread to make memory ready: {error}"),
                "raise the daemon's TasksMax or LimitNPROC; loads take fresh memory, which may be \
                 slower, and what they take in small pages stays so",
            );
        })
        .ok()
}

fn catalogue_of(config: &Config, degraded: &Degraded) -> Result<Catalogue, CatalogueError> {
    let entries = config.models.iter().map(|model| Entry {
        name: model.name.clone(),
        path: model.path.clone(),
        pin: model.pin,
        eager: model.eager,
    });
    let roots = config.catalogues.iter().map(|entry| Root {
        path: entry.root.clone(),
        prefix: entry.prefix.clone(),
    });
    Catalogue::new(entries.collect(), roots.collect(), degraded.clone())
}

/// A number that another run of the daemon will not have.
fn instance() -> InstanceId {
    let mut bytes = [0; 8];
    let random = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if random.is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.unwrap_or_default().as_nanos() ^ u128::from(std::process::id());
        bytes.copy_from_slice(&nanos.to_le_bytes()[..8]);
    }
    InstanceId(u64::from_le_bytes(bytes))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    hand_over: Signal,
}

/// How the daemon is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// When the last lease has ended, or the wait for that; nothing is kept.
    Drain,
    /// At once; everything is kept for the next one.
    HandOver,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            hand_over: signal(SignalKind::user_defined2())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Returns when a signal or the operator says so.
async fn until_stopped(
    shell: &Shell,
    signals: &mut Signals,
    notifier: &Notifier,
    embedding: &Embedding,
) -> Stop {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Stop::Drain,
            _ = signals.interrupt.recv() => return Stop::Drain,
            () = shell.drain_asked() => return Stop::Drain,
            _ = signals.hand_over.recv() => return Stop::HandOver,
            _ = signals.hang_up.recv() => {
                notifier.reloading();
                reload(shell, embedding);
                notifier.ready("serving");
            }
        }
    }
}

fn reload(shell: &Shell, embedding: &Embedding) {
    let Some(read) = &embedding.reload else {
        return;
    };
    let outcome = read().and_then(|config| {
        let catalogue =
            catalogue_of(&config, &shell.degraded_paths()).map_err(|e| e.to_string())?;
        shell.configure_policies(Policies::of(&config));
        shell.replace_device_budgets(config.device)?;
        shell.replace_catalogue(catalogue, config.host_budget_bytes);
        shell.apply_wishes(&config.models);
        Ok(())
    });
    match outcome {
        Ok(()) => tracing::info!("catalogue and host budget were read again"),
        Err(error) => tracing::error!(error, "the old configuration stays in force"),
    }
}

async fn drain(shell: &Shell, signals: &mut Signals, notifier: &Notifier, drain_ms: u64) {
    shell.drain();
    let (sessions, leases) = shell.in_use();
    notifier.stopping(&format!("draining: {leases} leases of {sessions} sessions"));
    if leases > 0 {
        tracing::info!(
            leases,
            sessions,
            drain_ms,
            "draining; a second signal stops at once"
        );
    }
    tokio::select! {
        () = shell.settled() => {}
        () = signals.stop() => tracing::info!("stopped before the drain was complete"),
        () = tokio::time::sleep(Duration::from_millis(drain_ms)) => {
            let (sessions, leases) = shell.in_use();
            tracing::warn!(leases, sessions, "the drain took too long; holders keep their memory");
        }
    }
}

fn end(shell: &Shell, status_server: StatusServer) {
    status_server.shutdown(STATUS_END_MS);
    for hung in shell.stop_workers(Instant::now() + Duration::from_millis(WORKERS_END_MS)) {
        tracing::warn!(thread = hung.thread, "a worker did not end in time");
    }
    tracing::info!("stopped");
}

async fn keep_watchdog(notifier: Notifier) {
    if let Some(every) = notifier.alive_every() {
        loop {
            notifier.alive();
            tokio::time::sleep(every).await;
        }
    }
}

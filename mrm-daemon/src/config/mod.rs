//! Every setting of the daemon: gathered from flags, environment and file, validated once.
//!
//! A setting given in several places takes the value of the strongest: flag, then environment,
//! then file, then default. [`load`] checks everything and reports every problem together;
//! what it returns is passed down and never looked up again.
//!
//! ```
//! use mrm_daemon::config::{self, Cli, Facts};
//!
//! let cli = Cli::from_args(["mrmd", "--runtime-dir", "/run/mrm", "--host-budget-bytes", "25%"])?;
//! let facts = Facts { uid: 0, usable_bytes: 64 << 30, ..Facts::of_this_process(0) };
//! let environment = |name: &str| (name == "MRM_DRAIN_MS").then(|| "5000".into());
//! let loaded = config::load(&cli, &environment, &facts)?;
//! assert_eq!(loaded.config.host_budget_bytes, 16 << 30);
//! assert!(loaded.to_toml().contains("drain_ms = 5000  # from environment"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::memory::stock::STOCK_BYTES_MAX;
use crate::status::WarmOn;
use mrm_core::Prefetch;
use mrm_core::policy::Choice;
use mrm_proto::name::ModelName;
use std::path::PathBuf;

mod cli;
mod device;
mod devices;
mod entries;
mod file;
mod integrity;
mod keeper;
mod load;
mod problem;
mod setting;
mod show;
mod size;
#[cfg(test)]
mod tests;
mod values;

pub use cli::Cli;
pub use device::{
    BudgetError, DEVICE_BUDGET_BYTES_MIN, DeviceBudget, DeviceConfig, DeviceRequired, Enabled,
    GpuEntry, Granularity,
};
pub use integrity::{IntegrityConfig, ManifestPolicy};
pub use keeper::{KeeperConfig, KeeperKind};
pub use load::{CONFIG_FILE_BYTES_MAX, DEFAULT_CONFIG_FILE, Facts, Loaded, load};
pub use problem::{ConfigError, Origin, Place, Problem};
pub use size::{Size, SizeError};

/// The validated settings of one daemon.
///
/// ```
/// use mrm_daemon::config::{Config, ModelEntry};
/// use mrm_proto::name::ModelName;
///
/// let config = Config {
///     models: vec![ModelEntry::new(ModelName::new("bert/base")?, "/models/bert-base".into())],
///     ..Config::with_defaults("/run/mrm".into(), 8 << 30)
/// };
/// assert_eq!(config.client_socket(), std::path::Path::new("/run/mrm/mrmd.sock"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the sockets and the lock file are.
    pub runtime_dir: PathBuf,
    /// Permission bits of the client socket.
    pub socket_mode: SocketMode,
    /// Group that owns the client socket; the daemon's own when not set.
    pub socket_group: Option<Group>,
    /// Group whose members may pin, warm, evict and drain, besides root and the daemon's uid.
    pub status_group: Option<Group>,
    /// Most host memory that segments may be charged.
    pub host_budget_bytes: u64,
    /// What leaves host memory first when room is needed.
    pub host_policy: Choice,
    /// Where is kept what is remembered of models; the runtime directory when not set.
    pub state_dir: Option<PathBuf>,
    /// How long a registered file is taken to be unchanged before it is looked at again.
    pub revalidate_ms: u64,
    /// How long a drain waits for sessions to end.
    pub drain_ms: u64,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// Bounds on what clients may ask for.
    pub limits: Limits,
    /// The worker threads.
    pub load: Load,
    /// The record of what the daemon decides on.
    pub journal: JournalConfig,
    /// The thread that decides.
    pub daemon: DaemonConfig,
    /// What outlives the daemon's death.
    pub keeper: KeeperConfig,
    /// Whether what is in memory is what it should be.
    pub integrity: IntegrityConfig,
    /// The devices. Of them a reload changes only budgets, reserves, the policy, and who shares nothing.
    pub device: DeviceConfig,
    /// What is loaded before it is asked for.
    pub prefetch: Prefetch,
    /// Models registered one by one. Names are unique.
    pub models: Vec<ModelEntry>,
    /// Directories whose contents are registered by relative path.
    pub catalogues: Vec<CatalogueEntry>,
}

/// `[limits]`: bounds on what clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most sessions at a time.
    pub sessions_max: usize,
    /// Most sessions of one uid at a time. Root is not exempt.
    pub sessions_per_uid_max: usize,
    /// Most opens that wait for room at a time.
    pub waiting_max: usize,
    /// How long a connection may stay silent before its hello.
    pub idle_hello_ms: u64,
    /// How long an open waits when the client does not say.
    pub open_wait_ms_default: u64,
    /// How long a client may leave its replies unread.
    pub write_stall_ms: u64,
}

/// `[load]`: the worker threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Threads that read registered files.
    pub threads: usize,
    /// Threads that read files whose descriptors clients passed.
    pub foreign_threads: usize,
    /// Most memory that is made ready for loads to come, out of what the host budget leaves.
    pub stock_bytes: u64,
}

/// `[journal]`: the record of what the daemon decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// Memory that it may take.
    pub bytes_max: u64,
    /// Where it is written when the daemon has to abort; the runtime directory when not set.
    pub dir: Option<PathBuf>,
}

/// `[daemon]`: the thread that decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DaemonConfig {
    /// For how many microseconds after a request it does not sleep; 0 for not at all.
    pub spin_us: u64,
}

/// One `[[model]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// What clients open.
    pub name: ModelName,
    /// A file or a model's directory, absolute.
    pub path: PathBuf,
    /// Whether it may never be evicted once loaded.
    pub pin: bool,
    /// Whether its memory is given back as soon as nobody holds it.
    pub eager: bool,
    /// How its tensors are put together on a device, instead of [`DeviceConfig::granularity`].
    pub granularity: Option<Granularity>,
    /// How much of its device each lease on it keeps free of weights for its holder's own work, in
    /// bytes; more if the holder asks for more.
    pub workspace_bytes: u64,
    /// Where it is loaded when the daemon starts, and after a reload. Only for a pinned one.
    pub warm_on: WarmOn,
}

/// One `[[catalogue]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The directory, absolute.
    pub root: PathBuf,
    /// What goes before each relative path, with a `/` between.
    pub prefix: Option<ModelName>,
}

/// Permission bits of a socket: `0o777` at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

/// A group of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// As configured: a name, or the number when it has none.
    pub name: String,
    /// The number.
    pub gid: u32,
}

/// Least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// What failed.
    Error,
    /// What is degraded.
    Warn,
    /// What a user wants to know.
    Info,
    /// For the developer.
    Debug,
    /// For the developer, per request.
    Trace,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Of the host budget, one in so many parts is made ready ahead of loads by default.
const STOCK_PARTS: u64 = 8;

impl Config {
    /// Defaults for everything but what depends on the host.
    #[must_use]
    pub fn with_defaults(runtime_dir: PathBuf, host_budget_bytes: u64) -> Self {
        Self {
            runtime_dir,
            socket_mode: SocketMode::DEFAULT,
            socket_group: None,
            status_group: None,
            host_budget_bytes,
            host_policy: Choice::default(),
            state_dir: None,
            revalidate_ms: 1_000,
            drain_ms: 30_000,
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            limits: Limits::default(),
            load: Load::of_budget(host_budget_bytes),
            journal: JournalConfig::default(),
            daemon: DaemonConfig::default(),
            keeper: KeeperConfig::default(),
            integrity: IntegrityConfig::default(),
            device: DeviceConfig::default(),
            prefetch: Prefetch::default(),
            models: Vec::new(),
            catalogues: Vec::new(),
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn client_socket(&self) -> PathBuf {
        self.runtime_dir.join(crate::runtime::CLIENT_SOCKET)
    }

    /// Where is kept what is remembered of models.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir
            .clone()
            .unwrap_or_else(|| self.runtime_dir.clone())
    }

    /// Where the journal is written when the daemon has to abort.
    #[must_use]
    pub fn journal_dir(&self) -> PathBuf {
        self.journal
            .dir
            .clone()
            .unwrap_or_else(|| self.runtime_dir.clone())
    }

    /// Where the status server listens.
    #[must_use]
    pub fn status_socket(&self) -> PathBuf {
        self.runtime_dir.join(crate::runtime::STATUS_SOCKET)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 1024,
            sessions_per_uid_max: 256,
            waiting_max: 1024,
            idle_hello_ms: 5_000,
            open_wait_ms_default: 30_000,
            write_stall_ms: 10_000,
        }
    }
}

impl Load {
    /// Defaults where models may take so much of the host's memory.
    #[must_use]
    pub fn of_budget(host_budget_bytes: u64) -> Self {
        Self {
            threads: 2,
            foreign_threads: 2,
            stock_bytes: (host_budget_bytes / STOCK_PARTS).min(STOCK_BYTES_MAX),
        }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            bytes_max: 16 << 20,
            dir: None,
        }
    }
}

impl ModelEntry {
    /// An entry that is neither pinned nor eager, and on devices like all others.
    #[must_use]
    pub fn new(name: ModelName, path: PathBuf) -> Self {
        Self {
            name,
            path,
            pin: false,
            eager: false,
            granularity: None,
            workspace_bytes: 0,
            warm_on: WarmOn::Host,
        }
    }
}

impl SocketMode {
    /// Everybody who reaches the directory may connect; what they may do is decided per peer.
    pub const DEFAULT: Self = Self(0o666);

    /// `None` when `bits` has more than permission bits.
    #[must_use]
    pub const fn new(bits: u32) -> Option<Self> {
        if bits <= 0o777 {
            Some(Self(bits))
        } else {
            None
        }
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl LogLevel {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        match word {
            "error" => Some(Self::Error),
            "warn" => Some(Self::Warn),
            "info" => Some(Self::Info),
            "debug" => Some(Self::Debug),
            "trace" => Some(Self::Trace),
            _ => None,
        }
    }
}

impl LogFormat {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        match word {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

//! Gathers the layers and builds the one [`Config`].

use super::cli::Cli;
use super::devices;
use super::entries::{self, Entries};
use super::file::{self, Document, FileLayer};
use super::problem::{ConfigError, Origin, Place, Problem, Wrong};
use super::setting::{
    CATALOGUES_ENV, CATALOGUES_FLAG, CATALOGUES_KEY, CONFIG_ENV, CONFIG_FLAG, KEEPERS, Key,
    LOG_FORMATS, LOG_LEVELS, MANIFESTS, MODELS_ENV, MODELS_FLAG, MODELS_KEY, SETTINGS, YES_NO,
};
use super::values::{self, Form, Given, Reader};
use super::{
    CatalogueEntry, Config, DaemonConfig, IntegrityConfig, JournalConfig, KeeperConfig, KeeperKind,
    Limits, Load, LogFormat, LogLevel, ManifestPolicy, ModelEntry, Size,
};
use crate::memory::available::Probe;
use crate::runtime::STATUS_SOCKET;
use mrm_core::Prefetch;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Read when no other file is named, if it exists.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/mrm/mrm.toml";
/// Largest configuration file.
pub const CONFIG_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Smallest budget: one page more than an empty model takes.
const HOST_BUDGET_BYTES_MIN: u64 = 64 * 1024;
/// Longest path of a Unix socket (`unix(7)`), less its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What a configuration depends on besides its layers.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Who the daemon runs as.
    pub uid: u32,
    /// The memory it may use: the machine's, or less under a cgroup limit.
    pub usable_bytes: u64,
    /// Finds a group's number.
    pub gid_of: fn(&str) -> Option<u32>,
    /// Stands in for [`DEFAULT_CONFIG_FILE`].
    pub default_file: PathBuf,
}

/// A validated configuration and where each of its values is from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    pub(super) scalars: [Origin; SETTINGS.len()],
    pub(super) models: Origin,
    pub(super) catalogues: Origin,
}

/// Looks an environment variable up.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Facts {
    /// Of the calling process, which may use `usable_bytes` of memory.
    #[must_use]
    pub fn of_this_process(usable_bytes: u64) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            usable_bytes,
            gid_of: gid_of_host,
            default_file: DEFAULT_CONFIG_FILE.into(),
        }
    }
}

fn gid_of_host(name: &str) -> Option<u32> {
    nix::unistd::Group::from_name(name)
        .ok()
        .flatten()
        .map(|group| group.gid.as_raw())
}

impl Cli {
    /// [`load`]s with the environment and the memory of this process, at the start and again on
    /// a reload.
    ///
    /// # Errors
    /// Every problem of every key, together.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let usable_bytes = Probe::default().limit().bytes;
        let facts = Facts::of_this_process(usable_bytes);
        load(self, &|name| std::env::var_os(name), &facts)
    }
}

/// Gathers flags, environment and file, and validates what is in force.
///
/// # Errors
/// Every problem of every key, together.
pub fn load(
    cli: &Cli,
    environment: &dyn Fn(&str) -> Option<OsString>,
    facts: &Facts,
) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    // An empty variable is an unset one: that is how container manifests blank a value.
    let environment = &|name: &str| environment(name).filter(|value| !value.is_empty());
    let path = config_file(cli, environment, facts);
    let (file, mut layer) = match path {
        Some((path, place)) => read_file(&path, place, &mut problems),
        None => (None, FileLayer::default()),
    };
    let gpus = std::mem::take(&mut layer.entries.gpus);
    let scalars = gather(cli, environment, layer.scalars, &mut problems);
    let (lists, models, catalogues) = lists(cli, environment, layer.entries, &mut problems);

    let given = |key: Key| scalars[key as usize].clone();
    let mut reader = Reader {
        given: &given,
        problems: &mut problems,
    };
    let mut config = build(&mut reader, environment, facts);
    (config.models, config.catalogues) = lists;
    config.device.gpus = devices::unique_gpus(gpus, &config.device.uuids, &mut problems);

    problems.sort();
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    let scalars = scalars.map(|given| given.map_or(Origin::Default, |given| given.place.origin()));
    Ok(Loaded {
        config,
        file,
        scalars,
        models,
        catalogues,
    })
}

fn config_file(cli: &Cli, environment: Environment<'_>, facts: &Facts) -> Option<(PathBuf, Place)> {
    if let Some(path) = &cli.config {
        return Some((path.clone(), Place::Flag(CONFIG_FLAG)));
    }
    if let Some(path) = environment(CONFIG_ENV) {
        return Some((path.into(), Place::Environment(CONFIG_ENV)));
    }
    let default = &facts.default_file;
    default
        .exists()
        .then(|| (default.clone(), Place::WholeFile(default.clone())))
}

fn read_file(
    path: &Path,
    named_at: Place,
    problems: &mut Vec<Problem>,
) -> (Option<PathBuf>, FileLayer) {
    match read_text(path) {
        Ok(text) => {
            let layer = file::read(Document { path, text: &text }, problems);
            (Some(path.to_owned()), layer)
        }
        Err(error) => {
            let wrong = Wrong::new(
                format!("the configuration file cannot be read: {error}"),
                "correct the path or the file's permissions",
            );
            problems.push(wrong.at(named_at, CONFIG_FLAG, Some(path.display().to_string())));
            (None, FileLayer::default())
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let file = std::fs::File::open(path)?;
    let mut text = String::new();
    file.take(CONFIG_FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "it has over {CONFIG_FILE_BYTES_MAX} bytes"
        )));
    }
    Ok(text)
}

/// The strongest value given for each setting.
fn gather(
    cli: &Cli,
    environment: Environment<'_>,
    file: Vec<(Key, Given)>,
    problems: &mut Vec<Problem>,
) -> [Option<Given>; SETTINGS.len()] {
    let mut all: [Option<Given>; SETTINGS.len()] = std::array::from_fn(|_| None);
    for (key, given) in file {
        all[key as usize] = Some(given);
    }
    for row in &SETTINGS {
        let bare = |text: String, place| {
            Some(Given {
                text,
                form: Form::Bare,
                place,
            })
        };
        if let Some(text) = cli.flag(row.key) {
            all[row.key as usize] = bare(text.to_owned(), Place::Flag(row.flag));
        } else if let Some(text) = variable(environment, row.env, row.path, problems) {
            all[row.key as usize] = bare(text, Place::Environment(row.env));
        }
    }
    all
}

fn variable(
    environment: Environment<'_>,
    name: &'static str,
    key: &str,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    match environment(name)?.into_string() {
        Ok(text) => Some(text),
        Err(raw) => {
            let wrong = Wrong::new("not UTF-8", "give a value in UTF-8");
            let shown = raw.to_string_lossy().into_owned();
            problems.push(wrong.at(Place::Environment(name), key, Some(shown)));
            None
        }
    }
}

type Lists = (Vec<ModelEntry>, Vec<CatalogueEntry>);

/// The registered models and catalogues, each list as a whole from its strongest layer.
fn lists(
    cli: &Cli,
    environment: Environment<'_>,
    file: Entries,
    problems: &mut Vec<Problem>,
) -> (Lists, Origin, Origin) {
    let mut models = file.models;
    let mut models_origin = models.as_ref().map_or(Origin::Default, |_| Origin::File);
    if !cli.models.is_empty() {
        let texts = cli.models.iter().map(String::as_str);
        models_origin = Origin::Flag;
        models = Some(entries::models_of_texts(
            texts,
            &Place::Flag(MODELS_FLAG),
            problems,
        ));
    } else if let Some(text) = variable(environment, MODELS_ENV, MODELS_KEY, problems) {
        let place = Place::Environment(MODELS_ENV);
        models_origin = Origin::Environment;
        models = Some(entries::models_of_texts(parts(&text), &place, problems));
    }
    let mut catalogues = file.catalogues;
    let mut catalogues_origin = catalogues
        .as_ref()
        .map_or(Origin::Default, |_| Origin::File);
    if !cli.catalogues.is_empty() {
        let (texts, place) = (cli.catalogues.iter(), Place::Flag(CATALOGUES_FLAG));
        let texts = texts.map(String::as_str);
        catalogues_origin = Origin::Flag;
        catalogues = Some(entries::catalogues_of_texts(texts, &place, problems));
    } else if let Some(text) = variable(environment, CATALOGUES_ENV, CATALOGUES_KEY, problems) {
        let place = Place::Environment(CATALOGUES_ENV);
        catalogues_origin = Origin::Environment;
        catalogues = Some(entries::catalogues_of_texts(parts(&text), &place, problems));
    }
    let models = entries::unique_models(models.unwrap_or_default(), problems);
    let catalogues = entries::unique_catalogues(catalogues.unwrap_or_default(), problems);
    ((models, catalogues), models_origin, catalogues_origin)
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(':').filter(|part| !part.is_empty())
}

fn build(reader: &mut Reader<'_>, environment: Environment<'_>, facts: &Facts) -> Config {
    let usable = facts.usable_bytes;
    let budget = reader.read(
        Key::HostBudgetBytes,
        Size::Percent(50).of(usable),
        |given| budget(values::size(given)?, usable),
    );
    let runtime_dir = runtime_dir(reader, environment, facts);
    let default = Config::with_defaults(runtime_dir, budget);
    let group = |given: &Given| values::group(given, facts.gid_of).map(Some);
    Config {
        socket_mode: reader.read(Key::SocketMode, default.socket_mode, values::mode),
        socket_group: reader.read(Key::SocketGroup, None, group),
        status_group: reader.read(Key::StatusGroup, None, group),
        host_policy: reader.read(Key::HostPolicy, default.host_policy, values::policy),
        state_dir: reader.read(Key::StateDir, None, |given| values::path(given).map(Some)),
        revalidate_ms: reader.number(Key::RevalidateMs, default.revalidate_ms),
        drain_ms: reader.number(Key::DrainMs, default.drain_ms),
        log_level: reader.read(Key::LogLevel, default.log_level, |given| {
            values::word(given, LOG_LEVELS, LogLevel::from_word)
        }),
        log_format: reader.read(Key::LogFormat, default.log_format, |given| {
            values::word(given, LOG_FORMATS, LogFormat::from_word)
        }),
        keeper: keeper(reader, &default.keeper),
        integrity: integrity(reader, &default.integrity),
        limits: limits(reader, &default.limits),
        load: Load {
            threads: reader.count(Key::LoadThreads, default.load.threads),
            foreign_threads: reader.count(Key::LoadForeignThreads, default.load.foreign_threads),
            stock_bytes: reader.bytes(Key::LoadStockBytes, default.load.stock_bytes),
        },
        journal: JournalConfig {
            bytes_max: reader.bytes(Key::JournalBytesMax, default.journal.bytes_max),
            dir: reader.read(Key::JournalDir, None, |given| values::path(given).map(Some)),
        },
        daemon: DaemonConfig {
            spin_us: reader.number(Key::DaemonSpinUs, default.daemon.spin_us),
        },
        device: devices::settings(reader),
        prefetch: prefetch(reader, default.prefetch),
        ..default
    }
}

fn prefetch(reader: &mut Reader<'_>, default: Prefetch) -> Prefetch {
    let share = reader.number(Key::PrefetchSharePercent, default.share_percent.into());
    Prefetch {
        enabled: reader.read(Key::PrefetchEnabled, default.enabled, |given| {
            values::word(given, YES_NO, yes_no)
        }),
        share_percent: u8::try_from(share).unwrap_or(u8::MAX),
    }
}

fn yes_no(word: &str) -> Option<bool> {
    match word {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn keeper(reader: &mut Reader<'_>, default: &KeeperConfig) -> KeeperConfig {
    KeeperConfig {
        kind: reader.read(Key::KeeperKind, default.kind, |given| {
            values::word(given, KEEPERS, KeeperKind::from_word)
        }),
        for_ms: reader.number(Key::KeeperForMs, default.for_ms),
        respawn: reader.read(Key::KeeperRespawn, default.respawn, |given| {
            values::word(given, YES_NO, yes_no)
        }),
        grace_ms: reader.number(Key::KeeperGraceMs, default.grace_ms),
    }
}

fn integrity(reader: &mut Reader<'_>, default: &IntegrityConfig) -> IntegrityConfig {
    let yes_no = |word: &str| match word {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    };
    IntegrityConfig {
        check_adopted: reader.read(Key::IntegrityCheckAdopted, default.check_adopted, |given| {
            values::word(given, YES_NO, yes_no)
        }),
        manifest: reader.read(Key::IntegrityManifest, default.manifest, |given| {
            values::word(given, MANIFESTS, ManifestPolicy::from_word)
        }),
    }
}

fn limits(reader: &mut Reader<'_>, default: &Limits) -> Limits {
    let waits = default;
    Limits {
        sessions_max: reader.count(Key::SessionsMax, default.sessions_max),
        sessions_per_uid_max: reader.count(Key::SessionsPerUidMax, default.sessions_per_uid_max),
        waiting_max: reader.count(Key::WaitingMax, default.waiting_max),
        idle_hello_ms: reader.number(Key::IdleHelloMs, waits.idle_hello_ms),
        open_wait_ms_default: reader.number(Key::OpenWaitMsDefault, waits.open_wait_ms_default),
        write_stall_ms: reader.number(Key::WriteStallMs, waits.write_stall_ms),
    }
}

fn budget(size: Size, usable_bytes: u64) -> Result<u64, Wrong> {
    let bytes = size.of(usable_bytes);
    if bytes < HOST_BUDGET_BYTES_MIN {
        let remedy = format!("give at least {}", Size::Bytes(HOST_BUDGET_BYTES_MIN));
        return Err(Wrong::new("too small to hold any model", remedy));
    }
    if bytes > usable_bytes {
        let reason = format!("over the {usable_bytes} bytes that this process may use");
        return Err(Wrong::new(
            reason,
            "give less, or raise the memory limit of its cgroup",
        ));
    }
    Ok(bytes)
}

fn runtime_dir(reader: &mut Reader<'_>, environment: Environment<'_>, facts: &Facts) -> PathBuf {
    let unset = PathBuf::new();
    let dir = reader.read(Key::RuntimeDir, unset, |given| fits(values::path(given)?));
    if (reader.given)(Key::RuntimeDir).is_some() {
        return dir;
    }
    if facts.uid == 0 {
        return "/run/mrm".into();
    }
    let row = Key::RuntimeDir.setting();
    let (wrong, value) = match environment("XDG_RUNTIME_DIR") {
        None => {
            let remedy = format!("set --{} or {}", row.flag, row.env);
            let reason = "has no default for this user, as XDG_RUNTIME_DIR is not set";
            (Wrong::new(reason, remedy), None)
        }
        Some(xdg) => {
            let shown = xdg.to_string_lossy().into_owned();
            let path = xdg
                .into_string()
                .map_err(|_| Wrong::new("not UTF-8", "set --runtime-dir"));
            match path.and_then(|xdg| fits(values::absolute(&xdg)?.join("mrm"))) {
                Ok(dir) => return dir,
                Err(wrong) => (wrong, Some(shown)),
            }
        }
    };
    let place = value
        .as_ref()
        .map_or(Place::Default, |_| Place::Environment("XDG_RUNTIME_DIR"));
    reader.problems.push(wrong.at(place, row.path, value));
    PathBuf::new()
}

/// Refuses a directory whose sockets nobody could bind or connect.
fn fits(dir: PathBuf) -> Result<PathBuf, Wrong> {
    let longest = dir.join(STATUS_SOCKET).as_os_str().len();
    if longest > SOCKET_PATH_BYTES_MAX {
        let most = SOCKET_PATH_BYTES_MAX - STATUS_SOCKET.len() - 1;
        let reason = "too long for the address of a Unix socket";
        return Err(Wrong::new(
            reason,
            format!("give a path of at most {most} bytes"),
        ));
    }
    Ok(dir)
}

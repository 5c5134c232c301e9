//! The one list of settings: flags, variables, the file's keys and the manual all come from it.

use crate::memory::stock::STOCK_BYTES_MAX;
use mrm_proto::limits::WAIT_MS_MAX;

/// Names a scalar setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    RuntimeDir,
    SocketMode,
    SocketGroup,
    StatusGroup,
    HostBudgetBytes,
    HostPolicy,
    StateDir,
    RevalidateMs,
    DrainMs,
    LogLevel,
    LogFormat,
    KeeperKind,
    KeeperForMs,
    KeeperRespawn,
    KeeperGraceMs,
    IntegrityCheckAdopted,
    IntegrityManifest,
    SessionsMax,
    SessionsPerUidMax,
    WaitingMax,
    IdleHelloMs,
    OpenWaitMsDefault,
    WriteStallMs,
    LoadThreads,
    LoadForeignThreads,
    LoadStockBytes,
    JournalBytesMax,
    JournalDir,
    DaemonSpinUs,
    DeviceEnabled,
    DeviceSharing,
    DeviceUuids,
    DeviceBudgetBytes,
    DeviceReserveBytes,
    DeviceGranularity,
    DeviceBlockBytes,
    DeviceRegister,
    DeviceStageBytes,
    DeviceStageSlots,
    DeviceFillThreads,
    DevicePolicy,
    DevicePrivateUids,
    DeviceUserReservePercent,
    PrefetchEnabled,
    PrefetchSharePercent,
}

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Path,
    Mode,
    Group,
    /// Bytes, or a share of what this process may use.
    Size,
    /// Bytes, or a share of what each device has.
    DeviceSize,
    Bytes {
        min: u64,
        max: u64,
    },
    Integer {
        min: u64,
        max: u64,
    },
    Uuids,
    Uids,
    Choice(&'static [&'static str]),
    /// What goes first when room is needed.
    Policy,
}

/// One scalar setting.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) key: Key,
    /// The file's key, with its table's name before a dot.
    pub(super) path: &'static str,
    /// Without the dashes.
    pub(super) flag: &'static str,
    pub(super) env: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

pub(super) const MODELS_FLAG: &str = "model";
pub(super) const MODELS_ENV: &str = "MRM_MODELS";
pub(super) const MODELS_KEY: &str = "model";
pub(super) const CATALOGUES_FLAG: &str = "catalogue";
pub(super) const CATALOGUES_ENV: &str = "MRM_CATALOGUES";
pub(super) const CATALOGUES_KEY: &str = "catalogue";
pub(super) const CONFIG_FLAG: &str = "config";
pub(super) const CONFIG_ENV: &str = "MRM_CONFIG";

pub(super) const DEVICE_TABLE: &str = "device";

pub(super) const LOG_LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];
pub(super) const LOG_FORMATS: &[&str] = &["text", "json"];
pub(super) const KEEPERS: &[&str] = &["auto", "process", "systemd", "none"];
pub(super) const MANIFESTS: &[&str] = &["off", "if-present", "required"];
pub(super) const YES_NO: &[&str] = &["yes", "no"];
pub(super) const DEVICE_ENABLED: &[&str] = &["auto", "yes", "no"];
pub(super) const SHARING: &[&str] = &["auto", "vmm", "legacy"];
pub(super) const GRANULARITIES: &[&str] = &["model", "block", "tensor"];
pub(super) const REGISTER: &[&str] = &["auto", "never", "always"];

const DAY_MS: u64 = 86_400_000;
/// A longer wait between requests is not worth a core.
const SPIN_US_MAX: u64 = 10_000;
const SESSIONS: Kind = Kind::Integer {
    min: 1,
    max: 65_536,
};
const THREADS: Kind = Kind::Integer { min: 1, max: 256 };

const fn setting(
    key: Key,
    [path, flag, env]: [&'static str; 3],
    kind: Kind,
    help: &'static str,
) -> Setting {
    Setting {
        key,
        path,
        flag,
        env,
        kind,
        help,
    }
}

/// In the order of the file, tables last.
pub(super) const SETTINGS: [Setting; 45] = [
    setting(
        Key::RuntimeDir,
        ["runtime_dir", "runtime-dir", "MRM_RUNTIME_DIR"],
        Kind::Path,
        "Directory of the sockets and the lock file [default: /run/mrm for root, else \
         $XDG_RUNTIME_DIR/mrm]",
    ),
    setting(
        Key::SocketMode,
        ["socket_mode", "socket-mode", "MRM_SOCKET_MODE"],
        Kind::Mode,
        "Permission bits of the client socket, in octal [default: 0666]",
    ),
    setting(
        Key::SocketGroup,
        ["socket_group", "socket-group", "MRM_SOCKET_GROUP"],
        Kind::Group,
        "Group that owns the client socket [default: the daemon's]",
    ),
    setting(
        Key::StatusGroup,
        ["status_group", "status-group", "MRM_STATUS_GROUP"],
        Kind::Group,
        "Group that may pin, warm, evict and drain, besides root and the daemon's uid \
         [default: none]",
    ),
    setting(
        Key::HostBudgetBytes,
        [
            "host_budget_bytes",
            "host-budget-bytes",
            "MRM_HOST_BUDGET_BYTES",
        ],
        Kind::Size,
        "Most host memory for models: bytes, \"8GiB\", or \"50%\" of what this process may use \
         [default: 50%]",
    ),
    setting(
        Key::HostPolicy,
        ["host_policy", "host-policy", "MRM_HOST_POLICY"],
        Kind::Policy,
        "What leaves host memory first when room is needed: lru, lfu, fifo, random, gdsf, sieve, \
         s3-fifo, cremebrulee, gc or mix, with settings as in \"random,seed=7\" [default: mix]",
    ),
    setting(
        Key::StateDir,
        ["state_dir", "state-dir", "MRM_STATE_DIR"],
        Kind::Path,
        "Directory in which is kept over restarts when models are used and what their loads take \
         [default: the runtime directory]",
    ),
    setting(
        Key::RevalidateMs,
        ["revalidate_ms", "revalidate-ms", "MRM_REVALIDATE_MS"],
        Kind::Integer {
            min: 0,
            max: DAY_MS,
        },
        "How long a registered file is taken to be unchanged [default: 1000]",
    ),
    setting(
        Key::DrainMs,
        ["drain_ms", "drain-ms", "MRM_DRAIN_MS"],
        Kind::Integer {
            min: 0,
            max: DAY_MS,
        },
        "How long a drain waits for sessions to end [default: 30000]",
    ),
    setting(
        Key::LogLevel,
        ["log_level", "log-level", "MRM_LOG_LEVEL"],
        Kind::Choice(LOG_LEVELS),
        "Least severe level that is logged: error, warn, info, debug or trace [default: info]",
    ),
    setting(
        Key::LogFormat,
        ["log_format", "log-format", "MRM_LOG_FORMAT"],
        Kind::Choice(LOG_FORMATS),
        "Shape of a log line: text or json [default: text]",
    ),
    setting(
        Key::KeeperKind,
        ["keeper.kind", "keeper-kind", "MRM_KEEPER_KIND"],
        Kind::Choice(KEEPERS),
        "What holds memory and sockets when the daemon dies: systemd (its fd store), process (one of \
         the daemon's own), none, or auto: systemd where there is its fd store, else process \
         [default: auto]",
    ),
    setting(
        Key::KeeperForMs,
        ["keeper.for_ms", "keeper-for-ms", "MRM_KEEPER_FOR_MS"],
        Kind::Integer {
            min: 1,
            max: DAY_MS,
        },
        "How long a keeper of kind process waits for the next daemon [default: 600000]",
    ),
    setting(
        Key::KeeperRespawn,
        ["keeper.respawn", "keeper-respawn", "MRM_KEEPER_RESPAWN"],
        Kind::Choice(YES_NO),
        "Whether a keeper of kind process starts the daemon again when it was killed: yes or no \
         [default: yes]",
    ),
    setting(
        Key::KeeperGraceMs,
        ["keeper.grace_ms", "keeper-grace-ms", "MRM_KEEPER_GRACE_MS"],
        Kind::Integer {
            min: 0,
            max: DAY_MS,
        },
        "How long what was taken over is kept for clients that come back [default: 10000]",
    ),
    setting(
        Key::IntegrityCheckAdopted,
        [
            "integrity.check_adopted",
            "integrity-check-adopted",
            "MRM_INTEGRITY_CHECK_ADOPTED",
        ],
        Kind::Choice(YES_NO),
        "Whether memory taken over from the last daemon is compared with its digests, in the \
         background: yes or no [default: yes]",
    ),
    setting(
        Key::IntegrityManifest,
        [
            "integrity.manifest",
            "integrity-manifest",
            "MRM_INTEGRITY_MANIFEST",
        ],
        Kind::Choice(MANIFESTS),
        "Whether files of the catalogue are compared with lists of SHA-256 beside them: off, \
         if-present or required [default: off]",
    ),
    setting(
        Key::SessionsMax,
        [
            "limits.sessions_max",
            "limits-sessions-max",
            "MRM_LIMITS_SESSIONS_MAX",
        ],
        SESSIONS,
        "Most sessions at a time [default: 1024]",
    ),
    setting(
        Key::SessionsPerUidMax,
        [
            "limits.sessions_per_uid_max",
            "limits-sessions-per-uid-max",
            "MRM_LIMITS_SESSIONS_PER_UID_MAX",
        ],
        SESSIONS,
        "Most sessions of one uid at a time [default: 256]",
    ),
    setting(
        Key::WaitingMax,
        [
            "limits.waiting_max",
            "limits-waiting-max",
            "MRM_LIMITS_WAITING_MAX",
        ],
        Kind::Integer {
            min: 0,
            max: 65_536,
        },
        "Most opens that wait for room at a time [default: 1024]",
    ),
    setting(
        Key::IdleHelloMs,
        [
            "limits.idle_hello_ms",
            "limits-idle-hello-ms",
            "MRM_LIMITS_IDLE_HELLO_MS",
        ],
        Kind::Integer {
            min: 1,
            max: DAY_MS,
        },
        "How long a connection may stay silent before its hello [default: 5000]",
    ),
    setting(
        Key::OpenWaitMsDefault,
        [
            "limits.open_wait_ms_default",
            "limits-open-wait-ms-default",
            "MRM_LIMITS_OPEN_WAIT_MS_DEFAULT",
        ],
        Kind::Integer {
            min: 0,
            max: WAIT_MS_MAX,
        },
        "How long an open waits when the client does not say [default: 30000]",
    ),
    setting(
        Key::WriteStallMs,
        [
            "limits.write_stall_ms",
            "limits-write-stall-ms",
            "MRM_LIMITS_WRITE_STALL_MS",
        ],
        Kind::Integer {
            min: 1,
            max: DAY_MS,
        },
        "How long a client may leave its replies unread [default: 10000]",
    ),
    setting(
        Key::LoadThreads,
        ["load.threads", "load-threads", "MRM_LOAD_THREADS"],
        THREADS,
        "Threads that read registered files [default: 2]",
    ),
    setting(
        Key::LoadForeignThreads,
        [
            "load.foreign_threads",
            "load-foreign-threads",
            "MRM_LOAD_FOREIGN_THREADS",
        ],
        THREADS,
        "Threads that read files whose descriptors clients passed [default: 2]",
    ),
    setting(
        Key::LoadStockBytes,
        [
            "load.stock_bytes",
            "load-stock-bytes",
            "MRM_LOAD_STOCK_BYTES",
        ],
        Kind::Bytes {
            min: 0,
            max: STOCK_BYTES_MAX,
        },
        "Most memory that is made ready for loads to come, out of what the host budget leaves: at most \
         8GiB; 0 for none [default: an eighth of the host budget]",
    ),
    setting(
        Key::JournalBytesMax,
        [
            "journal.bytes_max",
            "journal-bytes-max",
            "MRM_JOURNAL_BYTES_MAX",
        ],
        Kind::Bytes {
            min: 64 << 10,
            max: 1 << 30,
        },
        "Memory for the record of what the daemon decides on; what is older is dropped \
         [default: 16MiB]",
    ),
    setting(
        Key::JournalDir,
        ["journal.dir", "journal-dir", "MRM_JOURNAL_DIR"],
        Kind::Path,
        "Directory into which that record is written if the daemon has to abort \
         [default: the runtime directory]",
    ),
    setting(
        Key::DaemonSpinUs,
        ["daemon.spin_us", "daemon-spin-us", "MRM_DAEMON_SPIN_US"],
        Kind::Integer {
            min: 0,
            max: SPIN_US_MAX,
        },
        "How long mrmd stays awake after a request, in microseconds: the next one that comes by \
         then is answered sooner, and a core is busy meanwhile [default: 0]",
    ),
    setting(
        Key::DeviceEnabled,
        ["device.enabled", "device-enabled", "MRM_DEVICE_ENABLED"],
        Kind::Choice(DEVICE_ENABLED),
        "Whether devices hold weights: auto (those there are), yes (one at least, or mrmd does not \
         start) or no (the driver is not looked for) [default: auto]",
    ),
    setting(
        Key::DeviceSharing,
        ["device.sharing", "device-sharing", "MRM_DEVICE_SHARING"],
        Kind::Choice(SHARING),
        "How device memory is lent: vmm (descriptors), legacy (cuIpc handles) or auto (the first \
         that works) [default: auto]",
    ),
    setting(
        Key::DeviceUuids,
        ["device.uuids", "device-uuids", "MRM_DEVICE_UUIDS"],
        Kind::Uuids,
        "Devices to use, by UUID, with commas between [default: all that mrmd sees]",
    ),
    setting(
        Key::DeviceBudgetBytes,
        [
            "device.budget_bytes",
            "device-budget-bytes",
            "MRM_DEVICE_BUDGET_BYTES",
        ],
        Kind::DeviceSize,
        "Most memory of each device for models: bytes, \"60GiB\", or \"90%\" of all it has \
         [default: 90%]",
    ),
    setting(
        Key::DeviceReserveBytes,
        [
            "device.reserve_bytes",
            "device-reserve-bytes",
            "MRM_DEVICE_RESERVE_BYTES",
        ],
        Kind::DeviceSize,
        "What is kept free of each device for the clients' own work: bytes, \"4GiB\" or a share \
         [default: 1GiB]",
    ),
    setting(
        Key::DeviceGranularity,
        [
            "device.granularity",
            "device-granularity",
            "MRM_DEVICE_GRANULARITY",
        ],
        Kind::Choice(GRANULARITIES),
        "How tensors are put together into allocations: model (one), block or tensor (one each) \
         [default: model]",
    ),
    setting(
        Key::DeviceBlockBytes,
        [
            "device.block_bytes",
            "device-block-bytes",
            "MRM_DEVICE_BLOCK_BYTES",
        ],
        Kind::Bytes {
            min: 256,
            max: 1 << 40,
        },
        "Size of a block, for granularity block [default: 256MiB]",
    ),
    setting(
        Key::DeviceRegister,
        ["device.register", "device-register", "MRM_DEVICE_REGISTER"],
        Kind::Choice(REGISTER),
        "Whether host segments are registered for the device's copies: auto (from the second copy \
         on), never or always [default: auto]",
    ),
    setting(
        Key::DeviceStageBytes,
        [
            "device.stage_bytes",
            "device-stage-bytes",
            "MRM_DEVICE_STAGE_BYTES",
        ],
        Kind::Bytes {
            min: 64 << 10,
            max: 1 << 30,
        },
        "Size of a page-locked staging buffer [default: 8MiB]",
    ),
    setting(
        Key::DeviceStageSlots,
        [
            "device.stage_slots",
            "device-stage-slots",
            "MRM_DEVICE_STAGE_SLOTS",
        ],
        Kind::Integer { min: 2, max: 64 },
        "Staging buffers of each thread that fills a device [default: 4]",
    ),
    setting(
        Key::DeviceFillThreads,
        [
            "device.fill_threads",
            "device-fill-threads",
            "MRM_DEVICE_FILL_THREADS",
        ],
        Kind::Integer { min: 1, max: 64 },
        "Threads that fill each device from registered files, and as many again from passed ones \
         [default: 2]",
    ),
    setting(
        Key::DevicePolicy,
        ["device.policy", "device-policy", "MRM_DEVICE_POLICY"],
        Kind::Policy,
        "What leaves device memory first, likewise; with \",second-use=yes\", an open that would do \
         with host memory gets a model from there the first time, and with \",exclusive=yes\" what is \
         on the device goes first from host memory [default: mix]",
    ),
    setting(
        Key::DevicePrivateUids,
        [
            "device.private_uids",
            "device-private-uids",
            "MRM_DEVICE_PRIVATE_UIDS",
        ],
        Kind::Uids,
        "Users who share device copies with no other, with commas between [default: none]",
    ),
    setting(
        Key::DeviceUserReservePercent,
        [
            "device.user_reserve_percent",
            "device-user-reserve-percent",
            "MRM_DEVICE_USER_RESERVE_PERCENT",
        ],
        Kind::Integer { min: 0, max: 100 },
        "How much of a device's budget the opens of one user may keep free of weights, in percent \
         [default: 50]",
    ),
    setting(
        Key::PrefetchEnabled,
        [
            "prefetch.enabled",
            "prefetch-enabled",
            "MRM_PREFETCH_ENABLED",
        ],
        Kind::Choice(YES_NO),
        "Whether models are loaded before they are asked for, when their next use is near: yes or no \
         [default: no]",
    ),
    setting(
        Key::PrefetchSharePercent,
        [
            "prefetch.share_percent",
            "prefetch-share-percent",
            "MRM_PREFETCH_SHARE_PERCENT",
        ],
        Kind::Integer { min: 1, max: 100 },
        "How much of the time such loads may take, in percent [default: 20]",
    ),
];

impl Key {
    /// Its row.
    pub(super) fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }
}

impl Setting {
    /// The table it stands in, empty for the top level, and its key there.
    pub(super) fn table_and_name(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }

    pub(super) fn value_name(&self) -> &'static str {
        match self.kind {
            Kind::Path => "DIR",
            Kind::Mode => "MODE",
            Kind::Group => "GROUP",
            Kind::Size | Kind::DeviceSize | Kind::Bytes { .. } => "SIZE",
            Kind::Uuids => "UUID,...",
            Kind::Uids => "UID,...",
            Kind::Integer { .. } if self.path.contains("_ms") => "MS",
            Kind::Integer { .. } => "N",
            Kind::Choice(_) => "WORD",
            Kind::Policy => "POLICY",
        }
    }
}

#[cfg(test)]
mod tests;

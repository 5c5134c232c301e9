//! The status socket's documents, as far as the command line shows them.
//!
//! Every struct takes missing fields as their defaults and ignores unknown ones, so that an older
//! or newer daemon is still shown.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `{"error": ...}`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ErrorDocument {
    pub(crate) error: Option<ErrorBody>,
}

/// What an error answer carries.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ErrorBody {
    pub(crate) code: String,
    pub(crate) number: u16,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    pub(crate) took_effect: bool,
}

/// `GET /v1/status`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) daemon: Daemon,
    pub(crate) host: Host,
    pub(crate) devices: Devices,
    pub(crate) sessions: u64,
    pub(crate) leases: u64,
    pub(crate) waiting: u64,
    pub(crate) loading: u64,
    pub(crate) counters: Counters,
    pub(crate) degraded: Vec<Degraded>,
}

/// The process that answers.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Daemon {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_s: f64,
    pub(crate) state: String,
    pub(crate) protocol: Protocol,
    pub(crate) runtime_dir: Option<String>,
}

/// Protocol versions that the daemon speaks.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Protocol {
    pub(crate) min: u16,
    pub(crate) max: u16,
}

/// Host memory.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Host {
    pub(crate) limit_bytes: u64,
    pub(crate) charged_bytes: u64,
    pub(crate) freeing_bytes: u64,
    pub(crate) resident_bytes: u64,
    pub(crate) huge_bytes: u64,
    pub(crate) segments: u64,
    pub(crate) stock_bytes: u64,
    pub(crate) stock_pending_bytes: u64,
}

/// The device tier.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Devices {
    pub(crate) driver: Driver,
    pub(crate) devices: Vec<Device>,
}

/// The driver, as the daemon found it.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Driver {
    /// Empty when the daemon is older than its device tier.
    pub(crate) state: String,
    pub(crate) cause: Option<String>,
    pub(crate) cure: Option<String>,
}

/// One device.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Device {
    pub(crate) uuid: String,
    pub(crate) name: Option<String>,
    pub(crate) state: String,
    pub(crate) cause: Option<String>,
    pub(crate) cure: Option<String>,
    pub(crate) sharing: Option<String>,
    pub(crate) sharing_why: Option<String>,
    pub(crate) total_bytes: u64,
    pub(crate) free_bytes: Option<u64>,
    pub(crate) budget_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) charged_bytes: u64,
    pub(crate) reserved_bytes: u64,
    pub(crate) freeing_bytes: u64,
    pub(crate) context_bytes: Option<u64>,
    pub(crate) images: u64,
    pub(crate) loading: u64,
    pub(crate) leases: u64,
}

/// Totals since the daemon started.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    pub(crate) opens_total: u64,
    pub(crate) hits_total: u64,
    pub(crate) joined_total: u64,
    pub(crate) promoted_total: u64,
    pub(crate) loads_total: u64,
    pub(crate) load_failures_total: u64,
    pub(crate) evictions_total: u64,
    pub(crate) refusals_total: u64,
    pub(crate) loaded_bytes_total: u64,
}

/// A path that works worse than it could.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Degraded {
    pub(crate) id: String,
    pub(crate) cause: String,
    pub(crate) cure: String,
}

/// One row of `GET /v1/models`, and the head of `GET /v1/models/{name}`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) registered: bool,
    pub(crate) kind: Option<String>,
    pub(crate) state: String,
    pub(crate) bytes: u64,
    pub(crate) charged_bytes: u64,
    pub(crate) huge_bytes: u64,
    pub(crate) loaded_bytes: u64,
    pub(crate) eta_ms: Option<f64>,
    pub(crate) leases: u64,
    pub(crate) sessions: u64,
    pub(crate) pinned: bool,
    pub(crate) eager: bool,
    pub(crate) version: Option<u64>,
    pub(crate) digest: Option<String>,
    pub(crate) last_used_s_ago: Option<f64>,
    pub(crate) load_ms: Option<f64>,
    pub(crate) path: Option<String>,
    pub(crate) devices: Vec<ModelDevice>,
}

/// A model on one device.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct ModelDevice {
    pub(crate) uuid: String,
    pub(crate) state: String,
    pub(crate) bytes: u64,
    pub(crate) reserved_bytes: u64,
    pub(crate) loaded_bytes: u64,
    pub(crate) leases: u64,
}

/// `GET /v1/models/{name}`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct ModelDetail {
    #[serde(flatten)]
    pub(crate) model: Model,
    pub(crate) segments: Vec<Segment>,
    pub(crate) tensors: Option<u64>,
    pub(crate) reserve_lately_bytes: u64,
    pub(crate) holders: Vec<Holder>,
    pub(crate) worth: Vec<Worth>,
}

/// How much a model is worth keeping on a tier.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Worth {
    pub(crate) tier: String,
    pub(crate) policy: String,
    /// Absent where it is without end.
    pub(crate) worth: Option<f64>,
    pub(crate) factors: BTreeMap<String, Option<f64>>,
    pub(crate) rank: u64,
    pub(crate) candidates: u64,
}

/// `GET /v1/policy`, and the answer to a change of it.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Policies {
    pub(crate) tiers: Vec<TierPolicy>,
    pub(crate) prefetch: Prefetch,
}

/// The policy of a tier.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct TierPolicy {
    pub(crate) tier: String,
    pub(crate) policy: String,
    pub(crate) configured: String,
    pub(crate) differs: bool,
}

/// Loading before it is asked for.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Prefetch {
    pub(crate) enabled: bool,
    pub(crate) share_percent: u64,
    pub(crate) started_total: u64,
    pub(crate) used_total: u64,
    pub(crate) wasted_total: u64,
    pub(crate) hints: u64,
}

/// `POST /v1/models/{name}/warm`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Warmed {
    /// Empty when the daemon is of an older release.
    pub(crate) tier: String,
    pub(crate) origin: String,
    pub(crate) bytes: u64,
    pub(crate) took_ms: f64,
}

/// One file of a model.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) state: String,
    pub(crate) huge_bytes: u64,
    pub(crate) digest: Option<String>,
    pub(crate) leases: u64,
    pub(crate) way: Option<String>,
}

/// Who holds a model.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Holder {
    pub(crate) session: u64,
    /// 0 when the daemon cannot see it.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) client: String,
    /// Empty when the daemon is of an older release.
    pub(crate) tier: String,
    pub(crate) leases: u64,
}

/// `GET /v1/sessions`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Sessions {
    pub(crate) sessions: Vec<Session>,
}

/// One connected client.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Session {
    pub(crate) id: u64,
    /// 0 when the daemon cannot see it.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) client: String,
    pub(crate) leases: u64,
    pub(crate) waiting: u64,
    pub(crate) connected_s: f64,
}

/// `GET /v1/events`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
    pub(crate) next: u64,
    pub(crate) dropped: u64,
}

/// One thing that happened.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
    pub(crate) kind: String,
    pub(crate) model: Option<String>,
    pub(crate) session: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) detail: Option<String>,
}

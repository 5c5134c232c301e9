//! The JSON of the status socket: one struct per documented object.
//!
//! These types are the stable interface: fields are added, never renamed, retyped or removed.
//! They are separate from the decider's types, so that neither freezes the other. `API.md`
//! (shown in [`crate::status`]) documents them for users.
//!
//! ```
//! use mrm_daemon::status::view::{Drained, Done};
//! let done = Done::of(Drained { sessions: 2, leases: 3 });
//! assert_eq!(serde_json::to_string(&done)?, r#"{"ok":true,"sessions":2,"leases":3}"#);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod device;
mod integrity;
mod policy;

pub use policy::{
    ComparedView, Hinted, PoliciesView, PrefetchView, TierPolicyView, WhyView, WorthView,
};

pub use device::{
    DeviceCopyStateView, DeviceStateView, DeviceView, DevicesView, DriverStateView, DriverView,
    GranularityView, ModelDeviceView, RegistrationStateView, RegistrationView, SharingView,
};
pub use integrity::{IntegrityView, Verified, VerifiedOutcome, VerifiedSegment};

use serde::Serialize;

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// The process.
    pub daemon: DaemonView,
    /// The host tier's books.
    pub host: HostView,
    /// The device tier: the driver, and each device with its books.
    pub devices: DevicesView,
    /// Connected sessions.
    pub sessions: u64,
    /// Leases held, over all sessions.
    pub leases: u64,
    /// Opens that wait for room.
    pub waiting: u64,
    /// Segments being loaded.
    pub loading: u64,
    /// What was counted since the start.
    pub counters: CountersView,
    /// Checks of what is in memory.
    pub integrity: IntegrityView,
    /// What works less well than it could, with the cure.
    pub degraded: Vec<DegradedView>,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DaemonView {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Random id of this run, in hex. Another value means that the daemon was restarted.
    pub instance: String,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Whether it serves.
    pub state: DaemonState,
    /// Protocol versions that it speaks.
    pub protocol: ProtocolView,
    /// Where its sockets are.
    pub runtime_dir: String,
}

/// Phase of the daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// Not yet open for clients.
    Starting,
    /// Open for clients.
    Serving,
    /// About to exit: no new leases.
    Draining,
}

/// A range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProtocolView {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// The host tier's books. `charged_bytes + freeing_bytes` never exceeds `limit_bytes`, except
/// after the limit was lowered, until enough is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct HostView {
    /// The budget, in bytes.
    pub limit_bytes: u64,
    /// Charged for segments that are loading or resident, in bytes.
    pub charged_bytes: u64,
    /// Still charged for segments on their way out, in bytes.
    pub freeing_bytes: u64,
    /// Charged for resident segments, in bytes.
    pub resident_bytes: u64,
    /// Of the resident, in huge pages, in bytes.
    pub huge_bytes: u64,
    /// Resident segments.
    pub segments: u64,
    /// Made ready for loads to come, beside what is charged and within the budget, in bytes.
    pub stock_bytes: u64,
    /// Still to be made ready, in bytes; 0 when nothing is being done about it.
    pub stock_pending_bytes: u64,
}

/// What was counted since the start. `opens_total` is the sum of hits, misses, joined, promoted
/// and refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CountersView {
    /// Opens answered, in whatever way.
    pub opens_total: u64,
    /// Opens that found everything resident.
    pub hits_total: u64,
    /// Opens that started a load and were granted.
    pub misses_total: u64,
    /// Opens that waited for another's load and were granted.
    pub joined_total: u64,
    /// Opens for which weights were copied to a device from memory, and nothing was read.
    pub promoted_total: u64,
    /// Segments loaded.
    pub loads_total: u64,
    /// Segments whose load failed.
    pub load_failures_total: u64,
    /// Segments evicted.
    pub evictions_total: u64,
    /// Opens refused or failed.
    pub refusals_total: u64,
    /// Bytes read into segments.
    pub loaded_bytes_total: u64,
    /// Sessions accepted.
    pub sessions_total: u64,
    /// Sessions ended because they broke the protocol.
    pub protocol_errors_total: u64,
}

/// A path that is slower or weaker than it could be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DegradedView {
    /// Stable id, in snake case.
    pub id: String,
    /// What was found.
    pub cause: String,
    /// What the operator can do.
    pub cure: String,
}

/// `GET /v1/models`: one page, in the order of the names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelsView {
    /// The models.
    pub models: Vec<ModelView>,
    /// Whether there are more after the last of these.
    pub more: bool,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelView {
    /// The name, or the label of files that a client passed.
    pub name: String,
    /// Whether the operator registered it.
    pub registered: bool,
    /// What it is; null before it was first resolved.
    pub kind: Option<ModelKindView>,
    /// How much of it is in host memory.
    pub state: ModelStateView,
    /// Size of its segments, in bytes; 0 before it was first resolved.
    pub bytes: u64,
    /// Charged to the host's budget for it, in bytes. Segments shared with another model count in
    /// both.
    pub charged_bytes: u64,
    /// Of it in huge pages, in bytes.
    pub huge_bytes: u64,
    /// In place so far, in bytes: grows while it is loaded.
    pub loaded_bytes: u64,
    /// When its load is expected to have ended, in milliseconds from now; null when none is under way.
    pub eta_ms: Option<f64>,
    /// Leases on it, over all sessions and tiers.
    pub leases: u64,
    /// Sessions that hold a lease on it.
    pub sessions: u64,
    /// Whether the operator pinned it.
    pub pinned: bool,
    /// Whether it is dropped as soon as nobody holds it.
    pub eager: bool,
    /// The version that the next open would get, once known.
    pub version: Option<u64>,
    /// BLAKE3 of its content in hex, once loaded.
    pub digest: Option<String>,
    /// Seconds since its last lease ended or was given; null if never.
    pub last_used_s_ago: Option<f64>,
    /// What its last load took, in milliseconds; null if never loaded.
    pub load_ms: Option<f64>,
    /// Where its bytes come from; null for files that a client passed.
    pub path: Option<String>,
    /// Where it is on devices, in their order; empty when on none.
    pub devices: Vec<ModelDeviceView>,
}

/// What a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKindView {
    /// Tensors, in one file or sharded.
    Safetensors,
    /// One file of bytes.
    Opaque,
}

/// How much of a model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelStateView {
    /// Nothing.
    Absent,
    /// On its way.
    Loading,
    /// All of it.
    Resident,
    /// Some segments.
    Partial,
}

/// `GET /v1/models/{name}`: the model's row and what it consists of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDetailView {
    /// The row that a listing shows; its fields come first, at the same level.
    #[serde(flatten)]
    pub model: ModelView,
    /// Its files, in their order.
    pub segments: Vec<SegmentView>,
    /// Number of tensors; null for opaque models and before the first resolution.
    pub tensors: Option<u64>,
    /// Who holds it.
    pub holders: Vec<HolderView>,
    /// How much it is worth keeping, on each tier that has something of it.
    pub worth: Vec<WorthView>,
    /// The most that opens of it on devices kept free there of late, in bytes.
    pub reserve_lately_bytes: u64,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentView {
    /// The file's name.
    pub name: String,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// Where it is.
    pub state: SegmentStateView,
    /// Of it in huge pages, in bytes.
    pub huge_bytes: u64,
    /// BLAKE3 in hex, once loaded.
    pub digest: Option<String>,
    /// Leases that cover it, of whatever model.
    pub leases: u64,
    /// How it was read: `cached`, `direct_ring`, `direct_threads` or `buffered`; null while it is not
    /// in memory, and for what was taken over from the last daemon.
    pub way: Option<&'static str>,
}

/// Where a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentStateView {
    /// Not in memory.
    Absent,
    /// Being read.
    Loading,
    /// In memory.
    Resident,
    /// Being dropped.
    Freeing,
}

/// A session that holds a model in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HolderView {
    /// The session's id.
    pub session: u64,
    /// Its process, 0 when not visible from the daemon's pid namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub client: String,
    /// Where it holds the model: `host`, or the UUID of a device.
    pub tier: String,
    /// Leases that it holds on the model there.
    pub leases: u64,
}

/// `GET /v1/sessions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionsView {
    /// In the order of their ids.
    pub sessions: Vec<SessionView>,
}

/// One connected client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionView {
    /// Its id; never used twice in one run of the daemon.
    pub id: u64,
    /// Its process, 0 when not visible from the daemon's pid namespace.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// What it calls itself.
    pub client: String,
    /// Leases that it holds.
    pub leases: u64,
    /// Its opens that are not answered yet.
    pub waiting: u64,
    /// Seconds since it connected.
    pub connected_s: f64,
    /// What it holds, in the order of the names.
    pub models: Vec<HeldView>,
}

/// A model that a session holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeldView {
    /// The model.
    pub name: String,
    /// Leases on it.
    pub leases: u64,
}

/// `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventsView {
    /// In the order of their numbers.
    pub events: Vec<EventView>,
    /// What to pass as `since` to go on after these.
    pub next: u64,
    /// Events from `since` on that had been overwritten before this request came.
    pub dropped: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventView {
    /// Its number: 1 for the first of a run, without gaps.
    pub seq: u64,
    /// When, in milliseconds since 1970 UTC.
    pub time_ms: u64,
    /// What.
    pub kind: super::events::EventKind,
    /// The model it is about.
    pub model: Option<String>,
    /// The session it is about.
    pub session: Option<u64>,
    /// How much memory it is about, in bytes.
    pub bytes: Option<u64>,
    /// For people.
    pub detail: Option<String>,
    /// Why it was done, where a policy decided.
    pub why: Option<WhyView>,
}

/// `POST /v1/models/{name}/pin` and `unpin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pinned {
    /// The model.
    pub name: String,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Whether it was not before.
    pub changed: bool,
}

/// `POST /v1/models/{name}/warm`: the model is resident.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Warmed {
    /// The model.
    pub name: String,
    /// Where it is now: `host`, or the UUID of a device.
    pub tier: String,
    /// What it took.
    pub origin: OriginView,
    /// Its size, in bytes.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

/// What an open took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OriginView {
    /// Everything was resident.
    Hit,
    /// Something was loaded for it.
    Loaded,
    /// Another's load was joined.
    Joined,
    /// Copied to a device from memory; nothing was read.
    Promoted,
}

/// `POST /v1/models/{name}/evict`: the memory is free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evicted {
    /// The model.
    pub name: String,
    /// What the budget got back, in bytes; 0 if nothing was resident.
    pub freed_bytes: u64,
}

/// `POST /v1/drain`: no new leases from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// Sessions still connected.
    pub sessions: u64,
    /// Leases still held.
    pub leases: u64,
}

/// `{"ok": true, ...}`: what every successful `POST` answers. Added by the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Done<T> {
    ok: bool,
    #[serde(flatten)]
    body: T,
}

impl<T> Done<T> {
    /// Wraps the answer to a verb.
    pub const fn of(body: T) -> Self {
        Self { ok: true, body }
    }
}

/// The body of every answer that is not a success: `{"error": {...}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorView {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// Stable name, in snake case.
    pub code: String,
    /// Stable number: of `mrm_proto::error::ErrorCode`, or 700 and up for faults of the HTTP
    /// request itself.
    pub number: u16,
    /// For people: the object, the reason, the remedy.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Whether the request changed anything; also true when that cannot be excluded.
    pub took_effect: bool,
}

//! What a journal says first: who wrote it, and what its decider was told once.

use minicbor::{Decode, Encode};
use mrm_core::id::{Bytes, DeviceId};
use mrm_core::policy::Choice;
use std::time::{SystemTime, UNIX_EPOCH};

/// The first part of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Header {
    /// Release of the daemon.
    #[n(0)]
    pub release: String,
    /// Commit that it was built from, if the build was told (`MRM_COMMIT`).
    #[n(1)]
    pub commit: Option<String>,
    /// Whether it checked every invariant after every event while its state was small.
    #[n(2)]
    pub checked: bool,
    /// Number of the run, as in `/v1/status`.
    #[n(3)]
    pub instance: u64,
    /// When time 0 of the events was: microseconds since 1970, UTC.
    #[n(4)]
    pub began_unix_us: u64,
    /// What the decider was configured with.
    #[n(5)]
    pub core: CoreFacts,
}

/// [`mrm_core::Config`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CoreFacts {
    /// The host budget, bytes.
    #[n(0)]
    pub limit_bytes: u64,
    /// Most segments in host memory.
    #[n(1)]
    pub segments_max: u64,
    /// Most opens that may wait.
    #[n(2)]
    pub waiting_max: u64,
    /// Most leases of a session.
    #[n(3)]
    pub leases_per_session_max: u64,
    /// How long a resolution is believed, milliseconds.
    #[n(4)]
    pub revalidate_ms: u64,
    /// The host's order of eviction.
    #[n(5)]
    pub policy: String,
    /// The devices.
    #[n(6)]
    pub devices: Vec<DeviceFacts>,
    /// Share of the time that loading ahead may take, in percent; absent where it is off.
    #[n(7)]
    pub prefetch_percent: Option<u8>,
}

/// [`mrm_core::DeviceConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DeviceFacts {
    /// Its budget, bytes.
    #[n(0)]
    pub budget_bytes: u64,
    /// Most pieces of memory on it.
    #[n(1)]
    pub pieces_max: u64,
    /// Devices that it can copy from.
    #[n(2)]
    pub peers: Vec<u16>,
    /// Its order of eviction.
    #[n(3)]
    pub policy: String,
    /// How much of its budget the leases of one user may keep free, percent.
    #[n(4)]
    pub user_reserve_percent: u8,
}

/// A journal of a policy that this release does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it was written under the policy {0}, which this release does not have; use that release")]
pub struct UnknownPolicy(pub String);

impl Header {
    /// Of this program, which tells its decider this from now on.
    #[must_use]
    pub fn of(instance: u64, core: &mrm_core::Config) -> Self {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("MRM_COMMIT").map(str::to_owned),
            checked: cfg!(debug_assertions),
            instance,
            began_unix_us: u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX),
            core: CoreFacts::of(core),
        }
    }
}

impl CoreFacts {
    fn of(config: &mrm_core::Config) -> Self {
        let device = |device: &mrm_core::DeviceConfig| DeviceFacts {
            budget_bytes: device.budget.0,
            pieces_max: device.pieces_max,
            peers: device.peers.iter().map(|peer| peer.0).collect(),
            policy: device.policy.to_string(),
            user_reserve_percent: device.user_reserve_percent,
        };
        Self {
            limit_bytes: config.limit.0,
            segments_max: config.segments_max,
            waiting_max: config.waiting_max as u64,
            leases_per_session_max: config.leases_per_session_max as u64,
            revalidate_ms: config.revalidate_ms,
            policy: config.policy.to_string(),
            devices: config.devices.iter().map(device).collect(),
            prefetch_percent: config
                .prefetch
                .enabled
                .then_some(config.prefetch.share_percent),
        }
    }

    /// The same configuration again.
    ///
    /// # Errors
    /// When one of its policies is not known.
    pub fn config(&self) -> Result<mrm_core::Config, UnknownPolicy> {
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let device = |device: &DeviceFacts| {
            Ok(mrm_core::DeviceConfig {
                budget: Bytes(device.budget_bytes),
                pieces_max: device.pieces_max,
                peers: device.peers.iter().copied().map(DeviceId).collect(),
                policy: policy_named(&device.policy)?,
                user_reserve_percent: device.user_reserve_percent,
            })
        };
        Ok(mrm_core::Config {
            limit: Bytes(self.limit_bytes),
            segments_max: self.segments_max,
            waiting_max: count(self.waiting_max),
            leases_per_session_max: count(self.leases_per_session_max),
            revalidate_ms: self.revalidate_ms,
            policy: policy_named(&self.policy)?,
            prefetch: mrm_core::Prefetch {
                enabled: self.prefetch_percent.is_some(),
                share_percent: self
                    .prefetch_percent
                    .unwrap_or(mrm_core::Prefetch::default().share_percent),
            },
            devices: self.devices.iter().map(device).collect::<Result<_, _>>()?,
        })
    }
}

fn policy_named(text: &str) -> Result<Choice, UnknownPolicy> {
    text.parse().map_err(|_| UnknownPolicy(text.to_owned()))
}

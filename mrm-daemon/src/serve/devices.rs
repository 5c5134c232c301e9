//! Which devices the daemon takes into use, and what the decider is told of them.

use super::RunError;
use crate::config::{DeviceConfig, DeviceRequired, Enabled};
use crate::degraded::Degraded;
use crate::device::{DeviceReport, Found, Refused, SelfTest, Started, Usable, start};
use crate::shell::{DeviceTier, Managed};
use crate::status::view::DriverView;
use mrm_core::id::{Bytes, DeviceId};

/// Looks for devices, and proves that their memory can be shared. Blocks, for seconds.
///
/// # Errors
/// When the operator wants a device and none can be used, or a budget is none that its device can
/// have.
pub(super) fn find(
    config: &DeviceConfig,
    self_test: Option<&SelfTest>,
    degraded: &Degraded,
) -> Result<DeviceTier, RunError> {
    let nothing = |driver| DeviceTier {
        config: config.clone(),
        driver,
        devices: Vec::new(),
        refused: Vec::new(),
    };
    let (Some(self_test), Enabled::Auto | Enabled::Yes) = (self_test, config.enabled) else {
        return Ok(nothing(DriverView::disabled()));
    };
    let tier = match start(&config.settings, &config.uuids, self_test, degraded) {
        Started::NoDriver(no) => {
            tracing::info!(cause = no.cause, "no device tier");
            nothing(DriverView::failed(no.id, &no.cause, &no.cure))
        }
        Started::Driver(found) => taken(config, found)?,
    };
    for uuid in config.absent(&uuids(&tier)) {
        degraded.report(
            "device_absent",
            format!("device {uuid} has settings of its own and is not used"),
            "see `mrm status` for the devices there are, or take its [device.gpu] table out",
        );
    }
    if config.enabled == Enabled::Yes && tier.devices.is_empty() {
        return Err(RunError::Devices(required(&tier)));
    }
    Ok(tier)
}

/// What the decider is told of each device; together they may take `pieces` descriptors.
pub(super) fn decider_configs(tier: &DeviceTier, pieces: u64) -> Vec<mrm_core::DeviceConfig> {
    let each = pieces / (tier.devices.len() as u64).max(1);
    let uuids = tier.devices.iter().map(|managed| managed.report().uuid);
    let uuids: Vec<_> = uuids.collect();
    let peers = |report: &DeviceReport| {
        let numbered = (0..=u16::MAX).map(DeviceId).zip(&uuids);
        numbered
            .filter(|(_, uuid)| report.peers.contains(uuid))
            .map(|(id, _)| id)
            .collect()
    };
    let told = tier.devices.iter().map(|managed| mrm_core::DeviceConfig {
        budget: Bytes(managed.budget().budget_bytes),
        pieces_max: each,
        peers: peers(managed.report()),
        policy: tier.config.policy,
        user_reserve_percent: tier.config.user_reserve_percent,
    });
    told.collect()
}

fn taken(config: &DeviceConfig, found: Found) -> Result<DeviceTier, RunError> {
    let mut tier = DeviceTier {
        config: config.clone(),
        driver: DriverView::ready(&found.driver_version, &found.library),
        devices: Vec::with_capacity(found.devices.len()),
        refused: found.refused,
    };
    for Usable { device, report } in found.devices {
        let budget = config.budget_of(report.uuid, report.total_bytes)?;
        tracing::info!(
            device = %report.uuid,
            name = report.name,
            sharing = %report.mechanism,
            why = report.why,
            context_bytes = report.context_bytes,
            budget_bytes = budget.budget_bytes,
            free_bytes = report.free_bytes,
            "a device is used"
        );
        tier.devices.push(Managed::new(device, report, budget));
    }
    for Refused { uuid, cause, .. } in &tier.refused {
        tracing::warn!(device = %uuid, cause, "a device is not used");
    }
    Ok(tier)
}

fn uuids(tier: &DeviceTier) -> Vec<mrm_cuda::DeviceUuid> {
    let used = tier.devices.iter().map(|managed| managed.report().uuid);
    used.collect()
}

fn required(tier: &DeviceTier) -> DeviceRequired {
    let cure = || "see `mrm doctor`".to_owned();
    match (tier.refused.first(), &tier.driver.cause) {
        (Some(refused), _) => DeviceRequired {
            cause: format!("{}: {}", refused.uuid, refused.cause),
            cure: cure(),
        },
        (None, Some(cause)) => DeviceRequired {
            cause: cause.clone(),
            cure: tier.driver.cure.clone().unwrap_or_else(cure),
        },
        (None, None) => DeviceRequired {
            cause: "the driver sees none".to_owned(),
            cure: cure(),
        },
    }
}

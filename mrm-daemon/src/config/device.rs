//! `[device]`: which devices hold weights, how much of each, and how they are filled.

use super::Size;
use crate::device::DeviceSettings;
use mrm_core::policy::Choice;
use mrm_cuda::DeviceUuid;
use mrm_proto::layout;

/// Least that a budget may come to: the smallest allocation of a device.
pub const DEVICE_BUDGET_BYTES_MIN: u64 = 2 << 20;

/// `[device]`: the devices and what may be put on them.
///
/// ```
/// use mrm_daemon::config::{DeviceConfig, Size};
///
/// let config = DeviceConfig::default();
/// let uuid = "GPU-5a3c1b2e-0f1d-4c9a-8a77-0123456789ab".parse()?;
/// let budget = config.budget_of(uuid, 8 << 30)?;
/// // 90 % would leave less than 1 GiB to the clients.
/// assert_eq!(budget.budget_bytes, 7 << 30);
///
/// let config = DeviceConfig { budget: Size::Bytes(9 << 30), ..config };
/// assert!(config.budget_of(uuid, 8 << 30).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Whether devices are used.
    pub enabled: Enabled,
    /// The devices to use, each once; all that the daemon sees when empty.
    pub uuids: Vec<DeviceUuid>,
    /// Most memory of each device that models may take; a share is of all its memory.
    pub budget: Size,
    /// What is kept free of each device for the clients' own work; a share is of all its memory.
    pub reserve: Size,
    /// What is different for single devices. UUIDs are unique, and among `uuids` if those are
    /// named.
    pub gpus: Vec<GpuEntry>,
    /// How the tensors of a model are put together into allocations.
    pub granularity: Granularity,
    /// Size of a block, a multiple of [`layout::ALIGNMENT_BYTES`].
    pub block_bytes: u64,
    /// What leaves each device first when room is needed.
    pub policy: Choice,
    /// Users who get copies of their own on devices, which no other user is lent; each once.
    pub private_uids: Vec<u32>,
    /// How much of each budget the leases of one user may keep free of weights, in percent. A reload
    /// does not change it.
    pub user_reserve_percent: u8,
    /// How memory is lent and filled.
    pub settings: DeviceSettings,
}

/// One `[device.gpu."GPU-..."]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuEntry {
    /// Which device.
    pub uuid: DeviceUuid,
    /// Instead of [`DeviceConfig::budget`].
    pub budget: Option<Size>,
    /// Instead of [`DeviceConfig::reserve`].
    pub reserve: Option<Size>,
}

/// Whether devices are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enabled {
    /// Those that can be; none where there are none.
    #[default]
    Auto,
    /// One at least, or the daemon does not start.
    Yes,
    /// None: the driver is not even looked for.
    No,
}

/// How the tensors of a model are put together, as the operator says it: a block's size is one
/// setting for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Granularity {
    /// All in one allocation.
    #[default]
    Model,
    /// As many as fit into a block.
    Block,
    /// An allocation for each.
    Tensor,
}

/// What models may take of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceBudget {
    /// Most that models may take, in bytes: what was asked for, or what the reserve leaves.
    pub budget_bytes: u64,
    /// What the configured budget comes to on this device, in bytes.
    pub asked_bytes: u64,
    /// What is kept free for the clients' own work, in bytes.
    pub reserve_bytes: u64,
}

/// A budget that its device cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// More than all its memory.
    #[error(
        "{key} = \"{budget}\" is more than the {total_bytes} bytes of device {uuid}; give less, \
         or a share as \"90%\""
    )]
    OverTotal {
        /// The device.
        uuid: DeviceUuid,
        /// The setting.
        key: String,
        /// Its value.
        budget: Size,
        /// All memory of the device.
        total_bytes: u64,
    },
    /// What the reserve leaves, or the share comes to, holds no model.
    #[error(
        "of the {total_bytes} bytes of device {uuid}, {reserve_key} = \"{reserve}\" and \
         {budget_key} = \"{budget}\" leave {left_bytes} to models, which is less than the smallest \
         allocation ({DEVICE_BUDGET_BYTES_MIN}); change one of the two, or leave the device out \
         of device.uuids"
    )]
    NothingLeft {
        /// The device.
        uuid: DeviceUuid,
        /// The budget's setting.
        budget_key: String,
        /// Its value.
        budget: Size,
        /// The reserve's setting.
        reserve_key: String,
        /// Its value.
        reserve: Size,
        /// All memory of the device.
        total_bytes: u64,
        /// What models would have.
        left_bytes: u64,
    },
}

/// `device.enabled = "yes"`, and no device can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device.enabled is \"yes\", and no device can be used: {cause}; {cure}, or set device.enabled \
     = \"auto\" to serve from host memory alone"
)]
pub struct DeviceRequired {
    /// Why not, without its full stop.
    pub cause: String,
    /// What to do about it, without its full stop.
    pub cure: String,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            enabled: Enabled::default(),
            uuids: Vec::new(),
            private_uids: Vec::new(),
            user_reserve_percent: 50,
            budget: Size::Percent(90),
            reserve: Size::Bytes(1 << 30),
            gpus: Vec::new(),
            granularity: Granularity::default(),
            block_bytes: 256 << 20,
            policy: Choice::default(),
            settings: DeviceSettings::default(),
        }
    }
}

impl DeviceConfig {
    /// What models may take of the device `uuid`, which has `total_bytes` of memory.
    ///
    /// # Errors
    /// A budget over all its memory, or one that leaves models nothing.
    pub fn budget_of(
        &self,
        uuid: DeviceUuid,
        total_bytes: u64,
    ) -> Result<DeviceBudget, BudgetError> {
        let own = self.gpus.iter().find(|entry| entry.uuid == uuid);
        let setting = |own: Option<Size>, all: Size, name: &str| match own {
            Some(size) => (size, format!("device.gpu.\"{uuid}\".{name}")),
            None => (all, format!("device.{name}")),
        };
        let budget = own.and_then(|entry| entry.budget);
        let (budget, budget_key) = setting(budget, self.budget, "budget_bytes");
        let reserve = own.and_then(|entry| entry.reserve);
        let (reserve, reserve_key) = setting(reserve, self.reserve, "reserve_bytes");
        let (asked_bytes, reserve_bytes) = (budget.of(total_bytes), reserve.of(total_bytes));
        if asked_bytes > total_bytes {
            return Err(BudgetError::OverTotal {
                uuid,
                key: budget_key,
                budget,
                total_bytes,
            });
        }
        let budget_bytes = asked_bytes.min(total_bytes.saturating_sub(reserve_bytes));
        if budget_bytes < DEVICE_BUDGET_BYTES_MIN {
            return Err(BudgetError::NothingLeft {
                uuid,
                budget_key,
                budget,
                reserve_key,
                reserve,
                total_bytes,
                left_bytes: budget_bytes,
            });
        }
        Ok(DeviceBudget {
            budget_bytes,
            asked_bytes,
            reserve_bytes,
        })
    }

    /// How a model's tensors are laid out whose entry says `of_model`.
    #[must_use]
    pub fn layout(&self, of_model: Option<Granularity>) -> layout::Granularity {
        match of_model.unwrap_or(self.granularity) {
            Granularity::Model => layout::Granularity::Model,
            Granularity::Block => layout::Granularity::Block {
                block_bytes: self.block_bytes,
            },
            Granularity::Tensor => layout::Granularity::Tensor,
        }
    }

    /// Devices with settings of their own that are not `visible`: those settings are for nothing,
    /// which the operator should hear.
    #[must_use]
    pub fn absent(&self, visible: &[DeviceUuid]) -> Vec<DeviceUuid> {
        let own = self.gpus.iter().map(|entry| entry.uuid);
        own.filter(|uuid| !visible.contains(uuid)).collect()
    }
}

impl Enabled {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Yes => "yes",
            Self::No => "no",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "auto" => Some(Self::Auto),
            "yes" => Some(Self::Yes),
            "no" => Some(Self::No),
            _ => None,
        }
    }
}

impl Granularity {
    /// As written in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Block => "block",
            Self::Tensor => "tensor",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        match word {
            "model" => Some(Self::Model),
            "block" => Some(Self::Block),
            "tensor" => Some(Self::Tensor),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn uuid(last: u8) -> DeviceUuid {
        let mut bytes = [0; 16];
        bytes[15] = last;
        DeviceUuid(bytes)
    }

    #[test]
    fn a_budget_leaves_the_reserve() {
        let config = DeviceConfig::default();
        let of = |total_gib: u64| config.budget_of(uuid(1), total_gib * GIB).unwrap();
        assert_eq!(of(80).budget_bytes, 72 * GIB);
        assert_eq!((of(8).budget_bytes, of(8).reserve_bytes), (7 * GIB, GIB));
        assert_eq!(of(8).asked_bytes, Size::Percent(90).of(8 * GIB));
    }

    #[test]
    fn a_device_may_have_its_own() {
        let config = DeviceConfig {
            gpus: vec![
                GpuEntry {
                    uuid: uuid(1),
                    budget: Some(Size::Bytes(3 * GIB)),
                    reserve: None,
                },
                GpuEntry {
                    uuid: uuid(2),
                    budget: None,
                    reserve: Some(Size::Percent(50)),
                },
            ],
            ..DeviceConfig::default()
        };
        let of = |last| config.budget_of(uuid(last), 8 * GIB).unwrap();
        assert_eq!((of(1).budget_bytes, of(1).reserve_bytes), (3 * GIB, GIB));
        assert_eq!(of(2).budget_bytes, 4 * GIB);
        assert_eq!(of(3).budget_bytes, 7 * GIB);
        assert_eq!(config.absent(&[uuid(2), uuid(3)]), [uuid(1)]);
    }

    #[test]
    fn what_a_device_does_not_have_is_refused_with_both_numbers() {
        let mut config = DeviceConfig {
            budget: Size::Bytes(9 * GIB),
            ..DeviceConfig::default()
        };
        let refused = |config: &DeviceConfig| config.budget_of(uuid(1), 8 * GIB).unwrap_err();
        assert_eq!(
            refused(&config).to_string(),
            "device.budget_bytes = \"9GiB\" is more than the 8589934592 bytes of device \
             GPU-00000000-0000-0000-0000-000000000001; give less, or a share as \"90%\""
        );
        config.gpus = vec![GpuEntry {
            uuid: uuid(1),
            budget: Some(Size::Percent(100)),
            reserve: Some(Size::Bytes(10 * GIB)),
        }];
        let text = refused(&config).to_string();
        let key =
            "device.gpu.\"GPU-00000000-0000-0000-0000-000000000001\".reserve_bytes = \"10GiB\"";
        assert!(text.contains(key) && text.contains("leave 0"), "{text}");
    }

    #[test]
    fn a_model_may_have_a_layout_of_its_own() {
        let config = DeviceConfig {
            block_bytes: 512,
            ..DeviceConfig::default()
        };
        let block = layout::Granularity::Block { block_bytes: 512 };
        assert_eq!(config.layout(None), layout::Granularity::Model);
        assert_eq!(config.layout(Some(Granularity::Block)), block);
        let tensor = Some(Granularity::Tensor);
        assert_eq!(config.layout(tensor), layout::Granularity::Tensor);
    }
}

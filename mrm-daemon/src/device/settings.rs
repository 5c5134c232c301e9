//! What the operator may set about devices, as plain data.
//!
//! ```
//! use mrm_daemon::device::{DeviceSettings, Register};
//!
//! let settings = DeviceSettings { register: Register::Never, ..DeviceSettings::default() };
//! assert_eq!(settings.stage_bytes * settings.stage_slots as u64, 32 << 20);
//! ```

use std::fmt;

/// How devices are filled and their memory lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSettings {
    /// How memory is shared with other processes.
    pub sharing: mrm_cuda::Setting,
    /// Size of one staging buffer.
    pub stage_bytes: u64,
    /// How many staging buffers each thread that fills has. They are page-locked.
    pub stage_slots: usize,
    /// Whether segments in host memory are registered, so that devices copy from them by
    /// themselves.
    pub register: Register,
    /// How many threads fill one device from the operator's files, and as many again from the
    /// clients'.
    pub fill_threads: usize,
}

impl Default for DeviceSettings {
    fn default() -> Self {
        Self {
            sharing: mrm_cuda::Setting::Auto,
            stage_bytes: 8 << 20,
            stage_slots: 4,
            register: Register::Auto,
            fill_threads: 2,
        }
    }
}

/// When a segment in host memory is registered with the driver. Registering locks all its pages,
/// which costs about as much as one copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Register {
    /// When it is copied to a device for the second time: it may well be again.
    #[default]
    Auto,
    /// Never: copies go through staging buffers.
    Never,
    /// When it is copied for the first time, if it is all in memory by then.
    Always,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Always => "always",
        })
    }
}

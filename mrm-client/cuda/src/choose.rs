//! Which mechanism shares the memory of a device here: proven before it is relied on.
//!
//! ```no_run
//! use mrm_cuda::choose::{Setting, Trial, choose};
//! use mrm_cuda::{Context, probe};
//!
//! /// Starts a process that calls `choose::prove` with what is in `trial`, and waits for it.
//! fn in_a_child(trial: Trial) -> Result<(), String> {
//! #    drop(trial);
//!     // ...
//!     Ok(())
//! }
//!
//! let driver = probe()?;
//! let context = Context::retain(driver, driver.devices()?[0].uuid)?;
//! let choice = choose(Setting::Auto, &context, &mut in_a_child)?;
//! println!("device.sharing is {}: {}", choice.mechanism, choice.why);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::context::Context;
use crate::device::{DeviceInfo, DeviceUuid};
use crate::error::ShareError;
use crate::share::{Export, Mechanism};
use crate::stream::Stream;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Two blocks of 2 MiB and a little more: a boundary lies within, and the end is not at one.
const TRIAL_BYTES: u64 = (4 << 20) + 4097;

/// What the operator asks for: `device.sharing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting {
    /// The first mechanism that works, VMM before legacy.
    #[default]
    Auto,
    /// VMM, or no device tier.
    Vmm,
    /// Legacy, or no device tier.
    Legacy,
}

impl Setting {
    /// The mechanisms to try, in order.
    const fn wanted(self) -> &'static [Mechanism] {
        match self {
            Self::Auto => &[Mechanism::Vmm, Mechanism::Legacy],
            Self::Vmm => &[Mechanism::Vmm],
            Self::Legacy => &[Mechanism::Legacy],
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Vmm => "vmm",
            Self::Legacy => "legacy",
        })
    }
}

/// A text that is not a [`Setting`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("device.sharing is {0:?}: it must be auto, vmm or legacy")]
pub struct SettingError(String);

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "auto" => Ok(Self::Auto),
            "vmm" => Ok(Self::Vmm),
            "legacy" => Ok(Self::Legacy),
            _ => Err(SettingError(text.to_owned())),
        }
    }
}

/// What a child process is to prove with [`prove`]. The memory lives until the hook returns.
#[derive(Debug)]
pub struct Trial {
    /// The device.
    pub device: DeviceUuid,
    /// The mechanism.
    pub mechanism: Mechanism,
    /// What was exported.
    pub export: Export,
    /// How many bytes.
    pub bytes: u64,
    /// What the bytes are made of.
    pub seed: u64,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// Why, in a sentence without its full stop.
    pub why: String,
    /// What was preferred and did not work: a degraded path, to be reported as such.
    pub passed_over: Vec<Attempt>,
}

/// A mechanism that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// What went wrong.
    pub cause: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.mechanism, self.cause)
    }
}

/// No mechanism that the setting allows works.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "memory of device {device} cannot be shared with device.sharing = \"{setting}\" ({}): {}",
    listed(.attempts), cure(*.setting)
)]
pub struct ChooseError {
    /// The device.
    pub device: DeviceUuid,
    /// What was asked for.
    pub setting: Setting,
    /// What was tried.
    pub attempts: Vec<Attempt>,
}

fn listed(attempts: &[Attempt]) -> String {
    attempts
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

const fn cure(setting: Setting) -> &'static str {
    match setting {
        Setting::Auto => "see what the driver says above; models are served from host memory",
        Setting::Vmm | Setting::Legacy => "set device.sharing = \"auto\", or cure what it says",
    }
}

/// Chooses a mechanism for the device of `context`. `self_test` starts a process that calls
/// [`prove`], and says whether that succeeded; an explicit setting is tested like `auto`.
///
/// # Errors
/// When no mechanism that `setting` allows works.
pub fn choose(
    setting: Setting,
    context: &Context,
    self_test: &mut dyn FnMut(Trial) -> Result<(), String>,
) -> Result<Choice, ChooseError> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for mechanism in setting.wanted() {
        match attempt(*mechanism, context, self_test) {
            Ok(()) => {
                let why = reason(setting, *mechanism, &attempts);
                return Ok(Choice {
                    mechanism: *mechanism,
                    why,
                    passed_over: attempts,
                });
            }
            Err(cause) => attempts.push(Attempt {
                mechanism: *mechanism,
                cause,
            }),
        }
    }
    Err(ChooseError {
        device: context.device().uuid,
        setting,
        attempts,
    })
}

fn reason(setting: Setting, mechanism: Mechanism, passed_over: &[Attempt]) -> String {
    let read = "a child process opened an allocation and read every byte right";
    match setting {
        Setting::Auto if passed_over.is_empty() => format!("preferred, and {read}"),
        Setting::Auto => format!("{read}; passed over: {}", listed(passed_over)),
        Setting::Vmm | Setting::Legacy => format!("configured as {mechanism}, and {read}"),
    }
}

fn attempt(
    mechanism: Mechanism,
    context: &Context,
    self_test: &mut dyn FnMut(Trial) -> Result<(), String>,
) -> Result<(), String> {
    supported(mechanism, context.device())?;
    // Not a secret and not random: another run's bytes must not pass for this one's.
    let seed = u64::from(std::process::id()) << 8 | mechanism as u64;
    let text = |error: ShareError| error.to_string();
    let stream = Stream::new(context).map_err(|error| error.to_string())?;
    let mut memory = mechanism
        .sharing()
        .allocate(context, TRIAL_BYTES)
        .map_err(text)?;
    memory
        .copy_in(0, &pattern(seed, TRIAL_BYTES), &stream)
        .map_err(text)?;
    let memory = memory.seal(&stream).map_err(text)?;
    let trial = Trial {
        device: context.device().uuid,
        mechanism,
        export: memory.export().map_err(text)?,
        bytes: TRIAL_BYTES,
        seed,
    };
    let tested = self_test(trial).map_err(|cause| format!("the self-test failed: {cause}"));
    tested.and(memory.free().map_err(|error| error.to_string()))
}

fn supported(mechanism: Mechanism, device: &DeviceInfo) -> Result<(), String> {
    let lacks = match mechanism {
        Mechanism::Vmm if !device.vmm => "virtual memory management",
        Mechanism::Vmm if !device.posix_fd => "the export of memory as file descriptors",
        Mechanism::Vmm | Mechanism::Legacy => return Ok(()),
    };
    Err(format!(
        "{} ({}) does not support {lacks}",
        device.uuid, device.name
    ))
}

/// Why a child could not prove what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProofError {
    /// It could not open or read.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The driver failed elsewhere.
    #[error(transparent)]
    Call(#[from] crate::CallError),
    /// It read other bytes than were written.
    #[error("byte {at} of {bytes} read from the device is not the byte that was written")]
    WrongByte {
        /// Its offset.
        at: u64,
        /// How many were read.
        bytes: u64,
    },
    /// It could not close.
    #[error(transparent)]
    Close(#[from] crate::CloseError),
}

/// In the child: opens what `trial` names, reads all of it, and closes it.
///
/// # Errors
/// When it cannot be opened, read or closed, or has other bytes.
pub fn prove(context: &Context, trial: Trial) -> Result<(), ProofError> {
    let Trial {
        mechanism,
        export,
        bytes,
        seed,
        device: _,
    } = trial;
    let mapping = mechanism.sharing().import(context, export, bytes)?;
    let expected = pattern(seed, bytes);
    let mut read = vec![0; expected.len()];
    let stream = Stream::new(context)?;
    stream.copy_out(mapping.view(0, bytes)?, &mut read)?;
    if let Some(at) = read
        .iter()
        .zip(&expected)
        .position(|(read, expected)| read != expected)
    {
        return Err(ProofError::WrongByte {
            at: at as u64,
            bytes,
        });
    }
    mapping
        .close(&[])
        .map_err(|refused| ProofError::Close(refused.source))
}

/// Bytes that follow from `seed`, in which no two blocks are alike.
fn pattern(seed: u64, bytes: u64) -> Vec<u8> {
    let mut state = seed;
    let mut made = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0).next_multiple_of(8));
    while (made.len() as u64) < bytes {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        made.extend_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
    }
    made.truncate(usize::try_from(bytes).unwrap_or(0));
    made
}

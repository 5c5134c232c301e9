//! Whether CUDA can be used here, and if not, why not and what cures it.
//!
//! ```
//! use mrm_cuda::probe::{ProbeFailure, probe};
//!
//! match probe() {
//!     Ok(driver) => println!("driver {} in {}", driver.version(), driver.library()),
//!     Err(ProbeFailure::NoDriverLibrary { .. }) => println!("no GPU driver here: host tier only"),
//!     Err(failure) => eprintln!("{}\n  {}", failure.cause(), failure.cure()),
//! }
//! ```

use crate::driver::{self, Table};
use crate::error::{CallError, CudaError};
use std::fmt;
use std::sync::OnceLock;
use thiserror::Error;

/// The oldest driver that has every function called for (CUDA 11.4), as the driver counts.
const VERSION_MIN: u32 = 11_040;

/// What one look at the driver came to; later looks see the same.
static PROBED: OnceLock<Result<Probed, ProbeFailure>> = OnceLock::new();

#[derive(Debug)]
struct Probed {
    table: Table,
    version: DriverVersion,
    library: String,
    pid: u32,
}

/// A driver that was loaded, is complete and is initialised. Only [`probe()`] makes one, so to
/// have it is to know that the probe ran and succeeded.
#[derive(Clone, Copy)]
pub struct Driver(&'static Probed);

/// Loads and initialises the driver, once per process. Never panics.
///
/// # Errors
/// Says which of the things that can be wrong is wrong. The answer stays for the life of the
/// process: a driver installed later is found by the next process.
pub fn probe() -> Result<Driver, ProbeFailure> {
    match PROBED.get_or_init(look) {
        Ok(probed) => Ok(Driver(probed)),
        Err(failure) => Err(failure.clone()),
    }
}

fn look() -> Result<Probed, ProbeFailure> {
    let names = candidates();
    let library = match driver::load(&names) {
        Ok(library) => library,
        Err(reason) => {
            return Err(ProbeFailure::NoDriverLibrary {
                tried: names,
                reason,
            });
        }
    };
    let path = path_of(driver::address_within(library));
    driver::name_errors_by(library);
    if path.split('/').any(|part| part == "stubs") {
        return Err(ProbeFailure::StubLibrary { path });
    }
    // The version first: an old driver is to be called old, not incomplete.
    let version = match driver::version(library) {
        None => {
            return Err(ProbeFailure::SymbolMissing {
                names: vec!["cuDriverGetVersion"],
                path,
            });
        }
        Some(Err(error)) => return Err(ProbeFailure::of(error, path)),
        Some(Ok(version)) => version,
    };
    if version < VERSION_MIN {
        return Err(ProbeFailure::DriverTooOld {
            version: DriverVersion(version),
            needed: DriverVersion(VERSION_MIN),
        });
    }
    let table = match Table::find(library) {
        Ok(table) => table,
        Err(names) => return Err(ProbeFailure::SymbolMissing { names, path }),
    };
    let failed = |call: CallError| match call.cuda() {
        Some(error) => ProbeFailure::of(error, path.clone()),
        None => ProbeFailure::NoDevice,
    };
    table.init().map_err(failed)?;
    if table.device_count().map_err(failed)? == 0 {
        return Err(ProbeFailure::NoDevice);
    }
    Ok(Probed {
        table,
        version: DriverVersion(version),
        library: path,
        pid: std::process::id(),
    })
}

/// Names to try. The driver's own comes first: the unversioned name may be a toolkit's stub.
fn candidates() -> Vec<String> {
    let mut names = vec!["libcuda.so.1".to_owned()];
    for name in cudarc::get_lib_name_candidates("cuda") {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The file that is mapped at `address`.
fn path_of(address: Option<usize>) -> String {
    let unknown = || "a library of unknown path".to_owned();
    let (Some(address), Ok(maps)) = (address, std::fs::read_to_string("/proc/self/maps")) else {
        return unknown();
    };
    let within = |line: &&str| {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let parse = |hex| usize::from_str_radix(hex, 16).ok();
        range
            .and_then(|(start, end)| Some(parse(start)?..parse(end)?))
            .is_some_and(|range| range.contains(&address))
    };
    let line = maps.lines().find(within);
    let path = line.and_then(|line| line.find('/').and_then(|at| line.get(at..)));
    path.map_or_else(unknown, str::to_owned)
}

/// Why there is no CUDA here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}; {}", self.cause(), self.cure())]
pub enum ProbeFailure {
    /// No library of any of the driver's names can be loaded.
    NoDriverLibrary {
        /// The names that were tried.
        tried: Vec<String>,
        /// What the loader said of the first.
        reason: String,
    },
    /// The library is what a toolkit links against on machines without a driver.
    StubLibrary {
        /// Where it is.
        path: String,
    },
    /// The driver sees no device.
    NoDevice,
    /// The driver is older than what is called for.
    DriverTooOld {
        /// The driver's version.
        version: DriverVersion,
        /// The oldest that will do.
        needed: DriverVersion,
    },
    /// The library lacks functions.
    SymbolMissing {
        /// Their names.
        names: Vec<&'static str>,
        /// Where the library is.
        path: String,
    },
    /// The driver did not initialise.
    InitFailed {
        /// What it said.
        code: CudaError,
    },
}

impl ProbeFailure {
    fn of(error: CudaError, path: String) -> Self {
        match error {
            CudaError::STUB_LIBRARY => Self::StubLibrary { path },
            CudaError::NO_DEVICE => Self::NoDevice,
            code => Self::InitFailed { code },
        }
    }

    /// A short stable name, for status and metrics.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        match self {
            Self::NoDriverLibrary { .. } => "no_driver_library",
            Self::StubLibrary { .. } => "stub_library",
            Self::NoDevice => "no_device",
            Self::DriverTooOld { .. } => "driver_too_old",
            Self::SymbolMissing { .. } => "symbol_missing",
            Self::InitFailed { .. } => "init_failed",
        }
    }

    /// What is wrong, in a sentence without its full stop.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::NoDriverLibrary { tried, reason } => format!(
                "no CUDA driver library could be loaded ({} names tried; {reason})",
                tried.len()
            ),
            Self::StubLibrary { path } => {
                format!("{path} is a stub that toolkits link against, not the CUDA driver")
            }
            Self::NoDevice => match std::env::var("CUDA_VISIBLE_DEVICES") {
                Ok(value) => {
                    format!("the CUDA driver sees no device (CUDA_VISIBLE_DEVICES is {value:?})")
                }
                Err(_) => "the CUDA driver sees no device".to_owned(),
            },
            Self::DriverTooOld { version, needed } => {
                format!("the CUDA driver is of version {version}, and {needed} is needed")
            }
            Self::SymbolMissing { names, path } => {
                format!("the CUDA driver in {path} lacks {}", names.join(", "))
            }
            Self::InitFailed { code } => format!("the CUDA driver did not initialise: {code}"),
        }
    }

    /// What to do about it, in a sentence without its full stop.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::NoDriverLibrary { .. } => {
                "on a machine without a GPU nothing need be done: models are served from host \
                 memory; else install the NVIDIA driver, or start the container with the GPU \
                 (--gpus, nvidia-container-toolkit) so that libcuda.so.1 is in it"
            }
            Self::StubLibrary { .. } => {
                "take the toolkit's \"stubs\" directory out of LD_LIBRARY_PATH, and have the \
                 driver's libcuda.so.1 found instead"
            }
            Self::NoDevice => {
                "see what nvidia-smi -L lists; unset CUDA_VISIBLE_DEVICES or correct it; start a \
                 container with the GPU (--gpus)"
            }
            Self::DriverTooOld { .. } => "update the NVIDIA driver to release 470 or later",
            Self::SymbolMissing { .. } => {
                "reinstall the NVIDIA driver: the library is incomplete, or not the driver's; see \
                 that no other libcuda.so.1 comes first in LD_LIBRARY_PATH"
            }
            Self::InitFailed { code } => match code.code() {
                2 => "free host or device memory, or raise the limits of this process",
                802 => "start nvidia-fabricmanager, and wait until it is ready",
                803 => {
                    "the driver's library and the kernel module differ in version: reboot, or \
                     reload the module, after the update of the driver"
                }
                804 => {
                    "take the forward-compatibility package (cuda-compat) out of LD_LIBRARY_PATH: \
                     this device does not support it"
                }
                805..=810 => "restart the CUDA MPS daemon, or unset CUDA_MPS_PIPE_DIRECTORY",
                999 => {
                    "see that the kernel module is loaded and /dev/nvidia* is there and may be \
                     opened (nvidia-smi, nvidia-modprobe -u, dmesg for Xid)"
                }
                _ => "see nvidia-smi and the kernel's log (dmesg, Xid) for the device's state",
            },
        }
    }
}

/// A version of the driver, as it counts: 12040 is shown as 12.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion(u32);

impl DriverVersion {
    /// `1000 * major + 10 * minor`.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl Driver {
    pub(crate) fn table(self) -> &'static Table {
        &self.0.table
    }

    /// Fails in a process that was forked since the probe.
    pub(crate) fn usable(self) -> Result<(), CallError> {
        let pid = self.0.pid;
        if std::process::id() == pid {
            Ok(())
        } else {
            Err(CallError::Forked { pid })
        }
    }

    /// The driver's version.
    #[must_use]
    pub fn version(self) -> DriverVersion {
        self.0.version
    }

    /// Path of the driver's library.
    #[must_use]
    pub fn library(self) -> &'static str {
        &self.0.library
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("version", &self.0.version)
            .field("library", &self.0.library)
            .finish_non_exhaustive()
    }
}

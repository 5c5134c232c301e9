//! Memory of CUDA devices that processes share.
//!
//! The driver is loaded at run time: this crate builds, links and runs on a machine that has none,
//! and says so.
//!
//! ```
//! match mrm_cuda::probe() {
//!     Ok(driver) => println!("driver {}: {:?}", driver.version(), driver.devices()),
//!     Err(failure) => println!("no device tier: {}; {}", failure.cause(), failure.cure()),
//! }
//! ```
//!
//! One process allocates, fills, seals and exports; others import what it exported and map it:
//!
//! ```no_run
//! use mrm_cuda::{Context, Mechanism, Stream, probe};
//!
//! let driver = probe()?;
//! let device = driver.devices()?.swap_remove(0);
//! let context = Context::retain(driver, device.uuid)?;
//! let stream = Stream::new(&context)?;
//!
//! let sharing = Mechanism::Vmm.sharing();
//! let mut weights = sharing.allocate(&context, 4 << 20)?;
//! weights.copy_in(0, &[7; 4096], &stream)?;
//! let weights = weights.seal(&stream)?;
//! let export = weights.export()?; // to be sent to another process over a Unix socket
//!
//! // There:
//! let mapping = sharing.import(&context, export, weights.bytes())?;
//! println!("at {:#x} on the device", mapping.pointer());
//! mapping.close(&[])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`probe()`] runs once and tells apart what can be wrong; a [`Driver`] proves that it ran.
//! * With VMM the descriptor keeps the memory when its exporter dies; the next process takes it
//!   over by [`Sharing::reclaim`].
//! * A large allocation is filled while the caller reads on: [`Upload`].
//! * No call switches the caller's current context, and none panics.
//! * What fails half-way is undone. What cannot be undone at once (a capture is going on, the
//!   driver refuses) is kept and tried again: [`release_deferred`].
//! * After `fork` the child makes no call: CUDA does not survive it.

pub mod choose;
mod context;
mod deferred;
pub mod device;
mod driver;
pub mod error;
mod legacy;
mod mapping;
mod pinned;
pub mod probe;
mod ring;
pub mod share;
mod stream;
pub mod upload;
mod vmm;

pub use choose::{Choice, Setting, choose};
pub use context::{Context, MemoryInfo};
pub use deferred::release_deferred;
pub use device::{DeviceInfo, DeviceUuid};
pub use error::{
    CallError, CloseError, CudaError, DeviceError, RegisterError, ShareError, UploadError,
};
pub use probe::{Driver, ProbeFailure, probe};
pub use share::{Allocation, Export, Exported, Mapping, Mechanism, Sealed, Sharing};
pub use stream::{RawStream, Stream};
pub use upload::{Ending, Registered, Ring, Upload};

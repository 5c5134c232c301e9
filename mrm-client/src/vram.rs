//! Memory of devices, by way of `mrm-cuda`: which devices there are, importing what the daemon
//! lends, and closing it again. `vram_absent.rs` stands in for it in builds without CUDA.
//!
//! What a lease covers must not outlive it, least of all with legacy handles, whose memory the
//! daemon may free once nobody has a lease. So mappings and lease are retired together: where a
//! mapping cannot be closed now, it stays here with its lease and is tried again.

use crate::connection::lock;
use crate::device::{CloseError, Device, DeviceError};
use crate::fork;
use crate::lease::Lease;
use mrm_cuda::share::NotClosed;
use mrm_cuda::{Context, DeviceInfo, Export, Mapping, Mechanism, probe};
use mrm_proto::ids::DeviceUuid;
use mrm_proto::reply::{OnDevice, Sharing};
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

pub(crate) use mrm_cuda::RawStream;

/// What a library underneath says.
type Reason = Arc<dyn Error + Send + Sync>;

/// The devices that a process sees. They do not change while it runs.
struct Seen {
    generation: u64,
    devices: Vec<Device>,
}

static SEEN: OnceLock<Seen> = OnceLock::new();

/// The devices that this process sees, by ordinal.
pub(crate) fn visible() -> Result<Vec<Device>, DeviceError> {
    let generation = fork::generation();
    // What a parent saw a child may not use: it is told so by the driver's wrapper, below.
    if let Some(seen) = SEEN.get().filter(|seen| seen.generation == generation) {
        return Ok(seen.devices.clone());
    }
    let driver = probe().map_err(|failure| DeviceError::NoDriver {
        cause: failure.cause(),
        cure: failure.cure().to_owned(),
    })?;
    let found = driver.devices().map_err(|error| DeviceError::Driver {
        source: Arc::new(error),
    })?;
    let device = |info: &DeviceInfo| Device {
        uuid: info.uuid,
        ordinal: info.ordinal,
    };
    let devices: Vec<Device> = found.iter().map(device).collect();
    let seen = SEEN.get_or_init(|| Seen {
        generation,
        devices: devices.clone(),
    });
    debug_assert_eq!(
        seen.generation, generation,
        "the driver works in one process"
    );
    Ok(devices)
}

/// Contexts that a client holds, one a device.
#[derive(Debug, Default)]
pub(crate) struct Contexts(Vec<Context>);

impl Contexts {
    /// Maps the allocations that `grant` lends. What fails half-way is closed, before `keeper` is
    /// given back.
    pub(crate) fn import(
        &mut self,
        grant: &OnDevice,
        fds: Vec<OwnedFd>,
        keeper: &Arc<Lease>,
    ) -> Result<(Device, Mapped), Reason> {
        let context = self.of(grant.uuid)?;
        let device = Device {
            uuid: grant.uuid,
            ordinal: context.device().ordinal,
        };
        let (mechanism, exports): (_, Vec<Export>) = match grant.sharing {
            Sharing::Vmm => (Mechanism::Vmm, fds.into_iter().map(Export::Vmm).collect()),
            Sharing::Legacy => {
                let handles = grant.handles.iter();
                let exports = handles.map(|handle| Export::Legacy(handle.0)).collect();
                (Mechanism::Legacy, exports)
            }
        };
        let mut mapped = Mapped(Vec::with_capacity(exports.len()));
        for (export, bytes) in exports.into_iter().zip(&grant.allocations_bytes) {
            match mechanism.sharing().import(context, export, *bytes) {
                Ok(mapping) => mapped.0.push(mapping),
                Err(error) => {
                    mapped.retire(keeper);
                    return Err(reason(error));
                }
            }
        }
        Ok((device, mapped))
    }

    fn of(&mut self, uuid: DeviceUuid) -> Result<&Context, Reason> {
        let at = match self.0.iter().position(|one| one.device().uuid == uuid) {
            Some(at) => at,
            None => {
                let driver = probe().map_err(reason)?;
                self.0.push(Context::retain(driver, uuid).map_err(reason)?);
                self.0.len() - 1
            }
        };
        Ok(&self.0[at])
    }
}

fn reason(error: impl Error + Send + Sync + 'static) -> Reason {
    Arc::new(error)
}

/// Allocations of the daemon, mapped in this process.
#[derive(Debug, Default)]
pub(crate) struct Mapped(Vec<Mapping>);

impl Mapped {
    /// Address and size of each.
    pub(crate) fn allocations(&self) -> Box<[(u64, u64)]> {
        let place = |mapping: &Mapping| (mapping.pointer(), mapping.bytes());
        self.0.iter().map(place).collect()
    }

    /// Waits for the work that is queued on the device, and unmaps. After an error some may be
    /// closed: [`Mapped::len`] tells.
    pub(crate) fn close(&mut self, streams: &[RawStream]) -> Result<(), CloseError> {
        while let Some(mapping) = self.0.pop() {
            if let Err(NotClosed { mapping, source }) = mapping.close(streams) {
                self.0.push(*mapping);
                return Err(match source {
                    mrm_cuda::CloseError::Capturing => CloseError::Capturing,
                    mrm_cuda::CloseError::Call(error) => CloseError::Driver {
                        source: reason(error),
                    },
                });
            }
        }
        Ok(())
    }

    /// How many are mapped.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Closes, now or later; `keeper` is kept until then.
    pub(crate) fn retire(&mut self, keeper: &Arc<Lease>) {
        let mut mapped = std::mem::take(self);
        // A child has nothing to give back, and must not take a lock that a thread of its parent
        // may have held: dropping does neither.
        if mapped.0.is_empty() || keeper.is_inherited() {
            return;
        }
        release_deferred();
        if mapped.close(&[]).is_ok() || !claim_deferred() {
            return;
        }
        lock(&DEFERRED).push(Deferred {
            mapped,
            keeper: Arc::clone(keeper),
        });
    }
}

/// What could not be closed yet. Fields are dropped in order: the mappings go before the lease.
struct Deferred {
    mapped: Mapped,
    keeper: Arc<Lease>,
}

static DEFERRED: Mutex<Vec<Deferred>> = Mutex::new(Vec::new());
/// The process whose list it is; 0 while it was never used.
static DEFERRED_OF: AtomicU64 = AtomicU64::new(0);

/// Whether the list is this process's; it is the first one's to use it, and never a child's.
fn claim_deferred() -> bool {
    let (mine, order) = (fork::generation(), Ordering::Relaxed);
    match DEFERRED_OF.compare_exchange(0, mine, order, order) {
        Ok(_) => true,
        Err(owner) => owner == mine,
    }
}

/// Tries again to close what is deferred. How many models are left.
pub(crate) fn release_deferred() -> usize {
    if DEFERRED_OF.load(Ordering::Relaxed) != fork::generation() {
        return 0;
    }
    let deferred = std::mem::take(&mut *lock(&DEFERRED));
    if deferred.is_empty() {
        return 0;
    }
    // Without the lock: closing waits for the device.
    let left: Vec<_> = deferred
        .into_iter()
        .filter_map(|mut one| {
            // Of a lease that was taken away nothing is kept: its memory is gone.
            let kept = one.mapped.close(&[]).is_err() && one.keeper.lost().is_none();
            kept.then_some(one)
        })
        .collect();
    let mut deferred = lock(&DEFERRED);
    deferred.extend(left);
    deferred.len()
}

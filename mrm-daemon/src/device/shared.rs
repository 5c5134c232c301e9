//! What the threads of a device share.

use super::error::FillError;
use super::feed::{HostFeed, Mapped};
use super::settings::DeviceSettings;
use crate::degraded::Degraded;
use mrm_cuda::{
    Allocation, CallError, Context, DeviceUuid, Export, Mechanism, MemoryInfo, Registered, Ring,
    Sealed, ShareError, Stream,
};
use std::sync::{Mutex, PoisonError};

/// A device that is in use.
pub(super) struct Shared {
    context: Context,
    mechanism: Mechanism,
    settings: DeviceSettings,
    /// What its allocations are rounded up to; asked for once.
    granularity_bytes: u64,
    /// Nothing is ever queued on it: waiting for it tells whether the context still works.
    idle: Stream,
    /// Those that no thread uses now. A ring costs page-locked memory, so there are never more than
    /// there are threads, and none before the first fill.
    rings: Mutex<Vec<Ring>>,
    degraded: Degraded,
}

impl Shared {
    pub(super) fn new(
        context: Context,
        mechanism: Mechanism,
        settings: DeviceSettings,
        degraded: Degraded,
    ) -> Result<Self, ShareError> {
        let idle = Stream::new(&context).map_err(|source| ShareError::Call {
            doing: "make a stream",
            device: context.device().uuid,
            source,
        })?;
        Ok(Self {
            granularity_bytes: mechanism.sharing().granularity_bytes(&context)?,
            context,
            mechanism,
            settings,
            idle,
            rings: Mutex::default(),
            degraded,
        })
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn uuid(&self) -> DeviceUuid {
        self.context.device().uuid
    }

    pub(super) const fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    pub(super) const fn granularity_bytes(&self) -> u64 {
        self.granularity_bytes
    }

    pub(super) fn allocate(&self, bytes: u64) -> Result<Allocation, ShareError> {
        self.mechanism.sharing().allocate(&self.context, bytes)
    }

    pub(super) fn reclaim(&self, export: Export, bytes: u64) -> Result<Sealed, ShareError> {
        let sharing = self.mechanism.sharing();
        sharing.reclaim(&self.context, export, bytes)
    }

    pub(super) fn take_ring(&self) -> Result<Ring, FillError> {
        let kept = self.lock_rings().pop();
        if let Some(ring) = kept {
            return Ok(ring);
        }
        let (bytes, slots) = (self.settings.stage_bytes, self.settings.stage_slots);
        Ring::new(&self.context, bytes, slots)
            .map_err(|source| FillError::share(self.uuid(), source))
    }

    /// Keeps a ring for the next fill.
    pub(super) fn put_ring(&self, ring: Ring) {
        self.lock_rings().push(ring);
    }

    pub(super) fn registered(&self, feed: &HostFeed) -> Option<Registered<Mapped>> {
        feed.registered(&self.context, self.settings.register, &self.degraded)
    }

    pub(super) fn health(&self) -> Result<MemoryInfo, CallError> {
        let memory = self.context.memory()?;
        self.idle.synchronize()?;
        Ok(memory)
    }

    fn lock_rings(&self) -> std::sync::MutexGuard<'_, Vec<Ring>> {
        // The list is whole between any two statements.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

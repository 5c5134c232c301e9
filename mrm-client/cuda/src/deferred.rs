//! What could not be given back to the driver at once, and is tried again.

use crate::error::CallError;
use std::sync::{Mutex, PoisonError};

/// Something to be given back to the driver, in steps of which each is done once.
pub(crate) trait Release: Send + Sync {
    /// Does the steps that are left. After an error it may be called again.
    fn release(&mut self) -> Result<(), CallError>;
}

/// What is to be released, and can be moved elsewhere to be released there.
pub(crate) trait Parts: Release + Sized + 'static {
    /// Moves out what is left; nothing is left here.
    fn take(&mut self) -> Self;
}

/// Parts that are released, or kept for later, when this drops.
pub(crate) struct Held<P: Parts>(pub(crate) P);

impl<P: Parts> Release for Held<P> {
    fn release(&mut self) -> Result<(), CallError> {
        self.0.release()
    }
}

impl<P: Parts> Drop for Held<P> {
    fn drop(&mut self) {
        release_or_defer(Box::new(self.0.take()));
    }
}

static DEFERRED: Mutex<Vec<Box<dyn Release>>> = Mutex::new(Vec::new());

/// Releases `held`, or keeps it for later when that fails.
fn release_or_defer(mut held: Box<dyn Release>) {
    match held.release() {
        Ok(()) => {}
        Err(CallError::Driver { .. }) => {
            DEFERRED
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(held);
        }
        // The parent's: this process has nothing to give back, and must not take the lock, which
        // another thread of the parent may have held.
        Err(CallError::Forked { .. }) => {}
    }
}

/// Tries again to give back what was dropped while the driver would not take it: a mapping dropped
/// while a stream was captured, memory whose release failed. Returns how much is left.
///
/// Importing does this by itself; a daemon may call it after a failure has passed.
///
/// ```
/// assert_eq!(mrm_cuda::release_deferred(), 0);
/// ```
pub fn release_deferred() -> usize {
    let held = std::mem::take(&mut *DEFERRED.lock().unwrap_or_else(PoisonError::into_inner));
    // Without the lock: a release may wait for the device.
    let left: Vec<_> = held
        .into_iter()
        .filter_map(|mut one| one.release().err().map(|_| one))
        .collect();
    // What was released may have let go of more that the driver would not take.
    let mut deferred = DEFERRED.lock().unwrap_or_else(PoisonError::into_inner);
    deferred.extend(left);
    deferred.len()
}

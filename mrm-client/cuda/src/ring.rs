//! A ring of page-locked buffers, through which a device is filled.
//!
//! This is one of the files with unsafe code.

use crate::context::Context;
use crate::deferred::Held;
use crate::error::{CallError, ShareError};
use crate::pinned::{Flight, Pinned};
use crate::share::call_failed;
use crate::stream::Stream;
use cudarc::driver::sys::CUevent;
use std::collections::VecDeque;
use std::fmt;
use std::ptr;
use std::sync::Arc;

/// Waiting sleeps instead of spinning: the processor has slots to fill.
const BLOCKING_SYNC: u32 = 1;
/// Time stamps would cost, and nobody reads them.
const DISABLE_TIMING: u32 = 2;
const NOT_READY: u32 = 600;

/// Page-locked staging buffers of one size, with a stream of their own, for one
/// [`Upload`](crate::Upload) at a time.
///
/// While one slot is filled the device copies from the others, so two are the least that overlap.
/// Page-locked memory cannot be swapped out: keep one ring per device, and few slots.
pub struct Ring {
    stream: Arc<Stream>,
    /// The one to be filled next.
    next: Slot,
    /// The others, in the order in which their turn comes.
    later: VecDeque<Slot>,
    slot_bytes: u64,
}

/// One buffer.
pub(crate) struct Slot {
    memory: Held<Pinned>,
    event: Event,
}

/// A place in a stream that can be waited for.
struct Event {
    context: Context,
    raw: CUevent,
}

// SAFETY: an event is a token that the driver takes from any thread, and locks for itself.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Ring {
    /// A ring of `slots` buffers of `slot_bytes` bytes each.
    ///
    /// # Errors
    /// [`ShareError::Empty`] when either is zero, and when the driver refuses.
    pub fn new(context: &Context, slot_bytes: u64, slots: usize) -> Result<Self, ShareError> {
        let bytes = usize::try_from(slot_bytes).unwrap_or(usize::MAX);
        if bytes == 0 || slots == 0 {
            return Err(ShareError::Empty);
        }
        let failed = |source| call_failed(context, "allocate page-locked memory", source);
        let stream = Arc::new(Stream::new(context).map_err(failed)?);
        let next = Slot::new(&stream, bytes).map_err(failed)?;
        let later = (1..slots)
            .map(|_| Slot::new(&stream, bytes).map_err(failed))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            stream,
            next,
            later,
            slot_bytes,
        })
    }

    /// The size of each buffer.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// How many buffers there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        1 + self.later.len()
    }

    /// The context of the device that it fills.
    #[must_use]
    pub fn context(&self) -> &Context {
        self.stream.context()
    }

    pub(crate) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// The next slot, when nothing reads it any more, and the stream on which to launch it.
    pub(crate) fn wait_next(&mut self) -> Result<(&mut Slot, &Stream), CallError> {
        self.next.wait(&self.stream)?;
        Ok((&mut self.next, &self.stream))
    }

    /// The next slot was launched: it is another one's turn.
    pub(crate) fn turn(&mut self) {
        if let Some(next) = self.later.pop_front() {
            let used = std::mem::replace(&mut self.next, next);
            self.later.push_back(used);
        }
    }

    /// Whether the next slot can be filled at once.
    pub(crate) fn is_ready(&self) -> Result<bool, CallError> {
        self.next.is_free()
    }
}

impl Slot {
    fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Self, CallError> {
        Ok(Self {
            memory: Pinned::new(stream, bytes)?,
            event: Event::new(stream.context())?,
        })
    }

    /// To be filled, then copied from by [`Slot::launch`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.0.bytes_mut()
    }

    /// Starts, by `copy`, a copy of the slot on `stream`, which must be the ring's; then the slot
    /// is in use until the copy is done.
    pub(crate) fn launch(
        &mut self,
        stream: &Stream,
        copy: impl FnOnce(*const u8) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        // Before the copy: even one that fails may be on its way.
        self.memory.0.flight = Flight::Unmarked;
        copy(self.memory.0.bytes_mut().as_ptr())?;
        self.event.record(stream)?;
        self.memory.0.flight = Flight::Marked;
        Ok(())
    }

    fn wait(&mut self, stream: &Stream) -> Result<(), CallError> {
        match self.memory.0.flight {
            Flight::None => {}
            Flight::Marked => self.event.wait()?,
            Flight::Unmarked => stream.synchronize()?,
        }
        self.memory.0.flight = Flight::None;
        Ok(())
    }

    fn is_free(&self) -> Result<bool, CallError> {
        match self.memory.0.flight {
            Flight::None => Ok(true),
            Flight::Marked => self.event.is_reached(),
            Flight::Unmarked => Ok(false),
        }
    }
}

impl Event {
    fn new(context: &Context) -> Result<Self, CallError> {
        let mut raw = ptr::null_mut();
        let entered = context.enter()?;
        let create = entered.table().event_create;
        // SAFETY: the context is current, and the driver writes one pointer to `raw`.
        let code = unsafe { create(&raw mut raw, BLOCKING_SYNC | DISABLE_TIMING) };
        CallError::check("cuEventCreate", code)?;
        Ok(Self {
            context: context.clone(),
            raw,
        })
    }

    /// From now on it stands for what is queued on `stream`, which must be of the same context.
    fn record(&self, stream: &Stream) -> Result<(), CallError> {
        let entered = self.context.enter()?;
        // SAFETY: both are alive, and of the current context (the driver checks that).
        let code = unsafe { (entered.table().event_record)(self.raw, stream.raw()) };
        CallError::check("cuEventRecord", code)
    }

    fn wait(&self) -> Result<(), CallError> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive.
        let code = unsafe { (entered.table().event_synchronize)(self.raw) };
        CallError::check("cuEventSynchronize", code)
    }

    fn is_reached(&self) -> Result<bool, CallError> {
        let entered = self.context.enter()?;
        // SAFETY: the event is alive.
        match unsafe { (entered.table().event_query)(self.raw) } {
            NOT_READY => Ok(false),
            code => CallError::check("cuEventQuery", code).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: made by `new` and destroyed once; the driver keeps what is still needed. An
            // error leaves nothing to be done: the event ends with its context.
            let _ = unsafe { (entered.table().event_destroy)(self.raw) };
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("device", &self.context().device().uuid)
            .field("slots", &self.slots())
            .field("slot_bytes", &self.slot_bytes)
            .finish_non_exhaustive()
    }
}

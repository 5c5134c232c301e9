//! Events.

use std::sync::{Arc, Mutex};

use crate::abi::EVENT_DISABLE_TIMING;
use crate::api::stream::{enqueue, find};
use crate::args::Out;
use crate::call::driver;
use crate::code;
use crate::context::current;
use crate::process::process;
use crate::stream::{Event, Recorded, Work};

/// All flags but the one for events of several processes.
const FLAGS: u32 = 0x1 | EVENT_DISABLE_TIMING;

driver! {
    /// Makes an event, not recorded yet.
    Init fn cuEventCreate(event: Out<u64>, flags: u32) {
        let mut process = process()?;
        let ordinal = current(&process)?;
        event.check()?;
        if flags & !FLAGS != 0 {
            return Err(code::INVALID_VALUE);
        }
        let id = process.fresh_id();
        let made = Event::new(ordinal, flags & EVENT_DISABLE_TIMING == 0);
        process.events.insert(id, made);
        event.set(id)
    }

    /// Forgets an event; those who wait for it go on waiting for what it stood for.
    Init fn cuEventDestroy_v2(event: u64) {
        process()?.events.remove(&event).map(|_| ()).ok_or(code::INVALID_HANDLE)
    }

    /// Marks the present end of a stream.
    Init fn cuEventRecord(event: u64, stream: u64) {
        let process = process()?;
        let ordinal = current(&process)?;
        let event = process.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        if event.ordinal != find(&process, ordinal, stream)?.ordinal {
            return Err(code::INVALID_HANDLE);
        }
        let time = Arc::new(Mutex::new(None));
        let work = Work::Record(Arc::clone(&time));
        if let Some(ticket) = enqueue(&process, ordinal, stream, Vec::new(), work)? {
            event.set(Recorded { ticket, time });
        }
        Ok(())
    }

    /// Waits for it.
    Init fn cuEventSynchronize(event: u64) {
        let (event, ordinal) = {
            let process = process()?;
            let event = process.events.get(&event).ok_or(code::INVALID_HANDLE)?;
            (Arc::clone(event), event.ordinal)
        };
        if let Some(recorded) = event.recorded() {
            recorded.ticket.wait();
        }
        process()?.usable(ordinal).map(|_| ())
    }

    /// Whether it was reached: 600 if not.
    Init fn cuEventQuery(event: u64) {
        let process = process()?;
        let event = process.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        process.usable(event.ordinal)?;
        match event.recorded() {
            Some(recorded) if !recorded.ticket.is_done() => Err(code::NOT_READY),
            Some(_) | None => Ok(()),
        }
    }

    /// The time between two.
    Init fn cuEventElapsedTime(milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(milliseconds, start, end)
    }

    /// The time between two.
    Init fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: u64, end: u64) {
        elapsed(milliseconds, start, end)
    }
}

fn elapsed(milliseconds: Out<f32>, start: u64, end: u64) -> Result<(), u32> {
    let process = process()?;
    let recorded = |event: u64| {
        let event = process.events.get(&event).ok_or(code::INVALID_HANDLE)?;
        process.usable(event.ordinal)?;
        let recorded = event
            .recorded()
            .filter(|_| event.timed)
            .ok_or(code::INVALID_HANDLE)?;
        recorded.time().ok_or(code::NOT_READY)
    };
    let (start, end) = (recorded(start)?, recorded(end)?);
    milliseconds.set(end.saturating_duration_since(start).as_secs_f32() * 1e3)
}

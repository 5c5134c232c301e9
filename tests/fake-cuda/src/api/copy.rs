//! Copies. Those that a program need not wait for are done by the thread of their stream.

use crate::abi::DevicePtr;
use crate::api::size;
use crate::api::stream::enqueue;
use crate::call::driver;
use crate::code;
use crate::context::{active, current};
use crate::process::{Process, process};
use crate::space;
use crate::stream::{Ticket, Work};

driver! {
    /// Host to device, done when it returns.
    Init fn cuMemcpyHtoD_v2(to: DevicePtr, from: usize, bytes: usize) {
        finish(plan(to_device(to, from, bytes, false), 0)?)
    }

    /// Host to device. Memory that is not pinned is read before this returns.
    Init fn cuMemcpyHtoDAsync_v2(to: DevicePtr, from: usize, bytes: usize, stream: u64) {
        plan(to_device(to, from, bytes, true), stream)?;
        Ok(())
    }

    /// Device to host, done when it returns.
    Init fn cuMemcpyDtoH_v2(to: usize, from: DevicePtr, bytes: usize) {
        finish(plan(to_host(to, from, bytes), 0)?)
    }

    /// Device to host. Memory that is not pinned is written before this returns.
    Init fn cuMemcpyDtoHAsync_v2(to: usize, from: DevicePtr, bytes: usize, stream: u64) {
        let ticket = plan(to_host(to, from, bytes), stream)?;
        let pinned = process()?.pinned(to, bytes);
        if pinned { Ok(()) } else { finish(ticket) }
    }

    /// Within and between devices.
    Init fn cuMemcpyDtoD_v2(to: DevicePtr, from: DevicePtr, bytes: usize) {
        finish(plan(between(to, from, bytes), 0)?)
    }

    /// Within and between devices.
    Init fn cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, bytes: usize, stream: u64) {
        plan(between(to, from, bytes), stream)?;
        Ok(())
    }

    /// Between the devices of two contexts.
    Init fn cuMemcpyPeerAsync(
        to: DevicePtr, to_context: u64, from: DevicePtr, from_context: u64, bytes: usize,
        stream: u64,
    ) {
        let plan_it = move |process: &Process, _ordinal: usize| {
            process.device_range(active(process, to_context)?, to, bytes, true)?;
            process.device_range(active(process, from_context)?, from, bytes, false)?;
            Ok(Work::Copy { to: size(to)?, from: size(from)?, bytes })
        };
        plan(plan_it, stream)?;
        Ok(())
    }

    /// Sets bytes, done when it returns.
    Init fn cuMemsetD8_v2(to: DevicePtr, value: u8, bytes: usize) {
        finish(plan(set(to, value, bytes), 0)?)
    }

    /// Sets bytes.
    Init fn cuMemsetD8Async(to: DevicePtr, value: u8, bytes: usize, stream: u64) {
        plan(set(to, value, bytes), stream)?;
        Ok(())
    }
}

fn to_device(
    to: DevicePtr,
    from: usize,
    bytes: usize,
    may_keep: bool,
) -> impl FnOnce(&Process, usize) -> Result<Work, u32> {
    move |process, ordinal| {
        if from == 0 && bytes > 0 {
            return Err(code::INVALID_VALUE);
        }
        process.device_range(ordinal, to, bytes, true)?;
        let to = size(to)?;
        if may_keep && bytes > 0 && !process.pinned(from, bytes) {
            // SAFETY: the caller of the copy vouches for its source.
            let kept = unsafe { space::snapshot(from, bytes) };
            return Ok(Work::Write { to, kept });
        }
        Ok(Work::Copy { to, from, bytes })
    }
}

fn to_host(
    to: usize,
    from: DevicePtr,
    bytes: usize,
) -> impl FnOnce(&Process, usize) -> Result<Work, u32> {
    move |process, ordinal| {
        if to == 0 && bytes > 0 {
            return Err(code::INVALID_VALUE);
        }
        process.device_range(ordinal, from, bytes, false)?;
        Ok(Work::Copy {
            to,
            from: size(from)?,
            bytes,
        })
    }
}

fn between(
    to: DevicePtr,
    from: DevicePtr,
    bytes: usize,
) -> impl FnOnce(&Process, usize) -> Result<Work, u32> {
    move |process, ordinal| {
        process.device_range(ordinal, to, bytes, true)?;
        process.device_range(ordinal, from, bytes, false)?;
        Ok(Work::Copy {
            to: size(to)?,
            from: size(from)?,
            bytes,
        })
    }
}

fn set(
    to: DevicePtr,
    value: u8,
    bytes: usize,
) -> impl FnOnce(&Process, usize) -> Result<Work, u32> {
    move |process, ordinal| {
        process.device_range(ordinal, to, bytes, true)?;
        Ok(Work::Fill {
            to: size(to)?,
            value,
            bytes,
        })
    }
}

/// Checks and queues; none if there is nothing to wait for.
fn plan(
    work: impl FnOnce(&Process, usize) -> Result<Work, u32>,
    stream: u64,
) -> Result<Option<Ticket>, u32> {
    let process = process()?;
    let ordinal = current(&process)?;
    let mut work = work(&process, ordinal)?;
    if let Work::Copy { bytes: 0, .. } | Work::Fill { bytes: 0, .. } = work {
        work = Work::Nothing;
    }
    enqueue(&process, ordinal, stream, Vec::new(), work)
}

/// Waits, and tells whether the context survived.
fn finish(ticket: Option<Ticket>) -> Result<(), u32> {
    if let Some(ticket) = ticket {
        ticket.wait();
    }
    current(&*process()?)?;
    Ok(())
}

//! The exported functions, by subject.

pub mod context;
pub mod copy;
pub mod device;
pub mod event;
pub mod host;
pub mod info;
pub mod legacy;
pub mod stream;
pub mod vmm;

use crate::call::Symbol;
use crate::code;
use crate::process::{Process, process};
use crate::stream::Ticket;

/// All exported functions.
pub(crate) const TABLES: [&[(&str, Symbol)]; 9] = [
    context::SYMBOLS,
    copy::SYMBOLS,
    device::SYMBOLS,
    event::SYMBOLS,
    host::SYMBOLS,
    info::SYMBOLS,
    legacy::SYMBOLS,
    stream::SYMBOLS,
    vmm::SYMBOLS,
];

/// Waits for work without holding up other threads.
pub(crate) fn wait(tickets: &[Ticket]) {
    for ticket in tickets {
        ticket.wait();
    }
}

/// Waits until nothing that was queued before is left to do.
pub(crate) fn settle(ordinal: Option<usize>) -> Result<(), u32> {
    let tickets = process()?.queued(ordinal)?;
    wait(&tickets);
    Ok(())
}

/// Whether an address or a size suits the granularity of device memory.
pub(crate) fn is_granular(value: u64) -> bool {
    value.is_multiple_of(crate::abi::GRANULARITY_BYTES)
}

/// An address or a size as this machine counts.
pub(crate) fn size(value: u64) -> Result<usize, u32> {
    usize::try_from(value).map_err(|_| code::INVALID_VALUE)
}

/// The ordinal of a device as the interface writes it.
pub(crate) fn ordinal_out(ordinal: usize) -> i32 {
    i32::try_from(ordinal).unwrap_or(i32::MAX)
}

/// The physical index behind an ordinal.
pub(crate) fn physical(process: &Process, ordinal: usize) -> Result<u32, u32> {
    let context = process.contexts.get(ordinal).ok_or(code::INVALID_DEVICE)?;
    Ok(context.device)
}

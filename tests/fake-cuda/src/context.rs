//! Which context is current to a thread.

use std::cell::RefCell;

use crate::code;
use crate::process::Process;

/// Looks like a pointer and is none: whoever follows it crashes.
const BASE: u64 = 0x6d72_6d00_0000;
const STEP: u64 = 0x100;

thread_local! {
    static STACK: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The `CUcontext` of a device's primary context.
pub(crate) fn of(ordinal: usize) -> u64 {
    BASE + ordinal as u64 * STEP
}

/// The ordinal of a `CUcontext`, if it is one that is active.
pub(crate) fn active(process: &Process, context: u64) -> Result<usize, u32> {
    let offset = context.checked_sub(BASE).ok_or(code::INVALID_CONTEXT)?;
    let ordinal = usize::try_from(offset / STEP).map_err(|_| code::INVALID_CONTEXT)?;
    match process.contexts.get(ordinal) {
        Some(found) if offset % STEP == 0 && found.retained > 0 => Ok(ordinal),
        Some(_) if offset % STEP == 0 => Err(code::CONTEXT_IS_DESTROYED),
        _ => Err(code::INVALID_CONTEXT),
    }
}

/// The context that a call runs in: current, active, and fit for use.
pub(crate) fn current(process: &Process) -> Result<usize, u32> {
    let ordinal = active(process, top().ok_or(code::INVALID_CONTEXT)?)?;
    process.usable(ordinal)?;
    Ok(ordinal)
}

/// The context on top of this thread's stack.
pub(crate) fn top() -> Option<u64> {
    STACK
        .try_with(|stack| stack.borrow().last().copied())
        .ok()
        .flatten()
}

/// Puts a context on top.
pub(crate) fn push(context: u64) {
    // A thread that is ending has no stack any more, and needs none.
    let _ending = STACK.try_with(|stack| stack.borrow_mut().push(context));
}

/// Takes the context from the top.
pub(crate) fn pop() -> Option<u64> {
    STACK
        .try_with(|stack| stack.borrow_mut().pop())
        .ok()
        .flatten()
}

//! Primary contexts, and which one is current to a thread.

use std::sync::Arc;

use crate::abi::Ordinal;
use crate::api::{ordinal_out, settle};
use crate::args::Out;
use crate::block::Block;
use crate::call::driver;
use crate::code;
use crate::context::{self, active, current};
use crate::process::{Process, process};
use crate::stream::Stream;

driver! {
    /// Takes a share in a device's primary context, which the first share makes.
    Init fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: Ordinal) {
        let mut process = process()?;
        let ordinal = process.device(device)?;
        process.usable(ordinal)?;
        context.check()?;
        let cost_bytes = process.settings.context_bytes;
        let fresh = process.contexts.get(ordinal).is_some_and(|found| found.retained == 0);
        let cost = if fresh && cost_bytes > 0 {
            let physical = crate::api::physical(&process, ordinal)?;
            Some(Block::create(&process.registry, physical, cost_bytes, 0)?)
        } else {
            None
        };
        if let Some(found) = process.contexts.get_mut(ordinal) {
            found.retained += 1;
            found.cost = cost.or(found.cost.take());
        }
        context.set(context::of(ordinal))
    }

    /// Gives a share back; the last one takes the context with everything in it.
    Init fn cuDevicePrimaryCtxRelease_v2(device: Ordinal) {
        let ordinal = process()?.device(device)?;
        // Not in the scrutinee: the lock would be held while the streams settle.
        let retained = process()?.contexts.get(ordinal).map(|found| found.retained);
        match retained {
            None | Some(0) => return Err(code::INVALID_CONTEXT),
            Some(1) => settle(Some(ordinal))?,
            Some(_) => {}
        }
        let mut process = process()?;
        let Some(found) = process.contexts.get_mut(ordinal).filter(|found| found.retained > 0)
        else {
            return Err(code::INVALID_CONTEXT);
        };
        found.retained -= 1;
        if found.retained == 0 {
            destroy(&mut process, ordinal);
        }
        Ok(())
    }

    /// Takes the context with everything in it, whoever has a share.
    Init fn cuDevicePrimaryCtxReset_v2(device: Ordinal) {
        let ordinal = process()?.device(device)?;
        settle(Some(ordinal))?;
        let mut process = process()?;
        if let Some(found) = process.contexts.get_mut(ordinal) {
            found.retained = 0;
        }
        destroy(&mut process, ordinal);
        Ok(())
    }

    /// Whether it exists, and its flags.
    Init fn cuDevicePrimaryCtxGetState(device: Ordinal, flags: Out<u32>, is_active: Out<i32>) {
        let process = process()?;
        let found = process.contexts.get(process.device(device)?).ok_or(code::INVALID_DEVICE)?;
        flags.check()?;
        is_active.set(i32::from(found.retained > 0))?;
        flags.set(found.flags)
    }

    /// Its flags from now on.
    Init fn cuDevicePrimaryCtxSetFlags_v2(device: Ordinal, flags: u32) {
        let mut process = process()?;
        let ordinal = process.device(device)?;
        if let Some(found) = process.contexts.get_mut(ordinal) {
            found.flags = flags;
        }
        Ok(())
    }

    /// The context of this thread, or null.
    Init fn cuCtxGetCurrent(context: Out<u64>) {
        context.set(context::top().unwrap_or(0))
    }

    /// Replaces the context of this thread; null takes it off.
    Init fn cuCtxSetCurrent(context: u64) {
        if context != 0 {
            active(&*process()?, context)?;
        }
        context::pop();
        if context != 0 {
            context::push(context);
        }
        Ok(())
    }

    /// Puts a context on this thread's stack.
    Init fn cuCtxPushCurrent_v2(context: u64) {
        active(&*process()?, context)?;
        context::push(context);
        Ok(())
    }

    /// Takes the context from this thread's stack.
    Init fn cuCtxPopCurrent_v2(context: Out<u64>) {
        let popped = context::pop().ok_or(code::INVALID_CONTEXT)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    /// The device of this thread's context.
    Init fn cuCtxGetDevice(device: Out<Ordinal>) {
        let top = context::top().ok_or(code::INVALID_CONTEXT)?;
        device.set(ordinal_out(active(&*process()?, top)?))
    }

    /// Waits for everything in this thread's context.
    Init fn cuCtxSynchronize() {
        let ordinal = current(&*process()?)?;
        settle(Some(ordinal))?;
        current(&*process()?)?;
        Ok(())
    }

    /// Lets kernels of this thread's context use memory of another's.
    Init fn cuCtxEnablePeerAccess(peer: u64, flags: u32) {
        let mut process = process()?;
        let (ordinal, peer) = (current(&process)?, active(&process, peer)?);
        if flags != 0 {
            return Err(code::INVALID_VALUE);
        }
        if ordinal == peer || !process.settings.peer {
            return Err(code::PEER_ACCESS_UNSUPPORTED);
        }
        let found = process.contexts.get_mut(ordinal).ok_or(code::INVALID_CONTEXT)?;
        if found.peers.contains(&peer) {
            return Err(code::PEER_ACCESS_ALREADY_ENABLED);
        }
        found.peers.push(peer);
        Ok(())
    }

    /// Takes that back.
    Init fn cuCtxDisablePeerAccess(peer: u64) {
        let mut process = process()?;
        let (ordinal, peer) = (current(&process)?, active(&process, peer)?);
        let found = process.contexts.get_mut(ordinal).ok_or(code::INVALID_CONTEXT)?;
        let at = found.peers.iter().position(|one| *one == peer);
        found.peers.swap_remove(at.ok_or(code::PEER_ACCESS_NOT_ENABLED)?);
        Ok(())
    }
}

/// Drops what belongs to a context. Its error stays: on hardware, too, only a new process is
/// free of it. Memory of `cuMemCreate` belongs to no context.
fn destroy(process: &mut Process, ordinal: usize) {
    process.streams.retain(|_, stream| {
        if stream.ordinal == ordinal {
            stream.close();
        }
        stream.ordinal != ordinal
    });
    process.events.retain(|_, event| event.ordinal != ordinal);
    process
        .allocations
        .retain(|_, allocation| allocation.ordinal != ordinal);
    process.legacy.retain(|_, block| block.ordinal != ordinal);
    process.opened.retain(|_, opened| opened.ordinal != ordinal);
    if let Some(found) = process.contexts.get_mut(ordinal) {
        found.default_stream.close();
        found.default_stream = Stream::new(ordinal, true, Arc::clone(&found.sticky));
        found.cost = None;
        found.peers.clear();
    }
}

//! Models on a device: where they are, and closing them without waiting in vain.
//!
//! ```no_run
//! # let client: mrm::client::mrm_client_h = std::ptr::null_mut();
//! use mrm::{client::mrm_client_open, device::mrm_model_device, types::*};
//! // SAFETY: the client is open, and everything else may be read or written as its type says.
//! unsafe {
//!     let mut options = std::mem::zeroed::<mrm_open_options_t>();
//!     options.size = size_of::<mrm_open_options_t>();
//!     options.wait_ms = MRM_WAIT_DEFAULT;
//!     options.tier = mrm_tier_e::Device as u32;
//!     options.device = c"cuda:0".as_ptr();
//!     let mut model = std::ptr::null_mut();
//!     assert_eq!(mrm_client_open(client, c"bert".as_ptr(), &raw const options, &raw mut model), 0);
//!     let mut device = std::mem::zeroed::<mrm_device_t>();
//!     device.size = size_of::<mrm_device_t>();
//!     assert_eq!(mrm_model_device(model, &raw mut device), 0);
//! }
//! ```

use crate::error::Failure;
use crate::guard;
use crate::model::{beyond, mrm_model_h, mrm_model_h_t, mrm_model_ref};
use crate::number::Local;
use crate::pointer::{Out, borrow, give, null, take, text_of, write_sized};
use crate::types::{mrm_allocation_t, mrm_device_t, mrm_sharing_e, mrm_text_t};
use mrm_client::device::{RawStream, Sharing, release_deferred};
use mrm_client::{DeviceWeights, NotClosed};
use std::ffi::{c_int, c_void};
use std::mem::offset_of;

/// Tells where on a device a model is. Fails with `NO_SUCH_ITEM` when it is in host memory.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `device` begins with its size and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_device(
    model: mrm_model_ref,
    device: *mut mrm_device_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        if device.is_null() {
            return Err(null("device"));
        }
        let weights = weights_of(model)?;
        let sharing = match weights.sharing() {
            Sharing::Vmm => mrm_sharing_e::Vmm,
            Sharing::Legacy => mrm_sharing_e::Legacy,
        };
        let filled = mrm_device_t {
            size: size_of::<mrm_device_t>(),
            uuid: weights.uuid().0,
            ordinal: weights.ordinal(),
            sharing: sharing as u32,
            bytes: weights.bytes_total(),
            allocations: weights.allocations().len(),
        };
        // SAFETY: the caller says that `device` begins with its size and may be written.
        unsafe { write_sized(device, offset_of!(mrm_device_t, bytes), filled, "device") }
    })
}

/// The allocation at `index` of a model on a device.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `allocation` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_allocation_at(
    model: mrm_model_ref,
    index: usize,
    allocation: *mut mrm_allocation_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `allocation` may be written.
        let (model, out) =
            unsafe { (borrow(model, "model")?, Out::new(allocation, "allocation")?) };
        let all = weights_of(model)?.allocations();
        let (device_ptr, bytes) = *all
            .get(index)
            .ok_or_else(|| beyond(model, "allocation", index, all.len()))?;
        out.set(mrm_allocation_t { device_ptr, bytes });
        Ok(())
    })
}

/// Why a model that was opened with `MRM_TIER_E_BEST` is in host memory; empty when it is not, or
/// was asked for there. Lives as long as the handle.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `why` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_why_host(model: mrm_model_ref, why: *mut mrm_text_t) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `why` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(why, "why")?) };
        let text = || {
            model
                .model
                .why_host()
                .map_or_else(String::new, ToString::to_string)
        };
        out.set(text_of(model.why_host.get_or_init(text)));
        Ok(())
    })
}

/// Whether what is mapped is still of use: 0, or the number of what became of it, of which
/// `mrm_last_error` tells the rest. A device may be lost; memory that is shared by legacy handles
/// goes with the daemon; host memory always stays. A later open of the name gets a new lease.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_lost(model: mrm_model_ref) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        model
            .model
            .lost()
            .map_or(Ok(()), |why| Err(Failure::of(&why)))
    })
}

/// As `mrm_model_close`, but fails with `CLOSE_REFUSED` when the device memory cannot be unmapped
/// now, because a stream is captured into a graph. `streams` are `count` streams of the program
/// (`CUstream` or `cudaStream_t`) that may be captured: for those made non-blocking the driver does
/// not tell otherwise, and waiting spoils their capture.
///
/// `*model` is NULL after success. After a failure it is a handle that is to be closed later, on
/// the same memory: pointers to names and shapes that came from the old one are invalid. It is NULL
/// then only if part of the memory was unmapped: the rest follows by itself.
///
/// Threads: any, but no other call may be using the handle, then or later.
///
/// # Safety
/// `*model` is open, and may be written; `streams` has `count` live streams of the model's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_close_on(
    model: *mut mrm_model_h,
    streams: *const *mut c_void,
    count: usize,
) -> c_int {
    guard::call(|| {
        if streams.is_null() && count > 0 {
            return Err(null("streams"));
        }
        // SAFETY: the caller says that `*model` may be read and written.
        let (out, handle) = unsafe { (Out::new(model, "model")?, *model) };
        // SAFETY: the caller says that there are so many streams, alive and of that device.
        let streams = (0..count).map(|at| unsafe { RawStream::new(*streams.add(at)) });
        let streams: Vec<RawStream> = streams.collect();
        // SAFETY: the caller owns the handle and gives it up.
        let closed = unsafe { take(handle, "*model") }?.model.close_on(&streams);
        out.set(std::ptr::null_mut());
        closed.map_err(|refused| {
            let failure = Failure::of(&refused);
            let NotClosed { model, source: _ } = refused;
            if let Some(model) = model {
                out.set(give(mrm_model_h_t::new(model)));
            }
            failure
        })
    })
}

/// Tries again to unmap models that were closed while the driver would not let them be unmapped,
/// and tells how many are left. Later opens and closes on devices do this by themselves.
///
/// Threads: any, at any time.
///
/// # Safety
/// `left` is NULL or may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_release_deferred(left: *mut usize) -> c_int {
    guard::call(|| {
        let count = release_deferred();
        if !left.is_null() {
            // SAFETY: not NULL, and the caller says that it may be written.
            unsafe { Out::new(left, "left") }?.set(count);
        }
        Ok(())
    })
}

fn weights_of(handle: &mrm_model_h_t) -> Result<&DeviceWeights, Failure> {
    handle.model.device().ok_or_else(|| {
        let why = handle.model.why_host().map(|why| format!(" ({why})"));
        Failure::local(
            Local::NoSuchItem,
            format!(
                "model `{}` is in host memory{}; open it with a tier of devices",
                handle.model.name(),
                why.unwrap_or_default()
            ),
        )
    })
}

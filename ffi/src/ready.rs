//! Models that were opened by their layout: what of them is there, and waiting for it.
//!
//! ```no_run
//! # let client: mrm::client::mrm_client_h = std::ptr::null_mut();
//! use mrm::{client::mrm_client_open, model::*, ready::*, types::*};
//! let mut model = std::ptr::null_mut();
//! // SAFETY: all-zero options are valid, the client is open, and the rest may be written.
//! unsafe {
//!     let mut options = std::mem::zeroed::<mrm_open_options_t>();
//!     options.size = size_of::<mrm_open_options_t>();
//!     options.wait_ms = MRM_WAIT_DEFAULT;
//!     options.wait_for = mrm_wait_for_e::Layout as u32;
//!     assert_eq!(mrm_client_open(client, c"bert".as_ptr(), &raw const options, &raw mut model), 0);
//!     assert_eq!(mrm_tensor_wait(model, 0, MRM_WAIT_DEFAULT), 0);
//!     mrm_model_close(model);
//! }
//! ```

use crate::error::Failure;
use crate::guard;
use crate::index::data_of;
use crate::model::{absent, beyond, mrm_model_h_t, mrm_model_ref};
use crate::pointer::{Out, borrow, counted_text};
use crate::types::{MRM_WAIT_DEFAULT, mrm_tensor_t};
use std::ffi::{c_char, c_int};
use std::time::Duration;

/// What the tensor at `index` is, in the order of the files, without its elements: `data_ptr` is
/// NULL and `device_ptr` 0. Waits for nothing.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `layout` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_layout_at(
    model: mrm_model_ref,
    index: usize,
    layout: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `layout` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(layout, "layout")?) };
        out.set(without_elements(*at(model, index)?));
        Ok(())
    })
}

/// What the tensor is whose name is the `name_len` bytes at `name`, as `mrm_model_layout_at` tells.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `name` has `name_len` bytes; `layout` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_layout_find(
    model: mrm_model_ref,
    name: *const c_char,
    name_len: usize,
    layout: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `layout` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(layout, "layout")?) };
        // SAFETY: the caller says that `name` has that many bytes.
        let name = unsafe { counted_text(name, name_len, "name") }?;
        let found = model.model.layout(name).map_err(|e| Failure::of(&e))?;
        let entry = model.index()?.entry(found.name());
        let entry = entry.ok_or_else(|| absent(model, "tensor", name))?;
        out.set(without_elements(entry));
        Ok(())
    })
}

/// Fills `layouts` with what the `count` tensors from `first` on are, as `mrm_model_layout_at` tells.
/// Fails when there are fewer.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `layouts` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_layouts(
    model: mrm_model_ref,
    first: usize,
    count: usize,
    layouts: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        let all = model.index()?.tensors();
        let wanted = first.checked_add(count).and_then(|end| all.get(first..end));
        let wanted = wanted.ok_or_else(|| beyond(model, "tensor", first.max(count), all.len()))?;
        for (i, tensor) in wanted.iter().enumerate() {
            // SAFETY: the caller says that there is room for `count`.
            let out = unsafe { Out::new(layouts.wrapping_add(i), "layouts") }?;
            out.set(without_elements(*tensor));
        }
        Ok(())
    })
}

/// Whether the tensor at `index`, in the order of the files, is there. Always so, but for a model
/// that was opened by its layout and is still being filled. Looks, without waiting, at what the
/// daemon has said; fails when the load has failed.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `ready` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_tensor_ready(
    model: mrm_model_ref,
    index: usize,
    ready: *mut bool,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `ready` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(ready, "ready")?) };
        let tensor = at(model, index)?;
        let ready = !model.index()?.is_early() || {
            let ready = model.model.ready(name_of(tensor)?);
            ready.map_err(|e| Failure::of(&e))?
        };
        out.set(ready);
        Ok(())
    })
}

/// Waits until the tensor at `index`, in the order of the files, is there: for `wait_ms`
/// milliseconds, or with `MRM_WAIT_DEFAULT` for as long as the open would have. Then
/// `mrm_model_tensor_at` gives it at once. Fails when it does not come: the wait is over, the load
/// failed, or the daemon went away.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_tensor_wait(
    model: mrm_model_ref,
    index: usize,
    wait_ms: u64,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        there(model, at(model, index)?, given(wait_ms))?;
        Ok(())
    })
}

/// Whether all of the model is there: see `mrm_tensor_ready`.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `whole` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_whole(model: mrm_model_ref, whole: *mut bool) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `whole` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(whole, "whole")?) };
        out.set(model.model.is_whole());
        Ok(())
    })
}

/// Waits until all of the model is there, as `mrm_tensor_wait` waits for a tensor.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_wait(model: mrm_model_ref, wait_ms: u64) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = &unsafe { borrow(model, "model") }?.model;
        let waited = match given(wait_ms) {
            Some(wait) => model.wait_whole(wait),
            None => model.tensors().map(|_| ()),
        };
        waited.map_err(|e| Failure::of(&e))
    })
}

/// `tensor` with its elements: waits for them, where they are not there yet, for as long as `wait`
/// says, or else the open did.
pub(crate) fn there(
    handle: &mrm_model_h_t,
    tensor: &mrm_tensor_t,
    wait: Option<Duration>,
) -> Result<mrm_tensor_t, Failure> {
    let mut tensor = *tensor;
    if handle.index()?.is_early() {
        let name = name_of(&tensor)?;
        let found = match wait {
            Some(wait) => handle.model.tensor_within(name, wait),
            None => handle.model.tensor(name),
        };
        tensor.data_ptr = data_of(&found.map_err(|e| Failure::of(&e))?);
    }
    Ok(tensor)
}

fn given(wait_ms: u64) -> Option<Duration> {
    (wait_ms != MRM_WAIT_DEFAULT).then(|| Duration::from_millis(wait_ms))
}

fn at(handle: &mrm_model_h_t, index: usize) -> Result<&mrm_tensor_t, Failure> {
    let tensors = handle.index()?.tensors();
    tensors
        .get(index)
        .ok_or_else(|| beyond(handle, "tensor", index, tensors.len()))
}

fn without_elements(mut tensor: mrm_tensor_t) -> mrm_tensor_t {
    tensor.data_ptr = std::ptr::null();
    tensor.device_ptr = 0;
    tensor
}

/// The name of a tensor of an index, which borrows the tensor though it lies in the model's table.
fn name_of(tensor: &mrm_tensor_t) -> Result<&str, Failure> {
    // SAFETY: the index made the text of a `&str` in the model's table, which outlives the index.
    unsafe { counted_text(tensor.name.data, tensor.name.len, "name") }
}

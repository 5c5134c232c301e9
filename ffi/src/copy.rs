//! Memory that can be written to: private mappings of a model's files.
//!
//! ```no_run
//! # let model: mrm::model::mrm_model_h = std::ptr::null_mut();
//! use mrm::copy::*;
//! let (mut copy, mut data, mut bytes) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
//! // SAFETY: the model is open, and everything else may be written.
//! unsafe {
//!     let made = mrm_model_segment_copy(model, 0, &raw mut copy, &raw mut data, &raw mut bytes);
//!     assert_eq!(made, 0);
//!     data.cast::<u8>().write(1); // seen by nobody else
//!     mrm_copy_close(copy);
//! }
//! ```

use crate::error::Failure;
use crate::guard;
use crate::model::{mrm_model_ref, segment_of};
use crate::pointer::{Out, borrow, give, take};
use mrm_client::CopyOnWrite;
use std::ffi::{c_int, c_void};

/// A private mapping of one file. Opaque.
pub struct mrm_copy_h_t {
    _mapping: CopyOnWrite,
}

/// A private mapping that you own; give it to `mrm_copy_close`.
pub type mrm_copy_h = *mut mrm_copy_h_t;

/// Maps the segment at `index` once more, privately and for writing: `data_ptr` leads to `bytes`
/// bytes, the exact image of the file, with each tensor at its `offset`. Pages stay shared until they
/// are written; what is written nobody else sees, and it is gone with the mapping. Other readers keep
/// their large pages; the kernel copies 4 KiB for each page that is written. It may outlive the
/// model, and then, like any mapping, keeps the memory.
///
/// Waits as `mrm_model_segment_at` does. In host memory only.
///
/// Threads: any, at any time; what is written to is yours to guard.
///
/// # Safety
/// `model` is open; `copy`, `data_ptr` and `bytes` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_segment_copy(
    model: mrm_model_ref,
    index: usize,
    copy: *mut mrm_copy_h,
    data_ptr: *mut *mut c_void,
    bytes: *mut u64,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and that these may be written.
        let (model, out, data_out, bytes_out) = unsafe {
            (
                borrow(model, "model")?,
                Out::handle(copy, "copy")?,
                Out::new(data_ptr, "data_ptr")?,
                Out::new(bytes, "bytes")?,
            )
        };
        let mapped = segment_of(model, index)?.copy_on_write();
        let mut mapping = mapped.map_err(|e| Failure::of(&e))?;
        // The pointer that may be written through, and no reference made after it.
        data_out.set(mapping.as_mut_ptr().cast());
        bytes_out.set(mapping.len() as u64);
        out.set(give(mrm_copy_h_t { _mapping: mapping }));
        Ok(())
    })
}

/// Gives a private mapping back, with what was written to it.
///
/// Threads: any, but nobody may be using the memory, then or later.
///
/// # Safety
/// `copy` came from `mrm_model_segment_copy`, and was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_copy_close(copy: mrm_copy_h) -> c_int {
    guard::call(|| {
        // SAFETY: the caller owns the handle and gives it up.
        drop(unsafe { take(copy, "copy") }?);
        Ok(())
    })
}

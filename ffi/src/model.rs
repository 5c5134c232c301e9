//! Models: what they are, their tensors, metadata and segments.
//!
//! ```no_run
//! # let client: mrm::client::mrm_client_h = std::ptr::null_mut();
//! use mrm::{client::mrm_client_open, model::*, types::mrm_segment_t};
//! let mut model = std::ptr::null_mut();
//! // SAFETY: the client is open, and everything else may be read or written as its type says.
//! unsafe {
//!     assert_eq!(mrm_client_open(client, c"bert".as_ptr(), std::ptr::null(), &raw mut model), 0);
//!     let mut segment = std::mem::zeroed::<mrm_segment_t>();
//!     assert_eq!(mrm_model_segment_at(model, 0, &raw mut segment), 0);
//!     mrm_model_close(model);
//! }
//! ```

use crate::error::Failure;
use crate::guard;
use crate::index::{Index, data_of};
use crate::number::Local;
use crate::pointer::{Out, borrow, counted_text, give, out_slice, take, text_of, write_sized};
use crate::ready::there;
use crate::types::{
    mrm_kind_e, mrm_model_info_t, mrm_origin_e, mrm_segment_t, mrm_tensor_t, mrm_text_t,
};
use mrm_client::{Model, ModelKind, Origin};
use std::ffi::{c_char, c_int};
use std::mem::offset_of;
use std::os::fd::IntoRawFd;
use std::sync::OnceLock;

/// An open model: a lease on one immutable version, and its bytes mapped read-only. Opaque.
pub struct mrm_model_h_t {
    // The index points into the model, and is dropped before it.
    index: OnceLock<Result<Index, Failure>>,
    pub(crate) model: Model,
    /// Why it is in host memory, once that was asked.
    pub(crate) why_host: OnceLock<String>,
}

/// A model that you own; give it to `mrm_model_close`.
pub type mrm_model_h = *mut mrm_model_h_t;

/// A model, borrowed for the call.
pub type mrm_model_ref = *const mrm_model_h_t;

impl mrm_model_h_t {
    pub(crate) const fn new(model: Model) -> Self {
        Self {
            index: OnceLock::new(),
            model,
            why_host: OnceLock::new(),
        }
    }

    pub(crate) fn index(&self) -> Result<&Index, Failure> {
        self.index
            .get_or_init(|| Index::new(&self.model))
            .as_ref()
            .map_err(Clone::clone)
    }
}

/// Makes another handle on the same open; each must be closed.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `clone` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_clone(model: mrm_model_ref, clone: *mut mrm_model_h) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that `clone` may be written.
        let out = unsafe { Out::handle(clone, "clone") }?;
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        out.set(give(mrm_model_h_t::new(model.model.clone())));
        Ok(())
    })
}

/// Gives a model back. Every pointer that came from this handle is invalid afterwards; the lease
/// ends with the last handle of the process on the model.
///
/// On a device the last handle waits for the work that the process queued there. While a stream is
/// captured into a graph the model stays mapped, and leased, until a later open or close on a
/// device, or `mrm_release_deferred`; `mrm_model_close_on` tells instead.
///
/// Threads: any, but no other call may be using this handle, then or later.
///
/// # Safety
/// `model` is open, and was not closed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_close(model: mrm_model_h) -> c_int {
    guard::call(|| {
        // SAFETY: the caller owns the handle and gives it up.
        drop(unsafe { take(model, "model") }?);
        Ok(())
    })
}

/// Tells what a model is.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `info` begins with its size and may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_info(
    model: mrm_model_ref,
    info: *mut mrm_model_info_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let handle = unsafe { borrow(model, "model") }?;
        let filled = describe(handle)?;
        // SAFETY: the caller says that `info` begins with its size and may be written.
        unsafe { write_sized(info, offset_of!(mrm_model_info_t, name), filled, "info") }
    })
}

/// Whether the daemon counts a lease on the model now, as far as is known. Not so while no daemon
/// runs, and never again once one came that did not take over what the last one lent. What is mapped
/// stays readable all the same (`mrm_model_lost` tells the exception), but the daemon does not know
/// that it is in use; who would rather be counted opens the name again and closes this handle.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `leased` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_leased(model: mrm_model_ref, leased: *mut bool) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `leased` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(leased, "leased")?) };
        out.set(model.model.is_leased());
        Ok(())
    })
}

fn describe(handle: &mrm_model_h_t) -> Result<mrm_model_info_t, Failure> {
    let (model, index) = (&handle.model, handle.index()?);
    let kind = match model.kind().map_err(|e| Failure::of(&e))? {
        ModelKind::Opaque => mrm_kind_e::Opaque,
        ModelKind::Safetensors => mrm_kind_e::Safetensors,
    };
    let origin = match model.origin() {
        Origin::Hit => mrm_origin_e::Hit,
        Origin::Loaded => mrm_origin_e::Loaded,
        Origin::Joined => mrm_origin_e::Joined,
        Origin::Promoted => mrm_origin_e::Promoted,
    };
    Ok(mrm_model_info_t {
        size: size_of::<mrm_model_info_t>(),
        name: text_of(model.name()),
        version: model.version().0,
        kind: kind as u32,
        origin: origin as u32,
        bytes: model.bytes_total(),
        tensors: index.tensors().len(),
        segments: index.segments().len(),
        metadata: index.metadata().len(),
        took_us: model.took_us(),
    })
}

/// The tensor at `index`, in the order of the files. Waits for it, as long as the open would have,
/// if the model was opened by its layout and is still being filled.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `tensor` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_tensor_at(
    model: mrm_model_ref,
    index: usize,
    tensor: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `tensor` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(tensor, "tensor")?) };
        let tensors = model.index()?.tensors();
        let found = tensors
            .get(index)
            .ok_or_else(|| beyond(model, "tensor", index, tensors.len()))?;
        out.set(there(model, found, None)?);
        Ok(())
    })
}

/// The tensor whose name is the `name_len` bytes at `name`. Waits as `mrm_model_tensor_at` does.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `name` has `name_len` bytes; `tensor` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_tensor_find(
    model: mrm_model_ref,
    name: *const c_char,
    name_len: usize,
    tensor: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `tensor` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(tensor, "tensor")?) };
        // SAFETY: the caller says that `name` has that many bytes.
        let name = unsafe { counted_text(name, name_len, "name") }?;
        let found = model.model.tensor(name).map_err(|e| Failure::of(&e))?;
        let entry = model.index()?.entry(found.name());
        let mut entry = entry.ok_or_else(|| absent(model, "tensor", name))?;
        entry.data_ptr = data_of(&found);
        out.set(entry);
        Ok(())
    })
}

/// Fills `tensors` with the `count` tensors from `first` on, in the order of the files: one call
/// instead of many. Fails when there are fewer. Waits for each as `mrm_model_tensor_at` does.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `tensors` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_tensors(
    model: mrm_model_ref,
    first: usize,
    count: usize,
    tensors: *mut mrm_tensor_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open.
        let model = unsafe { borrow(model, "model") }?;
        let all = model.index()?.tensors();
        let wanted = first.checked_add(count).and_then(|end| all.get(first..end));
        let wanted = wanted.ok_or_else(|| beyond(model, "tensor", first.max(count), all.len()))?;
        if !model.index()?.is_early() {
            // SAFETY: the caller says that there is room for `count`.
            return unsafe { out_slice(tensors, wanted, "tensors") };
        }
        let wanted: Result<Vec<_>, _> = wanted
            .iter()
            .map(|tensor| there(model, tensor, None))
            .collect();
        // SAFETY: the caller says that there is room for `count`.
        unsafe { out_slice(tensors, &wanted?, "tensors") }
    })
}

/// The metadata pair at `index`, in the order of the file. Both texts live as long as the handle.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `key` and `value` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_metadata_at(
    model: mrm_model_ref,
    index: usize,
    key: *mut mrm_text_t,
    value: *mut mrm_text_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and both may be written.
        let (model, key, value) = unsafe {
            (
                borrow(model, "model")?,
                Out::new(key, "key")?,
                Out::new(value, "value")?,
            )
        };
        let pairs = model.index()?.metadata();
        let pair = pairs
            .get(index)
            .ok_or_else(|| beyond(model, "metadata", index, pairs.len()))?;
        key.set(pair.0);
        value.set(pair.1);
        Ok(())
    })
}

/// The metadata value whose key is the `key_len` bytes at `key`. It lives as long as the handle.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `key` has `key_len` bytes; `value` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_metadata_find(
    model: mrm_model_ref,
    key: *const c_char,
    key_len: usize,
    value: *mut mrm_text_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `value` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(value, "value")?) };
        // SAFETY: the caller says that `key` has that many bytes.
        let key = unsafe { counted_text(key, key_len, "key") }?;
        let pairs = model.model.metadata().map_err(|e| Failure::of(&e))?;
        let found = pairs.iter().find(|pair| pair.0 == key);
        out.set(text_of(
            found.ok_or_else(|| absent(model, "metadata", key))?.1,
        ));
        Ok(())
    })
}

/// The segment at `index`: the exact image of one file of the model. Waits for all of the model, as
/// long as the open would have, if it was opened by its layout and is still being filled.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `segment` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_segment_at(
    model: mrm_model_ref,
    index: usize,
    segment: *mut mrm_segment_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `segment` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(segment, "segment")?) };
        let bytes = segment_of(model, index)?.bytes();
        out.set(mrm_segment_t {
            data_ptr: bytes.as_ptr().cast(),
            bytes: bytes.len() as u64,
        });
        Ok(())
    })
}

/// The name of the file whose image is the segment at `index`. It lives as long as the handle.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `name` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_segment_name(
    model: mrm_model_ref,
    index: usize,
    name: *mut mrm_text_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `name` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(name, "name")?) };
        let names = model.index()?.segments();
        out.set(
            *names
                .get(index)
                .ok_or_else(|| beyond(model, "segment", index, names.len()))?,
        );
        Ok(())
    })
}

/// A descriptor of the sealed memory file behind the segment at `index`, open for reading, for a
/// mapping of your own: private and writable, for instance. You own it; close it with `close`.
/// Keep the model open while such a mapping lives, so that the daemon's books are right. Waits as
/// `mrm_model_segment_at` does; `mrm_model_segment_copy` makes a private mapping by itself.
///
/// Threads: any, at any time.
///
/// # Safety
/// `model` is open; `fd` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_model_segment_dup_fd(
    model: mrm_model_ref,
    index: usize,
    fd: *mut c_int,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `fd` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::new(fd, "fd")?) };
        let owned = segment_of(model, index)?
            .fd()
            .try_clone_to_owned()
            .map_err(|e| {
                Failure::local(
                    Local::DupFailed,
                    format!("cannot duplicate a descriptor: {e}; raise the limit on open files"),
                )
            })?;
        out.set(owned.into_raw_fd());
        Ok(())
    })
}

pub(crate) fn segment_of(
    handle: &mrm_model_h_t,
    index: usize,
) -> Result<mrm_client::Segment<'_>, Failure> {
    if !handle.model.is_whole() {
        handle.model.tensors().map_err(|e| Failure::of(&e))?;
    }
    let count = handle.model.segments().len();
    handle
        .model
        .segment(index)
        .ok_or_else(|| beyond(handle, "segment", index, count))
}

pub(crate) fn beyond(handle: &mrm_model_h_t, what: &str, index: usize, count: usize) -> Failure {
    let name = handle.model.name();
    Failure::local(
        Local::NoSuchItem,
        format!("model `{name}` has {count} of {what}, none at {index}; count from 0"),
    )
}

pub(crate) fn absent(handle: &mrm_model_h_t, what: &str, key: &str) -> Failure {
    let name = handle.model.name();
    Failure::local(
        Local::NoSuchItem,
        format!("model `{name}` has no {what} `{}`", key.escape_debug()),
    )
}

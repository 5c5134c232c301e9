//! Tensors for other libraries, by DLPack: <https://dmlc.github.io/dlpack/latest/c_api.html>.
//!
//! ```
//! use mrm::dlpack::{MRM_DL_FLAG_READ_ONLY, mrm_dl_managed_t};
//! // The layout of DLManagedTensorVersioned.
//! assert_eq!((MRM_DL_FLAG_READ_ONLY, size_of::<mrm_dl_managed_t>()), (1, 80));
//! ```

use crate::error::Failure;
use crate::guard;
use crate::model::{beyond, mrm_model_h_t, mrm_model_ref};
use crate::number::Local;
use crate::pointer::{Out, borrow, give, take};
use crate::ready::there;
use mrm_client::{DType, Fault, LocalCode, Model};
use std::ffi::{c_int, c_void};
use std::fmt;

/// The bit of `mrm_dl_managed_t.flags` that says that the elements may not be written.
pub const MRM_DL_FLAG_READ_ONLY: u64 = 1;

/// `mrm_dl_device_t.device_type` of host memory (`kDLCPU`).
pub const MRM_DL_CPU: i32 = 1;

/// `mrm_dl_device_t.device_type` of a CUDA device (`kDLCUDA`).
pub const MRM_DL_CUDA: i32 = 2;

/// The version of DLPack whose element types are used: 1.1 has those of 8 bits.
const VERSION: mrm_dl_version_t = mrm_dl_version_t { major: 1, minor: 1 };

/// `DLPackVersion`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_dl_version_t {
    /// Differs where the layout does.
    pub major: u32,
    /// Differs where the layout is the same.
    pub minor: u32,
}

/// `DLDevice`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_dl_device_t {
    /// `MRM_DL_CPU` or `MRM_DL_CUDA`.
    pub device_type: i32,
    /// The ordinal in this process; 0 for host memory.
    pub device_id: i32,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct mrm_dl_dtype_t {
    /// A number of `DLDataTypeCode`.
    pub code: u8,
    /// Size of an element in bits.
    pub bits: u8,
    /// 1.
    pub lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct mrm_dl_tensor_t {
    /// The elements, for reading only; NULL without elements.
    pub data: *mut c_void,
    /// Where they are.
    pub device: mrm_dl_device_t,
    /// Number of dimensions.
    pub ndim: i32,
    /// Their type.
    pub dtype: mrm_dl_dtype_t,
    /// The dimensions.
    pub shape: *mut i64,
    /// From one element to the next in each dimension, counted in elements. Not NULL.
    pub strides: *mut i64,
    /// 0.
    pub byte_offset: u64,
}

/// `DLManagedTensorVersioned`: to be cast to it.
#[repr(C)]
#[derive(Debug)]
pub struct mrm_dl_managed_t {
    /// The version of DLPack that it keeps to.
    pub version: mrm_dl_version_t,
    /// The library's.
    pub manager_ctx: *mut c_void,
    /// Call it with this struct, once, when the tensor is not needed any more.
    pub deleter: Option<unsafe extern "C" fn(managed: *mut mrm_dl_managed_t)>,
    /// `MRM_DL_FLAG_READ_ONLY`.
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: mrm_dl_tensor_t,
}

/// `DLManagedTensor`, of DLPack before 1.0: to be cast to it. It cannot say that the elements may
/// not be written.
#[repr(C)]
#[derive(Debug)]
pub struct mrm_dl_unversioned_t {
    /// The tensor.
    pub dl_tensor: mrm_dl_tensor_t,
    /// The library's.
    pub manager_ctx: *mut c_void,
    /// Call it with this struct, once, when the tensor is not needed any more.
    pub deleter: Option<unsafe extern "C" fn(managed: *mut mrm_dl_unversioned_t)>,
}

/// Lends the tensor at `index`, in the order of the files, as a `DLManagedTensorVersioned` with the
/// read-only flag. It keeps the model open, whatever becomes of the handle, until its deleter is
/// called; that may wait for the device, as `mrm_model_close` does. Waits for the tensor as
/// `mrm_model_tensor_at` does. Fails with `DTYPE_MISMATCH` for
/// element types of less than a byte.
///
/// Threads: any, at any time; the deleter too.
///
/// # Safety
/// `model` is open; `managed` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_tensor_dlpack(
    model: mrm_model_ref,
    index: usize,
    managed: *mut *mut mrm_dl_managed_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `managed` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::handle(managed, "managed")?) };
        let (parts, dl_tensor) = lend(model, index)?;
        out.set(give(mrm_dl_managed_t {
            version: VERSION,
            manager_ctx: Box::into_raw(parts).cast(),
            deleter: Some(delete),
            flags: MRM_DL_FLAG_READ_ONLY,
            dl_tensor,
        }));
        Ok(())
    })
}

/// As `mrm_tensor_dlpack`, for libraries that know only DLPack before 1.0. Nothing tells them that
/// the elements may not be written: a write ends the process, or on a device the context.
///
/// Threads: any, at any time; the deleter too.
///
/// # Safety
/// `model` is open; `managed` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mrm_tensor_dlpack_unversioned(
    model: mrm_model_ref,
    index: usize,
    managed: *mut *mut mrm_dl_unversioned_t,
) -> c_int {
    guard::call(|| {
        // SAFETY: the caller says that the model is open and `managed` may be written.
        let (model, out) = unsafe { (borrow(model, "model")?, Out::handle(managed, "managed")?) };
        let (parts, dl_tensor) = lend(model, index)?;
        out.set(give(mrm_dl_unversioned_t {
            dl_tensor,
            manager_ctx: Box::into_raw(parts).cast(),
            deleter: Some(delete_unversioned),
        }));
        Ok(())
    })
}

/// What a tensor that was lent needs for as long as it is.
struct Parts {
    shape: Vec<i64>,
    strides: Vec<i64>,
    _model: Model,
}

unsafe extern "C" fn delete(managed: *mut mrm_dl_managed_t) {
    guard::call(|| {
        // SAFETY: the consumer calls this once, with what `mrm_tensor_dlpack` made.
        let managed = unsafe { take(managed, "managed") }?;
        // SAFETY: as above; nobody else knows the pointer.
        drop(unsafe { take(managed.manager_ctx.cast::<Parts>(), "manager_ctx") }?);
        Ok(())
    });
}

unsafe extern "C" fn delete_unversioned(managed: *mut mrm_dl_unversioned_t) {
    guard::call(|| {
        // SAFETY: the consumer calls this once, with what `mrm_tensor_dlpack_unversioned` made.
        let managed = unsafe { take(managed, "managed") }?;
        // SAFETY: as above; nobody else knows the pointer.
        drop(unsafe { take(managed.manager_ctx.cast::<Parts>(), "manager_ctx") }?);
        Ok(())
    });
}

fn lend(handle: &mrm_model_h_t, index: usize) -> Result<(Box<Parts>, mrm_dl_tensor_t), Failure> {
    let tensors = handle.index()?.tensors();
    let tensor = tensors
        .get(index)
        .ok_or_else(|| beyond(handle, "tensor", index, tensors.len()))?;
    let tensor = there(handle, tensor, None)?;
    let dtype = dtype_of(tensor.dtype).map_err(|why| Failure::of(&why))?;
    let shape = shape_of(handle.index()?.shape(index))?;
    let mut parts = Box::new(Parts {
        strides: strides_of(&shape),
        shape,
        _model: handle.model.clone(),
    });
    let device = match u32::try_from(tensor.device) {
        Ok(_) => mrm_dl_device_t {
            device_type: MRM_DL_CUDA,
            device_id: tensor.device,
        },
        Err(_) => mrm_dl_device_t {
            device_type: MRM_DL_CPU,
            device_id: 0,
        },
    };
    let data = match (tensor.bytes, device.device_type) {
        (0, _) => std::ptr::null_mut(),
        (_, MRM_DL_CPU) => tensor.data_ptr.cast_mut(),
        (..) => std::ptr::with_exposed_provenance_mut(address(tensor.device_ptr)),
    };
    let dl_tensor = mrm_dl_tensor_t {
        data,
        device,
        // At most 64 dimensions.
        ndim: i32::try_from(parts.shape.len()).unwrap_or(i32::MAX),
        dtype,
        shape: parts.shape.as_mut_ptr(),
        strides: parts.strides.as_mut_ptr(),
        byte_offset: 0,
    };
    Ok((parts, dl_tensor))
}

/// Addresses on a device fit those of the process, which share one space with them.
fn address(device_ptr: u64) -> usize {
    usize::try_from(device_ptr).unwrap_or(0)
}

fn shape_of(dims: &[u64]) -> Result<Vec<i64>, Failure> {
    let dim = |dim: &u64| {
        i64::try_from(*dim).map_err(|_| {
            let message = format!("a dimension of {dim} is too large for DLPack");
            Failure::local(Local::BadArgument, message)
        })
    };
    dims.iter().map(dim).collect()
}

/// Row major. Dimensions of 0 count as 1: such a tensor has no elements to step between.
fn strides_of(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    let mut step = 1_i64;
    for (stride, dim) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.saturating_mul((*dim).max(1));
    }
    strides
}

/// An element type that DLPack does not have, or packs in its own way. `None`: a newer daemon's.
#[derive(Debug)]
struct NoType(Option<DType>);

impl fmt::Display for NoType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.map_or("of an unknown type", DType::name);
        write!(
            f,
            "elements are {name}, which DLPack cannot describe: take the tensor's bytes instead"
        )
    }
}

impl std::error::Error for NoType {}

impl Fault for NoType {
    fn number(&self) -> u16 {
        LocalCode::DTypeMismatch.number()
    }
    fn retryable(&self) -> bool {
        false
    }
}

fn dtype_of(number: u32) -> Result<mrm_dl_dtype_t, NoType> {
    let dtype = crate::dtype::known(number).ok_or(NoType(None))?;
    let no_type = || NoType(Some(dtype));
    // The numbers of DLDataTypeCode.
    let code = match dtype {
        DType::I8 | DType::I16 | DType::I32 | DType::I64 => 0,
        DType::U8 | DType::U16 | DType::U32 | DType::U64 => 1,
        DType::F16 | DType::F32 | DType::F64 => 2,
        DType::BF16 => 4,
        DType::C64 => 5,
        DType::Bool => 6,
        DType::F8E4M3 => 10,
        DType::F8E4M3Fnuz => 11,
        DType::F8E5M2 => 12,
        DType::F8E5M2Fnuz => 13,
        DType::F8E8M0 => 14,
        DType::F6E2M3 | DType::F6E3M2 | DType::F4 => return Err(no_type()),
    };
    let bits = u8::try_from(dtype.bits()).map_err(|_| no_type())?;
    let lanes = 1;
    Ok(mrm_dl_dtype_t { code, bits, lanes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_whole_bytes_has_a_number() {
        for dtype in DType::ALL {
            let made = dtype_of(dtype.code().into());
            let whole = dtype.bits() % 8 == 0;
            assert_eq!(made.is_ok(), whole, "{}", dtype.name());
            if let Ok(made) = made {
                assert_eq!(u64::from(made.bits), dtype.bits());
            }
        }
        assert!(dtype_of(0).is_err() && dtype_of(1 << 20).is_err());
    }

    #[test]
    fn strides_are_those_of_rows() {
        assert_eq!(strides_of(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(strides_of(&[5, 0, 2]), [2, 2, 1]);
        assert_eq!(strides_of(&[]), Vec::<i64>::new());
    }
}

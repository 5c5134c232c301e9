//! Element types: the numbers of `mrm_tensor_t.dtype`.
//!
//! ```
//! use mrm::dtype::{mrm_dtype_bits, mrm_dtype_e};
//! assert_eq!(mrm_dtype_bits(mrm_dtype_e::BF16 as u32), 16);
//! assert_eq!(mrm_dtype_bits(0), 0); // not a type
//! ```

use crate::pointer::text_of;
use crate::types::mrm_text_t;
use mrm_proto::dtype::DType;

/// An element type. The names are those of the safetensors format.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum mrm_dtype_e {
    /// One byte, 0 or 1.
    Bool = 1,
    /// Unsigned 8-bit integer.
    U8 = 2,
    /// Signed 8-bit integer.
    I8 = 3,
    /// Unsigned 16-bit integer.
    U16 = 4,
    /// Signed 16-bit integer.
    I16 = 5,
    /// Unsigned 32-bit integer.
    U32 = 6,
    /// Signed 32-bit integer.
    I32 = 7,
    /// Unsigned 64-bit integer.
    U64 = 8,
    /// Signed 64-bit integer.
    I64 = 9,
    /// IEEE half precision.
    F16 = 10,
    /// bfloat16.
    BF16 = 11,
    /// IEEE single precision.
    F32 = 12,
    /// IEEE double precision.
    F64 = 13,
    /// Pair of `F32`: a complex number.
    C64 = 14,
    /// 8-bit float, 5 exponent bits (OCP OFP8).
    F8E5M2 = 15,
    /// 8-bit float, 4 exponent bits (OCP OFP8).
    F8E4M3 = 16,
    /// 8-bit scale, exponent only (OCP MX).
    F8E8M0 = 17,
    /// 6-bit float, 2 exponent bits (OCP MX).
    F6E2M3 = 18,
    /// 6-bit float, 3 exponent bits (OCP MX).
    F6E3M2 = 19,
    /// 4-bit float (OCP MX).
    F4 = 20,
    /// 8-bit float, 5 exponent bits, no infinities.
    F8E5M2Fnuz = 21,
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3Fnuz = 22,
}

/// The name that safetensors headers use for a number of `mrm_dtype_e`; empty when this library
/// does not know the number. Lives forever.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn mrm_dtype_name(dtype: u32) -> mrm_text_t {
    text_of(known(dtype).map_or("", DType::name))
}

/// Size of one element of a number of `mrm_dtype_e`, in bits; 0 when this library does not know
/// the number.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn mrm_dtype_bits(dtype: u32) -> u32 {
    known(dtype)
        .and_then(|dtype| u32::try_from(dtype.bits()).ok())
        .unwrap_or(0)
}

pub(crate) fn known(dtype: u32) -> Option<DType> {
    DType::from_code(u16::try_from(dtype).ok()?)
}

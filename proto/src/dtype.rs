//! Element types of tensors, with stable codes.
//!
//! The set and the names are those of the safetensors format (`safetensors` 0.8, `Dtype`).
//!
//! ```
//! use mrm_proto::dtype::DType;
//! assert_eq!(DType::from_name("BF16").map(DType::bits), Some(16));
//! assert_eq!(DType::F4.byte_len(3), None); // three half-bytes do not end on a byte
//! ```

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// An element type. The discriminant is the code used in tensor tables and in C.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        #[allow(non_camel_case_types)]
        pub enum DType { $($(#[$doc])* $variant = $code,)* }

        impl DType {
            /// Every element type, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The type that a stable code stands for.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The stable code.
            #[must_use]
            pub const fn code(self) -> u16 { self as u16 }

            /// The type that a safetensors header calls `name`.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// The name that safetensors headers use.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Size of one element, in bits.
            #[must_use]
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// One byte, 0 or 1.
    Bool = 1, "BOOL", 8;
    /// Unsigned 8-bit integer.
    U8 = 2, "U8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "I8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "U16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "I16", 16;
    /// Unsigned 32-bit integer.
    U32 = 6, "U32", 32;
    /// Signed 32-bit integer.
    I32 = 7, "I32", 32;
    /// Unsigned 64-bit integer.
    U64 = 8, "U64", 64;
    /// Signed 64-bit integer.
    I64 = 9, "I64", 64;
    /// IEEE half precision.
    F16 = 10, "F16", 16;
    /// bfloat16.
    BF16 = 11, "BF16", 16;
    /// IEEE single precision.
    F32 = 12, "F32", 32;
    /// IEEE double precision.
    F64 = 13, "F64", 64;
    /// Pair of `F32`: a complex number.
    C64 = 14, "C64", 64;
    /// 8-bit float, 5 exponent bits (OCP OFP8).
    F8E5M2 = 15, "F8_E5M2", 8;
    /// 8-bit float, 4 exponent bits (OCP OFP8).
    F8E4M3 = 16, "F8_E4M3", 8;
    /// 8-bit scale, exponent only (OCP MX).
    F8E8M0 = 17, "F8_E8M0", 8;
    /// 6-bit float, 2 exponent bits (OCP MX).
    F6E2M3 = 18, "F6_E2M3", 6;
    /// 6-bit float, 3 exponent bits (OCP MX).
    F6E3M2 = 19, "F6_E3M2", 6;
    /// 4-bit float (OCP MX).
    F4 = 20, "F4", 4;
    /// 8-bit float, 5 exponent bits, no infinities.
    F8E5M2Fnuz = 21, "F8_E5M2FNUZ", 8;
    /// 8-bit float, 4 exponent bits, no infinities.
    F8E4M3Fnuz = 22, "F8_E4M3FNUZ", 8;
}

impl DType {
    /// Bytes that `elements` elements take, or `None` when that overflows or does not end on a
    /// byte boundary.
    #[must_use]
    pub fn byte_len(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Bytes that a tensor of this type and `shape` takes. A shape without dimensions is a
    /// scalar.
    #[must_use]
    pub fn byte_len_of_shape(self, shape: &[u64]) -> Option<u64> {
        let elements = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim))?;
        self.byte_len(elements)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_round_trip() {
        for &dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(DType::from_code(0), None);
        assert_eq!(DType::from_name("f32"), None);
    }

    #[test]
    fn sizes_that_overflow_are_none() {
        assert_eq!(DType::F32.byte_len_of_shape(&[]), Some(4));
        assert_eq!(DType::F32.byte_len_of_shape(&[3, 0]), Some(0));
        assert_eq!(DType::F32.byte_len_of_shape(&[u64::MAX, 2]), None);
        assert_eq!(DType::F64.byte_len_of_shape(&[u64::MAX / 8]), None);
        assert_eq!(DType::F6E2M3.byte_len(4), Some(3));
    }
}

//! What can be wrong with a header.

use mrm_proto::error::ErrorCode;
use mrm_proto::limits::{JSON_DEPTH_MAX, SAFETENSORS_HEADER_BYTES_MAX};

/// Which rule of the format a header breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderProblem {
    /// The file ends within its header.
    #[error("the file has {file_bytes} bytes, its header needs {needs_bytes}")]
    Truncated {
        /// What the header and its length take.
        needs_bytes: u64,
        /// What there is.
        file_bytes: u64,
    },
    /// A length of zero or over the bound.
    #[error(
        "the header is said to have {header_bytes} bytes; 1 to {SAFETENSORS_HEADER_BYTES_MAX} are \
         allowed"
    )]
    Length {
        /// What the file says.
        header_bytes: u64,
    },
    /// The headers of all shards together are over the bound.
    #[error("with it the headers of all shards have over {SAFETENSORS_HEADER_BYTES_MAX} bytes")]
    TotalLength,
    /// Not UTF-8.
    #[error("the header is not UTF-8 (byte {at})")]
    NotUtf8 {
        /// The first bad byte.
        at: usize,
    },
    /// Not the JSON that the format asks for.
    #[error("the header is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Nested too deep.
    #[error("the header is nested deeper than {JSON_DEPTH_MAX} levels")]
    TooDeep,
    /// Two tensors of one name.
    #[error("two tensors are called {tensor:?}")]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// A tensor that does not begin where the one before it ends.
    #[error(
        "tensor {tensor:?} begins at byte {begin} of the data, the one before it ends at {expected}"
    )]
    Overlap {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        begin: u64,
        /// Where it should.
        expected: u64,
    },
    /// A tensor that ends outside the file.
    #[error("tensor {tensor:?} ends at byte {end} of the data, which has {data_bytes}")]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Where it ends.
        end: u64,
        /// What there is.
        data_bytes: u64,
    },
    /// Bytes after the last tensor.
    #[error("the tensors take {covered_bytes} bytes of data, the file has {data_bytes}")]
    Trailing {
        /// What the tensors take.
        covered_bytes: u64,
        /// What there is.
        data_bytes: u64,
    },
    /// Shape and range disagree.
    #[error(
        "tensor {tensor:?} needs {needs_bytes} bytes by its shape, its range has {range_bytes}"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// By shape and type, rounded up to whole bytes.
        needs_bytes: u64,
        /// By its offsets.
        range_bytes: u64,
    },
    /// Shape times element size overflows.
    #[error("the shape of tensor {tensor:?} overflows 64 bits")]
    Overflow {
        /// The tensor.
        tensor: String,
    },
    /// More of something than the bound.
    #[error("there are more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// An unknown element type.
    #[error("tensor {tensor:?} has the unknown type {dtype:?}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
}

impl HeaderProblem {
    /// The code for the boundary.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Truncated { .. } => ErrorCode::HeaderTruncated,
            Self::Length { .. } | Self::TotalLength => ErrorCode::HeaderLength,
            Self::NotUtf8 { .. } => ErrorCode::HeaderNotUtf8,
            Self::Malformed { .. } => ErrorCode::HeaderMalformed,
            Self::TooDeep => ErrorCode::HeaderTooDeep,
            Self::Duplicate { .. } => ErrorCode::DuplicateTensor,
            Self::Overlap { .. } => ErrorCode::TensorOverlap,
            Self::OutOfBounds { .. } | Self::Trailing { .. } => ErrorCode::TensorOutOfBounds,
            Self::Size { .. } => ErrorCode::TensorSize,
            Self::Overflow { .. } => ErrorCode::TensorOverflow,
            Self::TooMany { .. } => ErrorCode::TooManyTensors,
            Self::Dtype { .. } => ErrorCode::UnknownDtype,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Truncated { .. } | Self::OutOfBounds { .. } => {
                "the file was probably cut short: copy or download it again"
            }
            Self::Length { .. } | Self::NotUtf8 { .. } | Self::Trailing { .. } => {
                "this is no whole safetensors file: copy or download it again, or rename it to \
                 lend it as opaque bytes"
            }
            Self::Dtype { .. } => "convert the tensor, or use a newer mrmd",
            Self::TooMany { .. } | Self::TotalLength => "split the model",
            Self::Malformed { .. }
            | Self::TooDeep
            | Self::Duplicate { .. }
            | Self::Overlap { .. }
            | Self::Size { .. }
            | Self::Overflow { .. } => "write the file anew with a current safetensors",
        }
    }
}

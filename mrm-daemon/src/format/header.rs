//! The header of one safetensors file: a strict parser.

use super::json::{deeper_than, shorten};
use mrm_proto::dtype::DType;
use mrm_proto::limits::{JSON_DEPTH_MAX, SAFETENSORS_HEADER_BYTES_MAX};

mod parse;
mod problem;

pub use problem::HeaderProblem;

/// Most pairs of metadata in one model: keeps a header of tiny pairs from growing many times over
/// when it is parsed.
pub const METADATA_PAIRS_MAX: usize = 65_536;

/// A header whose tensors cover the data of its file exactly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Pairs of `__metadata__`, in the order of the file.
    pub metadata: Vec<(String, String)>,
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<TensorFact>,
}

/// One tensor of a [`Header`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFact {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Where it begins, counted from the end of the header.
    pub begin: u64,
    /// Where it ends.
    pub end: u64,
}

impl Header {
    /// How many bytes the header takes without its length, given the file's first eight bytes and
    /// its length.
    ///
    /// # Errors
    /// When the header is empty, over the bound, or longer than the file.
    pub fn length(prefix: [u8; 8], file_bytes: u64) -> Result<u64, HeaderProblem> {
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes == 0 || header_bytes > SAFETENSORS_HEADER_BYTES_MAX {
            return Err(HeaderProblem::Length { header_bytes });
        }
        if header_bytes > file_bytes.saturating_sub(8) {
            return Err(HeaderProblem::Truncated {
                needs_bytes: 8 + header_bytes,
                file_bytes,
            });
        }
        Ok(header_bytes)
    }

    /// Parses `text`, the header without its length, of a file with `data_bytes` bytes after it.
    ///
    /// # Errors
    /// Says which rule of the format is broken, and by which tensor.
    pub fn parse(text: &[u8], data_bytes: u64) -> Result<Self, HeaderProblem> {
        let text = std::str::from_utf8(text).map_err(|e| HeaderProblem::NotUtf8 {
            at: e.valid_up_to(),
        })?;
        if !text.starts_with('{') {
            return Err(HeaderProblem::Malformed {
                reason: "it does not begin with `{`".into(),
            });
        }
        if deeper_than(text.as_bytes(), JSON_DEPTH_MAX) {
            return Err(HeaderProblem::TooDeep);
        }
        let mut header = parse::parse(text)?;
        for tensor in &header.tensors {
            check_tensor(tensor, data_bytes)?;
        }
        header
            .tensors
            .sort_by_key(|tensor| (tensor.begin, tensor.end));
        check_cover(&header.tensors, data_bytes)?;
        Ok(header)
    }
}

fn check_tensor(tensor: &TensorFact, data_bytes: u64) -> Result<(), HeaderProblem> {
    let name = || shorten(&tensor.name);
    let (begin, end) = (tensor.begin, tensor.end);
    let Some(range_bytes) = end.checked_sub(begin) else {
        let reason = format!(
            "tensor {:?} ends at {end}, before it begins at {begin}",
            name()
        );
        return Err(HeaderProblem::Malformed { reason });
    };
    let elements = tensor
        .shape
        .iter()
        .try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let bits = elements.and_then(|n| n.checked_mul(tensor.dtype.bits()));
    let Some(bits) = bits else {
        return Err(HeaderProblem::Overflow { tensor: name() });
    };
    if !bits.is_multiple_of(8) || bits / 8 != range_bytes {
        let needs_bytes = bits.div_ceil(8);
        return Err(HeaderProblem::Size {
            tensor: name(),
            needs_bytes,
            range_bytes,
        });
    }
    if end > data_bytes {
        return Err(HeaderProblem::OutOfBounds {
            tensor: name(),
            end,
            data_bytes,
        });
    }
    Ok(())
}

/// `tensors` are in the order of their bytes.
fn check_cover(tensors: &[TensorFact], data_bytes: u64) -> Result<(), HeaderProblem> {
    let mut covered = 0;
    for tensor in tensors {
        if tensor.begin != covered {
            let tensor_name = shorten(&tensor.name);
            let (begin, expected) = (tensor.begin, covered);
            return Err(HeaderProblem::Overlap {
                tensor: tensor_name,
                begin,
                expected,
            });
        }
        covered = tensor.end;
    }
    if covered != data_bytes {
        return Err(HeaderProblem::Trailing {
            covered_bytes: covered,
            data_bytes,
        });
    }
    Ok(())
}

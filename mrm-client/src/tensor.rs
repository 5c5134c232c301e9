//! Tensors: named, typed, shaped ranges of a model's bytes.
//!
//! ```no_run
//! let client = mrm_client::Client::connect()?;
//! let model = client.open("bert/base")?;
//! for tensor in &model.tensors()? {
//!     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
//! }
//! let weight: &[f32] = model.tensor("pooler.dense.weight")?.as_slice()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::content::Memory;
use crate::device::DeviceWeights;
use crate::error::TensorError;
use crate::mapping;
use crate::model::Model;
use mrm_proto::dtype::DType;
use mrm_proto::table::{ModelKind, Table, TensorRef};

/// One tensor, borrowed from its [`Model`].
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'m> {
    entry: TensorRef<'m>,
    data: Data<'m>,
}

/// What a tensor is and where in its file it lies, without its bytes: see [`Model::layouts`].
#[derive(Debug, Clone, Copy)]
pub struct TensorLayout<'m> {
    entry: TensorRef<'m>,
}

/// Where its elements are.
#[derive(Debug, Clone, Copy)]
enum Data<'m> {
    Host(&'m [u8]),
    Device {
        pointer: u64,
        weights: &'m DeviceWeights,
    },
}

/// All tensors of a model.
#[derive(Debug, Clone, Copy)]
pub struct Tensors<'m> {
    table: Table<'m>,
    model: &'m Model,
}

impl<'m> Tensor<'m> {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'m str {
        self.entry.name
    }

    /// Its element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.entry.dtype
    }

    /// Its dimensions; none for a scalar. [`dims`](Self::dims) does not allocate.
    #[must_use]
    pub fn shape(&self) -> Vec<u64> {
        self.dims().collect()
    }

    /// Its dimensions, one by one.
    pub fn dims(&self) -> impl ExactSizeIterator<Item = u64> + use<'m> {
        self.entry.shape()
    }

    /// Number of dimensions.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.entry.rank()
    }

    /// Its bytes, as they are in the file: little endian, row major.
    ///
    /// # Errors
    /// When they are on a device.
    pub fn bytes(&self) -> Result<&'m [u8], TensorError> {
        match self.data {
            Data::Host(bytes) => Ok(bytes),
            Data::Device { weights, .. } => Err(TensorError::OnDevice {
                tensor: self.name().to_owned(),
                uuid: weights.uuid(),
            }),
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn bytes_total(&self) -> u64 {
        self.entry.bytes
    }

    /// Address of its first byte on the device, a multiple of 256; 0 when it has no bytes. `None`
    /// in host memory. Valid as long as the model is open, and for reading only.
    #[must_use]
    pub const fn device_pointer(&self) -> Option<u64> {
        match self.data {
            Data::Host(_) => None,
            Data::Device { pointer, .. } => Some(pointer),
        }
    }

    /// The device that it is on; `None` in host memory.
    #[must_use]
    pub const fn device(&self) -> Option<&'m DeviceWeights> {
        match self.data {
            Data::Host(_) => None,
            Data::Device { weights, .. } => Some(weights),
        }
    }

    /// Index of the file that it is from; in host memory also of the [segment](Model::segment).
    #[must_use]
    pub const fn segment_index(&self) -> usize {
        self.entry.segment as usize
    }

    /// Where it begins in its file, in bytes.
    #[must_use]
    pub const fn offset_bytes(&self) -> u64 {
        self.entry.offset
    }

    /// Its elements, without a copy.
    ///
    /// # Errors
    /// When the elements are of another type (see [`Element`]), are not aligned for it, or are on a
    /// device.
    pub fn as_slice<T: Element>(&self) -> Result<&'m [T], TensorError> {
        if !T::DTYPES.contains(&self.dtype()) {
            let (tensor, actual) = (self.name().to_owned(), self.dtype());
            return Err(TensorError::DType {
                tensor,
                actual,
                wanted: T::NAME,
            });
        }
        let bytes = self.bytes()?;
        T::cast(bytes).ok_or_else(|| TensorError::Misaligned {
            tensor: self.name().to_owned(),
            wanted: T::NAME,
            misaligned_bytes: bytes.as_ptr() as usize % align_of::<T>(),
        })
    }
}

impl<'m> TensorLayout<'m> {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'m str {
        self.entry.name
    }

    /// Its element type.
    #[must_use]
    pub const fn dtype(&self) -> DType {
        self.entry.dtype
    }

    /// Its dimensions, one by one.
    pub fn dims(&self) -> impl ExactSizeIterator<Item = u64> + use<'m> {
        self.entry.shape()
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn bytes_total(&self) -> u64 {
        self.entry.bytes
    }

    /// Index of the file that it is from.
    #[must_use]
    pub const fn segment_index(&self) -> usize {
        self.entry.segment as usize
    }

    /// Where it begins in its file, in bytes.
    #[must_use]
    pub const fn offset_bytes(&self) -> u64 {
        self.entry.offset
    }

    pub(crate) const fn new(entry: TensorRef<'m>) -> Self {
        Self { entry }
    }
}

impl<'m> Tensors<'m> {
    /// Number of tensors.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// What kind of files the model consists of.
    #[must_use]
    pub const fn kind(&self) -> ModelKind {
        self.table.kind()
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Tensor<'m>> {
        self.table
            .find(name)
            .and_then(|entry| Tensor::new(self.model, entry))
    }

    /// The `i`-th tensor in the order of names.
    #[must_use]
    pub fn sorted(&self, i: usize) -> Option<Tensor<'m>> {
        self.table
            .sorted(i)
            .and_then(|entry| Tensor::new(self.model, entry))
    }

    /// The tensors in the order of their files.
    pub fn iter(&self) -> impl Iterator<Item = Tensor<'m>> + use<'m> {
        let model = self.model;
        self.table
            .iter()
            .filter_map(move |entry| Tensor::new(model, entry?))
    }

    /// Metadata pairs, as the file had them.
    #[must_use]
    pub fn metadata(&self) -> Vec<(&'m str, &'m str)> {
        self.table.metadata()
    }

    /// Names of the files whose images the segments hold, in order.
    #[must_use]
    pub fn segment_names(&self) -> Vec<&'m str> {
        self.table.segment_names()
    }

    pub(crate) const fn new(table: Table<'m>, model: &'m Model) -> Self {
        Self { table, model }
    }
}

impl<'m> IntoIterator for &Tensors<'m> {
    type Item = Tensor<'m>;
    type IntoIter = std::vec::IntoIter<Tensor<'m>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter().collect::<Vec<_>>().into_iter()
    }
}

impl<'m> Tensor<'m> {
    /// `None` when the entry leads outside its memory, or is not as long as its shape says.
    pub(crate) fn new(model: &'m Model, entry: TensorRef<'m>) -> Option<Self> {
        let mut elements = 1u64;
        for dim in entry.shape() {
            elements = elements.checked_mul(dim)?;
        }
        if entry.dtype.byte_len(elements)? != entry.bytes {
            return None;
        }
        let data = match &model.open.content.memory {
            Memory::Host(parts) => {
                let start = usize::try_from(entry.offset).ok()?;
                let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
                let part = parts.get(entry.segment as usize)?;
                Data::Host(part.mapping.range(start..end)?)
            }
            Memory::Device(vram) => Data::Device {
                pointer: vram.address(entry.position, entry.bytes)?,
                weights: &vram.weights,
            },
        };
        Some(Self { entry, data })
    }
}

/// A Rust type that tensors can be borrowed as.
///
/// Types without a Rust equal are borrowed as their bits: `F16` and `BF16` as `u16`, 8-bit floats
/// and `BOOL` as `u8` (a file may hold bytes other than 0 and 1, which a Rust `bool` must not).
/// `C64` is `[f32; 2]`. Types that do not fill bytes (`F4`, `F6_*`) have only
/// [`bytes`](Tensor::bytes).
pub trait Element: sealed::Sealed {
    /// What may be borrowed as this type.
    const DTYPES: &'static [DType];
    /// The type's name, for messages.
    const NAME: &'static str;
}

// A file's bytes are little endian; borrowing them as numbers needs a host that is too.
const _: () = assert!(
    cfg!(target_endian = "little"),
    "mrm-client needs a little-endian host"
);

mod sealed {
    pub trait Sealed: Copy + 'static {
        fn cast(bytes: &[u8]) -> Option<&[Self]>;
    }
}

macro_rules! element {
    ($($type:ty: $($dtype:ident),*;)*) => {$(
        impl sealed::Sealed for $type {
            fn cast(bytes: &[u8]) -> Option<&[Self]> {
                mapping::cast(bytes)
            }
        }
        impl Element for $type {
            const DTYPES: &'static [DType] = &[$(DType::$dtype),*];
            const NAME: &'static str = stringify!($type);
        }
    )*};
}

element! {
    u8: U8, Bool, F8E5M2, F8E4M3, F8E8M0, F8E5M2Fnuz, F8E4M3Fnuz;
    i8: I8;
    u16: U16, F16, BF16;
    i16: I16;
    u32: U32;
    i32: I32;
    u64: U64;
    i64: I64;
    f32: F32;
    f64: F64;
    [f32; 2]: C64;
}

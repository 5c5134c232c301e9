//! How the tensors of a version lie in device memory.
//!
//! The daemon and its clients compute this alike from the [tensor table](crate::table) and the
//! [`Granularity`], so that it need not travel. Tensors come in file order. Each begins at a
//! multiple of [`ALIGNMENT_BYTES`], whatever the alignment in its file; the gaps are zero. Tensors
//! of no bytes take no room and lie nowhere.
//!
//! ```
//! use mrm_proto::{dtype::DType, layout::{Granularity, Layout}, table::{ModelKind, Table, TableBuilder}};
//! let mut builder = TableBuilder::new(ModelKind::Safetensors);
//! let file = builder.segment("model.safetensors");
//! builder.tensor("a", DType::U8, &[3], file, 64, 3);
//! builder.tensor("b", DType::U8, &[5], file, 67, 5);
//! let table = builder.build()?;
//! let table = Table::parse(&table)?;
//!
//! let layout = Layout::new(&table, Granularity::Model)?;
//! assert_eq!(layout.allocations_bytes(), [256 + 5]);
//! let b = layout.place(table.find("b").expect("was added").position).expect("has bytes");
//! assert_eq!((b.allocation, b.offset_bytes), (0, 256));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::limits::ALLOCATIONS_PER_MODEL_MAX;
use crate::table::{ModelKind, Table};
use minicbor::{Decode, Encode};

/// What each tensor's address on a device is a multiple of: what `cudaMalloc` promises, and more
/// than any vector load needs.
pub const ALIGNMENT_BYTES: u64 = 256;

/// How tensors are put together into allocations (TrIMS, section IV: model, group of layers,
/// layer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Granularity {
    /// All in one.
    #[n(0)]
    Model,
    /// As many as fit into so many bytes, in file order; a larger tensor has one of its own.
    #[n(1)]
    Block {
        /// Size of a block, a multiple of [`ALIGNMENT_BYTES`].
        #[n(0)]
        block_bytes: u64,
    },
    /// One each.
    #[n(2)]
    Tensor,
}

/// Where a tensor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// In which allocation.
    pub allocation: u32,
    /// Where it begins there.
    pub offset_bytes: u64,
}

/// Where all tensors of a version lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    allocations_bytes: Vec<u64>,
    /// By position in the file order.
    places: Vec<Option<Place>>,
}

/// Why a version cannot be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Its files are of no format that has tensors.
    #[error("it has no tensors: only its files' bytes are known")]
    NoTensors,
    /// More allocations than a model may have.
    #[error("more than {ALLOCATIONS_PER_MODEL_MAX} allocations: choose a coarser granularity")]
    TooManyAllocations,
    /// A tensor that the table does not tell of or puts at two positions, or a size past any
    /// memory's.
    #[error("its tensor table is damaged")]
    Damaged,
}

impl Layout {
    /// Lays out the tensors of `table`.
    ///
    /// # Errors
    /// When there are no tensors, or they take too many allocations.
    pub fn new(table: &Table<'_>, granularity: Granularity) -> Result<Self, LayoutError> {
        match table.kind() {
            ModelKind::Opaque => return Err(LayoutError::NoTensors),
            ModelKind::Safetensors => {}
        }
        let mut layout = Self {
            allocations_bytes: Vec::new(),
            places: Vec::with_capacity(table.len()),
        };
        for (at, tensor) in table.iter().enumerate() {
            let tensor = tensor.ok_or(LayoutError::Damaged)?;
            // Else the tensor would be looked for where another one is, which may be shorter.
            if tensor.position as usize != at {
                return Err(LayoutError::Damaged);
            }
            let place = match tensor.bytes {
                0 => None,
                bytes => Some(layout.put(bytes, granularity)?),
            };
            layout.places.push(place);
        }
        Ok(layout)
    }

    /// Size of each allocation: up to the end of its last tensor, never 0.
    #[must_use]
    pub fn allocations_bytes(&self) -> &[u64] {
        &self.allocations_bytes
    }

    /// Where the tensor at `position` in the file order lies; `None` for one of no bytes.
    #[must_use]
    pub fn place(&self, position: u32) -> Option<Place> {
        self.places.get(position as usize).copied().flatten()
    }

    fn put(&mut self, bytes: u64, granularity: Granularity) -> Result<Place, LayoutError> {
        let shared = match granularity {
            Granularity::Model => u64::MAX,
            Granularity::Block { block_bytes } => block_bytes,
            Granularity::Tensor => 0,
        };
        let last = self.allocations_bytes.last().copied();
        let behind = last.and_then(|end| end.checked_next_multiple_of(ALIGNMENT_BYTES));
        let within = behind.filter(|at| at.checked_add(bytes).is_some_and(|end| end <= shared));
        let offset_bytes = match within {
            Some(at) => at,
            None if granularity == Granularity::Model && last.is_some() => {
                return Err(LayoutError::Damaged);
            }
            None => {
                self.allocations_bytes.push(0);
                0
            }
        };
        if self.allocations_bytes.len() > ALLOCATIONS_PER_MODEL_MAX {
            return Err(LayoutError::TooManyAllocations);
        }
        if let Some(end) = self.allocations_bytes.last_mut() {
            *end = offset_bytes + bytes;
        }
        // At most ALLOCATIONS_PER_MODEL_MAX.
        let allocation = u32::try_from(self.allocations_bytes.len() - 1).unwrap_or(u32::MAX);
        Ok(Place {
            allocation,
            offset_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::table::TableBuilder;

    fn laid_out(sizes: &[u64], granularity: Granularity) -> Result<Layout, LayoutError> {
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let file = builder.segment("model.safetensors");
        let mut at = 8;
        for (i, bytes) in sizes.iter().enumerate() {
            // Names in the opposite order: the layout follows the file.
            let name = format!("{:05}", sizes.len() - i);
            builder.tensor(&name, DType::U8, &[*bytes], file, at, *bytes);
            at = at.wrapping_add(*bytes);
        }
        let bytes = builder.build().expect("builds");
        Layout::new(&Table::parse(&bytes).expect("parses"), granularity)
    }

    fn places(layout: &Layout) -> Vec<(u32, u64)> {
        let all = layout.places.iter().flatten();
        all.map(|place| (place.allocation, place.offset_bytes))
            .collect()
    }

    #[test]
    fn a_model_is_one_allocation() {
        let layout = laid_out(&[1, 256, 0, 257, 4], Granularity::Model).expect("lays out");
        assert_eq!(layout.allocations_bytes(), [1028]);
        assert_eq!(places(&layout), [(0, 0), (0, 256), (0, 512), (0, 1024)]);
        assert_eq!(layout.place(2), None);
        assert_eq!(layout.place(9), None);
    }

    #[test]
    fn a_block_takes_what_fits_and_a_larger_tensor_has_its_own() {
        let block = Granularity::Block { block_bytes: 1024 };
        let layout = laid_out(&[512, 512, 1, 5000, 8, 8], block).expect("lays out");
        assert_eq!(layout.allocations_bytes(), [1024, 1, 5000, 264]);
        let expected = [(0, 0), (0, 512), (1, 0), (2, 0), (3, 0), (3, 256)];
        assert_eq!(places(&layout), expected);
    }

    #[test]
    fn a_tensor_is_one_allocation_up_to_the_bound() {
        let layout = laid_out(&[3, 0, 5], Granularity::Tensor).expect("lays out");
        assert_eq!(layout.allocations_bytes(), [3, 5]);
        let many = vec![1; ALLOCATIONS_PER_MODEL_MAX + 1];
        let refused = laid_out(&many, Granularity::Tensor);
        assert_eq!(refused, Err(LayoutError::TooManyAllocations));
        assert!(laid_out(&many, Granularity::Model).is_ok());
    }

    #[test]
    fn sizes_past_any_memory_are_refused() {
        let huge = [u64::MAX - 300, 500];
        let refused = laid_out(&huge, Granularity::Model);
        assert_eq!(refused, Err(LayoutError::Damaged));
    }

    #[test]
    fn a_tensor_that_gives_the_position_of_another_is_refused() {
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let file = builder.segment("model.safetensors");
        builder.tensor("long", DType::U8, &[512], file, 64, 512);
        builder.tensor("short", DType::U8, &[1], file, 576, 1);
        let mut bytes = builder.build().expect("builds");
        // The first entry's position in the file order.
        bytes[64 + 20] = 1;
        let table = Table::parse(&bytes).expect("parses");
        let refused = Layout::new(&table, Granularity::Tensor);
        assert_eq!(refused, Err(LayoutError::Damaged));
    }

    #[test]
    fn what_has_no_tensors_has_no_layout() {
        let mut builder = TableBuilder::new(ModelKind::Opaque);
        builder.segment("weights.bin");
        let bytes = builder.build().expect("builds");
        let table = Table::parse(&bytes).expect("parses");
        let refused = Layout::new(&table, Granularity::Model);
        assert_eq!(refused, Err(LayoutError::NoTensors));
    }
}

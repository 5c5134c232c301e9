//! What C needs beside a model: shapes as arrays, and tensors by number.
//!
//! Made when first asked for, so that an open which only wants the files' bytes pays nothing.

use crate::error::Failure;
use crate::pointer::text_of;
use crate::types::{mrm_tensor_t, mrm_text_t};
use mrm_client::{DeviceWeights, Model, Tensor, TensorLayout};
use std::ffi::c_void;

/// Everything in here points into the model's mappings or into `shapes`: it may not outlive
/// either, and is handed out only through the handle that owns both.
pub(crate) struct Index {
    /// In the order of the files.
    tensors: Vec<mrm_tensor_t>,
    /// Where the name of each tensor lies, sorted, and its position in `tensors`. The table holds
    /// each name once, so its place is as good as the name, and cheaper to compare.
    places: Vec<(usize, usize, usize)>,
    metadata: Vec<(mrm_text_t, mrm_text_t)>,
    segments: Vec<mrm_text_t>,
    /// Not changed after `new`: `tensors` point into its heap.
    shapes: Vec<u64>,
    /// Where in it the shape of each tensor begins.
    shape_starts: Vec<usize>,
    /// Whether it was made before the model was whole: `tensors` lead to no elements.
    early: bool,
}

impl Index {
    /// Reads the tensor table of `model`; waits for nothing.
    pub(crate) fn new(model: &Model) -> Result<Self, Failure> {
        let failed = |e| Failure::of(&e);
        let layouts = model.layouts().map_err(failed)?;
        // Two passes: the array of shapes must not move once tensors point into it.
        let shapes: Vec<u64> = layouts.iter().flat_map(TensorLayout::dims).collect();
        let mut tensors = Vec::with_capacity(layouts.len());
        let mut shape_starts = Vec::with_capacity(layouts.len());
        let mut rest = shapes.as_slice();
        for (index, layout) in layouts.iter().enumerate() {
            let (shape, after) = rest.split_at(layout.dims().len());
            shape_starts.push(shapes.len() - rest.len());
            tensors.push(describe(layout, shape, index));
            rest = after;
        }
        let early = !model.is_whole();
        if !early {
            let found = model.tensors().map_err(failed)?;
            for (tensor, found) in tensors.iter_mut().zip(found.iter()) {
                place_in_memory(tensor, &found);
            }
        }
        let place = |(i, layout): (usize, &TensorLayout<'_>)| {
            let (start, len) = place(layout.name());
            (start, len, i)
        };
        let mut places: Vec<_> = layouts.iter().enumerate().map(place).collect();
        places.sort_unstable();
        let pair = |(key, value)| (text_of(key), text_of(value));
        let metadata = model.metadata().map_err(failed)?;
        let segments = match model.device() {
            Some(_) => Vec::new(),
            None => model.file_names().map_err(failed)?,
        };
        Ok(Self {
            tensors,
            places,
            metadata: metadata.into_iter().map(pair).collect(),
            segments: segments.into_iter().map(text_of).collect(),
            shapes,
            shape_starts,
            early,
        })
    }

    /// All tensors, in the order of the files.
    pub(crate) fn tensors(&self) -> &[mrm_tensor_t] {
        &self.tensors
    }

    /// Whether the tensors lead to no elements, for not all of them were there.
    pub(crate) const fn is_early(&self) -> bool {
        self.early
    }

    /// The dimensions of the tensor at `index`, which is there.
    pub(crate) fn shape(&self, index: usize) -> &[u64] {
        let start = self.shape_starts[index];
        &self.shapes[start..start + self.tensors[index].rank as usize]
    }

    /// The entry of the tensor whose name, as the model's table has it, is `name`.
    pub(crate) fn entry(&self, name: &str) -> Option<mrm_tensor_t> {
        let wanted = place(name);
        let at = self
            .places
            .binary_search_by(|&(start, len, _)| (start, len).cmp(&wanted))
            .ok()?;
        self.tensors.get(self.places[at].2).copied()
    }

    /// Metadata pairs.
    pub(crate) fn metadata(&self) -> &[(mrm_text_t, mrm_text_t)] {
        &self.metadata
    }

    /// File names, one a segment.
    pub(crate) fn segments(&self) -> &[mrm_text_t] {
        &self.segments
    }
}

/// Where the elements are in host memory; NULL on a device.
pub(crate) fn data_of(tensor: &Tensor<'_>) -> *const c_void {
    // The one error: it is on a device.
    let bytes = tensor.bytes();
    bytes.map_or(std::ptr::null(), |bytes| bytes.as_ptr().cast())
}

fn place(name: &str) -> (usize, usize) {
    (name.as_ptr() as usize, name.len())
}

fn place_in_memory(entry: &mut mrm_tensor_t, tensor: &Tensor<'_>) {
    let device = tensor.device().map(DeviceWeights::ordinal);
    entry.data_ptr = data_of(tensor);
    entry.device = device.map_or(-1, |ordinal| i32::try_from(ordinal).unwrap_or(i32::MAX));
    entry.device_ptr = tensor.device_pointer().unwrap_or(0);
}

fn describe(layout: &TensorLayout<'_>, shape: &[u64], index: usize) -> mrm_tensor_t {
    mrm_tensor_t {
        name: text_of(layout.name()),
        dtype: layout.dtype().code().into(),
        rank: u32::try_from(shape.len()).unwrap_or(u32::MAX),
        shape_ptr: shape.as_ptr(),
        data_ptr: std::ptr::null(),
        bytes: layout.bytes_total(),
        segment: u32::try_from(layout.segment_index()).unwrap_or(u32::MAX),
        device: -1,
        offset: layout.offset_bytes(),
        device_ptr: 0,
        index,
    }
}

//! What C needs beside a model: shapes as arrays, and tensors by number.
//!
//! Made when first asked for, so that an open which only wants the files' bytes pays nothing.

use crate::error::Failure;
use crate::pointer::text_of;
use crate::types::{mrm_tensor_t, mrm_text_t};
use mrm_client::{DeviceWeights, Model, Tensor};

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
}

impl Index {
    /// Reads the tensor table of `model`.
    pub(crate) fn new(model: &Model) -> Result<Self, Failure> {
        let table = model.tensors().map_err(|e| Failure::of(&e))?;
        let found: Vec<Tensor<'_>> = table.iter().collect();
        // Two passes: the array of shapes must not move once tensors point into it.
        let shapes: Vec<u64> = found.iter().flat_map(Tensor::dims).collect();
        let mut tensors = Vec::with_capacity(found.len());
        let mut shape_starts = Vec::with_capacity(found.len());
        let mut rest = shapes.as_slice();
        for (index, tensor) in found.iter().enumerate() {
            let (shape, after) = rest.split_at(tensor.rank());
            shape_starts.push(shapes.len() - rest.len());
            tensors.push(describe(tensor, shape, index));
            rest = after;
        }
        let mut places: Vec<_> = found
            .iter()
            .enumerate()
            .map(|(i, t)| (place(t).0, place(t).1, i))
            .collect();
        places.sort_unstable();
        let pair = |(key, value)| (text_of(key), text_of(value));
        let metadata = table.metadata().into_iter().map(pair).collect();
        let segments = table.segment_names().into_iter().map(text_of).collect();
        Ok(Self {
            tensors,
            places,
            metadata,
            segments,
            shapes,
            shape_starts,
        })
    }

    /// All tensors, in the order of the files.
    pub(crate) fn tensors(&self) -> &[mrm_tensor_t] {
        &self.tensors
    }

    /// The dimensions of the tensor at `index`, which is there.
    pub(crate) fn shape(&self, index: usize) -> &[u64] {
        let start = self.shape_starts[index];
        &self.shapes[start..start + self.tensors[index].rank as usize]
    }

    /// The entry of a tensor of the same model.
    pub(crate) fn entry(&self, tensor: &Tensor<'_>) -> Option<mrm_tensor_t> {
        let wanted = place(tensor);
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

fn place(tensor: &Tensor<'_>) -> (usize, usize) {
    (tensor.name().as_ptr() as usize, tensor.name().len())
}

fn describe(tensor: &Tensor<'_>, shape: &[u64], index: usize) -> mrm_tensor_t {
    let device = tensor.device().map(DeviceWeights::ordinal);
    mrm_tensor_t {
        name: text_of(tensor.name()),
        dtype: tensor.dtype().code().into(),
        rank: u32::try_from(shape.len()).unwrap_or(u32::MAX),
        shape_ptr: shape.as_ptr(),
        // The one error: it is on a device.
        data_ptr: tensor
            .bytes()
            .map_or(std::ptr::null(), |bytes| bytes.as_ptr().cast()),
        bytes: tensor.bytes_total(),
        segment: u32::try_from(tensor.segment_index()).unwrap_or(u32::MAX),
        device: device.map_or(-1, |ordinal| i32::try_from(ordinal).unwrap_or(i32::MAX)),
        offset: tensor.offset_bytes(),
        device_ptr: tensor.device_pointer().unwrap_or(0),
        index,
    }
}

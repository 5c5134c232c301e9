//! Writing a table.

use super::{ENTRY_BYTES, FORMAT, HEADER_BYTES, MAGIC, ModelKind, TableError};
use crate::dtype::DType;
use crate::limits::{SEGMENTS_PER_MODEL_MAX, TENSOR_RANK_MAX, TENSORS_PER_MODEL_MAX};

/// Collects tensors in file order, then writes the table.
#[derive(Debug, Clone)]
pub struct TableBuilder {
    kind: ModelKind,
    segments: Vec<String>,
    metadata: Vec<(String, String)>,
    tensors: Vec<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    segment: u32,
    offset: u64,
    bytes: u64,
}

impl TableBuilder {
    /// An empty table.
    #[must_use]
    pub const fn new(kind: ModelKind) -> Self {
        Self {
            kind,
            segments: Vec::new(),
            metadata: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Adds a segment that holds the image of the file `name`; returns its index.
    pub fn segment(&mut self, name: &str) -> u32 {
        self.segments.push(name.to_owned());
        u32::try_from(self.segments.len() - 1).unwrap_or(u32::MAX)
    }

    /// Adds a metadata pair.
    pub fn metadata(&mut self, key: &str, value: &str) {
        self.metadata.push((key.to_owned(), value.to_owned()));
    }

    /// Adds a tensor of `bytes` bytes at `offset` of segment `segment`.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[u64],
        segment: u32,
        offset: u64,
        bytes: u64,
    ) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(Pending {
            name,
            dtype,
            shape,
            segment,
            offset,
            bytes,
        });
    }

    /// Number of tensors so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether no tensor was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Writes the table.
    ///
    /// # Errors
    /// When two tensors share a name, or a bound is exceeded.
    pub fn build(self) -> Result<Vec<u8>, TableError> {
        self.check()?;
        let mut order: Vec<usize> = (0..self.tensors.len()).collect();
        order.sort_by(|&a, &b| self.tensors[a].name.cmp(&self.tensors[b].name));
        if let Some(pair) = order
            .windows(2)
            .find(|w| self.tensors[w[0]].name == self.tensors[w[1]].name)
        {
            return Err(TableError::Duplicate(self.tensors[pair[0]].name.clone()));
        }

        let text = self.text()?;
        let shape_words: usize = self.tensors.iter().map(|t| t.shape.len()).sum();
        let entries_at = HEADER_BYTES;
        let order_at = entries_at + self.tensors.len() * ENTRY_BYTES;
        let shapes_at = (order_at + self.tensors.len() * 4).next_multiple_of(8);
        let text_at = shapes_at + shape_words * 8;
        let total = text_at + text.bytes.len();

        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&(self.kind as u16).to_le_bytes());
        for count in [
            self.tensors.len(),
            self.segments.len(),
            self.metadata.len(),
            shape_words,
        ] {
            out.extend_from_slice(&narrow(count, "entries")?.to_le_bytes());
        }
        for at in [entries_at, order_at, shapes_at, text_at, total] {
            out.extend_from_slice(&(at as u64).to_le_bytes());
        }
        debug_assert_eq!(out.len(), HEADER_BYTES);
        self.write_entries(&mut out, &order, &text)?;
        out.resize(shapes_at, 0);
        for word in self.tensors.iter().flat_map(|t| &t.shape) {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&text.bytes);
        Ok(out)
    }

    fn check(&self) -> Result<(), TableError> {
        if self.tensors.len() > TENSORS_PER_MODEL_MAX {
            return Err(TableError::TooMany("tensors"));
        }
        if self.segments.len() > SEGMENTS_PER_MODEL_MAX {
            return Err(TableError::TooMany("segments"));
        }
        if self.tensors.iter().any(|t| t.shape.len() > TENSOR_RANK_MAX) {
            return Err(TableError::TooMany("dimensions"));
        }
        if self
            .tensors
            .iter()
            .any(|t| t.segment as usize >= self.segments.len())
        {
            return Err(TableError::Bounds("segment"));
        }
        Ok(())
    }

    fn write_entries(
        &self,
        out: &mut Vec<u8>,
        order: &[usize],
        text: &Text,
    ) -> Result<(), TableError> {
        let mut shape_at = Vec::with_capacity(self.tensors.len());
        let mut words = 0usize;
        for tensor in &self.tensors {
            shape_at.push(narrow(words, "shapes")?);
            words += tensor.shape.len();
        }
        let mut position_of = vec![0u32; self.tensors.len()];
        for (sorted, &i) in order.iter().enumerate() {
            let tensor = &self.tensors[i];
            out.extend_from_slice(&text.names[i].to_le_bytes());
            out.extend_from_slice(&narrow(tensor.name.len(), "name bytes")?.to_le_bytes());
            out.extend_from_slice(&tensor.dtype.code().to_le_bytes());
            let rank =
                u16::try_from(tensor.shape.len()).map_err(|_| TableError::TooMany("dimensions"))?;
            out.extend_from_slice(&rank.to_le_bytes());
            out.extend_from_slice(&shape_at[i].to_le_bytes());
            out.extend_from_slice(&tensor.segment.to_le_bytes());
            out.extend_from_slice(&narrow(i, "tensors")?.to_le_bytes());
            out.extend_from_slice(&tensor.offset.to_le_bytes());
            out.extend_from_slice(&tensor.bytes.to_le_bytes());
            position_of[i] = narrow(sorted, "tensors")?;
        }
        for sorted in position_of {
            out.extend_from_slice(&sorted.to_le_bytes());
        }
        Ok(())
    }

    fn text(&self) -> Result<Text, TableError> {
        let mut bytes = Vec::new();
        let pairs = self.metadata.iter().flat_map(|(k, v)| [k, v]);
        for piece in self.segments.iter().chain(pairs) {
            bytes.extend_from_slice(&narrow(piece.len(), "text bytes")?.to_le_bytes());
            bytes.extend_from_slice(piece.as_bytes());
        }
        let mut names = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            names.push(narrow(bytes.len(), "text bytes")?);
            bytes.extend_from_slice(tensor.name.as_bytes());
        }
        narrow(bytes.len(), "text bytes")?;
        Ok(Text { bytes, names })
    }
}

struct Text {
    bytes: Vec<u8>,
    /// Offset of each tensor's name in `bytes`, in file order.
    names: Vec<u32>,
}

fn narrow(n: usize, what: &'static str) -> Result<u32, TableError> {
    u32::try_from(n).map_err(|_| TableError::TooMany(what))
}

//! Reading a table, without a copy and without trust.

use super::{ENTRY_BYTES, FORMAT, HEADER_BYTES, MAGIC, ModelKind, TableError};
use crate::dtype::DType;

/// A view of a table's bytes. Parsing checks the header in constant time; each entry is checked
/// when it is read, and one that leads outside the table does not exist.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    bytes: &'a [u8],
    kind: ModelKind,
    entries: &'a [u8],
    order: &'a [u8],
    shapes: &'a [u8],
    text: &'a [u8],
    segments: u32,
    metadata: u32,
}

/// One tensor of a table.
#[derive(Debug, Clone, Copy)]
pub struct TensorRef<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: DType,
    /// Which segment it lies in.
    pub segment: u32,
    /// Where it begins in that segment.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// Its place in the order of the files.
    pub position: u32,
    shape: &'a [u8],
}

impl<'a> Table<'a> {
    /// Checks the header and the extent of each part.
    ///
    /// # Errors
    /// When `bytes` is not a table of this format, or a part lies outside it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        if bytes.len() < HEADER_BYTES || bytes[0..4] != MAGIC || u16_at(bytes, 4) != Some(FORMAT) {
            return Err(TableError::Format);
        }
        let kind = u16_at(bytes, 6)
            .and_then(ModelKind::from_code)
            .ok_or(TableError::Format)?;
        let word = |at| u32_at(bytes, at).ok_or(TableError::Format);
        let (tensors, segments, metadata, shape_words) =
            (word(8)?, word(12)?, word(16)?, word(20)?);
        let part = |at: usize, count: u32, size: usize, what| {
            let start = u64_at(bytes, at).and_then(|n| usize::try_from(n).ok());
            let len = (count as usize).checked_mul(size);
            let end = start.zip(len).and_then(|(s, l)| s.checked_add(l));
            start
                .zip(end)
                .and_then(|(s, e)| bytes.get(s..e))
                .ok_or(TableError::Bounds(what))
        };
        if u64_at(bytes, 56) != Some(bytes.len() as u64) {
            return Err(TableError::Bounds("length"));
        }
        let text_start = u64_at(bytes, 48).and_then(|n| usize::try_from(n).ok());
        Ok(Self {
            bytes,
            kind,
            entries: part(24, tensors, ENTRY_BYTES, "entries")?,
            order: part(32, tensors, 4, "file order")?,
            shapes: part(40, shape_words, 8, "shapes")?,
            text: text_start
                .and_then(|s| bytes.get(s..))
                .ok_or(TableError::Bounds("text"))?,
            segments,
            metadata,
        })
    }

    /// What the version is made of.
    #[must_use]
    pub const fn kind(&self) -> ModelKind {
        self.kind
    }

    /// Number of tensors.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// Whether there are no tensors.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Size of the whole table, in bytes.
    #[must_use]
    pub const fn table_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The tensor called `name`: a binary search.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<TensorRef<'a>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let tensor = self.sorted(middle)?;
            match tensor.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(tensor),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The `i`-th tensor in the order of names.
    #[must_use]
    pub fn sorted(&self, i: usize) -> Option<TensorRef<'a>> {
        let entry = self
            .entries
            .get(i.checked_mul(ENTRY_BYTES)?..)?
            .get(..ENTRY_BYTES)?;
        let name_at = u32_at(entry, 0)? as usize;
        let name_len = u32_at(entry, 4)? as usize;
        let name = self.text.get(name_at..name_at.checked_add(name_len)?)?;
        let rank = u16_at(entry, 10)? as usize;
        let shape_at = (u32_at(entry, 12)? as usize).checked_mul(8)?;
        let segment = u32_at(entry, 16)?;
        if segment >= self.segments {
            return None;
        }
        Some(TensorRef {
            name: std::str::from_utf8(name).ok()?,
            dtype: DType::from_code(u16_at(entry, 8)?)?,
            shape: self.shapes.get(shape_at..shape_at.checked_add(rank * 8)?)?,
            segment,
            position: u32_at(entry, 20)?,
            offset: u64_at(entry, 24)?,
            bytes: u64_at(entry, 32)?,
        })
    }

    /// The tensors in the order of their files.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<TensorRef<'a>>> + use<'a> {
        let table = *self;
        (0..self.len()).map(move |i| table.sorted(u32_at(table.order, i * 4)? as usize))
    }

    /// Names of the files whose images the segments hold, in order.
    #[must_use]
    pub fn segment_names(&self) -> Vec<&'a str> {
        self.pieces(0, self.segments as usize)
    }

    /// Metadata pairs, as the file had them.
    #[must_use]
    pub fn metadata(&self) -> Vec<(&'a str, &'a str)> {
        let flat = self.pieces(self.segments as usize, self.metadata as usize * 2);
        flat.chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect()
    }

    fn pieces(&self, skip: usize, take: usize) -> Vec<&'a str> {
        let mut rest = self.text;
        let next = |rest: &mut &'a [u8]| {
            let len = u32_at(rest, 0)? as usize;
            let piece = rest.get(4..4usize.checked_add(len)?)?;
            *rest = rest.get(4 + len..)?;
            std::str::from_utf8(piece).ok()
        };
        let mut out = Vec::new();
        for i in 0..skip.saturating_add(take) {
            match next(&mut rest) {
                Some(piece) if i >= skip => out.push(piece),
                Some(_) => {}
                None => break,
            }
        }
        out
    }
}

impl<'a> TensorRef<'a> {
    /// Its dimensions.
    pub fn shape(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.shape
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
    }

    /// Number of dimensions.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.shape.len() / 8
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::super::TableBuilder;
    use super::*;

    fn sample() -> Vec<u8> {
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let (a, b) = (
            builder.segment("a.safetensors"),
            builder.segment("b.safetensors"),
        );
        builder.metadata("format", "pt");
        builder.tensor("z", DType::BF16, &[4], a, 100, 8);
        builder.tensor("empty", DType::F32, &[0, 7], b, 8, 0);
        builder.tensor("scalar", DType::I64, &[], b, 8, 8);
        builder.build().expect("three tensors make a table")
    }

    #[test]
    fn what_was_built_is_read_back_in_both_orders() {
        let bytes = sample();
        let table = Table::parse(&bytes).expect("own table");
        let names: Vec<_> = table.iter().map(|t| t.expect("in bounds").name).collect();
        assert_eq!(names, ["z", "empty", "scalar"]);
        let sorted: Vec<_> = (0..3)
            .filter_map(|i| table.sorted(i))
            .map(|t| t.name)
            .collect();
        assert_eq!(sorted, ["empty", "scalar", "z"]);
        let empty = table.find("empty").expect("is there");
        assert_eq!((empty.segment, empty.offset, empty.bytes), (1, 8, 0));
        assert_eq!(empty.shape().collect::<Vec<_>>(), [0, 7]);
        assert_eq!(table.find("scalar").expect("is there").rank(), 0);
        assert!(table.find("w").is_none());
        assert_eq!(table.segment_names(), ["a.safetensors", "b.safetensors"]);
        assert_eq!(table.metadata(), [("format", "pt")]);
    }

    #[test]
    fn duplicates_are_refused() {
        let mut builder = TableBuilder::new(ModelKind::Safetensors);
        let file = builder.segment("f");
        builder.tensor("w", DType::U8, &[1], file, 0, 1);
        builder.tensor("w", DType::U8, &[1], file, 1, 1);
        assert_eq!(builder.build(), Err(TableError::Duplicate("w".into())));
    }

    #[test]
    fn damage_never_panics() {
        let good = sample();
        for cut in 0..good.len() {
            let _ = Table::parse(&good[..cut]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(table) = Table::parse(&bytes) {
                    let _ = table
                        .iter()
                        .flatten()
                        .map(|t| t.shape().count())
                        .sum::<usize>();
                    let _ = (table.find("z"), table.segment_names(), table.metadata());
                }
            }
        }
    }
}

//! Tensor tables: damage is refused or harmless, and every layout of what is left is sound.
//!
//! An input is a block size in 16-byte units (two bytes), a byte whose lowest bit leaves the
//! table's own length as it is instead of correcting it, and the table.
//!
//! ```
//! use mrm_fuzz::{Verdict, target::table};
//! use mrm_proto::table::{ModelKind, TableBuilder};
//! let empty = TableBuilder::new(ModelKind::Safetensors).build()?;
//! assert_eq!(table::run(&[&[0, 1, 0], &empty[..]].concat()), Verdict::Accepted);
//! # Ok::<(), mrm_proto::table::TableError>(())
//! ```

use super::{assert_says, take};
use crate::Verdict;
use mrm_proto::layout::{ALIGNMENT_BYTES, Granularity, Layout};
use mrm_proto::limits::ALLOCATIONS_PER_MODEL_MAX;
use mrm_proto::table::{Table, TableBuilder, TensorRef};
use std::collections::BTreeMap;

/// Where a table says how long it is.
const LENGTH_AT: usize = 56;

/// Parses a table, walks it, builds it anew and lays it out.
pub fn run(mut input: &[u8]) -> Verdict {
    let block_bytes = u64::from(u16::from_le_bytes(take(&mut input))) * 16;
    let [flags] = take(&mut input);
    let mut bytes = input.to_vec();
    let len = (bytes.len() as u64).to_le_bytes();
    if flags & 1 == 0
        && let Some(at) = bytes.get_mut(LENGTH_AT..LENGTH_AT + 8)
    {
        at.copy_from_slice(&len);
    }
    let table = match Table::parse(&bytes) {
        Ok(table) => table,
        Err(error) => return assert_says(&error),
    };
    walk(&table);
    let tensors: Option<Vec<_>> = table.iter().collect();
    if let Some(tensors) = &tensors {
        build_anew(&table, tensors);
    }
    for granularity in [
        Granularity::Model,
        Granularity::Block { block_bytes },
        Granularity::Tensor,
    ] {
        match Layout::new(&table, granularity) {
            Ok(layout) => {
                let tensors = tensors.as_ref().expect("a damaged table has no layout");
                lie_apart(tensors, &layout, granularity);
            }
            Err(error) => drop(assert_says(&error)),
        }
    }
    Verdict::Accepted
}

/// Reads all there is.
fn walk(table: &Table<'_>) {
    let len = table.len();
    assert_eq!(table.iter().len(), len);
    assert_eq!(table.is_empty(), len == 0);
    for i in [len, len + 1, usize::MAX / 40, usize::MAX] {
        assert!(table.sorted(i).is_none(), "entry {i} of {len}");
    }
    for tensor in (0..len).filter_map(|i| table.sorted(i)) {
        assert_eq!(tensor.shape().len(), tensor.rank());
        assert_eq!(tensor.shape().count(), tensor.rank());
        if let Some(found) = table.find(tensor.name) {
            assert_eq!(found.name, tensor.name);
        }
    }
    let bytes = table.table_bytes();
    // Each piece of text has four bytes of length before it.
    assert!(table.segment_names().len() * 4 <= bytes);
    assert!(table.metadata().len() * 8 <= bytes);
}

/// What a table says, written by our own builder, reads back as it was.
fn build_anew(table: &Table<'_>, tensors: &[TensorRef<'_>]) {
    let mut builder = TableBuilder::new(table.kind());
    for name in table.segment_names() {
        builder.segment(name);
    }
    for (key, value) in table.metadata() {
        builder.metadata(key, value);
    }
    for t in tensors {
        let shape: Vec<u64> = t.shape().collect();
        builder.tensor(t.name, t.dtype, &shape, t.segment, t.offset, t.bytes);
    }
    let Ok(built) = builder.build() else {
        return; // Two of one name, or over a bound.
    };
    let anew = Table::parse(&built).expect("our own table");
    assert_eq!(anew.kind(), table.kind());
    assert_eq!(anew.segment_names(), table.segment_names());
    assert_eq!(anew.metadata(), table.metadata());
    assert_eq!(anew.len(), tensors.len());
    for (at, (t, wanted)) in anew.iter().zip(tensors).enumerate() {
        let t = t.expect("our own entry");
        let facts = |t: &TensorRef<'_>| (t.dtype, t.segment, t.offset, t.bytes);
        assert_eq!((t.name, facts(&t)), (wanted.name, facts(wanted)));
        assert!(t.shape().eq(wanted.shape()));
        assert_eq!(t.position as usize, at);
        let found = anew.find(t.name).expect("names are sorted");
        assert_eq!(found.position, t.position);
    }
    let sorted: Vec<_> = (0..anew.len()).filter_map(|i| anew.sorted(i)).collect();
    assert!(sorted.is_sorted_by(|a, b| a.name < b.name));
}

/// Every tensor has its own aligned place within its allocation.
fn lie_apart(tensors: &[TensorRef<'_>], layout: &Layout, granularity: Granularity) {
    let allocations = layout.allocations_bytes();
    assert!(allocations.len() <= ALLOCATIONS_PER_MODEL_MAX);
    assert!(!allocations.contains(&0), "an allocation of nothing");
    let mut taken: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); allocations.len()];
    for tensor in tensors {
        let place = layout.place(tensor.position);
        assert_eq!(place.is_none(), tensor.bytes == 0, "{tensor:?}");
        let Some(place) = place else { continue };
        assert_eq!(place.offset_bytes % ALIGNMENT_BYTES, 0, "{tensor:?}");
        let end = place.offset_bytes.checked_add(tensor.bytes);
        let end = end.expect("ends within 64 bits");
        let size = allocations[place.allocation as usize];
        assert!(end <= size, "{tensor:?} ends at {end} of {size}");
        let before = taken[place.allocation as usize].insert(place.offset_bytes, end);
        assert_eq!(before, None, "two tensors at one place: {tensor:?}");
    }
    for (ranges, &size) in taken.iter().zip(allocations) {
        let (starts, ends) = (ranges.keys().skip(1), ranges.values());
        assert!(ends.zip(starts).all(|(end, next)| end <= next), "overlap");
        assert_eq!(ranges.values().last(), Some(&size), "bytes of nobody");
        match granularity {
            Granularity::Model => assert_eq!(allocations.len(), 1),
            Granularity::Tensor => assert_eq!(ranges.len(), 1),
            Granularity::Block { block_bytes } => {
                assert!(ranges.len() == 1 || size <= block_bytes, "over the block");
            }
        }
    }
}

//! Whatever is laid out well is described exactly; whatever is damaged is refused or lies within.

use super::*;
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn dtypes() -> impl Strategy<Value = DType> {
    let whole: Vec<_> = DType::ALL
        .iter()
        .copied()
        .filter(|d| d.bits() >= 8)
        .collect();
    proptest::sample::select(whole)
}

/// Tensors in the order of their bytes.
fn tensors() -> impl Strategy<Value = Vec<(String, DType, Vec<u64>)>> {
    btree_set("[a-z.\"\\\\é]{1,12}", 0..12)
        .prop_shuffle_names()
        .prop_flat_map(|names| {
            let shapes = vec((dtypes(), vec(0u64..5, 0..4)), names.len());
            shapes.prop_map(move |shapes| {
                let named = names.iter().cloned().zip(shapes);
                named
                    .map(|(name, (dtype, shape))| (name, dtype, shape))
                    .collect()
            })
        })
}

trait ShuffleNames: Strategy {
    fn prop_shuffle_names(self) -> impl Strategy<Value = Vec<String>>;
}

impl<S: Strategy<Value = std::collections::BTreeSet<String>>> ShuffleNames for S {
    fn prop_shuffle_names(self) -> impl Strategy<Value = Vec<String>> {
        self.prop_map(|names| names.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }
}

fn built(tensors: &[(String, DType, Vec<u64>)]) -> Builder {
    tensors
        .iter()
        .fold(Builder::default(), |builder, (name, dtype, shape)| {
            builder.tensor(name, *dtype, shape)
        })
}

/// Either refused with a message, or every tensor lies within its file.
fn assert_refused_or_within(files: &[(&str, Vec<u8>)]) -> Result<(), TestCaseError> {
    match inspect(&set(files)) {
        Err(error) => prop_assert!(!error.to_string().is_empty()),
        Ok(layout) => {
            let table = Table::parse(&layout.table).expect("own table");
            for tensor in table.iter() {
                let tensor = tensor.expect("own entries");
                let file = &layout.files[tensor.segment as usize];
                let end = tensor.offset.checked_add(tensor.bytes);
                prop_assert!(end.is_some_and(|end| end <= file.bytes));
                prop_assert!(tensor.offset >= file.check.map_or(0, |check| check.bytes));
                let shape: Vec<_> = tensor.shape().collect();
                prop_assert_eq!(tensor.dtype.byte_len_of_shape(&shape), Some(tensor.bytes));
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn good_layouts_round_trip(tensors in tensors()) {
        let builder = built(&tensors);
        let start = 8 + builder.header().len() as u64;
        let layout = inspect(&set(&[(FILE, builder.image())])).expect("laid out well");
        let table = Table::parse(&layout.table).expect("own table");
        prop_assert_eq!(table.len(), tensors.len());
        let mut at = start;
        for (name, dtype, shape) in &tensors {
            let found = table.find(name).expect("was written");
            let bytes = dtype.byte_len_of_shape(shape).expect("small");
            prop_assert_eq!((found.dtype, found.offset, found.bytes), (*dtype, at, bytes));
            prop_assert_eq!(found.shape().collect::<Vec<_>>(), shape.clone());
            at += bytes;
        }
        prop_assert_eq!(layout.files[0].bytes, at);
    }

    #[test]
    fn damaged_files_are_refused_or_lie_within(
        tensors in tensors(),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = built(&tensors).image();
        for (at, byte) in edits {
            let at = at.index(image.len());
            image[at] = byte;
        }
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        assert_refused_or_within(&[(FILE, image)])?;
    }

    #[test]
    fn damaged_digits_are_refused_or_lie_within(
        tensors in tensors(),
        edits in vec((any::<prop::sample::Index>(), b"0123456789,[]{}\":".as_slice().prop_select()), 1..4),
    ) {
        let builder = built(&tensors);
        let mut image = builder.image();
        for (at, byte) in edits {
            image[8 + at.index(builder.header().len())] = byte;
        }
        assert_refused_or_within(&[(FILE, image)])?;
    }

    #[test]
    fn damaged_indexes_are_refused_or_lie_within(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut text = index(&[("x", "a.safetensors"), ("y", "b.safetensors")]);
        for (at, byte) in edits {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let shards = [("a.safetensors", one_tensor("x")), ("b.safetensors", one_tensor("y"))];
        let [a, b] = shards;
        assert_refused_or_within(&[(INDEX, text), a, b])?;
    }
}

trait Select {
    fn prop_select(self) -> proptest::sample::Select<u8>;
}

impl Select for &[u8] {
    fn prop_select(self) -> proptest::sample::Select<u8> {
        proptest::sample::select(self.to_vec())
    }
}

//! The blake3 digest of an image, from chunks that several threads hash in any order.
//!
//! blake3 is a tree: the parts of a file whose length is a power of two, at multiples of it, are
//! subtrees, and can be hashed apart.

use super::read::CHUNK_BYTES;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};

const _: () = assert!(CHUNK_BYTES.is_power_of_two() && CHUNK_BYTES >= blake3::CHUNK_LEN);

/// A part of an image: [`CHUNK_BYTES`] long, unless it is the last.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    /// How many chunks are before it.
    pub(super) index: usize,
    /// What it holds; never empty.
    pub(super) bytes: &'a [u8],
}

/// What a chunk contributes to the digest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subtree {
    index: usize,
    value: ChainingValue,
}

impl Subtree {
    /// Hashes a chunk of an image that has more than one.
    pub(super) fn of(chunk: Chunk<'_>) -> Self {
        let mut part = PartHash::of(chunk.index);
        part.update(chunk.bytes);
        part.finish()
    }
}

/// The hash of a chunk that comes bit by bit, of an image that has more than one.
pub(super) struct PartHash {
    index: usize,
    hasher: blake3::Hasher,
}

impl PartHash {
    /// Of the chunk with `index` chunks before it.
    pub(super) fn of(index: usize) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(index as u64 * CHUNK_BYTES as u64);
        Self { index, hasher }
    }

    /// The next bytes; all together never none.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// What the chunk contributes.
    pub(super) fn finish(&self) -> Subtree {
        Subtree {
            index: self.index,
            value: self.hasher.finalize_non_root(),
        }
    }
}

/// The digest of an image of more than one chunk, from all its chunks in any order. `None` if one
/// is missing or there twice.
pub(super) fn digest(mut subtrees: Vec<Subtree>, chunks: usize) -> Option<[u8; 32]> {
    subtrees.sort_unstable_by_key(|subtree| subtree.index);
    if chunks < 2 || !subtrees.iter().map(|subtree| subtree.index).eq(0..chunks) {
        return None;
    }
    let (left, right) = subtrees.split_at(left_of(chunks));
    Some(*merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes())
}

/// The value of a subtree of whole chunks; recurses as deep as the logarithm of their number.
fn merge(subtrees: &[Subtree]) -> ChainingValue {
    if let [one] = subtrees {
        return one.value;
    }
    let (left, right) = subtrees.split_at(left_of(subtrees.len()));
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

/// The left side is as large a power of two as leaves something for the right.
const fn left_of(chunks: usize) -> usize {
    chunks.div_ceil(2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_hashing_it_at_once() {
        for bytes in [
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            2 * CHUNK_BYTES + 5,
            7 * CHUNK_BYTES + 1024,
        ] {
            let bytes = CHUNK_BYTES + bytes;
            let image = &(0..241).collect::<Vec<u8>>().repeat(bytes / 241 + 1)[..bytes];
            let parts = image.chunks(CHUNK_BYTES).enumerate();
            let mut subtrees: Vec<_> = parts
                .map(|(index, bytes)| Subtree::of(Chunk { index, bytes }))
                .collect();
            subtrees.reverse();
            let chunks = subtrees.len();
            let whole = *blake3::hash(image).as_bytes();
            assert_eq!(digest(subtrees, chunks), Some(whole), "{chunks} chunks");
        }
    }

    #[test]
    fn missing_and_doubled_chunks_are_noticed() {
        let subtree = |index| Subtree::of(Chunk { index, bytes: b"x" });
        assert_eq!(digest(vec![subtree(0), subtree(2)], 3), None);
        assert_eq!(digest(vec![subtree(0), subtree(0)], 2), None);
        assert_eq!(digest(vec![], 0), None);
    }
}

//! Tables by numbers that the daemon itself gives out.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by a session's, model's, version's, source's or segment's id. A hit looks into a dozen of
/// them. Not for numbers that clients choose: these could be chosen to collide.
pub(super) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// Spreads a number that counts up.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

/// 2^64 over the golden ratio, odd: no two numbers come to one, and neighbours come far apart.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for IdHasher {
    fn write_u64(&mut self, id: u64) {
        self.0 = (self.0 ^ id).wrapping_mul(SPREAD);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::IdHasher;
    use mrm_core::id::SegmentId;
    use std::collections::BTreeSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    /// A table takes the place from the low bits, and tells neighbours in it apart by the high ones.
    #[test]
    fn numbers_that_count_up_come_to_as_many_places() {
        let hasher = BuildHasherDefault::<IdHasher>::default();
        for first in [0, 1 << 20, 1 << 40] {
            let hashes = (first..first + 4096).map(|id| hasher.hash_one(SegmentId(id)));
            let hashes: Vec<u64> = hashes.collect();
            let low: BTreeSet<u64> = hashes.iter().map(|hash| hash % 4096).collect();
            assert_eq!(low.len(), 4096);
            let high: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
            assert_eq!(high.len(), 128);
        }
    }
}

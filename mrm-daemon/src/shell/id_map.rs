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

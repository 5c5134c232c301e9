//! Harness for tests over real processes: a daemon in a directory of its own, models on disk, raw
//! connections that keep no rule, and the books to compare with.
//!
//! Nothing here waits by sleeping: a daemon says that it is ready over `NOTIFY_SOCKET`, and
//! everything else is awaited with a deadline by [`eventually`].

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::should_implement_trait,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    reason = "a harness fails loudly"
)]

pub mod attempts;
pub mod breaches;
pub mod cuda;
pub mod fuse;
pub mod gpus;
pub mod holder;
pub mod hostile;
pub mod http;
pub mod model;
pub mod node;
pub mod raw;
pub mod survival;
pub mod systemd;

use std::time::{Duration, Instant};

/// How long anything may take on a busy machine before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at what is awaited, so that looking does not starve it on two cores.
const PAUSE: Duration = Duration::from_millis(2);

/// The examples of the README, compiled.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
pub struct Readme;

/// Waits until `probe` says `Some`, at most [`DEADLINE`].
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < until, "{what}: not within {DEADLINE:?}");
        // Only a pause between two looks: what is waited for decides when it ends.
        std::thread::park_timeout(PAUSE);
    }
}

/// A seed for this run, printed so that a failure can be repeated with `MRM_SEED`.
pub fn seed() -> u64 {
    let seed = std::env::var("MRM_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            u64::try_from(now.expect("after 1970").as_nanos() & 0xffff_ffff).expect("fits")
        });
    println!("seed: MRM_SEED={seed}");
    seed
}

/// SplitMix64 (Steele, Lea, Flood 2014): a small seeded generator for test data.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// FNV-1a over words (Fowler, Noll, Vo), to compare bytes between processes.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3)
    })
}
